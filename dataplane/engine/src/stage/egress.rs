//! Egress: whether a frame may leave by a port, and in which form.

use crate::{
    Burst, DropReason, Frame, Output, PortIdx,
    pipeline::{Context, Meta},
    snapshot::Port,
    stage::{
        filter,
        parse::Parsed,
        tunnel::{self, Again},
    },
    vlan::{Class, EgressForm, PriorityTags, TPID_8021Q, Tag, Tunnel, is_tag},
};

/// Sends one frame to one port, which has let it pass.
#[inline(always)]
pub(crate) fn unicast<F: Frame>(
    cx: &Context<'_>,
    from: &Port,
    to: PortIdx,
    frame: F,
    m: &Meta,
    out: &mut impl Output<F>,
    again: &mut impl Again<F>,
) {
    // That the port still has the segment is looked at here, not only its VLAN: while a port moves
    // to another bridge, the table may still have its addresses of before.
    let Some(to) = cx.snapshot.port(to) else { return cx.drop(from.idx, DropReason::PortGone, 1) };
    // A port without a device has no segment in this sense.
    if to.segments.of(m.class.vid()) != m.dst.segment() {
        return tunnel::leave(cx, from, to, frame, m, out, again);
    }
    match check(from, to, &frame, m) {
        Ok(want) => match retag(frame, m.class.tag(), want) {
            Some(frame) => out.transmit(to.idx, frame),
            None => cx.drop(to.idx, DropReason::NoBuffer, 1),
        },
        Err(reason) => cx.drop(to.idx, reason, 1),
    }
}

/// Sends a whole burst of one class to one port, if nothing in it has to be
/// looked at frame by frame; otherwise `false`, and nothing was done.
#[inline(always)]
pub(crate) fn burst<F: Frame>(
    cx: &Context<'_>,
    from: &Port,
    to: PortIdx,
    burst: &mut Burst<F>,
    meta: &[Meta],
    all: &Parsed,
    out: &mut impl Output<F>,
) -> bool {
    let (Some(to), Some(first)) = (cx.snapshot.port(to), meta.first()) else { return false };
    let class = first.class;
    let tunnels = from.vlans.tunnel.is_some() || to.vlans.tunnel.is_some();
    let fits = all.plain && all.largest <= to.mtu + overhead(class);
    if tunnels || !fits || to.segments.of(class.vid()) != first.dst.segment() {
        return false;
    }
    let Ok(want) = permit(from, to).and_then(|()| form(to, class)) else { return false };
    // Behind a tag there may be another one, which is looked at frame by frame.
    if class.tag().is_some() && class.vid() == to.vlans.native_out {
        return false;
    }
    let mut octets = all.octets;
    if let Some(f) = to.filter_for(from) {
        filter::egress_burst(cx, from, (to, f), burst, meta, out);
        octets = burst.iter().map(|f| u64::from(f.len())).sum();
    }
    if want != class.tag() {
        let before = burst.len();
        burst.retain(|f| rewrite(f, class.tag(), want));
        cx.drop(to.idx, DropReason::NoBuffer, (before - burst.len()) as u64);
        octets = burst.iter().map(|f| u64::from(f.len())).sum();
    }
    out.transmit_burst(to.idx, burst, octets);
    true
}

/// Whether frames may go from one port to another, and the other is up.
#[inline(always)]
fn permit(from: &Port, to: &Port) -> Result<(), DropReason> {
    if from.forwarding.protected && to.forwarding.protected {
        return Err(DropReason::Protected);
    }
    if to.is_up() { Ok(()) } else { Err(DropReason::LinkDown) }
}

/// The tag with which frames of `class` leave by `to`, if they do.
#[inline(always)]
fn form(to: &Port, class: Class) -> Result<Tag, DropReason> {
    Ok(match to.vlans.egress(class.vid()) {
        EgressForm::Refused => return Err(DropReason::EgressVlan),
        EgressForm::Tagged => Tag::new(class.tpid(), class.priority() | class.vid()),
        EgressForm::Untagged => match to.forwarding.priority_tags {
            PriorityTags::Never => Tag::NONE,
            PriorityTags::IfNonzero if class.priority() == 0 => Tag::NONE,
            _ => Tag::new(TPID_8021Q, class.priority()),
        },
    })
}

/// Octets of an Ethernet header with the tag that the frame has.
#[inline(always)]
pub(crate) fn overhead(class: Class) -> u32 {
    14 + if class.tag().is_some() { 4 } else { 0 }
}

/// Whether the frame may leave by `to`, and the tag it leaves with.
#[inline(always)]
pub(crate) fn check<F: Frame>(from: &Port, to: &Port, frame: &F, m: &Meta) -> Result<Tag, DropReason> {
    permit(from, to)?;
    check_permitted(from, to, frame, m)
}

/// The same where isolation and link were looked at.
#[inline(always)]
pub(crate) fn check_permitted<F: Frame>(from: &Port, to: &Port, frame: &F, m: &Meta) -> Result<Tag, DropReason> {
    let want = form(to, m.class)?;
    if m.class.vid() == to.vlans.native_out && has_another_tag(frame, m.class) {
        return Err(DropReason::EgressVlan);
    }
    let mut overhead = overhead(m.class);
    if from.vlans.tunnel.is_some() && customer_vid(frame.head(), false).is_some() {
        overhead += 4;
    }
    if let Some(tunnel) = &to.vlans.tunnel {
        overhead += customer_tag(tunnel, frame, m)?;
    }
    if frame.wire_len() > to.mtu + overhead {
        return Err(DropReason::MtuExceeded);
    }
    Ok(want)
}

/// Octets of the customer's tag in a frame that leaves by a tunnel port, if it may.
#[inline(never)]
fn customer_tag<F: Frame>(tunnel: &Tunnel, frame: &F, m: &Meta) -> Result<u32, DropReason> {
    let customer = customer_vid(frame.head(), m.class.tag().is_some());
    if !tunnel.cvlans.contains(customer.unwrap_or(0)) {
        return Err(DropReason::EgressVlan);
    }
    Ok(if customer.is_some() { 4 } else { 0 })
}

/// Whether there is a tag behind the frame's own.
#[cold]
fn has_another_tag<F: Frame>(frame: &F, class: Class) -> bool {
    customer_vid(frame.head(), class.tag().is_some()).is_some()
}

/// The VID of the tag behind the frame's own, if there is one.
fn customer_vid(head: &[u8], service_tag: bool) -> Option<u16> {
    let at = if service_tag { 16 } else { 12 };
    let h = head.get(at..at + 4)?;
    let tpid = u16::from_be_bytes([h[0], h[1]]);
    is_tag(tpid).then(|| u16::from_be_bytes([h[2], h[3]]) & 0x0fff)
}

/// The frame with tag `want` instead of `has`; a copy if others own the buffer too, `None` if
/// there is no room or no buffer for it.
#[inline(always)]
pub(crate) fn retag<F: Frame>(mut frame: F, has: Tag, want: Tag) -> Option<F> {
    (has == want || rewrite(&mut frame, has, want)).then_some(frame)
}

/// The same in place; whether it could be done.
#[inline(always)]
fn rewrite<F: Frame>(frame: &mut F, has: Tag, want: Tag) -> bool {
    if frame.is_shared() {
        match frame.copy() {
            Some(own) => *frame = own,
            None => return false,
        }
    }
    if has.is_some() {
        frame.pop_tag();
    }
    !want.is_some() || frame.push_tag(want.tpid(), want.tci())
}
