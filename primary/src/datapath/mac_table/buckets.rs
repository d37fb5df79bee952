//! Cache lines of entries, found at one look each: the memory of a table at one of its sizes.
//!
//! The hash of a key leads to a bucket and, multiplied by the bucket's seed, to a way in it. Whoever adds a key tries seeds until one
//! puts it in a free way and leaves the others where they are: so no branch depends on which way it is, and nothing that a
//! reader looks for ever moves.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use arrayvec::ArrayVec;
use vswitch_common::mbuf::prefetch;
use vswitch_common::stats::layout::MAX_PORTS;

use super::Key;

/// Entries in a bucket.
pub(super) const WAYS: usize = 5;

/// Port and time last seen, packed into a word: the time's low bits (16) | used (1) | fixed (1) | port (14).
///
/// So few bits are enough as long as what is older than the time to live, which is an hour at most, is removed within the day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Value(u32);

impl Value {
    const PORT: u32 = Self::FIXED - 1;
    const FIXED: u32 = 1 << 14;
    const USED: u32 = 1 << 15;
    /// What a look-up finds where nothing is. No other value is zero.
    pub const NONE: Value = Value(0);
    /// Seconds by which another thread's clock may be ahead.
    const AHEAD: u32 = 8;

    #[inline]
    pub fn new(port: u16, seen: u32, fixed: bool) -> Value {
        let fixed = if fixed { Self::FIXED } else { 0 };
        Value(seen << 16 | Self::USED | fixed | u32::from(port) & Self::PORT)
    }

    #[inline]
    pub fn port(self) -> u16 {
        (self.0 & Self::PORT) as u16
    }

    #[inline]
    pub fn fixed(self) -> bool {
        self.0 & Self::FIXED != 0
    }

    /// Seconds since it was seen, and [`Value::AHEAD`].
    #[inline]
    fn since(self, now: u32) -> u32 {
        now.wrapping_add(Self::AHEAD).wrapping_sub(self.0 >> 16) & 0xffff
    }

    /// Seconds since it was seen.
    #[inline]
    pub fn age(self, now: u32) -> u32 {
        self.since(now).saturating_sub(Self::AHEAD)
    }

    #[inline]
    pub fn expired(self, now: u32, aging: u32) -> bool {
        self.since(now) > aging + Self::AHEAD && !self.fixed()
    }
}

const _: () = assert!(MAX_PORTS <= Value::PORT as usize + 1);

/// Entries in one cache line. The key of an empty one is zero.
#[repr(C, align(64))]
#[derive(Debug, Default)]
struct Bucket {
    keys: [AtomicU64; WAYS],
    values: [AtomicU32; WAYS],
    seed: AtomicU32,
}

const _: () = assert!(size_of::<Bucket>() == 64);

impl Bucket {
    fn slots(&self) -> impl Iterator<Item = Slot<'_>> {
        let slots = self.keys.iter().zip(&self.values);
        slots.map(|(key, value)| Slot { key, value })
    }
}

/// An entry in place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot<'t> {
    key: &'t AtomicU64,
    value: &'t AtomicU32,
}

impl Slot<'_> {
    /// What is in it, for who has the table's lock.
    pub fn entry(self) -> Option<(Key, Value)> {
        let key = self.key.load(Ordering::Relaxed);
        (key != 0).then(|| (Key(key), self.value()))
    }

    pub fn value(self) -> Value {
        Value(self.value.load(Ordering::Relaxed))
    }

    pub fn set_value(self, value: Value) {
        self.value.store(value.0, Ordering::Release);
    }

    /// Gives it `value` unless it has another than `before` by now: it may just be given to another key.
    pub fn replace_value(self, before: Value, value: Value) {
        let (relaxed, before) = (Ordering::Relaxed, before.0);
        let _ = self.value.compare_exchange(before, value.0, relaxed, relaxed);
    }

    pub fn clear(self) {
        self.key.store(0, Ordering::Release);
    }
}

