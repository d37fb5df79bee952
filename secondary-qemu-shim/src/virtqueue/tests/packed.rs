//! The packed layout (virtio 1.2 §2.8).

use super::*;
use crate::virtqueue::testing::WRITE;
use crate::virtqueue::testing::packed::{AVAIL, Descriptor, PackedDriver, USED};

const WRAP: u16 = 1 << 15;

#[test]
fn places_wrap_in_rings_of_any_size() {
    for size in [1, 3, 4, 7, 256] {
        let m = guest();
        let mut driver = PackedDriver::new(&m, 0, size);
        let mut queue = driver.device();
        let mut used = 0u32;
        for round in 0..3 * size {
            let count = 1 + round % size.min(BATCH as u16);
            let chain = [(BUFFERS, 64, true)];
            let expected: Vec<(u16, u32)> = (0..count).map(|_| (driver.offer(&chain), 60)).collect();
            complete_next(&mut queue, &m, Access::Write, &vec![60; expected.len()]);
            assert_eq!(driver.used(), expected, "{size}");
            used += u32::from(count);
            let (slot, wrap) = (used % u32::from(size), (used / u32::from(size)).is_multiple_of(2));
            assert_eq!(queue.base() & 0xffff, slot | u32::from(wrap) << 15, "{size}");
        }
    }
}

#[test]
fn it_goes_on_at_the_base_told() {
    let m = guest();
    for base in [WRAP, WRAP | 3, 0, 7] {
        let mut driver = PackedDriver::new(&m, 0, 8).starting_at(base);
        let mut queue = driver.device();
        assert_eq!(read(&mut queue, &m), Ok(vec![]), "{base:#x}");
        let chain = vec![(BUFFERS, 12, false), (BUFFERS + 64, 60, false)];
        let id = driver.offer(&chain);
        assert_eq!(read(&mut queue, &m), Ok(vec![chain]), "{base:#x}");
        complete(&mut queue, &[0]);
        assert_eq!(driver.used(), [(id, 0)], "{base:#x}");
    }
}

/// A frontend has passed over chains that nobody marked used: they are still there.
#[test]
fn it_goes_on_at_the_used_half_of_the_base() {
    let m = guest();
    for used in [WRAP, WRAP | 3, 5] {
        let mut driver = PackedDriver::new(&m, 0, 8).starting_at(used);
        let chain = vec![(BUFFERS, 60, false)];
        driver.offer(&chain);
        let available = used + 1;
        let base = u32::from(used) << 16 | u32::from(available);
        let mut queue = PackedQueue::new(&m, driver.addresses(), 8, base).unwrap();
        assert_eq!(read(&mut queue, &m), Ok(vec![chain]), "{base:#x}");
    }
}

#[test]
fn rings_outside_memory_or_bases_outside_the_ring_do_not_start() {
    let m = guest();
    let driver = PackedDriver::new(&m, 0, 8);
    let good = driver.addresses();
    let start = |addresses, size, base| PackedQueue::new(&m, addresses, size, base);
    assert!(start(good, 8, 0x8000).is_some());
    assert!(start(good, 0, 0).is_none());
    assert!(start(good, 8, 8).is_none());
    assert!(start(good, 32769, 0).is_none());
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
            available: good.available + 2,
            ..good
        },
        RingAddresses {
            used: good.used + END,
            ..good
        },
    ] {
        assert!(start(bad, 8, 0x8000).is_none(), "{bad:x?}");
    }
}

#[test]
fn used_descriptors_are_written_and_their_addresses_left() {
    let m = guest();
    let mut driver = PackedDriver::new(&m, 0, 8);
    let mut queue = driver.device();
    let id = driver.offer(&[(BUFFERS, 64, true), (BUFFERS + 64, 64, true)]);
    let second = driver.get(1);
    assert_eq!(take(&mut queue, &m, Access::Write, BATCH).map(|c| c.len()), Ok(1));
    complete(&mut queue, &[100]);
    let used = Descriptor {
        address: BUFFERS,
        len: 100,
        id,
        flags: AVAIL | USED | WRITE,
    };
    assert_eq!(driver.get(0), used);
    assert_eq!(driver.get(1), second, "one used descriptor for the whole chain");
}

