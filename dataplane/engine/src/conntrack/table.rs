//! Where connections are kept: buckets of seven, found by tags that stand together in one cache line.
//!
//! A bucket is a line of tags and its entries behind it, so that a lookup reads two lines of one page. A
//! connection is in one of two buckets that its hash names. **Tag**: 0 for a free slot; otherwise 24 bits of
//! the hash, the port, a version that every use of the slot raises, and flags. **What is atomic**: a writer
//! takes a free slot by a compare-and-swap of its tag for one that is BUSY, fills the entry and then says it
//! is READY. A reader compares the whole key and then looks whether the tag is still the same: an entry that
//! was given to another connection meanwhile is not found. Two workers that begin one connection at the same
//! instant may enter it twice; all find the first, and the other is forgotten by its age.

use std::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
    fence,
};

use crate::{
    PortIdx,
    intrinsics::{Lines, prefetch, zeroed},
};

/// Connections of a bucket.
const WAYS: usize = 7;

const READY: u64 = 1;
const BUSY: u64 = 2;
/// Nobody has answered yet: the first to go.
pub(super) const UNANSWERED: u64 = 4;
const VERSION: u64 = 1 << 8;
const VERSIONS: u64 = 0xffff << 8;
const PORT: u32 = 24;
/// Port and bits of the hash.
const WHOSE: u64 = !0 << PORT;

/// Words of state: see [`super::tcp`] for most of them.
pub(super) const STATE: usize = 10;

/// What is known of one connection: `K` words that say which one it is, and its state.
pub(super) type Entry<const K: usize> = Lines<[AtomicU64; K], [AtomicU32; STATE]>;

/// Tags, of which the last is not used, and entries.
type Bucket<const K: usize> = Lines<[AtomicU64; WAYS + 1], [Entry<K>; WAYS]>;

