//! Egress: whether a frame may leave by a port, and in which form.

use crate::{
    DropReason, Frame, Output, PortIdx,
    pipeline::{Context, Meta},
    snapshot::Port,
    vlan::{EgressForm, PriorityTags, TPID_8021Q, Tag, Tunnel},
};

/// Sends one frame to one port.
#[inline(always)]
pub(crate) fn unicast<F: Frame>(
    cx: Context<'_>,
    from: &Port,
    to: PortIdx,
    frame: F,
    m: &Meta,
    out: &mut impl Output<F>,
) {
    // That the port still has the segment is looked at here, not only its VLAN: while a port moves
    // to another bridge, the table may still have its addresses of before.
    let Some(to) = cx.snapshot.port(to).filter(|to| to.segments.of(m.vid) == m.dst.segment()) else {
        // Its entry goes with the port; this frame met it in between.
        return cx.drop(from.idx, DropReason::PortGone, 1);
    };
    match check(from, to, &frame, m) {
        Ok(want) => match retag(frame, m.tag, want) {
            Some(frame) => out.transmit(to.idx, frame),
            None => cx.drop(to.idx, DropReason::NoBuffer, 1),
        },
        Err(reason) => cx.drop(to.idx, reason, 1),
    }
}

/// Whether the frame may leave by `to`, and the tag it leaves with.
#[inline(always)]
pub(crate) fn check<F: Frame>(from: &Port, to: &Port, frame: &F, m: &Meta) -> Result<Tag, DropReason> {
    if from.protected && to.protected {
        return Err(DropReason::Protected);
    }
    if !to.up {
        return Err(DropReason::LinkDown);
    }
    let want = match to.vlans.egress(m.vid) {
        EgressForm::Refused => return Err(DropReason::EgressVlan),
        EgressForm::Tagged => Tag::new(m.tpid, m.priority | m.vid),
        EgressForm::Untagged => match to.priority_tags {
            PriorityTags::Never => Tag::NONE,
            PriorityTags::IfNonzero if m.priority == 0 => Tag::NONE,
            _ => Tag::new(TPID_8021Q, m.priority),
        },
    };
    let mut overhead = 14 + if m.tag.is_some() { 4 } else { 0 };
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
    let customer = customer_vid(frame.head(), m.tag.is_some());
    if !tunnel.cvlans.contains(customer.unwrap_or(0)) {
        return Err(DropReason::EgressVlan);
    }
    Ok(if customer.is_some() { 4 } else { 0 })
}

/// The VID of the tag behind the service tag, if there is one.
fn customer_vid(head: &[u8], service_tag: bool) -> Option<u16> {
    let at = if service_tag { 16 } else { 12 };
    let h = head.get(at..at + 4)?;
    let tpid = u16::from_be_bytes([h[0], h[1]]);
    (tpid == TPID_8021Q || tpid == crate::vlan::TPID_8021AD).then(|| u16::from_be_bytes([h[2], h[3]]) & 0x0fff)
}

/// The frame with tag `want` instead of `has`; a copy if others own the buffer too, `None` if
/// there is no room or no buffer for it.
#[inline(always)]
pub(crate) fn retag<F: Frame>(frame: F, has: Tag, want: Tag) -> Option<F> {
    if has == want { Some(frame) } else { rewrite(frame, has, want) }
}

#[inline(never)]
fn rewrite<F: Frame>(frame: F, has: Tag, want: Tag) -> Option<F> {
    let mut own = if frame.is_shared() { frame.copy()? } else { frame };
    if has.is_some() {
        own.pop_tag();
    }
    if want.is_some() && !own.push_tag(want.tpid(), want.tci()) {
        return None;
    }
    Some(own)
}
