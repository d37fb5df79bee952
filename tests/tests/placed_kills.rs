//! Kills where they hurt most: at each step of attach, detach and every ring operation, at system calls within EAL's
//! start, in the shim between two writes to the guest's rings, and in the switch itself.

use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use vswitch_common::fault::Point;
use vswitch_common::stats::Counter;
use vswitch_tests::bare::Traffic;
use vswitch_tests::child::Child;
use vswitch_tests::frames::{BROADCAST, mac};
use vswitch_tests::guest::{Shim, Testpmd};
use vswitch_tests::traced::Traced;
use vswitch_tests::{Bare, Frame, PATIENCE, Switch, eventually, wait};

/// Points that a client passes as it attaches.
const ATTACH: [Point; 6] = [
    Point::Connected,
    Point::HelloSent,
    Point::Granted,
    Point::EalUp,
    Point::ReadySent,
    Point::Answered,
];

/// Points of a ring operation.
const RING: [Point; 4] = [
    Point::EntriesWritten,
    Point::EntriesPublished,
    Point::EntriesRead,
    Point::EntriesTaken,
];

/// The switch can still do what needs DPDK's allocator and its locks: make rings and remove them.
#[track_caller]
fn can_be_configured(switch: &Switch) {
    switch.vsctl("-t 10 add-port br0 dpdkr9 -- set Interface dpdkr9 type=dpdkr");
    switch.vsctl("-t 10 del-port dpdkr9");
}

/// How long it took to attach to `port` anew.
fn report(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let (median, longest) = (times[times.len() / 2], times[times.len() - 1]);
    println!(
        "{what}: {} kills, attached again after {median:?} (median), {longest:?} (longest)",
        times.len()
    );
}

#[test]
fn clients_killed_at_each_step_of_attach() {
    let switch = Switch::with_ports(&[1, 2]);
    let free = switch.free_mbufs();
    let mut times = Vec::new();
    for point in ATTACH {
        let mut doomed = Bare::doomed(&switch, "doomed", point, 1);
        let mut successor = Bare::start(&switch, "successor");
        doomed.start_attaching(2);
        let status = doomed.process().wait(PATIENCE);
        assert!(status.signal().is_some(), "{point:?}: {status}");
        let start = Instant::now();
        successor
            .attach(2, 1)
            .unwrap_or_else(|e| panic!("{point:?}: {e}"));
        times.push(start.elapsed());
        successor.expect_nothing();
        can_be_configured(&switch);
        successor.kill();
        switch.wait_for_free_mbufs(free);
    }
    report("steps of attach", times);
}

/// EAL's start is DPDK's own code: it is killed at its system calls, of which it makes many with a shared lock held.
#[test]
fn clients_killed_within_eal_init() {
    /// Every so many calls.
    const STRIDE: usize = 53;
    let switch = Switch::with_ports(&[1, 2]);
    let free = switch.free_mbufs();
    let mut times = Vec::new();
    for n in (1..).step_by(STRIDE) {
        let mut victim = Bare::start(&switch, "victim");
        let mut successor = Bare::start(&switch, "successor");
        let traced = Traced::stop(victim.pid());
        victim.start_attaching(2);
        if !traced.kill_at_call(n) {
            break;
        }
        victim.kill();
        let start = Instant::now();
        successor.attach(2, 1).unwrap_or_else(|e| panic!("call {n}: {e}"));
        times.push(start.elapsed());
        can_be_configured(&switch);
    }
    assert!(times.len() > 40, "an attach makes some hundred system calls");
    report("system calls of attach", times);
    let log = switch.log();
    let met: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("died while it initialised EAL and held"))
        .collect();
    println!(
        "{} of them met a lock that was held, such as: {:?}",
        met.len(),
        met.first()
    );
    assert!(met.len() > 5, "much of EAL's start goes on under a lock");
    switch.wait_for_free_mbufs(free);
}

/// A client goes through every ring operation, and dies at each step of each: nothing is lost, and nothing that was
/// for it reaches the next one.
#[test]
fn clients_killed_at_each_step_of_ring_operations() {
    let switch = Switch::with_ports(&[1, 2]);
    let free = switch.free_mbufs();
    let frames: Vec<Frame> = (0..40)
        .map(|n| Frame::marked(BROADCAST, mac(1), n, 200))
        .collect();
    let answers: Vec<String> = (0..3)
        .map(|n| Frame::marked(mac(1), mac(2), n, 60).to_string())
        .collect();
    let send = format!("send 0 {}", answers.join(" "));
    let mut times = Vec::new();
    for point in RING {
        let mut peer = Bare::attached(&switch, 1);
        for n in 1.. {
            let mut doomed = Bare::doomed(&switch, "doomed", point, n);
            let start = Instant::now();
            doomed.attach(2, 1).unwrap();
            times.push(start.elapsed());
            doomed.expect_nothing();
            peer.send(&frames);
            let script = ["receive 10 1000", "take 4", "hold 5", &send, "release", "detach"];
            let survived = script.iter().all(|line| {
                doomed.tell_if_alive(line)
                    && doomed
                        .answer_unless_dead(PATIENCE)
                        .inspect(|answer| assert!(answer.is_ok(), "{line}: {answer:?}"))
                        .is_some()
            });
            doomed.kill();
            let came = peer.collect(answers.len(), Duration::from_millis(30));
            assert!(
                came.iter().zip(&answers).all(|(f, a)| f.to_string() == *a),
                "{point:?}@{n}: {came:?}"
            );
            assert!(
                !survived || came.len() == answers.len(),
                "{point:?}@{n}: {came:?}"
            );
            if survived {
                println!("{point:?}: {} kills", n - 1);
                assert!(n > 3, "{point:?} was passed {} times only", n - 1);
                break;
            }
        }
        drop(peer);
        switch.wait_for_free_mbufs(free);
    }
    report("steps of ring operations", times);
    switch.assert_frames_accounted();
}

