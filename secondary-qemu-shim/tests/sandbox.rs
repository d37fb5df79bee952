//! A real shim between a real switch and testpmd: confined on every thread, and none the worse for it.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use vswitch_common::stats::Counter;
use vswitch_tests::guest::{Shim, Testpmd};
use vswitch_tests::{PATIENCE, Switch, eventually};

/// The process that serves the port: the supervisor's child.
fn server(shim: &mut Shim) -> i32 {
    let supervisor = shim.process().pid();
    let children = || fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children")).unwrap();
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(pid) = children().split_whitespace().next() {
            return pid.parse().unwrap();
        }
        assert!(
            Instant::now() < end,
            "the shim has no child:\n{}",
            shim.process().log()
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The status of every thread of `pid`.
fn threads(pid: i32) -> Vec<String> {
    fs::read_dir(format!("/proc/{pid}/task"))
        .unwrap()
        .map(|thread| fs::read_to_string(thread.unwrap().path().join("status")).unwrap())
        .collect()
}

fn field<'s>(status: &'s str, name: &str) -> &'s str {
    let mut values = status
        .lines()
        .filter_map(|line| line.strip_prefix(name)?.strip_prefix(":"));
    values.next().unwrap_or_default().trim()
}

fn assert_confined(pid: i32) {
    let threads = threads(pid);
    let names: Vec<_> = threads.iter().map(|status| field(status, "Name")).collect();
    assert!(
        names.contains(&"pump-0") && names.iter().any(|name| name.contains("intr")),
        "{names:?}"
    );
    for status in &threads {
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(field(status, set), "0000000000000000", "{set} of\n{status}");
        }
        assert_eq!(
            (field(status, "NoNewPrivs"), field(status, "Seccomp")),
            ("1", "2"),
            "{status}"
        );
    }
}

/// Frames of the guest keep coming out of the shim at the switch.
fn assert_traffic(switch: &Switch, port: &str) {
    let before = switch.count(port, Counter::RxPackets);
    eventually("10,000 more frames come", || {
        switch.count(port, Counter::RxPackets) > before + 10_000
    });
}

#[test]
fn confined_with_traffic_a_new_frontend_and_a_new_switch() {
    let mut switch = Switch::with_ports(&[1]);
    let mut guest = Testpmd::start(&switch, "guest", 2, "txonly", &[]);
    let mut shim = Shim::start(&switch, 1, 2, guest.socket());
    guest.forward();
    assert_traffic(&switch, "dpdkr1");
    let first = server(&mut shim);
    assert_confined(first);

    // The frontend goes and comes back: a new connection, and memory to map, from within the sandbox.
    drop(guest);
    let mut guest = Testpmd::start(&switch, "guest", 2, "txonly", &[]);
    guest.forward();
    assert_traffic(&switch, "dpdkr1");
    assert_eq!(server(&mut shim), first);

    // The switch goes and comes back: another process serves the port, confined as well.
    switch.kill();
    switch.restart();
    eventually("another process serves the port", || server(&mut shim) != first);
    eventually("the port is attached", || {
        switch.count("dpdkr1", Counter::RxPackets) > 0
    });
    assert_traffic(&switch, "dpdkr1");
    assert_confined(server(&mut shim));

    // Nothing else than the end of the switch made it start anew, and SIGTERM ends both.
    let last = server(&mut shim);
    shim.signal(Signal::SIGTERM);
    assert!(
        shim.process().wait(PATIENCE).success(),
        "{}",
        shim.process().log()
    );
    eventually("the server is gone too", || vswitch_tests::child::is_dead(last));
    drop(guest);
    drop(shim);
}

#[test]
fn a_killed_supervisor_takes_the_server_along() {
    let switch = Switch::with_ports(&[1]);
    let guest = Testpmd::start(&switch, "guest", 1, "rxonly", &[]);
    let mut shim = Shim::start(&switch, 1, 1, guest.socket());
    let served = server(&mut shim);
    eventually("it is attached", || {
        shim.process().log().contains("attached to the switch")
    });
    shim.process().kill();
    eventually("the server is gone too", || vswitch_tests::child::is_dead(served));
    drop(guest);
}
