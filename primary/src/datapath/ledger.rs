//! Who owns each mbuf: the switch, or one of its clients.
//!
//! It lies in private memory, and nothing that a client hands in is touched before it was looked up here: the address
//! must be that of an mbuf of the pool, to the byte, and that client must own it. One comparison decides both.
//!
//! Mbufs are larger than 2 KiB, so at most one begins in any 2 KiB of the pool; a word per 2 KiB holds the place of
//! that beginning and the owner. No division, and gaps between memory pages do not matter.

use std::sync::atomic::{AtomicU32, Ordering};

use vswitch_common::mbuf::{MAX_SEGMENTS, Mbuf};
use vswitch_common::mempool::{BYTES_PER_MBUF, Pool, buffer_iova};

/// Who owns an mbuf. [`Owner::SWITCH`], or a client: its port's index plus one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner(u16);

impl Owner {
    /// The switch itself: in the pool, in a driver, or on its way through.
    pub const SWITCH: Owner = Owner(0);

    /// The switch as well, but behind the first segment of a frame: only such an mbuf is ever followed to.
    const CHAINED: Owner = Owner(u16::MAX);

    /// The client of the port with index `port`.
    pub fn client(port: u16) -> Owner {
        Owner(port + 1)
    }
}

const BLOCK: usize = 2048;
const _: () = assert!(BYTES_PER_MBUF > BLOCK);
/// Bus addresses are kept by the smallest page that DPDK's pools lie on.
const PAGE: usize = 2 << 20;
/// No mbuf begins in this block.
const NONE: u32 = u32::MAX;

/// The owners of all mbufs of one pool.
#[derive(Debug)]
pub struct Ledger {
    pool: Pool,
    base: usize,
    /// Per block of 2 KiB: offset of the mbuf's beginning << 16 | owner.
    words: Box<[AtomicU32]>,
    /// Bus address minus virtual address of each page.
    iova_offset: Box<[u64]>,
}

impl Ledger {
    /// The ledger of `pool`, all of whose mbufs are the switch's.
    pub fn new(pool: Pool) -> Ledger {
        let addresses = pool.addresses();
        let low = addresses.iter().copied().min().unwrap_or(0);
        let high = addresses.iter().copied().max().unwrap_or(0);
        let base = low / PAGE * PAGE;
        let words: Vec<AtomicU32> = (0..=(high - base) / BLOCK)
            .map(|_| AtomicU32::new(NONE))
            .collect();
        let mut iova_offset = vec![0; (high - base) / PAGE + 1];
        for &address in &addresses {
            let at = address - base;
            words[at / BLOCK].store(word(at, Owner::SWITCH), Ordering::Relaxed);
            let page = &mut iova_offset[at / PAGE];
            if *page == 0 {
                *page = buffer_iova(address).wrapping_sub(Mbuf::buffer_address(address) as u64);
            }
        }
        Ledger {
            pool,
            base,
            words: words.into(),
            iova_offset: iova_offset.into(),
        }
    }

    /// The pool it keeps.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    #[inline]
    fn word_of(&self, address: usize) -> Option<(&AtomicU32, usize)> {
        let at = address.wrapping_sub(self.base);
        Some((self.words.get(at / BLOCK)?, at))
    }

    /// Starts loading the word of `address`.
    #[inline]
    pub fn prefetch(&self, address: usize) {
        if let Some((word, _)) = self.word_of(address) {
            vswitch_common::mbuf::prefetch((&raw const *word).cast());
        }
    }

    /// Takes the mbuf at `address` back from `owner`: `None` unless it is one, and that client's.
    #[inline]
    pub fn take(&self, address: usize, owner: Owner) -> Option<Mbuf> {
        let (slot, at) = self.word_of(address)?;
        if slot.load(Ordering::Relaxed) != word(at, owner) {
            return None;
        }
        slot.store(word(at, Owner::SWITCH), Ordering::Relaxed);
        // SAFETY: the word says that an mbuf of the pool begins right there, and it is the switch's from here on.
        unsafe { Mbuf::from_address(address) }
    }

    /// Takes a whole frame back: the mbuf at `address` and those it links to, all of them `owner`'s. The links are
    /// rewritten, so that the frame is sound whatever the client wrote; `None` (and all that was good is freed)
    /// where one is not.
    #[inline]
    pub fn take_frame(&self, address: usize, owner: Owner) -> Option<Mbuf> {
        let mut first = self.take(address, owner)?;
        if first.segment_count() <= 1 {
            let checksum = first.checksum();
            first.make_single(checksum);
            return Some(first);
        }
        self.take_chain(first, owner)
    }

