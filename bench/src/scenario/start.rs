//! How long it takes to start, and what a port takes of the memory.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::Context;
use vswitch_common::mempool::BYTES_PER_MBUF;
use vswitch_tests::blast::Blast;
use vswitch_tests::wait::PATIENCE;
use vswitch_tests::{Bare, Switch};

use crate::clients::{self, Idle};
use crate::report::{Row, Table};
use crate::sample::Sample;
use crate::scenario::Effort;

/// Client ports, all of them attached.
const PORTS: [(u16, &str); 4] = [(0, "0 ports"), (2, "2 ports"), (16, "16 ports"), (64, "64 ports")];
/// MiB of hugepages: the switch's default.
const MEMORY_MB: u64 = 512;
/// What is told of each number of ports.
const TIMES: [&str; 3] = ["start to ready", "attach to attached", "attach to first frame"];
const AMOUNTS: [&str; 3] = ["resident", "hugepages mapped", "buffers handed out"];

/// Figures with a sample for each round, by what they are and the number of ports.
type Figures = [[Vec<Sample>; PORTS.len()]; 3];

pub fn run(effort: &Effort) -> anyhow::Result<Vec<Table>> {
    let (mut times, mut amounts) = (Figures::default(), Figures::default());
    let add = |figures: &mut Figures, at: usize, values: &[f64]| {
        for (figure, &rate) in figures.iter_mut().zip(values) {
            figure[at].push(Sample { rate, cycles: None });
        }
    };
    for _ in 0..effort.rounds {
        for (at, &(ports, _)) in PORTS.iter().enumerate() {
            let mut switch = Switch::builder().memory(MEMORY_MB).start();
            switch.add_bridge("br0", &(1..=ports).collect::<Vec<_>>());
            let everybody = idle(&switch, ports)?;
            add(&mut amounts, at, &memory(&switch)?);
            drop(everybody);
            // Once more, with the ports in its database.
            switch.end();
            switch.restart();
            let ready = milliseconds(switch.start_time());
            let early = ports.saturating_sub(1);
            let _others = idle(&switch, early.saturating_sub(1))?;
            if ports >= 2 {
                let [attached, first] = attach(&switch, early, ports);
                add(
                    &mut times,
                    at,
                    &[ready, milliseconds(attached), milliseconds(first)],
                );
            } else {
                add(&mut times, at, &[ready]);
            }
        }
    }
    let rows = |names: [&str; 3], figures: Figures| {
        let mut rows = Vec::new();
        for (name, by_ports) in names.into_iter().zip(figures) {
            let measured = PORTS
                .iter()
                .zip(by_ports)
                .filter(|(_, samples)| !samples.is_empty());
            rows.extend(measured.map(|(&(_, peer), samples)| Row {
                point: name.to_owned(),
                peer,
                samples,
            }));
        }
        rows
    };
    Ok(vec![
        Table {
            scenario: "start",
            work: "from a switch's start to \"ready\", and from a client's first word to its port and its first frame",
            unit: "ms",
            rows: rows(TIMES, times),
        },
        Table {
            scenario: "start-memory",
            work: "memory of a switch that takes 512 MiB of hugepages, all its ports attached",
            unit: "MiB",
            rows: rows(AMOUNTS, amounts),
        },
    ])
}

/// Clients with nothing to say on ports 1 to `last`.
fn idle(switch: &Switch, last: u16) -> anyhow::Result<Vec<Idle>> {
    (1..=last).map(|port| Idle::attach(switch, port)).collect()
}

/// Attaches a client to port `late`, to whose bridge another one on port `early` sends; how long that took until it was
/// attached, and until a frame came. Frames are sent in a pace of milliseconds.
fn attach(switch: &Switch, early: u16, late: u16) -> [Duration; 2] {
    let mut sender = clients::attach(switch, early);
    sender.start_blast(Some(&Blast {
        rate: 10_000,
        ..Blast::default()
    }));
    let mut client = clients::off_the_switching_cpu(|| Bare::start(switch, "late"));
    let start = Instant::now();
    client.start_attaching(late);
    client.tell("receive 1 10000");
    let mut answered = || {
        client
            .answer(PATIENCE)
            .unwrap_or_else(|e| panic!("port {late}: {e}"));
        start.elapsed()
    };
    let times = [answered(), answered()];
    sender.stop_blast();
    times
}

/// MiB that the switch has resident and mapped of hugepages, and that lie in buffers outside the pool.
fn memory(switch: &Switch) -> anyhow::Result<[f64; 3]> {
    let text = fs::read_to_string(format!("/proc/{}/status", switch.pid()))?;
    let kib = |name: &str| -> anyhow::Result<f64> {
        let line = text
            .lines()
            .find_map(|l| l.strip_prefix(name)?.strip_suffix(" kB"));
        line.and_then(|l| l.trim().parse().ok())
            .with_context(|| format!("no {name} in\n{text}"))
    };
    let out = switch.snapshot().pool_size - switch.free_mbufs();
    let buffers = out as f64 * BYTES_PER_MBUF as f64 / f64::from(1 << 20);
    Ok([kib("VmRSS:")? / 1024.0, kib("HugetlbPages:")? / 1024.0, buffers])
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
