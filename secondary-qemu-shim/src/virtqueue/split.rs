//! Split virtqueues (virtio 1.2 §2.7).
//!
//! The available ring is read in bulk, and the descriptors it names are prefetched before the first one is looked
//! at; the used ring is written in bulk and published by one store. All that the guest can write is read once.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use arrayvec::ArrayVec;
use virtio_bindings::virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY};
use vswitch_common::fault::{self, Point};

use super::descriptor::{DESCRIPTOR, Descriptor, INDIRECT, NEXT};
use super::{Access, BATCH, Chains, Fault, Negotiated, RingAddresses, SplitInflight, UsedLog, Virtqueue};
use crate::guest_memory::{GuestMemory, RingArea, Span};

/// Where the ring of the available and of the used part starts, behind flags and index (§2.7.6, §2.7.8).
const RING: usize = 4;
/// Offset of `idx` in both.
const INDEX: usize = 2;
/// How far ahead of a walk descriptors are loaded: two cache lines of them.
const AHEAD: u16 = 8;
/// Bytes of an element of the used ring.
const USED_ELEMENT: usize = 8;

/// A running split virtqueue.
#[derive(Debug)]
pub struct SplitQueue {
    size: u16,
    /// Next available entry to consume, and next used entry to write: the same number, for chains are completed in
    /// the order they were made available.
    next: u16,
    /// The available index as last read.
    available: u16,
    /// The used index when the driver was last considered for an interrupt; none before the first time.
    signalled: Option<u16>,
    negotiated: Negotiated,
    descriptors: RingArea,
    available_ring: RingArea,
    used_ring: RingArea,
    log: Option<UsedLog>,
    inflight: Option<SplitInflight>,
    /// Head descriptors of the last `take`, how many they are, and what they were taken for.
    heads: [u16; BATCH],
    taken: usize,
    access: Access,
}

/// A descriptor and the index of the one behind it (§2.7.5).
#[inline]
fn parse(bytes: [u8; DESCRIPTOR]) -> (Descriptor, u16) {
    let raw = u128::from_le_bytes(bytes);
    let descriptor = Descriptor {
        address: raw as u64,
        len: (raw >> 64) as u32,
        flags: (raw >> 96) as u16,
    };
    (descriptor, (raw >> 112) as u16)
}

