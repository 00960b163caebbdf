//! The way of a frame: every stage, in its order.
//!
//! ```text
//! receive → parse → ingress VLAN → filter → fast lookup → learn → lookup → police → (unicast | flood | drop)
//!              ↑                                                                           ↓
//!              └─── once, for a frame that enters or leaves a tunnel ──────────────────── emit
//! ```
//!
//! A worker receives a burst from one queue, so the ingress port and all it configures are the
//! same for the whole burst. Each stage is one file in `stage/` and one loop over the burst
//! (parse and ingress VLAN share theirs, the filter takes it in chunks); what a stage finds out about a frame goes into its
//! [`Meta`], and a frame's fate is a value there. A frame that a stage refuses leaves the burst
//! before the next stage. The tag stays in the frame until it leaves: its [`VlanTagInfo`] says what it
//! means, and [`emit`] writes only if the other port wants another form.
//!
//! **Together.** Frames of a burst that leave by one port go through [`emit`] together, in the order in which they came;
//! mostly that is the whole burst, else it is sorted by port. Frames for different addresses may so overtake each other by
//! less than a burst (802.1Q, 6.5.3, asks for order within one pair of addresses, VLAN and priority).
//!
//! **Thread.** A pipeline belongs to one worker. It shares the mac table, and nothing else that
//! is written.
//!
//! **Conservation.** For the ports together: received + clones = transmitted + dropped. A frame
//! that floods to n ports is n frames from there, n − 1 of them clones; one that has nowhere to
//! go is dropped for that reason.

use arrayvec::ArrayVec;

use crate::{
    BURST, Burst, DropReason, Frame, MAX_PORTS, MacAddr, Output, PortIdx, SegmentId,
    burst::{BurstInfo, CHUNK, Fate, Meta, Refused, Verdict, iter_bits},
    context::Context,
    cycles::Stage,
    snapshot::{Port, Segment},
    stage::{
        self,
        emit::{self, Group},
        recirculate::{NoRecirc, RecircContext, Recirculate},
        tunnel,
    },
    tables::mac::Key,
    tunnel::Role,
    vlan::VlanTagInfo,
};

/// One worker's scratch space.
#[derive(Default)]
pub struct Pipeline {
    first: Scratch,
    second: Scratch,
}

/// That of one pass.
struct Scratch {
    meta: [Meta; BURST],
    /// The same, of the frames that go to one port.
    sorted: [Meta; BURST],
    /// For each port that frames of the burst go to, and for floods: the number of their group, from 1. Else 0.
    groups: Box<[u8; MAX_PORTS + 1]>,
}

impl Default for Scratch {
    fn default() -> Self {
        Scratch { meta: [Meta::EMPTY; BURST], sorted: [Meta::EMPTY; BURST], groups: Box::new([0; MAX_PORTS + 1]) }
    }
}

impl Pipeline {
    /// Takes the frames of `burst`, received at `ingress`, through all stages. It is empty
    /// afterwards: every frame has been handed to `out` or dropped and counted.
    #[inline]
    pub fn run<F: Frame>(&mut self, cx: Context<'_>, ingress: PortIdx, burst: &mut Burst<F>, out: &mut impl Output<F>) {
        let cx = &cx;
        let mut again = Pending::new(&mut self.second);
        if let Some(port) = cx.snapshot.port(ingress)
            && !port.vteps.is_empty()
        {
            tunnel::decap::bypass(cx, port, burst, out, &mut again);
            cx.end(Stage::Ingress);
        }
        if !burst.is_empty() {
            pass(cx, &mut self.first, ingress, Origin::Device, burst, out, &mut again);
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
        inside: (VlanTagInfo, SegmentId),
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
            return pass(cx, &mut self.first, ingress, Origin::Switch(&inside), burst, out, &mut NoRecirc);
        }
        self.both_passes(cx, (ingress, Origin::Switch(&inside)), burst, out);
    }

