//! The device's walk of a virtqueue, against a model: a driver writes what it likes into its ring, and the device may
//! find exactly the chains that the specification finds, write exactly what it must, and nothing else.

use std::sync::Arc;

use arbitrary::Arbitrary;
use arrayvec::ArrayVec;
use dpdk_qemu_shim::guest_memory::GuestMemory;
use dpdk_qemu_shim::virtqueue::{Access, BATCH, Chains, MAX_CHAIN, Negotiated, Virtqueue};

use crate::guest::{Address, Guest, Length};

/// A buffer: guest address and bytes.
pub type Buffer = (u64, u32);

/// A layout of virtqueues: what the driver and a model of the device know of it.
pub trait Layout {
    type Queue: Virtqueue;

    /// A ring as large as `size` says, which has been used up to `start`.
    fn new(guest: &mut Guest, size: u8, start: u16) -> Self;
    /// The device starts, or starts anew after it was killed.
    fn start(&mut self, guest: &mut Guest, memory: &Arc<GuestMemory>, features: Features) -> Self::Queue;
    /// The memory table is replaced.
    fn carry_on(&self, memory: &Arc<GuestMemory>, old: Self::Queue) -> Self::Queue;
    /// A descriptor's bytes; `next` is what the layout has room for beside the rest.
    fn descriptor(address: u64, len: u32, flags: u16, next: u16) -> [u8; 16];
    /// The driver writes descriptor `index`.
    fn set(&self, guest: &mut Guest, index: u16, bytes: [u8; 16]);
    /// The driver makes something available: a chain, or the next descriptors.
    fn publish(&mut self, guest: &mut Guest, what: u16);
    /// The driver jumps.
    fn set_index(&mut self, guest: &mut Guest, index: u16);
    /// What a take of `max` chains finds at most; none in front: it must report a fault.
    fn chains(&mut self, guest: &Guest, write: bool, max: usize) -> Vec<Option<Vec<Buffer>>>;
    /// The take returned so many of them.
    fn taken(&mut self, count: usize);
    /// The chains of the last take are used, with so many bytes written to each.
    fn used(&mut self, guest: &mut Guest, written: &[u32]);
    fn kicks(&self, guest: &mut Guest, wanted: bool);
}

/// What was negotiated.
#[derive(Arbitrary, Debug, Clone, Copy)]
pub struct Features {
    pub event_idx: bool,
    pub indirect: bool,
    pub in_order: bool,
    pub inflight: bool,
}

impl Features {
    pub fn ring(self) -> Negotiated {
        Negotiated {
            event_idx: self.event_idx,
            indirect: self.indirect,
            in_order: self.in_order,
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

/// What happens to a ring.
#[derive(Arbitrary, Debug)]
pub struct Input {
    size: u8,
    start: u16,
    features: Features,
    ops: Vec<Op>,
}

/// Lets it happen.
///
/// # Panics
/// If the device does what the model does not.
pub fn run<L: Layout>(input: &Input) {
    let mut guest = Guest::new();
    let mut memory = guest.table();
    let mut layout = L::new(&mut guest, input.size, input.start);
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
                let bytes = L::descriptor(address.get(), len.get(), flags.into(), next);
                layout.set(&mut guest, index, bytes);
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
                    let bytes = L::descriptor(address.get().wrapping_add(i), len.get(), flags, i as u16 + 1);
                    guest.poke(at.get().wrapping_add(16 * i), &bytes);
                }
            }
            Op::Poke { at, bytes } => guest.poke(at.get(), &bytes.to_le_bytes()),
            Op::Publish(what) => layout.publish(&mut guest, what),
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
                layout.taken(chains.len());
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
