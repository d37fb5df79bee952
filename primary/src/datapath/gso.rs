//! Cuts a client's large frame for a port that can't take it whole.

use std::iter::once;

use arrayvec::ArrayVec;
use vswitch_common::gso::{Segment, Segmenter, slices};
use vswitch_common::mbuf::{Checksum, DATA_ROOM, MAX_SEGMENTS, Mbuf};

use super::chain::Rest;
use super::ledger::{Ledger, Owner};

/// May a frame that is longer than `max_frame` bytes leave by a port of that limit? A large one may if its segments may.
#[cold]
pub fn segments_fit(frame: &Mbuf, max_frame: usize) -> bool {
    frame.segmentation().is_some_and(|s| s.longest() <= max_frame)
}

/// Cuts `frame`. Each segment goes to `each` as a frame of its own whose checksum is half done, or `None` if there was no
/// mbuf for it. Returns how many there were: none where the headers are not what the frame says of them.
#[cold]
pub fn cut(ledger: &Ledger, frame: Mbuf, mut each: impl FnMut(Option<Mbuf>)) -> usize {
    let mut rest = ledger.unchain(&frame);
    let len = frame.len() + rest.iter().map(Mbuf::len).sum::<usize>();
    let segmenter = match (frame.segmentation(), frame.checksum()) {
        (Some(segmentation), Checksum::Partial { start, .. }) => {
            Segmenter::new(segmentation, start, frame.data(), len)
        }
        _ => None,
    };
    let count = segmenter.as_ref().map_or(0, Segmenter::count);
    if let Some(segmenter) = segmenter {
        let (start, offset) = segmenter.checksum_place();
        for index in 0..count {
            let mut made = make(ledger, &segmenter.segment(index), &frame, &rest);
            if let Some(made) = &mut made {
                made.set_checksum(Checksum::Partial { start, offset });
            }
            each(made);
        }
    }
    ledger.free_singles(&mut rest);
    ledger.free_singles(&mut ArrayVec::from([frame]));
    count
}

/// A frame of a segment of the frame that is `first` and `rest`, in as many mbufs as it takes.
fn make(ledger: &Ledger, segment: &Segment, first: &Mbuf, rest: &Rest) -> Option<Mbuf> {
    let mut mbufs = ArrayVec::<Mbuf, MAX_SEGMENTS>::new();
    for at in (0..segment.len()).step_by(DATA_ROOM) {
        let Some(mut mbuf) = ledger.alloc_one(ledger.pool_of(first)) else {
            ledger.free_singles(&mut mbufs);
            return None;
        };
        let source = once(first).chain(rest).map(Mbuf::data);
        let bytes = once(&segment.header[..]).chain(slices(source, segment.payload.clone()));
        let mut len = 0;
        for slice in slices(bytes, at..at + DATA_ROOM) {
            mbuf.room_mut()[len..len + slice.len()].copy_from_slice(slice);
            len += slice.len();
        }
        mbuf.set_frame(len, Checksum::Unknown);
        mbufs.push(mbuf);
    }
    let later: Rest = mbufs.drain(1..).collect();
    let mut made = mbufs.pop()?;
    if !later.is_empty() {
        ledger.link(&mut made, &later, Owner::CHAIN);
    }
    Some(made)
}
