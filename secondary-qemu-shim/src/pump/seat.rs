//! A queue pair of the switch's port with the mbufs in hand for it. Seats move between pumps when the guest changes
//! the number of its queues; the mbufs go along.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Standing;
use crate::port::{Burst, Stash, SwitchPort};

/// A port and the mbufs that are between it and a virtqueue.
#[derive(Debug)]
pub struct Seat<P> {
    queue: usize,
    pub(super) port: P,
    /// Empty mbufs for the guest's next frames.
    pub(super) empties: Stash,
    /// Frames of the guest that the switch has not taken yet. Their descriptors are used already.
    pub(super) outgoing: Burst,
    /// Frames for which the guest has no buffers yet.
    pub(super) inbox: Burst,
    /// Segments of the inbox's first frame that the guest has already, if it is one that is cut for it.
    pub(super) cut: usize,
    /// Bytes copied since the pump last gave way to others on its CPU.
    pub(super) copied: usize,
}

impl<P: SwitchPort> Seat<P> {
    /// Queue pair `queue` of the port, with nothing in hand.
    pub fn new(queue: usize, port: P) -> Seat<P> {
        Seat {
            queue,
            port,
            empties: Stash::new(),
            outgoing: Burst::new(),
            inbox: Burst::new(),
            cut: 0,
            copied: 0,
        }
    }

    /// Which queue pair of the port this is.
    pub fn queue(&self) -> usize {
        self.queue
    }

    /// Hands over what is left of the guest's frames.
    #[inline]
    pub(super) fn flush(&mut self) -> Standing {
        if self.outgoing.is_empty() {
            return Standing::Idle;
        }
        self.port.send(&mut self.outgoing);
        if self.outgoing.is_empty() {
            Standing::Busy
        } else {
            Standing::AwaitsSwitch
        }
    }

    /// Takes empty mbufs from the switch unless `enough` are in hand.
    #[inline]
    pub(super) fn replenish(&mut self, enough: usize) {
        if self.empties.len() < enough {
            self.port.alloc(&mut self.empties);
        }
    }

    /// The first `count` frames of the inbox are done with. Their mbufs are kept for the guest's next frames, as far as there is
    /// room: they are in this CPU's caches, and cost neither side an entry on a ring. The others are given back; all of them while
    /// the switch does not take the guest's frames: this client's share is for what it receives, too.
    #[inline]
    pub(super) fn release(&mut self, count: usize) {
        let room = if self.outgoing.is_empty() {
            self.empties.remaining_capacity()
        } else {
            0
        };
        let last = self.inbox[..count].iter().rev().take(room);
        let kept = last.take_while(|mbuf| mbuf.segment_count() <= 1).count();
        self.empties.extend(self.inbox.drain(count - kept..count));
        if kept < count {
            // All of them fit, unless another process has garbled the ring; the switch takes them back in the end.
            let mut others: Burst = self.inbox.drain(..count - kept).collect();
            self.port.release(&mut others);
        }
    }

    /// Drops what the switch sends: the guest's driver is not ready, and must not find stale frames later.
    pub(super) fn drop_frames(&mut self) -> Standing {
        self.port.receive(&mut self.inbox);
        if self.inbox.is_empty() {
            return Standing::Idle;
        }
        count(&self.port.stats().rx_not_ready, self.inbox.len());
        self.release(self.inbox.len());
        self.cut = 0;
        Standing::Busy
    }
}

/// Adds to a counter that this thread alone writes.
#[inline]
pub(super) fn count(counter: &AtomicU64, n: usize) {
    if n > 0 {
        counter.store(
            counter.load(Ordering::Relaxed).wrapping_add(n as u64),
            Ordering::Relaxed,
        );
    }
}
