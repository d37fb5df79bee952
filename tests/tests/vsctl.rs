//! The stock tools against the switch: the paper's commands as printed, and what people do after them.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use vswitch_common::stats::Counter;
use vswitch_tests::frames::{BROADCAST, mac};
use vswitch_tests::switch::Leftovers;
use vswitch_tests::{Bare, Frame, Switch, eventually};

/// The paper's Figure 6, with one physical port (16) and two VM ports.
const PAPER: &[&str] = &[
    "add-br br0 -- set Bridge br0 datapath_type=dpdk",
    "add-port br0 ovs_dpdk_16 -- set Interface ovs_dpdk_16 type=dpdk",
    "add-port br0 ovs_dpdk_1 -- set Interface ovs_dpdk_1 type=dpdk",
    "add-port br0 ovs_dpdk_2 -- set Interface ovs_dpdk_2 type=dpdk",
];

const FIGURE_6: &str = r"    Bridge br0
        datapath_type: dpdk
        Port ovs_dpdk_1
            Interface ovs_dpdk_1
                type: dpdk
        Port br0
            Interface br0
                type: internal
        Port ovs_dpdk_2
            Interface ovs_dpdk_2
                type: dpdk
        Port ovs_dpdk_16
            Interface ovs_dpdk_16
                type: dpdk
";

/// `show` without the database's id in front and its version behind, which are not the switch's. Ports come in the
/// order of their random ids; here by name.
fn show(switch: &Switch) -> String {
    let text = switch.vsctl("show");
    let (first, rest) = text.split_once('\n').expect("a line with the database's id");
    assert!(first.len() == 36 && !first.starts_with(' '), "{text}");
    let rest: Vec<&str> = rest
        .lines()
        .filter(|l| !l.starts_with("    ovs_version:"))
        .collect();
    sorted(&(rest.join("\n") + "\n"))
}

fn sorted(text: &str) -> String {
    let start = text.find("        Port").unwrap_or(text.len());
    let (head, ports) = text.split_at(start);
    let mut blocks: Vec<String> = ports
        .split("        Port ")
        .filter(|b| !b.is_empty())
        .map(|b| format!("        Port {b}"))
        .collect();
    blocks.sort();
    head.to_owned() + &blocks.concat()
}

#[track_caller]
fn at_once(what: &str, action: impl FnOnce()) {
    let start = Instant::now();
    action();
    let took = start.elapsed();
    assert!(took < Duration::from_secs(2), "{what} took {took:?}");
}

fn with_nic() -> Switch {
    // DPDK port 0 of a machine without a NIC to spare.
    Switch::builder().eal(&["--vdev=net_null0,no-rx=1"]).start()
}

#[test]
fn the_papers_commands_without_waiting() {
    let switch = with_nic();
    for command in PAPER {
        at_once(command, || {
            assert_eq!(switch.vsctl(&format!("--no-wait {command}")), "")
        });
    }
    eventually("the ports get their numbers", || {
        switch.get("Interface", "ovs_dpdk_2", "ofport") == "2"
    });
    assert_eq!(show(&switch), sorted(FIGURE_6));
    for (port, number) in [("br0", "65534"), ("ovs_dpdk_1", "1"), ("ovs_dpdk_16", "16")] {
        assert_eq!(switch.get("Interface", port, "ofport"), number);
    }
}

#[test]
fn the_papers_commands_with_waiting() {
    let switch = with_nic();
    for command in PAPER {
        at_once(command, || assert_eq!(switch.vsctl(command), ""));
    }
    assert_eq!(show(&switch), sorted(FIGURE_6));
    assert_eq!(switch.vsctl("list-br"), "br0\n");
    assert_eq!(
        switch.vsctl("list-ports br0"),
        "ovs_dpdk_1\novs_dpdk_16\novs_dpdk_2\n"
    );
    assert_eq!(switch.vsctl("port-to-br ovs_dpdk_2"), "br0\n");
    let status = switch.vsctl("get Open_vSwitch . dpdk_initialized datapath_types");
    assert_eq!(status, "true\n[dpdk, netdev]\n");
    assert!(
        switch
            .get("Open_vSwitch", ".", "dpdk_version")
            .starts_with("DPDK 2")
    );
    assert_eq!(switch.get("Bridge", "br0", "datapath_id").len(), 16);
}

