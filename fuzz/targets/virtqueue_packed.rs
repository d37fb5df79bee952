//! Packed virtqueues (virtio 1.2 §2.8).

#![no_main]

use std::sync::Arc;

use dpdk_qemu_shim::guest_memory::testing::{FRONTEND, memfd};
use dpdk_qemu_shim::guest_memory::{GuestMemory, SharedTable};
use dpdk_qemu_shim::virtqueue::testing::packed::{AVAIL, USED};
use dpdk_qemu_shim::virtqueue::testing::{INDIRECT, NEXT, WRITE};
use dpdk_qemu_shim::virtqueue::{BATCH, MAX_CHAIN, PackedInflight, PackedQueue, RingAddresses};
use libfuzzer_sys::fuzz_target;
use vswitch_fuzz::guest::Guest;
use vswitch_fuzz::leaks;
use vswitch_fuzz::virtqueue::{Buffer, Features, Input, Layout, run};

/// A slot, and the wrap counter there.
type Place = (u16, bool);

/// A chain in the ring: where it begins, its slots, its buffer id, its buffers.
struct Chain {
    at: Place,
    slots: u16,
    id: u16,
    buffers: Vec<Buffer>,
}

struct Packed {
    size: u16,
    features: Option<Features>,
    /// Where the driver makes descriptors available.
    driver: Place,
    /// What the device knows: the next descriptor, and how far it has looked.
    next: Place,
    seen: Place,
    chains: Vec<Chain>,
    write: bool,
    inflight: Arc<SharedTable>,
    /// Where the region says that the ring stands.
    tracked: Option<Place>,
}

fn bits((slot, wrap): Place) -> u16 {
    slot | u16::from(wrap) << 15
}

impl Packed {
    fn forward(&self, (slot, wrap): Place, slots: u16) -> Place {
        let slot = slot + slots;
        if slot < self.size {
            (slot, wrap)
        } else {
            (slot - self.size, !wrap)
        }
    }

    fn at(slot: u16) -> u64 {
        16 * u64::from(slot)
    }

    fn read(guest: &Guest, at: u64) -> (u64, u32, u16, u16) {
        let raw = u128::from_le_bytes(guest.read(at));
        (
            raw as u64,
            (raw >> 64) as u32,
            (raw >> 96) as u16,
            (raw >> 112) as u16,
        )
    }

    fn device_area(&self) -> u64 {
        Self::at(self.size) + 4
    }

    fn addresses(&self) -> RingAddresses {
        RingAddresses {
            descriptors: FRONTEND,
            available: FRONTEND + Self::at(self.size),
            used: FRONTEND + self.device_area(),
        }
    }

    fn base(&self) -> u32 {
        bits(self.next).into()
    }

    /// The chain at `at`, of up to `left` slots; none: the guest broke a rule.
    fn chain(&self, guest: &Guest, at: Place, left: u16) -> Option<Chain> {
        let indirect = self.features.is_some_and(|f| f.indirect);
        let mut buffers = Vec::new();
        let push = |buffers: &mut Vec<Buffer>, address, len, flags| {
            buffers.extend(Guest::pieces(address, len)?);
            let direction = (flags & WRITE != 0) == self.write;
            (direction && buffers.len() <= MAX_CHAIN).then_some(())
        };
        for slots in 1..=left {
            let (slot, _) = self.forward(at, slots - 1);
            let (address, len, id, flags) = Self::read(guest, Self::at(slot));
            if flags & INDIRECT != 0 {
                let whole = len > 0 && len % 16 == 0 && len / 16 <= MAX_CHAIN as u32;
                if !indirect || slots > 1 || flags & NEXT != 0 || !whole {
                    return None;
                }
                Guest::offset(address, len.into())?;
                for i in 0..u64::from(len / 16) {
                    let (address, len, _, flags) = Self::read(guest, address + 16 * i);
                    push(&mut buffers, address, len, flags)?;
                }
            } else {
                push(&mut buffers, address, len, flags)?;
            }
            if flags & NEXT == 0 {
                return Some(Chain {
                    at,
                    slots,
                    id,
                    buffers,
                });
            }
        }
        None
    }
}

impl Layout for Packed {
    type Queue = PackedQueue;

    fn new(_: &mut Guest, size: u8, start: u16) -> Packed {
        let size = u16::from(size) + 1;
        let start = ((start & 0x7fff) % size, start >> 15 != 0);
        let len = PackedInflight::len(size);
        Packed {
            size,
            features: None,
            driver: start,
            next: start,
            seen: start,
            chains: Vec::new(),
            write: false,
            inflight: Arc::new(SharedTable::map(&memfd(len), 0, len).expect("long enough")),
            tracked: None,
        }
    }

