//! A burst of frames, and what the stages find out about it: what each stage takes and leaves for the next.

use arrayvec::ArrayVec;

use crate::{
    DropReason, Frame, MacAddr, PortIdx, SegmentId, Snapshot,
    conntrack::Conntrack,
    counters::Counters,
    cycles::{Stage, StageClock},
    headers::{self, CHUNK, bits},
    mac_table::{Hash, Key, MacTable},
    trace::Trace,
    vlan::{Class, TPID_8021Q, Tag},
};

/// The most frames taken through the stages together.
pub const BURST: usize = 128;

/// A bit for each frame of a burst, the first one lowest.
pub(crate) type Mask = u128;

/// The frames of one burst.
pub type Burst<F> = ArrayVec<F, BURST>;

/// What happens to a frame, in one word: a port's number, [`Fate::FLOOD`], or above that a reason to
/// drop it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Fate(u32);

/// A [`Fate`], taken apart.
pub(crate) enum Verdict {
    /// Leaves by one port.
    Unicast(PortIdx),
    /// To all other ports of its segment.
    Flood,
    /// Dropped.
    Drop(DropReason),
}

impl Fate {
    pub(crate) const FLOOD: Fate = Fate(1 << 16);

    #[inline(always)]
    pub(crate) const fn unicast(to: PortIdx) -> Self {
        Fate(to.get() as u32)
    }

    #[inline(always)]
    pub(crate) const fn drop(reason: DropReason) -> Self {
        Fate(Self::FLOOD.0 + 1 + reason as u32)
    }

    #[inline(always)]
    pub(crate) const fn bits(self) -> u32 {
        self.0
    }

    /// The place of a port, or of floods, in a table of [`MAX_PORTS`] and one more.
    ///
    /// [`MAX_PORTS`]: crate::MAX_PORTS
    #[inline(always)]
    pub(crate) fn place(self) -> usize {
        if self == Self::FLOOD { crate::MAX_PORTS } else { self.0 as usize & (crate::MAX_PORTS - 1) }
    }

    #[inline(always)]
    pub(crate) fn verdict(self) -> Verdict {
        match self.0.checked_sub(Self::FLOOD.0) {
            None => Verdict::Unicast(PortIdx::from_raw(self.0 as u16)),
            Some(0) => Verdict::Flood,
            Some(n) => Verdict::Drop(DropReason::ALL[n as usize - 1]),
        }
    }
}

/// Frames of a burst that go no further: bit i is frame i, whose reason is its fate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Refused(Mask);

const _: () = assert!(BURST == Mask::BITS as usize);

impl Refused {
    pub(crate) const NONE: Refused = Refused(0);

    #[inline(always)]
    pub(crate) fn add(&mut self, i: usize) {
        self.0 |= 1 << i;
    }

    pub(crate) fn has(self, i: usize) -> bool {
        self.0 >> i & 1 == 1
    }

    /// Those of the burst's `chunk`-th [`CHUNK`].
    pub(crate) fn chunk(self, chunk: usize) -> headers::Mask {
        (self.0 >> (chunk * CHUNK)) as headers::Mask
    }

    /// Adds some of the burst's `chunk`-th [`CHUNK`].
    pub(crate) fn add_chunk(&mut self, chunk: usize, of: headers::Mask) {
        self.0 |= Mask::from(of) << (chunk * CHUNK);
    }
}

/// The numbers of the bits that are set, the lowest first.
#[inline(always)]
pub(crate) fn numbers(set: Mask) -> impl Iterator<Item = usize> {
    // In halves: a register has 64 bits.
    let halves = [set as headers::Mask, (set >> CHUNK) as headers::Mask].into_iter().enumerate();
    halves.flat_map(|(half, set)| bits(set).map(move |i| half * CHUNK + i))
}

