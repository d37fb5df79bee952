//! From the guest's transmit virtqueue to the switch.
//!
//! Lossless: without an empty mbuf, or with frames that the switch has not taken, descriptors stay in the available
//! ring. A descriptor is marked used once its bytes are copied and before the frame is handed over, so that a shim
//! killed in between loses a frame rather than sends it twice.

use vswitch_common::mbuf::{DATA_ROOM, Mbuf};

use super::seat::{Seat, count};
use super::{Lane, Standing, long};
use crate::guest_memory::Span;
use crate::net_header::{self, BadHeader, Features, HEADER_MAX, Request};
use crate::port::SwitchPort;
use crate::virtqueue::{Access, BATCH, Chains, Fault, Virtqueue};

/// Shortest frame: an Ethernet header.
const SHORTEST: usize = 14;

/// The bytes written to chains that the device reads.
const NOTHING_WRITTEN: [u32; BATCH] = [0; BATCH];

/// Why a guest's frame goes no further.
pub(super) enum Refused {
    TooLong,
    TooShort,
    BadHeader,
    Broken(Fault),
    /// The switch must give more mbufs first.
    NotYet,
}

/// What became of a batch.
struct Taken {
    /// Chains that the guest has there, as far as was looked.
    seen: usize,
    /// Chains that are used.
    used: usize,
}

/// Moves a batch.
#[inline]
pub(super) fn step<Q: Virtqueue, P: SwitchPort>(lane: &mut Lane<Q>, seat: &mut Seat<P>) -> Standing {
    if seat.flush() == Standing::AwaitsSwitch {
        return Standing::AwaitsSwitch;
    }
    seat.replenish(BATCH / 2);
    let took = take(lane, seat);
    let stats = seat.port.stats();
    match took {
        Ok(Taken { seen: 0, .. }) => return Standing::Idle,
        Ok(Taken { used: 0, .. }) => return Standing::AwaitsSwitch,
        Ok(_) => {}
        Err(fault) => {
            count(&stats.broken_virtqueues, 1);
            lane.break_down(fault);
        }
    }
    count(&stats.tx_frames, seat.outgoing.len());
    // The frames first: the guest waits for them at the other end, not for its buffers.
    if !seat.outgoing.is_empty() {
        seat.port.send(&mut seat.outgoing);
    }
    if lane.interrupt() {
        count(&seat.port.stats().calls, 1);
    }
    Standing::Busy
}

/// Copies a batch of the guest's frames into empty mbufs.
#[inline]
fn take<Q: Virtqueue, P: SwitchPort>(lane: &mut Lane<Q>, seat: &mut Seat<P>) -> Result<Taken, Fault> {
    let Lane {
        queue,
        memory,
        features,
        ..
    } = lane;
    let mut chains = Chains::new();
    // Without mbufs one chain is looked at, to tell "nothing to send" from "waits for the switch".
    let mbufs = seat.empties.len().clamp(1, BATCH);
    // Long frames fill mbufs, though not each to the brim.
    chains.want(DATA_ROOM * (mbufs - 1).max(1));
    queue.take(memory, Access::Read, mbufs, &mut chains)?;
    let mut result = Ok(());
    let (mut used, mut copied) = (0, 0);
    while used < chains.len() {
        let Some(mut mbuf) = seat.empties.pop() else {
            break;
        };
        let plain = chains.plain().get(used);
        if let Some(buffer) = plain.filter(|buffer| copy_plain(buffer, *features, &mut mbuf)) {
            seat.outgoing.push(mbuf);
            copied += buffer.len();
            used += 1;
            continue;
        }
        let (buffers, bytes) = chains.get(used);
        match copy(buffers, bytes, *features, &mut mbuf, seat) {
            Ok(()) => {
                seat.outgoing.push(mbuf);
                copied += bytes;
            }
            Err(why) => {
                seat.empties.push(mbuf);
                match why {
                    Refused::Broken(fault) => {
                        result = Err(fault);
                        break;
                    }
                    Refused::NotYet => break,
                    why => refuse(seat, &why),
                }
            }
        }
        used += 1;
    }
    queue.complete(&NOTHING_WRITTEN[..used]);
    seat.copied += copied;
    result.map(|()| Taken {
        seen: chains.len(),
        used,
    })
}

