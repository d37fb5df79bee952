//! Segmentation offload: a guest hands over frames larger than a wire takes and says how they are to be cut (virtio 1.2
//! §5.1.6.2). They stay whole for as long as whoever gets them can take them whole.
//!
//! Every segment has the frame's own headers, but for lengths, IPv4 identification, TCP sequence number and flags,
//! and checksums. Nothing here trusts the bytes: headers that do not add up make no [`Segmenter`].

use std::ops::Range;

use arrayvec::ArrayVec;

use crate::csum::Sum;

/// Segments that one frame makes at most: as many as 64 KiB do with Linux's least MSS (`TCP_MIN_SND_MSS`, 48). Smaller ones are for
/// shorter frames.
pub const MAX_COUNT: usize = 1366;
/// Bytes of headers at most, from Ethernet to TCP.
pub const MAX_HEADER: usize = 256;

const ETHERNET: usize = 14;
const TAG: usize = 4;
const IPV6_HEADER: usize = 40;
const UDP_HEADER: usize = 8;
const TCP_HEADER: usize = 20;
const TCP_PROTOCOL: u8 = 6;
const UDP_PROTOCOL: u8 = 17;

/// TCP flags (RFC 9293 §3.1): in the first segment only, and in the last only.
const CWR: u8 = 0x80;
const FIN_PSH: u8 = 0x09;

/// What is cut; numbers as virtio has them.
#[repr(u8)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// TCP over IPv4 (TSO4).
    Tcp4 = 1,
    /// TCP over IPv6 (TSO6).
    Tcp6 = 4,
    /// UDP over either, a datagram a segment (USO).
    Udp = 5,
}

/// Beside a [`Kind`]'s number, virtio's mark of a TCP frame with CWR set.
const ECN: u8 = 0x80;

impl Kind {
    /// From virtio's `gso_type`, and whether ECN is marked there.
    pub fn from_gso_type(number: u8) -> Option<(Kind, bool)> {
        let kind = match number & !ECN {
            1 => Kind::Tcp4,
            4 => Kind::Tcp6,
            5 => Kind::Udp,
            _ => return None,
        };
        Some((kind, number & ECN != 0))
    }

    /// Bytes from the layer 4 header's begin to its checksum.
    pub fn checksum_offset(self) -> u16 {
        match self {
            Kind::Tcp4 | Kind::Tcp6 => 16,
            Kind::Udp => 6,
        }
    }

    /// Bytes of payload that a segment has at least, but for the last: of TCP Linux's `TCP_MIN_GSO_SIZE`; a datagram may be as short as it
    /// likes.
    fn min_size(self) -> u16 {
        match self {
            Kind::Tcp4 | Kind::Tcp6 => 8,
            Kind::Udp => 1,
        }
    }

    fn protocol(self) -> u8 {
        match self {
            Kind::Tcp4 | Kind::Tcp6 => TCP_PROTOCOL,
            Kind::Udp => UDP_PROTOCOL,
        }
    }
}

/// How a frame is to be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segmentation {
    pub kind: Kind,
    /// The sender has CWR set (RFC 3168), which a cutter must know of.
    pub ecn: bool,
    /// Bytes of payload in each segment but the last.
    pub size: u16,
    /// Bytes of all headers, from Ethernet to TCP or UDP; at most [`MAX_HEADER`].
    pub header_len: u16,
}

impl Segmentation {
    /// Of a frame that begins with `head`, whose layer 4 header begins at `l4`; `None`: its headers are not what `kind`
    /// says, or `size` is none for it.
    pub fn new(kind: Kind, ecn: bool, size: u16, l4: u16, head: &[u8]) -> Option<Segmentation> {
        let headers = Headers::find(head, l4.into(), kind)?;
        let segmentation = Segmentation {
            kind,
            ecn,
            size,
            header_len: headers.len as u16,
        };
        segmentation.size_is_sound().then_some(segmentation)
    }

