//! Clients that die, stop, or lose their port: no buffer is lost, nobody else notices.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use vswitch_common::stats::Counter;
use vswitch_tests::bare::Traffic;
use vswitch_tests::bystanders::Bystanders;
use vswitch_tests::frames::{BROADCAST, mac};
use vswitch_tests::{Bare, Frame, Switch, eventually, wait};

/// Frames a second of the bystanders, each way.
const PACE: u64 = 20_000;

/// A client dead at rest: with empty mbufs in hand, frames in hand, frames waiting on its ring.
#[test]
fn a_client_killed_at_rest_costs_nothing() {
    let switch = Switch::with_ports(&[1, 2]);
    let free = switch.free_mbufs();
    for _ in 0..3 {
        let (mut one, mut two) = (Bare::attached(&switch, 1), Bare::attached(&switch, 2));
        two.take(100);
        let frames: Vec<Frame> = (0..80)
            .map(|n| Frame::marked(BROADCAST, mac(1), n, 1000))
            .collect();
        one.send(&frames);
        two.ok("hold 50");
        assert!(switch.free_mbufs() < free - 200);
        two.kill();
        let mut successor = Bare::attached(&switch, 2);
        successor.expect_nothing();
        one.send(&frames[..1]);
        successor.expect(&frames[..1]);
        one.kill();
        successor.kill();
        switch.wait_for_free_mbufs(free);
    }
    assert_eq!(
        switch.snapshot().pool_size,
        u64::from(dpdk_vswitchd::memory::mbufs(128))
    );
    eventually("the stats segment says so too", || {
        switch.snapshot().pool_free == free
    });
    switch.assert_frames_accounted();
}

/// A client killed at each step of its attach, and at random moments of EAL's initialisation.
#[test]
fn clients_killed_while_they_attach() {
    let switch = Switch::with_ports(&[1, 2]);
    let free = switch.free_mbufs();
    let hello = format!("hello {} 1 1 dies", switch.attach_socket().display());
    let steps = [hello.as_str(), "turn", "eal", "ready"];
    for last in 1..=steps.len() {
        for _ in 0..3 {
            let mut client = Bare::start(&switch, "dies");
            for step in &steps[..last] {
                client.ok(step);
            }
            client.kill();
        }
    }
    for n in 0..15 {
        let mut client = Bare::start(&switch, "dies");
        client.ok(steps[0]);
        client.ok(steps[1]);
        client.tell(steps[2]);
        std::thread::sleep(Duration::from_micros(n * 1500));
        client.kill();
    }
    let start = Instant::now();
    let (mut one, mut two) = (Bare::attached(&switch, 1), Bare::attached(&switch, 2));
    println!("two clients attached after all that in {:?}", start.elapsed());
    let frame = Frame::marked(BROADCAST, mac(1), 1, 60);
    one.send(std::slice::from_ref(&frame));
    two.expect(&[frame]);
    drop((one, two));
    switch.wait_for_free_mbufs(free);
    switch.vsctl("del-port dpdkr1 -- add-port br0 dpdkr9 -- set Interface dpdkr9 type=dpdkr");
    Bare::attached(&switch, 9);
}

/// A receiver that is stopped costs its own frames and nobody else's, and goes on where it was.
#[test]
fn a_stopped_client_costs_others_nothing() {
    let switch = Switch::with_ports(&[1, 2, 3]);
    let free = switch.free_mbufs();
    let mut stopped = Bare::attached(&switch, 3);
    stopped.signal(Signal::SIGSTOP);
    let mut clients = Bystanders::start(&switch, [1, 2], PACE, 2).finish_undisturbed();
    let frames: Vec<Frame> = (0..100)
        .map(|n| Frame::marked(BROADCAST, mac(9), n, 300))
        .collect();
    for _ in 0..15 {
        clients[0].send(&frames);
        clients[1].receive(frames.len());
    }
    // Two frames of the pair were flooded when it began.
    let (sent, dropped) = (
        switch.count("dpdkr3", Counter::TxPackets),
        switch.count("dpdkr3", Counter::TxDropFull),
    );
    assert!(
        sent <= 1023 && dropped > 400 && sent + dropped >= 1500,
        "{}",
        switch.counters()
    );
    stopped.signal(Signal::SIGCONT);
    let late = stopped.receive(sent as usize);
    assert_eq!(late.last().unwrap().len(), 300);
    clients[0].send(&frames);
    stopped.expect(&frames);
    switch.assert_frames_accounted();
    drop((stopped, clients));
    switch.wait_for_free_mbufs(free);
}

