//! Guest to guest, through virtqueues and the switch: frames that go round between two guests.

pub mod large;

use anyhow::Context;

use crate::distance;
use crate::guests::{GUESTS_CPU, Guests, Seen};
use crate::peer::between::{self, Ours};
use crate::peer::{OURS, Peer, SWITCHING_CPU};
use crate::report::{Row, Table};
use crate::sample::Sample;
use crate::scenario::Effort;

/// Bytes of the frames.
const LENGTHS: &[usize] = &[64, 512, 1500];
const LENGTHS_QUICK: &[usize] = &[64, 1500];

/// What is counted of this switch's work. OVS has no shims: its PMD thread does all the work in any case.
#[derive(Debug, Clone, Copy)]
enum Counted {
    /// The whole switch side has one core: all that the threads of shim, switch and shim ran, for frames or in vain.
    OneCore,
    /// The switch's share of that: what its PMD thread spent on bursts with frames in them.
    Share,
    /// The same, but the shims are with the guests, and the PMD thread has its core and its caches to itself.
    Alone,
}

const POINTS: [(Counted, &str); 3] = [
    (Counted::OneCore, "one core"),
    (Counted::Share, "the switch's share of it"),
    (Counted::Alone, "switch alone"),
];

/// Takes a sample for each point and length, in that order.
type Measure = fn(&Effort) -> anyhow::Result<Vec<Sample>>;

/// Whoever is measured, in turns.
type Peers = [(&'static str, Measure); 2];

const PEERS: Peers = [(OURS, ours), ("OVS-DPDK", ovs)];

pub fn run(effort: &Effort) -> anyhow::Result<Table> {
    let names: Vec<String> = lengths(effort).iter().map(|len| format!("{len} B")).collect();
    Ok(Table {
        scenario: "vm",
        work: "frames go round between two virtio-user guests on one core; cycles of shim, switch and shim, or of the switch",
        unit: "Mpps",
        rows: rows(PEERS, &names, effort)?,
    })
}

fn lengths(effort: &Effort) -> &'static [usize] {
    if effort.quick { LENGTHS_QUICK } else { LENGTHS }
}

/// `lengths` by name.
fn rows(peers: Peers, lengths: &[String], effort: &Effort) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (_, counted) in POINTS {
        for len in lengths {
            rows.extend(peers.map(|(peer, _)| Row {
                point: format!("{len}, {counted}"),
                peer,
                samples: Vec::new(),
            }));
        }
    }
    for _ in 0..effort.rounds {
        for (number, (peer, measure)) in peers.into_iter().enumerate() {
            let samples = measure(effort).context(peer)?;
            let its_rows = rows.iter_mut().skip(number).step_by(peers.len());
            its_rows
                .zip(samples)
                .for_each(|(row, sample)| row.samples.push(sample));
        }
    }
    Ok(rows)
}

fn ours(effort: &Effort) -> anyhow::Result<Vec<Sample>> {
    let mut guests = Guests::start()?;
    let ours = Ours::start(&guests.sockets())?;
    guests.wait()?;
    let samples = at_points(&ours, || measure(&mut guests, &ours, effort));
    drop(guests);
    samples
}

/// Samples for each of [`POINTS`], of what `measure` tells for each length: with the cycles that all threads ran, and with
/// those that the switch spent on frames.
fn at_points(
    ours: &Ours,
    mut measure: impl FnMut() -> anyhow::Result<Vec<[Sample; 2]>>,
) -> anyhow::Result<Vec<Sample>> {
    ours.pin_shims(SWITCHING_CPU)?;
    let together = measure()?;
    ours.pin_shims(GUESTS_CPU)?;
    let apart = measure()?;
    let samples = POINTS.map(|(counted, _)| match counted {
        Counted::OneCore => together.iter().map(|[all, _]| *all).collect::<Vec<_>>(),
        Counted::Share => together.iter().map(|[_, busy]| *busy).collect(),
        Counted::Alone => apart.iter().map(|[_, busy]| *busy).collect(),
    });
    Ok(samples.concat())
}

/// For each length: with the cycles that all threads ran, and with those that the switch spent on frames.
fn measure(guests: &mut Guests, ours: &Ours, effort: &Effort) -> anyhow::Result<Vec<[Sample; 2]>> {
    let mut samples = Vec::new();
    for &len in lengths(effort) {
        guests.circulate(len)?;
        std::thread::sleep(effort.warm_up);
        samples.push(distance::while_near(|| {
            let (before, cycles_before) = (guests.seen()?, cycles(ours)?);
            std::thread::sleep(effort.measure);
            let (after, cycles_after) = (guests.seen()?, cycles(ours)?);
            Ok([0, 1].map(|of| Sample {
                rate: mpps(before, after),
                cycles: Some((cycles_after[of] - cycles_before[of]) / (after.frames - before.frames) as f64),
            }))
        })?);
    }
    Ok(samples)
}

/// Of all threads, and of the switch for frames, so far.
fn cycles(ours: &Ours) -> anyhow::Result<[f64; 2]> {
    Ok([ours.all_cycles()?, ours.busy_cycles()])
}

fn ovs(effort: &Effort) -> anyhow::Result<Vec<Sample>> {
    let mut guests = Guests::start()?;
    let mut ovs = between::ovs(&guests.sockets())?;
    guests.wait()?;
    let mut samples = Vec::new();
    for &len in lengths(effort) {
        guests.circulate(len)?;
        std::thread::sleep(effort.warm_up);
        samples.push(distance::while_near(|| {
            let before = guests.seen()?;
            let sample = ovs.sample(effort.measure)?;
            let rate = mpps(before, guests.seen()?);
            Ok(Sample { rate, ..sample })
        })?);
    }
    Ok(samples.repeat(POINTS.len()))
}

fn mpps(before: Seen, after: Seen) -> f64 {
    (after.frames - before.frames) as f64 / (after.at - before.at).as_secs_f64() / 1e6
}
