//! Which host or VM of a network has which IP address, so that ARP requests and neighbor solicitations need not be flooded
//! to all hosts (RFC 9161).
//!
//! What is configured stands in the network's specification. The rest is learned from requests and announcements, which are
//! flooded anyway: one table for all networks and workers.
//!
//! **Bounded.** A port has a quota. A new entry takes a free place of its bucket, or that of one that is too old, or of the
//! oldest of its own port; no port takes the place of another port's. What finds no place is counted and not learned:
//! requests for it are flooded. A look at the table is a look at one bucket, however full it is.
//!
//! **What is atomic.** The version of an entry is odd while a worker writes it. A worker that can't begin to write, or
//! reads while another one writes, goes on as if it had not met the entry; no worker waits.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    sync::{
        Arc,
        atomic::{
            AtomicU32, AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
            fence,
        },
    },
};

use dunlin_model::spec::Binding;

use crate::packet::Address;
use dunlin_model::spec::NetworkSpec;

use crate::{MAX_PORTS, MacAddr, PortIdx, SegmentId};

/// Entries of a bucket.
const WAYS: usize = 8;
const BUCKETS: usize = 8_192;
/// The most entries of one port; and of another host's end of tunnels, behind which many of them are.
const PORT_MAX: u32 = 1_024;
const REMOTE_MAX: u32 = 16_384;
/// For how many seconds what was learned is believed.
const BELIEVED_S: u32 = 300;
/// An entry is written again only after so many seconds, if nothing else of it is new.
const FRESH_S: u32 = 60;

/// Flags beside an entry's port.
const USED: u32 = 1 << 16;
const ROUTER: u32 = 1 << 17;
const HOST: u32 = 1 << 18;

/// What was learned of an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Learned {
    pub mac: MacAddr,
    /// The port by which it was heard.
    pub port: PortIdx,
    /// Whether it is a router; `None` if no advertisement said it yet.
    pub router: Option<bool>,
}

/// An entry as it was at one instant.
#[derive(Clone, Copy)]
struct Content {
    version: u32,
    key: (SegmentId, Address),
    learned: Learned,
    used: bool,
    seen_s: u32,
}

impl Content {
    fn is_old(&self, now_s: u32) -> bool {
        now_s.saturating_sub(self.seen_s) > BELIEVED_S
    }
}

#[derive(Default)]
struct Entry {
    version: AtomicU32,
    seen_s: AtomicU32,
    address: [AtomicU64; 2],
    /// The MAC address, above the segment's number.
    owner: AtomicU64,
    /// The port's number, and flags.
    port: AtomicU32,
}

impl Entry {
    /// `None` while it is written.
    fn read(&self) -> Option<Content> {
        let version = self.version.load(Acquire);
        let [high, low] = [0, 1].map(|i| u128::from(self.address[i].load(Relaxed)));
        let (owner, port, seen_s) = (self.owner.load(Relaxed), self.port.load(Relaxed), self.seen_s.load(Relaxed));
        fence(Acquire);
        if version & 1 != 0 || self.version.load(Relaxed) != version {
            return None;
        }
        let learned = Learned {
            mac: MacAddr::from_bits(owner >> 16),
            port: PortIdx::from_raw(port as u16),
            router: (port & (ROUTER | HOST) != 0).then_some(port & ROUTER != 0),
        };
        let key = (SegmentId(owner as u16), Address::from_bits(high << 64 | low));
        Some(Content { version, key, learned, used: port & USED != 0, seen_s })
    }

    /// Writes in the place of what was read; whether no other worker was faster.
    fn write(
        &self,
        before: &Content,
        (segment, address): (SegmentId, Address),
        l: Option<&Learned>,
        now_s: u32,
    ) -> bool {
        if self.version.compare_exchange(before.version, before.version.wrapping_add(1), Acquire, Relaxed).is_err() {
            return false;
        }
        fence(Release);
        let flags = |l: &Learned| {
            l.port.get() as u32 | USED | l.router.map_or(0, |is_router| if is_router { ROUTER } else { HOST })
        };
        self.address[0].store((address.bits() >> 64) as u64, Relaxed);
        self.address[1].store(address.bits() as u64, Relaxed);
        self.owner.store(l.map_or(0, |l| l.mac.bits() << 16) | u64::from(segment.0), Relaxed);
        self.port.store(l.map_or(0, flags), Relaxed);
        self.seen_s.store(now_s, Relaxed);
        self.version.store(before.version.wrapping_add(2), Release);
        true
    }
}

/// See the module.
pub struct BindingTable {
    entries: Box<[Entry]>,
    /// So that no guest can choose addresses of one bucket.
    secrets: [u64; 2],
    /// How many entries each port has.
    of_ports: Box<[AtomicU32; MAX_PORTS]>,
    refused: AtomicU64,
}

impl std::fmt::Debug for BindingTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BindingTable({:?})", self.statistics())
    }
}

