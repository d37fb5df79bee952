//! `bench-guest`: two guests without a VM, by DPDK's virtio-user, that time the frames from the first to the second. Or, to
//! time the switch alone, two of its clients in one process.
//!
//! One thread polls both, so that sent and received are read off one clock, and what is measured is the way between:
//! virtqueue, switch, virtqueue; or ring, switch, ring. It reads commands from standard input, one a line, and answers each by one:
//!
//! | command | what it does | answer |
//! |---|---|---|
//! | `alone GAP_US MS` | one frame at a time, about GAP_US after the last one has come | see [`Timed`] |
//! | `paced PPS MS` | PPS frames a second, whatever comes of them | see [`Timed`] |
//! | `most MS` | as many as pass without loss | frames a second |
//! | `large MS` | as many large ones as pass, see [`large`]; with `--large` only | `FRAMES BYTES NANOSECONDS` |
//!
//! "ready" comes first, when both are connected and the switch knows them.

mod ends;
mod large;
mod port;
mod timed;

use std::io::{Write as _, stdin, stdout};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Parser;

use ends::Ends;

/// Two virtio-user guests, or clients of the switch, that time the frames between them.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// The CPU to poll on
    #[arg(long)]
    cpu: usize,
    /// Take large TCP frames whole
    #[arg(long)]
    large: bool,
    /// Be the clients of ports 1 and 2 of the switch that listens at this attach socket, and no guests
    #[arg(long, value_name = "SOCKET", conflicts_with_all = ["large", "sockets"])]
    attach: Option<PathBuf>,
    /// Vhost-user sockets to listen on, one a guest
    #[arg(num_args = 2, required_unless_present = "attach")]
    sockets: Vec<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let mut ends = match &args.attach {
        Some(socket) => Ends::clients(args.cpu, socket)?,
        None => Ends::guests(args.cpu, args.large, &args.sockets)?,
    };
    ends.introduce()?;
    answer("ready")?;
    for line in stdin().lines() {
        let line = line?;
        answer(&command(&mut ends, &line).with_context(|| line.clone())?)?;
    }
    Ok(())
}

fn command(ends: &mut Ends, line: &str) -> anyhow::Result<String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let time = |ms: &str| ms.parse().map(Duration::from_millis);
    Ok(match words[..] {
        ["alone", gap, ms] => timed::alone(ends, Duration::from_micros(gap.parse()?), time(ms)?).to_string(),
        ["paced", pps, ms] => timed::paced(ends, pps.parse()?, time(ms)?).to_string(),
        ["most", ms] => timed::most(ends, time(ms)?).to_string(),
        ["large", ms] => large::run(ends, time(ms)?)?.to_string(),
        _ => bail!("no such command"),
    })
}

fn answer(text: &str) -> anyhow::Result<()> {
    let mut out = stdout().lock();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}
