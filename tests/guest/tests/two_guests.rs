//! The harness against real guests, wired to each other without any switch: what the other tests stand on.

use std::error::Error;
use std::path::Path;
use std::time::Duration;
use vm_harness::rfb::Client;
use vm_harness::text::Font;
use vm_harness::{Boot, Image, Vm, guest, image};

const BOOT: Duration = Duration::from_secs(60);

fn guest_on_wire(wire: &Path, number: u8, server: bool, boot: Boot) -> Result<Vm, Box<dyn Error>> {
    let role = if server { "on" } else { "off" };
    let backend = format!("stream,server={role},addr.type=unix,addr.path={}", wire.display());
    let mac = format!("00:00:00:00:00:{number:02x}");
    Ok(Vm::builder(&format!("Client {number}"))
        .qemu(&image::find_qemu()?)
        .image(&Image::find()?)
        .boot(boot)
        .nic("wire", &backend, &mac, "")
        .vnc(true)
        .spawn()?)
}

fn screen_text(client: &mut Client, font: &Font) -> Result<String, Box<dyn Error>> {
    Ok(font.read(client.grab()?).join("\n"))
}

#[test]
fn two_guests_ping_copy_and_answer_on_their_screens() -> Result<(), Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let wire = directory.path().join("wire");
    let mut one = guest_on_wire(&wire, 1, true, Boot::Kernel)?;
    one.qmp()?; // it listens by now
    let mut two = guest_on_wire(&wire, 10, false, Boot::Disk)?;
    println!("kernel and initrd: prompt after {:?}", one.wait_boot(BOOT)?);
    println!("disk image: prompt after {:?}", two.wait_boot(BOOT)?);

    // Names and addresses follow from the MAC.
    assert_eq!(one.serial()?.check("hostname")?.trim(), "client1");
    assert_eq!(two.serial()?.check("hostname")?.trim(), "client10");
    let failed = one.serial()?.run("echo before; exit 7; echo never")?;
    assert_eq!((failed.code, failed.text.as_str()), (7, "before\n"));

    for address in ["10.0.0.10", "fd00::a", "client10"] {
        let stats = guest::ping(one.serial()?, address, 3, "")?;
        println!("ping {address}: {stats:?}");
        assert!(stats.is_perfect(), "{address}: {stats:?}");
    }
    let stats = guest::ping(two.serial()?, "10.0.0.77", 1, "")?;
    assert_eq!(stats.received, 0, "nobody has that address");

    for address in ["10.0.0.10", "fd00::a"] {
        let copy = guest::copy_file(one.serial()?, two.serial()?, address, 64, Duration::from_secs(90))?;
        println!("copy to {address}: {copy:?}");
        assert!(copy.is_intact() && copy.bytes == 64 << 20, "{copy:?}");
    }

    // A command that doesn't end is interrupted, and the console goes on.
    let endless = one.serial()?.run_for("sleep 1000", Duration::from_secs(1));
    assert!(
        matches!(endless, Err(vm_harness::Error::Timeout { .. })),
        "{endless:?}"
    );
    assert_eq!(one.serial()?.check("echo alive")?, "alive\n");

    // The screen: read from pixels, written by the keyboard.
    let font = Font::of_this_host()?;
    let mut vnc = one.vnc()?;
    assert_eq!(vnc.name(), "QEMU (Client 1)");
    let before = screen_text(&mut vnc, &font)?;
    assert!(
        before.contains("client1 login: root (automatic login)"),
        "{before}"
    );
    vnc.type_text("clear; printf '%s\\n' '~!@#$%^&*()_+{}|:\"<>?' \"[]\\;,./=-\" AbcXyz\n")?;
    let mut seen = String::new();
    for _ in 0..50 {
        seen = screen_text(&mut vnc, &font)?;
        if seen.contains("\nAbcXyz\n") {
            break;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    let expected = "~!@#$%^&*()_+{}|:\"<>?\n[]\\;,./=-\nAbcXyz\nclient1:~#\n";
    assert!(seen.starts_with(expected), "{seen}");
    assert!(!seen.contains(char::REPLACEMENT_CHARACTER), "{seen}");

    // A NIC that comes later gets its address too.
    two.qmp()?
        .execute("netdev_add", serde_json::json!({ "type": "user", "id": "late" }))?;
    let device = serde_json::json!({
        "driver": "virtio-net-pci", "netdev": "late", "id": "late", "mac": "00:00:00:00:00:0c",
    });
    two.qmp()?.execute("device_add", device)?;
    guest::wait_carrier(two.serial()?, "eth1", true, Duration::from_secs(20))?;
    two.serial()?.check("for i in 1 2 3 4 5 6 7 8 9 10; do ip -br addr show dev eth1 | grep -q 'fd00::c/64' && break; sleep 0.5; done")?;
    let addresses = two.serial()?.check("ip -brief addr show dev eth1")?;
    assert!(
        addresses.contains("10.0.0.12/24") && addresses.contains("fd00::c/64"),
        "{addresses}"
    );

    two.shut_down()?;
    one.kill()?;
    Ok(())
}
