//! What outlives this process: a queue's part of a region that the frontend keeps (vhost-user, "Inflight I/O
//! tracking").
//!
//! Chains are completed in order here, so what is in flight can be read from the ring itself once it is known where the
//! ring stands. A split ring says that in its used index. A packed ring does not; there the region does.

pub(super) mod packed;
pub(super) mod split;

use std::sync::Arc;

use crate::guest_memory::SharedTable;

/// A queue's part of the shared region.
#[derive(Debug)]
struct Part {
    region: Arc<SharedTable>,
    offset: u64,
}

impl Part {
    /// Part `index` of a region of parts of `len` bytes. None: it is too small.
    fn new(region: Arc<SharedTable>, index: usize, len: u64) -> Option<Part> {
        let offset = index as u64 * len;
        (offset + len <= region.len()).then_some(Part { region, offset })
    }

    fn write<const N: usize>(&self, at: usize, bytes: [u8; N]) {
        self.region.write(self.offset + at as u64, bytes);
    }

    fn read<const N: usize>(&self, at: usize) -> [u8; N] {
        self.region.read(self.offset + at as u64)
    }

    fn load64(&self, at: usize) -> u64 {
        self.region.load64(self.offset + at as u64)
    }

    fn store64(&self, at: usize, word: u64) {
        self.region.store64(self.offset + at as u64, word);
    }
}
