//! Packed virtqueues (virtio 1.2 §2.8).
//!
//! One ring, which both sides write. A descriptor's second half, its length, id and flags, is read and written as one
//! 64-bit word: whoever sees the flags sees the rest. A batch is marked used from its second chain on, and the first one
//! last, with one release: the driver sees all of it or nothing, as a frame in several buffers demands (§2.8.9).

mod position;

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use arrayvec::ArrayVec;
use virtio_bindings::virtio_ring::{
    VRING_PACKED_EVENT_FLAG_DESC, VRING_PACKED_EVENT_FLAG_DISABLE, VRING_PACKED_EVENT_FLAG_ENABLE,
};
use vswitch_common::fault::{self, Point};

use super::descriptor::{DESCRIPTOR, Descriptor, INDIRECT, NEXT, WRITE};
use super::{
    Access, BATCH, Chains, Fault, MAX_SIZE, Negotiated, PackedInflight, RingAddresses, UsedLog, Virtqueue,
};
use crate::guest_memory::{DirtyLog, GuestMemory, RingArea};

pub(super) use position::Position;

/// Bytes of an event suppression structure, and where its flags are (§2.8.14).
const EVENT: usize = 4;
const EVENT_FLAGS: usize = 2;
/// Notify of everything, of nothing, of one descriptor (§2.8.10).
const ENABLE: u16 = VRING_PACKED_EVENT_FLAG_ENABLE as u16;
const DISABLE: u16 = VRING_PACKED_EVENT_FLAG_DISABLE as u16;
const DESC: u16 = VRING_PACKED_EVENT_FLAG_DESC as u16;
/// The bits of these values.
const EVENT_MASK: u16 = 3;

/// The first descriptor of a chain.
#[derive(Debug, Clone, Copy)]
struct Head {
    at: Position,
    /// Its second half as it was read.
    word: u64,
    /// The buffer id, which is in the chain's last descriptor.
    id: u16,
}

/// A running packed virtqueue.
#[derive(Debug)]
pub struct PackedQueue {
    size: u16,
    /// Next descriptor to take, and to mark used: the same, for chains are completed in the order they were made
    /// available.
    next: Position,
    /// Behind the chains that the last `take` has seen.
    seen: Position,
    /// Slots used since the driver was last considered for an interrupt; none before the first time.
    unsignalled: Option<u32>,
    negotiated: Negotiated,
    ring: RingArea,
    driver: RingArea,
    device: RingArea,
    log: Option<Arc<DirtyLog>>,
    inflight: Option<PackedInflight>,
    /// What the last `take` found, and what it was for.
    heads: ArrayVec<Head, BATCH>,
    access: Access,
}

#[inline]
fn flags(word: u64) -> u16 {
    (word >> 48) as u16
}

#[inline]
fn id(word: u64) -> u16 {
    (word >> 32) as u16
}

impl PackedQueue {
    /// Resolves the parts of a queue of `size` descriptors, which goes on at `base`: the lower half is the place of the
    /// next available descriptor, the upper one that of the next used one (vhost-user, "Vring descriptor indices for
    /// packed virtqueues"). Nothing was in flight between them, so the latter is where it goes on: QEMU lets chains of
    /// in-order queues go without marking them used. Not every frontend fills it in.
    ///
    /// None: a part is not within one region, or not aligned (§2.8.10.1), or size or base are out of range.
    pub fn new(
        memory: &Arc<GuestMemory>,
        addresses: RingAddresses,
        size: u16,
        base: u32,
    ) -> Option<PackedQueue> {
        let used = (base >> 16) as u16;
        let next = Position::from_bits(if used == 0 { base as u16 } else { used });
        if size > MAX_SIZE || next.slot() >= size {
            return None;
        }
        let len = usize::from(size) * DESCRIPTOR;
        Some(PackedQueue {
            size,
            next,
            seen: next,
            unsignalled: None,
            negotiated: Negotiated::default(),
            ring: RingArea::resolve(memory, addresses.descriptors, len, DESCRIPTOR)?,
            driver: RingArea::resolve(memory, addresses.available, EVENT, EVENT)?,
            device: RingArea::resolve(memory, addresses.used, EVENT, EVENT)?,
            log: None,
            inflight: None,
            heads: ArrayVec::new(),
            access: Access::Read,
        })
    }