/// ovs-vsctl says what is wrong with a row, the row keeps it, and its neighbours do not mind.
#[test]
fn errors_name_the_thing() {
    let switch = Switch::with_ports(&[1]);
    for (row, named) in [
        ("x1 -- set Interface x1 type=dpdk", "options:dpdk-devargs"),
        ("x2 -- set Interface x2 type=dpdkr", "options:port=N"),
        (
            "x3 -- set Interface x3 type=dpdkr options:port=lots",
            "options:port=lots",
        ),
        ("x4 -- set Interface x4 type=dpdkr options:port=1", "dpdkr1"),
        ("ovs_dpdk_16", "type=dpdk"),
        (
            "ovs_dpdk_17 -- set Interface ovs_dpdk_17 type=dpdk",
            "no DPDK port 1",
        ),
        ("ovs_dpdk_99 -- set Interface ovs_dpdk_99 type=dpdk", "99"),
        ("x5 -- set Interface x5 type=vxlan", "'vxlan'"),
        (
            "x9 -- set Interface x9 type=dpdkvhostuserclient options:vhost-server-path=/x",
            "dpdk-qemu-shim --port N --socket PATH",
        ),
        (
            "xa -- set Interface xa type=patch options:peer=xb",
            "use one bridge and VLANs",
        ),
        (
            "x6 -- set Interface x6 type=dpdk options:dpdk-devargs=0000:7f:1f.7",
            "0000:7f:1f.7",
        ),
        (
            "x7 -- set Interface x7 type=dpdk options:dpdk-devargs=net_nonsense0",
            "net_nonsense0",
        ),
        (
            "x8 -- set Interface x8 type=dpdk options:dpdk-devargs=net_null7 options:n_rxq=0",
            "n_rxq=0",
        ),
    ] {
        let name = row.split(' ').next().unwrap();
        let complaint = switch.vsctl_complaint(&format!("add-port br0 {row}"));
        assert!(
            complaint.contains(&format!("Error detected while setting up '{name}'"))
                && complaint.contains(named),
            "{row}: {complaint:?}"
        );
        assert!(switch.get("Interface", name, "error").contains(named), "{row}");
        assert_eq!(switch.get("Interface", name, "ofport"), "-1");
        assert!(switch.vsctl("show").contains("error: "));
        assert_eq!(switch.vsctl(&format!("del-port {name}")), "");
        assert!(!switch.vsctl("show").contains("error"));
    }
    assert_eq!(switch.get("Interface", "dpdkr1", "ofport"), "1");
    Bare::attached(&switch, 1);
}

#[test]
fn a_row_put_right_loses_its_error() {
    let switch = Switch::with_ports(&[]);
    let complaint = switch.vsctl_complaint("add-port br0 vm -- set Interface vm type=dpdkr");
    assert!(complaint.contains("options:port"), "{complaint}");
    switch.vsctl("set Interface vm options:port=4");
    assert_eq!(switch.vsctl("get Interface vm error ofport"), "[]\n1\n");
    Bare::attached(&switch, 4);
    // And the other way about.
    switch.vsctl("set Interface vm type=gre");
    assert_eq!(switch.get("Interface", "vm", "ofport"), "-1");
    assert!(Bare::start(&switch, "late").attach(4, 1).is_err());
}

