//! A client that writes garbage on its rings: counted, ignored, in the end parted with; nobody else notices.

use std::path::PathBuf;
use std::time::Duration;

use dpdk_sys::{RTE_MBUF_F_RX_L4_CKSUM_NONE, RTE_MBUF_F_RX_LRO};
use vswitch_common::port::QUOTA;
use vswitch_common::port::message::Reason;
use vswitch_common::stats::Counter;
use vswitch_tests::bystanders::Bystanders;
use vswitch_tests::frames::{BROADCAST, mac};
use vswitch_tests::{Bare, Frame, Switch, eventually, pcap, wait};

/// Frames a second each way between the two that must not notice, and for how long.
const PACE: u64 = 20_000;
const SECONDS: u64 = 2;

/// `hostile` on port 1 does its worst beside a pair on 2 and 3; `victim` is on 4. In the end every mbuf is back.
fn beside_traffic(act: impl FnOnce(&Switch, &mut Bare, &mut Bare)) {
    beside_traffic_of(SECONDS, act);
}

/// The same where it takes its time.
fn beside_traffic_of(seconds: u64, act: impl FnOnce(&Switch, &mut Bare, &mut Bare)) {
    let switch = Switch::with_ports(&[1, 2, 3, 4]);
    let free = switch.free_mbufs();
    let bystanders = Bystanders::start(&switch, [2, 3], PACE, seconds);
    let mut victim = Bare::attached(&switch, 4);
    let mut hostile = Bare::attached(&switch, 1);
    act(&switch, &mut hostile, &mut victim);
    let pair = bystanders.finish_undisturbed();
    hostile.kill();
    // The port is as good as new for the next one.
    let mut next = Bare::attached(&switch, 1);
    let frame = Frame::marked(BROADCAST, mac(1), 9, 99);
    next.send(std::slice::from_ref(&frame));
    assert_eq!(
        victim.collect(64, Duration::from_millis(100)).last(),
        Some(&frame)
    );
    drop((pair, victim, next));
    switch.wait_for_free_mbufs(free);
}

fn bad(switch: &Switch) -> u64 {
    switch.count("dpdkr1", Counter::RxBadMbuf)
}

fn frame_to(to: u8) -> Frame {
    Frame::marked(mac(to), mac(1), to, 128)
}

/// Writes `frame` into an mbuf of `client`; its address.
#[track_caller]
fn written(client: &mut Bare, frame: &Frame) -> u64 {
    let address = client.take(1)[0];
    client.ok(&format!("write {address} {frame}"));
    address
}

#[test]
fn wrong_pointers() {
    beside_traffic(|switch, hostile, _| {
        let own = hostile.take(1)[0];
        let wrong = [
            1,
            0x10,
            u64::MAX,
            u64::MAX - 7,
            own + 1,
            own + 8,
            own + 64,
            own + 2048,
            own - 128,
            own ^ 1 << 40,
            own | 1 << 63,
            own & !0xfff_ffff,
        ];
        for (i, ring) in ["tx", "free"].into_iter().enumerate() {
            hostile.push(ring, &wrong);
            switch.wait_for_count("dpdkr1", Counter::RxBadMbuf, ((i + 1) * wrong.len()) as u64);
        }
        assert_eq!(switch.count("dpdkr1", Counter::RxPackets), 0);
        switch.wait_for_log("wrong entries on its rings");
        // It is counted, not punished: what is right still passes.
        hostile.send(&[frame_to(0x61)]);
        switch.wait_for_count("dpdkr1", Counter::RxPackets, 1);
    });
}

#[test]
fn somebody_elses_mbuf() {
    beside_traffic(|switch, hostile, victim| {
        let frame = Frame::marked(BROADCAST, mac(4), 4, 500);
        let theirs = written(victim, &frame);
        hostile.push("tx", &[theirs]);
        hostile.push("free", &[theirs]);
        switch.wait_for_count("dpdkr1", Counter::RxBadMbuf, 2);
        // Its owner has it still.
        victim.push("tx", &[theirs]);
        assert_eq!(hostile.receive(1), [frame]);
    });
}

