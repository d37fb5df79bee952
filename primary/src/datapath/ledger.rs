//! Who owns each mbuf: the switch, or one of its clients.
//!
//! It lies in private memory, and nothing that a client hands in is touched before it was looked up here: the address
//! must be that of an mbuf of the pool, to the byte, and that client must own it. One comparison decides both.
//!
//! Mbufs are larger than 2 KiB, so at most one begins in any 2 KiB of the pool; a word per 2 KiB holds the place of
//! that beginning and the owner. No division, and gaps between memory pages do not matter.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU32, Ordering};

use arrayvec::ArrayVec;
use vswitch_common::mbuf::Mbuf;
use vswitch_common::mempool::{BYTES_PER_MBUF, Pool, buffer_iova};
use vswitch_common::port::MAX_QUEUES;
use vswitch_common::stats::layout::MAX_PORTS;

/// Who owns an mbuf: [`Owner::SWITCH`], or a queue pair of a client. Only the thread that holds that queue pair's
/// receiving half takes mbufs from it, so no two threads ever take the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner(u16);

impl Owner {
    /// The switch itself: in the pool, in a driver, or on its way through.
    pub const SWITCH: Owner = Owner(0);

    /// The switch, as a later segment of a frame that it works on: see [`super::chain`].
    pub const CHAIN: Owner = Owner::SWITCH.chained();

    /// The switch, as a later segment of a frame that came from this owner.
    pub const fn chained(self) -> Owner {
        Owner(self.0 | CHAINED)
    }

    /// Who a later segment came from.
    fn unchained(self) -> Owner {
        Owner(self.0 & !CHAINED)
    }

    /// Is it a later segment?
    fn is_chained(self) -> bool {
        self.0 & CHAINED != 0
    }

    /// Queue pair `queue` of the client of the port with index `port`.
    pub const fn client(port: u16, queue: usize) -> Owner {
        Owner(1 + port * MAX_QUEUES as u16 + queue as u16)
    }
}

/// In an [`Owner`]: the mbuf is a later segment of a frame.
const CHAINED: u16 = 1 << 15;
const _: () = assert!(MAX_PORTS * MAX_QUEUES < CHAINED as usize);

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

    /// Hands the mbuf at `address` on: `None` unless it is one, and `from`'s. Threads may try it at the same time.
    pub fn pass(&self, address: usize, from: Owner, to: Owner) -> Option<Mbuf> {
        let (slot, at) = self.word_of(address)?;
        let (from, to) = (word(at, from), word(at, to));
        slot.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed)
            .ok()?;
        // SAFETY: the word says that an mbuf of the pool begins right there, and that it was `from`'s until now.
        unsafe { Mbuf::from_address(address) }
    }

    /// Takes a later segment out of its frame: `None` unless there is one at `address`. Threads may try it at the same time.
    pub fn unlink(&self, address: usize) -> Option<Mbuf> {
        let (slot, _) = self.word_of(address)?;
        let owner = owner_in(slot.load(Ordering::Relaxed)).filter(|o| o.is_chained())?;
        self.pass(address, owner, Owner::SWITCH)
    }

    /// Takes a whole frame back: the mbuf at `address` and those it links to, all of them `owner`'s. Says how many mbufs
    /// came back; no frame where it is none that a client may send, see [`super::chain`].
    #[inline]
    pub fn take_frame(&self, address: usize, owner: Owner) -> (Option<Mbuf>, u32) {
        let Some(mut first) = self.take(address, owner) else {
            return (None, 0);
        };
        if first.is_sound() {
            return (Some(first), 1);
        }
        if !first.is_plain() {
            return self.take_chain(first, owner);
        }
        let checksum = first.checksum();
        first.make_single(checksum);
        (Some(first), 1)
    }

    /// Makes `mbuf` `owner`'s. Do this before its address goes onto the client's ring.
    #[inline]
    pub fn give(&self, mbuf: &Mbuf, owner: Owner) {
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

    /// Gives a frame that the switch owns back to the pool.
    pub fn free(&self, mbuf: Mbuf) {
        self.free_all(&mut ArrayVec::from([mbuf]));
    }

    /// Gives frames back to the pool and empties the list.
    #[inline]
    pub fn free_all<const N: usize>(&self, mbufs: &mut ArrayVec<Mbuf, N>) {
        for mbuf in mbufs.iter().filter(|m| m.segment_count() > 1) {
            self.free_singles(&mut self.unchain(mbuf));
        }
        self.free_singles(mbufs);
    }

    /// Gives mbufs back to the pool, each for itself, whatever their headers say of others, and empties the list.
    #[inline]
    pub fn free_singles<const N: usize>(&self, mbufs: &mut ArrayVec<Mbuf, N>) {
        mbufs.iter_mut().for_each(|mbuf| self.scrub(mbuf));
        self.pool.free(mbufs);
    }

    /// Takes everything back that `owners` have and returns it to the pool, and later segments of their frames that the
    /// switch has lost sight of; says how many mbufs that were. Only when those clients are dead or have let go, and no
    /// thread moves frames of their ports.
    pub fn reclaim(&self, owners: RangeInclusive<Owner>) -> usize {
        let mut count = 0;
        for (block, slot) in self.words.iter().enumerate() {
            let owner = owner_in(slot.load(Ordering::Relaxed));
            let Some(owner) = owner.filter(|o| owners.contains(&o.unchained())) else {
                continue;
            };
            let address = self.base + block * BLOCK + (slot.load(Ordering::Relaxed) >> 16) as usize;
            if let Some(mbuf) = self.take(address, owner) {
                self.free_singles(&mut ArrayVec::from([mbuf]));
                count += 1;
            }
        }
        count
    }

    /// Mbufs that `owner` has now.
    pub fn owned(&self, owner: Owner) -> usize {
        self.words
            .iter()
            .filter(|w| owner_in(w.load(Ordering::Relaxed)) == Some(owner))
            .count()
    }
}

/// The owner that a word names, if an mbuf begins in its block.
fn owner_in(word: u32) -> Option<Owner> {
    (word != NONE).then_some(Owner(word as u16))
}

#[inline]
fn word(at: usize, owner: Owner) -> u32 {
    ((at % BLOCK) as u32) << 16 | u32::from(owner.0)
}
