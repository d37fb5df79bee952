//! Two VMs on one bridge: ping, a copy over TCP in large frames, the counters, and the pool afterwards.

use std::time::Duration;

use vm_harness::{Vm, guest};
use vswitch_common::stats::Counter::{
    GuestRxLarge, GuestRxNotReady, GuestTxLarge, RxBytes, RxPackets, TxPackets,
};
use vswitch_tests::vm::{self, Outcome};
use vswitch_tests::wait::within;
use vswitch_tests::{PATIENCE, Switch, eventually};

const COPY: Duration = Duration::from_secs(120);
const MIB: u32 = 64;

/// What the guest's driver has sent (frames, bytes) and received (frames).
fn nic(vm: &mut Vm) -> Result<[u64; 3], vm::Failed> {
    let text = vm
        .serial()?
        .check("cd /sys/class/net/eth0/statistics; cat tx_packets tx_bytes rx_packets")?;
    let numbers: Vec<u64> = text.lines().map(|l| l.parse().expect("a number")).collect();
    Ok(numbers.try_into().expect("three numbers"))
}

/// The same of the switch's port, where what the guest sends comes in. What the other guest said while this one's driver
/// was not up yet has not reached it.
fn port(switch: &Switch, name: &str) -> [u64; 3] {
    let port = switch.port(name);
    let delivered = port.get(TxPackets) - port.get(GuestRxNotReady);
    [port.get(RxPackets), port.get(RxBytes), delivered]
}

#[test]
fn two_guests_ping_and_copy_and_give_all_memory_back() -> Outcome {
    let switch = Switch::start();
    // As the paper has it.
    switch.vsctl("--no-wait add-br br0 -- set Bridge br0 datapath_type=dpdk");
    switch.vsctl("--no-wait add-port br0 ovs_dpdk_1 -- set Interface ovs_dpdk_1 type=dpdk");
    switch.vsctl("add-port br0 ovs_dpdk_2 -- set Interface ovs_dpdk_2 type=dpdk");
    let free = switch.free_mbufs();

    let mut one = vm::client(&switch, 1).spawn()?;
    let mut two = vm::client(&switch, 2).spawn()?;
    vm::boot(&mut [&mut one, &mut two])?;

    vm::reaches(&mut one, "10.0.0.2")?;
    vm::reaches(&mut two, "10.0.0.1")?;
    vm::reaches(&mut one, "fd00::2")?;
    vm::reaches(&mut two, "fd00::1")?;
    for options in ["-M do -s 1472", "-s 20000"] {
        let stats = guest::ping(one.serial()?, "10.0.0.2", 5, options)?;
        assert!(stats.is_perfect(), "ping {options}: {stats:?}");
    }

    // Jumbo frames, once the ports let them out.
    for port in [1, 2] {
        switch.vsctl(&format!("set Interface ovs_dpdk_{port} mtu_request=9000"));
    }
    for vm in [&mut one, &mut two] {
        vm.serial()?.check("ip link set eth0 mtu 9000")?;
    }
    let stats = guest::ping(one.serial()?, "10.0.0.2", 5, "-M do -s 8972")?;
    assert!(stats.is_perfect(), "{stats:?}");
    for vm in [&mut one, &mut two] {
        vm.serial()?.check("ip link set eth0 mtu 1500")?;
    }

    // The guests leave checksums and segmentation to the switch, which leaves them undone between guests.
    for vm in [&mut one, &mut two] {
        let features = vm.serial()?.check("ethtool -k eth0")?;
        for feature in [
            "rx-checksumming: on",
            "tx-checksumming: on",
            "tcp-segmentation-offload: on",
        ] {
            assert!(features.contains(feature), "{}: {features}", vm.name());
        }
    }
    for (address, mib) in [("10.0.0.2", MIB), ("fd00::2", 8)] {
        let copy = guest::copy_file(one.serial()?, two.serial()?, address, mib, COPY)?;
        println!(
            "copy to {address}: {mib} MiB in {:.1} s, {:.0} Mbit/s",
            copy.seconds,
            f64::from(mib) * 8.388_608 / copy.seconds
        );
        assert!(
            copy.is_intact() && copy.bytes == u64::from(mib) << 20,
            "{address}: {copy:?}"
        );
    }
    let retransmitted = one
        .serial()?
        .check("awk '/^Tcp: [0-9]/ { print $13 }' /proc/net/snmp")?;
    println!("segments sent again: {}", retransmitted.trim());

    // Every frame that a guest's driver counts has passed the switch, and the other way round.
    let mut seen = String::new();
    let same = within(PATIENCE, || {
        let now = [(&mut one, "ovs_dpdk_1"), (&mut two, "ovs_dpdk_2")]
            .map(|(vm, name)| (nic(vm), port(&switch, name)));
        seen = format!("{now:?}");
        now.into_iter()
            .all(|(nic, port)| nic.is_ok_and(|nic| nic == port))
    });
    assert!(
        same,
        "guests and switch [tx, bytes, rx] {seen}\n{}",
        switch.counters()
    );
    let [frames, bytes, ..] = port(&switch, "ovs_dpdk_1");
    assert!(
        bytes > u64::from(MIB) << 20 && bytes / frames > 4000,
        "{bytes} bytes in {frames} frames are fewer than the copy had, or not in large ones"
    );
    eventually("large frames are counted where they come and go", || {
        switch.count("ovs_dpdk_1", GuestTxLarge) > 500 && switch.count("ovs_dpdk_2", GuestRxLarge) > 500
    });
    switch.assert_frames_accounted();
    println!("{}", switch.counters());

    let said = one.shut_down()? + &two.shut_down()?;
    println!("QEMU's standard error:\n{said}");
    switch.wait_for_free_mbufs(free);
    switch.stop();
    Ok(())
}

/// A guest that can't take large frames gets them cut, for as long as the other sends them.
#[test]
fn a_guest_without_the_offload_gets_frames_cut() -> Outcome {
    let switch = Switch::with_ports(&[1, 2]);
    let mut one = vm::client(&switch, 1).spawn()?;
    let mut two = vm::unplugged(&switch, "Client 2")
        .nic(
            "net2",
            "dpdk,port=2",
            "00:00:00:00:00:02",
            "guest_tso4=off,guest_tso6=off",
        )
        .spawn()?;
    vm::boot(&mut [&mut one, &mut two])?;
    vm::reaches(&mut one, "10.0.0.2")?;
    vm::reaches(&mut one, "fd00::2")?;
    for address in ["10.0.0.2", "fd00::2"] {
        let copy = guest::copy_file(one.serial()?, two.serial()?, address, 8, COPY)?;
        assert!(copy.is_intact() && copy.bytes == 8 << 20, "{address}: {copy:?}");
    }
    eventually("large frames are counted", || {
        switch.count("dpdkr1", GuestTxLarge) > 100
    });
    assert_eq!(switch.count("dpdkr2", GuestRxLarge), 0);
    let [_, _, received] = nic(&mut two)?;
    assert!(
        received > 2 * (8 << 20) / 1448,
        "{received} frames for 16 MiB are too long"
    );
    switch.assert_frames_accounted();
    one.shut_down()?;
    two.shut_down()?;
    Ok(())
}
