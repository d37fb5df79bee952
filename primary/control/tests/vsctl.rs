//! The stock ovs-vsctl against a pretended switch.

mod support;

use std::time::{Duration, Instant};
use support::{Database, PretendSwitch, eventually, tool, tool_ok, vsctl};
use vswitch_control::config::{FailMode, VlanMode};
use vswitch_control::status::Status;

#[test]
fn commands_without_no_wait_return_at_once() {
    let database = Database::new();
    let dir = database.path();
    let switch = PretendSwitch::start(database.target());
    switch.config_where("the first, empty configuration", |c| c.bridges.is_empty());
    let start = Instant::now();
    vsctl(
        dir,
        "add-br br0 -- set Bridge br0 datapath_type=dpdk fail_mode=secure",
    );
    vsctl(
        dir,
        "add-port br0 ovs_dpdk_2 -- set Interface ovs_dpdk_2 type=dpdk",
    );
    vsctl(
        dir,
        "add-port br0 ovs_dpdk_1 tag=7 -- set Interface ovs_dpdk_1 type=dpdk options:port=1",
    );
    assert!(
        start.elapsed() < Duration::from_secs(3),
        "took {:?}",
        start.elapsed()
    );

    let (_, config) = switch.config_where("two ports", |c| c.interfaces().count() == 3);
    let bridge = &config.bridges[0];
    assert_eq!(
        (bridge.name.as_str(), bridge.datapath_type.as_str()),
        ("br0", "dpdk")
    );
    assert_eq!(bridge.fail_mode, Some(FailMode::Secure));
    assert_eq!(
        bridge.ports.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(),
        ["br0", "ovs_dpdk_1", "ovs_dpdk_2"]
    );
    let port = &bridge.ports[1];
    assert_eq!((port.tag, port.interfaces[0].kind.as_str()), (Some(7), "dpdk"));
    assert_eq!(port.interfaces[0].options["port"], "1");

    assert_eq!(vsctl(dir, "get Interface br0 ofport"), "65534\n");
    assert_eq!(vsctl(dir, "get Interface ovs_dpdk_1 ofport mtu"), "2\n1500\n");
    assert_eq!(
        vsctl(dir, "get Bridge br0 datapath_id datapath_version"),
        "\"0000000000000001\"\n\"<built-in>\"\n"
    );
    assert_eq!(
        vsctl(
            dir,
            "get Open_vSwitch . dpdk_initialized dpdk_version iface_types"
        ),
        "true\n\"DPDK 22.11\"\n[dpdk, internal]\n"
    );
    assert_eq!(
        vsctl(dir, "get Open_vSwitch . cur_cfg"),
        vsctl(dir, "get Open_vSwitch . next_cfg")
    );
    vsctl(dir, "wait-until Interface ovs_dpdk_2 ofport=3");

    // Ports come in the order of their UUIDs.
    let show = vsctl(dir, "show");
    assert!(
        show.contains(
            "\n    Bridge br0\n        fail_mode: secure\n        datapath_type: dpdk\n        Port "
        ),
        "{show}"
    );
    for port in [
        "        Port br0\n            Interface br0\n                type: internal\n",
        "        Port ovs_dpdk_2\n            Interface ovs_dpdk_2\n                type: dpdk\n",
        "        Port ovs_dpdk_1\n            tag: 7\n            Interface ovs_dpdk_1\n                type: dpdk\n\
         \x20               options: {port=\"1\"}\n",
    ] {
        assert!(show.contains(port), "{show}");
    }
    assert_eq!(show.lines().count(), 15, "{show}");
}

#[test]
fn settings_arrive_and_vanish() {
    let database = Database::new();
    let dir = database.path();
    let switch = PretendSwitch::start(database.target());
    vsctl(
        dir,
        "add-br br0 -- add-br br1 -- add-port br0 p -- set Interface p type=dpdk",
    );
    vsctl(
        dir,
        "set Port p trunks=30,10 vlan_mode=native-untagged tag=10 other_config:qinq-ethtype=802.1q",
    );
    vsctl(
        dir,
        "set Interface p mac=\"02:00:00:00:00:09\" mtu_request=9000 ofport_request=12 ingress_policing_rate=1000",
    );
    vsctl(
        dir,
        "set Open_vSwitch . other_config:pmd-cpu-mask=0x2 other_config:dpdk-extra=--no-pci",
    );
    vsctl(dir, "set-controller br1 tcp:127.0.0.1:6653 tcp:127.0.0.1:6643");
    let (_, config) = switch.config_where("all of it", |c| c.bridges.len() == 2 && c.bridges[1].controller);
    let port = &config.bridges[0].ports[1];
    assert_eq!(
        (port.tag, port.trunks.as_slice()),
        (Some(10), [10, 30].as_slice())
    );
    assert_eq!(port.vlan_mode, Some(VlanMode::NativeUntagged));
    let interface = &port.interfaces[0];
    assert_eq!(interface.mac.as_deref(), Some("02:00:00:00:00:09"));
    assert_eq!(
        (interface.mtu_request, interface.ofport_request),
        (Some(9000), Some(12))
    );
    assert_eq!(interface.ingress_policing_rate, 1000);
    assert_eq!(config.other_config["pmd-cpu-mask"], "0x2");

    vsctl(
        dir,
        "clear Port p tag vlan_mode trunks -- remove Open_vSwitch . other_config dpdk-extra",
    );
    let (_, config) = switch.config_where("cleared", |c| !c.other_config.contains_key("dpdk-extra"));
    assert_eq!(
        (
            config.bridges[0].ports[1].tag,
            config.bridges[0].ports[1].vlan_mode
        ),
        (None, None)
    );
    vsctl(dir, "del-port p -- del-br br1");
    let (_, config) = switch.config_where("one bridge", |c| c.bridges.len() == 1);
    assert_eq!(config.bridges[0].ports.len(), 1);
    vsctl(dir, "set-controller br0 tcp:127.0.0.1:1");
    vsctl(dir, "emer-reset");
    let (_, config) = switch.config_where("no controller", |c| !c.bridges[0].controller);
    assert_eq!(config.bridges.len(), 1);
    vsctl(dir, "del-br br0");
    switch.config_where("no bridge", |c| c.bridges.is_empty());
}

