//! Frames on their way out: tagged as they leave, gathered for each port, sent together.

use std::sync::Arc;

use arrayvec::ArrayVec;
use vswitch_common::ethdev::{Ethdev, Offloads};
use vswitch_common::mbuf::Mbuf;
use vswitch_common::mempool::Pool;
use vswitch_common::stats::{Counter, PortBlock};

use super::BURST;
use super::chain::Released;
use super::classify::Parsed;
use super::client_port::Sent;
use super::gso;
use super::ledger::Ledger;
use super::offload;
use super::parse::{self, Tag};
use super::port::{Io, Port, PortIndex};
use super::snapshot::Snapshot;
use super::vlan::Egress;

/// May a frame of `len` bytes, which are more than any may have that leaves by `target`, leave by it all the same?
#[cold]
fn fits(frame: &Mbuf, len: usize, target: &Port) -> bool {
    let tagged = frame.data().get(ADDRESSES..ADDRESSES + 2) == Some(&[0x81, 0]);
    let most = if tagged {
        target.max_frame.tagged
    } else {
        target.max_frame.any
    };
    len <= most || gso::segments_fit(frame, most)
}

/// Frames on their way out by one port.
#[derive(Debug, Default)]
struct Batch {
    frames: ArrayVec<Mbuf, BURST>,
    /// Bytes of all of them.
    bytes: usize,
    /// There are chains among them.
    chains: bool,
}

/// The sending half of a PMD thread's forwarding.
#[derive(Debug)]
pub struct Output {
    pub sender: Sender,
    /// Per port, what leaves by it.
    batches: Vec<Batch>,
    /// Ports with something in their batch.
    pending: Vec<PortIndex>,
    /// What large frames were cut into, beyond one for each.
    pieces: u64,
}

/// Hands frames over to clients and drivers, and counts them.
#[derive(Debug)]
pub struct Sender {
    thread: usize,
    /// The receive queue that the present burst came in by: frames leave by the queue of the same number.
    pub queue: usize,
    pub ledger: Arc<Ledger>,
    pub stats: PortBlock,
    /// Of the frames that are being sent: which are chains, and their later segments.
    chains: Vec<(usize, Released)>,
}

impl Output {
    /// For PMD thread `thread`, which counts in `stats`.
    pub fn new(thread: usize, ledger: Arc<Ledger>, stats: PortBlock) -> Output {
        Output {
            sender: Sender {
                thread,
                queue: 0,
                ledger,
                stats,
                chains: Vec::new(),
            },
            batches: Vec::new(),
            pending: Vec::new(),
            pieces: 0,
        }
    }

    /// What large frames were cut into since the last call, beyond one for each.
    pub fn take_pieces(&mut self) -> u64 {
        std::mem::take(&mut self.pieces)
    }

    /// Adapts to the ports of a new snapshot. Nothing is pending between bursts.
    pub fn resize(&mut self, ports: usize) {
        self.batches.resize_with(ports, Batch::default);
    }

    /// Puts `frame` into the batch of `target`, tagged as it leaves there.
    pub fn output(&mut self, from: &Port, target: &Port, mut frame: Mbuf, parsed: &Parsed, egress: Egress) {
        let index = usize::from(target.index);
        let (tag, vlan) = (parsed.tag, parsed.vlan());
        let mut len = parsed.len();
        let mut inserts_tag = false;
        if tag.is_some() || egress == Egress::Tagged {
            inserts_tag = match &target.io {
                Io::Ethdev(io) => offload::inserts_tag(io.device.offloads(), tag, egress),
                _ => false,
            };
            if !inserts_tag && !retag(&mut frame, tag, vlan, egress) {
                return self.drop_frame(frame, index, Counter::TxDropHeadroom);
            }
            len = frame.frame_len();
        }
        if len > target.max_frame.any && !fits(&frame, len, target) {
            return self.drop_frame(frame, index, Counter::TxDropTooLong);
        }
        let tag = inserts_tag.then_some(vlan);
        match &target.io {
            Io::Down => self.drop_frame(frame, index, Counter::TxDropDown),
            Io::Client(_) => self.add(target, frame, len, parsed.chain),
            Io::Ethdev(io) => {
                let offloads = io.device.offloads();
                if frame.is_large() {
                    if !offload::leave_to_nic(&mut frame, offloads) {
                        return self.cut(target, frame, offloads, tag);
                    }
                } else if matches!(from.io, Io::Client(_)) {
                    offload::ready_for_driver(&mut frame, &self.sender.ledger, offloads);
                }
                self.output_to_device(target, frame, offloads, tag);
            }
        }
    }

