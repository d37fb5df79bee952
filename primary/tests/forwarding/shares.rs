//! What a client may have at a time, and a pool that has nothing left.

use std::time::{Duration, Instant};

use arrayvec::ArrayVec;
use dpdk_vswitchd::cpus;
use dpdk_vswitchd::datapath::BURST;
use dpdk_vswitchd::datapath::ledger::Owner;
use dpdk_vswitchd::datapath::port::Io;
use dpdk_vswitchd::datapath::vlan::VlanPolicy;
use vswitch_common::mbuf::{Checksum, DATA_ROOM, MAX_SEGMENTS, Mbuf};
use vswitch_common::port::{ALLOC_LEVEL, QUOTA};
use vswitch_common::stats::Counter;

use crate::fixture::{Client, Fixture, PORTS, bench, large};

const BROADCAST: [u8; 6] = [0xff; 6];

/// The address of a client's host.
fn host(number: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, number]
}

/// A frame of 60 bytes.
fn small(to: [u8; 6], from: [u8; 6]) -> Vec<u8> {
    [&to[..], &from, &[0; 48]].concat()
}

/// A client that gives nothing back gets chains up to its share, less what it needs to send; each mbuf of them counts.
#[test]
fn chains_count_by_their_mbufs() {
    let bench = bench();
    let mut fixture = Fixture::new(&bench, &vec![VlanPolicy::access(0); PORTS]);
    fixture.send(1, &small(host(9), host(2)));
    (0..PORTS).for_each(|port| drop(fixture.received(port)));
    let (bytes, segmentation) = large((MAX_SEGMENTS - 1) * DATA_ROOM, 1448);
    for _ in 0..60 {
        fixture.send_large(0, &bytes, segmentation);
        // What client 1 may have for its own frames is topped up meanwhile.
        fixture.poll(1);
    }
    let sent = fixture.total(1, Counter::TxPackets) as usize;
    assert_eq!(sent as u64 + fixture.total(1, Counter::TxDropQuota), 60);
    let owned = bench.ledger.owned(Owner::client(1, 0));
    assert!(
        sent > 10 && owned >= sent * MAX_SEGMENTS,
        "{owned} mbufs for {sent}"
    );
    assert!(owned <= (QUOTA - ALLOC_LEVEL) as usize);
    // It can send, and get small frames.
    fixture.send(1, &small(host(9), host(2)));
    assert_eq!(fixture.received(2).len(), 1);
    fixture.send(0, &bytes[..60]);
    assert_eq!(fixture.total(1, Counter::TxPackets) as usize, sent + 1);
    // And all again, once it has given back.
    assert_eq!(fixture.received(1).len(), sent + 1);
    (0..60).for_each(|_| fixture.poll(1));
    fixture.send_large(0, &bytes, segmentation);
    assert_eq!(fixture.received(1), [bytes]);
    fixture.end();
}

/// Large and small frames leave who takes none of them what it needs to send, also one that had no empty mbufs yet.
#[test]
fn who_takes_nothing_can_send() {
    let bench = bench();
    let mut fixture = Fixture::new(&bench, &vec![VlanPolicy::access(0); PORTS]);
    let broadcast = small(BROADCAST, host(1));
    let (mut bytes, segmentation) = large((MAX_SEGMENTS - 1) * DATA_ROOM, 1448);
    bytes[..12].copy_from_slice(&broadcast[..12]);
    for number in 0..260 {
        if number < 60 {
            fixture.send_large(0, &bytes, segmentation);
        } else {
            fixture.send(0, &broadcast);
        }
        // The others take theirs.
        for port in [2, 3] {
            fixture.received(port);
            fixture.poll(port);
        }
    }
    assert!(fixture.total(1, Counter::TxDropQuota) > 0);
    for _ in 0..1000 {
        fixture.send(1, &small(host(9), host(2)));
        assert_eq!(fixture.received(2).len(), 1);
    }
    fixture.end();
}