#[test]
fn an_interface_that_cannot_be_set_up_is_reported_by_the_command() {
    let database = Database::new();
    let _switch = PretendSwitch::start(database.target());
    vsctl(database.path(), "add-br br0");
    let args = [
        "add-port",
        "br0",
        "bad",
        "--",
        "set",
        "Interface",
        "bad",
        "type=nonsense",
    ];
    let output = tool(database.path(), "ovs-vsctl", &args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        stderr.contains("Error detected while setting up 'bad': no such kind of device."),
        "{stderr}"
    );
    assert!(vsctl(database.path(), "show").contains("error: \"no such kind of device\""));
    vsctl(database.path(), "set Interface bad type=dpdk");
    eventually("the error is gone", || {
        !vsctl(database.path(), "show").contains("error:")
    });
}

#[test]
fn changes_of_status_columns_are_not_configuration_and_bursts_are_few_events() {
    let database = Database::new();
    let dir = database.path();
    let switch = PretendSwitch::start(database.target());
    vsctl(dir, "add-br br0");
    switch.config_where("a bridge", |c| c.bridges.len() == 1);
    let before = switch.configs();
    vsctl(dir, "--no-wait set Interface br0 external_ids:a=b link_speed=5");
    // --no-wait still counts up next_cfg? It does not, so nothing of the configuration has changed.
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(switch.configs(), before);

    let many: Vec<String> = (0..100).map(|n| format!("-- add-port br0 p{n}")).collect();
    vsctl(dir, &format!("--no-wait {}", many.join(" ")));
    switch.config_where("a hundred ports", |c| c.interfaces().count() == 101);
    assert_eq!(switch.configs(), before + 1, "one transaction, one event");
}

#[test]
fn the_event_follows_the_command_within_milliseconds() {
    let database = Database::new();
    let switch = PretendSwitch::start(database.target());
    switch.config_where("the first", |_| true);
    let mut delays = Vec::new();
    for n in 0..20 {
        let name = format!("b{n}");
        vsctl(database.path(), &format!("--no-wait add-br {name}"));
        let returned = Instant::now();
        let (at, _) = switch.config_where("the bridge", |c| c.bridges.iter().any(|b| b.name == name));
        delays.push(at.saturating_duration_since(returned));
    }
    delays.sort();
    println!(
        "event after the command returned: median {:?}, worst {:?}",
        delays[10], delays[19]
    );
    // Well below 5 ms; the margin is for a machine that builds something else meanwhile.
    assert!(delays[10] < Duration::from_millis(15), "{delays:?}");
}

#[test]
fn rows_deleted_meanwhile_do_no_harm() {
    let database = Database::new();
    let dir = database.path();
    // A switch that also talks about rows that never were.
    let switch = PretendSwitch::start_with(database.target(), |config| {
        let mut status: Status = support::status_for(config);
        let ghost = status.interfaces.values().next().cloned().unwrap_or_default();
        status.interfaces.insert(vswitch_control::Uuid(42), ghost);
        status
            .bridges
            .insert(vswitch_control::Uuid(43), Default::default());
        status
    });
    for round in 0..20 {
        // No waiting: the rows go while their status is on its way.
        vsctl(
            dir,
            &format!("--no-wait add-br r{round} -- add-port r{round} q{round}"),
        );
        vsctl(dir, &format!("--no-wait del-br r{round}"));
    }
    let start = Instant::now();
    vsctl(dir, "add-br last");
    assert!(start.elapsed() < Duration::from_secs(2));
    switch.config_where("only the last", |c| {
        c.bridges.len() == 1 && c.bridges[0].name == "last"
    });
}

#[test]
fn what_others_overwrite_is_put_right() {
    let database = Database::new();
    let dir = database.path();
    let _switch = PretendSwitch::start(database.target());
    vsctl(dir, "add-br br0");
    vsctl(dir, "--no-wait set Interface br0 ofport=77 mtu=1");
    eventually("the port number is right again", || {
        vsctl(dir, "get Interface br0 ofport mtu") == "65534\n1500\n"
    });
}

#[test]
fn text_that_the_server_would_choke_on_is_made_harmless() {
    let database = Database::new();
    let dir = database.path();
    let switch = PretendSwitch::start_with(database.target(), |config| {
        let mut status = support::status_for(config);
        for interface in status.interfaces.values_mut() {
            interface.error = Some("a\0b\u{1f}\"\\\u{10ffff}".into());
            interface.ifindex = Some(-5);
        }
        status
    });
    tool(dir, "ovs-vsctl", &["--timeout=5", "add-br", "br0"]);
    switch.config_where("the bridge", |c| c.bridges.len() == 1);
    eventually("the status is written", || {
        tool_ok(
            dir,
            "ovs-vsctl",
            &["get", "Interface", "br0", "ofport", "ifindex"],
        ) == "65534\n[]\n"
    });
}
