//! Where connections are kept: buckets of eight, found by signatures that stand close together.
//!
//! A connection is in one of two buckets that its hash names. **Signature**: 16 bits of the hash; those of a bucket
//! are 16 octets, compared at once, so that those of many buckets fit into the nearest caches, and a lookup waits
//! for the entry alone. **Mark**: whether a slot is free, the port, a version that every use of the slot raises, and
//! flags; only who begins or ends connections reads it. **Stamp**: version and READY again, in the entry, beside
//! the last word of the key.
//!
//! **What is atomic**: a writer takes a free slot by a compare-and-swap of its mark for one that is BUSY, fills the
//! entry, stamps it and then says it is READY. A reader compares the whole key and then looks whether the stamp
//! is still the same: an entry that was given to another connection meanwhile is not found. Two workers that
//! begin one connection at the same instant may enter it twice; all find the first, and the other is forgotten
//! by its age.
//!
//! **Used again.** A worker may hold a slot until the end of its round, and writes the state of what it found there. So a
//! slot that was freed is given to another connection only when every worker has begun another round: see [`Quiescence`].
//! Until then the first word of its key says when it was freed. A version in every word of state would need a
//! compare-and-swap where there is a store, of 20 cycles, once or twice a segment.
//!
//! **Measured** (TSC cycles a frame over none, connections met at random): signatures apart from entries and of
//! half the size took 1,000,000 connections from 145 to 99, 100,000 from 104 to 77; asking for the entry where the other
//! bucket has it, as for two in a hundred, took 9 of the latter. Not kept: one place that a connection prefers, looked at
//! without signatures (every fourth is elsewhere, and then waits twice; in a table that is mostly empty few are, and
//! nothing could be measured either); both lines asked for at once; entries that leave the outer caches alone (20 more).
//! Larger pages are worth 20.

use std::sync::atomic::{
    Ordering::{AcqRel, Acquire, Relaxed, Release},
    fence,
};

use super::{Quiescence, tcp::What};
use crate::{
    PortIdx,
    atomic::{AtomicU32, AtomicU64},
    intrinsics::{CacheAligned, U16x8, prefetch, zeroed},
    packet::headers::Family,
};

/// Connections of a bucket.
const WAYS: usize = 8;

const READY: u32 = 1;
const BUSY: u32 = 2;
/// Nobody has answered yet: the first to go.
const UNANSWERED: u32 = 4;
/// Never in a mark.
const IN_V6: u32 = 8;
const PORT: u32 = 4;
const VERSION: u32 = 16;
const VERSIONS: u32 = 0xffff << VERSION;

const _: () = assert!(crate::MAX_PORTS <= 1 << (VERSION - PORT));

/// The part of a mark that is an entry's stamp.
const STAMP: u32 = VERSIONS | READY;
/// The half of a key's last word that is the key's.
const LOWER: u64 = u32::MAX as u64;

/// Words of state: see [`super::tcp`].
pub(super) const STATE: usize = 10;
pub(super) type State = [AtomicU32; STATE];

/// What is known of one connection: `K` words that say which one it is, and its state. The upper half of the last
/// word of the key is its stamp, or 0.
type Entry<const K: usize> = CacheAligned<[AtomicU64; K], State>;

/// A slot, and the mark it had: of what was found by its key, only the stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    at: u32,
    mark: u32,
}

impl Slot {
    /// Of none.
    pub const NONE: Slot = Slot { at: 0, mark: 0 };

    /// Whatever connection is there.
    pub fn is_same_place(self, other: Slot) -> bool {
        self.at == other.at
    }

    /// In a word, with the family of its table.
    pub fn packed(self, family: Family) -> u64 {
        let v6 = if family == Family::V6 { IN_V6 } else { 0 };
        u64::from(self.at) << 32 | u64::from(self.mark | v6)
    }

    /// See [`Slot::packed`].
    pub fn unpacked(word: u64) -> (Family, Slot) {
        let family = if word as u32 & IN_V6 != 0 { Family::V6 } else { Family::V4 };
        (family, Slot { at: (word >> 32) as u32, mark: word as u32 & !IN_V6 })
    }
}

/// The slot does not hold the connection, or not yet.
pub(super) struct Gone;

/// See the module.
pub(super) struct Table<const K: usize> {
    /// Of each bucket.
    signatures: Box<[U16x8]>,
    /// Of each bucket.
    marks: Box<[[AtomicU32; WAYS]]>,
    /// Of each bucket, one behind the other.
    entries: Box<[Entry<K>]>,
}

impl<const K: usize> Table<K> {
    /// For so many connections.
    pub fn new(capacity: usize) -> Self {
        // Half full at most: of a million, none finds both of its buckets full, and two in a hundred their first one.
        let buckets = capacity * 2 / WAYS + 2;
        Table { signatures: zeroed(buckets), marks: zeroed(buckets), entries: zeroed(buckets * WAYS) }
    }

