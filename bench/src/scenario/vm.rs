//! Guest to guest: frames that go round between two guests, through virtqueues and the switch.

use anyhow::Context;

use crate::guests::{GUESTS_CPU, Guests, Seen};
use crate::peer::between::{self, Ours};
use crate::peer::{OURS, Peer, SWITCHING_CPU};
use crate::report::{Row, Table};
use crate::sample::Sample;
use crate::scenario::Effort;

/// Bytes of the frames.
const LENGTHS: &[usize] = &[64, 512, 1500];
const LENGTHS_QUICK: &[usize] = &[64, 1500];

/// Where this switch's shims run, and whose cycles are counted. OVS has no shims: its PMD thread does all the work in
/// either case.
#[derive(Debug, Clone, Copy)]
enum Place {
    /// On the switching CPU: the whole switch side has one core. All that its threads ran counts, for frames or in vain.
    OneCore,
    /// With the guests: the PMD thread has its core to itself, and what it spent on bursts with frames in them counts.
    SwitchAlone,
}

const PLACES: [(Place, &str); 2] = [(Place::OneCore, "one core"), (Place::SwitchAlone, "switch alone")];

/// Takes a sample for each place and length, in that order.
type Measure = fn(&[usize], &Effort) -> anyhow::Result<Vec<Sample>>;

const PEERS: [(&str, Measure); 2] = [(OURS, ours), ("OVS-DPDK", ovs)];

pub fn run(effort: &Effort) -> anyhow::Result<Table> {
    let lengths = if effort.quick { LENGTHS_QUICK } else { LENGTHS };
    let mut rows = Vec::new();
    for (_, place) in PLACES {
        for len in lengths {
            rows.extend(PEERS.map(|(peer, _)| Row {
                point: format!("{len} B, {place}"),
                peer,
                samples: Vec::new(),
            }));
        }
    }
    for _ in 0..effort.rounds {
        for (number, (peer, measure)) in PEERS.into_iter().enumerate() {
            let samples = measure(lengths, effort).context(peer)?;
            let its_rows = rows.iter_mut().skip(number).step_by(PEERS.len());
            its_rows
                .zip(samples)
                .for_each(|(row, sample)| row.samples.push(sample));
        }
    }
    Ok(Table {
        scenario: "vm",
        work: "frames go round between two virtio-user guests on one core; cycles of shim, switch and shim, or of the switch alone",
        unit: "Mpps",
        rows,
    })
}

fn ours(lengths: &[usize], effort: &Effort) -> anyhow::Result<Vec<Sample>> {
    let mut guests = Guests::start()?;
    let ours = Ours::start(&guests.sockets())?;
    guests.wait()?;
    let mut samples = Vec::new();
    for (place, _) in PLACES {
        ours.pin_shims(match place {
            Place::OneCore => SWITCHING_CPU,
            Place::SwitchAlone => GUESTS_CPU,
        })?;
        let cycles = || match place {
            Place::OneCore => ours.all_cycles(),
            Place::SwitchAlone => Ok(ours.busy_cycles()),
        };
        for &len in lengths {
            guests.circulate(len)?;
            std::thread::sleep(effort.warm_up);
            let (before, cycles_before) = (guests.seen()?, cycles()?);
            std::thread::sleep(effort.measure);
            let (after, cycles_after) = (guests.seen()?, cycles()?);
            samples.push(Sample {
                rate: mpps(before, after),
                cycles: Some((cycles_after - cycles_before) / (after.frames - before.frames) as f64),
            });
        }
    }
    Ok(samples)
}

fn ovs(lengths: &[usize], effort: &Effort) -> anyhow::Result<Vec<Sample>> {
    let mut guests = Guests::start()?;
    let mut ovs = between::ovs(&guests.sockets())?;
    guests.wait()?;
    let mut samples = Vec::new();
    for &len in lengths {
        guests.circulate(len)?;
        std::thread::sleep(effort.warm_up);
        let before = guests.seen()?;
        let sample = ovs.sample(effort.measure)?;
        let rate = mpps(before, guests.seen()?);
        samples.push(Sample { rate, ..sample });
    }
    Ok(samples.repeat(PLACES.len()))
}

fn mpps(before: Seen, after: Seen) -> f64 {
    (after.frames - before.frames) as f64 / (after.at - before.at).as_secs_f64() / 1e6
}
