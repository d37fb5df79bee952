//! TCP frames of 64 KB, which stay whole from the first guest to the second.

use super::{Peers, at_points, cycles, rows};
use crate::distance;
use crate::peer::OURS;
use crate::peer::between::{self, Ours};
use crate::report::Table;
use crate::sample::Sample;
use crate::scenario::Effort;
use crate::timing::TimingGuests;

const PEERS: Peers = [(OURS, ours), ("OVS-DPDK", ovs)];

pub fn run(effort: &Effort) -> anyhow::Result<Table> {
    Ok(Table {
        scenario: "vm-large",
        work: "TCP frames of 64 KB pass whole between two virtio-user guests on one core; cycles as in vm",
        unit: "Gbit/s",
        rows: rows(PEERS, &["64 KB".to_owned()], effort)?,
    })
}

fn ours(effort: &Effort) -> anyhow::Result<Vec<Sample>> {
    let mut guests = TimingGuests::start_large()?;
    let ours = Ours::start(&guests.sockets())?;
    guests.wait()?;
    let samples = at_points(&ours, || {
        guests.large(effort.warm_up)?;
        let samples = distance::while_near(|| {
            let before = cycles(&ours)?;
            let passed = guests.large(effort.measure)?;
            let after = cycles(&ours)?;
            Ok([0, 1].map(|of| Sample {
                rate: passed.gbit_per_second,
                cycles: Some((after[of] - before[of]) / passed.frames as f64),
            }))
        })?;
        Ok(vec![samples])
    });
    drop(guests);
    samples
}

fn ovs(effort: &Effort) -> anyhow::Result<Vec<Sample>> {
    let mut guests = TimingGuests::start_large()?;
    let ovs = between::ovs_large(&guests.sockets())?;
    guests.wait()?;
    guests.large(effort.warm_up)?;
    let (passed, sample) = distance::while_near(|| ovs.sample_during(|| guests.large(effort.measure)))?;
    let sample = Sample {
        rate: passed.gbit_per_second,
        ..sample
    };
    Ok(vec![sample; super::POINTS.len()])
}
