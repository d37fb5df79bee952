//! The patched QEMU as a plain one.

use vswitch_tests::vm::{self, Outcome};

#[test]
fn without_dpdk_it_is_a_plain_qemu() -> Outcome {
    // Two VMs: one with another kind of network, one without any.
    let user = "user,net=10.0.0.0/24,host=10.0.0.100,dhcpstart=10.0.0.200";
    let mut networked = vm::plain("User network")
        .nic("net", user, "00:00:00:00:00:07", "")
        .spawn()?;
    let mut lonely = vm::plain("No network").args(["-nic", "none"]).spawn()?;
    vm::boot(&mut [&mut networked, &mut lonely])?;

    vm::reaches(&mut networked, "10.0.0.100")?;
    assert!(!lonely.serial()?.check("ls /sys/class/net")?.contains("eth"));
    for vm in [networked, lonely] {
        assert!(vm::shims(&vm).is_empty(), "{} needs no shim", vm.name());
        let stderr = vm.shut_down()?;
        assert_eq!(stderr, "", "a plain QEMU has nothing to say");
    }
    Ok(())
}
