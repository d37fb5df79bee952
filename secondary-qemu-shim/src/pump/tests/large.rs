//! Frames of several mbufs, and those that a guest leaves to others to cut.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4,
};
use vswitch_common::csum;

use super::*;

/// Features of a guest that sends large frames, and of one that takes them as well.
const SENDS: u64 = MERGEABLE | CSUM | 1 << VIRTIO_NET_F_HOST_TSO4 | 1 << VIRTIO_NET_F_HOST_ECN;
const TAKES: u64 = SENDS | 1 << VIRTIO_NET_F_GUEST_TSO4 | 1 << VIRTIO_NET_F_GUEST_ECN;
/// Bytes of the headers of [`tcp`], of which the first 34 are Ethernet's and IPv4's.
const HEADERS: usize = 54;

/// A TCP frame with `payload` bytes behind its headers, flags ACK, PSH and CWR, and its checksum half done.
fn tcp(payload: usize) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
    bytes.extend([0x45, 0]);
    bytes.extend(((40 + payload) as u16).to_be_bytes());
    bytes.extend([0, 7, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    bytes.extend([
        0x12, 0x34, 0, 80, 0, 0, 1, 0, 0, 0, 0, 9, 0x50, 0x98, 1, 2, 0, 0, 0, 0,
    ]);
    bytes.extend(frame(payload, 3));
    bytes
}

/// The virtio header of such a frame, to be cut into pieces of `size` bytes. Linux's `hdr_len` is any number.
fn request(size: u16) -> [u8; 12] {
    let [low, high] = size.to_le_bytes();
    [1, 0x81, 200, 0, low, high, 34, 0, 16, 0, 0, 0]
}

/// The payload of each segment in `frames`, all of whose headers are as they should be.
fn payloads(frames: &[Vec<u8>], size: usize, checksums: bool) -> Vec<u8> {
    let mut payload = Vec::new();
    for (i, frame) in frames.iter().enumerate() {
        let field = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
        let last = i + 1 == frames.len();
        assert_eq!(usize::from(field(16)), frame.len() - 14, "IPv4's length");
        assert_eq!(field(18), 7 + i as u16, "IPv4's identification");
        assert_eq!(usize::from(field(40)), 0x100 + i * size, "TCP's sequence number");
        let flags = 0x10 | if i == 0 { 0x80 } else { 0 } | if last { 8 } else { 0 };
        assert_eq!(frame[47], flags, "TCP's flags");
        assert!(last || frame.len() == HEADERS + size);
        if checksums {
            let mut sum = csum::Sum::default();
            sum.add(&frame[26..34]);
            sum.add(&[0, 6]);
            sum.add(&(frame.len() as u16 - 34).to_be_bytes());
            sum.add(&frame[34..]);
            assert_eq!(sum.fold(), 0xffff, "TCP's checksum");
        }
        payload.extend_from_slice(&frame[HEADERS..]);
    }
    payload
}

impl Bench {
    /// The guest offers `count` receive buffers of `size` bytes, each at the place of its descriptor.
    fn offer_large(&mut self, count: usize, size: u64) {
        for _ in 0..count {
            let slot = u64::from(self.rx.available % 256);
            self.rx.offer(&[(RX_BUFFERS + slot * size, size as u32, true)]);
        }
    }

    /// The frames in the guest's buffers of `size` bytes that were used since the last call, behind their headers.
    fn received(&mut self, size: u64) -> Vec<([u8; 12], Vec<u8>)> {
        let mut frames = Vec::new();
        let used = self.rx.used();
        let mut rest = used.iter();
        while let Some(&(id, len)) = rest.next() {
            let mut bytes = peek(&self.memory, RX_BUFFERS + u64::from(id) * size, len as usize);
            let header: [u8; 12] = bytes[..12].try_into().unwrap();
            for _ in 1..u16::from_le_bytes([header[10], header[11]]) {
                let &(id, len) = rest.next().expect("as many buffers as the header says");
                bytes.extend(peek(
                    &self.memory,
                    RX_BUFFERS + u64::from(id) * size,
                    len as usize,
                ));
            }
            frames.push((header, bytes.split_off(12)));
        }
        frames
    }
}

#[test]
fn long_frames_take_several_mbufs() {
    let mut bench = Bench::new(MERGEABLE);
    let sent: Vec<Vec<u8>> = [2048, 2049, 9014, MAX_SEGMENTS * DATA_ROOM]
        .map(|len| frame(len, 1))
        .into();
    for bytes in &sent {
        bench.transmit(TX_BUFFERS, &[0; 12], bytes, 3333);
        bench.run();
    }
    assert_eq!(bench.port.collect(), sent);
    bench.offer_large(60, 1500);
    sent.iter().for_each(|bytes| bench.port.deliver(bytes));
    bench.run();
    let got: Vec<Vec<u8>> = bench.received(1500).into_iter().map(|(_, bytes)| bytes).collect();
    assert_eq!(got, sent);
    bench.assert_all_mbufs_home();
}

#[test]
fn a_long_frame_waits_for_enough_mbufs() {
    let mut bench = Bench::new(V1);
    let mut held: Vec<_> = bench
        .port
        .switch(|switch| std::iter::from_fn(|| switch.buffers.empty()).collect());
    let mut give = |bench: &Bench, count: usize| {
        let some = held.split_off(held.len() - count);
        bench
            .port
            .switch(|switch| some.into_iter().for_each(|m| switch.buffers.give_back(m)));
    };
    give(&bench, 4);
    bench.transmit(TX_BUFFERS, &[0; 12], &frame(9000, 1), 4096);
    assert_eq!(bench.run().to_switch, Standing::AwaitsSwitch);
    assert_eq!(bench.tx.used_index(), 0);
    give(&bench, 1);
    bench.run();
    assert_eq!(bench.port.collect(), [frame(9000, 1)]);
    give(&bench, 595);
    bench.assert_all_mbufs_home();
}

#[test]
fn a_large_frame_passes_whole_between_guests_that_take_it() {
    let mut bench = Bench::new(TAKES);
    bench.port.switch(|switch| switch.echo = true);
    bench.offer_large(60, 1500);
    // The second fits one mbuf.
    for payload in [40_000, 1900] {
        bench.transmit(TX_BUFFERS, &request(1000), &tcp(payload), 4096);
        bench.run();
    }
    let got = bench.received(1500);
    for ((header, bytes), payload) in got.iter().zip([40_000, 1900]) {
        // The length of the headers is what it is now.
        assert_eq!(header[..10], [1, 0x81, HEADERS as u8, 0, 0xe8, 3, 34, 0, 16, 0]);
        assert_eq!(*bytes, tcp(payload));
    }
    assert_eq!(got.len(), 2);
    assert_eq!((bench.stat(|s| &s.tx_large), bench.stat(|s| &s.rx_large)), (2, 2));
    bench.assert_all_mbufs_home();
}

/// With and without half-done checksums, into buffers that come one by one.
#[test]
fn a_large_frame_is_cut_for_a_guest_that_does_not_take_it() {
    for (features, checksums) in [(SENDS, false), (SENDS & !(1 << VIRTIO_NET_F_GUEST_CSUM), true)] {
        let mut bench = Bench::new(features);
        bench.port.switch(|switch| switch.echo = true);
        bench.transmit(TX_BUFFERS, &request(1000), &tcp(40_500), 4096);
        let mut frames = Vec::new();
        for round in 0..41 {
            assert_eq!(bench.run().to_guest, Standing::AwaitsGuest, "{round}");
            bench.offer_large(1, 1500);
            bench.run();
            for (header, bytes) in bench.received(1500) {
                let expected = if checksums {
                    [0; 10]
                } else {
                    [1, 0, 0, 0, 0, 0, 34, 0, 16, 0]
                };
                assert_eq!(header[..10], expected);
                frames.push(bytes);
            }
        }
        assert_eq!(frames.len(), 41);
        assert_eq!(payloads(&frames, 1000, checksums), tcp(40_500)[HEADERS..]);
        assert_eq!(
            (bench.stat(|s| &s.rx_frames), bench.stat(|s| &s.rx_large)),
            (1, 0)
        );
        bench.assert_all_mbufs_home();
    }
}

/// A driver that stops half-way: the next one gets no second half.
#[test]
fn a_frame_half_cut_is_forgotten_with_its_driver() {
    let mut bench = Bench::new(SENDS);
    bench.port.switch(|switch| switch.echo = true);
    bench.transmit(TX_BUFFERS, &request(1000), &tcp(10_000), 4096);
    bench.offer_large(3, 1500);
    bench.run();
    assert_eq!(bench.received(1500).len(), 3);
    bench.state.forget_frames();
    bench.transmit(TX_BUFFERS, &request(1000), &tcp(2000), 4096);
    bench.offer_large(3, 1500);
    bench.run();
    let frames: Vec<Vec<u8>> = bench.received(1500).into_iter().map(|(_, bytes)| bytes).collect();
    assert_eq!(payloads(&frames, 1000, false), tcp(2000)[HEADERS..]);
    bench.assert_all_mbufs_home();
}

#[test]
fn requests_that_do_not_fit_the_frame_are_refused() {
    let mut bench = Bench::new(TAKES);
    let mut ipv6 = tcp(3000);
    ipv6[12..14].copy_from_slice(&[0x86, 0xdd]);
    let mut udp = tcp(1000);
    udp[23] = 17;
    for (i, (size, bytes)) in [
        (0, tcp(3000)),
        (7, tcp(1000)),
        (40, tcp(60_000)),
        (1448, ipv6),
        (1448, udp),
    ]
    .into_iter()
    .enumerate()
    {
        bench.transmit(TX_BUFFERS, &request(size), &bytes, 4096);
        bench.run();
        assert_eq!(bench.stat(|s| &s.tx_bad_header), i as u64 + 1);
    }
    assert!(bench.port.collect().is_empty());
    assert_eq!(bench.stat(|s| &s.tx_large), 0);
    bench.assert_all_mbufs_home();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Frames of any length echoed by the switch, large or not, to a guest that takes them or not, into buffers of any size.
    #[test]
    fn any_frame_comes_back_whole_or_cut(
        frames in proptest::collection::vec((any::<bool>(), 1usize..60_000, 8u16..9000), 1..6),
        takes: bool,
        buffer in 1100u64..3400,
    ) {
        let mut bench = Bench::new(if takes { TAKES } else { SENDS });
        bench.port.switch(|switch| switch.echo = true);
        for (large, payload, size) in frames {
            let size = size.max(payload as u16 / 200);
            let sent = tcp(payload);
            bench.transmit(TX_BUFFERS, &if large { request(size) } else { [0; 12] }, &sent, 4096);
            let mut got = Vec::new();
            for round in 0..250 {
                bench.offer_large(if round == 0 { 62 } else { 10 }, buffer);
                bench.run();
                got.extend(bench.received(buffer).into_iter().map(|(_, bytes)| bytes));
                if got.iter().map(|f| f.len() - HEADERS).sum::<usize>() >= payload {
                    break;
                }
            }
            if large && !takes {
                prop_assert_eq!(payloads(&got, size.into(), false), &sent[HEADERS..]);
            } else {
                prop_assert_eq!(&got, &[sent]);
            }
        }
        bench.assert_all_mbufs_home();
    }
}
