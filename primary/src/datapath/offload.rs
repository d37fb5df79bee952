//! What is left to a NIC of the work on a frame that leaves by it, as far as its driver can, and software for the rest.

use vswitch_common::csum::Sum;
use vswitch_common::ethdev::Offloads;
use vswitch_common::gso::{self, Segmentation};
use vswitch_common::mbuf::{Checksum, Mbuf, TxChecksum};

use super::ledger::Ledger;
use super::parse::{self, Tag};
use super::vlan::Egress;

/// IPv4's and IPv6's number for TCP.
const TCP: u8 = 6;
/// Bytes of an Ethernet header, and of a TCP and a UDP header: up to the checksum, and in all.
const ETHERNET: usize = 14;
const TCP_CHECKSUM: u16 = 16;
const UDP_CHECKSUM: u16 = 6;
const TCP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;

/// Does the NIC put the tag in with which an untagged frame leaves?
#[inline]
pub fn inserts_tag(offloads: &Offloads, tag: Option<Tag>, egress: Egress) -> bool {
    offloads.tx_vlan && tag.is_none() && egress == Egress::Tagged
}

/// Makes a client's frame fit for a driver: a sound header, its checksum complete or left to the NIC, and no shorter than on a
/// wire. (Some NICs take a frame of 16 bytes for an attack, and stop. The headers of a chain are made anew as it goes to the
/// driver, links and all.)
pub fn ready_for_driver(frame: &mut Mbuf, ledger: &Ledger, offloads: &Offloads) {
    let single = frame.segment_count() <= 1;
    if single {
        ledger.scrub(frame);
        frame.pad();
    }
    let checksum = frame.checksum();
    frame.set_checksum(Checksum::Unknown);
    let Checksum::Partial { start, offset } = checksum else {
        return;
    };
    match place(frame.data(), start, offset) {
        Some(place) if can(offloads, place) => frame.request_checksum(place),
        _ if single => vswitch_common::csum::complete(frame.data_mut(), start.into(), offset.into()),
        _ => complete_chain(frame, ledger, start.into(), offset.into()),
    }
}

#[cold]
fn complete_chain(frame: &mut Mbuf, ledger: &Ledger, start: usize, offset: usize) {
    let mut sum = Sum::default();
    sum.add(frame.data().get(start..).unwrap_or_default());
    ledger.with_rest(frame, |rest| {
        rest.iter().for_each(|segment| sum.add(segment.data()))
    });
    let field = frame.data_mut().get_mut(start + offset..);
    if let Some(field) = field.and_then(|f| f.first_chunk_mut()) {
        *field = sum.checksum().to_be_bytes();
    }
}

/// Leaves it to the NIC to cut a client's large frame. False, and nothing changed: it can't, or the frame is one mbuf, which
/// is not worth it.
#[cold]
pub fn leave_to_nic(frame: &mut Mbuf, offloads: &Offloads) -> bool {
    let (Some(segmentation), Checksum::Partial { start, offset }) = (frame.segmentation(), frame.checksum())
    else {
        return false;
    };
    let fit = offloads.tx_segmentation && frame.segment_count() > 1 && segmentation.size >= LEAST_FOR_NICS;
    let place = place(frame.data(), start, offset).filter(|place| fit && !place.udp);
    let Some(place) = place.filter(|place| place.ipv6 == (segmentation.kind == gso::Kind::Tcp6)) else {
        return false;
    };
    // What the client says of its headers' length may be wrong, and a NIC believes it.
    let Segmentation { kind, ecn, size, .. } = segmentation;
    if Segmentation::new(kind, ecn, size, start, frame.data()) != Some(segmentation) {
        return false;
    }
    as_dpdk_wants_it(frame.data_mut(), place, offloads.tx_ipv4_checksum);
    frame.set_checksum(Checksum::Unknown);
    frame.request_segmentation(place, segmentation, offloads.tx_ipv4_checksum && !place.ipv6);
    true
}

/// Bytes of payload in a segment that NICs take for no attack (i40e's least).
const LEAST_FOR_NICS: u16 = 256;

/// The sum of a pseudo header without length in the TCP checksum, and no IPv4 header checksum where the NIC makes it.
fn as_dpdk_wants_it(bytes: &mut [u8], place: TxChecksum, ip_checksum: bool) {
    let (l3, l4) = (
        usize::from(place.l2_len),
        usize::from(place.l2_len + place.l3_len),
    );
    // Nothing is certain of what a client may still write to.
    let Some((ip, tcp)) = bytes.get_mut(l3..).and_then(|b| b.split_at_mut_checked(l4 - l3)) else {
        return;
    };
    if ip_checksum
        && !place.ipv6
        && let Some(field) = ip.get_mut(10..12)
    {
        field.fill(0);
    }
    let pseudo = gso::pseudo_header(ip, place.ipv6, TCP, 0);
    if let Some(field) = tcp
        .get_mut(usize::from(TCP_CHECKSUM)..)
        .and_then(|f| f.first_chunk_mut())
    {
        *field = pseudo.to_be_bytes();
    }
}

