use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use proptest::prelude::*;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::{VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_MRG_RXBUF};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
use vswitch_common::mbuf::{Checksum, DATA_ROOM, MAX_SEGMENTS};

use super::testing::{Loopback, give_empties};
use super::*;
use crate::guest_memory::GuestMemory;
use crate::guest_memory::testing::{memory, peek, poke};
use crate::net_header::Features;
use crate::virtqueue::testing::{Driver, dirty_log, dirty_pages};
use crate::virtqueue::{Fault, Ring, Virtqueue};

mod large;
mod thread;

const V1: u64 = 1 << VIRTIO_F_VERSION_1;
const MERGEABLE: u64 = V1 | 1 << VIRTIO_NET_F_MRG_RXBUF;
const CSUM: u64 = 1 << VIRTIO_NET_F_CSUM | 1 << VIRTIO_NET_F_GUEST_CSUM;

const RX_RING: u64 = 0;
const TX_RING: u64 = 0x8000;
const RX_BUFFERS: u64 = 0x2_0000;
const TX_BUFFERS: u64 = 0x10_0000;
const END: u64 = 0x20_0000;

fn eventfd() -> (File, EventFd) {
    let fd = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).unwrap();
    let shared = std::os::fd::AsFd::as_fd(&fd).try_clone_to_owned().unwrap();
    (File::from(shared), fd)
}

/// A guest with a receive and a transmit ring, a switch, and what moves frames between them.
struct Bench {
    memory: Arc<GuestMemory>,
    port: Loopback,
    rx: Driver,
    tx: Driver,
    header: usize,
    call: EventFd,
    kick: EventFd,
    state: State<Loopback>,
}

impl Bench {
    fn new(features: u64) -> Bench {
        let memory = memory(&[(0, END)]);
        let (rx, tx) = (
            Driver::new(&memory, RX_RING, 256),
            Driver::new(&memory, TX_RING, 256),
        );
        let features = Features::new(features);
        let (call_file, call) = eventfd();
        let (kick_file, kick) = eventfd();
        let lane = |driver: &Driver, name: &str| {
            let mut queue = driver.device();
            queue.set_features(features.ring());
            queue.suppress_kicks();
            Some(Lane {
                name: name.into(),
                queue: Ring::Split(queue),
                memory: Arc::clone(&memory),
                features,
                enabled: true,
                given_up: false,
                log: None,
                kick: Some(Eventfd::new(kick_file.try_clone().unwrap()).unwrap()),
                call: Some(Eventfd::new(call_file.try_clone().unwrap()).unwrap()),
                err: None,
                fault: None,
            })
        };
        let port = Loopback::new(600);
        let state = State {
            tx: lane(&tx, "tx"),
            rx: lane(&rx, "rx"),
            seats: vec![Seat::new(0, port.clone())],
            ..State::default()
        };
        Bench {
            memory: Arc::clone(&memory),
            port,
            rx,
            tx,
            header: features.header_len(),
            call,
            kick,
            state,
        }
    }

    /// The guest sends `bytes` behind `header`, in pieces of `piece` bytes.
    fn transmit(&mut self, at: u64, header: &[u8], bytes: &[u8], piece: usize) {
        let mut all = header.to_vec();
        all.extend_from_slice(bytes);
        poke(&self.memory, at, &all);
        let chain: Vec<(u64, u32, bool)> = all
            .chunks(piece)
            .enumerate()
            .map(|(i, chunk)| (at + (i * piece) as u64, chunk.len() as u32, false))
            .collect();
        self.tx.offer(&chain);
    }

    fn plain(&self) -> Vec<u8> {
        vec![0; self.header]
    }

    /// The guest offers `count` receive buffers of `size` bytes; returns where the first one is.
    fn offer_rx(&mut self, count: u64, size: u32) -> u64 {
        for i in 0..count {
            self.rx.offer(&[(RX_BUFFERS + i * u64::from(size), size, true)]);
        }
        RX_BUFFERS
    }

    fn run(&mut self) -> Standings {
        for _ in 0..1000 {
            let standings = self.state.step();
            if !standings.busy() {
                return standings;
            }
        }
        panic!("the pump never comes to rest");
    }

    /// A thread that works from now on in place of [`Bench::run`].
    fn start_pump(&mut self) -> Pump<Loopback> {
        let pump = Pump::start("test", None).unwrap();
        let state = std::mem::take(&mut self.state);
        pump.change(|slot| *slot = state);
        pump
    }

