//! Connection tracking: which frames belong to what was let pass before.
//!
//! Every port that has a stateful rule has its own connections (they are what moves with it), in one table
//! for all workers, apart for IPv4 and IPv6. A connection is kept once, by its ends in an order that does not
//! depend on who sends, so that both directions find it. It is entered when the rules let its first frame
//! pass, and remembers under which version of them: when they change, its next frame has them asked again
//! (`stage/filter/`).
//!
//! `table.rs` is where they are kept, and what is atomic; `key.rs` what they are found by; `tcp.rs` what TCP's frames must be;
//! `fragments.rs` lends later fragments the ports of their first one.
//!
//! **When there are many.** A port may have so many, and so many of them unanswered. Above that, and when no
//! slot is free, a new one takes the place of an unanswered one of the same port that stands in its buckets, or that is
//! noted (`admission.rs`); answered ones are never driven out. So a flood of first packets costs the port that it comes by new connections,
//! and no port an old one.

mod admission;
mod burst;
mod fragments;
mod icmp;
#[cfg(all(test, feature = "shuttle"))]
mod interleavings;
mod iteration;
mod key;
mod quiescence;
mod table;
mod tcp;

use std::{net::IpAddr, sync::atomic::Ordering::Relaxed};

pub use dunlin_model::spec::{SessionLimits, Timeouts};

use crate::{
    Frame, MAX_PORTS, PortIdx, SegmentId,
    atomic::{AtomicU32, AtomicU64},
    packet::headers::{DPORT, DST, DST6, Family, Headers, ICMP, ICMPV6, SPORT, SRC, SRC6, TCP},
};
use admission::HalfOpen;
pub(crate) use burst::{Established, Wanted};
use fragments::Fragments;
pub(crate) use fragments::Inherited;
use icmp::{echo_id, is_answer};
use key::{Ends4, between6, hash4, key4};
pub use quiescence::{OneThread, Quiescence};
use table::{Slot, State, Table};
use tcp::{
    ASSURED, FILTER, FLAGS, FROM_PORT, Fit, LOW_BEGAN, REFUSED, SEEN_REPLY, SEEN_S, Segment, UNCONFIRMED, What, put,
};

/// For how long connections are kept, in seconds since their last frame, and how many.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// See [`Timeouts`].
    pub timeouts: Timeouts,
    /// The most of all ports; at most what the table was made for.
    pub max: u32,
    /// The most of one port that has no [`SessionLimits`].
    pub port_max: u32,
    /// The most of it without a reply.
    pub unanswered_max: u32,
    /// Whether TCP connections that were begun unseen are taken up where they are met.
    pub midstream: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            timeouts: Timeouts::default(),
            max: u32::MAX,
            port_max: u32::MAX,
            unanswered_max: u32::MAX,
            midstream: true,
        }
    }
}

/// Whose connections: a port's, in one segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Zone {
    /// The port.
    pub port: PortIdx,
    /// The segment.
    pub segment: SegmentId,
}

impl Zone {
    /// In a word.
    #[inline(always)]
    fn bits(self) -> u32 {
        (self.port.get() as u32) << 16 | u32::from(self.segment.0)
    }
}

/// The datagram that a fragment is of, at the port whose lists ask for its ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Datagram {
    port: PortIdx,
    whose: u64,
}

/// Seconds after a start in which a connection of before may be taken up at a frame of either end.
pub const GRACE_S: u32 = 120;

/// Why no connection could be begun.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Full {
    /// As many as there may be.
    Connections,
    /// As many unanswered ones as the port may have.
    Unanswered,
}

/// Which connection a frame is of, and from which end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Probe {
    key: [u64; 6],
    hash: u64,
    family: Family,
    /// Its source is the end whose address is the lower one.
    from_low: bool,
    /// Where it is likely.
    at: u32,
    /// What [`Conntrack::track`] found. Here, because whatever is moved just after it was written has to wait.
    pub found: Found,
}

impl Probe {
    /// Of nothing.
    pub(crate) const NONE: Probe =
        Probe { key: [0; 6], hash: 0, family: Family::Other, from_low: false, at: 0, found: Found::NONE };

    /// Whether the frame can be of a connection.
    #[inline(always)]
    fn is_some(&self) -> bool {
        self.family != Family::Other
    }
}

/// Whether there is a TCP segment in a frame.
#[inline(always)]
fn has_segment(h: &Headers) -> bool {
    h.protocol() == TCP && !h.is_later_fragment()
}

