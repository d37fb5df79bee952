//! Numbered frames through the switch between two clients: none lost, doubled, late or altered.

use vswitch_common::stats::Counter;
use vswitch_tests::bare::{Traffic, exchange};
use vswitch_tests::blast::Blast;
use vswitch_tests::{Bare, Switch, eventually};

#[test]
fn a_million_frames_both_ways() {
    const COUNT: u64 = 1_000_000;
    let switch = Switch::with_ports(&[1, 2]);
    let free = switch.free_mbufs();
    let (mut one, mut two) = (Bare::attached(&switch, 1), Bare::attached(&switch, 2));
    let (a, b) = exchange(&mut one, &mut two, &Traffic::both_ways(COUNT));
    println!(
        "{COUNT} frames each way in {} ms, longest gap {} us",
        a.ms,
        a.gap_us.max(b.gap_us)
    );
    a.assert_all(COUNT);
    b.assert_all(COUNT);
    switch.assert_frames_accounted();
    // Acknowledgements come on top.
    for port in ["dpdkr1", "dpdkr2"] {
        assert!(switch.count(port, Counter::RxPackets) >= COUNT);
        assert_eq!(
            switch.port(port).dropped(false) + switch.port(port).dropped(true),
            0
        );
    }
    drop((one, two));
    switch.wait_for_free_mbufs(free);
}

#[test]
fn several_queue_pairs_on_two_threads() {
    const COUNT: u64 = 400_000;
    let switch = Switch::with_ports(&[1, 2]);
    let mask = if std::thread::available_parallelism().is_ok_and(|n| n.get() > 1) {
        "3"
    } else {
        "1"
    };
    switch.vsctl(&format!("set Open_vSwitch . other_config:pmd-cpu-mask=0x{mask}"));
    let free = switch.free_mbufs();
    let mut one = Bare::attached_queues(&switch, 1, 4);
    let mut two = Bare::attached_queues(&switch, 2, 4);
    let (a, b) = exchange(&mut one, &mut two, &Traffic::both_ways(COUNT));
    println!(
        "{COUNT} frames each way in {} ms by queues {:b} and {:b}",
        a.ms, a.queues, b.queues
    );
    // The streams are one per queue pair, and each keeps its order.
    a.assert_all(COUNT);
    b.assert_all(COUNT);
    if mask == "3" {
        assert!(
            a.queues.count_ones() >= 2 && b.queues.count_ones() >= 2,
            "{a:?} {b:?}"
        );
    }
    switch.assert_frames_accounted();
    drop((one, two));
    switch.wait_for_free_mbufs(free);
}

/// Short frames only, long frames only, and the one window of a slow taker.
#[test]
fn lengths_and_windows() {
    let switch = Switch::with_ports(&[1, 2]);
    let (mut one, mut two) = (Bare::attached(&switch, 1), Bare::attached(&switch, 2));
    for (min, max, window) in [(60, 60, 256), (1514, 1514, 64), (34, 2048 - 34, 1)] {
        // Beyond 1522 bytes the port's MTU has to be raised.
        for port in [1, 2] {
            switch.vsctl(&format!("set Interface dpdkr{port} mtu_request=2026"));
        }
        let count = if window == 1 { 2_000 } else { 50_000 };
        let (mut a, mut b) = Traffic::both_ways(count);
        for traffic in [&mut a, &mut b] {
            (traffic.min, traffic.max, traffic.window) = (min, max, window);
        }
        let (a, b) = exchange(&mut one, &mut two, &(a, b));
        a.assert_own(count);
        b.assert_own(count);
    }
    switch.assert_frames_accounted();
}

/// More than the receiver takes: what is missing was counted as dropped, and what came is in order and whole.
#[test]
fn what_overflows_is_counted() {
    const COUNT: u64 = 200_000;
    let switch = Switch::with_ports(&[1, 2]);
    let free = switch.free_mbufs();
    let (mut one, mut two) = (Bare::attached(&switch, 1), Bare::attached(&switch, 2));
    // Teaches the switch where mac(2) is.
    let hello = vswitch_tests::Frame::marked(
        vswitch_tests::frames::mac(1),
        vswitch_tests::frames::mac(2),
        0,
        60,
    );
    two.send(std::slice::from_ref(&hello));
    one.expect(&[hello]);
    let flood = Traffic {
        send: COUNT,
        window: 0,
        ..Traffic::default()
    };
    // The receiver starts when the flood is over: it finds what its ring holds.
    one.start_traffic(&flood);
    assert_eq!(one.report().sent, COUNT);
    switch.wait_for_count("dpdkr1", Counter::RxPackets, COUNT);
    let port = switch.port("dpdkr2");
    let (sent, dropped) = (
        port.get(Counter::TxPackets),
        port.get(Counter::TxDropFull) + port.get(Counter::TxDropQuota),
    );
    assert!(dropped > COUNT / 2, "{}", switch.counters());
    two.start_traffic(&Traffic {
        receive: sent,
        window: 0,
        seconds: 5,
        ..flood.peer()
    });
    let report = two.report();
    assert_eq!(
        (report.received, report.doubled, report.late, report.altered),
        (sent, 0, 0, 0)
    );
    assert_eq!(sent + dropped, COUNT);
    switch.assert_frames_accounted();
    drop((one, two));
    switch.wait_for_free_mbufs(free);
}

/// A blast is of as many addresses as asked for, and what the client says it moved is what the switch has seen.
#[test]
fn a_blast_is_what_was_asked_for() {
    let switch = Switch::with_ports(&[1, 2]);
    let (mut one, mut two) = (Bare::attached(&switch, 1), Bare::attached(&switch, 2));
    two.start_blast(None);
    one.start_blast(Some(&Blast {
        source: [6, 0, 0, 0, 0, 0],
        count: 100,
        first: 7,
        rate: 20_000,
        ..Blast::default()
    }));
    eventually("1,000 frames have come", || {
        switch.count("dpdkr2", Counter::TxPackets) > 1000
    });
    let sent = one.stop_blast().sent;
    switch.wait_for_count("dpdkr1", Counter::RxPackets, sent);
    eventually("all are taken", || {
        switch.count("dpdkr2", Counter::TxPackets) == sent
    });
    assert_eq!(two.stop_blast().received, sent);
    assert_eq!(
        switch.count("dpdkr1", Counter::Learned),
        100,
        "{}",
        switch.counters()
    );
}
