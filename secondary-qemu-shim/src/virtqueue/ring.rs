//! A virtqueue of either layout: the pumps ask which one it is once a batch.

use std::sync::Arc;

use super::{
    Access, Chains, Fault, Negotiated, PackedInflight, PackedQueue, RingAddresses, SplitInflight, SplitQueue,
    UsedLog, Virtqueue,
};
use crate::guest_memory::{GuestMemory, SharedTable};

/// How a ring lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    Split,
    Packed,
}

impl Layout {
    /// Can a queue have `size` descriptors?
    pub fn allows(self, size: u16) -> bool {
        let fits = (1..=super::MAX_SIZE).contains(&size);
        match self {
            Layout::Split => fits && size.is_power_of_two(),
            Layout::Packed => fits,
        }
    }

    /// Bytes that a queue of `size` descriptors takes in the frontend's inflight region.
    pub fn inflight_len(self, size: u16) -> u64 {
        match self {
            Layout::Split => SplitInflight::len(size),
            Layout::Packed => PackedInflight::len(size),
        }
    }
}

/// A running virtqueue.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "there is one for each virtqueue, and it stays where it is"
)]
pub enum Ring {
    Split(SplitQueue),
    Packed(PackedQueue),
}

impl Ring {
    /// Resolves the parts of a queue of `size` entries; a packed one goes on at `base`, a split one where its memory
    /// says. None: they are not in guest memory as they should be, or size or base are out of range.
    pub fn new(
        layout: Layout,
        memory: &Arc<GuestMemory>,
        addresses: RingAddresses,
        size: u16,
        base: u32,
    ) -> Option<Ring> {
        match layout {
            Layout::Split => SplitQueue::new(memory, addresses, size).map(Ring::Split),
            Layout::Packed => PackedQueue::new(memory, addresses, size, base).map(Ring::Packed),
        }
    }

    /// The same queue in another memory table, under which it runs on.
    pub fn moved(self, memory: &Arc<GuestMemory>, addresses: RingAddresses) -> Option<Ring> {
        match self {
            Ring::Split(old) => {
                let mut queue = SplitQueue::new(memory, addresses, old.size())?;
                queue.carry_on(old);
                Some(Ring::Split(queue))
            }
            Ring::Packed(old) => {
                let mut queue = PackedQueue::new(memory, addresses, old.size(), old.base())?;
                queue.carry_on(old);
                Some(Ring::Packed(queue))
            }
        }
    }

    /// Sets what was negotiated.
    pub fn set_features(&mut self, negotiated: Negotiated) {
        match self {
            Ring::Split(queue) => queue.set_features(negotiated),
            Ring::Packed(queue) => queue.set_features(negotiated),
        }
    }

    /// Logs writes to the ring from now on, or no longer.
    pub fn set_log(&mut self, log: Option<UsedLog>) {
        match self {
            Ring::Split(queue) => queue.set_log(log),
            Ring::Packed(queue) => queue.set_log(log),
        }
    }

    /// Uses part `index` of the frontend's inflight region, if it is laid out for queues like this one.
    pub fn set_inflight(&mut self, region: &Arc<SharedTable>, index: usize, queue_size: u16) {
        let region = Arc::clone(region);
        match self {
            Ring::Split(queue) if queue.size() == queue_size => {
                if let Some(inflight) = SplitInflight::new(region, index, queue_size) {
                    queue.set_inflight(inflight);
                }
            }
            Ring::Split(_) => {}
            Ring::Packed(queue) => {
                if let Some(inflight) = PackedInflight::new(region, index, queue_size) {
                    queue.set_inflight(inflight);
                }
            }
        }
    }

    /// The frontend is told where the queue stopped: the next start goes by its word, where the ring can't tell.
    pub fn hand_over(&mut self) {
        if let Ring::Packed(queue) = self {
            queue.hand_over();
        }
    }
}

impl Virtqueue for Ring {
    #[inline]
    fn take<'m>(
        &mut self,
        memory: &'m GuestMemory,
        access: Access,
        max: usize,
        chains: &mut Chains<'m>,
    ) -> Result<(), Fault> {
        match self {
            Ring::Split(queue) => queue.take(memory, access, max, chains),
            Ring::Packed(queue) => queue.take(memory, access, max, chains),
        }
    }

    #[inline]
    fn complete(&mut self, written: &[u32]) {
        match self {
            Ring::Split(queue) => queue.complete(written),
            Ring::Packed(queue) => queue.complete(written),
        }
    }

    #[inline]
    fn interrupt_wanted(&mut self) -> bool {
        match self {
            Ring::Split(queue) => queue.interrupt_wanted(),
            Ring::Packed(queue) => queue.interrupt_wanted(),
        }
    }

    fn suppress_kicks(&mut self) {
        match self {
            Ring::Split(queue) => queue.suppress_kicks(),
            Ring::Packed(queue) => queue.suppress_kicks(),
        }
    }

    fn enable_kicks(&mut self) -> bool {
        match self {
            Ring::Split(queue) => queue.enable_kicks(),
            Ring::Packed(queue) => queue.enable_kicks(),
        }
    }

    fn base(&self) -> u32 {
        match self {
            Ring::Split(queue) => queue.base(),
            Ring::Packed(queue) => queue.base(),
        }
    }

    fn size(&self) -> u16 {
        match self {
            Ring::Split(queue) => queue.size(),
            Ring::Packed(queue) => queue.size(),
        }
    }
}