#[test]
fn indirect_tables_are_walked_where_negotiated() {
    let m = guest();
    let mut driver = PackedDriver::new(&m, 0, 4);
    let mut queue = driver.device();
    let offers: Vec<Offer> = (0..20).map(|i| (BUFFERS + 0x1000 + 32 * i, 32, false)).collect();
    let id = driver.offer_indirect(BUFFERS, &offers);
    assert_eq!(read(&mut queue, &m), Err(Fault::IndirectNotNegotiated));
    queue.set_features(INDIRECT_ONLY);
    // Flags other than WRITE mean nothing in a table (§2.8.7).
    driver.descriptor(BUFFERS, offers[0].0, 32, 77, NEXT | INDIRECT | AVAIL);
    assert_eq!(read(&mut queue, &m), Ok(vec![offers]));
    complete(&mut queue, &[0]);
    assert_eq!(driver.used(), [(id, 0)]);
}

/// Every way to lie that the descriptors have, each with the fault it must end in.
#[test]
fn hostile_descriptors_break_the_queue() {
    type Setup = fn(&mut PackedDriver);
    let cases: &[(Setup, Fault)] = &[
        (
            |d| (0..8).for_each(|slot| d.set(slot, BUFFERS, 64, 0, AVAIL | NEXT)),
            Fault::Loop { size: 8 },
        ),
        (
            |d| d.set(0, BUFFERS, 24, 0, AVAIL | INDIRECT),
            Fault::IndirectTable { len: 24 },
        ),
        (
            |d| d.set(0, BUFFERS, 0, 0, AVAIL | INDIRECT),
            Fault::IndirectTable { len: 0 },
        ),
        (
            |d| d.set(0, BUFFERS, 16, 0, AVAIL | INDIRECT | NEXT),
            Fault::IndirectTable { len: 16 },
        ),
        (
            |d| {
                // Tables do not end a chain of ordinary descriptors here (§2.8.5).
                d.set(0, BUFFERS, 12, 0, AVAIL | NEXT);
                d.set(1, BUFFERS, 16, 0, AVAIL | INDIRECT);
            },
            Fault::IndirectTable { len: 16 },
        ),
        (
            |d| d.set(0, END - 16, 32, 0, AVAIL | INDIRECT),
            Fault::Address {
                address: END - 16,
                len: 32,
            },
        ),
        (
            |d| d.set(0, BUFFERS, 16 * (MAX_CHAIN as u32 + 1), 0, AVAIL | INDIRECT),
            Fault::TooManyBuffers,
        ),
        (
            |d| {
                d.offer_indirect(BUFFERS, &[(BUFFERS, 64, false), (END, 64, false)]);
            },
            Fault::Address {
                address: END,
                len: 64,
            },
        ),
    ];
    for (setup, fault) in cases {
        let m = guest();
        let mut driver = PackedDriver::new(&m, 0, 8);
        let mut queue = driver.device();
        queue.set_features(INDIRECT_ONLY);
        setup(&mut driver);
        assert_eq!(read(&mut queue, &m), Err(*fault));
        assert_eq!(driver.used(), [], "{fault:?}: nothing is used");
    }
}

/// Every slot is taken by chains of a round that the driver has not come to, or not yet left.
#[test]
fn descriptors_of_another_round_are_not_taken() {
    let m = guest();
    let driver = PackedDriver::new(&m, 0, 4).starting_at(2);
    let mut queue = driver.device();
    for flags in [0, AVAIL, AVAIL | USED, USED | WRITE | NEXT] {
        driver.set(2, BUFFERS, 64, 0, flags);
        let available = flags & (AVAIL | USED) == USED;
        let found = take(&mut queue, &m, Access::Write, BATCH);
        assert_eq!(found == Ok(vec![]), !available, "{flags:#x}: {found:?}");
    }
}

#[test]
fn one_descriptor_tells_of_a_batch_that_is_only_read() {
    let m = guest();
    let mut driver = PackedDriver::new(&m, 0, 8).starting_at(6).in_order();
    let mut queue = driver.device();
    queue.set_features(IN_ORDER);
    let two = [(BUFFERS, 12, false), (BUFFERS + 64, 64, false)];
    let ids: Vec<u16> = (0..3).map(|_| driver.offer(&two)).collect();
    let third = driver.get(2);
    assert_eq!(read(&mut queue, &m).map(|c| c.len()), Ok(3));
    complete(&mut queue, &[0, 0]);
    let used = Descriptor {
        address: BUFFERS,
        len: 0,
        id: ids[1],
        flags: 0,
    };
    assert_eq!(driver.get(6), used, "the last one's id, where the first one was");
    assert_eq!(driver.get(2), third, "not completed");
    assert_eq!(driver.used(), [(ids[0], 0), (ids[1], 0)]);
    complete_next(&mut queue, &m, Access::Read, &[0]);
    assert_eq!(driver.used(), [(ids[2], 0)]);
    // What was written differs from buffer to buffer.
    let ids: Vec<u16> = (0..2).map(|_| driver.offer(&[(BUFFERS, 64, true)])).collect();
    complete_next(&mut queue, &m, Access::Write, &[60, 61]);
    assert_eq!(driver.used(), [(ids[0], 60), (ids[1], 61)]);
}

