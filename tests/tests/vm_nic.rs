//! The switch on a real driver: it runs in a machine in QEMU with two emulated NICs of the igb family, on the far ends of
//! whose cables frames are sent and compared.

use std::thread;
use std::time::{Duration, Instant};

use vswitch_tests::Frame;
use vswitch_tests::frames::{BROADCAST, mac};
use vswitch_tests::nic_host::{MACS, NICS, NicHost, Wire, nic};

/// For a frame that has to come, through a machine that may be slow.
const LIMIT: Duration = Duration::from_secs(20);
/// For a frame that must not come.
const QUIET: Duration = Duration::from_millis(200);

/// The frame comes out of `wire` as it is, and nothing before it.
#[track_caller]
fn comes(wire: &Wire, frame: &Frame) {
    assert_eq!(wire.receive(LIMIT).as_ref(), Some(frame));
}

/// Frame `n` of a run: of many lengths, and each third one with a VLAN tag.
fn numbered(to: u8, from: u8, n: u32) -> Frame {
    let len = 60 + n as usize * 37 % 1455;
    let mut frame = Frame::marked(mac(to), mac(from), n as u8, len);
    frame.bytes[14..18].copy_from_slice(&n.to_be_bytes());
    if n.is_multiple_of(3) {
        frame.tagged(7)
    } else {
        frame
    }
}

/// `count` frames each way at the same time; each arrives once, in order, as it was sent.
#[track_caller]
fn exchange(wires: &[Wire; 2], count: u32) {
    let [one, two] = wires;
    thread::scope(|scope| {
        for (from, to, wire) in [(1, 2, one), (2, 1, two)] {
            scope.spawn(move || (0..count).for_each(|n| wire.send(&numbered(to, from, n))));
        }
        for (from, to, wire) in [(1, 2, two), (2, 1, one)] {
            scope.spawn(move || {
                for n in 0..count {
                    let expected = numbered(to, from, n);
                    assert_eq!(wire.receive(LIMIT), Some(expected), "frame {n} from {from}");
                }
                assert_eq!(wire.receive(QUIET), None);
            });
        }
    });
}

/// A bridge with both NICs on it, by the names that the historic switch had for them. Both links are up.
fn bridge(host: &mut NicHost) {
    host.vsctl("add-br br0 -- set Bridge br0 datapath_type=dpdk");
    for port in ["ovs_dpdk_16", "ovs_dpdk_17"] {
        host.vsctl(&format!("add-port br0 {port} -- set Interface {port} type=dpdk"));
        host.wait_interface(port, "link_state", "up");
    }
    host.wires.iter().for_each(Wire::drain);
}

#[test]
fn two_nics_by_vfio() {
    let mut host = NicHost::boot();
    let (code, text) = host.host_setup(&format!("--bind {} --yes", NICS[0]));
    assert!(
        code != 0 && text.contains("10.0.0.16"),
        "a NIC with an address is not taken"
    );
    // VFIO comes after the switch.
    host.check(
        "echo 200 >/proc/sys/vm/nr_hugepages; mkdir /dev/hugepages; mount -t hugetlbfs nodev /dev/hugepages",
    );
    host.start_switch();
    host.bind("vfio-pci");
    bridge(&mut host);
    every_kind_of_frame(&host.wires);
    exchange(&host.wires, 10_000);
    what_the_rows_say(&mut host);
    options_change_while_it_runs(&mut host);
    cable_pulled(&mut host);
    a_nested_client(&mut host);
    vlans_by_hardware(&mut host);
    removed_and_added(&mut host);
    pulled_out(&mut host, "vfio-pci");
    back_to_the_kernel(&mut host);
}

#[test]
fn two_nics_by_uio() {
    let mut host = NicHost::boot();
    host.bind("uio_pci_generic");
    host.start_switch();
    bridge(&mut host);
    every_kind_of_frame(&host.wires);
    exchange(&host.wires, 300);
    cable_pulled(&mut host);
    pulled_out(&mut host, "uio_pci_generic");
    back_to_the_kernel(&mut host);
}

/// Own address, foreign, broadcast, multicast; one tag and two; from the shortest to the longest.
fn every_kind_of_frame([one, two]: &[Wire; 2]) {
    let plain = |to, mark, len| Frame::marked(to, mac(1), mark, len);
    for frame in [
        plain(MACS[0], 1, 100),
        plain(MACS[1], 2, 100),
        plain(mac(99), 3, 60),
        plain(BROADCAST, 4, 1514),
        plain([0x01, 0, 0x5e, 0, 0, 5], 5, 777),
        plain(BROADCAST, 6, 1514).tagged(5),
        plain(BROADCAST, 8, 1514).tagged(5).service_tagged(6),
        plain(BROADCAST, 9, 1514).tagged(5).tagged(6),
    ] {
        one.send(&frame);
        comes(two, &frame);
    }
    // A tag of VLAN 0 has nothing but a priority, which Open vSwitch does not pass on either.
    one.send(&plain(BROADCAST, 7, 60).tagged(0));
    comes(two, &plain(BROADCAST, 7, 60));
    let answer = Frame::marked(mac(1), mac(2), 10, 1514);
    two.send(&answer);
    comes(one, &answer);
}

