//! Ingress VLAN: which segment a frame is in, by the port's mode (see `vlan.rs`). For frames without
//! a tag, and with one on a trunk, the answer stands in the snapshot; here are the others.

use crate::{
    SegmentId,
    snapshot::Port,
    vlan::{Tag, VlanTagInfo, is_tag},
};

/// The class of a frame with `tag`, behind which stands the EtherType `inner`, and its segment: none if the port does not
/// take it.
#[inline(never)]
pub(crate) fn classify(port: &Port, tag: Tag, inner: u16) -> (VlanTagInfo, SegmentId) {
    let (vlans, vid, priority) = (&port.vlans, tag.tci() & Tag::VID, tag.tci() & !Tag::VID);
    if let Some(tunnel) = &vlans.tunnel {
        // The customer's tag is payload; its priority shows in the service tag.
        let class = VlanTagInfo::new(Tag::NONE, tunnel.tpid, priority | vlans.untagged_in);
        return (class, if tunnel.cvlans.contains(vid) { port.segments.of(class.vid()) } else { SegmentId::NONE });
    }
    if vid == 0 && !is_tag(inner) {
        // A priority tag: untagged otherwise. Not with another tag behind it: that one would be the outer tag where the
        // frame leaves untagged, and the next switch would take it for the frame's VLAN (CVE-2021-27853).
        let class = VlanTagInfo::new(tag, port.untagged.0.tpid(), priority | vlans.untagged_in);
        return (class, port.untagged.1);
    }
    // At an access port, or hidden behind a priority tag: refused.
    (VlanTagInfo::new(tag, tag.tpid(), tag.tci()), SegmentId::NONE)
}
