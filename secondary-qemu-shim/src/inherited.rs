//! Descriptors that the parent process passed by number.

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

/// Takes over descriptor `fd`, which the command line named.
///
/// # Errors
/// There is no such descriptor.
pub fn take(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: only borrowed for one fcntl, which tells whether the number is a descriptor at all.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    // SAFETY: it is open, the parent passed it for this use, and nothing else here knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_number_that_is_no_descriptor_is_refused() {
        assert!(super::take(987).is_err());
    }
}