    /// The first pass, and the second of what enters or leaves a tunnel.
    fn both_passes<F: Frame>(
        &mut self,
        cx: &Context<'_>,
        (ingress, origin): (PortIdx, Origin<'_>),
        burst: &mut Burst<F>,
        out: &mut impl Output<F>,
    ) {
        let mut again = Pending::new(&mut self.second);
        pass(cx, &mut self.first, ingress, origin, burst, out, &mut again);
        if !again.burst.is_empty() {
            again.flush(cx, out);
        }
    }

    /// Takes fragments that were held ([`crate::output::Punt::hold_fragment`]) through all stages again. They were counted
    /// as received before.
    pub fn run_held<F: Frame>(
        &mut self,
        cx: Context<'_>,
        (ingress, inside): (PortIdx, Option<(VlanTagInfo, SegmentId)>),
        burst: &mut Burst<F>,
        out: &mut impl Output<F>,
    ) {
        let cx = &cx;
        let Some(inside) = &inside else { return self.both_passes(cx, (ingress, Origin::Held), burst, out) };
        // The remote may have gone meanwhile, and its number be a port's.
        if cx.snapshot.port(ingress).is_none_or(Port::is_device) {
            cx.drop(ingress, DropReason::PortGone, burst.len() as u64);
            return burst.clear();
        }
        pass(cx, &mut self.first, ingress, Origin::HeldOfTunnel(inside), burst, out, &mut NoRecirc);
    }

    /// Sends a plain frame that was held into the tunnel to `remote`, whose next hop is known by now; what
    /// it was in the overlay is in `inside`.
    pub fn send_into<F: Frame>(
        &mut self,
        cx: Context<'_>,
        remote: PortIdx,
        inside: (VlanTagInfo, SegmentId),
        frame: F,
        out: &mut impl Output<F>,
    ) {
        let cx = &cx;
        // Both may have gone meanwhile, and their numbers be others'.
        let its = |s: &Segment| s.remotes.contains(&remote) || s.flood.contains(&remote);
        let to = cx.snapshot.segment(inside.1).filter(|s| its(s)).and_then(|_| cx.snapshot.port(remote));
        let Some(to) = to else { return cx.drop(remote, DropReason::PortGone, 1) };
        let mut again = Pending::new(&mut self.second);
        let nobody = Key::new(MacAddr::default(), inside.1);
        let m = Meta { dst: nobody, src: nobody, class: inside.0, ..Meta::EMPTY };
        let info = BurstInfo::of(&frame);
        let mut frames: Burst<F> = Some(frame).into_iter().collect();
        let group = Group { frames: &mut frames, meta: std::slice::from_ref(&m), info };
        // Its sender may be gone: as far as isolation is concerned, it comes from nowhere.
        emit::hand_over(cx, emit::Hop { from: to, to, flooded: false }, group, out, &mut again);
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
            let meta = &mut self.first.meta;
            let (_, refused) = stage::parse::run(cx, port, &port.untagged, burst, meta);
            for (i, (to, m)) in to.iter_mut().zip(meta).enumerate().take(burst.len()) {
                *to = if refused.has(i) { None } else { cx.macs.lookup(m.dst_hash) };
            }
        }
        to
    }
}

/// Frames on their way into their second pass, as many as begin it alike.
struct Pending<'a, F: Frame> {
    scratch: &'a mut Scratch,
    context: RecircContext,
    burst: Burst<F>,
    info: BurstInfo,
}

impl<'a, F: Frame> Pending<'a, F> {
    fn new(scratch: &'a mut Scratch) -> Self {
        Pending { scratch, context: RecircContext::NONE, burst: Burst::new(), info: BurstInfo::NONE }
    }

    #[inline(never)]
    fn flush(&mut self, cx: &Context<'_>, out: &mut impl Output<F>) {
        let info = std::mem::replace(&mut self.info, BurstInfo::NONE);
        // What a VTEP sends into tunnels has one way to go.
        if let Some(vtep) = cx.snapshot.port(self.context.port)
            && matches!(vtep.role, Role::Vtep(_))
        {
            return tunnel::encap::send_outer(cx, vtep, &mut self.burst, info, out);
        }
        let inside = (self.context.class, self.context.segment);
        let origin = Origin::Tunnel(&inside);
        pass(cx, self.scratch, self.context.port, origin, &mut self.burst, out, &mut NoRecirc);
    }
}

