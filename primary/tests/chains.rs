//! Frames of several mbufs on a real pool: passed on, joined, copied, cut, given back; and with links that lie.

use std::sync::{Mutex, MutexGuard, OnceLock};

use arrayvec::ArrayVec;
use dpdk_vswitchd::datapath::ledger::{Ledger, Owner};
use dpdk_vswitchd::datapath::{gso, offload};
use vswitch_common::csum;
use vswitch_common::eal::Eal;
use vswitch_common::ethdev::Offloads;
use vswitch_common::gso::{Kind, Segmentation};
use vswitch_common::mbuf::{BUF_LEN, Checksum, DATA_ROOM, HEADROOM, MAX_SEGMENTS, Mbuf};
use vswitch_common::mempool::Pool;

/// Places in `struct rte_mbuf`.
const DATA_OFF: usize = 16;
const NB_SEGS: usize = 20;
const OL_FLAGS: usize = 24;
const PKT_LEN: usize = 36;
const DATA_LEN: usize = 40;
const NEXT: usize = 64;
const TX_OFFLOAD: usize = 72;
/// Flags there: TX_TCP_SEG, TX_TCP_CKSUM, TX_IP_CKSUM and TX_IPV4.
const LEFT_TO_NIC: u64 = 1 << 50 | 1 << 52 | 1 << 54 | 1 << 55;

/// EAL without hugepages and a pool: once a process, for one test at a time.
fn ledger() -> MutexGuard<'static, Ledger> {
    static LEDGER: OnceLock<Mutex<Ledger>> = OnceLock::new();
    let ledger = LEDGER.get_or_init(|| {
        let args = ["--no-huge", "--no-shconf", "--no-pci", "-m", "64"];
        Eal::init("chains", &args.map(str::to_owned)).unwrap();
        Mutex::new(Ledger::new(vec![Pool::create("pool", 1024, -1).unwrap()]))
    });
    ledger.lock().unwrap_or_else(|e| e.into_inner())
}

/// Runs `test`, and finds all mbufs in the pool again, each once.
fn with_ledger(test: impl FnOnce(&Ledger)) {
    let ledger = ledger();
    let pool = ledger.pools()[0];
    assert_eq!(pool.available(), pool.size());
    test(&ledger);
    assert_eq!(pool.available(), pool.size());
    let mut all: ArrayVec<Mbuf, 1024> = ArrayVec::new();
    while pool.alloc_n(&mut all, 1) {
        if all.is_full() {
            break;
        }
    }
    let mut addresses: Vec<usize> = all.iter().map(Mbuf::address).collect();
    addresses.sort_unstable();
    addresses.dedup();
    assert_eq!(addresses.len(), all.len());
    ledger.free_all(&mut all);
}

/// A frame in as many mbufs as there are lengths, as a driver makes it; its bytes count up.
fn frame(ledger: &Ledger, lengths: &[usize]) -> Mbuf {
    let mut byte = 0u8;
    let mut segments: Vec<Mbuf> = lengths
        .iter()
        .map(|&len| {
            let mut mbuf = ledger.pools()[0].alloc_one().unwrap();
            for slot in &mut mbuf.room_mut()[..len] {
                *slot = byte;
                byte = byte.wrapping_add(1);
            }
            mbuf.set_frame(len, Checksum::Unknown);
            mbuf
        })
        .collect();
    let rest = segments.split_off(1);
    let mut first = segments.remove(0);
    first.chain(&rest);
    first
}

fn bytes(frame: &Mbuf) -> Vec<u8> {
    frame.segments().flatten().copied().collect()
}

/// Writes into a header as a client could.
fn scribble<T>(mbuf: &Mbuf, at: usize, value: T) {
    // SAFETY: a field of an mbuf of this test.
    unsafe { ((mbuf.address() + at) as *mut T).write_unaligned(value) };
}

