//! The way of a frame: every stage, in its order.
//!
//! ```text
//! receive → parse → ingress VLAN → filter → glance → learn → lookup → police → (unicast | flood | drop)
//!              ↑                                                                      ↓
//!              └─── once, for a frame that enters or leaves a tunnel ───────── egress, filter
//! ```
//!
//! A worker receives a burst from one queue, so the ingress port and all it configures are the
//! same for the whole burst. Each stage is one file in `stage/` and one loop over the burst
//! (parse and ingress VLAN share theirs, the filter takes it in chunks); what a stage finds out about a frame goes into its
//! [`Meta`], and a frame's fate is a value there. A frame that a stage refuses leaves the burst
//! before the next stage. The tag stays in the frame until it leaves: its [`Class`] says what it
//! means, and `egress` writes only if the other port wants another form.
//!
//! **One destination.** When all frames of a burst go to one port in one form, which is most of
//! what a guest's or an uplink's burst is, that port is looked at once and gets the burst whole.
//!
//! **What was tried**, in TSC cycles per frame of the whole switch at 1 / 10,000 pairs, where DPDK's
//! testpmd takes 22 / 26 for its io forwarding; `make bench` and `bench/instructions.py` measure it.
//! Kept: a burst to one port whole, both keys and the class in one pass over the headers, the port of
//! an entry found by comparing keys at once instead of by branches (52 / 65 to 38 / 57 together);
//! the table no larger than its entries need, on huge pages (57 to 45 at 10,000); validity asked only
//! of what is not known (2 less); a loop of its own for descriptors and prefetches (0.5 less); bursts of 64 frames in
//! place of 32, because each burst waits once for the first of what it asked memory for (at 500,000 pairs 142 to 115,
//! with 100,000 connections tracked 152 to 132, nothing where all is in the caches), and again 128 (102 to 94; 0.5 to 1 more
//! where all is in the caches), of which filters take 64 at once, because masks of 128 bits cost them a tenth to a fifth
//! more instructions. On a day on which the switch took 46 / 55
//! and 120 at 500,000 pairs: entries of one word, eight a cache line, and both addresses of all frames looked for in one loop
//! with their second buckets asked for (47 / 55 and 109); both keys and their hashes made in one register
//! of AVX-512 (42 / 50 and 105). In the engine alone these two took 1 pair from 5.5 ns to 4.0 and 400,000 from 23.6 to 16.7; with no
//! more than AVX2 to 6.4 and 17.7, because there the hash is made by ordinary multiplications, one more for each key.
//! Not kept, because nothing came of it: x86-64-v3 or newer code for all;
//! link-time optimization of the whole instead of thin; chunks of 8 frames through the stages
//! in turn (4 more); asking for the destination's bucket a stage later (1 more at 1 pair, 6 at 500,000); parsing the bursts of
//! two queues before either goes on (5 more at 1 pair, 18 at 500,000); sending the burst before between parse and glance
//! (2 more, 1 less at 500,000); looking for a frame's addresses in the loop that parses, 8, 16 or 24 frames behind
//! (2 more); prefetching to another level, where none is faster; one multiplication less in the hash (1 less, but see
//! [`crate::mac_table`]); six addresses a bucket in place of four, which halves the table (5 more: more of them are in their
//! second bucket); both buckets in one page of 4 KiB.
//!
//! What is left of 500,000 pairs, when bursts were of 64 frames: with all addresses in 256 lines they took 81 in place of 102,
//! and io 79. So the two lines of the table that a frame needs cost 10 each (with bursts of 128 some 6), and the rest is the
//! driver's waiting for its file.
//!
//! **Thread.** A pipeline belongs to one worker. It shares the mac table, and nothing else that
//! is written.
//!
//! **Conservation.** For the ports together: received + clones = transmitted + dropped. A frame
//! that floods to n ports is n frames from there, n − 1 of them clones; one that has nowhere to
//! go is dropped for that reason.

use arrayvec::ArrayVec;