/// The port works all the same.
#[test]
fn an_option_without_effect_is_named() {
    let switch = Switch::with_ports(&[1]);
    let null = "null -- set Interface null type=dpdk options:dpdk-devargs=net_null0,no-rx=1";
    switch.vsctl(&format!("add-port br0 {null}"));
    for (port, ofport) in [("null", "2"), ("br0", "65534")] {
        let complaint = switch.vsctl_complaint(&format!("set Interface {port} options:busy-poll=true"));
        assert!(
            complaint.is_empty() || complaint.contains("busy-poll"),
            "{complaint}"
        );
        let error = switch.get("Interface", port, "error");
        assert!(error.contains("options:busy-poll is for VM ports"), "{error}");
        assert!(error.contains("other_config:pmd-sleep-max=0"), "{error}");
        switch.wait_for_log(&format!("port {port}: options:busy-poll is for VM ports"));
        assert_eq!(switch.get("Interface", port, "ofport"), ofport);
        switch.vsctl(&format!("remove Interface {port} options busy-poll"));
        assert_eq!(switch.vsctl(&format!("get Interface {port} error")), "[]\n");
    }
}

/// So are one that another kind of port takes, and one that none does; others that the row has count.
#[test]
fn options_that_do_not_fit_the_port_are_named() {
    let switch = Switch::with_ports(&[1]);
    let null = "null -- set Interface null type=dpdk options:dpdk-devargs=net_null0,no-rx=1";
    switch.vsctl(&format!("add-port br0 {null} options:n_rxq=2 options:n_rxqs=3"));
    assert_eq!(
        switch.vsctl("get Interface null ofport status:n_rxq"),
        "2\n\"2\"\n"
    );
    switch.vsctl("set Interface dpdkr1 options:n_rxq=2");
    for (port, option, known) in [
        ("null", "n_rxqs", "which takes dpdk-devargs, n_rxq, n_txq"),
        ("dpdkr1", "n_rxq", "queues= of QEMU's -netdev"),
    ] {
        let error = switch.get("Interface", port, "error");
        let named = format!("options:{option} has no effect");
        assert!(error.contains(&named) && error.contains(known), "{error}");
        switch.wait_for_log(&format!("port {port}: {named}"));
        switch.vsctl(&format!("remove Interface {port} options {option}"));
        assert_eq!(switch.vsctl(&format!("get Interface {port} error")), "[]\n");
    }
    let (mut client, frame) = (
        Bare::attached(&switch, 1),
        Frame::marked(BROADCAST, mac(1), 1, 60),
    );
    client.send(&[frame]);
    switch.wait_for_count("null", Counter::TxPackets, 1);
}

/// What is wrong in the rows of a bridge, a port and the switch itself: said once, and what works goes on.
#[test]
fn values_without_effect_are_named_once() {
    let switch = Switch::with_ports(&[1]);
    switch
        .vsctl("set Bridge br0 other_config:mac-aging-time=5 other_config:datapath-id=xyz fail_mode=secure");
    switch.vsctl("set Bridge br0 stp_enable=true -- --id=@m create Mirror name=m select_all=true -- add Bridge br0 mirrors @m");
    switch.vsctl("set Open_vSwitch . other_config:pmd-cpu-mask=0x0 other_config:pmd-sleep-max=long");
    switch.vsctl("set Open_vSwitch . other_config:stats-update-interval=seldom other_config:dpdk-init=true");
    switch.vsctl("set Open_vSwitch . other_config:hw-offload=true other_config:dpdk-socket-mem=9000");
    switch.vsctl("set Port dpdkr1 tag=5 trunks=6,7 qos=@q -- --id=@q create QoS type=linux-htb");
    switch.vsctl("set Bridge br0 datapath_type=system -- set Interface dpdkr1 bfd:enable=true");
    switch.vsctl("set Interface dpdkr1 mtu_request=20000 mac=\\\"my-own\\\"");
    let error = switch.get("Interface", "dpdkr1", "error");
    assert!(error.contains("trunks of the port have no effect"), "{error}");
    assert!(
        error.contains("mtu_request=20000 is not within 68 to 16000"),
        "{error}"
    );
    assert_eq!(switch.vsctl("get Interface dpdkr1 ofport mtu"), "1\n1500\n");
    switch.vsctl("--no-wait add-br lo -- add-port br0 x -- set Interface x type=gre");
    // Other changes are no reason to say it again; who does not work is tried again with each.
    switch.vsctl("add-br br1");
    switch.vsctl("del-br br1");
    let log = switch.log();
    for text in [
        "bridge br0: other_config:mac-aging-time=5 is not a number from 15 to 3600; 15 is used",
        "bridge br0: other_config:datapath-id=xyz is not up to 16 hexadecimal digits",
        "bridge br0: OpenFlow is not supported",
        "other_config:pmd-cpu-mask: '0x0' names no CPU; the PMD threads stay as they are",
        "other_config:pmd-sleep-max=long is not a number of microseconds",
        "bridge br0: not supported and without effect: stp_enable",
        "bridge br0: mirror m: it has no effect without an output_port",
        "other_config:stats-update-interval=seldom is not a number of milliseconds; 5000 is used",
        "Open_vSwitch other_config: not supported and without effect: hw-offload\n",
        "Open_vSwitch other_config:dpdk-socket-mem counts from the next start of the switch",
        "bridge br0: datapath_type=system: this switch forwards in user space, as netdev does",
        "port dpdkr1: not supported and without effect: qos\n",
        "port dpdkr1: not supported and without effect: qos, bfd\n",
        "port dpdkr1: mac has no effect on a VM port",
        "port dpdkr1: mtu_request=20000",
        "bridge lo: port lo: the host has an interface 'lo' already",
        "port x: interface type 'gre' is not supported",
    ] {
        assert_eq!(log.matches(text).count(), 1, "{text}: {log}");
    }
    switch.vsctl("clear Port dpdkr1 trunks qos -- clear Interface dpdkr1 mtu_request mac bfd");
    assert_eq!(switch.vsctl("get Interface dpdkr1 error"), "[]\n");
    Bare::attached(&switch, 1);
}