#[test]
fn clients_killed_at_each_step_of_detach() {
    let switch = Switch::with_ports(&[1, 2]);
    let free = switch.free_mbufs();
    for point in [Point::Detaching, Point::DetachSent] {
        let mut doomed = Bare::doomed(&switch, "doomed", point, 1);
        doomed.attach(2, 1).unwrap();
        doomed.take(20);
        doomed.tell("detach");
        assert!(doomed.process().wait(PATIENCE).signal().is_some(), "{point:?}");
        let mut successor = Bare::attached(&switch, 2);
        successor.expect_nothing();
        successor.kill();
        switch.wait_for_free_mbufs(free);
    }
}

/// A shim that dies at the same place again and again is started again (by its supervisor) and again, and its guest's traffic goes on: no
/// frame twice, none out of order, none altered.
#[test]
fn shims_killed_between_two_writes() {
    /// Deaths of a shim in each case.
    const DEATHS: usize = 3;
    let switch = Switch::with_ports(&[1, 2]);
    let mut guest = Testpmd::start(&switch, "guest", 1, "macswap", &[]);
    let mut shim = Shim::start(&switch, 2, 1, guest.socket());
    guest.forward();
    let mut client = Bare::attached(&switch, 1);
    eventually("the shim attaches", || {
        switch.count("dpdkr2", Counter::Attached) == 1
    });
    let plan = |seconds| Traffic {
        destination: mac(2),
        send: u64::MAX,
        receive: u64::MAX,
        echo: true,
        window: 0,
        rate: 5_000,
        seconds,
        ..Traffic::default()
    };
    let cases = [
        (Point::QueueReady, 2),
        (Point::ChainsTaken, 400),
        (Point::UsedWritten, 401),
        (Point::UsedPublished, 402),
        (Point::EntriesWritten, 403),
        (Point::EntriesPublished, 404),
        (Point::EntriesRead, 405),
        (Point::EntriesTaken, 406),
    ];
    for (point, n) in cases {
        shim.doom(Some((point, n)));
        let deaths = |shim: &mut Shim| shim.process().log().matches("starting another").count();
        let before = deaths(&mut shim);
        let start = Instant::now();
        shim.restart();
        client.start_traffic(&plan(3));
        eventually("it dies again and again", || deaths(&mut shim) >= before + DEATHS);
        println!(
            "{point:?}@{n}: {} shims in {:?}",
            deaths(&mut shim) - before,
            start.elapsed()
        );
        shim.doom(None);
        shim.restart();
        let report = client.report();
        assert_eq!(
            (report.doubled, report.late, report.altered),
            (0, 0, 0),
            "{point:?}: {report:?}"
        );
        assert!(report.received > 0, "{point:?}: {report:?}");
        let frame = Frame::marked(mac(2), mac(1), 0xee, 60);
        let echo = wait::within(PATIENCE, || {
            client.send(std::slice::from_ref(&frame));
            !client.collect(1, Duration::from_millis(20)).is_empty()
        });
        assert!(echo, "{point:?}: the guest is reached again");
        while !client.collect(64, Duration::from_millis(60)).is_empty() {}
    }
}

/// The switch killed within its start and within the steps of its clients: the next one finds everything in order.
#[test]
fn switches_killed_at_each_step() {
    let mut switch = Switch::with_ports(&[1, 2]);
    let free = switch.free_mbufs();
    switch.end();
    for point in [Point::SwitchEalUp, Point::Configured] {
        switch.doom(Some((point, 1)));
        let mut doomed = Child::start(&mut switch.command(), &switch.scratch().join("doomed.log"));
        let status = doomed.wait(PATIENCE);
        assert!(status.signal().is_some(), "{point:?}: {status}: {}", doomed.log());
    }
    for point in [
        Point::TurnGiven,
        Point::AttachAnswered,
        Point::ReleaseUnpublished,
        Point::Reclaimed,
        Point::Configured,
    ] {
        switch.doom(Some((point, if point == Point::Configured { 2 } else { 1 })));
        switch.restart();
        let mut client = Bare::start(&switch, "client");
        client.start_attaching(1);
        match point {
            Point::ReleaseUnpublished | Point::Reclaimed => {
                client.answer(PATIENCE).unwrap();
                client.kill();
            }
            Point::Configured => {
                switch.vsctl("--no-wait add-port br0 dpdkr5 -- set Interface dpdkr5 type=dpdkr");
            }
            _ => {}
        }
        let status = switch.wait_for_end();
        assert!(status.signal().is_some(), "{point:?}: {status}");
        drop(client);
        switch.doom(None);
        switch.restart();
        let (mut one, mut two) = (Bare::attached(&switch, 1), Bare::attached(&switch, 2));
        let frame = Frame::marked(BROADCAST, mac(1), 1, 60);
        one.send(std::slice::from_ref(&frame));
        two.expect(&[frame]);
        if point == Point::Configured {
            Bare::attached(&switch, 5);
        }
        drop((one, two));
        switch.wait_for_free_mbufs(free);
        switch.end();
    }
    switch.restart();
}
