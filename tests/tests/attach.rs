//! Attaching to a port: what works, and what a user reads where it does not.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use vswitch_common::port::message::{Hello, MAX_LEN, Reason, Text};
use vswitch_common::port::{RingRole, ring_name};
use vswitch_common::stats::Counter;
use vswitch_tests::attach::{Answer, Raw};
use vswitch_tests::fake_host::run;
use vswitch_tests::frames::mac;
use vswitch_tests::{Bare, Frame, Switch, programs};
use zerocopy::IntoBytes;

#[track_caller]
fn raw(switch: &Switch) -> Raw {
    Raw::connect(&switch.attach_socket()).expect("the switch listens")
}

/// Two processes, the switch's rings, frames both ways.
#[test]
fn two_clients_reach_each_other() {
    let switch = Switch::with_ports(&[1, 2]);
    let mut one = Bare::start(&switch, "one");
    let answer = one.attach(1, 1).unwrap();
    assert!(answer.starts_with("carrier=1 mtu=1500"), "{answer}");
    assert!(
        answer.contains(&format!("prefix={} ", switch.prefix())),
        "{answer}"
    );
    assert!(answer.contains("version=DPDK 2"), "{answer}");
    let mut two = Bare::attached(&switch, 2);

    let (there, back) = (
        Frame::marked(mac(2), mac(1), 1, 60),
        Frame::marked(mac(1), mac(2), 2, 1514),
    );
    one.send(std::slice::from_ref(&there));
    two.expect(&[there]);
    two.send(std::slice::from_ref(&back));
    one.expect(&[back]);
    switch.assert_frames_accounted();
    assert!(switch.port("dpdkr1").info.link && switch.count("dpdkr1", Counter::Attached) == 1);
}

/// What EAL says while it starts is kept from a shim's log, but not where it tells why EAL does not start.
#[test]
fn a_shim_whose_eal_does_not_start_shows_its_words() {
    let switch = Switch::with_ports(&[1]);
    let said = run(Command::new(programs::shim())
        .args(["--force-max-simd-bitwidth=few", "--", "--port=1", "--once"])
        .arg("--socket")
        .arg(switch.scratch().join("none.sock"))
        .env("OVS_RUNDIR", switch.rundir())
        .env_remove("RUNTIME_DIRECTORY"));
    assert_eq!(said.status, 1, "{said:?}");
    for words in [
        "EAL: invalid parameter for --force-max-simd-bitwidth",
        "EAL did not start (Invalid argument)",
    ] {
        assert!(said.stderr.contains(words), "{said:?}");
    }
}

/// EAL starts once in a process, which may have more than one port for all that: of one switch.
#[test]
fn a_process_is_the_client_of_two_ports() {
    let [switch, other] = [Switch::with_ports(&[1, 2]), Switch::with_ports(&[1])];
    let mut client = Bare::start(&switch, "both");
    client.attach(1, 1).unwrap();
    client.attach(2, 1).unwrap();

    let (there, back) = (
        Frame::marked(mac(2), mac(1), 1, 60),
        Frame::marked(mac(1), mac(2), 2, 1514),
    );
    for (queue, frame) in [there, back].into_iter().enumerate() {
        client.send_by(queue, std::slice::from_ref(&frame));
        client.expect(&[frame]);
    }
    switch.assert_frames_accounted();

    let elsewhere = format!("attach {} 1 1 both", other.attach_socket().display());
    let why = client.ask(&elsewhere).unwrap_err();
    assert_eq!(
        why,
        "this process is a client of another switch, or of one that is gone"
    );

    // It holds nothing there, and goes on here.
    let _successor = Bare::attached(&other, 1);
    client.ok("detach");
    let _successors = [1, 2].map(|port| Bare::attached(&switch, port));
}

