//! The pumps' other side: a queue pair of the switch's port, or what tests put in its place.

use std::os::fd::BorrowedFd;

use arrayvec::ArrayVec;
use vswitch_common::mbuf::Mbuf;
use vswitch_common::port::client::QueuePair;
use vswitch_common::port::layout::ClientStats;

use crate::virtqueue::BATCH;

/// Mbufs in hand, moved at a time.
pub type Burst = ArrayVec<Mbuf, BATCH>;

/// Mbufs of delivered frames that a pump keeps for its guest's next ones at most. Frames come in clumps: a pump on a crowded CPU often
/// delivers hundreds of them between two of the guest's.
pub const STASH: usize = 6 * BATCH;

/// Those mbufs, and others that are empty.
pub type Stash = ArrayVec<Mbuf, STASH>;

/// Where frames go to and come from. Mbufs are only borrowed from it: every one is handed back by `send` or `release`.
pub trait SwitchPort: Send {
    /// Adds empty mbufs to `out`, a batch at most.
    fn alloc(&mut self, out: &mut Stash);
    /// Hands `frames` over in order; what does not fit stays.
    fn send(&mut self, frames: &mut Burst);
    /// Adds frames for the guest to `out`, as many as there are and fit.
    fn receive(&mut self, out: &mut Burst);
    /// Gives mbufs back, and all that are linked to them.
    fn release(&mut self, used: &mut Burst);
    /// Frames wait for the guest.
    fn frames_waiting(&mut self) -> bool;
    /// Empty mbufs wait.
    fn buffers_waiting(&mut self) -> bool;
    /// At least one frame could be sent.
    fn has_room(&mut self) -> bool;
    /// Asks for the doorbell to be rung. Look for work once more after this, before sleeping.
    fn arm(&self);
    /// Awake again.
    fn disarm(&self);
    /// Takes the rings so far.
    fn silence(&self);
    /// Readable when rung.
    fn doorbell(&self) -> BorrowedFd<'_>;
    /// The switch wants it polled. The doorbell rings when that changes.
    fn busy_poll(&self) -> bool;
    /// The counters that the switch shows.
    fn stats(&self) -> &ClientStats;
}

impl SwitchPort for QueuePair {
    #[inline]
    fn alloc(&mut self, out: &mut Stash) {
        QueuePair::alloc(self, out);
    }

    #[inline]
    fn send(&mut self, frames: &mut Burst) {
        QueuePair::send(self, frames);
    }

    #[inline]
    fn receive(&mut self, out: &mut Burst) {
        QueuePair::receive(self, out);
    }

    #[inline]
    fn release(&mut self, used: &mut Burst) {
        QueuePair::release_frames(self, used);
    }

    fn frames_waiting(&mut self) -> bool {
        QueuePair::frames_waiting(self) > 0
    }

    fn buffers_waiting(&mut self) -> bool {
        QueuePair::buffers_waiting(self) > 0
    }

    fn has_room(&mut self) -> bool {
        self.tx_room() > 0
    }

    fn arm(&self) {
        self.arm_doorbell();
    }

    fn disarm(&self) {
        self.disarm_doorbell();
    }

    fn silence(&self) {
        self.silence_doorbell();
    }

    fn doorbell(&self) -> BorrowedFd<'_> {
        QueuePair::doorbell(self)
    }

    #[inline]
    fn busy_poll(&self) -> bool {
        QueuePair::busy_poll(self)
    }

    fn stats(&self) -> &ClientStats {
        QueuePair::stats(self)
    }
}
