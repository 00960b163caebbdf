//! Lookup: where the destination is.

use crate::{
    DropReason,
    pipeline::{Context, Fate, Meta},
    snapshot::Port,
};

#[inline(always)]
pub(crate) fn run(cx: Context<'_>, port: &Port, meta: &mut [Meta]) {
    for m in meta {
        if m.fate != Fate::Pending {
            continue;
        }
        let dst = m.dst.mac();
        m.fate = if dst.is_multicast() {
            if dst.is_reserved() { Fate::Drop(DropReason::ReservedMulticast) } else { Fate::Flood }
        } else {
            match cx.macs.lookup(m.dst, m.dst_hash) {
                Some(to) if to == port.idx => Fate::Drop(DropReason::SamePort),
                Some(to) => Fate::Unicast(to),
                None => Fate::Flood,
            }
        };
    }
}
