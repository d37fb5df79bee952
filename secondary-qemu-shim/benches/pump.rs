//! What a pump does for a frame of 64 bytes, in either direction and layout: nanoseconds for each, as the least and the
//! median of many rounds. The guest's rings are refilled between the rounds.
//!
//! ```text
//! cargo bench -p dpdk-qemu-shim --features testing --bench pump
//! ```

mod stacks;

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dpdk_qemu_shim::guest_memory::GuestMemory;
use dpdk_qemu_shim::guest_memory::testing::memory;
use dpdk_qemu_shim::net_header::Features;
use dpdk_qemu_shim::port::STASH;
use dpdk_qemu_shim::pump::testing::{Buffers, step};
use dpdk_qemu_shim::pump::{Lane, Seat, State};
use dpdk_qemu_shim::virtqueue::testing::Driver;
use dpdk_qemu_shim::virtqueue::testing::packed::PackedDriver;
use dpdk_qemu_shim::virtqueue::{Ring, Virtqueue as _};
use stacks::Stacks;
use vswitch_common::mbuf::{Checksum, Mbuf};

const QUEUE: u16 = 256;
const FRAME: usize = 64;
const HEADER: usize = 12;
const ROUNDS: usize = 2000;
/// VERSION_1, MRG_RXBUF, INDIRECT_DESC, EVENT_IDX.
const FEATURES: u64 = 1 << 32 | 1 << 15 | 1 << 28 | 1 << 29;
const IN_ORDER: u64 = 1 << 35;
/// Where the guest's buffers are; a page for each.
const BUFFERS: u64 = 0x10_0000;

/// Either driver.
enum Guest {
    Split(Driver),
    Packed(PackedDriver),
}

impl Guest {
    fn new(packed: bool, memory: &Arc<GuestMemory>) -> (Guest, Ring) {
        if packed {
            let driver = PackedDriver::new(memory, 0, QUEUE).in_order();
            let ring = Ring::Packed(driver.device());
            (Guest::Packed(driver), ring)
        } else {
            let driver = Driver::new(memory, 0, QUEUE);
            let ring = Ring::Split(driver.device());
            (Guest::Split(driver), ring)
        }
    }

    fn refill(&mut self, len: usize, write: bool) {
        for i in 0..QUEUE {
            let chain = [(BUFFERS + 4096 * u64::from(i), len as u32, write)];
            match self {
                Guest::Split(driver) => _ = driver.offer(&chain),
                Guest::Packed(driver) => _ = driver.offer(&chain),
            }
        }
    }

    fn reap(&mut self) {
        let used = match self {
            Guest::Split(driver) => usize::from(driver.available.wrapping_sub(driver.used_index())),
            Guest::Packed(driver) => usize::from(QUEUE) - driver.used().len(),
        };
        assert_eq!(used, 0, "all are used");
    }
}

/// Moves all that is there.
#[inline(never)]
fn measured(state: &mut State<Stacks>) {
    while step(black_box(state)) {}
}

fn bench(layout: &str, features: u64, direction: &str) {
    let memory = memory(&[(0, BUFFERS + 4096 * u64::from(QUEUE))]);
    let (mut guest, mut queue) = Guest::new(layout.starts_with("packed"), &memory);
    let features = Features::new(FEATURES | features);
    queue.set_features(features.ring());
    queue.suppress_kicks();
    let to_guest = direction == "to_guest";
    let lane = Lane {
        name: direction.into(),
        queue,
        memory: Arc::clone(&memory),
        features,
        enabled: true,
        given_up: false,
        log: None,
        kick: None,
        call: None,
        err: None,
        fault: None,
    };
    // The pump keeps a batch for the guest's next frames.
    let mut buffers = Buffers::new(2 * usize::from(QUEUE) + STASH);
    let mut all: Vec<Mbuf> = std::iter::from_fn(|| buffers.empty()).collect();
    for mbuf in &mut all {
        mbuf.set_frame(FRAME, Checksum::Unknown);
    }
    let frames = all.split_off(usize::from(QUEUE));
    let port = Stacks::new(all, if to_guest { frames } else { Vec::new() });
    let mut state = State {
        seats: vec![Seat::new(0, port)],
        ..State::default()
    };
    let slot = if to_guest { &mut state.rx } else { &mut state.tx };
    *slot = Some(lane);
    let mut rounds: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let len = if to_guest { 1536 } else { HEADER + FRAME };
            guest.refill(len, to_guest);
            let start = Instant::now();
            measured(&mut state);
            let took = start.elapsed();
            guest.reap();
            took
        })
        .collect();
    rounds.sort_unstable();
    let frame = |round: Duration| round.as_nanos() as f64 / f64::from(QUEUE);
    println!(
        "{layout:16} {direction:9} least {:6.1}  median {:6.1} ns a frame",
        frame(rounds[0]),
        frame(rounds[ROUNDS / 2])
    );
}

fn main() {
    // Cargo adds --bench.
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with("--"))
        .collect();
    for (layout, features) in [
        ("split", 0),
        ("split-in-order", IN_ORDER),
        ("packed", 0),
        ("packed-in-order", IN_ORDER),
    ] {
        for direction in ["to_switch", "to_guest"] {
            let named = [layout, direction]
                .iter()
                .all(|name| wanted.iter().any(|w| w == name));
            if wanted.is_empty() || named {
                bench(layout, features, direction);
            }
        }
    }
}
