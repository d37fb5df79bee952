//! The switch's counters, read from the stats segment, and its pool.

use vswitch_common::stats::{Counter, PortSnapshot, Reader, Snapshot};

use super::Switch;
use crate::wait::{PATIENCE, within};

impl Switch {
    /// All counters now.
    ///
    /// # Panics
    /// If the segment can't be read.
    #[track_caller]
    pub fn snapshot(&self) -> Snapshot {
        let reader = Reader::open(self.prefix()).unwrap_or_else(|e| panic!("{e}"));
        reader.snapshot().unwrap_or_else(|e| panic!("{e}"))
    }

    /// The counters of the interface `name`.
    ///
    /// # Panics
    /// If there is none.
    #[track_caller]
    pub fn port(&self, name: &str) -> PortSnapshot {
        let snapshot = self.snapshot();
        let found = snapshot.ports.into_iter().find(|p| p.info.name == name);
        found.unwrap_or_else(|| panic!("no interface {name} in the stats segment"))
    }

    /// One counter of interface `name`.
    #[track_caller]
    pub fn count(&self, name: &str, counter: Counter) -> u64 {
        self.port(name).get(counter)
    }

    /// Waits until a counter of interface `name` is `wanted`.
    ///
    /// # Panics
    /// If that does not come about.
    #[track_caller]
    pub fn wait_for_count(&self, name: &str, counter: Counter, wanted: u64) {
        let mut seen = 0;
        let reached = within(PATIENCE, || {
            seen = self.count(name, counter);
            seen == wanted
        });
        assert!(
            reached,
            "{} of {name} is {seen}, not {wanted}; all counters:\n{}",
            counter.name(),
            self.counters()
        );
    }

    /// Every counter that is not zero, as text.
    #[track_caller]
    pub fn counters(&self) -> String {
        let mut text = String::new();
        for port in self.snapshot().ports {
            let shown: Vec<String> = Counter::ALL
                .iter()
                .filter(|&&c| port.get(c) > 0)
                .map(|&c| format!("{}={}", c.name(), port.get(c)))
                .collect();
            text += &format!("{}: {}\n", port.info.name, shown.join(" "));
        }
        text
    }

    /// Mbufs free in the pool at this moment, as `ovs-appctl memory/show` says.
    ///
    /// # Panics
    /// If that says something else.
    #[track_caller]
    pub fn free_mbufs(&self) -> u64 {
        let text = self.appctl("memory/show");
        let word = text
            .split_whitespace()
            .find_map(|word| word.strip_prefix("mbufs-free:"));
        word.and_then(|n| n.parse().ok())
            .unwrap_or_else(|| panic!("no mbufs-free in {text:?}"))
    }

    /// Waits until exactly `wanted` mbufs are free, and stay so for the next look.
    ///
    /// # Panics
    /// If that does not come about.
    #[track_caller]
    pub fn wait_for_free_mbufs(&self, wanted: u64) {
        let mut seen = 0;
        let reached = within(PATIENCE, || {
            seen = self.free_mbufs();
            seen == wanted && self.free_mbufs() == wanted
        });
        assert!(
            reached,
            "{seen} mbufs are free, not {wanted}:\n{}",
            self.counters()
        );
    }

    /// Checks that each frame is accounted for: what came in was dropped with a reason or handed on, and each copy
    /// handed on was sent or dropped with a reason. Call it when no more frames are sent, with all ports ever used
    /// still there; the last ones may be under way.
    ///
    /// # Panics
    /// If the sums do not agree.
    #[track_caller]
    pub fn assert_frames_accounted(&self) {
        self.assert_frames_accounted_in(|_| true);
    }

    /// The same for the bridges that `wanted` likes; frames do not pass from one to another.
    ///
    /// # Panics
    /// If the sums do not agree.
    #[track_caller]
    pub fn assert_frames_accounted_in(&self, wanted: impl Fn(&str) -> bool) {
        let mut fault = None;
        within(PATIENCE, || {
            let mut snapshot = self.snapshot();
            snapshot.ports.retain(|p| wanted(&p.info.bridge));
            fault = imbalance(&snapshot);
            fault.is_none()
        });
        if let Some(fault) = fault {
            panic!("{fault}:\n{}", self.counters());
        }
    }
}

/// What does not add up.
fn imbalance(snapshot: &Snapshot) -> Option<String> {
    let total = |counter: Counter| -> u64 { snapshot.ports.iter().map(|p| p.get(counter)).sum() };
    let dropped = |rx: bool| -> u64 { snapshot.ports.iter().map(|p| p.dropped(rx)).sum() };
    let forwarded = total(Counter::RxPackets).checked_sub(dropped(true));
    let copies = total(Counter::RxCopies);
    let ended = total(Counter::TxPackets) + dropped(false);
    match forwarded {
        None => Some("more frames dropped than came in".into()),
        Some(n) if n > copies => Some(format!("{n} frames forwarded in {copies} copies")),
        Some(n) if n < copies && total(Counter::RxFlooded) + total(Counter::RxMirrored) == 0 => Some(
            format!("{n} frames became {copies} with none flooded or mirrored"),
        ),
        _ if copies != ended => Some(format!("{copies} copies, {ended} sent or dropped")),
        _ => None,
    }
}
