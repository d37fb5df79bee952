//! Instructions that the shim executes for a packet, counted by valgrind: the same number every time.
//!
//! `scripts/bench-instructions` runs this and holds the figures against `bench/instructions.txt`; by itself it counts
//! nothing. What is counted is a pump's step: descriptors, headers, copies. The guest's part is not, and the switch is
//! two stacks of mbufs.

mod stacks;

use std::sync::Arc;

use dpdk_qemu_shim::guest_memory::GuestMemory;
use dpdk_qemu_shim::guest_memory::testing::{memory, poke};
use dpdk_qemu_shim::net_header::Features;
use dpdk_qemu_shim::pump::testing::{Buffers, step};
use dpdk_qemu_shim::pump::{Lane, Seat, State};
use dpdk_qemu_shim::virtqueue::Ring;
use dpdk_qemu_shim::virtqueue::testing::Driver;
use stacks::Stacks;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::{VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_MRG_RXBUF};
use vswitch_common::mbuf::Mbuf;

/// What every guest of today negotiates.
const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_NET_F_MRG_RXBUF
    | 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_GUEST_CSUM;
/// Where a ring and its buffers are in the guest's memory.
const RING: u64 = 0;
const BUFFERS: u64 = 0x1_0000;
const BUFFER: u32 = 2048;
const SIZE: u16 = 256;
const BURST: usize = 32;
const BURSTS: usize = 1024;
const FRAMES: [usize; 2] = [60, 1514];

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
        log: None,
        kick: None,
        call: None,
        err: None,
        fault: None,
    }
}

/// Bursts of frames of `len` bytes, from the guest or to it.
fn pump(case: &str, len: usize, to_guest: bool) {
    let memory = memory(&[(0, BUFFERS + BURST as u64 * u64::from(BUFFER))]);
    let mut driver = Driver::new(&memory, RING, SIZE);
    let mut buffers = Buffers::new(2 * BURST);
    let mbufs: Vec<Mbuf> = (0..2 * BURST).map(|_| buffers.frame(&vec![0x5a; len])).collect();
    let port = if to_guest {
        Stacks::new(Vec::new(), mbufs)
    } else {
        Stacks::new(mbufs, Vec::new())
    };
    let lane = lane(&memory, &driver);
    let header = lane.features.header_len();
    let (tx, rx) = if to_guest {
        (None, Some(lane))
    } else {
        (Some(lane), None)
    };
    let mut state = State {
        tx,
        rx,
        seats: vec![Seat::new(0, port)],
        ..State::default()
    };
    let size = if to_guest { BUFFER } else { (header + len) as u32 };
    poke(&memory, BUFFERS, &vec![0; BURST * BUFFER as usize]);
    for number in 0..BURSTS + 1 {
        for slot in 0..BURST {
            driver.offer(&[(BUFFERS + slot as u64 * u64::from(BUFFER), size, to_guest)]);
        }
        if number == 0 {
            step(&mut state);
        } else {
            measured(&mut || {
                step(&mut state);
            });
        }
        assert_eq!(driver.used().len(), BURST, "a step moves a burst");
    }
    report(BURST * BURSTS, &format!("{case}, {len} bytes"));
}

fn main() {
    for len in FRAMES {
        pump("guest to switch", len, false);
        pump("switch to guest", len, true);
    }
}
