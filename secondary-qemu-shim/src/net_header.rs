//! The header before every frame in a virtqueue (virtio 1.2 §5.1.6): `virtio_net_hdr_v1`, little-endian.

use virtio_bindings::virtio_config::{VIRTIO_F_IN_ORDER, VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_HDR_F_DATA_VALID, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_NONE,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vswitch_common::gso::{Kind, Segmentation};
use vswitch_common::mbuf::Checksum;

use crate::virtqueue::{Layout, Negotiated};

/// Bytes of the header with `num_buffers`.
pub const HEADER_MAX: usize = 12;
/// Bytes of it in a legacy device without mergeable buffers.
const HEADER_LEGACY: usize = 10;

/// The header of a frame in one buffer of which nothing is to be said ([`emit`]).
pub const PLAIN: [u8; HEADER_MAX] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

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

    /// May the guest send frames of this kind to be cut?
    fn sends_large(self, kind: Kind, ecn: bool) -> bool {
        let bit = match kind {
            Kind::Tcp4 => VIRTIO_NET_F_HOST_TSO4,
            Kind::Tcp6 => VIRTIO_NET_F_HOST_TSO6,
            Kind::Udp => VIRTIO_NET_F_HOST_USO,
        };
        self.has(bit) && (!ecn || self.has(VIRTIO_NET_F_HOST_ECN))
    }

    /// Does the guest take a frame whole that is to be cut so?
    #[cold]
    pub fn takes_large(self, segmentation: Segmentation) -> bool {
        let kind = match segmentation.kind {
            Kind::Tcp4 => self.has(VIRTIO_NET_F_GUEST_TSO4),
            Kind::Tcp6 => self.has(VIRTIO_NET_F_GUEST_TSO6),
            Kind::Udp => self.has(VIRTIO_NET_F_GUEST_USO4) && self.has(VIRTIO_NET_F_GUEST_USO6),
        };
        kind && self.rx_checksum() && (!segmentation.ecn || self.has(VIRTIO_NET_F_GUEST_ECN))
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

/// What a guest's header asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    pub checksum: Checksum,
    /// The frame is large, to be cut so.
    pub cut: Option<Cut>,
}

/// How a guest wants a frame to be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    pub kind: Kind,
    pub ecn: bool,
    /// Bytes of payload in each segment.
    pub size: u16,
    /// Where the TCP or UDP header begins.
    pub l4: u16,
}

/// What a guest's header says of its frame of `frame_len` bytes (§5.1.6.2).
///
/// # Errors
/// Segmentation or a checksum was asked for though not negotiated, the checksum lies outside the frame, or a frame to be cut
/// has none.
#[inline]
pub fn parse(header: &[u8; HEADER_MAX], features: Features, frame_len: usize) -> Result<Request, BadHeader> {
    let [flags, gso, ..] = *header;
    if u32::from(flags) & VIRTIO_NET_HDR_F_NEEDS_CSUM == 0 {
        return match u32::from(gso) {
            VIRTIO_NET_HDR_GSO_NONE => Ok(Request {
                checksum: Checksum::Unknown,
                cut: None,
            }),
            _ => Err(BadHeader),
        };
    }
    let start = u16::from_le_bytes([header[6], header[7]]);
    let offset = u16::from_le_bytes([header[8], header[9]]);
    let end = usize::from(start) + usize::from(offset) + 2;
    if !features.tx_checksum() || end > frame_len {
        return Err(BadHeader);
    }
    let cut = match u32::from(gso) {
        VIRTIO_NET_HDR_GSO_NONE => None,
        _ => Some(parse_cut(header, features, start, offset)?),
    };
    Ok(Request {
        checksum: Checksum::Partial { start, offset },
        cut,
    })
}

/// `hdr_len` is not looked at: it is a hint that Linux sets to anything from the headers' length up (§5.1.6.2).
#[cold]
fn parse_cut(
    header: &[u8; HEADER_MAX],
    features: Features,
    l4: u16,
    checksum_offset: u16,
) -> Result<Cut, BadHeader> {
    let (kind, ecn) = Kind::from_gso_type(header[1]).ok_or(BadHeader)?;
    if !features.sends_large(kind, ecn) || checksum_offset != kind.checksum_offset() {
        return Err(BadHeader);
    }
    let size = u16::from_le_bytes([header[4], header[5]]);
    Ok(Cut { kind, ecn, size, l4 })
}

