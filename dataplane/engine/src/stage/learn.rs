//! Learn: the source address is behind the ingress port.
//!
//! Refuses frames of a VLAN that the port does not carry, and frames whose source is no station's
//! address (group, broadcast or zero: what Linux's bridge refuses by `is_valid_ether_addr`). None of
//! these is ever known, so the frames of a station that is known are not asked.

use crate::{
    DropReason, Output, SegmentId,
    frame::MacLearned,
    mac_table::Learned,
    pipeline::{Context, Fate, Mask, Meta, Refused, numbers},
    snapshot::Port,
    tunnel::Role,
};

/// Of the frames of `unknown`, those that go no further; and whether one of the burst is to an address that is elsewhere now
/// than before.
#[inline(always)]
pub(crate) fn run<F>(
    cx: &Context<'_>,
    port: &Port,
    meta: &mut [Meta],
    unknown: Mask,
    out: &mut impl Output<F>,
) -> (Refused, bool) {
    if unknown == 0 { (Refused::NONE, false) } else { learn_each(cx, port, meta, unknown, out) }
}

#[inline(never)]
fn learn_each<F>(
    cx: &Context<'_>,
    port: &Port,
    meta: &mut [Meta],
    unknown: Mask,
    out: &mut impl Output<F>,
) -> (Refused, bool) {
    let (mut refused, mut is_asked, mut news) = (Refused::NONE, false, None);
    for i in numbers(unknown) {
        // Who is new talks on: what follows of it is known by now.
        if news == Some(meta[i].src_hash) {
            continue;
        }
        match learn(cx, port, &meta[i], out) {
            Ok(true) => {
                let hash = meta[i].src_hash;
                is_asked |= meta.iter().any(|m| m.dst_hash == hash);
                news = Some(hash);
            }
            Ok(false) => {}
            Err(reason) => {
                meta[i].fate = Fate::drop(reason);
                refused.add(i);
            }
        }
    }
    (refused, is_asked)
}

/// Whether it is elsewhere now than before.
#[inline(never)]
fn learn<F>(cx: &Context<'_>, port: &Port, m: &Meta, out: &mut impl Output<F>) -> Result<bool, DropReason> {
    if m.src.segment() == SegmentId::NONE {
        return Err(DropReason::IngressVlan);
    }
    if m.src.is_nobodys() {
        return Err(DropReason::InvalidSource);
    }
    if matches!(port.role, Role::Remote(_)) && !cx.snapshot.segment(m.src.segment()).is_some_and(|s| s.learns_remote) {
        return Ok(false);
    }
    if cx.trace.is_some() {
        if cx.macs.is_static(m.src_hash) {
            cx.tell("learn", || format!("{} is static: nothing is learned of it", m.src.mac()));
            return Ok(false);
        }
        let too_many = cx.macs.is_too_many(m.src_hash, port.idx, port.forwarding.mac_limit.map(|l| l.limit));
        cx.tell("learn", || match too_many {
            false => format!("{} would be learned at port '{}', or refreshed", m.src.mac(), port.name),
            true => format!("{} would not be learned: port '{}' has as many as its limit", m.src.mac(), port.name),
        });
        let dropped = too_many && port.forwarding.mac_limit.is_some_and(|l| l.drop);
        return if dropped { Err(DropReason::MacLimit) } else { Ok(false) };
    }
    let mut tell = |from| {
        out.learned(MacLearned { segment: m.src.segment(), mac: m.src.mac(), from, at: port.idx });
    };
    match cx.macs.learn(m.src_hash, port.idx, port.forwarding.mac_limit.map(|l| l.limit)) {
        Learned::New => tell(None),
        Learned::Moved { from } => tell(Some(from)),
        Learned::Limited if port.forwarding.mac_limit.is_some_and(|l| l.drop) => return Err(DropReason::MacLimit),
        Learned::Known | Learned::Full | Learned::Limited => return Ok(false),
    }
    Ok(true)
}
