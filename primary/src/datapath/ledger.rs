//! Who owns each mbuf: the switch, or one of its clients.
//!
//! It lies in private memory, and nothing that a client hands in is touched before it was looked up here: the address
//! must be that of an mbuf of a pool, to the byte, and that client must own it. One comparison decides both.
//!
//! Mbufs are larger than 2 KiB, so at most one begins in any 2 KiB of memory; a word per 2 KiB holds the place of
//! that beginning and the owner. No division, and gaps between memory pages do not matter: not even those between the
//! memory of NUMA nodes, each of which has a pool of its own.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU32, Ordering};

use arrayvec::ArrayVec;
use vswitch_common::mbuf::Mbuf;
use vswitch_common::mempool::{BYTES_PER_MBUF, Pool, buffer_iova};
use vswitch_common::port::MAX_QUEUES;
use vswitch_common::sparse;
use vswitch_common::stats::layout::MAX_PORTS;

/// Who owns an mbuf: [`Owner::SWITCH`], or a queue pair of a client. Only the thread that holds that queue pair's
/// receiving half takes mbufs from it, so no two threads ever take the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner(u16);

impl Owner {
    /// The switch itself: in a pool, in a driver, or on its way through.
    pub const SWITCH: Owner = Owner(1);

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
        Owner(2 + port * MAX_QUEUES as u16 + queue as u16)
    }
}

/// In an [`Owner`]: the mbuf is a later segment of a frame.
const CHAINED: u16 = 1 << 15;
const _: () = assert!(1 + MAX_PORTS * MAX_QUEUES < CHAINED as usize);

const BLOCK: usize = 2048;
const _: () = assert!(BYTES_PER_MBUF > BLOCK);
/// Pools and bus addresses are kept by the smallest page that DPDK's pools lie on.
const PAGE: usize = 2 << 20;
/// No mbuf begins in this block. No owner has the number 0.
const NONE: u32 = 0;

/// The owners of all mbufs of all pools.
#[derive(Debug)]
pub struct Ledger {
    pools: Box<[Pool]>,
    /// The pool, if there is but one: then nobody has to look for an mbuf's own.
    only: Option<Pool>,
    base: usize,
    /// Per block of 2 KiB: where the mbuf in it begins, as 16 bits have it, << 16 | owner.
    words: Box<[AtomicU32]>,
    /// Bus address minus virtual address of each page.
    iova_offset: Box<[u64]>,
    /// The pool of each page.
    page_pool: Box<[Pool]>,
    /// The pages that mbufs begin in: the others lie between pools.
    used: Box<[usize]>,
}

impl Ledger {
    /// The ledger of `pools`, all of whose mbufs are the switch's.
    ///
    /// # Panics
    /// If there is no pool, or two of them share a page: those of different nodes do not.
    pub fn new(pools: Vec<Pool>) -> Ledger {
        let addresses: Vec<(Pool, Vec<usize>)> = pools.iter().map(|&pool| (pool, pool.addresses())).collect();
        let all = || addresses.iter().flat_map(|(_, list)| list.iter().copied());
        let base = all().min().unwrap_or(0) / PAGE * PAGE;
        let count = (all().max().unwrap_or(0) - base) / PAGE + 1;
        let words = sparse::words(count * (PAGE / BLOCK));
        let mut iova_offset = vec![0; count];
        let mut page_pool = vec![pools[0]; count];
        let mut used = BTreeSet::new();
        for (pool, list) in addresses {
            for address in list {
                let at = address - base;
                words[at / BLOCK].store(word(at, Owner::SWITCH), Ordering::Relaxed);
                let page = at / PAGE;
                if used.insert(page) {
                    iova_offset[page] =
                        buffer_iova(address).wrapping_sub(Mbuf::buffer_address(address) as u64);
                    page_pool[page] = pool;
                }
                assert!(page_pool[page] == pool, "two pools share a page");
            }
        }
        Ledger {
            only: (pools.len() == 1).then_some(pools[0]),
            pools: pools.into(),
            base,
            words,
            iova_offset: iova_offset.into(),
            page_pool: page_pool.into(),
            used: used.into_iter().collect(),
        }
    }

