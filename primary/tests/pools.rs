//! Two pools of mbufs, as two NUMA nodes have them, and memory between them that is of neither. Both are on one node here.

use std::sync::{Mutex, MutexGuard, OnceLock};

use arrayvec::ArrayVec;
use dpdk_vswitchd::datapath::client_port::{QueueMemory, Session};
use dpdk_vswitchd::datapath::gso;
use dpdk_vswitchd::datapath::ledger::{Ledger, Owner};
use vswitch_common::eal::Eal;
use vswitch_common::gso::{Kind, Segmentation};
use vswitch_common::mbuf::{Checksum, DATA_ROOM, Mbuf};
use vswitch_common::mempool::Pool;
use vswitch_common::port::layout::ControlBlocks;
use vswitch_common::port::{
    ALLOC_LEVEL, ALLOC_RING_SIZE, FREE_RING_SIZE, RX_RING_SIZE, TX_RING_SIZE, doorbell,
};
use vswitch_common::ring::{Consumer, Producer, RingMemory};

/// Where in `struct rte_mbuf` its pool is named.
const POOL: usize = 56;
const CLIENT: Owner = Owner::client(3, 1);
const BURST: usize = 32;

const LEVEL: usize = ALLOC_LEVEL as usize;
/// Of each pool.
const MBUFS: u32 = 1024;

struct Bench {
    ledger: Ledger,
    /// Lies between the two, and is not the ledger's.
    stranger: Pool,
    memory: QueueMemory,
}

/// EAL without hugepages: once a process, for one test at a time.
fn bench() -> MutexGuard<'static, Bench> {
    static BENCH: OnceLock<Mutex<Bench>> = OnceLock::new();
    let bench = BENCH.get_or_init(|| {
        let args = ["--no-huge", "--no-shconf", "--no-pci", "-m", "64"];
        Eal::init("pools", &args.map(str::to_owned)).unwrap();
        // Three pages at least, so that no page is of two of them.
        let [one, stranger, other] = [("one", MBUFS), ("stranger", 3000), ("other", MBUFS)]
            .map(|(name, count)| Pool::create(name, count, -1).unwrap());
        let ring = |role: &str, size| RingMemory::create(role, size, -1).unwrap();
        Mutex::new(Bench {
            ledger: Ledger::new(vec![one, other]),
            stranger,
            memory: QueueMemory {
                alloc: ring("alloc", ALLOC_RING_SIZE),
                tx: ring("tx", TX_RING_SIZE),
                rx: ring("rx", RX_RING_SIZE),
                free: ring("free", FREE_RING_SIZE),
                control: ControlBlocks::create(3, 1, -1).unwrap().get(0),
            },
        })
    });
    bench.lock().unwrap_or_else(|e| e.into_inner())
}

fn both(ledger: &Ledger) -> [Pool; 2] {
    ledger.pools().try_into().expect("two pools")
}

/// Free mbufs of each pool.
fn free(ledger: &Ledger) -> [u32; 2] {
    both(ledger).map(|pool| pool.available())
}

/// Takes all that `pool` has.
fn empty(pool: Pool) -> Vec<Mbuf> {
    std::iter::from_fn(|| pool.alloc_one()).collect()
}

#[test]
fn the_ledger_knows_the_mbufs_of_both() {
    let bench = bench();
    let ledger = &bench.ledger;
    let [one, other] = both(ledger);
    assert_eq!((ledger.size(), ledger.available()), (2 * MBUFS, 2 * MBUFS));
    for pool in [one, other] {
        let mbuf = ledger.alloc_one(pool).unwrap();
        assert_eq!(ledger.pool_of(&mbuf), pool);
        ledger.give(&mbuf, CLIENT);
        for wrong in [1, 64, 2048] {
            assert!(ledger.take(mbuf.address() + wrong, CLIENT).is_none());
        }
    }
    assert_eq!(ledger.owned(CLIENT), 2);
    // Whoever claims it, the memory between is nobody's, to the byte.
    for address in bench.stranger.addresses() {
        for owner in [CLIENT, Owner::SWITCH, Owner::CHAIN] {
            assert!(ledger.take(address, owner).is_none());
            assert!(ledger.pass(address, owner, CLIENT).is_none());
        }
        assert!(ledger.unlink(address).is_none());
    }
    assert_eq!(ledger.reclaim(CLIENT..=CLIENT), 2);
    assert_eq!((free(ledger), ledger.owned(CLIENT)), ([MBUFS; 2], 0));
}