/// The names of the historic switch are found by any DPDK process, with the number of each queue pair behind the first.
#[test]
fn the_historic_ring_names_are_visible() {
    let switch = Switch::with_ports(&[1, 7]);
    let mut client = Bare::attached_queues(&switch, 1, 2);
    for name in [
        "MProc_Client_1_RX",
        "MProc_Client_1_TX",
        "MProc_Client_7_RX",
        "MProc_Client_7_TX",
    ] {
        client.ok(&format!("lookup {name}"));
    }
    for role in [RingRole::Alloc, RingRole::Tx, RingRole::Rx, RingRole::Free] {
        client.ok(&format!("lookup {}", ring_name(1, 1, role)));
    }
    assert!(client.ask("lookup MProc_Client_2_RX").is_err());
    switch.vsctl("del-port dpdkr7");
    assert!(
        client.ask("lookup MProc_Client_7_RX").is_err(),
        "removed with its port"
    );
}

#[test]
fn each_refusal_says_why() {
    let switch = Switch::with_ports(&[1, 2]);
    let mut holder = Bare::start(&switch, "holder");
    holder.attach(1, 1).unwrap();
    let refused = |port, queues| Bare::start(&switch, "second").attach(port, queues).unwrap_err();

    assert_eq!(
        refused(9, 1),
        "port 9 does not exist on the switch; add it with 'ovs-vsctl add-port BRIDGE dpdkr9 -- set Interface dpdkr9 \
         type=dpdkr'"
    );
    assert_eq!(
        refused(1, 1),
        format!(
            "port 1 is taken: holder (process {}) is attached to it",
            holder.pid()
        )
    );
    assert_eq!(refused(2, 17), "17 queue pairs asked for; 1 to 16 are possible");
    assert_eq!(refused(2, 0), "0 queue pairs asked for; 1 to 16 are possible");
    // Nothing of that was in anyone's way.
    Bare::start(&switch, "second").attach(2, 16).unwrap();
}

#[test]
fn without_a_switch_the_path_is_named() {
    let mut switch = Switch::start();
    let mut client = Bare::start(&switch, "early");
    switch.end();
    let why = client.attach(1, 1).unwrap_err();
    let path = switch.attach_socket();
    assert!(
        why.contains(&format!("no switch runs at {}", path.display())),
        "{why}"
    );
}

#[test]
fn another_build_is_refused() {
    let switch = Switch::with_ports(&[1]);
    let refusal = |change: fn(&mut Hello)| {
        let mut hello = Hello::new(1, 1, "other");
        change(&mut hello);
        let connection = raw(&switch);
        assert!(connection.send(hello.as_bytes()));
        connection.refusal()
    };
    let (reason, text) = refusal(|h| h.dpdk_version = Text::new("DPDK 19.11.0"));
    assert_eq!(reason, Reason::DpdkMismatch as u32);
    assert!(
        text.contains("this client DPDK 19.11.0") && text.contains("same DPDK"),
        "{text}"
    );
    let (reason, text) = refusal(|h| h.mbuf_size = 192);
    assert_eq!(reason, Reason::DpdkMismatch as u32);
    assert!(text.contains("192 bytes"), "{text}");
    let (reason, text) = refusal(|h| h.header.version = 1);
    assert_eq!(reason, Reason::VersionMismatch as u32, "{text}");
    assert!(text.contains("version 2") && text.contains("version 1"), "{text}");
    Bare::attached(&switch, 1);
}

#[test]
fn malformed_messages_are_refused_and_hurt_nobody() {
    let switch = Switch::with_ports(&[1]);
    let hello = Hello::new(1, 1, "x");
    let hello = hello.as_bytes();
    let mut cases: Vec<(&str, Vec<u8>)> = vec![
        ("one byte", vec![1]),
        ("half a hello", hello[..70].to_vec()),
        ("a hello and a byte", [hello, &[0]].concat()),
        ("longer than any message", vec![0x44; MAX_LEN + 200]),
        ("64 KiB", vec![0; 65536]),
        ("noise", (0..144).map(|i| (i * 37) as u8).collect()),
    ];
    let mut unknown = hello.to_vec();
    unknown[4] = 99;
    cases.push(("an unknown kind", unknown));
    for (what, bytes) in cases {
        let connection = raw(&switch);
        assert!(connection.send(&bytes), "{what}");
        let (reason, text) = connection.refusal();
        assert_eq!(reason, Reason::Malformed as u32, "{what}: {text}");
    }
    Bare::attached(&switch, 1);
}

