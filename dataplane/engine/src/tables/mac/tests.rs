//! The table against a plain map, under threads, and against a port that attacks it.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, Ordering::Release},
};

use proptest::prelude::*;

use super::*;
use crate::intrinsics::LanesAnywhere;
use crate::{MacAddr, SegmentId};

fn port(i: usize) -> PortIdx {
    PortIdx::new(i).unwrap()
}

fn key(n: u64) -> Key {
    Key::new(MacAddr::from_bits(0x5254_0000_0000 | n), SegmentId((n % 3) as u16 + 1))
}

fn table(capacity: u32) -> MacTable {
    MacTable::new(capacity, [0x1234_5678_9abc_def0, 0x9e37_79b9_7f4a_7c15])
}

fn learn(t: &MacTable, k: Key, p: usize) -> Learned {
    t.learn(t.hash(k), port(p), None, true)
}

fn lookup(t: &MacTable, k: Key) -> Option<usize> {
    t.lookup(t.hash(k)).map(PortIdx::get)
}

/// Hashes of which both buckets are among the first eight.
fn overflowing() -> impl Iterator<Item = Hash> {
    let hashes = (1u64..).map(|i| Hash(i.wrapping_mul(0x9e37_79b9_7f4a_7c15) & !0x7ff8));
    hashes.filter(|h| h.first(START) < 8 && h.second(START) < 8)
}

#[test]
fn holds_its_whole_capacity_without_eviction() {
    let n = 100_000;
    let t = table(n);
    for i in 0..u64::from(n) {
        assert_eq!(learn(&t, key(i), (i % 7) as usize), Learned::New, "{i}");
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
            let learned = (0..n).map(|i| learn(&t, Key::new(mac(i), SegmentId(1)), (i % 4) as usize));
            learned.filter(|l| *l != Learned::Known).count()
        };
        let rounds: Vec<usize> = (0..5).map(|_| round()).collect();
        assert_eq!(rounds[4], 0, "seed {seed}, {n} addresses {stride} apart, learned anew: {rounds:?}");
    }
}

/// A known address is found at every moment, however often the table doubles meanwhile, and by a worker that
/// holds a view of the time before as well.
#[test]
fn growing_hides_nobody() {
    let t = table(400_000);
    let old = t.view().buckets.len();
    for i in 0..1_000 {
        learn(&t, key(i), (i % 7) as usize);
    }
    // Rounds of the reader: all of them, and those that began and ended within one doubling.
    let (rounds, while_growing) = (AtomicU64::new(0), AtomicU64::new(0));
    let (written, read) = (AtomicBool::new(false), AtomicBool::new(false));
    let doubling = || t.growth.in_use_before();
    std::thread::scope(|s| {
        s.spawn(|| {
            let _ends = Ends(&written);
            for i in 1_000..300_000 {
                learn(&t, key(i), (i % 7) as usize);
                // The writer goes on in the middle of a round, and a whole round fits in between.
                let enough = rounds.load(Relaxed) + 2;
                while doubling().is_some() && i % 512 == 0 && rounds.load(Relaxed) < enough && !read.load(Relaxed) {
                    std::thread::yield_now();
                }
            }
            t.sweep(1, 1, |_| 300, |_| ());
        });
        let _ends = Ends(&read);
        while !written.load(Relaxed) {
            let before = doubling();
            let lost = (0..1_000).filter(|i| lookup(&t, key(*i)) != Some((*i % 7) as usize)).count();
            assert_eq!(lost, 0, "of 1,000 not found");
            while_growing.fetch_add(u64::from(before.is_some() && doubling() == before), Relaxed);
            rounds.fetch_add(1, Relaxed);
        }
    });
    // Two doublings: 24,576 addresses are learned meanwhile.
    let while_growing = while_growing.load(Relaxed);
    assert!(while_growing >= 40, "{while_growing} rounds while the table grew");
    assert!(t.growth.in_use_before().is_none());
    assert!(t.view().buckets.len() > old);
    let mut found = 0;
    for i in 0..300_000 {
        assert_eq!(lookup(&t, key(i)), Some((i % 7) as usize), "{i}");
        let probed = t.view().first_probe::<LanesAnywhere>(&t.hash(key(i)));
        assert!(probed.is_none_or(|p| p.get() == (i % 7) as usize), "{i}");
        found += u64::from(probed.is_some());
    }
    // The sweep brought home who had found their first buckets full, before the table doubled.
    assert!(found > 299_700, "{found} of 300,000 found by the first probe");
    let s = t.statistics();
    assert_eq!((s.entries, s.evictions), (300_000, 0));
}