#[test]
fn the_same_mbuf_twice() {
    beside_traffic(|switch, hostile, victim| {
        let frame = Frame::marked(BROADCAST, mac(1), 4, 500);
        let address = written(hostile, &frame);
        hostile.push("tx", &[address, address, address]);
        switch.wait_for_count("dpdkr1", Counter::RxBadMbuf, 2);
        hostile.push("free", &[address]);
        switch.wait_for_count("dpdkr1", Counter::RxBadMbuf, 3);
        victim.expect(&[frame]);
    });
}

/// Offsets and lengths beyond the buffer are cut to it.
#[test]
fn lengths_that_lie() {
    beside_traffic(|switch, hostile, victim| {
        let frame = Frame::marked(BROADCAST, mac(1), 1, 200);
        for (fields, counter, port) in [
            (
                "data_off=65535 data_len=65535 pkt_len=4294967295",
                Counter::RxDropMalformed,
                1,
            ),
            (
                "data_off=2170 data_len=100 pkt_len=100",
                Counter::RxDropMalformed,
                1,
            ),
            ("data_len=0 pkt_len=1000", Counter::RxDropMalformed, 1),
            ("data_len=65535 pkt_len=60", Counter::TxDropTooLong, 4),
        ] {
            let name = format!("dpdkr{port}");
            let before = switch.count(&name, counter);
            let address = written(hostile, &frame);
            hostile.ok(&format!("scribble {address} {fields}"));
            hostile.push("tx", &[address]);
            switch.wait_for_count(&name, counter, before + 1);
        }
        // The whole length of a single segment is what the segment has.
        let address = written(hostile, &frame);
        hostile.ok(&format!("scribble {address} pkt_len=9 nb_segs=0"));
        hostile.push("tx", &[address]);
        victim.expect(&[frame]);
        assert_eq!(bad(switch), 0);
    });
}

#[test]
fn chains_that_lie() {
    beside_traffic(|switch, hostile, victim| {
        let theirs = victim.take(1)[0];
        let own = hostile.take(40);
        let frame = Frame::marked(BROADCAST, mac(1), 1, 100);
        let mut expected = 0;
        let mut chain = |hostile: &mut Bare, links: &[(u64, u64)], segments: u64| {
            hostile.ok(&format!("write {} {frame}", links[0].0));
            for (from, to) in links {
                hostile.ok(&format!("scribble {from} next={to}"));
            }
            hostile.ok(&format!("scribble {} nb_segs={segments}", links[0].0));
            hostile.push("tx", &[links[0].0]);
            expected += 1;
            switch.wait_for_count("dpdkr1", Counter::RxBadMbuf, expected);
        };
        chain(hostile, &[(own[0], own[0])], 2);
        chain(hostile, &[(own[1], own[2]), (own[2], own[1])], 60_000);
        chain(hostile, &[(own[3], theirs)], 2);
        chain(hostile, &[(own[4], 0xdead_beef)], 2);
        chain(hostile, &[(own[5], 0)], 5);
        // Longer than a frame may be, all links sound.
        let long: Vec<(u64, u64)> = own[6..].windows(2).map(|w| (w[0], w[1])).collect();
        let more = hostile.take(10);
        let joined: Vec<(u64, u64)> = long
            .into_iter()
            .chain(std::iter::once((own[39], more[0])))
            .chain(more.windows(2).map(|w| (w[0], w[1])))
            .collect();
        chain(hostile, &joined, 44);
        victim.expect_nothing();
        victim.push("free", &[theirs]);
        assert_eq!(
            switch.count("dpdkr4", Counter::RxBadMbuf),
            0,
            "its owner has it still"
        );
    });
}

/// A sound chain is one frame.
#[test]
fn an_honest_chain_passes() {
    beside_traffic(|switch, hostile, victim| {
        let parts: Vec<Frame> = (0..3).map(|n| Frame::marked(BROADCAST, mac(1), n, 400)).collect();
        let own: Vec<u64> = parts.iter().map(|p| written(hostile, p)).collect();
        hostile.ok(&format!(
            "scribble {} next={} nb_segs=3 pkt_len=1200",
            own[0], own[1]
        ));
        hostile.ok(&format!("scribble {} next={}", own[1], own[2]));
        hostile.push("tx", &[own[0]]);
        let whole: Vec<u8> = parts.iter().flat_map(|p| p.bytes.clone()).collect();
        victim.expect(&[Frame::new(whole)]);

        // One that does not fit an mbuf stays a chain, and goes where the MTU lets it.
        switch.vsctl("set Interface dpdkr4 mtu_request=9000");
        let parts: Vec<Frame> = (0..3)
            .map(|n| Frame::marked(BROADCAST, mac(1), n, 1500))
            .collect();
        let own: Vec<u64> = parts.iter().map(|p| written(hostile, p)).collect();
        let chain = |hostile: &mut Bare| {
            hostile.ok(&format!("scribble {} next={} nb_segs=3", own[0], own[1]));
            hostile.ok(&format!("scribble {} next={}", own[1], own[2]));
            hostile.push("tx", &[own[0]]);
        };
        chain(hostile);
        let whole: Vec<u8> = parts.iter().flat_map(|p| p.bytes.clone()).collect();
        victim.expect(&[Frame::new(whole)]);
        // All three are gone with it.
        hostile.push("free", &own);
        switch.wait_for_count("dpdkr1", Counter::RxBadMbuf, 3);
    });
}