    fn stat(&self, counter: impl Fn(&vswitch_common::port::layout::ClientStats) -> &AtomicU64) -> u64 {
        counter(self.port.stats()).load(Ordering::Relaxed)
    }

    /// Every mbuf is with the switch again, or in hand.
    fn assert_all_mbufs_home(&mut self) {
        self.state.seats.iter_mut().for_each(give_empties);
        assert!(
            self.port.switch(|switch| switch.buffers.complete()),
            "an mbuf is lost"
        );
    }
}

fn frame(len: usize, salt: u8) -> Vec<u8> {
    (0..len)
        .map(|i| (i as u8).wrapping_mul(7).wrapping_add(salt))
        .collect()
}

#[test]
fn frames_go_to_the_switch_whole_and_in_order() {
    let mut bench = Bench::new(V1);
    let sent: Vec<Vec<u8>> = (0..200).map(|i| frame(60 + i * 7, i as u8)).collect();
    for (i, bytes) in sent.iter().enumerate() {
        let piece = [5000, 12, 100, 7][i % 4].max(bytes.len() / 20 + 1);
        let before = bench.tx.available;
        bench.transmit(TX_BUFFERS + i as u64 * 2048, &bench.plain(), bytes, piece);
        assert_ne!(before, bench.tx.available);
        // The ring has 256 descriptors; chains of up to 20 are served before they are reused.
        bench.run();
    }
    assert_eq!(bench.port.collect(), sent);
    assert_eq!(bench.tx.used().len(), 200);
    assert_eq!(bench.stat(|s| &s.tx_frames), 200);
    bench.assert_all_mbufs_home();
}

#[test]
fn frames_reach_the_guest_behind_a_header() {
    let mut bench = Bench::new(V1);
    let at = bench.offer_rx(3, 1600);
    for i in 0..3 {
        bench.port.deliver(&frame(100 + i, i as u8));
    }
    assert_eq!(bench.run().to_guest, Standing::Idle);
    let used: Vec<u32> = bench.rx.used().into_iter().map(|(_, len)| len).collect();
    assert_eq!(used, [112, 113, 114]);
    for i in 0..3 {
        let got = peek(&bench.memory, at + 1600 * i, 112 + i as usize);
        assert_eq!(
            got[..12],
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0],
            "num_buffers is 1 (§5.1.6.4)"
        );
        assert_eq!(got[12..], frame(100 + i as usize, i as u8));
    }
    bench.assert_all_mbufs_home();
}

/// The switch has no empty mbufs: those that came with frames for the guest do.
#[test]
fn mbufs_of_delivered_frames_carry_what_the_guest_sends_next() {
    let mut bench = Bench::new(V1);
    bench.offer_rx(10, 1600);
    (0..10).for_each(|i| bench.port.deliver(&frame(100, i)));
    let held: Vec<_> = bench
        .port
        .switch(|switch| std::iter::from_fn(|| switch.buffers.empty()).collect());
    bench.run();
    assert_eq!(bench.rx.used().len(), 10);
    let sent: Vec<Vec<u8>> = (0..11).map(|i| frame(60 + i, i as u8)).collect();
    for (i, bytes) in sent.iter().enumerate() {
        bench.transmit(TX_BUFFERS + i as u64 * 2048, &bench.plain(), bytes, 2048);
    }
    assert_eq!(
        bench.run().to_switch,
        Standing::AwaitsSwitch,
        "ten mbufs, eleven frames"
    );
    assert_eq!(bench.port.collect(), sent[..10]);
    bench
        .port
        .switch(|switch| held.into_iter().for_each(|mbuf| switch.buffers.give_back(mbuf)));
    bench.run();
    assert_eq!(bench.port.collect(), sent[10..]);
    bench.assert_all_mbufs_home();
}

