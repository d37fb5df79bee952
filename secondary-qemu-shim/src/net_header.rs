//! The header before every frame in a virtqueue (virtio 1.2 §5.1.6): `virtio_net_hdr_v1`, little-endian.

use virtio_bindings::virtio_config::{VIRTIO_F_IN_ORDER, VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_HDR_F_DATA_VALID,
    VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_NONE,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vswitch_common::mbuf::Checksum;

use crate::virtqueue::{Layout, Negotiated};

/// Bytes of the header with `num_buffers`.
pub const HEADER_MAX: usize = 12;
/// Bytes of it in a legacy device without mergeable buffers.
const HEADER_LEGACY: usize = 10;

/// What the guest's driver and this device agreed on, as far as the pumps care.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features {
    bits: u64,
}

impl Features {
    /// From the bits of `SET_FEATURES`.
    pub fn new(bits: u64) -> Features {
        Features { bits }
    }

    fn has(self, bit: u32) -> bool {
        self.bits >> bit & 1 != 0
    }

    /// Bytes of the header in both directions (§5.1.6.1).
    #[inline]
    pub fn header_len(self) -> usize {
        if self.has(VIRTIO_F_VERSION_1) || self.mergeable() {
            HEADER_MAX
        } else {
            HEADER_LEGACY
        }
    }

    /// May one frame to the guest take several chains (§5.1.6.4)?
    #[inline]
    pub fn mergeable(self) -> bool {
        self.has(VIRTIO_NET_F_MRG_RXBUF)
    }

    /// May the guest send frames with a half-done checksum?
    #[inline]
    pub fn tx_checksum(self) -> bool {
        self.has(VIRTIO_NET_F_CSUM)
    }

    /// Does the guest take frames with a half-done checksum?
    #[inline]
    pub fn rx_checksum(self) -> bool {
        self.has(VIRTIO_NET_F_GUEST_CSUM)
    }

    /// How virtqueues lie in memory.
    pub fn layout(self) -> Layout {
        if self.has(VIRTIO_F_RING_PACKED) {
            Layout::Packed
        } else {
            Layout::Split
        }
    }

    /// What concerns the virtqueues themselves.
    pub fn ring(self) -> Negotiated {
        Negotiated {
            event_idx: self.has(VIRTIO_RING_F_EVENT_IDX),
            indirect: self.has(VIRTIO_RING_F_INDIRECT_DESC),
            in_order: self.has(VIRTIO_F_IN_ORDER),
        }
    }
}

/// The header asks for something that was not negotiated, or its offsets lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadHeader;

/// What a guest's header says of the checksum of its frame of `frame_len` bytes (§5.1.6.2).
///
/// # Errors
/// Segmentation or a checksum was asked for though not negotiated, or the checksum lies outside the frame.
#[inline]
pub fn parse(header: &[u8; HEADER_MAX], features: Features, frame_len: usize) -> Result<Checksum, BadHeader> {
    let [flags, gso, ..] = *header;
    if u32::from(gso) != VIRTIO_NET_HDR_GSO_NONE {
        return Err(BadHeader);
    }
    if u32::from(flags) & VIRTIO_NET_HDR_F_NEEDS_CSUM == 0 {
        return Ok(Checksum::Unknown);
    }
    let start = u16::from_le_bytes([header[6], header[7]]);
    let offset = u16::from_le_bytes([header[8], header[9]]);
    let end = usize::from(start) + usize::from(offset) + 2;
    if !features.tx_checksum() || end > frame_len {
        return Err(BadHeader);
    }
    Ok(Checksum::Partial { start, offset })
}

/// The header of a frame to the guest that takes `buffers` chains (§5.1.6.4). `checksum` must be one that the guest
/// takes: a half-done one is completed before this, where GUEST_CSUM was not negotiated.
#[inline]
pub fn emit(checksum: Checksum, features: Features, buffers: u16) -> [u8; HEADER_MAX] {
    let mut header = [0; HEADER_MAX];
    if features.rx_checksum() {
        match checksum {
            Checksum::Partial { start, offset } => {
                header[0] = VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
                header[6..8].copy_from_slice(&start.to_le_bytes());
                header[8..10].copy_from_slice(&offset.to_le_bytes());
            }
            Checksum::Valid => header[0] = VIRTIO_NET_HDR_F_DATA_VALID as u8,
            Checksum::Unknown => {}
        }
    }
    header[10..12].copy_from_slice(&buffers.to_le_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const V1: u64 = 1 << VIRTIO_F_VERSION_1;
    const CSUM: u64 = 1 << VIRTIO_NET_F_CSUM;
    const GUEST_CSUM: u64 = 1 << VIRTIO_NET_F_GUEST_CSUM;

    #[test]
    fn header_length_follows_the_negotiation() {
        assert_eq!(Features::new(0).header_len(), 10);
        assert_eq!(Features::new(V1).header_len(), 12);
        assert_eq!(Features::new(1 << VIRTIO_NET_F_MRG_RXBUF).header_len(), 12);
    }

    #[test]
    fn a_half_done_checksum_goes_through_both_ways() {
        let partial = Checksum::Partial {
            start: 34,
            offset: 16,
        };
        let both = Features::new(V1 | CSUM | GUEST_CSUM);
        let header = emit(partial, both, 3);
        assert_eq!(header, [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 3, 0]);
        assert_eq!(parse(&header, both, 60), Ok(partial));
        assert_eq!(parse(&header, both, 52), Ok(partial));
        assert_eq!(
            parse(&header, both, 51),
            Err(BadHeader),
            "the checksum lies outside the frame"
        );
        assert_eq!(
            parse(&header, Features::new(V1), 60),
            Err(BadHeader),
            "not negotiated"
        );
    }

    #[test]
    fn good_data_is_marked_only_for_guests_that_asked() {
        assert_eq!(emit(Checksum::Valid, Features::new(V1 | GUEST_CSUM), 1)[0], 2);
        assert_eq!(emit(Checksum::Valid, Features::new(V1), 1)[0], 0);
        assert_eq!(
            emit(Checksum::Partial { start: 1, offset: 1 }, Features::new(V1), 1)[..10],
            [0; 10]
        );
    }

    #[test]
    fn segmentation_was_never_negotiated() {
        let features = Features::new(u64::MAX);
        for gso in [1, 3, 4, 5, 0x80, 0xff] {
            assert_eq!(
                parse(&[0, gso, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], features, 1514),
                Err(BadHeader)
            );
        }
    }

    proptest! {
        /// Whatever the header says, an accepted checksum lies inside the frame.
        #[test]
        fn accepted_offsets_lie_inside(header: [u8; HEADER_MAX], len in 0usize..3000, bits: u64) {
            if let Ok(Checksum::Partial { start, offset }) = parse(&header, Features::new(bits), len) {
                prop_assert!(usize::from(start) + usize::from(offset) + 2 <= len);
            }
        }
    }
}
