//! The learning bridge, for a burst of frames from one port: parse all, look all up, then send.
//!
//! The loop is split so that each step's cache misses overlap: headers are prefetched while the burst is taken in,
//! table buckets between parsing and looking up. Frames that leave by the same port leave together.

use std::sync::Arc;

use arrayvec::ArrayVec;
use vswitch_common::ethdev::{Ethdev, Offloads};
use vswitch_common::mbuf::Mbuf;
use vswitch_common::stats::{Counter, PortBlock};

use super::BURST;
use super::chain::Released;
use super::clock::Moment;
use super::gso;
use super::ledger::Ledger;
use super::mac_table::{Key, Source};
use super::offload;
use super::parse::{self, Tag};
use super::port::{Io, Port, PortIndex};
use super::snapshot::{Bridge, Snapshot};
use super::vlan::Egress;

/// Frames on their way out by one port.
type Batch = ArrayVec<Mbuf, BURST>;

/// Forwards bursts, for one PMD thread.
#[derive(Debug)]
pub struct Forwarder {
    thread: usize,
    /// The receive queue that the present burst came in by.
    queue: usize,
    ledger: Arc<Ledger>,
    stats: PortBlock,
    /// Per port, what leaves by it.
    batches: Vec<Batch>,
    /// Ports with something in their batch.
    pending: Vec<PortIndex>,
    /// Of the batch that is being sent: which frames are chains, and their later segments.
    chains: Vec<(usize, Released)>,
}

/// A parsed frame of the burst.
#[derive(Debug, Clone, Copy)]
struct Parsed {
    source: Key,
    destination: Key,
    vlan: u16,
    tag: Option<Tag>,
    flood: bool,
}

impl Forwarder {
    /// For PMD thread `thread`, which counts in `stats`.
    pub fn new(thread: usize, ledger: Arc<Ledger>, stats: PortBlock) -> Forwarder {
        Forwarder {
            thread,
            queue: 0,
            ledger,
            stats,
            batches: Vec::new(),
            pending: Vec::new(),
            chains: Vec::new(),
        }
    }

    /// Where it counts.
    pub fn stats(&self) -> &PortBlock {
        &self.stats
    }

    /// Adapts to the ports of a new snapshot. Nothing is pending between bursts.
    pub fn resize(&mut self, ports: usize) {
        self.batches.resize_with(ports, Batch::new);
    }

    /// Forwards `frames`, which came in by receive queue `queue` of `port`; takes all of them.
    ///
    /// They leave by the queue of the same number, so that what a guest spreads over its queues stays spread, and
    /// in order.
    pub fn burst(&mut self, snapshot: &Snapshot, port: &Port, queue: u16, frames: &mut Batch, now: Moment) {
        self.queue = usize::from(queue);
        let Some(bridge) = snapshot.bridges.get(port.bridge) else {
            self.ledger.free_all(frames);
            return;
        };
        let index = usize::from(port.index);
        let mut bytes = 0;
        let received = frames.len() as u64;
        let mut accepted: ArrayVec<(Mbuf, Parsed), BURST> = ArrayVec::new();
        for frame in frames.drain(..) {
            bytes += frame.frame_len() as u64;
            if let Some(limiter) = &port.limiter
                && !limiter.admits(frame.frame_len().saturating_sub(parse::HEADER_LEN), now.ticks)
            {
                self.drop_frame(frame, index, Counter::RxDropPolicing);
                continue;
            }
            match classify(frame.data(), port, bridge) {
                Ok(parsed) => {
                    bridge.table.prefetch(parsed.source);
                    if !parsed.flood {
                        bridge.table.prefetch(parsed.destination);
                    }
                    accepted.push((frame, parsed));
                }
                Err(reason) => self.drop_frame(frame, index, reason),
            }
        }
        self.stats.add(index, Counter::RxPackets, received);
        self.stats.add(index, Counter::RxBytes, bytes);

        let mut copies = 0;
        for (frame, parsed) in accepted {
            if bridge.table.check_source(parsed.source, port.index, now.seconds) == Source::Learn
                && bridge.table.learn(parsed.source, port.index, now.seconds)
            {
                self.stats.add(index, Counter::Learned, 1);
            }
            let known = if parsed.flood {
                None
            } else {
                bridge.table.lookup(parsed.destination, now.seconds)
            };
            let target = known
                .and_then(|i| snapshot.port(i))
                .filter(|t| t.bridge == port.bridge);
            copies += match target {
                Some(target) if target.index == port.index => {
                    self.drop_frame(frame, index, Counter::RxDropNoOutput);
                    0
                }
                Some(target) => match target.vlan.egress(parsed.vlan) {
                    // The port has left the VLAN since it was learned there.
                    Egress::Absent => self.flood(snapshot, bridge, port, frame, &parsed, now),
                    egress => {
                        self.output(port, target, frame, parsed.tag, parsed.vlan, egress);
                        1
                    }
                },
                None => self.flood(snapshot, bridge, port, frame, &parsed, now),
            };
        }
        self.stats.add(index, Counter::RxCopies, copies);
        self.flush(snapshot);
    }

