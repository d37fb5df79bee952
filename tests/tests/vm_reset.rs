//! A guest is reset, or its driver is loaded again, in the middle of a stream: for its shim, rings that are taken away and given anew.

use std::time::Duration;

use serde_json::json;
use vm_harness::{Vm, guest};
use vswitch_common::stats::Counter::{GuestBrokenQueues, GuestTxBadHeader};
use vswitch_tests::Switch;
use vswitch_tests::vm::{self, Failed, Outcome};
use vswitch_tests::wait::within;

const BACK: Duration = Duration::from_secs(60);

/// A stream from `from` to `to` that lasts until one of them is reset, seen to flow.
fn stream(from: &mut Vm, to: &mut Vm, address: &str) -> Outcome {
    to.serial()?.spawn("exec iperf3 -s", "/tmp/server")?;
    to.serial()?
        .check_for("until ss -ltn | grep -q :5201; do sleep 0.1; done", BACK)?;
    from.serial()?
        .spawn(&format!("exec iperf3 -c {address} -t 1000"), "/tmp/client")?;
    vm::stream_flows(to)
}

fn reset(vm: &mut Vm) -> Result<(), Failed> {
    let before = vm::boot_id(vm)?;
    vm.qmp()?.execute("system_reset", json!({}))?;
    // What is typed too early is lost.
    let booted = within(BACK, || {
        let serial = vm.serial().expect("its console stays");
        let now = serial.run_for(vm::BOOT_ID, Duration::from_secs(2));
        now.is_ok_and(|now| now.code == 0 && now.text != before)
    });
    assert!(booted, "{}", vm.stderr());
    Ok(())
}

fn driver_loaded_again(vm: &mut Vm) -> Result<(), Failed> {
    vm.serial()?
        .check("rmmod virtio_net && sleep 0.3 && modprobe virtio_net")?;
    Ok(())
}

#[test]
fn guests_are_reset_under_traffic() -> Outcome {
    let switch = Switch::with_ports(&[1, 2]);
    let free = switch.free_mbufs();
    let mut one = vm::client(&switch, 1).spawn()?;
    let mut two = vm::unplugged(&switch, "Client 2")
        .nic("net2", "dpdk,port=2", "00:00:00:00:00:02", "packed=on")
        .spawn()?;
    vm::boot(&mut [&mut one, &mut two])?;
    vm::reaches(&mut one, "10.0.0.2")?;
    let shims = [vm::shim(&one), vm::shim(&two)];

    for again in [reset, driver_loaded_again] {
        // The sender, with split rings, and the receiver, with packed ones; then the other way round.
        stream(&mut one, &mut two, "10.0.0.2")?;
        again(&mut one)?;
        guest::wait_reachable(one.serial()?, "10.0.0.2", BACK)?;
        again(&mut two)?;
        vm::reaches(&mut two, "10.0.0.1")?;
        for vm in [&mut one, &mut two] {
            vm.serial()?.run("killall -9 iperf3")?;
        }
        stream(&mut two, &mut one, "10.0.0.1")?;
        again(&mut one)?;
        guest::wait_reachable(one.serial()?, "10.0.0.2", BACK)?;
        again(&mut two)?;
        vm::reaches(&mut two, "10.0.0.1")?;
        let copy = guest::copy_file(one.serial()?, two.serial()?, "10.0.0.2", 8, BACK)?;
        assert!(copy.is_intact() && copy.bytes == 8 << 20, "{copy:?}");
    }
    assert_eq!(shims, [vm::shim(&one), vm::shim(&two)], "no shim ended");
    for port in ["dpdkr1", "dpdkr2"] {
        for counter in [GuestBrokenQueues, GuestTxBadHeader] {
            assert_eq!(switch.count(port, counter), 0, "{port} {}", counter.name());
        }
    }
    switch.assert_frames_accounted();
    one.shut_down()?;
    two.shut_down()?;
    switch.wait_for_free_mbufs(free);
    switch.stop();
    Ok(())
}