use crate::{
    DropReason, Frame, MacAddr, Output, PortIdx, SegmentId, Snapshot,
    conntrack::Conntrack,
    counters::Counters,
    headers::{self, CHUNK, bits},
    mac_table::{Hash, Key, MacTable},
    snapshot::{Port, Segment},
    stage::{
        self,
        tunnel::{Again, Entry},
    },
    trace::Trace,
    tunnel::Role,
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
        dst: Key::new(crate::MacAddr::BROADCAST, crate::SegmentId::NONE),
        src: Key::new(crate::MacAddr::BROADCAST, crate::SegmentId::NONE),
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
}

impl Context<'_> {
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

/// One worker's scratch space.
pub struct Pipeline {
    meta: [Meta; BURST],
    again: [Meta; BURST],
}

impl Default for Pipeline {
    fn default() -> Self {
        Pipeline { meta: [Meta::EMPTY; BURST], again: [Meta::EMPTY; BURST] }
    }
}

impl Pipeline {
    /// Takes the frames of `burst`, received at `ingress`, through all stages. It is empty
    /// afterwards: every frame has been handed to `out` or dropped and counted.
    #[inline]
    pub fn run<F: Frame>(&mut self, cx: Context<'_>, ingress: PortIdx, burst: &mut Burst<F>, out: &mut impl Output<F>) {
        let cx = &cx;
        let mut again = Pending { meta: &mut self.again, entry: Entry::NONE, burst: Burst::new() };
        if let Some(port) = cx.snapshot.port(ingress)
            && !port.vteps.is_empty()
        {
            stage::tunnel::bypass(cx, port, burst, out, &mut again);
        }
        if !burst.is_empty() {
            pass(cx, &mut self.meta, ingress, Origin::Device, burst, out, &mut again);
        }
        if !again.burst.is_empty() {
            again.flush(cx, out);
        }
    }

    /// The same for frames of the switch's own, as if received at a remote or a port in the segment `inside`, from
    /// stations that are known there; others are left out. What a port filters is what its station sends: not these.
    pub fn run_inside<F: Frame>(
        &mut self,
        cx: Context<'_>,
        ingress: PortIdx,
        inside: (Class, SegmentId),
        burst: &mut Burst<F>,
        out: &mut impl Output<F>,
    ) {
        let cx = &cx;
        // Only who is known there may seem to send, and only to whom is known too: nothing is flooded.
        burst.retain(|f| {
            let ends = f.head().first_chunk::<12>().and_then(|h| Some((h.first_chunk::<6>()?, h.last_chunk::<6>()?)));
            let at = |octets: &[u8; 6]| {
                let key = Key::new(MacAddr::from_octets(*octets), inside.1);
                cx.macs.lookup(cx.macs.hash(key))
            };
            ends.is_some_and(|(to, from)| at(from) == Some(ingress) && at(to).is_some())
        });
        if !cx.snapshot.port(ingress).is_some_and(Port::is_device) {
            return pass(cx, &mut self.meta, ingress, Origin::Switch(&inside), burst, out, &mut NoMore);
        }
        let mut again = Pending { meta: &mut self.again, entry: Entry::NONE, burst: Burst::new() };
        pass(cx, &mut self.meta, ingress, Origin::Switch(&inside), burst, out, &mut again);
        if !again.burst.is_empty() {
            again.flush(cx, out);
        }
    }

    /// Sends a plain frame that was held into the tunnel to `remote`, whose next hop is known by now; what
    /// it was in the overlay is in `inside`.
    pub fn send_into<F: Frame>(
        &mut self,
        cx: Context<'_>,
        remote: PortIdx,
        inside: (Class, SegmentId),
        frame: F,
        out: &mut impl Output<F>,
    ) {
        let cx = &cx;
        // Both may have gone meanwhile, and their numbers be others'.
        let its = |s: &Segment| s.remotes.contains(&remote) || s.flood.contains(&remote);
        let to = cx.snapshot.segment(inside.1).filter(|s| its(s)).and_then(|_| cx.snapshot.port(remote));
        let Some(to) = to else { return cx.drop(remote, DropReason::PortGone, 1) };
        let mut again = Pending { meta: &mut self.again, entry: Entry::NONE, burst: Burst::new() };
        let nobody = Key::new(MacAddr::default(), inside.1);
        let m = Meta { dst: nobody, src: nobody, class: inside.0, ..Meta::EMPTY };
        // Whoever sent it may be gone: it comes from nowhere, as far as isolation is concerned.
        stage::tunnel::leave(cx, to, to, frame, &m, out, &mut again);
        if !again.burst.is_empty() {
            again.flush(cx, out);
        }
    }