/// Numbers of a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Statistics {
    /// Entries.
    pub entries: u32,
    /// The most of them.
    pub capacity: u32,
    /// Addresses that were not learned: their port had as many as it may, or there was no place.
    pub refused: u64,
}

impl Default for BindingTable {
    fn default() -> Self {
        let random = |n: u64| RandomState::new().hash_one(n);
        BindingTable {
            entries: (0..BUCKETS * WAYS).map(|_| Entry::default()).collect(),
            secrets: [random(0), random(1)],
            of_ports: Box::new([const { AtomicU32::new(0) }; MAX_PORTS]),
            refused: AtomicU64::new(0),
        }
    }
}

impl BindingTable {
    fn bucket(&self, (segment, address): (SegmentId, Address)) -> &[Entry] {
        let [high, low] = [(address.bits() >> 64) as u64, address.bits() as u64];
        let mixed = |a: u64, b: u64| {
            let product = u128::from(a) * u128::from(b);
            (product >> 64) as u64 ^ product as u64
        };
        let hash =
            mixed(mixed(high ^ self.secrets[0], low ^ self.secrets[1]) ^ u64::from(segment.0), self.secrets[0] | 1);
        let at = hash as usize % BUCKETS * WAYS;
        &self.entries[at..at + WAYS]
    }

    /// Learns an address of a segment. `router` is `None` where the frame does not say it: then what its host said before
    /// holds.
    pub(crate) fn note(
        &self,
        key: (SegmentId, Address),
        mac: MacAddr,
        (port, is_remote): (PortIdx, bool),
        router: Option<bool>,
        now_s: u32,
    ) {
        let quota = if is_remote { REMOTE_MAX } else { PORT_MAX };
        let at_quota = self.of_ports[port.get()].load(Relaxed) >= quota;
        let mut place: Option<((u8, u32), &Entry, Content)> = None;
        for e in self.bucket(key) {
            let Some(c) = e.read() else { continue };
            if c.used && c.key == key {
                let before = c.learned.router.filter(|_| c.learned.mac == mac);
                let learned = Learned { mac, port, router: router.or(before) };
                if learned != c.learned || now_s.saturating_sub(c.seen_s) > FRESH_S {
                    self.put((e, &c), key, &learned, quota, now_s);
                }
                return;
            }
            let class = match c.used {
                // At its quota, a port has the places of its own entries only.
                _ if at_quota && !(c.used && c.learned.port == port) => continue,
                false => 0,
                true if c.is_old(now_s) => 1,
                true if c.learned.port == port => 2,
                true => continue,
            };
            let rank = (class, c.seen_s);
            if place.as_ref().is_none_or(|(best, ..)| rank < *best) {
                place = Some((rank, e, c));
            }
        }
        let learned = Learned { mac, port, router };
        match place {
            Some((_, e, c)) => self.put((e, &c), key, &learned, quota, now_s),
            None => _ = self.refused.fetch_add(1, Relaxed),
        }
    }

    fn put(&self, (e, before): (&Entry, &Content), key: (SegmentId, Address), l: &Learned, quota: u32, now_s: u32) {
        let its = before.used && before.learned.port == l.port;
        if !its && self.of_ports[l.port.get()].fetch_add(1, Relaxed) >= quota {
            self.of_ports[l.port.get()].fetch_sub(1, Relaxed);
            self.refused.fetch_add(1, Relaxed);
            return;
        }
        let written = e.write(before, key, Some(l), now_s);
        // One less of the port that had the place, or of this one, which did not get it.
        let less = if written { before.used.then_some(before.learned.port) } else { Some(l.port) };
        if let Some(port) = less.filter(|_| !its) {
            self.of_ports[port.get()].fetch_sub(1, Relaxed);
        }
    }

    /// What was learned of an address, as long as it is believed.
    pub(crate) fn find(&self, key: (SegmentId, Address), now_s: u32) -> Option<Learned> {
        let entries = self.bucket(key).iter().filter_map(Entry::read);
        entries.filter(|c| c.used && c.key == key && !c.is_old(now_s)).map(|c| c.learned).next()
    }

    /// Forgets those entries of part `part` of `parts` of the table that are too old.
    pub fn expire(&self, (part, parts): (usize, usize), now_s: u32) {
        let n = self.entries.len();
        self.forget(&self.entries[n * part / parts..n * (part + 1) / parts], |c| c.is_old(now_s));
    }

    /// Forgets what was learned at these ports, and in these segments.
    pub fn purge(&self, ports: &[PortIdx], segments: &[SegmentId]) {
        self.forget(&self.entries, |c| ports.contains(&c.learned.port) || segments.contains(&c.key.0));
    }

    fn forget(&self, of: &[Entry], matches: impl Fn(&Content) -> bool) {
        for e in of {
            // Again if a worker writes it at this instant.
            while let Some(c) = e.read().filter(|c| c.used && matches(c)) {
                if e.write(&c, (SegmentId::NONE, Address::NONE), None, 0) {
                    self.of_ports[c.learned.port.get()].fetch_sub(1, Relaxed);
                }
            }
        }
    }

