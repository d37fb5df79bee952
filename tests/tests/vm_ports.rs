//! Ports and NICs that come, go, are taken, are kept apart, and have several queues.

use std::time::{Duration, Instant};

use serde_json::json;
use vm_harness::{Vm, guest};
use vswitch_common::stats::Counter::{Attached, RxPackets, TxPackets};
use vswitch_tests::vm::{self, Failed, Outcome};
use vswitch_tests::wait::within;
use vswitch_tests::{PATIENCE, Switch, eventually};

/// Waits until QEMU or its shim has said `text`.
fn wait_for_words(vm: &Vm, text: &str) {
    assert!(
        within(PATIENCE, || vm.stderr().contains(text)),
        "{} did not say {text:?} but:\n{}",
        vm.name(),
        vm.stderr()
    );
}

#[test]
fn missing_and_taken_ports_are_told_and_waited_for() -> Outcome {
    let switch = Switch::with_ports(&[1]);
    let free = switch.free_mbufs();
    let mut owner = vm::client(&switch, 1).spawn()?;
    eventually("the first VM has the port", || {
        switch.count("dpdkr1", Attached) == 1
    });
    let mut early = vm::client(&switch, 7).spawn()?;
    // Of the same port, but with a MAC of its own.
    let mut second = vm::unplugged(&switch, "Second")
        .nic("net1", "dpdk,port=1", "00:00:00:00:00:02", "")
        .spawn()?;
    vm::boot(&mut [&mut owner, &mut early, &mut second])?;

    wait_for_words(&early, "port 7 does not exist on the switch");
    wait_for_words(&second, "taken");
    for vm in [&mut early, &mut second] {
        println!("{}: {}", vm.name(), vm.stderr().trim());
        assert!(!guest::has_carrier(vm.serial()?, "eth0")?, "{}", vm.name());
        assert_eq!(
            vm.stderr().lines().count(),
            1,
            "said more than once:\n{}",
            vm.stderr()
        );
    }
    assert_eq!(owner.stderr(), "", "the owner of the port is not disturbed");

    // The port is made: the VM that waits for it comes up.
    let start = Instant::now();
    switch.vsctl("add-port br0 dpdkr7 -- set Interface dpdkr7 type=dpdkr");
    vm::carrier(&mut early, "eth0", true)?;
    println!("carrier {} ms after add-port began", start.elapsed().as_millis());
    vm::reaches(&mut owner, "10.0.0.7")?;
    vm::reaches(&mut early, "10.0.0.1")?;
    vm::does_not_reach(&mut early, "10.0.0.2")?;

    // The port is given up: the VM that waits for it comes up.
    let start = Instant::now();
    owner.kill()?;
    vm::carrier(&mut second, "eth0", true)?;
    println!(
        "carrier {} ms after the end of the port's owner",
        start.elapsed().as_millis()
    );
    vm::reaches(&mut second, "10.0.0.7")?;
    vm::reaches(&mut early, "10.0.0.2")?;

    // The port is taken away under a VM, and given back.
    switch.vsctl("del-port dpdkr7");
    vm::carrier(&mut early, "eth0", false)?;
    vm::does_not_reach(&mut second, "10.0.0.7")?;
    switch.vsctl("add-port br0 dpdkr7 -- set Interface dpdkr7 type=dpdkr");
    vm::carrier(&mut early, "eth0", true)?;
    vm::reaches(&mut second, "10.0.0.7")?;
    println!("{}: {}", early.name().to_owned(), early.shut_down()?);
    println!("{}: {}", second.name().to_owned(), second.shut_down()?);
    switch.wait_for_free_mbufs(free);
    switch.stop();
    Ok(())
}

