//! Frames that can't go on yet: pending on neighbor resolution, or on the first fragment of their datagram. They belong to
//! their worker and are counted as held; what waits too long is dropped by name. Room for all is there from the start.

use std::time::{Duration, Instant};

use dunlin_engine::{
    DropReason, PortIdx, SegmentId, counters::Counters, tables::conntrack::Datagram, vlan::VlanTagInfo,
};

use crate::packet::Packet;

/// What a frame is in the overlay.
pub type Inside = (VlanTagInfo, SegmentId);

/// A frame that waits.
pub struct Held<W> {
    /// The port that has it in its books.
    pub port: PortIdx,
    pub why: W,
    pub frame: Packet,
    pub since: Instant,
}

/// For a tunnel whose next hop is not resolved: its port is the remote.
pub type ForRemote = Held<Inside>;

/// A fragment that came by its port before the first one of its datagram.
pub type Fragment = Held<(Option<Inside>, Datagram)>;

struct Limits {
    /// Frames that wait at once, of one port, so that its station takes no other's place, and of all.
    of_port: usize,
    all: usize,
    wait: Duration,
    /// How often it is looked whether what they wait for has come, while nothing else happens.
    look: Duration,
    reason: DropReason,
}

/// A neighbor is asked three times meanwhile.
const NEIGHBOR: Limits = Limits {
    of_port: 16,
    all: 128,
    wait: Duration::from_secs(1),
    look: Duration::from_micros(200),
    reason: DropReason::NextHop,
};

/// The first fragment may come by another worker.
const FIRST_FRAGMENT: Limits = Limits {
    of_port: 64,
    all: 1024,
    wait: Duration::from_secs(5),
    look: Duration::from_millis(1),
    reason: DropReason::EarlyFragment,
};

/// Those that wait for the same.
struct Waiting<W> {
    limits: Limits,
    frames: Vec<Held<W>>,
    /// Room for those that need not wait any more.
    ready: Vec<Held<W>>,
}

impl<W> Waiting<W> {
    fn new(limits: Limits) -> Self {
        let room = || Vec::with_capacity(limits.all);
        Waiting { frames: room(), ready: room(), limits }
    }

    fn deadline(&self) -> Option<Duration> {
        let waited = self.frames.first()?.since.elapsed();
        Some(self.limits.wait.saturating_sub(waited).min(self.limits.look))
    }

    fn push(&mut self, held: Held<W>) -> Result<(), Packet> {
        let of_port = || self.frames.iter().filter(|h| h.port == held.port).count();
        if self.frames.len() == self.limits.all || of_port() >= self.limits.of_port {
            return Err(held.frame);
        }
        self.frames.push(held);
        Ok(())
    }

    /// Takes those for which `has_come` what they wait for, in their order. Those that waited too long are dropped.
    fn take(&mut self, has_come: impl Fn(&Held<W>) -> bool, counters: &Counters) -> Vec<Held<W>> {
        let now = Instant::now();
        let is_over = |h: &Held<W>| now.duration_since(h.since) >= self.limits.wait;
        for h in self.frames.extract_if(.., |h| is_over(h) || has_come(h)) {
            if has_come(&h) {
                self.ready.push(h);
            } else {
                counters.port(h.port).drops[self.limits.reason as usize].add(1);
            }
        }
        std::mem::take(&mut self.ready)
    }
}

/// Those of one worker.
pub struct Pending {
    for_remotes: Waiting<Inside>,
    fragments: Waiting<(Option<Inside>, Datagram)>,
    /// How many first fragments there had been when it was looked last.
    firsts: usize,
    /// Since when the fragment waits that is being tried again: it does not wait longer for another list.
    pub again: Option<Instant>,
}

impl Pending {
    pub fn new() -> Self {
        let (for_remotes, fragments) = (Waiting::new(NEIGHBOR), Waiting::new(FIRST_FRAGMENT));
        Pending { for_remotes, fragments, firsts: 0, again: None }
    }

    /// How many frames wait.
    pub fn len(&self) -> usize {
        self.for_remotes.frames.len() + self.fragments.frames.len()
    }

    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.for_remotes.frames.is_empty() & self.fragments.frames.is_empty()
    }

    /// When something is to be done for them, if some wait.
    pub fn deadline(&self) -> Option<Duration> {
        self.for_remotes.deadline().into_iter().chain(self.fragments.deadline()).min()
    }

    /// Lets a frame wait for the next hop of `remote`.
    ///
    /// # Errors
    /// There is no room: the frame.
    pub fn for_remote(&mut self, remote: PortIdx, inside: Inside, frame: Packet) -> Result<(), Packet> {
        self.for_remotes.push(Held { port: remote, why: inside, frame, since: Instant::now() })
    }

    /// Lets a fragment wait for the first one of its datagram.
    ///
    /// # Errors
    /// There is no room: the frame.
    pub fn fragment(
        &mut self,
        (port, inside): (PortIdx, Option<Inside>),
        datagram: Datagram,
        frame: Packet,
    ) -> Result<(), Packet> {
        let since = self.again.unwrap_or_else(Instant::now);
        self.fragments.push(Held { port, why: (inside, datagram), frame, since })
    }

    /// Drops the fragments that came from a port that goes, while it is still there to count them.
    pub fn forget(&mut self, port: PortIdx, counters: &Counters) {
        let gone = self.fragments.frames.extract_if(.., |h| h.port == port).count();
        counters.port(port).drops[DropReason::PortGone as usize].add(gone as u64);
    }

    /// Takes frames whose next hop `is_known` by now.
    pub fn take_for_remotes(&mut self, is_known: impl Fn(PortIdx) -> bool, counters: &Counters) -> Vec<ForRemote> {
        self.for_remotes.take(|h| is_known(h.port), counters)
    }

    /// Takes fragments whose first one `has_come`, if there are any since there were fewer than so many `firsts`.
    pub fn take_fragments(
        &mut self,
        firsts: usize,
        has_come: impl Fn(Datagram) -> bool,
        counters: &Counters,
    ) -> Vec<Fragment> {
        let is_new = std::mem::replace(&mut self.firsts, firsts) != firsts;
        let is_over = self.fragments.frames.first().is_some_and(|h| h.since.elapsed() >= FIRST_FRAGMENT.wait);
        if !is_new && !is_over {
            return std::mem::take(&mut self.fragments.ready);
        }
        self.fragments.take(|h| has_come(h.why.1), counters)
    }

    /// Takes back what [`Pending::take_for_remotes`] and [`Pending::take_fragments`] gave, emptied.
    pub fn give_back(&mut self, for_remotes: Vec<ForRemote>, fragments: Vec<Fragment>) {
        debug_assert!(for_remotes.is_empty() && fragments.is_empty());
        (self.for_remotes.ready, self.fragments.ready) = (for_remotes, fragments);
    }
}