fn complete_next(queue: &mut PackedQueue, m: &GuestMemory, access: Access, written: &[u32]) {
    let taken = take(queue, m, access, written.len()).map(|c| c.len());
    assert_eq!(taken, Ok(written.len()));
    complete(queue, written);
}

#[test]
fn kicks_are_asked_for_only_when_wanted() {
    let m = guest();
    let mut driver = PackedDriver::new(&m, 0, 8);
    let mut queue = driver.device();
    queue.suppress_kicks();
    assert_eq!(driver.device_event().1, 1, "DISABLE");
    assert!(!queue.enable_kicks());
    assert_eq!(driver.device_event().1, 0, "ENABLE");
    driver.offer(&[(BUFFERS, 64, false)]);
    assert!(queue.enable_kicks(), "one came meanwhile");
    queue.set_features(EVENT_IDX);
    assert_eq!(read(&mut queue, &m).map(|c| c.len()), Ok(1));
    assert!(!queue.enable_kicks(), "it has been seen");
    assert_eq!(driver.device_event(), (WRAP | 1, 2), "the next one is to be told");
    driver.offer(&[(BUFFERS, 64, false)]);
    assert!(queue.enable_kicks());
}

#[test]
fn interrupts_without_event_index_follow_the_flag() {
    let m = guest();
    let mut driver = PackedDriver::new(&m, 0, 8);
    let mut queue = driver.device();
    // One descriptor can't be asked for without EVENT_IDX: better once too often.
    for (flag, wanted) in [(0, true), (1, false), (0, true), (2, true), (3, true)] {
        driver.set_driver_event(0, flag);
        driver.offer(&[(BUFFERS, 64, false)]);
        complete_next(&mut queue, &m, Access::Read, &[0]);
        assert_eq!(queue.interrupt_wanted(), wanted, "{flag}");
        assert!(!queue.interrupt_wanted(), "nothing new");
    }
}

#[test]
fn a_log_names_the_pages_of_ring_and_event() {
    let m = guest();
    // The ring's last descriptor ends a page; the events are on the next one.
    let mut driver = PackedDriver::new(&m, 0x3000, 512).starting_at(WRAP | 510);
    let mut queue = driver.device();
    let (log, file) = dirty_log(512);
    queue.set_log(Some(UsedLog { log, guest: 0 }));
    for _ in 0..2 {
        driver.offer(&[(BUFFERS, 64, false)]);
    }
    assert_eq!(read(&mut queue, &m).map(|c| c.len()), Ok(2));
    assert!(dirty_pages(&file).is_empty());
    complete(&mut queue, &[0]);
    assert_eq!(dirty_pages(&file), [4]);
    complete_next(&mut queue, &m, Access::Read, &[0]);
    driver.offer(&[(BUFFERS, 64, false)]);
    complete_next(&mut queue, &m, Access::Read, &[0]);
    assert_eq!(dirty_pages(&file), [3, 4]);
    queue.suppress_kicks();
    assert_eq!(dirty_pages(&file), [3, 4, 5]);
}

#[test]
fn a_new_memory_table_changes_nothing_for_a_running_queue() {
    let m = guest();
    let mut driver = PackedDriver::new(&m, 0, 8);
    let mut queue = driver.device();
    driver.offer(&[(BUFFERS, 64, false)]);
    complete_next(&mut queue, &m, Access::Read, &[0]);
    let mut moved = PackedDriver::new(&m, 0, 8).device();
    moved.carry_on(queue);
    assert_eq!(moved.base(), 0x8001_8001);
}

/// The frontend's region with room for two queues; the tests use the second one.
fn region(size: u16) -> Arc<SharedTable> {
    let len = 2 * PackedInflight::len(size);
    Arc::new(SharedTable::map(&memfd(len), 0, len).unwrap())
}

/// A backend that knows nothing but what the frontend told first, and the region.
fn restarted(m: &Arc<GuestMemory>, region: &Arc<SharedTable>, size: u16) -> PackedQueue {
    let mut queue = PackedDriver::new(m, 0, size).device();
    queue.set_inflight(PackedInflight::new(Arc::clone(region), 1, size).unwrap());
    queue
}

