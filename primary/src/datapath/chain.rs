//! Frames too long for one mbuf, which a NIC gives in a chain of them.
//!
//! A chain has one owner, like any frame, and goes from NIC to NIC as it is. Its links lie in memory that clients map as
//! well. So the ledger marks the later segments while the switch works on a chain, and a link is followed only to a
//! segment with that mark, which goes as the segment is taken: whatever a client makes of the links, no mbuf is taken
//! twice, and none that is no mbuf. Clients get single mbufs only.

use arrayvec::ArrayVec;
use vswitch_common::mbuf::{DATA_ROOM, MAX_SEGMENTS, Mbuf};

use super::ledger::{Ledger, Owner};

/// The later segments of a frame.
type Rest = ArrayVec<Mbuf, MAX_SEGMENTS>;
/// Addresses of the later segments of a frame that a driver is about to have.
pub type Released = ArrayVec<usize, MAX_SEGMENTS>;

impl Ledger {
    /// Takes over a frame as a driver has received it; `None`, and its mbufs are back in the pool, where the chain is
    /// none or too long.
    #[inline]
    pub fn adopt(&self, frame: Mbuf) -> Option<Mbuf> {
        if frame.segment_count() <= 1 {
            return Some(frame);
        }
        self.adopt_chain(frame)
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

    /// The later segments of a frame, which thereby are no part of it any more. Nothing for a frame of one.
    #[cold]
    pub fn unchain(&self, frame: &Mbuf) -> Rest {
        let mut rest = Rest::new();
        let mut next = frame.next_address();
        for _ in 1..frame.segment_count().min(MAX_SEGMENTS) {
            let Some(segment) = self.pass(next, Owner::CHAIN, Owner::SWITCH) else {
                break;
            };
            next = segment.next_address();
            rest.push(segment);
        }
        rest
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

    /// Gives the later segments of a chain back to the pool that a driver has not taken.
    #[cold]
    pub fn free_refused(&self, rest: &Released) {
        let segments = rest
            .iter()
            .filter_map(|&address| self.take(address, Owner::SWITCH));
        segments.for_each(|segment| self.free(segment));
    }

    /// The frame in its first mbuf alone; `None`, and its mbufs are back in the pool, where it does not fit.
    #[cold]
    pub fn flatten(&self, mut frame: Mbuf) -> Option<Mbuf> {
        let rest = self.unchain(&frame);
        let checksum = frame.checksum();
        frame.make_single(checksum);
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

    /// A copy in mbufs of its own; `None` where the pool is empty.
    pub fn copy(&self, frame: &Mbuf) -> Option<Mbuf> {
        if frame.segment_count() > 1 {
            return self.copy_chain(frame);
        }
        let mut copy = self.copy_segment(frame)?;
        copy.set_checksum(frame.checksum());
        Some(copy)
    }

    fn copy_segment(&self, segment: &Mbuf) -> Option<Mbuf> {
        let mut fresh = ArrayVec::<Mbuf, 1>::new();
        self.pool().alloc(&mut fresh);
        let mut copy = fresh.pop()?;
        let bytes = segment.data();
        // A frame whose tag was taken off leaves one with headroom for another; nothing is longer than the room.
        let len = bytes.len().min(DATA_ROOM);
        copy.room_mut()[..len].copy_from_slice(&bytes[..len]);
        copy.set_frame(len, Default::default());
        Some(copy)
    }

    #[cold]
    fn copy_chain(&self, frame: &Mbuf) -> Option<Mbuf> {
        let mut rest = self.unchain(frame);
        let mut copies = Rest::new();
        let first = self.copy_segment(frame);
        copies.extend(rest.iter().map_while(|segment| self.copy_segment(segment)));
        // The frame itself stays what it was.
        rest.iter().for_each(|segment| self.give(segment, Owner::CHAIN));
        let complete = copies.len() == rest.len();
        rest.clear();
        match first {
            Some(mut first) if complete => {
                first.chain(&copies);
                copies.iter().for_each(|segment| self.give(segment, Owner::CHAIN));
                first.set_checksum(frame.checksum());
                Some(first)
            }
            first => {
                self.free_all(&mut copies);
                first.into_iter().for_each(|m| self.free(m));
                None
            }
        }
    }
}