    /// The pools that it keeps.
    pub fn pools(&self) -> &[Pool] {
        &self.pools
    }

    /// The pool of NUMA node `node`, or the first where that has none.
    pub fn pool_on(&self, node: Option<usize>) -> Pool {
        let own = self
            .pools
            .iter()
            .find(|pool| node.is_some() && pool.node() == node);
        *own.unwrap_or(&self.pools[0])
    }

    /// Mbufs of all pools, free or not.
    pub fn size(&self) -> u32 {
        self.pools.iter().map(Pool::size).sum()
    }

    /// Those that are free.
    pub fn available(&self) -> u32 {
        self.pools.iter().map(Pool::available).sum()
    }

    /// Adds `want` mbufs to `out`: of pool `near` if that has them, else of another. Or none, and returns false.
    #[inline]
    pub fn alloc<const N: usize>(&self, near: Pool, out: &mut ArrayVec<Mbuf, N>, want: usize) -> bool {
        near.alloc_n(out, want) || self.others(near).any(|pool| pool.alloc_n(out, want))
    }

    /// An mbuf: of pool `near` if that has one, else of another.
    #[inline]
    pub fn alloc_one(&self, near: Pool) -> Option<Mbuf> {
        near.alloc_one()
            .or_else(|| self.others(near).find_map(Pool::alloc_one))
    }

    #[cold]
    pub(super) fn others(&self, near: Pool) -> impl Iterator<Item = &Pool> {
        self.pools.iter().filter(move |pool| **pool != near)
    }

    /// The pool that `mbuf` is of.
    #[inline]
    pub fn pool_of(&self, mbuf: &Mbuf) -> Pool {
        self.only.unwrap_or_else(|| self.page_pool[self.page_of(mbuf)])
    }

    #[inline]
    fn page_of(&self, mbuf: &Mbuf) -> usize {
        mbuf.address().wrapping_sub(self.base) / PAGE
    }

    #[inline]
    fn iova_of(&self, mbuf: &Mbuf) -> u64 {
        let offset = self.iova_offset.get(self.page_of(mbuf)).copied().unwrap_or(0);
        offset.wrapping_add(Mbuf::buffer_address(mbuf.address()) as u64)
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
        // SAFETY: the word says that an mbuf of a pool begins right there, and it is the switch's from here on.
        unsafe { Mbuf::from_address(address) }
    }

