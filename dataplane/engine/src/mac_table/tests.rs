//! The table against a plain map, under threads, and against a port that attacks it.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

fn port(i: usize) -> PortIdx {
    PortIdx::new(i).unwrap()
}

fn key(n: u64) -> Key {
    Key::new(MacAddr::from_bits(0x5254_0000_0000 | n), SegmentId((n % 3) as u16 + 1))
}

fn table(capacity: u32) -> MacTable {
    MacTable::new(capacity, [0x1234_5678_9abc_def0, 0x9e37_79b9_7f4a_7c15])
}

fn learn(t: &MacTable, k: Key, p: usize, now: u32) -> Learned {
    t.learn(k, t.hash(k), port(p), now, None)
}

fn lookup(t: &MacTable, k: Key) -> Option<usize> {
    t.lookup(k, t.hash(k)).map(PortIdx::get)
}

#[test]
fn holds_its_whole_capacity_without_eviction() {
    let n = 100_000;
    let t = table(n);
    for i in 0..u64::from(n) {
        assert_eq!(learn(&t, key(i), (i % 7) as usize, 1), Learned::New, "{i}");
    }
    for i in 0..u64::from(n) {
        assert_eq!(lookup(&t, key(i)), Some((i % 7) as usize));
    }
    let s = t.statistics();
    assert_eq!((s.entries, s.evictions, s.refused_full), (u64::from(n), 0, 0));
}

/// Whatever the seed is: addresses that are counted up find room in a table that is far from full, soon if not at once.
#[test]
fn counted_addresses_find_room_with_every_seed() {
    let mut state = 1u64;
    let mut random = || {
        // Steele, Lea and Flood's SplitMix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    };
    for seed in 0..200 {
        let (stride, n) = ([1, 256, 65_536][seed % 3], [2_000, 4_000, 7_900][seed / 3 % 3]);
        let t = MacTable::new(16_384, [random(), random()]);
        let round = || {
            let mac = |i: u64| MacAddr::from_bits(0x5254_0000_0000 + i * stride);
            let learned = (0..n).map(|i| learn(&t, Key::new(mac(i), SegmentId(1)), (i % 4) as usize, 1));
            learned.filter(|l| *l != Learned::Known).count()
        };
        let rounds: Vec<usize> = (0..5).map(|_| round()).collect();
        assert_eq!(rounds[4], 0, "seed {seed}, {n} addresses {stride} apart, learned anew: {rounds:?}");
    }
}

/// Whoever is known is found at every moment, however often the table doubles meanwhile, and a
/// worker that holds a view of before finds it too.
#[test]
fn growing_hides_nobody() {
    let t = table(400_000);
    let old = t.view().buckets.len();
    for i in 0..1_000 {
        learn(&t, key(i), (i % 7) as usize, 1);
    }
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            for i in 1_000..300_000 {
                learn(&t, key(i), (i % 7) as usize, 1);
            }
            t.sweep(1, 1, |_| 300, |_| ());
            done.store(true, Relaxed);
        });
        while !done.load(Relaxed) {
            let lost = (0..1_000).filter(|i| lookup(&t, key(*i)) != Some((*i % 7) as usize)).count();
            assert_eq!(lost, 0, "of 1,000 not found");
        }
    });
    assert!(t.growth.in_use_before().is_none());
    assert!(t.view().buckets.len() > 100 * old);
    for i in 0..300_000 {
        assert_eq!(lookup(&t, key(i)), Some((i % 7) as usize), "{i}");
        assert_eq!(t.view().lookup(key(i), t.hash(key(i))), Some(port((i % 7) as usize)), "{i}");
    }
    let s = t.statistics();
    assert_eq!((s.entries, s.evictions), (300_000, 0));
}

#[test]
fn a_flooding_port_evicts_only_itself() {
    let t = table(1_000);
    for i in 0..100 {
        learn(&t, key(i), 1, 1);
    }
    for i in 1_000..200_000 {
        learn(&t, key(i), 2, 2);
    }
    for i in 0..100 {
        assert_eq!(lookup(&t, key(i)), Some(1), "the quiet port lost {i}");
    }
    // And the quiet port can still learn.
    for i in 200..300 {
        assert_eq!(learn(&t, key(i), 1, 3), Learned::New);
    }
    assert!(t.statistics().entries <= 1_001);
    assert!(t.statistics().evictions > 0);
}

