//! Where DPDK's text log goes.

use std::fs::File;
use std::io::{self, Seek};
use std::os::fd::IntoRawFd;

use dpdk_sys as sys;
use nix::sys::memfd::{MFdFlags, memfd_create};

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

/// The log is kept in a file in memory, until this is dropped. (DPDK's end of it stays open: a thread of EAL's may be about to
/// write there.)
pub(super) struct Kept {
    stream: *mut libc::FILE,
    file: File,
}

impl Kept {
    pub(super) fn start() -> Option<Kept> {
        let file = File::from(memfd_create(c"eal-log", MFdFlags::MFD_CLOEXEC).ok()?);
        let end = file.try_clone().ok()?.into_raw_fd();
        // SAFETY: a descriptor that nobody else uses.
        let stream = unsafe { libc::fdopen(end, c"w".as_ptr()) };
        if stream.is_null() {
            return None;
        }
        // SAFETY: the stream is never closed.
        unsafe { sys::rte_openlog_stream(stream.cast()) };
        Some(Kept { stream, file })
    }

    /// Shows what has come so far.
    pub(super) fn show(mut self) {
        // SAFETY: the stream is open.
        unsafe { libc::fflush(self.stream) };
        // Nobody else could be told if that failed.
        let _ = self.file.rewind();
        let _ = io::copy(&mut self.file, &mut io::stderr());
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        to_stderr();
    }
}
