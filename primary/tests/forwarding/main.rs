//! The fast path on real rings and mbufs in one process, held against a simple model; and against garbage.

mod fixture;
mod large;
mod model;
mod shares;

use dpdk_vswitchd::datapath::BURST;
use dpdk_vswitchd::datapath::ledger::Owner;
use dpdk_vswitchd::datapath::vlan::VlanPolicy;
use proptest::prelude::*;
use vswitch_common::mbuf::Mbuf;
use vswitch_common::stats::Counter;

use fixture::{Fixture, PORTS, bench};
use model::{MirrorModel, Mode, Model, alike, frame, mirrors, mode};

/// Frames and their bytes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Passed {
    frames: u64,
    bytes: u64,
}

impl Passed {
    fn add(&mut self, frame: &[u8]) {
        self.frames += 1;
        self.bytes += frame.len() as u64;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Every frame leaves where, and as, the model says; nothing is lost, and every frame is counted.
    #[test]
    fn the_bridge_does_as_the_model(
        modes in proptest::collection::vec(mode(), PORTS),
        mirrors in mirrors(),
        frames in proptest::collection::vec((0..PORTS, frame()), 1..80),
    ) {
        let bench = bench();
        let mut fixture = Fixture::new(&bench, &modes.iter().map(Mode::policy).collect::<Vec<_>>());
        fixture.mirror(mirrors.iter().map(MirrorModel::mirror).collect());
        let mut model = Model::new(modes, mirrors);
        for (from, frame) in &frames {
            let mut expected = vec![Vec::new(); PORTS];
            for (port, bytes) in model.forward(*from, frame) {
                expected[port].push(bytes);
            }
            fixture.send(*from, frame);
            for (port, expected) in expected.iter().enumerate() {
                prop_assert_eq!(&fixture.received(port), expected, "port {} after {:02x?} from {}", port, frame, from);
            }
        }
        for port in 0..PORTS {
            let sent = frames.iter().filter(|(from, _)| *from == port).count() as u64;
            prop_assert_eq!(fixture.total(port, Counter::RxPackets), sent);
        }
        fixture.assert_dropped(&model.dropped);
        let (copies, out) = fixture.copies();
        prop_assert_eq!(copies, out);
        fixture.end();
    }

    /// The same of bursts, whether their frames are alike, all but one, or of every kind.
    #[test]
    fn bursts_do_as_the_model(
        modes in proptest::collection::vec(mode(), PORTS),
        mirrors in mirrors(),
        bursts in proptest::collection::vec(
            (
                0..PORTS,
                prop_oneof![
                    3 => alike(),
                    2 => (alike(), any::<prop::sample::Index>(), frame()).prop_map(|(mut frames, at, other)| {
                        let at = at.index(frames.len());
                        frames[at] = other;
                        frames
                    }),
                    1 => proptest::collection::vec(frame(), 1..BURST),
                ],
            ),
            1..12,
        ),
    ) {
        let bench = bench();
        let mut fixture = Fixture::new(&bench, &modes.iter().map(Mode::policy).collect::<Vec<_>>());
        fixture.mirror(mirrors.iter().map(MirrorModel::mirror).collect());
        let mut model = Model::new(modes, mirrors);
        let (mut came, mut left) = ([Passed::default(); PORTS], [Passed::default(); PORTS]);
        for (from, frames) in &bursts {
            let mut expected = vec![Vec::new(); PORTS];
            for frame in frames {
                came[*from].add(frame);
                for (port, bytes) in model.forward(*from, frame) {
                    left[port].add(&bytes);
                    expected[port].push(bytes);
                }
                fixture.put(*from, frame, |_| {});
            }
            fixture.poll(*from);
            for (port, expected) in expected.iter().enumerate() {
                prop_assert_eq!(&fixture.received(port), expected, "port {} after a burst from {}", port, from);
            }
        }
        for port in 0..PORTS {
            let passed = |frames, bytes| Passed {
                frames: fixture.total(port, frames),
                bytes: fixture.total(port, bytes),
            };
            prop_assert_eq!(passed(Counter::RxPackets, Counter::RxBytes), came[port]);
            prop_assert_eq!(passed(Counter::TxPackets, Counter::TxBytes), left[port]);
        }
        fixture.assert_dropped(&model.dropped);
        let (copies, out) = fixture.copies();
        prop_assert_eq!(copies, out);
        fixture.end();
    }

    /// Whatever a client writes on its rings and into its mbufs: counted or clamped, and no mbuf is lost.
    #[test]
    fn garbage_on_the_rings_costs_nothing(
        entries in proptest::collection::vec((0usize..6, any::<usize>(), any::<[u16; 4]>()), 1..200),
    ) {
        let bench = bench();
        let mut fixture = Fixture::new(&bench, &vec![VlanPolicy::trunk(&[]); PORTS]);
        fixture.poll(0);
        fixture.poll(1);
        let mut own = Vec::new();
        let mut wrong = 0;
        let mut theirs = [0; 64];
        fixture.clients[1].alloc.dequeue(&mut theirs).unwrap();
        for (kind, number, lengths) in entries {
            let mut entry = [0];
            if fixture.clients[0].alloc.dequeue(&mut entry).unwrap() == 1 {
                own.push(entry[0]);
            }
            let Some(&mine) = own.get(number % own.len().max(1)) else { continue };
            let address = match kind {
                0 => number,
                1 => mine + 64 * (1 + number % 30),
                2 => theirs[number % theirs.len()],
                // Its own, perhaps for the second time, with a header that lies.
                _ => {
                    scribble(mine, number, lengths, &theirs, &own);
                    mine
                }
            };
            // SAFETY: the address is only moved through the ring.
            let Some(entry) = (unsafe { Mbuf::from_address(address) }) else { continue };
            let ring = if kind == 5 { &mut fixture.clients[0].free } else { &mut fixture.clients[0].tx };
            ring.enqueue(&[entry]).unwrap();
            fixture.poll(0);
            wrong += u64::from(kind < 3);
        }
        prop_assert!(fixture.total(0, Counter::RxBadMbuf) >= wrong, "what is not its own was taken");
        for port in 1..PORTS {
            fixture.return_unread(port);
        }
        prop_assert_eq!(bench.ledger.owned(Owner::client(9, 0)), 0);
        fixture.end();
    }
}

/// Overwrites what a client may: lengths, offsets, flags, the segment count and the link of one of its mbufs, and what it
/// says of checksum and segmentation.
fn scribble(
    address: usize,
    number: usize,
    [offset, len, segments, flags]: [u16; 4],
    theirs: &[usize],
    own: &[usize],
) {
    let link = match number % 5 {
        0 => 0,
        1 => address,
        2 => theirs[number % theirs.len()],
        3 => own[number / 5 % own.len()],
        _ => number,
    };
    let header = address as *mut u8;
    // SAFETY: an mbuf of the pool, whose header has these fields at these offsets (asserted in the mbuf module).
    unsafe {
        header.add(16).cast::<u16>().write(offset);
        header
            .add(20)
            .cast::<u16>()
            .write(segments % if number.is_multiple_of(3) { 3 } else { 40 });
        header
            .add(24)
            .cast::<u64>()
            .write(u64::from(flags) << (number % 3));
        header.add(36).cast::<u32>().write(u32::from(len) << (number % 8));
        header.add(40).cast::<u16>().write(len);
        header.add(64).cast::<usize>().write(link);
        header.add(128).cast::<[u16; 6]>().write([
            offset % 99,
            16,
            len,
            segments % 99,
            [1, 4, 5, flags][number % 4],
            0,
        ]);
    }
}