fn can(offloads: &Offloads, place: TxChecksum) -> bool {
    if place.udp {
        offloads.tx_udp_checksum
    } else {
        offloads.tx_tcp_checksum
    }
}

/// The checksum at `start + offset` in a NIC's terms, if it is that of a TCP or UDP header right behind an IP header.
fn place(bytes: &[u8], start: u16, offset: u16) -> Option<TxChecksum> {
    let udp = match offset {
        TCP_CHECKSUM => false,
        UDP_CHECKSUM => true,
        _ => return None,
    };
    let mut l2_len = ETHERNET;
    loop {
        match bytes.get(l2_len - 2..l2_len)? {
            [0x81, 0x00] | [0x88, 0xa8] => l2_len += parse::TAG_LEN,
            [0x08, 0x00] | [0x86, 0xdd] => break,
            _ => return None,
        }
    }
    let l3_len = usize::from(start).checked_sub(l2_len)?;
    let (protocol, l4_len) = if udp { (17, UDP_HEADER) } else { (TCP, TCP_HEADER) };
    let header = bytes.get(..bytes.len().checked_sub(l4_len)?)?;
    let header = header.get(l2_len..l2_len + l3_len)?;
    let ipv6 = match header.first()? >> 4 {
        4 if l3_len == usize::from(header[0] & 15) * 4 && header.get(9) == Some(&protocol) => false,
        6 if l3_len == 40 && header.get(6) == Some(&protocol) => true,
        _ => return None,
    };
    // The widths of the fields that drivers read.
    (l2_len < 128 && l3_len < 512).then_some(TxChecksum {
        udp,
        ipv6,
        l2_len: l2_len as u16,
        l3_len: l3_len as u16,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(tags: usize, ethertype: [u8; 2], ip: &[u8]) -> (Vec<u8>, u16) {
        let mut bytes = vec![2; 12];
        for _ in 0..tags {
            bytes.extend([0x81, 0, 0, 5]);
        }
        bytes.extend(ethertype);
        bytes.extend(ip);
        let start = bytes.len() as u16;
        bytes.extend([0; 20]);
        (bytes, start)
    }

    fn ipv4(protocol: u8, words: u8) -> Vec<u8> {
        let mut ip = vec![0; usize::from(words) * 4];
        (ip[0], ip[9]) = (0x40 | words, protocol);
        ip
    }

    fn ipv6(next: u8) -> Vec<u8> {
        let mut ip = vec![0; 40];
        (ip[0], ip[6]) = (0x60, next);
        ip
    }

    #[test]
    fn plain_headers_are_found() {
        let (bytes, start) = frame(0, [8, 0], &ipv4(6, 5));
        let tcp4 = TxChecksum {
            udp: false,
            ipv6: false,
            l2_len: 14,
            l3_len: 20,
        };
        assert_eq!(place(&bytes, start, 16), Some(tcp4));
        let (bytes, start) = frame(2, [8, 0], &ipv4(17, 6));
        let tagged = TxChecksum {
            udp: true,
            ipv6: false,
            l2_len: 22,
            l3_len: 24,
        };
        assert_eq!(place(&bytes, start, 6), Some(tagged));
        let (bytes, start) = frame(1, [0x86, 0xdd], &ipv6(6));
        let tcp6 = TxChecksum {
            udp: false,
            ipv6: true,
            l2_len: 18,
            l3_len: 40,
        };
        assert_eq!(place(&bytes, start, 16), Some(tcp6));
    }

    #[test]
    fn all_else_is_left_to_software() {
        let (bytes, start) = frame(0, [8, 0], &ipv4(6, 5));
        for (start, offset) in [
            (start, 6),
            (start, 4),
            (start + 4, 16),
            (13, 16),
            (0, 16),
            (u16::MAX, 16),
        ] {
            assert_eq!(place(&bytes, start, offset), None, "{start}+{offset}");
        }
        assert_eq!(place(&bytes[..14], start, 16), None);
        // A header cut short behind its checksum.
        let short = bytes.len() - 2;
        assert_eq!(place(&bytes[..short], start, 16), None);
        // An extension header: its own is not the last protocol.
        let (bytes, start) = frame(0, [0x86, 0xdd], &ipv6(0));
        assert_eq!(place(&bytes, start, 16), None);
        let (bytes, start) = frame(0, [0x88, 0xcc], &ipv4(6, 5));
        assert_eq!(place(&bytes, start, 16), None);
        // Nothing but tags.
        let (bytes, _) = frame(40, [8, 0], &[]);
        assert_eq!(place(&bytes[..100], 90, 16), None);
    }
}