fn what_the_rows_say(host: &mut NicHost) {
    let text = host.vsctl("get Interface ovs_dpdk_16 status link_speed duplex mtu mac_in_use ofport");
    for word in [
        "driver_name=net_e1000_igb",
        "device=\"0000:01:00.0\"",
        "bus_name=pci, vendor_id=8086, device_id=10c9",
        "kernel_driver=vfio-pci",
        "link_events=interrupt",
        "rx-flow-ctrl=\"false\"",
        "max_rx_queues=\"16\"",
        "rx_csum_offload=\"true\"",
        "tx_tcp_csum_offload=\"true\"",
        "tx_tcp_seg_offload=\"true\"",
        "\n1000000000\nfull\n1500\n\"52:54:00:00:00:10\"\n16",
    ] {
        assert!(text.contains(word), "{word}");
    }
    let names =
        "rx_packets tx_packets rx_dropped tx_dropped rx_good_packets tx_good_packets rx_crc_errors rx_errors";
    let columns = names
        .split(' ')
        .map(|n| format!("statistics:{n}"))
        .collect::<Vec<_>>()
        .join(" ");
    // Both the switch's counters and the NIC's: 9 frames from here and 1 from there, and the run. They are written every
    // few seconds.
    host.wait_interface("ovs_dpdk_16", "statistics:tx_good_packets", "10001");
    host.wait_interface("ovs_dpdk_16", "statistics:rx_good_packets", "10009");
    let counters = host.vsctl(&format!("get Interface ovs_dpdk_16 {columns}"));
    let counters: Vec<&str> = counters.split_whitespace().collect();
    assert_eq!(counters, ["10009", "10001", "0", "0", "10009", "10001", "0", "0"]);
    let (_, text) = host.run("OVS_RUNDIR=/run/dpdk-vswitchd ovs-vsctl add-port br0 wrong -- set Interface wrong type=dpdk options:dpdk-devargs=09:00.0");
    assert!(text.contains("there is no PCI device 0000:09:00.0"));
    host.vsctl("del-port wrong");
}

/// Queues, descriptors, MTU and flow control, while the port stays where it is.
fn options_change_while_it_runs(host: &mut NicHost) {
    let port = "Interface ovs_dpdk_16";
    // QEMU's igb keeps a frame back only while all of its queues are full: one that is full beside an empty one loses what comes.
    // So there are descriptors for all frames that are under way at once, should the machine stand still.
    host.vsctl(&format!(
        "set {port} mtu_request=9000 options:n_rxq=2 options:n_txq=2 options:n_rxq_desc=1024 options:n_txq_desc=256 \
         options:rx-flow-ctrl=true"
    ));
    host.vsctl("set Interface ovs_dpdk_17 mtu_request=9000");
    for name in ["ovs_dpdk_16", "ovs_dpdk_17"] {
        host.wait_interface(name, "link_state", "up");
    }
    let text = host.vsctl(&format!(
        "get {port} mtu status:n_rxq status:n_txq status:rx-flow-ctrl status:tx-flow-ctrl error"
    ));
    assert_eq!(text, "9000\n\"2\"\n\"2\"\n\"true\"\n\"false\"\n[]");
    let [one, two] = &host.wires;
    // Chains of two mbufs to five, with tags and without; the second is one byte too long.
    for frame in [
        Frame::marked(mac(2), mac(1), 1, 2049),
        Frame::marked(mac(2), mac(1), 2, 4000).tagged(5),
        Frame::marked(mac(2), mac(1), 3, 9014),
        Frame::marked(BROADCAST, mac(1), 4, 9014)
            .tagged(5)
            .service_tagged(6),
    ] {
        one.send(&frame);
        comes(two, &frame);
        let mut back = frame;
        back.bytes[..12].rotate_left(6);
        back.bytes[0] &= !1;
        back.bytes[6] &= !1;
        back.bytes[6..12].copy_from_slice(&mac(2));
        two.send(&back);
        comes(one, &back);
    }
    // Flows are spread over both queues: each is in order, and all come.
    let flow = |n: u8| Frame::tcp4_partial(mac(2), mac(1), &[n; 64]).completed();
    let mut flows: Vec<Frame> = (0..64)
        .map(|n| {
            let mut frame = flow(n);
            frame.bytes[35] = n;
            frame
        })
        .collect();
    flows.iter().for_each(|frame| one.send(frame));
    let mut came: Vec<Frame> = (0..64).map_while(|_| two.receive(LIMIT)).collect();
    flows.sort_by(|a, b| a.bytes.cmp(&b.bytes));
    came.sort_by(|a, b| a.bytes.cmp(&b.bytes));
    assert_eq!(came, flows);
    both_queues_have_work(host, &flows);
    exchange(&host.wires, 500);
}

