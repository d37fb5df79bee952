use super::*;
use proptest::prelude::*;
use std::collections::HashMap;

fn key(vlan: u16, n: u64) -> Key {
    Key::new(vlan, Mac::from_bits(n << 8 | 2))
}

#[derive(Debug, Clone)]
enum Op {
    Frame { vlan: u16, mac: u64, port: u16 },
    Pass(u32),
    Expire,
    FlushPort(u16),
    Flush,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (0u16..3, 0u64..40, 0u16..5).prop_map(|(vlan, mac, port)| Op::Frame { vlan, mac, port }),
        2 => (0u32..200).prop_map(Op::Pass),
        1 => Just(Op::Expire),
        1 => (0u16..5).prop_map(Op::FlushPort),
        1 => Just(Op::Flush),
    ]
}

proptest! {
    /// Against a plain map, with room for all: what was learned last is found until it is too old or flushed.
    #[test]
    fn behaves_as_a_map_that_forgets(ops in proptest::collection::vec(op(), 1..200)) {
        let table = MacTable::new(1024, 300);
        let mut model: HashMap<(u16, u64), (u16, u32)> = HashMap::new();
        let mut now = 1000;
        for op in ops {
            match op {
                Op::Frame { vlan, mac, port } => {
                    let known = model.get(&(vlan, mac)).is_some_and(|&(p, t)| p == port && now - t <= 300);
                    let source = table.reader(now).check_source(key(vlan, mac), port);
                    prop_assert_eq!(source, if known { Source::Known } else { Source::Learn });
                    if source == Source::Learn {
                        table.learn(key(vlan, mac), port, now);
                    }
                    model.insert((vlan, mac), (port, now));
                }
                Op::Pass(seconds) => now += seconds,
                Op::Expire => {
                    table.expire(now);
                    model.retain(|_, &mut (_, t)| now - t <= 300);
                    prop_assert_eq!(table.len(), model.len());
                }
                Op::FlushPort(port) => {
                    table.flush_port(port);
                    model.retain(|_, &mut (p, _)| p != port);
                }
                Op::Flush => {
                    table.flush();
                    model.clear();
                }
            }
            for vlan in 0..3 {
                for mac in 0..40 {
                    let expected = model.get(&(vlan, mac)).filter(|e| now - e.1 <= 300).map(|e| e.0);
                    prop_assert_eq!(table.reader(now).lookup(key(vlan, mac)), expected);
                }
            }
        }
    }

    /// Against a plain map, through several doublings: nothing is lost, nor found twice.
    #[test]
    fn grows_without_forgetting(
        macs in proptest::collection::vec((0u16..4, prop_oneof![0u64..2000, any::<u64>()], 0u16..5, any::<bool>()), 1..4000),
    ) {
        let table = MacTable::new(GREATEST_SIZE, 300);
        let mut model = HashMap::new();
        for (i, &(vlan, mac, port, remove)) in macs.iter().enumerate() {
            let key = key(vlan, mac);
            if remove && i % 4 == 0 {
                prop_assert_eq!(table.remove(key), model.remove(&(vlan, key.mac())).is_some());
            } else {
                table.learn(key, port, 1);
                model.insert((vlan, key.mac()), port);
            }
        }
        let reader = table.reader(1);
        for (&(vlan, mac), &port) in &model {
            prop_assert_eq!(reader.lookup(Key::new(vlan, mac)), Some(port));
        }
        let entries = table.entries(1);
        prop_assert!(entries.iter().all(|e| model.get(&(e.vlan, e.mac)) == Some(&e.port)));
        prop_assert_eq!((table.len(), entries.len()), (model.len(), model.len()));
        prop_assert_eq!(table.totals().evicted, 0);
        prop_assert!(macs.len() < 3000 || table.buckets().len() >= 8 * LEAST_BUCKETS);
    }

    /// However many addresses come, the cap holds and the counts agree with the content.
    #[test]
    fn the_cap_holds(macs in proptest::collection::vec((0u64..5000, 0u16..4), 1..3000)) {
        let table = MacTable::new(256, 300);
        for (i, (mac, port)) in macs.iter().enumerate() {
            table.learn(key(0, *mac), *port, i as u32 / 100);
            prop_assert_eq!(table.reader(i as u32 / 100).lookup(key(0, *mac)), Some(*port));
        }
        let len = table.len();
        prop_assert!(len <= 256);
        prop_assert_eq!(table.entries(30).len(), len);
        let counted: u32 = table.lock().per_port.iter().sum();
        prop_assert_eq!(counted as usize, len);
    }
}

