//! What ports cost that have a client with nothing to say.

use vswitch_tests::wait::eventually;

use super::rings::Pair;
use crate::clients::Idle;
use crate::report::{Row, Table};
use crate::scenario::Effort;
use crate::slices;

const ATTACHED: u16 = 64;

pub fn run(effort: &Effort) -> anyhow::Result<Vec<Table>> {
    let mut pair = Pair::start(ATTACHED);
    pair.blast();
    let (mut few, mut many) = (Vec::new(), Vec::new());
    for _ in 0..effort.rounds {
        std::thread::sleep(effort.warm_up);
        few.push(slices::measure(&mut pair, effort.measure)?);
        let switch = &pair.ours.switch;
        let idle = (3..=ATTACHED)
            .map(|port| Idle::attach(switch, port))
            .collect::<anyhow::Result<Vec<_>>>()?;
        std::thread::sleep(effort.warm_up);
        many.push(slices::measure(&mut pair, effort.measure)?);
        drop(idle);
        let attached = || {
            let ports = pair.ours.switch.snapshot().ports;
            let held = ports
                .iter()
                .filter(|p| p.info.name.starts_with("dpdkr") && p.info.link);
            held.count()
        };
        eventually("the idle clients are gone", || attached() == 2);
    }
    pair.stop();
    let row = |peer, samples| Row {
        point: "2 active".to_owned(),
        peer,
        samples,
    };
    Ok(vec![Table {
        scenario: "ports",
        work: "two bare clients move frames of 64 bytes both ways; 62 others are attached, or nobody",
        unit: "Mpps",
        rows: vec![row("64 attached", many), row("only those 2", few)],
    }])
}
