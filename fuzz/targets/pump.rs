//! What moves frames between a guest that writes whatever it likes into its rings, and a switch: nothing is written
//! outside the buffers that the guest offered, work comes to an end, a broken queue stays broken, and every chain and
//! every mbuf is accounted for.

#![no_main]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arbitrary::Arbitrary;
use dpdk_qemu_shim::guest_memory::GuestMemory;
use dpdk_qemu_shim::net_header::Features;
use dpdk_qemu_shim::port::SwitchPort;
use dpdk_qemu_shim::pump::testing::{Loopback, step, take_apart};
use dpdk_qemu_shim::pump::{Lane, Seat, State};
use dpdk_qemu_shim::virtqueue::testing::{INDIRECT, NEXT, WRITE};
use dpdk_qemu_shim::virtqueue::{Ring as Queue, SplitQueue, Virtqueue};
use libfuzzer_sys::fuzz_target;
use vswitch_common::gso::{Kind, Segmentation};
use vswitch_common::mbuf::{Checksum, DATA_ROOM, MAX_SEGMENTS};
use vswitch_fuzz::guest::{Address, Guest, Length};
use vswitch_fuzz::leaks;
use vswitch_fuzz::split::{Ring, descriptor};
use vswitch_fuzz::virtqueue::Buffer;

/// Feature bits that a driver may choose from: CSUM, GUEST_CSUM, MRG_RXBUF, INDIRECT_DESC, EVENT_IDX, VERSION_1, IN_ORDER;
/// and of large frames GUEST_TSO4, GUEST_TSO6, GUEST_ECN, HOST_TSO4, HOST_TSO6, HOST_ECN, GUEST_USO4, GUEST_USO6, HOST_USO.
const FEATURES: [u32; 16] = [0, 1, 15, 28, 29, 32, 7, 8, 9, 11, 12, 13, 54, 55, 56, 35];
/// Bytes of the longest frame.
const LONGEST: usize = MAX_SEGMENTS * DATA_ROOM;
/// Steps in which everything that can wait must be done.
const ENOUGH: usize = 1024;

#[derive(Arbitrary, Debug, Clone, Copy)]
enum Side {
    Transmit,
    Receive,
}

#[derive(Arbitrary, Debug)]
enum Op {
    /// The driver writes a descriptor of a ring.
    Describe {
        side: Side,
        index: u16,
        address: Address,
        len: Length,
        flags: u8,
        next: u16,
    },
    /// The driver offers a sound chain of `count` pieces, in a table of its own if `table`.
    Offer {
        side: Side,
        index: u16,
        address: Address,
        len: Length,
        count: u8,
        table: Option<Address>,
    },
    /// The driver writes a header, or anything.
    Poke {
        at: Address,
        bytes: [u8; 12],
    },
    Publish {
        side: Side,
        head: u16,
    },
    Index {
        side: Side,
        index: u16,
    },
    Enable {
        side: Side,
        enabled: bool,
    },
    /// The driver resets a queue.
    Reset(Side),
    Forget,
    /// The switch sends a frame that begins with `head`.
    Deliver {
        len: u16,
        head: [u8; 60],
        checksum: Option<(u16, u16)>,
        /// virtio's number of the kind, and bytes a segment.
        segmentation: Option<(u8, u16)>,
    },
    /// The switch takes so many frames at most.
    Room(u8),
    Collect,
    /// The switch goes away, or comes back.
    Plugged(bool),
    Run,
}

#[derive(Arbitrary, Debug)]
struct Input {
    features: u16,
    sizes: [u8; 2],
    buffers: u8,
    ops: Vec<Op>,
}

struct Bench {
    guest: Guest,
    memory: Arc<GuestMemory>,
    features: Features,
    rings: [Ring; 2],
    port: Loopback,
    seats: Vec<Seat<Loopback>>,
    state: State<Loopback>,
    delivered: u64,
    collected: u64,
    /// Chains used on the transmit queue.
    used: u64,
    /// Of those, the ones that went nowhere since no switch was there.
    unplugged: bool,
}

fn at(side: Side) -> usize {
    match side {
        Side::Transmit => 0,
        Side::Receive => 1,
    }
}

