//! Broadcast to 16 ports.

use anyhow::Context;

use crate::peer::{OURS, Peer, Wire, ours::Ours, ovs::Ovs, replay, sink};
use crate::report::{Row, Table};
use crate::sample::Sample;
use crate::scenario::Effort;
use crate::{slices, trace};

type Start = fn(&Wire) -> anyhow::Result<Box<dyn Peer>>;

const PEERS: &[(&str, Start)] = &[
    (OURS, |wire| Ok(Box::new(Ours::start(wire)))),
    ("OVS-DPDK", |wire| Ok(Box::new(Ovs::start(wire)?))),
];
const COPIES: usize = 16;

pub fn run(effort: &Effort) -> anyhow::Result<Vec<Table>> {
    let dir = tempfile::tempdir().context("a directory for the capture")?;
    let source = replay(0, &trace::broadcast(dir.path()));
    let ports = std::iter::once(source).chain((0..COPIES).map(sink));
    let wire = Wire::new(ports.collect(), 1);
    let mut samples = vec![Vec::new(); PEERS.len()];
    for _ in 0..effort.rounds {
        for (&(name, start), samples) in PEERS.iter().zip(&mut samples) {
            let mut peer = start(&wire).context(name)?;
            std::thread::sleep(effort.warm_up);
            let frames = slices::measure(&mut *peer, effort.measure).context(name)?;
            samples.push(Sample {
                rate: frames.rate * COPIES as f64,
                cycles: frames.cycles.map(|c| c / COPIES as f64),
            });
        }
    }
    let rows = PEERS.iter().zip(samples).map(|(&(peer, _), samples)| Row {
        point: "16 ports".to_owned(),
        peer,
        samples,
    });
    Ok(vec![Table {
        scenario: "flood",
        work: "a net_pcap port replays a broadcast of 60 bytes to 16 net_null ports; rate and cycles are the copies'",
        unit: "million copies/s",
        rows: rows.collect(),
    }])
}