#[test]
fn a_chain_is_joined_where_it_fits() {
    with_ledger(|ledger| {
        let chain = ledger.adopt(frame(ledger, &[100, 1, 900])).unwrap();
        let (before, len) = (bytes(&chain), chain.frame_len());
        let flat = ledger.flatten(chain).unwrap();
        assert_eq!((flat.segment_count(), flat.len(), len), (1, 1001, 1001));
        assert_eq!(flat.data(), before);
        ledger.free(flat);
        let long = ledger.adopt(frame(ledger, &[DATA_ROOM, DATA_ROOM, 1])).unwrap();
        assert!(ledger.flatten(long).is_none());
    });
}

#[test]
fn a_copy_is_a_frame_of_its_own() {
    with_ledger(|ledger| {
        let chain = ledger.adopt(frame(ledger, &[DATA_ROOM, 500, 3])).unwrap();
        let before = bytes(&chain);
        let copy = ledger.copy(&chain, ledger.pools()[0]).unwrap();
        assert_eq!((copy.segment_count(), copy.frame_len()), (3, DATA_ROOM + 503));
        ledger.free(chain);
        assert_eq!(bytes(&copy), before);
        ledger.free(copy);
        let single = ledger.adopt(frame(ledger, &[77])).unwrap();
        let copy = ledger.copy(&single, ledger.pools()[0]).unwrap();
        assert_eq!((copy.data(), copy.segment_count()), (single.data(), 1));
        ledger.free(single);
        ledger.free(copy);
    });
}

/// Some drivers put more than the room into a later segment, from within the headroom (virtio's, where its header was).
#[test]
fn a_copy_has_all_bytes_of_a_segment_that_begins_early() {
    with_ledger(|ledger| {
        let mut chain = frame(ledger, &[DATA_ROOM; 3]);
        let rest = chain.split();
        for (segment, more) in rest.iter().zip([12, 128]) {
            scribble(segment, DATA_OFF, HEADROOM as u16 - more);
            scribble(segment, DATA_LEN, DATA_ROOM as u16 + more);
        }
        chain.chain(&rest);
        let chain = ledger.adopt(chain).unwrap();
        let before = bytes(&chain);
        assert_eq!(before.len(), 3 * DATA_ROOM + 140);
        let copy = ledger.copy(&chain, ledger.pools()[0]).unwrap();
        ledger.free(chain);
        assert!(bytes(&copy) == before);
        ledger.free(copy);
    });
}

#[test]
fn what_a_driver_refuses_comes_back() {
    with_ledger(|ledger| {
        let mut chain = ledger.adopt(frame(ledger, &[2000; 5])).unwrap();
        let rest = ledger.release_chain(&mut chain);
        assert_eq!(
            (rest.len(), chain.segment_count(), chain.frame_len()),
            (4, 5, 10_000)
        );
        assert_eq!(bytes(&chain).len(), 10_000);
        ledger.free_refused(&rest);
        ledger.free(chain);
    });
}

/// A driver that frees one of its empty mbufs would follow a pointer by such flags (`RTE_MBUF_F_EXTERNAL`, `RTE_MBUF_F_INDIRECT`).
#[test]
fn nothing_in_the_pool_has_a_clients_flags() {
    with_ledger(|ledger| {
        let mbuf = frame(ledger, &[60]);
        scribble(&mbuf, OL_FLAGS, u64::MAX);
        let flags = (mbuf.address() + OL_FLAGS) as *const u64;
        ledger.free(mbuf);
        // SAFETY: a field of an mbuf of this test's pool.
        assert_eq!(unsafe { flags.read() }, 0);
    });
}

#[test]
fn too_many_segments_are_none() {
    with_ledger(|ledger| {
        assert!(ledger.adopt(frame(ledger, &[60; MAX_SEGMENTS])).is_some_and(|f| {
            ledger.free(f);
            true
        }));
        let mut long = frame(ledger, &[60; MAX_SEGMENTS + 1]);
        // What lies behind the last segment that a frame may have is nobody's to give back but the test's.
        let mut at = long.next_address();
        for _ in 1..MAX_SEGMENTS {
            at = ledger
                .pass(at, Owner::SWITCH, Owner::SWITCH)
                .unwrap()
                .next_address();
        }
        let last = ledger.take(at, Owner::SWITCH).unwrap();
        assert!(ledger.adopt(std::mem::replace(&mut long, last)).is_none());
        ledger.free(long);
    });
}

