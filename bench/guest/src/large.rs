//! Frames of 64 KB: TCP that a guest with segmentation offload leaves to others to cut, and that need not be cut at all on
//! their way to another guest.

use std::fmt;
use std::time::Duration;

use anyhow::ensure;
use arrayvec::ArrayVec;
use vswitch_common::csum::Sum;
use vswitch_common::gso::{Kind, Segmentation};
use vswitch_common::mbuf::{Checksum, DATA_ROOM, Mbuf, TxChecksum};

use crate::ends::{Ends, MACS};

/// Payload of a segment on a wire: an MTU of 1500 without the headers.
const SEGMENT: usize = 1448;
/// Segments in a frame: as many as Linux puts into one.
const COUNT: usize = 45;
const ETHERNET: usize = 14;
const IPV4: usize = 20;
/// With time stamps, as Linux sends it.
const TCP: usize = 32;
const HEADER: usize = ETHERNET + IPV4 + TCP;
/// Bytes of a frame.
pub const LEN: usize = HEADER + COUNT * SEGMENT;
/// Frames under way at most: half of what the virtqueues have room for, at a descriptor for each mbuf.
const WINDOW: usize = 16;
/// A frame that has not come by then is lost.
const LOST: Duration = Duration::from_secs(1);

/// Mbufs of a frame.
pub const MBUFS: usize = LEN.div_ceil(DATA_ROOM);
pub type Segments = ArrayVec<Mbuf, MBUFS>;

/// What a run came to: `FRAMES BYTES NANOSECONDS`.
#[derive(Debug)]
pub struct Passed {
    frames: usize,
    nanoseconds: u64,
}

impl fmt::Display for Passed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.frames, self.frames * LEN, self.nanoseconds)
    }
}

/// Sends for `time` with [`WINDOW`] frames under way, until all have come.
///
/// # Errors
/// One did not come, or not whole.
pub fn run(ends: &mut Ends, time: Duration) -> anyhow::Result<Passed> {
    let (mut sent, mut received) = (0, 0);
    let (start, time, limit) = (ends.now(), time.as_nanos() as u64, LOST.as_nanos() as u64);
    let passed = loop {
        let elapsed = ends.now() - start;
        if elapsed >= time && received == sent {
            break Passed {
                frames: received,
                nanoseconds: elapsed,
            };
        }
        ensure!(
            elapsed < time + limit,
            "of {sent} frames of {LEN} bytes, {received} came whole"
        );
        while elapsed < time && sent - received < WINDOW && ends.send_large() {
            sent += 1;
        }
        received += ends.receive_large();
    };
    Ok(passed)
}

/// Makes one frame of empty mbufs, whose payload is what they have in them: nobody looks at it.
pub fn assemble(mut segments: Segments) -> Option<Mbuf> {
    let header = header();
    let mut left = LEN;
    for segment in &mut segments {
        let len = left.min(DATA_ROOM);
        segment.set_frame(len, Checksum::Unknown);
        left -= len;
    }
    let (first, rest) = segments.split_first_mut()?;
    first.data_mut()[..HEADER].copy_from_slice(&header);
    first.chain(rest);
    let place = TxChecksum {
        udp: false,
        ipv6: false,
        l2_len: ETHERNET as u16,
        l3_len: IPV4 as u16,
    };
    first.request_segmentation(place, segmentation(&header)?, false);
    segments.into_iter().next()
}

fn segmentation(header: &[u8]) -> Option<Segmentation> {
    Segmentation::new(
        Kind::Tcp4,
        false,
        SEGMENT as u16,
        (ETHERNET + IPV4) as u16,
        header,
    )
}

/// From the first guest to the second. The TCP checksum is the pseudo header's sum, length included: as virtio has it, so
/// that the driver need not prepare the frame.
fn header() -> [u8; HEADER] {
    let tcp_len = (LEN - ETHERNET - IPV4) as u16;
    let mut ip = [
        0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
    ];
    ip[2..4].copy_from_slice(&(IPV4 as u16 + tcp_len).to_be_bytes());
    let mut sum = Sum::default();
    sum.add(&ip);
    ip[10..12].copy_from_slice(&sum.checksum().to_be_bytes());
    let mut tcp = [0; TCP];
    // Ports, sequence numbers, length of the header in words, ACK, window; two NOPs and the time stamps' kind and length.
    tcp[..16].copy_from_slice(&[
        0x1f, 0x90, 0xc0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0x80, 0x10, 0xff, 0xff,
    ]);
    tcp[20..24].copy_from_slice(&[1, 1, 8, 10]);
    let mut pseudo = Sum::default();
    pseudo.add(&ip[12..20]);
    pseudo.add(&[0, ip[9]]);
    pseudo.add(&tcp_len.to_be_bytes());
    tcp[16..18].copy_from_slice(&pseudo.fold().to_be_bytes());
    let mut header = [0; HEADER];
    let parts: [&[u8]; 5] = [&MACS[1], &MACS[0], &[8, 0], &ip, &tcp];
    let bytes = parts.into_iter().flatten();
    header.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use vswitch_common::csum;

    fn sum(parts: &[&[u8]]) -> u16 {
        let mut sum = Sum::default();
        parts.iter().for_each(|part| sum.add(part));
        sum.fold()
    }

    #[test]
    fn a_frame_is_a_valid_packet_with_its_checksum_half_done() {
        let mut frame = header().to_vec();
        frame.extend((HEADER..LEN).map(|i| i as u8));
        let ip = ETHERNET..ETHERNET + IPV4;
        assert_eq!(frame[12..14], [8, 0]);
        assert_eq!(sum(&[&frame[ip.clone()]]), 0xffff);
        let len = u16::from_be_bytes([frame[16], frame[17]]);
        assert_eq!(usize::from(len), LEN - ETHERNET);
        csum::complete(&mut frame, ip.end, Kind::Tcp4.checksum_offset().into());
        let pseudo = [&frame[26..34], &[0, 6], &(len - IPV4 as u16).to_be_bytes()].concat();
        assert_eq!(sum(&[&pseudo, &frame[ip.end..]]), 0xffff);
    }

    #[test]
    fn its_headers_are_those_that_segments_get() {
        let segmentation = segmentation(&header()).unwrap();
        assert_eq!(usize::from(segmentation.header_len), HEADER);
        assert_eq!(segmentation.longest(), ETHERNET + 1500);
    }
}
