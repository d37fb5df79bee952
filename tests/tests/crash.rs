//! Clients that die, stop, or lose their port: no buffer is lost, nobody else notices.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use vswitch_common::stats::Counter;
use vswitch_tests::bare::Traffic;
use vswitch_tests::frames::{BROADCAST, mac};
use vswitch_tests::{Bare, Frame, Switch, eventually, wait};

/// Longest silence that traffic beside a crash may see; a busy machine's scheduler has its part in it.
const OUTAGE_US: u64 = 500_000;

/// Two clients with traffic between them at a steady pace, beside which things happen.
struct Pair {
    clients: [Bare; 2],
    count: u64,
}

impl Pair {
    #[track_caller]
    fn start(switch: &Switch, ports: [u16; 2], seconds: u64) -> Pair {
        const RATE: u64 = 20_000;
        let mut clients = ports.map(|n| Bare::attached(switch, n));
        let count = seconds * RATE;
        let one = Traffic {
            source: mac(0x61),
            destination: mac(0x62),
            rate: RATE,
            ..Traffic::both_ways(count).0
        };
        // Each learns where the other is before the rest of the world can be flooded with it.
        for (i, (to, from)) in [(mac(0x61), mac(0x62)), (mac(0x62), mac(0x61))]
            .into_iter()
            .enumerate()
        {
            clients[1 - i].send(&[Frame::marked(to, from, 0, 60)]);
            clients[i].receive(1);
        }
        clients[0].start_traffic(&one);
        clients[1].start_traffic(&one.peer());
        Pair { clients, count }
    }

    /// All of it arrived, without a long silence.
    #[track_caller]
    fn finish(mut self) -> [Bare; 2] {
        for client in &mut self.clients {
            let report = client.report();
            println!(
                "beside it: {} frames, longest gap {} us",
                report.received, report.gap_us
            );
            report.assert_own(self.count);
            assert!(report.gap_us < OUTAGE_US, "{report:?}");
        }
        self.clients
    }
}

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

#[test]
fn clients_killed_under_load() {
    const KILLS: u64 = 24;
    let switch = Switch::with_ports(&[1, 2, 3, 4]);
    let free = switch.free_mbufs();
    let pair = Pair::start(&switch, [1, 2], 5);
    let load = |from: u8, to: u8| Traffic {
        id: 900 + u16::from(from),
        expect: 900 + u16::from(to),
        source: mac(from),
        destination: mac(to),
        send: u64::MAX,
        receive: u64::MAX,
        window: 0,
        rate: 20_000,
        ..Traffic::default()
    };
    let mut loaded: Vec<Bare> = Vec::new();
    for (port, other) in [(3, 4), (4, 3)] {
        let mut client = Bare::attached(&switch, port.into());
        client.start_traffic(&load(port, other));
        loaded.push(client);
    }
    let mut times = Vec::new();
    for kill in 0..KILLS {
        let victim = (kill % 2) as usize;
        let (port, other) = [(3, 4), (4, 3)][victim];
        let mut successor = Bare::start(&switch, "successor");
        std::thread::sleep(Duration::from_micros(kill * 7919 % 20_000));
        loaded[victim].kill();
        let start = Instant::now();
        successor.attach(port.into(), 1).unwrap();
        times.push(start.elapsed());
        successor.start_traffic(&load(port, other));
        loaded[victim] = successor;
    }
    times.sort();
    println!(
        "killed to attached again, {KILLS} times: median {:?}, longest {:?}",
        times[times.len() / 2],
        times[times.len() - 1]
    );
    assert!(times[times.len() / 2] < Duration::from_millis(500), "{times:?}");
    drop(loaded);
    drop(pair.finish());
    switch.wait_for_free_mbufs(free);
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
    let pair = Pair::start(&switch, [1, 2], 2);
    let mut clients = pair.finish();
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
    let pair = Pair::start(&switch, [1, 2], 3);
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
    let mut clients = pair.clients;
    for client in &mut clients {
        // Frames of the third port come between; its own stream must be whole.
        let report = client.report();
        assert_eq!(
            (
                report.received,
                report.lost,
                report.doubled,
                report.late,
                report.altered
            ),
            (pair.count, 0, 0, 0, 0)
        );
    }
    drop(clients);
    switch.wait_for_free_mbufs(free);
}