/// A client sends by one thread while another brings it frames, all of which it keeps: whatever that thread sees of what the first one
/// gives and takes, they are never more than leaves it enough to send.
#[test]
fn two_threads_count_one_share() {
    const TIME: Duration = Duration::from_secs(2);
    let bench = bench();
    let mut fixture = Fixture::new(&bench, &vec![VlanPolicy::access(0); PORTS]);
    (0..4).for_each(|_| fixture.poll(1));
    let Io::Client(session) = &fixture.snapshot.ports[1].as_ref().unwrap().io else {
        unreachable!()
    };
    let (queue, ledger) = (&session.queues()[0], &*bench.ledger);
    let Client { alloc, tx, rx, .. } = &mut fixture.clients[1];
    let end = Instant::now() + TIME;
    let mut sends = || {
        let mut entries = [0; ALLOC_LEVEL as usize];
        let mut frames = ArrayVec::<Mbuf, BURST>::new();
        let mut sent = 0;
        while Instant::now() < end {
            let n = alloc.dequeue(&mut entries).unwrap();
            // SAFETY: empty mbufs that the switch gave to this client, and no longer touches.
            let mbufs = entries[..n]
                .iter()
                .map(|&a| unsafe { Mbuf::from_address(a) }.unwrap());
            let mut mbufs: Vec<Mbuf> = mbufs.collect();
            mbufs
                .iter_mut()
                .for_each(|mbuf| mbuf.set_frame(60, Checksum::Unknown));
            assert_eq!(tx.enqueue(&mbufs).unwrap(), n);
            for _ in 0..=n / BURST {
                queue.receive(ledger, &mut frames, BURST);
                sent += frames.len();
                ledger.free_all(&mut frames);
            }
        }
        sent
    };
    let mut keeps = || {
        let mut frames = ArrayVec::<Mbuf, BURST>::new();
        let mut kept = 0;
        while Instant::now() < end {
            let want = frames.remaining_capacity();
            assert!(want == 0 || ledger.alloc(ledger.pools()[0], &mut frames, want));
            frames
                .iter_mut()
                .for_each(|mbuf| mbuf.set_frame(60, Checksum::Unknown));
            queue.send(ledger, &mut frames, false);
            kept += rx.dequeue(&mut [0; BURST]).unwrap();
        }
        ledger.free_all(&mut frames);
        kept
    };
    let (sent, kept) = std::thread::scope(|scope| {
        let keeper = scope.spawn(move || {
            // EAL has bound the other one to the first CPU, and what it starts with it.
            cpus::pin(0, &cpus::allowed()[1..]).unwrap();
            keeps()
        });
        (sends(), keeper.join().unwrap())
    });
    println!("it sent {sent} and kept {kept}");
    // Its empty mbufs count as well, but for a burst of its frames that was taken just then.
    assert!(kept <= (QUOTA - 2 * ALLOC_LEVEL) as usize + BURST, "{kept}");
    fixture.end();
}

/// A client's thread is held up: between two polls of its port another thread brings it all that its ring takes, and it gives
/// all of that back. It stays within its share.
#[test]
fn one_poll_takes_back_whatever_came() {
    let bench = bench();
    let mut fixture = Fixture::new(&bench, &vec![VlanPolicy::access(0); PORTS]);
    fixture.send(1, &small(host(9), host(2)));
    (0..PORTS).for_each(|port| drop(fixture.received(port)));
    for _ in 0..20 {
        for _ in 0..1000 {
            fixture.send(0, &small(host(2), host(1)));
        }
        assert_eq!(fixture.received(1).len(), 1000);
        fixture.poll(1);
    }
    assert_eq!(fixture.total(1, Counter::TxDropQuota), 0);
    fixture.end();
}

/// Without an mbuf left a flood reaches the port that needs no copy, the others count why not; known destinations are
/// reached as ever, and with mbufs again so is everybody.
#[test]
fn an_empty_pool_costs_copies_only() {
    let bench = bench();
    let pool = bench.ledger.pools()[0];
    let mut fixture = Fixture::new(&bench, &vec![VlanPolicy::access(0); PORTS]);
    let broadcast = small(BROADCAST, host(1));
    let (unicast, answer) = (small(host(2), host(1)), small(host(1), host(2)));
    fixture.send(0, &broadcast);
    fixture.send(1, &answer);
    (0..PORTS).for_each(|port| drop(fixture.received(port)));

    let hoard: Vec<Mbuf> = std::iter::from_fn(|| pool.alloc_one()).collect();
    assert_eq!(pool.available(), 0);
    fixture.send(0, &broadcast);
    let came: Vec<usize> = (1..PORTS).map(|port| fixture.received(port).len()).collect();
    assert_eq!(came, [0, 0, 1]);
    for port in [1, 2] {
        assert_eq!(fixture.total(port, Counter::TxDropNoBuffer), 1);
    }
    fixture.send(0, &unicast);
    assert_eq!(fixture.received(1), [unicast]);

    for mbuf in hoard {
        bench.ledger.free(mbuf);
    }
    fixture.send(0, &broadcast);
    assert!((1..PORTS).all(|port| fixture.received(port).len() == 1));
    fixture.end();
}
