//! From the switch to the guest's receive virtqueue.
//!
//! While the guest has no buffers, frames stay in the switch's ring: that is the queue, and the switch counts what
//! it can't put there. A frame is spread over several chains where mergeable buffers were negotiated (virtio 1.2
//! §5.1.6.4), else it has to fit one.

use arrayvec::ArrayVec;
use vswitch_common::mbuf::{Checksum, Mbuf};

use super::seat::{Seat, count};
use super::{Lane, Standing};
use crate::csum;
use crate::guest_memory::{DirtyLog, Span};
use crate::net_header::{self, Features};
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
    let done = match give(lane, seat) {
        Ok(done) => done,
        Err(fault) => {
            count(&seat.port.stats().broken_virtqueues, 1);
            lane.break_down(fault);
            return Standing::Busy;
        }
    };
    if done == 0 {
        return Standing::AwaitsGuest;
    }
    if lane.interrupt() {
        count(&seat.port.stats().calls, 1);
    }
    seat.release();
    Standing::Busy
}

/// Copies as many frames of the inbox as there is room for; returns how many are dealt with.
#[inline]
fn give<Q: Virtqueue, P: SwitchPort>(lane: &mut Lane<Q>, seat: &mut Seat<P>) -> Result<usize, Fault> {
    let Lane {
        queue,
        memory,
        features,
        log,
        ..
    } = lane;
    let header_len = features.header_len();
    let mut chains = Chains::new();
    queue.take(memory, Access::Write, BATCH, &mut chains)?;
    let mut written = ArrayVec::<u32, BATCH>::new();
    let (mut delivered, mut too_long) = (0, 0);
    for frame in &mut seat.inbox {
        let need = header_len + frame_len(frame);
        match fit(&chains, written.len(), need, *features, queue.size()) {
            Fit::Chains(count) => {
                deliver(frame, &chains, count, *features, log.as_deref(), &mut written);
                delivered += 1;
            }
            Fit::Never => too_long += 1,
            Fit::NotYet => break,
        }
    }
    queue.complete(&written);
    let done = delivered + too_long;
    seat.used.extend(seat.inbox.drain(..done));
    let stats = seat.port.stats();
    count(&stats.rx_frames, delivered);
    count(&stats.rx_too_long, too_long);
    Ok(done)
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
enum Fit {
    /// In so many chains.
    Chains(usize),
    /// When the guest gives more buffers.
    NotYet,
    /// The guest's buffers are too small for it, however many it gives.
    Never,
}

/// How many chains from `first` on hold `need` bytes.
#[inline]
fn fit(chains: &Chains<'_>, first: usize, need: usize, features: Features, queue_size: u16) -> Fit {
    let mut room = 0;
    for index in first..chains.len() {
        room += chains.get(index).1;
        if room >= need {
            return Fit::Chains(index - first + 1);
        }
        if !features.mergeable() {
            return Fit::Never;
        }
    }
    // All that can be taken at once is there, and it is not enough.
    let most = usize::from(queue_size).min(BATCH);
    if first == 0 && chains.len() >= most {
        Fit::Never
    } else {
        Fit::NotYet
    }
}

/// Copies a frame into `count` chains behind those of `written`, and adds what was written to each.
#[inline]
fn deliver(
    frame: &mut Mbuf,
    chains: &Chains<'_>,
    count: usize,
    features: Features,
    log: Option<&DirtyLog>,
    written: &mut ArrayVec<u32, BATCH>,
) {
    if !features.rx_checksum() && matches!(frame.checksum(), Checksum::Partial { .. }) {
        csum::complete(frame);
    }
    let header = net_header::emit(frame.checksum(), features, count as u16);
    let end = written.len() + count;
    let mut target = Target {
        chains,
        end,
        buffer: 0,
        at: 0,
        in_chain: 0,
        written,
        log,
    };
    target.write(&header[..features.header_len()]);
    for segment in frame.segments() {
        target.write(segment);
    }
    target.finish();
}

/// A place in the guest's buffers that bytes are written to, one behind the other.
struct Target<'a, 'm> {
    chains: &'a Chains<'m>,
    /// Chains that may be written to. The current one is behind those of `written`.
    end: usize,
    buffer: usize,
    at: usize,
    /// Bytes written to the current chain.
    in_chain: u32,
    written: &'a mut ArrayVec<u32, BATCH>,
    log: Option<&'a DirtyLog>,
}

impl Target<'_, '_> {
    /// Writes `bytes`, as far as there is room. (There is, unless another process scribbles over the mbuf meanwhile.)
    #[inline]
    fn write(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.written.len() < self.end {
            let (buffers, _) = self.chains.get(self.written.len());
            let Some(buffer) = buffers.get(self.buffer) else {
                self.next_chain();
                continue;
            };
            let n = (buffer.len() - self.at).min(bytes.len());
            self.put(buffer, &bytes[..n]);
            bytes = &bytes[n..];
            if self.at == buffer.len() {
                (self.buffer, self.at) = (self.buffer + 1, 0);
            }
        }
    }

    #[inline]
    fn put(&mut self, buffer: &Span<'_>, bytes: &[u8]) {
        buffer.write(self.at, bytes);
        if let Some(log) = self.log {
            log.mark(buffer.guest() + self.at as u64, bytes.len());
        }
        self.at += bytes.len();
        self.in_chain += bytes.len() as u32;
    }

    fn next_chain(&mut self) {
        self.written.push(self.in_chain);
        (self.buffer, self.at, self.in_chain) = (0, 0, 0);
    }

    /// Ends the frame.
    fn finish(mut self) {
        while self.written.len() < self.end {
            self.next_chain();
        }
    }
}
