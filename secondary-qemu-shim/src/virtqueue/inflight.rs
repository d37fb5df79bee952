//! Descriptors in flight, in memory that outlives this process (vhost-user, "Inflight I/O tracking", split layout).
//!
//! Chains are completed in order here, so the used index alone tells where to go on. The marks are kept for the
//! frontend that asks for them, and for another backend that may take over.

use std::mem::offset_of;
use std::sync::Arc;

use vhost::vhost_user::message::{DescStateSplit, QueueRegionSplit};

use crate::guest_memory::SharedTable;

const HEADER: usize = offset_of!(QueueRegionSplit, desc);
const ENTRY: usize = size_of::<DescStateSplit>();
const LAST_BATCH: usize = offset_of!(QueueRegionSplit, last_batch_head);
const USED_INDEX: usize = offset_of!(QueueRegionSplit, used_idx);
const VERSION: usize = offset_of!(QueueRegionSplit, version);
const COUNT: usize = offset_of!(QueueRegionSplit, desc_num);
const _: () = assert!(HEADER == 16 && ENTRY == 16);

/// Bytes that a queue of `size` descriptors takes in the shared region.
pub fn region_size(size: u16) -> u64 {
    ((HEADER + ENTRY * usize::from(size)) as u64).next_multiple_of(64)
}

/// One queue's part of the shared region.
#[derive(Debug)]
pub struct InflightQueue {
    region: Arc<SharedTable>,
    offset: u64,
    size: u16,
    counter: u64,
}

impl InflightQueue {
    /// The part of queue `index`, in a region laid out for queues of `size` descriptors. None: it is too small.
    pub fn new(region: Arc<SharedTable>, index: usize, size: u16) -> Option<InflightQueue> {
        let offset = index as u64 * region_size(size);
        (offset + region_size(size) <= region.len()).then_some(InflightQueue {
            region,
            offset,
            size,
            counter: 0,
        })
    }

    fn write<const N: usize>(&self, at: usize, bytes: [u8; N]) {
        self.region.write(self.offset + at as u64, bytes);
    }

    fn read<const N: usize>(&self, at: usize) -> [u8; N] {
        self.region.read(self.offset + at as u64)
    }

    fn entry(head: u16) -> usize {
        HEADER + ENTRY * usize::from(head)
    }

    /// Before the queue starts at used index `used`: ends the batch that a dead backend had published but not yet
    /// cleared.
    pub(super) fn recover(&mut self, used: u16) {
        let known = u16::from_ne_bytes(self.read(USED_INDEX));
        let mut head = u16::from_ne_bytes(self.read(LAST_BATCH));
        for _ in 0..used.wrapping_sub(known).min(self.size) {
            if head >= self.size {
                break;
            }
            let entry = Self::entry(head);
            self.write(entry, [0u8]);
            head = u16::from_ne_bytes(self.read(entry + offset_of!(DescStateSplit, next)));
        }
        self.counter = (0..self.size)
            .map(|h| u64::from_ne_bytes(self.read(Self::entry(h) + offset_of!(DescStateSplit, counter))))
            .max()
            .map_or(0, |c| c.wrapping_add(1));
        let size = self.size;
        self.write(VERSION, 1u16.to_ne_bytes());
        self.write(COUNT, size.to_ne_bytes());
        self.write(USED_INDEX, used.to_ne_bytes());
    }

    /// `heads` are being processed.
    pub(super) fn begin(&mut self, heads: &[u16]) {
        for &head in heads {
            self.write(
                Self::entry(head) + offset_of!(DescStateSplit, counter),
                self.counter.to_ne_bytes(),
            );
            self.counter = self.counter.wrapping_add(1);
            self.write(Self::entry(head), [1u8]);
        }
    }

    /// `heads` are about to be published as used.
    pub(super) fn submit(&mut self, heads: &[u16]) {
        for &head in heads {
            let last: [u8; 2] = self.read(LAST_BATCH);
            self.write(Self::entry(head) + offset_of!(DescStateSplit, next), last);
            self.write(LAST_BATCH, head.to_ne_bytes());
        }
    }

    /// `heads` are used, up to used index `used`.
    pub(super) fn end(&mut self, heads: &[u16], used: u16) {
        for &head in heads {
            self.write(Self::entry(head), [0u8]);
        }
        self.write(USED_INDEX, used.to_ne_bytes());
    }
}
