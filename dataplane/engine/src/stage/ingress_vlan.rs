//! Ingress VLAN: which segment the frame is in, by the port's mode (see `vlan.rs`).
//!
//! From here the VLAN is in the metadata, and the keys carry the segment; their buckets in the
//! mac table are asked for, so that the next two stages find them in the cache.

use crate::{
    DropReason, SegmentId,
    mac_table::Key,
    pipeline::{Context, Fate, Meta},
    snapshot::Port,
    vlan::{PortVlans, Tag},
};

#[inline(always)]
pub(crate) fn run(cx: Context<'_>, port: &Port, meta: &mut [Meta]) {
    for m in meta {
        if m.fate != Fate::Pending {
            continue;
        }
        let segment = if classify(port, m) { port.segments.of(m.vid) } else { SegmentId::NONE };
        if segment == SegmentId::NONE {
            m.fate = Fate::Drop(DropReason::IngressVlan);
            continue;
        }
        m.src = Key::new(m.src.mac(), segment);
        m.dst = Key::new(m.dst.mac(), segment);
        m.src_hash = cx.macs.hash(m.src);
        m.dst_hash = cx.macs.hash(m.dst);
        cx.macs.prefetch(m.src_hash);
        cx.macs.prefetch(m.dst_hash);
    }
}

/// Sets VLAN and priority; whether the port takes the frame at all. Whether it carries the VLAN
/// is the segment map's to say.
#[inline(always)]
fn classify(port: &Port, m: &mut Meta) -> bool {
    let vlans = &port.vlans;
    m.vid = vlans.untagged_in;
    if m.tag.is_some() {
        return classify_tagged(vlans, m);
    }
    match &vlans.tunnel {
        None => true,
        Some(tunnel) => {
            m.tpid = tunnel.tpid;
            // Untagged counts as customer VLAN 0.
            tunnel.cvlans.contains(0)
        }
    }
}

#[inline]
fn classify_tagged(vlans: &PortVlans, m: &mut Meta) -> bool {
    let tci = m.tag.tci();
    let vid = tci & Tag::VID;
    m.priority = tci & !Tag::VID;
    if let Some(tunnel) = &vlans.tunnel {
        // The customer's tag is payload; its priority shows in the service tag.
        m.tag = Tag::NONE;
        m.tpid = tunnel.tpid;
        return tunnel.cvlans.contains(vid);
    }
    if vid != 0 {
        m.tpid = m.tag.tpid();
        m.vid = vid;
    }
    vid == 0 || vlans.tagged_in
}
