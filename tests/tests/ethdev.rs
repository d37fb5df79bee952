//! NIC ports by `options:dpdk-devargs`, on DPDK's virtual devices.

use std::path::Path;

use vswitch_common::stats::Counter;
use vswitch_tests::bare::{Traffic, exchange};
use vswitch_tests::frames::{BROADCAST, EXPERIMENT, Mac, mac};
use vswitch_tests::packet::{PacketSocket, Veth};
use vswitch_tests::{Bare, Frame, Switch, eventually, pcap, wait};

/// Adds an ethdev port to br0.
#[track_caller]
fn add_device(switch: &Switch, name: &str, devargs: &str) {
    switch.vsctl(&add_line(name, devargs));
}

fn add_line(name: &str, devargs: &str) -> String {
    format!("add-port br0 {name} -- set Interface {name} type=dpdk options:dpdk-devargs=\"{devargs}\"")
}

/// Frames of growing lengths to `to`.
fn lengths(to: Mac, from: Mac) -> Vec<Frame> {
    (60..=1514)
        .step_by(7)
        .map(|len| Frame::marked(to, from, len as u8, len))
        .collect()
}

#[track_caller]
fn wait_for_pcap(path: &Path, expected: &[Frame]) {
    let complete = wait::within(wait::PATIENCE, || pcap::read(path).len() >= expected.len());
    let found = pcap::read(path);
    assert!(
        complete,
        "{} of {} frames in the file",
        found.len(),
        expected.len()
    );
    assert_eq!(found, expected);
}

#[test]
fn a_capture_file_is_played_to_a_client() {
    let switch = Switch::with_ports(&[1]);
    let mut client = Bare::attached(&switch, 1);
    let frames = lengths(BROADCAST, mac(9));
    let (input, output) = (
        switch.scratch().join("in.pcap"),
        switch.scratch().join("out.pcap"),
    );
    pcap::write(&input, &frames);
    let devargs = format!(
        "net_pcap0,rx_pcap={},tx_pcap={}",
        input.display(),
        output.display()
    );
    add_device(&switch, "wire", &devargs);
    client.expect(&frames);
    assert_eq!(switch.count("wire", Counter::RxPackets), frames.len() as u64);
    switch.assert_frames_accounted();
    assert_eq!(switch.get("Interface", "wire", "status:driver_name"), "net_pcap");
    // It has a queue for each file.
    switch.vsctl("set Interface wire options:n_rxq=3");
    let error = switch.get("Interface", "wire", "error");
    assert_eq!(
        error,
        "options:n_rxq=3 is more than its device can do, which has 1"
    );
    // A value that can't be is named, and costs nobody the device.
    for (option, value, why) in [
        ("n_rxq", "0", "not a number from 1 to 64"),
        ("rx-flow-ctrl", "on", "neither true nor false"),
    ] {
        switch.vsctl(&format!("set Interface wire options:{option}={value}"));
        let error = switch.get("Interface", "wire", "error");
        assert!(error.contains(option) && error.contains(why), "{error}");
        assert_eq!(switch.get("Interface", "wire", "link_state"), "up");
        switch.vsctl(&format!("remove Interface wire options {option}"));
    }
    assert_eq!(switch.vsctl("get Interface wire error"), "[]\n");
}

#[test]
fn a_client_is_recorded_to_a_capture_file() {
    let switch = Switch::with_ports(&[1]);
    let mut client = Bare::attached(&switch, 1);
    let output = switch.scratch().join("out.pcap");
    let empty = switch.scratch().join("in.pcap");
    pcap::write(&empty, &[]);
    let devargs = format!(
        "net_pcap0,rx_pcap={},tx_pcap={}",
        empty.display(),
        output.display()
    );
    add_device(&switch, "wire", &devargs);
    let data: Vec<u8> = (0..=250).collect();
    let mut frames = lengths(mac(9), mac(1));
    // A wire has no half-done checksums: they are completed on the way, tagged or not, odd length or even.
    for n in 6..40 {
        frames.push(Frame::tcp4_partial(mac(9), mac(1), &data[..n * 5]));
        frames.push(Frame::tcp6_partial(mac(9), mac(1), &data[..n * 4]).tagged(5));
    }
    let expected: Vec<Frame> = frames.iter().cloned().map(Frame::completed).collect();
    client.send(&frames);
    wait_for_pcap(&output, &expected);
    assert_eq!(switch.count("wire", Counter::TxPackets), frames.len() as u64);
    switch.assert_frames_accounted();
}

