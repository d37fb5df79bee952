//! Frames too long for one mbuf: chains of them, from NICs and from clients, and to either.
//!
//! A chain has one owner, like any frame. Its links lie in memory that clients map as well. So the ledger marks the later
//! segments while the switch works on a chain, and a link is followed only to a segment with that mark, which goes as the
//! segment is taken: whatever a client makes of the links, no mbuf is taken twice, and none that is no mbuf. The mark tells whose
//! the segment was, so that one whose link a client has broken comes back with the rest of what was the client's.

use arrayvec::ArrayVec;
use vswitch_common::mbuf::{Checksum, MAX_SEGMENTS, Mbuf};
use vswitch_common::mempool::Pool;

use super::ledger::{Ledger, Owner};

/// The later segments of a frame.
pub type Rest = ArrayVec<Mbuf, MAX_SEGMENTS>;
/// Addresses of the later segments of a frame that a driver is about to have.
pub type Released = ArrayVec<usize, MAX_SEGMENTS>;

impl Ledger {
    /// Takes over a frame as a driver has received it; `None`, and its mbufs are back in their pools, where the chain is
    /// none or too long.
    #[inline]
    pub fn adopt(&self, frame: Mbuf) -> Option<Mbuf> {
        if frame.segment_count() <= 1 {
            return Some(frame);
        }
        self.adopt_chain(frame)
    }

    /// The rest of [`Ledger::take_frame`], for a frame of several segments or one that is to be cut. Joined where it fits one
    /// mbuf. A frame is none where a link does not lead to an mbuf of `owner`'s with something in it, and where there are
    /// too many.
    #[cold]
    pub(super) fn take_chain(&self, mut first: Mbuf, owner: Owner) -> (Option<Mbuf>, u32) {
        let count = first.segment_count();
        let (checksum, segmentation) = (first.checksum(), first.segmentation());
        let mut next = first.next_address();
        first.make_single(checksum);
        if let Some(segmentation) = segmentation {
            first.set_segmentation(segmentation);
        }
        let mut rest = Rest::new();
        let (mut bytes, mut empty) = (0, false);
        for _ in 1..count.min(MAX_SEGMENTS) {
            let Some(mut segment) = self.take(next, owner) else {
                break;
            };
            next = segment.next_address();
            segment.make_single(Checksum::Unknown);
            let len = segment.len();
            bytes += len;
            empty |= len == 0;
            rest.push(segment);
        }
        let taken = 1 + rest.len();
        if taken != count.max(1) || empty {
            self.free_singles(&mut rest);
            self.free(first);
            return (None, taken as u32);
        }
        if bytes <= first.tailroom() {
            rest.iter().for_each(|segment| _ = first.append(segment.data()));
            self.free_singles(&mut rest);
        } else {
            self.link(&mut first, &rest, owner.chained());
        }
        (Some(first), taken as u32)
    }

    /// Makes a frame of `first` and `rest`, which are the switch's.
    pub(super) fn link(&self, first: &mut Mbuf, rest: &Rest, mark: Owner) {
        first.chain(rest);
        rest.iter().for_each(|segment| self.give(segment, mark));
    }

    #[cold]
    fn adopt_chain(&self, frame: Mbuf) -> Option<Mbuf> {
        let count = frame.segment_count();
        let mut next = frame.next_address();
        for _ in 1..count.min(MAX_SEGMENTS) {
            match self.pass(next, Owner::SWITCH, Owner::CHAIN) {
                Some(segment) => next = segment.next_address(),
                None => {
                    self.free(frame);
                    return None;
                }
            }
        }
        if count > MAX_SEGMENTS {
            self.free(frame);
            return None;
        }
        Some(frame)
    }

    /// Takes the later segments out of a frame, one by one, each with its mark.
    fn unlink_later(&self, frame: &Mbuf) -> impl Iterator<Item = (Mbuf, Owner)> {
        let mut next = frame.next_address();
        (1..frame.segment_count().min(MAX_SEGMENTS)).map_while(move |_| {
            let (segment, mark) = self.unlink(next)?;
            next = segment.next_address();
            Some((segment, mark))
        })
    }

    /// The later segments of a frame, which thereby are no part of it any more. Nothing for a frame of one.
    #[cold]
    pub fn unchain(&self, frame: &Mbuf) -> Rest {
        self.unlink_later(frame).map(|(segment, _)| segment).collect()
    }

    /// What `work` makes of a frame's later segments, which stay that, and marked as they were.
    pub fn with_rest<R>(&self, frame: &Mbuf, work: impl FnOnce(&[Mbuf]) -> R) -> R {
        let (rest, marks): (Rest, ArrayVec<Owner, MAX_SEGMENTS>) = self.unlink_later(frame).unzip();
        let result = work(&rest);
        rest.iter()
            .zip(marks)
            .for_each(|(segment, mark)| self.give(segment, mark));
        result
    }

