//! Shares and limits: who floods, hoards or stops has its own part, and the others have theirs.

use dpdk_vswitchd::cpus;
use nix::sys::signal::Signal;
use vswitch_common::port::{ALLOC_LEVEL, QUOTA};
use vswitch_common::stats::Counter;
use vswitch_tests::bare::Traffic;
use vswitch_tests::blast::Blast;
use vswitch_tests::frames::{BROADCAST, mac};
use vswitch_tests::{Bare, Frame, Switch, eventually};

/// A pair on ports 1 and 2 that know each other.
fn pair(switch: &Switch) -> [Bare; 2] {
    let mut pair = [1, 2].map(|n| Bare::attached(switch, n));
    let hello = Frame::marked(mac(1), mac(2), 0, 60);
    pair[1].send(std::slice::from_ref(&hello));
    pair[0].expect(&[hello]);
    let hello = Frame::marked(mac(2), mac(1), 0, 60);
    pair[0].send(std::slice::from_ref(&hello));
    pair[1].expect(&[hello]);
    pair
}

/// `count` frames each way, none of which is lost, whatever else comes in between.
#[track_caller]
fn exchange(pair: &mut [Bare; 2], count: u64) {
    let plan = Traffic::both_ways(count).0;
    pair[0].start_traffic(&plan);
    pair[1].start_traffic(&plan.peer());
    pair.iter_mut()
        .for_each(|client| client.report().assert_own(count));
}

fn flood(to: [u8; 6], from: u8) -> Traffic {
    Traffic {
        source: mac(from),
        destination: to,
        send: u64::MAX,
        receive: u64::MAX,
        min: 60,
        max: 60,
        window: 0,
        seconds: 60,
        ..Traffic::default()
    }
}

/// One that floods a receiver which takes nothing, and another that broadcasts as fast as its storm limit lets it.
#[test]
fn a_pair_beside_floods_loses_nothing() {
    let switch = Switch::with_ports(&[1, 2, 3, 4, 5]);
    switch.vsctl("set Interface dpdkr5 other_config:storm-limit=500");
    let free = switch.free_mbufs();
    let mut pair = pair(&switch);
    let mut stopped = Bare::attached(&switch, 4);
    let [mut flooder, mut storm] = [3, 5].map(|n| Bare::attached(&switch, n));
    stopped.send(&[Frame::marked(BROADCAST, mac(4), 0, 60)]);
    flooder.receive(1);
    pair.iter_mut().for_each(|client| _ = client.receive(1));
    stopped.signal(Signal::SIGSTOP);
    flooder.start_traffic(&flood(mac(4), 3));
    storm.start_traffic(&flood(BROADCAST, 5));
    exchange(&mut pair, 100_000);
    assert!(
        switch.count("dpdkr4", Counter::TxDropFull) > 0,
        "{}",
        switch.counters()
    );
    assert!(
        switch.count("dpdkr5", Counter::RxDropStorm) > 0,
        "{}",
        switch.counters()
    );
    // Each cause is named, and once.
    for cause in [
        "dpdkr4 does not take its frames",
        "dpdkr5 floods more than its storm-limit",
    ] {
        switch.wait_for_log(cause);
        assert_eq!(switch.log().matches(cause).count(), 1, "{}", switch.log());
    }
    stopped.kill();
    flooder.kill();
    storm.kill();
    switch.assert_frames_accounted();
    drop((pair, stopped, flooder, storm));
    switch.wait_for_free_mbufs(free);
}