#[test]
fn nics_are_plugged_in_and_out() -> Outcome {
    let switch = Switch::with_ports(&[1, 2]);
    let free = switch.free_mbufs();
    let mut vm = vm::unplugged(&switch, "Hot").spawn()?;
    let mut peer = vm::client(&switch, 2).spawn()?;
    vm::boot(&mut [&mut vm, &mut peer])?;
    assert!(!vm.serial()?.check("ls /sys/class/net")?.contains("eth"));

    let refused = vm.qmp()?.execute(
        "netdev_add",
        json!({ "type": "dpdk", "id": "hot", "port": 70000 }),
    );
    let error = refused.expect_err("there is no such port number").to_string();
    assert!(error.contains("port must be in range"), "{error}");
    assert!(vm::shims(&vm).is_empty());

    // Twice, for what is left of the first time may stand in the way of the second.
    for _ in 0..2 {
        let start = Instant::now();
        vm.qmp()?
            .execute("netdev_add", json!({ "type": "dpdk", "id": "hot", "port": 1 }))?;
        let netdev = start.elapsed();
        let device = json!({
            "driver": "virtio-net-pci", "id": "nic", "netdev": "hot", "mac": "00:00:00:00:00:01", "romfile": "",
        });
        vm.qmp()?.execute("device_add", device)?;
        eventually("the guest has a NIC", || {
            vm.serial()
                .and_then(|s| s.run("[ -e /sys/class/net/eth0 ]"))
                .is_ok_and(|o| o.code == 0)
        });
        vm::carrier(&mut vm, "eth0", true)?;
        guest::wait_reachable(vm.serial()?, "10.0.0.2", PATIENCE)?;
        println!(
            "netdev_add took {} ms; ping was answered {} ms after it began",
            netdev.as_millis(),
            start.elapsed().as_millis()
        );
        vm::reaches(&mut vm, "10.0.0.2")?;
        vm::reaches(&mut peer, "10.0.0.1")?;
        let network = vm.qmp()?.human("info network")?;
        assert!(
            network.contains("dpdk port 1 queue 0 carrier up, shim "),
            "{network}"
        );
        let shim = vm::shim(&vm);

        vm.qmp()?.execute("device_del", json!({ "id": "nic" }))?;
        // Its parts are reported as well, without a name.
        while vm.qmp()?.wait_event("DEVICE_DELETED", PATIENCE)?["data"]["device"] != "nic" {}
        vm.qmp()?.execute("netdev_del", json!({ "id": "hot" }))?;
        assert!(
            vm::shims(&vm).is_empty() && vswitch_tests::child::is_dead(shim),
            "the shim is gone with its netdev"
        );
        vm::does_not_reach(&mut peer, "10.0.0.1")?;
        let network = vm.qmp()?.human("info network")?;
        assert!(!network.contains("dpdk"), "{network}");
    }
    let said = vm.shut_down()? + &peer.shut_down()?;
    assert_eq!(said, "", "all in good order: QEMU and shim have nothing to say");
    switch.wait_for_free_mbufs(free);
    Ok(())
}

/// The netdev may go before its NIC: the shim goes with it, the NIC stays without a link, and what the switch does next is none of theirs.
#[test]
fn a_netdev_is_deleted_under_its_nic() -> Outcome {
    let mut switch = Switch::with_ports(&[1]);
    let free = switch.free_mbufs();
    let mut vm = vm::unplugged(&switch, "-nameless").spawn()?;
    vm::boot(&mut [&mut vm])?;
    let netdev = json!({ "type": "dpdk", "id": "hot", "port": 1 });
    for nic in ["first", "second"] {
        vm.qmp()?.execute("netdev_add", netdev.clone())?;
        let device = json!({
            "driver": "virtio-net-pci", "id": nic, "netdev": "hot", "mac": "00:00:00:00:00:01", "romfile": "",
        });
        vm.qmp()?.execute("device_add", device)?;
        let eth = if nic == "first" { "eth0" } else { "eth1" };
        eventually("the guest has a carrier", || {
            let carrier = format!("[ \"$(cat /sys/class/net/{eth}/carrier)\" = 1 ]");
            vm.serial()
                .and_then(|s| s.run(&carrier))
                .is_ok_and(|o| o.code == 0)
        });
        let shim = vm::shim(&vm);
        vm.qmp()?.execute("netdev_del", json!({ "id": "hot" }))?;
        assert!(vm::shims(&vm).is_empty() && vswitch_tests::child::is_dead(shim));
        eventually("the port is free", || !switch.port("dpdkr1").info.link);
        // Who of QEMU still waits for a word of the shim's or the switch's would hear it now.
        switch.kill();
        switch.restart();
        vm.serial()?
            .check(&format!("ip link set dev {eth} down; ip link set dev {eth} up"))?;
    }
    for nic in ["first", "second"] {
        vm.qmp()?.execute("device_del", json!({ "id": nic }))?;
        while vm.qmp()?.wait_event("DEVICE_DELETED", PATIENCE)?["data"]["device"] != nic {}
    }
    assert_eq!(vm.shut_down()?, "", "nothing to say");
    switch.wait_for_free_mbufs(free);
    Ok(())
}

/// Pings in vain, and checks that it is the switch that keeps the frames back: they come in by `from`, and nothing
/// leaves by `to`.
fn kept_apart(switch: &Switch, (one, from): (&mut Vm, &str), (two, to): (&mut Vm, &str)) -> Outcome {
    for (vm, address, came_by, leaves_by) in [(one, "10.0.0.2", from, to), (two, "fd00::1", to, from)] {
        let (came, left) = (
            switch.count(came_by, RxPackets),
            switch.count(leaves_by, TxPackets),
        );
        vm::does_not_reach(vm, address)?;
        assert!(switch.count(came_by, RxPackets) > came, "{} did send", vm.name());
        assert_eq!(
            switch.count(leaves_by, TxPackets),
            left,
            "frames got through:\n{}",
            switch.counters()
        );
    }
    Ok(())
}

