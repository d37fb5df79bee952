mod both;
mod packed;

use std::sync::Arc;

use proptest::prelude::*;

use super::testing::{Driver, INDIRECT, NEXT, Offer, dirty_log, dirty_pages};
use super::*;
use crate::guest_memory::SharedTable;
use crate::guest_memory::testing::{memfd, memory, poke};

/// Where buffers are in these tests; rings are below.
const BUFFERS: u64 = 0x1_0000;
const END: u64 = 0x20_0000;

const INDIRECT_ONLY: Negotiated = Negotiated {
    event_idx: false,
    indirect: true,
    in_order: false,
};
const EVENT_IDX: Negotiated = Negotiated {
    event_idx: true,
    indirect: false,
    in_order: false,
};
const BOTH: Negotiated = Negotiated {
    event_idx: true,
    ..INDIRECT_ONLY
};
const IN_ORDER: Negotiated = Negotiated {
    event_idx: false,
    indirect: false,
    in_order: true,
};

fn guest() -> Arc<GuestMemory> {
    memory(&[(0, END)])
}

fn read(queue: &mut impl Virtqueue, memory: &GuestMemory) -> Result<Vec<Vec<Offer>>, Fault> {
    take(queue, memory, Access::Read, BATCH)
}

/// The buffers of the chains that a take returns.
fn take(
    queue: &mut impl Virtqueue,
    memory: &GuestMemory,
    access: Access,
    max: usize,
) -> Result<Vec<Vec<Offer>>, Fault> {
    let mut chains = Chains::new();
    queue.take(memory, access, max, &mut chains)?;
    let write = access == Access::Write;
    Ok((0..chains.len())
        .map(|i| {
            let (buffers, bytes) = chains.get(i);
            assert_eq!(bytes, buffers.iter().map(|b| b.len()).sum::<usize>());
            buffers
                .iter()
                .map(|b| (b.guest(), b.len() as u32, write))
                .collect()
        })
        .collect())
}

fn complete(queue: &mut impl Virtqueue, written: &[u32]) {
    queue.complete(written);
}

#[test]
fn indices_wrap_at_the_ring_and_at_16_bits() {
    let m = guest();
    let mut driver = Driver::new(&m, 0, 4).starting_at(65533);
    let mut queue = driver.device();
    for round in 0..10u32 {
        let heads: Vec<u16> = (0..3)
            .map(|i| driver.offer(&[(BUFFERS + 64 * i, 64, true)]))
            .collect();
        assert_eq!(take(&mut queue, &m, Access::Write, BATCH).unwrap().len(), 3);
        complete(&mut queue, &[round, round + 1, round + 2]);
        let expected: Vec<(u16, u32)> = heads.into_iter().zip(round..).collect();
        assert_eq!(driver.used(), expected);
    }
    assert_eq!(queue.base(), u32::from(65533u16.wrapping_add(30)));
}

#[test]
fn indirect_tables_are_walked_where_negotiated() {
    let m = guest();
    let mut driver = Driver::new(&m, 0, 4);
    let mut queue = driver.device();
    let offers: Vec<Offer> = (0..20).map(|i| (BUFFERS + 0x1000 + 32 * i, 32, false)).collect();
    driver.offer_indirect(BUFFERS, &offers);
    assert_eq!(read(&mut queue, &m), Err(Fault::IndirectNotNegotiated));
    queue.set_features(INDIRECT_ONLY);
    assert_eq!(read(&mut queue, &m), Ok(vec![offers]));
    // A table may end a chain of ordinary descriptors (§2.7.5.3.2).
    let mut driver = Driver::new(&m, 0, 4);
    driver.descriptor(BUFFERS, BUFFERS + 64, 100, 0, 0);
    driver.set(0, BUFFERS + 32, 12, NEXT, 1);
    driver.set(1, BUFFERS, 16, INDIRECT, 0);
    driver.publish(0);
    let mut queue = driver.device();
    queue.set_features(INDIRECT_ONLY);
    assert_eq!(
        read(&mut queue, &m),
        Ok(vec![vec![(BUFFERS + 32, 12, false), (BUFFERS + 64, 100, false)]])
    );
}

