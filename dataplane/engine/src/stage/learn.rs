//! Learn: the source address is behind the ingress port.

use crate::{
    DropReason, Output,
    frame::MacMoved,
    mac_table::Learned,
    pipeline::{Context, Fate, Meta},
    snapshot::Port,
};

#[inline(always)]
pub(crate) fn run<F>(cx: Context<'_>, port: &Port, meta: &mut [Meta], out: &mut impl Output<F>) {
    let limit = port.mac_limit.map(|l| l.limit);
    for m in meta {
        if m.fate != Fate::Pending {
            continue;
        }
        match cx.macs.learn(m.src, m.src_hash, port.idx, cx.now.s, limit) {
            Learned::Known | Learned::New | Learned::Full => {}
            Learned::Moved { from } => {
                out.moved(MacMoved { segment: m.src.segment(), mac: m.src.mac(), from, to: port.idx });
            }
            Learned::Limited => {
                if port.mac_limit.is_some_and(|l| l.drop) {
                    m.fate = Fate::Drop(DropReason::MacLimit);
                }
            }
        }
    }
}
