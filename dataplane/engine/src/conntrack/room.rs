//! Room for new connections: how many there may be, and which one goes when there are more.
//!
//! Some hundred that nobody has answered are noted of each port: where to find one, in a table that may be a
//! thousand times as large.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::{Conntrack, Full, Probe, SessionLimits, Settings, table::Slot};
use crate::{MAX_PORTS, PortIdx, headers::Family, intrinsics::zeroed};

/// Buckets that are looked through for an unanswered connection when there are too many.
const SEARCHED: usize = 32;

/// Noted of one port. Each new one takes the place of a random one, so that a flood does not make all that is
/// noted the newest: who waits for an answer is to have a chance to get it.
const OF_PORT: usize = 256;

/// Those that are noted.
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

    /// One of a port's that is meant, from a random one on.
    pub fn find(
        &self,
        port: PortIdx,
        random: u64,
        meant: impl FnMut(&(Family, Slot)) -> bool,
    ) -> Option<(Family, Slot)> {
        let (before, from) = self.of(port).split_at(random as usize % OF_PORT);
        let noted = from.iter().chain(before).map(|w| w.load(Relaxed)).filter(|w| *w != 0);
        noted.map(Slot::unpacked).find(meant)
    }
}

impl Conntrack {
    /// Takes out an unanswered connection.
    #[cold]
    pub(super) fn displace(&self, p: &Probe, port: PortIdx, any: bool) -> bool {
        let gone = self.in_the_way(p, port, any).is_some_and(|(family, slot)| self.forget(family, slot));
        self.displaced.fetch_add(u64::from(gone), Relaxed);
        gone
    }

    /// An unanswered connection: one in the way of the new one, if there is. Of the port, or of any if all
    /// together are too many.
    fn in_the_way(&self, p: &Probe, port: PortIdx, any: bool) -> Option<(Family, Slot)> {
        let meant = |(of, unanswered): (PortIdx, bool)| unanswered && (any || of == port);
        let slot = match p.family {
            Family::V6 => self.v6.one(p.hash, SEARCHED, meant),
            _ => self.v4.one(p.hash, SEARCHED, meant),
        };
        slot.map(|s| (p.family, s)).or_else(|| {
            self.tried.find(port, p.hash >> 24, |(family, slot)| match family {
                Family::V6 => self.v6.is_unanswered(*slot),
                _ => self.v4.is_unanswered(*slot),
            })
        })
    }

    /// Whether a connection more is too much for its port, or for all ports, and why; and then also, whether one of
    /// all ports may make room.
    pub(super) fn is_too_much(&self, port: PortIdx, (s, limits): (&Settings, &SessionLimits)) -> Option<(Full, bool)> {
        let (all, unanswered) = &self.ports[port.get()];
        let too_many = self.all.load(Relaxed) >= s.max.min(self.capacity);
        let too_bold = unanswered.load(Relaxed) >= limits.unanswered.unwrap_or(s.unanswered_max);
        match too_many || all.load(Relaxed) >= limits.all.unwrap_or(s.port_max) {
            true => Some((Full::Connections, too_many)),
            false => too_bold.then_some((Full::Unanswered, false)),
        }
    }

    /// What [`Conntrack::begin`] would say, as far as limits are concerned; whether another one would make room.
    pub(crate) fn would_begin(
        &self,
        p: &Probe,
        port: PortIdx,
        limits: (&Settings, &SessionLimits),
    ) -> Result<bool, Full> {
        match self.is_too_much(port, limits) {
            None => Ok(false),
            Some((_, any)) if self.in_the_way(p, port, any).is_some() => Ok(true),
            Some((full, _)) => Err(full),
        }
    }
}