    /// Puts `frame`, which is fit for its driver, into the batch of the device `target`, to get `tag` there if one is named.
    fn output_to_device(&mut self, target: &Port, mut frame: Mbuf, offloads: &Offloads, tag: Option<u16>) {
        let chain = frame.segment_count() > 1;
        if chain && !offloads.tx_chains {
            match self.sender.ledger.flatten(frame) {
                Some(flat) => frame = flat,
                None => {
                    return self.count(target.index.into(), Counter::TxDropTooLong, 1);
                }
            }
        }
        if let Some(tci) = tag {
            frame.request_tag(tci);
        }
        let len = frame.frame_len();
        self.add(target, frame, len, chain);
    }

    /// Cuts a large frame for the device `target`.
    #[cold]
    fn cut(&mut self, target: &Port, frame: Mbuf, offloads: &Offloads, tag: Option<u16>) {
        let ledger = Arc::clone(&self.sender.ledger);
        let index = usize::from(target.index);
        let count = gso::cut(&ledger, frame, |segment| match segment {
            Some(mut segment) => {
                offload::ready_for_driver(&mut segment, &ledger, offloads);
                self.output_to_device(target, segment, offloads, tag);
            }
            None => self.count(index, Counter::TxDropNoBuffer, 1),
        });
        match count {
            0 => self.count(index, Counter::TxDropTooLong, 1),
            n => self.pieces += n as u64 - 1,
        }
    }

    /// The batch of `target`, for something to be put into it.
    #[inline]
    fn batch(&mut self, target: &Port) -> &mut Batch {
        let batch = &mut self.batches[usize::from(target.index)];
        if batch.frames.is_empty() {
            self.pending.push(target.index);
        }
        batch
    }

    /// Puts `frame`, of `len` bytes, into the batch of `target`.
    fn add(&mut self, target: &Port, frame: Mbuf, len: usize, chain: bool) {
        let batch = self.batch(target);
        batch.frames.push(frame);
        batch.bytes += len;
        batch.chains |= chain;
        if batch.frames.is_full() {
            self.send(target);
        }
    }

    /// Puts `frames`, of `bytes` in all and no more than a burst, into the batch of `target` as they are.
    #[inline]
    pub fn add_all(&mut self, target: &Port, frames: impl ExactSizeIterator<Item = Mbuf>, bytes: usize) {
        let batch = &self.batches[usize::from(target.index)];
        if batch.frames.remaining_capacity() < frames.len() {
            self.send(target);
        }
        let batch = self.batch(target);
        batch.frames.extend(frames);
        batch.bytes += bytes;
    }

    /// A copy of `frame` for `target`, or why there is none: what its ring has no room for need not be copied.
    #[inline]
    pub fn copy_for(&self, target: &Port, frame: &Mbuf) -> Result<Mbuf, Counter> {
        self.copy_by(target, frame, |ledger, pool| ledger.copy(frame, pool))
    }

    /// The same of the frame's first `len` bytes.
    #[cold]
    pub fn copy_front_for(&self, target: &Port, frame: &Mbuf, len: usize) -> Result<Mbuf, Counter> {
        if frame.frame_len() <= len {
            return self.copy_for(target, frame);
        }
        self.copy_by(target, frame, |ledger, pool| ledger.copy_front(frame, pool, len))
    }

    #[inline(always)]
    fn copy_by(
        &self,
        target: &Port,
        frame: &Mbuf,
        copy: impl FnOnce(&Ledger, Pool) -> Option<Mbuf>,
    ) -> Result<Mbuf, Counter> {
        let ledger = &self.sender.ledger;
        let Io::Client(session) = &target.io else {
            return copy(ledger, ledger.pool_of(frame)).ok_or(Counter::TxDropNoBuffer);
        };
        if let Some(room) = session.queue(self.sender.queue).scarce_room()
            && self.batches[usize::from(target.index)].frames.len() >= room.frames
        {
            return Err(full(room.over_quota));
        }
        copy(ledger, session.pool()).ok_or(Counter::TxDropNoBuffer)
    }

