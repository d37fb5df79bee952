//! Where a packed queue stands, and how to take back a batch that was half written.
//!
//! The header is the protocol's. Where it has a copy of each descriptor in flight, here is an undo log: of a batch that
//! is being marked used, what the ring held before, for all chains but the first, which is marked last. Until that one
//! is, the driver sees nothing of the batch.

use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::{Ordering, compiler_fence};

use vhost::vhost_user::message::{DescStatePacked, QueueRegionPacked};

use super::Part;
use crate::guest_memory::SharedTable;
use crate::virtqueue::BATCH;
use crate::virtqueue::packed::Position;

const VERSION: usize = offset_of!(QueueRegionPacked, version);
const COUNT: usize = offset_of!(QueueRegionPacked, desc_num);
/// The indices and wrap counters, and two bytes of padding for the length of the log: one word, stored at once.
const STATE: usize = offset_of!(QueueRegionPacked, used_idx);
const HEADER: usize = offset_of!(QueueRegionPacked, desc).next_multiple_of(8);
const ENTRY: usize = size_of::<DescStatePacked>();
const _: () = assert!(STATE == 16 && HEADER == 32 && ENTRY == 32);

/// How far a dead backend got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::virtqueue) struct Progress {
    /// The start of the batch that it was about to mark used.
    pub old: Position,
    /// The end of that batch; the same, if there was none.
    pub next: Position,
    /// Words in the log.
    pub logged: usize,
}

impl Progress {
    fn parse(word: u64) -> Progress {
        let [next, old, wraps, logged] = [0, 16, 32, 48].map(|shift| (word >> shift) as u16);
        Progress {
            old: Position::new(old, wraps >> 8 != 0),
            next: Position::new(next, wraps & 0xff != 0),
            logged: logged.into(),
        }
    }

    fn word(self) -> u64 {
        let wraps = u16::from(self.next.wrap()) | u16::from(self.old.wrap()) << 8;
        [self.next.slot(), self.old.slot(), wraps, self.logged as u16]
            .iter()
            .rev()
            .fold(0, |word, part| word << 16 | u64::from(*part))
    }
}

/// One queue's place and log.
#[derive(Debug)]
pub struct PackedInflight {
    part: Part,
    size: u16,
}

impl PackedInflight {
    /// Bytes that a queue of `size` descriptors takes in the shared region.
    pub fn len(size: u16) -> u64 {
        ((HEADER + ENTRY * usize::from(size)) as u64).next_multiple_of(64)
    }

    /// The part of queue `index`, in a region laid out for queues of `size` descriptors, whose own start is aligned to
    /// 8. None: it is too small.
    pub fn new(region: Arc<SharedTable>, index: usize, size: u16) -> Option<PackedInflight> {
        Some(PackedInflight {
            part: Part::new(region, index, Self::len(size))?,
            size,
        })
    }

    /// How far the last backend got with a queue of `size` descriptors. None: it was stopped in order, or there was
    /// none.
    pub(in crate::virtqueue) fn progress(&self, size: u16) -> Option<Progress> {
        let version = u16::from_ne_bytes(self.part.read(VERSION));
        let count = u16::from_ne_bytes(self.part.read(COUNT));
        let progress = Progress::parse(self.part.load64(STATE));
        let inside = progress.old.slot() < size && progress.next.slot() < size;
        (version == 1 && count == size && inside).then_some(progress)
    }

    /// A queue of `size` descriptors starts, at `at`. False: the region is too small for it.
    pub(in crate::virtqueue) fn start(&self, at: Position, size: u16) -> bool {
        if size > self.size {
            return false;
        }
        self.end(at);
        self.part.write(COUNT, size.to_ne_bytes());
        self.part.write(VERSION, 1u16.to_ne_bytes());
        true
    }

    /// The frontend knows where the queue stands from now on.
    pub(in crate::virtqueue) fn forget(&self) {
        self.part.write(VERSION, 0u16.to_ne_bytes());
    }

    /// The batch from `old` to `next` is about to be marked used, which changes `words` of the ring before the first
    /// one.
    #[inline]
    pub(in crate::virtqueue) fn begin(
        &self,
        old: Position,
        next: Position,
        words: impl ExactSizeIterator<Item = u64>,
    ) {
        let logged = words.len();
        for (i, word) in words.enumerate() {
            self.part.write(HEADER + 8 * i, word.to_ne_bytes());
        }
        self.part.store64(STATE, Progress { old, next, logged }.word());
        // Who dies, dies between two instructions: the order in the program is all that counts.
        compiler_fence(Ordering::SeqCst);
    }

    /// All up to `next` is marked used.
    #[inline]
    pub(in crate::virtqueue) fn end(&self, next: Position) {
        let progress = Progress {
            old: next,
            next,
            logged: 0,
        };
        self.part.store64(STATE, progress.word());
    }

    /// The log, as far as `progress` says and there can be any.
    pub(in crate::virtqueue) fn log(&self, progress: Progress) -> impl Iterator<Item = u64> {
        let logged = progress.logged.min(BATCH).min(self.size.into());
        (0..logged).map(|i| u64::from_ne_bytes(self.part.read(HEADER + 8 * i)))
    }
}