/// All frames of a clump: more than a batch.
#[test]
fn a_clump_of_delivered_frames_gives_mbufs_for_one_that_is_sent() {
    let mut bench = Bench::new(V1);
    bench.offer_rx(150, 1600);
    (0..150).for_each(|i| bench.port.deliver(&frame(100, i)));
    bench.run();
    let held: Vec<_> = bench
        .port
        .switch(|switch| std::iter::from_fn(|| switch.buffers.empty()).collect());
    let sent: Vec<Vec<u8>> = (0..150).map(|i| frame(60 + i, i as u8)).collect();
    for (i, bytes) in sent.iter().enumerate() {
        bench.transmit(TX_BUFFERS + i as u64 * 2048, &bench.plain(), bytes, 2048);
    }
    bench.run();
    assert_eq!(bench.port.collect(), sent);
    bench
        .port
        .switch(|switch| held.into_iter().for_each(|mbuf| switch.buffers.give_back(mbuf)));
    bench.assert_all_mbufs_home();
}

/// A client's share is for both directions: mbufs that can carry nothing now are not kept.
#[test]
fn mbufs_go_back_while_the_switch_takes_no_frames() {
    let mut bench = Bench::new(V1);
    bench.port.switch(|switch| switch.room = 0);
    bench.transmit(TX_BUFFERS, &bench.plain(), &frame(60, 1), 2048);
    assert_eq!(bench.run().to_switch, Standing::AwaitsSwitch);
    let kept = bench.state.seats[0].empties.len();
    bench.offer_rx(100, 1600);
    (0..100).for_each(|i| bench.port.deliver(&frame(100, i)));
    bench.run();
    assert_eq!(bench.rx.used().len(), 100);
    assert_eq!(bench.state.seats[0].empties.len(), kept);
}

#[test]
fn what_is_copied_counts_until_others_have_had_their_turn() {
    let mut bench = Bench::new(V1);
    bench.offer_rx(2, 1600);
    bench.port.deliver(&frame(100, 1));
    bench.port.deliver(&frame(200, 2));
    bench.transmit(TX_BUFFERS, &bench.plain(), &frame(1000, 3), 2048);
    bench.run();
    // Headers are among them.
    assert_eq!(bench.state.copied(), 3 * 12 + 100 + 200 + 1000);
    bench.state.give_way();
    assert_eq!(bench.state.copied(), 0);
}

#[test]
fn a_legacy_driver_has_a_shorter_header() {
    let mut bench = Bench::new(0);
    assert_eq!(bench.header, 10);
    let at = bench.offer_rx(1, 1600);
    bench.port.deliver(&frame(60, 1));
    bench.transmit(TX_BUFFERS, &[0; 10], &frame(60, 2), 10);
    bench.run();
    assert_eq!(peek(&bench.memory, at + 10, 60), frame(60, 1));
    assert_eq!(bench.port.collect(), [frame(60, 2)]);
}

#[test]
fn mergeable_buffers_take_a_long_frame_together() {
    let mut bench = Bench::new(MERGEABLE);
    let at = bench.offer_rx(20, 128);
    bench.port.deliver(&frame(1000, 3));
    bench.port.deliver(&frame(116, 4));
    bench.run();
    let used = bench.rx.used();
    let lens: Vec<u32> = used.iter().map(|&(_, len)| len).collect();
    assert_eq!(lens, [128, 128, 128, 128, 128, 128, 128, 116, 128]);
    let got = peek(&bench.memory, at, 1012);
    assert_eq!(got[10..12], [8, 0]);
    assert_eq!(got[12..], frame(1000, 3));
}

#[test]
fn a_frame_waits_for_enough_mergeable_buffers() {
    let mut bench = Bench::new(MERGEABLE);
    bench.offer_rx(3, 128);
    bench.port.deliver(&frame(500, 3));
    assert_eq!(bench.run().to_guest, Standing::AwaitsGuest);
    assert_eq!(bench.rx.used(), []);
    bench.offer_rx(1, 128);
    assert_eq!(bench.run().to_guest, Standing::Idle);
    assert_eq!(bench.rx.used().len(), 4);
}

/// In a packed ring such a chain is found anew by each look for more, which would keep the pump awake.
#[test]
fn a_bad_chain_behind_too_few_buffers_breaks_the_queue() {
    let mut bench = Bench::new(MERGEABLE);
    bench.offer_rx(3, 128);
    bench.rx.offer(&[(RX_BUFFERS, 0, true)]);
    bench.port.deliver(&frame(60, 1));
    bench.run();
    assert_eq!(bench.rx.used().len(), 1, "what finds room is delivered");
    bench.port.deliver(&frame(500, 3));
    bench.run();
    assert_eq!(bench.state.rx.as_ref().unwrap().fault, Some(Fault::Empty));
    assert_eq!(bench.stat(|s| &s.broken_virtqueues), 1);
}