    /// Sets what was negotiated.
    pub fn set_features(&mut self, negotiated: Negotiated) {
        self.negotiated = negotiated;
    }

    /// Logs writes to the ring from now on, or no longer.
    pub fn set_log(&mut self, log: Option<UsedLog>) {
        self.log = log.map(|log| log.log);
    }

    /// Keeps the place in the ring in `inflight`, and goes on there if a backend before this one was killed.
    pub fn set_inflight(&mut self, inflight: PackedInflight) {
        if let Some(progress) = inflight.progress(self.size) {
            self.next = progress.old;
            if progress.old != progress.next {
                if progress
                    .old
                    .is_available(flags(self.word(progress.old, Ordering::Acquire)))
                {
                    self.undo(progress.next, inflight.log(progress));
                } else {
                    self.next = progress.next;
                }
            }
            self.seen = self.next;
        }
        self.inflight = inflight.start(self.next, self.size).then_some(inflight);
    }

    /// Puts `log` back where chains up to `end` begin. The driver has not seen that they were marked used: it waits for
    /// the first one.
    fn undo(&self, end: Position, log: impl Iterator<Item = u64>) {
        let mut at = self.behind(self.next);
        for word in log {
            if at == end {
                return;
            }
            self.ring.store64(second_half(at), word, Ordering::Relaxed);
            self.log_slots(at, 1);
            at = self.behind(at);
        }
    }

    /// Behind the chain at `at`.
    fn behind(&self, at: Position) -> Position {
        let mut last = at;
        for _ in 1..self.size {
            if flags(self.word(last, Ordering::Relaxed)) & NEXT == 0 {
                break;
            }
            last = last.forward(1, self.size);
        }
        last.forward(1, self.size)
    }

    /// The frontend is told where the queue stopped: the next start goes by its word.
    pub fn hand_over(&mut self) {
        if let Some(inflight) = &self.inflight {
            inflight.forget();
        }
    }

    /// Takes over where `old` stopped: the memory table was replaced while the queue ran.
    pub fn carry_on(&mut self, old: PackedQueue) {
        self.next = old.next;
        self.seen = old.seen;
        self.unsignalled = old.unsignalled;
        self.negotiated = old.negotiated;
        self.log = old.log;
        self.inflight = old.inflight;
    }

    /// The second half of the descriptor at `at`.
    #[inline]
    fn word(&self, at: Position, order: Ordering) -> u64 {
        self.ring.load64(second_half(at), order)
    }

