//! Open vSwitch with DPDK, as the distribution packages it, on a database of its own.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tempfile::TempDir;
use vswitch_tests::child::Child;
use vswitch_tests::wait::within;

use super::{Peer, SWITCHING_CPU, Wire};
use crate::sample::Sample;

const DAEMON: &str = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk";
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
/// How long it may take to start.
const PATIENCE: Duration = Duration::from_secs(30);

/// An ovs-vswitchd with two replaying ports on one bridge, which acts as a learning switch.
#[derive(Debug)]
pub struct Ovs {
    // In the order in which they end.
    daemon: Child,
    _database: Child,
    dir: TempDir,
}

impl Ovs {
    pub fn start(wire: &Wire) -> anyhow::Result<Ovs> {
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
        let mask = 1 << SWITCHING_CPU;
        vsctl(&[
            "--no-wait",
            "set",
            "Open_vSwitch",
            ".",
            "other_config:dpdk-init=true",
            "other_config:dpdk-lcore-mask=0x1",
            "other_config:dpdk-extra=--no-pci --in-memory --no-telemetry",
            &format!("other_config:dpdk-socket-mem={}", wire.memory_mb() * 2),
            &format!("other_config:pmd-cpu-mask={mask:#x}"),
        ])?;
        let mut command = Command::new(DAEMON);
        command
            .arg(format!("unix:{}", path("db.sock")))
            .arg(format!("--unixctl={}", path("vswitchd.ctl")))
            .env("OVS_RUNDIR", dir.path())
            .env("OVS_LOGDIR", dir.path());
        let daemon = Child::start(&mut command, &dir.path().join("vswitchd.log"));
        let bridge = [
            "--timeout=30",
            "add-br",
            "br0",
            "--",
            "set",
            "Bridge",
            "br0",
            "datapath_type=netdev",
        ];
        vsctl(&[&bridge[..], &["other_config:mac-table-size=262144"]].concat())
            .with_context(|| format!("ovs-vswitchd:\n{}", daemon.log()))?;
        for side in 0..2 {
            let port = format!("p{side}");
            let device = wire.device(side);
            vsctl(&[
                "--timeout=30",
                "add-port",
                "br0",
                &port,
                "--",
                "set",
                "Interface",
                &port,
                "type=dpdk",
                &format!("options:dpdk-devargs=\"{device}\""),
            ])?;
        }
        Ok(Ovs {
            daemon,
            _database: database,
            dir,
        })
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
    fn sample(&mut self, time: Duration) -> anyhow::Result<Sample> {
        self.appctl(&["dpif-netdev/pmd-stats-clear"])?;
        let start = Instant::now();
        std::thread::sleep(time);
        let text = self.appctl(&["dpif-netdev/pmd-stats-show"])?;
        let seconds = start.elapsed().as_secs_f64();
        let number = |name: &str| -> anyhow::Result<f64> {
            let line = text.lines().find_map(|l| l.trim().strip_prefix(name));
            let word = line.and_then(|l| l.split_whitespace().next());
            word.and_then(|w| w.parse().ok())
                .with_context(|| format!("no {name:?} in\n{text}"))
        };
        let packets = number("packets received:")?;
        Ok(Sample {
            rate: packets / seconds / 1e6,
            cycles: Some(number("processing cycles:")? / packets),
        })
    }
}

fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
