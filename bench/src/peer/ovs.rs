//! Open vSwitch with DPDK, as the distribution packages it, on a database of its own.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use tempfile::TempDir;
use vswitch_tests::child::Child;
use vswitch_tests::wait::within;

use super::{Peer, Wire};
use crate::sample::Sample;

const DAEMON: &str = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk";
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
/// How long it may take to start.
const PATIENCE: Duration = Duration::from_secs(30);

/// An ovs-vswitchd with the ports of a [`Wire`]. Its bridges act as learning switches.
#[derive(Debug)]
pub struct Ovs {
    // In the order in which they end.
    daemon: Child,
    _database: Child,
    dir: TempDir,
}

impl Ovs {
    pub fn start(wire: &Wire) -> anyhow::Result<Ovs> {
        Ovs::start_with(wire, &[])
    }

    /// With `settings` of the database's first row as well (`other_config:userspace-tso-enable=true`), those that it looks
    /// at only when it starts.
    pub fn start_with(wire: &Wire, settings: &[&str]) -> anyhow::Result<Ovs> {
        if !Path::new(DAEMON).exists() {
            bail!("{DAEMON} is missing; install the package openvswitch-switch-dpdk");
        }
        let dir = tempfile::tempdir()?;
        let path = |name: &str| dir.path().join(name).display().to_string();
        run(Command::new("ovsdb-tool").args(["create", &path("conf.db"), SCHEMA]))?;
        let database = Child::start(
            Command::new("ovsdb-server")
                .args([&path("conf.db"), &format!("--remote=punix:{}", path("db.sock"))])
                .arg(format!("--unixctl={}", path("ovsdb.ctl"))),
            &dir.path().join("ovsdb.log"),
        );
        if !within(PATIENCE, || dir.path().join("db.sock").exists()) {
            bail!("ovsdb-server did not start:\n{}", database.log());
        }
        let vsctl = |line: &[&str]| {
            let mut command = Command::new("ovs-vsctl");
            command.arg(format!("--db=unix:{}", path("db.sock"))).args(line);
            run(&mut command)
        };
        let first_row = [
            "--no-wait",
            "set",
            "Open_vSwitch",
            ".",
            "other_config:dpdk-init=true",
            "other_config:dpdk-lcore-mask=0x1",
            "other_config:dpdk-extra=--no-pci --in-memory --no-telemetry",
            &format!("other_config:dpdk-socket-mem={}", wire.memory_mb() * 2),
            &format!("other_config:pmd-cpu-mask={:#x}", wire.cpus),
        ];
        vsctl(&[&first_row[..], settings].concat())?;
        let mut command = Command::new(DAEMON);
        command
            .arg(format!("unix:{}", path("db.sock")))
            .arg(format!("--unixctl={}", path("vswitchd.ctl")))
            .env("OVS_RUNDIR", dir.path())
            .env("OVS_LOGDIR", dir.path());
        let daemon = Child::start(&mut command, &dir.path().join("vswitchd.log"));
        for bridge in (0..wire.bridges.len()).map(|n| format!("br{n}")) {
            let words = ["--timeout=30", "add-br", &bridge, "--", "set", "Bridge", &bridge];
            let settings = ["datapath_type=netdev", "other_config:mac-table-size=262144"];
            vsctl(&[&words[..], &settings].concat())
                .with_context(|| format!("ovs-vswitchd:\n{}", daemon.log()))?;
        }
        for (number, (bridge, device)) in wire.ports().enumerate() {
            let (bridge, port) = (format!("br{bridge}"), format!("p{number}"));
            let words = [
                "--timeout=30",
                "add-port",
                &bridge,
                &port,
                "--",
                "set",
                "Interface",
                &port,
            ];
            let settings = ["type=dpdk", &format!("options:dpdk-devargs=\"{device}\"")];
            vsctl(&[&words[..], &settings].concat())?;
        }
        Ok(Ovs {
            daemon,
            _database: database,
            dir,
        })
    }

    /// Adds a port to `br0` for a guest that listens at `socket`.
    pub fn add_guest(&self, port: &str, socket: &Path) -> anyhow::Result<()> {
        let database = format!("--db=unix:{}", self.dir.path().join("db.sock").display());
        let words = [
            "--timeout=30",
            "add-port",
            "br0",
            port,
            "--",
            "set",
            "Interface",
            port,
        ];
        let mut command = Command::new("ovs-vsctl");
        command
            .arg(database)
            .args(words)
            .arg("type=dpdkvhostuserclient")
            .arg(format!("options:vhost-server-path={}", socket.display()));
        run(&mut command).map(drop)
    }

    /// What it does while `work` is done, and what that came to.
    pub fn sample_during<T>(&self, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(T, Sample)> {
        self.appctl(&["dpif-netdev/pmd-stats-clear"])?;
        let done = work()?;
        let text = self.appctl(&["dpif-netdev/pmd-stats-show"])?;
        let number = |name: &str| -> anyhow::Result<f64> {
            let line = text.lines().find_map(|l| l.trim().strip_prefix(name));
            let word = line.and_then(|l| l.split_whitespace().next());
            word.and_then(|w| w.parse().ok())
                .with_context(|| format!("no {name:?} in\n{text}"))
        };
        let (packets, busy, idle) = (
            number("packets received:")?,
            number("processing cycles:")?,
            number("idle cycles:")?,
        );
        // Its own cycles tell the time exactly: the tool that asks takes some milliseconds.
        let seconds = (busy + idle) / crate::machine::tsc_hz();
        let sample = Sample {
            rate: packets / seconds / 1e6,
            cycles: Some(busy / packets),
        };
        Ok((done, sample))
    }

    fn appctl(&self, what: &[&str]) -> anyhow::Result<String> {
        let socket = self.dir.path().join("vswitchd.ctl");
        run(Command::new("ovs-appctl").arg("-t").arg(socket).args(what))
    }
}

impl Drop for Ovs {
    /// Its interfaces in the kernel (br0, ovs-netdev) outlive a killed one.
    fn drop(&mut self) {
        if self.appctl(&["exit", "--cleanup"]).is_ok() {
            within(PATIENCE, || self.daemon.ended().is_some());
        }
        let _ = Command::new("ip")
            .args(["link", "del", "ovs-netdev"])
            .stderr(Stdio::null())
            .status();
    }
}

impl Peer for Ovs {
    fn pid(&self) -> i32 {
        self.daemon.pid()
    }

    fn sample(&mut self, time: Duration) -> anyhow::Result<Sample> {
        let slept = self.sample_during(|| {
            std::thread::sleep(time);
            Ok(())
        });
        slept.map(|((), sample)| sample)
    }
}

fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
