//! What can go wrong while driving a guest.

use std::path::PathBuf;
use std::time::Duration;

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

/// Each message is complete: it names the thing and shows what was seen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or socket operation failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Something didn't happen in time.
    #[error("{what} did not happen within {limit:?}; last seen: {seen:?}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
        /// The end of what had come.
        seen: String,
    },
    /// The other end closed its socket.
    #[error("{0} closed the connection")]
    Closed(&'static str),
    /// The peer sent what its protocol does not allow.
    #[error("{protocol}: {detail}")]
    Protocol {
        /// Which protocol.
        protocol: &'static str,
        /// What was wrong.
        detail: String,
    },
    /// QEMU refused a QMP command.
    #[error("QMP {command}: {class}: {description}")]
    Qmp {
        /// The command.
        command: String,
        /// QEMU's error class.
        class: String,
        /// QEMU's words.
        description: String,
    },
    /// A command in the guest ended with an exit code that was not expected.
    #[error("guest command {command:?} ended with {code}: {output}")]
    Command {
        /// The command as it was run.
        command: String,
        /// Its exit code.
        code: i32,
        /// Standard output and standard error.
        output: String,
    },
    /// Output that should have been understood was not.
    #[error("can't make sense of {what}: {text:?}")]
    Parse {
        /// What it should have been.
        what: &'static str,
        /// What it was.
        text: String,
    },
    /// QEMU ended although it should run.
    #[error("QEMU ended ({status}): {stderr}")]
    QemuExited {
        /// Its exit status.
        status: String,
        /// Its standard error.
        stderr: String,
    },
    /// No VGA font was found on this host.
    #[error("no VGA font: none of {0:?} holds one (package seabios)")]
    NoFont(Vec<PathBuf>),
    /// A character that no key of the US keyboard makes.
    #[error("no key for {0:?} on a US keyboard")]
    NoKey(char),
    /// A helper script did not do its work.
    #[error("{script} failed ({status})")]
    Script {
        /// Which one.
        script: String,
        /// Its exit status.
        status: String,
    },
}

/// Adds to an I/O error what was being done.
pub(crate) trait Context<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Context<T> for std::io::Result<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Io { what: what(), source })
    }
}

/// The last part of a long text, for error messages.
pub(crate) fn tail(text: &str) -> String {
    const KEEP: usize = 600;
    let skip = text.chars().count().saturating_sub(KEEP);
    text.chars().skip(skip).collect()
}
