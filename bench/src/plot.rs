//! A table as a picture: bars with whiskers from the least to the most, in SVG that follows the reader's light or dark
//! theme.

use std::fmt::Write;

use crate::report::{Row, Table};
use crate::sample::Spread;

/// All in pixels.
const LEFT: f64 = 170.0;
const BAR: f64 = 250.0;
/// What stands behind a bar: its median.
const FIGURE: f64 = 70.0;
const LINE: f64 = 20.0;
/// Of the text, at most, on average.
const LETTER: f64 = 6.5;
const TOP: f64 = 64.0;
/// Space between the points of a scenario.
const GAP: f64 = 18.0;

/// Colours of the peers of a point, in order; both themes (Tol's bright scheme, for colour-blind readers as well).
const STYLE: &str = "\
text{font:12px sans-serif;fill:#24292f}.title{font-weight:bold}.note{fill:#57606a}\
.whisker{stroke:#24292f;stroke-width:1.5}.axis{stroke:#8c959f}\
.peer0{fill:#4477aa}.peer1{fill:#ee8866}.peer2{fill:#bbcc33}.peer3{fill:#aa4499}\
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.note{fill:#9198a1}.whisker{stroke:#e6edf3}.peer0{fill:#77aadd}}";
const PEER_COLOURS: usize = 4;

/// What a panel shows of a row.
type Quantity = fn(&Row) -> Option<Spread>;

/// Draws `table`: its rates, and cycles a packet beside them where there are any.
pub fn svg(table: &Table) -> String {
    let mut panels: Vec<(&str, Quantity)> = vec![(table.unit, Row::rate)];
    if table.rows.iter().any(|row| row.cycles().is_some()) {
        panels.push(("cycles a packet", Row::cycles));
    }
    let heights = places(&table.rows);
    let height = heights.last().map_or(TOP, |(y, _)| y + LINE + GAP);
    let width = (LEFT + panels.len() as f64 * (BAR + FIGURE)).max(table.work.len() as f64 * LETTER);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\"><style>{STYLE}</style>\n"
    );
    text(&mut out, 8.0, 18.0, "title", table.scenario);
    text(&mut out, 8.0, 36.0, "note", table.work);
    for (number, (unit, quantity)) in panels.into_iter().enumerate() {
        let x = LEFT + number as f64 * (BAR + FIGURE);
        panel(&mut out, x, unit, &table.rows, &heights, quantity);
    }
    let mut point = "";
    for (row, (y, _)) in table.rows.iter().zip(&heights) {
        if row.point != point {
            text(&mut out, 8.0, y - 2.0, "note", &row.point);
            point = &row.point;
        }
        text(&mut out, 20.0, y + LINE - 6.0, "label", row.peer);
    }
    out.push_str("</svg>\n");
    out
}

/// Where each row's bar begins, and its place among those of its point.
fn places(rows: &[Row]) -> Vec<(f64, usize)> {
    let (mut y, mut place) = (TOP, 0);
    let mut places = Vec::new();
    for (number, row) in rows.iter().enumerate() {
        if number > 0 && rows[number - 1].point == row.point {
            place += 1;
            y += LINE;
        } else {
            place = 0;
            y += LINE + if number > 0 { GAP } else { 0.0 };
        }
        places.push((y, place));
    }
    places
}

fn panel(out: &mut String, x: f64, unit: &str, rows: &[Row], places: &[(f64, usize)], quantity: Quantity) {
    let greatest = rows
        .iter()
        .filter_map(quantity)
        .map(|s| s.most)
        .fold(0.0, f64::max);
    let scale = BAR / greatest.max(f64::MIN_POSITIVE);
    text(out, x, TOP - 8.0, "note", unit);
    for (row, &(y, place)) in rows.iter().zip(places) {
        let Some(spread) = quantity(row) else { continue };
        let [least, median, most] = [spread.least, spread.median, spread.most].map(|v| x + v * scale);
        let (bar, middle) = (LINE - 6.0, y + LINE / 2.0);
        let _ = writeln!(
            out,
            "<rect class=\"peer{}\" x=\"{x:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{bar}\"/>\
             <path class=\"whisker\" d=\"M{least:.1} {middle:.1}H{most:.1}M{least:.1} {:.1}v6M{most:.1} {:.1}v6\"/>",
            place % PEER_COLOURS,
            y + 3.0,
            median - x,
            middle - 3.0,
            middle - 3.0,
        );
        let digits = if spread.median < 100.0 { 2 } else { 0 };
        text(
            out,
            most + 6.0,
            y + LINE - 6.0,
            "figure",
            &format!("{:.digits$}", spread.median),
        );
    }
    if let (Some((first, _)), Some((last, _))) = (places.first(), places.last()) {
        let _ = writeln!(
            out,
            "<path class=\"axis\" d=\"M{x:.1} {first:.1}V{:.1}\"/>",
            last + LINE
        );
    }
}

fn text(out: &mut String, x: f64, y: f64, class: &str, content: &str) {
    let content = content.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(
        out,
        "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{content}</text>"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Sample;

    #[test]
    fn every_row_has_a_bar_as_long_as_its_median() {
        let row = |point: &str, peer, rates: &[f64]| Row {
            point: point.to_owned(),
            peer,
            samples: rates.iter().map(|&rate| Sample { rate, cycles: None }).collect(),
        };
        let svg = svg(&Table {
            scenario: "test",
            work: "a < b",
            unit: "Mpps",
            rows: vec![row("1", "a", &[10.0, 5.0, 4.0]), row("1", "b", &[2.5])],
        });
        let widths: Vec<&str> = svg
            .split("<rect ")
            .skip(1)
            .filter_map(|r| r.split("width=\"").nth(1)?.split('"').next())
            .collect();
        // The longest whisker, 10.0, is as long as a bar may be.
        assert_eq!(widths, ["125.0", "62.5"]);
        assert!(
            svg.contains("a &lt; b") && svg.matches("whisker\"").count() == 2,
            "{svg}"
        );
    }
}
