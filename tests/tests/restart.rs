//! The switch itself, or its database, killed and started again.

use std::time::Duration;

use dpdk_vswitchd::memory;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vswitch_common::stats::Counter;
use vswitch_tests::bare::Traffic;
use vswitch_tests::frames::{BROADCAST, mac};
use vswitch_tests::{Bare, Frame, Switch, eventually};

#[track_caller]
fn frames_pass(one: &mut Bare, two: &mut Bare) {
    let frame = Frame::marked(BROADCAST, mac(1), 1, 60);
    one.send(std::slice::from_ref(&frame));
    two.expect(&[frame]);
}

fn database_pid(switch: &Switch) -> Option<i32> {
    let processes = switch.leftovers().processes;
    let database = |(_, line): &&(i32, String)| line.contains("ovsdb-server ");
    processes.iter().find(database).map(|p| p.0)
}

/// SIGKILL under load, five times over: it comes up in the same directory with its configuration, and the old
/// memory is let go.
#[test]
fn a_switch_killed_under_load_starts_again() {
    let mut switch = Switch::with_ports(&[1, 2]);
    switch.vsctl("set Interface dpdkr1 ofport_request=33");
    let pages = switch.leftovers().hugepage_files();
    for _ in 0..5 {
        let (mut one, mut two) = (Bare::attached(&switch, 1), Bare::attached(&switch, 2));
        let (a, b) = Traffic::both_ways(u64::MAX);
        // The peers of a dead switch come to an end by themselves, as their time is up.
        one.start_traffic(&Traffic { seconds: 1, ..a });
        two.start_traffic(&Traffic { seconds: 1, ..b });
        eventually("frames flow both ways", || {
            ["dpdkr1", "dpdkr2"]
                .iter()
                .all(|port| switch.count(port, Counter::RxPackets) > 1000)
        });
        switch.kill();
        // With the old clients still alive and in its memory.
        switch.restart();
        println!("ready after {:?}", switch.start_time());
        assert_eq!(
            switch.leftovers().hugepage_files(),
            pages,
            "old pages were unlinked"
        );
        assert_eq!(switch.get("Interface", "dpdkr1", "ofport"), "33");
        assert_eq!(one.report().lost + two.report().lost, 0);
        assert_eq!(
            (one.ok("event 1000"), two.ok("event 1000")),
            ("gone".into(), "gone".into())
        );
        drop((one, two));
        assert_eq!(memory::holders(switch.prefix()), [0; 0], "old memory is free");
    }
    let (mut one, mut two) = (Bare::attached(&switch, 1), Bare::attached(&switch, 2));
    frames_pass(&mut one, &mut two);
    drop((one, two));
    switch.stop();
}

/// Numbers are given in the order in which ports are added, which no other switch knows.
#[test]
fn ports_keep_their_numbers() {
    let mut switch = Switch::with_ports(&[]);
    for port in 1..=12 {
        switch.vsctl(&format!(
            "add-port br0 dpdkr{port} -- set Interface dpdkr{port} type=dpdkr"
        ));
    }
    let numbers = |switch: &Switch| -> Vec<String> {
        (1..=12)
            .map(|port| switch.get("Interface", &format!("dpdkr{port}"), "ofport"))
            .collect()
    };
    let given: Vec<String> = (1..=12).map(|number| number.to_string()).collect();
    assert_eq!(numbers(&switch), given);
    switch.end();
    switch.restart();
    assert_eq!(numbers(&switch), given);
    switch.kill();
    switch.restart();
    assert_eq!(numbers(&switch), given);
    // Nor does a new port get the number of one that is set up anew, though it comes first by its name.
    switch.vsctl("add-port br0 a -- set Interface a type=dpdkr options:port=20 -- set Interface dpdkr2 options:port=21");
    assert_eq!(numbers(&switch), given);
    assert_eq!(switch.get("Interface", "a", "ofport"), "13");
}

/// What a killed switch leaves is found and removed by the next one, even if that one has nothing else to do.
#[test]
fn what_a_killed_switch_left_is_cleared_up() {
    let mut switch = Switch::with_ports(&[1]);
    switch.kill();
    assert!(switch.leftovers().hugepage_files() > 0);
    eventually("its database server ends with it", || {
        database_pid(&switch).is_none()
    });
    switch.restart();
    switch.stop();
}

/// It has left its counters, which are nobody's now.
#[test]
fn a_killed_switch_is_not_shown_as_running() {
    let mut switch = Switch::start();
    let show = |switch: &Switch| switch.command().arg("--show-stats").output().expect("it starts");
    assert!(show(&switch).status.success());
    switch.kill();
    let output = show(&switch);
    let complaint = String::from_utf8_lossy(&output.stderr);
    let why = format!(
        "no switch runs in {} (--rundir, OVS_RUNDIR): ",
        switch.rundir().display()
    );
    assert!(
        !output.status.success() && output.stdout.is_empty() && complaint.contains(&why),
        "{output:?}"
    );
}

