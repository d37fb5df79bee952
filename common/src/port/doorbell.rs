//! Sleeping and waking across processes: an eventfd, and a flag in shared memory that says whether to ring it.
//!
//! The sleeper sets its flag and then looks at its rings once more; the other side publishes its entries and then
//! looks at the flag. With a full fence between the two steps on both sides, at least one of them sees the other:
//! no wake-up is lost, and a busy pair never makes a system call.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering, fence};

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

/// "I sleep: ring." In shared memory, alone on its cache line.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct NeedWakeup(AtomicU32);

impl NeedWakeup {
    /// The sleeper: sets the flag. Look for work once more after this, before blocking.
    #[inline]
    pub fn arm(&self) {
        self.0.store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// The sleeper: awake again.
    #[inline]
    pub fn disarm(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// The other side, after publishing: must the doorbell be rung? True once per sleep.
    #[inline]
    pub fn take(&self) -> bool {
        fence(Ordering::SeqCst);
        self.0.load(Ordering::Relaxed) != 0 && self.0.swap(0, Ordering::Relaxed) != 0
    }
}

/// An eventfd that wakes one sleeper.
#[derive(Debug)]
pub struct Doorbell(EventFd);

impl Doorbell {
    /// A new, silent one.
    ///
    /// # Errors
    /// The process or the system is out of file descriptors.
    pub fn new() -> nix::Result<Doorbell> {
        EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map(Doorbell)
    }

    /// The doorbell behind a descriptor that came over a socket.
    ///
    /// The descriptor need not be an eventfd for this to be safe: ringing writes 8 bytes, silencing reads them.
    pub fn from_fd(fd: OwnedFd) -> Doorbell {
        // SAFETY: an EventFd is a newtype of an owned descriptor; nothing else is assumed of it.
        Doorbell(unsafe { EventFd::from_owned_fd(fd) })
    }

    /// Wakes the sleeper. A full counter means it is awake already.
    #[inline]
    pub fn ring(&self) {
        // The only errors left are EAGAIN (counter full: already rung) and a peer's closed descriptor.
        let _ = self.0.write(1);
    }

    /// Takes all rings so far.
    pub fn silence(&self) {
        while matches!(self.0.read(), Err(Errno::EINTR)) {}
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