/// A client rewrites links while the switch works on a chain: no mbuf gets lost to it or is given back twice.
#[test]
fn links_that_lie_are_not_followed() {
    with_ledger(|ledger| {
        let clients = Owner::client(3, 0);
        let other = frame(ledger, &[60]);
        ledger.give(&other, clients);
        for target in [0, 8, other.address(), other.address() + 64, usize::MAX - 7] {
            // Made a chain by a client: nothing of it is the switch's.
            let single = frame(ledger, &[60]);
            scribble(&single, NB_SEGS, 2u16);
            scribble(&single, NEXT, target);
            let copy = ledger.copy(&single, ledger.pools()[0]).unwrap();
            assert_eq!(bytes(&copy).len(), 60);
            ledger.free(copy);
            ledger.free(single);
        }
        // Cut short: the rest is found by nobody but stays marked, and is not taken for anything else.
        let chain = ledger.adopt(frame(ledger, &[60, 61, 62])).unwrap();
        let (second, third) = {
            let second = ledger
                .pass(chain.next_address(), Owner::CHAIN, Owner::CHAIN)
                .unwrap();
            let third = ledger
                .pass(second.next_address(), Owner::CHAIN, Owner::CHAIN)
                .unwrap();
            (second.address(), third.address())
        };
        scribble(&chain, NEXT, chain.address());
        ledger.free(chain);
        for address in [second, third] {
            let segment = ledger.pass(address, Owner::CHAIN, Owner::SWITCH).unwrap();
            ledger.free(segment);
        }
        let other = ledger.take(other.address(), clients).unwrap();
        ledger.free(other);
    });
}

const CLIENT: Owner = Owner::client(3, 0);
const OTHER: Owner = Owner::client(4, 0);

/// Addresses of a frame's mbufs, all of which become `owner`'s.
fn give_to(ledger: &Ledger, frame: &Mbuf, owner: Owner) -> Vec<usize> {
    let mut addresses = vec![frame.address()];
    for i in 1..frame.segment_count() {
        // SAFETY: an mbuf of this test's frame.
        let last = unsafe { Mbuf::from_address(addresses[i - 1]) }.unwrap();
        addresses.push(last.next_address());
    }
    for &address in &addresses {
        assert!(ledger.pass(address, Owner::SWITCH, owner).is_some());
    }
    addresses
}

#[test]
fn a_clients_chain_is_taken_over_whole() {
    with_ledger(|ledger| {
        for (lengths, segments) in [
            (&[DATA_ROOM, DATA_ROOM, 1][..], 3),
            (&[DATA_ROOM; MAX_SEGMENTS], MAX_SEGMENTS),
            // Joined, since it fits.
            (&[100, 1, 900], 1),
        ] {
            let chain = frame(ledger, lengths);
            let before = bytes(&chain);
            let addresses = give_to(ledger, &chain, CLIENT);
            scribble(&chain, PKT_LEN, 77u32);
            let (taken, mbufs) = ledger.take_frame(addresses[0], CLIENT);
            let taken = taken.unwrap();
            assert_eq!(mbufs as usize, lengths.len());
            assert_eq!(
                (taken.segment_count(), taken.frame_len()),
                (segments, before.len())
            );
            assert_eq!(bytes(&taken), before);
            assert_eq!(ledger.owned(CLIENT), 0);
            ledger.free(taken);
        }
    });
}

