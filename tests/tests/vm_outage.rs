//! The switch, or a shim, comes late, goes away and comes back, and the guests' network with it. No VM is restarted.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use vm_harness::{Vm, guest};
use vswitch_common::fault::{self, Point};
use vswitch_tests::child::is_dead;
use vswitch_tests::vm::{self, Monitor, Outcome};
use vswitch_tests::{Bare, Switch, eventually};

/// How long a guest may take to have its network back, on a busy machine. What it takes is printed.
const BACK: Duration = Duration::from_secs(10);

/// A stream over TCP from `one` to `two` in the background, which lasts for as long as the test does.
fn start_stream(one: &mut Vm, two: &mut Vm, address: &str) -> Outcome {
    two.serial()?.spawn("exec iperf3 -s", "/tmp/iperf3")?;
    // Not as fast as it can: two translated guests and a switch share few CPUs with each other.
    let client = format!("until iperf3 -c {address} -b 40M -t 1000; do sleep 0.2; done");
    one.serial()?.spawn(&client, "/tmp/iperf3")?;
    vm::stream_flows(two)
}

/// How often `text` stands in the VM's standard error.
fn said(vm: &Vm, text: &str) -> usize {
    vm.stderr().matches(text).count()
}

#[test]
fn switch_comes_late_and_ends_and_is_killed() -> Outcome {
    // Configured once, and then not running: QEMU is first.
    let mut switch = Switch::with_ports(&[1, 2]);
    let free = switch.free_mbufs();
    let (one, two) = (vm::client(&switch, 1), vm::client(&switch, 2));
    switch.end();

    let (mut one, mut two) = (one.spawn()?, two.spawn()?);
    vm::boot(&mut [&mut one, &mut two])?;
    for vm in [&mut one, &mut two] {
        assert!(
            !guest::has_carrier(vm.serial()?, "eth0")?,
            "no switch, no carrier"
        );
        assert_eq!(said(vm, "no switch running at"), 1, "{}", vm.stderr());
        assert_eq!(vm.stderr().lines().count(), 1, "{}", vm.stderr());
    }
    vm::does_not_reach(&mut one, "10.0.0.2")?;
    let boots = [vm::boot_id(&mut one)?, vm::boot_id(&mut two)?];

    let start = Instant::now();
    switch.restart();
    let ready = start.elapsed();
    for vm in [&mut one, &mut two] {
        vm::carrier(vm, "eth0", true)?;
    }
    let carrier = start.elapsed();
    guest::wait_reachable(one.serial()?, "10.0.0.2", BACK)?;
    println!(
        "late switch: ready after {ready:?}, carriers up after {carrier:?}, ping answered after {:?}",
        start.elapsed()
    );
    vm::reaches(&mut two, "10.0.0.1")?;

    start_stream(&mut one, &mut two, "10.0.0.2")?;
    let mut monitor = Monitor::start(&mut one, "10.0.0.2")?;
    for signal in [Signal::SIGTERM, Signal::SIGKILL, Signal::SIGTERM, Signal::SIGKILL] {
        std::thread::sleep(Duration::from_secs(1));
        let before = monitor.silence(&mut one)?;
        let down = Instant::now();
        match signal {
            Signal::SIGKILL => switch.kill(),
            _ => switch.end(),
        }
        for vm in [&mut one, &mut two] {
            vm::carrier(vm, "eth0", false)?;
        }
        let noticed = down.elapsed();

        switch.restart();
        let up = Instant::now();
        for vm in [&mut one, &mut two] {
            vm::carrier(vm, "eth0", true)?;
        }
        let carrier = up.elapsed();
        guest::wait_reachable(one.serial()?, "10.0.0.2", BACK)?;
        let back = up.elapsed();
        vm::stream_flows(&mut two)?;
        std::thread::sleep(Duration::from_millis(500));
        let silence = monitor.silence(&mut one)?;
        println!(
            "{signal}: carriers down after {} ms; switch away for {} ms, start {} ms of them; then carriers up after {} ms, \
             ping answered after {} ms; silence {silence} (longest before: {})",
            noticed.as_millis(),
            (up - down).as_millis(),
            switch.start_time().as_millis(),
            carrier.as_millis(),
            back.as_millis(),
            before
        );
        assert!(back < BACK, "the network came back {back:?} after the switch");
    }
    assert_eq!(boots, [vm::boot_id(&mut one)?, vm::boot_id(&mut two)?]);

    for vm in [one, two] {
        assert_eq!(said(&vm, "starting it again"), 4, "{}", vm.stderr());
        assert_eq!(said(&vm, "the switch ends"), 2, "{}", vm.stderr());
        // QEMU is left without an answer only by shims that were killed, as the switch does with those that tarry.
        let killed = said(&vm, "was killed by signal");
        assert!(said(&vm, "ring restore failed") <= 2 * killed, "{}", vm.stderr());
        vm.shut_down()?;
    }
    switch.wait_for_free_mbufs(free);
    switch.stop();
    Ok(())
}

