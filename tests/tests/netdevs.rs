//! Interfaces that the host has as ports (`add-port br0 eth1`), and `ovs-tcpdump`, which works by one.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use vswitch_common::stats::Counter;
use vswitch_tests::child::Child;
use vswitch_tests::frames::{BROADCAST, EXPERIMENT, Mac, mac};
use vswitch_tests::packet::{PacketSocket, Veth};
use vswitch_tests::prerequisites::{self, run};
use vswitch_tests::{Bare, Frame, PATIENCE, Switch, eventually};

fn add(switch: &Switch, name: &str) {
    switch.vsctl(&format!("add-port br0 {name}"));
}

/// What the host says of an interface.
fn link(name: &str) -> String {
    run("ip", &["-d", "link", "show", name])
}

fn frame(to: Mac, from: Mac, len: usize) -> Frame {
    Frame::marked(to, from, len as u8, len)
}

/// The next frame of this test's that `socket` gets.
fn next(socket: &PacketSocket) -> Frame {
    socket.receive(|f| f.bytes[..14].ends_with(&EXPERIMENT.to_be_bytes()))
}

#[test]
fn an_interface_by_its_name() {
    let veth = Veth::new();
    let switch = Switch::with_ports(&[1]);
    let mut client = Bare::attached(&switch, 1);
    run("ip", &["link", "set", &veth.near, "mtu", "1400"]);
    add(&switch, &veth.near);
    assert_eq!(
        switch.vsctl(&format!(
            "get Interface {} mtu error link_state admin_state",
            veth.near
        )),
        "1400\n[]\nup\nup\n"
    );
    let index = fs::read_to_string(format!("/sys/class/net/{}/ifindex", veth.near)).unwrap();
    assert_eq!(switch.get("Interface", &veth.near, "ifindex"), index.trim());
    assert!(link(&veth.near).contains("promiscuity 1"));

    let far = PacketSocket::open(&veth.far);
    let there = frame(mac(9), mac(1), 1414);
    client.send(std::slice::from_ref(&there));
    assert_eq!(next(&far), there);
    // The kernel keeps a received tag beside the frame.
    for back in [frame(mac(1), mac(9), 1400), frame(mac(1), mac(9), 200).tagged(7)] {
        far.send(&back);
        client.expect(&[back]);
    }
    // What the host sends by it is on the wire, and did not come from there.
    PacketSocket::open(&veth.near).send(&frame(BROADCAST, mac(8), 90));
    assert_eq!(next(&far), frame(BROADCAST, mac(8), 90));
    client.expect_nothing();
    switch.vsctl(&format!("set Interface {} mtu_request=1450", veth.near));
    // The kernel sends no longer ones, but for a tag in front, and would not tell.
    let long = [
        frame(mac(9), mac(1), 1465),
        frame(mac(9), mac(1), 1465).tagged(7),
        frame(mac(9), mac(1), 1464),
        frame(mac(9), mac(1), 1464).tagged(7),
    ];
    client.send(&long);
    // A packet socket gets a frame without the tag in front.
    for _ in 0..2 {
        assert_eq!(next(&far), long[2]);
    }
    switch.wait_for_count(&veth.near, Counter::TxDropTooLong, 2);
    assert!(link(&veth.near).contains("mtu 1450"));
    switch.vsctl(&format!("set Interface {} mtu_request=9000", veth.near));
    assert_eq!(
        switch.get("Interface", &veth.near, "error"),
        "mtu_request=9000 is not within 68 to 1500; the default is used"
    );
    switch.assert_frames_accounted();
    switch.vsctl(&format!("del-port {}", veth.near));
    assert!(link(&veth.near).contains("promiscuity 0"));
}

/// What the host does to it is followed: frames wait for no better times, and are none longer than it may have.
#[test]
fn what_the_host_does_is_followed() {
    let veth = Veth::new();
    let near = veth.near.as_str();
    let switch = Switch::with_ports(&[1]);
    let mut client = Bare::attached(&switch, 1);
    let shows = |column: &str, value: &str| {
        eventually(&format!("{column} is {value}"), || {
            switch.get("Interface", near, column) == value
        });
    };
    run("ip", &["link", "set", near, "down"]);
    add(&switch, near);
    shows("admin_state", "down");
    client.send(&[frame(BROADCAST, mac(1), 80), frame(BROADCAST, mac(1), 81)]);
    client.expect_nothing();
    run("ip", &["link", "set", near, "up"]);
    shows("link_state", "up");
    let far = PacketSocket::open(&veth.far);
    let now = frame(mac(9), mac(1), 82);
    client.send(std::slice::from_ref(&now));
    assert_eq!(next(&far), now, "what was sent before is gone");
    assert_eq!(switch.count(near, Counter::TxPackets), 1);

    // Longer than the driver can take: lost, and not cut.
    for end in [near, &veth.far] {
        run("ip", &["link", "set", end, "mtu", "9000"]);
    }
    far.send(&frame(mac(1), mac(9), 3000));
    let fits = frame(mac(1), mac(9), 1514);
    far.send(&fits);
    client.expect(&[fits]);
    shows("mtu", "1500");
    switch.vsctl(&format!("set Interface {near} mtu_request=1500"));
    assert!(link(near).contains("mtu 1500"));
    switch.vsctl(&format!("clear Interface {near} mtu_request"));
    run("ip", &["link", "set", near, "mtu", "1300"]);
    shows("mtu", "1300");
    client.send(&[frame(mac(9), mac(1), 1400)]);
    switch.wait_for_count(near, Counter::TxDropTooLong, 1);
    run("ip", &["link", "set", &veth.far, "down"]);
    shows("link_state", "down");
    switch.assert_frames_accounted();
}

