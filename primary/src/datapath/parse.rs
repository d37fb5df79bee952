//! The Ethernet header of a frame, read once from untrusted bytes into a small value.
//!
//! Addresses are kept as integers with the first byte on the wire in the lowest bits. Nothing here panics, whatever
//! the bytes.

use std::fmt;

/// A MAC address: byte 0 of the wire is the lowest byte.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(u64);

impl Mac {
    const MASK: u64 = 0xffff_ffff_ffff;

    /// From the low 48 bits of `bits`.
    #[inline]
    pub fn from_bits(bits: u64) -> Mac {
        Mac(bits & Self::MASK)
    }

    /// From bytes in wire order.
    pub fn new(bytes: [u8; 6]) -> Mac {
        let [a, b, c, d, e, f] = bytes;
        Mac(u64::from_le_bytes([a, b, c, d, e, f, 0, 0]))
    }

    /// The 48 bits.
    #[inline]
    pub fn bits(self) -> u64 {
        self.0
    }

    /// Bytes in wire order.
    pub fn bytes(self) -> [u8; 6] {
        let [a, b, c, d, e, f, ..] = self.0.to_le_bytes();
        [a, b, c, d, e, f]
    }

    /// Multicast or broadcast.
    #[inline]
    pub fn is_group(self) -> bool {
        self.0 & 1 != 0
    }

    /// May it be a source address? A group or the all-zero one may not.
    #[inline]
    pub fn is_station(self) -> bool {
        !self.is_group() && self.0 != 0
    }

    /// A group address that concerns the next bridge alone, and is not forwarded: 01:80:c2:00:00:0X (IEEE 802.1Q-2018 table 8-1), and
    /// those of Cisco's protocols that Open vSwitch counts among them.
    #[inline]
    pub fn is_reserved(self) -> bool {
        self.0 & 0xf0ff_ffff_ffff == 0x0000_00c2_8001 || self.0 & 0xff_ffff == 0x0c_0001 && self.is_ciscos()
    }

