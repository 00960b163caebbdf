//! Ingress VLAN: which segment the frame is in, by the port's mode (see `vlan.rs`).
//!
//! From here the VLAN is in the metadata, and the keys carry the segment; their buckets in the
//! mac table are asked for, so that the next two stages find them in the cache.

use crate::{
    DropReason, SegmentId,
    mac_table::Key,
    pipeline::{Context, Fate, Meta},
    snapshot::Port,
    vlan::{TPID_8021Q, VlanMode},
};

const VID: u16 = 0x0fff;

#[inline]
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
#[inline]
fn classify(port: &Port, m: &mut Meta) -> bool {
    if let VlanMode::Dot1qTunnel { vid, cvlans, tpid } = &port.vlan {
        let customer = m.tag.map_or(0, |(_, tci)| tci & VID);
        // The customer's tag is payload; its priority shows in the service tag.
        m.priority = m.tag.map_or(0, |(_, tci)| tci & !VID);
        m.tag = None;
        m.tpid = *tpid;
        m.vid = *vid;
        return cvlans.contains(customer);
    }
    let tagged_vid = m.tag.map_or(0, |(_, tci)| tci & VID);
    if let Some((tpid, tci)) = m.tag {
        m.priority = tci & !VID;
        m.tpid = if tagged_vid == 0 { TPID_8021Q } else { tpid };
    }
    m.vid = match &port.vlan {
        VlanMode::Access { vid } => {
            if tagged_vid != 0 {
                return false;
            }
            *vid
        }
        VlanMode::NativeTagged { native, .. } | VlanMode::NativeUntagged { native, .. } if tagged_vid == 0 => *native,
        _ => tagged_vid,
    };
    true
}