#[test]
fn a_reader_of_before_it_grew_finds_what_was_there() {
    let table = MacTable::new(GREATEST_SIZE, 300);
    (0..100).for_each(|mac| assert!(table.learn(key(0, mac), 1, 10)));
    let before = table.reader(11);
    (100..10_000).for_each(|mac| assert!(table.learn(key(0, mac), 2, 10)));
    assert!(table.buckets().len() > 16 * LEAST_BUCKETS);
    for mac in 0..100 {
        assert_eq!(before.lookup(key(0, mac)), Some(1));
        assert_eq!(before.check_source(key(0, mac), 1), Source::Known);
    }
    // What has come since is learned once only.
    assert_eq!(before.check_source(key(0, 9_999), 2), Source::Learn);
    assert!(!table.learn(key(0, 9_999), 2, 10));
    assert_eq!((table.len(), table.totals().learned), (10_000, 10_000));
}

#[test]
fn what_is_there_is_found_while_others_are_learned() {
    const ADDRESSES: u64 = 60_000;
    let table = MacTable::new(GREATEST_SIZE, 300);
    let learned = AtomicUsize::new(0);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            for mac in 0..ADDRESSES {
                table.learn(key(0, mac), 1, 1);
                learned.store(mac as usize + 1, Ordering::Release);
            }
        });
        let (mut done, mut at) = (0, 0);
        while done < ADDRESSES {
            done = learned.load(Ordering::Acquire) as u64;
            let reader = table.reader(1);
            for _ in 0..100.min(done) {
                at = (at + 7919) % done;
                assert_eq!(reader.lookup(key(0, at)), Some(1), "address {at} of {done}");
            }
        }
    });
    assert_eq!(table.totals().evicted, 0);
}

#[test]
fn a_port_is_flushed_while_the_table_grows() {
    for _ in 0..10 {
        let table = MacTable::new(GREATEST_SIZE, 300);
        (0..10_000).for_each(|mac| assert!(table.learn(key(0, mac), 1, 1)));
        std::thread::scope(|threads| {
            threads.spawn(|| (10_000..50_000).for_each(|mac| assert!(table.learn(key(0, mac), 2, 1))));
            table.flush_port(1);
            assert_eq!(table.entries(1).iter().find(|e| e.port == 1), None);
        });
        assert_eq!(table.len(), 40_000);
    }
}

#[test]
fn a_port_that_floods_addresses_loses_its_own() {
    // Each table has multipliers of its own.
    const TABLES: usize = 20;
    let mut all = 0;
    for _ in 0..TABLES {
        let table = MacTable::new(1024, 300);
        for mac in 0..100 {
            table.learn(key(0, mac), 1, 10);
        }
        for mac in 1000..50_000 {
            table.learn(key(0, mac), 2, 20);
        }
        let kept = (0..100)
            .filter(|&mac| table.reader(20).lookup(key(0, mac)) == Some(1))
            .count();
        // A few may fall to full buckets; the flood as a whole must not push them out.
        assert!(kept >= 90, "{kept} of 100 addresses of the quiet port are left");
        all += kept;
    }
    assert!(
        all >= 95 * TABLES,
        "{all} addresses of {TABLES} quiet ports are left"
    );
}

