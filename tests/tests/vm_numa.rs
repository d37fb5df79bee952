//! The switch in a machine with two NUMA nodes, one CPU each.

use vswitch_tests::nic_host::NicHost;

/// What the thread on core `core` polls, as `pmd-rxq-show` has it.
fn polled(text: &str, core: usize) -> String {
    let head = format!("pmd thread numa_id {core} core_id {core}:");
    let (_, rest) = text
        .split_once(&head)
        .unwrap_or_else(|| panic!("no {head:?} in {text}"));
    rest.split("pmd thread").next().unwrap_or_default().to_owned()
}

/// Two clients, each kept on a CPU: the thread beside it polls its queue.
#[test]
fn clients_are_polled_on_their_node() {
    let mut host = NicHost::boot_with_nodes();
    assert_eq!(host.check("cat /sys/devices/system/node/online"), "0-1");
    // All of the memory is on the second one.
    host.check(
        "echo 150 >/sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages; mkdir /dev/hugepages; \
         mount -t hugetlbfs nodev /dev/hugepages",
    );
    host.start_switch();
    host.vsctl("set Open_vSwitch . other_config:pmd-cpu-mask=0x3");
    host.vsctl("add-br br0");
    // Not the CPUs that the ports' order would give.
    for (port, cpu) in [(1, 1), (2, 0)] {
        host.vsctl(&format!(
            "add-port br0 dpdkr{port} -- set Interface dpdkr{port} type=dpdkr"
        ));
        host.check(&format!("mkfifo /tmp/in{port} && (sleep 10000 >/tmp/in{port} &)"));
        host.check(&format!(
            "(taskset -c {cpu} bare-client </tmp/in{port} >/tmp/out{port} 2>&1 &)"
        ));
        host.check(&format!(
            "echo 'attach /run/dpdk-vswitchd/attach.sock {port} 1 client' >/tmp/in{port}"
        ));
        let answer = format!("cat /tmp/out{port}");
        host.wait_for("the client is attached", &answer, |text| {
            text.contains("ok carrier=1")
        });
    }
    let shown = host.check("OVS_RUNDIR=/run/dpdk-vswitchd ovs-appctl dpif-netdev/pmd-rxq-show");
    for (port, core) in [(1, 1), (2, 0)] {
        let polled = polled(&shown, core);
        assert!(polled.contains(&format!("dpdkr{port} ")), "{polled}");
    }
    host.check("OVS_RUNDIR=/run/dpdk-vswitchd ovs-appctl exit");
}
