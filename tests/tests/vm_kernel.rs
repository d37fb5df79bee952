//! A VM and the host it runs on, by an internal port.

use std::time::Duration;

use vm_harness::guest;
use vswitch_common::stats::Counter;
use vswitch_tests::namespace::{Namespace, sha256};
use vswitch_tests::vm::{self, Outcome};
use vswitch_tests::{PATIENCE, Switch, eventually};

const COPY: Duration = Duration::from_secs(60);

#[test]
fn a_guest_and_the_host_ping_and_copy() -> Outcome {
    let switch = Switch::with_ports(&[1]);
    switch.vsctl("add-port br0 host0 -- set Interface host0 type=internal");
    let host = Namespace::new();
    host.take("host0", "10.0.0.100/24");
    let mut vm = vm::client(&switch, 1).spawn()?;
    vm::boot(&mut [&mut vm])?;
    vm::reaches(&mut vm, "10.0.0.100")?;
    host.reaches("10.0.0.1");

    // The guest leaves its checksums to the switch, which completes them for the kernel.
    let received = switch.scratch().join("received").display().to_string();
    let mut server = host.receives_file(&received, &switch);
    let serial = vm.serial()?;
    serial.check_for("head -c 16777216 /dev/urandom >/tmp/sent", COPY)?;
    serial.check_for("file-send /tmp/sent 10.0.0.100 7000", COPY)?;
    assert!(server.wait(PATIENCE).success());
    assert_eq!(guest::sha256(serial, "/tmp/sent", COPY)?, sha256(&received));
    assert_eq!(host.tcp_checksum_errors(), 0);
    // And its segments.
    eventually("large frames are counted", || {
        switch.count("dpdkr1", Counter::GuestTxLarge) > 100
    });

    // And back.
    serial.spawn("file-recv 7000 /tmp/back", "/tmp/file-recv.log")?;
    host.run(&format!(
        "socat -u OPEN:{received},rdonly TCP:10.0.0.1:7000,retry=50,interval=0.1"
    ));
    serial.check_for("while pidof socat; do sleep 0.1; done", COPY)?;
    assert_eq!(guest::sha256(serial, "/tmp/back", COPY)?, sha256(&received));
    switch.assert_frames_accounted();
    vm.shut_down()?;
    Ok(())
}
