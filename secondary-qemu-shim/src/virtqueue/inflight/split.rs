//! Descriptors of a split queue in flight.
//!
//! The used index in the ring alone tells where to go on. The marks are kept for the frontend that asks for them, and
//! for another backend that may take over.

use std::mem::offset_of;
use std::sync::Arc;

use vhost::vhost_user::message::{DescStateSplit, QueueRegionSplit};

use super::Part;
use crate::guest_memory::SharedTable;

const HEADER: usize = offset_of!(QueueRegionSplit, desc);
const ENTRY: usize = size_of::<DescStateSplit>();
const LAST_BATCH: usize = offset_of!(QueueRegionSplit, last_batch_head);
const USED_INDEX: usize = offset_of!(QueueRegionSplit, used_idx);
const VERSION: usize = offset_of!(QueueRegionSplit, version);
const COUNT: usize = offset_of!(QueueRegionSplit, desc_num);
const _: () = assert!(HEADER == 16 && ENTRY == 16);

/// One queue's marks.
#[derive(Debug)]
pub struct SplitInflight {
    part: Part,
    size: u16,
    counter: u64,
}

impl SplitInflight {
    /// Bytes that a queue of `size` descriptors takes in the shared region.
    pub fn len(size: u16) -> u64 {
        ((HEADER + ENTRY * usize::from(size)) as u64).next_multiple_of(64)
    }

    /// The part of queue `index`, in a region laid out for queues of `size` descriptors. None: it is too small.
    pub fn new(region: Arc<SharedTable>, index: usize, size: u16) -> Option<SplitInflight> {
        Some(SplitInflight {
            part: Part::new(region, index, Self::len(size))?,
            size,
            counter: 0,
        })
    }

    fn entry(head: u16) -> usize {
        HEADER + ENTRY * usize::from(head)
    }

    /// Before the queue starts at used index `used`: ends the batch that a dead backend had published but not yet
    /// cleared.
    pub(in crate::virtqueue) fn recover(&mut self, used: u16) {
        let known = u16::from_ne_bytes(self.part.read(USED_INDEX));
        let mut head = u16::from_ne_bytes(self.part.read(LAST_BATCH));
        for _ in 0..used.wrapping_sub(known).min(self.size) {
            if head >= self.size {
                break;
            }
            let entry = Self::entry(head);
            self.part.write(entry, [0u8]);
            head = u16::from_ne_bytes(self.part.read(entry + offset_of!(DescStateSplit, next)));
        }
        self.counter = (0..self.size)
            .map(|h| {
                u64::from_ne_bytes(
                    self.part
                        .read(Self::entry(h) + offset_of!(DescStateSplit, counter)),
                )
            })
            .max()
            .map_or(0, |c| c.wrapping_add(1));
        let size = self.size;
        self.part.write(VERSION, 1u16.to_ne_bytes());
        self.part.write(COUNT, size.to_ne_bytes());
        self.part.write(USED_INDEX, used.to_ne_bytes());
    }

    /// `heads` are being processed.
    pub(in crate::virtqueue) fn begin(&mut self, heads: &[u16]) {
        for &head in heads {
            self.part.write(
                Self::entry(head) + offset_of!(DescStateSplit, counter),
                self.counter.to_ne_bytes(),
            );
            self.counter = self.counter.wrapping_add(1);
            self.part.write(Self::entry(head), [1u8]);
        }
    }

    /// `heads` are about to be published as used.
    pub(in crate::virtqueue) fn submit(&mut self, heads: &[u16]) {
        for &head in heads {
            let last: [u8; 2] = self.part.read(LAST_BATCH);
            self.part
                .write(Self::entry(head) + offset_of!(DescStateSplit, next), last);
            self.part.write(LAST_BATCH, head.to_ne_bytes());
        }
    }

    /// `heads` are used, up to used index `used`.
    pub(in crate::virtqueue) fn end(&mut self, heads: &[u16], used: u16) {
        for &head in heads {
            self.part.write(Self::entry(head), [0u8]);
        }
        self.part.write(USED_INDEX, used.to_ne_bytes());
    }
}
