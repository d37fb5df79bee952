//! Large frames for the guest: whole where it takes them so, else cut.

use arrayvec::ArrayVec;
use vswitch_common::csum::Sum;
use vswitch_common::gso::{Segmenter, slices};
use vswitch_common::mbuf::{Checksum, Mbuf};

use super::to_guest::{Fit, Room, write};
use crate::net_header::{self, Features, HEADER_MAX};
use crate::virtqueue::BATCH;

/// What cuts `frame`, if that is large and the guest does not take it whole.
#[inline]
pub(super) fn needed(frame: &Mbuf, features: Features) -> Option<Segmenter> {
    if frame.is_large() {
        segmenter(frame, features)
    } else {
        None
    }
}

#[cold]
fn segmenter(frame: &Mbuf, features: Features) -> Option<Segmenter> {
    let segmentation = frame.segmentation()?;
    let Checksum::Partial { start, .. } = frame.checksum() else {
        return None;
    };
    if features.takes_large(segmentation) {
        return None;
    }
    let len = frame.segments().map(<[u8]>::len).sum();
    Segmenter::new(segmentation, start, frame.data(), len)
}

/// Says in the guest's header how it may cut `frame`. False: it is none that the guest takes whole.
#[cold]
pub(super) fn whole(frame: &Mbuf, features: Features, header: &mut [u8; HEADER_MAX]) -> bool {
    let Some(segmentation) = frame.segmentation().filter(|s| features.takes_large(*s)) else {
        return false;
    };
    net_header::emit_segmentation(header, segmentation);
    true
}

/// Gives the guest the segments of `frame` from number `next` on, as far as there is room, and moves `next` on; back to zero
/// behind the last. A segment that never fits takes the rest along.
#[cold]
pub(super) fn deliver(
    frame: &Mbuf,
    segmenter: &Segmenter,
    next: &mut usize,
    room: &Room<'_, '_>,
    written: &mut ArrayVec<u32, BATCH>,
) -> Fit {
    let (start, offset) = segmenter.checksum_place();
    let mut fit = Fit::Chains(0);
    while *next < segmenter.count() {
        let mut segment = segmenter.segment(*next);
        fit = room.fit(written.len(), segment.len());
        let Fit::Chains(count) = fit else {
            break;
        };
        let payload = || slices(frame.segments(), segment.payload.clone());
        let checksum = if room.features.rx_checksum() {
            Checksum::Partial { start, offset }
        } else {
            let mut sum = Sum::default();
            sum.add(&segment.header[start.into()..]);
            payload().for_each(|slice| sum.add(slice));
            let field = usize::from(start + offset);
            segment.header[field..field + 2].copy_from_slice(&sum.checksum().to_be_bytes());
            Checksum::Unknown
        };
        let header = net_header::emit(checksum, room.features, count as u16);
        let bytes = std::iter::once(&segment.header[..]).chain(payload());
        write(&header, bytes, room, count, written);
        *next += 1;
    }
    if fit != Fit::NotYet {
        *next = 0;
    }
    fit
}
