//! Ethernet frames of every kind, and their text form on the way to a bare client.

use std::fmt;
use std::str::FromStr;

/// A MAC address in wire order.
pub type Mac = [u8; 6];

/// The broadcast address.
pub const BROADCAST: Mac = [0xff; 6];
/// EtherType for local experiments (IEEE 802).
pub const EXPERIMENT: u16 = 0x88b5;

/// A locally administered station address.
pub const fn mac(n: u8) -> Mac {
    [2, 0, 0, 0, 0, n]
}

/// A frame, and the place of its half-done checksum if it has one.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    pub bytes: Vec<u8>,
    /// Start and offset, as virtio's NEEDS_CSUM has them.
    pub partial: Option<(u16, u16)>,
}

impl Frame {
    /// A frame of these bytes.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Frame {
        Frame {
            bytes: bytes.into(),
            partial: None,
        }
    }

    /// `payload` behind an Ethernet header, padded to 60 bytes.
    pub fn ethernet(destination: Mac, source: Mac, ethertype: u16, payload: &[u8]) -> Frame {
        let mut bytes = [&destination[..], &source, &ethertype.to_be_bytes(), payload].concat();
        bytes.resize(bytes.len().max(60), 0);
        Frame::new(bytes)
    }

    /// A frame of `len` bytes in all whose payload is told by `mark`.
    pub fn marked(destination: Mac, source: Mac, mark: u8, len: usize) -> Frame {
        let payload: Vec<u8> = (0..len - 14).map(|i| mark.wrapping_add((i * 7) as u8)).collect();
        let mut frame = Frame::ethernet(destination, source, EXPERIMENT, &payload);
        frame.bytes.truncate(len);
        frame
    }

    /// The same with a VLAN tag in front of what there is.
    #[must_use]
    pub fn tagged(mut self, tci: u16) -> Frame {
        self.insert_tag(0x8100, tci);
        self
    }

    /// The same with a service tag (802.1ad) in front of what there is.
    #[must_use]
    pub fn service_tagged(mut self, tci: u16) -> Frame {
        self.insert_tag(0x88a8, tci);
        self
    }

    fn insert_tag(&mut self, tpid: u16, tci: u16) {
        let tag = [tpid.to_be_bytes(), tci.to_be_bytes()].concat();
        self.bytes.splice(12..12, tag);
        if let Some((start, _)) = &mut self.partial {
            *start += 4;
        }
    }

    /// An ARP request.
    pub fn arp(source: Mac, from: [u8; 4], to: [u8; 4]) -> Frame {
        let body = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &source, &from, &[0; 6], &to].concat();
        Frame::ethernet(BROADCAST, source, 0x0806, &body)
    }

    /// A TCP segment over IPv4 with `data`, its checksum half done, as a guest with checksum offload sends it.
    pub fn tcp4_partial(destination: Mac, source: Mac, data: &[u8]) -> Frame {
        let tcp = tcp_header();
        let len = tcp.len() + data.len();
        let mut ip = vec![
            0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
        ];
        ip[2..4].copy_from_slice(&((20 + len) as u16).to_be_bytes());
        let sum = !fold(sum(&ip));
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        let pseudo = fold(sum_of(&[&ip[12..20], &[0, 6], &(len as u16).to_be_bytes()]));
        Self::with_partial_tcp(destination, source, 0x0800, &ip, tcp, data, pseudo)
    }

    /// As [`Frame::tcp4_partial`], to everybody, with `len` bytes that count up; as long as a guest with segmentation offload
    /// likes.
    pub fn tcp4_large(len: usize) -> Frame {
        let data: Vec<u8> = (0..len).map(|i| i as u8).collect();
        Self::tcp4_partial(BROADCAST, mac(3), &data)
    }

    /// A TCP segment over IPv6 with `data`, its checksum half done.
    pub fn tcp6_partial(destination: Mac, source: Mac, data: &[u8]) -> Frame {
        let tcp = tcp_header();
        let len = tcp.len() + data.len();
        let mut ip = vec![0x60, 0, 0, 0, 0, 0, 6, 64];
        ip[4..6].copy_from_slice(&(len as u16).to_be_bytes());
        for last in [1, 2] {
            ip.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
        }
        let pseudo = fold(sum_of(&[&ip[8..40], &(len as u32).to_be_bytes(), &[0, 0, 0, 6]]));
        Self::with_partial_tcp(destination, source, 0x86dd, &ip, tcp, data, pseudo)
    }

    fn with_partial_tcp(
        destination: Mac,
        source: Mac,
        ethertype: u16,
        ip: &[u8],
        mut tcp: Vec<u8>,
        data: &[u8],
        pseudo: u16,
    ) -> Frame {
        tcp[16..18].copy_from_slice(&pseudo.to_be_bytes());
        let payload = [ip, &tcp, data].concat();
        let bytes = [&destination[..], &source, &ethertype.to_be_bytes(), &payload].concat();
        assert!(
            bytes.len() >= 60,
            "padding would be summed as well: give more data"
        );
        Frame {
            bytes,
            partial: Some((14 + ip.len() as u16, 16)),
        }
    }

    /// Of TCP or UDP over IPv4 without options: are the header's checksum and layer 4's as a receiver wants them?
    /// `None` for other frames.
    pub fn checksums_are_right(&self) -> Option<bool> {
        let ip = self.bytes.get(14..).filter(|_| self.bytes[12..14] == [8, 0])?;
        let len = usize::from(u16::from_be_bytes([*ip.get(2)?, *ip.get(3)?]));
        let (header, body) = ip.get(..len)?.split_at_checked(20)?;
        if header[0] != 0x45 || !matches!(header[9], 6 | 17) {
            return None;
        }
        let pseudo = [
            &header[12..20],
            &[0, header[9]],
            &(body.len() as u16).to_be_bytes(),
        ];
        let layer4 = fold(sum_of(&[&pseudo.concat(), body]));
        Some(fold(sum(header)) == 0xffff && layer4 == 0xffff)
    }

    /// The frame with its checksum complete, as a receiver without offload must see it.
    #[must_use]
    pub fn completed(mut self) -> Frame {
        if let Some((start, offset)) = self.partial.take() {
            let (start, at) = (usize::from(start), usize::from(start + offset));
            let sum = !fold(sum(&self.bytes[start..]));
            self.bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        self
    }

    /// Bytes.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The destination address.
    pub fn destination(&self) -> &[u8] {
        &self.bytes[..6]
    }
}