    /// The ports that the frames of a burst received at `ingress` go to, as far as that is one port
    /// each: nothing is learned, counted or changed.
    pub fn destinations<F: Frame>(
        &mut self,
        cx: Context<'_>,
        ingress: PortIdx,
        burst: &Burst<F>,
    ) -> [Option<PortIdx>; BURST] {
        let cx = &cx;
        let mut to = [None; BURST];
        if let Some(port) = cx.snapshot.port(ingress) {
            let all = stage::parse::run(cx, port, &port.untagged, burst, &mut self.meta);
            for (i, (to, m)) in to.iter_mut().zip(&self.meta).enumerate().take(burst.len()) {
                *to = if all.refused.has(i) { None } else { cx.macs.lookup(m.dst_hash) };
            }
        }
        to
    }
}

/// Frames on their way into their second pass, as many as begin it alike.
struct Pending<'a, F: Frame> {
    meta: &'a mut [Meta; BURST],
    entry: Entry,
    burst: Burst<F>,
}

impl<F: Frame> Pending<'_, F> {
    #[inline(never)]
    fn flush(&mut self, cx: &Context<'_>, out: &mut impl Output<F>) {
        // What a VTEP sends into tunnels has one way to go.
        if let Some(vtep) = cx.snapshot.port(self.entry.port)
            && matches!(vtep.role, Role::Vtep(_))
        {
            return stage::tunnel::send_each(cx, vtep, &mut self.burst, out);
        }
        let inside = (self.entry.class, self.entry.segment);
        pass(cx, self.meta, self.entry.port, Origin::Tunnel(&inside), &mut self.burst, out, &mut NoMore);
    }
}

impl<F: Frame> Again<F> for Pending<'_, F> {
    const LAST: bool = false;

    #[inline(always)]
    fn push(&mut self, cx: &Context<'_>, entry: Entry, frame: F, out: &mut impl Output<F>) {
        if self.entry != entry || self.burst.is_full() {
            if !self.burst.is_empty() {
                self.flush(cx, out);
            }
            self.entry = entry;
        }
        self.burst.push(frame);
    }
}

/// Behind the second pass there is none.
pub(crate) struct NoMore;

impl<F: Frame> Again<F> for NoMore {
    const LAST: bool = true;

    fn push(&mut self, cx: &Context<'_>, entry: Entry, _: F, _: &mut impl Output<F>) {
        // Whoever pushes has asked; a frame that comes all the same is dropped, and counted.
        cx.counters.port(entry.port).rx_frames.add(1);
        cx.drop(entry.port, DropReason::NestedTunnel, 1);
    }
}

