//! What workers do to connections and fragments at the same instant, in thousands of orders: see [`crate::atomic`].

use std::{
    array,
    sync::{Arc, atomic::Ordering::SeqCst},
};

use shuttle::thread;

use super::{
    fragments::{Fragments, Inherited},
    table::{STATE, Table},
    *,
};
use crate::{MacAddr, atomic};

const ORDERS: usize = 20_000;
const WORKERS: usize = 2;

/// The rounds of the workers, as the dataplane has them.
#[derive(Default)]
struct Rounds {
    epoch: atomic::AtomicU64,
    of: [atomic::AtomicU64; WORKERS],
}

impl Rounds {
    fn begin(&self, worker: usize) {
        self.of[worker].store(self.epoch.load(SeqCst), SeqCst);
    }

    fn end(&self, worker: usize) {
        self.of[worker].store(u64::MAX, SeqCst);
    }
}

impl Quiescence for Rounds {
    fn retire(&self) -> u64 {
        self.epoch.fetch_add(1, SeqCst) + 1
    }

    fn is_past(&self, retired: u64) -> bool {
        self.of.iter().all(|worker| worker.load(SeqCst) >= retired)
    }
}

fn port() -> PortIdx {
    PortIdx::new(1).unwrap()
}

/// A worker that found a connection writes its state, however long ago that was, and never another one's.
#[test]
fn the_state_of_another_connection_is_never_written() {
    let test = || {
        // One bucket, and its first slot.
        let (hash, [old, new]) = (0, [[1, 2, 3], [4, 5, 6]]);
        let (table, rounds) = (Arc::new(Table::<3>::new(1)), Arc::new(Rounds::default()));
        let slot = table.insert(&*rounds, (hash, port()), &old, [7; STATE]).unwrap();
        let writer = {
            let (table, rounds) = (table.clone(), rounds.clone());
            thread::spawn(move || {
                rounds.begin(0);
                if let Some((slot, _)) = table.find(hash, |i| old[i], 0)
                    && table.is_still(slot)
                {
                    table.state(slot).iter().for_each(|word| word.store(8, Relaxed));
                }
                rounds.end(0);
            })
        };
        let other = thread::spawn(move || {
            rounds.begin(1);
            table.remove(&*rounds, slot).unwrap();
            while {
                rounds.begin(1);
                table.insert(&*rounds, (hash, port()), &new, [9; STATE]).is_none()
            } {
                thread::yield_now();
            }
            rounds.end(1);
            table
        });
        writer.join().unwrap();
        let table = other.join().unwrap();
        let (slot, _) = table.find(hash, |i| new[i], 0).unwrap();
        assert_eq!(table.read(slot).unwrap(), (new, [9; STATE]));
        assert!(table.find(hash, |i| old[i], 0).is_none());
    };
    shuttle::check_random(test, ORDERS);
}

/// Whatever is begun, answered and forgotten at once, no connection is counted that is not there.
#[test]
fn connections_are_counted_once() {
    let test = || {
        let all = Arc::new(Conntrack::new(8, [3, 5], OneThread));
        let settings = Settings::default();
        let zone = Zone { port: port(), segment: SegmentId(1) };
        let udp = |from: u8, to: u8| {
            let mut f = [0; 42];
            (f[12], f[14], f[17], f[23]) = (8, 0x45, 28, 17);
            (f[29], f[33], f[35], f[37], f[39]) = (from, to, from, to, 8);
            f
        };
        let worker = |frames: Vec<[u8; 42]>| {
            let all = all.clone();
            thread::spawn(move || {
                for f in frames {
                    let h = Headers::read(&f, 14, 1, MacAddr::from_bits(1), MacAddr::from_bits(2));
                    let mut p = Probe::NONE;
                    all.probe(&h, || &f, zone, &mut p);
                    match all.find(&p) {
                        Some((found, _)) => all.advance(&found, &h, &f, 1),
                        None => drop(all.begin(
                            &p,
                            &h,
                            &f,
                            (zone, true, 1, false),
                            (&settings, &SessionLimits::default()),
                            1,
                        )),
                    }
                }
            })
        };
        let workers = [worker(vec![udp(1, 2), udp(3, 2)]), worker(vec![udp(2, 1), udp(1, 2)])];
        let flusher = {
            let all = all.clone();
            thread::spawn(move || all.flush(&settings, 1, |_| true))
        };
        workers.into_iter().for_each(|w| w.join().unwrap());
        flusher.join().unwrap();
        let mut there = Vec::new();
        all.sessions((0, 1), &settings, 1, |s| there.push(s.state));
        let unanswered = there.iter().filter(|state| **state == "unanswered").count();
        assert_eq!(all.of_port(port()), (there.len() as u32, unanswered as u32));
        all.flush(&settings, 1, |_| true);
        assert_eq!((all.of_port(port()), all.statistics().sessions), ((0, 0), 0));
    };
    shuttle::check_random(test, ORDERS / 4);
}

/// A later fragment gets the ports of its own first one or none, whatever takes its place meanwhile.
#[test]
fn fragments_get_ports_of_their_own_datagram() {
    let test = || {
        let all = Arc::new(Fragments::default());
        let fragment = |offset: u8, ports: u32| {
            let mut f = [0; 42];
            (f[12], f[14], f[17], f[20], f[21], f[23]) = (8, 0x45, 28, if offset == 0 { 0x20 } else { 0 }, offset, 17);
            let mut h = Headers::read(&f, 14, 1, MacAddr::from_bits(1), MacAddr::from_bits(2));
            if offset == 0 {
                (h.words[SPORT], h.words[DPORT]) = (ports, ports);
            }
            h
        };
        // More than there are places for.
        let threads: [_; 3] = array::from_fn(|worker| {
            let all = all.clone();
            thread::spawn(move || {
                for datagram in [worker as u64, 3, 4, 5] {
                    let ports = datagram as u32 + 100;
                    let whose = (port(), datagram * 2);
                    all.inherit(&mut fragment(0, ports), whose, ports as u16, 1, true);
                    let mut later = fragment(3, 0);
                    if all.inherit(&mut later, whose, 0, 1, true) == Inherited::Yes {
                        assert_eq!((later.words[SPORT], later.words[DPORT]), (ports, ports));
                        assert_eq!(u32::from(later.inherited_id), ports);
                    }
                }
            })
        });
        threads.into_iter().for_each(|t| t.join().unwrap());
    };
    shuttle::check_random(test, ORDERS / 4);
}