    /// Sends a copy to every other port of the VLAN, the frame itself to the last, unless the port's storm limit is
    /// reached. Returns how many.
    fn flood(
        &mut self,
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
            self.drop_frame(frame, usize::from(port.index), Counter::RxDropStorm);
            return 0;
        }
        let mut copies = 0;
        let mut last: Option<(&Arc<Port>, Egress)> = None;
        for target in bridge.ports.iter().filter_map(|&i| snapshot.port(i)) {
            // A port without a link takes no part in flooding.
            if target.index == port.index || matches!(target.io, Io::Down) {
                continue;
            }
            let egress = target.vlan.egress(parsed.vlan);
            if egress == Egress::Absent {
                continue;
            }
            if let Some((previous, egress)) = last.replace((target, egress)) {
                match self.copy_for(previous, &frame) {
                    Ok(copy) => self.output(port, previous, copy, parsed.tag, parsed.vlan, egress),
                    Err(reason) => self.stats.add(usize::from(previous.index), reason, 1),
                }
                copies += 1;
            }
        }
        match last {
            Some((target, egress)) => {
                self.stats.add(usize::from(port.index), Counter::RxFlooded, 1);
                self.output(port, target, frame, parsed.tag, parsed.vlan, egress);
                copies + 1
            }
            None => {
                self.drop_frame(frame, usize::from(port.index), Counter::RxDropNoOutput);
                0
            }
        }
    }

    /// Puts `frame` into the batch of `target`, tagged as it leaves there.
    #[inline]
    fn output(
        &mut self,
        from: &Port,
        target: &Port,
        mut frame: Mbuf,
        tag: Option<Tag>,
        vlan: u16,
        egress: Egress,
    ) {
        let index = usize::from(target.index);
        let inserts_tag = match &target.io {
            Io::Ethdev(io) => offload::inserts_tag(io.device.offloads(), tag, egress),
            _ => false,
        };
        if !inserts_tag && !retag(&mut frame, tag, vlan, egress) {
            return self.drop_frame(frame, index, Counter::TxDropHeadroom);
        }
        if !gso::fits(&frame, target.max_frame) {
            return self.drop_frame(frame, index, Counter::TxDropTooLong);
        }
        let tag = inserts_tag.then_some(vlan);
        match &target.io {
            Io::Down => self.drop_frame(frame, index, Counter::TxDropDown),
            Io::Client(_) => self.put(target, frame),
            Io::Ethdev(io) => {
                let offloads = io.device.offloads();
                if frame.is_large() {
                    if !offload::leave_to_nic(&mut frame, offloads) {
                        return self.cut(from, target, frame, offloads, tag);
                    }
                } else if matches!(from.io, Io::Client(_)) {
                    offload::ready_for_driver(&mut frame, &self.ledger, offloads);
                }
                self.output_to_device(target, frame, offloads, tag);
            }
        }
    }

    /// Puts `frame`, which is fit for its driver, into the batch of the device `target`, to get `tag` there if one is named.
    #[inline]
    fn output_to_device(&mut self, target: &Port, mut frame: Mbuf, offloads: &Offloads, tag: Option<u16>) {
        if frame.segment_count() > 1 && !offloads.tx_chains {
            match self.ledger.flatten(frame) {
                Some(flat) => frame = flat,
                None => return self.stats.add(target.index.into(), Counter::TxDropTooLong, 1),
            }
        }
        if let Some(tci) = tag {
            frame.request_tag(tci);
        }
        self.put(target, frame);
    }

    /// Cuts a large frame for the device `target`. Its segments count as so many copies.
    #[cold]
    fn cut(&mut self, from: &Port, target: &Port, frame: Mbuf, offloads: &Offloads, tag: Option<u16>) {
        let ledger = Arc::clone(&self.ledger);
        let index = usize::from(target.index);
        let count = gso::cut(&ledger, frame, |segment| match segment {
            Some(mut segment) => {
                offload::ready_for_driver(&mut segment, &ledger, offloads);
                self.output_to_device(target, segment, offloads, tag);
            }
            None => self.stats.add(index, Counter::TxDropNoBuffer, 1),
        });
        match count {
            0 => self.stats.add(index, Counter::TxDropTooLong, 1),
            n => self.stats.add(from.index.into(), Counter::RxCopies, n as u64 - 1),
        }
    }

    #[inline]
    fn put(&mut self, target: &Port, frame: Mbuf) {
        let index = usize::from(target.index);
        let batch = &mut self.batches[index];
        if batch.is_empty() {
            self.pending.push(target.index);
        }
        batch.push(frame);
        if batch.is_full() {
            self.send(target);
        }
    }

    /// A copy of `frame` for `target`, or why there is none: what its ring has no room for need not be copied.
    fn copy_for(&self, target: &Port, frame: &Mbuf) -> Result<Mbuf, Counter> {
        if let Io::Client(session) = &target.io
            && let Some(room) = session.queue(self.queue).scarce_room()
            && self.batches[usize::from(target.index)].len() >= room.frames
        {
            return Err(full(room.over_quota));
        }
        self.ledger.copy(frame).ok_or(Counter::TxDropNoBuffer)
    }

    #[cold]
    fn drop_frame(&mut self, frame: Mbuf, index: usize, reason: Counter) {
        self.stats.add(index, reason, 1);
        self.ledger.free(frame);
    }

    /// Sends all that is pending.
    fn flush(&mut self, snapshot: &Snapshot) {
        while let Some(index) = self.pending.pop() {
            // The index came from this very snapshot.
            if let Some(port) = snapshot.port(index).cloned() {
                self.send(&port);
            }
        }
    }

    fn send(&mut self, port: &Port) {
        let index = usize::from(port.index);
        let batch = &mut self.batches[index];
        let total = batch.len();
        let (sent, bytes, reason) = match &port.io {
            Io::Client(session) => {
                let sent = session.queue(self.queue).send(&self.ledger, batch);
                (sent.frames, sent.bytes, full(sent.over_quota))
            }
            Io::Ethdev(io) => {
                let (queue, lock) = io.tx_queue(self.thread);
                if batch.iter().any(|frame| frame.segment_count() > 1) {
                    release_chains(&self.ledger, &io.device, queue, batch, &mut self.chains);
                }
                let lengths: ArrayVec<u64, BURST> = batch.iter().map(|f| f.frame_len() as u64).collect();
                {
                    let _sending = lock.lock();
                    io.device.send(queue, batch);
                }
                let sent = lengths.len() - batch.len();
                let refused = self.chains.drain(..).filter(|(i, _)| *i >= sent);
                refused.for_each(|(_, rest)| self.ledger.free_refused(&rest));
                self.ledger.free_singles(batch);
                (sent, lengths[..sent].iter().sum(), Counter::TxDropFull)
            }
            Io::Down => {
                self.ledger.free_all(batch);
                (0, 0, Counter::TxDropDown)
            }
        };
        self.stats.add(index, Counter::TxPackets, sent as u64);
        self.stats.add(index, Counter::TxBytes, bytes);
        if sent < total {
            self.stats.add(index, reason, (total - sent) as u64);
        }
    }
}

