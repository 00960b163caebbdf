//! Learn: the source address is behind the ingress port.
//!
//! Refuses frames of a VLAN that the port does not carry, and frames whose source is no station's
//! address (group, broadcast or zero: what Linux's bridge refuses by `is_valid_ether_addr`). None of
//! these is ever known, so the frames of a station that is known are not asked.

use crate::{
    DropReason, SegmentId,
    burst::{Fate, Mask, Meta, Refused, numbers},
    context::Context,
    output::{Events, MacLearned},
    snapshot::Port,
    tables::mac::Learned,
    tunnel::Role,
};

/// Of the frames of `unknown`, those that go no further; and whether one of the burst is to an address that is elsewhere now
/// than before.
#[inline(always)]
pub(crate) fn run(
    cx: &Context<'_>,
    port: &Port,
    meta: &mut [Meta],
    unknown: Mask,
    out: &mut impl Events,
) -> (Refused, bool) {
    if unknown == 0 { (Refused::NONE, false) } else { learn_each(cx, port, meta, unknown, out) }
}

#[inline(never)]
fn learn_each(
    cx: &Context<'_>,
    port: &Port,
    meta: &mut [Meta],
    unknown: Mask,
    out: &mut impl Events,
) -> (Refused, bool) {
    let (mut refused, mut is_asked, mut news) = (Refused::NONE, false, None);
    let (mut may_evict, mut not_learned) = (true, 0);
    for i in numbers(unknown) {
        // Who is new talks on: what follows of it is known by now.
        if news == Some(meta[i].src_hash) {
            continue;
        }
        let full = cx.macs.is_at_capacity();
        match learn(cx, port, &meta[i], may_evict, out) {
            Ok(learned) => {
                // Also if no entry was found that could be evicted: the search is what takes time.
                may_evict &= !(full && matches!(learned, Learned::New | Learned::Full));
                not_learned += u64::from(learned == Learned::Full);
                if !matches!(learned, Learned::New | Learned::Moved { .. }) {
                    continue;
                }
                let hash = meta[i].src_hash;
                is_asked |= meta.iter().any(|m| m.dst_hash == hash);
                news = Some(hash);
            }
            Err(reason) => {
                meta[i].fate = Fate::drop(reason);
                refused.add(i);
            }
        }
    }
    if not_learned > 0 {
        cx.macs.count_refused(not_learned);
    }
    (refused, is_asked)
}

/// What learning the source came to.
#[inline(never)]
fn learn(
    cx: &Context<'_>,
    port: &Port,
    m: &Meta,
    may_evict: bool,
    out: &mut impl Events,
) -> Result<Learned, DropReason> {
    if m.src.segment() == SegmentId::NONE {
        return Err(DropReason::IngressVlan);
    }
    if m.src.is_invalid_source() {
        return Err(DropReason::InvalidSource);
    }
    if matches!(port.role, Role::Remote(_)) && !cx.snapshot.segment(m.src.segment()).is_some_and(|s| s.learns_remote) {
        return Ok(Learned::Known);
    }
    if cx.trace.is_some() {
        if cx.macs.is_static(m.src_hash) {
            cx.note("learn", || format!("{} is static: nothing is learned of it", m.src.mac()));
            return Ok(Learned::Known);
        }
        let too_many = cx.macs.is_too_many(m.src_hash, port.idx, port.forwarding.mac_limit.map(|l| l.limit));
        cx.note("learn", || match too_many {
            false => format!("{} would be learned at port '{}', or refreshed", m.src.mac(), port.name),
            true => format!("{} would not be learned: port '{}' has as many as its limit", m.src.mac(), port.name),
        });
        let dropped = too_many && port.forwarding.mac_limit.is_some_and(|l| l.drop);
        return if dropped { Err(DropReason::MacLimit) } else { Ok(Learned::Known) };
    }
    let mut tell = |from| {
        out.learned(MacLearned { segment: m.src.segment(), mac: m.src.mac(), from, at: port.idx });
    };
    let learned = cx.macs.learn(m.src_hash, port.idx, port.forwarding.mac_limit.map(|l| l.limit), may_evict);
    match learned {
        Learned::New => tell(None),
        Learned::Moved { from } => tell(Some(from)),
        Learned::Limited if port.forwarding.mac_limit.is_some_and(|l| l.drop) => return Err(DropReason::MacLimit),
        Learned::Known | Learned::Full | Learned::Limited => {}
    }
    Ok(learned)
}
