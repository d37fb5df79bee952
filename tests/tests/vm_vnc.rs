//! The paper's command line, word for word, and a VNC client that types on the guests' keyboards and reads their screens.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use vm_harness::rfb::{Address, Client};
use vm_harness::text::Font;
use vm_harness::{Accel, Vm};
use vswitch_tests::child::Child;
use vswitch_tests::vm::{self, Failed, Outcome};
use vswitch_tests::{Switch, programs};

const LIMIT: Duration = Duration::from_secs(90);

/// The lines of the screen from the first one to `last`, which is the first that starts so.
fn wait_for_line(vnc: &mut Client, font: &Font, last: &str) -> Result<Vec<String>, Failed> {
    let until = Instant::now() + LIMIT;
    loop {
        let lines = font.read(vnc.grab()?);
        if let Some(at) = lines.iter().position(|line| line.starts_with(last)) {
            return Ok(lines.into_iter().take(at + 1).collect());
        }
        assert!(
            Instant::now() < until,
            "no line {last:?} on the screen:\n{}",
            lines.join("\n")
        );
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Types a ping of `address` on the keyboard of guest `own`, and reads from the pixels what came of it.
fn ping_by_keyboard(vnc: &mut Client, font: &Font, own: u8, address: &str) -> Outcome {
    let prompt = format!("client{own}:~#");
    wait_for_line(vnc, font, &prompt)?;
    // With the screen cleared the next lines are the answer.
    vnc.type_text(&format!("clear; ping -c 3 -i 0.5 {address}\n"))?;
    let lines = wait_for_line(vnc, font, "3 packets transmitted")?;
    println!("{}\n", lines.join("\n"));
    let expected = "3 packets transmitted, 3 received, 0% packet loss, time ";
    assert!(lines.iter().any(|line| line.starts_with(expected)), "{lines:#?}");
    let answers = lines
        .iter()
        .filter(|line| line.starts_with(&format!("64 bytes from {address}: icmp_seq=")));
    assert_eq!(answers.count(), 3, "{lines:#?}");
    Ok(())
}

fn keep_picture(vnc: &Client, name: &str) -> Outcome {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    vnc.last().save_png(&path)?;
    println!("{}", path.display());
    Ok(())
}

#[test]
fn the_papers_command_line_and_a_ping_by_keyboard_and_screen() -> Outcome {
    let switch = Switch::start();
    switch.vsctl("--no-wait add-br br0 -- set Bridge br0 datapath_type=dpdk");
    switch.vsctl("--no-wait add-port br0 ovs_dpdk_1 -- set Interface ovs_dpdk_1 type=dpdk");
    switch.vsctl("--no-wait add-port br0 ovs_dpdk_2 -- set Interface ovs_dpdk_2 type=dpdk");

    let mut one: Vm = vm::client(&switch, 1).vnc(true).spawn()?;
    // A CPU that is there, and what stands in for KVM where that does not work; else as printed.
    let machine = match vm::accel() {
        Accel::Kvm => ["-cpu", "host", "--enable-kvm"].as_slice(),
        Accel::Tcg => ["-cpu", "max", "-accel", "tcg"].as_slice(),
    };
    let screen = switch.scratch().join("vnc");
    let mut command = Command::new(vm::qemu());
    command
        .args(["-c", "0x2", "-n", "4", "--proc-type=secondary", "--"])
        .args(["-snapshot", "-boot", "c", "-hda"])
        .arg(vm::image().disk())
        .args(["-m", "3072", "-netdev", "dpdk,port=2,id=me2"])
        .args(["-device", "virtio-net-pci,netdev=me2,mac=00:00:00:00:00:02"])
        .args(["-smp", "2", "-name", "Client 2"])
        .args(machine)
        .arg("-vnc")
        .arg(format!("unix:{}", screen.display()))
        .env("OVS_RUNDIR", switch.rundir())
        .env("DPDK_QEMU_SHIM", programs::shim());
    let start = Instant::now();
    let mut two = Child::start(&mut command, &switch.scratch().join("qemu.log"));

    let font = Font::of_this_host()?;
    let connect = |path: &Path| Client::connect(&Address::Unix(path.into()), LIMIT);
    let mut screen_two = connect(&screen)?;
    assert_eq!(screen_two.name(), "QEMU (Client 2)");
    vm::boot(&mut [&mut one])?;
    ping_by_keyboard(&mut screen_two, &font, 2, "10.0.0.1")?;
    println!(
        "from QEMU's start to the answer on the screen: {:.1} s",
        start.elapsed().as_secs_f64()
    );
    keep_picture(&screen_two, "client2.png")?;
    let mut screen_one = one.vnc()?;
    ping_by_keyboard(&mut screen_one, &font, 1, "10.0.0.2")?;
    keep_picture(&screen_one, "client1.png")?;

    assert!(two.ended().is_none());
    assert_eq!(two.log(), "", "QEMU and its shim have nothing to complain about");
    drop(two);
    drop(one);
    switch.stop();
    Ok(())
}