/// That segment, if there is one that can be read.
#[inline(always)]
fn segment(h: &Headers, head: &[u8]) -> Option<Segment> {
    if has_segment(h) { Segment::read(head, h.l4, h.end) } else { None }
}

/// A connection that was found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    slot: Slot,
    family: Family,
    /// 0 for the end that began it, 1 for the other.
    end: usize,
    /// The station behind the port began it.
    pub from_port: bool,
    /// Under which filter it was let pass last.
    pub filter: u32,
    /// By that filter it may not go on.
    pub refused: bool,
}

impl Found {
    const NONE: Found =
        Found { slot: Slot::NONE, family: Family::Other, end: 0, from_port: false, filter: 0, refused: false };

    /// What is in a slot, for a frame from one of its ends.
    #[inline(always)]
    fn new(slot: Slot, family: Family, what: What, from_low: bool) -> Found {
        let (from_port, refused) = (what.flags & FROM_PORT != 0, what.flags & REFUSED != 0);
        Found { slot, family, end: what.end(from_low), from_port, filter: what.filter, refused }
    }
}

/// What tracking says of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Tracked {
    /// Not of a kind that has connections.
    No,
    /// Its probe says of which.
    New,
    /// Its probe says of which.
    Known,
    /// The same, and its connection has taken it in already.
    Taken,
    Related,
    Invalid,
}

/// One connection, for people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Session {
    /// Whose.
    pub zone: Zone,
    /// IP protocol.
    pub protocol: u8,
    /// Address and port of the end that began it; an echo's identifier is the port of who asks.
    pub from: (IpAddr, u16),
    /// The other end's.
    pub to: (IpAddr, u16),
    /// The station behind the port began it.
    pub from_port: bool,
    /// In a word.
    pub state: &'static str,
    /// Seconds since it began, and since its last frame.
    pub age_s: u32,
    /// See above.
    pub idle_s: u32,
    /// Seconds until it is forgotten, if nothing comes.
    pub expires_s: u32,
}

/// What can be counted about all connections.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Statistics {
    /// Now.
    pub sessions: u64,
    /// The most that may be.
    pub capacity: u64,
    /// Begun since the start.
    pub begun: u64,
    /// Forgotten because nothing came.
    pub expired: u64,
    /// Unanswered ones that made room.
    pub displaced: u64,
    /// Not begun, because there were too many.
    pub refused: u64,
    /// Octets that one takes, for IPv4 and IPv6, when the table is as full as it is made for.
    pub octets: (u64, u64),
}

/// See the module.
pub struct Conntrack {
    v4: Table<3>,
    v6: Table<6>,
    fragments: Fragments,
    quiescence: Box<dyn Quiescence>,
    grace_until_s: AtomicU32,
    secrets: [u64; 2],
    capacity: u32,
    all: AtomicU32,
    half_open: HalfOpen,
    /// Of each port: all, and the unanswered.
    ports: Box<[(AtomicU32, AtomicU32)]>,
    begun: AtomicU64,
    expired: AtomicU64,
    displaced: AtomicU64,
    refused: AtomicU64,
}

