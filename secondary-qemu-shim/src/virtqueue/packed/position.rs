//! Places in a packed ring, and how a descriptor's flags tell whose it is there (virtio 1.2 §2.8.1).

use virtio_bindings::virtio_ring::{VRING_PACKED_DESC_F_AVAIL, VRING_PACKED_DESC_F_USED};

/// Flags whose values tell whose a descriptor is, together with the wrap counter.
const AVAIL: u16 = 1 << VRING_PACKED_DESC_F_AVAIL;
const USED: u16 = 1 << VRING_PACKED_DESC_F_USED;

/// A place in the ring: a slot, and the wrap counter there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::virtqueue) struct Position(u16);

impl Position {
    #[inline]
    pub fn new(slot: u16, wrap: bool) -> Position {
        Position((slot & 0x7fff) | u16::from(wrap) << 15)
    }

    /// From 16 bits, of which the wrap counter is the highest.
    #[inline]
    pub fn from_bits(bits: u16) -> Position {
        Position(bits)
    }

    #[inline]
    pub fn bits(self) -> u16 {
        self.0
    }

    #[inline]
    pub fn slot(self) -> u16 {
        self.0 & 0x7fff
    }

    #[inline]
    pub fn wrap(self) -> bool {
        self.0 >> 15 != 0
    }

    /// `slots` further on in a ring of `size`.
    #[inline]
    pub fn forward(self, slots: u16, size: u16) -> Position {
        let slot = u32::from(self.slot()) + u32::from(slots);
        if slot < u32::from(size) {
            Position::new(slot as u16, self.wrap())
        } else {
            Position::new((slot - u32::from(size)) as u16, !self.wrap())
        }
    }

    /// Slots from `earlier` to here in a ring of `size`, at most a whole round: the same slot, the other wrap counter.
    /// Negative: it is not earlier.
    #[inline]
    pub fn since(self, earlier: Position, size: u16) -> i32 {
        let slots = i32::from(self.slot()) - i32::from(earlier.slot());
        if earlier.wrap() == self.wrap() {
            slots
        } else {
            slots + i32::from(size)
        }
    }

    /// Are these the flags of a descriptor that the driver has made available here?
    #[inline]
    pub fn is_available(self, flags: u16) -> bool {
        flags & (AVAIL | USED) == if self.wrap() { AVAIL } else { USED }
    }

    /// The flags of a descriptor that is used here.
    #[inline]
    pub fn used(self) -> u16 {
        if self.wrap() { AVAIL | USED } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the size, also one that is no power of two.
    #[test]
    fn slots_are_counted_over_the_end_of_the_ring() {
        for size in [1, 3, 7] {
            let rounds = || {
                [true, false]
                    .into_iter()
                    .flat_map(|wrap| (0..size).map(move |slot| (slot, wrap)))
            };
            for start in rounds().map(|(slot, wrap)| Position::new(slot, wrap)) {
                for slots in 0..=size {
                    let there = start.forward(slots, size);
                    assert!(there.slot() < size);
                    assert_eq!(there.since(start, size), slots.into());
                }
                assert_eq!(start.forward(size, size).forward(size, size), start);
                assert_eq!(Position::from_bits(start.bits()), start);
            }
        }
        assert_eq!(Position::new(2, true).since(Position::new(4, true), 7), -2);
    }
}
