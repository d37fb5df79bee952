//! Instructions that the shim executes for a packet, counted by valgrind: the same number every time.
//!
//! `scripts/bench-instructions` runs this and holds the figures against `bench/instructions.txt`; by itself it counts
//! nothing. What is counted is a pump's step: descriptors, headers, copies. The guest's part is not, and the switch is
//! two stacks of mbufs.

mod stacks;

use std::sync::Arc;

use dpdk_qemu_shim::guest_memory::GuestMemory;
use dpdk_qemu_shim::guest_memory::testing::{memory, poke};
use dpdk_qemu_shim::net_header::{self, Features, HEADER_MAX};
use dpdk_qemu_shim::port::STASH;
use dpdk_qemu_shim::pump::testing::{Buffers, step};
use dpdk_qemu_shim::pump::{Lane, Seat, State};
use dpdk_qemu_shim::virtqueue::Ring;
use dpdk_qemu_shim::virtqueue::testing::{Driver, Offer};
use stacks::Stacks;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_MRG_RXBUF,
};
use vswitch_common::gso::{Kind, Segmentation};
use vswitch_common::mbuf::{Checksum, DATA_ROOM, Mbuf};

/// What every guest of today negotiates.
const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_NET_F_MRG_RXBUF
    | 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO4;
/// Where the rings and their buffers are in the guest's memory.
const RINGS: [u64; 2] = [0, 0x8000];
const BUFFERS: u64 = 0x1_0000;
const BUFFER: u32 = 2048;
const SIZE: u16 = 256;
const BURST: usize = 32;
const BURSTS: usize = 1024;
/// Steps until the mbufs are where they stay.
const WARM_UP: usize = 2 * STASH / BURST;
const FRAMES: [usize; 2] = [60, 1514];
/// A large frame, as Linux makes them: 45 segments of 1448 bytes, behind headers of 66 bytes.
const LARGE: usize = 66 + 45 * 1448;
/// Mbufs that it takes, descriptors of the guest that sends it, and buffers of the guest that gets it.
const PIECES: usize = LARGE.div_ceil(DATA_ROOM);
/// Bytes of such a buffer, as DPDK's driver has them: an mbuf's, and a header.
const LARGE_BUFFER: u32 = 2060;
/// Large frames that wait, more than a step takes, and how often.
const LARGE_BURST: usize = 16;
const LARGE_BURSTS: usize = 64;
const LARGE_SIZE: u16 = 1024;

/// Callgrind counts what is executed in here: `scripts/bench-instructions` names it.
#[inline(never)]
fn measured(work: &mut dyn FnMut()) {
    work();
}

/// Ends a case of so many packets: callgrind writes down what it has counted before it enters.
#[inline(never)]
fn report(packets: usize, case: &str) {
    println!("{packets}\t{case}");
}

/// A virtqueue without descriptors to signal by: the guest polls, too.
fn lane(memory: &Arc<GuestMemory>, driver: &Driver) -> Lane<Ring> {
    Lane {
        name: "bench".into(),
        queue: Ring::Split(driver.device()),
        memory: Arc::clone(memory),
        features: Features::new(FEATURES),
        enabled: true,
        given_up: false,
        log: None,
        kick: None,
        call: None,
        err: None,
        fault: None,
    }
}

/// Which way frames go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    ToSwitch,
    ToGuest,
    /// As many each way, in the same mbufs.
    Both,
}

/// A driver, where its buffers are, how long each is, and whether the device writes to it.
type Side<'d> = (&'d mut Driver, u64, u32, bool);

/// The guest offers a burst of buffers.
fn offer((driver, buffers, size, writable): &mut Side<'_>) {
    for slot in 0..BURST as u64 {
        driver.offer(&[(*buffers + slot * u64::from(BUFFER), *size, *writable)]);
    }
}

/// Bursts of frames of `len` bytes.
fn pump(case: &str, len: usize, way: Way) {
    let memory = memory(&[(0, BUFFERS + 2 * BURST as u64 * u64::from(BUFFER))]);
    let mut to_switch = Driver::new(&memory, RINGS[0], SIZE);
    let mut to_guest = Driver::new(&memory, RINGS[1], SIZE);
    // Those for the guest's next frames stay with the pump.
    let count = 2 * BURST + STASH;
    let mut buffers = Buffers::new(count);
    let mbufs: Vec<Mbuf> = (0..count).map(|_| buffers.frame(&vec![0x5a; len])).collect();
    let port = match way {
        Way::ToSwitch => Stacks::new(mbufs, Vec::new()),
        Way::ToGuest => Stacks::new(Vec::new(), mbufs),
        Way::Both => Stacks::echo(mbufs),
    };
    let lane = |driver| lane(&memory, driver);
    let header = lane(&to_guest).features.header_len();
    let mut state = State {
        tx: (way != Way::ToGuest).then(|| lane(&to_switch)),
        rx: (way != Way::ToSwitch).then(|| lane(&to_guest)),
        seats: vec![Seat::new(0, port)],
        ..State::default()
    };
    poke(&memory, BUFFERS, &vec![0; 2 * BURST * BUFFER as usize]);
    let mut drivers: Vec<Side<'_>> = Vec::new();
    if way != Way::ToSwitch {
        drivers.push((&mut to_guest, BUFFERS, BUFFER, true));
    }
    if way != Way::ToGuest {
        let behind = BUFFERS + BURST as u64 * u64::from(BUFFER);
        drivers.push((&mut to_switch, behind, (header + len) as u32, false));
    }
    // The mbufs for the guest's frames come with frames for the guest.
    if way == Way::Both {
        offer(&mut drivers[0]);
        step(&mut state);
        assert_eq!(drivers[0].0.used().len(), BURST);
    }
    for number in 0..WARM_UP + BURSTS {
        drivers.iter_mut().for_each(offer);
        if number < WARM_UP {
            step(&mut state);
        } else {
            measured(&mut || {
                step(&mut state);
            });
        }
        for (driver, ..) in &mut drivers {
            assert_eq!(driver.used().len(), BURST, "a step moves a burst");
        }
    }
    report(BURST * BURSTS * drivers.len(), &format!("{case}, {len} bytes"));
}