#[test]
fn port_numbers_are_given_as_asked() {
    let switch = Switch::with_ports(&[]);
    let add = |name: &str, more: &str| {
        switch.vsctl(&format!(
            "add-port br0 {name} -- set Interface {name} type=dpdkr {more}"
        ));
        switch.get("Interface", name, "ofport")
    };
    assert_eq!(add("dpdkr1", "ofport_request=100"), "100");
    assert_eq!(add("dpdkr2", ""), "1");
    let other = add("dpdkr3", "ofport_request=100");
    assert!(other != "100" && other != "1", "{other} is somebody's already");
    // A number stays with its port while others come and go, unless it has asked for another that gets free.
    switch.vsctl("del-port dpdkr1");
    assert_eq!(switch.get("Interface", "dpdkr2", "ofport"), "1");
    let numbers = [
        add("dpdkr4", "ofport_request=100"),
        switch.get("Interface", "dpdkr3", "ofport"),
    ];
    assert_eq!(numbers.iter().filter(|n| *n == "100").count(), 1, "{numbers:?}");
}

#[test]
fn ports_and_bridges_are_deleted() {
    let switch = Switch::with_ports(&[1, 2]);
    switch.add_bridge("br1", &[3]);
    let mut clients: Vec<Bare> = (1..=3).map(|n| Bare::attached(&switch, n)).collect();
    switch.vsctl("del-port br0 dpdkr2");
    assert!(
        clients[1].ok("event 2000").starts_with("evicted 7 "),
        "it is told why"
    );
    assert!(switch.snapshot().ports.iter().all(|p| p.info.name != "dpdkr2"));
    switch.vsctl("del-br br0");
    assert!(clients[0].ok("event 2000").starts_with("evicted 7 "));
    assert_eq!(switch.vsctl("list-br"), "br1\n");
    let names = || -> Vec<String> { switch.snapshot().ports.into_iter().map(|p| p.info.name).collect() };
    assert!(
        names().contains(&"dpdkr3".to_owned()) && !names().contains(&"dpdkr1".to_owned()),
        "{:?}",
        names()
    );
    assert_eq!(
        clients[2].ok("event 0"),
        "nothing",
        "another bridge's client stays"
    );
    assert_eq!(switch.appctl("ofproto/list"), "br1\n");
    switch.vsctl("del-br br1");
    assert_eq!(show(&switch).trim(), "");
}