/// What is known of a burst as a whole. Of one that frames were taken out of, all but `octets` may be as before.
#[derive(Clone, Copy)]
pub(crate) struct BurstInfo {
    /// Of all frames.
    pub octets: u64,
    /// Of the largest frame.
    pub largest: u32,
    /// Every frame is what [`Frame::is_plain`] says.
    pub plain: bool,
    /// Every frame is in the same VLAN, tagged alike.
    pub same_class: bool,
}

impl BurstInfo {
    /// Of no frames.
    pub(crate) const NONE: BurstInfo = BurstInfo { octets: 0, largest: 0, plain: true, same_class: true };

    /// Of one frame.
    #[inline(always)]
    pub(crate) fn of<F: Frame>(frame: &F) -> Self {
        let mut info = BurstInfo::NONE;
        info.add(frame);
        info
    }

    /// Takes in one more, of the same class.
    #[inline(always)]
    pub(crate) fn add<F: Frame>(&mut self, frame: &F) {
        self.octets += u64::from(frame.len());
        self.largest = self.largest.max(frame.len());
        self.plain &= frame.is_plain();
    }
}

/// What the stages found out about one frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Meta {
    /// Destination and segment.
    pub dst: Key,
    /// Source and segment.
    pub src: Key,
    pub dst_hash: Hash,
    pub src_hash: Hash,
    /// Its VLAN, and how it shows it.
    pub class: Class,
    pub fate: Fate,
}

impl Meta {
    pub(crate) const EMPTY: Meta = Meta {
        dst: Key::new(MacAddr::BROADCAST, SegmentId::NONE),
        src: Key::new(MacAddr::BROADCAST, SegmentId::NONE),
        dst_hash: Hash::ZERO,
        src_hash: Hash::ZERO,
        class: Class::new(Tag::NONE, TPID_8021Q, 0),
        fate: Fate::FLOOD,
    };
}

/// The time, as the caller's clock has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Now {
    /// Seconds, for filters, connections and bindings.
    pub s: u32,
    /// Nanoseconds, for rates. May start anywhere; must not go back.
    pub ns: u64,
}

/// What all stages of one burst work with.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The configuration.
    pub snapshot: &'a Snapshot,
    /// Where addresses are.
    pub macs: &'a MacTable,
    /// The worker's own counters.
    pub counters: &'a Counters,
    /// Connections that were let pass.
    pub sessions: &'a Conntrack,
    /// The worker's number: which of the counters of rules are its own.
    pub worker: usize,
    /// The time of the burst.
    pub now: Now,
    /// Where to tell what happens; then nothing is changed that others see.
    pub trace: Option<&'a Trace>,
    /// Measures the stages, if this burst is one of those.
    pub cycles: Option<&'a StageClock<'a>>,
}

impl<'a> Context<'a> {
    /// Of the worker with this number, neither traced nor measured.
    pub fn new(
        snapshot: &'a Snapshot,
        (macs, sessions): (&'a MacTable, &'a Conntrack),
        (worker, counters): (usize, &'a Counters),
        now: Now,
    ) -> Self {
        Context { snapshot, macs, counters, sessions, worker, now, trace: None, cycles: None }
    }

    /// A stage has ended for the burst.
    #[inline(always)]
    pub(crate) fn end(&self, stage: Stage) {
        if let Some(clock) = self.cycles {
            clock.end(stage);
        }
    }

    #[inline]
    pub(crate) fn drop(&self, port: PortIdx, reason: DropReason, n: u64) {
        self.counters.port(port).drops[reason as usize].add(n);
        if self.trace.is_some() && n > 0 {
            self.tell_drop(port, reason);
        }
    }

    #[cold]
    #[inline(never)]
    fn tell_drop(&self, port: PortIdx, reason: DropReason) {
        let name = self.snapshot.port(port).map_or("(gone)", |p| &p.name);
        self.tell("drop", || format!("at port '{name}': {}: {}", reason.name(), reason.describe().trim()));
    }

    /// Says something of a frame that is traced.
    #[inline(always)]
    pub(crate) fn tell(&self, stage: &'static str, text: impl FnOnce() -> String) {
        if let Some(trace) = self.trace {
            trace.tell(stage, text());
        }
    }
}
