//! Room for new connections: how many there may be, and which one goes when there are more.
//!
//! Some hundred without a reply are noted of each port: where to find one, in a table that may be a
//! thousand times as large.

use std::sync::atomic::Ordering::Relaxed;

use super::{
    Conntrack, Full, Probe, SessionLimits, Settings,
    table::{Slot, State},
    tcp::{ASSURED, FLAGS},
};
use crate::{
    MAX_PORTS, PortIdx,
    atomic::{AtomicU32, AtomicU64},
    intrinsics::zeroed,
    packet::headers::Family,
};

/// Buckets that are looked through for an unanswered connection when there are too many.
const SEARCHED: usize = 32;

/// Noted of one port. When all are taken, a new one takes the place of a random one, so that a flood does not
/// make all that is noted the newest: who waits for an answer is to have a chance to get it.
const OF_PORT: usize = 256;
/// Places that are looked at for a free one.
const PLACES: usize = 8;

/// Those that are noted.
pub(super) struct HalfOpen(Box<[AtomicU64]>);

impl Default for HalfOpen {
    fn default() -> Self {
        HalfOpen(zeroed(MAX_PORTS * OF_PORT))
    }
}

impl HalfOpen {
    fn of(&self, port: PortIdx) -> &[AtomicU64] {
        &self.0[port.get() * OF_PORT..][..OF_PORT]
    }

    /// Notes a connection that was begun; `random` is any number that senders can't choose.
    pub fn note(&self, port: PortIdx, family: Family, slot: Slot, random: u64) {
        let at = |i: usize| &self.of(port)[(random as usize).wrapping_add(i) % OF_PORT];
        let free = (0..PLACES).map(at).find(|w| w.load(Relaxed) == 0);
        free.unwrap_or_else(|| at(0)).store(slot.packed(family), Relaxed);
    }

    /// One of a port's that is still there, from a random one on; those that are not are forgotten.
    pub fn find(
        &self,
        port: PortIdx,
        random: u64,
        is_there: impl Fn(&(Family, Slot)) -> bool,
    ) -> Option<(Family, Slot)> {
        let (before, from) = self.of(port).split_at(random as usize % OF_PORT);
        for word in from.iter().chain(before) {
            let noted = word.load(Relaxed);
            if noted == 0 {
                continue;
            }
            let one = Slot::unpacked(noted);
            if is_there(&one) {
                return Some(one);
            }
            let _ = word.compare_exchange(noted, 0, Relaxed, Relaxed);
        }
        None
    }
}

impl Conntrack {
    /// Takes out an unanswered connection of a port, or of any if all together are too many.
    #[cold]
    pub(super) fn displace(&self, p: &Probe, port: PortIdx, any: bool) -> bool {
        let gone = self.in_the_way(p, port, any, None).is_some_and(|(family, slot)| self.forget(family, slot));
        self.displaced.fetch_add(u64::from(gone), Relaxed);
        gone
    }

    /// The same of one that stands where the new one must.
    #[cold]
    pub(super) fn displace_there(&self, p: &Probe) -> bool {
        let gone = self.one(p.family, p, 0, None, None).is_some_and(|slot| self.forget(p.family, slot));
        self.displaced.fetch_add(u64::from(gone), Relaxed);
        gone
    }

    /// An unanswered connection, of a port or of any, in the buckets of a probe and some further ones; not the one in the
    /// slot `but`.
    fn one(
        &self,
        family: Family,
        p: &Probe,
        further: usize,
        port: Option<PortIdx>,
        but: Option<(Family, Slot)>,
    ) -> Option<Slot> {
        let meant = |slot: Slot, (of, unanswered): (PortIdx, bool)| {
            unanswered && port.is_none_or(|p| p == of) && !is_at(&(family, slot), but)
        };
        match family {
            Family::V6 => self.v6.one(p.hash, further, meant),
            _ => self.v4.one(p.hash, further, meant),
        }
    }

    fn in_the_way(&self, p: &Probe, port: PortIdx, any: bool, but: Option<(Family, Slot)>) -> Option<(Family, Slot)> {
        let found = |family| self.one(family, p, SEARCHED, (!any).then_some(port), but).map(|slot| (family, slot));
        let is_there = |noted: &(Family, Slot)| {
            !is_at(noted, but)
                && match noted {
                    (Family::V6, slot) => self.v6.is_unanswered(*slot, port),
                    (_, slot) => self.v4.is_unanswered(*slot, port),
                }
        };
        let other = if p.family == Family::V6 { Family::V4 } else { Family::V6 };
        found(p.family)
            .or_else(|| self.half_open.find(port, p.hash >> 24, is_there))
            .or_else(|| if any { found(other) } else { None })
    }

    /// Whether a connection more is too much for its port, or for all ports, and why; and then also, whether one of
    /// any port may make room. What a port has too much of, it makes room for itself. `going` are about to go from it: how
    /// many, and how many of them have no reply.
    pub(super) fn is_too_much(
        &self,
        port: PortIdx,
        (s, limits): (&Settings, &SessionLimits),
        going: (u32, u32),
    ) -> Option<(Full, bool)> {
        let (all, unanswered) = &self.ports[port.get()];
        let left = |n: &AtomicU32, going: u32| n.load(Relaxed).saturating_sub(going);
        if left(all, going.0) >= limits.all.unwrap_or(s.port_max) {
            Some((Full::Connections, false))
        } else if left(unanswered, going.1) >= limits.unanswered.unwrap_or(s.unanswered_max) {
            Some((Full::Unanswered, false))
        } else {
            (left(&self.all, going.0) >= s.max.min(self.capacity)).then_some((Full::Connections, true))
        }
    }

    /// What [`Conntrack::begin`] would say, as far as limits are concerned; whether another one would make room.
    pub(crate) fn would_begin(
        &self,
        p: &Probe,
        port: PortIdx,
        limits: (&Settings, &SessionLimits),
    ) -> Result<bool, Full> {
        // A closed one between the same ends would go first.
        let before = self.find(p);
        let unanswered = |state: &State| u32::from(state[FLAGS].load(Relaxed) & ASSURED == 0);
        let going = before.as_ref().map_or((0, 0), |(_, state)| (1, unanswered(state)));
        let its_slot = before.as_ref().map(|(f, _)| (f.family, f.slot));
        match self.is_too_much(port, limits, going) {
            None => Ok(false),
            Some((_, any)) if self.in_the_way(p, port, any, its_slot).is_some() => Ok(true),
            Some((full, _)) => Err(full),
        }
    }
}

fn is_at((family, slot): &(Family, Slot), other: Option<(Family, Slot)>) -> bool {
    other.is_some_and(|(f, s)| f == *family && s.is_same_place(*slot))
}
