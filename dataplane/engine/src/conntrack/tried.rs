//! Connections that nobody has answered yet, a few hundred of each port: where to find one that can make room, in a
//! table that may be a thousand times as large.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::table::Slot;
use crate::{MAX_PORTS, PortIdx, headers::Family, intrinsics::zeroed};

/// Kept of one port. Each new one takes the place of a random one, so that a flood does not make all that is
/// kept the newest: who waits for an answer is to have a chance to get it.
const OF_PORT: usize = 256;

/// See the module.
pub(super) struct Tried(Box<[AtomicU64]>);

impl Default for Tried {
    fn default() -> Self {
        Tried(zeroed(MAX_PORTS * OF_PORT))
    }
}

impl Tried {
    fn of(&self, port: PortIdx) -> &[AtomicU64] {
        &self.0[port.get() * OF_PORT..][..OF_PORT]
    }

    /// Notes a connection that was begun; `random` is any number that strangers can't choose.
    pub fn note(&self, port: PortIdx, family: Family, slot: Slot, random: u64) {
        self.of(port)[random as usize % OF_PORT].store(slot.packed(family), Relaxed);
    }

    /// Tells of those of a port, from a random one on, until one is taken.
    pub fn find(&self, port: PortIdx, random: u64, take: impl FnMut((Family, Slot)) -> bool) -> bool {
        let (before, from) = self.of(port).split_at(random as usize % OF_PORT);
        let noted = from.iter().chain(before).map(|w| w.load(Relaxed)).filter(|w| *w != 0);
        noted.map(Slot::unpacked).any(take)
    }
}