#[test]
fn bridges_and_tags_keep_guests_apart() -> Outcome {
    let switch = Switch::start();
    switch.add_bridge("br0", &[1]);
    switch.add_bridge("br1", &[2]);
    let mut one = vm::client(&switch, 1).spawn()?;
    let mut two = vm::client(&switch, 2).spawn()?;
    vm::boot(&mut [&mut one, &mut two])?;
    let (p1, p2) = ("dpdkr1", "dpdkr2");
    for vm in [&mut one, &mut two] {
        vm::carrier(vm, "eth0", true)?;
    }

    kept_apart(&switch, (&mut one, p1), (&mut two, p2))?;
    // The port moves to the other bridge, in one transaction and under its VM.
    switch.vsctl("del-port dpdkr2 -- add-port br0 dpdkr2 -- set Interface dpdkr2 type=dpdkr");
    vm::reaches(&mut one, "10.0.0.2")?;
    vm::reaches(&mut two, "fd00::1")?;

    switch.vsctl("set port dpdkr1 tag=10 -- set port dpdkr2 tag=20");
    kept_apart(&switch, (&mut one, p1), (&mut two, p2))?;
    let start = Instant::now();
    switch.vsctl("set port dpdkr2 tag=10");
    guest::wait_reachable(one.serial()?, "10.0.0.2", PATIENCE)?;
    println!(
        "reachable {} ms after the change of the tag began",
        start.elapsed().as_millis()
    );
    vm::reaches(&mut one, "10.0.0.2")?;
    vm::reaches(&mut two, "fd00::1")?;

    // Without a tag it is a trunk: frames of VLAN 10 come to the guest with their tag, which it does not know.
    switch.vsctl("clear port dpdkr2 tag");
    vm::does_not_reach(&mut one, "10.0.0.2")?;
    vm::does_not_reach(&mut two, "fd00::1")?;
    switch.vsctl("clear port dpdkr1 tag");
    vm::reaches(&mut two, "10.0.0.1")?;
    Ok(())
}

/// Frames that queues 0 and 1 of the guest's NIC have sent. Of a queue that is not in use it says nothing.
fn sent_by_queue(vm: &mut Vm) -> Result<[u64; 2], Failed> {
    let text = vm.serial()?.check("ethtool -S eth0")?;
    // "tx_queue_0_packets: 5", or "tx0_packets: 5" from Linux 6.8 on.
    Ok([0, 1].map(|queue| {
        let names = [
            format!("tx_queue_{queue}_packets:"),
            format!("tx{queue}_packets:"),
        ];
        text.lines()
            .find_map(|line| {
                names
                    .iter()
                    .find_map(|name| line.trim().strip_prefix(name.as_str()))
            })
            .map_or(0, |n| n.trim().parse().expect("a number"))
    }))
}

/// What `ethtool -l` says of combined queues: most possible, and now.
fn channels(vm: &mut Vm) -> Result<Vec<u32>, Failed> {
    let text = vm.serial()?.check("ethtool -l eth0")?;
    let numbers = text.lines().filter_map(|line| line.strip_prefix("Combined:"));
    Ok(numbers.filter_map(|n| n.trim().parse().ok()).collect())
}

#[test]
fn two_queues() -> Outcome {
    let switch = Switch::with_ports(&[1, 2]);
    let free = switch.free_mbufs();
    let mut many = vm::unplugged(&switch, "Two queues")
        .cpus(2)
        .nic(
            "net1",
            "dpdk,port=1,queues=2",
            "00:00:00:00:00:01",
            "mq=on,vectors=6",
        )
        .spawn()?;
    let mut peer = vm::client(&switch, 2).spawn()?;
    vm::boot(&mut [&mut many, &mut peer])?;
    assert_eq!(channels(&mut many)?[0], 2, "two queue pairs are offered");

    for queues in [2, 1, 2] {
        many.serial()?
            .run(&format!("ethtool -L eth0 combined {queues}"))?;
        assert_eq!(channels(&mut many)?, [2, queues]);
        vm::reaches(&mut many, "10.0.0.2")?;
        vm::reaches(&mut peer, "fd00::1")?;

        let before = sent_by_queue(&mut many)?;
        // By its path: busybox's taskset would prefer busybox's.
        for cpu in ["1", "2"] {
            let command = format!("taskset {cpu} /bin/ping -n -q -i 0.05 -c 10 10.0.0.2");
            let text = many.serial()?.check(&command)?;
            assert!(text.contains(" 10 received"), "{text}");
        }
        let after = sent_by_queue(&mut many)?;
        println!("{queues} queue(s): sent by each {before:?}, then {after:?}");
        assert!(after[0] > before[0]);
        assert_eq!(after[1] > before[1], queues == 2, "{before:?} {after:?}");
    }
    let limit = Duration::from_secs(60);
    let out = guest::copy_file(many.serial()?, peer.serial()?, "10.0.0.2", 16, limit)?;
    let back = guest::copy_file(peer.serial()?, many.serial()?, "10.0.0.1", 16, limit)?;
    println!(
        "copies of 16 MiB: {:.1} s out, {:.1} s back",
        out.seconds, back.seconds
    );
    assert!(out.is_intact() && back.is_intact(), "{out:?} {back:?}");
    println!("{}", switch.counters());
    assert_eq!(many.shut_down()? + &peer.shut_down()?, "");
    switch.wait_for_free_mbufs(free);
    Ok(())
}
