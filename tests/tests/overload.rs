//! What runs out or hangs: traffic that can flow flows, the log names the cause once, and the end of it is noticed.

use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vswitch_common::stats::Counter;
use vswitch_tests::bare::Traffic;
use vswitch_tests::frames::{BROADCAST, mac};
use vswitch_tests::{Bare, Frame, Switch, eventually};

fn database_pid(switch: &Switch) -> Option<i32> {
    let processes = switch.leftovers().processes;
    let database = |(_, line): &&(i32, String)| line.contains("ovsdb-server ");
    processes.iter().find(database).map(|p| p.0)
}

/// Steady traffic both ways for `seconds`, of which nothing may be lost.
struct Steady {
    clients: [Bare; 2],
    count: u64,
}

impl Steady {
    #[track_caller]
    fn start(switch: &Switch, seconds: u64) -> Steady {
        const RATE: u64 = 5_000;
        let mut clients = [1, 2].map(|n| Bare::attached(switch, n));
        let count = seconds * RATE;
        let (a, b) = Traffic::both_ways(count);
        clients[0].start_traffic(&Traffic { rate: RATE, ..a });
        clients[1].start_traffic(&Traffic { rate: RATE, ..b });
        Steady { clients, count }
    }

    #[track_caller]
    fn finish(mut self) {
        for client in &mut self.clients {
            client.report().assert_own(self.count);
        }
    }
}

/// More memory than there is: the switch does not start, and says why and what to do.
#[test]
fn no_hugepages_at_the_start() {
    let switch = Switch::start();
    let dir = switch.scratch().join("other");
    let mut command = Command::new(switch.command().get_program());
    command.args(["--socket-mem=9000000", "--", "--rundir"]).arg(&dir);
    let start = Instant::now();
    let output = command
        .env_remove("OVS_RUNDIR")
        .env_remove("RUNTIME_DIRECTORY")
        .env_remove("NOTIFY_SOCKET")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(
        said.contains("9000000 MiB are needed") && said.contains("nr_hugepages"),
        "{said}"
    );
    assert!(start.elapsed() < Duration::from_secs(30));
}

/// A client whose rings of the doorbell are lost: its frames wait a moment and not for ever.
#[test]
fn a_lost_doorbell_costs_a_moment() {
    let switch = Switch::with_ports(&[1, 2]);
    let (mut one, mut two) = (Bare::attached(&switch, 1), Bare::attached(&switch, 2));
    assert_ne!(one.ok("mute"), "0");
    for n in 0..10 {
        let frame = Frame::marked(BROADCAST, mac(1), n, 60);
        std::thread::sleep(Duration::from_millis(20));
        one.send(std::slice::from_ref(&frame));
        assert_eq!(two.receive(1), [frame]);
    }
    assert_eq!(switch.count("dpdkr1", Counter::RxPackets), 10);
}

/// A database server that hangs is replaced; traffic does not notice, and changes are made again.
#[test]
fn a_hung_database_is_replaced() {
    let switch = Switch::with_ports(&[1, 2]);
    let first = database_pid(&switch).expect("it has a database server");
    let steady = Steady::start(&switch, 10);
    kill(Pid::from_raw(first), Signal::SIGSTOP).unwrap();
    switch.wait_for_log("ovsdb-server has not answered for 10 seconds; killing it");
    eventually("there is a new one", || {
        database_pid(&switch).is_some_and(|p| p != first)
    });
    eventually("a change is made", || {
        let change = [
            "--timeout=5",
            "--may-exist",
            "add-port",
            "br0",
            "dpdkr3",
            "--",
            "set",
            "Interface",
            "dpdkr3",
            "type=dpdkr",
        ];
        switch.tool("ovs-vsctl", &change).status.success()
    });
    steady.finish();
    Bare::attached(&switch, 3);
    assert_eq!(switch.log().matches("has not answered").count(), 1);
}