/// Adds to a header that [`emit`] made how the guest may cut the frame.
#[cold]
pub fn emit_segmentation(header: &mut [u8; HEADER_MAX], segmentation: Segmentation) {
    header[1] = segmentation.gso_type();
    header[2..4].copy_from_slice(&segmentation.header_len.to_le_bytes());
    header[4..6].copy_from_slice(&segmentation.size.to_le_bytes());
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
        assert_eq!(emit(Checksum::Unknown, both, 1), PLAIN);
        let request = Request {
            checksum: partial,
            cut: None,
        };
        assert_eq!(parse(&header, both, 60), Ok(request));
        assert_eq!(parse(&header, both, 52), Ok(request));
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

    const ALL: u64 = u64::MAX;

    fn large(gso: u8, size: u16, offset: u16) -> [u8; HEADER_MAX] {
        let mut header = [1, gso, 0, 0, 0, 0, 34, 0, 0, 0, 0, 0];
        header[4..6].copy_from_slice(&size.to_le_bytes());
        header[8..10].copy_from_slice(&offset.to_le_bytes());
        header
    }

    #[test]
    fn large_frames_need_their_features() {
        for (gso, offset, kind, ecn, bits) in [
            (1, 16, Kind::Tcp4, false, &[VIRTIO_NET_F_HOST_TSO4][..]),
            (4, 16, Kind::Tcp6, false, &[VIRTIO_NET_F_HOST_TSO6]),
            (5, 6, Kind::Udp, false, &[VIRTIO_NET_F_HOST_USO]),
            (
                0x81,
                16,
                Kind::Tcp4,
                true,
                &[VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_ECN],
            ),
            (
                0x84,
                16,
                Kind::Tcp6,
                true,
                &[VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_ECN],
            ),
        ] {
            let header = large(gso, 1448, offset);
            let cut = Cut {
                kind,
                ecn,
                size: 1448,
                l4: 34,
            };
            let needed = bits.iter().fold(CSUM, |all, bit| all | 1 << bit);
            let parsed = parse(&header, Features::new(needed), 9000).unwrap();
            assert_eq!(parsed.cut, Some(cut));
            for bit in bits.iter().chain(&[VIRTIO_NET_F_CSUM]) {
                let less = Features::new(ALL & !(1 << bit));
                assert_eq!(parse(&header, less, 9000), Err(BadHeader), "{gso} without {bit}");
            }
        }
    }

    #[test]
    fn what_can_not_be_cut_is_refused() {
        let features = Features::new(ALL);
        for header in [
            large(2, 1448, 16),
            large(3, 1448, 6),
            large(0x80, 1448, 16),
            large(0xff, 1448, 16),
            // UDP's place of the checksum in TCP, and the other way round.
            large(1, 1448, 6),
            large(5, 1448, 16),
        ] {
            assert_eq!(parse(&header, features, 9000), Err(BadHeader), "{header:?}");
        }
        let mut whole = large(1, 1448, 16);
        whole[0] = 0;
        assert_eq!(
            parse(&whole, features, 9000),
            Err(BadHeader),
            "no half-done checksum"
        );
    }

    #[test]
    fn large_frames_reach_only_guests_that_take_them() {
        let segmentation = |kind, ecn| Segmentation {
            kind,
            ecn,
            size: 1448,
            header_len: 66,
        };
        for (kind, ecn, bits) in [
            (Kind::Tcp4, false, &[VIRTIO_NET_F_GUEST_TSO4][..]),
            (
                Kind::Tcp6,
                true,
                &[VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_ECN],
            ),
            (
                Kind::Udp,
                false,
                &[VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6],
            ),
        ] {
            let needed = bits.iter().fold(GUEST_CSUM, |all, bit| all | 1 << bit);
            assert!(Features::new(needed).takes_large(segmentation(kind, ecn)));
            for bit in bits.iter().chain(&[VIRTIO_NET_F_GUEST_CSUM]) {
                assert!(!Features::new(ALL & !(1 << bit)).takes_large(segmentation(kind, ecn)));
            }
        }
        let partial = Checksum::Partial {
            start: 34,
            offset: 16,
        };
        let mut header = emit(partial, Features::new(ALL), 2);
        emit_segmentation(&mut header, segmentation(Kind::Tcp4, true));
        assert_eq!(header, [1, 0x81, 66, 0, 0xa8, 5, 34, 0, 16, 0, 2, 0]);
    }

    proptest! {
        /// Whatever the header says, an accepted checksum lies inside the frame.
        #[test]
        fn accepted_offsets_lie_inside(header: [u8; HEADER_MAX], len in 0usize..3000, bits: u64) {
            if let Ok(Request { checksum: Checksum::Partial { start, offset }, .. }) =
                parse(&header, Features::new(bits), len)
            {
                prop_assert!(usize::from(start) + usize::from(offset) + 2 <= len);
            }
        }
    }
}