#[test]
fn a_flooding_port_evicts_only_itself() {
    let t = table(MacTable::MIN_CAPACITY);
    for i in 0..100 {
        learn(&t, key(i), 1);
    }
    for i in 1_000..200_000 {
        learn(&t, key(i), 2);
    }
    for i in 0..100 {
        assert_eq!(lookup(&t, key(i)), Some(1), "the quiet port lost {i}");
    }
    // And the quiet port can still learn.
    for i in 200..300 {
        assert_eq!(learn(&t, key(i), 1), Learned::New);
    }
    assert!(t.statistics().entries <= u64::from(MacTable::MIN_CAPACITY) + 1);
    assert!(t.statistics().evictions > 0);
}

#[test]
fn static_entries_neither_move_nor_age_nor_flush() {
    let t = table(100);
    learn(&t, key(1), 1);
    assert!(t.set_static(key(1), port(2)));
    assert_eq!(learn(&t, key(1), 3), Learned::Known);
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
    learn(&t, key(0), 1); // segment 1
    learn(&t, key(1), 1); // segment 2
    let mut aged = Vec::new();
    let mut sweep = |now_s| {
        t.sweep(1, now_s, |s| if s.0 == 1 { 5 } else { 6 }, |e| aged.push((now_s, e.segment.0, e.age_s(now_s))));
    };
    sweep(10);
    sweep(14);
    sweep(15);
    assert_eq!(lookup(&t, key(0)), None);
    assert_eq!(lookup(&t, key(1)), Some(1));
    // Seen again, it stays as long again.
    assert_eq!(learn(&t, key(1), 1), Learned::Known);
    sweep(16);
    sweep(21);
    assert_eq!(lookup(&t, key(1)), Some(1));
    sweep(22);
    assert_eq!(lookup(&t, key(1)), None);
    assert_eq!(aged, [(15, 1, 5), (22, 2, 6)]);
}

/// Ends other threads, also by a failure.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Who is brought home by the sweep is found at every moment, and what becomes of it meanwhile is not lost.
#[test]
fn coming_home_is_not_noticed() {
    let t = table(MacTable::MIN_CAPACITY);
    let neighbours: Vec<Hash> =
        overflowing().filter(|h| h.first(START) == 0 && h.second(START) != 0).take(8 + 100).collect();
    let (fillers, movers) = neighbours.split_at(8);
    let (now, turns) = (AtomicU64::new(0), AtomicU64::new(0));
    let done = AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            while !done.load(Relaxed) {
                let before = now.load(Acquire);
                let found = t.lookup(Hash(before));
                assert!(before == 0 || found.is_some() || now.load(Acquire) != before);
            }
        });
        s.spawn(|| {
            for p in (0..7).cycle().take_while(|_| !done.load(Relaxed)) {
                if let who @ 1.. = now.load(Acquire) {
                    t.learn(Hash(who), port(p), None, true);
                }
                turns.fetch_add(1, Relaxed);
            }
        });
        let _ends = Ends(&done);
        for who in movers {
            fillers.iter().for_each(|h| assert_eq!(t.learn(*h, port(8), None, true), Learned::New));
            assert_eq!(t.learn(*who, port(9), None, true), Learned::New);
            assert!(t.view().first_probe::<LanesAnywhere>(who).is_none());
            now.store(who.0, Release);
            fillers.iter().for_each(|h| assert!(t.remove(h.key(t.inverse))));
            t.sweep(1, 1, |_| 300, |_| ());
            assert!(t.view().first_probe::<LanesAnywhere>(who).is_some());
            now.store(0, Release);
            // It is not learned once more.
            let turn = turns.load(Relaxed);
            while turns.load(Relaxed) < turn + 2 {
                std::thread::yield_now();
            }
            assert!(t.remove(who.key(t.inverse)));
        }
    });
    assert_eq!((t.statistics().entries, (0..10).map(|p| t.port_entries(port(p))).sum()), (0, 0));
}

/// A sweep that goes through the table in parts comes by every slot.
#[test]
fn parts_are_the_whole() {
    let t = table(100_000);
    (0..100_000).for_each(|i| assert_eq!(learn(&t, key(i), 1), Learned::New));
    for now_s in [10, 310] {
        for _ in 0..t.parts() {
            t.sweep(t.parts(), now_s, |_| 300, |_| ());
        }
    }
    assert_eq!((t.statistics().entries, t.statistics().aged), (0, 100_000));
}

