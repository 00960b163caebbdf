//! Flood: frames to all other ports of their segment that are up.
//!
//! The buffers are shared by reference count. Ports that want another tag share one rewritten copy: in one segment there are
//! hardly ever more than two forms, so a flood copies a frame at most once, however many ports it reaches.

use arrayvec::ArrayVec;

use crate::{
    BURST, Burst, DropReason, Frame, Output, PortIdx,
    burst::Meta,
    context::Context,
    snapshot::{Port, Segment},
    stage::{
        emit::{self, Admitted, Group, Hop},
        recirculate::Recirculate,
        suppress,
    },
    tables::bindings::Proxy,
    tunnel::Role,
    vlan::{EgressForm, TPID_8021AD, Tag},
};

/// Floods a group. Nothing is left of it.
#[inline(never)]
pub(crate) fn run<F: Frame>(
    cx: &Context<'_>,
    from: &Port,
    group: Group<'_, F>,
    out: &mut impl Output<F>,
    again: &mut impl Recirculate<F>,
) {
    let Some(first) = group.meta.first() else { return };
    let segment = cx.snapshot.segment(first.dst.segment());
    if group.frames.len() > 1 && !goes_together(cx, &group, segment) {
        return group.each(|one| run(cx, from, one, out, again));
    }
    match segment.and_then(|s| s.proxy.as_ref()) {
        Some(proxy) => unanswered(cx, from, group, proxy, segment, out, again),
        None => to_each(cx, from, group, segment, out, again),
    }
}

/// Whether all of a group goes to the same ports, and an end of tunnels among those can take it together.
#[inline(always)]
fn goes_together<F>(cx: &Context<'_>, group: &Group<'_, F>, segment: Option<&Segment>) -> bool {
    let Some(first) = group.meta.first() else { return true };
    let is_alike = |m: &Meta| m.dst.segment() == first.dst.segment() && !m.dst.mac().is_customers();
    let is_device = |to: &PortIdx| cx.snapshot.port(*to).is_none_or(Port::is_device);
    group.meta.iter().all(is_alike) && (group.info.same_class || segment.is_none_or(|s| s.flood.iter().all(is_device)))
}

/// Floods what the ARP/ND proxy of the network does not answer.
#[inline(never)]
fn unanswered<F: Frame>(
    cx: &Context<'_>,
    from: &Port,
    mut group: Group<'_, F>,
    proxy: &Proxy,
    segment: Option<&Segment>,
    out: &mut impl Output<F>,
    again: &mut impl Recirculate<F>,
) {
    let (mut i, mut octets) = (0, 0);
    let mut left = ArrayVec::<Meta, BURST>::new();
    let meta = group.meta;
    group.frames.retain(|frame| {
        let m = &meta[i];
        i += 1;
        if suppress::run(cx, from, frame, m, proxy, out) {
            return false;
        }
        octets += u64::from(frame.len());
        left.push(*m);
        true
    });
    group.info.octets = octets;
    let group = Group { frames: group.frames, meta: &left, info: group.info };
    to_each(cx, from, group, segment, out, again);
}

/// Sends a group to each port of the segment that it may leave by.
#[inline(never)]
fn to_each<F: Frame>(
    cx: &Context<'_>,
    from: &Port,
    group: Group<'_, F>,
    segment: Option<&Segment>,
    out: &mut impl Output<F>,
    again: &mut impl Recirculate<F>,
) {
    let Some(first) = group.meta.first() else { return };
    let is_customers = first.dst.mac().is_customers();
    let ports = segment.map_or(&[][..], |s| &s.flood).iter().filter_map(|to| cx.snapshot.port(*to));
    let mut targets =
        ports.filter(|to| is_target(from, to) && (!is_customers || stays_customers(to, first))).peekable();
    let (n, mut outcomes) = (group.frames.len() as u64, 0);
    let mut copies = Copies(ArrayVec::new());
    let mut heads = None;
    let last = loop {
        let Some(to) = targets.next() else { break None };
        outcomes += 1;
        let hop = Hop { from, to, flooded: true };
        let admitted = emit::admit(cx, hop, group.frames, group.meta, group.info, &mut heads, out);
        // The last port gets the buffers themselves.
        if targets.peek().is_none() {
            break Some((hop, admitted));
        }
        copies.hand_over(cx, hop, &group, &admitted, out, again);
    };
    match last {
        Some((hop, admitted)) if copies.0.is_empty() => emit::send(cx, hop, group, &admitted, out, again),
        Some((hop, admitted)) => {
            copies.hand_over(cx, hop, &group, &admitted, out, again);
            group.frames.clear();
        }
        None => {
            group.frames.clear();
            let reason = if is_customers { DropReason::ReservedMulticast } else { DropReason::NoOtherPort };
            return cx.drop(from.idx, reason, n);
        }
    }
    cx.counters.port(from.idx).clones.add(n * (outcomes - 1));
}

