//! The device's walk of a virtqueue, against a model: a driver writes what it likes into its ring, and the device may
//! find exactly the chains that the specification finds, write exactly what it must, and nothing else.

#![no_main]

use std::sync::Arc;

use arbitrary::Arbitrary;
use arrayvec::ArrayVec;
use dpdk_qemu_shim::guest_memory::testing::memfd;
use dpdk_qemu_shim::guest_memory::{GuestMemory, SharedTable};
use dpdk_qemu_shim::virtqueue::{
    Access, BATCH, Chains, InflightQueue, MAX_CHAIN, SplitQueue, Virtqueue, region_size,
};
use libfuzzer_sys::fuzz_target;
use vswitch_fuzz::guest::{Address, Guest, Length};
use vswitch_fuzz::leaks;
use vswitch_fuzz::split::{Buffer, Ring, descriptor};

/// A layout of virtqueues: what the driver and a model of the device know of it.
trait Layout {
    type Queue: Virtqueue;

    /// A ring of `size` entries that has been used up to `start`.
    fn new(guest: &mut Guest, size: u16, start: u16) -> Self;
    /// The device starts, or starts anew after it was killed.
    fn start(&mut self, guest: &mut Guest, memory: &Arc<GuestMemory>, features: Features) -> Self::Queue;
    /// The memory table is replaced.
    fn carry_on(&self, memory: &Arc<GuestMemory>, old: Self::Queue) -> Self::Queue;
    /// The driver writes descriptor `index`.
    fn set(&self, guest: &mut Guest, index: u16, bytes: [u8; 16]);
    fn publish(&self, guest: &mut Guest, head: u16);
    fn set_index(&self, guest: &mut Guest, index: u16);
    /// What a take of `max` chains finds at most; none in front: it must report a fault.
    fn chains(&mut self, guest: &Guest, write: bool, max: usize) -> Vec<Option<Vec<Buffer>>>;
    /// The chains of the last take are used, with so many bytes written to each.
    fn used(&mut self, guest: &mut Guest, written: &[u32]);
    fn kicks(&self, guest: &mut Guest, wanted: bool);
}

#[derive(Arbitrary, Debug, Clone, Copy)]
struct Features {
    event_idx: bool,
    indirect: bool,
    inflight: bool,
}

struct Split {
    ring: Ring,
    features: Option<Features>,
    /// What the device knows: next entry, and the available index as last read.
    next: u16,
    available: u16,
    heads: Vec<u16>,
    inflight: Arc<SharedTable>,
}

impl Layout for Split {
    type Queue = SplitQueue;

    fn new(guest: &mut Guest, size: u16, start: u16) -> Split {
        let ring = Ring { at: 0, size };
        guest.poke(ring.available() + 2, &start.to_le_bytes());
        guest.poke(ring.used() + 2, &start.to_le_bytes());
        let file = memfd(region_size(size));
        let inflight = SharedTable::map(&file, 0, region_size(size)).expect("long enough");
        Split {
            ring,
            features: None,
            next: start,
            available: start,
            heads: Vec::new(),
            inflight: Arc::new(inflight),
        }
    }

