//! What the log says of frames that are dropped: the cause, once for as long as it lasts.

use std::collections::HashMap;

use vswitch_common::stats::Counter;

use crate::datapath::port::PortIndex;

/// Causes worth a line, and what it says behind the port's name.
const CAUSES: &[(Counter, &str)] = &[
    (
        Counter::TxDropFull,
        "does not take its frames as fast as they come; what its ring has no room for is dropped",
    ),
    (
        Counter::TxDropQuota,
        "keeps all the buffers that it may have; frames for it are dropped",
    ),
    (
        Counter::TxDropNoBuffer,
        "gets no copies of flooded frames: the pool is empty; raise other_config:dpdk-socket-mem and start the \
         switch again",
    ),
    (
        Counter::RxDropStorm,
        "floods more than its storm-limit lets in; the rest is dropped",
    ),
    (
        Counter::RxDropPolicing,
        "sends more than its ingress policing lets in; the rest is dropped",
    ),
];

/// Looks, one a second, without a drop after which a cause is over and its return is worth another line.
const OVER: u32 = 60;

/// What has been said.
#[derive(Debug, Default)]
pub struct Overload {
    lasting: HashMap<(PortIndex, Counter), Lasting>,
}

#[derive(Debug, Clone, Copy)]
struct Lasting {
    total: u64,
    quiet: u32,
    said: bool,
}

impl Overload {
    /// A look at port `index`, once a second: what to say of it now, with the drops since the last look.
    pub fn look(&mut self, index: PortIndex, total: impl Fn(Counter) -> u64) -> Vec<(&'static str, u64)> {
        let mut lines = Vec::new();
        for &(counter, text) in CAUSES {
            let now = total(counter);
            let seen = self.lasting.entry((index, counter)).or_insert(Lasting {
                total: 0,
                quiet: 0,
                said: false,
            });
            // The port's counters begin anew with a new port.
            let new = now.checked_sub(seen.total).unwrap_or(now);
            seen.total = now;
            if new > 0 {
                seen.quiet = 0;
                if !std::mem::replace(&mut seen.said, true) {
                    lines.push((text, new));
                }
            } else {
                seen.quiet = seen.quiet.saturating_add(1);
                seen.said &= seen.quiet < OVER;
            }
        }
        lines
    }

    /// Port `index` is gone; another may get the index.
    pub fn forget(&mut self, index: PortIndex) {
        self.lasting.retain(|&(port, _), _| port != index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_named_once_while_it_lasts() {
        let mut overload = Overload::default();
        let mut look = |port, n| {
            overload
                .look(port, |c| if c == Counter::TxDropFull { n } else { 0 })
                .iter()
                .map(|l| l.1)
                .collect::<Vec<_>>()
        };
        assert!(look(1, 0).is_empty());
        assert_eq!(look(1, 5), [5]);
        assert_eq!(look(2, 7), [7], "each port for itself");
        assert!((6..100).all(|n| look(1, n).is_empty()));
        assert!((1..OVER).all(|_| look(1, 99).is_empty()));
        assert!(look(1, 100).is_empty(), "a pause shorter than that is none");
        assert!((0..OVER).all(|_| look(1, 100).is_empty()));
        assert_eq!(look(1, 103), [3]);
        overload.forget(1);
        let all = overload.look(1, |_| 2);
        assert_eq!(all.len(), CAUSES.len());
        let text = "raise other_config:dpdk-socket-mem and start the switch again";
        assert!(all.iter().any(|(said, _)| said.ends_with(text)), "{all:?}");
    }
}
