//! Mirrors: copies of what enters or leaves a bridge by some of its ports, for one that somebody watches.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vswitch_common::mbuf::Mbuf;
use vswitch_common::stats::Counter;
use vswitch_common::stats::layout::MAX_PORTS;

use super::classify::{Parsed, Refused};
use super::forward::leaves_by;
use super::output::Output;
use super::parse::{HEADER_LEN, TAG_LEN, Tag};
use super::port::{Io, Port, PortIndex};
use super::snapshot::{Bridge, Snapshot};
use super::vlan::{Egress, VlanSet};

/// A set of ports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PortSet([u64; MAX_PORTS.div_ceil(64)]);

impl PortSet {
    /// Is `port` in it?
    #[inline]
    pub fn contains(&self, port: PortIndex) -> bool {
        let word = self.0.get(usize::from(port / 64));
        word.is_some_and(|word| word & 1 << (port % 64) != 0)
    }
}

impl FromIterator<PortIndex> for PortSet {
    /// Of ports below [`MAX_PORTS`]; others are passed over.
    fn from_iter<T: IntoIterator<Item = PortIndex>>(ports: T) -> PortSet {
        let mut set = PortSet::default();
        for port in ports {
            if let Some(word) = set.0.get_mut(usize::from(port / 64)) {
                *word |= 1 << (port % 64);
            }
        }
        set
    }
}

/// What a mirror has selected so far.
#[derive(Debug, Default)]
pub struct Selected {
    packets: AtomicU64,
    bytes: AtomicU64,
}

impl Selected {
    fn add(&self, bytes: usize) {
        self.packets.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Frames, and their bytes.
    pub fn get(&self) -> (u64, u64) {
        (
            self.packets.load(Ordering::Relaxed),
            self.bytes.load(Ordering::Relaxed),
        )
    }
}

/// A mirror of a bridge.
#[derive(Debug, Clone)]
pub struct Mirror {
    /// Frames that come in by these are selected,
    pub sources: PortSet,
    /// and those that leave by these,
    pub destinations: PortSet,
    /// if they are of one of these VLANs; `None`: of any.
    pub vlans: Option<VlanSet>,
    /// The port that gets them. It does nothing else.
    pub output: PortIndex,
    /// Bytes of a frame that leave at most; its Ethernet header always does.
    pub snaplen: usize,
    pub selected: Arc<Selected>,
}

impl Mirror {
    /// Those of a bridge in the order in which it has to have them: where several have one output, a frame is copied once, at the
    /// greatest length.
    pub fn in_order(mut mirrors: Vec<Mirror>) -> Vec<Mirror> {
        mirrors.sort_by_key(|mirror| (mirror.output, std::cmp::Reverse(mirror.snaplen)));
        mirrors
    }
}

/// Sends copies of `frames`, which came in by `port` and are about to be forwarded as `parsed` and `refused` say, to where the mirrors of
/// `bridge` want them. Returns how many.
#[cold]
#[inline(never)]
pub fn mirror(
    out: &mut Output,
    snapshot: &Snapshot,
    bridge: &Bridge,
    port: &Port,
    frames: &[Mbuf],
    parsed: &[Parsed],
    refused: &Refused,
) -> u64 {
    let mut copies = 0;
    let mut parsed = parsed.iter();
    let mut refused = refused.iter().peekable();
    for (at, frame) in frames.iter().enumerate() {
        match refused.next_if(|(place, _)| *place == at) {
            Some((_, reason)) => {
                if let Some(parsed) = Parsed::of_refused(frame, port, *reason) {
                    copies += copy(out, snapshot, bridge, port, frame, &parsed, false);
                }
            }
            None => {
                let Some(parsed) = parsed.next() else { break };
                copies += copy(out, snapshot, bridge, port, frame, parsed, true);
            }
        }
    }
    copies += out.take_pieces();
    out.count(usize::from(port.index), Counter::RxMirrored, copies);
    out.flush(snapshot);
    copies
}

/// Sends copies of one frame; `leaves`: it is forwarded.
fn copy(
    out: &mut Output,
    snapshot: &Snapshot,
    bridge: &Bridge,
    port: &Port,
    frame: &Mbuf,
    parsed: &Parsed,
    leaves: bool,
) -> u64 {
    let mut copies = 0;
    let mut served = None;
    for mirror in &bridge.mirrors {
        let is_watched = |target| mirror.destinations.contains(target);
        let selects = mirror
            .vlans
            .as_ref()
            .is_none_or(|set| set.contains(parsed.vlan()))
            && (mirror.sources.contains(port.index)
                || leaves && leaves_by(snapshot, bridge, port, parsed, is_watched));
        if !selects {
            continue;
        }
        mirror.selected.add(parsed.len());
        if served.replace(mirror.output) == Some(mirror.output) {
            continue;
        }
        let Some(target) = snapshot.port(mirror.output) else {
            continue;
        };
        copies += 1;
        let egress = target.vlan.mirrored(parsed.vlan());
        let copy = match target.io {
            Io::Down => Err(Counter::TxDropDown),
            _ => {
                let mut len = copied(mirror.snaplen, parsed.tag, egress);
                // What is left of a large frame can't be cut into segments: it is one of them at most.
                if frame.is_large() && len < parsed.len() {
                    len = len.min(target.max_frame.tagged - TAG_LEN);
                }
                out.copy_front_for(target, frame, len)
            }
        };
        match copy {
            Ok(copy) => {
                let parsed = parsed.cut_to(&copy);
                out.output(port, target, copy, &parsed, egress);
            }
            Err(reason) => out.count(usize::from(target.index), reason, 1),
        }
    }
    copies
}

/// How many bytes of a frame have to be copied so that `snaplen` leave, with a tag or without: its header always.
fn copied(snaplen: usize, tag: Option<Tag>, egress: Egress) -> usize {
    let len = match (tag, egress) {
        (None, Egress::Tagged) => snaplen.saturating_sub(TAG_LEN),
        (Some(_), Egress::Untagged) => snaplen.saturating_add(TAG_LEN),
        _ => snaplen,
    };
    len.max(HEADER_LEN + TAG_LEN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_what_was_put_in() {
        let set: PortSet = [0, 63, 64, 511, 512, u16::MAX].into_iter().collect();
        let held: Vec<PortIndex> = (0..=u16::MAX).filter(|&port| set.contains(port)).collect();
        assert_eq!(held, [0, 63, 64, 511]);
    }

    #[test]
    fn mirrors_of_one_output_are_neighbours() {
        let mirror = |output, snaplen| Mirror {
            sources: PortSet::default(),
            destinations: PortSet::default(),
            vlans: None,
            output,
            snaplen,
            selected: Arc::default(),
        };
        let ordered = Mirror::in_order(vec![mirror(2, 9), mirror(1, 5), mirror(2, 70), mirror(1, 60)]);
        let ordered: Vec<_> = ordered.iter().map(|m| (m.output, m.snaplen)).collect();
        assert_eq!(ordered, [(1, 60), (1, 5), (2, 70), (2, 9)]);
    }
}
