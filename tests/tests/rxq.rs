//! Receive queues and the PMD threads that poll them, by the stock tools: pinned, dealt out, moved, and what they cost.

use std::fs;
use std::time::{Duration, Instant};

use dpdk_vswitchd::cpus;
use vswitch_tests::bare::{Traffic, exchange};
use vswitch_tests::wait::within;
use vswitch_tests::{Bare, Switch, eventually};

/// The two CPUs that PMD threads get here.
fn two_cpus() -> [usize; 2] {
    let [one, other, ..] = cpus::allowed()[..] else {
        panic!("these tests need two CPUs")
    };
    [one, other]
}

fn set(switch: &Switch, key: &str, value: &str) {
    switch.vsctl(&format!("set Open_vSwitch . other_config:{key}={value}"));
}

/// Starts two PMD threads, on CPUs of their own.
fn on_two_cpus(switch: &Switch) -> [usize; 2] {
    let cpus = two_cpus();
    set(
        switch,
        "pmd-cpu-mask",
        &format!("{:#x}", 1u64 << cpus[0] | 1 << cpus[1]),
    );
    cpus
}

fn pin(switch: &Switch, port: &str, list: &str) {
    let column = format!("other_config:pmd-rxq-affinity=\"{list}\"");
    switch.tool_ok("ovs-vsctl", &["set", "Interface", port, &column]);
}

/// What a thread polls, as `pmd-rxq-show` has it.
#[derive(Debug, PartialEq, Eq)]
struct Shown {
    isolated: bool,
    /// Of port `null`.
    queues: Vec<u16>,
}

fn thread(isolated: bool, queues: &[u16]) -> Shown {
    Shown {
        isolated,
        queues: queues.to_vec(),
    }
}

fn shown(switch: &Switch) -> Vec<Shown> {
    let text = switch.appctl("dpif-netdev/pmd-rxq-show");
    let threads = text.split("pmd thread numa_id ").skip(1);
    threads
        .map(|thread| Shown {
            isolated: thread.contains("  isolated : true\n"),
            queues: thread
                .lines()
                .filter_map(|line| {
                    let queue = line.strip_prefix("  port: null              queue-id: ")?;
                    queue.split_whitespace().next()?.parse().ok()
                })
                .collect(),
        })
        .collect()
}

/// A switch with a device of four receive queues, where nothing ever comes in, and two PMD threads.
fn with_four_queues() -> (Switch, [usize; 2]) {
    let switch = Switch::with_ports(&[1]);
    let cpus = on_two_cpus(&switch);
    switch.vsctl(
        "add-port br0 null -- set Interface null type=dpdk options:dpdk-devargs=net_null0,no-rx=1 options:n_rxq=4",
    );
    (switch, cpus)
}

#[test]
fn queues_are_dealt_out_as_the_database_says() {
    let (switch, [one, other]) = with_four_queues();
    assert_eq!(shown(&switch), [thread(false, &[0, 3]), thread(false, &[1, 2])]);
    set(&switch, "pmd-rxq-assign", "roundrobin");
    assert_eq!(shown(&switch), [thread(false, &[0, 2]), thread(false, &[1, 3])]);

    pin(&switch, "null", &format!("0:{other}"));
    assert_eq!(shown(&switch), [thread(false, &[1, 2, 3]), thread(true, &[0])]);
    set(&switch, "pmd-rxq-assign", "group");
    set(&switch, "pmd-rxq-isolate", "false");
    assert_eq!(shown(&switch), [thread(false, &[1, 2]), thread(false, &[0, 3])]);

    pin(&switch, "null", &format!("0:{one},1:{one},2:{one},3:{other}"));
    assert_eq!(shown(&switch), [thread(false, &[0, 1, 2]), thread(false, &[3])]);
    switch.vsctl("remove Open_vSwitch . other_config pmd-rxq-isolate");
    assert_eq!(shown(&switch), [thread(true, &[0, 1, 2]), thread(true, &[3])]);
    // Nothing is left for a queue that is not pinned.
    pin(&switch, "null", &format!("0:{one},1:{one},3:{other}"));
    assert_eq!(shown(&switch), [thread(true, &[0, 1]), thread(true, &[3])]);
    switch.wait_for_log("port null: not polled where it is not pinned");
    // And with one thread fewer what is pinned to it goes to the other.
    set(&switch, "pmd-cpu-mask", &format!("{:#x}", 1u64 << one));
    pin(&switch, "null", &format!("3:{other}"));
    assert_eq!(shown(&switch), [thread(false, &[0, 1, 2, 3])]);
    switch.wait_for_log(&format!("port null: receive queue 3 is pinned to core {other}"));
}