    /// Where it is, for who advises the kernel about it: signatures and marks are no memory before they are used.
    pub fn memory(&self) -> [(*const u8, usize); 3] {
        fn of<T>(a: &[T]) -> (*const u8, usize) {
            (a.as_ptr().cast(), size_of_val(a))
        }
        [of(&self.entries), of(&self.signatures), of(&self.marks)]
    }

    pub fn buckets(&self) -> usize {
        self.signatures.len()
    }

    /// Both buckets of a hash: each half of it names one.
    #[inline(always)]
    fn places(&self, hash: u64) -> [usize; 2] {
        let n = self.signatures.len() as u64;
        [(((hash & LOWER) * n) >> 32) as usize, (((hash >> 32) * n) >> 32) as usize]
    }

    /// Never 0, which says that there is nothing. Of the bits that say least about the bucket.
    #[inline(always)]
    fn signature(hash: u64) -> u16 {
        ((hash ^ hash >> 32) as u16).max(1)
    }

    /// The first slot where what has a hash is likely, and its signature.
    #[inline(always)]
    pub fn likely(&self, hash: u64) -> (u32, u16) {
        ((self.places(hash)[0] * WAYS) as u32, Self::signature(hash))
    }

    /// Asks for the signatures there.
    #[inline(always)]
    pub fn prefetch(&self, at: u32) {
        prefetch(&self.signatures[at as usize / WAYS]);
    }

    /// Asks for the entry that is likely meant, of the bucket that is likely or else the other one, and says where it is.
    #[inline(always)]
    pub fn prefetch_entry(&self, hash: u64, (mut at, signature): (u32, u16)) -> u32 {
        let mut found = self.signatures[at as usize / WAYS].equal(signature);
        if found == 0 {
            let other = self.places(hash)[1];
            found = self.signatures[other].equal(signature);
            at = (other * WAYS) as u32;
        }
        at += found.trailing_zeros() % WAYS as u32;
        prefetch(&self.entries[at as usize]);
        at
    }

    /// Where a connection is, and what its state says; it is looked for first `at` one slot.
    #[inline(always)]
    pub fn find(&self, hash: u64, key: impl Fn(usize) -> u64 + Copy, at: u32) -> Option<(Slot, What)> {
        match self.look(at, key) {
            (slot, what, true) => Some((slot, what)),
            _ => self.search(hash, key),
        }
    }

    /// The same, if nothing is known of where it is.
    #[inline(never)]
    fn search(&self, hash: u64, key: impl Fn(usize) -> u64 + Copy) -> Option<(Slot, What)> {
        self.places(hash).into_iter().find_map(|b| {
            let mut found = self.signatures[b].equal(Self::signature(hash));
            while found != 0 {
                let at = b * WAYS + found.trailing_zeros() as usize % WAYS;
                if let (slot, what, true) = self.look(at as u32, key) {
                    return Some((slot, what));
                }
                found &= found - 1;
            }
            None
        })
    }

    /// What is in a slot, and whether it is this connection. Without a branch.
    #[inline(always)]
    pub fn look(&self, at: u32, key: impl Fn(usize) -> u64) -> (Slot, What, bool) {
        let CacheAligned(words, state) = &self.entries[at as usize];
        let last = words[K - 1].load(Acquire);
        let differs = (0..K - 1).fold((last ^ key(K - 1)) & LOWER, |d, i| d | (words[i].load(Relaxed) ^ key(i)));
        let what = What::of(state);
        // That it was still there when its state was read.
        fence(Acquire);
        let changed = words[K - 1].load(Relaxed) ^ last;
        let mark = (last >> 32) as u32;
        (Slot { at, mark }, what, (differs | changed | u64::from(!mark & READY)) == 0)
    }

    /// State of the connection in a slot. Whoever holds an old slot may read another connection's.
    #[inline(always)]
    pub fn state(&self, slot: Slot) -> &State {
        &self.entries[slot.at as usize].1
    }

    /// Whether the slot still holds the connection that it did.
    #[inline(always)]
    pub fn is_still(&self, slot: Slot) -> bool {
        let stamp = (self.entries[slot.at as usize].0[K - 1].load(Relaxed) >> 32) as u32;
        (stamp ^ slot.mark) & STAMP == 0
    }

    fn mark(&self, slot: Slot) -> &AtomicU32 {
        &self.marks[slot.at as usize / WAYS][slot.at as usize % WAYS]
    }

