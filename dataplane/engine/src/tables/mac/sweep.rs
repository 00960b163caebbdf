//! What is done to the table off the workers' cores: ageing, flushing, listing.

use std::{ops::Range, sync::atomic::Ordering::Relaxed};

use super::{MacTable, State, WAYS, Word, slots_of};
use crate::{MacAddr, PortIdx, SegmentId};

/// One address, as a list shows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Its segment.
    pub segment: SegmentId,
    /// The address.
    pub mac: MacAddr,
    /// The port it is behind.
    pub port: PortIdx,
    /// Entered by configuration: it neither ages nor moves.
    pub is_static: bool,
    /// The second in which the sweep last found that it had been seen; `None` if it was seen since.
    pub seen_s: Option<u32>,
}

impl MacTable {
    /// The slots of the `part`-th of `parts` equal parts of the table (at least 1).
    fn slots(&self, part: usize, parts: usize) -> Range<usize> {
        let slots = self.growth.in_use() * WAYS;
        let size = slots.div_ceil(parts.max(1));
        (part * size).min(slots)..((part + 1) * size).min(slots)
    }

    fn listed(&self, slot: usize, w: Word) -> Entry {
        let key = w.hash(slot / WAYS).key(self.inverse);
        let seen_s = if w.is(State::Referenced) { None } else { Some(self.stamps[slot].load(Relaxed)) };
        let (segment, mac) = (key.segment(), key.mac());
        Entry { segment, mac, port: w.port(), is_static: w.is(State::Static), seen_s }
    }

    /// Calls `visit` with every entry of a part of the table (see [`Self::slots`]), again if it changes meanwhile; those
    /// it answers `false` for are removed. Entries that come, go or move to another slot meanwhile may be seen or not. How
    /// many were removed.
    fn retain_part(&self, part: usize, parts: usize, mut visit: impl FnMut(&Entry) -> bool) -> u64 {
        self.slots(part, parts).map(|slot| u64::from(self.clear_if(slot, |w| !visit(&self.listed(slot, w))))).sum()
    }

    /// Calls `visit` with every entry.
    pub fn for_each(&self, mut visit: impl FnMut(&Entry)) {
        self.retain_part(0, 1, |e| {
            visit(e);
            true
        });
    }

    /// Removes the learned entries that `matches`; how many there were. Static ones stay.
    pub fn flush(&self, mut matches: impl FnMut(&Entry) -> bool) -> u64 {
        self.purge(|e| !e.is_static && matches(e))
    }

    /// Removes static and learned entries alike; how many there were. What is entered meanwhile may stay.
    pub fn purge(&self, mut matches: impl FnMut(&Entry) -> bool) -> u64 {
        let _guard = self.lock_resize();
        self.until_nothing_moves(|| self.retain_part(0, 1, |e| !matches(e)))
    }

    /// One step of ageing: the next of `parts` parts of the table. An entry goes when it was not
    /// seen for `ageing_s(segment)` seconds, and when the same address stands in a slot that
    /// lookups find first. `forgotten` gets the former. `now_s`: the caller's clock; who was seen since the step
    /// before counts as seen now. Entries in their second buckets are moved to their first where there is room.
    pub fn sweep(
        &self,
        parts: usize,
        now_s: u32,
        ageing_s: impl Fn(SegmentId) -> u32,
        mut forgotten: impl FnMut(&Entry),
    ) -> u64 {
        self.finish_growing();
        let parts = parts.clamp(1, self.growth.in_use());
        let part = self.sweep_at.fetch_add(1, Relaxed) as usize % parts;
        let mut aged = 0;
        for slot in self.slots(part, parts) {
            let Some(w) = self.entry(slot).filter(|w| !w.is(State::Static)) else { continue };
            if w.is(State::Referenced) {
                self.stamps[slot].store(now_s, Relaxed);
                // Whoever was faster moved it to another port, or removed it: it has its mark still, or no age.
                self.change(slot, w, w.with(State::Idle));
                continue;
            }
            let e = self.listed(slot, w);
            // Not if it is seen at this very moment.
            if e.age_s(now_s) >= ageing_s(e.segment) && self.clear(slot, w) {
                forgotten(&e);
                aged += 1;
            }
        }
        self.aged.fetch_add(aged, Relaxed);
        self.compact(part, parts);
        aged
    }

    /// Steps in which [`Self::sweep`] should go through it: four, or parts of a MiB.
    pub fn parts(&self) -> usize {
        (size_of_val(self.view().buckets) >> 20).max(4)
    }

    /// Removes entries that no lookup comes to, or that stand before a static one of their key: left by workers that met.
    /// Moves others to their first buckets, where the first probe finds them, as far as there is room by now.
    fn compact(&self, part: usize, parts: usize) {
        let _guard = self.lock_resize();
        if self.growth.in_use_before().is_some() {
            return;
        }
        for slot in self.slots(part, parts) {
            if let Some(w) = self.entry(slot).filter(|w| w.is(State::Static)) {
                self.move_to_primary(slot, w);
            }
        }
        let duplicates: Vec<usize> = self.slots(part, parts).filter(|slot| self.is_duplicate(*slot)).collect();
        // Asked again: one that was just being moved had a copy.
        for slot in duplicates.into_iter().filter(|slot| self.is_duplicate(*slot)) {
            self.clear_if(slot, |w| !w.is(State::Static));
        }
        for slot in self.slots(part, parts) {
            if let Some(w) = self.entry(slot).filter(|w| w.is_in_second()) {
                self.move_over(slot, w);
            }
        }
    }

    /// Brings a static entry to where it is looked for, and removes learned ones of its key.
    fn move_to_primary(&self, slot: usize, w: Word) {
        let (bucket, n) = (slot / WAYS, self.growth.in_use());
        let hash = w.hash(bucket);
        if bucket != w.home(hash, n) {
            self.rehash_misplaced(bucket);
        }
        self.remove_if(hash, |w| !w.is(State::Static));
    }

    /// Whether a slot's entry is a learned one that is not where it is looked for, or not the first of its key.
    fn is_duplicate(&self, slot: usize) -> bool {
        let (bucket, n) = (slot / WAYS, self.growth.in_use());
        let Some(w) = self.entry(slot).filter(|w| !w.is(State::Static)) else { return false };
        let hash = w.hash(bucket);
        let holds = |mut slots: Range<usize>, who| slots.any(|slot| self.entry(slot).is_some_and(|w| w.is_of(who)));
        bucket != w.home(hash, n)
            || holds(bucket * WAYS..slot, w)
            || w.is_in_second() && holds(slots_of(hash.first(n)), Word::in_first(hash))
    }
}

impl Entry {
    /// Seconds since it was seen, as exact as sweeps are frequent; 0 for a static entry.
    pub fn age_s(&self, now_s: u32) -> u32 {
        match self.seen_s {
            Some(seen_s) if !self.is_static => now_s.saturating_sub(seen_s),
            _ => 0,
        }
    }
}

impl PortIdx {
    /// Matches the entries of this port, for [`MacTable::flush`].
    pub fn owns(self) -> impl FnMut(&Entry) -> bool {
        move |e| e.port == self
    }
}
