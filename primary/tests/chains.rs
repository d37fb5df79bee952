//! Frames of several mbufs on a real pool: passed on, joined, copied, given back; and with links that lie.

use std::sync::{Mutex, MutexGuard, OnceLock};

use arrayvec::ArrayVec;
use dpdk_vswitchd::datapath::ledger::{Ledger, Owner};
use vswitch_common::eal::Eal;
use vswitch_common::mbuf::{Checksum, DATA_ROOM, MAX_SEGMENTS, Mbuf};
use vswitch_common::mempool::Pool;

/// Places in `struct rte_mbuf`.
const NB_SEGS: usize = 20;
const NEXT: usize = 64;

/// EAL without hugepages and a pool: once a process, for one test at a time.
fn ledger() -> MutexGuard<'static, Ledger> {
    static LEDGER: OnceLock<Mutex<Ledger>> = OnceLock::new();
    let ledger = LEDGER.get_or_init(|| {
        let args = ["--no-huge", "--no-shconf", "--no-pci", "-m", "64"];
        Eal::init("chains", &args.map(str::to_owned)).unwrap();
        Mutex::new(Ledger::new(Pool::create("pool", 1024, -1).unwrap()))
    });
    ledger.lock().unwrap_or_else(|e| e.into_inner())
}

/// Runs `test`, and finds all mbufs in the pool again, each once.
fn with_ledger(test: impl FnOnce(&Ledger)) {
    let ledger = ledger();
    let pool = ledger.pool();
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
            let mut fresh = ArrayVec::<Mbuf, 1>::new();
            assert!(ledger.pool().alloc(&mut fresh));
            let mut mbuf = fresh.pop().unwrap();
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
        let copy = ledger.copy(&chain).unwrap();
        assert_eq!((copy.segment_count(), copy.frame_len()), (3, DATA_ROOM + 503));
        ledger.free(chain);
        assert_eq!(bytes(&copy), before);
        ledger.free(copy);
        let single = ledger.adopt(frame(ledger, &[77])).unwrap();
        let copy = ledger.copy(&single).unwrap();
        assert_eq!((copy.data(), copy.segment_count()), (single.data(), 1));
        ledger.free(single);
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
            let copy = ledger.copy(&single).unwrap();
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
