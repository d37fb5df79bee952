use proptest::prelude::*;

use super::*;
use crate::csum::tests::reference;

/// A packet, written down field by field.
#[derive(Debug, Clone)]
struct Packet {
    tags: usize,
    ipv6: bool,
    /// An IPv6 extension header of 8 bytes in front of layer 4.
    extension: bool,
    /// 32-bit words of IPv4 options, and of TCP options.
    options: [usize; 2],
    udp: bool,
    id: u16,
    sequence: u32,
    flags: u8,
    payload: Vec<u8>,
}

impl Packet {
    fn kind(&self) -> Kind {
        match (self.udp, self.ipv6) {
            (true, _) => Kind::Udp,
            (false, false) => Kind::Tcp4,
            (false, true) => Kind::Tcp6,
        }
    }

    fn l4(&self) -> usize {
        let ip = match (self.ipv6, self.extension) {
            (false, _) => 20 + 4 * self.options[0],
            (true, false) => 40,
            (true, true) => 48,
        };
        14 + 4 * self.tags + ip
    }

    fn ethernet(&self) -> Vec<u8> {
        let mut bytes = [2u8, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1].to_vec();
        for tag in 0..self.tags {
            bytes.extend([0x81, 0, 0, 5 + tag as u8]);
        }
        bytes.extend(if self.ipv6 { [0x86, 0xdd] } else { [8, 0] });
        bytes
    }

    fn transport(&self) -> Vec<u8> {
        let mut bytes = vec![0x12, 0x34, 0, 80];
        if self.udp {
            bytes.extend((8 + self.payload.len() as u16).to_be_bytes());
            bytes.extend([0; 2]);
        } else {
            bytes.extend(self.sequence.to_be_bytes());
            bytes.extend([
                9,
                8,
                7,
                6,
                ((5 + self.options[1]) << 4) as u8,
                self.flags,
                1,
                2,
                0,
                0,
                0,
                0,
            ]);
            bytes.extend((0..4 * self.options[1]).map(|i| i as u8));
        }
        bytes.extend(&self.payload);
        bytes
    }

