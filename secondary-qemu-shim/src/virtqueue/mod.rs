//! The device's side of a virtqueue, free of what it carries.
//!
//! [`Virtqueue`] is the seam between the pumps and a ring layout; [`SplitQueue`] (virtio 1.2 §2.7) and [`PackedQueue`]
//! (§2.8) implement it, and [`Ring`] is either.
//! The contract all layouts share: chains are taken and marked used strictly in order, so between two batches the
//! place in the ring is all the state there is. Whatever the guest writes ends in frames or in a [`Fault`].

mod chains;
mod descriptor;
mod inflight;
mod packed;
mod ring;
mod split;

use std::sync::Arc;

pub use chains::{Access, Chains};
pub use inflight::packed::PackedInflight;
pub use inflight::split::SplitInflight;
pub use packed::PackedQueue;
pub use ring::{Layout, Ring};
pub use split::SplitQueue;

use crate::guest_memory::{DirtyLog, GuestMemory};

/// Largest queue size of both layouts (§2.7, §2.8).
pub const MAX_SIZE: u16 = 32768;

/// Chains taken at a time.
pub const BATCH: usize = 64;

/// Buffers in one chain at most. Indirect tables may exceed the queue's size, though not this.
pub const MAX_CHAIN: usize = 1024;

/// Where the frontend says that a queue's three parts lie, in its own addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingAddresses {
    /// The descriptor table, or the descriptor ring of a packed queue.
    pub descriptors: u64,
    /// The driver's part: the available ring, or the driver event suppression of a packed queue.
    pub available: u64,
    /// The device's part: the used ring, or the device event suppression of a packed queue.
    pub used: u64,
}

/// What driver and device agreed on, as far as rings are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Negotiated {
    /// Notifications can be asked for a certain descriptor (§2.7.7, §2.8.10).
    pub event_idx: bool,
    /// Indirect descriptors (§2.7.5.3, §2.8.7).
    pub indirect: bool,
    /// One used descriptor can tell of a whole batch (§2.7.9, §2.8.8).
    pub in_order: bool,
}

/// Where writes to a ring are logged during a live migration.
#[derive(Debug, Clone)]
pub struct UsedLog {
    pub log: Arc<DirtyLog>,
    /// Guest physical address of a split queue's used ring.
    pub guest: u64,
}

/// How a guest broke the rules of its virtqueue. The queue is out of service until the driver resets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("the available index jumped {ahead} ahead in a queue of {size}")]
    AvailableIndex { ahead: u16, size: u16 },
    #[error("descriptor index {index} in a table of {size}")]
    DescriptorIndex { index: u16, size: u32 },
    #[error("a descriptor chain longer than its table of {size}: a loop")]
    Loop { size: u32 },
    #[error("a descriptor chain of more than {MAX_CHAIN} buffers")]
    TooManyBuffers,
    #[error("a chain of more than 4 GiB")]
    TooManyBytes,
    #[error("a descriptor of {len} bytes at {address:#x}, not in guest memory")]
    Address { address: u64, len: u32 },
    #[error("a descriptor of no bytes")]
    Empty,
    #[error("a device-{0} descriptor where the other direction belongs")]
    Direction(&'static str),
    #[error("an indirect descriptor, which was not negotiated")]
    IndirectNotNegotiated,
    #[error("an indirect table of {len} bytes, or one that has a successor or lies inside another")]
    IndirectTable { len: u32 },
    #[error("a chain of {len} bytes, too short for the virtio-net header")]
    NoHeader { len: usize },
}

/// The device's end of a virtqueue, for in-order use in batches.
pub trait Virtqueue {
    /// Walks up to `max` available chains (and no more than [`BATCH`], nor than are wanted) into `chains`, without consuming
    /// them. All buffers must be of the kind `access`.
    ///
    /// # Errors
    /// The next chain, or the ring itself, breaks the rules. Good chains before a bad one are returned first, with its
    /// [`Chains::fault`].
    fn take<'m>(
        &mut self,
        memory: &'m GuestMemory,
        access: Access,
        max: usize,
        chains: &mut Chains<'m>,
    ) -> Result<(), Fault>;

    /// Marks the first `written.len()` chains of the last [`Virtqueue::take`] used, with the bytes written to each,
    /// and makes them visible to the driver at once. At most once for a take.
    fn complete(&mut self, written: &[u32]);

    /// Must the driver be interrupted for what was completed since the last call that said so?
    fn interrupt_wanted(&mut self) -> bool;

    /// Asks the driver not to notify.
    fn suppress_kicks(&mut self);

    /// Asks the driver to notify of the next chain that this side has not seen. True: there is one already.
    fn enable_kicks(&mut self) -> bool;

    /// Where the queue stands: what `GET_VRING_BASE` answers.
    fn base(&self) -> u32;

    /// Descriptors that the ring has room for.
    fn size(&self) -> u16;
}

#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
