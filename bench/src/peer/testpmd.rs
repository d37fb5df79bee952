//! DPDK's testpmd exchanging MAC addresses: the floor, for it looks nothing up.

use std::fs::File;
use std::io::Write;
use std::process::{ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tempfile::TempDir;
use vswitch_tests::child::Child;
use vswitch_tests::wait::within;

use super::{Peer, SWITCHING_CPU, Wire};
use crate::sample::Sample;

/// How long it may take to start, and to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// A testpmd that forwards between the two ports of a [`Wire`].
#[derive(Debug)]
pub struct Testpmd {
    child: Child,
    input: ChildStdin,
    _dir: TempDir,
}

impl Testpmd {
    pub fn start(wire: &Wire) -> anyhow::Result<Testpmd> {
        let dir = tempfile::tempdir()?;
        let log = dir.path().join("testpmd.log");
        let out = File::create(&log)?;
        // Line by line, though it is no terminal.
        let mut command = Command::new("stdbuf");
        command
            .args(["-oL", "dpdk-testpmd"])
            .args([
                "-l",
                &format!("0,{SWITCHING_CPU}"),
                "--no-pci",
                "--no-telemetry",
                "--in-memory",
            ])
            .arg(format!("--socket-mem={}", wire.memory_mb()))
            .args(wire.ports().map(|(_, device)| format!("--vdev={device}")))
            .args(["--", "--interactive", "--forward-mode=macswap", "--nb-cores=1"])
            .arg(format!("--total-num-mbufs={}", wire.mbufs))
            .stdin(Stdio::piped())
            .stderr(out.try_clone()?)
            .stdout(out);
        let mut child = Child::spawn(&mut command, &log);
        let (Some(input), _) = child.pipes() else {
            bail!("testpmd has no standard input")
        };
        let mut testpmd = Testpmd {
            child,
            input,
            _dir: dir,
        };
        if !within(PATIENCE, || {
            testpmd.child.log().contains("testpmd>") || testpmd.child.ended().is_some()
        }) {
            bail!("testpmd did not start:\n{}", testpmd.child.log());
        }
        writeln!(testpmd.input, "start").context("testpmd")?;
        Ok(testpmd)
    }

    /// Frames received on both ports.
    fn received(&mut self) -> anyhow::Result<(u64, Instant)> {
        let seen = self.child.log().len();
        writeln!(self.input, "show port stats all").context("testpmd")?;
        let mut counts = Vec::new();
        let answered = within(PATIENCE, || {
            let log = self.child.log();
            let words: Vec<&str> = log[seen..].split_whitespace().collect();
            counts = words
                .windows(2)
                .filter(|w| w[0] == "RX-packets:")
                .filter_map(|w| w[1].parse::<u64>().ok())
                .collect();
            counts.len() == 2 && log[seen..].contains("Tx-pps")
        });
        if !answered {
            bail!("testpmd does not answer:\n{}", self.child.log());
        }
        Ok((counts.iter().sum(), Instant::now()))
    }
}

impl Peer for Testpmd {
    fn pid(&self) -> i32 {
        self.child.pid()
    }

    fn sample(&mut self, time: Duration) -> anyhow::Result<Sample> {
        let (before, start) = self.received()?;
        std::thread::sleep(time);
        let (after, end) = self.received()?;
        let rate = (after - before) as f64 / (end - start).as_secs_f64();
        // It never sleeps and never looks away: all its cycles are for packets.
        Ok(Sample {
            rate: rate / 1e6,
            cycles: Some(crate::machine::tsc_hz() / rate),
        })
    }
}
