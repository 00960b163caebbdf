//! How the table comes to use more of its buckets: by doubling, a few buckets at a time, while all
//! workers go on. It doubles at two addresses a bucket, and when one finds no room before.
//!
//! A hash names its bucket modulo the number in use. When that doubles, an entry of bucket b belongs
//! to b or to b + the old number. Each address that is learned from then on takes a few old buckets
//! along and moves what does not belong there; long before the next doubling is due, all are done.
//! Until then a key that is not where it belongs now is looked for where it belonged before, which
//! costs that frame a few dozen cycles and nothing else; the sweep moves the rest. There is one mover
//! at a time; a worker that finds another at it leaves it to that one.
//!
//! **Measured** (forwarding in the engine's benchmark): doubled at two addresses a bucket in place of 1.5, 200,000 addresses
//! take half the memory, and 6.2 ns a frame in place of 8.3.

use std::sync::atomic::{
    AtomicBool, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
};

use super::{Bucket, Key, MacTable, Value, WAYS};

/// Buckets in use at the start, if the table has so many.
const START: usize = 1024;
/// Old buckets moved for each address learned. The next doubling is due after two addresses more an old
/// bucket: an eighth of them is enough.
const STEP: usize = 4;

/// How much of the table is in use. Both are powers of two.
pub(super) struct Growth {
    in_use: AtomicUsize,
    /// Differs while entries are being moved.
    before: AtomicUsize,
    /// Old buckets done.
    moved: AtomicUsize,
    moving: AtomicBool,
    /// Entries that were moved, for this or to make room.
    moves: AtomicUsize,
    /// Somebody found no room since it was doubled last.
    crowded: AtomicBool,
}

/// The right to move entries, given back when dropped.
pub(super) struct Mover<'a>(&'a AtomicBool);

impl Drop for Mover<'_> {
    fn drop(&mut self) {
        self.0.store(false, Release);
    }
}

impl Growth {
    pub(super) fn new(buckets: usize) -> Self {
        let start = START.min(buckets);
        Growth {
            in_use: AtomicUsize::new(start),
            before: AtomicUsize::new(start),
            moved: AtomicUsize::new(0),
            moving: AtomicBool::new(false),
            moves: AtomicUsize::new(0),
            crowded: AtomicBool::new(false),
        }
    }

    #[inline(always)]
    pub(super) fn in_use(&self) -> usize {
        self.in_use.load(Acquire)
    }

    /// Somebody found no room: it is to be doubled, however few there are.
    pub(super) fn is_crowded(&self) {
        self.crowded.store(true, Relaxed);
    }

    /// An entry has a copy where it is moved to, and is about to go from where it was.
    pub(super) fn note_move(&self) {
        self.moves.fetch_add(1, Release);
    }

    /// Whoever reads the same number twice, and looked in between, looked while nothing moved.
    #[inline(always)]
    pub(super) fn moves(&self) -> usize {
        self.moves.load(Acquire)
    }

    /// `None` if another thread is at it.
    fn become_mover(&self) -> Option<Mover<'_>> {
        (!self.moving.swap(true, Acquire)).then_some(Mover(&self.moving))
    }

    /// The number before, while entries of then may not have been moved.
    pub(super) fn in_use_before(&self) -> Option<usize> {
        let before = self.before.load(Acquire);
        (before != self.in_use()).then_some(before)
    }
}

impl MacTable {
    /// Called for every address that is entered: doubles when that is due, and moves a few buckets.
    pub(super) fn grow(&self) {
        let g = &self.growth;
        if !self.is_due() && g.in_use_before().is_none() {
            return;
        }
        let Some(_mover) = g.become_mover() else { return };
        // Asked again: only now nobody else changes it.
        match g.in_use_before() {
            Some(before) => self.move_some(before, STEP),
            None if self.is_due() => {
                g.moved.store(0, Relaxed);
                g.crowded.store(false, Relaxed);
                g.in_use.store(g.in_use() * 2, Release);
            }
            None => {}
        }
    }

    fn is_due(&self) -> bool {
        let in_use = self.growth.in_use();
        let is_full = self.total.load(Relaxed) as usize > 2 * in_use;
        (is_full || self.growth.crowded.load(Relaxed)) && in_use < self.buckets.len()
    }

    /// Nothing moves because of growth until the result is dropped. Not for workers: it waits.
    pub(super) fn hold_still(&self) -> Mover<'_> {
        loop {
            match self.growth.become_mover() {
                Some(mover) => return mover,
                None => std::thread::yield_now(),
            }
        }
    }

    /// Moves all that is left, when addresses are not learned fast enough to do it.
    pub(super) fn finish_growing(&self) {
        let _mover = self.hold_still();
        if let Some(before) = self.growth.in_use_before() {
            self.move_some(before, before);
        }
    }

    fn move_some(&self, before: usize, step: usize) {
        let from = self.growth.moved.load(Relaxed);
        let to = (from + step).min(before);
        self.buckets[from..to].iter().for_each(|b| self.move_strangers(b));
        self.growth.moved.store(to, Relaxed);
        if to == before {
            self.growth.before.store(self.growth.in_use(), Release);
        }
    }

    /// Moves the entries of `bucket` that belong elsewhere now.
    fn move_strangers(&self, bucket: &Bucket) {
        for i in 0..WAYS {
            let key = bucket.keys.0[i].load(Acquire);
            let Some(v) = self.value_of(bucket, i, key) else { continue };
            let hash = self.hash(Key(key));
            if [self.first(hash), self.second(hash)].iter().any(|b| std::ptr::eq(*b, bucket)) {
                continue;
            }
            match self.place(Key(key), hash, v) {
                Some(copy) => self.give_up(bucket, i, key, v, copy),
                // There is no room for it anywhere: forgotten, like any that is evicted.
                None if !v.is_static() => drop(self.clear(bucket, i, key)),
                None => self.move_static(bucket, i, key, v),
            }
        }
    }

    /// A static entry is never forgotten for others: a learned one makes room.
    fn move_static(&self, bucket: &Bucket, i: usize, key: u64, v: Value) {
        let hash = self.hash(Key(key));
        for other in [self.first(hash), self.second(hash)] {
            for j in 0..WAYS {
                let resident = other.keys.0[j].load(Acquire);
                let learned = self.value_of(other, j, resident).is_some_and(|v| !v.is_static());
                if learned && self.clear(other, j, resident).is_some() && self.fill(other, j, Key(key), v) {
                    return self.give_up(bucket, i, key, v, (other, j));
                }
            }
        }
    }
}