impl Bench {
    fn new(input: &Input) -> Bench {
        let guest = Guest::new();
        let memory = guest.table();
        let bits = (0..FEATURES.len()).filter(|i| input.features >> i & 1 != 0);
        let features = Features::new(bits.map(|i| 1 << FEATURES[i]).sum());
        let port = Loopback::new(usize::from(input.buffers % 100) + 1);
        let rings = [0, 0x2000].map(|at| Ring { at, size: 0 });
        let mut bench = Bench {
            guest,
            memory,
            features,
            rings,
            port: port.clone(),
            seats: Vec::new(),
            state: State {
                seats: vec![Seat::new(0, port)],
                ..State::default()
            },
            delivered: 0,
            collected: 0,
            used: 0,
            unplugged: false,
        };
        for side in [Side::Transmit, Side::Receive] {
            bench.rings[at(side)].size = 1 << (input.sizes[at(side)] % 9);
            bench.start(side);
        }
        bench
    }

    fn lane(&mut self, side: Side) -> &mut Option<Lane<Queue>> {
        match side {
            Side::Transmit => &mut self.state.tx,
            Side::Receive => &mut self.state.rx,
        }
    }

    fn start(&mut self, side: Side) {
        let ring = self.rings[at(side)];
        let mut queue = SplitQueue::new(&self.memory, ring.addresses(), ring.size).expect("in memory");
        queue.set_features(self.features.ring());
        let lane = Lane {
            name: format!("{side:?}"),
            queue: Queue::Split(queue),
            memory: Arc::clone(&self.memory),
            features: self.features,
            enabled: true,
            given_up: false,
            log: None,
            kick: None,
            call: None,
            err: None,
            fault: None,
        };
        *self.lane(side) = Some(lane);
    }

    fn offer(&mut self, side: Side, index: u16, address: u64, len: u32, count: u8, table: Option<Address>) {
        let ring = self.rings[at(side)];
        let write = if matches!(side, Side::Receive) { WRITE } else { 0 };
        let count = u16::from(count)
            .clamp(1, 200)
            .min(if table.is_some() { 200 } else { ring.size });
        for i in 0..count {
            let flags = write | if i + 1 < count { NEXT } else { 0 };
            let address = address.wrapping_add(u64::from(len) * u64::from(i));
            match table {
                Some(at) => {
                    let at = at.get().wrapping_add(16 * u64::from(i));
                    self.guest.poke(at, &descriptor(address, len, flags, i + 1));
                }
                None => {
                    let (index, next) = (index.wrapping_add(i), index.wrapping_add(i + 1) % ring.size);
                    ring.set(&mut self.guest, index, descriptor(address, len, flags, next));
                }
            }
        }
        if let Some(at) = table {
            let bytes = descriptor(at.get(), 16 * u32::from(count), INDIRECT, 0);
            ring.set(&mut self.guest, index, bytes);
        }
        ring.publish(&mut self.guest, index % ring.size);
    }

    fn deliver(
        &mut self,
        len: u16,
        head: &[u8; 60],
        checksum: Option<(u16, u16)>,
        segmentation: Option<(u8, u16)>,
    ) {
        let mut bytes = vec![0; usize::from(len).max(1)];
        let known = head.len().min(bytes.len());
        bytes[..known].copy_from_slice(&head[..known]);
        let sent = self.port.switch(|switch| {
            if switch.buffers.available() < bytes.len().div_ceil(DATA_ROOM) {
                return 0;
            }
            let mut frame = switch.buffers.frame(&bytes);
            if let Some((start, offset)) = checksum {
                frame.set_checksum(Checksum::Partial { start, offset });
                let cut = segmentation
                    .and_then(|(kind, size)| Some((Kind::from_gso_type(kind)?, size)))
                    .and_then(|((kind, ecn), size)| Segmentation::new(kind, ecn, size, start, frame.data()));
                cut.into_iter().for_each(|cut| frame.set_segmentation(cut));
            }
            switch.frames.push_back(frame);
            1
        });
        self.delivered += sent;
    }

    fn collect(&mut self) {
        let frames = self.port.collect();
        assert!(frames.iter().all(|frame| (14..=LONGEST).contains(&frame.len())));
        self.collected += frames.len() as u64;
    }

