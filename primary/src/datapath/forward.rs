//! The learning bridge, for a burst of frames from one port: classify all, then send.
//!
//! Neighbours in a burst mostly leave by the same port: runs of them are handed on together.

use std::sync::Arc;

use arrayvec::ArrayVec;
use vswitch_common::mbuf::Mbuf;
use vswitch_common::stats::{Counter, PortBlock};

use super::BURST;
use super::classify::{Classified, Classifier, Parsed};
use super::clock::Moment;
use super::ledger::Ledger;
use super::mirror;
use super::output::Output;
use super::port::{Io, Port, PortIndex};
use super::snapshot::{Bridge, Snapshot};
use super::vlan::Egress;

/// Forwards bursts, for one PMD thread.
#[derive(Debug)]
pub struct Forwarder {
    classifier: Classifier,
    out: Output,
}

/// How the frames of one VLAN leave by one port. The next frame often goes the same way.
#[derive(Debug, Clone, Copy)]
struct Way<'s> {
    target: &'s Port,
    vlan: u16,
    egress: Egress,
    /// Frames that came without a tag, in one mbuf, leave as they are.
    as_is: bool,
}

impl Way<'_> {
    /// Does `frame` leave as it is, in a way that takes such frames?
    #[inline]
    fn passes(&self, frame: &Parsed) -> bool {
        frame.target == Some(self.target.index)
            && frame.vlan() == self.vlan
            && frame.is_plain()
            && frame.len() <= self.target.max_frame.any
    }
}

impl Forwarder {
    /// For PMD thread `thread`, which counts in `stats`.
    pub fn new(thread: usize, ledger: Arc<Ledger>, stats: PortBlock) -> Forwarder {
        Forwarder {
            classifier: Classifier::default(),
            out: Output::new(thread, ledger, stats),
        }
    }

    /// Where it counts.
    pub fn stats(&self) -> &PortBlock {
        &self.out.sender.stats
    }

    /// Adapts to the ports of a new snapshot. Nothing is pending between bursts.
    pub fn resize(&mut self, ports: usize) {
        self.out.resize(ports);
    }

    /// Forwards `frames`, which came in by receive queue `queue` of `port`; takes all of them. Returns how many it made of them.
    ///
    /// They leave by the queue of the same number, so that what a guest spreads over its queues stays spread, and
    /// in order.
    pub fn burst(
        &mut self,
        snapshot: &Snapshot,
        port: &Port,
        queue: u16,
        frames: &mut ArrayVec<Mbuf, BURST>,
        now: Moment,
    ) -> u64 {
        let Forwarder { classifier, out } = self;
        out.sender.queue = usize::from(queue);
        let Some(bridge) = snapshot.bridges.get(port.bridge) else {
            drop_all(out, port, frames);
            return 0;
        };
        let index = usize::from(port.index);
        out.count(index, Counter::RxPackets, frames.len() as u64);
        let found = classifier.classify(frames, port, bridge, now);
        out.count(index, Counter::RxBytes, found.bytes);
        out.count(index, Counter::Learned, found.learned);
        let mut copies = 0;
        if !bridge.mirrors.is_empty() {
            copies += mirror::mirror(out, snapshot, bridge, port, frames, found.parsed, found.refused);
        }
        if let Some(target) = whole_way(snapshot, port, &found) {
            copies += frames.len() as u64;
            out.count(index, Counter::RxCopies, copies);
            // Nothing is pending that they could overtake.
            out.sender.send(target, frames, found.bytes as usize, false);
            return copies;
        }
        for &(at, reason) in found.refused.iter().rev() {
            out.drop_frame(frames.remove(at), index, reason);
        }

        let mut parsed = found.parsed;
        let mut frames = frames.drain(..);
        while let [first, rest @ ..] = parsed {
            let way = first
                .target
                .and_then(|target| way_to(snapshot, port, target, first.vlan()));
            if let Some(way) = way.filter(|way| way.as_is && way.passes(first)) {
                let run = 1 + rest.iter().take_while(|next| way.passes(next)).count();
                let bytes = parsed[..run].iter().map(Parsed::len).sum();
                out.add_all(way.target, frames.by_ref().take(run), bytes);
                copies += run as u64;
                parsed = &parsed[run..];
                continue;
            }
            parsed = rest;
            let Some(frame) = frames.next() else { break };
            copies += match way {
                Some(Way { target, .. }) if target.index == port.index => {
                    out.drop_frame(frame, index, Counter::RxDropNoOutput);
                    0
                }
                Some(Way { target, egress, .. }) => {
                    out.output(port, target, frame, first, egress);
                    1
                }
                None => flood(out, snapshot, bridge, port, frame, first, now),
            };
        }
        drop(frames);
        copies += out.take_pieces();
        out.count(index, Counter::RxCopies, copies);
        out.flush(snapshot);
        copies
    }
}