#[test]
fn a_killed_backends_successor_goes_on_where_that_stood() {
    let m = guest();
    let region = region(8);
    assert!(
        PackedInflight::new(Arc::clone(&region), 2, 8).is_none(),
        "outside the region"
    );
    let mut driver = PackedDriver::new(&m, 0, 8);
    for round in 0..20u32 {
        let mut queue = restarted(&m, &region, 8);
        let a = vec![(BUFFERS, 64, true), (BUFFERS + 64, 64, true)];
        let b = vec![(BUFFERS + 128, 64, true)];
        let ids = [driver.offer(&a), driver.offer(&b)];
        assert_eq!(take(&mut queue, &m, Access::Write, BATCH), Ok(vec![a, b.clone()]));
        complete(&mut queue, &[round + 1]);
        // Killed with one chain taken and not used.
        let mut queue = restarted(&m, &region, 8);
        assert_eq!(take(&mut queue, &m, Access::Write, BATCH), Ok(vec![b]));
        complete(&mut queue, &[5]);
        assert_eq!(driver.used(), [(ids[0], round + 1), (ids[1], 5)]);
    }
}

/// A batch that a dead backend had begun to mark used is taken back, or is done, as the first of it tells.
#[test]
fn a_batch_half_marked_used_is_taken_back() {
    for marked in 0..=3u16 {
        let m = guest();
        let region = region(8);
        let mut driver = PackedDriver::new(&m, 0, 8);
        let mut queue = restarted(&m, &region, 8);
        let chains: Vec<Vec<Offer>> = (0..3)
            .map(|i| {
                (0..=i % 2)
                    .map(|j| (BUFFERS + 256 * i + 64 * j, 64, true))
                    .collect()
            })
            .collect();
        let ids: Vec<u16> = chains.iter().map(|chain| driver.offer(chain)).collect();
        let before: Vec<Descriptor> = (0..8).map(|slot| driver.get(slot)).collect();
        assert_eq!(take(&mut queue, &m, Access::Write, BATCH), Ok(chains.clone()));
        let state = region.load64(PackedInflight::len(8) + 16);
        complete(&mut queue, &[10, 20, 30]);
        // As it was after so many of the chains, the first of which is the last one marked.
        let end = region.load64(PackedInflight::len(8) + 16);
        let heads = [1, 3, 0];
        for &slot in &heads[usize::from(marked)..] {
            let d = before[usize::from(slot)];
            driver.set(slot, d.address, d.len, d.id, d.flags);
        }
        let half_done = (end & 0xffff) | (state & 0xffff_0000) | 0x0101 << 32 | 2 << 48;
        region.write(PackedInflight::len(8) + 16, half_done.to_le_bytes());
        let mut queue = restarted(&m, &region, 8);
        if marked < 3 {
            let now: Vec<Descriptor> = (0..8).map(|slot| driver.get(slot)).collect();
            assert_eq!(now, before, "{marked} marked");
            assert_eq!(take(&mut queue, &m, Access::Write, BATCH), Ok(chains));
            complete(&mut queue, &[10, 20, 30]);
        }
        let used: Vec<(u16, u32)> = ids.into_iter().zip([10, 20, 30]).collect();
        assert_eq!(driver.used(), used, "{marked} marked");
        assert_eq!(queue.base(), 0x8004_8004);
    }
}

#[test]
fn after_an_orderly_stop_the_frontends_word_counts() {
    let m = guest();
    let region = region(8);
    let mut driver = PackedDriver::new(&m, 0, 8);
    let mut queue = restarted(&m, &region, 8);
    driver.offer(&[(BUFFERS, 64, false)]);
    complete_next(&mut queue, &m, Access::Read, &[0]);
    assert_eq!(restarted(&m, &region, 8).base(), 0x8001_8001);
    queue.hand_over();
    // The driver resets its queue.
    assert_eq!(restarted(&m, &region, 8).base(), 0x8000_8000);
}

#[test]
fn a_region_of_garbage_or_for_another_queue_is_not_believed() {
    let m = guest();
    for (version, count, state) in [
        (1u16, 8u16, 8u64),
        (1, 8, 0xffff << 16),
        (1, 7, 3),
        (2, 8, 3),
        (0, 8, 3),
    ] {
        let region = region(8);
        let at = PackedInflight::len(8);
        region.write(at + 8, version.to_ne_bytes());
        region.write(at + 10, count.to_ne_bytes());
        region.write(at + 16, state.to_ne_bytes());
        assert_eq!(
            restarted(&m, &region, 8).base(),
            0x8000_8000,
            "{version} {count} {state:#x}"
        );
    }
    // A log that is longer than the batch, of a queue that it does not fit.
    let region = region(1);
    let at = PackedInflight::len(1);
    region.write(at + 8, [1, 0, 1, 0]);
    region.write(at + 16, [0, 0, 0, 0, 0, 1, 0xff, 0xff]);
    let driver = PackedDriver::new(&m, 0, 1);
    driver.set(0, BUFFERS, 64, 0, AVAIL | NEXT);
    assert_eq!(restarted(&m, &region, 1).base(), 0x8000_8000);
}

