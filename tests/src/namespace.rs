//! Network namespaces: hosts of their own on this host. And mounts that only a test sees.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

use crate::child::{Child, is_dead};
use crate::prerequisites::{self, run};
use crate::switch::Switch;
use crate::wait::{PATIENCE, within};

/// Names are this, the test's process id, and a number.
const PREFIX: &str = "vswitch-test-";
const DIR: &str = "/run/netns";

/// Lets this thread and its children mount what nobody else sees, and what goes with them.
///
/// # Panics
/// If the kernel refuses.
#[track_caller]
pub fn own_mounts() {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private mounts");
}

/// Gives this thread and its children a network of their own, which ends with the last of them.
///
/// # Panics
/// If the kernel refuses, or `ip` is not installed.
#[track_caller]
pub fn own_network() {
    prerequisites::program("ip", "iproute2");
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
    run("ip", &["link", "set", "lo", "up"]);
}

/// A network namespace. Removed when dropped, with the interfaces in it.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// A new one, with nothing but its loopback interface.
    ///
    /// # Panics
    /// If the kernel refuses, or `ip` is not installed.
    #[track_caller]
    pub fn new() -> Namespace {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        prerequisites::program("ip", "iproute2");
        sweep();
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}", std::process::id());
        run("ip", &["netns", "add", &name]);
        let namespace = Namespace { name };
        namespace.ip("link set lo up");
        namespace
    }

    /// Takes the interface `name` in from this process's namespace, gives it `address` (with prefix length) and switches it
    /// on.
    #[track_caller]
    pub fn take(&self, name: &str, address: &str) {
        run("ip", &["link", "set", name, "netns", &self.name]);
        // Its own chatter (neighbour discovery, multicast reports) would be among the frames that tests count.
        self.ip(&format!("link set {name} addrgenmode none"));
        self.ip(&format!("addr add {address} dev {name}"));
        self.ip(&format!("link set {name} up"));
    }

    /// `ip` in here, with the words of `line`.
    #[track_caller]
    pub fn ip(&self, line: &str) -> String {
        let words = ["-n", &self.name].into_iter().chain(line.split_whitespace());
        run("ip", &words.collect::<Vec<_>>())
    }

    /// A command to be run in here.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.name, program])
            .stdin(Stdio::null());
        command
    }

    /// Runs the words of `line` in here; its standard output.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn run(&self, line: &str) -> String {
        let output = self.output(line);
        assert!(output.status.success(), "{line}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn output(&self, line: &str) -> Output {
        let mut words = line.split_whitespace();
        let mut command = self.command(words.next().unwrap_or_default());
        command.args(words).output().expect("iproute2 is installed")
    }

    /// Does `address` answer to one of `tries` pings?
    pub fn pings(&self, address: &str, tries: u32) -> bool {
        prerequisites::program("ping", "iputils-ping");
        (0..tries).any(|_| {
            self.output(&format!("ping -n -q -c 1 -W 1 {address}"))
                .status
                .success()
        })
    }

    /// Waits until `address` answers, and pings it ten times then: all answers come, once each.
    ///
    /// # Panics
    /// If they don't.
    #[track_caller]
    pub fn reaches(&self, address: &str) {
        assert!(self.pings(address, 20), "{address} does not answer");
        let text = self.run(&format!("ping -n -i 0.02 -c 10 -W 5 {address}"));
        println!("{}", text.lines().last().unwrap_or_default());
        assert!(
            text.contains("10 packets transmitted, 10 received, 0% packet loss"),
            "{text}"
        );
    }

    /// Copies `mib` MiB of random bytes over TCP to `address`, which is `receiver`'s, and compares SHA-256.
    ///
    /// # Panics
    /// If they differ, or segments with wrong checksums have come.
    #[track_caller]
    pub fn copies_to(&self, receiver: &Namespace, address: &str, mib: u32, switch: &Switch) {
        prerequisites::program("socat", "socat");
        let file = |name: &str| switch.scratch().join(name).display().to_string();
        let (sent, received) = (file("sent"), file("received"));
        run(
            "dd",
            &[
                "if=/dev/urandom",
                &format!("of={sent}"),
                "bs=1M",
                &format!("count={mib}"),
            ],
        );
        let mut server = receiver.receives_file(&received, switch);
        let start = std::time::Instant::now();
        self.run(&format!(
            "socat -u OPEN:{sent},rdonly TCP:{address}:7000,retry=50,interval=0.1"
        ));
        let status = server.wait(PATIENCE);
        let seconds = start.elapsed().as_secs_f64();
        println!(
            "{mib} MiB in {seconds:.1} s, {:.0} Mbit/s",
            f64::from(mib) * 8.388_608 / seconds
        );
        assert!(
            status.success() && sha256(&sent) == sha256(&received),
            "socat: {status}"
        );
        assert_eq!(receiver.tcp_checksum_errors(), 0);
    }

    /// A server on TCP port 7000 that writes what comes to `file`, and ends with the connection.
    #[track_caller]
    pub fn receives_file(&self, file: &str, switch: &Switch) -> Child {
        prerequisites::program("socat", "socat");
        let mut command = self.command("socat");
        command.args([
            "-u",
            "TCP-LISTEN:7000,reuseaddr",
            &format!("OPEN:{file},creat,trunc"),
        ]);
        Child::start(&mut command, &switch.scratch().join("socat.log"))
    }

    /// Segments with a wrong checksum that have come here.
    #[track_caller]
    pub fn tcp_checksum_errors(&self) -> u64 {
        let text = self.run("cat /proc/net/snmp");
        let mut lines = text.lines().filter(|l| l.starts_with("Tcp:"));
        let (names, values) = (lines.next().unwrap_or(""), lines.next().unwrap_or(""));
        let at = names.split(' ').position(|name| name == "InCsumErrors");
        at.and_then(|i| values.split(' ').nth(i)?.parse().ok())
            .unwrap_or_else(|| panic!("no InCsumErrors in {text}"))
    }

    /// Runs `work` on a thread in here.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let file = fs::File::open(Path::new(DIR).join(&self.name)).expect("the namespace is there");
        std::thread::scope(|scope| {
            let inside = scope.spawn(move || {
                setns(file, CloneFlags::CLONE_NEWNET).expect("root may enter a namespace");
                work()
            });
            inside.join().expect("the work in the namespace is done")
        })
    }
}

impl Default for Namespace {
    fn default() -> Namespace {
        Namespace::new()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// What is in it may not be gone yet when this returns: the kernel does that in the background.
fn remove(name: &str) {
    let _ = Command::new("ip").args(["netns", "del", name]).status();
}

/// Removes those of killed tests.
fn sweep() {
    for entry in fs::read_dir(DIR).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if owner.and_then(|pid| pid.parse().ok()).is_some_and(is_dead) {
            remove(&name);
        }
    }
}

/// SHA-256 of a file, in hexadecimal.
#[track_caller]
pub fn sha256(file: &str) -> String {
    run("sha256sum", &[file])[..64].to_owned()
}

/// Is there an interface `name` in this process's namespace?
pub fn has_interface(name: &str) -> bool {
    vswitch_common::netdev::index(name).is_some()
}

/// Waits until there is none.
///
/// # Panics
/// If it stays.
#[track_caller]
pub fn wait_for_no_interface(name: &str) {
    assert!(within(PATIENCE, || !has_interface(name)), "{name} is still there");
}
