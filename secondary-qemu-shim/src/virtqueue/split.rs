//! Split virtqueues (virtio 1.2 §2.7).
//!
//! The available ring is read in bulk, and the descriptors it names are prefetched before the first one is looked
//! at; the used ring is written in bulk and published by one store. All that the guest can write is read once.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use arrayvec::ArrayVec;
use virtio_bindings::virtio_ring::{
    VRING_AVAIL_F_NO_INTERRUPT, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
    VRING_USED_F_NO_NOTIFY,
};
use vswitch_common::fault::{self, Point};

use super::{Access, BATCH, Chains, Fault, InflightQueue, MAX_CHAIN, Virtqueue};
use crate::guest_memory::{DirtyLog, GuestMemory, RingArea, Span};

/// Bytes of a descriptor (§2.7.5).
const DESCRIPTOR: usize = 16;
/// Where the ring of the available and of the used part starts, behind flags and index (§2.7.6, §2.7.8).
const RING: usize = 4;
/// Offset of `idx` in both.
const INDEX: usize = 2;
/// Bytes of an element of the used ring.
const USED_ELEMENT: usize = 8;
/// Largest queue size of the layout (§2.7).
pub const MAX_SIZE: u16 = 32768;

/// Where the frontend says that the three parts lie, in its own addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SplitAddresses {
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
}

/// Where writes to the used ring are logged during a live migration.
#[derive(Debug, Clone)]
pub struct UsedLog {
    pub log: Arc<DirtyLog>,
    /// Guest physical address of the used ring.
    pub guest: u64,
}

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
    event_idx: bool,
    indirect: bool,
    descriptors: RingArea,
    available_ring: RingArea,
    used_ring: RingArea,
    log: Option<UsedLog>,
    inflight: Option<InflightQueue>,
    /// Head descriptors of the last `take`.
    heads: ArrayVec<u16, BATCH>,
}

/// One descriptor, read once (§2.7.5).
#[derive(Debug, Clone, Copy)]
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    #[inline]
    fn parse(bytes: [u8; DESCRIPTOR]) -> Descriptor {
        let raw = u128::from_le_bytes(bytes);
        Descriptor {
            address: raw as u64,
            len: (raw >> 64) as u32,
            flags: (raw >> 96) as u16,
            next: (raw >> 112) as u16,
        }
    }

    #[inline]
    fn has(&self, flag: u32) -> bool {
        u32::from(self.flags) & flag != 0
    }
}

