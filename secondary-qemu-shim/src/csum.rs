//! Completes half-done checksums for a guest that can't.

use vswitch_common::csum::Sum;
use vswitch_common::mbuf::{Checksum, Mbuf};

/// Completes `frame`'s checksum where it is half done; afterwards nothing special is known of it.
pub fn complete(frame: &mut Mbuf) {
    let Checksum::Partial { start, offset } = frame.checksum() else {
        return;
    };
    let mut sum = Sum::default();
    let mut skip = usize::from(start);
    for segment in frame.segments() {
        sum.add(&segment[skip.min(segment.len())..]);
        skip = skip.saturating_sub(segment.len());
    }
    let at = usize::from(start) + usize::from(offset);
    // It lay inside; another process may write over the length meanwhile.
    if let Some(field) = frame.data_mut().get_mut(at..at + 2) {
        field.copy_from_slice(&sum.checksum().to_be_bytes());
    }
    frame.set_checksum(Checksum::Unknown);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pump::testing::Buffers;
    use proptest::prelude::*;

    proptest! {
        /// With what the checksum field held before (the pseudo header's sum), a completed frame sums up to all ones.
        #[test]
        fn a_completed_frame_verifies(
            mut bytes in proptest::collection::vec(any::<u8>(), 60..1500),
            start in 14u16..40,
            offset in 0u16..9,
        ) {
            let offset = offset * 2;
            let at = usize::from(start + offset);
            let mut buffers = Buffers::new(1);
            let mut frame = buffers.frame(&bytes);
            frame.set_checksum(Checksum::Partial { start, offset });
            complete(&mut frame);
            prop_assert_eq!(frame.checksum(), Checksum::Unknown);
            let mut sum = Sum::default();
            sum.add(&bytes[at..at + 2]);
            sum.add(&frame.data()[usize::from(start)..]);
            prop_assert_eq!(sum.fold(), 0xffff);
            bytes[at..at + 2].copy_from_slice(&frame.data()[at..at + 2]);
            prop_assert_eq!(frame.data(), &bytes[..], "only the checksum's own bytes change");
        }
    }
}
