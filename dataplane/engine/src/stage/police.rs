//! Police: storm limits on what is about to be flooded. After the lookup, because only there is
//! known which unicast is to an unknown address. Costs nothing on a port without limits.

use crate::{
    DropReason, MacAddr,
    burst::{Fate, Meta},
    context::Context,
    snapshot::Port,
};

/// Whether any frame is dropped for it.
#[inline(always)]
pub(crate) fn run(cx: &Context<'_>, port: &Port, meta: &mut [Meta]) -> bool {
    let s = &*port.limits;
    if s.broadcast.is_none() && s.multicast.is_none() && s.unknown_unicast.is_none() {
        return false;
    }
    let mut any = false;
    for m in meta.iter_mut().filter(|m| m.fate == Fate::FLOOD) {
        let dst = m.dst.mac();
        let (limit, reason) = if dst == MacAddr::BROADCAST {
            (&s.broadcast, DropReason::StormBroadcast)
        } else if dst.is_multicast() {
            (&s.multicast, DropReason::StormMulticast)
        } else {
            (&s.unknown_unicast, DropReason::StormUnknownUnicast)
        };
        let Some(limit) = limit else { continue };
        // A traced frame takes nothing from others' share.
        let passes = if cx.trace.is_some() { limit.would_admit(cx.now.ns) } else { limit.admit(cx.now.ns) };
        cx.note("storm", || format!("port '{}': {} its limit", port.name, if passes { "within" } else { "above" }));
        if !passes {
            m.fate = Fate::drop(reason);
            any = true;
        }
    }
    any
}