fn tcp_header() -> Vec<u8> {
    let mut tcp = vec![0x1f, 0x90, 0xc0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x18];
    tcp.extend([0xff, 0xff, 0, 0, 0, 0]);
    tcp
}

fn sum(bytes: &[u8]) -> u32 {
    bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
        .sum()
}

fn sum_of(parts: &[&[u8]]) -> u32 {
    parts.iter().map(|p| sum(p)).sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Hexadecimal bytes, and `/START+OFFSET` where the checksum is half done.
impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bytes.iter().try_for_each(|b| write!(f, "{b:02x}"))?;
        match self.partial {
            Some((start, offset)) => write!(f, "/{start}+{offset}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{} bytes: ", self.len())?;
        for (i, byte) in self.bytes.iter().take(40).enumerate() {
            let space = if [6, 12, 14, 18].contains(&i) { " " } else { "" };
            write!(f, "{space}{byte:02x}")?;
        }
        if self.len() > 40 {
            write!(f, "...")?;
        }
        if let Some(partial) = self.partial {
            write!(f, " checksum half done at {partial:?}")?;
        }
        write!(f, "]")
    }
}

impl FromStr for Frame {
    type Err = String;

    fn from_str(text: &str) -> Result<Frame, String> {
        let bad = || format!("{text:?} is no frame");
        let (hex, partial) = match text.split_once('/') {
            Some((hex, place)) => {
                let (start, offset) = place.split_once('+').ok_or_else(bad)?;
                let number = |s: &str| s.parse::<u16>().map_err(|_| bad());
                (hex, Some((number(start)?, number(offset)?)))
            }
            None => (text, None),
        };
        let digits = hex.as_bytes().as_chunks::<2>();
        if !digits.1.is_empty() {
            return Err(bad());
        }
        let bytes = digits.0.iter().map(|pair| {
            let pair = std::str::from_utf8(pair).map_err(|_| bad())?;
            u8::from_str_radix(pair, 16).map_err(|_| bad())
        });
        Ok(Frame {
            bytes: bytes.collect::<Result<_, _>>()?,
            partial,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_survives_its_text_form() {
        let frame = Frame::tcp4_partial(mac(1), mac(2), b"hello world").tagged(5);
        assert_eq!(frame.to_string().parse(), Ok(frame));
        assert!("0".parse::<Frame>().is_err() && "00/1".parse::<Frame>().is_err());
    }

    /// The sum over pseudo header, header and data of a good segment is all ones (RFC 1071).
    #[test]
    fn a_completed_checksum_is_right() {
        let frame = Frame::tcp4_partial(mac(1), mac(2), b"odd length").completed();
        let tcp = &frame.bytes[34..];
        let len = tcp.len() as u16;
        let all = sum_of(&[&frame.bytes[26..34], &[0, 6], &len.to_be_bytes(), tcp]);
        assert_eq!(fold(all), 0xffff);
    }
}
