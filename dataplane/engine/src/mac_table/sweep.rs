//! What is done to the table off the workers' cores: ageing, flushing, listing.

use std::sync::atomic::Ordering::Relaxed;

use super::{MacTable, State, WAYS, Word};
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
    fn slots(&self, part: usize, parts: usize) -> std::ops::Range<usize> {
        let slots = self.growth.in_use() * WAYS;
        let size = slots.div_ceil(parts.max(1));
        (part * size).min(slots)..((part + 1) * size).min(slots)
    }

    fn listed(&self, slot: usize, w: Word) -> Entry {
        let key = w.hash(slot / WAYS).key(self.inverse);
        let seen_s = if w.is(State::Seen) { None } else { Some(self.stamps[slot].load(Relaxed)) };
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
        let _still = self.hold_still();
        self.retain_part(0, 1, |e| e.is_static || !matches(e))
    }

    /// Removes static and learned entries alike; how many there were. Nobody enters such entries
    /// meanwhile, but a worker may move one from a bucket to come to one that was passed: so it
    /// looks again until it finds none.
    pub fn purge(&self, mut matches: impl FnMut(&Entry) -> bool) -> u64 {
        let _still = self.hold_still();
        let mut removed = 0;
        loop {
            match self.retain_part(0, 1, |e| !matches(e)) {
                0 => return removed,
                n => removed += n,
            }
        }
    }

    /// One step of ageing: the next of `parts` parts of the table. An entry goes when it was not
    /// seen for `ageing_s(segment)` seconds, and when the same address stands in a slot that
    /// lookups find first. `forgotten` is told of the former. `now_s`: the caller's clock; who was seen since the step
    /// before counts as seen now.
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
            if w.is(State::Seen) {
                self.stamps[slot].store(now_s, Relaxed);
                // Whoever was faster moved it to another port, or removed it: it has its mark still, or no age.
                self.change(slot, w, w.with(State::Quiet));
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
        self.remove_twins(part, parts);
        aged
    }

    /// Steps in which [`Self::sweep`] should go through it: four, or parts of a MiB.
    pub fn parts(&self) -> usize {
        (size_of_val(self.view().buckets) >> 20).max(4)
    }

    /// Removes entries that a lookup can't reach because an earlier slot or their first bucket holds the key too.
    fn remove_twins(&self, part: usize, parts: usize) {
        let n = self.growth.in_use();
        for slot in self.slots(part, parts) {
            let Some(w) = self.entry(slot).filter(|w| !w.is(State::Static)) else { continue };
            let bucket = slot / WAYS;
            let holds = |mut slots: std::ops::Range<usize>, who| {
                slots.any(|slot| self.entry(slot).is_some_and(|w| w.is_of(who)))
            };
            let hash = w.hash(bucket);
            let first = hash.first(n) * WAYS;
            if holds(bucket * WAYS..slot, w) || w.is_in_second() && holds(first..first + WAYS, Word::in_first(hash)) {
                self.clear(slot, w);
            }
        }
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