/// What was the client's comes back, what was not stays where it is.
#[test]
fn a_clients_chain_that_lies_is_no_frame() {
    with_ledger(|ledger| {
        let theirs = frame(ledger, &[60]);
        ledger.give(&theirs, OTHER);
        let passing = ledger.adopt(frame(ledger, &[DATA_ROOM, 60])).unwrap();
        let marked = passing.next_address();
        let lies: [(usize, usize, u32); 8] = [
            // Which segment's link, where it leads (1 and up: to that segment), and how many mbufs are taken.
            (1, 0, 2),
            (1, usize::MAX - 7, 2),
            (1, theirs.address(), 2),
            (1, theirs.address() + 64, 2),
            (1, marked, 2),
            (1, passing.address(), 2),
            // The first once more, and the last.
            (1, 1, 2),
            (2, 2, 3),
        ];
        for (at, link, mbufs) in lies {
            let chain = frame(ledger, &[DATA_ROOM, DATA_ROOM, DATA_ROOM, 5]);
            let addresses = give_to(ledger, &chain, CLIENT);
            // SAFETY: an mbuf of this test's frame.
            let liar = unsafe { Mbuf::from_address(addresses[at]) }.unwrap();
            scribble(
                &liar,
                NEXT,
                if link < 4 && link > 0 {
                    addresses[link - 1]
                } else {
                    link
                },
            );
            let (taken, count) = ledger.take_frame(addresses[0], CLIENT);
            assert!(taken.is_none());
            assert_eq!((count, ledger.owned(CLIENT)), (mbufs, 4 - mbufs as usize));
            assert_eq!(ledger.reclaim(CLIENT..=CLIENT), 4 - mbufs as usize);
        }
        assert_eq!(ledger.owned(OTHER), 1);
        assert_eq!(bytes(&passing).len(), DATA_ROOM + 60);
        ledger.free(passing);
        ledger.free(ledger.take(theirs.address(), OTHER).unwrap());
    });
}

#[test]
fn a_clients_chain_has_no_empty_segments_and_not_too_many() {
    with_ledger(|ledger| {
        let chain = frame(ledger, &[DATA_ROOM, 0, 60]);
        let addresses = give_to(ledger, &chain, CLIENT);
        let (taken, count) = ledger.take_frame(addresses[0], CLIENT);
        assert!(taken.is_none() && count == 3);
        let chain = frame(ledger, &[60; MAX_SEGMENTS + 1]);
        let addresses = give_to(ledger, &chain, CLIENT);
        let (taken, count) = ledger.take_frame(addresses[0], CLIENT);
        assert!(taken.is_none() && count as usize == MAX_SEGMENTS);
        assert_eq!(ledger.reclaim(CLIENT..=CLIENT), 1);
    });
}

#[test]
fn a_chain_becomes_the_receivers_to_the_last_mbuf() {
    with_ledger(|ledger| {
        let chain = frame(ledger, &[DATA_ROOM, DATA_ROOM, 9]);
        let before = bytes(&chain);
        let addresses = give_to(ledger, &chain, CLIENT);
        let mut taken = ledger.take_frame(addresses[0], CLIENT).0.unwrap();
        assert_eq!(ledger.give_rest(&mut taken, OTHER), 2);
        ledger.give(&taken, OTHER);
        assert_eq!((ledger.owned(CLIENT), ledger.owned(OTHER)), (0, 3));
        assert_eq!(bytes(&taken), before);
        // Given back one by one, in any order and with links as they were.
        for address in [addresses[1], addresses[0], addresses[2]] {
            let mbuf = ledger.take(address, OTHER).unwrap();
            ledger.free_singles(&mut ArrayVec::from([mbuf]));
        }
    });
}

/// A link that the client breaks while the switch has the chain: what gets lost by that comes back with its client.
#[test]
fn segments_that_a_client_hid_come_back_with_it() {
    with_ledger(|ledger| {
        let chain = frame(ledger, &[DATA_ROOM, DATA_ROOM, DATA_ROOM]);
        let addresses = give_to(ledger, &chain, CLIENT);
        let mut taken = ledger.take_frame(addresses[0], CLIENT).0.unwrap();
        // However it was looked at before.
        let copy = ledger.copy(&taken, ledger.pools()[0]).unwrap();
        ledger.free(copy);
        taken.set_checksum(Checksum::Partial {
            start: 34,
            offset: 16,
        });
        offload::ready_for_driver(&mut taken, ledger, &Offloads::default());
        scribble(&taken, NEXT, 0usize);
        ledger.free(taken);
        assert_eq!(ledger.reclaim(OTHER..=OTHER), 0);
        assert_eq!(ledger.reclaim(CLIENT..=CLIENT), 2);
    });
}

