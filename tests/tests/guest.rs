//! A guest without a VM: testpmd's virtio-user, behind a real shim, on a port of the switch.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::thread;
use std::time::{Duration, Instant};

use nix::time::ClockId;
use nix::unistd::Pid;
use vswitch_common::stats::Counter;
use vswitch_tests::bare::Traffic;
use vswitch_tests::frames::{Mac, mac};
use vswitch_tests::guest::{Shim, Testpmd};
use vswitch_tests::{Bare, Frame, Switch, eventually, wait};

/// testpmd's macswap sends each frame back with its addresses exchanged; the guest's own address is whatever we say.
const GUEST: Mac = mac(2);

/// A user that nobody has.
const SOMEBODY: u32 = 4243;

/// Each ends before what it stands on.
struct Net {
    client: Bare,
    shim: Shim,
    guest: Testpmd,
    switch: Switch,
    /// Mbufs that were free before any of them came.
    free: u64,
}

impl Net {
    /// A bare client on port 1, a guest that sends everything back on port 2.
    #[track_caller]
    fn new(queues: u16, mode: &str, more: &[&str]) -> Net {
        let switch = Switch::with_ports(&[1, 2]);
        let free = switch.free_mbufs();
        let mut guest = Testpmd::start(&switch, "guest", queues, mode, more);
        let shim = Shim::start(&switch, 2, queues, guest.socket());
        guest.forward();
        let client = Bare::attached_queues(&switch, 1, queues);
        eventually("the shim attaches", || switch.port("dpdkr2").info.link);
        Net {
            switch,
            client,
            shim,
            guest,
            free,
        }
    }

    /// Ends all of it: no mbuf is lost.
    #[track_caller]
    fn end(self) {
        drop((self.client, self.shim, self.guest));
        self.switch.wait_for_free_mbufs(self.free);
        self.switch.stop();
    }

    /// Sends one frame until it comes back: the guest's driver is ready from then on. How long that took.
    #[track_caller]
    fn wait_for_echo(&mut self) -> Duration {
        let start = Instant::now();
        let frame = Frame::marked(GUEST, mac(1), 0xee, 60);
        let came = wait::within(wait::PATIENCE, || {
            self.client.send(std::slice::from_ref(&frame));
            !self.client.collect(1, Duration::from_millis(20)).is_empty()
        });
        assert!(
            came,
            "no echo; {}\nthe guest:\n{}",
            self.switch.counters(),
            self.guest.log()
        );
        let took = start.elapsed();
        // Those sent in vain may be late only.
        while !self.client.collect(64, Duration::from_millis(60)).is_empty() {}
        took
    }

    fn plan(&self, count: u64) -> Traffic {
        Traffic {
            destination: GUEST,
            send: count,
            receive: count,
            echo: true,
            window: 128,
            ..Traffic::default()
        }
    }
}

fn swapped(frame: &Frame) -> Frame {
    let mut frame = frame.clone();
    frame.bytes[..12].rotate_left(6);
    frame
}

/// Every length from 60 to 1514 bytes, there and back through shim, virtqueues and guest, byte for byte.
#[test]
fn every_length_there_and_back() {
    const COUNT: u64 = 100_000;
    let mut net = Net::new(1, "macswap", &[]);
    net.wait_for_echo();
    let frames: Vec<Frame> = (60..=1514)
        .map(|len| Frame::marked(GUEST, mac(1), len as u8, len))
        .collect();
    for some in frames.chunks(50) {
        net.client.send(some);
        let back: Vec<Frame> = some.iter().map(swapped).collect();
        assert_eq!(net.client.receive(back.len()), back);
    }
    net.client.start_traffic(&net.plan(COUNT));
    let report = net.client.report();
    println!("{COUNT} frames there and back in {} ms", report.ms);
    report.assert_all(COUNT);
    for counter in [
        Counter::GuestTxBadHeader,
        Counter::GuestBrokenQueues,
        Counter::GuestRxTooLong,
    ] {
        assert_eq!(net.switch.count("dpdkr2", counter), 0, "{}", counter.name());
    }
    net.switch.assert_frames_accounted();
}

