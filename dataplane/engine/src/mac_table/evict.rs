//! Who pays when there is no room.
//!
//! The rule: the port that holds the most entries pays, and a newcomer whose own port holds the
//! most replaces one of its own or is refused. So a port that floods the table with made-up
//! addresses ends up evicting itself, and one with few addresses keeps them whatever others do.
//! Static entries are never evicted.

use std::sync::atomic::Ordering::{Acquire, Relaxed};

use super::{Bucket, Hash, MacTable, WAYS};
use crate::PortIdx;

/// Buckets looked at for an entry to evict when the table is at its capacity. They hold a random
/// sample of it, about a hundred entries at half load: a port with a large share is in it.
const SAMPLE: usize = 64;

impl MacTable {
    /// Removes one entry of the table for a newcomer from `port`; `false` if it has no claim.
    pub(super) fn evict_for_capacity(&self, hash: Hash, port: PortIdx) -> bool {
        let (start, in_use) = (hash.0 as usize, self.view().buckets);
        self.evict_from((0..SAMPLE).map(|i| &in_use[start.wrapping_add(i) & (in_use.len() - 1)]), port)
    }

    /// The same, but the newcomer needs a slot in its own two buckets.
    pub(super) fn evict_for_slot(&self, hash: Hash, port: PortIdx) -> bool {
        self.evict_from([self.first(hash), self.second(hash)].into_iter(), port)
    }

    fn evict_from<'a>(&'a self, buckets: impl Iterator<Item = &'a Bucket>, port: PortIdx) -> bool {
        let own = self.per_port[port.get()].load(Relaxed);
        // By (entries of the port that pays, age): the largest pays, with its oldest.
        let mut worst: Option<((u32, u32), &Bucket, usize, u64)> = None;
        for bucket in buckets {
            for i in 0..WAYS {
                let key = bucket.keys.0[i].load(Acquire);
                let Some(v) = self.value_of(bucket, i, key).filter(|v| !v.is_static()) else { continue };
                let holds = self.per_port[v.port().get()].load(Relaxed);
                if v.port() != port && holds <= own {
                    continue;
                }
                let rank = (holds, u32::MAX - v.stamp());
                if worst.as_ref().is_none_or(|w| rank > w.0) {
                    worst = Some((rank, bucket, i, key));
                }
            }
        }
        let evicted = worst.is_some_and(|(_, bucket, i, key)| self.clear(bucket, i, key).is_some());
        if evicted {
            self.evictions.fetch_add(1, Relaxed);
        }
        evicted
    }
}
