//! What a worker forwards by: immutable, made by [`crate::snapshot::topology::Topology`], read once a burst.

pub mod port_filter;
pub mod rate_limits;
pub mod security;
pub mod topology;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

pub use dunlin_model::spec::{Forwarding, MacLimit};

use crate::{
    MAX_PORTS, PortIdx, SegmentId,
    snapshot::{
        port_filter::{Filter, Lists},
        rate_limits::RateLimits,
    },
    tables::bindings::Proxy,
    tunnel::Role,
    vlan::{PortVlans, TPID_8021Q, Tag, VlanTagInfo},
};

/// Everything the stages need to know of the configuration, at one version of it.
pub struct Snapshot {
    pub(crate) ports: Box<[Option<Arc<Port>>; MAX_PORTS]>,
    pub(crate) segments: Arc<[Segment]>,
    /// How connections are kept.
    pub(crate) sessions: crate::tables::conntrack::Settings,
}

impl Snapshot {
    /// With no port and no segment.
    pub fn empty() -> Self {
        Snapshot { ports: Box::new([const { None }; MAX_PORTS]), segments: Arc::new([]), sessions: Default::default() }
    }

    /// A port, if it is there.
    #[inline(always)]
    pub fn port(&self, idx: PortIdx) -> Option<&Port> {
        self.ports[idx.get()].as_deref()
    }

    /// A segment, if it is there.
    #[inline(always)]
    pub fn segment(&self, id: SegmentId) -> Option<&Segment> {
        self.segments.get(id.get())
    }

    /// How connections are kept.
    pub fn sessions(&self) -> &crate::tables::conntrack::Settings {
        &self.sessions
    }

    /// Notes whether frames can leave by a port; workers see it with their next frame.
    pub fn set_link(&self, idx: PortIdx, up: bool) {
        if let Some(p) = self.port(idx) {
            p.link.store(up, Relaxed);
        }
    }

    /// All ports.
    pub fn ports(&self) -> impl Iterator<Item = &Port> {
        self.ports.iter().filter_map(|p| p.as_deref())
    }
}

/// One isolated layer-2 network.
#[derive(Clone, Debug)]
pub struct Segment {
    /// The bridge's name; empty for a number that is not in use.
    pub bridge: Arc<str>,
    /// The VLAN in that bridge, 0 to 4095.
    pub vid: u16,
    /// Seconds after which an address that was not seen is forgotten.
    pub ageing_s: u32,
    /// The ports that carry it, up or down, the remotes of its network among them.
    pub flood: Arc<[PortIdx]>,
    /// The remotes of its network, whether floods go to each of them or to a group.
    pub remotes: Arc<[PortIdx]>,
    /// Its VNI, if it goes on in tunnels.
    pub vni: Option<u32>,
    /// Whether frames keep the VLAN's tag in tunnels.
    pub keeps_tags: bool,
    /// Whether addresses are learned from what comes in tunnels.
    pub learns_remote: bool,
    /// Answers ARP requests and neighbor solicitations, where that is wanted.
    pub proxy: Option<Proxy>,
    /// The network that it is, if it is one.
    pub network: Option<Arc<str>>,
    /// The lists of that network.
    pub lists: Option<Arc<Lists>>,
}

impl Segment {
    /// The segment of a VLAN of a bridge, which is no network.
    pub(crate) fn new(
        (bridge, vid): (Arc<str>, u16),
        ageing_s: u32,
        flood: Arc<[PortIdx]>,
        no_remotes: &Arc<[PortIdx]>,
    ) -> Self {
        Segment {
            bridge,
            vid,
            ageing_s,
            flood,
            remotes: no_remotes.clone(),
            vni: None,
            keeps_tags: false,
            learns_remote: true,
            proxy: None,
            network: None,
            lists: None,
        }
    }

    /// What people know it by: bridge and VLAN, or a network that has none and VLAN 0.
    pub fn label(&self) -> (&Arc<str>, u16) {
        match &self.network {
            Some(name) if crate::snapshot::topology::is_hidden(&self.bridge) => (name, 0),
            _ => (&self.bridge, self.vid),
        }
    }
}