#[test]
fn a_null_device_swallows() {
    let switch = Switch::with_ports(&[1]);
    let mut client = Bare::attached(&switch, 1);
    add_device(&switch, "null", "net_null0,no-rx=1");
    let frames = lengths(mac(9), mac(1));
    client.send(&frames);
    switch.wait_for_count("null", Counter::TxPackets, frames.len() as u64);
    assert_eq!(switch.get("Interface", "null", "link_state"), "up");
    switch.assert_frames_accounted();
}

/// What is sent to a net_ring device comes back in by it: a loop, as a cable that is plugged into itself.
#[test]
fn a_ring_device_gives_back() {
    let switch = Switch::with_ports(&[1, 2]);
    let (mut one, mut two) = (Bare::attached(&switch, 1), Bare::attached(&switch, 2));
    add_device(&switch, "loop", "net_ring0");
    let frame = Frame::marked(BROADCAST, mac(1), 5, 200);
    one.send(std::slice::from_ref(&frame));
    one.expect(std::slice::from_ref(&frame));
    two.expect(&[frame.clone(), frame]);
    assert_eq!(
        (
            switch.count("loop", Counter::TxPackets),
            switch.count("loop", Counter::RxPackets)
        ),
        (1, 1)
    );
    switch.assert_frames_accounted();
}

#[test]
fn a_kernel_interface_by_af_packet() {
    let veth = Veth::new();
    let switch = Switch::with_ports(&[1]);
    add_device(&switch, "kernel", &format!("net_af_packet0,iface={}", veth.near));
    both_ways(&switch, &veth);
}

/// Where the kernel or this DPDK has no AF_XDP, the row must say so.
#[test]
fn a_kernel_interface_by_af_xdp() {
    let veth = Veth::new();
    let switch = Switch::with_ports(&[1]);
    let complaint = switch.vsctl_complaint(&add_line("kernel", &format!("net_af_xdp0,iface={}", veth.near)));
    if complaint.is_empty() {
        assert_eq!(
            switch.get("Interface", "kernel", "status:driver_name"),
            "net_af_xdp"
        );
        both_ways(&switch, &veth);
    } else {
        println!("{complaint}");
        assert!(complaint.contains("AF_XDP"), "{complaint}");
    }
}

#[test]
fn a_kernel_interface_must_be_there() {
    let switch = Switch::with_ports(&[]);
    for (devargs, named) in [
        ("net_af_packet0", "iface=NAME"),
        (
            "net_af_packet0,iface=no-such-netdev",
            "no interface 'no-such-netdev'",
        ),
        (
            "net_af_xdp0,iface=no-such-netdev",
            "no interface 'no-such-netdev'",
        ),
    ] {
        let complaint = switch.vsctl_complaint(&add_line("kernel", devargs));
        assert!(complaint.contains(named), "{complaint}");
        switch.vsctl("del-port kernel");
    }
}

/// Frames between client 1 and the far end of `veth`, whose near end is on the switch.
#[track_caller]
fn both_ways(switch: &Switch, veth: &Veth) {
    let mut client = Bare::attached(switch, 1);
    let far = PacketSocket::open(&veth.far);
    for frame in [
        Frame::marked(mac(9), mac(1), 1, 60),
        Frame::marked(mac(9), mac(1), 2, 1514),
    ] {
        client.send(std::slice::from_ref(&frame));
        assert_eq!(
            far.receive(|f| f.bytes[12..14] == EXPERIMENT.to_be_bytes()),
            frame
        );
    }
    let back = Frame::marked(mac(1), mac(9), 3, 999);
    far.send(&back);
    assert_eq!(client.receive(1), [back]);
    let partial = Frame::tcp4_partial(mac(9), mac(1), &[7; 100]);
    client.send(std::slice::from_ref(&partial));
    assert_eq!(far.receive(|f| f.bytes[12..14] == [8, 0]), partial.completed());
}

#[test]
fn a_tap_interface() {
    let switch = Switch::with_ports(&[1]);
    let mut client = Bare::attached(&switch, 1);
    let name = format!("vst{}t", std::process::id());
    add_device(&switch, "tap", &format!("net_tap0,iface={name}"));
    let kernel = PacketSocket::open(&name);
    let frame = Frame::marked(mac(9), mac(1), 1, 777);
    client.send(std::slice::from_ref(&frame));
    assert_eq!(
        kernel.receive(|f| f.bytes[12..14] == EXPERIMENT.to_be_bytes()),
        frame
    );
    let back = Frame::marked(mac(1), mac(9), 3, 999);
    kernel.send(&back);
    let got = client.collect(50, std::time::Duration::from_millis(500));
    assert!(got.contains(&back), "{got:?}");
    switch.vsctl("del-port tap");
    assert!(
        !Path::new("/sys/class/net").join(&name).exists(),
        "the interface goes with the port"
    );
}

