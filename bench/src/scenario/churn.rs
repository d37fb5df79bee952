//! A table that changes all the time, beside traffic between hosts that stay where they are.
//!
//! The traffic is that of `l2`. Two clients beside it send few frames, at a steady pace. How often the table did change
//! is what the switch counts (`fdb/stats-show`).

use std::time::{Duration, Instant};

use anyhow::Context;
use vswitch_common::port::QUOTA;
use vswitch_tests::Bare;
use vswitch_tests::blast::Blast;

use crate::peer::{OURS, Wire, ours::Ours, replay};
use crate::report::{Row, Table};
use crate::sample::Sample;
use crate::scenario::Effort;
use crate::{clients, slices, trace};

const PAIRS: u32 = 1000;
const PORTS: [u16; 2] = [1, 2];

/// How the table is made to change.
#[derive(Debug, Clone, Copy)]
struct Point {
    name: &'static str,
    /// Clients that send. Two send from the same addresses, half a turn apart: each frame finds its address on the other
    /// client's port.
    senders: u32,
    /// Addresses that frames come from in turn.
    addresses: u32,
    /// Frames a second, in all.
    pace: u32,
    /// Entries of the table.
    table: u32,
    /// How long until it changes as it then does for ever.
    settling: Duration,
}

/// Seconds that an address is remembered: the least that may be asked for.
const AGING: u32 = 15;

const POINTS: [Point; 3] = [
    Point {
        name: "addresses move",
        senders: 2,
        addresses: 1000,
        pace: 100_000,
        table: 262_144,
        settling: Duration::ZERO,
    },
    // The table is full: each new address evicts another.
    Point {
        name: "new ones evict",
        senders: 1,
        addresses: 1 << 20,
        pace: 100_000,
        table: 65_536,
        settling: Duration::from_secs(1),
    },
    // The largest table that may be asked for holds no more than that for so long.
    Point {
        name: "new ones, old age out",
        senders: 1,
        addresses: 1 << 20,
        pace: 60_000,
        table: 1_000_000,
        settling: Duration::from_secs(AGING as u64 + 2),
    },
];

/// What happens to entries of the table, as `fdb/stats-show` counts it.
const CHANGES: [(&str, &str); 4] = [
    ("learned", "learned"),
    ("moved", "port moved"),
    ("aged out", "expired"),
    ("evicted", "evicted"),
];

/// A switch with steady traffic, and two clients to change its table.
struct Bench {
    // In the order in which they end.
    clients: [Bare; 2],
    ours: Ours,
}

impl Bench {
    fn start(wire: &Wire, table: u32) -> Bench {
        let ours = Ours::start(wire);
        ours.switch.vsctl(&format!(
            "set Bridge br0 other_config:mac-table-size={table} other_config:mac-aging-time={AGING}"
        ));
        let clients = PORTS.map(|port| {
            ours.switch.vsctl(&format!(
                "add-port br0 dpdkr{port} -- set Interface dpdkr{port} type=dpdkr"
            ));
            clients::attach(&ours.switch, port)
        });
        Bench { clients, ours }
    }

    /// Starts to change the table.
    fn change(&mut self, point: &Point) {
        for (number, client) in (0..point.senders).zip(&mut self.clients) {
            client.start_blast(Some(&Blast {
                destination: trace::host(0, 0),
                source: [0x06, 0, 0, 0, 0, 0],
                count: point.addresses,
                first: number * point.addresses / 2,
                rate: point.pace / point.senders,
                window: 0,
            }));
        }
    }

    fn stop(&mut self, point: &Point) {
        for (_, client) in (0..point.senders).zip(&mut self.clients) {
            client.stop_blast();
        }
    }

    /// How often each of [`CHANGES`] came about.
    fn changes(&self) -> anyhow::Result<[f64; CHANGES.len()]> {
        let text = self.ours.switch.appctl("fdb/stats-show br0");
        let mut counts = [0.0; CHANGES.len()];
        for ((_, name), count) in CHANGES.iter().zip(&mut counts) {
            let start = format!("Total number of {name} MAC entries");
            let line = text.lines().find_map(|l| l.trim().strip_prefix(&start));
            let number = line.and_then(|l| l.split_once(':')?.1.trim().parse().ok());
            *count = number.with_context(|| format!("no {start:?} in\n{text}"))?;
        }
        Ok(counts)
    }
}

pub fn run(effort: &Effort) -> anyhow::Result<Vec<Table>> {
    let dir = tempfile::tempdir().context("a directory for the captures")?;
    let [left, right] = trace::pairs(dir.path(), 0, PAIRS);
    let mut wire = Wire::new(vec![replay(0, &left), replay(1, &right)], 2 * PAIRS);
    wire.mbufs += PORTS.len() as u32 * QUOTA;
    let (mut rates, mut paces) = (Vec::new(), Vec::new());
    // A quick run has no time to see addresses grow old.
    let points = if effort.quick { &POINTS[..2] } else { &POINTS };
    for point in points {
        let (mut steady, mut changing) = (Vec::new(), Vec::new());
        let mut changes = [const { Vec::new() }; CHANGES.len()];
        let mut bench = Bench::start(&wire, point.table);
        for _ in 0..effort.rounds {
            std::thread::sleep(effort.warm_up);
            steady.push(slices::measure(&mut bench.ours, effort.measure)?);
            bench.change(point);
            std::thread::sleep(effort.warm_up.max(point.settling));
            let (before, start) = (bench.changes()?, Instant::now());
            changing.push(slices::measure(&mut bench.ours, effort.measure)?);
            let (after, seconds) = (bench.changes()?, start.elapsed().as_secs_f64());
            bench.stop(point);
            for ((after, before), samples) in after.iter().zip(before).zip(&mut changes) {
                samples.push(Sample {
                    rate: (after - before) / seconds / 1e3,
                    cycles: None,
                });
            }
        }
        let row = |point: &str, peer, samples| Row {
            point: point.to_owned(),
            peer,
            samples,
        };
        rates.extend([
            row(point.name, "changing", changing),
            row(point.name, "steady", steady),
        ]);
        for ((name, _), samples) in CHANGES.iter().zip(changes) {
            paces.push(row(&format!("{}: {name}", point.name), OURS, samples));
        }
    }
    Ok(vec![
        Table {
            scenario: "churn",
            work: "the traffic of l2 between 1,000 pairs of hosts, with and without a table that changes all the time",
            unit: "Mpps",
            rows: rates,
        },
        Table {
            scenario: "churn-changes",
            work: "the same: what happened to the table's entries, as the switch counts it",
            unit: "thousand/s",
            rows: paces,
        },
    ])
}
