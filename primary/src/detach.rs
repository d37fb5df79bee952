//! `--detach`: the process that the user started waits until the switch is ready, then ends; the switch goes on in a
//! child of its own session.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::Path;

use anyhow::Context;
use nix::unistd::{ForkResult, dup2_stderr, dup2_stdin, dup2_stdout, fork, pipe, setsid};

/// The child's line to the waiting parent.
#[derive(Debug)]
pub struct Readiness(File);

/// Forks. Returns in the child only; the parent ends with the child's verdict.
///
/// Must be called before the process has a second thread.
///
/// # Errors
/// The system gives no process.
pub fn detach() -> anyhow::Result<Readiness> {
    let (read, write) = pipe().context("pipe")?;
    // SAFETY: the process has one thread, so the child may do anything.
    match unsafe { fork() }.context("fork")? {
        ForkResult::Parent { .. } => {
            drop(write);
            let mut verdict = Vec::new();
            let _ = File::from(read).read_to_end(&mut verdict);
            // Nothing said: it died, and has said why on the shared standard error.
            std::process::exit(if verdict == b"ready" { 0 } else { 1 });
        }
        ForkResult::Child => {
            setsid().context("setsid")?;
            Ok(Readiness(File::from(write)))
        }
    }
}

impl Readiness {
    /// The switch is ready: lets the parent go, and the terminal. Output goes to `log` from here on.
    ///
    /// # Errors
    /// The log file can't be written.
    pub fn ready(mut self, log: &Path) -> anyhow::Result<()> {
        let file = File::options().create(true).append(true).open(log);
        let file = file.with_context(|| format!("log file {}", log.display()))?;
        let null = File::open("/dev/null").context("/dev/null")?;
        self.0.write_all(b"ready").context("telling the parent")?;
        dup2_stdin(null.as_fd()).context("dup2")?;
        dup2_stdout(file.as_fd()).context("dup2")?;
        dup2_stderr(file.as_fd()).context("dup2")?;
        Ok(())
    }
}