proptest! {
    /// Valid chains of any shape are seen as offered and used in order, in batches of any size, across restarts.
    #[test]
    fn walks_what_the_driver_offered(
        rounds in proptest::collection::vec(
            (proptest::collection::vec((offers(), any::<bool>()), 1..5), 1usize..70, any::<bool>()),
            1..30,
        ),
        start in 0u16..60,
        wrap: bool,
        in_order: bool,
        size in 60u16..300,
    ) {
        let m = guest();
        let region = region(size);
        let mut driver = PackedDriver::new(&m, 0, size).starting_at(start | u16::from(wrap) << 15);
        if in_order {
            driver = driver.in_order();
        }
        let features = Negotiated { in_order, ..BOTH };
        let mut queue = driver.device();
        queue.set_features(features);
        queue.set_inflight(PackedInflight::new(Arc::clone(&region), 1, size).unwrap());
        for (chains, batch, restart) in rounds {
            let mut expected = Vec::new();
            for (i, (chain, indirect)) in chains.iter().enumerate() {
                let table = BUFFERS + 0x1000 * i as u64;
                let id = if *indirect { driver.offer_indirect(table, chain) } else { driver.offer(chain) };
                expected.push((id, 0));
            }
            let chains: Vec<Vec<Offer>> = chains.into_iter().map(|(chain, _)| chain).collect();
            let mut at = 0;
            while at < chains.len() {
                let end = (at + batch).min(chains.len());
                prop_assert_eq!(take(&mut queue, &m, Access::Read, batch), Ok(chains[at..end].to_vec()));
                complete(&mut queue, &vec![0; end - at]);
                at = end;
            }
            prop_assert_eq!(driver.used(), expected);
            if restart {
                queue = restarted(&m, &region, size);
                queue.set_features(features);
            }
            prop_assert_eq!(queue.base() & 0xffff, driver.base());
        }
    }

    /// The rule of §2.8.10 against its meaning: did the wanted descriptor lie among those just used?
    #[test]
    fn event_index_interrupts(
        start in 0u16..16,
        wrap: bool,
        first in 1u16..8,
        second in 1u16..8,
        event in 0u16..16,
        event_wrap: bool,
    ) {
        let m = guest();
        let mut driver = PackedDriver::new(&m, 0, 16).starting_at(start | u16::from(wrap) << 15);
        let mut queue = driver.device();
        queue.set_features(EVENT_IDX);
        driver.set_driver_event(0, 2);
        let mut serve = |count: u16, queue: &mut PackedQueue| {
            let mut places = Vec::new();
            for _ in 0..count {
                places.push(driver.base() as u16);
                driver.offer(&[(BUFFERS, 64, false)]);
                complete_next(queue, &m, Access::Read, &[0]);
                driver.used();
            }
            places
        };
        serve(first, &mut queue);
        prop_assert!(queue.interrupt_wanted(), "the first time nothing is known");
        let places = serve(second, &mut queue);
        let event = event | u16::from(event_wrap) << 15;
        PackedDriver::new(&m, 0, 16).set_driver_event(event, 2);
        prop_assert_eq!(queue.interrupt_wanted(), places.contains(&event));
    }

    /// Noise in the ring and in the tables: a fault or some chains, never more, and every buffer inside memory.
    #[test]
    fn noise_is_survived(
        seed in proptest::collection::vec(any::<u8>(), 512),
        base in 0u16..16,
        wrap: bool,
        direction: bool,
    ) {
        let m = guest();
        let driver = PackedDriver::new(&m, 0, 16).starting_at(base | u16::from(wrap) << 15);
        let mut queue = driver.device();
        // Low address bits only, so that some descriptors are good.
        let noise: Vec<u8> = seed
            .iter()
            .enumerate()
            .map(|(i, b)| if (i % 16) > 2 && (i % 16) < 12 && i % 16 != 8 { 0 } else { *b })
            .collect();
        poke(&m, 0, &noise);
        poke(&m, BUFFERS, &noise);
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