/// Every way to lie that the descriptors have, each with the fault it must end in.
#[test]
fn hostile_descriptors_break_the_queue() {
    type Setup = fn(&mut Driver);
    let cases: &[(Setup, Fault)] = &[
        (
            |d| d.set_available_index(9),
            Fault::AvailableIndex { ahead: 9, size: 8 },
        ),
        (
            |d| d.set_available_index(65535),
            Fault::AvailableIndex {
                ahead: 65535,
                size: 8,
            },
        ),
        (|d| d.publish(8), Fault::DescriptorIndex { index: 8, size: 8 }),
        (
            |d| d.publish(65535),
            Fault::DescriptorIndex {
                index: 65535,
                size: 8,
            },
        ),
        (
            |d| {
                d.set(0, BUFFERS, 64, NEXT, 8);
                d.publish(0);
            },
            Fault::DescriptorIndex { index: 8, size: 8 },
        ),
        (
            |d| {
                d.set(0, BUFFERS, 64, NEXT, 0);
                d.publish(0);
            },
            Fault::Loop { size: 8 },
        ),
        (
            |d| {
                d.set(0, BUFFERS, 64, NEXT, 1);
                d.set(1, BUFFERS, 64, NEXT, 0);
                d.publish(0);
            },
            Fault::Loop { size: 8 },
        ),
        (
            |d| {
                d.set(0, BUFFERS, 24, INDIRECT, 0);
                d.publish(0);
            },
            Fault::IndirectTable { len: 24 },
        ),
        (
            |d| {
                d.set(0, BUFFERS, 0, INDIRECT, 0);
                d.publish(0);
            },
            Fault::IndirectTable { len: 0 },
        ),
        (
            |d| {
                d.set(0, BUFFERS, 16, INDIRECT | NEXT, 1);
                d.publish(0);
            },
            Fault::IndirectTable { len: 16 },
        ),
        (
            |d| {
                d.descriptor(BUFFERS, BUFFERS, 16, INDIRECT, 0);
                d.set(0, BUFFERS, 16, INDIRECT, 0);
                d.publish(0);
            },
            Fault::IndirectTable { len: 16 },
        ),
        (
            |d| {
                d.set(0, END - 16, 32, INDIRECT, 0);
                d.publish(0);
            },
            Fault::Address {
                address: END - 16,
                len: 32,
            },
        ),
        (
            |d| {
                d.set(0, BUFFERS, 16 * (MAX_CHAIN as u32 + 1), INDIRECT, 0);
                d.publish(0);
            },
            Fault::TooManyBuffers,
        ),
        (
            |d| {
                d.descriptor(BUFFERS, BUFFERS, 16, NEXT, 0);
                d.set(0, BUFFERS, 16, INDIRECT, 0);
                d.publish(0);
            },
            Fault::Loop { size: 1 },
        ),
        (
            |d| {
                d.descriptor(BUFFERS, BUFFERS, 16, NEXT, 1);
                d.set(0, BUFFERS, 16, INDIRECT, 0);
                d.publish(0);
            },
            Fault::Loop { size: 1 },
        ),
        (
            |d| {
                d.descriptor(BUFFERS, BUFFERS, 16, NEXT, 77);
                d.set(0, BUFFERS, 32, INDIRECT, 0);
                d.publish(0);
            },
            Fault::DescriptorIndex { index: 77, size: 2 },
        ),
    ];
    for (setup, fault) in cases {
        let m = guest();
        let mut driver = Driver::new(&m, 0, 8);
        let mut queue = driver.device();
        queue.set_features(INDIRECT_ONLY);
        setup(&mut driver);
        let found = read(&mut queue, &m);
        // A successor of 1 in a table of 1 may be found by its index or as a loop; either is right.
        let one_behind = Fault::DescriptorIndex { index: 1, size: 1 };
        assert!(
            found == Err(*fault) || found == Err(one_behind),
            "{fault:?}: {found:?}"
        );
        assert_eq!(driver.used(), [], "{fault:?}: nothing is used");
    }
}

#[test]
fn rings_outside_memory_or_of_odd_sizes_do_not_start() {
    let m = guest();
    let driver = Driver::new(&m, 0, 8);
    let good = driver.addresses();
    assert!(SplitQueue::new(&m, good, 8).is_some());
    for size in [0, 3, 12] {
        assert!(SplitQueue::new(&m, good, size).is_none(), "{size}");
    }
    for bad in [
        RingAddresses {
            descriptors: good.descriptors + END - 16,
            ..good
        },
        RingAddresses {
            descriptors: good.descriptors + 8,
            ..good
        },
        RingAddresses { available: 0, ..good },
        RingAddresses {
            available: good.available + 1,
            ..good
        },
        RingAddresses {
            used: good.used + END,
            ..good
        },
        RingAddresses {
            used: u64::MAX,
            ..good
        },
    ] {
        assert!(SplitQueue::new(&m, bad, 8).is_none(), "{bad:x?}");
    }
}