/// What a client sends short goes out as Ethernet wants it, wherever in its buffer it stands.
#[test]
fn a_short_frame_is_padded_for_a_driver() {
    with_ledger(|ledger| {
        for len in [14, 42, 59, 60, 61] {
            for offset in [0, HEADROOM, BUF_LEN - len] {
                let mut short = frame(ledger, &[len]);
                let sent = bytes(&short);
                scribble(&short, DATA_OFF, offset as u16);
                short.data_mut().copy_from_slice(&sent);
                // Nor is what stood behind it before sent along.
                offload::ready_for_driver(&mut short, ledger, &Offloads::default());
                let mut expected = sent;
                expected.resize(len.max(60), 0);
                assert_eq!(bytes(&short), expected, "{len} bytes at {offset}");
                assert_eq!(short.frame_len(), expected.len());
                ledger.free(short);
            }
        }
    });
}

/// Of Ethernet, IPv4 and TCP, with `payload` bytes behind them and its checksum half done, cut into pieces of `size` bytes.
fn tcp(ledger: &Ledger, payload: usize, size: u16) -> Mbuf {
    let lengths: Vec<usize> = (0..54 + payload)
        .step_by(DATA_ROOM)
        .map(|at| DATA_ROOM.min(54 + payload - at))
        .collect();
    let mut frame = frame(ledger, &lengths);
    let header = frame.data_mut();
    header[12..24].copy_from_slice(&[8, 0, 0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 6]);
    header[46..48].copy_from_slice(&[0x50, 0x10]);
    frame.set_checksum(Checksum::Partial {
        start: 34,
        offset: 16,
    });
    let segmentation = Segmentation::new(Kind::Tcp4, false, size, 34, frame.data());
    frame.set_segmentation(segmentation.unwrap());
    frame
}

#[test]
fn a_large_frame_is_cut_into_frames_of_their_own() {
    with_ledger(|ledger| {
        // Segments of one mbuf, and of several.
        for (payload, size, count) in [(60_000, 1448, 42), (60_000, 8948, 7), (1900, 1000, 2)] {
            let large = tcp(ledger, payload, size);
            let before = bytes(&large);
            let addresses = give_to(ledger, &large, CLIENT);
            let large = ledger.take_frame(addresses[0], CLIENT).0.unwrap();
            let longest = 54 + usize::from(size);
            assert!(gso::segments_fit(&large, longest) && !gso::segments_fit(&large, longest - 1));
            let mut payloads = Vec::new();
            let made = gso::cut(ledger, large, |segment| {
                let segment = segment.unwrap();
                let whole = bytes(&segment);
                assert_eq!(
                    usize::from(u16::from_be_bytes([whole[16], whole[17]])),
                    whole.len() - 14
                );
                assert_eq!(segment.frame_len(), whole.len());
                assert_eq!(
                    segment.checksum(),
                    Checksum::Partial {
                        start: 34,
                        offset: 16
                    }
                );
                assert!(segment.segmentation().is_none());
                payloads.extend_from_slice(&whole[54..]);
                ledger.free(segment);
            });
            assert_eq!(made, count);
            assert_eq!(payloads, before[54..]);
        }
    });
}

#[test]
fn a_frame_cut_with_an_empty_pool_costs_nothing_but_itself() {
    with_ledger(|ledger| {
        let large = ledger.adopt(tcp(ledger, 20_000, 8948)).unwrap();
        // Seven are left: for a segment of five, not for the next, and for the last of two.
        let but_seven = ledger.available() - 7;
        let hoard: Vec<Mbuf> = (0..but_seven)
            .map_while(|_| ledger.pools()[0].alloc_one())
            .collect();
        let mut whole = Vec::new();
        assert_eq!(gso::cut(ledger, large, |segment| whole.push(segment)), 3);
        let came: Vec<bool> = whole.iter().map(Option::is_some).collect();
        assert_eq!(came, [true, false, true]);
        for mbuf in whole.into_iter().flatten().chain(hoard) {
            ledger.free(mbuf);
        }
    });
}

