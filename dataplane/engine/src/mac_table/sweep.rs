//! What is done to the table off the workers' cores: ageing, flushing, listing.

use std::sync::atomic::Ordering::{Acquire, Relaxed};

use super::{BUSY, Key, MacTable, Value, WAYS};
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
    /// The second of the learning clock in which it was last seen.
    pub seen_s: u32,
}

impl MacTable {
    /// Calls `visit` with every entry whose slot is in the `part`-th of `parts` equal parts of
    /// the table (parts is brought to at least 1); those it answers `false` for are removed.
    /// Entries that come, go or move meanwhile may be seen or not. How many were removed.
    fn retain_part(&self, part: usize, parts: usize, mut visit: impl FnMut(&Entry) -> bool) -> u64 {
        let buckets = self.view().buckets;
        let size = buckets.len().div_ceil(parts.max(1));
        let mut removed = 0;
        for bucket in buckets.iter().skip(part * size).take(size) {
            for i in 0..WAYS {
                let key = bucket.keys.0[i].load(Acquire);
                let Some(v) = self.value_of(bucket, i, key) else { continue };
                let entry = Entry {
                    segment: Key(key).segment(),
                    mac: Key(key).mac(),
                    port: v.port(),
                    is_static: v.is_static(),
                    seen_s: v.stamp(),
                };
                if !visit(&entry) && self.clear(bucket, i, key).is_some() {
                    removed += 1;
                }
            }
        }
        removed
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
    /// lookups find first. `forgotten` is told of the former.
    pub fn sweep(
        &self,
        parts: usize,
        now_s: u32,
        ageing_s: impl Fn(SegmentId) -> u32,
        mut forgotten: impl FnMut(&Entry),
    ) -> u64 {
        self.finish_growing();
        let parts = parts.clamp(1, self.view().buckets.len());
        let part = self.sweep_at.fetch_add(1, Relaxed) as usize % parts;
        let aged = self.retain_part(part, parts, |e| {
            let keep = e.is_static || now_s.saturating_sub(e.seen_s) < ageing_s(e.segment);
            if !keep {
                forgotten(e);
            }
            keep
        });
        self.aged.fetch_add(aged, Relaxed);
        self.remove_twins(part, parts);
        aged
    }

    /// Removes entries that a lookup can't reach because their first bucket holds the key too.
    fn remove_twins(&self, part: usize, parts: usize) {
        let buckets = self.view().buckets;
        let size = buckets.len().div_ceil(parts);
        for bucket in buckets.iter().skip(part * size).take(size) {
            for i in 0..WAYS {
                let key = bucket.keys.0[i].load(Acquire);
                if key == 0 || key == BUSY {
                    continue;
                }
                // A value of another key's, left by two writers that met: no lookup can use it.
                let is_whole = |key| Value(bucket.values[i].load(Acquire)).belongs_to(self.hash(Key(key)));
                if !is_whole(key) && bucket.keys.0[i].load(Acquire) == key && !is_whole(key) {
                    self.clear(bucket, i, key);
                    continue;
                }
                let before = bucket.keys.0[..i].iter().any(|k| k.load(Acquire) == key);
                let first = self.first(self.hash(Key(key)));
                let elsewhere = !std::ptr::eq(first, bucket) && first.keys.0.iter().any(|k| k.load(Acquire) == key);
                let is_static = Value(bucket.values[i].load(Acquire)).is_static();
                if (before || elsewhere) && !is_static {
                    self.clear(bucket, i, key);
                }
            }
        }
    }
}

impl Entry {
    /// Seconds since it was seen; 0 for a static entry.
    pub fn age_s(&self, now_s: u32) -> u32 {
        if self.is_static { 0 } else { now_s.saturating_sub(self.seen_s) }
    }
}

impl PortIdx {
    /// Matches the entries of this port, for [`MacTable::flush`].
    pub fn owns(self) -> impl FnMut(&Entry) -> bool {
        move |e| e.port == self
    }
}