    /// How many entries each segment has.
    pub fn per_segment(&self) -> HashMap<SegmentId, u32> {
        let mut all = HashMap::new();
        for c in self.entries.iter().filter_map(Entry::read).filter(|c| c.used) {
            *all.entry(c.key.0).or_insert(0) += 1;
        }
        all
    }

    /// The numbers.
    pub fn statistics(&self) -> Statistics {
        Statistics {
            entries: self.of_ports.iter().map(|n| n.load(Relaxed)).sum(),
            capacity: self.entries.len() as u32,
            refused: self.refused.load(Relaxed),
        }
    }
}

/// What a network's segment answers requests from.
#[derive(Clone, Debug)]
pub struct Proxy {
    pub(crate) spec: Arc<NetworkSpec>,
    pub(crate) learned: Arc<BindingTable>,
    /// Requests that were answered.
    pub(crate) answered: Arc<AtomicU64>,
}

impl Proxy {
    /// The configured binding of an address.
    pub(crate) fn configured(&self, address: IpAddr) -> Option<Binding> {
        self.spec.overlay.as_ref()?.bindings.get(&address).copied()
    }

    pub(crate) fn count_answer(&self) {
        self.answered.fetch_add(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u32) -> (SegmentId, Address) {
        (SegmentId(1), IpAddr::from(n.to_be_bytes()).into())
    }

    fn port(n: usize) -> (PortIdx, bool) {
        (PortIdx::new(n).unwrap(), false)
    }

    fn mac(n: u32) -> MacAddr {
        MacAddr::from_bits(0x0200_0000_0000 | u64::from(n))
    }

    #[test]
    fn what_was_learned_is_forgotten_by_age_port_and_segment() {
        let t = BindingTable::default();
        t.note(key(2), mac(2), port(1), Some(true), 5);
        t.note(key(2), mac(2), port(1), None, 6);
        let learned = |now_s| t.find(key(2), now_s).map(|l| (l.mac, l.port, l.router));
        assert_eq!(learned(305), Some((mac(2), port(1).0, Some(true))), "a request does not say that it is no router");
        assert_eq!(learned(306), None);
        t.expire((0, 1), 306);
        assert_eq!(t.statistics().entries, 0);
        t.note(key(2), mac(2), port(1), None, 5);
        t.note(key(3), mac(3), port(2), None, 5);
        t.purge(&[port(1).0], &[]);
        assert_eq!((learned(5), t.find(key(3), 5).is_some(), t.statistics().entries), (None, true, 1));
        // Heard by another port, it is that one's.
        t.note(key(3), mac(3), port(1), None, 5);
        t.purge(&[port(2).0], &[]);
        assert_eq!((t.find(key(3), 5).map(|l| l.port), t.statistics().entries), (Some(port(1).0), 1));
        t.purge(&[], &[SegmentId(1)]);
        assert_eq!(t.statistics().entries, 0);
    }

    #[test]
    fn a_port_has_a_quota_and_takes_nothing_of_another_port() {
        let t = BindingTable::default();
        for n in 0..100 {
            t.note(key(n), mac(n), port(1), None, 1);
        }
        for n in 1_000..200_000 {
            t.note(key(n), mac(n), port(2), None, 2);
        }
        let has = |from: u32, to| (from..to).filter(|n| t.find(key(*n), 2).is_some()).count() as u32;
        assert_eq!(has(0, 100), 100);
        let theirs = has(1_000, 200_000);
        assert!((PORT_MAX - 100..=PORT_MAX).contains(&theirs), "{theirs}");
        let s = t.statistics();
        assert_eq!(s.entries, 100 + theirs);
        assert!(s.refused > 100_000, "{s:?}");
        // What is old makes room for any.
        t.note(key(500), mac(1), port(3), None, 400);
        t.expire((0, 1), 400);
        assert_eq!((t.statistics().entries, t.find(key(500), 400).is_some()), (1, true));
    }

    #[test]
    fn workers_that_write_at_once_lose_no_count() {
        let t = BindingTable::default();
        std::thread::scope(|s| {
            for p in 1..4 {
                let t = &t;
                s.spawn(move || {
                    for n in 0..60_000 {
                        t.note(key(n % 50), mac(n % 7 + p as u32), port(p), Some(n % 3 == 0), n / 100);
                        if let Some(l) = t.find(key(n % 50), n / 100) {
                            assert!((1..4).contains(&l.port.get()) && (1..11).contains(&(l.mac.bits() as u32 & 0xff)));
                        }
                    }
                });
            }
        });
        let left = t.entries.iter().filter_map(Entry::read).filter(|c| c.used).count() as u32;
        assert_eq!(t.statistics().entries, left);
        assert!((0..50).all(|n| t.find(key(n), 600).is_some()));
        t.purge(&[1, 2, 3].map(|p| port(p).0), &[]);
        assert_eq!(t.statistics().entries, 0);
    }
}
