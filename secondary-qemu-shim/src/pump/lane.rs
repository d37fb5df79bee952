//! A virtqueue in use: the ring, the memory behind it, and the descriptors that signal.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{read, write};

use crate::guest_memory::{DirtyLog, GuestMemory};
use crate::net_header::Features;
use crate::virtqueue::{Fault, Virtqueue};

/// A descriptor that came over vhost-user to signal with. Whatever it really is, using it never blocks.
#[derive(Debug)]
pub struct Eventfd(OwnedFd);

impl Eventfd {
    /// Makes `file` non-blocking.
    ///
    /// # Errors
    /// It is not a descriptor that can be.
    pub fn new(file: File) -> io::Result<Eventfd> {
        let flags = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL)?);
        fcntl(&file, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Eventfd(file.into()))
    }

    /// Signals the other side. One that is signalled already, or gone, needs nothing more.
    pub fn signal(&self) {
        let _ = write(&self.0, &1u64.to_ne_bytes());
    }

    /// Takes all signals so far. False: this is no eventfd, or the other side is gone.
    pub fn clear(&self) -> bool {
        let mut count = [0; 8];
        matches!(
            read(&self.0, &mut count),
            Ok(8) | Err(Errno::EAGAIN | Errno::EINTR)
        )
    }
}

impl AsFd for Eventfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A virtqueue that the guest has set up.
#[derive(Debug)]
pub struct Lane<Q> {
    /// For log lines: `port 2, queue pair 0, transmit`.
    pub name: String,
    pub queue: Q,
    pub memory: Arc<GuestMemory>,
    pub features: Features,
    /// Enabled by `SET_VRING_ENABLE`.
    pub enabled: bool,
    /// A transmit queue that was enabled and is not any more: what the guest still has in it goes nowhere, lest it waits there
    /// and goes out when the queue is next used (vhost-user, "Ring states").
    pub given_up: bool,
    /// Where writes to buffers are logged, during a live migration.
    pub log: Option<Arc<DirtyLog>>,
    /// The guest's notifications. Without one, the queue is polled.
    pub kick: Option<Eventfd>,
    /// Interrupts to the guest. Without one, the driver polls.
    pub call: Option<Eventfd>,
    /// Told when the queue breaks.
    pub err: Option<Eventfd>,
    /// Set when the guest broke the rules.
    pub fault: Option<Fault>,
}

impl<Q: Virtqueue> Lane<Q> {
    /// May frames move?
    #[inline]
    pub fn runs(&self) -> bool {
        self.enabled && self.fault.is_none()
    }

    /// Does the guest's work on it mean work here, to move frames or to let them go?
    #[inline]
    pub fn is_served(&self) -> bool {
        (self.enabled || self.given_up) && self.fault.is_none()
    }

    /// Interrupts the guest if it wants that for what was completed. True if so.
    #[inline]
    pub fn interrupt(&mut self) -> bool {
        if !self.queue.interrupt_wanted() {
            return false;
        }
        let Some(call) = &self.call else {
            return false;
        };
        call.signal();
        true
    }

    /// Takes the queue out of service, and says why once.
    #[cold]
    pub fn break_down(&mut self, fault: Fault) {
        log::error!(
            "{}: the guest broke its virtqueue, out of service until the driver resets it: {fault}",
            self.name
        );
        self.fault = Some(fault);
        if let Some(err) = &self.err {
            err.signal();
        }
    }
}
