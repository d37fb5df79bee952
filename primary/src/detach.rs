//! `--detach`: the process that the user started waits until the switch is ready, then ends; the switch goes on in a
//! child of its own session.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;

use anyhow::Context;
use nix::fcntl::OFlag;
use nix::unistd::{ForkResult, dup2_stderr, dup2_stdin, dup2_stdout, fork, pipe2, setsid};

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
    let (read, write) = pipe2(OFlag::O_CLOEXEC).context("pipe")?;
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
    /// The switch is ready: lets the parent go, and what is left of the terminal.
    ///
    /// # Errors
    /// The parent can't be told.
    pub fn ready(mut self) -> anyhow::Result<()> {
        let null = File::open("/dev/null").context("/dev/null")?;
        dup2_stdin(null.as_fd()).context("dup2")?;
        self.0.write_all(b"ready").context("telling the parent")
    }
}

/// What this process prints, and libraries in it, goes to `log` from here on.
///
/// # Errors
/// The system's.
pub fn print_to(log: &File) -> io::Result<()> {
    dup2_stdout(log.as_fd())?;
    Ok(dup2_stderr(log.as_fd())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use log::LevelFilter;
    use vswitch_control::vlog::Levels;

    /// As logrotate does it. Not only log lines: EAL and a panic print by themselves.
    #[test]
    fn what_is_printed_follows_a_log_file_that_was_moved() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let levels = Levels::new(LevelFilter::Info, &[]);
        levels.log_to(path.clone(), print_to);
        let terminal =
            [io::stdout().as_fd(), io::stderr().as_fd()].map(|fd| fd.try_clone_to_owned().unwrap());
        levels.reopen().unwrap();
        io::stderr().write_all(b"early\n").unwrap();
        let moved = dir.path().join("log.1");
        std::fs::rename(&path, &moved).unwrap();
        levels.reopen().unwrap();
        io::stderr().write_all(b"late\n").unwrap();
        io::stdout().write_all(b"later\n").unwrap();
        io::stdout().flush().unwrap();
        dup2_stdout(&terminal[0]).unwrap();
        dup2_stderr(&terminal[1]).unwrap();
        // Other tests of this process may print meanwhile.
        let [early, late] = [moved, path].map(|path| std::fs::read_to_string(path).unwrap());
        assert!(early.contains("early\n") && !early.contains("late"), "{early}");
        assert!(late.contains("late\n") && late.contains("later\n"), "{late}");
    }
}