    /// virtio's `gso_type`.
    pub fn gso_type(&self) -> u8 {
        self.kind as u8 | if self.ecn { ECN } else { 0 }
    }

    /// Segments are no dwarfs, and their lengths fit their headers' fields.
    pub fn size_is_sound(&self) -> bool {
        self.size >= self.kind.min_size() && self.longest() <= u16::MAX.into()
    }

    /// Segments that a frame of `len` bytes makes.
    ///
    /// # Panics
    /// If the size is zero.
    pub fn count(&self, len: usize) -> usize {
        let payload = len.saturating_sub(self.header_len.into());
        payload.div_ceil(self.size.into())
    }

    /// Bytes of the longest segment.
    pub fn longest(&self) -> usize {
        usize::from(self.header_len) + usize::from(self.size)
    }
}

/// Where the headers of a frame are, in bytes from its begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Headers {
    l3: usize,
    l4: usize,
    len: usize,
    ipv6: bool,
}

impl Headers {
    fn find(head: &[u8], l4: usize, kind: Kind) -> Option<Headers> {
        let mut l3 = ETHERNET;
        let ipv6 = loop {
            match head.get(l3 - 2..l3)? {
                [0x81, 0x00] | [0x88, 0xa8] => l3 += TAG,
                [0x08, 0x00] => break false,
                [0x86, 0xdd] => break true,
                _ => return None,
            }
        };
        let l3_len = l4.checked_sub(l3)?;
        let ip = head.get(l3..l4)?;
        let right = match (ip.first()? >> 4, ipv6) {
            (4, false) => l3_len == usize::from(ip[0] & 15) * 4 && ip.get(9) == Some(&kind.protocol()),
            // Extension headers may come between.
            (6, true) => l3_len > IPV6_HEADER || l3_len == IPV6_HEADER && ip.get(6) == Some(&kind.protocol()),
            _ => false,
        };
        let l4_len = match kind {
            Kind::Tcp4 | Kind::Tcp6 => usize::from(head.get(l4 + 12)? >> 4) * 4,
            Kind::Udp => UDP_HEADER,
        };
        let version = match kind {
            Kind::Tcp4 => !ipv6,
            Kind::Tcp6 => ipv6,
            Kind::Udp => true,
        };
        let long_enough = kind == Kind::Udp || l4_len >= TCP_HEADER;
        let len = l4 + l4_len;
        (right && version && long_enough && len <= MAX_HEADER.min(head.len())).then_some(Headers {
            l3,
            l4,
            len,
            ipv6,
        })
    }
}

/// Cuts one frame. It has a copy of the headers, and says which of the payload's bytes go where.
#[derive(Debug, Clone)]
pub struct Segmenter {
    kind: Kind,
    headers: Headers,
    bytes: ArrayVec<u8, MAX_HEADER>,
    size: usize,
    /// Bytes behind the headers.
    payload: usize,
}

/// A segment: its headers, with the layer 4 checksum half done, and where in the large frame its payload is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    pub header: ArrayVec<u8, MAX_HEADER>,
    pub payload: Range<usize>,
}

impl Segment {
    /// Bytes of the whole.
    pub fn len(&self) -> usize {
        self.header.len() + self.payload.len()
    }

    /// Never: it has headers at least.
    pub fn is_empty(&self) -> bool {
        false
    }
}

impl Segmenter {
    /// For a frame of `len` bytes that begins with `head` (its headers at least), whose layer 4 header begins at `l4`.
    /// `None`: the headers are not what `segmentation` says, nothing is behind them, or far too much.
    pub fn new(segmentation: Segmentation, l4: u16, head: &[u8], len: usize) -> Option<Segmenter> {
        let mut bytes = ArrayVec::new();
        let copied = head
            .len()
            .min(usize::from(segmentation.header_len))
            .min(MAX_HEADER);
        bytes.try_extend_from_slice(&head[..copied]).ok()?;
        // Of the copy: what `head` is of may change meanwhile.
        let headers = Headers::find(&bytes, l4.into(), segmentation.kind)?;
        bytes.truncate(headers.len);
        let payload = len.checked_sub(headers.len)?;
        let sound = segmentation.size_is_sound() && segmentation.count(len) <= MAX_COUNT;
        (payload > 0 && sound).then_some(Segmenter {
            kind: segmentation.kind,
            headers,
            bytes,
            size: segmentation.size.into(),
            payload,
        })
    }