    /// Of 01:00:0c: ISL; CDP, VTP, DTP and others; PVST+; the VLAN bridge's spanning tree; FlexLink and others.
    #[cold]
    fn is_ciscos(self) -> bool {
        let [.., d, e, f] = self.bytes();
        matches!(
            [d, e, f],
            [0, 0, 0] | [0xcc, 0xcc, 0xcc | 0xcd | 0xc0..=0xc7] | [0xcd, 0xcd, 0xcd]
        )
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.bytes();
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The outermost VLAN tag (IEEE 802.1Q clause 9), with either TPID, 0x8100 or 0x88a8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag(pub u16);

impl Tag {
    /// VLAN id, 0 in a priority tag.
    #[inline]
    pub fn vid(self) -> u16 {
        self.0 & 0x0fff
    }

    /// The same priority bits with VLAN id `vid`.
    #[inline]
    pub fn with_vid(self, vid: u16) -> Tag {
        Tag(self.0 & 0xf000 | vid & 0x0fff)
    }
}

/// What forwarding needs of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ethernet {
    pub destination: Mac,
    pub source: Mac,
    pub tag: Option<Tag>,
}

/// The frame ends inside its Ethernet header or its VLAN tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Truncated;

/// Bytes of an Ethernet header without tags.
pub const HEADER_LEN: usize = 14;
/// Bytes of a VLAN tag.
pub const TAG_LEN: usize = 4;

// EtherTypes as they read in the little-endian word that `parse` takes apart.
const TPID_C: u64 = 0x0081;
const TPID_S: u64 = 0xa888;

/// Reads the header of the frame that begins at `bytes[0]`.
///
/// # Errors
/// [`Truncated`]
#[inline]
pub fn parse(bytes: &[u8]) -> Result<Ethernet, Truncated> {
    let Some(head) = bytes.first_chunk::<HEADER_LEN>() else {
        return Err(Truncated);
    };
    let (mut header, tagged) = addresses(head);
    if tagged {
        let Some(&[high, low, _, _]) = bytes[HEADER_LEN..].first_chunk::<TAG_LEN>() else {
            return Err(Truncated);
        };
        header.tag = Some(Tag(u16::from_be_bytes([high, low])));
    }
    Ok(header)
}

/// The same for a frame without a tag; `None`: it has one, or is too short.
#[inline]
pub fn parse_untagged(bytes: &[u8]) -> Option<Ethernet> {
    let (header, tagged) = addresses(bytes.first_chunk()?);
    (!tagged).then_some(header)
}

/// The addresses, and whether a tag follows.
#[inline]
fn addresses(head: &[u8; HEADER_LEN]) -> (Ethernet, bool) {
    let word = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&head[at..at + 8]);
        u64::from_le_bytes(bytes)
    };
    let (first, second) = (word(0), word(6));
    let ethertype = second >> 48;
    let header = Ethernet {
        destination: Mac::from_bits(first),
        source: Mac::from_bits(second),
        tag: None,
    };
    (header, ethertype == TPID_C || ethertype == TPID_S)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DST: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const SRC: [u8; 6] = [2, 0, 0, 0, 0, 2];

    fn frame(rest: &[u8]) -> Vec<u8> {
        [&DST[..], &SRC, rest].concat()
    }

    fn parsed(rest: &[u8]) -> Result<Option<Tag>, Truncated> {
        parse(&frame(rest)).map(|e| {
            assert_eq!((e.destination.bytes(), e.source.bytes()), (DST, SRC));
            e.tag
        })
    }

    /// The original kept bytes of the previous packet in its flow key: kinds that alternate must not mix.
    #[test]
    fn interleaved_kinds_do_not_leak_into_each_other() {
        for _ in 0..3 {
            assert_eq!(parsed(&[0x81, 0, 0x60, 5, 8, 0, 0x45]), Ok(Some(Tag(0x6005))));
            assert_eq!(parsed(&[8, 0, 0x45, 0, 0, 40]), Ok(None));
            assert_eq!(parsed(&[8, 6, 0, 1, 8, 0]), Ok(None));
            assert_eq!(parsed(&[0x88, 0xa8, 0, 7, 0x81, 0, 0, 9, 8, 0]), Ok(Some(Tag(7))));
            assert_eq!(parsed(&[0x86, 0xdd, 0x60, 0, 0, 0]), Ok(None));
            assert_eq!(parsed(&[0x81, 0, 0xe0, 0, 8, 0]), Ok(Some(Tag(0xe000))));
            assert_eq!(parsed(&[0x81, 0, 0]), Err(Truncated));
            assert_eq!(parsed(&[8, 0]), Ok(None));
        }
    }

    #[test]
    fn addresses_are_classified() {
        let mac = |s: [u8; 6]| Mac::new(s);
        assert!(mac([0xff; 6]).is_group() && !mac([0xff; 6]).is_reserved());
        for end in [0, 0xcc_cccc, 0xcc_cccd, 0xcd_cdcd, 0xcc_ccc0, 0xcc_ccc7_u32] {
            let [_, d, e, f] = end.to_be_bytes();
            assert!(mac([1, 0, 0xc, d, e, f]).is_reserved(), "{end:x}");
            assert!(!mac([1, 0, 0xc, d, e, f ^ 0x10]).is_reserved(), "{end:x}");
            assert!(!mac([1, 0, 0x5e, d, e, f]).is_reserved(), "{end:x}");
        }
        assert!(mac([1, 0x80, 0xc2, 0, 0, 0]).is_reserved() && mac([1, 0x80, 0xc2, 0, 0, 0xf]).is_reserved());
        assert!(
            !mac([1, 0x80, 0xc2, 0, 0, 0x10]).is_reserved() && !mac([1, 0x80, 0xc2, 0, 1, 0]).is_reserved()
        );
        assert!(!mac([0; 6]).is_station() && !mac([1, 0, 0, 0, 0, 0]).is_station() && mac(SRC).is_station());
        assert_eq!(mac(SRC).to_string(), "02:00:00:00:00:02");
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_are_truncated(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            match parse(&bytes) {
                Err(Truncated) => prop_assert!(bytes.len() < HEADER_LEN + TAG_LEN),
                Ok(e) => {
                    prop_assert_eq!(&e.destination.bytes()[..], &bytes[..6]);
                    prop_assert_eq!(&e.source.bytes()[..], &bytes[6..12]);
                    let tagged = matches!(bytes[12..14], [0x81, 0] | [0x88, 0xa8]);
                    prop_assert_eq!(e.tag.is_some(), tagged);
                }
            }
        }
    }
}
