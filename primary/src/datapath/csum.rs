//! Completes a half-done layer 4 checksum (RFC 1071), as a guest with checksum offload leaves it.

/// Sums `bytes[start..]` and stores the result at `start + offset`, as virtio 1.2 section 5.1.6.2 asks of a device.
/// The guest has put the pseudo header's sum there. Out-of-range places leave the frame as it is.
pub fn complete(bytes: &mut [u8], start: usize, offset: usize) {
    let Some(area) = bytes.get_mut(start..) else {
        return;
    };
    let sum = !fold(sum_words(area));
    if let Some(field) = area.get_mut(offset..).and_then(|f| f.first_chunk_mut::<2>()) {
        // An all-zero UDP checksum would mean "none" (RFC 768); 0xffff is the same number in one's complement.
        *field = if sum == 0 { [0xff, 0xff] } else { sum.to_be_bytes() };
    }
}

fn sum_words(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    let mut sum: u64 = words.iter().map(|w| u64::from(u32::from_be_bytes(*w))).sum();
    let mut last = [0u8; 4];
    last[..rest.len()].copy_from_slice(rest);
    sum += u64::from(u32::from_be_bytes(last));
    sum
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reference(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    proptest! {
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