/// Tagged frames, and more than fits the ring buffers of a lazy driver, pass as they are.
#[test]
fn tags_reach_the_guest_and_come_back() {
    let mut net = Net::new(1, "macswap", &[]);
    net.wait_for_echo();
    let plain = Frame::marked(GUEST, mac(1), 7, 300);
    for frame in [
        plain.clone().tagged(5),
        plain.clone().tagged(6).service_tagged(7),
        plain.clone(),
    ] {
        net.client.send(std::slice::from_ref(&frame));
        net.client.expect(&[swapped(&frame)]);
    }
    net.switch.vsctl("set Port dpdkr2 tag=5");
    net.client.send(&[plain.clone().tagged(5)]);
    net.client.expect(&[swapped(&plain).tagged(5)]);
    net.client.send(std::slice::from_ref(&plain));
    net.client.expect_nothing();
}

#[test]
fn several_queue_pairs() {
    const COUNT: u64 = 40_000;
    let mut net = Net::new(2, "macswap", &[]);
    net.wait_for_echo();
    let plan = Traffic {
        window: 64,
        ..net.plan(COUNT)
    };
    net.client.start_traffic(&plan);
    let report = net.client.report();
    report.assert_all(COUNT);
    let polled = net.switch.appctl("dpif-netdev/pmd-rxq-show");
    assert_eq!(polled.matches("port: dpdkr2").count(), 2, "{polled}");
    net.switch.assert_frames_accounted();
}

/// A guest that sends for all it is worth: what the client misses was counted as dropped.
#[test]
fn a_guest_that_only_sends() {
    let mut net = Net::new(1, "txonly", &["--txpkts=64", "--eth-peer=0,02:00:00:00:00:01"]);
    let frames = net.client.receive(100);
    assert!(
        frames.iter().all(|f| f.len() == 64 && f.destination() == mac(1)),
        "{:?}",
        frames[0]
    );
    eventually("many frames came", || {
        net.switch.count("dpdkr2", Counter::RxPackets) > 50_000
    });
    net.guest.command("stop");
    let mut before = 0;
    eventually("all has come to rest", || {
        let now = net.switch.count("dpdkr2", Counter::RxPackets);
        std::thread::sleep(Duration::from_millis(50));
        std::mem::replace(&mut before, now) == now
    });
    net.switch.assert_frames_accounted();
}

/// The shim killed, again and again: the guest's virtqueues go on with the next one, and no buffer is lost.
#[test]
fn a_killed_shim_is_replaced() {
    let mut net = Net::new(1, "macswap", &[]);
    net.wait_for_echo();
    for round in 0..5 {
        let plan = Traffic {
            seconds: 1,
            rate: 20_000,
            window: 0,
            ..net.plan(u64::MAX)
        };
        net.client.start_traffic(&plan);
        std::thread::sleep(Duration::from_millis(200));
        net.shim.process().kill();
        let start = Instant::now();
        net.shim.restart();
        eventually("the next one attaches", || {
            net.switch.count("dpdkr2", Counter::Attached) == round + 2
        });
        println!("attached again after {:?}", start.elapsed());
        let report = net.client.report();
        assert_eq!(
            (report.doubled, report.late, report.altered),
            (0, 0, 0),
            "{report:?}"
        );
        assert!(report.received > 0, "{report:?}");
        println!("outage {} ms", report.gap_us / 1000);
        net.wait_for_echo();
    }
    const COUNT: u64 = 20_000;
    net.client.start_traffic(&net.plan(COUNT));
    net.client.report().assert_all(COUNT);
    net.end();
}

