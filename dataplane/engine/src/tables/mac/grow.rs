//! How the table comes to use more of its buckets: by doubling, a few buckets at a time, while all
//! workers go on. It doubles at four addresses a bucket, and when one finds no room before.
//!
//! A hash names its bucket modulo the number in use. When that doubles, an entry of bucket b belongs
//! to b or to b + the old number. Each address that is learned from then on takes a few old buckets
//! along and moves what does not belong there; long before the next doubling is due, all are done.
//! Until then a key that is not where it belongs now is looked for where it belonged before, which
//! costs that frame a few dozen cycles and nothing else; the sweep moves the rest. There is one mover
//! at a time; a worker that finds another at it leaves it to that one.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::{
    MacTable, WAYS, slots_of,
    word::{LEAST_BITS, State, Word},
};
use crate::atomic::{AtomicBool, AtomicUsize};

/// Buckets in use at the start.
pub(super) const START: usize = 1 << LEAST_BITS;
/// Addresses a bucket at which it is doubled.
const LOAD: usize = 4;
/// Old buckets moved for each address learned. The next doubling is due after four addresses more an old
/// bucket: a sixteenth of them is enough.
const STEP: usize = 4;

/// How much of the table is in use. Both are powers of two.
pub(super) struct Growth {
    in_use: AtomicUsize,
    /// Differs while entries are being moved.
    before: AtomicUsize,
    /// Old buckets done.
    moved: AtomicUsize,
    moving: AtomicBool,
    /// Entries that were moved: for this, to make room, or home by the sweep.
    moves: AtomicUsize,
    /// Somebody found no room since it was doubled last.
    overflowed: AtomicBool,
}

/// The right to move entries, given back when dropped.
pub(super) struct ResizeGuard<'a>(&'a AtomicBool);

impl Drop for ResizeGuard<'_> {
    fn drop(&mut self) {
        self.0.store(false, Release);
    }
}

impl Growth {
    pub(super) fn new(buckets: usize) -> Self {
        Growth {
            in_use: AtomicUsize::new(START.min(buckets)),
            before: AtomicUsize::new(START.min(buckets)),
            moved: AtomicUsize::new(0),
            moving: AtomicBool::new(false),
            moves: AtomicUsize::new(0),
            overflowed: AtomicBool::new(false),
        }
    }

    #[inline(always)]
    pub(super) fn in_use(&self) -> usize {
        self.in_use.load(Acquire)
    }

    /// Somebody found no room: it is to be doubled, however few there are.
    pub(super) fn note_overflow(&self) {
        self.overflowed.store(true, Relaxed);
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
    fn try_lock_resize(&self) -> Option<ResizeGuard<'_>> {
        (!self.moving.swap(true, Acquire)).then_some(ResizeGuard(&self.moving))
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
        let Some(_guard) = g.try_lock_resize() else { return };
        // Asked again: only now no other thread changes it.
        match g.in_use_before() {
            Some(before) => self.move_some(before, STEP),
            None if self.is_due() => {
                g.moved.store(0, Relaxed);
                g.overflowed.store(false, Relaxed);
                g.in_use.store(g.in_use() * 2, Release);
            }
            None => {}
        }
    }

    fn is_due(&self) -> bool {
        let in_use = self.growth.in_use();
        let is_full = self.total.load(Relaxed) as usize > LOAD * in_use;
        (is_full || self.growth.overflowed.load(Relaxed)) && in_use < self.stamps.len() / WAYS
    }

    /// Nothing moves because of growth until the result is dropped. Not for workers: it waits.
    pub(super) fn lock_resize(&self) -> ResizeGuard<'_> {
        loop {
            match self.growth.try_lock_resize() {
                Some(mover) => return mover,
                None => std::thread::yield_now(),
            }
        }
    }

    /// Moves all that is left, when addresses are not learned fast enough to do it.
    pub(super) fn finish_growing(&self) {
        let _guard = self.lock_resize();
        if let Some(before) = self.growth.in_use_before() {
            self.move_some(before, before);
        }
    }

    fn move_some(&self, before: usize, step: usize) {
        let from = self.growth.moved.load(Relaxed);
        let to = (from + step).min(before);
        (from..to).for_each(|bucket| self.rehash_misplaced(bucket));
        self.growth.moved.store(to, Relaxed);
        if to == before {
            self.growth.before.store(self.growth.in_use(), Release);
        }
    }

    /// Moves the entries of `bucket` that belong elsewhere now.
    pub(super) fn rehash_misplaced(&self, bucket: usize) {
        let n = self.growth.in_use();
        for slot in slots_of(bucket) {
            let Some(w) = self.entry(slot) else { continue };
            let hash = w.hash(bucket);
            if bucket == w.home(hash, n) {
                continue;
            }
            match self.place(hash, w, self.stamp(slot)) {
                Some(copy) => self.retire_source(slot, w, copy),
                // There is no room for it anywhere: forgotten, like any that is evicted.
                None if !w.is(State::Static) => drop(self.clear_if(slot, |now| now.is_of(w))),
                None => self.move_static(slot, w),
            }
        }
    }

    /// A static entry is not forgotten for learned ones: one of them makes room. Where all are static it stays where it is, and
    /// the sweep tries again.
    fn move_static(&self, slot: usize, w: Word) {
        let (hash, n) = (w.hash(slot / WAYS), self.growth.in_use());
        for (bucket, who) in hash.candidate_buckets(n) {
            for other in slots_of(bucket) {
                let copied = w.with_key(who);
                if self.clear_if(other, |w| !w.is(State::Static))
                    && let Some(copy) = self.fill(bucket, copied, None)
                {
                    return self.retire_source(slot, w, (copy, copied));
                }
            }
        }
    }
}