/// A table that a chain is walked in: the queue's own, or an indirect one (§2.7.5.3).
enum Table<'q, 'm> {
    Queue(&'q RingArea),
    Indirect(Span<'m>),
}

impl Table<'_, '_> {
    #[inline]
    fn read(&self, index: u16) -> Descriptor {
        let offset = usize::from(index) * DESCRIPTOR;
        let bytes = match self {
            Table::Queue(area) => area.read(offset),
            Table::Indirect(span) => {
                let mut bytes = [0; DESCRIPTOR];
                span.read(offset, &mut bytes);
                bytes
            }
        };
        Descriptor::parse(bytes)
    }
}

impl SplitQueue {
    /// Resolves the parts of a queue of `size` entries. None: a part is not within one region, or not aligned
    /// (§2.7), or the size is no power of two up to 32768.
    ///
    /// The queue goes on at the used index that the guest's memory holds: every chain before it was marked used,
    /// none after it was touched. That is exact after an orderly stop and after a backend that was killed.
    pub fn new(memory: &Arc<GuestMemory>, addresses: SplitAddresses, size: u16) -> Option<SplitQueue> {
        if !size.is_power_of_two() || size > MAX_SIZE {
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
            event_idx: false,
            indirect: false,
            descriptors,
            available_ring,
            used_ring,
            log: None,
            inflight: None,
            heads: ArrayVec::new(),
        })
    }

    /// Sets what was negotiated.
    pub fn set_features(&mut self, event_idx: bool, indirect: bool) {
        self.event_idx = event_idx;
        self.indirect = indirect;
    }

    /// Logs writes to the used ring from now on, or no longer.
    pub fn set_log(&mut self, log: Option<UsedLog>) {
        self.log = log;
    }

    /// Tracks descriptors in flight.
    pub fn set_inflight(&mut self, mut inflight: InflightQueue) {
        inflight.recover(self.next);
        self.inflight = Some(inflight);
    }

    /// Takes over where `old` stopped: the memory table was replaced while the queue ran.
    pub fn carry_on(&mut self, old: SplitQueue) {
        self.next = old.next;
        self.available = old.available;
        self.signalled = old.signalled;
        self.event_idx = old.event_idx;
        self.indirect = old.indirect;
        self.log = old.log;
        self.inflight = old.inflight;
    }

    #[inline]
    fn mask(&self) -> u16 {
        self.size - 1
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

    /// Walks the chain at `head` into `chains`. False: no room left in this batch.
    #[inline]
    fn walk<'m>(
        &self,
        memory: &'m GuestMemory,
        access: Access,
        head: u16,
        chains: &mut Chains<'m>,
    ) -> Result<bool, Fault> {
        let mut table = Table::Queue(&self.descriptors);
        let mut size = u32::from(self.size);
        let mut index = head;
        let mut steps = 0;
        let batch_empty = chains.is_empty();
        loop {
            if steps == size {
                return Err(Fault::Loop { size });
            }
            steps += 1;
            let descriptor = table.read(index);
            if descriptor.has(VRING_DESC_F_INDIRECT) {
                (table, size) = self.indirect(memory, &table, descriptor)?;
                (index, steps) = (0, 0);
                continue;
            }
            if chains.room() == 0 && !batch_empty {
                return Ok(false);
            }
            chains.push(buffer(memory, access, descriptor)?)?;
            if !descriptor.has(VRING_DESC_F_NEXT) {
                chains.close()?;
                return Ok(true);
            }
            index = descriptor.next;
            if u32::from(index) >= size {
                return Err(Fault::DescriptorIndex { index, size });
            }
        }
    }

    #[cold]
    fn not_indirect(descriptor: Descriptor) -> Fault {
        Fault::IndirectTable { len: descriptor.len }
    }

    /// The indirect table that `descriptor` names (§2.7.5.3): whole descriptors, the last link of its chain, and
    /// itself without further tables.
    #[inline]
    fn indirect<'q, 'm>(
        &self,
        memory: &'m GuestMemory,
        table: &Table<'q, 'm>,
        descriptor: Descriptor,
    ) -> Result<(Table<'q, 'm>, u32), Fault> {
        if !self.indirect {
            return Err(Fault::IndirectNotNegotiated);
        }
        let Descriptor { address, len, .. } = descriptor;
        let count = len / DESCRIPTOR as u32;
        let whole = len.is_multiple_of(DESCRIPTOR as u32) && count > 0;
        if !whole || matches!(table, Table::Indirect(_)) || descriptor.has(VRING_DESC_F_NEXT) {
            return Err(Self::not_indirect(descriptor));
        }
        if count > MAX_CHAIN as u32 {
            return Err(Fault::TooManyBuffers);
        }
        let span = memory.span(address, len).ok_or(Fault::Address { address, len })?;
        Ok((Table::Indirect(span), count))
    }

    fn log_used(&self, offset: usize, len: usize) {
        if let Some(UsedLog { log, guest }) = &self.log {
            log.mark(guest.wrapping_add(offset as u64), len);
        }
    }
}

/// The buffer that a descriptor names.
#[inline]
fn buffer<'m>(memory: &'m GuestMemory, access: Access, descriptor: Descriptor) -> Result<Span<'m>, Fault> {
    let Descriptor { address, len, .. } = descriptor;
    match (access, descriptor.has(VRING_DESC_F_WRITE)) {
        (Access::Read, true) => return Err(Fault::Direction("writable")),
        (Access::Write, false) => return Err(Fault::Direction("readable")),
        _ => {}
    }
    if len == 0 {
        return Err(Fault::Empty);
    }
    memory.span(address, len).ok_or(Fault::Address { address, len })
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
        self.heads.clear();
        let max = max.min(BATCH) as u16;
        let count = self.waiting(max)?.min(max);
        let mut fault = None;
        for i in 0..count {
            let slot = self.next.wrapping_add(i) & self.mask();
            let head = self
                .available_ring
                .load(RING + 2 * usize::from(slot), Ordering::Relaxed);
            if head >= self.size {
                fault = Some(Fault::DescriptorIndex {
                    index: head,
                    size: u32::from(self.size),
                });
                break;
            }
            self.descriptors.prefetch(usize::from(head) * DESCRIPTOR);
            self.heads.push(head);
        }
        let mut walked = 0;
        while walked < self.heads.len() {
            match self.walk(memory, access, self.heads[walked], chains) {
                Ok(true) => {
                    if access == Access::Read {
                        chains.get(walked).0[0].prefetch(0);
                    }
                    walked += 1;
                }
                Ok(false) => {
                    chains.abandon();
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
        self.heads.truncate(walked);
        if let Some(inflight) = &mut self.inflight {
            inflight.begin(&self.heads);
        }
        if walked > 0 {
            fault::point(Point::ChainsTaken);
        }
        match fault {
            // Good chains first: the bad one is met again, at the front.
            Some(fault) if walked == 0 => Err(fault),
            _ => Ok(()),
        }
    }

    #[inline]
    fn complete(&mut self, written: &ArrayVec<u32, BATCH>) {
        let count = written.len();
        if count == 0 {
            return;
        }
        assert!(count <= self.heads.len(), "more chains completed than taken");
        let mut elements: ArrayVec<[u8; USED_ELEMENT], BATCH> = ArrayVec::new();
        for (head, written) in self.heads.iter().zip(written) {
            let element = u64::from(*head) | u64::from(*written) << 32;
            elements.push(element.to_le_bytes());
        }
        let start = usize::from(self.next & self.mask());
        let before_wrap = count.min(usize::from(self.size) - start);
        let (first, rest) = elements.split_at(before_wrap);
        let offset = RING + USED_ELEMENT * start;
        self.used_ring.write(offset, first.as_flattened());
        self.log_used(offset, first.len() * USED_ELEMENT);
        if !rest.is_empty() {
            self.used_ring.write(RING, rest.as_flattened());
            self.log_used(RING, rest.len() * USED_ELEMENT);
        }
        self.next = self.next.wrapping_add(count as u16);
        if let Some(inflight) = &mut self.inflight {
            inflight.submit(&self.heads[..count]);
        }
        fault::point(Point::UsedWritten);
        // Release: whoever sees the index sees the elements, and the bytes they tell of.
        self.used_ring.store(INDEX, self.next, Ordering::Release);
        fault::point(Point::UsedPublished);
        self.log_used(INDEX, 2);
        if let Some(inflight) = &mut self.inflight {
            inflight.end(&self.heads[..count], self.next);
        }
        self.heads.clear();
    }

    #[inline]
    fn interrupt_wanted(&mut self) -> bool {
        let old = self.signalled.replace(self.next);
        if old == Some(self.next) {
            return false;
        }
        // The used index must be visible before the driver's wish is read (§2.7.7.2): the driver does the reverse.
        fence(Ordering::SeqCst);
        if !self.event_idx {
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
        if !self.event_idx {
            self.used_ring
                .store(0, VRING_USED_F_NO_NOTIFY as u16, Ordering::Relaxed);
            self.log_used(0, 2);
        }
    }

    fn enable_kicks(&mut self) -> bool {
        if self.event_idx {
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

    fn base(&self) -> u16 {
        self.next
    }

    fn size(&self) -> u16 {
        self.size
    }
}