/// A slow one costs its own frames, and nobody's time.
#[test]
fn nobody_waits_for_a_slow_interface() {
    prerequisites::program("tc", "iproute2");
    let veth = Veth::new();
    let slow = "qdisc add dev IF root tbf rate 64kbit burst 1600 latency 1000s";
    let words: Vec<&str> = slow
        .split(' ')
        .map(|w| if w == "IF" { &veth.near } else { w })
        .collect();
    run("tc", &words);
    let switch = Switch::with_ports(&[1, 2, 3]);
    let mut clients: Vec<Bare> = (1..=3).map(|port| Bare::attached(&switch, port)).collect();
    let [one, two, three] = &mut clients[..] else {
        unreachable!()
    };
    two.send(&[frame(BROADCAST, mac(2), 60)]);
    three.send(&[frame(BROADCAST, mac(3), 60)]);
    [&mut *one, &mut *two, &mut *three]
        .into_iter()
        .for_each(|c| _ = c.collect(9, Duration::from_millis(200)));
    add(&switch, &veth.near);
    let flood: Vec<Frame> = (0..100).map(|_| frame(mac(9), mac(1), 1400)).collect();
    let started = Instant::now();
    for _ in 0..10 {
        one.send(&flood);
        let passes = frame(mac(3), mac(2), 99);
        two.send(std::slice::from_ref(&passes));
        while three.receive(1) != [passes.clone()] {}
        two.collect(1000, Duration::from_millis(1));
    }
    // At this rate the first hundred alone would take 17 s.
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "{:?}",
        started.elapsed()
    );
    switch.wait_for_count("dpdkr1", Counter::RxPackets, 1000);
    assert!(
        switch.count(&veth.near, Counter::TxDropFull) > 0,
        "{}",
        switch.counters()
    );
}

/// Deleted and made anew, as a USB adapter or a container's end of a cable is.
#[test]
fn an_interface_comes_back() {
    let switch = Switch::with_ports(&[1]);
    let mut client = Bare::attached(&switch, 1);
    let veth = Veth::new();
    let near = veth.near.clone();
    add(&switch, &near);
    drop(veth);
    eventually("the row says that it is gone", || {
        switch
            .get("Interface", &near, "error")
            .contains("taken again when it is back")
    });
    let veth = Veth::new();
    eventually("it is taken again", || {
        switch.get("Interface", &near, "error") == "[]"
    });
    let far = PacketSocket::open(&veth.far);
    let there = frame(BROADCAST, mac(1), 99);
    client.send(std::slice::from_ref(&there));
    assert_eq!(next(&far), there);
    // At once, before anybody has seen that it was gone.
    drop(veth);
    let veth = Veth::new();
    let index = fs::read_to_string(format!("/sys/class/net/{near}/ifindex")).unwrap();
    eventually("the new one is taken", || {
        switch.get("Interface", &near, "ifindex") == index.trim()
    });
    let far = PacketSocket::open(&veth.far);
    client.send(std::slice::from_ref(&there));
    assert_eq!(next(&far), there);
}

/// What a switch is to forward is not what the kernel makes of it.
#[test]
fn the_kernel_joins_no_frames() {
    prerequisites::program("ethtool", "ethtool");
    let veth = Veth::new();
    let gro = || run("ethtool", &["-k", &veth.near]).contains("generic-receive-offload: on");
    run("ethtool", &["-K", &veth.near, "gro", "on"]);
    assert!(gro());
    let switch = Switch::with_ports(&[]);
    add(&switch, &veth.near);
    assert!(!gro());
}

/// The stock tool makes an interface, a port and a mirror, shows what passes, and takes all away again.
#[test]
fn ovs_tcpdump_shows_a_ports_frames() {
    prerequisites::program("ovs-tcpdump", "openvswitch-switch");
    prerequisites::program("tcpdump", "tcpdump");
    let switch = Switch::with_ports(&[1, 2]);
    let (mut one, mut two) = (Bare::attached(&switch, 1), Bare::attached(&switch, 2));
    let ports = switch.vsctl("list-ports br0");
    let mut tcpdump = Child::start(
        Command::new("ovs-tcpdump")
            .args(["-i", "dpdkr1", "-n", "-e", "-c", "2", "ether", "proto", "0x88b5"])
            .env("OVS_RUNDIR", switch.rundir()),
        &switch.scratch().join("tcpdump.log"),
    );
    tcpdump.wait_for_log("listening on midpdkr1");
    assert!(switch.vsctl("list-ports br0").contains("midpdkr1"));
    // The tool does not wait for what it has set up to be in force; this does.
    switch.vsctl("set Bridge br0 external-ids:watched=true");
    one.send(&[frame(mac(2), mac(1), 100)]);
    two.expect(&[frame(mac(2), mac(1), 100)]);
    two.send(&[frame(mac(1), mac(2), 200)]);
    one.expect(&[frame(mac(1), mac(2), 200)]);
    tcpdump.wait(PATIENCE);
    let shown = tcpdump.log();
    for line in [
        "02:00:00:00:00:01 > 02:00:00:00:00:02, ethertype Unknown (0x88b5), length 100",
        "02:00:00:00:00:02 > 02:00:00:00:00:01, ethertype Unknown (0x88b5), length 200",
    ] {
        assert!(shown.contains(line), "{shown}");
    }
    assert_eq!(switch.vsctl("list-ports br0"), ports);
    assert_eq!(switch.vsctl("get Bridge br0 mirrors"), "[]\n");
}
