//! The learning table of a bridge: (VLAN, MAC) to port, built for bursts.
//!
//! Buckets are one cache line of five entries. A key has two candidate buckets; nearly every look-up ends in the first, at the one
//! way where the key must be (`buckets.rs`). [`Reader::prefetch`] loads it. Look-ups take no lock and write nothing, except
//! that a source seen in a new second updates its entry's time. Inserting, moving and evicting happen under one lock, off
//! the common path.
//!
//! The fewer cache lines the addresses lie on, the more of them stay in the core's own cache. So the table begins small and doubles
//! while it learns, when it is half full or a key finds no room. Readers take the present array for a burst; one that still has the
//! one before misses at most what is learned meanwhile, and of what it would write, that an address was seen in this
//! second: the next frame says so again. Old arrays stay, all together smaller than the present one, so that nobody
//! need know who still reads them.
//!
//! A reader that meets an entry while it is replaced sees either key with either value at worst for that one frame;
//! the value is checked against the VLAN of the port on the way out, so VLANs stay apart whatever it reads.

mod buckets;

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use super::parse::Mac;
use buckets::{Buckets, Slot, Value, View, WAYS};

/// Buckets to begin with: a page of them.
const LEAST_BUCKETS: usize = 64;
/// Seconds an entry lives without being seen (802.1D's default, and Open vSwitch's).
pub const DEFAULT_AGING: u32 = 300;
/// Entries by default, as in Open vSwitch.
pub const DEFAULT_SIZE: usize = 8192;

/// Bounds of what may be asked for, as in Open vSwitch.
pub const LEAST_SIZE: usize = 10;
pub const GREATEST_SIZE: usize = 1_000_000;

/// (VLAN, MAC) as the table keeps it. The default is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Key(u64);

impl Key {
    const USED: u64 = 1 << 63;

    /// The key of `mac` in `vlan`.
    #[inline]
    pub fn new(vlan: u16, mac: Mac) -> Key {
        Key(Self::USED | u64::from(vlan & 0x0fff) << 48 | mac.bits())
    }

    /// The address.
    #[inline]
    pub fn mac(self) -> Mac {
        Mac::from_bits(self.0)
    }

    /// The VLAN's id.
    #[inline]
    pub fn vlan(self) -> u16 {
        (self.0 >> 48) as u16 & 0x0fff
    }
}

/// Looks things up, for a burst: what all its look-ups need is at hand.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'t> {
    view: View<'t>,
    /// Seconds.
    now: u32,
    aging: u32,
}

impl Reader<'_> {
    /// Starts loading what looking `key` up will most likely read.
    #[inline]
    pub fn prefetch(&self, key: Key) {
        self.view.prefetch(key);
    }

    /// The port behind which `key` was seen, if that was not too long ago.
    #[inline]
    pub fn lookup(&self, key: Key) -> Option<u16> {
        let value = self.view.value(key);
        (value != Value::NONE && !value.expired(self.now, self.aging)).then_some(value.port())
    }

    /// Checks the source `key` of a frame that came in by `port`, and keeps its entry young.
    #[inline]
    pub fn check_source(&self, key: Key, port: u16) -> Source {
        let young = Value::new(port, self.now, false);
        if self.view.value(key) == young {
            return Source::Known;
        }
        self.refresh(key, young)
    }

    /// The rest of [`Reader::check_source`], once a second and entry.
    #[cold]
    fn refresh(&self, key: Key, young: Value) -> Source {
        let Some(slot) = self.view.find(key) else {
            return Source::Learn;
        };
        let value = slot.value();
        if value.fixed() {
            return Source::Known;
        }
        if value.port() != young.port() || value.expired(self.now, self.aging) {
            return Source::Learn;
        }
        slot.replace_value(value, young);
        Source::Known
    }
}

/// What a look-up of a frame's source says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Known on this port; its time is up to date.
    Known,
    /// New, moved or expired: call [`MacTable::learn`].
    Learn,
}

/// An entry as `fdb/show` prints it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    pub port: u16,
    pub vlan: u16,
    pub mac: Mac,
    /// Seconds since it was seen; `None` for a fixed one.
    pub age: Option<u32>,
}

/// Counts since the table was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    pub learned: u64,
    pub moved: u64,
    pub expired: u64,
    pub evicted: u64,
}