/// What a client says of how its frame is to be cut is believed as far as the frame's own bytes bear it out: what is no TCP
/// frame is cut for nobody, and no longer than it is.
#[test]
fn large_frames_that_lie() {
    beside_traffic(|switch, hostile, victim| {
        wire(switch);
        let frame = Frame::marked(BROADCAST, mac(1), 7, 1000);
        for (size, headers) in [(100u32, 54u32), (1, 54), (0, 0), (65_535, 54), (100, 65_535)] {
            let address = written(hostile, &frame);
            // A half-done checksum at 34 + 16, and TCP over IPv4.
            let (place, sizes) = (34 | 16 << 16, size | headers << 16);
            hostile.ok(&format!(
                "scribble {address} ol_flags={} meta={place} meta4={sizes} meta8=1",
                RTE_MBUF_F_RX_LRO | RTE_MBUF_F_RX_L4_CKSUM_NONE
            ));
            hostile.push("tx", &[address]);
            assert_eq!(victim.receive(1)[0].bytes, frame.bytes);
        }
        // The first alone was to be cut. The others were taken for what they are, with a checksum to complete.
        switch.wait_for_count("wire", Counter::TxPackets, 4);
        assert_eq!(switch.count("wire", Counter::TxDropTooLong), 1);
        assert_eq!(bad(switch), 0);
        switch.vsctl("del-port wire");
    });
}

/// A port `wire` to a device, which writes what it sends into a file.
fn wire(switch: &Switch) -> PathBuf {
    let output = switch.scratch().join("out.pcap");
    let empty = switch.scratch().join("in.pcap");
    pcap::write(&empty, &[]);
    switch.vsctl(&format!(
        "add-port br0 wire -- set Interface wire type=dpdk \
         options:dpdk-devargs=\"net_pcap0,rx_pcap={},tx_pcap={}\"",
        empty.display(),
        output.display()
    ));
    output
}

/// Everything in a header that a driver would follow is rewritten before one sees it.
#[test]
fn scribbled_headers_reach_no_driver() {
    beside_traffic(|switch, hostile, _| {
        let output = wire(switch);
        let scribbles = [
            "buf_addr=3735928559 buf_iova=3735928559",
            "pool=1",
            "refcnt=0",
            "refcnt=77",
            "next=3735928559 nb_segs=1",
            "buf_len=0 priv_size=65535",
            "ol_flags=18446744073709551615 meta=4294967295",
            "ol_flags=18446744073709551615 meta=65534",
        ];
        let mut expected = Vec::new();
        for (n, fields) in scribbles.iter().enumerate() {
            let frame = Frame::marked([2, 0, 0, 0, 9, 9], mac(1), n as u8, 300 + n);
            let address = written(hostile, &frame);
            hostile.ok(&format!("scribble {address} {fields}"));
            hostile.push("tx", &[address]);
            expected.push(frame);
            // And given back unused, to be handed out again.
            let address = hostile.take(1)[0];
            hostile.ok(&format!("scribble {address} {fields}"));
            hostile.push("free", &[address]);
        }
        let done = wait::within(wait::PATIENCE, || pcap::read(&output).len() >= expected.len());
        assert!(done, "{}", switch.counters());
        assert_eq!(pcap::read(&output), expected);
        assert_eq!(bad(switch), 0);
        switch.vsctl("del-port wire");
    });
}