/// A slot, and the tag it had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    bucket: u32,
    way: u8,
    tag: u64,
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
    fn whose(hash: u64, port: PortIdx) -> u64 {
        (hash >> 40) << (PORT + 16) | (port.get() as u64) << PORT
    }

    #[inline(always)]
    pub fn prefetch(&self, hash: u64) {
        prefetch(&self.buckets[self.places(hash)[0]].0);
    }

    /// Asks for the entry that is likely meant.
    #[inline(always)]
    pub fn prefetch_entry(&self, hash: u64, port: PortIdx) {
        let bucket = &self.buckets[self.places(hash)[0]];
        let whose = Self::whose(hash, port);
        for way in 0..WAYS {
            if bucket.0[way].load(Relaxed) & WHOSE == whose {
                prefetch(&bucket.1[way]);
            }
        }
    }

    #[inline(always)]
    pub fn find(&self, hash: u64, port: PortIdx, key: &[u64; K]) -> Option<Slot> {
        let whose = Self::whose(hash, port);
        self.places(hash).into_iter().find_map(|b| {
            let bucket = &self.buckets[b];
            (0..WAYS).find_map(|way| {
                let tag = bucket.0[way].load(Acquire);
                if tag & (WHOSE | READY) != whose | READY {
                    return None;
                }
                let entry = &bucket.1[way];
                let same = entry.0.iter().zip(key).all(|(a, b)| a.load(Relaxed) == *b);
                fence(Acquire);
                let unchanged = (bucket.0[way].load(Relaxed) ^ tag) & (VERSIONS | READY) == 0;
                (same && unchanged).then_some(Slot { bucket: b as u32, way: way as u8, tag })
            })
        })
    }

    /// The entry of a slot. Whoever holds an old slot may read another connection's.
    #[inline(always)]
    pub fn entry(&self, slot: Slot) -> &Entry<K> {
        &self.buckets[slot.bucket as usize & (self.buckets.len() - 1)].1[(slot.way as usize).min(WAYS - 1)]
    }

    fn tag(&self, slot: Slot) -> &AtomicU64 {
        &self.buckets[slot.bucket as usize & (self.buckets.len() - 1)].0[slot.way as usize]
    }

    /// Puts a connection into a free slot of its buckets; `None` if there is none.
    pub fn insert(&self, hash: u64, port: PortIdx, key: &[u64; K], state: [u32; STATE]) -> Option<Slot> {
        let places = self.places(hash);
        let free =
            |b: usize| self.buckets[b].0[..WAYS].iter().filter(|t| t.load(Relaxed) & (READY | BUSY) == 0).count();
        let order = if free(places[1]) > free(places[0]) + 2 { [places[1], places[0]] } else { places };
        for b in order {
            let bucket = &self.buckets[b];
            for way in 0..WAYS {
                let old = bucket.0[way].load(Relaxed);
                if old & (READY | BUSY) != 0 {
                    continue;
                }
                let tag = Self::whose(hash, port) | (old & VERSIONS).wrapping_add(VERSION) & VERSIONS | UNANSWERED;
                if bucket.0[way].compare_exchange(old, tag | BUSY, AcqRel, Relaxed).is_err() {
                    continue;
                }
                let entry = &bucket.1[way];
                entry.0.iter().zip(key).for_each(|(to, from)| to.store(*from, Relaxed));
                entry.1.iter().zip(state).for_each(|(to, from)| to.store(from, Relaxed));
                bucket.0[way].store(tag | READY, Release);
                return Some(Slot { bucket: b as u32, way: way as u8, tag: tag | READY });
            }
        }
        None
    }

    /// Takes a connection out; whether nobody else had. Says whether it was still unanswered.
    pub fn remove(&self, slot: Slot) -> Option<bool> {
        let tag = self.tag(slot);
        let mut now = tag.load(Relaxed);
        while (now ^ slot.tag) & (VERSIONS | READY | WHOSE) == 0 {
            match tag.compare_exchange_weak(now, now & VERSIONS, AcqRel, Relaxed) {
                Ok(_) => return Some(now & UNANSWERED != 0),
                Err(other) => now = other,
            }
        }
        None
    }

    /// Notes that it was answered; whether it was not before.
    pub fn answered(&self, slot: Slot) -> bool {
        let tag = self.tag(slot);
        let now = tag.load(Relaxed);
        let same = (now ^ slot.tag) & (VERSIONS | READY) == 0 && now & UNANSWERED != 0;
        same && tag.compare_exchange(now, now & !UNANSWERED, AcqRel, Relaxed).is_ok()
    }

    /// The port of a slot, and whether its connection is unanswered; none if it is free.
    pub fn holds(&self, slot: Slot) -> (PortIdx, bool) {
        (PortIdx::from_raw((slot.tag >> PORT) as u16), slot.tag & UNANSWERED != 0)
    }

    /// The connections of a bucket.
    pub fn slots(&self, bucket: usize) -> impl Iterator<Item = Slot> {
        let bucket = bucket & (self.buckets.len() - 1);
        let tags = &self.buckets[bucket].0;
        (0..WAYS).filter_map(move |way| {
            let tag = tags[way].load(Acquire);
            (tag & READY != 0).then_some(Slot { bucket: bucket as u32, way: way as u8, tag })
        })
    }

    /// The slots of both buckets of a hash.
    pub fn near(&self, hash: u64) -> impl Iterator<Item = Slot> {
        let [a, b] = self.places(hash);
        self.slots(a).chain(self.slots(b))
    }

    /// A key as it was while its slot had this tag.
    pub fn read(&self, slot: Slot) -> Option<([u64; K], [u32; STATE])> {
        let entry = self.entry(slot);
        let key = std::array::from_fn(|i| entry.0[i].load(Relaxed));
        let state = std::array::from_fn(|i| entry.1[i].load(Relaxed));
        fence(Acquire);
        let same = (self.tag(slot).load(Relaxed) ^ slot.tag) & (VERSIONS | READY) == 0;
        same.then_some((key, state))
    }
}
