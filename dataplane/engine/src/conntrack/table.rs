//! Where connections are kept: buckets of seven, found by signatures that stand together in one cache line.
//!
//! A bucket is a line of signatures and marks, and its entries behind it, so that a lookup reads two lines of
//! one page. A connection is in one of two buckets that its hash names. **Signature**: 32 bits of the hash;
//! all of a bucket are compared at once. **Mark**: whether the slot is free, the port, a version that every
//! use of the slot raises, and flags. **What is atomic**: a writer takes a free slot by a compare-and-swap of
//! its mark for one that is BUSY, fills the entry and then says it is READY. A reader compares the whole key
//! and then looks whether the mark is still the same: an entry that was given to another connection meanwhile
//! is not found. Two workers that begin one connection at the same instant may enter it twice; all find the
//! first, and the other is forgotten by its age.
//!
//! **Measured**: at 100,000 connections that are met at random, half of what tracking costs is waiting for
//! these two lines. Asking for the likely entry together with the signatures instead of after them gained
//! nothing; larger pages did (20 cycles).

use std::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
    fence,
};

use crate::{
    PortIdx,
    intrinsics::{Eight, Lines, prefetch, zeroed},
};

/// Connections of a bucket.
const WAYS: usize = 7;

const READY: u32 = 1;
const BUSY: u32 = 2;
/// Nobody has answered yet: the first to go.
const UNANSWERED: u32 = 4;
const PORT: u32 = 4;
const VERSION: u32 = 16;
const VERSIONS: u32 = 0xffff << VERSION;

const _: () = assert!(crate::MAX_PORTS <= 1 << (VERSION - PORT));

/// Words of state: see [`super::tcp`] for most of them.
pub(super) const STATE: usize = 10;

/// What is known of one connection: `K` words that say which one it is, and its state.
pub(super) type Entry<const K: usize> = Lines<[AtomicU64; K], [AtomicU32; STATE]>;

/// Signatures and marks, of which the last are not used.
type Tags = Lines<Eight, [AtomicU32; WAYS + 1]>;
type Bucket<const K: usize> = Lines<Tags, [Entry<K>; WAYS]>;

/// A slot, and the mark it had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    bucket: u32,
    way: u32,
    mark: u32,
}

impl Slot {
    /// Of none.
    pub const NONE: Slot = Slot { bucket: 0, way: 0, mark: 0 };
}

/// See the module.
pub(super) struct Table<const K: usize> {
    buckets: Box<[Bucket<K>]>,
}

impl<const K: usize> Table<K> {
    /// For so many connections.
    pub fn new(capacity: usize) -> Self {
        // At three quarters, hardly any connection finds both of its buckets full.
        let buckets = (capacity * 4 / 3 / WAYS + 1).next_power_of_two();
        Table { buckets: zeroed(buckets) }
    }

    /// Where it is, for who advises the kernel about it: most of it is no memory before it is used.
    pub fn memory(&self) -> (*const u8, usize) {
        (self.buckets.as_ptr().cast(), size_of_val(&*self.buckets))
    }

    pub fn buckets(&self) -> usize {
        self.buckets.len()
    }

    #[inline(always)]
    fn places(&self, hash: u64) -> [usize; 2] {
        let mask = self.buckets.len() - 1;
        let first = hash as usize & mask;
        // Another one, whatever the hash: an odd distance.
        [first, (first ^ ((hash >> 20) as usize | 1)) & mask]
    }

    #[inline(always)]
    fn signature(hash: u64) -> u32 {
        (hash >> 32) as u32
    }

    #[inline(always)]
    pub fn prefetch(&self, hash: u64) {
        prefetch(&self.buckets[self.places(hash)[0]].0);
    }

    /// Asks for the entry that is likely meant, and notes where it is.
    #[inline(always)]
    pub fn prefetch_entry(&self, hash: u64, slot: &mut Slot) {
        let b = self.places(hash)[0];
        let bucket = &self.buckets[b];
        let way = (bucket.0.0.equal(Self::signature(hash)).trailing_zeros() as usize).min(WAYS - 1);
        prefetch(&bucket.1[way]);
        (slot.bucket, slot.way) = (b as u32, way as u32);
    }

    /// Whether there is a connection, whose slot is noted; it is looked for first where `slot` says.
    #[inline(always)]
    pub fn find(&self, hash: u64, key: &[u64; K], slot: &mut Slot) -> bool {
        self.is_at(slot.bucket as usize, slot.way as usize, key, slot) || self.search(hash, key, slot)
    }

    #[inline(never)]
    fn search(&self, hash: u64, key: &[u64; K], slot: &mut Slot) -> bool {
        self.places(hash).into_iter().any(|b| {
            let mut found = self.buckets[b].0.0.equal(Self::signature(hash)) & ((1 << WAYS) - 1);
            while found != 0 {
                if self.is_at(b, found.trailing_zeros() as usize, key, slot) {
                    return true;
                }
                found &= found - 1;
            }
            false
        })
    }