/// A table that a chain is walked in: the queue's own, or an indirect one (§2.7.5.3).
enum Table<'q, 'm> {
    Queue(&'q RingArea),
    Indirect(Span<'m>),
}

impl Table<'_, '_> {
    #[inline]
    fn read(&self, index: u16) -> (Descriptor, u16) {
        let offset = usize::from(index) * DESCRIPTOR;
        let bytes = match self {
            Table::Queue(area) => area.read(offset),
            Table::Indirect(span) => {
                let mut bytes = [0; DESCRIPTOR];
                span.read(offset, &mut bytes);
                bytes
            }
        };
        parse(bytes)
    }

    /// Starts loading the descriptor at `index`, of which there may be none.
    #[inline]
    fn prefetch(&self, index: u16) {
        if let Table::Queue(area) = self {
            area.prefetch(usize::from(index) * DESCRIPTOR);
        }
    }
}

impl SplitQueue {
    /// Resolves the parts of a queue of `size` entries. None: a part is not within one region, or not aligned
    /// (§2.7), or the size is no power of two up to 32768.
    ///
    /// The queue goes on at the used index that the guest's memory holds: every chain before it was marked used,
    /// none after it was touched. That is exact after an orderly stop and after a backend that was killed.
    pub fn new(memory: &Arc<GuestMemory>, addresses: RingAddresses, size: u16) -> Option<SplitQueue> {
        if !size.is_power_of_two() || size > super::MAX_SIZE {
            return None;
        }
        let n = usize::from(size);
        let descriptors = RingArea::resolve(memory, addresses.descriptors, n * DESCRIPTOR, 16)?;
        let available_ring = RingArea::resolve(memory, addresses.available, RING + 2 * n + 2, 2)?;
        let used_ring = RingArea::resolve(memory, addresses.used, RING + USED_ELEMENT * n + 2, 4)?;
        let next = used_ring.load(INDEX, Ordering::Acquire);
        Some(SplitQueue {
            size,
            next,
            available: next,
            signalled: None,
            negotiated: Negotiated::default(),
            descriptors,
            available_ring,
            used_ring,
            log: None,
            inflight: None,
            heads: [0; BATCH],
            taken: 0,
            access: Access::Read,
        })
    }

    /// Sets what was negotiated.
    pub fn set_features(&mut self, negotiated: Negotiated) {
        self.negotiated = negotiated;
    }

    /// Logs writes to the used ring from now on, or no longer.
    pub fn set_log(&mut self, log: Option<UsedLog>) {
        self.log = log;
    }

    /// Tracks descriptors in flight.
    pub fn set_inflight(&mut self, mut inflight: SplitInflight) {
        inflight.recover(self.next);
        self.inflight = Some(inflight);
    }

    /// Takes over where `old` stopped: the memory table was replaced while the queue ran.
    pub fn carry_on(&mut self, old: SplitQueue) {
        self.next = old.next;
        self.available = old.available;
        self.signalled = old.signalled;
        self.negotiated = old.negotiated;
        self.log = old.log;
        self.inflight = old.inflight;
    }

    /// Chains that wait, read anew where fewer than `wanted` are known.
    #[inline]
    fn waiting(&mut self, wanted: u16) -> Result<u16, Fault> {
        let known = self.available.wrapping_sub(self.next);
        if known >= wanted {
            return Ok(known);
        }
        // Acquire: the ring entries and descriptors below the index are visible with it.
        self.available = self.available_ring.load(INDEX, Ordering::Acquire);
        let ahead = self.available.wrapping_sub(self.next);
        if ahead > self.size {
            self.available = self.next;
            return Err(Fault::AvailableIndex {
                ahead,
                size: self.size,
            });
        }
        Ok(ahead)
    }

    /// Reads the heads of the next `count` chains, and starts loading their descriptors. How many are in range, and what
    /// is wrong with the one behind them.
    #[inline]
    fn read_heads(&mut self, count: u16) -> (usize, Option<Fault>) {
        let heads = &mut self.heads[..count.into()];
        let slot = usize::from(self.next & (self.size - 1));
        let before_wrap = heads.len().min(usize::from(self.size) - slot);
        let (first, rest) = heads.split_at_mut(before_wrap);
        self.available_ring.read_words(RING + 2 * slot, first);
        self.available_ring.read_words(RING, rest);
        for (index, &head) in self.heads[..count.into()].iter().enumerate() {
            if head >= self.size {
                let size = u32::from(self.size);
                return (index, Some(Fault::DescriptorIndex { index: head, size }));
            }
            self.descriptors.prefetch(usize::from(head) * DESCRIPTOR);
        }
        (count.into(), None)
    }

    /// Walks the chain at `head` into `chains`. False: no room left in this batch.
    fn walk<'m>(
        &self,
        memory: &'m GuestMemory,
        access: Access,
        head: u16,
        chains: &mut Chains<'m>,
    ) -> Result<bool, Fault> {
        let mut table = Table::Queue(&self.descriptors);
        let mut size = u32::from(self.size);
        let mut steps = 1;
        let (mut descriptor, mut next) = table.read(head);
        loop {
            if descriptor.has(INDIRECT) {
                if !self.negotiated.indirect {
                    return Err(Fault::IndirectNotNegotiated);
                }
                if matches!(table, Table::Indirect(_)) {
                    return Err(Fault::IndirectTable { len: descriptor.len });
                }
                let (span, count) = descriptor.table(memory)?;
                (table, size, steps) = (Table::Indirect(span), count, 1);
                (descriptor, next) = table.read(0);
                continue;
            }
            if !descriptor.push(memory, access, chains)? {
                return Ok(false);
            }
            if !descriptor.has(NEXT) {
                chains.close()?;
                return Ok(true);
            }
            if u32::from(next) >= size {
                return Err(Fault::DescriptorIndex { index: next, size });
            }
            if steps == size {
                return Err(Fault::Loop { size });
            }
            steps += 1;
            // Drivers mostly link the next one in the table.
            table.prefetch(next.saturating_add(AHEAD));
            (descriptor, next) = table.read(next);
        }
    }

    /// Writes `elements` to the used ring from `slot` on.
    #[inline]
    fn write_used(&self, slot: usize, elements: &[[u8; USED_ELEMENT]]) {
        let offset = RING + USED_ELEMENT * slot;
        self.used_ring.write(offset, elements.as_flattened());
        self.log_used(offset, elements.len() * USED_ELEMENT);
    }

    fn log_used(&self, offset: usize, len: usize) {
        if let Some(UsedLog { log, guest }) = &self.log {
            log.mark(guest.wrapping_add(offset as u64), len);
        }
    }
}

/// An element of the used ring (§2.7.8).
#[inline]
fn element(head: u16, written: u32) -> [u8; USED_ELEMENT] {
    (u64::from(head) | u64::from(written) << 32).to_le_bytes()
}

impl Virtqueue for SplitQueue {
    #[inline]
    fn take<'m>(
        &mut self,
        memory: &'m GuestMemory,
        access: Access,
        max: usize,
        chains: &mut Chains<'m>,
    ) -> Result<(), Fault> {
        chains.clear();
        self.taken = 0;
        self.access = access;
        let max = max.min(BATCH) as u16;
        let count = self.waiting(max)?.min(max);
        let (known, mut fault) = self.read_heads(count);
        let heads = &self.heads[..known];
        chains.extend_plain(heads.iter().map_while(|&head| {
            let (descriptor, _) = parse(self.descriptors.read(usize::from(head) * DESCRIPTOR));
            descriptor.plain(memory, access)
        }));
        let mut walked = chains.len();
        for &head in &heads[walked..] {
            if chains.is_complete() {
                break;
            }
            match self.walk(memory, access, head, chains) {
                Ok(true) => walked += 1,
                Ok(false) => {
                    chains.put_off();
                    fault = None;
                    break;
                }
                Err(why) => {
                    chains.abandon();
                    fault = Some(why);
                    break;
                }
            }
        }
        self.taken = walked;
        if let Some(inflight) = &mut self.inflight {
            inflight.begin(&self.heads[..walked]);
        }
        if walked > 0 {
            fault::point(Point::ChainsTaken);
        }
        match fault {
            // Good chains first: the bad one is met again, at the front.
            Some(fault) if walked == 0 => return Err(fault),
            Some(fault) => chains.end_with(fault),
            None => {}
        }
        Ok(())
    }