impl Conntrack {
    /// For so many connections; `secrets` are random, because senders choose addresses and ports.
    pub fn new(capacity: u32, secrets: [u64; 2], quiescence: impl Quiescence + 'static) -> Self {
        Conntrack {
            v4: Table::new(capacity as usize),
            v6: Table::new(capacity as usize),
            fragments: Fragments::default(),
            quiescence: Box::new(quiescence),
            grace_until_s: AtomicU32::new(0),
            half_open: HalfOpen::default(),
            secrets,
            capacity,
            all: AtomicU32::new(0),
            ports: (0..MAX_PORTS).map(|_| Default::default()).collect(),
            begun: AtomicU64::new(0),
            expired: AtomicU64::new(0),
            displaced: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// Where the tables are: for a caller that can ask for larger pages there.
    pub fn memory(&self) -> impl Iterator<Item = (*const u8, usize)> {
        self.v4.memory().into_iter().chain(self.v6.memory())
    }

    #[inline(always)]
    fn hash(&self, words: &[u64]) -> u64 {
        let mut h = self.secrets[0];
        for w in words {
            // An even multiplier would lose the highest bit.
            let m = u128::from(h ^ w).wrapping_mul(u128::from(self.secrets[1] | 1));
            h = (m as u64) ^ (m >> 64) as u64;
        }
        h
    }

    /// Which datagram a fragment is of.
    pub(crate) fn datagram(&self, h: &Headers, zone: Zone) -> Datagram {
        Datagram { port: zone.port, whose: self.fragment_key(h, zone) }
    }

    /// Whether the first fragment of a datagram has come.
    pub fn has_first(&self, d: Datagram, now_s: u32) -> bool {
        self.fragments.has_first((d.port, d.whose), now_s)
    }

    /// Another number whenever the first fragment of a datagram has come.
    pub fn first_fragments(&self) -> usize {
        self.fragments.noted()
    }

    /// Lends a later fragment the ports of its first one, and notes those of a first one.
    pub(crate) fn inherit_ports(&self, h: &mut Headers, head: &[u8], zone: Zone, now_s: u32, keeps: bool) -> Inherited {
        let whose = (zone.port, self.fragment_key(h, zone));
        let id = echo_id(h, head).unwrap_or(0);
        self.fragments.inherit(h, whose, id, now_s, keeps)
    }

    fn fragment_key(&self, h: &Headers, zone: Zone) -> u64 {
        let w = |i: usize| u64::from(h.words[i]);
        self.hash(&[
            u64::from(zone.bits()) << 32 | u64::from(h.fragment_id),
            w(SRC) << 32 | w(DST),
            w(SRC6) << 32 | w(SRC6 + 1),
            w(SRC6 + 2) << 32 | w(DST6),
            w(DST6 + 1) << 32 | w(DST6 + 2),
            // Of IPv6, only the first one shows it behind further extension headers.
            if h.family == Family::V4 { w(crate::packet::headers::PROTOCOL) } else { 0 },
        ])
    }

    /// Which connection a frame would be of, into what must be [`Probe::NONE`], and stays so for what has none.
    #[inline(always)]
    pub(crate) fn probe<'a>(&self, h: &Headers, head: impl FnOnce() -> &'a [u8], zone: Zone, p: &mut Probe) {
        if h.family == Family::Other || h.broken {
            return;
        }
        let (mut sport, mut dport) = (h.words[SPORT], h.words[DPORT]);
        if matches!(h.protocol(), ICMP | ICMPV6) {
            // An echo's identifier is the port of who asks.
            let Some(id) = echo_id(h, head()).map(u32::from) else { return };
            (sport, dport) = if is_answer(h) { (0, id) } else { (id, 0) };
        }
        // No port is none: 0, which [`NO_PORT`] is in 16 bits.
        (sport, dport) = (sport & 0xffff, dport & 0xffff);
        let w = |i: usize| u64::from(h.words[i]);
        p.family = h.family;
        if h.family == Family::V4 {
            let ends = Ends4::new((h.words[SRC], sport), (h.words[DST], dport));
            p.from_low = ends.from_low;
            let key = ends.key(zone.bits(), h.protocol().into());
            *p.key.first_chunk_mut().expect("six are more than three") = key;
            p.hash = hash4(&key, &self.secrets);
        } else {
            let a = [w(SRC) << 32 | w(SRC6), w(SRC6 + 1) << 32 | w(SRC6 + 2), u64::from(sport)];
            let b = [w(DST) << 32 | w(DST6), w(DST6 + 1) << 32 | w(DST6 + 2), u64::from(dport)];
            p.from_low = a <= b;
            p.key = between6(zone, if p.from_low { (a, b) } else { (b, a) }, h.protocol().into());
            p.hash = self.hash(&p.key);
        }
    }

    #[inline(always)]
    pub(crate) fn prefetch(&self, p: &Probe) {
        match p.family {
            Family::V6 => self.v6.prefetch(self.v6.likely(p.hash).0),
            _ => self.v4.prefetch(self.v4.likely(p.hash).0),
        }
    }

    #[inline(always)]
    pub(crate) fn prefetch_entry(&self, p: &mut Probe) {
        p.at = match p.family {
            Family::V6 => self.v6.prefetch_entry(p.hash, self.v6.likely(p.hash)),
            _ => self.v4.prefetch_entry(p.hash, self.v4.likely(p.hash)),
        };
    }

    /// The connection of a probe, if there is one, and its state.
    #[inline(always)]
    fn find(&self, p: &Probe) -> Option<(Found, &State)> {
        let (slot, what) = match p.family {
            Family::Other => None,
            Family::V6 => self.v6.find(p.hash, |i| p.key[i], p.at),
            Family::V4 => self.v4.find(p.hash, |i| p.key[i], p.at),
        }?;
        Some((Found::new(slot, p.family, what, p.from_low), self.state_of(p.family, slot)))
    }

    #[inline(always)]
    fn state(&self, f: &Found) -> &State {
        self.state_of(f.family, f.slot)
    }

    #[inline(always)]
    fn state_of(&self, family: Family, slot: Slot) -> &State {
        match family {
            Family::V6 => self.v6.state(slot),
            _ => self.v4.state(slot),
        }
    }

    /// What a frame is to the connections of its zone. With `commit_at`, whatever the lists say of it, its connection
    /// takes it in at once, at that second; nothing is changed otherwise.
    pub(crate) fn track<F: Frame>(
        &self,
        h: &Headers,
        p: &mut Probe,
        frame: &F,
        (zone, filter): (Zone, u32),
        s: &Settings,
        commit_at: Option<u32>,
    ) -> Tracked {
        if !p.is_some() {
            return self.without_probe(h, frame.head(), (zone, filter));
        }
        let found = self.find(p);
        // Asked once: [`segment`], and then why there is none, took 22 instructions a frame more.
        let segment = match has_segment(h) {
            true => match Segment::read(frame.head(), h.l4, h.end) {
                Some(t) => Some(t),
                None => return Tracked::Invalid,
            },
            false => None,
        };
        let Some((f, state)) = found else {
            return match segment {
                Some(t) if t.begins(s.midstream) && !t.is_nonsense() => Tracked::New,
                None if !is_answer(h) => Tracked::New,
                _ => Tracked::Invalid,
            };
        };
        if let Some(t) = &segment {
            match tcp::fits(state, f.end, t) {
                Fit::Yes | Fit::Resync => {}
                Fit::No => return Tracked::Invalid,
                Fit::Reopen => return Tracked::New,
            }
        }
        if let Some(now_s) = commit_at
            && !f.refused
            && f.filter == filter
        {
            self.take_or_resync((&f, state), h.protocol(), segment.as_ref(), now_s);
            return Tracked::Taken;
        }
        p.found = f;
        Tracked::Known
    }

    /// From now on, for [`GRACE_S`], connections that were open before the switch was restarted may be met in either
    /// direction: the table has none of them.
    pub fn begin_grace(&self, now_s: u32) {
        self.grace_until_s.store(now_s.saturating_add(GRACE_S), Relaxed);
    }

    /// Whether that is so.
    #[inline(always)]
    pub(crate) fn is_in_grace(&self, now_s: u32) -> bool {
        now_s < self.grace_until_s.load(Relaxed)
    }

    /// Enters a connection whose first frame was let pass. It may be one that `answers`: the other end began it.
    pub(crate) fn begin(
        &self,
        p: &Probe,
        h: &Headers,
        head: &[u8],
        (zone, from_port, filter, answers): (Zone, bool, u32, bool),
        limits: (&Settings, &SessionLimits),
        now_s: u32,
    ) -> Result<(), Full> {
        let segment = segment(h, head);
        if let Some((f, state)) = self.find(p) {
            // It was begun a moment ago, by a frame of the same burst or of another worker's.
            let fits = segment.is_none_or(|t| matches!(tcp::fits(state, f.end, &t), Fit::Yes | Fit::Resync));
            if fits && !f.refused {
                self.advance(&f, h, head, now_s);
                return Ok(());
            }
            // One of before, that was closed.
            self.forget(f.family, f.slot);
        }
        if let Some((full, any)) = self.is_too_much(zone.port, limits, (0, 0))
            && !self.displace(p, zone.port, any)
        {
            self.refused.fetch_add(1, Relaxed);
            return Err(full);
        }
        let low_began = p.from_low != answers;
        let flags = if low_began { LOW_BEGAN } else { 0 } | if from_port != answers { FROM_PORT } else { 0 };
        let flags = flags | if answers { UNCONFIRMED } else { 0 };
        let state = tcp::begun(segment.as_ref(), now_s, flags, filter, usize::from(answers));
        // Before anybody can find it, and take it out again.
        self.count(zone.port, 1);
        for _ in 0..2 {
            let (q, at) = (&*self.quiescence, (p.hash, zone.port));
            let entered = match p.family {
                Family::V6 => self.v6.insert(q, at, &p.key, state),
                _ => self.v4.insert(q, at, key4(&p.key), state),
            };
            if let Some(slot) = entered {
                self.begun.fetch_add(1, Relaxed);
                self.half_open.note(zone.port, p.family, slot, p.hash);
                return Ok(());
            }
            if !self.displace_there(p) {
                break;
            }
        }
        self.count(zone.port, -1);
        self.refused.fetch_add(1, Relaxed);
        Err(Full::Connections)
    }

    /// Counts an unanswered connection of a port more, or less.
    fn count(&self, port: PortIdx, by: i32) {
        let (all, unanswered) = &self.ports[port.get()];
        for counter in [&self.all, all, unanswered] {
            counter.fetch_add(by as u32, Relaxed);
        }
    }

    fn forget(&self, family: Family, slot: Slot) -> bool {
        let removed = match family {
            Family::V6 => self.v6.remove(&*self.quiescence, slot),
            _ => self.v4.remove(&*self.quiescence, slot),
        };
        let Some((port, was_unanswered)) = removed else { return false };
        let (all, unanswered) = &self.ports[port.get()];
        self.all.fetch_sub(1, Relaxed);
        all.fetch_sub(1, Relaxed);
        unanswered.fetch_sub(u32::from(was_unanswered), Relaxed);
        true
    }

    /// Takes in a frame of a connection that was let pass.
    pub(crate) fn advance(&self, f: &Found, h: &Headers, head: &[u8], now_s: u32) {
        if self.is_still(f) {
            self.take_or_resync((f, self.state(f)), h.protocol(), segment(h, head).as_ref(), now_s);
        }
    }

    /// Takes in a frame of the connection; of a segment that renews nothing, only what is to be remembered.
    fn take_or_resync(&self, (f, state): (&Found, &State), protocol: u8, segment: Option<&Segment>, now_s: u32) {
        match segment.filter(|t| tcp::fits(state, f.end, t) == Fit::Resync) {
            Some(t) => tcp::note_resync(state, f.end, t),
            None => self.take((f, state), protocol, segment, now_s),
        }
    }

    #[inline(always)]
    fn take_if_still(&self, f: &Found, protocol: u8, segment: Option<&Segment>, now_s: u32) {
        if self.is_still(f) {
            self.take((f, self.state(f)), protocol, segment, now_s);
        }
    }

    #[inline(always)]
    fn take(&self, (f, state): (&Found, &State), protocol: u8, segment: Option<&Segment>, now_s: u32) {
        put(&state[SEEN_S], now_s);
        if let Some(t) = segment {
            tcp::advance(state, f.end, t);
        }
        if state[FLAGS].load(Relaxed) & ASSURED == 0 {
            self.assure((f.slot, f.family, f.end), protocol);
        }
    }

    /// Notes of a connection that is only tried that it was answered, and goes on, if this frame says so.
    #[cold]
    fn assure(&self, (slot, family, end): (Slot, Family, usize), protocol: u8) {
        let flags = &self.state_of(family, slot)[FLAGS];
        let is_unconfirmed = flags.load(Relaxed) & UNCONFIRMED != 0;
        if is_unconfirmed && end == 0 {
            flags.fetch_and(!UNCONFIRMED, Relaxed);
        }
        // What both ends said counts as answered; of one that was taken up at an answer, the other end is asked for.
        let is_answer = is_unconfirmed == (end == 0);
        let now = if is_answer { flags.fetch_or(SEEN_REPLY, Relaxed) | SEEN_REPLY } else { flags.load(Relaxed) };
        if !tcp::is_assured(protocol, now) {
            return;
        }
        let answered = match family {
            Family::V6 => self.v6.answered(slot),
            _ => self.v4.answered(slot),
        };
        if let Ok(news) = answered {
            flags.fetch_or(ASSURED, Relaxed);
            if let Some(port) = news {
                self.ports[port.get()].1.fetch_sub(1, Relaxed);
            }
        }
    }

    /// Whether the slot was not given to another connection since.
    #[inline(always)]
    fn is_still(&self, f: &Found) -> bool {
        match f.family {
            Family::V6 => self.v6.is_still(f.slot),
            _ => self.v4.is_still(f.slot),
        }
    }

    /// Notes what a changed filter says of a connection.
    pub(crate) fn judge(&self, f: &Found, passes: bool, filter: u32) {
        let state = self.state(f);
        if !self.is_still(f) {
            return;
        }
        if passes {
            state[FLAGS].fetch_and(!REFUSED, Relaxed);
        } else {
            state[FLAGS].fetch_or(REFUSED, Relaxed);
        }
        state[FILTER].store(filter, Relaxed);
    }
}