/// Makes the chains of a batch fit for `device`, and takes those out that it can't send.
#[cold]
fn release_chains(
    ledger: &Ledger,
    device: &Ethdev,
    queue: u16,
    batch: &mut Batch,
    chains: &mut Vec<(usize, Released)>,
) {
    let mut index = 0;
    while let Some(frame) = batch.get_mut(index) {
        if frame.segment_count() > 1 {
            let rest = ledger.release_chain(frame);
            if !device.prepare(queue, frame) {
                ledger.free_refused(&rest);
                ledger.free_singles(&mut ArrayVec::from([batch.remove(index)]));
                continue;
            }
            chains.push((index, rest));
        }
        index += 1;
    }
}

/// Why a client does not get a frame.
fn full(over_quota: bool) -> Counter {
    if over_quota {
        Counter::TxDropQuota
    } else {
        Counter::TxDropFull
    }
}

/// Decides whether the bridge takes the frame, and what it needs to forward it.
#[inline]
fn classify(bytes: &[u8], port: &Port, bridge: &Bridge) -> Result<Parsed, Counter> {
    let header = parse::parse(bytes).map_err(|_| Counter::RxDropMalformed)?;
    if !header.source.is_station() {
        return Err(Counter::RxDropSource);
    }
    if header.destination.is_reserved() && !bridge.forward_reserved {
        return Err(Counter::RxDropReserved);
    }
    let vlan = port.vlan.ingress(header.tag).ok_or(Counter::RxDropVlan)?;
    Ok(Parsed {
        source: Key::new(vlan, header.source),
        destination: Key::new(vlan, header.destination),
        vlan,
        tag: header.tag,
        flood: header.destination.is_group(),
    })
}