/// The table of one bridge.
#[derive(Debug)]
pub struct MacTable {
    /// One array for each size, every one twice as large as that before; made when the table has grown to it.
    sizes: Box<[OnceLock<Buckets>]>,
    /// The number of the present one.
    size: AtomicUsize,
    /// Odd and secret, one for each candidate: the highest bits of a product with it number the bucket (multiply-shift,
    /// Dietzfelbinger et al., 1997).
    multipliers: [u64; 2],
    aging: AtomicU32,
    capacity: usize,
    /// In memory of its own: what is written while learning shares no cache line with what every look-up reads.
    writer: Box<Mutex<Writer>>,
}

#[derive(Debug, Default)]
struct Writer {
    count: usize,
    /// Learned entries per port, which eviction balances.
    per_port: Vec<u32>,
    totals: Totals,
    /// Bucket where the next search for a victim starts.
    hand: usize,
    /// Threads that remove entries all over the table, stretch by stretch.
    sweeps: usize,
}

/// Does `multiplier` spread addresses that follow each other, by any of their bytes, evenly over tables of any size?
///
/// It puts them at the multiples of α, which is `multiplier` / 2⁶⁴ moved by that byte. These lie in few heaps wherever a
/// fraction comes too close to α, that is, where its continued fraction has a large term (three-distance theorem). One
/// multiplier in some thousand has none.
fn spreads(multiplier: u64) -> bool {
    const LARGEST_TERM: u128 = 12;
    (0..6).all(|byte| {
        let (mut dividend, mut divisor) = (1u128 << 64, u128::from(multiplier << (8 * byte)));
        let (mut denominator, mut before) = (1, 0);
        while divisor != 0 && denominator < GREATEST_SIZE as u128 {
            let term = dividend / divisor;
            if term > LARGEST_TERM {
                return false;
            }
            (dividend, divisor) = (divisor, dividend % divisor);
            (denominator, before) = (term * denominator + before, denominator);
        }
        true
    })
}

impl MacTable {
    /// A table for at most `capacity` addresses, each forgotten `aging` seconds after it was last seen.
    pub fn new(capacity: usize, aging: u32) -> MacTable {
        let capacity = capacity.clamp(LEAST_SIZE, GREATEST_SIZE);
        // Two fifths full at most, so that both buckets of a key nearly never overflow.
        let most = (capacity / 2).next_power_of_two();
        let doublings = (most / LEAST_BUCKETS).max(1).trailing_zeros() as usize;
        let mut multipliers = [0x9e37_79b9_7f4a_7c15u64, 0xd6e8_feb8_6659_fd93];
        for multiplier in &mut multipliers {
            let mut secret = [0; 8];
            // A failure leaves known ones: only an attacker's collisions would get easier.
            let _ = std::fs::File::open("/dev/urandom")
                .and_then(|mut f| std::io::Read::read_exact(&mut f, &mut secret));
            *multiplier ^= u64::from_le_bytes(secret) & !1;
            while !spreads(*multiplier) {
                // Any odd number comes, and all of them in turn (Knuth's MMIX, doubled).
                *multiplier = multiplier.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(2);
            }
        }
        MacTable {
            sizes: std::iter::repeat_with(OnceLock::new)
                .take(1 + doublings)
                .collect(),
            size: AtomicUsize::new(0),
            multipliers,
            aging: AtomicU32::new(aging),
            capacity,
            writer: Box::default(),
        }
    }

    /// Addresses it holds at most.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Changes the time to live, in seconds.
    pub fn set_aging(&self, seconds: u32) {
        self.aging.store(seconds, Ordering::Relaxed);
    }

    /// The present array.
    #[inline]
    fn buckets(&self) -> &Buckets {
        let size = self.size.load(Ordering::Acquire);
        self.sizes[size].get_or_init(|| Buckets::new(LEAST_BUCKETS << size, self.multipliers))
    }

    /// Doubles the array; false if it is as large as it gets.
    ///
    /// The thread that learns does it at one go: 40 to 90 ms for the last one of a table of [`GREATEST_SIZE`], half of it for each one
    /// before, 0.3 ms with [`DEFAULT_SIZE`]. A table never shrinks, so nobody makes it do so twice.
    #[cold]
    fn grow(&self, writer: &mut Writer) -> bool {
        let size = self.size.load(Ordering::Relaxed) + 1;
        let Some(place) = self.sizes.get(size) else {
            return false;
        };
        let larger = Buckets::new(LEAST_BUCKETS << size, self.multipliers);
        for (key, value) in self.buckets().slots().filter_map(Slot::entry) {
            let larger = larger.view();
            if !larger.insert(key, value) && !larger.insert_moving_others(key, value) {
                writer.totals.evicted += 1;
                writer.remove(value);
            }
        }
        let _ = place.set(larger);
        self.size.store(size, Ordering::Release);
        true
    }