/// The NIC spreads `flows` over its two queues (RSS), so both cost the PMD thread time.
fn both_queues_have_work(host: &mut NicHost, flows: &[Frame]) {
    let until = Instant::now() + LIMIT;
    loop {
        for _ in 0..20 {
            flows.iter().for_each(|frame| host.wires[0].send(frame));
            flows
                .iter()
                .for_each(|_| assert!(host.wires[1].receive(LIMIT).is_some()));
        }
        let text = host.appctl("dpif-netdev/pmd-rxq-show -secs 5");
        let busy = |queue| {
            let mut lines = text.lines().map(str::split_whitespace);
            lines.any(|line| {
                let words: Vec<&str> = line.collect();
                matches!(words[..], ["port:", "ovs_dpdk_16", "queue-id:", id, .., usage, "%"] if id == queue && usage != "0")
            })
        };
        if busy("0") && busy("1") {
            return;
        }
        assert!(Instant::now() < until, "{text}");
    }
}

/// The link goes and comes, and the row with it.
fn cable_pulled(host: &mut NicHost) {
    host.cable(0, false);
    host.wait_interface("ovs_dpdk_16", "link_state", "down");
    host.cable(0, true);
    host.wait_interface("ovs_dpdk_16", "link_state", "up");
    exchange(&host.wires, 100);
}

/// A secondary in the machine, on a client port beside the NICs.
fn a_nested_client(host: &mut NicHost) {
    host.vsctl("add-port br0 ovs_dpdk_1 -- set Interface ovs_dpdk_1 type=dpdk");
    host.check("mkfifo /tmp/client && (sleep 10000 >/tmp/client &)");
    let serial = host.vm.serial().unwrap_or_else(|e| panic!("{e}"));
    serial
        .spawn("bare-client </tmp/client", "/tmp/client.log")
        .unwrap_or_else(|e| panic!("{e}"));
    let mut answers = 0;
    let mut ask = |host: &mut NicHost, line: &str| {
        host.check(&format!("echo '{line}' >/tmp/client"));
        answers += 1;
        host.wait_for(
            "the client answers",
            "grep -cE '^(ok|error)' /tmp/client.log",
            |n| n == answers.to_string(),
        );
        let answer = host.check("grep -E '^(ok|error)' /tmp/client.log | tail -n 1");
        assert!(answer.starts_with("ok"), "{line}");
        answer
    };
    ask(host, "attach /run/dpdk-vswitchd/attach.sock 1 1 nested");
    // What it sends reaches the wires, with checksums that the NIC has made.
    for frame in [
        Frame::marked(BROADCAST, mac(3), 1, 200),
        Frame::tcp4_partial(BROADCAST, mac(3), &[7; 101]),
        Frame::tcp6_partial(BROADCAST, mac(3), &[7; 333]).tagged(5),
    ] {
        ask(host, &format!("send 0 {frame}"));
        let frame = frame.completed();
        host.wires.iter().for_each(|wire| comes(wire, &frame));
    }
    // The NICs cut what is too large for the wire.
    ask(host, "send-large 0 20480 1400");
    for wire in &host.wires {
        let whole = Frame::tcp4_large(20480).bytes;
        for (at, payload) in whole[54..].chunks(1400).enumerate() {
            let segment = wire.receive(LIMIT).expect("a segment");
            assert_eq!(segment.bytes[38..42], (1 + at as u32 * 1400).to_be_bytes());
            assert_eq!(segment.bytes[54..], *payload);
            assert_eq!(segment.checksums_are_right(), Some(true), "{segment:?}");
        }
    }
    // And the other way round. A frame that is too long for it goes to the other NIC alone, in a copy.
    let [one, two] = &host.wires;
    let short = Frame::marked(mac(3), mac(1), 2, 1000);
    let long = Frame::marked(BROADCAST, mac(1), 3, 9014);
    one.send(&long);
    comes(two, &long);
    one.send(&short);
    let answer = ask(host, &format!("receive 1 {}", LIMIT.as_millis()));
    assert_eq!(answer, format!("ok {short}"));
    assert_eq!(host.wires[1].receive(QUIET), None, "it was learned");
    host.wait_interface("ovs_dpdk_1", "statistics:tx_drop_too_long", "1");
    // The NIC looks at checksums: who gets a good one need not. A wrong one is for the receiver to drop.
    let good = Frame::tcp4_partial(mac(3), mac(1), &[5; 300]).completed();
    let mut wrong = good.clone();
    wrong.bytes[299] ^= 1;
    host.wires[0].send(&good);
    host.wires[0].send(&wrong);
    let known = ask(host, &format!("checksums 2 {}", LIMIT.as_millis()));
    assert_eq!(known, "ok Valid Unknown");
    host.vsctl("del-port ovs_dpdk_1");
}

