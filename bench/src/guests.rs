//! Two guests without a VM: one testpmd with two virtio-user devices, which sends back and forth what was once under way.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::bail;
use tempfile::TempDir;
use vswitch_tests::child::Child;
use vswitch_tests::wait::within;

/// The CPU that both guests poll on, by one thread: two that poll would take turns of milliseconds.
pub const GUESTS_CPU: usize = 0;

const PATIENCE: Duration = Duration::from_secs(30);
const MEMORY_MB: u64 = 128;
/// Descriptors of a virtqueue.
const DESCRIPTORS: u32 = 1024;
/// Bursts of 32 frames that circulate in each direction. Guests at full load have full queues; these are a quarter less full than
/// any on the way may be, so that no frame is lost.
const BURSTS: u32 = 24;
const MACS: [&str; 2] = ["02:00:00:00:00:01", "02:00:00:00:00:02"];

/// How far they are.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// Received by both.
    pub frames: u64,
    pub at: Instant,
}

/// The testpmd. It ends when dropped.
#[derive(Debug)]
pub struct Guests {
    child: Child,
    input: ChildStdin,
    dir: TempDir,
}

impl Guests {
    /// Starts it. It listens at its sockets, and answers when a backend has come to each.
    pub fn start() -> anyhow::Result<Guests> {
        let dir = tempfile::tempdir()?;
        let log = dir.path().join("testpmd.log");
        let out = File::create(&log)?;
        let devices = [0, 1].map(|number| {
            format!(
                "--vdev=net_virtio_user{number},path={},server=1,queues=1,queue_size={DESCRIPTORS},mac={}",
                socket(&dir, number).display(),
                MACS[number]
            )
        });
        // Line by line, though it is no terminal.
        let mut command = Command::new("stdbuf");
        command
            .args(["-oL", "dpdk-testpmd"])
            // The first lcore waits for commands, the second one forwards.
            .arg(format!("--lcores=0@{GUESTS_CPU},1@{GUESTS_CPU}"))
            .args(["--no-pci", "--no-telemetry", "--in-memory"])
            // vhost-user passes memory by descriptor, and not many of them.
            .arg("--single-file-segments")
            .arg(format!("--socket-mem={MEMORY_MB}"))
            .args(devices)
            .args(["--", "--interactive", "--forward-mode=mac", "--nb-cores=1"])
            .args([0, 1].map(|port| format!("--eth-peer={port},{}", MACS[1 - port])))
            .arg(format!("--rxd={DESCRIPTORS}"))
            .arg(format!("--txd={DESCRIPTORS}"))
            .arg("--total-num-mbufs=16384")
            .stdin(Stdio::piped())
            .stderr(out.try_clone()?)
            .stdout(out);
        let mut child = Child::spawn(&mut command, &log);
        let (Some(input), _) = child.pipes() else {
            bail!("testpmd has no standard input")
        };
        Ok(Guests { child, input, dir })
    }

    /// The vhost-user sockets of the two.
    pub fn sockets(&self) -> [PathBuf; 2] {
        [0, 1].map(|number| socket(&self.dir, number))
    }

    /// Waits until both have their backends.
    pub fn wait(&mut self) -> anyhow::Result<()> {
        self.answers(0, "testpmd>").map(drop)
    }

    /// Lets frames of `len` bytes go round from now on, in both directions, in place of those that do so far.
    pub fn circulate(&mut self, len: usize) -> anyhow::Result<()> {
        let seen = self.child.log().len();
        writeln!(self.input, "stop\nset txpkts {len}\nstart tx_first {BURSTS}")?;
        self.answers(seen, "packet forwarding").map(drop)
    }

    /// How many frames have come to both so far.
    pub fn seen(&mut self) -> anyhow::Result<Seen> {
        let seen = self.child.log().len();
        writeln!(self.input, "show port stats all")?;
        let mut counts = Vec::new();
        let answered = within(PATIENCE, || {
            let log = self.child.log();
            let words: Vec<&str> = log[seen..].split_whitespace().collect();
            let received = words.windows(2).filter(|w| w[0] == "RX-packets:");
            counts = received.filter_map(|w| w[1].parse::<u64>().ok()).collect();
            // What ends the figures of a port.
            log[seen..].matches("Tx-bps").count() == 2
        });
        let [left, right] = counts[..] else {
            bail!(
                "testpmd does not count (answered: {answered}):\n{}",
                self.child.log()
            )
        };
        Ok(Seen {
            frames: left + right,
            at: Instant::now(),
        })
    }

    /// What testpmd has said since `seen`, up to `end` at least.
    fn answers(&mut self, seen: usize, end: &str) -> anyhow::Result<String> {
        let mut text = String::new();
        let answered = within(PATIENCE, || {
            text = self.child.log()[seen..].to_owned();
            text.contains(end) || self.child.ended().is_some()
        });
        if !answered || !text.contains(end) {
            bail!("testpmd does not answer:\n{}", self.child.log());
        }
        Ok(text)
    }
}

fn socket(dir: &TempDir, number: usize) -> PathBuf {
    Path::join(dir.path(), format!("guest-{number}.sock"))
}
