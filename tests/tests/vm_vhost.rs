//! Ports to the host kernel by vhost-net, in a machine whose kernel has it; and by the TAP driver, when it has it no more.

use std::time::Duration;

use vm_harness::guest;
use vswitch_tests::nic_host::NicHost;

/// Bytes to copy, and the time for that in a machine that may be slow.
const SIZE: u32 = 16 << 20;
const COPY: Duration = Duration::from_secs(60);

/// A bridge with two internal ports, each in a network namespace of its own, which `driver` is in use for.
fn two_namespaces(host: &mut NicHost, backend: &str, driver: &str) {
    host.vsctl("add-br br0");
    for (n, port) in [(1, "left"), (2, "right")] {
        host.vsctl(&format!(
            "add-port br0 {port} -- set Interface {port} type=internal mac=\\\"02:aa:00:00:00:0{n}\\\""
        ));
        let row = host.vsctl(&format!(
            "get Interface {port} status:backend status:driver_name mac_in_use admin_state error"
        ));
        assert_eq!(
            row,
            format!("{backend}\n{driver}\n\"02:aa:00:00:00:0{n}\"\ndown\n[]")
        );
        host.check(&format!(
            "ip link set {port} netns {port} && ip -n {port} address add 10.9.0.{n}/24 dev {port} && \
             ip -n {port} link set {port} up"
        ));
        host.wait_interface(port, "link_state", "up");
    }
    let ping = "ip netns exec left ping -c 1 -W 1 10.9.0.2";
    host.wait_for("they reach each other", ping, |said| {
        said.contains(" 0% packet loss")
    });
}

/// Pings, a copy that arrives whole, and what the path carries, for the record.
fn traffic(host: &mut NicHost, backend: &str) {
    let said = host.check("ip netns exec left ping -q -i 0.05 -c 20 10.9.0.2");
    assert!(said.contains("20 received"), "{said}");
    let serial = host.vm.serial().unwrap_or_else(|e| panic!("{e}"));
    serial
        .spawn(
            "ip netns exec right file-recv 7000 /tmp/copy",
            "/tmp/file-recv.log",
        )
        .unwrap_or_else(|e| panic!("{e}"));
    host.check(&format!(
        "head -c {SIZE} /dev/urandom >/tmp/sent && ip netns exec left file-send /tmp/sent 10.9.0.2 7000 && \
         while pidof socat; do sleep 0.1; done"
    ));
    let serial = host.vm.serial().unwrap_or_else(|e| panic!("{e}"));
    let [sent, copy] = ["/tmp/sent", "/tmp/copy"]
        .map(|file| guest::sha256(serial, file, COPY).unwrap_or_else(|e| panic!("{e}")));
    assert_eq!(sent, copy);
    // The last of the names is InCsumErrors.
    let counters = host.check("ip netns exec right grep ^Tcp: /proc/net/snmp");
    assert!(counters.ends_with(" 0"), "wrong checksums: {counters}");
    host.check("ip netns exec right iperf3 -s -1 -D && sleep 0.5");
    let report = host.check("ip netns exec left iperf3 -c 10.9.0.2 -t 3 -f m");
    let sums = report.lines().filter(|line| line.ends_with("receiver"));
    sums.for_each(|line| println!("{backend}: {line}"));
}

/// The switch sees what the host does to an interface, in whatever namespace, and makes one again that was deleted.
fn switched_and_deleted(host: &mut NicHost) {
    for (done, seen) in [("down", "down"), ("up", "up")] {
        host.check(&format!("ip -n left link set left {done}"));
        host.wait_interface("left", "link_state", seen);
    }
    host.check("ip -n left link del left");
    host.wait_interface("left", "error", "was deleted from the kernel");
    host.vsctl("set Interface left external_ids:try=again");
    host.wait_interface("left", "error", "[]");
    host.check("ip link show left");
}

/// The ports go, and the interfaces with them, wherever they are.
fn all_gone(host: &mut NicHost) {
    host.vsctl("del-br br0");
    let links = host.check("ip -br link; ip -n left -br link; ip -n right -br link");
    assert!(!links.contains("left") && !links.contains("right"), "{links}");
}

/// Frames of a VLAN leave by a trunk with their tag: without a VLAN interface there the kernel answers none of them.
fn tags_are_not_lost(host: &mut NicHost) {
    host.vsctl("set Port left tag=20");
    let came = |host: &mut NicHost| {
        let said = host.check("ip netns exec right grep right: /proc/net/dev");
        let packets = said.split_whitespace().nth(2).and_then(|n| n.parse::<u64>().ok());
        packets.unwrap_or_else(|| panic!("{said}"))
    };
    let before = came(host);
    host.check(
        "ip -n left neigh flush all; ip -n right neigh flush all; ip netns exec left ping -c 2 -W 1 10.9.0.2 || true",
    );
    assert!(came(host) > before, "the frames reach it");
    assert_eq!(host.check("ip -n right neigh"), "", "as frames of another VLAN");
    host.vsctl("clear Port left tag");
}

#[test]
fn the_kernel_by_vhost_net_and_without() {
    let mut host = NicHost::boot();
    host.check("modprobe vhost_net && ls /dev/vhost-net && ip netns add left && ip netns add right");
    host.check(
        "echo 200 >/proc/sys/vm/nr_hugepages; mkdir /dev/hugepages; mount -t hugetlbfs nodev /dev/hugepages",
    );
    host.start_switch();
    two_namespaces(&mut host, "vhost-net", "net_virtio_user");
    traffic(&mut host, "vhost-net");
    tags_are_not_lost(&mut host);
    switched_and_deleted(&mut host);
    all_gone(&mut host);
    host.check("rmmod vhost_net && ! ls /dev/vhost-net");
    two_namespaces(&mut host, "tap", "net_tap");
    traffic(&mut host, "tap");
    tags_are_not_lost(&mut host);
    switched_and_deleted(&mut host);
    all_gone(&mut host);
    host.appctl("exit");
}