    /// The whole frame with every checksum right.
    fn bytes(&self) -> Vec<u8> {
        let mut transport = self.transport();
        let length = transport.len();
        let protocol = if self.udp { 17 } else { 6 };
        let (ip, addresses) = if self.ipv6 {
            let mut ip = vec![0x60, 0, 0, 0];
            let extension = if self.extension { 8 } else { 0 };
            ip.extend(((extension + length) as u16).to_be_bytes());
            // Destination options (60), padded.
            ip.extend([if self.extension { 60 } else { protocol }, 64]);
            ip.extend((0..32).map(|i| i * 3));
            let addresses = ip[8..40].to_vec();
            if self.extension {
                ip.extend([protocol, 0, 1, 4, 0, 0, 0, 0]);
            }
            (ip, addresses)
        } else {
            let len = 20 + 4 * self.options[0];
            let mut ip = vec![0x40 | (len / 4) as u8, 0];
            ip.extend(((len + length) as u16).to_be_bytes());
            ip.extend(self.id.to_be_bytes());
            ip.extend([0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
            ip.resize(len, 1);
            let sum = !reference(&ip);
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
            let addresses = ip[12..20].to_vec();
            (ip, addresses)
        };
        let mut summed = addresses;
        summed.extend([0, protocol]);
        summed.extend((length as u16).to_be_bytes());
        summed.extend(&transport);
        let at = if self.udp { 6 } else { 16 };
        let sum = match !reference(&summed) {
            0 => 0xffff,
            sum => sum,
        };
        transport[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        [self.ethernet(), ip, transport].concat()
    }

    /// What has to come out: a packet for each piece of the payload.
    fn cut(&self, size: usize) -> Vec<Vec<u8>> {
        let pieces: Vec<&[u8]> = self.payload.chunks(size).collect();
        let last = pieces.len() - 1;
        let packet = |(i, piece): (usize, &&[u8])| {
            let mut flags = self.flags;
            if i != 0 {
                flags &= 0x7f;
            }
            if i != last {
                flags &= 0xf6;
            }
            Packet {
                id: self.id.wrapping_add(i as u16),
                sequence: self.sequence.wrapping_add((i * size) as u32),
                flags,
                payload: piece.to_vec(),
                ..self.clone()
            }
            .bytes()
        };
        pieces.iter().enumerate().map(packet).collect()
    }
}

fn packet() -> impl Strategy<Value = Packet> {
    let payload = proptest::collection::vec(any::<u8>(), 1..4000);
    (
        (0usize..3, any::<bool>(), any::<bool>(), any::<bool>()),
        (0usize..11, 0usize..11),
        any::<(u16, u32, u8)>(),
        payload,
    )
        .prop_map(
            |((tags, ipv6, extension, udp), options, (id, sequence, flags), payload)| Packet {
                tags,
                ipv6,
                extension,
                options: options.into(),
                udp,
                id,
                sequence,
                flags,
                payload,
            },
        )
}

/// All segments of `frame`, whole and with their checksums complete.
fn cut(frame: &[u8], kind: Kind, size: u16, l4: usize) -> Option<Vec<Vec<u8>>> {
    let segmentation = Segmentation::new(kind, false, size, l4 as u16, frame)?;
    let segmenter = Segmenter::new(segmentation, l4 as u16, frame, frame.len())?;
    let (start, offset) = segmenter.checksum_place();
    let whole = |i| {
        let segment = segmenter.segment(i);
        assert!(segment.len() <= segmentation.longest());
        let mut bytes = segment.header.to_vec();
        bytes.extend(&frame[segment.payload]);
        crate::csum::complete(&mut bytes, start.into(), offset.into());
        bytes
    };
    Some((0..segmenter.count()).map(whole).collect())
}

#[test]
fn a_frame_of_three_segments() {
    let packet = Packet {
        tags: 1,
        ipv6: false,
        extension: false,
        options: [0, 3],
        udp: false,
        id: 0xffff,
        sequence: u32::MAX - 50,
        // CWR, ACK, PSH, FIN.
        flags: 0x99,
        payload: (0..250).collect(),
    };
    let got = cut(&packet.bytes(), Kind::Tcp4, 100, packet.l4()).unwrap();
    assert_eq!(got, packet.cut(100));
    let flags: Vec<u8> = got.iter().map(|s| s[packet.l4() + 13]).collect();
    assert_eq!(flags, [0x90, 0x10, 0x19]);
    assert_eq!(got.iter().map(Vec::len).collect::<Vec<_>>(), [170, 170, 120]);
}

#[test]
fn dwarfs_and_giants_are_refused() {
    let packet = Packet {
        tags: 0,
        ipv6: false,
        extension: false,
        options: [0, 0],
        udp: false,
        id: 0,
        sequence: 0,
        flags: 0x10,
        payload: vec![0; 500],
    };
    let frame = packet.bytes();
    for size in [0, 1, 7, u16::MAX] {
        assert_eq!(cut(&frame, Kind::Tcp4, size, 34), None, "{size}");
    }
    assert_eq!(cut(&frame, Kind::Tcp4, 8, 34).unwrap().len(), 63);
    assert_eq!(cut(&frame[..54], Kind::Tcp4, 100, 34), None, "no payload");
    for (payload, segments) in [(8 * MAX_COUNT, Some(MAX_COUNT)), (8 * MAX_COUNT + 1, None)] {
        let long = [&frame[..54], &vec![0; payload]].concat();
        let made = cut(&long, Kind::Tcp4, 8, 34);
        assert_eq!(made.map(|segments| segments.len()), segments, "{payload}");
    }
    let datagrams = Packet { udp: true, ..packet };
    assert_eq!(cut(&datagrams.bytes(), Kind::Udp, 0, 34), None);
    assert_eq!(cut(&datagrams.bytes(), Kind::Udp, 1, 34).unwrap().len(), 500);
}

#[test]
fn types_are_numbered_as_in_virtio() {
    for (number, expected) in [
        (0, None),
        (1, Some((Kind::Tcp4, false))),
        (0x81, Some((Kind::Tcp4, true))),
        (3, None),
        (0x84, Some((Kind::Tcp6, true))),
        (5, Some((Kind::Udp, false))),
        (0x80, None),
    ] {
        assert_eq!(Kind::from_gso_type(number), expected, "{number}");
        if let Some((kind, ecn)) = expected {
            let segmentation = Segmentation {
                kind,
                ecn,
                size: 100,
                header_len: 54,
            };
            assert_eq!(segmentation.gso_type(), number);
        }
    }
}

proptest! {
    /// Whatever the frame, its segments are the packets that a sender without the offload would have made.
    #[test]
    fn segments_are_as_if_sent_one_by_one(packet in packet(), size in 8u16..2000) {
        let segments = cut(&packet.bytes(), packet.kind(), size, packet.l4());
        prop_assert_eq!(segments.unwrap(), packet.cut(size.into()));
    }

    /// Headers that are not what they should be are refused, never read or written past their end.
    #[test]
    fn no_bytes_make_it_panic(
        packet in packet(),
        changes in proptest::collection::vec((0usize..110, any::<u8>()), 0..6),
        keep in 0usize..200,
        kind in prop_oneof![Just(Kind::Tcp4), Just(Kind::Tcp6), Just(Kind::Udp)],
        l4 in prop_oneof![0usize..200, 14usize..60, Just(usize::from(u16::MAX))],
        right: bool,
        size: u16,
    ) {
        let mut frame = packet.bytes();
        for (at, byte) in changes {
            if let Some(place) = frame.get_mut(at) {
                *place = byte;
            }
        }
        if !right {
            frame.truncate(keep);
        }
        let l4 = if right { packet.l4() } else { l4 };
        if let Some(segments) = cut(&frame, kind, size, l4) {
            let header = segments[0].len() - (segments[0].len().min(usize::from(size)));
            prop_assert!(header <= MAX_HEADER);
            prop_assert!(segments.iter().all(|s| !s.is_empty()));
        }
        // With a segmentation that lies about these very bytes.
        let lie = Segmentation { kind, ecn: false, size, header_len: keep as u16 };
        if let Some(segmenter) = Segmenter::new(lie, l4 as u16, &frame, frame.len()) {
            let last = segmenter.segment(segmenter.count() - 1);
            prop_assert!(last.payload.end <= frame.len() && !last.payload.is_empty());
        }
    }

    #[test]
    fn slices_are_the_range(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        cuts in proptest::collection::vec(0usize..300, 0..5),
        range in (0usize..320, 0usize..320),
    ) {
        let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(bytes.len())).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let pieces = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]);
        let got: Vec<u8> = slices(pieces, range.0..range.1).flatten().copied().collect();
        let end = range.1.min(bytes.len());
        prop_assert_eq!(got, &bytes[range.0.min(end)..end]);
    }
}