    /// Adds `n` to `counter` of port `index`.
    #[inline]
    pub fn count(&self, index: usize, counter: Counter, n: u64) {
        self.sender.stats.add(index, counter, n);
    }

    /// Frees `frame` and counts that at port `index`.
    #[cold]
    pub fn drop_frame(&mut self, frame: Mbuf, index: usize, reason: Counter) {
        self.count(index, reason, 1);
        self.sender.ledger.free(frame);
    }

    /// Sends all that is pending.
    pub fn flush(&mut self, snapshot: &Snapshot) {
        while let Some(index) = self.pending.pop() {
            // The index came from this very snapshot.
            if let Some(port) = snapshot.port(index) {
                self.send(port);
            }
        }
    }

    /// Sends the batch of `port`.
    fn send(&mut self, port: &Port) {
        let Batch {
            frames,
            bytes,
            chains,
        } = &mut self.batches[usize::from(port.index)];
        // If not, it was full, and is gone already.
        if !frames.is_empty() {
            self.sender
                .send(port, frames, std::mem::take(bytes), std::mem::take(chains));
        }
    }
}

impl Sender {
    /// Sends `frames`, of `bytes` in all, by `port`; takes all of them. `chains`: there are chains among them.
    pub fn send(&mut self, port: &Port, frames: &mut ArrayVec<Mbuf, BURST>, mut bytes: usize, chains: bool) {
        let index = usize::from(port.index);
        let total = frames.len();
        let (sent, reason) = match &port.io {
            Io::Client(session) => {
                let sent = session.queue(self.queue).send(&self.ledger, frames, chains);
                (sent, full(sent.over_quota))
            }
            Io::Ethdev(io) => {
                let (queue, lock) = io.tx_queue(self.thread);
                let mut unfit_bytes = 0;
                if chains && io.device.offloads().tx_chains {
                    unfit_bytes = release_chains(&self.ledger, &io.device, queue, frames, &mut self.chains);
                }
                let offered = frames.len();
                {
                    let _sending = lock.lock();
                    io.device.send(queue, frames);
                }
                let taken = offered - frames.len();
                let refused = self.chains.drain(..).filter(|(i, _)| *i >= taken);
                refused.for_each(|(_, rest)| self.ledger.free_refused(&rest));
                let mut sent = Sent::all_but(frames, total);
                sent.frames = taken;
                sent.left_bytes += unfit_bytes;
                // Nothing is linked to them any more.
                self.ledger.free_singles(frames);
                (sent, Counter::TxDropFull)
            }
            Io::Down => (Sent::all_but(frames, total), Counter::TxDropDown),
        };
        // Whatever is left was not sent.
        bytes -= sent.left_bytes.min(bytes);
        self.ledger.free_all(frames);
        self.stats.add(index, Counter::TxPackets, sent.frames as u64);
        self.stats.add(index, Counter::TxBytes, bytes as u64);
        self.stats.thread().sent(sent.frames as u64);
        if sent.frames < total {
            self.stats.add(index, reason, (total - sent.frames) as u64);
        }
    }
}

/// Makes the chains of a batch fit for `device`, and takes those out that it can't send; says of how many bytes.
#[cold]
fn release_chains<const N: usize>(
    ledger: &Ledger,
    device: &Ethdev,
    queue: u16,
    batch: &mut ArrayVec<Mbuf, N>,
    chains: &mut Vec<(usize, Released)>,
) -> usize {
    let (mut index, mut unfit_bytes) = (0, 0);
    while let Some(frame) = batch.get_mut(index) {
        if frame.segment_count() > 1 {
            let rest = ledger.release_chain(frame);
            if !device.prepare(queue, frame) {
                unfit_bytes += frame.frame_len();
                ledger.free_refused(&rest);
                ledger.free_singles(&mut ArrayVec::from([batch.remove(index)]));
                continue;
            }
            chains.push((index, rest));
        }
        index += 1;
    }
    unfit_bytes
}

/// Why a client does not get a frame.
fn full(over_quota: bool) -> Counter {
    if over_quota {
        Counter::TxDropQuota
    } else {
        Counter::TxDropFull
    }
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