/// An access port: the NIC puts the tag in, software takes it out.
fn vlans_by_hardware(host: &mut NicHost) {
    host.vsctl("set Port ovs_dpdk_16 tag=5");
    let [one, two] = &host.wires;
    for len in [60, 1514, 9014] {
        let frame = Frame::marked(mac(20), mac(21), 1, len);
        one.send(&frame);
        comes(two, &frame.clone().tagged(5));
        let back = Frame::marked(mac(21), mac(20), 2, len);
        two.send(&back.clone().tagged(5));
        comes(one, &back);
    }
    two.send(&Frame::marked(BROADCAST, mac(20), 3, 100));
    assert_eq!(one.receive(QUIET), None);
    host.vsctl("clear Port ovs_dpdk_16 tag");
}

fn removed_and_added(host: &mut NicHost) {
    host.vsctl("del-port ovs_dpdk_17");
    host.vsctl(
        "add-port br0 ovs_dpdk_17 -- set Interface ovs_dpdk_17 type=dpdk options:n_rxq=2 mtu_request=9000",
    );
    host.wait_interface("ovs_dpdk_17", "link_state", "up");
    host.wires.iter().for_each(Wire::drain);
    exchange(&host.wires, 100);
}

/// A NIC that is pulled out of the running switch, and put back. VFIO asks the switch to let it go, and waits; UIO does not.
fn pulled_out(host: &mut NicHost, driver: &str) {
    host.monitor("device_del nic1");
    host.wait_interface("ovs_dpdk_17", "error", "0000:02:00.0 was removed");
    host.wait_for(
        "the kernel has let it go",
        "ls -d /sys/bus/pci/devices/0000:02:00.0",
        |text| text.contains("No such"),
    );
    // The switch goes on, and says what is wrong when it is asked to try again.
    // What "DPDK port 1" was it stays, though only one NIC is left to count.
    host.vsctl("--no-wait set Interface ovs_dpdk_17 mtu_request=7000");
    host.wait_interface("ovs_dpdk_17", "error", "there is no PCI device 0000:02:00.0");
    host.monitor(&format!("device_add {}", nic(1)));
    host.wait_for("igb has it", "ls /sys/bus/pci/drivers/igb", |text| {
        text.contains(NICS[1])
    });
    host.vsctl("--no-wait set Interface ovs_dpdk_17 mtu_request=8000");
    host.wait_interface("ovs_dpdk_17", "error", "bound to the kernel's driver igb");
    host.wait_interface("ovs_dpdk_17", "error", "scripts/host-setup --bind 0000:02:00.0");
    host.wait_for("it has its address", "ip address show", |text| {
        text.contains("10.0.0.17")
    });
    host.check(&format!(
        "ip address flush dev $(ls /sys/bus/pci/devices/0000:02:00.0/net) && \
         /opt/scripts/host-setup --bind 0000:02:00.0 --driver {driver} --yes"
    ));
    // Nobody need tell the switch.
    host.wait_interface("ovs_dpdk_17", "error", "[]");
    host.wait_interface("ovs_dpdk_17", "link_state", "up");
    host.vsctl("set Interface ovs_dpdk_17 mtu_request=9000");
    host.wires.iter().for_each(Wire::drain);
    exchange(&host.wires, 100);
    host.appctl("exit");
}

/// The kernel's igb drives both again, and answers.
fn back_to_the_kernel(host: &mut NicHost) {
    let [one, two] = NICS;
    let (code, _) = host.host_setup(&format!("--unbind {one} --unbind {two} --yes"));
    assert_eq!(code, 0);
    let (_, status) = host.host_setup("--status");
    assert_eq!(status.matches("drv=igb").count(), 2);
    for n in [0, 1] {
        let address = 16 + n as u8;
        host.wait_for("it has its address", "ip address show", |text| {
            text.contains(&format!("10.0.0.{address}"))
        });
        let wire = &host.wires[n];
        wire.drain();
        let request = Frame::arp(mac(9), [10, 0, 0, 99], [10, 0, 0, address]);
        let answered = (0..20).any(|_| {
            wire.send(&request);
            let answer = |f: &Frame| f.bytes[..6] == mac(9) && f.bytes[6..12] == MACS[n];
            wire.receive_where(Duration::from_secs(1), answer).is_some()
        });
        assert!(answered, "no answer from 10.0.0.{address}");
    }
}