#[test]
fn wrong_values_are_named_and_hurt_nothing() {
    let (switch, [one, _]) = with_four_queues();
    pin(&switch, "null", &format!("0:{one},1:first"));
    let named = format!("pmd-rxq-affinity=0:{one},1:first");
    switch.wait_for_log(&format!("port null: other_config:{named}"));
    assert!(switch.get("Interface", "null", "error").contains(&named));
    assert_eq!(shown(&switch), [thread(false, &[0, 3]), thread(false, &[1, 2])]);
    for (key, value) in [
        ("pmd-rxq-assign", "random"),
        ("pmd-rxq-isolate", "false"),
        ("pmd-auto-lb", "perhaps"),
        ("pmd-auto-lb-rebal-interval", "often"),
        ("pmd-auto-lb-load-threshold", "101"),
        ("pmd-auto-lb-improvement-threshold", "-3"),
    ] {
        set(&switch, key, value);
        switch.wait_for_log(&format!("Open_vSwitch other_config:{key}={value}"));
    }
    assert_eq!(shown(&switch), [thread(false, &[0, 3]), thread(false, &[1, 2])]);
    pin(&switch, "null", "");
    assert_eq!(switch.vsctl("get Interface null error"), "[]\n");
}

/// A change of the host's CPU sets takes threads off their CPUs, on many kernels.
#[test]
fn threads_come_back_to_their_cpus() {
    let switch = Switch::with_ports(&[1]);
    let both = on_two_cpus(&switch);
    let placed = || -> Vec<(u32, Vec<usize>)> {
        let tasks = fs::read_dir(format!("/proc/{}/task", switch.pid())).unwrap();
        let tids = tasks.map(|task| task.unwrap().file_name().to_str().unwrap().parse().unwrap());
        tids.map(|tid| (tid, cpus::of_thread(tid).unwrap())).collect()
    };
    let pinned: Vec<_> = placed().into_iter().filter(|(_, set)| set.len() == 1).collect();
    assert!(pinned.len() >= 2, "{pinned:?}");
    for (tid, _) in &pinned {
        cpus::pin(*tid, &both).unwrap();
    }
    eventually("they are back", || {
        let now = placed();
        pinned.iter().all(|thread| now.contains(thread))
    });
    switch.wait_for_log("was taken off CPU");
}

#[test]
fn the_counters_tell_where_threads_are_pinned() {
    let switch = Switch::start();
    let cpus = || -> Vec<Option<usize>> {
        let threads = switch.snapshot().threads;
        // Number 0 is the control thread.
        threads.iter().skip(1).map(|thread| thread.cpu).collect()
    };
    assert_eq!(cpus(), [None]);
    let both = on_two_cpus(&switch);
    assert_eq!(cpus(), both.map(Some));
    switch.vsctl("remove Open_vSwitch . other_config pmd-cpu-mask");
    assert_eq!(cpus(), [None]);
}

