//! From the switch to the guest's receive virtqueue.
//!
//! While the guest has no buffers, frames stay in the switch's ring: that is the queue, and the switch counts what
//! it can't put there. A frame is spread over several chains where mergeable buffers were negotiated (virtio 1.2
//! §5.1.6.4), else it has to fit one.

use arrayvec::ArrayVec;
use vswitch_common::mbuf::{Checksum, Mbuf, prefetch_ahead};

use super::seat::{Seat, count};
use super::{Lane, Standing, cut};
use crate::csum;
use crate::guest_memory::{DirtyLog, Span};
use crate::net_header::{self, Features, HEADER_MAX};
use crate::port::SwitchPort;
use crate::virtqueue::{Access, BATCH, Chains, Fault, Virtqueue};

/// Moves a batch.
#[inline]
pub(super) fn step<Q: Virtqueue, P: SwitchPort>(lane: &mut Lane<Q>, seat: &mut Seat<P>) -> Standing {
    if seat.inbox.is_empty() {
        seat.port.receive(&mut seat.inbox);
        if seat.inbox.is_empty() {
            return Standing::Idle;
        }
    }
    let given = match give(lane, seat) {
        Ok(given) => given,
        Err(fault) => {
            count(&seat.port.stats().broken_virtqueues, 1);
            lane.break_down(fault);
            return Standing::Busy;
        }
    };
    if !given.any {
        return Standing::AwaitsGuest;
    }
    if lane.interrupt() {
        count(&seat.port.stats().calls, 1);
    }
    seat.release(given.frames);
    Standing::Busy
}

/// What the guest was given.
struct Given {
    /// Frames of the inbox that are done with.
    frames: usize,
    /// Those, or a part of the next one.
    any: bool,
}

/// Copies as many frames of the inbox as there is room for.
#[inline]
fn give<Q: Virtqueue, P: SwitchPort>(lane: &mut Lane<Q>, seat: &mut Seat<P>) -> Result<Given, Fault> {
    let Lane {
        queue,
        memory,
        features,
        log,
        ..
    } = lane;
    let mut chains = Chains::new();
    queue.take(memory, Access::Write, BATCH, &mut chains)?;
    let room = Room {
        chains: &chains,
        features: *features,
        most: usize::from(queue.size()).min(BATCH),
        log: log.as_deref(),
        plain: log.is_none() && features.header_len() == HEADER_MAX,
    };
    let mut written = ArrayVec::<u32, BATCH>::new();
    let (mut delivered, mut too_long, mut large) = (0, 0, 0);
    for frame in &mut seat.inbox {
        if deliver_plain(frame, &room, &mut written) {
            delivered += 1;
            continue;
        }
        match deliver_any(frame, &room, &mut seat.cut, &mut large, &mut written) {
            Fit::Chains(_) => delivered += 1,
            Fit::Never => too_long += 1,
            Fit::NotYet => break,
        }
    }
    // The chains are too small for the next frame, and what follows them is none: that frame would wait for ever.
    if delivered + too_long == 0
        && written.is_empty()
        && let Some(fault) = chains.fault()
    {
        return Err(fault);
    }
    queue.complete(&written);
    seat.copied += written.iter().sum::<u32>() as usize;
    let stats = seat.port.stats();
    count(&stats.rx_frames, delivered);
    count(&stats.rx_large, large);
    count(&stats.rx_too_long, too_long);
    let frames = delivered + too_long;
    Ok(Given {
        frames,
        any: frames > 0 || !written.is_empty(),
    })
}

/// Copies any other frame into the next chains, if there is room. `cut` is its seat's; large ones that go whole add to `large`.
// A function of its own, so that the loop over frames as nearly all are keeps its registers.
#[inline(never)]
fn deliver_any(
    frame: &mut Mbuf,
    room: &Room<'_, '_>,
    cut: &mut usize,
    large: &mut usize,
    written: &mut ArrayVec<u32, BATCH>,
) -> Fit {
    if let Some(segmenter) = cut::needed(frame, room.features) {
        return cut::deliver(frame, &segmenter, cut, room, written);
    }
    let fit = room.fit(written.len(), frame_len(frame));
    if let Fit::Chains(count) = fit {
        *large += usize::from(deliver(frame, room, count, written));
    }
    fit
}

fn frame_len(frame: &Mbuf) -> usize {
    if frame.segment_count() <= 1 {
        frame.len()
    } else {
        frame.segments().map(<[u8]>::len).sum()
    }
}

/// Whether a frame finds room in the guest's buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fit {
    /// In so many chains.
    Chains(usize),
    /// When the guest gives more buffers.
    NotYet,
    /// The guest's buffers are too small for it, however many it gives.
    Never,
}

/// The guest's buffers of a batch.
pub(super) struct Room<'a, 'm> {
    chains: &'a Chains<'m>,
    pub(super) features: Features,
    /// Chains that can be had at once at most.
    most: usize,
    log: Option<&'a DirtyLog>,
    /// Headers have their full length, and nothing is logged.
    plain: bool,
}

impl Room<'_, '_> {
    /// How many chains from `first` on hold a frame of `len` bytes and its header.
    #[inline]
    pub(super) fn fit(&self, first: usize, len: usize) -> Fit {
        let need = self.features.header_len() + len;
        let mut room = 0;
        for index in first..self.chains.len() {
            room += self.chains.get(index).1;
            if room >= need {
                return Fit::Chains(index - first + 1);
            }
            if !self.features.mergeable() {
                return Fit::Never;
            }
        }
        // All that can be taken at once is there, and it is not enough.
        if first == 0 && (self.chains.len() >= self.most || self.chains.is_full()) {
            Fit::Never
        } else {
            Fit::NotYet
        }
    }
}