    #[cold]
    fn take_chain(&self, mut first: Mbuf, owner: Owner) -> Option<Mbuf> {
        let mut segments = arrayvec::ArrayVec::<Mbuf, MAX_SEGMENTS>::new();
        let checksum = first.checksum();
        let count = first.segment_count();
        let mut next = first.unlink();
        segments.push(first);
        for _ in 1..count {
            let Some(mut mbuf) = (!segments.is_full()).then(|| self.take(next, owner)).flatten() else {
                segments.drain(..).for_each(|m| self.free(m));
                return None;
            };
            next = mbuf.unlink();
            segments.push(mbuf);
        }
        segments
            .iter()
            .skip(1)
            .for_each(|m| self.set_owner(m.address(), Owner::CHAINED));
        let mut frame = Mbuf::chain(segments)?;
        frame.set_checksum(checksum);
        Some(frame)
    }

    /// Visits the segments behind the first. The links lie in memory that clients can write, so each is checked: it
    /// must lead to an mbuf that was chained when the frame was taken over.
    fn follow(&self, frame: &Mbuf, mut visit: impl FnMut(Mbuf)) {
        let mut next = frame.next_address();
        for _ in 1..frame.segment_count().min(MAX_SEGMENTS) {
            let Some(mbuf) = self.take(next, Owner::CHAINED) else {
                return;
            };
            self.set_owner(next, Owner::CHAINED);
            next = mbuf.next_address();
            visit(mbuf);
        }
    }

    /// Copies the bytes of all segments of `frame` to the start of `room`; `None` if they do not fit.
    pub fn copy_frame(&self, frame: &Mbuf, room: &mut [u8]) -> Option<usize> {
        let mut at = 0;
        let mut append = |bytes: &[u8]| {
            let place = room
                .get_mut(at..at + bytes.len())
                .map(|to| to.copy_from_slice(bytes));
            at += bytes.len();
            place.is_some()
        };
        let mut fits = append(frame.data());
        self.follow(frame, |segment| fits &= append(segment.data()));
        fits.then_some(at)
    }

    /// Makes `mbuf` (all segments of the frame) `owner`'s. Do this before its address goes onto the client's ring.
    #[inline]
    pub fn give(&self, mbuf: &Mbuf, owner: Owner) {
        if mbuf.segment_count() > 1 {
            self.follow(mbuf, |segment| self.set_owner(segment.address(), owner));
        }
        self.set_owner(mbuf.address(), owner);
    }

    #[inline]
    fn set_owner(&self, address: usize, owner: Owner) {
        if let Some((slot, at)) = self.word_of(address) {
            slot.store(word(at, owner), Ordering::Relaxed);
        }
    }

    /// Repairs what a client may have done to the header of a frame that a driver gets next.
    #[inline]
    pub fn scrub(&self, mbuf: &mut Mbuf) {
        let page = mbuf.address().wrapping_sub(self.base) / PAGE;
        let offset = self.iova_offset.get(page).copied().unwrap_or(0);
        let iova = offset.wrapping_add(Mbuf::buffer_address(mbuf.address()) as u64);
        mbuf.scrub(&self.pool, iova);
    }

    /// Gives a frame that the switch owns back to the pool, all its segments.
    pub fn free(&self, mbuf: Mbuf) {
        let mut batch = arrayvec::ArrayVec::<Mbuf, MAX_SEGMENTS>::new();
        if mbuf.segment_count() > 1 {
            self.follow(&mbuf, |segment| {
                self.set_owner(segment.address(), Owner::SWITCH);
                batch.push(segment);
            });
        }
        batch.push(mbuf);
        batch.iter_mut().for_each(|m| self.scrub(m));
        self.pool.free(&mut batch);
    }

    /// Takes everything back that `owner` has and returns it to the pool; says how many mbufs that were.
    /// Only when that client is dead or has let go, and no thread moves frames of its port.
    pub fn reclaim(&self, owner: Owner) -> usize {
        let mut count = 0;
        for (block, slot) in self.words.iter().enumerate() {
            let w = slot.load(Ordering::Relaxed);
            if w == NONE || w as u16 != owner.0 {
                continue;
            }
            let address = self.base + block * BLOCK + (w >> 16) as usize;
            if let Some(mut mbuf) = self.take(address, owner) {
                mbuf.unlink();
                self.free(mbuf);
                count += 1;
            }
        }
        count
    }

    /// Mbufs that `owner` has now.
    pub fn owned(&self, owner: Owner) -> usize {
        self.words
            .iter()
            .map(|w| w.load(Ordering::Relaxed))
            .filter(|&w| w != NONE && w as u16 == owner.0)
            .count()
    }
}

#[inline]
fn word(at: usize, owner: Owner) -> u32 {
    ((at % BLOCK) as u32) << 16 | u32::from(owner.0)
}
