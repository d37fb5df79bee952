//! What is shown and kept of a scenario.

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::Context;
use serde::Serialize;

use crate::machine::Machine;
use crate::plot;
use crate::sample::{Sample, Spread};

/// The figures of a scenario: one quantity, and what it costs.
#[derive(Debug, Serialize)]
pub struct Table {
    /// Also the name of its files.
    pub scenario: &'static str,
    /// What is done.
    pub work: &'static str,
    /// Unit of the rate.
    pub unit: &'static str,
    pub rows: Vec<Row>,
}

/// One peer at one point of the scenario. The first one at a point is compared with each of the others there.
#[derive(Debug, Serialize)]
pub struct Row {
    /// Such as "1000 pairs".
    pub point: String,
    pub peer: &'static str,
    pub samples: Vec<Sample>,
}

impl Row {
    pub fn rate(&self) -> Option<Spread> {
        Spread::of(self.samples.iter().map(|s| s.rate))
    }

    pub fn cycles(&self) -> Option<Spread> {
        Spread::of(self.samples.iter().filter_map(|s| s.cycles))
    }
}

impl Table {
    /// Median rate of the first peer at the point of `row` by that of `row`.
    fn ratio(&self, row: &Row) -> Option<f64> {
        let first = self.rows.iter().find(|r| r.point == row.point)?;
        (first.peer != row.peer).then(|| Some(first.rate()?.median / row.rate()?.median))?
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
        let point_width = rows.iter().map(|r| r.point.len()).max().unwrap_or(0);
        let peer_width = rows.iter().map(|r| r.peer.len()).max().unwrap_or(0);
        writeln!(
            f,
            "  {:point_width$} {:peer_width$} {unit:>22} {:>22} {:>12}",
            "", "", "cycles a packet", "first / it"
        )?;
        for row in rows {
            let rate = row.rate().map_or(String::new(), |r| format!("{r:.2}"));
            let cycles = row.cycles().map_or(String::new(), |c| format!("{c:.0}"));
            let ratio = self.ratio(row).map_or(String::new(), |r| format!("{r:.2}"));
            writeln!(
                f,
                "  {:point_width$} {:peer_width$} {rate:>22} {cycles:>22} {ratio:>12}",
                row.point, row.peer
            )?;
        }
        Ok(())
    }
}

/// Writes `table` to `dir`: its figures, and a picture of them.
///
/// # Errors
/// It can't be written.
pub fn save(dir: &Path, machine: &Machine, table: &Table) -> anyhow::Result<()> {
    fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    let json = serde_json::to_string_pretty(&serde_json::json!({ "machine": machine, "table": table }))?;
    for (kind, text) in [("json", json), ("svg", plot::svg(table))] {
        let path = dir.join(format!("{}.{kind}", table.scenario));
        fs::write(&path, text).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_at_a_point_is_compared_with_the_others() {
        let row = |point: &str, peer, rate| Row {
            point: point.to_owned(),
            peer,
            samples: vec![Sample { rate, cycles: None }],
        };
        let table = Table {
            scenario: "test",
            work: "",
            unit: "Mpps",
            rows: vec![
                row("1", "a", 9.0),
                row("1", "b", 3.0),
                row("2", "a", 4.0),
                row("2", "b", 8.0),
            ],
        };
        let ratios: Vec<_> = table.rows.iter().map(|row| table.ratio(row)).collect();
        assert_eq!(ratios, [None, Some(3.0), None, Some(0.5)]);
    }
}
