//! Who pays when there is no room.
//!
//! The rule: the port that holds the most entries pays, and a newcomer whose own port holds the
//! most replaces one of its own or is refused. So a port that floods the table with made-up
//! addresses ends up evicting itself, and one with few addresses keeps them whatever others do.
//! Static entries are never evicted.

use std::sync::atomic::Ordering::Relaxed;

use super::{Hash, MacTable, State, Word, slots_of};
use crate::PortIdx;

/// Entries looked at for one to evict when the table is at its capacity, a random sample of it: a port with a large
/// share is in it.
const SAMPLE: usize = 64;
/// Buckets in which they are searched for: the smallest table holds an address in four buckets when it is full.
const SEARCHED: usize = 8 * SAMPLE;

impl MacTable {
    /// Removes one entry of the table for a newcomer from `port`; `false` if it has no claim.
    pub(super) fn evict_for_capacity(&self, hash: Hash, port: PortIdx) -> bool {
        // While the table grows, what has not been moved is in the part that was in use before.
        let n = self.growth.in_use_before().unwrap_or(self.growth.in_use());
        let start = hash.first(n);
        self.evict_from((0..SEARCHED).map(|i| start.wrapping_add(i) & (n - 1)), port)
    }

    /// The same, but the newcomer needs a slot in its own two buckets.
    pub(super) fn evict_for_slot(&self, hash: Hash, port: PortIdx) -> bool {
        let n = self.growth.in_use();
        self.evict_from([hash.first(n), hash.second(n)].into_iter(), port)
    }

    fn evict_from(&self, buckets: impl Iterator<Item = usize>, port: PortIdx) -> bool {
        let own = self.per_port[port.get()].load(Relaxed);
        // By (entries of the port that pays, age): the largest pays, with its oldest, as far as sweeps tell.
        let mut worst: Option<((u32, u32), usize, Word)> = None;
        let slots = buckets.flat_map(slots_of);
        for (slot, w) in slots.filter_map(|slot| Some((slot, self.entry(slot)?))).take(SAMPLE) {
            let holds = self.per_port[w.port().get()].load(Relaxed);
            if w.is(State::Static) || (w.port() != port && holds <= own) {
                continue;
            }
            let seen = if w.is(State::Referenced) { u32::MAX } else { self.stamps[slot].load(Relaxed) };
            let rank = (holds, u32::MAX - seen);
            if worst.as_ref().is_none_or(|worst| rank > worst.0) {
                worst = Some((rank, slot, w));
            }
        }
        let evicted = worst.is_some_and(|(_, slot, w)| self.clear(slot, w));
        if evicted {
            self.evictions.fetch_add(1, Relaxed);
        }
        evicted
    }
}
