//! The counters as text: the historic screen of `--stats`, and `--show-stats`.
//!
//! As in the historic switch a row is seen from the port owner's side: what a client or NIC received is what the
//! switch sent there.

use std::fmt::Write as _;
use std::io::{Write as _, stdout};
use std::time::Duration;

use vswitch_common::stats::{Counter, PortSnapshot, Reader, Snapshot};

/// Clears a terminal and goes to its top left corner.
const CLEAR: &str = "\x1b[2J\x1b[H";

/// Prints the screen every `period` until the process ends, or nobody can see it any more.
pub fn show_for_ever(prefix: &str, period: Duration) {
    let mut before: Option<Snapshot> = None;
    while let Ok(reader) = Reader::open(prefix) {
        std::thread::sleep(period);
        let Ok(now) = reader.snapshot() else { continue };
        let text = render(&now, before.as_ref().map(|b| (b, period)));
        if writeln!(stdout(), "{CLEAR}{text}").is_err() {
            return;
        }
        before = Some(now);
    }
}

/// The table; with an earlier snapshot and the time between, the rates as well.
pub fn render(now: &Snapshot, before: Option<(&Snapshot, Duration)>) -> String {
    let mut text = format!(
        "dpdk-vswitchd, process {}, up {} s\n\n",
        now.pid,
        now.updated.saturating_sub(now.started)
    );
    let _ = writeln!(
        text,
        "{:<16} {:>12} {:>12} {:>15} {:>12} {:>12} {:>15} {:>10} {:>10}",
        "Interface",
        "rx_packets",
        "rx_dropped",
        "rx_bytes",
        "tx_packets",
        "tx_dropped",
        "tx_bytes",
        "rx_pps",
        "tx_pps"
    );
    let rule = "-".repeat(text.lines().last().map_or(0, str::len));
    let _ = writeln!(text, "{rule}");
    for port in &now.ports {
        let rate = |counter: Counter| {
            let (before, period) = before?;
            let earlier = before.ports.iter().find(|p| p.info.name == port.info.name)?;
            let seconds = period.as_secs_f64();
            Some(port.get(counter).saturating_sub(earlier.get(counter)) as f64 / seconds)
        };
        let show = |rate: Option<f64>| rate.map_or("-".to_owned(), |r| format!("{r:.0}"));
        let _ = writeln!(
            text,
            "{:<16} {:>12} {:>12} {:>15} {:>12} {:>12} {:>15} {:>10} {:>10}",
            port.info.name,
            port.get(Counter::TxPackets),
            port.dropped(false),
            port.get(Counter::TxBytes),
            port.get(Counter::RxPackets),
            port.dropped(true),
            port.get(Counter::RxBytes),
            show(rate(Counter::TxPackets)),
            show(rate(Counter::RxPackets)),
        );
    }
    let reasons: Vec<String> = now.ports.iter().filter_map(reasons).collect();
    if !reasons.is_empty() {
        let _ = writeln!(
            text,
            "\nDropped, by reason (rx_: on the way into the switch, tx_: on the way out)"
        );
        reasons.iter().for_each(|line| _ = writeln!(text, "{line}"));
    }
    text.push('\n');
    for (number, thread) in now.threads.iter().enumerate().skip(1) {
        let cycles = thread.busy_cycles.checked_div(thread.packets).unwrap_or(0);
        let place = thread.cpu.map_or(String::new(), |cpu| format!(" on CPU {cpu}"));
        let _ = writeln!(
            text,
            "PMD thread {number}{place}: {} packets, {cycles} cycles each, {} a burst, {} sleeps",
            thread.packets,
            thread.packets.checked_div(thread.bursts).unwrap_or(0),
            thread.sleeps
        );
    }
    let _ = writeln!(text, "mbufs: {} of {} free", now.pool_free, now.pool_size);
    text
}

/// The drop counters of a port that are not zero.
fn reasons(port: &PortSnapshot) -> Option<String> {
    let lost: Vec<String> = Counter::ALL
        .iter()
        .filter(|c| c.is_drop() || matches!(c, Counter::RxBadMbuf | Counter::RxBadRing))
        .filter(|&&c| port.get(c) > 0)
        .map(|&c| format!("{} {}", c.name(), port.get(c)))
        .collect();
    (!lost.is_empty()).then(|| format!("{:<16} {}", port.info.name, lost.join(", ")))
}