/// The switch killed: the shim notices, and attaches to the next one by itself; the guest goes on.
#[test]
fn a_killed_switch_is_replaced_under_a_guest() {
    const COUNT: u64 = 20_000;
    let mut net = Net::new(1, "macswap", &[]);
    net.wait_for_echo();
    for _ in 0..3 {
        net.switch.kill();
        net.client.kill();
        net.switch.restart();
        let start = Instant::now();
        eventually("the shim attaches", || net.switch.port("dpdkr2").info.link);
        println!(
            "the shim attached {:?} after the switch was ready",
            start.elapsed()
        );
        net.client = Bare::attached(&net.switch, 1);
        net.wait_for_echo();
        assert!(net.shim.process().ended().is_none(), "it is the same shim");
    }
    net.client.start_traffic(&net.plan(COUNT));
    net.client.report().assert_all(COUNT);
}

/// A shim started before its switch waits, says so once, and attaches when there is one.
#[test]
fn a_shim_waits_for_its_switch() {
    let mut switch = Switch::with_ports(&[1, 2]);
    let free = switch.free_mbufs();
    switch.end();
    let mut guest = Testpmd::start(&switch, "guest", 1, "macswap", &[]);
    let mut shim = Shim::start(&switch, 2, 1, guest.socket());
    // The guest is served without a switch.
    guest.forward();
    shim.process().wait_for_log("no switch running at");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(shim.process().log().matches("no switch running").count(), 1);
    switch.restart();
    eventually("the shim attaches", || switch.port("dpdkr2").info.link);
    let client = Bare::attached(&switch, 1);
    let mut net = Net {
        switch,
        client,
        shim,
        guest,
        free,
    };
    net.wait_for_echo();
    net.end();
}

/// A QEMU of another user's, whose socket a shim, which has no capability, may not write to: it says so, once, and connects when it may.
#[test]
fn a_socket_without_access_is_named() {
    let switch = Switch::with_ports(&[1]);
    let path = switch.scratch().join("qemu.sock");
    let socket = UnixListener::bind(&path).unwrap();
    chown(&path, Some(SOMEBODY), Some(SOMEBODY)).unwrap();
    let mode = |mode| fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    mode(0o755);
    let mut shim = Shim::start(&switch, 1, 1, &path);
    let refusal = "no connection to";
    shim.process().wait_for_log(refusal);
    // It tries ten times a second.
    thread::sleep(Duration::from_millis(500));
    mode(0o777);
    socket.set_nonblocking(true).unwrap();
    eventually("the shim connects", || socket.accept().is_ok());
    let log = shim.process().log();
    let told: Vec<&str> = log.lines().filter(|line| line.contains(refusal)).collect();
    assert_eq!(told.len(), 1, "{log}");
    for words in [
        "qemu.sock",
        "Permission denied",
        "a user or a group that may write to it",
    ] {
        assert!(told[0].contains(words), "{log}");
    }
}

/// What a guest's driver was not ready for, over two shims.
#[test]
fn what_guests_count_goes_on_with_the_next_shim() {
    let mut net = Net::new(1, "macswap", &[]);
    net.wait_for_echo();
    drop(net.guest);
    let counted = || net.switch.count("dpdkr2", Counter::GuestRxNotReady);
    eventually("no driver is there", || {
        net.client.send(&[Frame::marked(GUEST, mac(1), 1, 60)]);
        counted() > 0
    });
    // Once a second they are taken over.
    thread::sleep(Duration::from_millis(1500));
    let before = counted();
    let ten = vec![Frame::marked(GUEST, mac(1), 1, 60); 10];
    net.client.send(&ten);
    eventually("they are counted", || counted() == before + 10);
    net.shim.process().kill();
    net.shim.restart();
    net.switch.wait_for_log("is gone");
    eventually("the next one attaches", || net.switch.port("dpdkr2").info.link);
    net.client.send(&ten);
    eventually("they are counted on top", || counted() == before + 20);
}