impl<F: Frame> Recirculate<F> for Pending<'_, F> {
    const LAST: bool = false;

    #[inline(always)]
    fn push(&mut self, cx: &Context<'_>, context: RecircContext, frame: F, out: &mut impl Output<F>) {
        if self.context != context || self.burst.is_full() {
            if !self.burst.is_empty() {
                self.flush(cx, out);
            }
            self.context = context;
        }
        self.info.add(&frame);
        self.burst.push(frame);
    }
}

/// Where the frames of a pass come from, and what those without a tag are: what their port says, if nothing.
#[derive(Clone, Copy)]
enum Origin<'a> {
    Device,
    Tunnel(&'a (VlanTagInfo, SegmentId)),
    /// The switch made them: no station sent them, so that nothing is filtered or learned.
    Switch(&'a (VlanTagInfo, SegmentId)),
    /// They came before, from a device or a tunnel.
    Held,
    HeldOfTunnel(&'a (VlanTagInfo, SegmentId)),
}

/// One pass through the stages: the whole way of most frames.
#[inline(always)]
fn pass<F: Frame>(
    cx: &Context<'_>,
    scratch: &mut Scratch,
    ingress: PortIdx,
    origin: Origin<'_>,
    burst: &mut Burst<F>,
    out: &mut impl Output<F>,
    again: &mut impl Recirculate<F>,
) {
    let counted = cx.counters.port(ingress);
    // What the switch made at a device was not received there.
    let is_made = matches!(origin, Origin::Switch(_)) && cx.snapshot.port(ingress).is_some_and(Port::is_device);
    let is_held = matches!(origin, Origin::Held | Origin::HeldOfTunnel(_));
    if !is_held {
        if is_made { &counted.clones } else { &counted.rx_frames }.add(burst.len() as u64);
        counted.rx_bursts.add(1);
    }
    let Some(port) = cx.snapshot.port(ingress) else {
        counted.rx_bytes.add(if is_held { 0 } else { burst.iter().map(|f| u64::from(f.len())).sum() });
        cx.drop(ingress, DropReason::PortGone, burst.len() as u64);
        burst.clear();
        return;
    };
    let untagged = match origin {
        Origin::Device | Origin::Held => &port.untagged,
        Origin::Tunnel(inside) | Origin::Switch(inside) | Origin::HeldOfTunnel(inside) => inside,
    };
    let Scratch { meta, sorted, groups } = scratch;
    let (mut info, refused) = stage::parse::run(cx, port, untagged, burst, &mut meta[..]);
    cx.end(Stage::Parse);
    if !is_made && !is_held {
        counted.rx_bytes.add(info.octets);
    }
    cx.note("receive", || {
        let segment = meta.first().and_then(|m| cx.snapshot.segment(m.src.segment()));
        let segment = segment.map(|s| s.label()).map(|(name, vid)| format!("'{name}' VLAN {vid}"));
        format!("port '{}', segment {}", port.name, segment.as_deref().unwrap_or("none"))
    });
    if refused != Refused::NONE {
        info.octets -= compact(cx, port, burst, meta, refused, out);
    }
    let is_stations = matches!(origin, Origin::Device | Origin::Held);
    if let Some(filter) = port.filter.as_deref().filter(|f| f.looks_in && is_stations) {
        let refused = stage::filter::ingress(cx, port, filter, burst, &mut meta[..burst.len()], out);
        if refused != Refused::NONE {
            info.octets -= compact(cx, port, burst, meta, refused, out);
        }
    }
    cx.end(Stage::Ingress);
    let mut seen = stage::fast_lookup::run(cx, port.idx, &mut meta[..burst.len()]);
    if let Origin::Switch(_) = origin {
        seen.unknown = 0;
    }
    let (refused, changed) = stage::learn::run(cx, port, &mut meta[..burst.len()], seen.unknown, out);
    if refused != Refused::NONE {
        info.octets -= compact(cx, port, burst, meta, refused, out);
    }
    let meta = &mut meta[..burst.len()];
    if changed || refused != Refused::NONE {
        // Others of the burst may be for whom was learned just now.
        seen = stage::fast_lookup::run(cx, port.idx, meta);
    }
    let mut same_fate = stage::lookup::run(cx, port, meta, seen);
    cx.end(Stage::Lookup);
    // What was held was policed before.
    same_fate &= is_held || !stage::police::run(cx, port, meta);
    cx.end(Stage::Police);
    cx.note("lookup", || match meta.first().map(|m| (m.dst.mac(), m.fate.verdict())) {
        Some((mac, Verdict::Unicast(to))) => {
            format!("{mac} is at port '{}'", cx.snapshot.port(to).map_or("(gone)", |p| &p.name))
        }
        Some((mac, Verdict::Flood)) => format!("{mac} is nowhere in particular: to all other ports of the segment"),
        _ => "nothing is left to send".to_owned(),
    });
    match meta.first().map(|m| m.fate.verdict()) {
        Some(Verdict::Unicast(to)) if same_fate => {
            emit::unicast(cx, port, to, Group { frames: burst, meta, info }, out, again);
        }
        _ => sort(cx, port, Group { frames: burst, meta, info }, (sorted, groups), out, again),
    }
    debug_assert!(burst.is_empty(), "a frame that stays would be another burst's");
    cx.end(Stage::Emit);
}

/// Takes the refused frames out of the burst: the stages behind see none of them. Their octets.
#[cold]
fn compact<F: Frame>(
    cx: &Context<'_>,
    port: &Port,
    burst: &mut Burst<F>,
    meta: &mut [Meta; BURST],
    refused: Refused,
    out: &mut impl Output<F>,
) -> u64 {
    let (mut i, mut kept, mut octets) = (0, 0, 0);
    burst.retain(|f| {
        let keep = !refused.has(i);
        match meta[i].fate.verdict() {
            Verdict::Drop(reason) if !keep => {
                octets += u64::from(f.len());
                match reason {
                    DropReason::EarlyFragment => {
                        stage::filter::fragments::hold(cx, (port, port), &meta[i], f.share(), out);
                    }
                    _ => cx.drop(port.idx, reason, 1),
                }
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

/// Hands on together what goes to the same port, in the order in which it came.
#[inline(never)]
fn sort<F: Frame>(
    cx: &Context<'_>,
    port: &Port,
    group: Group<'_, F>,
    (sorted, numbers): (&mut [Meta; BURST], &mut [u8; MAX_PORTS + 1]),
    out: &mut impl Output<F>,
    again: &mut impl Recirculate<F>,
) {
    let mut groups = ArrayVec::<(Fate, [u64; BURST / CHUNK]), BURST>::new();
    for (i, m) in group.meta.iter().enumerate() {
        if let Verdict::Drop(reason) = m.fate.verdict() {
            cx.drop(port.idx, reason, 1);
            continue;
        }
        let number = &mut numbers[m.fate.place()];
        if *number == 0 {
            groups.push((m.fate, [0; BURST / CHUNK]));
            *number = groups.len() as u8;
        }
        groups[usize::from(*number) - 1].1[i / CHUNK] |= 1 << (i % CHUNK);
    }
    let mut left = ArrayVec::<Option<F>, BURST>::new();
    left.extend(group.frames.drain(..).map(Some));
    for &(fate, members) in &groups {
        numbers[fate.place()] = 0;
        // Where all are of one class, the first speaks for all, unless a filter wants to see each.
        let is_asked = match fate.verdict() {
            Verdict::Unicast(to) => cx.snapshot.port(to).is_some_and(|to| to.filter_for(port).is_some()),
            _ => true,
        };
        let needs_each = is_asked || !group.info.same_class;
        let (mut frames, mut info) = (Burst::new(), BurstInfo { octets: 0, ..group.info });
        let (mut any_bits, mut common_bits) = (0, u64::MAX);
        for (half, members) in members.into_iter().enumerate() {
            for i in iter_bits(members).map(|i| half * CHUNK + i) {
                let Some(frame) = left[i].take() else { continue };
                if needs_each || frames.is_empty() {
                    let m = &group.meta[i];
                    (any_bits, common_bits) = (any_bits | m.class.bits(), common_bits & m.class.bits());
                    sorted[frames.len()] = *m;
                }
                info.octets += u64::from(frame.len());
                frames.push(frame);
            }
        }
        info.same_class = any_bits == common_bits;
        let n = if needs_each { frames.len() } else { 1 };
        let group = Group { meta: &sorted[..n], frames: &mut frames, info };
        match fate.verdict() {
            Verdict::Unicast(to) => emit::unicast(cx, port, to, group, out, again),
            _ => stage::flood::run(cx, port, group, out, again),
        }
    }
}