/// A frame whose headers a client rewrites after it has handed it over.
#[test]
fn headers_that_lie_are_not_cut() {
    with_ledger(|ledger| {
        for (at, byte) in [(12, 9), (14, 0x44), (23, 17), (46, 0x40), (46, 0xf0)] {
            let mut large = ledger.adopt(tcp(ledger, 5000, 1448)).unwrap();
            large.data_mut()[at] = byte;
            let made = gso::cut(ledger, large, |segment| ledger.free(segment.unwrap()));
            assert_eq!(made, 0, "byte {at} is {byte:#x}");
        }
    });
}

#[test]
fn a_copy_of_a_large_frame_is_as_large() {
    with_ledger(|ledger| {
        let large = ledger.adopt(tcp(ledger, 5000, 1448)).unwrap();
        let copy = ledger.copy(&large, ledger.pools()[0]).unwrap();
        assert_eq!(copy.segmentation(), large.segmentation());
        assert!(copy.segmentation().is_some());
        assert_eq!((copy.checksum(), bytes(&copy)), (large.checksum(), bytes(&large)));
        ledger.free(large);
        ledger.free(copy);
    });
}

#[test]
fn a_chains_checksum_is_completed_across_it() {
    with_ledger(|ledger| {
        let mut long = ledger.adopt(tcp(ledger, 5001, 1448)).unwrap();
        long.set_checksum(Checksum::Partial {
            start: 34,
            offset: 16,
        });
        let mut expected = bytes(&long);
        csum::complete(&mut expected, 34, 16);
        offload::ready_for_driver(&mut long, ledger, &Offloads::default());
        assert_eq!(long.checksum(), Checksum::Unknown);
        assert_eq!(bytes(&long), expected);
        ledger.free(long);
    });
}

/// What DPDK asks for (rte_mbuf_core.h, RTE_MBUF_F_TX_TCP_SEG).
#[test]
fn a_nic_gets_a_large_frame_as_dpdk_wants_it() {
    let nic = Offloads {
        tx_segmentation: true,
        tx_ipv4_checksum: true,
        tx_tcp_checksum: true,
        ..Offloads::default()
    };
    with_ledger(|ledger| {
        let mut large = ledger.adopt(tcp(ledger, 5001, 1448)).unwrap();
        assert!(!offload::leave_to_nic(&mut large, &Offloads::default()));
        // Headers of another length than the client says.
        let said = large.segmentation().unwrap();
        for header_len in [0, 34, 53, 55, 256] {
            large.set_segmentation(Segmentation { header_len, ..said });
            assert!(!offload::leave_to_nic(&mut large, &nic), "{header_len}");
        }
        large.set_segmentation(said);
        assert!(offload::leave_to_nic(&mut large, &nic));
        // SAFETY: the header of an mbuf of this test.
        let (flags, places) = unsafe {
            let header = large.address() as *const u8;
            (
                header.add(24).cast::<u64>().read(),
                header.add(TX_OFFLOAD).cast::<u64>().read(),
            )
        };
        assert_eq!(flags, LEFT_TO_NIC);
        assert_eq!(places, 14 | 20 << 7 | 20 << 16 | 1448 << 24);
        let whole = bytes(&large);
        assert_eq!(whole[24..26], [0, 0], "IPv4's checksum");
        let mut sum = csum::Sum::default();
        sum.add(&whole[26..34]);
        sum.add(&[0, 6]);
        assert_eq!(
            whole[50..52],
            sum.fold().to_be_bytes(),
            "the pseudo header's, without a length"
        );
        ledger.free(large);
        // Dwarfs look like an attack to some NICs.
        let mut small = ledger.adopt(tcp(ledger, 5001, 100)).unwrap();
        assert!(!offload::leave_to_nic(&mut small, &nic));
        ledger.free(small);
    });
}
