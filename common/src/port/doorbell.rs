//! Sleeping and waking across processes: a descriptor to wait on, and a flag in shared memory, [`NeedWakeup`], that says
//! whether to ring it, so that a busy pair never makes a system call.
//!
//! Between processes the descriptor is a pipe, not an eventfd: "non-blocking" belongs to an open file description,
//! which both sides of an eventfd would share. A client that cleared it could make the switch block; a pipe's two
//! ends have one each.

mod rung;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::{pipe2, read, write};
pub use rung::{Rung, wait};
use vswitch_sync::gate;
pub use vswitch_sync::need_wakeup::{self, NeedWakeup};

/// The sleeper's end of a doorbell between two processes.
#[derive(Debug)]
pub struct Bell(OwnedFd);

/// The other side's end.
#[derive(Debug)]
pub struct Ringer(OwnedFd);

/// A new doorbell between two processes. Neither end ever blocks its holder, whatever the other side does.
///
/// # Errors
/// The process or the system is out of file descriptors.
pub fn pair() -> nix::Result<(Ringer, Bell)> {
    let (bell, ringer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    Ok((Ringer(ringer), Bell(bell)))
}

impl Ringer {
    /// Wakes the sleeper. A full pipe means that it has been rung already, a broken one that nobody sleeps there.
    #[inline]
    pub fn ring(&self) {
        let _ = write(&self.0, &[1]);
    }
}

impl Bell {
    /// Takes the rings so far; those of a peer that never stops ringing stay, and wake again.
    pub fn silence(&self) {
        let mut rings = [0; 256];
        let _ = read(&self.0, &mut rings);
    }
}

impl From<OwnedFd> for Ringer {
    fn from(fd: OwnedFd) -> Ringer {
        Ringer(fd)
    }
}

impl From<OwnedFd> for Bell {
    fn from(fd: OwnedFd) -> Bell {
        Bell(fd)
    }
}

impl From<Ringer> for OwnedFd {
    fn from(ringer: Ringer) -> OwnedFd {
        ringer.0
    }
}

impl From<Bell> for OwnedFd {
    fn from(bell: Bell) -> OwnedFd {
        bell.0
    }
}

impl AsFd for Ringer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsFd for Bell {
    /// Readable when it has been rung.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A doorbell between threads of one process.
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

    /// Wakes the sleeper. A full counter means that it is awake already.
    #[inline]
    pub fn ring(&self) {
        let _ = self.0.write(1);
    }

    /// Takes all rings so far.
    pub fn silence(&self) {
        while matches!(self.0.read(), Err(Errno::EINTR)) {}
    }
}

impl gate::Bell for Doorbell {
    fn ring(&self) {
        Doorbell::ring(self);
    }

    fn silence(&self) {
        Doorbell::silence(self);
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{FcntlArg, fcntl};

    /// A hostile client turns blocking on at its end, rings without end, or never listens.
    #[test]
    fn the_other_side_cannot_make_this_one_block() {
        let (ringer, bell) = pair().unwrap();
        fcntl(&ringer, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
        bell.silence();
        ringer.ring();
        bell.silence();
        bell.silence();

        let (ringer, bell) = pair().unwrap();
        fcntl(&bell, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
        for _ in 0..100_000 {
            ringer.ring();
        }
        drop(bell);
        ringer.ring();
    }
}
