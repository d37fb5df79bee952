//! The Internet checksum (RFC 1071).

/// A running one's complement sum over bytes that may come in pieces of any length.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sum {
    total: u64,
    /// An odd number of bytes was added: the next one is a low half.
    odd: bool,
}

impl Sum {
    /// Adds a piece.
    #[inline]
    pub fn add(&mut self, mut bytes: &[u8]) {
        if self.odd
            && let Some((first, rest)) = bytes.split_first()
        {
            self.total += u64::from(*first);
            self.odd = false;
            bytes = rest;
        }
        let (words, tail) = bytes.as_chunks::<4>();
        for word in words {
            self.total += u64::from(u32::from_be_bytes(*word));
        }
        let (pairs, last) = tail.as_chunks::<2>();
        for pair in pairs {
            self.total += u64::from(u16::from_be_bytes(*pair));
        }
        if let [byte] = last {
            self.total += u64::from(*byte) << 8;
            self.odd = true;
        }
    }

    /// Folded to 16 bits, not complemented: a half-done checksum.
    #[inline]
    pub fn fold(self) -> u16 {
        let mut sum = self.total;
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    /// The checksum, as it goes into a header. Never zero, which means "none" in UDP (RFC 768): its other form is as
    /// right everywhere.
    #[inline]
    pub fn checksum(self) -> u16 {
        match !self.fold() {
            0 => 0xffff,
            sum => sum,
        }
    }
}

/// Sums `bytes[start..]` and stores the result at `start + offset`, as virtio 1.2 section 5.1.6.2 asks of a device.
/// The guest has put the pseudo header's sum there. Out-of-range places leave the frame as it is.
pub fn complete(bytes: &mut [u8], start: usize, offset: usize) {
    let Some(area) = bytes.get_mut(start..) else {
        return;
    };
    let mut sum = Sum::default();
    sum.add(area);
    if let Some(field) = area.get_mut(offset..).and_then(|f| f.first_chunk_mut::<2>()) {
        *field = sum.checksum().to_be_bytes();
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 as its text reads.
    pub fn reference(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&b| u32::from(b));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    proptest! {
        #[test]
        fn pieces_sum_like_the_whole(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            cuts in proptest::collection::vec(0usize..200, 0..5),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut sum = Sum::default();
            for pair in cuts.windows(2) {
                sum.add(&bytes[pair[0]..pair[1]]);
            }
            prop_assert_eq!(sum.fold(), reference(&bytes));
        }

        /// A completed area sums to all ones, as a receiver checks it.
        #[test]
        fn a_receiver_finds_it_right(mut frame in proptest::collection::vec(any::<u8>(), 60..1514), start in 14usize..40) {
            let offset = 16;
            let before = frame.clone();
            complete(&mut frame, start, offset);
            // What was in the field stays part of the sum (it is the pseudo header's), so add it once more.
            let field = u16::from_be_bytes([before[start + offset], before[start + offset + 1]]);
            let mut sum = u32::from(reference(&frame[start..])) + u32::from(field);
            sum = (sum & 0xffff) + (sum >> 16);
            prop_assert!(sum == 0xffff || sum == 0, "{sum:#x}");
            prop_assert_eq!(&frame[..start], &before[..start]);
        }

        #[test]
        fn places_out_of_range_change_nothing_or_less(mut frame in proptest::collection::vec(any::<u8>(), 0..64), start in 0usize..80, offset in 0usize..80) {
            let len = frame.len();
            complete(&mut frame, start, offset);
            prop_assert_eq!(frame.len(), len);
        }
    }
}