#[test]
fn a_frame_that_no_batch_of_crumbs_holds_is_dropped() {
    let mut bench = Bench::new(MERGEABLE | 1 << VIRTIO_RING_F_INDIRECT_DESC);
    let crumbs: Vec<_> = (0..600).map(|i| (RX_BUFFERS + i, 1, true)).collect();
    for table in [0x8000, 0xc000] {
        bench.rx.offer_indirect(RX_BUFFERS + table, &crumbs);
    }
    bench.port.deliver(&frame(1000, 1));
    bench.port.deliver(&frame(80, 2));
    bench.run();
    assert_eq!(bench.stat(|s| &s.rx_too_long), 1);
    assert_eq!(bench.rx.used().len(), 1);
    bench.assert_all_mbufs_home();
}

#[test]
fn a_frame_that_no_buffer_holds_is_dropped_and_the_buffer_stays() {
    let mut bench = Bench::new(V1);
    bench.offer_rx(1, 100);
    bench.port.deliver(&frame(200, 1));
    bench.port.deliver(&frame(80, 2));
    bench.run();
    assert_eq!(bench.stat(|s| &s.rx_too_long), 1);
    assert_eq!(bench.rx.used().len(), 1);
    assert_eq!(peek(&bench.memory, RX_BUFFERS + 12, 80), frame(80, 2));
    bench.assert_all_mbufs_home();
}

#[test]
fn without_guest_buffers_frames_stay_with_the_switch() {
    let mut bench = Bench::new(V1);
    for i in 0..200u8 {
        bench.port.deliver(&frame(60, i));
    }
    assert_eq!(bench.run().to_guest, Standing::AwaitsGuest);
    assert!(bench.port.switch(|switch| switch.frames.len()) >= 200 - BATCH);
    for i in 0..200u8 {
        bench.rx.offer(&[(RX_BUFFERS + u64::from(i) * 128, 128, true)]);
    }
    bench.run();
    for i in 0..200u8 {
        assert_eq!(
            peek(&bench.memory, RX_BUFFERS + u64::from(i) * 128 + 12, 60),
            frame(60, i),
            "in order"
        );
    }
    bench.assert_all_mbufs_home();
}

#[test]
fn without_mbufs_or_room_descriptors_stay_with_the_guest() {
    let mut bench = Bench::new(V1);
    bench.port.switch(|switch| switch.room = 10);
    for i in 0..100u8 {
        bench.transmit(TX_BUFFERS + u64::from(i) * 2048, &[0; 12], &frame(60, i), 4096);
    }
    assert_eq!(bench.run().to_switch, Standing::AwaitsSwitch);
    assert!(bench.tx.used_index() <= BATCH as u16);
    let mut got = Vec::new();
    for _ in 0..20 {
        got.extend(bench.port.collect());
        bench.run();
    }
    assert_eq!(
        got,
        (0..100).map(|i| frame(60, i)).collect::<Vec<_>>(),
        "nothing lost, doubled or out of order"
    );

    // The same with the pool run dry.
    let held: Vec<_> = bench
        .port
        .switch(|switch| std::iter::from_fn(|| switch.buffers.empty()).collect());
    bench.state.seats[0]
        .empties
        .drain(..)
        .for_each(|m| bench.port.switch(|s| s.buffers.give_back(m)));
    let more: Vec<_> = bench
        .port
        .switch(|switch| std::iter::from_fn(|| switch.buffers.empty()).collect());
    bench.transmit(TX_BUFFERS, &[0; 12], &frame(60, 7), 4096);
    assert_eq!(bench.run().to_switch, Standing::AwaitsSwitch);
    bench.port.switch(|switch| {
        held.into_iter()
            .chain(more)
            .for_each(|m| switch.buffers.give_back(m))
    });
    bench.run();
    assert_eq!(bench.port.collect(), [frame(60, 7)]);
    bench.assert_all_mbufs_home();
}