/// Takes a batch and lets it go: there is no switch, or the guest has given the queue up.
pub(super) fn discard<Q: Virtqueue>(lane: &mut Lane<Q>) -> Standing {
    let mut chains = Chains::new();
    let taken = lane
        .queue
        .take(&lane.memory, Access::Read, BATCH, &mut chains)
        .map(|()| chains.len());
    drop(chains);
    match taken {
        Ok(0) => return Standing::Idle,
        Ok(count) => {
            lane.queue.complete(&NOTHING_WRITTEN[..count]);
            lane.interrupt();
        }
        Err(fault) => lane.break_down(fault),
    }
    Standing::Busy
}

#[cold]
fn refuse<P: SwitchPort>(seat: &Seat<P>, why: &Refused) {
    let stats = seat.port.stats();
    match why {
        Refused::TooLong => count(&stats.tx_too_long, 1),
        Refused::TooShort => count(&stats.tx_too_short, 1),
        Refused::BadHeader => count(&stats.tx_bad_header, 1),
        Refused::Broken(_) | Refused::NotYet => {}
    }
}

/// Copies a frame as nearly all are, from a chain of one buffer into one mbuf. False, and nothing counts, where it is another
/// one, or there is more to be said.
#[inline]
fn copy_plain(buffer: &Span<'_>, features: Features, mbuf: &mut Mbuf) -> bool {
    let len = buffer.len().wrapping_sub(HEADER_MAX);
    if !(SHORTEST..=DATA_ROOM).contains(&len) || features.header_len() != HEADER_MAX {
        return false;
    }
    let mut header = [0; HEADER_MAX];
    buffer.read(0, &mut header);
    let Ok(Request { checksum, cut: None }) = net_header::parse(&header, features, len) else {
        return false;
    };
    buffer.read(HEADER_MAX, &mut mbuf.room_mut()[..len]);
    mbuf.set_frame(len, checksum);
    true
}

/// Copies the frame in a chain into `mbuf`, and what its header says.
// A function of its own, as in the other direction.
#[inline(never)]
fn copy<P: SwitchPort>(
    buffers: &[Span<'_>],
    bytes: usize,
    features: Features,
    mbuf: &mut Mbuf,
    seat: &mut Seat<P>,
) -> Result<(), Refused> {
    let header_len = features.header_len();
    if bytes < header_len {
        return Err(Refused::Broken(Fault::NoHeader { len: bytes }));
    }
    let len = bytes - header_len;
    if len > DATA_ROOM {
        return long::copy(buffers, len, features, mbuf, seat);
    }
    if len < SHORTEST {
        return Err(Refused::TooShort);
    }
    let mut header = [0; HEADER_MAX];
    gather(buffers, &mut header[..header_len], &mut mbuf.room_mut()[..len]);
    let request = net_header::parse(&header, features, len).map_err(|BadHeader| Refused::BadHeader)?;
    mbuf.set_frame(len, request.checksum);
    match request.cut {
        Some(cut) => long::mark(mbuf, len, cut, seat),
        None => Ok(()),
    }
}

/// Copies what lies in `buffers` one behind the other: the header, then the frame.
fn gather(buffers: &[Span<'_>], header: &mut [u8], frame: &mut [u8]) {
    let (mut in_header, mut in_frame) = (0, 0);
    for buffer in buffers {
        let lead = (header.len() - in_header).min(buffer.len());
        if lead > 0 {
            buffer.read(0, &mut header[in_header..in_header + lead]);
            in_header += lead;
        }
        let rest = buffer.len() - lead;
        buffer.read(lead, &mut frame[in_frame..in_frame + rest]);
        in_frame += rest;
    }
}
