//! What workers and the sweep do to addresses at the same instant, in thousands of orders: see [`crate::atomic`].

use std::sync::Arc;

use shuttle::thread;

use super::*;

const ORDERS: usize = 2_000;

fn port(i: usize) -> PortIdx {
    PortIdx::new(i).unwrap()
}

fn table() -> Arc<MacTable> {
    Arc::new(MacTable::new(MacTable::MIN_CAPACITY, [0x1234_5678_9abc_def0, 0x9e37_79b9_7f4a_7c15]))
}

/// Of the first bucket `first` and the second one `second`.
fn hashes(first: usize, second: usize) -> impl Iterator<Item = Hash> {
    let hashes = (1u64..).map(move |i| Hash(i.wrapping_mul(0x9e37_79b9_7f4a_7c15) << 15 | first as u64));
    hashes.filter(move |h| h.second(START) == second)
}

fn assert_counted(t: &MacTable, hashes: &[Hash]) {
    let there: Vec<_> = hashes.iter().filter_map(|h| t.lookup(*h)).collect();
    for p in 1..3 {
        let n = there.iter().filter(|at| at.get() == p).count();
        assert_eq!(t.port_entries(port(p)), n as u32);
    }
    assert_eq!(t.statistics().entries, there.len() as u64);
}

/// Two workers that learn an address at two ports, while it is made static: it is, and counted once.
#[test]
fn what_is_static_stays() {
    let test = || {
        let t = table();
        let hash = hashes(0, 0).next().unwrap();
        let key = hash.key(t.inverse);
        let learners = [1, 2].map(|p| {
            let t = t.clone();
            thread::spawn(move || {
                for _ in 0..2 {
                    t.learn(hash, port(p), None, true);
                }
            })
        });
        let fixed = {
            let t = t.clone();
            thread::spawn(move || assert!(t.set_static(key, port(2))))
        };
        learners.into_iter().for_each(|w| w.join().unwrap());
        fixed.join().unwrap();
        // A worker may enter it twice; the sweep takes the second one out, of this bucket in its first step.
        t.sweep(START, 1, |_| 300, |_| ());
        assert_eq!((t.lookup(hash), t.is_static(hash)), (Some(port(2)), true));
        assert_counted(&t, &[hash]);
    };
    shuttle::check_random(test, ORDERS);
}

/// An address is found at every moment while it is moved to its other bucket to make room.
#[test]
fn what_makes_room_is_found_all_the_time() {
    let test = || {
        let t = table();
        let residents: Vec<_> = hashes(1, 2).take(WAYS).chain(hashes(1, 1).take(1)).collect();
        let newcomers: Vec<_> = hashes(1, 1).skip(1).take(2).collect();
        // The bucket is full; one of them can go.
        residents[1..].iter().for_each(|h| assert_eq!(t.learn(*h, port(1), None, true), Learned::New));
        let workers = [0, 1].map(|i| {
            let (t, new) = (t.clone(), newcomers[i]);
            thread::spawn(move || assert_eq!(t.learn(new, port(2), None, true), Learned::New))
        });
        let reader = {
            let (t, residents) = (t.clone(), residents.clone());
            thread::spawn(move || residents[1..].iter().for_each(|h| assert_eq!(t.lookup(*h), Some(port(1)))))
        };
        workers.into_iter().for_each(|w| w.join().unwrap());
        reader.join().unwrap();
        assert_counted(&t, &[&residents[1..], &newcomers].concat());
    };
    shuttle::check_random(test, ORDERS);
}
