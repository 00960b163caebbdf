//! Learn: the source address is behind the ingress port.

use crate::{
    DropReason, Output,
    frame::MacLearned,
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
        let mut tell = |from| {
            out.learned(MacLearned { segment: m.src.segment(), mac: m.src.mac(), from, at: port.idx });
        };
        match cx.macs.learn(m.src, m.src_hash, port.idx, cx.now.s, limit) {
            Learned::Known | Learned::Full => {}
            Learned::New => tell(None),
            Learned::Moved { from } => tell(Some(from)),
            Learned::Limited => {
                if port.mac_limit.is_some_and(|l| l.drop) {
                    m.fate = Fate::Drop(DropReason::MacLimit);
                }
            }
        }
    }
}