/// The way in a bucket to which `rest` of a hash leads.
#[inline]
fn way(rest: u32, seed: u32) -> usize {
    ((u64::from(rest.wrapping_mul(seed)) * WAYS as u64) >> 32) as usize
}

/// Seeds that lead `rest` to `way`, but for one in many.
fn seeds(way: usize, rest: u32) -> impl Iterator<Item = u32> {
    let zeros = rest.trailing_zeros() & 31;
    let odd = rest >> zeros;
    // Each step doubles the bits that are right (Newton's method); the first guess has three.
    let inverse = (0..4).fold(odd, |inverse, _| {
        inverse.wrapping_mul(2u32.wrapping_sub(odd.wrapping_mul(inverse)))
    });
    // A linear congruential generator (Numerical Recipes) for the products, of which a way has a fifth.
    let next = |x: &u32| Some(x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
    std::iter::successors(Some(rest), next).map(move |x| {
        let product = (((way as u64) << 32) + u64::from(x)) / WAYS as u64;
        (product as u32 >> zeros).wrapping_mul(inverse)
    })
}

/// All buckets of one size, a power of two above 1.
#[derive(Debug)]
pub(super) struct Buckets {
    buckets: Box<[Bucket]>,
    shift: u32,
    multipliers: [u64; 2],
}

impl Buckets {
    pub fn new(count: usize, multipliers: [u64; 2]) -> Buckets {
        Buckets {
            buckets: (0..count).map(|_| Bucket::default()).collect(),
            shift: 64 - count.trailing_zeros(),
            multipliers,
        }
    }

    pub fn len(&self) -> usize {
        self.buckets.len()
    }

    /// The slots of bucket `number`, modulo all.
    pub fn slots_of(&self, number: usize) -> impl Iterator<Item = Slot<'_>> {
        self.buckets[number & (self.buckets.len() - 1)].slots()
    }

    /// All slots.
    pub fn slots(&self) -> impl Iterator<Item = Slot<'_>> {
        self.buckets.iter().flat_map(Bucket::slots)
    }

    #[inline]
    pub fn view(&self) -> View<'_> {
        View {
            buckets: &self.buckets,
            shift: self.shift,
            multipliers: self.multipliers,
        }
    }
}

/// What look-ups need of [`Buckets`].
#[derive(Debug, Clone, Copy)]
pub(super) struct View<'t> {
    buckets: &'t [Bucket],
    shift: u32,
    multipliers: [u64; 2],
}

impl<'t> View<'t> {
    /// Starts loading what looking `key` up will most likely read.
    #[inline]
    pub fn prefetch(&self, key: Key) {
        prefetch(
            self.buckets
                .as_ptr()
                .wrapping_add(self.number(self.hash(key, 0)))
                .cast(),
        );
    }

    #[inline]
    fn hash(&self, key: Key, which: usize) -> u64 {
        key.0.wrapping_mul(self.multipliers[which])
    }

    /// The number of the bucket to which `hash` leads: its highest bits.
    #[inline]
    fn number(&self, hash: u64) -> usize {
        (hash >> (self.shift & 63)) as usize
    }

    /// One of the two buckets of `key`, and what of its hash decides the way there.
    #[inline(always)]
    fn place(&self, key: Key, which: usize) -> (&'t Bucket, u32) {
        let hash = self.hash(key, which);
        // It is below their number, which is a power of two; the mask tells the compiler.
        let bucket = &self.buckets[self.number(hash) & (self.buckets.len() - 1)];
        // Keys that differ in the last bytes of the address, or in the VLAN, differ here.
        (bucket, (hash >> 24) as u32)
    }

    /// The value of `key`, or none.
    #[inline(always)]
    pub fn value(&self, key: Key) -> Value {
        match self.value_in(key, 0) {
            Some(value) => value,
            None => self.value_elsewhere(key),
        }
    }