#[test]
fn kicks_are_asked_for_only_when_wanted() {
    let m = guest();
    let mut driver = Driver::new(&m, 0, 8);
    let mut queue = driver.device();
    queue.suppress_kicks();
    assert_eq!(driver.peek16(driver.used_ring()), 1, "NO_NOTIFY");
    assert!(!queue.enable_kicks());
    assert_eq!(driver.peek16(driver.used_ring()), 0);
    driver.offer(&[(BUFFERS, 64, false)]);
    assert!(queue.enable_kicks(), "one came meanwhile");
    queue.set_features(EVENT_IDX);
    assert_eq!(read(&mut queue, &m).map(|c| c.len()), Ok(1));
    complete(&mut queue, &[0]);
    assert!(!queue.enable_kicks());
    assert_eq!(driver.available_event(), 1, "the next one is to be told");
}

#[test]
fn interrupts_without_event_index_follow_the_flag() {
    let m = guest();
    let mut driver = Driver::new(&m, 0, 8);
    let mut queue = driver.device();
    for (flag, wanted) in [(0, true), (1, false), (0, true)] {
        driver.poke16(driver.available_ring(), flag);
        driver.offer(&[(BUFFERS, 64, false)]);
        assert_eq!(read(&mut queue, &m).map(|c| c.len()), Ok(1));
        complete(&mut queue, &[0]);
        assert_eq!(queue.interrupt_wanted(), wanted);
        assert!(!queue.interrupt_wanted(), "nothing new");
    }
}

#[test]
fn one_element_tells_of_a_batch_that_is_only_read() {
    let m = guest();
    let mut driver = Driver::new(&m, 0, 4).starting_at(3);
    let mut queue = driver.device();
    queue.set_features(IN_ORDER);
    let heads: Vec<u16> = (0..3).map(|_| driver.offer(&[(BUFFERS, 64, false)])).collect();
    assert_eq!(read(&mut queue, &m).map(|c| c.len()), Ok(3));
    complete(&mut queue, &[0, 0, 0]);
    assert_eq!(driver.used_index(), 6);
    // Where the first of the batch would be (§2.7.9); nothing behind it.
    assert_eq!(driver.used_element(3), (heads[2], 0));
    assert_eq!(driver.used_element(0), (0, 0));
    // What was written differs from buffer to buffer.
    let heads: Vec<u16> = (0..2).map(|_| driver.offer(&[(BUFFERS, 64, true)])).collect();
    assert_eq!(take(&mut queue, &m, Access::Write, BATCH).map(|c| c.len()), Ok(2));
    complete(&mut queue, &[60, 61]);
    assert_eq!(
        [driver.used_element(2), driver.used_element(3)],
        [(heads[0], 60), (heads[1], 61)]
    );
}

#[test]
fn a_log_names_the_used_rings_pages() {
    let m = guest();
    let mut driver = Driver::new(&m, 0x3000, 8);
    let mut queue = driver.device();
    let (log, file) = dirty_log(512);
    queue.set_log(Some(UsedLog { log, guest: 0x5000 }));
    driver.offer(&[(BUFFERS, 64, false)]);
    assert_eq!(read(&mut queue, &m).map(|c| c.len()), Ok(1));
    assert!(dirty_pages(&file).is_empty());
    complete(&mut queue, &[0]);
    assert_eq!(dirty_pages(&file), [5]);
}

#[test]
fn inflight_marks_follow_the_chains() {
    let m = guest();
    let file = memfd(2 * SplitInflight::len(8));
    let table = Arc::new(SharedTable::map(&file, 0, 2 * SplitInflight::len(8)).unwrap());
    let mark = |head: u16| table.read::<1>(SplitInflight::len(8) + 16 + 16 * u64::from(head))[0];
    let used = || u16::from_ne_bytes(table.read(SplitInflight::len(8) + 14));
    let mut driver = Driver::new(&m, 0, 8);
    let mut queue = driver.device();
    assert!(
        SplitInflight::new(Arc::clone(&table), 2, 8).is_none(),
        "outside the region"
    );
    queue.set_inflight(SplitInflight::new(Arc::clone(&table), 1, 8).unwrap());
    let heads: Vec<u16> = (0..2).map(|_| driver.offer(&[(BUFFERS, 64, false)])).collect();
    assert_eq!(read(&mut queue, &m).map(|c| c.len()), Ok(2));
    assert_eq!((mark(heads[0]), mark(heads[1]), used()), (1, 1, 0));
    complete(&mut queue, &[0]);
    assert_eq!((mark(heads[0]), mark(heads[1]), used()), (0, 1, 1));
    // Killed here: the successor goes on at the used index.
    let mut queue = driver.device();
    queue.set_inflight(SplitInflight::new(Arc::clone(&table), 1, 8).unwrap());
    assert_eq!(read(&mut queue, &m).map(|c| c.len()), Ok(1));
    complete(&mut queue, &[0]);
    assert_eq!((mark(heads[0]), mark(heads[1]), used()), (0, 0, 2));
    assert_eq!(driver.used().len(), 2);
    // Killed between the used index and the marks: they are cleared at the next start.
    table.write(SplitInflight::len(8) + 16 + 16 * u64::from(heads[1]), [1u8]);
    table.write(SplitInflight::len(8) + 14, 1u16.to_ne_bytes());
    driver
        .device()
        .set_inflight(SplitInflight::new(Arc::clone(&table), 1, 8).unwrap());
    assert_eq!((mark(heads[1]), used()), (0, 2));
}