    #[inline]
    fn complete(&mut self, written: &[u32]) {
        let count = written.len();
        if count == 0 {
            return;
        }
        assert!(count <= self.taken, "more chains completed than taken");
        self.taken = 0;
        let heads = &self.heads[..count];
        let start = usize::from(self.next & (self.size - 1));
        if self.negotiated.in_order && self.access == Access::Read {
            // The last one tells of all before it (§2.7.9). Not of what was written to each, so not where the device
            // writes.
            self.write_used(start, &[element(heads[count - 1], 0)]);
        } else {
            let elements: ArrayVec<_, BATCH> = heads
                .iter()
                .zip(written)
                .map(|(head, written)| element(*head, *written))
                .collect();
            let before_wrap = count.min(usize::from(self.size) - start);
            let (first, rest) = elements.split_at(before_wrap);
            self.write_used(start, first);
            if !rest.is_empty() {
                self.write_used(0, rest);
            }
        }
        self.next = self.next.wrapping_add(count as u16);
        if let Some(inflight) = &mut self.inflight {
            inflight.submit(heads);
        }
        fault::point(Point::UsedWritten);
        // Release: whoever sees the index sees the elements, and the bytes they tell of.
        self.used_ring.store(INDEX, self.next, Ordering::Release);
        fault::point(Point::UsedPublished);
        self.log_used(INDEX, 2);
        if let Some(inflight) = &mut self.inflight {
            inflight.end(heads, self.next);
        }
    }

    #[inline]
    fn interrupt_wanted(&mut self) -> bool {
        let old = self.signalled.replace(self.next);
        if old == Some(self.next) {
            return false;
        }
        // The used index must be visible before the driver's wish is read (§2.7.7.2): the driver does the reverse.
        fence(Ordering::SeqCst);
        if !self.negotiated.event_idx {
            return u32::from(self.available_ring.load(0, Ordering::Relaxed)) & VRING_AVAIL_F_NO_INTERRUPT
                == 0;
        }
        let wanted = self
            .available_ring
            .load(RING + 2 * usize::from(self.size), Ordering::Relaxed);
        match old {
            // "Did the index pass the driver's mark with this batch?" (§2.7.10)
            Some(old) => self.next.wrapping_sub(wanted).wrapping_sub(1) < self.next.wrapping_sub(old),
            None => true,
        }
    }

    fn suppress_kicks(&mut self) {
        // With EVENT_IDX the mark simply stays behind (§2.7.10): at worst one kick in 65536 chains.
        if !self.negotiated.event_idx {
            self.used_ring
                .store(0, VRING_USED_F_NO_NOTIFY as u16, Ordering::Relaxed);
            self.log_used(0, 2);
        }
    }

    fn enable_kicks(&mut self) -> bool {
        if self.negotiated.event_idx {
            let offset = RING + USED_ELEMENT * usize::from(self.size);
            self.used_ring.store(offset, self.available, Ordering::Relaxed);
            self.log_used(offset, 2);
        } else {
            self.used_ring.store(0, 0, Ordering::Relaxed);
            self.log_used(0, 2);
        }
        // The mark must be visible before the index is read once more; the driver does the reverse.
        fence(Ordering::SeqCst);
        self.available_ring.load(INDEX, Ordering::Relaxed) != self.available
    }

    fn base(&self) -> u32 {
        self.next.into()
    }

    fn size(&self) -> u16 {
        self.size
    }
}