/// Gives the frame the tag, or none, with which it leaves. False: there is no room in front of it.
#[inline]
fn retag(frame: &mut Mbuf, tag: Option<Tag>, vlan: u16, egress: Egress) -> bool {
    match (tag, egress) {
        (None, Egress::Tagged) => push_tag(frame, Tag(vlan)),
        (Some(_), Egress::Untagged) => pop_tag(frame),
        (Some(tag), Egress::Tagged) if tag.vid() != vlan => {
            if let Some(tci) = frame.data_mut().get_mut(parse::HEADER_LEN..parse::HEADER_LEN + 2) {
                tci.copy_from_slice(&tag.with_vid(vlan).0.to_be_bytes());
            }
            true
        }
        _ => true,
    }
}

/// Bytes of the two addresses, which stay in front of a tag.
const ADDRESSES: usize = 12;

fn push_tag(frame: &mut Mbuf, tag: Tag) -> bool {
    if !frame.extend_front(parse::TAG_LEN) {
        return false;
    }
    // The length may change under us, if a client still writes into what it has handed over: no index is certain.
    let Some(head) = frame
        .data_mut()
        .first_chunk_mut::<{ ADDRESSES + parse::TAG_LEN }>()
    else {
        return false;
    };
    head.copy_within(parse::TAG_LEN.., 0);
    let [high, low] = tag.0.to_be_bytes();
    head[ADDRESSES..].copy_from_slice(&[0x81, 0, high, low]);
    frame.shift_offloads(parse::TAG_LEN as i16);
    true
}

fn pop_tag(frame: &mut Mbuf) -> bool {
    let Some(head) = frame
        .data_mut()
        .first_chunk_mut::<{ ADDRESSES + parse::TAG_LEN }>()
    else {
        return false;
    };
    head.copy_within(..ADDRESSES, parse::TAG_LEN);
    if !frame.trim_front(parse::TAG_LEN) {
        return false;
    }
    frame.shift_offloads(-(parse::TAG_LEN as i16));
    true
}