/// What is in few buckets finds its way: to other buckets, to more of them, at last in place of others.
#[test]
fn a_crowd_is_held_or_pays() {
    let t = table(MacTable::MIN_CAPACITY);
    let known: Vec<Hash> = overflowing().take(60).collect();
    for (i, h) in known.iter().enumerate() {
        assert_eq!(t.learn(*h, port(i % 7), None, true), Learned::New, "{i}");
    }
    known.iter().enumerate().for_each(|(i, h)| assert_eq!(t.lookup(*h), Some(port(i % 7)), "{i}"));
    assert_eq!(t.statistics().evictions, 0);
    // No more than 64 have room; port 1 comes to hold most, and pays.
    for h in overflowing().skip(60).take(200) {
        t.learn(h, port(1), None, true);
    }
    let s = t.statistics();
    assert!(s.entries == 64 && s.evictions + s.refused_full >= 100, "{s:?}");
    for p in [0, 2, 3, 4, 5, 6] {
        assert!(t.port_entries(port(p)) >= 8, "port {p} has {} left", t.port_entries(port(p)));
    }
    // A table that may become larger does, and then all have room.
    let t = table(400_000);
    let round = || overflowing().take(100).filter(|h| t.learn(*h, port(1), None, true) != Learned::Known).count();
    let rounds: Vec<usize> = (0..5).map(|_| round()).collect();
    assert!(rounds[0] == 100 && rounds[4] == 0, "{rounds:?}");
    assert!(t.view().buckets.len() > START);
    overflowing().take(100).for_each(|h| assert_eq!(t.lookup(h), Some(port(1))));
}

#[test]
fn limit_holds_for_new_and_for_moved_addresses() {
    let t = table(100);
    let at = |k: Key, p: usize| t.learn(t.hash(k), port(p), Some(2), true);
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
                    prop_assert_eq!(learn(&t, key(k), p), want);
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

/// Addresses move between two ports each and their slots are used again all the time: neither readers
/// nor writers ever see an address at another's port, and the counts are exact once the writers stop.
#[test]
fn readers_never_see_a_mixed_entry() {
    // No two pairs differ in the same bits: a change that hits another's entry leads out of its pair.
    const PAIRS: [[usize; 2]; 4] = [[0, 1], [2, 4], [3, 7], [5, 6]];
    let t = table(MacTable::MIN_CAPACITY);
    let overflowing: Vec<Hash> = overflowing().take(512).collect();
    let (steps, end) = (AtomicU64::new(0), AtomicBool::new(false));
    let mut found_at = vec![[0u32; 2]; overflowing.len()];
    std::thread::scope(|s| {
        for w in 0..2usize {
            let (t, overflowing, steps, end) = (&t, &overflowing, &steps, &end);
            s.spawn(move || {
                let _ends = Ends(end);
                for n in (0usize..).take_while(|_| !end.load(Relaxed)) {
                    let k = n * (2_654_435_761 + w) % 512;
                    // Once at one of its ports, then at the other, where it stays until its next turn.
                    let last = n / 512 % 2;
                    for which in [1 - last, last] {
                        let learned = t.learn(overflowing[k], port(PAIRS[k % 4][which]), None, true);
                        if let Learned::Moved { from } = learned {
                            assert!(PAIRS[k % 4].contains(&from.get()), "address {k} was at port {}", from.get());
                        }
                    }
                    if n % 64 == 0 {
                        t.remove(overflowing[k].key(t.inverse));
                    }
                    if n % 4_096 == 0 {
                        t.sweep(4, (n / 1_000) as u32, |_| 30, |_| ());
                    }
                    steps.fetch_add(1, Relaxed);
                }
            });
        }
        let _ends = Ends(&end);
        let mut rounds = 0;
        while (rounds < 500 || steps.load(Relaxed) < 1_000_000) && !end.load(Relaxed) {
            // No round without the writers' progress.
            let before = steps.load(Relaxed);
            rounds += 1;
            while steps.load(Relaxed) < before + 64 && !end.load(Relaxed) {
                std::thread::yield_now();
            }
            for (k, h) in overflowing.iter().enumerate() {
                let Some(p) = t.lookup(*h) else { continue };
                let which = PAIRS[k % 4].iter().position(|own| *own == p.get());
                found_at[k][which.unwrap_or_else(|| panic!("address {k} at port {}", p.get()))] += 1;
            }
        }
    });
    let at_both = found_at.iter().filter(|[a, b]| *a > 0 && *b > 0).count();
    let moves = t.statistics().moves;
    assert!(at_both > 256 && moves > 4_000, "{at_both} addresses were seen at both of their ports, {moves} moves");
    let mut seen = 0;
    t.for_each(|_| seen += 1);
    assert_eq!(t.statistics().entries, seen);
    let per_port: u64 = (0..8).map(|p| u64::from(t.port_entries(port(p)))).sum();
    assert_eq!(per_port, seen);
}