    /// The rest of [`View::value`].
    // A call costs less than what the loop around could not keep in registers.
    #[inline(never)]
    fn value_elsewhere(&self, key: Key) -> Value {
        self.value_in(key, 1).unwrap_or(Value::NONE)
    }

    #[inline(always)]
    fn value_in(&self, key: Key, which: usize) -> Option<Value> {
        let (bucket, rest) = self.place(key, which);
        let way = way(rest, bucket.seed.load(Ordering::Acquire));
        let hit = bucket.keys[way].load(Ordering::Acquire) == key.0;
        hit.then(|| Value(bucket.values[way].load(Ordering::Relaxed)))
    }

    /// Where `key` is.
    pub fn find(&self, key: Key) -> Option<Slot<'t>> {
        self.candidates(key)
            .find(|slot| slot.key.load(Ordering::Acquire) == key.0)
    }

    /// The slots of both buckets of `key`.
    pub fn candidates(&self, key: Key) -> impl Iterator<Item = Slot<'t>> + use<'t> {
        let [first, second] = [0, 1].map(|which| self.place(key, which).0.slots());
        first.chain(second)
    }

    /// Adds `key`, which is in neither of its buckets; false where neither has room. For who has the table's lock.
    pub fn insert(&self, key: Key, value: Value) -> bool {
        let buckets = [0, 1].map(|which| self.place(key, which).0);
        buckets
            .into_iter()
            .any(|bucket| self.insert_into(bucket, key, value))
    }

    /// The same where neither has room: tries to make some by moving others to their second bucket.
    pub fn insert_moving_others(&self, key: Key, value: Value) -> bool {
        let buckets = [0, 1].map(|which| self.place(key, which).0);
        buckets.into_iter().any(|bucket| {
            let mut slots = bucket.slots();
            slots.any(|slot| self.move_on(slot, bucket) && self.insert_into(bucket, key, value))
        })
    }

    /// Moves an entry from `bucket` to its other one, if that is the second: readers look there last, and find it in either.
    fn move_on(&self, slot: Slot<'_>, bucket: &Bucket) -> bool {
        let Some((key, value)) = slot.entry() else {
            return false;
        };
        let [first, second] = [0, 1].map(|which| self.place(key, which).0);
        let moved = std::ptr::eq(bucket, first)
            && !std::ptr::eq(bucket, second)
            && self.insert_into(second, key, value);
        if moved {
            slot.clear();
        }
        moved
    }

    fn insert_into(&self, bucket: &Bucket, key: Key, value: Value) -> bool {
        /// The fourth entry of a bucket takes 60 seeds, the fifth 600.
        const SEEDS: usize = 1024;
        let neighbours: ArrayVec<(usize, u32), WAYS> = (0..WAYS)
            .zip(bucket.slots())
            .filter_map(|(way, slot)| Some((way, self.rest(slot.entry()?.0, bucket))))
            .collect();
        if neighbours.is_full() {
            return false;
        }
        let rest = self.rest(key, bucket);
        let fits = |&seed: &u32| {
            let stay = neighbours.iter().all(|&(at, rest)| way(rest, seed) == at);
            stay && bucket.keys[way(rest, seed)].load(Ordering::Relaxed) == 0
        };
        let present = bucket.seed.load(Ordering::Relaxed);
        let found = match neighbours.first() {
            Some(&(at, rest)) => std::iter::once(present)
                .chain(seeds(at, rest).take(SEEDS))
                .find(fits),
            None => Some(present),
        };
        if let Some(seed) = found {
            let way = way(rest, seed);
            bucket.values[way].store(value.0, Ordering::Release);
            bucket.keys[way].store(key.0, Ordering::Release);
            bucket.seed.store(seed, Ordering::Release);
        }
        found.is_some()
    }

    /// What decides the way of `key`, which has led to `bucket`.
    fn rest(&self, key: Key, bucket: &Bucket) -> u32 {
        let [first, second] = [0, 1].map(|which| self.place(key, which));
        if std::ptr::eq(first.0, bucket) {
            first.1
        } else {
            second.1
        }
    }
}
