//! What the integration tests share: a database server of their own, the stock tools, and a switch that only pretends.

#![allow(dead_code)] // each test file uses its part

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use vswitch_control::config::SwitchConfig;
use vswitch_control::ovsdb::{Client, Event, Target};
use vswitch_control::status::{BridgeStatus, InterfaceStatus, Status};

pub const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
/// Ample on a busy machine; tests return as soon as what they wait for is there.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Polls until `condition` holds.
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !condition() {
        assert!(
            Instant::now() < until,
            "in {PATIENCE:?} it did not come about that {what}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs one of the stock tools against the sockets in `rundir`; gives up after a while, as a hung tool would not.
pub fn tool(rundir: &Path, program: &str, args: &[&str]) -> Output {
    Command::new("timeout")
        .arg("20")
        .arg(program)
        .args(args)
        .env("OVS_RUNDIR", rundir)
        .env("OVS_DBDIR", rundir)
        .output()
        .expect("the stock tools and coreutils are installed")
}

/// Standard output of a tool that must succeed without complaint.
#[track_caller]
pub fn tool_ok(rundir: &Path, program: &str, args: &[&str]) -> String {
    let output = tool(rundir, program, args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && stderr.is_empty(),
        "{program} {args:?}: {} {stderr}",
        output.status
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[track_caller]
pub fn vsctl(rundir: &Path, line: &str) -> String {
    tool_ok(rundir, "ovs-vsctl", &line.split_whitespace().collect::<Vec<_>>())
}

/// A process that is gone, or dead and not yet collected.
pub fn is_dead(pid: u32) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')),
        Err(_) => true,
    }
}

pub fn kill(pid: u32, signal: &str) {
    let status = Command::new("kill")
        .args([&format!("-{signal}"), &pid.to_string()])
        .status()
        .unwrap();
    assert!(status.success());
}

/// An `ovsdb-server` that nobody supervises.
pub struct Database {
    pub dir: TempDir,
    child: Option<Child>,
}

impl Database {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut database = Database { dir, child: None };
        tool_ok(
            database.path(),
            "ovsdb-tool",
            &["create", database.file().to_str().unwrap(), SCHEMA],
        );
        database.start();
        vsctl(database.path(), "--no-wait init");
        database
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn file(&self) -> PathBuf {
        self.path().join("conf.db")
    }

    pub fn target(&self) -> Target {
        Target::Unix(self.path().join("db.sock"))
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    pub fn start(&mut self) {
        self.start_as(Command::new("ovsdb-server"));
    }

    /// Its files cannot grow beyond `kib`, as on a full disk; lifted by [`lift_file_limit`](Self::lift_file_limit).
    pub fn start_with_full_disk(&mut self, kib: u32) {
        let mut command = Command::new("bash");
        let script = format!("trap '' XFSZ; ulimit -S -f {kib}; exec ovsdb-server \"$@\"");
        command.args(["-c", &script, "ovsdb-server"]);
        self.start_as(command);
    }

    pub fn lift_file_limit(&self) {
        let pid = self.pid().to_string();
        let lifted = Command::new("prlimit")
            .args(["--pid", &pid, "--fsize=unlimited"])
            .status();
        assert!(lifted.unwrap().success());
    }

    fn start_as(&mut self, mut command: Command) {
        let socket = self.path().join("db.sock");
        let child = command
            .arg(self.file())
            .arg(format!("--remote=punix:{}", socket.display()))
            .arg("--remote=db:Open_vSwitch,Open_vSwitch,manager_options")
            .arg(format!("--unixctl={}", self.path().join("s.ctl").display()))
            .args(["-vconsole:off", "-vsyslog:off", "-vfile:off"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
        eventually("the database server answers", || {
            UnixStream::connect(&socket).is_ok()
        });
    }

    /// kill -9, as if it had crashed.
    pub fn crash(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        self.crash();
    }
}

#[derive(Default)]
struct Seen {
    events: Vec<(Instant, Event)>,
}

/// Plays the switch: brings every configuration into force at once. An interface of type `nonsense` cannot be set up.
pub struct PretendSwitch {
    pub client: Arc<Client>,
    seen: Arc<(Mutex<Seen>, Condvar)>,
}

impl PretendSwitch {
    pub fn start(target: Target) -> Self {
        Self::start_with(target, status_for)
    }

    pub fn start_with(target: Target, respond: fn(&SwitchConfig) -> Status) -> Self {
        let (sender, receiver): (_, Receiver<(Instant, Event)>) = channel();
        let client = Client::start(target, move |event| drop(sender.send((Instant::now(), event)))).unwrap();
        let client = Arc::new(client);
        let seen: Arc<(Mutex<Seen>, Condvar)> = Arc::default();
        let (weak, store) = (Arc::downgrade(&client), seen.clone());
        std::thread::spawn(move || {
            for (at, event) in receiver {
                if let (Event::Config(config), Some(client)) = (&event, weak.upgrade()) {
                    client.publish(respond(config));
                }
                store.0.lock().unwrap().events.push((at, event));
                store.1.notify_all();
            }
        });
        PretendSwitch { client, seen }
    }

    pub fn events(&self) -> Vec<Event> {
        self.seen
            .0
            .lock()
            .unwrap()
            .events
            .iter()
            .map(|(_, event)| event.clone())
            .collect()
    }

    pub fn configs(&self) -> usize {
        self.events()
            .iter()
            .filter(|e| matches!(e, Event::Config(_)))
            .count()
    }

    /// Waits until the newest configuration is as wished; gives it with the time it came.
    #[track_caller]
    pub fn config_where(&self, what: &str, wish: impl Fn(&SwitchConfig) -> bool) -> (Instant, SwitchConfig) {
        let newest = |seen: &Seen| {
            let newest = seen.events.iter().rev().find_map(|(at, event)| match event {
                Event::Config(config) => Some((*at, config.clone())),
                _ => None,
            });
            newest.filter(|(_, config)| wish(config))
        };
        self.wait(what, newest)
    }

    /// Waits until an event like this has come.
    #[track_caller]
    pub fn event_where(&self, what: &str, wish: impl Fn(&Event) -> bool) {
        self.wait(what, |seen| {
            seen.events.iter().any(|(_, event)| wish(event)).then_some(())
        });
    }

    #[track_caller]
    fn wait<T>(&self, what: &str, look: impl Fn(&Seen) -> Option<T>) -> T {
        let until = Instant::now() + PATIENCE;
        let mut seen = self.seen.0.lock().unwrap();
        loop {
            if let Some(found) = look(&seen) {
                return found;
            }
            let left = until.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "no event: {what}; the last of {}: {:#?}",
                seen.events.len(),
                seen.events.last()
            );
            seen = self.seen.1.wait_timeout(seen, left).unwrap().0;
        }
    }
}

/// Everything of a configuration in force.
pub fn status_for(config: &SwitchConfig) -> Status {
    let mut interfaces = BTreeMap::new();
    for (bridge, port, interface) in config.interfaces() {
        let status = match interface.kind.as_str() {
            "nonsense" => InterfaceStatus::failed("no such kind of device"),
            kind => {
                let own = kind == "internal" && interface.name == bridge.name;
                let position = bridge.ports.iter().position(|p| p.name == port.name).unwrap() as i64;
                let ofport = if own { 65534 } else { position + 1 };
                InterfaceStatus {
                    ofport: Some(ofport),
                    mtu: Some(1500),
                    ..Default::default()
                }
            }
        };
        interfaces.insert(interface.uuid, status);
    }
    let bridge = |_| BridgeStatus {
        datapath_id: Some("0000000000000001".into()),
        datapath_version: "<built-in>".into(),
    };
    Status {
        cur_cfg: config.next_cfg,
        dpdk_version: Some("DPDK 22.11".into()),
        dpdk_initialized: true,
        datapath_types: ["dpdk", "netdev"].map(String::from).into(),
        iface_types: ["dpdk", "internal"].map(String::from).into(),
        bridges: config.bridges.iter().map(|b| (b.uuid, bridge(b))).collect(),
        interfaces,
        ..Default::default()
    }
}
