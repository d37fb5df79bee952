//! The two ends of a single-producer single-consumer ring in memory that the other end may garble.
//!
//! Each end keeps its index in private memory and takes from the shared ring nothing but the peer's tail, which it
//! checks. The peer's tail is read only when the last known one does not suffice, so a burst costs one shared cache
//! line each way.

use crate::sync::atomic::{AtomicU32, Ordering};

/// The peer moved its index to where it can't be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Corrupt;

/// The indices of one end. An end moves `head` before, or with, `tail`; only `tail` says what the other end may use.
#[derive(Debug, Clone, Copy)]
pub struct Indices<'r> {
    pub head: &'r AtomicU32,
    pub tail: &'r AtomicU32,
}

/// The memory of a ring. Indices run freely; a slot's number is the index modulo the size.
pub trait Ring {
    /// Slots, a power of two; one of them always stays empty.
    fn size(&self) -> u32;
    /// What the producer has put.
    fn producer(&self) -> Indices<'_>;
    /// What the consumer has taken.
    fn consumer(&self) -> Indices<'_>;

    /// Writes the slot of `index`.
    ///
    /// # Safety
    /// This is the producer, and the consumer does not read that slot now.
    unsafe fn write(&self, index: u32, entry: usize);

    /// Reads the slot of `index`.
    ///
    /// # Safety
    /// This is the consumer, and the producer does not write that slot now (or may, and is to blame for what is read).
    unsafe fn read(&self, index: u32) -> usize;
}

/// The producing end. One per ring.
#[derive(Debug)]
pub struct Producer<R> {
    ring: R,
    head: u32,
    peer_tail: u32,
}

/// The consuming end. One per ring.
#[derive(Debug)]
pub struct Consumer<R> {
    ring: R,
    head: u32,
    peer_tail: u32,
}

impl<R: Ring> Producer<R> {
    /// The producing end of a ring that is empty.
    ///
    /// # Safety
    /// There is one producer for a ring, and the ring's memory outlives it.
    pub unsafe fn new(ring: R) -> Producer<R> {
        Producer {
            ring,
            head: 0,
            peer_tail: 0,
        }
    }

    /// Slots free for at least one more [`Producer::write`].
    ///
    /// # Errors
    /// The consumer's index makes no sense.
    #[inline]
    pub fn free(&mut self) -> Result<usize, Corrupt> {
        let tail = self.ring.consumer().tail.load(Ordering::Acquire);
        let used = self.head.wrapping_sub(tail);
        let capacity = self.ring.size() - 1;
        if used > capacity {
            return Err(Corrupt);
        }
        self.peer_tail = tail;
        Ok((capacity - used) as usize)
    }

    /// Writes as many of `entries` as fit, in order; returns how many. The consumer does not see them before
    /// [`Producer::publish`].
    ///
    /// # Errors
    /// The consumer's index makes no sense; nothing was written.
    #[inline]
    pub fn write(&mut self, entries: impl ExactSizeIterator<Item = usize>) -> Result<usize, Corrupt> {
        let capacity = self.ring.size() - 1;
        let mut free = (capacity - self.head.wrapping_sub(self.peer_tail)) as usize;
        if free < entries.len() {
            free = self.free()?;
        }
        let n = free.min(entries.len());
        for (i, entry) in entries.take(n).enumerate() {
            // SAFETY: slots between the peer's tail and ours are this end's.
            unsafe { self.ring.write(self.head.wrapping_add(i as u32), entry) };
        }
        Ok(n)
    }

    /// Hands the `n` entries over that were written last.
    #[inline]
    pub fn publish(&mut self, n: usize) {
        self.head = self.head.wrapping_add(n as u32);
        let indices = self.ring.producer();
        indices.head.store(self.head, Ordering::Relaxed);
        indices.tail.store(self.head, Ordering::Release);
    }
}

impl<R: Ring> Consumer<R> {
    /// The consuming end of a ring that is empty.
    ///
    /// # Safety
    /// There is one consumer for a ring, and the ring's memory outlives it.
    pub unsafe fn new(ring: R) -> Consumer<R> {
        Consumer {
            ring,
            head: 0,
            peer_tail: 0,
        }
    }

    /// Entries that wait now.
    ///
    /// # Errors
    /// The producer's index makes no sense.
    #[inline]
    pub fn available(&mut self) -> Result<usize, Corrupt> {
        let tail = self.ring.producer().tail.load(Ordering::Acquire);
        let used = tail.wrapping_sub(self.head);
        if used > self.ring.size() - 1 {
            return Err(Corrupt);
        }
        self.peer_tail = tail;
        Ok(used as usize)
    }

    /// Reads up to `out.len()` entries; returns how many. They stay on the ring until [`Consumer::release`]. An entry is
    /// whatever the peer wrote: check it before use.
    ///
    /// # Errors
    /// The producer's index makes no sense; nothing was read.
    #[inline]
    pub fn read(&mut self, out: &mut [usize]) -> Result<usize, Corrupt> {
        let mut ready = self.peer_tail.wrapping_sub(self.head) as usize;
        if ready < out.len() {
            ready = self.available()?;
        }
        let n = ready.min(out.len());
        for (i, entry) in out[..n].iter_mut().enumerate() {
            // SAFETY: slots between our tail and the peer's are this end's, as far as the peer keeps to it.
            *entry = unsafe { self.ring.read(self.head.wrapping_add(i as u32)) };
        }
        Ok(n)
    }

    /// Gives the slots back of the `n` entries that were read last.
    #[inline]
    pub fn release(&mut self, n: usize) {
        self.head = self.head.wrapping_add(n as u32);
        let indices = self.ring.consumer();
        indices.head.store(self.head, Ordering::Relaxed);
        indices.tail.store(self.head, Ordering::Release);
    }
}