#[test]
fn the_text_is_that_of_open_vswitch() {
    let (switch, [one, other]) = with_four_queues();
    let _client = Bare::attached(&switch, 1);
    let node = cpus::node(one);
    let show = || switch.appctl(&format!("dpif-netdev/pmd-rxq-show -pmd {one} -secs 8 ovs-netdev"));
    // The client came last, when the others had been dealt out; its queue comes first by the port's number.
    let lines = format!(
        "Displaying last 10 seconds pmd usage %
pmd thread numa_id {node} core_id {one}:
  isolated : false
  port: dpdkr1            queue-id:  0 (enabled)   pmd usage:  0 %
  port: null              queue-id:  2 (enabled)   pmd usage:  0 %
  port: null              queue-id:  3 (enabled)   pmd usage:  0 %
  overhead:  0 %
"
    );
    eventually("an interval is over", || !show().contains("NOT AVAIL"));
    assert_eq!(show(), lines);
    assert_eq!(
        switch.appctl("dpif/show"),
        "netdev@ovs-netdev: hit:0 missed:0
  br0:
    br0 65534/0: (tap)
    dpdkr1 1/1: (dpdkr: configured_rx_queues=1, configured_tx_queues=1, mtu=1500)
    null 2/2: (dpdk: configured_rx_queues=4, configured_tx_queues=2, mtu=1500, requested_rx_queues=4, \
         requested_rxq_descriptors=1024, requested_tx_queues=1, requested_txq_descriptors=1024)
"
    );
    assert!(
        switch
            .appctl(&format!("dpif-netdev/pmd-stats-show -pmd {other}"))
            .starts_with(&format!(
                "pmd thread numa_id {node} core_id {other}:\n  packets received: 0\n  packet recirculations: 0\n"
            ))
    );
    let output = switch.tool("ovs-appctl", &["dpif-netdev/pmd-rxq-show", "ovs-system"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("please specify an existing datapath"));
}

/// The number in front of `unit`, behind `label`, in the only line of `text` that has it.
fn number(text: &str, label: &str) -> u64 {
    let line = text.lines().find_map(|line| line.trim().strip_prefix(label));
    let words = line.unwrap_or_else(|| panic!("no {label:?} in {text}")).trim();
    let digits = words
        .split(|c: char| !c.is_ascii_digit())
        .next()
        .unwrap_or_default();
    digits.parse().unwrap_or_else(|e| panic!("{words:?}: {e}"))
}

#[test]
fn work_is_counted_where_it_is_done() {
    const COUNT: u64 = 200_000;
    let switch = Switch::with_ports(&[1, 2]);
    let [one, other] = on_two_cpus(&switch);
    pin(&switch, "dpdkr1", &format!("0:{one}"));
    pin(&switch, "dpdkr2", &format!("0:{other}"));
    let (mut a, mut b) = (Bare::attached(&switch, 1), Bare::attached(&switch, 2));
    let ask = |command: &str, cpu: usize| switch.appctl(&format!("dpif-netdev/{command} -pmd {cpu}"));
    switch.appctl("dpif-netdev/pmd-stats-clear");
    let send = Traffic {
        send: COUNT,
        ..Traffic::default()
    };
    exchange(&mut a, &mut b, &(send, send.peer()));
    let (stats, perf) = (ask("pmd-stats-show", one), ask("pmd-perf-show", one));
    for text in [&stats, &perf] {
        println!("{text}");
    }
    assert_eq!(number(&stats, "packets received:"), COUNT);
    assert_eq!(number(&perf, "Rx packets:"), COUNT);
    assert_eq!(number(&perf, "Tx packets:"), COUNT);
    let (batches, rounds) = (number(&perf, "Tx batches:"), number(&perf, "- busy iterations:"));
    assert!(
        (COUNT / 32..=COUNT).contains(&batches) && rounds == batches,
        "{perf}"
    );
    let cycles = number(&stats, "processing cycles:");
    assert_eq!(
        number(&stats, "avg processing cycles per packet:"),
        cycles / COUNT
    );
    // Acknowledgements come back by the other thread.
    let back = number(&ask("pmd-stats-show", other), "packets received:");
    assert!(back > 0 && back < COUNT / 2, "{back}");
    switch.appctl(&format!("dpif-netdev/pmd-stats-clear -pmd {one}"));
    assert_eq!(number(&ask("pmd-stats-show", one), "packets received:"), 0);
    assert_eq!(number(&ask("pmd-stats-show", other), "packets received:"), back);
}

/// Two devices that never run dry, on one thread, and two queues where nothing comes on the other: new, they would stay
/// so; once it is known what they cost they are parted.
#[test]
fn what_queues_cost_decides_who_polls_them() {
    let switch = Switch::with_ports(&[]);
    let [one, other] = on_two_cpus(&switch);
    for (name, devargs, pins) in [
        ("busy1", "net_null1", format!("0:{one}")),
        ("idle", "net_null2,no-rx=1", format!("0:{other},1:{other}")),
        ("busy2", "net_null3", format!("0:{one}")),
    ] {
        switch.vsctl(&format!(
            "add-port br0 {name} -- set Interface {name} type=dpdk options:dpdk-devargs={devargs} options:n_rxq={}",
            pins.matches(':').count()
        ));
        pin(&switch, name, &pins);
    }
    let show = |cpu: usize| switch.appctl(&format!("dpif-netdev/pmd-rxq-show -secs 5 -pmd {cpu}"));
    let usage = |port: &str| {
        let text = show(one);
        let label = format!("port: {port:<16}  queue-id:  0 (enabled)   pmd usage:");
        if text.contains("NOT AVAIL") {
            0
        } else {
            number(&text, &label)
        }
    };
    eventually("each of the two has its half of the thread", || {
        (30..=60).contains(&usage("busy1")) && (30..=60).contains(&usage("busy2"))
    });
    print!("{}{}", show(one), show(other));
    switch.vsctl(
        "remove Interface busy1 other_config pmd-rxq-affinity -- remove Interface busy2 other_config pmd-rxq-affinity \
         -- remove Interface idle other_config pmd-rxq-affinity",
    );
    let polled = [one, other].map(|cpu| show(cpu).matches("port: busy").count());
    assert_eq!(polled, [1, 1], "{}{}", show(one), show(other));
}

/// The same without a word from anybody: a minute of one thread with all of the work, and the other one gets half of it.
#[test]
fn an_overloaded_thread_is_relieved() {
    let switch = Switch::with_ports(&[]);
    let cpus = on_two_cpus(&switch);
    set(&switch, "pmd-auto-lb", "true");
    // New, and all at once, they are dealt out there and back again: the first and the last to one thread.
    let ports = [
        ("a-busy", "net_null1", 1),
        ("b-idle", "net_null2,no-rx=1", 2),
        ("c-busy", "net_null3", 1),
    ];
    let add = ports.map(|(name, devargs, queues)| {
        format!(
            "add-port br0 {name} -- set Interface {name} type=dpdk options:dpdk-devargs={devargs} options:n_rxq={queues}"
        )
    });
    switch.vsctl(&add.join(" -- "));
    let busy = || {
        cpus.map(|cpu| {
            switch
                .appctl(&format!("dpif-netdev/pmd-rxq-show -pmd {cpu}"))
                .matches("-busy ")
                .count()
        })
    };
    let before = busy();
    assert!(
        before.contains(&2),
        "{}",
        switch.appctl("dpif-netdev/pmd-rxq-show")
    );
    let start = Instant::now();
    let parted = within(Duration::from_secs(100), || busy() == [1, 1]);
    println!("parted after {:.0} s", start.elapsed().as_secs_f64());
    assert!(
        parted && start.elapsed() > Duration::from_secs(45),
        "{}",
        switch.appctl("dpif-netdev/pmd-rxq-show")
    );
    assert!(switch.log().contains("dealt out anew"), "{}", switch.log());
}

/// Queues that change their thread all the time, under load: nothing is lost, and each queue's frames stay in order.
#[test]
fn frames_stay_in_order_while_queues_move() {
    const COUNT: u64 = 300_000;
    const QUEUES: u16 = 4;
    let switch = Switch::with_ports(&[1, 2]);
    let [one, other] = on_two_cpus(&switch);
    let free = switch.free_mbufs();
    let mut a = Bare::attached_queues(&switch, 1, QUEUES);
    let mut b = Bare::attached_queues(&switch, 2, QUEUES);
    let (mut to_b, mut to_a) = Traffic::both_ways(COUNT);
    // For three seconds at least.
    (to_b.rate, to_a.rate) = (COUNT / 3, COUNT / 3);
    a.start_traffic(&to_b);
    b.start_traffic(&to_a);
    let start = Instant::now();
    let mut moves = 0;
    while start.elapsed() < Duration::from_secs(3) {
        for cpus in [[one, other], [other, one]] {
            let list: Vec<String> = (0..QUEUES)
                .map(|queue| format!("{queue}:{}", cpus[usize::from(queue) % 2]))
                .collect();
            pin(&switch, "dpdkr1", &list.join(","));
            moves += 1;
        }
        switch.vsctl("remove Interface dpdkr1 other_config pmd-rxq-affinity");
        assert_eq!(
            switch.appctl("dpif-netdev/pmd-rxq-rebalance"),
            "pmd rxq rebalance requested.\n"
        );
    }
    println!("all queues of a port changed places {moves} times");
    assert!(moves >= 10, "{moves}");
    a.report().assert_all(COUNT);
    b.report().assert_all(COUNT);
    switch.assert_frames_accounted();
    drop((a, b));
    switch.wait_for_free_mbufs(free);
}
