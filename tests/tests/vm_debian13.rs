//! Guests of a later release: their kernel leaves datagrams uncut (USO), which that of Debian 12 neither does nor takes.

use std::time::Duration;

use vm_harness::{Vm, guest};
use vswitch_common::stats::Counter::{GuestRxLarge, GuestRxTooLong, GuestTxBadHeader, GuestTxLarge};
use vswitch_tests::vm::{self, Outcome};
use vswitch_tests::{Switch, eventually};

const LIMIT: Duration = Duration::from_secs(60);
/// Of a datagram on the wire.
const SEGMENT: u64 = 1400;
/// What the sender writes at once.
const WRITE: u64 = 40 * SEGMENT;
/// So many times. All of it finds room in a ring, for nobody sends a lost datagram again.
const WRITES: u64 = 5;

/// Datagrams that `from`'s kernel does not cut, to `host`; they arrive as they were sent. How many the receiver got.
fn send_datagrams(from: &mut Vm, to: &mut Vm, host: &str, family: u8) -> Result<u64, vm::Failed> {
    let size = WRITES * WRITE;
    let counted = |vm: &mut Vm| -> Result<u64, vm::Failed> {
        let text = vm.serial()?.check(&format!(
            "if [ {family} = 6 ]; then awk '/^Udp6InDatagrams/ {{ print $2 }}' /proc/net/snmp6; \
             else awk '/^Udp: [0-9]/ {{ print $2 }}' /proc/net/snmp; fi"
        ))?;
        Ok(text.trim().parse().expect("a number"))
    };
    let before = counted(to)?;
    // A socket has room for all of it: some kilobytes of the kernel's for each.
    to.serial()?
        .check("rm -f /tmp/got; echo 4000000 >/proc/sys/net/core/rmem_max")?;
    to.serial()?.spawn(
        &format!("exec socat -u UDP{family}-RECV:5000,rcvbuf=2000000 CREATE:/tmp/got"),
        "/tmp/socat.log",
    )?;
    to.serial()?
        .check_for("until ss -lun | grep -q :5000; do sleep 0.1; done", LIMIT)?;
    let from = from.serial()?;
    // setsockopt(SOL_UDP, UDP_SEGMENT, SEGMENT)
    from.check(&format!(
        "head -c {size} /dev/urandom >/tmp/sent; \
         socat -u -b {WRITE} OPEN:/tmp/sent UDP{family}:{host}:5000,setsockopt-int=17:103:{SEGMENT}"
    ))?;
    to.serial()?.check_for(
        &format!("until [ $(stat -c %s /tmp/got) = {size} ]; do sleep 0.1; done; killall socat"),
        LIMIT,
    )?;
    assert_eq!(
        guest::sha256(from, "/tmp/sent", LIMIT)?,
        guest::sha256(to.serial()?, "/tmp/got", LIMIT)?
    );
    Ok(counted(to)? - before)
}

#[test]
fn datagrams_stay_whole_for_who_takes_them_and_are_cut_for_others() -> Outcome {
    let switch = Switch::with_ports(&[1, 2, 3]);
    let new = vm::debian13();
    let mut one = vm::client(&switch, 1).image(&new).spawn()?;
    let mut two = vm::unplugged(&switch, "Client 2")
        .image(&new)
        .nic("net2", "dpdk,port=2", "00:00:00:00:00:02", "packed=on")
        .spawn()?;
    let mut three = vm::client(&switch, 3).spawn()?;
    vm::boot(&mut [&mut one, &mut two, &mut three])?;
    for address in ["10.0.0.2", "fd00::2", "10.0.0.3", "fd00::3"] {
        vm::reaches(&mut one, address)?;
    }
    // The driver leaves it off until asked.
    for vm in [&mut one, &mut two] {
        vm.serial()?.check(
            "ethtool -K eth0 tx-udp-segmentation on && ethtool -k eth0 | grep 'udp-segmentation: on'",
        )?;
    }

    for (family, host) in [(4, "10.0.0.2"), (6, "[fd00::2]")] {
        for back in [false, true] {
            let (from, to, host) = if back {
                (&mut two, &mut one, host.replace('2', "1"))
            } else {
                (&mut one, &mut two, host.to_owned())
            };
            let [sender, receiver] = if back {
                ["dpdkr2", "dpdkr1"]
            } else {
                ["dpdkr1", "dpdkr2"]
            };
            let sent = switch.count(sender, GuestTxLarge);
            let received = switch.count(receiver, GuestRxLarge);
            send_datagrams(from, to, &host, family)?;
            eventually("they are counted as large at both ends", || {
                switch.count(sender, GuestTxLarge) == sent + WRITES
                    && switch.count(receiver, GuestRxLarge) == received + WRITES
            });
        }
    }
    for (family, host) in [(4, "10.0.0.3"), (6, "[fd00::3]")] {
        let datagrams = send_datagrams(&mut one, &mut three, host, family)?;
        assert_eq!(datagrams, WRITES * WRITE / SEGMENT, "{host}");
    }
    assert_eq!(switch.count("dpdkr3", GuestRxLarge), 0);

    // And TCP, between the two kernels.
    let copy = guest::copy_file(three.serial()?, one.serial()?, "fd00::1", 8, LIMIT)?;
    assert!(copy.is_intact() && copy.bytes == 8 << 20, "{copy:?}");
    for port in ["dpdkr1", "dpdkr2", "dpdkr3"] {
        for counter in [GuestTxBadHeader, GuestRxTooLong] {
            assert_eq!(switch.count(port, counter), 0, "{port} {}", counter.name());
        }
    }
    switch.assert_frames_accounted();
    for vm in [one, two, three] {
        vm.shut_down()?;
    }
    switch.stop();
    Ok(())
}