/// Stopped in the midst of traffic for longer than anything waits for anybody: others lose nothing, and its own frames
/// go on both ways when it does.
#[test]
fn a_client_stopped_for_long_under_load() {
    let switch = Switch::with_ports(&[1, 2, 3, 4]);
    let free = switch.free_mbufs();
    let mut pair = [3, 4].map(|n| Bare::attached(&switch, n));
    pair[0].send(&[Frame::marked(BROADCAST, mac(3), 0, 60)]);
    pair[1].receive(1);
    pair[1].send(&[Frame::marked(mac(3), mac(4), 0, 60)]);
    pair[0].receive(1);
    let bystanders = Bystanders::start(&switch, [1, 2], PACE, 13);
    let load = Traffic {
        source: mac(3),
        destination: mac(4),
        send: u64::MAX,
        receive: u64::MAX,
        window: 0,
        rate: PACE,
        ..Traffic::default()
    };
    pair[0].start_traffic(&load);
    pair[1].start_traffic(&load.peer());
    let passed = || [Counter::RxPackets, Counter::TxPackets].map(|c| switch.count("dpdkr3", c));
    let goes_on = || {
        let before = passed();
        eventually("its frames pass both ways", || {
            passed()
                .iter()
                .zip(before)
                .all(|(now, before)| *now > before + PACE / 10)
        });
    };
    goes_on();
    pair[0].signal(Signal::SIGSTOP);
    std::thread::sleep(Duration::from_secs(12));
    assert!(
        switch.count("dpdkr3", Counter::TxDropFull) > 10 * PACE,
        "{}",
        switch.counters()
    );
    pair[0].signal(Signal::SIGCONT);
    goes_on();
    let clients = bystanders.finish_undisturbed();
    pair.iter_mut().for_each(Bare::kill);
    switch.assert_frames_accounted();
    drop((pair, clients));
    switch.wait_for_free_mbufs(free);
}

/// A stopped process could still write into its mbufs when it goes on: it has to be dead before they are used again.
#[test]
fn a_stopped_client_whose_port_is_deleted() {
    let switch = Switch::with_ports(&[1, 2]);
    let free = switch.free_mbufs();
    let mut stopped = Bare::attached(&switch, 1);
    stopped.take(60);
    stopped.signal(Signal::SIGSTOP);
    switch.vsctl("del-port dpdkr1");
    let dead = wait::within(Duration::from_secs(5), || stopped.process().ended().is_some());
    assert!(dead, "the switch ends it: {}", switch.log());
    switch.wait_for_free_mbufs(free);
    switch.vsctl("add-port br0 dpdkr1 -- set Interface dpdkr1 type=dpdkr");
    let (mut one, mut two) = (Bare::attached(&switch, 1), Bare::attached(&switch, 2));
    let frame = Frame::marked(BROADCAST, mac(1), 1, 60);
    one.send(std::slice::from_ref(&frame));
    two.expect(&[frame]);
}

/// Its port removed under load and added again at once: whoever attaches next waits for the old one's end.
#[test]
fn a_port_replaced_under_load() {
    let switch = Switch::with_ports(&[1, 2, 3]);
    let free = switch.free_mbufs();
    let bystanders = Bystanders::start(&switch, [1, 2], PACE, 3);
    for _ in 0..6 {
        let mut old = Bare::attached(&switch, 3);
        old.start_traffic(&Traffic {
            id: 900,
            source: mac(3),
            destination: BROADCAST,
            send: u64::MAX,
            receive: u64::MAX,
            window: 0,
            rate: 1_000,
            min: 60,
            max: 60,
            ..Traffic::default()
        });
        switch.vsctl("del-port dpdkr3 -- add-port br0 dpdkr3 -- set Interface dpdkr3 type=dpdkr");
        switch.vsctl("del-port dpdkr3");
        switch.vsctl("add-port br0 dpdkr3 -- set Interface dpdkr3 type=dpdkr");
        let _new = Bare::attached(&switch, 3);
    }
    // Frames of the third port come between; their own stream must be whole.
    let clients = bystanders.finish_undisturbed();
    drop(clients);
    switch.wait_for_free_mbufs(free);
}
