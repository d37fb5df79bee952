//! What a program of Rust has and libFuzzer's `main` has not.

use std::fmt::Write;

/// Formats what is logged, and throws it away: what stands in log lines is code, too.
struct Sink;

impl log::Log for Sink {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let mut text = String::new();
        let _ = write!(text, "{}", record.args());
    }

    fn flush(&self) {}
}

/// Ignores SIGPIPE, as the programs under test do, and looks at every log line.
pub fn prepare() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: no handler is installed.
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigIgn) }.expect("a signal that can be ignored");
    if log::set_logger(&Sink).is_ok() {
        log::set_max_level(log::LevelFilter::Trace);
    }
}