    /// Segments that it makes.
    pub fn count(&self) -> usize {
        self.payload.div_ceil(self.size)
    }

    /// Where in a segment its layer 4 header begins, and in that its checksum is: what the half-done one is completed by.
    pub fn checksum_place(&self) -> (u16, u16) {
        (self.headers.l4 as u16, self.kind.checksum_offset())
    }

    /// Segment `index`, less than [`Segmenter::count`].
    pub fn segment(&self, index: usize) -> Segment {
        let at = index * self.size;
        let len = self.payload.saturating_sub(at).min(self.size);
        let mut header = self.bytes.clone();
        let Headers { l3, l4, .. } = self.headers;
        let ip_len = (header.len() - l3 + len) as u16;
        let l4_len = (header.len() - l4 + len) as u16;
        let ip = &mut header[l3..l4];
        if self.headers.ipv6 {
            ip[4..6].copy_from_slice(&(ip_len - IPV6_HEADER as u16).to_be_bytes());
        } else {
            let id = u16::from_be_bytes([ip[4], ip[5]]).wrapping_add(index as u16);
            ip[2..4].copy_from_slice(&ip_len.to_be_bytes());
            ip[4..6].copy_from_slice(&id.to_be_bytes());
            ip[10..12].fill(0);
            let mut sum = Sum::default();
            sum.add(ip);
            ip[10..12].copy_from_slice(&(!sum.fold()).to_be_bytes());
        }
        let pseudo = pseudo_header(ip, self.headers.ipv6, self.kind.protocol(), l4_len);
        let transport = &mut header[l4..];
        match self.kind {
            Kind::Udp => transport[4..6].copy_from_slice(&l4_len.to_be_bytes()),
            Kind::Tcp4 | Kind::Tcp6 => {
                if let Some(sequence) = transport[4..].first_chunk_mut::<4>() {
                    *sequence = u32::from_be_bytes(*sequence)
                        .wrapping_add(at as u32)
                        .to_be_bytes();
                }
                if index > 0 {
                    transport[13] &= !CWR;
                }
                if index + 1 < self.count() {
                    transport[13] &= !FIN_PSH;
                }
            }
        }
        let field = usize::from(self.kind.checksum_offset());
        transport[field..field + 2].copy_from_slice(&pseudo.to_be_bytes());
        let begin = header.len() + at;
        Segment {
            header,
            payload: begin..begin + len,
        }
    }
}

/// The sum of the pseudo header (RFC 9293 §3.1, RFC 8200 §8.1) of the packet that `ip` is the header of. With a length of
/// zero: as DPDK wants it of a frame that a NIC cuts.
pub fn pseudo_header(ip: &[u8], ipv6: bool, protocol: u8, l4_len: u16) -> u16 {
    let mut sum = Sum::default();
    let addresses = if ipv6 { 8..IPV6_HEADER } else { 12..20 };
    sum.add(ip.get(addresses).unwrap_or_default());
    sum.add(&[0, protocol]);
    sum.add(&l4_len.to_be_bytes());
    sum.fold()
}

/// The bytes `range` of a frame that lies in `pieces`, as far as they are there.
pub fn slices<'a>(
    pieces: impl Iterator<Item = &'a [u8]>,
    range: Range<usize>,
) -> impl Iterator<Item = &'a [u8]> {
    let mut at = 0;
    pieces.filter_map(move |piece| {
        let begin = at;
        at += piece.len();
        let from = range.start.saturating_sub(begin).min(piece.len());
        let to = range.end.saturating_sub(begin).min(piece.len());
        (from < to).then(|| &piece[from..to])
    })
}

#[cfg(test)]
mod tests;