    fn start(&mut self, _: &mut Guest, memory: &Arc<GuestMemory>, features: Features) -> PackedQueue {
        let queue = PackedQueue::new(memory, self.addresses(), self.size, self.base());
        let mut queue = queue.expect("in memory");
        queue.set_features(features.ring());
        if features.inflight {
            let inflight = PackedInflight::new(Arc::clone(&self.inflight), 0, self.size);
            queue.set_inflight(inflight.expect("long enough"));
            self.next = *self.tracked.get_or_insert(self.next);
        }
        self.features = Some(features);
        self.seen = self.next;
        self.chains.clear();
        queue
    }

    fn carry_on(&self, memory: &Arc<GuestMemory>, old: PackedQueue) -> PackedQueue {
        let queue = PackedQueue::new(memory, self.addresses(), self.size, self.base());
        let mut queue = queue.expect("in memory");
        queue.carry_on(old);
        queue
    }

    fn descriptor(address: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
        let raw =
            u128::from(address) | u128::from(len) << 64 | u128::from(next) << 96 | u128::from(flags) << 112;
        raw.to_le_bytes()
    }

    fn set(&self, guest: &mut Guest, index: u16, bytes: [u8; 16]) {
        guest.poke(Self::at(index % self.size), &bytes);
    }

    fn publish(&mut self, guest: &mut Guest, what: u16) {
        for _ in 0..=what % 8 {
            let (slot, wrap) = self.driver;
            let at = Self::at(slot);
            let (_, _, _, flags) = Self::read(guest, at);
            let flags = flags & !(AVAIL | USED) | if wrap { AVAIL } else { USED };
            guest.poke(at + 14, &flags.to_le_bytes());
            self.driver = self.forward(self.driver, 1);
        }
    }

    fn set_index(&mut self, _: &mut Guest, index: u16) {
        self.driver = ((index & 0x7fff) % self.size, index >> 15 != 0);
    }

    fn chains(&mut self, guest: &Guest, write: bool, max: usize) -> Vec<Option<Vec<Buffer>>> {
        self.chains.clear();
        self.write = write;
        let mut found = Vec::new();
        let (mut at, mut left) = (self.next, self.size);
        while found.len() < max.min(BATCH) && left > 0 {
            let (_, _, _, flags) = Self::read(guest, Self::at(at.0));
            if flags & (AVAIL | USED) != if at.1 { AVAIL } else { USED } {
                break;
            }
            let Some(chain) = self.chain(guest, at, left) else {
                found.push(None);
                break;
            };
            found.push(Some(chain.buffers.clone()));
            at = self.forward(at, chain.slots);
            left -= chain.slots;
            self.chains.push(chain);
        }
        found
    }

    fn taken(&mut self, count: usize) {
        self.chains.truncate(count);
        self.seen = self
            .chains
            .last()
            .map_or(self.next, |chain| self.forward(chain.at, chain.slots));
    }

    fn used(&mut self, guest: &mut Guest, written: &[u32]) {
        let in_order = self.features.is_some_and(|f| f.in_order);
        let chains: Vec<Chain> = self.chains.drain(..).take(written.len()).collect();
        let (Some(first), Some(last)) = (chains.first(), chains.last()) else {
            return;
        };
        self.next = self.forward(last.at, last.slots);
        if self.features.is_some_and(|f| f.inflight) {
            self.tracked = Some(self.next);
        }
        // One tells of a batch that was only read (§2.8.8).
        let told = if in_order && !self.write {
            vec![(first.at, last.id, written[0])]
        } else {
            let each = chains.iter().zip(written);
            each.map(|(chain, written)| (chain.at, chain.id, *written))
                .collect()
        };
        for ((slot, wrap), id, written) in told {
            let flags = if wrap { AVAIL | USED } else { 0 } | if written > 0 { WRITE } else { 0 };
            let word = u64::from(written) | u64::from(id) << 32 | u64::from(flags) << 48;
            guest.expect(Self::at(slot) + 8, &word.to_le_bytes());
        }
    }

    fn kicks(&self, guest: &mut Guest, wanted: bool) {
        let event_idx = self.features.is_some_and(|f| f.event_idx);
        let flags = match (wanted, event_idx) {
            (false, _) => 1u16,
            (true, false) => 0,
            (true, true) => {
                guest.expect(self.device_area(), &bits(self.seen).to_le_bytes());
                2
            }
        };
        guest.expect(self.device_area() + 2, &flags.to_le_bytes());
    }
}

fuzz_target!(|input: Input| {
    leaks::check(|| run::<Packed>(&input));
});
