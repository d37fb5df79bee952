//! Where DPDK's text log goes.

use std::ffi::c_char;
use std::io::Write;

use dpdk_sys as sys;

/// What is to be seen of what EAL says while it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartLog {
    /// All of it.
    Shown,
    /// It, if EAL does not start.
    OnFailure,
}

/// To standard error, and not to syslog as well: a service's standard error ends up there, too.
pub(super) fn to_stderr() {
    // SAFETY: sets a pointer to a stream that lives as long as the process.
    unsafe { sys::dpdk_sys_log_to_stderr() };
}

/// The log is kept in memory, until this is dropped.
pub(super) struct Kept {
    stream: *mut libc::FILE,
    /// What `open_memstream` writes to: the text and its length, as of the last flush.
    text: Box<(*mut c_char, usize)>,
}

impl Kept {
    pub(super) fn start() -> Option<Kept> {
        let mut text = Box::new((std::ptr::null_mut(), 0));
        // SAFETY: both places live on the heap until the stream is closed.
        let stream = unsafe { libc::open_memstream(&raw mut text.0, &raw mut text.1) };
        if stream.is_null() {
            return None;
        }
        // SAFETY: the stream is open until `drop`, which sets another one first.
        unsafe { sys::rte_openlog_stream(stream.cast()) };
        Some(Kept { stream, text })
    }

    /// Shows what has come so far.
    pub(super) fn show(&self) {
        // SAFETY: the stream is open; behind a flush the text has so many bytes.
        let text = unsafe {
            libc::fflush(self.stream);
            let (text, len) = *self.text;
            if text.is_null() {
                &[]
            } else {
                std::slice::from_raw_parts(text.cast::<u8>(), len)
            }
        };
        // Nobody else could be told.
        let _ = std::io::stderr().write_all(text);
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        to_stderr();
        // SAFETY: nobody writes to the stream from here on; closed, it leaves the text to us.
        unsafe {
            libc::fclose(self.stream);
            libc::free(self.text.0.cast());
        }
    }
}