#[test]
fn columns_follow_the_traffic() {
    let switch = Switch::with_ports(&[1, 2]);
    assert_eq!(
        switch.vsctl("get Interface dpdkr1 link_state admin_state mtu status:status"),
        "down\nup\n1500\ndisconnected\n"
    );
    let (mut one, mut two) = (Bare::attached(&switch, 1), Bare::attached_queues(&switch, 2, 3));
    let frames: Vec<Frame> = (0..9).map(|n| Frame::marked(BROADCAST, mac(1), n, 100)).collect();
    one.send(&frames);
    two.expect(&frames);
    eventually("the columns show it", || {
        switch.vsctl("get Interface dpdkr1 link_state statistics:rx_packets statistics:rx_bytes")
            == "up\n9\n900\n"
            && switch.vsctl("get Interface dpdkr2 statistics:tx_packets status:n_rxq") == "9\n\"3\"\n"
    });
    one.ok("detach");
    eventually("the link goes down", || {
        switch.get("Interface", "dpdkr1", "link_state") == "down"
    });
}

#[test]
fn a_restart_keeps_the_configuration() {
    let mut switch = Switch::with_ports(&[1, 2]);
    switch.vsctl("set Port dpdkr2 tag=7 -- set Interface dpdkr1 ofport_request=40");
    let before = show(&switch);
    switch.end();
    switch.leftovers().assert_none();
    switch.restart();
    assert_eq!(show(&switch), before);
    let mut two = Bare::attached(&switch, 2);
    let mut one = Bare::attached(&switch, 1);
    let frame = Frame::marked(BROADCAST, mac(2), 1, 60);
    two.send(std::slice::from_ref(&frame));
    one.expect(&[frame.tagged(7)]);
    switch.stop();
}

#[test]
fn a_second_switch_in_the_directory_is_refused() {
    let mut switch = Switch::with_ports(&[1]);
    let output = switch.command().output().expect("it starts");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(
        text.contains("a switch uses the run-time directory")
            && text.contains(&switch.rundir().display().to_string()),
        "{text}"
    );
    assert!(
        text.contains(&switch.pid().to_string()),
        "it names the process: {text}"
    );
    assert!(switch.runs());
    Bare::attached(&switch, 1);
    switch.stop();
}

/// One in another container may have a run-time directory of the same name: its files of hugepages would be the first one's.
#[test]
fn a_second_switch_on_the_same_hugepages_is_refused() {
    let mut switch = Switch::with_ports(&[1]);
    let pages = switch.leftovers().hugepage_files();
    let hide = "mount -t tmpfs none \"$0\" && mkdir \"$0/run\" && exec \"$@\"";
    let command = switch.command();
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", hide])
        .arg(switch.scratch())
        .arg(command.get_program())
        .args(command.get_args())
        .env_remove("OVS_RUNDIR")
        .output()
        .expect("util-linux is there");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && text.contains("another switch"),
        "{text}"
    );
    assert!(switch.runs() && switch.leftovers().hugepage_files() == pages);
    Bare::attached(&switch, 1);
    switch.stop();
}

/// As in a container that is given both /dev and /dev/hugepages.
#[test]
fn hugepages_that_are_mounted_twice_are_no_other_switchs() {
    let twice = "mount --bind /dev/hugepages /dev/hugepages && exec \"$@\"";
    let wrapper = ["unshare", "--mount", "sh", "-c", twice, "sh"];
    let switch = Switch::builder().wrapper(&wrapper).start();
    switch.add_bridge("br0", &[1]);
    Bare::attached(&switch, 1);
    switch.stop();
}