#[test]
fn shim_is_killed_ten_times_under_load() -> Outcome {
    let switch = Switch::with_ports(&[1, 2]);
    let free = switch.free_mbufs();
    let mut one = vm::client(&switch, 1).spawn()?;
    let mut two = vm::client(&switch, 2).spawn()?;
    vm::boot(&mut [&mut one, &mut two])?;
    vm::reaches(&mut one, "10.0.0.2")?;
    let boots = [vm::boot_id(&mut one)?, vm::boot_id(&mut two)?];

    start_stream(&mut one, &mut two, "10.0.0.2")?;
    let mut monitor = Monitor::start(&mut one, "10.0.0.2")?;
    let mut silences = Vec::new();
    for round in 0..10 {
        std::thread::sleep(Duration::from_millis(700));
        let quiet = monitor.silence(&mut one)?;
        // The sender's shim, and the receiver's.
        let victim = if round % 2 == 0 { &one } else { &two };
        let start = Instant::now();
        vm::replace_shim(victim);
        let restarted = start.elapsed();
        for vm in [&mut one, &mut two] {
            vm::carrier(vm, "eth0", true)?;
        }
        guest::wait_reachable(one.serial()?, "10.0.0.2", BACK)?;
        let back = start.elapsed();
        vm::stream_flows(&mut two)?;
        std::thread::sleep(Duration::from_millis(300));
        let silence = monitor.silence(&mut one)?;
        silences.push(silence);
        println!(
            "round {round}: new shim after {} ms, ping answered after {} ms, silence {silence} (before: {})",
            restarted.as_millis(),
            back.as_millis(),
            quiet
        );
    }
    silences.sort_unstable();
    println!(
        "silences when a shim is killed: {} to {}, median {}",
        silences[0], silences[9], silences[5]
    );
    assert_eq!(boots, [vm::boot_id(&mut one)?, vm::boot_id(&mut two)?]);
    for vm in [&one, &two] {
        assert_eq!(said(vm, "starting it again"), 5, "{}", vm.stderr());
    }

    // QEMU itself, in the middle of the stream: its shim goes with it, and the port is free.
    println!("--- {} ---\n{}", one.name().to_owned(), one.stderr());
    let mut successor = Bare::start(&switch, "successor");
    let shim = vm::shim(&one);
    let start = Instant::now();
    one.kill()?;
    eventually("its shim ends with it", || is_dead(shim));
    successor.attach(1, 1).unwrap();
    println!(
        "QEMU killed: its port attached again after {} ms",
        start.elapsed().as_millis()
    );
    successor.kill();

    println!("--- {} ---\n{}", two.name().to_owned(), two.shut_down()?);
    switch.wait_for_free_mbufs(free);
    println!("{}", switch.counters());
    switch.stop();
    Ok(())
}

/// A shim that dies again and again between two writes to its guest's rings, each time with descriptors in flight: what
/// the guest copies arrives whole.
#[test]
fn shim_dies_between_two_writes_during_a_copy() -> Outcome {
    const MIB: u32 = 2;
    let switch = Switch::with_ports(&[1, 2]);
    let free = switch.free_mbufs();
    let at = format!("{}@60", Point::UsedWritten.name());
    let mut one = vm::client(&switch, 1).env(fault::VARIABLE, &at).spawn()?;
    let mut two = vm::client(&switch, 2).spawn()?;
    vm::boot(&mut [&mut one, &mut two])?;
    // How many writes a copy takes depends on how many frames go at once.
    let mut deaths = 0;
    for _ in 0..20 {
        let limit = Duration::from_secs(100);
        let copy = guest::copy_file(one.serial()?, two.serial()?, "10.0.0.2", MIB, limit)?;
        assert!(copy.is_intact() && copy.bytes == u64::from(MIB) << 20, "{copy:?}");
        deaths = said(&one, "was killed by signal");
        println!(
            "{MIB} MiB in {:.1} s; {deaths} shims have died at {at}",
            copy.seconds
        );
        if deaths >= 4 {
            break;
        }
    }
    assert!(deaths >= 4, "{}", one.stderr());
    drop((one, two));
    switch.wait_for_free_mbufs(free);
    switch.stop();
    Ok(())
}