#[test]
fn messages_out_of_turn_are_refused() {
    let switch = Switch::with_ports(&[1]);
    let ready_first = raw(&switch);
    ready_first.ready();
    assert_eq!(ready_first.refusal().0, Reason::Malformed as u32);

    // Two hellos: the first may be granted before the second is read. This process then counts as one that may touch
    // shared memory, so a client process of its own has to do it.
    let mut client = Bare::start(&switch, "impatient");
    let socket = switch.attach_socket();
    client.ok(&format!("hello {} 1 1 impatient", socket.display()));
    client.ok("turn");
    client.ok("again");
    assert!(
        vswitch_tests::wait::within(Duration::from_secs(5), || client.process().ended().is_some()),
        "a client that breaks the order after its turn is parted with"
    );
    Bare::attached(&switch, 1);
}

#[test]
fn half_open_connections_hinder_nobody() {
    let switch = Switch::with_ports(&[1, 2]);
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let crowd: Vec<Raw> = (0..1500).map(|_| raw(&switch)).collect();
    let start = Instant::now();
    let mut one = Bare::attached(&switch, 1);
    let took = start.elapsed();
    println!(
        "attached beside {} half-open connections in {took:?}",
        crowd.len()
    );
    assert!(took < Duration::from_secs(3), "{took:?}");
    let mut two = Bare::attached(&switch, 2);
    let frame = Frame::marked(mac(2), mac(1), 1, 60);
    one.send(std::slice::from_ref(&frame));
    two.expect(&[frame]);
}

/// One that says nothing is dropped; one that has its turn and does nothing loses it, and the next one gets it.
#[test]
fn who_dawdles_is_parted_with() {
    let switch = Switch::with_ports(&[1, 2]);
    let start = Instant::now();
    let mut silent = raw(&switch);
    let mut dawdler = Bare::start(&switch, "dawdler");
    dawdler.ok(&format!("hello {} 1 1 dawdler", switch.attach_socket().display()));
    dawdler.ok("turn");
    let mut next = Bare::start(&switch, "next");
    next.tell(&format!("attach {} 2 1 next", switch.attach_socket().display()));

    assert!(matches!(silent.answer(), Answer::Closed));
    let after = start.elapsed();
    assert!(
        after > Duration::from_secs(4) && after < Duration::from_secs(9),
        "{after:?}"
    );
    next.answer(Duration::from_secs(20)).unwrap();
    println!("the next one was let in after {:?}", start.elapsed());
    switch.wait_for_log("did not initialise EAL");
    dawdler.process().wait(Duration::from_secs(2));
}

/// As when a laptop is closed, or a virtual machine moves to another host: nobody dawdled.
#[test]
fn a_machine_that_stands_still_costs_nobody_the_turn() {
    let switch = Switch::with_ports(&[1, 2]);
    let mut one = Bare::start(&switch, "one");
    one.ok(&format!("hello {} 1 1 one", switch.attach_socket().display()));
    one.ok("turn");
    let all = |signal| {
        switch.signal(signal);
        one.signal(signal);
    };
    all(Signal::SIGSTOP);
    std::thread::sleep(Duration::from_secs(7));
    all(Signal::SIGCONT);
    switch.wait_for_log("stood still");
    std::thread::sleep(Duration::from_millis(300));

    one.signal(Signal::SIGKILL);
    Bare::attached(&switch, 1);
    assert!(
        !switch.log().contains("did not initialise EAL"),
        "{}",
        switch.log()
    );
}

/// Owner and group may connect, whatever the umask. The counters are the owner's.
#[test]
fn the_socket_is_not_for_others() {
    use std::os::unix::fs::MetadataExt;
    let switch = Switch::with_ports(&[1]);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!(mode(&switch.attach_socket()), 0o660);
    let counters = format!("/dev/shm/{}.stats", switch.prefix());
    assert_eq!(mode(Path::new(&counters)), 0o600);
}
