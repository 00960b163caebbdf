//! Flood: one frame to all other ports of its segment that are up.
//!
//! The buffer is shared by reference count. Ports that want another tag share one rewritten
//! copy: in one segment there are hardly ever more than two forms, so a flood copies at most
//! once, however many ports it reaches.

use crate::{
    DropReason, Frame, Output, PortIdx,
    pipeline::{Context, Meta},
    snapshot::Port,
    stage::{
        egress::{check_permitted, retag},
        filter, suppress,
        tunnel::{self, Again},
    },
    tunnel::Role,
    vlan::{EgressForm, TPID_8021AD, Tag},
};

#[inline(never)]
pub(crate) fn run<F: Frame>(
    cx: &Context<'_>,
    from: &Port,
    frame: F,
    m: &Meta,
    out: &mut impl Output<F>,
    again: &mut impl Again<F>,
) {
    let segment = cx.snapshot.segment(m.dst.segment());
    if let Some(proxy) = segment.and_then(|s| s.proxy.as_ref())
        && suppress::run(cx, from, &frame, m, proxy, out)
    {
        return;
    }
    let targets = segment.map_or(&[][..], |s| &s.flood[..]);
    // Asked once a frame: the ports of others are not asked.
    match m.dst.mac().is_customers() {
        false => to_each::<F, false>(cx, from, targets, frame, m, out, again),
        true => to_each::<F, true>(cx, from, targets, frame, m, out, again),
    }
}

/// Sends the frame to each of `targets` that it may leave by. `CUSTOMERS`: it is to an address that is data for a provider's
/// network alone.
#[inline(never)]
fn to_each<F: Frame, const CUSTOMERS: bool>(
    cx: &Context<'_>,
    from: &Port,
    targets: &[PortIdx],
    frame: F,
    m: &Meta,
    out: &mut impl Output<F>,
    again: &mut impl Again<F>,
) {
    let mut heads = None;
    let mut rewritten: Option<(Tag, F)> = None;
    let mut waiting: Option<(&Port, Tag)> = None;
    let (has, mut outcomes) = (m.class.tag(), 0u64);
    for to in targets.iter().filter_map(|t| cx.snapshot.port(*t)) {
        // Neither isolation nor a link that is down is a loss worth a count here: a flood is not meant for them.
        if to.idx == from.idx || (from.forwarding.protected && to.forwarding.protected) || !to.is_up() {
            continue;
        }
        if CUSTOMERS && !stays_customers(to, m) {
            continue;
        }
        if !matches!(to.role, Role::Device) {
            outcomes += into_tunnel(cx, (from, to), &frame, m, &mut rewritten, out, again);
            continue;
        }
        outcomes += 1;
        let admitted = match (check_permitted(from, to, &frame, m), to.filter_for(from)) {
            (Ok(tag), Some(f)) => filter::egress_flooded(cx, (to, f), (&frame, m), &mut heads, out).map(|()| tag),
            (admitted, _) => admitted,
        };
        match admitted {
            // The last port gets the buffer itself, so everyone waits for a successor.
            Ok(tag) => {
                if let Some((port, tag)) = waiting.replace((to, tag)) {
                    send(cx, port, tag, &frame, has, &mut rewritten, out);
                }
            }
            Err(reason) => cx.drop(to.idx, reason, 1),
        }
    }
    match waiting {
        Some((port, tag)) if tag == has || rewritten.is_none() => match retag(frame, has, tag) {
            Some(frame) => out.transmit(port.idx, frame),
            None => cx.drop(port.idx, DropReason::NoBuffer, 1),
        },
        Some((port, tag)) => send(cx, port, tag, &frame, has, &mut rewritten, out),
        None if outcomes == 0 && CUSTOMERS => return cx.drop(from.idx, DropReason::ReservedMulticast, 1),
        None if outcomes == 0 => return cx.drop(from.idx, DropReason::NoOtherPort, 1),
        None => {}
    }
    cx.counters.port(from.idx).clones.add(outcomes - 1);
}

/// Whether a customer's spanning tree and the like may leave by a port: to another end of the customer's VLAN, or further
/// into the provider's network, not to a host of the provider.
#[cold]
fn stays_customers(to: &Port, m: &Meta) -> bool {
    let is_tagged = || to.vlans.egress(m.class.vid()) == EgressForm::Tagged && m.class.tpid() == TPID_8021AD;
    to.vlans.tunnel.is_some() || matches!(to.role, Role::Remote(_)) || is_tagged()
}

/// The same by a port without a device: headers go in front of a share of the buffer, or of its copy
/// without the tag. How many frames that is: none from tunnel to tunnel.
#[inline(never)]
fn into_tunnel<F: Frame>(
    cx: &Context<'_>,
    (from, to): (&Port, &Port),
    frame: &F,
    m: &Meta,
    rewritten: &mut Option<(Tag, F)>,
    out: &mut impl Output<F>,
    again: &mut impl Again<F>,
) -> u64 {
    if !tunnel::floods_to(from, to) {
        return 0;
    }
    let untagged = Meta { class: m.class.without_tag(), ..*m };
    match share(frame, m.class.tag(), Tag::NONE, rewritten) {
        Some(frame) => tunnel::leave(cx, from, to, frame, &untagged, out, again),
        None => cx.drop(to.idx, DropReason::NoBuffer, 1),
    }
    1
}

/// Sends a share of the frame, or of its rewritten copy, to one port.
#[inline(always)]
fn send<F: Frame>(
    cx: &Context<'_>,
    to: &Port,
    want: Tag,
    frame: &F,
    has: Tag,
    rewritten: &mut Option<(Tag, F)>,
    out: &mut impl Output<F>,
) {
    match share(frame, has, want, rewritten) {
        Some(frame) => out.transmit(to.idx, frame),
        None => cx.drop(to.idx, DropReason::NoBuffer, 1),
    }
}

/// A share of the frame, or of its rewritten copy.
#[inline(always)]
fn share<F: Frame>(frame: &F, has: Tag, want: Tag, rewritten: &mut Option<(Tag, F)>) -> Option<F> {
    if want == has {
        return Some(frame.share());
    }
    if rewritten.as_ref().is_none_or(|(tag, _)| *tag != want) {
        *rewritten = frame.copy().and_then(|copy| retag(copy, has, want)).map(|copy| (want, copy));
    }
    rewritten.as_ref().map(|(_, copy)| copy.share())
}
