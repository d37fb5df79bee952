//! The process behind a connection, held by a pidfd: is it dead, and make it so.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::socket::{getsockopt, sockopt};

/// A process that can't be mistaken for a later one with the same number.
#[derive(Debug)]
pub struct Process {
    pid: i32,
    fd: OwnedFd,
}

impl Process {
    /// The process at the other end of a unix socket. `None` where the kernel does not tell: it lives in another
    /// PID name space, or is dead already.
    pub fn of_peer(socket: BorrowedFd<'_>) -> Option<Process> {
        let pid = getsockopt(&socket, sockopt::PeerCredentials).ok()?.pid();
        if pid <= 0 {
            return None;
        }
        // SAFETY: pidfd_open(2) takes two integers and returns a new descriptor or -1.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        if fd < 0 {
            return None;
        }
        // SAFETY: a fresh descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        Some(Process { pid, fd })
    }

    /// Its number, for logs.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Has it ended? (A zombie has.)
    pub fn is_dead(&self) -> bool {
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        matches!(poll(&mut fds, PollTimeout::ZERO), Ok(n) if n > 0)
    }

    /// Sends SIGKILL; a failure means that it is dead, or that this user may not.
    pub fn kill(&self) -> bool {
        // SAFETY: pidfd_send_signal(2) with a null siginfo.
        let rc = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.fd.as_raw_fd(),
                Signal::SIGKILL as i32,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        rc == 0
    }
}

impl AsFd for Process {
    /// Readable when it has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