#[test]
fn frames_that_can_not_be_sent_are_counted_by_reason() {
    let mut bench = Bench::new(V1 | CSUM);
    let gso = [0, 1, 54, 0, 0, 5, 0, 0, 0, 0, 0, 0];
    let lying = [1, 0, 0, 0, 0, 0, 200, 0, 16, 0, 0, 0];
    let longest = MAX_SEGMENTS * DATA_ROOM;
    bench.transmit(TX_BUFFERS + 0x1_0000, &[0; 12], &frame(longest + 1, 0), 10_000);
    bench.transmit(TX_BUFFERS + 0x1000, &[0; 12], &frame(13, 0), 4096);
    bench.transmit(TX_BUFFERS + 0x2000, &[0; 12], &[], 4096);
    bench.transmit(TX_BUFFERS + 0x3000, &gso, &frame(1514, 0), 4096);
    bench.transmit(TX_BUFFERS + 0x4000, &lying, &frame(60, 0), 4096);
    bench.transmit(TX_BUFFERS + 0x5000, &[0; 12], &frame(2048, 9), 4096);
    bench.run();
    assert_eq!(bench.port.collect(), [frame(2048, 9)]);
    assert_eq!(bench.tx.used().len(), 6, "the guest gets all of its buffers back");
    assert_eq!(bench.stat(|s| &s.tx_too_long), 1);
    assert_eq!(bench.stat(|s| &s.tx_too_short), 2);
    assert_eq!(bench.stat(|s| &s.tx_bad_header), 2);
    bench.assert_all_mbufs_home();
}

#[test]
fn a_chain_without_a_whole_header_breaks_the_queue_once() {
    let mut bench = Bench::new(V1);
    bench.transmit(TX_BUFFERS, &[0; 12], &frame(60, 1), 4096);
    bench.transmit(TX_BUFFERS + 0x1000, &[0; 11], &[], 4096);
    bench.transmit(TX_BUFFERS + 0x2000, &[0; 12], &frame(60, 2), 4096);
    bench.run();
    assert_eq!(bench.port.collect(), [frame(60, 1)], "what came before is sent");
    assert_eq!(
        bench.state.tx.as_ref().unwrap().fault,
        Some(Fault::NoHeader { len: 11 })
    );
    assert_eq!(bench.stat(|s| &s.broken_virtqueues), 1);
    assert_eq!(
        bench.run(),
        Standings {
            to_switch: Standing::Idle,
            to_guest: Standing::Idle
        }
    );
    bench.assert_all_mbufs_home();
}

#[test]
fn a_half_done_checksum_passes_or_is_completed() {
    let header = [1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 0, 0];
    let mut bench = Bench::new(V1 | CSUM);
    bench.transmit(TX_BUFFERS, &header, &frame(60, 1), 4096);
    bench.run();
    let partial = Checksum::Partial { start: 34, offset: 6 };
    let on_the_switch = bench.port.switch(|switch| switch.sent.pop_front()).unwrap();
    assert_eq!(on_the_switch.checksum(), partial);
    // Back to the same guest, which takes it as it is.
    bench.port.switch(|switch| switch.frames.push_back(on_the_switch));
    let at = bench.offer_rx(1, 1600);
    bench.run();
    assert_eq!(peek(&bench.memory, at, 10), header[..10]);
    assert_eq!(peek(&bench.memory, at + 12, 60), frame(60, 1));
    // A guest without GUEST_CSUM gets it completed.
    let mut plain = Bench::new(V1);
    plain.port.switch(|switch| {
        let mut mbuf = switch.buffers.frame(&frame(60, 1));
        mbuf.set_checksum(partial);
        switch.frames.push_back(mbuf);
    });
    let at = plain.offer_rx(1, 1600);
    plain.run();
    let got = peek(&plain.memory, at, 72);
    assert_eq!(got[..10], [0; 10]);
    assert_ne!(got[12 + 40..12 + 42], frame(60, 1)[40..42]);
    assert_eq!(got[12..12 + 40], frame(60, 1)[..40]);
    assert_eq!(got[12 + 42..], frame(60, 1)[42..]);
}

#[test]
fn a_driver_that_is_not_ready_finds_no_stale_frames() {
    let mut bench = Bench::new(V1);
    for i in 0..100 {
        bench.port.deliver(&frame(60, i));
    }
    bench.run();
    assert!(!bench.state.seats[0].inbox.is_empty(), "some frames are in hand");
    bench.state.forget_frames();
    bench.state.rx.as_mut().unwrap().enabled = false;
    bench.port.deliver(&frame(60, 200));
    bench.run();
    assert_eq!(bench.stat(|s| &s.rx_not_ready), 101);
    bench.state.rx.as_mut().unwrap().enabled = true;
    bench.port.deliver(&frame(60, 201));
    let at = bench.offer_rx(1, 1600);
    bench.run();
    assert_eq!(peek(&bench.memory, at + 12, 60), frame(60, 201));
    bench.assert_all_mbufs_home();
}

