//! How long a frame takes from guest to guest: alone in an idle switch, and under load; and how long through the switch alone.

use std::time::Duration;

use anyhow::Context;

use crate::distance::while_near;
use crate::peer::OURS;
use crate::peer::between::{self, Ours};
use crate::report::{Row, Table};
use crate::sample::Sample;
use crate::scenario::Effort;
use crate::timing::{Timed, TimingGuests};

/// Between two frames that are alone: whoever sleeps when idle does so by then ...
const GAP_ASLEEP: Duration = Duration::from_micros(500);
/// ... and without sleep it does not matter.
const GAP_POLLING: Duration = Duration::from_micros(50);
/// Parts of what a peer passes without loss.
const LOADS: [(f64, &str); 3] = [(0.1, "10 % load"), (0.5, "50 % load"), (0.9, "90 % load")];

/// A figure of a [`Timed`].
type Quantity = fn(&Timed) -> f64;

const QUANTITIES: [(&str, &str, &str, Quantity); 4] = [
    (
        "latency-p50",
        "time from end to end that half of the frames take at most",
        "us",
        |t| t.p50,
    ),
    (
        "latency-p99",
        "time from end to end that 99 in 100 frames take at most",
        "us",
        |t| t.p99,
    ),
    (
        "latency-p999",
        "time from end to end that 999 in 1000 frames take at most",
        "us",
        |t| t.p999,
    ),
    ("latency-lost", "frames that did not come", "%", |t| t.lost),
];

/// Times at each point, which it names.
type Measure = fn(&Effort) -> anyhow::Result<Vec<(&'static str, Timed)>>;

const PEERS: [(&str, Measure); 3] = [(OURS, ours), (OURS, ours_alone), ("OVS-DPDK", ovs)];

pub fn run(effort: &Effort) -> anyhow::Result<Vec<Table>> {
    let mut tables = QUANTITIES.map(|(scenario, work, unit, _)| Table {
        scenario,
        work,
        unit,
        rows: Vec::new(),
    });
    for _ in 0..effort.rounds {
        for (peer, measure) in PEERS {
            for (point, timed) in measure(effort).context(peer)? {
                for (table, (.., quantity)) in tables.iter_mut().zip(QUANTITIES) {
                    let sample = Sample {
                        rate: quantity(&timed),
                        cycles: None,
                    };
                    add(table, point, peer, sample);
                }
            }
        }
    }
    Ok(tables.into())
}

/// Adds a sample to its row, which stands behind those of the same point.
fn add(table: &mut Table, point: &str, peer: &'static str, sample: Sample) {
    let rows = &mut table.rows;
    if let Some(row) = rows.iter_mut().find(|r| r.point == point && r.peer == peer) {
        row.samples.push(sample);
        return;
    }
    let at = rows
        .iter()
        .rposition(|r| r.point == point)
        .map_or(rows.len(), |last| last + 1);
    let row = Row {
        point: point.to_owned(),
        peer,
        samples: vec![sample],
    };
    rows.insert(at, row);
}

fn ours(effort: &Effort) -> anyhow::Result<Vec<(&'static str, Timed)>> {
    let mut guests = TimingGuests::start()?;
    let ours = Ours::start(&guests.sockets())?;
    ours.pin_shims(crate::peer::SWITCHING_CPU)?;
    guests.wait()?;
    let mut points = vec![(
        "idle, asleep",
        while_near(|| guests.alone(GAP_ASLEEP, effort.measure))?,
    )];
    points.extend(loads(&mut guests, effort)?);
    ours.poll();
    points.push((
        "idle, polling",
        while_near(|| guests.alone(GAP_POLLING, effort.measure))?,
    ));
    drop(guests);
    Ok(points)
}

/// Without guests and shims: from one client that polls to another. OVS has no such clients.
fn ours_alone(effort: &Effort) -> anyhow::Result<Vec<(&'static str, Timed)>> {
    let switch = between::switch();
    let mut clients = TimingGuests::clients(&switch.attach_socket())?;
    // A quick run has little time to spare, and these times vary little.
    let time = effort.measure / 2;
    let asleep = while_near(|| clients.alone(GAP_ASLEEP, time))?;
    between::never_sleep(&switch);
    let polling = while_near(|| clients.alone(GAP_POLLING, time))?;
    Ok(vec![
        ("switch alone, asleep", asleep),
        ("switch alone, polling", polling),
    ])
}

/// OVS always polls: it has one figure for the idle switch.
fn ovs(effort: &Effort) -> anyhow::Result<Vec<(&'static str, Timed)>> {
    let mut guests = TimingGuests::start()?;
    let _ovs = between::ovs(&guests.sockets())?;
    guests.wait()?;
    let idle = while_near(|| guests.alone(GAP_POLLING, effort.measure))?;
    let mut points = vec![("idle, asleep", idle), ("idle, polling", idle)];
    points.extend(loads(&mut guests, effort)?);
    Ok(points)
}

fn loads(guests: &mut TimingGuests, effort: &Effort) -> anyhow::Result<Vec<(&'static str, Timed)>> {
    let most = while_near(|| guests.most(effort.measure))?;
    let load = |(part, point)| Ok((point, while_near(|| guests.paced(most * part, effort.measure))?));
    LOADS.into_iter().map(load).collect()
}