/// The port by which all frames of a burst leave as they are, if they do.
#[inline]
fn whole_way<'s>(snapshot: &'s Snapshot, from: &Port, found: &Classified<'_>) -> Option<&'s Port> {
    let alike = found.alike?;
    let way = way_to(snapshot, from, alike.target, alike.vlan)?;
    (way.as_is && alike.longest <= way.target.max_frame.any).then_some(way.target)
}

/// Drops what came in by a port from which nothing is forwarded.
#[cold]
#[inline(never)]
fn drop_all(out: &mut Output, port: &Port, frames: &mut ArrayVec<Mbuf, BURST>) {
    let index = usize::from(port.index);
    let (count, bytes) = (frames.len(), frames.iter().map(Mbuf::frame_len).sum::<usize>());
    out.count(index, Counter::RxPackets, count as u64);
    out.count(index, Counter::RxBytes, bytes as u64);
    out.count(index, Counter::RxDropNoOutput, count as u64);
    out.sender.ledger.free_all(frames);
}

/// Sends a copy to every other port of the VLAN, the frame itself to the last, unless the port's storm limit is
/// reached. Returns how many.
fn flood(
    out: &mut Output,
    snapshot: &Snapshot,
    bridge: &Bridge,
    port: &Port,
    frame: Mbuf,
    parsed: &Parsed,
    now: Moment,
) -> u64 {
    if port
        .limiter
        .as_ref()
        .is_some_and(|l| !l.admits_to_many(now.ticks))
    {
        out.drop_frame(frame, usize::from(port.index), Counter::RxDropStorm);
        return 0;
    }
    let mut copies = 0;
    let mut last: Option<(&Arc<Port>, Egress)> = None;
    for target in bridge.ports.iter().filter_map(|&i| snapshot.port(i)) {
        let egress = flooded_to(target, port, parsed.vlan());
        if egress == Egress::Absent {
            continue;
        }
        if let Some((previous, egress)) = last.replace((target, egress)) {
            match out.copy_for(previous, &frame) {
                Ok(copy) => out.output(port, previous, copy, parsed, egress),
                Err(reason) => out.count(usize::from(previous.index), reason, 1),
            }
            copies += 1;
        }
    }
    match last {
        Some((target, egress)) => {
            out.count(usize::from(port.index), Counter::RxFlooded, 1);
            out.output(port, target, frame, parsed, egress);
            copies + 1
        }
        None => {
            out.drop_frame(frame, usize::from(port.index), Counter::RxDropNoOutput);
            0
        }
    }
}

/// How a frame of `vlan` that came in by `from` leaves by `target` when it is flooded. Not by a port without a link.
#[inline]
fn flooded_to(target: &Port, from: &Port, vlan: u16) -> Egress {
    if target.index == from.index || matches!(target.io, Io::Down) {
        return Egress::Absent;
    }
    target.vlan.egress(vlan)
}

/// Does a frame that came in by `from` leave by one of the ports that `wanted` likes, as far as its classification says?
pub fn leaves_by(
    snapshot: &Snapshot,
    bridge: &Bridge,
    from: &Port,
    frame: &Parsed,
    wanted: impl Fn(PortIndex) -> bool,
) -> bool {
    let way = frame
        .target
        .and_then(|target| way_to(snapshot, from, target, frame.vlan()));
    match way {
        Some(way) => way.target.index != from.index && wanted(way.target.index),
        None => {
            let mut others = bridge.ports.iter().filter_map(|&i| snapshot.port(i));
            others.any(|target| {
                wanted(target.index) && flooded_to(target, from, frame.vlan()) != Egress::Absent
            })
        }
    }
}

/// How frames of `vlan` that came in by `from` leave by port `target`; `None` where it is not, or no longer, in the bridge
/// or the VLAN: it may have left since an address was learned there.
fn way_to<'s>(snapshot: &'s Snapshot, from: &Port, target: PortIndex, vlan: u16) -> Option<Way<'s>> {
    let target = snapshot.port(target).filter(|t| t.bridge == from.bridge)?;
    let egress = target.vlan.egress(vlan);
    let as_is = egress == Egress::Untagged
        && target.index != from.index
        && match &target.io {
            Io::Client(_) => true,
            // A driver must not see a header that a client may have scribbled over.
            Io::Ethdev(_) => !matches!(from.io, Io::Client(_)),
            Io::Down => false,
        };
    let way = Way {
        target,
        vlan,
        egress,
        as_is,
    };
    // Back where it came from is no way, whatever the VLAN.
    (egress != Egress::Absent || target.index == from.index).then_some(way)
}
