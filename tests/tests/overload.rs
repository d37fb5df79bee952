//! What runs out or hangs: traffic that can flow flows, the log names the cause once, and the end of it is noticed.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use dpdk_vswitchd::memory;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vswitch_common::stats::layout::{Layout, MAX_PORTS};
use vswitch_common::stats::{Counter, PortInfo, Reader, Segment};
use vswitch_tests::bare::Traffic;
use vswitch_tests::frames::{BROADCAST, mac};
use vswitch_tests::namespace::own_mounts;
use vswitch_tests::{Bare, Frame, Switch, eventually, prerequisites, wait};

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

/// What a switch beside `switch` says, with so much memory and a directory of its own, as it does not start.
#[track_caller]
fn another_fails(switch: &Switch, memory: &str) -> String {
    let output = Command::new(switch.command().get_program())
        .args([memory, "--", "--rundir"])
        .arg(switch.scratch().join("other"))
        .env_remove("OVS_RUNDIR")
        .env_remove("RUNTIME_DIRECTORY")
        .env_remove("NOTIFY_SOCKET")
        .output()
        .unwrap();
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// More memory than there is: the switch does not start, and says why and what to do.
#[test]
fn no_hugepages_at_the_start() {
    let switch = Switch::start();
    let start = Instant::now();
    let said = another_fails(&switch, "--socket-mem=9000000");
    assert!(
        said.contains("9000000 MiB are needed") && said.contains("nr_hugepages"),
        "{said}"
    );
    assert!(start.elapsed() < Duration::from_secs(30));
}

/// Anybody who can open the hugepages' directory may keep DPDK from starting: it is said who does.
#[test]
fn a_lock_on_the_hugepages() {
    let switch = Switch::start();
    let mount = memory::mounts().next().expect("a hugetlbfs");
    let lock = Flock::lock(fs::File::open(mount).unwrap(), FlockArg::LockExclusiveNonblock).unwrap();
    let said = another_fails(&switch, "--socket-mem=64");
    let who = format!("process {} holds the lock on", std::process::id());
    assert!(said.contains(&who), "{said}");
    drop(lock);
    switch.stop();
}

/// Ports until the memory is used up: the first that gets none says so in its row, the others work, and when others
/// go it gets what it needs.
#[test]
fn no_hugepages_for_another_port() {
    const PORTS: u16 = 420;
    let switch = Switch::builder().memory(64).start();
    switch.add_bridge("br0", &[]);
    let row = |n: u16| format!(" -- add-port br0 dpdkr{n} -- set Interface dpdkr{n} type=dpdkr");
    let all: String = (1..=PORTS).map(row).collect();
    let complaint = switch.vsctl_complaint(all.trim_start_matches(" -- "));
    assert!(complaint.contains("no memory for the rings"), "{complaint:.500}");
    assert!(
        complaint.contains("dpdk-socket-mem and start the switch again"),
        "{complaint:.500}"
    );
    let failed = complaint
        .lines()
        .filter_map(|l| l.split('\'').nth(1))
        .next()
        .unwrap()
        .to_owned();
    println!("{} of {PORTS} ports fail", complaint.lines().count());
    assert_eq!(switch.get("Interface", &failed, "ofport"), "-1");
    let works = switch.vsctl("--columns=name find Interface error=[] type=dpdkr");
    let names: Vec<&str> = works
        .split_whitespace()
        .filter(|w| w.starts_with("dpdkr"))
        .collect();
    let number = |name: &str| name.trim_start_matches("dpdkr").parse::<u16>().unwrap();
    let [one, two, rest @ ..] = &names[..] else {
        panic!("{works}")
    };
    let (mut a, mut b) = (
        Bare::attached(&switch, number(one)),
        Bare::attached(&switch, number(two)),
    );
    let frame = Frame::marked(BROADCAST, mac(1), 1, 60);
    a.send(std::slice::from_ref(&frame));
    b.expect(&[frame]);
    // More queue pairs than the memory has rings for are refused, and nothing else breaks.
    let mut greedy = Bare::start(&switch, "greedy");
    let refusal = greedy.attach(number(rest[0]), 16).unwrap_err();
    assert!(
        refusal.contains("dpdk-socket-mem and start the switch again"),
        "{refusal}"
    );
    let failing = || {
        let rows = switch.vsctl("--columns=name find Interface error!=[] type=dpdkr");
        rows.split_whitespace()
            .filter_map(|w| w.strip_prefix("dpdkr")?.parse::<u16>().ok())
            .collect::<Vec<_>>()
    };
    let before = failing();
    let gone: String = rest[1..40].iter().map(|n| format!(" -- del-port {n}")).collect();
    switch.vsctl(gone.trim_start_matches(" -- "));
    eventually("failed ports are tried again", || {
        failing().len() + 20 < before.len()
    });
    let after = failing();
    let put_right = before.iter().find(|n| !after.contains(n)).unwrap();
    Bare::attached(&switch, *put_right);
}

/// A client whose rings of the doorbell are lost: its frames wait a moment and not for ever.
#[test]
fn a_lost_doorbell_costs_a_moment() {
    let switch = Switch::with_ports(&[1, 2]);
    let (mut one, mut two) = (Bare::attached(&switch, 1), Bare::attached(&switch, 2));
    assert_ne!(one.ok("mute"), "0");
    let start = Instant::now();
    for n in 0..10 {
        let frame = Frame::marked(BROADCAST, mac(1), n, 60);
        std::thread::sleep(Duration::from_millis(20));
        one.send(std::slice::from_ref(&frame));
        assert_eq!(two.receive(1), [frame]);
    }
    // A tenth of a second each, on an idle machine.
    println!("10 frames in {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(8));
    assert_eq!(switch.count("dpdkr1", Counter::RxPackets), 10);
}

/// The disk under the database is full: changes are refused to who makes them, traffic goes on, the log is not flooded,
/// and with room again all is as before.
#[test]
fn a_full_disk_under_the_database() {
    let disk = tempfile::tempdir().unwrap();
    let path = disk.path().to_str().unwrap();
    prerequisites::run("mount", &["-t", "tmpfs", "-o", "size=2m", "tmpfs", path]);
    let unmounted = Unmount(path.to_owned());
    let switch = Switch::builder().options(&["--statedir", path]).start();
    switch.add_bridge("br0", &[1, 2]);
    let steady = Steady::start(&switch, 6);
    let filler = disk.path().join("filler");
    std::fs::write(&filler, vec![0; 4 << 20]).unwrap_err();
    let change = [
        "--timeout=5",
        "add-port",
        "br0",
        "dpdkr3",
        "--",
        "set",
        "Interface",
        "dpdkr3",
        "type=dpdkr",
    ];
    let mut said = String::new();
    let mut is_refused = || {
        let value = format!("external_ids:x={}", "y".repeat(5000));
        let output = switch.tool("ovs-vsctl", &["--timeout=5", "set", "Bridge", "br0", &value]);
        said = String::from_utf8_lossy(&output.stderr).into_owned();
        !output.status.success()
    };
    // The last page of the file may take a few changes yet.
    assert!(wait::within(wait::PATIENCE, &mut is_refused), "{}", switch.log());
    // The database server complains of each, by two of its modules; the log has either once.
    assert!((0..5).all(|_| is_refused()));
    println!("{}", said.trim());
    let causes = switch.log().matches("No space left on device").count();
    assert!((1..=2).contains(&causes), "{}", switch.log());
    steady.finish();
    std::fs::remove_file(&filler).unwrap();
    eventually("a change is taken again", || {
        switch.tool("ovs-vsctl", &change).status.success()
    });
    Bare::attached(&switch, 3);
    eventually("columns are written again", || {
        switch.get("Interface", "dpdkr3", "statistics:attached") == "1"
    });
    drop(switch);
    drop(unmounted);
}

struct Unmount(String);

impl Drop for Unmount {
    fn drop(&mut self) {
        prerequisites::run("umount", &["-l", &self.0]);
    }
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

/// The clock on the wall jumps a day ahead and a week back (libfaketime sets it, for the switch and its database): frames
/// flow, nobody is thrown out, no learned address ages, and clients attach.
#[test]
fn the_wall_clock_jumps() {
    const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";
    assert!(Path::new(LIBRARY).exists(), "install the package libfaketime");
    let scratch = tempfile::tempdir().unwrap();
    let clock = scratch.path().join("clock");
    let set = |offset: &str| std::fs::write(&clock, offset).unwrap();
    set("+0");
    let switch = Switch::builder()
        .environment("LD_PRELOAD", LIBRARY)
        .environment("FAKETIME_TIMESTAMP_FILE", clock.to_str().unwrap())
        .environment("FAKETIME_NO_CACHE", "1")
        .environment("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .start();
    switch.add_bridge("br0", &[1, 2, 3]);
    let steady = Steady::start(&switch, 5);
    let today = switch.log().lines().last().unwrap()[..10].to_owned();
    for offset in ["+1d", "-7d", "+0"] {
        std::thread::sleep(Duration::from_millis(800));
        set(offset);
        let start = Instant::now();
        let mut late = Bare::attached(&switch, 3);
        switch.vsctl("--timeout=10 set Interface dpdkr3 external_ids:x=y");
        println!("{offset}: attached and configured in {:?}", start.elapsed());
        late.kill();
        let table = switch.appctl("fdb/show br0");
        assert!(table.lines().count() >= 3, "{table}");
    }
    steady.finish();
    assert!(
        switch
            .log()
            .lines()
            .any(|l| !l.starts_with(&today) && l.starts_with("20")),
        "the clock did jump"
    );
    assert!(!switch.log().contains("does not answer"), "{}", switch.log());
}

/// Shared memory that others fill: the counters have theirs from the start, or there is no switch, and it says why.
#[test]
fn full_shared_memory() {
    let none = None::<&str>;
    own_mounts();
    let size = size_of::<Layout>() + (64 << 10);
    let tmpfs =
        |options: &str| mount(none, "/dev/shm", Some("tmpfs"), MsFlags::empty(), Some(options)).unwrap();
    tmpfs(&format!("size={size}"));
    let filler = vec![0; size];
    let segment = Segment::create("one", 1).unwrap();
    assert!(fs::write("/dev/shm/filler", &filler).is_err(), "it is full");
    let info = PortInfo {
        name: "last".into(),
        bridge: "br0".into(),
        ofport: 1,
        id: None,
        link: true,
    };
    segment.set_port(MAX_PORTS - 1, Some(&info));
    assert_eq!(Reader::open("one").unwrap().snapshot().unwrap().ports.len(), 1);
    drop(segment);

    let _ = fs::write("/dev/shm/filler", &filler[..size / 2]);
    let error = Segment::create("two", 1).unwrap_err().to_string();
    assert!(error.contains("no room for it in /dev/shm: ENOSPC"), "{error}");
    assert!(!Path::new("/dev/shm/two.stats").exists(), "nothing is left of it");
}
