//! The switch in a machine with two NUMA nodes, one CPU each: who polls whom, and whose mbufs are from where.

use vswitch_common::port::ALLOC_LEVEL;
use vswitch_tests::nic_host::{APPCTL, NicHost};

/// What the thread on core `core` polls, as `pmd-rxq-show` has it.
fn polled(text: &str, core: usize) -> String {
    let head = format!("pmd thread numa_id {core} core_id {core}:");
    let (_, rest) = text
        .split_once(&head)
        .unwrap_or_else(|| panic!("no {head:?} in {text}"));
    rest.split("pmd thread").next().unwrap_or_default().to_owned()
}

/// The machine with so many hugepages of 2 MiB on each node.
fn boot(pages: [usize; 2]) -> NicHost {
    let mut host = NicHost::boot_with_nodes();
    assert_eq!(host.check("cat /sys/devices/system/node/online"), "0-1");
    for (node, count) in pages.into_iter().enumerate() {
        let file = format!("/sys/devices/system/node/node{node}/hugepages/hugepages-2048kB/nr_hugepages");
        host.check(&format!("echo {count} >{file}"));
        assert_eq!(host.check(&format!("cat {file}")), count.to_string());
    }
    host.check("mkdir /dev/hugepages; mount -t hugetlbfs nodev /dev/hugepages");
    host
}

/// Adds port `port` to the bridge if it is not there, and attaches a client that is kept on `cpu`.
fn attach(host: &mut NicHost, port: usize, cpu: usize) {
    host.vsctl(&format!(
        "--may-exist add-port br0 dpdkr{port} -- set Interface dpdkr{port} type=dpdkr"
    ));
    host.check(&format!("mkfifo /tmp/in{port} && (sleep 10000 >/tmp/in{port} &)"));
    host.check(&format!(
        "(taskset -c {cpu} bare-client </tmp/in{port} >/tmp/out{port} 2>&1 & echo $! >/tmp/pid{port})"
    ));
    host.check(&format!(
        "echo 'attach /run/dpdk-vswitchd/attach.sock {port} 1 client' >/tmp/in{port}"
    ));
    let answer = format!("cat /tmp/out{port}");
    host.wait_for("the client is attached", &answer, |text| {
        text.contains("ok carrier=1")
    });
}

/// Two clients, each kept on a CPU: the thread beside it polls its queue. All of the memory is on the second node, which
/// serves a port in the kernel as well.
#[test]
fn clients_are_polled_on_their_node() {
    let mut host = boot([0, 150]);
    host.start_switch();
    host.vsctl("set Open_vSwitch . other_config:pmd-cpu-mask=0x3");
    host.vsctl("add-br br0");
    host.check("modprobe tun");
    host.vsctl("add-port br0 tap0 -- set Interface tap0 type=tap");
    // Not the CPUs that the ports' order would give.
    let places = [(1, 1), (2, 0)];
    for (port, cpu) in places {
        attach(&mut host, port, cpu);
    }
    let shown = host.appctl("dpif-netdev/pmd-rxq-show");
    for (port, core) in places {
        let polled = polled(&shown, core);
        assert!(polled.contains(&format!("dpdkr{port} ")), "{polled}");
    }
    // One pool, which needs no figures of its own.
    let memory = host.appctl("memory/show");
    assert!(!memory.contains("node"), "{memory}");
    host.appctl("exit");
}

/// What `memory/show` says of `key`.
fn figure(host: &mut NicHost, key: &str) -> u32 {
    let text = host.appctl("memory/show");
    let word = text
        .split_whitespace()
        .find_map(|word| word.strip_prefix(key)?.strip_prefix(':'));
    word.and_then(|n| n.parse().ok())
        .unwrap_or_else(|| panic!("no {key} in {text:?}"))
}

/// With memory on both nodes each has a pool, and a client's mbufs and rings come from its own node's.
#[test]
fn clients_have_memory_of_their_node() {
    let mut host = boot([60, 60]);
    host.check("dpdk-vswitchd --socket-mem=64,96 -- --detach");
    host.vsctl("add-br br0");
    let free_keys = ["node0-mbufs-free", "node1-mbufs-free"];
    let free = free_keys.map(|key| figure(&mut host, key));
    assert_eq!(figure(&mut host, "node0-mbufs"), 19_660);
    assert_eq!(figure(&mut host, "node1-mbufs"), 29_491);
    assert_eq!(figure(&mut host, "mbufs"), 19_660 + 29_491);
    assert_eq!(figure(&mut host, "mbufs-free"), free[0] + free[1]);
    let mut left = free;
    let mut attached = Vec::new();
    for (port, node) in [(1, 1), (2, 0), (3, 1)] {
        attach(&mut host, port, node);
        attached.push((port, node));
        wait_for_attached(&mut host, &attached);
        // Those that it has at its disposal.
        left[node] -= ALLOC_LEVEL;
        wait_for_free(&mut host, left);
    }
    // The next client of a port may run elsewhere.
    host.check("kill $(cat /tmp/pid*) && rm /tmp/in1");
    wait_for_free(&mut host, free);
    attach(&mut host, 1, 0);
    attached.push((1, 0));
    wait_for_attached(&mut host, &attached);
    host.appctl("exit");
}

fn wait_for_free(host: &mut NicHost, [first, second]: [u32; 2]) {
    let expected = format!("node0-mbufs-free:{first} ");
    let expected_too = format!("node1-mbufs-free:{second}");
    host.wait_for(
        "each node has what is not the clients'",
        &format!("{APPCTL} memory/show"),
        |text| text.contains(&expected) && text.ends_with(&expected_too),
    );
}

/// Waits until the log has these ports with the nodes of their rings, as clients attached to them.
fn wait_for_attached(host: &mut NicHost, expected: &[(usize, usize)]) {
    let number = |text: &str, before: &str| {
        let (_, rest) = text.split_once(before)?;
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        rest[..end].parse().ok()
    };
    let read = |line: &str| Some((number(line, "|port ")?, number(line, "rings on NUMA node ")?));
    host.wait_for(
        "the rings of each client are on its node",
        "grep attached, /run/dpdk-vswitchd/dpdk-vswitchd.log",
        |log| log.lines().filter_map(read).eq(expected.iter().copied()),
    );
}