#[test]
fn garbage_indices() {
    for (ring, end, by) in [
        ("tx", "prod", 5000_i32),
        ("tx", "prod", -1),
        ("free", "prod", 100_000),
        ("rx", "cons", 3000),
        ("rx", "cons", -7),
        ("alloc", "cons", 777),
        ("tx", "cons", 1),
        ("alloc", "prod", 9999),
    ] {
        beside_traffic(|switch, hostile, victim| {
            hostile.ok(&format!("index {ring} {end} {by}"));
            let flood = Frame::marked(BROADCAST, mac(4), 1, 60);
            victim.send(&vec![flood; 50]);
            if end == "prod" && by.abs() > 4096 && ring != "alloc" {
                let counted = wait::within(wait::PATIENCE, || switch.count("dpdkr1", Counter::RxBadRing) > 0);
                assert!(counted, "{}", switch.counters());
            }
            switch.wait_for_count("dpdkr4", Counter::RxPackets, 50);
        });
    }
}

/// An index moved within the ring's size makes old entries look new: none of them is the client's any more.
#[test]
fn stale_entries_offered_again() {
    beside_traffic(|switch, hostile, victim| {
        let frames: Vec<Frame> = (0..200).map(|n| Frame::marked(mac(4), mac(1), n, 60)).collect();
        victim.send(&[Frame::marked(mac(1), mac(4), 0, 60)]);
        hostile.receive(1);
        hostile.send(&frames);
        victim.receive(200);
        hostile.ok("index tx prod 800");
        let seen = wait::within(wait::PATIENCE, || bad(switch) > 0);
        assert!(seen, "{}", switch.counters());
    });
}

#[test]
fn one_that_persists_is_parted_with() {
    beside_traffic(|switch, hostile, _| {
        hostile.push("tx", &vec![0xbad_f00d; 3000]);
        let told = hostile.ok("event 5000");
        assert!(
            told.starts_with(&format!("evicted {} ", Reason::Misbehaved as u32)),
            "{told}"
        );
        switch.wait_for_log("the client is detached");
        assert_eq!(switch.count("dpdkr1", Counter::Evicted), 1);
        let ended = wait::within(Duration::from_secs(5), || hostile.process().ended().is_some());
        assert!(ended, "a process that has to go is ended if it does not go");
    });
}

/// A few wrong entries at a time end the attachment as well, and the log says so ten times and not each second. The
/// next one on the port begins anew.
#[test]
fn one_that_is_patient_is_parted_with_as_well() {
    beside_traffic_of(7, |switch, hostile, _| {
        let named = || switch.log().matches("wrong entries on its rings").count();
        for n in 1..=5 {
            hostile.push("tx", &[0xbad_f00d; 180]);
            switch.wait_for_count("dpdkr1", Counter::RxBadMbuf, n * 180);
            std::thread::sleep(Duration::from_millis(1100));
        }
        assert!((2..=4).contains(&named()), "{}", switch.log());
        assert_eq!(switch.count("dpdkr1", Counter::Evicted), 0);
        hostile.push("tx", &[0xbad_f00d; 180]);
        // It hears it at once: soon after, it is killed
        hostile.tell("event 5000");
        switch.wait_for_log("1080 wrong ring entries; the client is detached");
        assert!(hostile.answer(wait::PATIENCE).unwrap().starts_with("evicted "));
        eventually("it is counted", || switch.count("dpdkr1", Counter::Evicted) == 1);
    });
}

#[test]
fn endless_doorbells() {
    beside_traffic(|_, hostile, _| {
        let bells: u32 = hostile.ok("ring-bells 200000").parse().unwrap();
        assert!(bells > 0, "it has the end of one, at least");
    });
}

/// One that takes and never gives back has its share, and no more.
#[test]
fn a_hoarder_gets_its_share_only() {
    beside_traffic(|switch, hostile, victim| {
        let before = switch.free_mbufs();
        let quota = u64::from(QUOTA);
        hostile.take(QUOTA as usize - 10);
        let taken = before - switch.free_mbufs().min(before);
        assert!(taken <= quota + 256, "{taken} of {quota}");
        victim.send(&vec![Frame::marked(mac(1), mac(4), 1, 60); 50]);
        let dropped = wait::within(wait::PATIENCE, || {
            switch.count("dpdkr1", Counter::TxDropQuota) >= 40
        });
        assert!(dropped, "{}", switch.counters());
        let left = hostile.collect(64, Duration::from_millis(50)).len();
        assert!(left <= 10, "{left}");
    });
}