#[test]
fn each_goes_back_to_its_own() {
    let bench = bench();
    let ledger = &bench.ledger;
    let [one, other] = both(ledger);
    let mut mixed = ArrayVec::<Mbuf, BURST>::new();
    for pool in [one, other, other, one, other] {
        let mut mbuf = ledger.alloc_one(pool).unwrap();
        mbuf.set_frame(60, Checksum::Unknown);
        mixed.push(mbuf);
    }
    assert_eq!(free(ledger), [MBUFS - 2, MBUFS - 3]);
    ledger.free_others(other, &mut mixed);
    assert_eq!(mixed.len(), 3);
    assert_eq!(free(ledger), [MBUFS, MBUFS - 3]);
    mixed.push(ledger.alloc_one(one).unwrap());
    ledger.free_all(&mut mixed);
    assert!(mixed.is_empty());
    assert_eq!(free(ledger), [MBUFS; 2]);
    // Each of them once, and none of them elsewhere.
    for pool in [one, other] {
        let all = empty(pool);
        assert!(all.iter().all(|mbuf| ledger.pool_of(mbuf) == pool));
        let mut addresses: Vec<usize> = all.iter().map(Mbuf::address).collect();
        addresses.sort_unstable();
        addresses.dedup();
        assert_eq!(addresses.len(), MBUFS as usize);
        all.into_iter().for_each(|mbuf| ledger.free(mbuf));
    }
}

/// A driver frees an mbuf to the pool that its header names.
#[test]
fn a_driver_gets_the_right_pool() {
    let bench = bench();
    let ledger = &bench.ledger;
    for &pool in ledger.pools() {
        let mut mbuf = ledger.alloc_one(pool).unwrap();
        let field = (mbuf.address() + POOL) as *mut usize;
        // SAFETY: a field of an mbuf of this test, as DPDK has filled it and as a client could write it.
        let right = unsafe { field.replace(0xbad) };
        ledger.scrub(&mut mbuf);
        // SAFETY: as above.
        assert_eq!(unsafe { field.read() }, right);
        ledger.free(mbuf);
    }
}

#[test]
fn the_other_pool_helps_out() {
    let bench = bench();
    let ledger = &bench.ledger;
    let [one, other] = both(ledger);
    let hoard = empty(one);
    assert_eq!(free(ledger), [0, MBUFS]);
    let mut burst = ArrayVec::<Mbuf, BURST>::new();
    assert!(ledger.alloc(one, &mut burst, BURST));
    assert!(burst.iter().all(|mbuf| ledger.pool_of(mbuf) == other));
    // Copies and segments, too.
    let frame = &mut burst[0];
    frame.set_frame(DATA_ROOM, Checksum::Unknown);
    let copy = ledger.copy(frame, one).unwrap();
    assert_eq!((ledger.pool_of(&copy), copy.data()), (other, frame.data()));
    ledger.free(copy);
    ledger.free_all(&mut burst);
    assert_eq!(free(ledger), [0, MBUFS]);
    let more = empty(other);
    assert!(!ledger.alloc(one, &mut burst, 1));
    assert!(ledger.copy(&more[0], one).is_none());
    hoard.into_iter().chain(more).for_each(|mbuf| ledger.free(mbuf));
    assert_eq!(free(ledger), [MBUFS; 2]);
}