#[test]
fn appctl_answers() {
    let switch = Switch::with_ports(&[1, 2]);
    let (mut one, mut two) = (Bare::attached(&switch, 1), Bare::attached(&switch, 2));
    let frame = Frame::marked(mac(2), mac(1), 1, 60);
    one.send(std::slice::from_ref(&frame));
    two.expect(std::slice::from_ref(&frame));

    let list = switch.appctl("list-commands");
    assert!(list.starts_with("The available commands are:\n"), "{list}");
    for command in [
        "exit",
        "fdb/show",
        "fdb/flush",
        "memory/show",
        "coverage/show",
        "vlog/set",
        "version",
    ] {
        assert!(list.contains(&format!("\n  {command}")), "{command}: {list}");
    }
    assert!(switch.appctl("version").contains("dpdk-vswitchd"));
    assert!(switch.appctl("memory/show").contains("clients:2 mac-entries:1"));
    assert!(switch.appctl("coverage/show").contains("rx_packets"));
    let row = switch.appctl("fdb/show br0");
    let row: Vec<&str> = row
        .lines()
        .nth(1)
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    assert_eq!(row[..3], ["1", "0", "02:00:00:00:00:01"]);
    switch.appctl("fdb/add br0 dpdkr2 0 02:00:00:00:00:33");
    assert!(switch.appctl("fdb/show br0").contains("static"));
    // It stays when the table gets another size, as does what was learned; and when the port's client goes.
    switch.vsctl("set Bridge br0 other_config:mac-table-size=100");
    let table = switch.appctl("fdb/show br0");
    assert!(
        table.contains("static") && table.contains("02:00:00:00:00:01"),
        "{table}"
    );
    drop(two);
    eventually("its client is gone", || {
        switch.appctl("memory/show").contains("clients:1")
    });
    assert!(switch.appctl("fdb/show br0").contains("static"));
    switch.appctl("fdb/flush");
    assert_eq!(switch.appctl("vlog/set attach:dbg"), "");

    for (line, said) in [
        ("fdb/show br9", "no such bridge"),
        ("fdb/show", "requires at least 1"),
        ("no/such", "\"no/such\" is not a valid command"),
        ("vlog/reopen", "Logging to file not configured"),
        ("vlog/set attach:file:dbg", "Logging to file not configured"),
    ] {
        let output = switch.tool("ovs-appctl", &line.split(' ').collect::<Vec<_>>());
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{line}: {text}");
        assert!(text.contains(said), "{line}: {text}");
    }
    assert_eq!(switch.count("dpdkr1", Counter::RxPackets), 1);
}

#[test]
fn appctl_exit_ends_it_cleanly() {
    let mut switch = Switch::with_ports(&[1]);
    let _client = Bare::attached(&switch, 1);
    at_once("exit", || assert_eq!(switch.appctl("exit"), ""));
    assert!(switch.wait_for_end().success());
    switch.leftovers().assert_none();
}

/// As logrotate moves it.
#[test]
fn a_detached_switch_begins_a_new_log_file() {
    let mut switch = Switch::start();
    switch.end();
    let mut command = switch.command();
    command.args(["--detach", "--log", "switch:file:dbg"]);
    // A pipe would stay open for as long as the switch runs.
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    assert!(status.expect("it starts").success());
    let log = switch.rundir().join("dpdk-vswitchd.log");
    let moved = switch.rundir().join("moved.log");
    fs::rename(&log, &moved).expect("the log is there");
    assert_eq!(switch.appctl("vlog/reopen"), "");
    switch.vsctl("set Open_vSwitch . other_config:hw-offload=true");
    let said = |path| {
        fs::read_to_string(path)
            .expect("it is there")
            .contains("hw-offload")
    };
    assert!(said(&log) && !said(&moved));
    switch.appctl("exit");
    eventually("nothing is left", || switch.leftovers() == Leftovers::default());
}

#[test]
fn counters_are_shown_without_dpdk() {
    let switch = Switch::with_ports(&[1, 2]);
    let mut one = Bare::attached(&switch, 1);
    one.send(&[Frame::marked(mac(2), mac(1), 1, 60)]);
    switch.wait_for_count("dpdkr1", Counter::RxDropNoOutput, 1);
    let output = switch.command().arg("--show-stats").output().expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        text.contains("dpdkr1") && text.contains("rx_drop_no_output"),
        "{text}"
    );
}