/// Whether what is flooded is meant for a port. Neither isolation nor a link that is down is a loss worth a count here, and
/// nothing goes from tunnel to tunnel.
#[inline(always)]
fn is_target(from: &Port, to: &Port) -> bool {
    to.idx != from.idx
        && emit::permit(from, to).is_ok()
        && !matches!((&from.role, &to.role), (Role::Remote(_), Role::Remote(_)))
}

/// Whether a customer's spanning tree and the like may leave by a port: to another end of the customer's VLAN, or further
/// into the provider's network, not to a host of the provider.
#[cold]
fn stays_customers(to: &Port, m: &Meta) -> bool {
    let is_tagged = || to.vlans.egress(m.class.vid()) == EgressForm::Tagged && m.class.tpid() == TPID_8021AD;
    to.vlans.tunnel.is_some() || matches!(to.role, Role::Remote(_)) || is_tagged()
}

/// Of the frames of a group, copies in another form than that in which they came; empty as long as no port wants one.
struct Copies<F>(ArrayVec<Option<(Tag, F)>, BURST>);

impl<F: Frame> Copies<F> {
    /// Hands over shares of what may leave of a group, or of its copies.
    #[inline(always)]
    fn hand_over(
        &mut self,
        cx: &Context<'_>,
        hop: Hop<'_>,
        group: &Group<'_, F>,
        admitted: &Admitted,
        out: &mut impl Output<F>,
        again: &mut impl Recirculate<F>,
    ) {
        let (mut shares, mut info) = (Burst::new(), group.info);
        match group.meta.first() {
            Some(first) if admitted.is_as_received(first) => shares.extend(group.frames.iter().map(Frame::share)),
            _ => {
                self.share(cx, hop, group, admitted, &mut shares);
                info.octets = shares.iter().map(|f| u64::from(f.len())).sum();
            }
        }
        emit::hand_over(cx, hop, Group { frames: &mut shares, meta: group.meta, info }, out, again);
    }

    /// Fills `shares`, where forms differ or frames were refused.
    #[inline(never)]
    fn share(
        &mut self,
        cx: &Context<'_>,
        hop: Hop<'_>,
        group: &Group<'_, F>,
        admitted: &Admitted,
        shares: &mut Burst<F>,
    ) {
        for (i, frame) in group.frames.iter().enumerate() {
            let Some(want) = admitted.tag(i) else { continue };
            match self.form(i, frame, group.meta_of(i).class.tag(), want, group.frames.len()) {
                Some(share) => shares.push(share),
                None => cx.drop(hop.to.idx, DropReason::NoBuffer, 1),
            }
        }
    }

    /// A share of frame `i` of `n`, or of its copy with tag `want`.
    fn form(&mut self, i: usize, frame: &F, has: Tag, want: Tag, n: usize) -> Option<F> {
        if want == has {
            return Some(frame.share());
        }
        if self.0.is_empty() {
            self.0.extend((0..n).map(|_| None));
        }
        let copy = &mut self.0[i];
        if copy.as_ref().is_none_or(|(tag, _)| *tag != want) {
            *copy = frame.copy().and_then(|mut c| emit::rewrite(&mut c, has, want).then_some((want, c)));
        }
        copy.as_ref().map(|(_, copy)| copy.share())
    }
}
