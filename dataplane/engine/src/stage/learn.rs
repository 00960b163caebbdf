//! Learn: the source address is behind the ingress port.

use crate::{
    DropReason, Output,
    frame::MacLearned,
    mac_table::Learned,
    pipeline::{Context, Fate, Meta, Refused},
    snapshot::Port,
};

/// The frames that go no further, because the port is at its limit.
#[inline(always)]
pub(crate) fn run<F>(cx: Context<'_>, port: &Port, meta: &mut [Meta], out: &mut impl Output<F>) -> Refused {
    let macs = cx.macs.view();
    let known = macs.known_at(port.idx, cx.now.s);
    let mut refused = Refused::NONE;
    for (i, m) in meta.iter_mut().enumerate() {
        if !macs.is_known(m.src, m.src_hash, known) && !learn(cx, port, m, out) {
            m.fate = Fate::drop(DropReason::MacLimit);
            refused.add(i);
        }
    }
    refused
}

/// Whether the frame may go on.
#[inline(never)]
fn learn<F>(cx: Context<'_>, port: &Port, m: &Meta, out: &mut impl Output<F>) -> bool {
    let mut tell = |from| {
        out.learned(MacLearned { segment: m.src.segment(), mac: m.src.mac(), from, at: port.idx });
    };
    match cx.macs.learn(m.src, m.src_hash, port.idx, cx.now.s, port.mac_limit.map(|l| l.limit)) {
        Learned::Known | Learned::Full => {}
        Learned::New => tell(None),
        Learned::Moved { from } => tell(Some(from)),
        Learned::Limited => return !port.mac_limit.is_some_and(|l| l.drop),
    }
    true
}