    #[inline(always)]
    fn is_at(&self, b: usize, way: usize, key: &[u64; K], slot: &mut Slot) -> bool {
        let (bucket, way) = (&self.buckets[b & (self.buckets.len() - 1)], way.min(WAYS - 1));
        let mark = bucket.0.1[way].load(Acquire);
        let entry = &bucket.1[way];
        let differs = entry.0.iter().zip(key).fold(0, |d, (a, b)| d | (a.load(Relaxed) ^ b));
        fence(Acquire);
        let changed = (bucket.0.1[way].load(Relaxed) ^ mark) & (VERSIONS | READY);
        (slot.bucket, slot.way, slot.mark) = (b as u32, way as u32, mark);
        mark & READY != 0 && differs == 0 && changed == 0
    }

    /// The entry of a slot. Whoever holds an old slot may read another connection's.
    #[inline(always)]
    pub fn entry(&self, slot: Slot) -> &Entry<K> {
        &self.buckets[slot.bucket as usize & (self.buckets.len() - 1)].1[(slot.way as usize).min(WAYS - 1)]
    }

    /// Whether the slot still holds the connection that it did.
    #[inline(always)]
    pub fn is_still(&self, slot: Slot) -> bool {
        let bucket = &self.buckets[slot.bucket as usize & (self.buckets.len() - 1)];
        (bucket.0.1[(slot.way as usize).min(WAYS - 1)].load(Relaxed) ^ slot.mark) & (VERSIONS | READY) == 0
    }

    fn mark(&self, slot: Slot) -> &AtomicU32 {
        &self.buckets[slot.bucket as usize & (self.buckets.len() - 1)].0.1[slot.way as usize]
    }

    /// Puts a connection into a free slot of its buckets; `None` if there is none.
    pub fn insert(&self, hash: u64, port: PortIdx, key: &[u64; K], state: [u32; STATE]) -> Option<Slot> {
        let places = self.places(hash);
        let is_free = |m: u32| m & (READY | BUSY) == 0;
        let free = |b: usize| self.buckets[b].0.1[..WAYS].iter().filter(|m| is_free(m.load(Relaxed))).count();
        let order = if free(places[1]) > free(places[0]) + 2 { [places[1], places[0]] } else { places };
        for b in order {
            let bucket = &self.buckets[b];
            for way in 0..WAYS {
                let old = bucket.0.1[way].load(Relaxed);
                if !is_free(old) {
                    continue;
                }
                let version = (old & VERSIONS).wrapping_add(1 << VERSION) & VERSIONS;
                let mark = version | (port.get() as u32) << PORT | UNANSWERED;
                if bucket.0.1[way].compare_exchange(old, mark | BUSY, AcqRel, Relaxed).is_err() {
                    continue;
                }
                let entry = &bucket.1[way];
                entry.0.iter().zip(key).for_each(|(to, from)| to.store(*from, Relaxed));
                entry.1.iter().zip(state).for_each(|(to, from)| to.store(from, Relaxed));
                bucket.0.0.0[way].store(Self::signature(hash), Relaxed);
                bucket.0.1[way].store(mark | READY, Release);
                return Some(Slot { bucket: b as u32, way: way as u32, mark: mark | READY });
            }
        }
        None
    }

    /// Takes a connection out; `None` if somebody else had. Says whether it was still unanswered.
    pub fn remove(&self, slot: Slot) -> Option<bool> {
        let mark = self.mark(slot);
        let mut now = mark.load(Relaxed);
        while (now ^ slot.mark) & (VERSIONS | READY) == 0 {
            match mark.compare_exchange_weak(now, now & VERSIONS, AcqRel, Relaxed) {
                Ok(_) => return Some(now & UNANSWERED != 0),
                Err(other) => now = other,
            }
        }
        None
    }

    /// Notes that it was answered; whether it was not before.
    pub fn answered(&self, slot: Slot) -> bool {
        let mark = self.mark(slot);
        let now = mark.load(Relaxed);
        let same = (now ^ slot.mark) & (VERSIONS | READY) == 0 && now & UNANSWERED != 0;
        same && mark.compare_exchange(now, now & !UNANSWERED, AcqRel, Relaxed).is_ok()
    }

    /// The port of a slot, and whether its connection is unanswered.
    pub fn holds(&self, slot: Slot) -> (PortIdx, bool) {
        (PortIdx::from_raw((slot.mark >> PORT) as u16 & 0xfff), slot.mark & UNANSWERED != 0)
    }

    /// The connections of a bucket.
    pub fn slots(&self, bucket: usize) -> impl Iterator<Item = Slot> {
        let bucket = bucket & (self.buckets.len() - 1);
        let marks = &self.buckets[bucket].0.1;
        (0..WAYS).filter_map(move |way| {
            let mark = marks[way].load(Acquire);
            (mark & READY != 0).then_some(Slot { bucket: bucket as u32, way: way as u32, mark })
        })
    }

    /// The slots of both buckets of a hash.
    pub fn near(&self, hash: u64) -> impl Iterator<Item = Slot> {
        let [a, b] = self.places(hash);
        self.slots(a).chain(self.slots(b))
    }

    /// A key as it was while its slot had this mark.
    pub fn read(&self, slot: Slot) -> Option<([u64; K], [u32; STATE])> {
        let entry = self.entry(slot);
        let key = std::array::from_fn(|i| entry.0[i].load(Relaxed));
        let state = std::array::from_fn(|i| entry.1[i].load(Relaxed));
        fence(Acquire);
        let same = (self.mark(slot).load(Relaxed) ^ slot.mark) & (VERSIONS | READY) == 0;
        same.then_some((key, state))
    }
}