#[test]
fn static_entries_neither_move_nor_age_nor_flush() {
    let t = table(100);
    learn(&t, key(1), 1, 1);
    assert!(t.set_static(key(1), port(2)));
    assert_eq!(learn(&t, key(1), 3, 1), Learned::Known);
    t.sweep(1, 1_000_000, |_| 1, |_| ());
    assert_eq!(t.flush(|_| true), 0);
    assert_eq!(lookup(&t, key(1)), Some(2));
    assert_eq!(t.purge(|e| e.port == port(2)), 1);
    assert_eq!(lookup(&t, key(1)), None);
    assert_eq!(t.statistics().entries, 0);
}

#[test]
fn ageing_is_per_segment() {
    let t = table(100);
    learn(&t, key(0), 1, 10); // segment 1
    learn(&t, key(1), 1, 10); // segment 2
    let mut aged = Vec::new();
    t.sweep(1, 15, |s| if s.0 == 1 { 5 } else { 6 }, |e| aged.push(e.segment.0));
    assert!(!aged.is_empty() && aged.iter().all(|s| *s == 1), "{aged:?}");
    assert_eq!(lookup(&t, key(0)), None);
    assert_eq!(lookup(&t, key(1)), Some(1));
}

#[test]
fn limit_holds_for_new_and_for_moved_addresses() {
    let t = table(100);
    let at = |k: Key, p: usize| t.learn(k, t.hash(k), port(p), 1, Some(2));
    assert_eq!(at(key(1), 1), Learned::New);
    assert_eq!(at(key(2), 1), Learned::New);
    assert_eq!(at(key(3), 1), Learned::Limited);
    assert_eq!(at(key(3), 2), Learned::New);
    assert_eq!(at(key(3), 1), Learned::Limited);
    assert_eq!(at(key(1), 1), Learned::Known);
    assert_eq!(t.statistics().refused_limit, 2);
}

#[derive(Clone, Debug)]
enum Op {
    Learn(u64, usize),
    Remove(u64),
    FlushPort(usize),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (0u64..300, 0usize..5).prop_map(|(k, p)| Op::Learn(k, p)),
        2 => (0u64..300).prop_map(Op::Remove),
        1 => (0usize..5).prop_map(Op::FlushPort),
    ]
}

proptest! {
    /// Below capacity the table is a map.
    #[test]
    fn agrees_with_a_map(ops in proptest::collection::vec(op(), 1..400)) {
        let t = table(300);
        let mut oracle: HashMap<u64, usize> = HashMap::new();
        for o in ops {
            match o {
                Op::Learn(k, p) => {
                    let want = match oracle.insert(k, p) {
                        None => Learned::New,
                        Some(q) if q == p => Learned::Known,
                        Some(q) => Learned::Moved { from: port(q) },
                    };
                    prop_assert_eq!(learn(&t, key(k), p, 1), want);
                }
                Op::Remove(k) => prop_assert_eq!(t.remove(key(k)), oracle.remove(&k).is_some()),
                Op::FlushPort(p) => {
                    let before = oracle.len();
                    oracle.retain(|_, q| *q != p);
                    prop_assert_eq!(t.flush(port(p).owns()), (before - oracle.len()) as u64);
                }
            }
        }
        for k in 0..300 {
            prop_assert_eq!(lookup(&t, key(k)), oracle.get(&k).copied());
        }
        prop_assert_eq!(t.statistics().entries, oracle.len() as u64);
        for p in 0..5 {
            let want = oracle.values().filter(|q| **q == p).count() as u32;
            prop_assert_eq!(t.port_entries(port(p)), want);
        }
    }
}

/// Readers beside writers never see an address at a port that never had it, and the counts are
/// exact once the writers stop.
#[test]
fn readers_never_see_a_mixed_entry() {
    let t = table(64); // small: slots are reused all the time
    std::thread::scope(|s| {
        for w in 0..2u64 {
            let t = &t;
            s.spawn(move || {
                for n in 0..300_000u64 {
                    let k = n.wrapping_mul(2_654_435_761 + w) % 512;
                    learn(t, key(k), (k % 8) as usize, (n / 1_000) as u32);
                    if n % 64 == 0 {
                        t.remove(key(k));
                    }
                    if n % 4_096 == 0 {
                        t.sweep(4, (n / 1_000) as u32, |_| 30, |_| ());
                    }
                }
            });
        }
        s.spawn(|| {
            for n in 0..2_000_000u64 {
                let k = n % 512;
                if let Some(p) = lookup(&t, key(k)) {
                    assert_eq!(p, (k % 8) as usize);
                }
            }
        });
    });
    let mut seen = 0;
    t.for_each(|_| seen += 1);
    assert_eq!(t.statistics().entries, seen);
    let per_port: u64 = (0..8).map(|p| u64::from(t.port_entries(port(p)))).sum();
    assert_eq!(per_port, seen);
}