/// A mask that was mistyped while the switch ran, where it changed nothing, must not be its end with the next start.
#[test]
fn a_wrong_pmd_mask_at_the_start_stops_no_frame() {
    let mut switch = Switch::with_ports(&[1, 2]);
    switch.vsctl("set Open_vSwitch . other_config:pmd-cpu-mask=0x0");
    switch.end();
    switch.restart();
    switch.wait_for_log("'0x0' names no CPU");
    let (mut one, mut two) = (Bare::attached(&switch, 1), Bare::attached(&switch, 2));
    frames_pass(&mut one, &mut two);
}

/// SIGTERM with clients attached and busy: they are told, and nothing stays.
#[test]
fn sigterm_under_load_leaves_nothing() {
    let switch = Switch::with_ports(&[1, 2]);
    let mut idle = Bare::attached(&switch, 1);
    let mut busy = Bare::attached(&switch, 2);
    busy.start_traffic(&Traffic {
        destination: BROADCAST,
        send: u64::MAX,
        receive: u64::MAX,
        window: 0,
        rate: 20_000,
        seconds: 30,
        ..Traffic::default()
    });
    idle.receive(10);
    idle.tell("event 10000");
    switch.stop();
    let told = idle.answer(Duration::from_secs(1));
    assert!(
        told.as_deref().is_ok_and(|t| t.starts_with("evicted 10 ")),
        "the idle one is told why: {told:?}"
    );
}

/// The database server killed: traffic goes on, the switch gets a new one and catches up.
#[test]
fn a_killed_database_is_replaced() {
    let switch = Switch::with_ports(&[1, 2]);
    let (mut one, mut two) = (Bare::attached(&switch, 1), Bare::attached(&switch, 2));
    let (a, b) = Traffic::both_ways(60_000);
    one.start_traffic(&Traffic { rate: 20_000, ..a });
    two.start_traffic(&Traffic { rate: 20_000, ..b });
    let first = database_pid(&switch).expect("it has a database server");
    kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
    switch.wait_for_log("traffic goes on");
    eventually("there is a new one", || {
        database_pid(&switch).is_some_and(|p| p != first)
    });
    eventually("it answers", || {
        switch
            .tool("ovs-vsctl", &["--timeout=2", "list-br"])
            .status
            .success()
    });
    switch.vsctl("add-port br0 dpdkr3 -- set Interface dpdkr3 type=dpdkr");
    assert_eq!(switch.get("Interface", "dpdkr3", "error"), "[]");
    let mut three = Bare::attached(&switch, 3);
    let (a, b) = (one.report(), two.report());
    println!("longest gap {} us", a.gap_us.max(b.gap_us));
    a.assert_all(60_000);
    b.assert_all(60_000);
    frames_pass(&mut one, &mut three);
    assert_eq!(
        switch.log().matches("traffic goes on").count(),
        1,
        "{}",
        switch.log()
    );
    eventually("columns are written again", || {
        switch.get("Interface", "dpdkr3", "link_state") == "up"
    });
}

/// Most of the host's hugepages are a dead switch's, and its clients keep them by being alive. The next switch waits for
/// the one that goes, and ends the one that is stopped, where it must not fail for want of memory.
#[test]
fn a_dead_switchs_memory_comes_free() {
    let free: u64 = memory::hugepages().iter().map(|p| p.free * p.size).sum();
    let mut switch = Switch::builder().memory((free >> 20) * 6 / 10).start();
    switch.add_bridge("br0", &[1, 2]);
    let (mut going, mut stopped) = (Bare::attached(&switch, 1), Bare::attached(&switch, 2));
    stopped.signal(Signal::SIGSTOP);
    switch.kill();
    let end = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(500));
        going.kill();
    });
    switch.restart_at_once();
    end.join().unwrap();
    println!("ready after {:?}", switch.start_time());
    stopped.process().wait(Duration::from_secs(5));
    assert!(switch.log().contains("holds the memory of a switch that is dead"));
    Bare::attached(&switch, 1);
    switch.stop();
}

/// A second switch on the same directory does not start, says why, and does the first no harm.
#[test]
fn a_second_switch_is_refused() {
    let switch = Switch::with_ports(&[1, 2]);
    let (mut one, mut two) = (Bare::attached(&switch, 1), Bare::attached(&switch, 2));
    let output = switch.command().output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    let why = format!(
        "a switch uses the run-time directory {} already: already running as process {}",
        switch.rundir().display(),
        switch.pid()
    );
    assert!(
        !output.status.success() && complaint.contains(&why),
        "{}: {complaint}",
        output.status
    );
    frames_pass(&mut one, &mut two);
    Bare::start(&switch, "another").attach(1, 1).unwrap_err();
    drop((one, two));
    switch.stop();
}
