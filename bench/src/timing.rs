//! Two guests, or clients of the switch, that time the frames between them, or pass large ones: the program `bench-guest`,
//! which polls both.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use tempfile::TempDir;
use vswitch_tests::child::Child;

use crate::guests::GUESTS_CPU;

/// The process. It ends when dropped.
#[derive(Debug)]
pub struct TimingGuests {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    dir: TempDir,
}

/// What some time of frames came to.
#[derive(Debug, Clone, Copy)]
pub struct Timed {
    /// Microseconds that half of the frames took at most, 99 in 100, and 999 in 1000.
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
    /// Per cent of the frames that did not come.
    pub lost: f64,
}

/// What some time of large frames came to.
#[derive(Debug, Clone, Copy)]
pub struct Passed {
    pub frames: u64,
    pub gbit_per_second: f64,
}

impl TimingGuests {
    /// Starts it. It listens at its sockets one after the other, when a backend has come to the one before.
    pub fn start() -> anyhow::Result<TimingGuests> {
        TimingGuests::start_guests(&[])
    }

    /// Starts it for [`TimingGuests::large`] as well: the backends must offer segmentation offload.
    pub fn start_large() -> anyhow::Result<TimingGuests> {
        TimingGuests::start_guests(&["--large"])
    }

    /// Two clients of ports 1 and 2 of the switch that listens at `attach_socket`, in place of guests.
    pub fn clients(attach_socket: &Path) -> anyhow::Result<TimingGuests> {
        let mut clients = TimingGuests::start_with(|command, _| {
            command.arg("--attach").arg(attach_socket);
        })?;
        clients.wait()?;
        Ok(clients)
    }

    fn start_guests(options: &[&str]) -> anyhow::Result<TimingGuests> {
        TimingGuests::start_with(|command, dir| {
            command.args(options).args(sockets(dir));
        })
    }

    /// With the arguments that `add` adds, of the directory for sockets.
    fn start_with(add: impl FnOnce(&mut Command, &Path)) -> anyhow::Result<TimingGuests> {
        let program = std::env::current_exe()?.with_file_name("bench-guest");
        if !program.exists() {
            bail!(
                "{} is missing; run: cargo build --release -p bench-guest",
                program.display()
            );
        }
        let dir = tempfile::tempdir()?;
        let log = dir.path().join("log");
        let mut command = Command::new(program);
        command
            .arg(format!("--cpu={GUESTS_CPU}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&log)?);
        add(&mut command, dir.path());
        let mut child = Child::spawn(&mut command, &log);
        let (Some(input), Some(output)) = child.pipes() else {
            bail!("bench-guest has no standard streams")
        };
        let output = BufReader::new(output);
        Ok(TimingGuests {
            child,
            input,
            output,
            dir,
        })
    }

    /// The vhost-user sockets of the two.
    pub fn sockets(&self) -> [PathBuf; 2] {
        sockets(self.dir.path())
    }

    /// Waits until frames pass from each to the other.
    pub fn wait(&mut self) -> anyhow::Result<()> {
        self.answer().map(drop)
    }

    /// One frame at a time for `time`, about `gap` apart.
    pub fn alone(&mut self, gap: Duration, time: Duration) -> anyhow::Result<Timed> {
        self.timed(&format!("alone {} {}", gap.as_micros(), time.as_millis()))
    }

    /// `pps` frames a second for `time`.
    pub fn paced(&mut self, pps: f64, time: Duration) -> anyhow::Result<Timed> {
        self.timed(&format!("paced {pps:.0} {}", time.as_millis()))
    }

    /// Frames a second that pass without loss.
    pub fn most(&mut self, time: Duration) -> anyhow::Result<f64> {
        let answer = self.ask(&format!("most {}", time.as_millis()))?;
        answer.parse().with_context(|| answer.clone())
    }

    /// TCP frames of 64 KB for `time`, one way, as many as pass: it is an error if one is lost or cut.
    pub fn large(&mut self, time: Duration) -> anyhow::Result<Passed> {
        let answer = self.ask(&format!("large {}", time.as_millis()))?;
        let numbers: Vec<u64> = answer.split_whitespace().flat_map(str::parse).collect();
        let [frames, bytes, nanoseconds] = numbers[..] else {
            bail!("bench-guest says {answer:?}")
        };
        Ok(Passed {
            frames,
            gbit_per_second: bytes as f64 * 8.0 / nanoseconds as f64,
        })
    }

    fn timed(&mut self, command: &str) -> anyhow::Result<Timed> {
        let answer = self.ask(command)?;
        let numbers: Vec<f64> = answer.split_whitespace().flat_map(str::parse).collect();
        let [p50, p99, p999, received, lost] = numbers[..] else {
            bail!("bench-guest says {answer:?}")
        };
        let us = |ns: f64| ns / 1e3;
        Ok(Timed {
            p50: us(p50),
            p99: us(p99),
            p999: us(p999),
            lost: 100.0 * lost / (received + lost).max(1.0),
        })
    }

    fn ask(&mut self, command: &str) -> anyhow::Result<String> {
        writeln!(self.input, "{command}").context("bench-guest")?;
        self.answer()
    }

    fn answer(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            bail!("bench-guest ended:\n{}", self.child.log());
        }
        Ok(line.trim().to_owned())
    }
}

fn sockets(dir: &Path) -> [PathBuf; 2] {
    [0, 1].map(|number| dir.join(format!("guest-{number}.sock")))
}