#[test]
fn fixed_entries_neither_move_nor_age() {
    let table = MacTable::new(64, 300);
    table.add_fixed(key(5, 1), 3, 0);
    assert!(!table.learn(key(5, 1), 4, 10));
    table.expire(100_000);
    table.flush();
    assert_eq!(table.reader(100_000).lookup(key(5, 1)), Some(3));
    assert_eq!(table.entries(1)[0].age, None);
    table.learn(key(5, 2), 3, 1);
    table.flush_learned(3);
    assert_eq!(table.len(), 1, "the port has lost its link");
    table.flush_port(3);
    assert!(table.is_empty());
}

/// Another size of the table costs nobody his address, nor its age, as long as there is room.
#[test]
fn a_table_of_another_size_knows_the_same() {
    let table = MacTable::new(1000, 300);
    for n in 0..500 {
        table.learn(key(n as u16 % 3, n), n as u16 % 7, 10 + n as u32 / 5);
    }
    table.add_fixed(key(7, 7), 9, 50);
    for size in [400, 600, 30_000] {
        let other = MacTable::new(size, 300);
        assert_eq!(other.add_all_of(&table, 200), 0);
        let (before, after) = (table.entries(200), other.entries(200));
        if size > 500 {
            assert_eq!(after, before);
        } else {
            assert!(after.len() > size * 9 / 10 && after.iter().all(|entry| before.contains(entry)));
        }
    }
}

/// More of them than the table has places for: who has no place is told so.
#[test]
fn a_fixed_entry_is_there_or_refused() {
    let table = MacTable::new(LEAST_SIZE, 300);
    let added: Vec<bool> = (0..20_000).map(|n| table.add_fixed(key(1, n), 3, 1)).collect();
    let reader = table.reader(1);
    for (n, added) in (0..).zip(&added) {
        assert_eq!(reader.lookup(key(1, n)), added.then_some(3));
    }
    assert!(added.contains(&false) && added[..100].iter().all(|added| *added));
    // A larger table takes them over, and what was learned; another one as small has no room for all of them.
    table.learn(key(1, 30_000), 4, 1);
    let larger = MacTable::new(30_000, 300);
    let count = added.iter().filter(|added| **added).count();
    assert_eq!(
        (larger.add_all_of(&table, 2), larger.entries(2).len()),
        (0, table.entries(2).len())
    );
    let small = MacTable::new(LEAST_SIZE, 300);
    let lost = small.add_all_of(&larger, 2);
    assert_eq!(lost + small.entries(2).len(), count);
}

#[test]
fn nearly_nothing_is_evicted_below_the_cap() {
    const TABLES: usize = 50;
    for byte in 0..4 {
        let mut all = 0;
        for _ in 0..TABLES {
            let table = MacTable::new(8192, 300);
            for mac in 0..8192 {
                table.learn(key(0, mac << (8 * byte)), 1, 1);
            }
            assert!(
                table.len() > 7780,
                "{} of 8192 are held, byte {byte}",
                table.len()
            );
            all += table.len();
        }
        assert!(
            all > 8150 * TABLES,
            "{all} of {TABLES} times 8192 are held, byte {byte}"
        );
    }
}

#[test]
fn what_follows_each_other_is_spread() {
    assert!(!spreads(1) && !spreads(3 << 62 | 1) && !spreads(u64::MAX));
    // Four for each bucket: chance would put eleven or twelve into one of them.
    for multiplier in (0..20).flat_map(|_| MacTable::new(64, 300).multipliers) {
        for (bits, byte) in (0..5).flat_map(|byte| [(6, byte), (10, byte), (14, byte)]) {
            let mut loads = vec![0u32; 1 << bits];
            for n in 0..4 << bits {
                loads[(multiplier.wrapping_mul(n << (8 * byte)) >> (64 - bits)) as usize] += 1;
            }
            let most = loads.into_iter().max().unwrap_or(0);
            assert!(most <= 16, "{most} in one of 2^{bits} buckets, byte {byte}");
        }
    }
}
