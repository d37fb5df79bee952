//! What is shown and kept of a scenario.

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::Context;
use serde::Serialize;

use crate::machine::Machine;
use crate::peer::OURS;
use crate::sample::{Sample, Spread};

/// The figures of a scenario.
#[derive(Debug, Serialize)]
pub struct Table {
    pub scenario: &'static str,
    /// What is done.
    pub work: &'static str,
    /// Unit of the rate.
    pub unit: &'static str,
    pub rows: Vec<Row>,
}

/// One peer at one point of the scenario.
#[derive(Debug, Serialize)]
pub struct Row {
    /// Such as "1000 pairs".
    pub point: String,
    pub peer: &'static str,
    pub samples: Vec<Sample>,
}

impl Row {
    fn rate(&self) -> Option<Spread> {
        Spread::of(self.samples.iter().map(|s| s.rate))
    }

    fn cycles(&self) -> Option<Spread> {
        Spread::of(self.samples.iter().filter_map(|s| s.cycles))
    }
}

impl Table {
    /// Median rate of this switch by that of the peer of `row`, at the same point.
    fn ratio(&self, row: &Row) -> Option<f64> {
        let ours = self
            .rows
            .iter()
            .find(|r| r.point == row.point && r.peer == OURS)?;
        (row.peer != OURS).then(|| Some(ours.rate()?.median / row.rate()?.median))?
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Table {
            scenario,
            work,
            unit,
            rows,
        } = self;
        writeln!(f, "{scenario}: {work}; median (least-most)")?;
        writeln!(
            f,
            "  {:<14} {:<14} {unit:>22} {:>22} {:>12}",
            "", "", "cycles a packet", "ours / it"
        )?;
        for row in rows {
            let rate = row.rate().map_or(String::new(), |r| format!("{r:.2}"));
            let cycles = row.cycles().map_or(String::new(), |c| format!("{c:.0}"));
            let ratio = self.ratio(row).map_or(String::new(), |r| format!("{r:.2}"));
            writeln!(
                f,
                "  {:<14} {:<14} {rate:>22} {cycles:>22} {ratio:>12}",
                row.point, row.peer
            )?;
        }
        Ok(())
    }
}

/// Writes `table` to `dir`.
///
/// # Errors
/// It can't be written.
pub fn save(dir: &Path, machine: &Machine, table: &Table) -> anyhow::Result<()> {
    fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    let path = dir.join(format!("{}.json", table.scenario));
    let text = serde_json::to_string_pretty(&serde_json::json!({ "machine": machine, "table": table }))?;
    fs::write(&path, text).with_context(|| path.display().to_string())
}