#[test]
fn without_a_switch_frames_wait_or_go_nowhere() {
    let mut bench = Bench::new(V1);
    let seats = bench.state.unseat();
    bench.transmit(TX_BUFFERS, &[0; 12], &frame(60, 1), 4096);
    bench.run();
    assert_eq!(bench.tx.used_index(), 0, "a switch may answer any moment");
    bench.state.unplugged = true;
    bench.run();
    assert_eq!(bench.tx.used_index(), 1, "there is none");
    bench.state.seats = seats;
    bench.transmit(TX_BUFFERS, &[0; 12], &frame(60, 2), 4096);
    bench.run();
    assert_eq!(bench.port.collect(), [frame(60, 2)]);
}

#[test]
fn one_pump_serves_several_queue_pairs() {
    let mut bench = Bench::new(V1);
    let other = Loopback::new(10);
    bench.state.seats.push(Seat::new(1, other.clone()));
    let at = bench.offer_rx(2, 1600);
    bench.port.deliver(&frame(60, 1));
    other.deliver(&frame(60, 2));
    bench.run();
    assert_eq!(peek(&bench.memory, at + 12, 60), frame(60, 1));
    assert_eq!(peek(&bench.memory, at + 1612, 60), frame(60, 2));
    bench.assert_all_mbufs_home();
    assert!(
        other.switch(|switch| switch.buffers.complete()),
        "its mbuf stays with it"
    );
}

#[test]
fn every_page_written_is_logged() {
    let mut bench = Bench::new(MERGEABLE);
    let (log, file) = dirty_log(END / 4096);
    bench.state.rx.as_mut().unwrap().log = Some(log);
    bench.rx.offer(&[(0x3_0000, 12, true), (0x3_5ff0, 0x20, true)]);
    bench.rx.offer(&[(0x3_8000, 0x2000, true)]);
    bench.port.deliver(&frame(100, 1));
    bench.run();
    // 12 + 32 bytes go to the first chain, the other 68 into the first page of the second.
    assert_eq!(dirty_pages(&file), [0x30, 0x35, 0x36, 0x38]);
}

#[test]
fn the_guest_is_interrupted_once_a_batch() {
    let mut bench = Bench::new(V1);
    for i in 0..32 {
        bench.port.deliver(&frame(60, i));
    }
    bench.offer_rx(32, 128);
    bench.run();
    assert_eq!(bench.call.read(), Ok(1));
    assert_eq!(bench.stat(|s| &s.calls), 1);
    bench.rx.poke16(bench.rx.available_ring(), 1);
    bench.port.deliver(&frame(60, 0));
    bench.offer_rx(1, 128);
    bench.run();
    assert!(bench.call.read().is_err(), "the driver asked for none");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any frames, cut into any pieces, echoed by the switch into buffers of any size: what is received is what was
    /// sent, for as far as it fits, in order.
    #[test]
    fn what_is_sent_is_what_is_received(
        frames in proptest::collection::vec((14usize..1600, 1usize..2000, any::<u8>()), 1..40),
        buffer in 64u32..3000,
        mergeable: bool,
    ) {
        let mut bench = Bench::new(if mergeable { MERGEABLE } else { V1 });
        bench.port.switch(|switch| switch.echo = true);
        for (len, piece, salt) in frames {
            let bytes = frame(len, salt);
            bench.transmit(TX_BUFFERS, &[0; 12], &bytes, piece.max(len / 100 + 1));
            let count = if mergeable { u64::from((len as u32 + 12).div_ceil(buffer)) } else { 1 };
            let before = bench.rx.used_index();
            let fits = mergeable || len as u32 + 12 <= buffer;
            if mergeable || bench.rx.available == before {
                bench.offer_rx(count, buffer);
            }
            bench.run();
            let used = bench.rx.used();
            prop_assert_eq!(used.len() as u64, if fits { count } else { 0 });
            let written: usize = used.iter().map(|&(_, len)| len as usize).sum();
            if fits {
                prop_assert_eq!(written, len + 12);
                prop_assert_eq!(peek(&bench.memory, RX_BUFFERS + 12, len), bytes);
            }
        }
        bench.assert_all_mbufs_home();
    }
}