/// Every client but a pair keeps all that it can get: the pool has some left, the pair loses nothing, and one more
/// than the pool has shares for is refused.
#[test]
fn hoarders_cannot_empty_the_pool() {
    const HOARDERS: [u16; 7] = [3, 4, 5, 6, 7, 8, 9];
    let switch = Switch::builder().memory(64).start();
    switch.add_bridge("br0", &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    let free = switch.free_mbufs();
    let mut pair = pair(&switch);
    let mut hoarders = HOARDERS.map(|n| Bare::attached(&switch, n));
    let mut late = Bare::start(&switch, "late");
    let refusal = late.attach(10, 1).unwrap_err();
    assert!(
        refusal.contains("mbufs are too few") && refusal.contains("dpdk-socket-mem"),
        "{refusal}"
    );
    for hoarder in &mut hoarders {
        hoarder.take(QUOTA as usize - 32);
    }
    let left = switch.free_mbufs();
    println!("{left} of {free} mbufs are left");
    assert!(left >= free / 4, "{left} of {free}");
    exchange(&mut pair, 50_000);
    // Who leaves makes room for another.
    hoarders[0].kill();
    eventually("its share is free", || {
        Bare::start(&switch, "next").attach(10, 1).is_ok()
    });
    drop((pair, hoarders, late));
    switch.wait_for_free_mbufs(free);
}

#[test]
fn a_storm_is_limited_and_the_rest_is_not() {
    let switch = Switch::with_ports(&[1, 2]);
    let mut pair = pair(&switch);
    let broadcasts = vec![Frame::marked(BROADCAST, mac(1), 1, 60); 60];
    pair[0].send(&broadcasts);
    pair[1].receive(60);
    switch.vsctl("set Interface dpdkr1 other_config:storm-limit=1 other_config:storm-burst=5");
    // One a second on top of the burst: the machine is not that slow.
    pair[0].send(&[&broadcasts[..], &[Frame::marked(mac(2), mac(1), 2, 60)]].concat());
    let frames = pair[1].collect(60, std::time::Duration::from_millis(300));
    let limited = frames.iter().filter(|f| f.destination() == BROADCAST).count();
    assert!((5..40).contains(&limited), "{limited}");
    assert_eq!(frames.last().map(Frame::destination), Some(&mac(2)[..]));
    assert_eq!(switch.count("dpdkr1", Counter::RxDropStorm), 60 - limited as u64);
    // An address that nobody has is flooded, too.
    pair[0].send(&vec![Frame::marked(mac(77), mac(1), 3, 60); 60]);
    eventually("unknown destinations are limited", || {
        switch.count("dpdkr1", Counter::RxDropStorm) > 80
    });
    switch.assert_frames_accounted();
    eventually("the column shows it", || {
        switch
            .get("Interface", "dpdkr1", "statistics:rx_drop_storm")
            .parse()
            .is_ok_and(|n: u64| n > 80)
    });

    // A value that makes no sense is named, limits nothing, and the port goes on.
    let complaint = switch.vsctl_complaint("set Interface dpdkr1 other_config:storm-limit=lots");
    assert!(
        complaint.is_empty() || complaint.contains("storm-limit=lots"),
        "{complaint}"
    );
    assert!(
        switch
            .get("Interface", "dpdkr1", "error")
            .contains("other_config:storm-limit=lots")
    );
    pair[1].collect(60, std::time::Duration::from_millis(100));
    pair[0].send(&broadcasts);
    pair[1].receive(60);
    switch.vsctl("remove Interface dpdkr1 other_config storm-limit -- remove Interface dpdkr1 other_config storm-burst");
    assert_eq!(switch.get("Interface", "dpdkr1", "error"), "[]");
}

/// The stock columns: kilobits and kilopackets a second, and at once.
#[test]
fn ingress_is_policed_by_the_stock_columns() {
    let switch = Switch::with_ports(&[1, 2]);
    let mut pair = pair(&switch);
    // 8 kbit/s and 80 kbit at once: 10 frames with 1000 bytes behind their header, and one more a second.
    switch.vsctl("set Interface dpdkr1 ingress_policing_rate=8 ingress_policing_burst=80");
    pair[0].send(&vec![Frame::marked(mac(2), mac(1), 1, 1014); 60]);
    let came = pair[1].collect(60, std::time::Duration::from_millis(300)).len();
    assert!((10..45).contains(&came), "{came}");
    assert_eq!(switch.count("dpdkr1", Counter::RxDropPolicing), 60 - came as u64);
    switch.wait_for_log("dpdkr1 sends more than its ingress policing lets in");
    switch.vsctl("set Interface dpdkr1 ingress_policing_rate=0 ingress_policing_burst=0");
    pair[1].collect(60, std::time::Duration::from_millis(100));
    // A thousand packets a second, and a thousand at once; of both directions only this one.
    switch.vsctl("set Interface dpdkr1 ingress_policing_kpkts_rate=1 ingress_policing_kpkts_burst=1");
    pair[0].start_traffic(&Traffic {
        send: 20_000,
        ..flood(mac(2), 1)
    });
    pair[1].send(&vec![Frame::marked(mac(1), mac(2), 1, 60); 60]);
    eventually("most of 20,000 is too much", || {
        switch.count("dpdkr1", Counter::RxDropPolicing) > 10_000
    });
    assert_eq!(switch.count("dpdkr2", Counter::RxDropPolicing), 0);
    switch.assert_frames_accounted();
}

/// One that takes nothing is brought large and small frames, as fast as can be, by another thread than the one that takes its own: it goes on
/// sending.
#[test]
fn who_takes_nothing_goes_on_sending() {
    let switch = Switch::with_ports(&[1, 2]);
    let cpus = cpus::allowed();
    let mask = 1u64 << cpus[0] | 1 << cpus[1];
    switch.vsctl(&format!("set Open_vSwitch . other_config:pmd-cpu-mask={mask:#x}"));
    for (port, cpu) in ["dpdkr1", "dpdkr2"].iter().zip(&cpus) {
        let column = format!("other_config:pmd-rxq-affinity=\"0:{cpu}\"");
        switch.tool_ok("ovs-vsctl", &["set", "Interface", port, &column]);
    }
    let mut pair = pair(&switch);
    for _ in 0..45 {
        pair[0].ok("send-large 0 64000 1400");
    }
    let large = switch.count("dpdkr2", Counter::TxPackets);
    pair[0].start_blast(Some(&Blast {
        destination: mac(2),
        ..Blast::default()
    }));
    let frames = vec![Frame::marked(mac(1), mac(2), 1, 60); 50];
    for _ in 0..2000 {
        pair[1].send(&frames);
    }
    // One frame more made it known.
    switch.wait_for_count("dpdkr2", Counter::RxPackets, 100_001);
    pair[0].stop_blast();
    let small = switch.count("dpdkr2", Counter::TxPackets) - large;
    assert!(small < ALLOC_LEVEL.into(), "what it sends in is gone: {small}");
    let dropped = switch.count("dpdkr2", Counter::TxDropQuota);
    assert!(dropped > 0, "{}", switch.counters());
    switch.assert_frames_accounted();
}