    /// Hands the mbuf at `address` on: `None` unless it is one, and `from`'s. Threads may try it at the same time.
    pub fn pass(&self, address: usize, from: Owner, to: Owner) -> Option<Mbuf> {
        let (slot, at) = self.word_of(address)?;
        let (from, to) = (word(at, from), word(at, to));
        slot.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed)
            .ok()?;
        // SAFETY: the word says that an mbuf of a pool begins right there, and that it was `from`'s until now.
        unsafe { Mbuf::from_address(address) }
    }

    /// Takes a later segment out of its frame, and says how it was marked: `None` unless there is one at `address`. Threads may
    /// try it at the same time.
    pub fn unlink(&self, address: usize) -> Option<(Mbuf, Owner)> {
        let (slot, _) = self.word_of(address)?;
        let mark = owner_in(slot.load(Ordering::Relaxed)).filter(|o| o.is_chained())?;
        Some((self.pass(address, mark, Owner::SWITCH)?, mark))
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
        mbuf.scrub(self.pool_of(mbuf), self.iova_of(mbuf));
    }

    /// Gives a frame that the switch owns back to its pool.
    pub fn free(&self, mbuf: Mbuf) {
        self.free_all(&mut ArrayVec::from([mbuf]));
    }

    /// Gives frames back to their pools and empties the list.
    #[inline]
    pub fn free_all<const N: usize>(&self, mbufs: &mut ArrayVec<Mbuf, N>) {
        if !mbufs.is_empty() {
            self.free_frames(mbufs);
        }
    }

    fn free_frames<const N: usize>(&self, mbufs: &mut ArrayVec<Mbuf, N>) {
        for mbuf in mbufs.iter().filter(|m| m.segment_count() > 1) {
            self.free_singles(&mut self.unchain(mbuf));
        }
        self.free_singles(mbufs);
    }

    /// Gives mbufs back to their pools, each for itself, whatever their headers say of others, and empties the list.
    #[inline]
    pub fn free_singles<const N: usize>(&self, mbufs: &mut ArrayVec<Mbuf, N>) {
        match self.only {
            Some(pool) => self.free_to(pool, mbufs),
            None => self.free_by_pool(mbufs),
        }
    }

    #[inline(never)]
    fn free_by_pool<const N: usize>(&self, mbufs: &mut ArrayVec<Mbuf, N>) {
        for &pool in &self.pools {
            self.free_to(pool, &mut self.pick(pool, mbufs));
        }
    }

    #[inline]
    fn free_to<const N: usize>(&self, pool: Pool, mbufs: &mut ArrayVec<Mbuf, N>) {
        for mbuf in mbufs.iter_mut() {
            mbuf.retire(pool, self.iova_of(mbuf));
        }
        pool.free(mbufs);
    }

    /// Takes those of `mbufs` out that are of `pool`.
    fn pick<const N: usize>(&self, pool: Pool, mbufs: &mut ArrayVec<Mbuf, N>) -> ArrayVec<Mbuf, N> {
        let (own, others) = mbufs.drain(..).partition(|mbuf| self.pool_of(mbuf) == pool);
        *mbufs = others;
        own
    }

    /// Gives those of `mbufs` back that are not of `pool`.
    #[inline]
    pub fn free_others<const N: usize>(&self, pool: Pool, mbufs: &mut ArrayVec<Mbuf, N>) {
        if self.only.is_none() {
            self.keep(pool, mbufs);
        }
    }

    #[inline(never)]
    fn keep<const N: usize>(&self, pool: Pool, mbufs: &mut ArrayVec<Mbuf, N>) {
        let own = self.pick(pool, mbufs);
        self.free_singles(mbufs);
        *mbufs = own;
    }

    /// Takes everything back that `owners` have and returns it to its pool, and later segments of their frames that the
    /// switch has lost sight of; says how many mbufs that were. Only when those clients are dead or have let go, and no
    /// thread moves frames of their ports.
    pub fn reclaim(&self, owners: RangeInclusive<Owner>) -> usize {
        let mut count = 0;
        for (block, slot) in self.blocks() {
            let owner = owner_in(slot.load(Ordering::Relaxed));
            let Some(owner) = owner.filter(|o| owners.contains(&o.unchained())) else {
                continue;
            };
            let address = self.base + block * BLOCK + (slot.load(Ordering::Relaxed) >> 16) as usize % BLOCK;
            if let Some(mbuf) = self.take(address, owner) {
                self.free_singles(&mut ArrayVec::from([mbuf]));
                count += 1;
            }
        }
        count
    }

    /// Mbufs that `owner` has now.
    pub fn owned(&self, owner: Owner) -> usize {
        self.blocks()
            .filter(|(_, slot)| owner_in(slot.load(Ordering::Relaxed)) == Some(owner))
            .count()
    }

    /// The blocks that mbufs may begin in, with their words.
    fn blocks(&self) -> impl Iterator<Item = (usize, &AtomicU32)> {
        let blocks = |&page: &usize| page * (PAGE / BLOCK)..(page + 1) * (PAGE / BLOCK);
        let blocks = self.used.iter().flat_map(blocks);
        blocks.map(|block| (block, &self.words[block]))
    }
}

/// The owner that a word names, if an mbuf begins in its block.
fn owner_in(word: u32) -> Option<Owner> {
    (word != NONE).then_some(Owner(word as u16))
}

#[inline]
fn word(at: usize, owner: Owner) -> u32 {
    (at as u32) << 16 | u32::from(owner.0)
}
