//! Lookup: where the destination is.

use crate::{
    DropReason,
    pipeline::{Context, Fate, Meta},
    snapshot::Port,
};

/// Decides every frame's fate. Whether it is the same for all.
#[inline(always)]
pub(crate) fn run(cx: Context<'_>, port: &Port, meta: &mut [Meta]) -> bool {
    let (mut any_bits, mut common_bits) = (0, u32::MAX);
    let (macs, back) = (cx.macs.view(), Fate::unicast(port.idx));
    for m in meta {
        m.fate = match m.dst.is_multicast() {
            true => group(m),
            false => match macs.lookup(m.dst, m.dst_hash) {
                Some(to) => Fate::unicast(to),
                None => Fate::FLOOD,
            },
        };
        if m.fate == back {
            m.fate = Fate::drop(DropReason::SamePort);
        }
        any_bits |= m.fate.bits();
        common_bits &= m.fate.bits();
    }
    any_bits == common_bits
}

fn group(m: &Meta) -> Fate {
    if m.dst.mac().is_reserved() { Fate::drop(DropReason::ReservedMulticast) } else { Fate::FLOOD }
}
