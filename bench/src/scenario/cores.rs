//! One switching core and two.

use anyhow::Context;

use crate::peer::{SWITCHING_CPU, Wire, ours::Ours, replay};
use crate::report::{Row, Table};
use crate::scenario::Effort;
use crate::{slices, trace};

const PAIRS: u32 = 1000;
/// CPUs that switch. The second one is where everything else runs as well if there are only two.
const CORES: [(&str, u64); 2] = [
    ("2 cores", 1 << SWITCHING_CPU | 1),
    ("1 core", 1 << SWITCHING_CPU),
];
/// Ports of each bridge.
const POINTS: [(&str, usize); 2] = [("two bridges", 2), ("one bridge", 4)];

pub fn run(effort: &Effort) -> anyhow::Result<Vec<Table>> {
    let dir = tempfile::tempdir().context("a directory for the captures")?;
    let captures = [
        trace::pairs(dir.path(), 0, PAIRS),
        trace::pairs(dir.path(), PAIRS, PAIRS),
    ]
    .concat();
    let ports: Vec<String> = captures
        .iter()
        .enumerate()
        .map(|(n, path)| replay(n, path))
        .collect();
    let mut rows = Vec::new();
    for (point, ports_each) in POINTS {
        let mut samples = [const { Vec::new() }; CORES.len()];
        for _ in 0..effort.rounds {
            for ((_, cpus), samples) in CORES.iter().zip(&mut samples) {
                let mut wire = Wire::new(Vec::new(), 4 * PAIRS);
                wire.bridges = ports.chunks(ports_each).map(<[String]>::to_vec).collect();
                wire.cpus = *cpus;
                let mut ours = Ours::start(&wire);
                std::thread::sleep(effort.warm_up);
                samples.push(slices::measure(&mut ours, effort.measure)?);
            }
        }
        rows.extend(CORES.iter().zip(samples).map(|(&(peer, _), samples)| Row {
            point: point.to_owned(),
            peer,
            samples,
        }));
    }
    Ok(vec![Table {
        scenario: "cores",
        work: "four net_pcap ports replay 60-byte frames, two pairs of ports with 1,000 pairs of hosts each",
        unit: "Mpps",
        rows,
    }])
}