/// The first bytes of a large frame: to be cut to 1448 bytes, by the headers of Ethernet, IPv4 and TCP with time stamps.
fn large_head() -> ([u8; HEADER_MAX], [u8; 66], Segmentation, Checksum) {
    let mut head = [0; 66];
    head[12..15].copy_from_slice(&[8, 0, 0x45]);
    (head[23], head[46]) = (6, 0x80);
    let segmentation = Segmentation::new(Kind::Tcp4, false, 1448, 34, &head).expect("sound headers");
    let checksum = Checksum::Partial {
        start: 34,
        offset: 16,
    };
    let mut header = net_header::emit(checksum, Features::new(FEATURES), 1);
    net_header::emit_segmentation(&mut header, segmentation);
    (header, head, segmentation, checksum)
}

/// Large frames one way, several waiting at a time.
fn pump_large(case: &str, way: Way) {
    let stride = u64::from(LARGE_BUFFER).next_multiple_of(64);
    let size = BUFFERS + (LARGE_BURST * PIECES) as u64 * stride;
    let memory = memory(&[(0, size)]);
    let mut driver = Driver::new(&memory, 0, LARGE_SIZE);
    let (header, head, segmentation, checksum) = large_head();
    let mut buffers = Buffers::new((LARGE_BURST + 2) * PIECES + STASH);
    let port = if way == Way::ToSwitch {
        let empties = std::iter::from_fn(|| buffers.empty()).collect();
        Stacks::for_chains(empties)
    } else {
        let mut bytes = vec![0x5a; LARGE];
        bytes[..head.len()].copy_from_slice(&head);
        let frames = (0..LARGE_BURST + 2).map(|_| {
            let mut frame = buffers.frame(&bytes);
            frame.set_checksum(checksum);
            frame.set_segmentation(segmentation);
            frame
        });
        Stacks::new(Vec::new(), frames.collect())
    };
    let lane = lane(&memory, &driver);
    let mut state = State {
        seats: vec![Seat::new(0, port)],
        ..State::default()
    };
    *(if way == Way::ToSwitch {
        &mut state.tx
    } else {
        &mut state.rx
    }) = Some(lane);
    // A frame lies behind its header in a chain of buffers, or is to be spread over chains of one buffer.
    let piece = |number: usize| BUFFERS + number as u64 * stride;
    let chains: Vec<Vec<Offer>> = (0..LARGE_BURST)
        .flat_map(|frame| {
            let piece = |n: usize| piece(frame * PIECES + n);
            if way == Way::ToGuest {
                (0..PIECES)
                    .map(|n| vec![(piece(n), LARGE_BUFFER, true)])
                    .collect()
            } else {
                poke(&memory, piece(0), &header);
                poke(&memory, piece(0) + header.len() as u64, &head);
                let first = (piece(0), (header.len() + DATA_ROOM) as u32, false);
                let last = (
                    piece(PIECES - 1),
                    (LARGE - (PIECES - 1) * DATA_ROOM) as u32,
                    false,
                );
                let between = (1..PIECES - 1).map(|n| (piece(n), DATA_ROOM as u32, false));
                vec![std::iter::once(first).chain(between).chain([last]).collect()]
            }
        })
        .collect();
    for number in 0..WARM_UP + LARGE_BURSTS {
        chains.iter().for_each(|chain| _ = driver.offer(chain));
        let mut move_all = || while step(&mut state) && driver.used_index() != driver.available {};
        if number < WARM_UP {
            move_all();
        } else {
            measured(&mut move_all);
        }
        assert_eq!(driver.used().len(), chains.len(), "all are moved");
    }
    report(LARGE_BURST * LARGE_BURSTS, &format!("{case}, 64 KB"));
}

fn main() {
    for len in FRAMES {
        pump("guest to switch", len, Way::ToSwitch);
        pump("switch to guest", len, Way::ToGuest);
        pump("both ways", len, Way::Both);
    }
    pump_large("guest to switch", Way::ToSwitch);
    pump_large("switch to guest", Way::ToGuest);
}
