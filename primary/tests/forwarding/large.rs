//! Frames that are to be cut, or go whole.

use std::sync::Arc;

use dpdk_vswitchd::datapath::mirror::Mirror;
use dpdk_vswitchd::datapath::vlan::VlanPolicy;
use vswitch_common::mbuf::{Checksum, Mbuf};
use vswitch_common::stats::Counter;

use crate::fixture::{Fixture, PORTS, bench, large};

/// To a client a large frame goes whole, tag or not, if its segments are no longer than the port's frames may be.
#[test]
fn large_frames_pass_by_the_length_of_their_segments() {
    let bench = bench();
    let mut fixture = Fixture::new(
        &bench,
        &[
            VlanPolicy::access(5),
            VlanPolicy::trunk(&[5]),
            VlanPolicy::access(5),
            VlanPolicy::access(5),
        ],
    );
    let send = |fixture: &mut Fixture<'_>, size| {
        let (bytes, segmentation) = large(60_000, size);
        fixture.send_large(0, &bytes, segmentation);
        bytes
    };
    // Flooded: port 1 has it tagged, the others as it is.
    let bytes = send(&mut fixture, 1448);
    let tagged = [&bytes[..12], &[0x81, 0, 0, 5], &bytes[12..]].concat();
    let mut entry = [0];
    assert_eq!(fixture.clients[1].rx.dequeue(&mut entry).unwrap(), 1);
    // SAFETY: a frame that the switch gave to this client.
    let mut frame = unsafe { Mbuf::from_address(entry[0]) }.unwrap();
    assert_eq!(frame.segments().flatten().copied().collect::<Vec<u8>>(), tagged);
    let segmentation = frame.segmentation().unwrap();
    assert_eq!((segmentation.size, segmentation.header_len), (1448, 58));
    let shifted = Checksum::Partial {
        start: 38,
        offset: 16,
    };
    assert_eq!(frame.checksum(), shifted);
    fixture.clients[1].free.enqueue(&frame.split()).unwrap();
    fixture.clients[1].free.enqueue(&[frame]).unwrap();
    assert_eq!(
        [fixture.received(2), fixture.received(3)],
        [[bytes.clone()], [bytes]]
    );
    // Segments too long for port 3 only.
    let bytes = send(&mut fixture, 2000);
    assert_eq!(fixture.received(1).len(), 1);
    assert_eq!(fixture.received(2), [bytes]);
    assert!(fixture.received(3).is_empty());
    assert_eq!(fixture.total(3, Counter::TxDropTooLong), 1);
    fixture.end();
}

/// In short a large frame is one frame, and none that the mirror's output is too small for.
#[test]
fn a_large_frame_is_mirrored_in_short() {
    let bench = bench();
    for (output, snaplen, expected) in [(3, 64, 64), (3, 2000, 1518), (2, 4000, 4000)] {
        let mut fixture = Fixture::new(&bench, &vec![VlanPolicy::access(5); PORTS]);
        fixture.mirror(vec![Mirror {
            sources: [0].into_iter().collect(),
            destinations: [].into_iter().collect(),
            vlans: None,
            output,
            snaplen,
            selected: Arc::default(),
        }]);
        let (bytes, segmentation) = large(60_000, 1448);
        fixture.send_large(0, &bytes, segmentation);
        let seen = fixture.received(usize::from(output));
        assert_eq!(seen.iter().map(Vec::len).collect::<Vec<_>>(), [expected]);
        assert!(seen[0] == bytes[..expected] && fixture.received(1) == [bytes]);
        (2..PORTS).for_each(|port| drop(fixture.received(port)));
        fixture.end();
    }
}
