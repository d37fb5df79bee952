//! Known unicast between N pairs of hosts on two ports.

use anyhow::Context;

use crate::peer::{OURS, Peer, Wire, replay};
use crate::peer::{ours::Ours, ovs::Ovs, testpmd::Testpmd};
use crate::report::{Row, Table};
use crate::scenario::Effort;
use crate::{slices, trace};

/// Starts a peer on two wires.
type Start = fn(&Wire) -> anyhow::Result<Box<dyn Peer>>;

const PEERS: &[(&str, Start)] = &[
    (OURS, |wire| Ok(Box::new(Ours::start(wire)))),
    ("OVS-DPDK", |wire| Ok(Box::new(Ovs::start(wire)?))),
    ("testpmd", |wire| Ok(Box::new(Testpmd::start(wire)?))),
];

pub fn run(effort: &Effort) -> anyhow::Result<Table> {
    let points: &[u32] = if effort.quick {
        &[1, 10_000]
    } else {
        &[1, 1_000, 10_000, 100_000]
    };
    let mut rows = Vec::new();
    for &pairs in points {
        let dir = tempfile::tempdir().context("a directory for the captures")?;
        let [left, right] = trace::pairs(dir.path(), 0, pairs);
        let wire = Wire::new(vec![replay(0, &left), replay(1, &right)], 2 * pairs);
        let mut samples = vec![Vec::new(); PEERS.len()];
        for _ in 0..effort.rounds {
            for (&(name, start), samples) in PEERS.iter().zip(&mut samples) {
                let context = || format!("{name}, {pairs} pairs");
                let mut peer = start(&wire).with_context(context)?;
                std::thread::sleep(effort.warm_up);
                samples.push(slices::measure(&mut *peer, effort.measure).with_context(context)?);
            }
        }
        rows.extend(PEERS.iter().zip(samples).map(|(&(peer, _), samples)| Row {
            point: format!("{pairs} pairs"),
            peer,
            samples,
        }));
    }
    Ok(Table {
        scenario: "l2",
        work: "two net_pcap ports replay 60-byte frames between N pairs of hosts, both ways; one switching core",
        unit: "Mpps",
        rows,
    })
}