    fn start(&mut self, guest: &mut Guest, memory: &Arc<GuestMemory>, features: Features) -> SplitQueue {
        let mut queue = SplitQueue::new(memory, self.ring.addresses(), self.ring.size).expect("in memory");
        queue.set_features(features.event_idx, features.indirect);
        if features.inflight {
            let inflight = InflightQueue::new(Arc::clone(&self.inflight), 0, self.ring.size);
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

    fn set(&self, guest: &mut Guest, index: u16, bytes: [u8; 16]) {
        self.ring.set(guest, index, bytes);
    }

    fn publish(&self, guest: &mut Guest, head: u16) {
        self.ring.publish(guest, head);
    }

    fn set_index(&self, guest: &mut Guest, index: u16) {
        guest.poke(self.ring.available() + 2, &index.to_le_bytes());
    }

    fn chains(&mut self, guest: &Guest, write: bool, max: usize) -> Vec<Option<Vec<Buffer>>> {
        self.heads.clear();
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

    fn used(&mut self, guest: &mut Guest, written: &[u32]) {
        for (head, written) in self.heads.drain(..).zip(written) {
            let element = u64::from(head) | u64::from(*written) << 32;
            let slot = self.ring.used() + 4 + 8 * u64::from(self.next % self.ring.size);
            guest.expect(slot, &element.to_le_bytes());
            self.next = self.next.wrapping_add(1);
        }
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

#[derive(Arbitrary, Debug)]
enum Op {
    /// The driver writes a descriptor of the ring.
    Describe {
        index: u16,
        address: Address,
        len: Length,
        flags: u8,
        next: u16,
    },
    /// The driver writes a row of descriptors anywhere: a table, or garbage.
    Table {
        at: Address,
        count: u8,
        address: Address,
        len: Length,
        write: bool,
        last: u8,
    },
    Poke {
        at: Address,
        bytes: u64,
    },
    Publish(u16),
    Index(u16),
    /// The device takes chains and completes some of them.
    Take {
        write: bool,
        max: u8,
        complete: u8,
        written: u32,
    },
    Interrupt,
    Kicks(bool),
    Restart(Features),
    NewTable,
}

#[derive(Arbitrary, Debug)]
struct Input {
    size: u8,
    start: u16,
    features: Features,
    ops: Vec<Op>,
}

fn run<L: Layout>(input: &Input) {
    let mut guest = Guest::new();
    let mut memory = guest.table();
    let mut layout = L::new(&mut guest, 1 << (input.size % 9), input.start);
    let mut queue = layout.start(&mut guest, &memory, input.features);
    for op in &input.ops {
        match *op {
            Op::Describe {
                index,
                address,
                len,
                flags,
                next,
            } => {
                layout.set(
                    &mut guest,
                    index,
                    descriptor(address.get(), len.get(), flags.into(), next),
                );
            }
            Op::Table {
                at,
                count,
                address,
                len,
                write,
                last,
            } => {
                for i in 0..u64::from(count) {
                    let flags = u16::from(write) << 1 | u16::from(i + 1 < u64::from(count));
                    let flags = if i + 1 == u64::from(count) {
                        flags ^ u16::from(last)
                    } else {
                        flags
                    };
                    let bytes = descriptor(address.get().wrapping_add(i), len.get(), flags, i as u16 + 1);
                    guest.poke(at.get().wrapping_add(16 * i), &bytes);
                }
            }
            Op::Poke { at, bytes } => guest.poke(at.get(), &bytes.to_le_bytes()),
            Op::Publish(head) => layout.publish(&mut guest, head),
            Op::Index(index) => layout.set_index(&mut guest, index),
            Op::Take {
                write,
                max,
                complete,
                written,
            } => {
                let expected = layout.chains(&guest, write, max.into());
                let access = if write { Access::Write } else { Access::Read };
                let mut chains = Chains::new();
                let taken = queue.take(&memory, access, max.into(), &mut chains);
                compare(taken.is_ok(), &chains, &expected);
                let count = if taken.is_ok() {
                    usize::from(complete).min(chains.len())
                } else {
                    0
                };
                drop(chains);
                let written: ArrayVec<u32, BATCH> =
                    (0..count).map(|i| written.wrapping_add(i as u32)).collect();
                queue.complete(&written);
                layout.used(&mut guest, &written);
            }
            Op::Interrupt => {
                queue.interrupt_wanted();
                assert!(!queue.interrupt_wanted(), "nothing was completed in between");
            }
            Op::Kicks(true) => {
                queue.enable_kicks();
                layout.kicks(&mut guest, true);
            }
            Op::Kicks(false) => {
                queue.suppress_kicks();
                layout.kicks(&mut guest, false);
            }
            Op::Restart(features) => queue = layout.start(&mut guest, &memory, features),
            Op::NewTable => {
                let table = guest.table();
                queue = layout.carry_on(&table, queue);
                memory = table;
            }
        }
        if matches!(op, Op::Take { .. } | Op::Restart(_)) {
            guest.check();
        }
    }
    guest.check();
}

/// The device found what the model found: all of it, or as much as one batch holds.
fn compare(ok: bool, chains: &Chains<'_>, expected: &[Option<Vec<Buffer>>]) {
    assert_eq!(
        ok,
        !matches!(expected.first(), Some(None)),
        "a fault, and only then"
    );
    if !ok {
        return;
    }
    let mut buffers_before = 0;
    for (i, chain) in expected.iter().enumerate() {
        if i == chains.len() {
            let full = chain
                .as_ref()
                .is_none_or(|chain| buffers_before + chain.len() > MAX_CHAIN);
            assert!(full, "chain {i} was left out");
            return;
        }
        let found: Vec<Buffer> = chains
            .get(i)
            .0
            .iter()
            .map(|b| (b.guest(), b.len() as u32))
            .collect();
        assert_eq!(Some(&found), chain.as_ref());
        buffers_before += found.len();
    }
    assert_eq!(chains.len(), expected.len(), "chains that nobody offered");
}

fuzz_target!(|input: Input| {
    leaks::check(|| run::<Split>(&input));
});