/// DPDK has a table for so many devices, of which the bridge's own port is one.
#[test]
fn one_device_too_many_is_told_why() {
    let switch = Switch::with_ports(&[]);
    let add = |n: u32| add_line(&format!("null{n}"), &format!("net_null{n},no-rx=1"));
    let all: Vec<String> = (1..dpdk_sys::RTE_MAX_ETHPORTS).map(add).collect();
    switch.vsctl(&all.join(" -- "));
    let one_more = dpdk_sys::RTE_MAX_ETHPORTS;
    let complaint = switch.vsctl_complaint(&add(one_more));
    let why = format!("this DPDK has no place for more than {one_more} devices");
    assert!(complaint.contains(&why), "{complaint}");
    switch.vsctl("del-port null1");
    eventually("it has the place", || {
        switch.vsctl(&format!("set Interface null{one_more} external_ids:again=1"));
        switch.get("Interface", &format!("null{one_more}"), "error") == "[]"
    });
    switch.stop();
}

/// A device that can't be had is named in its row; put right, it works.
#[test]
fn a_missing_device_is_an_error_in_its_row() {
    let switch = Switch::with_ports(&[1]);
    let missing = switch.scratch().join("none.pcap");
    let devargs = format!("net_pcap0,rx_pcap={}", missing.display());
    let complaint = switch.vsctl_complaint(&add_line("wire", &devargs));
    assert!(complaint.contains("net_pcap0"), "{complaint}");
    assert_eq!(switch.get("Interface", "wire", "ofport"), "-1");

    let frames = lengths(BROADCAST, mac(9));
    let mut client = Bare::attached(&switch, 1);
    pcap::write(&missing, &frames);
    switch.vsctl("set Interface wire ofport_request=5");
    assert_eq!(switch.vsctl("get Interface wire error ofport"), "[]\n5\n");
    client.expect(&frames);

    let complaint = switch.vsctl_complaint(&add_line("twice", &devargs));
    assert!(
        complaint.contains("'net_pcap0' is interface wire's already"),
        "{complaint}"
    );
}

#[test]
fn devices_come_and_go_while_traffic_runs() {
    const COUNT: u64 = 300_000;
    let switch = Switch::with_ports(&[1, 2]);
    let free = switch.free_mbufs();
    let (mut one, mut two) = (Bare::attached(&switch, 1), Bare::attached(&switch, 2));
    let (a, b) = Traffic::both_ways(COUNT);
    one.start_traffic(&a);
    two.start_traffic(&b);
    for _ in 0..8 {
        add_device(&switch, "null", "net_null0,no-rx=1");
        assert_eq!(switch.get("Interface", "null", "error"), "[]");
        switch.vsctl("del-port null");
    }
    let (a, b) = (one.report(), two.report());
    println!("longest gap {} us", a.gap_us.max(b.gap_us));
    a.assert_all(COUNT);
    b.assert_all(COUNT);
    drop((one, two));
    switch.wait_for_free_mbufs(free);
    // And once more at rest, with frames in the device's queues when it goes.
    add_device(&switch, "loop", "net_ring0");
    let mut one = Bare::attached(&switch, 1);
    one.send(&lengths(BROADCAST, mac(1)));
    switch.vsctl("del-port loop");
    drop(one);
    eventually("all mbufs are back", || switch.free_mbufs() == free);
}

/// More receive queues than one: each is polled, and the row says how many there are.
#[test]
fn a_device_with_several_queues() {
    const COUNT: u64 = 20_000;
    let switch = Switch::with_ports(&[1, 2]);
    switch.vsctl(
        "add-port br0 null -- set Interface null type=dpdk options:dpdk-devargs=net_null0,no-rx=1 options:n_rxq=2 \
         options:n_txq=2",
    );
    assert_eq!(
        switch.vsctl("get Interface null status:n_rxq status:n_txq"),
        "\"2\"\n\"2\"\n"
    );
    let queues = switch.appctl("dpif-netdev/pmd-rxq-show");
    assert_eq!(queues.matches("port: null").count(), 2, "{queues}");
    let (mut one, mut two) = (Bare::attached(&switch, 1), Bare::attached(&switch, 2));
    let (a, b) = exchange(&mut one, &mut two, &Traffic::both_ways(COUNT));
    a.assert_all(COUNT);
    b.assert_all(COUNT);
}
