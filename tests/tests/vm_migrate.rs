//! Live migration: a guest goes on in another QEMU, behind another port, in the middle of a copy.

use std::time::{Duration, Instant};

use serde_json::json;
use vm_harness::{Vm, VmBuilder, guest};
use vswitch_tests::vm::{self, Failed, Outcome};
use vswitch_tests::{Switch, eventually};

const LIMIT: Duration = Duration::from_secs(60);

/// Client 2, behind port `port`.
fn behind(switch: &Switch, port: u8, device: &str) -> VmBuilder {
    vm::unplugged(switch, "Client 2").nic("net2", &format!("dpdk,port={port}"), "00:00:00:00:00:02", device)
}

/// Has `vm` go on in a QEMU that `next` describes. The old one stays, with a guest that has stopped.
fn migrate(switch: &Switch, vm: &mut Vm, next: VmBuilder) -> Result<Vm, Failed> {
    let socket = switch.scratch().join("migration");
    let _ = std::fs::remove_file(&socket);
    let uri = format!("unix:{}", socket.display());
    let mut next = next.args(["-incoming", &uri]).spawn()?;
    // QEMU listens before it answers.
    next.qmp()?;
    let start = Instant::now();
    // A guest that is translated and receives writes more in 300 ms, the default, than is sent in that time.
    vm.qmp()?
        .execute("migrate-set-parameters", json!({ "downtime-limit": 2000 }))?;
    vm.qmp()?.execute("migrate", json!({ "uri": uri }))?;
    loop {
        let state = vm.qmp()?.execute("query-migrate", json!({}))?;
        match state["status"].as_str() {
            Some("completed") => {
                println!("migrated in {:.1} s: {state}", start.elapsed().as_secs_f64());
                break;
            }
            Some("failed" | "cancelled") => panic!("{state}\n{}\n{}", vm.stderr(), next.stderr()),
            _ => assert!(start.elapsed() < LIMIT, "{state}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    next.serial()?.wait_prompt(LIMIT)?;
    Ok(next)
}

/// Begins a copy from one guest to another, in the background of both; it goes on until it is ended.
fn begin_copy(sender: &mut Vm, receiver: &mut Vm, address: &str) -> Outcome {
    // Room for some seconds of it in the socket.
    receiver.serial()?.check(
        "sysctl -w net.ipv4.tcp_rmem='4096 16777216 16777216'; rm -f /tmp/received /tmp/received.done",
    )?;
    receiver.serial()?.spawn(
        "file-recv 7000 /tmp/received; echo $? >/tmp/received.done",
        "/tmp/received.log",
    )?;
    sender.serial()?.check("rm -f /tmp/sent /tmp/enough")?;
    sender.serial()?.spawn(
        &format!(
            "until [ -e /tmp/enough ]; do head -c 131072 /dev/urandom | tee -a /tmp/sent; sleep 0.02; done \
             | file-send /proc/self/fd/0 {address} 7000"
        ),
        "/tmp/sent.log",
    )?;
    more_comes(receiver)
}

/// Waits until some more of the copy has arrived.
fn more_comes(receiver: &mut Vm) -> Outcome {
    let length = |vm: &mut Vm| -> Result<u64, Failed> {
        let text = vm.serial()?.check("cat /tmp/received 2>/dev/null | wc -c")?;
        Ok(text.trim().parse().expect("a number"))
    };
    let (start, before) = (Instant::now(), length(receiver)?);
    while length(receiver)? < before + (1 << 20) {
        assert!(start.elapsed() < LIMIT, "the copy has stopped");
    }
    Ok(())
}

/// Ends the copy: all that was sent has come.
fn end_copy(sender: &mut Vm, receiver: &mut Vm) -> Outcome {
    more_comes(receiver)?;
    sender.serial()?.check("touch /tmp/enough")?;
    receiver.serial()?.check_for(
        "until [ -s /tmp/received.done ]; do sleep 0.2; done; cat /tmp/received.log; [ \"$(cat /tmp/received.done)\" = 0 ]",
        LIMIT,
    )?;
    let sent = guest::sha256(sender.serial()?, "/tmp/sent", LIMIT)?;
    assert_eq!(guest::sha256(receiver.serial()?, "/tmp/received", LIMIT)?, sent);
    Ok(())
}

fn moves(device: &str) -> Outcome {
    let switch = Switch::with_ports(&[1, 2, 3]);
    let free = switch.free_mbufs();
    let mut one = vm::client(&switch, 1).spawn()?;
    let mut two = behind(&switch, 2, device).spawn()?;
    vm::boot(&mut [&mut one, &mut two])?;
    vm::reaches(&mut one, "10.0.0.2")?;
    let mut monitor = vm::Monitor::start(&mut one, "10.0.0.2")?;

    // While it receives: what the shim, and nobody else, writes into the guest's memory meanwhile has to come along.
    begin_copy(&mut one, &mut two, "10.0.0.2")?;
    two.serial()?.check("killall -STOP socat")?;
    let mut moved = migrate(&switch, &mut two, behind(&switch, 3, device))?;
    drop(two);
    moved.serial()?.check("killall -CONT socat")?;
    end_copy(&mut one, &mut moved)?;
    println!("no answer to ping for {}", monitor.silence(&mut one)?);
    vm::reaches(&mut moved, "10.0.0.1")?;
    eventually("the switch has learnt where the guest is", || {
        let table = switch.appctl("fdb/show br0");
        let line = table.lines().find(|line| line.contains("00:00:00:00:00:02"));
        line.is_some_and(|line| line.split_whitespace().next() == Some("3"))
    });

    // And back, while it sends.
    begin_copy(&mut moved, &mut one, "10.0.0.1")?;
    let mut back = migrate(&switch, &mut moved, behind(&switch, 2, device))?;
    drop(moved);
    end_copy(&mut back, &mut one)?;
    println!("no answer to ping for {}", monitor.silence(&mut one)?);
    vm::reaches(&mut one, "10.0.0.2")?;

    drop((one, back));
    switch.wait_for_free_mbufs(free);
    switch.stop();
    Ok(())
}

#[test]
fn a_guest_moves_in_the_middle_of_a_copy() -> Outcome {
    moves("")
}

#[test]
fn a_guest_with_packed_rings_moves_in_the_middle_of_a_copy() -> Outcome {
    moves("packed=on")
}