/// Copies a frame as nearly all are into the next chain as nearly all are: one mbuf that the guest takes as it is, one buffer with
/// room for it. Copies of a fixed length need no loop and no call. False, and nothing is done, where either is not so.
#[inline]
fn deliver_plain(frame: &Mbuf, room: &Room<'_, '_>, written: &mut ArrayVec<u32, BATCH>) -> bool {
    let next = written.len();
    let (Some(bytes), Some(buffer)) = (frame.single(), room.chains.plain().get(next)) else {
        return false;
    };
    let len = HEADER_MAX + bytes.len();
    if !room.plain || buffer.len() < len {
        return false;
    }
    let header = if frame.has_offloads() {
        let checksum = frame.checksum();
        let takes = room.features.rx_checksum() || !matches!(checksum, Checksum::Partial { .. });
        if frame.is_large() || !takes {
            return false;
        }
        net_header::emit(checksum, room.features, 1)
    } else {
        net_header::PLAIN
    };
    buffer.update(0, &header);
    buffer.write(HEADER_MAX, bytes);
    written.push(len as u32);
    true
}

/// Copies a frame into `count` chains behind those of `written`, and adds what was written to each. True: it is a large one.
#[inline]
fn deliver(frame: &mut Mbuf, room: &Room<'_, '_>, count: usize, written: &mut ArrayVec<u32, BATCH>) -> bool {
    if !room.features.rx_checksum() && matches!(frame.checksum(), Checksum::Partial { .. }) {
        csum::complete(frame);
    }
    let mut header = net_header::emit(frame.checksum(), room.features, count as u16);
    let large = frame.is_large() && cut::whole(frame, room.features, &mut header);
    write(&header, frame.segments(), room, count, written);
    large
}

/// Writes a frame behind its header into `count` chains behind those of `written`, and adds what was written to each.
#[inline]
pub(super) fn write<'b>(
    header: &[u8; HEADER_MAX],
    bytes: impl Iterator<Item = &'b [u8]>,
    room: &Room<'_, '_>,
    count: usize,
    written: &mut ArrayVec<u32, BATCH>,
) {
    let mut target = Target {
        chains: room.chains,
        end: written.len() + count,
        buffers: room.chains.buffers_from(written.len()),
        in_chain: room.chains.get(written.len()).0.len(),
        at: 0,
        bytes: 0,
        written,
        log: room.log,
    };
    target.write(&header[..room.features.header_len()]);
    let mut bytes = bytes.peekable();
    while let Some(piece) = bytes.next() {
        if let Some(next) = bytes.peek() {
            prefetch_ahead(next.as_ptr());
        }
        target.write(piece);
    }
    target.finish();
}

/// A place in the guest's buffers that bytes are written to, one behind the other.
struct Target<'a, 'm> {
    chains: &'a Chains<'m>,
    /// Chains that may be written to. The current one is behind those of `written`.
    end: usize,
    /// The buffers from here on, the first one full up to `at`.
    buffers: &'a [Span<'m>],
    at: usize,
    /// Those of them that are the current chain's.
    in_chain: usize,
    /// Bytes written to the current chain.
    bytes: u32,
    written: &'a mut ArrayVec<u32, BATCH>,
    log: Option<&'a DirtyLog>,
}

impl Target<'_, '_> {
    /// Writes `bytes`, as far as there is room. (There is, unless another process scribbles over the mbuf meanwhile.)
    #[inline]
    fn write(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.in_chain == 0 && !self.next_chain() {
                return;
            }
            let [buffer, behind @ ..] = self.buffers else {
                return;
            };
            if self.at == 0
                && let Some(next) = behind.first().filter(|_| self.goes_on())
            {
                next.prefetch_ahead_for_write();
            }
            let n = (buffer.len() - self.at).min(bytes.len());
            self.put(buffer, &bytes[..n]);
            bytes = &bytes[n..];
            if self.at == buffer.len() {
                self.buffers = behind;
                self.at = 0;
                self.in_chain -= 1;
            }
        }
    }

    /// Is this the last buffer of a chain behind which the frame goes on?
    fn goes_on(&self) -> bool {
        self.in_chain == 1 && self.written.len() + 1 < self.end
    }

    #[inline]
    fn put(&mut self, buffer: &Span<'_>, bytes: &[u8]) {
        buffer.write(self.at, bytes);
        if let Some(log) = self.log {
            log.mark(buffer.guest() + self.at as u64, bytes.len());
        }
        self.at += bytes.len();
        self.bytes += bytes.len() as u32;
    }

    /// Goes on to the chain behind one that is full; false, and nothing is done, behind the last one.
    fn next_chain(&mut self) -> bool {
        if self.written.len() + 1 == self.end {
            return false;
        }
        self.written.push(std::mem::take(&mut self.bytes));
        self.in_chain = self.chains.get(self.written.len()).0.len();
        true
    }

    /// Ends the frame.
    fn finish(mut self) {
        while self.written.len() < self.end {
            self.written.push(std::mem::take(&mut self.bytes));
        }
    }
}