/// Where the frames of a pass come from, and what those without a tag are: what their port says, if nothing.
#[derive(Clone, Copy)]
enum Origin<'a> {
    Device,
    Tunnel(&'a (Class, SegmentId)),
    /// The switch made them: no station sent them, so that nothing is filtered or learned.
    Switch(&'a (Class, SegmentId)),
}

/// One pass through the stages: the whole way of most frames.
#[inline(always)]
fn pass<F: Frame>(
    cx: &Context<'_>,
    meta: &mut [Meta; BURST],
    ingress: PortIdx,
    origin: Origin<'_>,
    burst: &mut Burst<F>,
    out: &mut impl Output<F>,
    again: &mut impl Again<F>,
) {
    let counted = cx.counters.port(ingress);
    // What the switch made at a device was not received there.
    let is_made = matches!(origin, Origin::Switch(_)) && cx.snapshot.port(ingress).is_some_and(Port::is_device);
    if is_made { &counted.clones } else { &counted.rx_frames }.add(burst.len() as u64);
    counted.rx_bursts.add(1);
    let Some(port) = cx.snapshot.port(ingress) else {
        counted.rx_bytes.add(burst.iter().map(|f| u64::from(f.len())).sum());
        cx.drop(ingress, DropReason::PortGone, burst.len() as u64);
        burst.clear();
        return;
    };
    let untagged = match origin {
        Origin::Device => &port.untagged,
        Origin::Tunnel(inside) | Origin::Switch(inside) => inside,
    };
    let mut all = stage::parse::run(cx, port, untagged, burst, &mut meta[..]);
    if !is_made {
        counted.rx_bytes.add(all.octets);
    }
    cx.tell("receive", || {
        let segment = meta.first().and_then(|m| cx.snapshot.segment(m.src.segment()));
        let segment = segment.map(|s| s.label()).map(|(name, vid)| format!("'{name}' VLAN {vid}"));
        format!("port '{}', segment {}", port.name, segment.as_deref().unwrap_or("none"))
    });
    if all.refused != Refused::NONE {
        all.octets -= shed(cx, port, burst, meta, all.refused);
    }
    if let Some(filter) = port.filter.as_deref().filter(|f| f.looks_in && matches!(origin, Origin::Device)) {
        let refused = stage::filter::ingress(cx, port, filter, burst, &mut meta[..burst.len()], out);
        if refused != Refused::NONE {
            all.octets -= shed(cx, port, burst, meta, refused);
        }
    }
    let mut seen = stage::glance::run(cx, port.idx, &mut meta[..burst.len()]);
    if let Origin::Switch(_) = origin {
        seen.unknown = 0;
    }
    let (refused, changed) = stage::learn::run(cx, port, &mut meta[..burst.len()], seen.unknown, out);
    if refused != Refused::NONE {
        all.octets -= shed(cx, port, burst, meta, refused);
    }
    let meta = &mut meta[..burst.len()];
    if changed || refused != Refused::NONE {
        // Others of the burst may be for whom was learned just now.
        seen = stage::glance::run(cx, port.idx, meta);
    }
    let same_fate = stage::lookup::run(cx, port, meta, seen);
    stage::police::run(cx, port, meta);
    cx.tell("lookup", || match meta.first().map(|m| (m.dst.mac(), m.fate.verdict())) {
        Some((mac, Verdict::Unicast(to))) => {
            format!("{mac} is at port '{}'", cx.snapshot.port(to).map_or("(gone)", |p| &p.name))
        }
        Some((mac, Verdict::Flood)) => format!("{mac} is nowhere in particular: to all other ports of the segment"),
        _ => "nothing is left to send".to_owned(),
    });
    if same_fate
        && all.same_class
        && let Some(first) = meta.first()
        && let Verdict::Unicast(to) = first.fate.verdict()
        && (stage::egress::burst(cx, port, to, burst, meta, &all, out)
            || stage::tunnel::burst(cx, (port, to), burst, first, &all, out))
    {
        return;
    }
    dispatch(cx, port, burst, meta, out, again);
}

/// Takes the refused frames out of the burst: the stages behind see none of them. Their octets.
#[cold]
fn shed<F: Frame>(
    cx: &Context<'_>,
    port: &Port,
    burst: &mut Burst<F>,
    meta: &mut [Meta; BURST],
    refused: Refused,
) -> u64 {
    let (mut i, mut kept, mut octets) = (0, 0, 0);
    burst.retain(|f| {
        let keep = !refused.has(i);
        match meta[i].fate.verdict() {
            Verdict::Drop(reason) if !keep => {
                octets += u64::from(f.len());
                cx.drop(port.idx, reason, 1);
            }
            _ => {
                meta[kept] = meta[i];
                kept += 1;
            }
        }
        i += 1;
        keep
    });
    octets
}

/// Hands every frame on by its fate.
#[inline]
fn dispatch<F: Frame>(
    cx: &Context<'_>,
    port: &Port,
    burst: &mut Burst<F>,
    meta: &[Meta],
    out: &mut impl Output<F>,
    again: &mut impl Again<F>,
) {
    let refused = match cx.snapshot.filters_out {
        true => stage::filter::egress_each(cx, port, burst, meta, out),
        false => Refused::NONE,
    };
    let any_refused = refused != Refused::NONE;
    for (i, (frame, m)) in burst.drain(..).zip(meta).enumerate() {
        match m.fate.verdict() {
            _ if any_refused && refused.has(i) => {}
            Verdict::Unicast(to) => stage::egress::unicast(cx, port, to, frame, m, out, again),
            Verdict::Flood => stage::flood::run(cx, port, frame, m, out, again),
            Verdict::Drop(reason) => cx.drop(port.idx, reason, 1),
        }
    }
}