    /// What looks things up in second `now`.
    #[inline]
    pub fn reader(&self, now: u32) -> Reader<'_> {
        Reader {
            view: self.buckets().view(),
            now,
            aging: self.aging.load(Ordering::Relaxed),
        }
    }

    /// Learns that `key` is behind `port`. Returns false if it was known there already or is fixed elsewhere.
    #[cold]
    pub fn learn(&self, key: Key, port: u16, now: u32) -> bool {
        self.insert(key, port, now, false)
    }

    /// Adds an entry that neither ages nor moves; false if its buckets are full of such.
    pub fn add_fixed(&self, key: Key, port: u16, now: u32) -> bool {
        self.insert(key, port, now, true);
        self.buckets().view().find(key).is_some()
    }

    /// Adds the entries of `other`; says how many fixed ones find no room.
    pub fn add_all_of(&self, other: &MacTable, now: u32) -> usize {
        let mut lost = 0;
        let mut learned = Vec::new();
        for entry in other.entries(now) {
            let key = Key::new(entry.vlan, entry.mac);
            match entry.age {
                None => lost += usize::from(!self.add_fixed(key, entry.port, now)),
                Some(age) => learned.push((age, key, entry.port)),
            }
        }
        // The oldest first: where there is no room for all, they go.
        learned.sort_by_key(|&(age, ..)| std::cmp::Reverse(age));
        for (age, key, port) in learned {
            self.insert(key, port, now.saturating_sub(age), false);
        }
        lost
    }

    fn insert(&self, key: Key, port: u16, now: u32, fixed: bool) -> bool {
        let mut writer = self.lock();
        let value = Value::new(port, now, fixed);
        if let Some(slot) = self.buckets().view().find(key) {
            let old = slot.value();
            if old.fixed() && !fixed {
                return false;
            }
            slot.set_value(value);
            writer.uncount(old);
            writer.count(port, fixed);
            let moved = old.port() != port;
            writer.totals.moved += u64::from(moved);
            return moved || old.age(now) != 0;
        }
        if writer.count >= self.capacity {
            self.make_room(&mut writer, now);
        }
        if 2 * writer.count >= WAYS * self.buckets().len() {
            self.grow(&mut writer);
        }
        loop {
            let view = self.buckets().view();
            // What a sweep has yet to see must not move to where it has been.
            if view.insert(key, value) || writer.sweeps == 0 && view.insert_moving_others(key, value) {
                break;
            }
            if !self.grow(&mut writer) && !self.evict_neighbour(&mut writer, key, now) {
                return false;
            }
        }
        writer.count += 1;
        writer.count(port, fixed);
        writer.totals.learned += 1;
        true
    }

    /// Evicts an entry of the buckets of `key`; false where all are fixed.
    fn evict_neighbour(&self, writer: &mut Writer, key: Key, now: u32) -> bool {
        let heaviest = writer.heaviest();
        let ranked = self
            .buckets()
            .view()
            .candidates(key)
            .filter_map(|slot| rank(slot, heaviest, now));
        let victim = ranked.max_by_key(|&(_, rank)| rank);
        if let Some((slot, _)) = victim {
            writer.evict(slot);
        }
        victim.is_some()
    }

    /// Evicts one entry of a full table: of the port that holds most, the oldest among a few looked at. So a port
    /// that floods the table with addresses loses its own.
    fn make_room(&self, writer: &mut Writer, now: u32) {
        const LOOK_AT: usize = 32;
        let heaviest = writer.heaviest();
        let buckets = self.buckets();
        let mut victim: Option<(Slot<'_>, Rank)> = None;
        let mut looked_at = 0;
        for _ in 0..buckets.len() {
            let slots = buckets.slots_of(writer.hand);
            writer.hand = writer.hand.wrapping_add(1);
            for found in slots.filter_map(|slot| rank(slot, heaviest, now)) {
                if victim.is_none_or(|(_, best)| found.1 > best) {
                    victim = Some(found);
                }
                looked_at += 1;
            }
            if looked_at >= LOOK_AT && victim.is_some_and(|(_, rank)| rank.0) {
                break;
            }
        }
        if let Some((slot, _)) = victim {
            writer.evict(slot);
        }
    }

    /// Forgets what was not seen for the time to live. Call it once a second or so.
    pub fn expire(&self, now: u32) {
        let aging = self.aging.load(Ordering::Relaxed);
        let expired = self.remove_if(|value| value.expired(now, aging));
        self.lock().totals.expired += expired as u64;
    }

    /// Forgets everything on `port`, fixed entries too: the port is gone.
    pub fn flush_port(&self, port: u16) {
        self.remove_if(|value| value.port() == port);
    }

    /// Forgets everything learned on `port`, which has lost its link.
    pub fn flush_learned(&self, port: u16) {
        self.remove_if(|value| value.port() == port && !value.fixed());
    }

    /// Forgets everything learned.
    pub fn flush(&self) {
        self.remove_if(|value| !value.fixed());
    }

    /// Removes the entry of `key`; false where there is none.
    pub fn remove(&self, key: Key) -> bool {
        let mut writer = self.lock();
        let found = self.buckets().view().find(key);
        if let Some(slot) = found {
            writer.clear(slot);
        }
        found.is_some()
    }

    fn remove_if(&self, mut unwanted: impl FnMut(Value) -> bool) -> usize {
        const STRETCH: usize = 1024;
        let (mut removed, mut len, mut next) = (0, 0, 0);
        self.lock().sweeps += 1;
        loop {
            // The lock is taken anew for each stretch, so that learning does not wait for a large table.
            let mut writer = self.lock();
            let buckets = self.buckets();
            if buckets.len() != len {
                // It has grown, and entries may be anywhere.
                (len, next) = (buckets.len(), 0);
            }
            if writer.count == 0 || next >= len {
                writer.sweeps -= 1;
                return removed;
            }
            for slot in (next..len.min(next + STRETCH)).flat_map(|n| buckets.slots_of(n)) {
                if slot.entry().is_some_and(|(_, value)| unwanted(value)) {
                    writer.clear(slot);
                    removed += 1;
                }
            }
            next += STRETCH;
        }
    }

    /// All entries that have not expired, by VLAN and address.
    pub fn entries(&self, now: u32) -> Vec<Entry> {
        let aging = self.aging.load(Ordering::Relaxed);
        let writer = self.lock();
        let entries = self.buckets().slots().filter_map(Slot::entry);
        let mut entries: Vec<Entry> = entries
            .filter(|(_, value)| !value.expired(now, aging))
            .map(|(key, value)| Entry {
                port: value.port(),
                vlan: key.vlan(),
                mac: key.mac(),
                age: (!value.fixed()).then(|| value.age(now)),
            })
            .collect();
        // A PMD thread may be waiting, to learn an address.
        drop(writer);
        entries.sort_by_key(|e| (e.vlan, e.mac.bytes()));
        entries
    }

    /// Addresses held now.
    pub fn len(&self) -> usize {
        self.lock().count
    }

    /// Holds it none?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Counts since the table was made.
    pub fn totals(&self) -> Totals {
        self.lock().totals
    }

    fn lock(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How gladly an entry is given up: those of the port that holds most first, then the oldest.
type Rank = (bool, u32);

/// The rank of what is in `slot`; `None` where nothing is that may be evicted.
fn rank(slot: Slot<'_>, heaviest: Option<u16>, now: u32) -> Option<(Slot<'_>, Rank)> {
    let (_, value) = slot.entry().filter(|(_, value)| !value.fixed())?;
    Some((slot, (Some(value.port()) == heaviest, value.age(now))))
}

impl Writer {
    /// The port that holds most learned entries.
    fn heaviest(&self) -> Option<u16> {
        self.per_port
            .iter()
            .enumerate()
            .max_by_key(|&(_, n)| n)
            .map(|(port, _)| port as u16)
    }

    fn evict(&mut self, slot: Slot<'_>) {
        self.totals.evicted += 1;
        self.clear(slot);
    }

    fn count(&mut self, port: u16, fixed: bool) {
        let port = usize::from(port);
        if self.per_port.len() <= port {
            self.per_port.resize(port + 1, 0);
        }
        self.per_port[port] += u32::from(!fixed);
    }

    fn uncount(&mut self, value: Value) {
        if let Some(n) = self.per_port.get_mut(usize::from(value.port())) {
            *n -= u32::from(!value.fixed());
        }
    }

    fn clear(&mut self, slot: Slot<'_>) {
        self.remove(slot.value());
        slot.clear();
    }

    /// An entry with `value` is no more.
    fn remove(&mut self, value: Value) {
        self.uncount(value);
        self.count -= 1;
    }
}

#[cfg(test)]
mod tests;