/// One port's policy, ready for use.
#[derive(Debug)]
pub struct Port {
    /// Its place in the tables.
    pub idx: PortIdx,
    /// Link up, guest there: frames can leave by it. The one field that changes while workers use the snapshot, so
    /// that a link that flaps makes no snapshot.
    pub link: AtomicBool,
    /// Settings that are read as they are configured.
    pub forwarding: Forwarding,
    /// The largest payload of a frame that leaves, in octets, without Ethernet header and tag.
    pub mtu: u32,
    /// Which frames it carries, and how.
    pub vlans: PortVlans,
    /// The segment of each VLAN.
    pub segments: SegmentMap,
    /// What frames without a tag are, and their segment: none if the port does not take them.
    pub untagged: (VlanTagInfo, SegmentId),
    /// The segment of frames with a VLAN's tag, where that says it all: not in a tunnel, and not at
    /// an access port, which takes none.
    pub tagged: Option<Arc<[SegmentId; 4096]>>,
    /// Shared with the snapshots before and after, so that a change refills no bucket.
    pub limits: Arc<RateLimits>,
    /// Whether it is a device, or an end of tunnels. Those have no segment in `segments`.
    pub role: Role,
    /// VTEPs whose tunnels come by it.
    pub vteps: Box<[PortIdx]>,
    /// Its name.
    pub name: Arc<str>,
    /// What may pass it; everything, if there is none.
    pub filter: Option<Box<Filter>>,
}

impl Port {
    /// Whether frames can leave by it.
    #[inline(always)]
    pub fn is_up(&self) -> bool {
        self.link.load(Relaxed)
    }

    /// Whether it is a device, not an end of tunnels.
    #[inline(always)]
    pub fn is_device(&self) -> bool {
        matches!(self.role, Role::Device)
    }

    /// What is asked of a frame that leaves by it: nothing of what the host's own tunnels send.
    #[inline(always)]
    pub(crate) fn filter_for(&self, from: &Port) -> Option<&Filter> {
        self.filter.as_deref().filter(|f| f.looks_out && !matches!(from.role, Role::Vtep(_)))
    }

    /// Whether its connections are tracked.
    pub fn tracks(&self) -> bool {
        self.filter.as_ref().is_some_and(|f| f.tracks)
    }

    /// Whether it carries a VLAN that is this segment.
    pub fn carries(&self, id: SegmentId, segment: &Segment) -> bool {
        match &self.role {
            Role::Device => self.segments.of(segment.vid) == id,
            Role::Vtep(_) => segment.flood.contains(&self.idx),
            Role::Remote(_) => segment.remotes.contains(&self.idx),
        }
    }
}

/// From a port's VLANs to segments.
#[derive(Clone, Debug)]
pub enum SegmentMap {
    /// The port carries one.
    One(SegmentId),
    /// Indexed by VID; [`SegmentId::NONE`] where the port does not carry it.
    Table(Arc<[SegmentId; 4096]>),
}

impl SegmentMap {
    /// The segment of `vid` (its low 12 bits).
    #[inline(always)]
    pub fn of(&self, vid: u16) -> SegmentId {
        match self {
            SegmentMap::One(s) => *s,
            SegmentMap::Table(t) => t[vid as usize & 0xfff],
        }
    }
}

/// VLAN tag and segment of the untagged frames of a port with these VLANs.
pub(crate) fn untagged(vlans: &PortVlans, segments: &SegmentMap) -> (VlanTagInfo, SegmentId) {
    let tpid = vlans.tunnel.as_ref().map_or(TPID_8021Q, |t| t.tpid);
    // In a tunnel, untagged counts as customer VLAN 0.
    let taken = vlans.tunnel.as_ref().is_none_or(|t| t.cvlans.contains(0));
    let segment = if taken { segments.of(vlans.untagged_in) } else { SegmentId::NONE };
    (VlanTagInfo::new(Tag::NONE, tpid, vlans.untagged_in), segment)
}