    /// Makes a frame's later segments `owner`'s, and the links right, before the first one's address goes onto the client's
    /// ring. Says how many there are.
    #[cold]
    pub fn give_rest(&self, frame: &mut Mbuf, owner: Owner) -> u32 {
        let rest = self.unchain(frame);
        self.link(frame, &rest, owner);
        rest.len() as u32
    }

    /// Makes a chain fit for a driver, which trusts every header: all are made anew. Says where its later segments are,
    /// for [`Ledger::free_refused`].
    #[cold]
    pub fn release_chain(&self, frame: &mut Mbuf) -> Released {
        let mut rest = self.unchain(frame);
        rest.iter_mut().for_each(|segment| self.scrub(segment));
        self.scrub(frame);
        frame.chain(&rest);
        rest.iter().map(Mbuf::address).collect()
    }

    /// Gives the later segments of a chain back to their pools that a driver has not taken.
    #[cold]
    pub fn free_refused(&self, rest: &Released) {
        let segments = rest
            .iter()
            .filter_map(|&address| self.take(address, Owner::SWITCH));
        segments.for_each(|segment| self.free(segment));
    }

    /// The frame in its first mbuf alone, asking a driver for what it asked before; `None`, and its mbufs are back in their pools, where it does not fit.
    #[cold]
    pub fn flatten(&self, mut frame: Mbuf) -> Option<Mbuf> {
        let rest = self.unchain(&frame);
        self.scrub(&mut frame);
        let mut fits = true;
        for segment in rest {
            fits = fits && frame.append(segment.data());
            self.free(segment);
        }
        if !fits {
            self.free(frame);
            return None;
        }
        Some(frame)
    }

    /// A copy in mbufs of its own, of pool `near` if that has them; `None` where no pool has.
    #[inline]
    pub fn copy(&self, frame: &Mbuf, near: Pool) -> Option<Mbuf> {
        self.copy_in(frame, near)
            .or_else(|| self.copy_elsewhere(frame, near))
    }

    /// A copy of a frame's first `len` bytes, which asks nobody to complete or to cut it; `None` where no pool has mbufs for it.
    #[cold]
    pub fn copy_front(&self, frame: &Mbuf, near: Pool, len: usize) -> Option<Mbuf> {
        let others = self.others(near).copied();
        std::iter::once(near)
            .chain(others)
            .find_map(|pool| self.copy_segments(frame, pool, len))
    }

    #[cold]
    #[inline(never)]
    fn copy_elsewhere(&self, frame: &Mbuf, near: Pool) -> Option<Mbuf> {
        self.others(near).find_map(|&pool| self.copy_in(frame, pool))
    }

    #[inline(never)]
    fn copy_in(&self, frame: &Mbuf, pool: Pool) -> Option<Mbuf> {
        if frame.segment_count() > 1 {
            return self.copy_chain(frame, pool);
        }
        let mut copy = copy_segment(frame, pool)?;
        copy.set_offloads_of(frame);
        Some(copy)
    }

    #[cold]
    fn copy_chain(&self, frame: &Mbuf, pool: Pool) -> Option<Mbuf> {
        let mut copy = self.copy_segments(frame, pool, usize::MAX)?;
        copy.set_offloads_of(frame);
        Some(copy)
    }

    /// A copy of the first `most` bytes, without what is asked of others for the frame.
    fn copy_segments(&self, frame: &Mbuf, pool: Pool, most: usize) -> Option<Mbuf> {
        let (mut first, copied) = copy_front_of(frame, pool, most)?;
        let mut left = most - copied;
        let (mut copies, complete) = self.with_rest(frame, |rest| {
            let mut copies = Rest::new();
            for segment in rest {
                if left == 0 {
                    break;
                }
                let Some((copy, copied)) = copy_front_of(segment, pool, left) else {
                    return (copies, false);
                };
                left -= copied;
                copies.push(copy);
            }
            (copies, true)
        });
        if !complete {
            self.free_all(&mut copies);
            self.free(first);
            return None;
        }
        if !copies.is_empty() {
            self.link(&mut first, &copies, Owner::CHAIN);
        }
        Some(first)
    }
}

#[inline]
fn copy_segment(segment: &Mbuf, pool: Pool) -> Option<Mbuf> {
    Some(copy_front_of(segment, pool, usize::MAX)?.0)
}

/// A copy of a segment's first `most` bytes, and how many these are.
#[inline(always)]
fn copy_front_of(segment: &Mbuf, pool: Pool, most: usize) -> Option<(Mbuf, usize)> {
    let mut copy = pool.alloc_one()?;
    let bytes = segment.data();
    let len = bytes.len().min(most);
    copy.fill(&bytes[..len]);
    Some((copy, len))
}

/// How many of `frames`, the first ones, have no more than `mbufs` segments together.
#[cold]
pub fn fitting(frames: &[Mbuf], mbufs: u32) -> usize {
    let mut left = mbufs as usize;
    let fits = |frame: &&Mbuf| match left.checked_sub(frame.segment_count().max(1)) {
        Some(rest) => {
            left = rest;
            true
        }
        None => false,
    };
    frames.iter().take_while(fits).count()
}
