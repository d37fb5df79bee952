//! Split virtqueues (virtio 1.2 §2.7).

#![no_main]

use std::sync::Arc;

use dpdk_qemu_shim::guest_memory::testing::memfd;
use dpdk_qemu_shim::guest_memory::{GuestMemory, SharedTable};
use dpdk_qemu_shim::virtqueue::{BATCH, SplitInflight, SplitQueue};
use libfuzzer_sys::fuzz_target;
use vswitch_fuzz::guest::Guest;
use vswitch_fuzz::leaks;
use vswitch_fuzz::split::{Ring, descriptor};
use vswitch_fuzz::virtqueue::{Buffer, Features, Input, Layout, run};

struct Split {
    ring: Ring,
    features: Option<Features>,
    /// What the device knows: next entry, and the available index as last read.
    next: u16,
    available: u16,
    heads: Vec<u16>,
    write: bool,
    inflight: Arc<SharedTable>,
}

impl Layout for Split {
    type Queue = SplitQueue;

    fn new(guest: &mut Guest, size: u8, start: u16) -> Split {
        let size = 1 << (size % 9);
        let ring = Ring { at: 0, size };
        guest.poke(ring.available() + 2, &start.to_le_bytes());
        guest.poke(ring.used() + 2, &start.to_le_bytes());
        let file = memfd(SplitInflight::len(size));
        let inflight = SharedTable::map(&file, 0, SplitInflight::len(size)).expect("long enough");
        Split {
            ring,
            features: None,
            next: start,
            available: start,
            heads: Vec::new(),
            write: false,
            inflight: Arc::new(inflight),
        }
    }

    fn start(&mut self, guest: &mut Guest, memory: &Arc<GuestMemory>, features: Features) -> SplitQueue {
        let mut queue = SplitQueue::new(memory, self.ring.addresses(), self.ring.size).expect("in memory");
        queue.set_features(features.ring());
        if features.inflight {
            let inflight = SplitInflight::new(Arc::clone(&self.inflight), 0, self.ring.size);
            queue.set_inflight(inflight.expect("long enough"));
        }
        self.features = Some(features);
        // It goes on at the used index, which the driver may have written over.
        self.next = self.ring.used_index(guest);
        self.available = self.next;
        self.heads.clear();
        queue
    }

    fn carry_on(&self, memory: &Arc<GuestMemory>, old: SplitQueue) -> SplitQueue {
        let mut queue = SplitQueue::new(memory, self.ring.addresses(), self.ring.size).expect("in memory");
        queue.carry_on(old);
        queue
    }

    fn descriptor(address: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
        descriptor(address, len, flags, next)
    }

    fn set(&self, guest: &mut Guest, index: u16, bytes: [u8; 16]) {
        self.ring.set(guest, index, bytes);
    }

    fn publish(&mut self, guest: &mut Guest, head: u16) {
        self.ring.publish(guest, head);
    }

    fn set_index(&mut self, guest: &mut Guest, index: u16) {
        guest.poke(self.ring.available() + 2, &index.to_le_bytes());
    }

    fn chains(&mut self, guest: &Guest, write: bool, max: usize) -> Vec<Option<Vec<Buffer>>> {
        self.heads.clear();
        self.write = write;
        let max = max.min(BATCH) as u16;
        if self.available.wrapping_sub(self.next) < max {
            self.available = self.ring.available_index(guest);
            if self.available.wrapping_sub(self.next) > self.ring.size {
                self.available = self.next;
                return vec![None];
            }
        }
        let indirect = self.features.is_some_and(|f| f.indirect);
        let mut chains = Vec::new();
        for i in 0..self.available.wrapping_sub(self.next).min(max) {
            let head = self.ring.head(guest, self.next.wrapping_add(i));
            let chain = self.ring.chain(guest, head, write, indirect);
            let broken = chain.is_none();
            chains.push(chain);
            self.heads.push(head);
            if broken {
                break;
            }
        }
        chains
    }

    fn taken(&mut self, _count: usize) {}

    fn used(&mut self, guest: &mut Guest, written: &[u32]) {
        let slot = |index: u16| self.ring.used() + 4 + 8 * u64::from(index % self.ring.size);
        let in_order = self.features.is_some_and(|f| f.in_order);
        let all: Vec<(u16, u32)> = self.heads.drain(..).zip(written.iter().copied()).collect();
        // One tells of a batch that was only read (§2.7.9).
        let told = match all.last() {
            Some(&(last, _)) if in_order && !self.write => vec![(last, 0)],
            _ => all,
        };
        for (index, (head, written)) in (self.next..=u16::MAX).chain(0..).zip(told) {
            let element = u64::from(head) | u64::from(written) << 32;
            guest.expect(slot(index), &element.to_le_bytes());
        }
        self.next = self.next.wrapping_add(written.len() as u16);
        if !written.is_empty() {
            guest.expect(self.ring.used() + 2, &self.next.to_le_bytes());
        }
    }

    fn kicks(&self, guest: &mut Guest, wanted: bool) {
        let event_idx = self.features.is_some_and(|f| f.event_idx);
        let event = self.ring.used() + 4 + 8 * u64::from(self.ring.size);
        match (event_idx, wanted) {
            (true, true) => guest.expect(event, &self.available.to_le_bytes()),
            (true, false) => {}
            (false, wanted) => guest.expect(self.ring.used(), &u16::from(!wanted).to_le_bytes()),
        }
    }
}

fuzz_target!(|input: Input| {
    leaks::check(|| run::<Split>(&input));
});