#[test]
fn a_frame_is_cut_beside_itself() {
    let bench = bench();
    let ledger = &bench.ledger;
    let other = ledger.pools()[1];
    let mut large = ledger.alloc_one(other).unwrap();
    let len = 54 + 1500;
    let header = &mut large.room_mut()[..len];
    header[12..24].copy_from_slice(&[8, 0, 0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 6]);
    header[46..48].copy_from_slice(&[0x50, 0x10]);
    let place = Checksum::Partial {
        start: 34,
        offset: 16,
    };
    large.set_frame(len, place);
    let segmentation = Segmentation::new(Kind::Tcp4, false, 500, 34, large.data());
    large.set_segmentation(segmentation.unwrap());
    let mut pools = Vec::new();
    gso::cut(ledger, large, |segment| {
        let segment = segment.unwrap();
        pools.push(ledger.pool_of(&segment));
        ledger.free(segment);
    });
    assert_eq!(pools, [other; 3]);
    assert_eq!(free(ledger), [MBUFS; 2]);
}

/// A client's empty mbufs are of its pool, those that frames came in go back to theirs; and with its pool empty it has the
/// other's.
#[test]
fn a_client_is_kept_in_mbufs_of_its_pool() {
    let bench = bench();
    let (ledger, memory) = (&bench.ledger, bench.memory);
    let [one, other] = both(ledger);
    [memory.alloc, memory.tx, memory.rx, memory.free]
        .iter()
        .for_each(RingMemory::reset);
    let ((_, bell), (ringer, _)) = (doorbell::pair().unwrap(), doorbell::pair().unwrap());
    // SAFETY: rings of this test alone, just emptied.
    let (session, mut alloc, mut rx, mut used) = unsafe {
        (
            Session::new(3, other, vec![(memory, bell, ringer)]),
            Consumer::new(memory.alloc),
            Consumer::new(memory.rx),
            Producer::new(memory.free),
        )
    };
    let queue = &session.queues()[0];
    let poll = || {
        let mut frames = ArrayVec::<Mbuf, BURST>::new();
        (0..4).for_each(|_| _ = queue.receive(ledger, &mut frames, BURST));
    };
    // What the client has got by now.
    let mut take = |count: usize| -> Vec<Mbuf> {
        let mut entries = [0; LEVEL];
        let got = alloc.dequeue(&mut entries[..count]).unwrap();
        // SAFETY: mbufs that the switch has given to this client.
        let mbufs = entries[..got].iter().map(|&a| unsafe { Mbuf::from_address(a) });
        mbufs.flatten().collect()
    };
    poll();
    assert_eq!(free(ledger), [MBUFS, MBUFS - LEVEL as u32]);
    let own = take(BURST);
    assert!(own.len() == BURST && own.iter().all(|mbuf| ledger.pool_of(mbuf) == other));

    // A frame of the other node is not handed out again.
    let mut frame = ledger.alloc_one(one).unwrap();
    frame.set_frame(60, Checksum::Unknown);
    let mut frames = ArrayVec::<Mbuf, BURST>::from_iter([frame]);
    assert_eq!(queue.send(ledger, &mut frames, false).frames, 1);
    assert_eq!(free(ledger)[0], MBUFS - 1);
    let mut entries = [0; 1];
    assert_eq!(rx.dequeue(&mut entries), Ok(1));
    // SAFETY: a frame that the switch has given to this client.
    let frame = unsafe { Mbuf::from_address(entries[0]) }.unwrap();
    assert_eq!(used.enqueue(&[frame]), Ok(1));
    poll();
    assert_eq!(free(ledger)[0], MBUFS);

    // With its pool empty, it gets the other's.
    let hoard = empty(other);
    take(LEVEL);
    poll();
    let borrowed = take(LEVEL);
    assert!(borrowed.len() == LEVEL && borrowed.iter().all(|mbuf| ledger.pool_of(mbuf) == one));
    hoard.into_iter().for_each(|mbuf| ledger.free(mbuf));
    session.reclaim(ledger);
    assert_eq!(free(ledger), [MBUFS; 2]);
}
