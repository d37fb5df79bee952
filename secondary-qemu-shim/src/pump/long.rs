//! A guest's frames that do not fit one mbuf, or are to be cut.

use arrayvec::ArrayVec;
use vswitch_common::gso::{self, Segmentation};
use vswitch_common::mbuf::{Checksum, DATA_ROOM, MAX_SEGMENTS, Mbuf};

use super::seat::{Seat, count};
use super::to_switch::Refused;
use crate::guest_memory::Span;
use crate::net_header::{self, BadHeader, Cut, Features, HEADER_MAX};
use crate::port::SwitchPort;

/// Copies the frame of `len` bytes in a chain into `first` and as many mbufs more as it takes.
#[cold]
pub(super) fn copy<P: SwitchPort>(
    buffers: &[Span<'_>],
    len: usize,
    features: Features,
    first: &mut Mbuf,
    seat: &mut Seat<P>,
) -> Result<(), Refused> {
    let more = len.div_ceil(DATA_ROOM) - 1;
    if more >= MAX_SEGMENTS {
        return Err(Refused::TooLong);
    }
    let mut reader = Reader {
        buffers,
        index: 0,
        at: 0,
    };
    let mut header = [0; HEADER_MAX];
    reader.read(&mut header[..features.header_len()]);
    let request = net_header::parse(&header, features, len).map_err(|BadHeader| Refused::BadHeader)?;
    seat.replenish(more);
    let Some(kept) = seat.empties.len().checked_sub(more) else {
        return Err(Refused::NotYet);
    };
    reader.fill(first, DATA_ROOM, request.checksum);
    if let Some(cut) = request.cut {
        mark(first, len, cut, seat)?;
    }
    let mut left = len - DATA_ROOM;
    let mut rest: ArrayVec<Mbuf, MAX_SEGMENTS> = seat.empties.drain(kept..).collect();
    let mut mbufs = rest.iter_mut().peekable();
    while let Some(mbuf) = mbufs.next() {
        if let Some(next) = mbufs.peek() {
            next.prefetch_room();
        }
        let part = left.min(DATA_ROOM);
        reader.fill(mbuf, part, Checksum::Unknown);
        left -= part;
    }
    first.chain(&rest);
    Ok(())
}

/// Notes in the first mbuf of a frame of `len` bytes how the guest wants it cut.
#[cold]
pub(super) fn mark<P: SwitchPort>(
    first: &mut Mbuf,
    len: usize,
    cut: Cut,
    seat: &Seat<P>,
) -> Result<(), Refused> {
    let segmentation = Segmentation::new(cut.kind, cut.ecn, cut.size, cut.l4, first.data())
        .filter(|segmentation| segmentation.count(len) <= gso::MAX_COUNT);
    first.set_segmentation(segmentation.ok_or(Refused::BadHeader)?);
    count(&seat.port.stats().tx_large, 1);
    Ok(())
}

/// Reads the buffers of a chain one behind the other.
struct Reader<'a, 'm> {
    buffers: &'a [Span<'m>],
    index: usize,
    at: usize,
}

impl Reader<'_, '_> {
    /// Reads into all of `out`, of which the buffers have as much.
    fn read(&mut self, mut out: &mut [u8]) {
        while let Some(buffer) = self.buffers.get(self.index).filter(|_| !out.is_empty()) {
            if self.at == 0
                && let Some(next) = self.buffers.get(self.index + 1)
            {
                next.prefetch_ahead();
            }
            let n = (buffer.len() - self.at).min(out.len());
            let (now, later) = out.split_at_mut(n);
            buffer.read(self.at, now);
            (self.at, out) = (self.at + n, later);
            if self.at == buffer.len() {
                (self.index, self.at) = (self.index + 1, 0);
            }
        }
    }

    fn fill(&mut self, mbuf: &mut Mbuf, len: usize, checksum: Checksum) {
        self.read(&mut mbuf.room_mut()[..len]);
        mbuf.set_frame(len, checksum);
    }
}
