//! Lookup: where the destination is. A group's address is never learned, so only what is not found
//! is asked whether it is one.

use crate::{
    DropReason,
    pipeline::{Context, Fate, Meta},
    snapshot::Port,
};

/// Decides every frame's fate. Whether it is the same for all.
#[inline(always)]
pub(crate) fn run(cx: &Context<'_>, port: &Port, meta: &mut [Meta]) -> bool {
    let (mut any_bits, mut common_bits) = (0, u32::MAX);
    let (macs, back) = (cx.macs.view(), Fate::unicast(port.idx));
    for m in meta {
        m.fate = match macs.lookup(m.dst, m.dst_hash) {
            Some(to) => Fate::unicast(to),
            None => look_again(cx, m),
        };
        if m.fate == back {
            m.fate = Fate::drop(DropReason::SamePort);
        }
        any_bits |= m.fate.bits();
        common_bits &= m.fate.bits();
    }
    any_bits == common_bits
}

/// For what is not where a worker's view of the table has it.
#[inline(never)]
fn look_again(cx: &Context<'_>, m: &Meta) -> Fate {
    if m.dst.is_multicast() {
        return if m.dst.mac().is_reserved() { Fate::drop(DropReason::ReservedMulticast) } else { Fate::FLOOD };
    }
    cx.macs.lookup(m.dst, m.dst_hash).map_or(Fate::FLOOD, Fate::unicast)
}