#[test]
fn a_new_memory_table_changes_nothing_for_a_running_queue() {
    let m = guest();
    let mut driver = Driver::new(&m, 0, 8);
    let mut queue = driver.device();
    driver.offer(&[(BUFFERS, 64, false)]);
    assert_eq!(read(&mut queue, &m).map(|c| c.len()), Ok(1));
    complete(&mut queue, &[0]);
    // The used index in memory is not asked again.
    driver.poke16(driver.used_ring() + 2, 99);
    let mut moved = driver.device();
    moved.carry_on(queue);
    assert_eq!(moved.base(), 1);
}

fn offers() -> impl Strategy<Value = Vec<Offer>> {
    proptest::collection::vec(
        (BUFFERS + 0x1_0000..END - 0x1000, 1u32..0x1000, Just(false)),
        1..12,
    )
}

proptest! {
    /// Valid chains of any shape are seen as offered and used in order, in batches of any size.
    #[test]
    fn walks_what_the_driver_offered(
        rounds in proptest::collection::vec((offers(), any::<bool>(), 1usize..70), 1..40),
        start: u16,
        size_log in 4u32..9,
    ) {
        let m = guest();
        let mut driver = Driver::new(&m, 0, 1 << size_log).starting_at(start);
        let mut queue = driver.device();
        queue.set_features(BOTH);
        for (i, (chain, indirect, batch)) in rounds.into_iter().enumerate() {
            let head = if indirect { driver.offer_indirect(BUFFERS, &chain) } else { driver.offer(&chain) };
            prop_assert_eq!(take(&mut queue, &m, Access::Read, batch), Ok(vec![chain]));
            complete(&mut queue, &[i as u32]);
            prop_assert_eq!(driver.used(), vec![(head, i as u32)]);
        }
    }

    /// The rule of §2.7.10 against its meaning: did used_event lie among the entries just published?
    #[test]
    fn event_index_interrupts(start: u16, first in 1u16..5, second in 1u16..5, event_offset in 0u16..12) {
        let m = guest();
        let mut driver = Driver::new(&m, 0, 16).starting_at(start);
        let mut queue = driver.device();
        queue.set_features(EVENT_IDX);
        let mut serve = |count: u16, queue: &mut SplitQueue| {
            for _ in 0..count {
                driver.offer(&[(BUFFERS, 64, false)]);
            }
            assert_eq!(read(queue, &m).map(|c| c.len()), Ok(usize::from(count)));
            complete(queue, &vec![0; usize::from(count)]);
        };
        serve(first, &mut queue);
        prop_assert!(queue.interrupt_wanted(), "the first time nothing is known");
        let event = start.wrapping_add(event_offset);
        serve(second, &mut queue);
        Driver::new(&m, 0, 16).set_used_event(event);
        let published: Vec<u16> = (first..first + second).map(|i| start.wrapping_add(i)).collect();
        prop_assert_eq!(queue.interrupt_wanted(), published.contains(&event));
    }

    /// Noise in the rings and in the tables: a fault or some chains, never more, and every buffer inside memory.
    #[test]
    fn noise_is_survived(seed in proptest::collection::vec(any::<u8>(), 512), available: u16, direction: bool) {
        let m = guest();
        let driver = Driver::new(&m, 0, 16);
        // Low address bits only, so that some descriptors are good.
        let noise: Vec<u8> = seed.iter().enumerate().map(|(i, b)| if (i % 16) > 2 && (i % 16) < 12 && i % 16 != 8 { 0 } else { *b }).collect();
        poke(&m, 0, &noise);
        poke(&m, BUFFERS, &noise);
        driver.set_available_index(available % 18);
        let mut queue = driver.device();
        queue.set_features(BOTH);
        let access = if direction { Access::Read } else { Access::Write };
        if let Ok(chains) = take(&mut queue, &m, access, BATCH) {
            prop_assert!(chains.len() <= 16);
            for (address, len, _) in chains.iter().flatten() {
                prop_assert!(address + u64::from(*len) <= END);
            }
            complete(&mut queue, &vec![0; chains.len()]);
        }
    }
}