    /// Walks the chain at `at`, whose second half is `word`, into `chains`; it may take up to `left` slots. Returns how
    /// many it takes, and the buffer id. None: no room left in this batch.
    fn walk<'m>(
        &self,
        memory: &'m GuestMemory,
        access: Access,
        (mut at, mut word): (Position, u64),
        left: u16,
        chains: &mut Chains<'m>,
    ) -> Result<Option<(u16, u16)>, Fault> {
        let mut slots = 1;
        loop {
            let descriptor = descriptor(&self.ring, at, word);
            if descriptor.has(INDIRECT) {
                if !self.negotiated.indirect {
                    return Err(Fault::IndirectNotNegotiated);
                }
                // A list is of one kind (§2.8.5).
                if slots > 1 {
                    return Err(Fault::IndirectTable { len: descriptor.len });
                }
                if !walk_table(memory, access, descriptor, chains)? {
                    return Ok(None);
                }
            } else if !descriptor.push(memory, access, chains)? {
                return Ok(None);
            }
            if !descriptor.has(NEXT) {
                chains.close()?;
                return Ok(Some((slots, id(word))));
            }
            if slots == left {
                return Err(Fault::Loop {
                    size: self.size.into(),
                });
            }
            // Whether these are available need not be asked: the first one is made so last (§2.8.6).
            at = at.forward(1, self.size);
            word = self.word(at, Ordering::Relaxed);
            slots += 1;
        }
    }

    /// Marks the chain at `head` used, with `written` bytes written to it.
    #[inline]
    fn mark(&self, at: Position, id: u16, written: u32, order: Ordering) {
        let flags = at.used() | if written > 0 { WRITE } else { 0 };
        let word = u64::from(written) | u64::from(id) << 32 | u64::from(flags) << 48;
        self.ring.store64(second_half(at), word, order);
    }

    /// Logs that `slots` from `at` on were written.
    #[inline]
    fn log_slots(&self, at: Position, slots: u16) {
        if let Some(log) = &self.log {
            let start = usize::from(at.slot());
            let before_wrap = usize::from(slots).min(usize::from(self.size) - start);
            let guest = self.ring.guest();
            log.mark(guest + (start * DESCRIPTOR) as u64, before_wrap * DESCRIPTOR);
            log.mark(guest, (usize::from(slots) - before_wrap) * DESCRIPTOR);
        }
    }

    fn log_event(&self) {
        if let Some(log) = &self.log {
            log.mark(self.device.guest(), EVENT);
        }
    }
}

/// The descriptor at `at`, whose second half is `word`.
#[inline]
fn descriptor(ring: &RingArea, at: Position, word: u64) -> Descriptor {
    Descriptor {
        address: ring.load64(first_half(at), Ordering::Relaxed),
        len: word as u32,
        flags: flags(word),
    }
}