    /// Where the device may write now: used rings, and the buffers that the guest offers for it.
    fn writable(&self) -> Vec<Buffer> {
        let mut may: Vec<Buffer> = self.rings.iter().map(Ring::used_bytes).collect();
        let ring = self.rings[1];
        for i in 0..ring.size {
            let head = ring.head(&self.guest, i);
            may.extend(
                ring.chain(&self.guest, head, true, self.features.ring().indirect)
                    .into_iter()
                    .flatten(),
            );
        }
        may
    }

    fn base(&self, side: Side) -> u16 {
        let lane = match side {
            Side::Transmit => &self.state.tx,
            Side::Receive => &self.state.rx,
        };
        lane.as_ref().map_or(0, |lane| lane.queue.base() as u16)
    }

    fn run(&mut self) {
        let may = self.writable();
        let broken =
            [&self.state.tx, &self.state.rx].map(|lane| lane.as_ref().is_some_and(|l| l.fault.is_some()));
        let before = [self.base(Side::Transmit), self.base(Side::Receive)];
        assert!(
            (0..ENOUGH).any(|_| !step(&mut self.state)),
            "the pump never comes to rest"
        );
        let moved = [
            self.base(Side::Transmit).wrapping_sub(before[0]),
            self.base(Side::Receive).wrapping_sub(before[1]),
        ];
        for (side, ring) in self.rings.iter().enumerate() {
            assert!(moved[side] <= ring.size, "more chains used than offered");
            assert!(!broken[side] || moved[side] == 0, "a broken queue went on");
        }
        self.used += u64::from(moved[0]);
        self.guest.accept(&may);
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Describe {
                side,
                index,
                address,
                len,
                flags,
                next,
            } => {
                let bytes = descriptor(address.get(), len.get(), flags.into(), next);
                self.rings[at(side)].set(&mut self.guest, index, bytes);
            }
            Op::Offer {
                side,
                index,
                address,
                len,
                count,
                table,
            } => {
                self.offer(side, index, address.get(), len.get(), count, table);
            }
            Op::Poke { at, bytes } => self.guest.poke(at.get(), &bytes),
            Op::Publish { side, head } => self.rings[at(side)].publish(&mut self.guest, head),
            Op::Index { side, index } => {
                let ring = self.rings[at(side)];
                self.guest.poke(ring.available() + 2, &index.to_le_bytes());
            }
            Op::Enable { side, enabled } => {
                if let Some(lane) = self.lane(side) {
                    lane.enabled = enabled;
                }
            }
            Op::Reset(side) => self.start(side),
            Op::Forget => self.state.forget_frames(),
            Op::Deliver {
                len,
                ref head,
                checksum,
                segmentation,
            } => self.deliver(len, head, checksum, segmentation),
            Op::Room(room) => self.port.switch(|switch| switch.room = room.into()),
            Op::Collect => self.collect(),
            Op::Plugged(false) => {
                self.seats.append(&mut self.state.unseat());
                self.state.unplugged = true;
                self.unplugged = true;
            }
            Op::Plugged(true) => self.state.seats.append(&mut self.seats),
            Op::Run => self.run(),
        }
    }

    /// Everything is at rest: does it add up?
    fn finish(mut self) {
        self.run();
        self.state.seats.append(&mut self.seats);
        self.state.forget_frames();
        self.port.switch(|switch| switch.room = usize::MAX);
        take_apart(&mut self.state);
        self.collect();
        let stat = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let port = self.port.clone();
        let stats = port.stats();
        let refused = stat(&stats.tx_too_long) + stat(&stats.tx_too_short) + stat(&stats.tx_bad_header);
        if !self.unplugged {
            assert_eq!(
                self.used,
                stat(&stats.tx_frames) + refused,
                "each chain has a frame or a reason"
            );
        }
        assert_eq!(
            self.collected,
            stat(&stats.tx_frames),
            "each frame counted got to the switch"
        );
        let received = stat(&stats.rx_frames) + stat(&stats.rx_too_long) + stat(&stats.rx_not_ready);
        assert_eq!(received, self.delivered, "each of the switch's frames has an end");
        assert!(
            self.port.switch(|switch| switch.buffers.complete()),
            "an mbuf is lost"
        );
        self.guest.check_canaries();
    }
}

fuzz_target!(|input: Input| {
    leaks::check(|| {
        let mut bench = Bench::new(&input);
        for op in &input.ops {
            bench.apply(op);
        }
        bench.finish();
    });
});
