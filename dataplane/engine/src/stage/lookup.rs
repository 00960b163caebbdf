//! Lookup: where the destination is. A group's address is never learned, so only what is not found
//! is asked whether it is one.

use crate::{
    DropReason,
    burst::{Fate, Meta, numbers},
    context::Context,
    snapshot::Port,
    stage::fast_lookup::Probed,
    tunnel::Role,
    vlan::TPID_8021AD,
};

/// Decides the fates of those that `seen` has as missing. Whether every frame's is the same.
#[inline(always)]
pub(crate) fn run(cx: &Context<'_>, port: &Port, meta: &mut [Meta], mut seen: Probed) -> bool {
    // Many of a burst are for the same.
    let mut last = None;
    for i in numbers(seen.missing) {
        let m = &mut meta[i];
        m.fate = match last {
            // A customer's reserved multicast is known by its tag.
            Some((hash, class, fate)) if hash == m.dst_hash && class == m.class => fate,
            _ => look_again(cx, port, m),
        };
        last = Some((m.dst_hash, m.class, m.fate));
        seen.add(m.fate);
    }
    seen.same_fate()
}

/// For what the fast lookup does not find.
#[inline(never)]
fn look_again(cx: &Context<'_>, port: &Port, m: &Meta) -> Fate {
    if m.dst.is_multicast() {
        let stays = m.dst.mac().is_reserved() && !(m.dst.mac().is_customers() && is_customers(port, m));
        return if stays { Fate::drop(DropReason::ReservedMulticast) } else { Fate::FLOOD };
    }
    match cx.macs.lookup(m.dst_hash) {
        Some(to) if to == port.idx => Fate::drop(DropReason::SamePort),
        Some(to) => Fate::unicast(to),
        None => Fate::FLOOD,
    }
}

/// Whether the frame is a customer's, inside of a provider's network: by a dot1q-tunnel port, with a service tag, or out of
/// a tunnel. To the other ends of that network alone: see [`flood`](super::flood).
fn is_customers(port: &Port, m: &Meta) -> bool {
    port.vlans.tunnel.is_some() || m.class.tag().tpid() == TPID_8021AD || matches!(port.role, Role::Remote(_))
}