/// Walks an indirect table into `chains`. False: no room left in this batch.
///
/// All flags in it but one are to be ignored (§2.8.7).
fn walk_table<'m>(
    memory: &'m GuestMemory,
    access: Access,
    descriptor: Descriptor,
    chains: &mut Chains<'m>,
) -> Result<bool, Fault> {
    let (table, count) = descriptor.table(memory)?;
    for index in 0..count as usize {
        let mut bytes = [0; DESCRIPTOR];
        table.read(index * DESCRIPTOR, &mut bytes);
        let raw = u128::from_le_bytes(bytes);
        let element = Descriptor {
            address: raw as u64,
            len: (raw >> 64) as u32,
            flags: (raw >> 112) as u16,
        };
        if !element.push(memory, access, chains)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Where the address of the descriptor at `at` is.
#[inline]
fn first_half(at: Position) -> usize {
    usize::from(at.slot()) * DESCRIPTOR
}

/// Where its length, id and flags are.
#[inline]
fn second_half(at: Position) -> usize {
    first_half(at) + DESCRIPTOR / 2
}

impl Virtqueue for PackedQueue {
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
        self.access = access;
        let max = max.min(BATCH).min(self.size.into());
        let mut at = self.next;
        let (ring, heads) = (&self.ring, &mut self.heads);
        chains.extend_plain(std::iter::from_fn(|| {
            if heads.len() == max {
                return None;
            }
            let word = ring.load64(second_half(at), Ordering::Acquire);
            if !at.is_available(flags(word)) {
                return None;
            }
            let buffer = descriptor(ring, at, word).plain(memory, access)?;
            heads.push(Head {
                at,
                word,
                id: id(word),
            });
            at = at.forward(1, self.size);
            Some(buffer)
        }));
        let mut left = self.size - heads.len() as u16;
        let mut fault = None;
        while self.heads.len() < max && left > 0 && !chains.is_complete() {
            // Acquire: the rest of the chain, and what it names, is visible with the flags.
            let word = self.word(at, Ordering::Acquire);
            if !at.is_available(flags(word)) {
                break;
            }
            match self.walk(memory, access, (at, word), left, chains) {
                Ok(Some((slots, id))) => {
                    self.heads.push(Head { at, word, id });
                    at = at.forward(slots, self.size);
                    left -= slots;
                }
                Ok(None) => {
                    chains.put_off();
                    break;
                }
                Err(why) => {
                    chains.abandon();
                    fault = Some(why);
                    break;
                }
            }
        }
        self.seen = at;
        if !self.heads.is_empty() {
            fault::point(Point::ChainsTaken);
        }
        match fault {
            // Good chains first: the bad one is met again, at the front.
            Some(fault) if self.heads.is_empty() => return Err(fault),
            Some(fault) => chains.end_with(fault),
            None => {}
        }
        Ok(())
    }

    #[inline]
    fn complete(&mut self, written: &[u32]) {
        let count = written.len();
        assert!(count <= self.heads.len(), "more chains completed than taken");
        let Some((first, rest)) = self.heads[..count].split_first() else {
            return;
        };
        let end = self.heads.get(count).map_or(self.seen, |head| head.at);
        // One tells of all (§2.8.8). Not of what was written to each, so not where the device writes.
        let together = self.negotiated.in_order && self.access == Access::Read;
        let (rest, id) = match rest.last() {
            Some(last) if together => (&[][..], last.id),
            _ => (rest, first.id),
        };
        if let Some(inflight) = &self.inflight {
            inflight.begin(self.next, end, rest.iter().map(|head| head.word));
        }
        for (head, &written) in rest.iter().zip(&written[1..]) {
            self.mark(head.at, head.id, written, Ordering::Relaxed);
        }
        fault::point(Point::UsedWritten);
        // Release: whoever sees the first one sees the others, and the bytes they tell of.
        self.mark(first.at, id, written[0], Ordering::Release);
        fault::point(Point::UsedPublished);
        let slots = end.since(self.next, self.size) as u16;
        self.log_slots(self.next, slots);
        self.unsignalled = self.unsignalled.map(|known| known.saturating_add(slots.into()));
        self.next = end;
        if let Some(inflight) = &self.inflight {
            inflight.end(end);
        }
        self.heads.clear();
    }

    #[inline]
    fn interrupt_wanted(&mut self) -> bool {
        let unsignalled = self.unsignalled.replace(0);
        if unsignalled == Some(0) {
            return false;
        }
        // The used descriptors must be visible before the driver's wish is read (§2.8.21.2): the driver does the
        // reverse.
        fence(Ordering::SeqCst);
        let wish = self.driver.load(EVENT_FLAGS, Ordering::Acquire) & EVENT_MASK;
        if wish != DESC || !self.negotiated.event_idx {
            return wish != DISABLE;
        }
        let wanted = Position::from_bits(self.driver.load(0, Ordering::Relaxed));
        let Some(unsignalled) = unsignalled else {
            return true;
        };
        // "Was the wanted one among those just used?" A wanted one of the other round is a ring's length back.
        let back = self.next.since(wanted, self.size);
        back > 0 && i64::from(back) <= i64::from(unsignalled)
    }

    fn suppress_kicks(&mut self) {
        self.device.store(EVENT_FLAGS, DISABLE, Ordering::Relaxed);
        self.log_event();
    }

    fn enable_kicks(&mut self) -> bool {
        if self.negotiated.event_idx {
            self.device.store(0, self.seen.bits(), Ordering::Relaxed);
            // Release: the driver reads the flags first.
            self.device.store(EVENT_FLAGS, DESC, Ordering::Release);
        } else {
            self.device.store(EVENT_FLAGS, ENABLE, Ordering::Relaxed);
        }
        self.log_event();
        // The wish must be visible before the ring is read once more; the driver does the reverse.
        fence(Ordering::SeqCst);
        self.seen
            .is_available(flags(self.word(self.seen, Ordering::Relaxed)))
    }

    fn base(&self) -> u32 {
        u32::from(self.next.bits()) | u32::from(self.next.bits()) << 16
    }

    fn size(&self) -> u16 {
        self.size
    }
}