    /// Puts a connection into a free slot of its buckets; `None` if there is none.
    pub fn insert(
        &self,
        q: &dyn Quiescence,
        (hash, port): (u64, PortIdx),
        key: &[u64; K],
        state: [u32; STATE],
    ) -> Option<Slot> {
        let places = self.places(hash);
        let is_free = |m: u32| m & (READY | BUSY) == 0;
        let free = |b: usize| self.marks[b].iter().filter(|m| is_free(m.load(Relaxed))).count();
        // Where it is looked for first, as long as there is room.
        let first_has_room = free(places[0]) > 1 || free(places[1]) <= free(places[0]);
        let order = if first_has_room { places } else { [places[1], places[0]] };
        for b in order {
            for way in 0..WAYS {
                let old = self.marks[b][way].load(Acquire);
                let words = &self.entries[b * WAYS + way].0;
                if !is_free(old) || !q.is_past(words[0].load(Relaxed)) {
                    continue;
                }
                let version = (old & VERSIONS).wrapping_add(1 << VERSION) & VERSIONS;
                let mark = version | (port.get() as u32) << PORT | UNANSWERED;
                if self.marks[b][way].compare_exchange(old, mark | BUSY, AcqRel, Relaxed).is_err() {
                    continue;
                }
                // Who still reads what was here before must not take the new for it: the stamp went first.
                fence(Release);
                let slot = Slot { at: (b * WAYS + way) as u32, mark: mark | READY };
                words[..K - 1].iter().zip(key).for_each(|(to, from)| to.store(*from, Relaxed));
                self.state(slot).iter().zip(state).for_each(|(to, from)| to.store(from, Relaxed));
                let stamp = u64::from(slot.mark & STAMP) << 32;
                words[K - 1].store(stamp | key[K - 1] & LOWER, Release);
                self.signatures[b].0[way].store(Self::signature(hash), Relaxed);
                self.marks[b][way].store(slot.mark, Release);
                return Some(slot);
            }
        }
        None
    }

    /// Takes a connection out; `None` if somebody else had. Says of which port it was, and whether it was still
    /// unanswered.
    pub fn remove(&self, q: &dyn Quiescence, slot: Slot) -> Option<(PortIdx, bool)> {
        let mark = self.mark(slot);
        let mut now = mark.load(Relaxed);
        while (now ^ slot.mark) & STAMP == 0 {
            match mark.compare_exchange_weak(now, now & VERSIONS | BUSY, AcqRel, Relaxed) {
                Ok(_) => {
                    let at = slot.at as usize;
                    let words = &self.entries[at].0;
                    words[K - 1].store(0, Relaxed);
                    self.signatures[at / WAYS].0[at % WAYS].store(0, Relaxed);
                    let freed = q.retire();
                    // A reader that takes this for its key must not miss that the stamp went first.
                    fence(Release);
                    words[0].store(freed, Relaxed);
                    mark.store(now & VERSIONS, Release);
                    return Some(holder(now));
                }
                Err(other) => now = other,
            }
        }
        None
    }

    /// Notes that it was answered; of which port it is, if that is news. `Err` as long as it is being entered, if it is
    /// gone, and if somebody else was at it in this instant.
    pub fn answered(&self, slot: Slot) -> Result<Option<PortIdx>, Gone> {
        let mark = self.mark(slot);
        let now = mark.load(Relaxed);
        if (now ^ slot.mark) & STAMP != 0 {
            return Err(Gone);
        }
        if now & UNANSWERED == 0 {
            return Ok(None);
        }
        mark.compare_exchange(now, now & !UNANSWERED, AcqRel, Relaxed).map_or(Err(Gone), |_| Ok(Some(holder(now).0)))
    }

    /// Whether it still holds the connection of a port that it did, and that has no reply.
    pub fn is_unanswered(&self, slot: Slot, port: PortIdx) -> bool {
        let mark = self.mark(slot).load(Relaxed);
        (mark ^ slot.mark) & STAMP == 0 && holder(mark) == (port, true)
    }

    /// The connections of a bucket.
    pub fn slots(&self, bucket: usize) -> impl Iterator<Item = Slot> {
        let bucket = bucket % self.marks.len();
        let marks = &self.marks[bucket];
        (0..WAYS).filter_map(move |way| {
            let mark = marks[way].load(Acquire);
            (mark & READY != 0).then_some(Slot { at: (bucket * WAYS + way) as u32, mark })
        })
    }

    /// The first slot that is meant, by its port and whether its connection is unanswered, of both buckets of a
    /// hash and so many further ones.
    pub fn one(&self, hash: u64, further: usize, meant: impl Fn(Slot, (PortIdx, bool)) -> bool) -> Option<Slot> {
        let [first, second] = self.places(hash);
        let all = [first, second].into_iter().chain((1..=further).map(|i| first + i));
        all.flat_map(|b| self.slots(b)).find(|s| meant(*s, holder(s.mark)))
    }

    /// Key and state as they were while its slot had this mark.
    pub fn read(&self, slot: Slot) -> Option<([u64; K], [u32; STATE])> {
        let words = &self.entries[slot.at as usize].0;
        let mut key: [u64; K] = std::array::from_fn(|i| words[i].load(Relaxed));
        let state = std::array::from_fn(|i| self.state(slot)[i].load(Relaxed));
        key[K - 1] &= LOWER;
        fence(Acquire);
        self.is_still(slot).then_some((key, state))
    }
}

/// The port of a mark, and whether its connection is unanswered.
fn holder(mark: u32) -> (PortIdx, bool) {
    (PortIdx::from_raw((mark >> PORT) as u16 & 0xfff), mark & UNANSWERED != 0)
}