/// The clock of a process says whether its threads poll.
#[track_caller]
fn assert_process_polls(pid: i32, polls: bool) {
    let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(pid)).unwrap();
    let took = |wall: Duration| {
        let before = clock.now().unwrap();
        std::thread::sleep(wall);
        Duration::from(clock.now().unwrap() - before)
    };
    eventually(if polls { "it polls" } else { "it sleeps" }, || {
        if polls {
            // On a busy machine it does not have a CPU to itself.
            took(Duration::from_millis(100)) > Duration::from_millis(10)
        } else {
            took(Duration::from_millis(300)) < Duration::from_millis(2)
        }
    });
}

#[track_caller]
fn assert_polls(shim: &Shim, polls: bool) {
    assert_process_polls(shim.server().expect("the shim runs"), polls);
}

/// Rings that have woken somebody keep nobody awake.
#[test]
fn everybody_sleeps_when_all_is_done() {
    let mut net = Net::new(1, "macswap", &[]);
    net.wait_for_echo();
    assert_polls(&net.shim, false);
    assert_process_polls(net.switch.pid(), false);
    net.switch
        .vsctl("set Open_vSwitch . other_config:pmd-sleep-max=0");
    assert_process_polls(net.switch.pid(), true);
    net.wait_for_echo();
    net.switch
        .vsctl("remove Open_vSwitch . other_config pmd-sleep-max");
    assert_process_polls(net.switch.pid(), false);
    net.wait_for_echo();
    assert_process_polls(net.switch.pid(), false);
    assert_polls(&net.shim, false);
}

/// `options:busy-poll` reaches a client that is attached, both ways, and one that attaches. A wrong value is named, and the
/// port works.
#[test]
fn a_guest_is_polled_where_its_port_says_so() {
    let mut net = Net::new(1, "macswap", &[]);
    net.wait_for_echo();
    assert_polls(&net.shim, false);
    net.switch.vsctl("set Interface dpdkr2 options:busy-poll=true");
    assert_polls(&net.shim, true);
    net.wait_for_echo();

    let complaint = net
        .switch
        .vsctl_complaint("set Interface dpdkr2 options:busy-poll=yes");
    let text = "options:busy-poll=yes is neither true nor false";
    assert!(complaint.is_empty() || complaint.contains(text), "{complaint}");
    assert!(net.switch.get("Interface", "dpdkr2", "error").contains(text));
    assert_polls(&net.shim, false);
    net.wait_for_echo();

    net.switch.vsctl("set Interface dpdkr2 options:busy-poll=true");
    assert_polls(&net.shim, true);
    net.shim.process().kill();
    net.shim.restart();
    net.wait_for_echo();
    assert_polls(&net.shim, true);
    net.switch.vsctl("remove Interface dpdkr2 options busy-poll");
    assert_polls(&net.shim, false);
    net.wait_for_echo();

    // A driver that stops costs nothing.
    net.switch.vsctl("set Interface dpdkr2 options:busy-poll=true");
    assert_polls(&net.shim, true);
    drop(net.guest);
    assert_polls(&net.shim, false);
}

/// With guest and shim gone by SIGKILL, every mbuf is back.
#[test]
fn a_dead_guest_costs_no_buffer() {
    let switch = Switch::with_ports(&[1, 2]);
    let free = switch.free_mbufs();
    let mut guest = Testpmd::start(&switch, "guest", 1, "macswap", &[]);
    let mut shim = Shim::start(&switch, 2, 1, guest.socket());
    guest.forward();
    let mut client = Bare::attached(&switch, 1);
    eventually("the shim attaches", || switch.port("dpdkr2").info.link);
    client.start_traffic(&Traffic {
        destination: GUEST,
        send: u64::MAX,
        receive: u64::MAX,
        echo: true,
        window: 0,
        rate: 50_000,
        seconds: 1,
        ..Traffic::default()
    });
    std::thread::sleep(Duration::from_millis(300));
    drop(guest);
    let report = client.report();
    assert!(report.altered + report.doubled + report.late == 0, "{report:?}");
    assert!(report.received > 0, "{report:?}");
    shim.process().kill();
    client.kill();
    switch.wait_for_free_mbufs(free);
}
