//! A guest with packed virtqueues: its shim and the switch may end as with split ones.

use std::time::Duration;

use vm_harness::{Vm, VmBuilder, guest};
use vswitch_common::fault::{self, Point};
use vswitch_common::stats::Counter::RxPackets;
use vswitch_tests::vm::{self, Failed, Outcome};
use vswitch_tests::{Switch, eventually};

/// How long a guest may take to have its network back, on a busy machine.
const BACK: Duration = Duration::from_secs(10);

/// As `vm::client`, with packed virtqueues that are used in order, where the guest's driver knows that.
fn client(switch: &Switch, port: u8) -> VmBuilder {
    vm::unplugged(switch, &format!("Client {port}")).nic(
        "net1",
        &format!("dpdk,port={port}"),
        &format!("00:00:00:00:00:{port:02x}"),
        "packed=on,in_order=on",
    )
}

/// Has the guest's network driver negotiated feature `bit`?
fn negotiated(vm: &mut Vm, bit: usize) -> Result<bool, Failed> {
    let features = vm.serial()?.check("cat /sys/class/net/eth0/device/features")?;
    Ok(features.as_bytes().get(bit) == Some(&b'1'))
}

#[test]
fn packed_rings_go_on_after_their_shim_and_their_switch() -> Outcome {
    const MIB: u32 = 1;
    let mut switch = Switch::with_ports(&[1, 2]);
    let free = switch.free_mbufs();
    // Its shims die with a batch half marked used.
    let at = format!("{}@60", Point::UsedWritten.name());
    let mut one = client(&switch, 1).env(fault::VARIABLE, &at).spawn()?;
    let mut two = client(&switch, 2).spawn()?;
    vm::boot(&mut [&mut one, &mut two])?;
    assert!(negotiated(&mut one, 34)?, "RING_PACKED");
    vm::reaches(&mut one, "10.0.0.2")?;

    let deaths = |vm: &Vm| vm.stderr().matches("was killed by signal").count();
    for _ in 0..20 {
        let limit = Duration::from_secs(100);
        let copy = guest::copy_file(one.serial()?, two.serial()?, "10.0.0.2", MIB, limit)?;
        assert!(copy.is_intact(), "{copy:?}");
        println!(
            "{MIB} MiB in {:.1} s; {} shims have died at {at}",
            copy.seconds,
            deaths(&one)
        );
        if deaths(&one) >= 3 {
            break;
        }
    }
    assert!(deaths(&one) >= 3, "{}", one.stderr());

    for _ in 0..3 {
        vm::replace_shim(&two);
        vm::carrier(&mut two, "eth0", true)?;
        guest::wait_reachable(two.serial()?, "10.0.0.1", BACK)?;
    }

    switch.kill();
    for vm in [&mut one, &mut two] {
        vm::carrier(vm, "eth0", false)?;
    }
    switch.restart();
    for vm in [&mut one, &mut two] {
        vm::carrier(vm, "eth0", true)?;
    }
    guest::wait_reachable(one.serial()?, "10.0.0.2", BACK)?;
    drop((one, two));
    switch.wait_for_free_mbufs(free);
    switch.stop();
    Ok(())
}

/// What a guest has sent when its shim is killed stays in its ring for the next one: QEMU, between the two, has no idea where
/// a packed ring stands, and lets everything be.
#[test]
fn shims_killed_in_a_flood() -> Outcome {
    let switch = Switch::with_ports(&[1, 2]);
    let mut one = client(&switch, 1).spawn()?;
    let mut two = client(&switch, 2).spawn()?;
    vm::boot(&mut [&mut one, &mut two])?;
    vm::reaches(&mut one, "10.0.0.2")?;
    // Somebody listens: refusals would end the flood.
    two.serial()?
        .spawn("exec socat -u UDP4-RECV:9 OPEN:/dev/null", "/tmp/sink")?;
    two.serial()?
        .check("until ss -lun | grep -q :9; do sleep 0.1; done")?;
    one.serial()?.spawn(
        "exec socat -u -b 1400 OPEN:/dev/zero UDP4:10.0.0.2:9",
        "/tmp/flood",
    )?;
    let sent = || switch.count("dpdkr1", RxPackets);
    let mut before = sent();
    for round in 0..12 {
        eventually(&format!("the flood goes on, round {round}"), || {
            sent() > before + 2000
        });
        std::thread::sleep(Duration::from_millis(37 * round));
        vm::replace_shim(&one);
        vm::carrier(&mut one, "eth0", true)?;
        before = sent();
    }
    guest::wait_reachable(two.serial()?, "10.0.0.1", BACK)?;
    one.shut_down()?;
    two.shut_down()?;
    switch.stop();
    Ok(())
}
