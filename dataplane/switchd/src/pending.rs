//! Frames that can't go on yet: pending on neighbor resolution, or on the first fragment of their datagram. They belong to
//! their worker and are counted as held; what waits too long is dropped by name.

use std::time::{Duration, Instant};

use dunlin_engine::{DropReason, PortIdx, SegmentId, counters::Counters, tables::conntrack::Datagram, vlan::Class};

use crate::packet::Packet;

/// What a frame is in the overlay.
pub type Inside = (Class, SegmentId);

/// A frame for a tunnel whose next hop is not resolved.
pub struct ForRemote {
    pub remote: PortIdx,
    pub inside: Inside,
    pub frame: Packet,
    since: Instant,
}

/// A fragment that came before the first one of its datagram.
pub struct Fragment {
    pub from: (PortIdx, Option<Inside>),
    pub frame: Packet,
    datagram: Datagram,
    since: Instant,
}

/// Frames that wait for one next hop, and for all of them.
const PER_REMOTE: usize = 16;
const FOR_REMOTES: usize = 128;
/// For how long: a neighbor is asked three times meanwhile.
const NEIGHBOR_WAIT: Duration = Duration::from_secs(1);
/// How often it is looked whether a next hop is resolved, while frames wait and nothing else happens.
const LOOK_FOR_NEIGHBOR: Duration = Duration::from_micros(200);

/// Fragments that wait from one port, so that its station takes no other's place, and from all of them.
const FRAGMENTS_PER_PORT: usize = 64;
const FRAGMENTS: usize = 1024;
/// For how long.
const FRAGMENT_WAIT: Duration = Duration::from_secs(5);
/// How often it is looked whether a first fragment came by another worker.
const LOOK_FOR_FIRST: Duration = Duration::from_millis(1);

/// Those of one worker.
pub struct Pending {
    for_remotes: Vec<ForRemote>,
    fragments: Vec<Fragment>,
    /// How many first fragments there had been when it was looked last.
    firsts: usize,
}

impl Pending {
    pub fn new() -> Self {
        Pending { for_remotes: Vec::with_capacity(FOR_REMOTES), fragments: Vec::with_capacity(FRAGMENTS), firsts: 0 }
    }

    /// How many frames wait.
    pub fn len(&self) -> usize {
        self.for_remotes.len() + self.fragments.len()
    }

    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.for_remotes.is_empty() & self.fragments.is_empty()
    }

    /// When something is to be done for them, if some wait.
    pub fn deadline(&self) -> Option<Duration> {
        let next = |since: Option<Instant>, wait: Duration, look| Some(wait.saturating_sub(since?.elapsed()).min(look));
        let neighbor = next(self.for_remotes.first().map(|h| h.since), NEIGHBOR_WAIT, LOOK_FOR_NEIGHBOR);
        let first = next(self.fragments.first().map(|h| h.since), FRAGMENT_WAIT, LOOK_FOR_FIRST);
        neighbor.into_iter().chain(first).min()
    }

    /// Lets a frame wait for the next hop of `remote`.
    ///
    /// # Errors
    /// There is no room: the frame.
    pub fn for_remote(&mut self, remote: PortIdx, inside: Inside, frame: Packet) -> Result<(), Packet> {
        let of_it = || self.for_remotes.iter().filter(|h| h.remote == remote).count();
        if self.for_remotes.len() == FOR_REMOTES || of_it() == PER_REMOTE {
            return Err(frame);
        }
        self.for_remotes.push(ForRemote { remote, inside, frame, since: Instant::now() });
        Ok(())
    }

    /// Lets a fragment wait for the first one of its datagram.
    ///
    /// # Errors
    /// There is no room: the frame.
    pub fn fragment(
        &mut self,
        from: (PortIdx, Option<Inside>),
        datagram: Datagram,
        frame: Packet,
    ) -> Result<(), Packet> {
        let of_it = || self.fragments.iter().filter(|h| h.from.0 == from.0).count();
        if self.fragments.len() == FRAGMENTS || of_it() == FRAGMENTS_PER_PORT {
            return Err(frame);
        }
        self.fragments.push(Fragment { from, frame, datagram, since: Instant::now() });
        Ok(())
    }

    /// Drops the fragments that came from a port that goes, while it is still there to count them.
    pub fn forget(&mut self, port: PortIdx, counters: &Counters) {
        let before = self.fragments.len();
        self.fragments.retain(|h| h.from.0 != port);
        let gone = (before - self.fragments.len()) as u64;
        counters.port(port).drops[DropReason::PortGone as usize].add(gone);
    }

    /// Takes frames whose next hop `is_known` by now, in their order; those that waited too long are dropped.
    pub fn take_for_remotes(&mut self, is_known: impl Fn(PortIdx) -> bool, counters: &Counters) -> Vec<ForRemote> {
        let is_due = |h: &ForRemote| is_known(h.remote) || h.since.elapsed() >= NEIGHBOR_WAIT;
        if !self.for_remotes.iter().any(is_due) {
            return Vec::new();
        }
        let (known, waiting): (Vec<_>, Vec<_>) = self.for_remotes.drain(..).partition(|h| is_known(h.remote));
        for h in waiting {
            match h.since.elapsed() < NEIGHBOR_WAIT {
                true => self.for_remotes.push(h),
                false => counters.port(h.remote).drops[DropReason::NextHop as usize].add(1),
            }
        }
        known
    }

    /// Takes fragments whose first one `has_come`, in their order, if there are any since there were fewer than so many
    /// `firsts`; those that waited too long are dropped.
    pub fn take_fragments(
        &mut self,
        firsts: usize,
        has_come: impl Fn(Datagram) -> bool,
        counters: &Counters,
    ) -> Vec<Fragment> {
        let is_over = self.fragments.first().is_some_and(|h| h.since.elapsed() >= FRAGMENT_WAIT);
        if std::mem::replace(&mut self.firsts, firsts) == firsts && !is_over {
            return Vec::new();
        }
        let (come, waiting): (Vec<_>, Vec<_>) = self.fragments.drain(..).partition(|h| has_come(h.datagram));
        for h in waiting {
            match h.since.elapsed() < FRAGMENT_WAIT {
                true => self.fragments.push(h),
                false => counters.port(h.from.0).drops[DropReason::EarlyFragment as usize].add(1),
            }
        }
        come
    }
}
