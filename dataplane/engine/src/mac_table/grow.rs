//! How the table comes to use more of its buckets: by doubling, a few buckets at a time, while all
//! workers go on.
//!
//! A hash names its bucket modulo the number in use. When that doubles, an entry of bucket b belongs
//! to b or to b + the old number. Each address that is learned from then on takes a few old buckets
//! along and moves what does not belong there; long before the next doubling is due, all are done.
//! Until then a key that is not where it belongs now is looked for where it belonged before, which
//! costs that frame a few dozen cycles and nothing else; the sweep moves the rest. There is one mover at a time; a worker that
//! finds another at it leaves it to that one.

use std::sync::atomic::{
    AtomicBool, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
};

use super::{BUSY, Bucket, Hash, Key, MacTable, Value, WAYS};

/// Buckets in use at the start, if the table has so many.
const START: usize = 1024;
/// Old buckets moved for each address learned. The next doubling is due after 1.5 addresses a
/// bucket: a sixth of that is enough.
const STEP: usize = 4;

/// How much of the table is in use. Both are powers of two.
pub(super) struct Growth {
    in_use: AtomicUsize,
    /// Differs while entries are being moved.
    before: AtomicUsize,
    /// Old buckets done.
    moved: AtomicUsize,
    moving: AtomicBool,
}

impl Growth {
    pub(super) fn new(buckets: usize) -> Self {
        let start = START.min(buckets);
        Growth {
            in_use: AtomicUsize::new(start),
            before: AtomicUsize::new(start),
            moved: AtomicUsize::new(0),
            moving: AtomicBool::new(false),
        }
    }

    #[inline(always)]
    pub(super) fn in_use(&self) -> usize {
        self.in_use.load(Acquire)
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
        let in_use = g.in_use();
        let due = self.total.load(Relaxed) as usize > in_use + in_use / 2 && in_use < self.buckets.len();
        if (!due && g.in_use_before().is_none()) || g.moving.swap(true, Acquire) {
            return;
        }
        match g.in_use_before() {
            Some(before) => self.move_some(before, STEP),
            None if due => {
                g.moved.store(0, Relaxed);
                g.in_use.store(g.in_use() * 2, Release);
            }
            None => {}
        }
        g.moving.store(false, Release);
    }

    /// Moves all that is left, when addresses are not learned fast enough to do it.
    pub(super) fn finish_growing(&self) {
        let g = &self.growth;
        while g.in_use_before().is_some() {
            if g.moving.swap(true, Acquire) {
                std::hint::spin_loop();
                continue;
            }
            // Only now nobody else ends or begins one.
            if let Some(before) = g.in_use_before() {
                self.move_some(before, before);
            }
            g.moving.store(false, Release);
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
            if key == 0 || key == BUSY {
                continue;
            }
            let hash: Hash = self.hash(Key(key));
            if [self.first(hash), self.second(hash)].iter().any(|b| std::ptr::eq(*b, bucket)) {
                continue;
            }
            let v = Value(bucket.values[i].load(Acquire));
            // Entered there before it is taken out here: a reader finds it at every moment. If there
            // is no room for it anywhere, it is forgotten like any that is evicted.
            if v.belongs_to(hash) {
                self.place(Key(key), hash, v);
            }
            self.clear(bucket, i, key);
        }
    }
}
