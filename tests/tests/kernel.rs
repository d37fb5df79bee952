//! The host kernel on the switch: internal ports, a bridge's own port, and kernel interfaces by DPDK's drivers.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::path::Path;
use std::time::Duration;

use vswitch_common::stats::Counter;
use vswitch_tests::bare::Traffic;
use vswitch_tests::child::Child;
use vswitch_tests::frames::{BROADCAST, EXPERIMENT, mac};
use vswitch_tests::namespace::{Namespace, has_interface, wait_for_no_interface};
use vswitch_tests::packet::{PacketSocket, Veth, send_in_syn};
use vswitch_tests::prerequisites::{self, run};
use vswitch_tests::{Bare, Frame, PATIENCE, Switch, eventually, pcap, wait};

/// Adds an internal port and puts it into a namespace of its own.
#[track_caller]
fn internal(switch: &Switch, bridge: &str, name: &str, address: &str) -> Namespace {
    let namespace = Namespace::new();
    switch.vsctl(&format!(
        "add-port {bridge} {name} -- set Interface {name} type=internal"
    ));
    namespace.take(name, address);
    namespace
}

fn interface_file(name: &str, file: &str) -> String {
    fs::read_to_string(Path::new("/sys/class/net").join(name).join(file))
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

/// A bridge with clients 1 and 2, the namespaces `left` and `right` on it.
struct Net {
    left: Namespace,
    right: Namespace,
    switch: Switch,
}

impl Net {
    #[track_caller]
    fn new() -> Net {
        let switch = Switch::with_ports(&[1, 2]);
        Net {
            left: internal(&switch, "br0", "left0", "10.9.0.1/24"),
            right: internal(&switch, "br0", "right0", "10.9.0.2/24"),
            switch,
        }
    }
}

#[test]
fn interfaces_come_and_go_with_their_ports() {
    let switch = Switch::with_ports(&[1]);
    for (name, kind) in [("int0", "internal"), ("tap0", "tap"), ("ovs_dpdk_32", "dpdk")] {
        assert!(!has_interface(name));
        switch.vsctl(&format!(
            "add-port br0 {name} -- set Interface {name} type={kind} mac=\"02:aa:00:00:00:01\""
        ));
        assert_eq!(interface_file(name, "address"), "02:aa:00:00:00:01", "{name}");
        assert_eq!(
            switch.get("Interface", name, "ifindex"),
            interface_file(name, "ifindex")
        );
    }
    assert_eq!(switch.get("Interface", "ovs_dpdk_32", "ofport"), "32");
    assert_eq!(switch.get("Interface", "br0", "ofport"), "65534");
    assert!(has_interface("br0"), "the bridge's own");

    let (driver, backend) = if Path::new("/dev/vhost-net").exists() {
        ("net_virtio_user", "vhost-net")
    } else {
        ("net_tap", "tap")
    };
    for name in ["br0", "int0"] {
        assert_eq!(switch.get("Interface", name, "status:driver_name"), driver);
        assert_eq!(switch.get("Interface", name, "status:backend"), backend);
        assert_eq!(
            switch.vsctl(&format!("get Interface {name} admin_state link_state mtu error")),
            "down\ndown\n1500\n[]\n"
        );
    }

    // Changes reach the interface that is there.
    let index = interface_file("int0", "ifindex");
    switch.vsctl("set Interface int0 mac=\"02:aa:00:00:00:02\" mtu_request=1400");
    eventually("both changes are through", || {
        interface_file("int0", "address") == "02:aa:00:00:00:02" && interface_file("int0", "mtu") == "1400"
    });
    assert_eq!(
        switch.vsctl("get Interface int0 mac_in_use mtu"),
        "\"02:aa:00:00:00:02\"\n1400\n"
    );
    switch.vsctl("set Interface int0 mtu_request=2000");
    let mtu = if backend == "tap" { "1504" } else { "2000" };
    assert_eq!(
        switch.get("Interface", "int0", "mtu"),
        mtu,
        "as far as the driver goes"
    );
    let error = switch.vsctl("get Interface int0 error");
    let short = "mtu_request=2000 is more than its device can do, which has 1504";
    assert_eq!(error.contains(short), backend == "tap", "{error}");
    switch.vsctl("set Bridge br0 other_config:hwaddr=02:bb:00:00:00:01");
    assert_eq!(interface_file("br0", "address"), "02:bb:00:00:00:01");
    assert_eq!(interface_file("int0", "ifindex"), index);

    for name in ["int0", "tap0", "ovs_dpdk_32"] {
        switch.vsctl(&format!("del-port {name}"));
        assert!(!has_interface(name), "{name} goes with its port");
    }
    switch.vsctl("del-br br0");
    assert!(!has_interface("br0"));
}

/// An interface of the host's is not made anew, addresses and all, for what it can't be given while it is there.
#[test]
fn what_can_not_change_leaves_the_interface_alone() {
    let switch = Switch::with_ports(&[1]);
    switch.vsctl("add-port br0 int0 -- set Interface int0 type=internal");
    let index = interface_file("int0", "ifindex");
    for (queues, why) in [
        ("2", "made with 1, and stays so"),
        ("17", "not a number from 1 to 16"),
    ] {
        switch.vsctl(&format!("set Interface int0 options:n_rxq={queues}"));
        let error = switch.get("Interface", "int0", "error");
        assert!(
            error.contains(&format!("n_rxq={queues}")) && error.contains(why),
            "{error}"
        );
        assert_eq!(interface_file("int0", "ifindex"), index);
    }
    switch.vsctl("remove Interface int0 options n_rxq");
    assert_eq!(switch.get("Interface", "int0", "error"), "[]");

    // In another namespace its MTU is out of reach: what the switch sends there is not to change either.
    let namespace = Namespace::new();
    namespace.take("int0", "10.9.0.1/24");
    switch.vsctl("set Interface int0 mtu_request=1400");
    let error = switch.get("Interface", "int0", "error");
    assert!(error.contains("another network namespace"), "{error}");
    assert_eq!(switch.get("Interface", "int0", "mtu"), "1500");
    switch.vsctl("set Interface int0 mtu_request=1500");
    assert_eq!(switch.get("Interface", "int0", "error"), "[]");
    switch.vsctl("set Interface int0 mtu_request=1400");
    let mut client = Bare::attached(&switch, 1);
    let frame = Frame::marked(BROADCAST, mac(1), 1, 1514);
    namespace.enter(|| {
        let kernel = PacketSocket::open("int0");
        client.send(std::slice::from_ref(&frame));
        assert_eq!(
            kernel.receive(|f| f.bytes[12..14] == EXPERIMENT.to_be_bytes()),
            frame
        );
    });
}

#[test]
fn namespaces_reach_each_other() {
    let Net { left, right, switch } = Net::new();
    left.reaches("10.9.0.2");
    right.reaches("10.9.0.1");
    left.copies_to(&right, "10.9.0.2", 32, &switch);
    assert_eq!(
        switch.vsctl("get Interface left0 admin_state link_state"),
        "up\nup\n"
    );
    switch.assert_frames_accounted();

    // Their speed, for the record.
    prerequisites::program("iperf3", "iperf3");
    let mut server = right.command("iperf3");
    server.args(["-s", "-1", "-p", "7001"]);
    let log = switch.scratch().join("iperf3.log");
    let mut server = Child::start(&mut server, &log);
    eventually("iperf3 listens", || {
        right.run("cat /proc/net/tcp6 /proc/net/tcp").contains(":1B59 ")
    });
    let text = left.run("iperf3 -c 10.9.0.2 -p 7001 -t 1 -f m");
    let sums = text
        .lines()
        .filter(|l| l.ends_with("sender") || l.ends_with("receiver"));
    sums.for_each(|line| println!("{line}"));
    server.wait(PATIENCE);

    // A VLAN of its own: nothing gets through, until both are in it.
    switch.vsctl("set Port left0 tag=7");
    assert!(!left.pings("10.9.0.2", 2));
    switch.vsctl("set Port right0 tag=7");
    left.reaches("10.9.0.2");
}

/// The local ports of two bridges, in a namespace that routes between them.
#[test]
fn two_bridges_meet_in_the_host() {
    let switch = Switch::start();
    switch.add_bridge("br0", &[]);
    switch.add_bridge("br1", &[]);
    let left = internal(&switch, "br0", "left0", "10.9.0.2/24");
    let right = internal(&switch, "br1", "right0", "10.9.1.2/24");
    let router = Namespace::new();
    router.take("br0", "10.9.0.1/24");
    router.take("br1", "10.9.1.1/24");
    router.run("sysctl -q -w net.ipv4.ip_forward=1");
    left.ip("route add default via 10.9.0.1");
    right.ip("route add default via 10.9.1.1");
    left.reaches("10.9.1.2");
    left.copies_to(&right, "10.9.1.2", 8, &switch);
    for port in ["br0", "br1", "left0", "right0"] {
        assert!(switch.count(port, Counter::RxPackets) > 10, "{port}");
    }
    switch.assert_frames_accounted();
}

/// What the kernel leaves to a NIC's offloads must not reach a wire or a client undone.
#[test]
fn checksums_are_right_on_the_way_out_and_in() {
    let switch = Switch::with_ports(&[1]);
    let mut client = Bare::attached(&switch, 1);
    let (output, empty) = (
        switch.scratch().join("out.pcap"),
        switch.scratch().join("in.pcap"),
    );
    pcap::write(&empty, &[]);
    switch.vsctl(&format!(
        "add-port br0 wire -- set Interface wire type=dpdk options:dpdk-devargs=net_pcap0,rx_pcap={},tx_pcap={}",
        empty.display(),
        output.display()
    ));
    let host = internal(&switch, "br0", "host0", "10.9.0.1/24");
    // Nobody has this address, so that all goes to all.
    host.ip("neigh add 10.9.0.9 lladdr 02:00:00:00:00:99 dev host0");
    // TCP with data in its first segment.
    host.run("sysctl -q -w net.ipv4.tcp_fastopen=5");
    let sizes = [1, 100, 999, 1400];
    host.enter(|| {
        let udp = UdpSocket::bind("0.0.0.0:0").expect("the namespace has an address");
        for (i, size) in sizes.into_iter().enumerate() {
            let to = SocketAddrV4::new(Ipv4Addr::new(10, 9, 0, 9), 7000 + i as u16);
            let data: Vec<u8> = (0..size).map(|n| (n * 7 + i) as u8).collect();
            send_in_syn(to, &data);
            udp.send_to(&data, to).expect("the neighbour is known");
        }
    });
    let checked = |frames: &[Frame]| -> Vec<usize> {
        frames
            .iter()
            .filter_map(|f| {
                let right = f.checksums_are_right()?;
                assert!(right, "{f:?}");
                Some(f.len())
            })
            .collect()
    };
    // Headers of TCP have options as well.
    let complete = |seen: &[usize]| {
        sizes.iter().all(|size| {
            let udp = seen.contains(&(14 + 20 + 8 + size));
            udp && seen.iter().filter(|&&len| len > 14 + 20 + 20 + size).count() > 0
        }) && seen.iter().any(|&len| len > 1400 + 14 + 20 + 20)
    };
    let mut seen = Vec::new();
    let came = wait::within(PATIENCE, || {
        seen = checked(&pcap::read(&output));
        complete(&seen)
    });
    assert!(came, "on the wire: {seen:?}");
    let frames = client.collect(seen.len(), Duration::from_secs(2));
    assert!(complete(&checked(&frames)), "at the client: {frames:?}");

    // And the other way: a guest's half-done checksum is complete when the kernel sees it.
    let partial = Frame::tcp4_partial(BROADCAST, mac(1), &[7; 100]);
    host.enter(|| {
        let kernel = PacketSocket::open("host0");
        client.send(std::slice::from_ref(&partial));
        assert_eq!(
            kernel.receive(|f| f.bytes[6..14] == partial.bytes[6..14]),
            partial.clone().completed()
        );
    });
    switch.assert_frames_accounted();
}

#[test]
fn an_internal_port_in_a_vlan() {
    let switch = Switch::with_ports(&[1]);
    let mut client = Bare::attached(&switch, 1);
    let host = internal(&switch, "br0", "host0", "10.9.0.1/24");
    switch.vsctl("set Port host0 tag=7");
    host.enter(|| {
        let kernel = PacketSocket::open("host0");
        let mark = |f: &Frame| f.bytes[12..14] == EXPERIMENT.to_be_bytes();
        let (down, up) = (
            Frame::marked(BROADCAST, mac(1), 1, 300),
            Frame::marked(BROADCAST, mac(9), 2, 60),
        );
        client.send(&[down.clone().tagged(8), down.clone().tagged(7)]);
        assert_eq!(kernel.receive(mark), down);
        kernel.send(&up);
        client.expect(&[up.tagged(7)]);
    });
    assert_eq!(switch.count("host0", Counter::TxPackets), 1);
}

/// An interface that is down costs nothing: no frame is copied for it, and none of its own comes.
#[test]
fn an_interface_that_is_down_takes_no_part() {
    let switch = Switch::with_ports(&[1, 2]);
    let (mut one, mut two) = (Bare::attached(&switch, 1), Bare::attached(&switch, 2));
    let frame = Frame::marked(BROADCAST, mac(1), 1, 60);
    one.send(std::slice::from_ref(&frame));
    two.expect(std::slice::from_ref(&frame));
    two.expect_nothing();
    assert_eq!(switch.count("dpdkr1", Counter::RxCopies), 1);
    run("ip", &["link", "set", "br0", "addrgenmode", "none"]);
    run("ip", &["link", "set", "br0", "up"]);
    eventually("the switch sees that", || switch.port("br0").info.link);
    let kernel = PacketSocket::open("br0");
    one.send(std::slice::from_ref(&frame));
    assert_eq!(
        kernel.receive(|f| f.bytes[12..14] == EXPERIMENT.to_be_bytes()),
        frame
    );
    let back = Frame::marked(mac(1), mac(9), 3, 999);
    kernel.send(&back);
    one.expect(&[back]);
    run("ip", &["link", "set", "br0", "down"]);
    eventually("the switch sees that, too", || !switch.port("br0").info.link);
    assert_eq!(switch.get("Interface", "br0", "error"), "[]");
}

#[test]
fn ports_go_while_the_kernel_sends() {
    const COUNT: u64 = 200_000;
    let Net { left, right, switch } = Net::new();
    let free = switch.free_mbufs();
    left.reaches("10.9.0.2");
    let (mut one, mut two) = (Bare::attached(&switch, 1), Bare::attached(&switch, 2));
    let (a, b) = Traffic::both_ways(COUNT);
    one.start_traffic(&a);
    two.start_traffic(&b);
    // Frames to nobody, as fast as they go, which everybody gets.
    left.ip("neigh add 10.9.0.99 lladdr 02:00:00:00:00:99 dev left0");
    let mut flood = left.command("ping");
    flood.args(["-n", "-q", "-f", "-s", "1400", "10.9.0.99"]);
    let flood = Child::start(&mut flood, &switch.scratch().join("flood.log"));
    for _ in 0..3 {
        let seen = switch.count("left0", Counter::RxPackets);
        eventually("it sends", || switch.count("left0", Counter::RxPackets) > seen);
        switch.vsctl("del-port right0");
        switch.vsctl("add-port br0 right0 -- set Interface right0 type=internal");
        right.take("right0", "10.9.0.2/24");
    }
    switch.vsctl("del-port left0");
    drop(flood);
    one.report().assert_own(COUNT);
    two.report().assert_own(COUNT);
    drop((one, two));
    switch.vsctl("add-port br0 left0 -- set Interface left0 type=internal");
    left.take("left0", "10.9.0.1/24");
    left.reaches("10.9.0.2");
    switch.wait_for_free_mbufs(free);

    // The host may take an interface away as well. Then the row says so, and the next change brings it back.
    left.ip("link del left0");
    eventually("the row tells", || {
        switch.get("Interface", "left0", "error").contains("deleted")
    });
    switch.vsctl("set Interface left0 external_ids:try=again");
    assert_eq!(switch.get("Interface", "left0", "error"), "[]");
    left.take("left0", "10.9.0.1/24");
    left.reaches("10.9.0.2");
}

#[test]
fn a_killed_switch_leaves_no_interface_and_a_new_one_makes_them_again() {
    let mut switch = Switch::with_ports(&[1]);
    switch.vsctl("add-port br0 int0 -- set Interface int0 type=internal");
    let mac_of = |name| interface_file(name, "address");
    let before = (mac_of("br0"), mac_of("int0"));
    for _ in 0..2 {
        switch.kill();
        wait_for_no_interface("br0");
        wait_for_no_interface("int0");
        switch.restart();
        assert_eq!((mac_of("br0"), mac_of("int0")), before);
        assert_eq!(switch.vsctl("get Interface int0 error ofport"), "[]\n2\n");
    }
    switch.end();
    assert!(!has_interface("br0") && !has_interface("int0"));
}

#[test]
fn errors_say_what_is_in_the_way() {
    let veth = Veth::new();
    let switch = Switch::with_ports(&[]);
    for (name, named) in [
        (veth.near.as_str(), "already"),
        ("sixteen_bytes_xx", "15 bytes"),
        ("a:b", "':'"),
    ] {
        let add = format!("add-port br0 {name} -- set Interface {name} type=internal");
        let complaint = switch.vsctl_complaint(&add);
        assert!(complaint.contains(named), "{complaint}");
        assert!(switch.get("Interface", name, "error").contains(named));
        assert_eq!(switch.get("Interface", name, "ofport"), "-1");
        switch.vsctl(&format!("del-port {name}"));
    }
    // A bridge does without its interface, if it must.
    switch.vsctl(&format!("add-br {}", veth.far));
    assert_eq!(switch.get("Interface", &veth.far, "ofport"), "65534");
    assert!(
        switch
            .get("Interface", &veth.far, "error")
            .contains("the host has an interface")
    );
    drop(veth);
}

/// A switch that may not make interfaces, or can't, still switches.
#[test]
fn without_the_right_or_the_device_the_row_says_so() {
    let no_device = "mount -t tmpfs none /dev/net && exec \"$@\"";
    for (wrapper, named) in [
        (
            &["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"][..],
            "CAP_NET_ADMIN",
        ),
        (
            &["unshare", "--mount", "sh", "-c", no_device, "sh"][..],
            "/dev/net/tun is missing",
        ),
    ] {
        let switch = Switch::builder().wrapper(wrapper).start();
        switch.add_bridge("br0", &[1, 2]);
        let complaint = switch.vsctl_complaint("add-port br0 int0 -- set Interface int0 type=internal");
        assert!(complaint.contains(named), "{complaint}");
        assert!(switch.get("Interface", "br0", "error").contains(named));
        let (mut one, mut two) = (Bare::attached(&switch, 1), Bare::attached(&switch, 2));
        let frame = Frame::marked(BROADCAST, mac(1), 1, 60);
        one.send(std::slice::from_ref(&frame));
        two.expect(&[frame]);
    }
}
