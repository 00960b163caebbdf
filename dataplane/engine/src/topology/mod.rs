//! From what was configured to what workers read: bridges and ports by name in, snapshots out.
//!
//! It lives on the configuring thread. A transaction works on a clone and keeps it if all went
//! well, so nothing is ever half applied. Port and segment numbers are handed out here and stay
//! the same while their port or VLAN is there; a number is used again only after its entries are
//! out of the mac table: see [`Topology::retired`].

mod filter;
mod overlay;

use std::{collections::BTreeMap, sync::Arc};

pub use dunlin_model::spec::{AclNames, BridgeSpec, NetworkSpec, OverlaySpec, PortPolicy, SecuritySpec, VtepSpec};
pub use overlay::{RemoteView, VtepView, is_hidden};

use crate::{
    MAX_PORTS, PortIdx, SegmentId,
    security::Snooped,
    snapshot::{Port, Segment, SegmentMap, Snapshot, untagged},
    storm::{RateLimit, StormLimits},
    tunnel::Role,
    vlan::{PortVlans, VlanMode, VlanSet},
};

/// Why a topology refuses a change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopologyError {
    /// The port names a bridge that is not there.
    #[error("port '{port}': bridge: there is no bridge '{bridge}'")]
    NoSuchBridge {
        /// The port.
        port: String,
        /// The bridge it names.
        bridge: String,
    },
    /// The port names a network that is not there.
    #[error("port '{port}': network: there is no network '{network}'")]
    NoSuchNetwork {
        /// The port.
        port: String,
        /// The network it names.
        network: String,
    },
    /// A port or network names an ACL that is not there.
    #[error("{object}: acls: there is no acl '{acl}'")]
    NoSuchAcl {
        /// The port or network.
        object: String,
        /// The ACL.
        acl: String,
    },
    /// Ports are still on the bridge.
    #[error("bridge '{bridge}': port '{port}' is still on it; delete or move its ports first")]
    BridgeInUse {
        /// The bridge.
        bridge: String,
        /// One of its ports.
        port: String,
    },
    /// More ports than [`MAX_PORTS`].
    #[error("port '{port}': this dataplane holds at most {MAX_PORTS} ports, and all are taken")]
    TooManyPorts {
        /// The port there was no room for.
        port: String,
    },
    /// More (bridge, VLAN) pairs than segment numbers.
    #[error(
        "bridge '{bridge}': more than 65,535 (bridge, VLAN) pairs are carried; restrict the VLANs of its trunk ports"
    )]
    TooManySegments {
        /// The bridge there was no room for.
        bridge: String,
    },
}

#[derive(Clone)]
struct PortState {
    idx: PortIdx,
    up: bool,
    /// See [`Topology::identify`].
    identity: u64,
    spec: PortPolicy,
    storm: Arc<StormLimits>,
    snooped: Arc<Snooped>,
}

#[derive(Clone)]
struct BridgeState {
    name: Arc<str>,
    spec: BridgeSpec,
    segments: Arc<[SegmentId; 4096]>,
}

/// See the module.
#[derive(Clone)]
pub struct Topology {
    bridges: BTreeMap<String, BridgeState>,
    ports: BTreeMap<String, PortState>,
    networks: BTreeMap<String, overlay::NetworkState>,
    vteps: BTreeMap<String, overlay::VtepState>,
    filters: filter::Filters,
    /// VLANs of hidden bridges that are free again, and how many were ever made.
    hidden: Vec<(Arc<str>, u16)>,
    hidden_made: usize,
    free_ports: Vec<PortIdx>,
    free_segments: Vec<SegmentId>,
    next_segment: u16,
    retired_ports: Vec<PortIdx>,
    retired_segments: Vec<SegmentId>,
}

impl Default for Topology {
    fn default() -> Self {
        Topology {
            bridges: BTreeMap::new(),
            ports: BTreeMap::new(),
            networks: BTreeMap::new(),
            vteps: BTreeMap::new(),
            filters: filter::Filters::default(),
            hidden: Vec::new(),
            hidden_made: 0,
            free_ports: (0..MAX_PORTS).rev().filter_map(PortIdx::new).collect(),
            free_segments: Vec::new(),
            next_segment: 1,
            retired_ports: Vec::new(),
            retired_segments: Vec::new(),
        }
    }
}

/// Numbers whose objects are gone: purge their mac entries once no worker uses them, then
/// [`Topology::reclaim`] them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Retired {
    /// Ports.
    pub ports: Vec<PortIdx>,
    /// Segments.
    pub segments: Vec<SegmentId>,
}

impl Topology {
    /// Adds or changes a bridge.
    pub fn set_bridge(&mut self, name: &str, spec: BridgeSpec) {
        match self.bridges.get_mut(name) {
            Some(b) => b.spec = spec,
            None => {
                let segments = Arc::new([SegmentId::NONE; 4096]);
                self.bridges.insert(name.to_owned(), BridgeState { name: name.into(), spec, segments });
            }
        }
    }

    /// Removes a bridge that has no port; one that is not there is no error.
    pub fn remove_bridge(&mut self, name: &str) -> Result<(), TopologyError> {
        if let Some((port, _)) = self.ports.iter().find(|(_, p)| p.spec.bridge == name) {
            return Err(TopologyError::BridgeInUse { bridge: name.to_owned(), port: port.clone() });
        }
        if let Some(b) = self.bridges.remove(name) {
            self.retired_segments.extend(b.segments.iter().filter(|s| **s != SegmentId::NONE));
        }
        Ok(())
    }

    /// Adds or changes a port; its number stays the same. A new one is down.
    pub fn set_port(&mut self, name: &str, mut spec: PortPolicy) -> Result<PortIdx, TopologyError> {
        if let Some(network) = &spec.network {
            let Some((bridge, vid)) = self.network_place(network) else {
                return Err(TopologyError::NoSuchNetwork { port: name.to_owned(), network: network.clone() });
            };
            (spec.bridge, spec.vlan) = (bridge.to_owned(), VlanMode::Access { vid });
        }
        if !self.bridges.contains_key(&spec.bridge) {
            return Err(TopologyError::NoSuchBridge { port: name.to_owned(), bridge: spec.bridge });
        }
        if let Some(p) = self.ports.get_mut(name) {
            if p.spec.storm_fps != spec.storm_fps {
                p.storm = storm_limits(&spec);
            }
            p.spec = spec;
            return Ok(p.idx);
        }
        let idx = self.free_ports.pop().ok_or_else(|| TopologyError::TooManyPorts { port: name.to_owned() })?;
        let storm = storm_limits(&spec);
        self.ports
            .insert(name.to_owned(), PortState { idx, up: false, identity: 0, spec, storm, snooped: Arc::default() });
        Ok(idx)
    }

    /// Says what tells a port from others that have or had its name: another one has no snooped addresses.
    pub fn identify(&mut self, name: &str, identity: u64) {
        if let Some(p) = self.ports.get_mut(name).filter(|p| p.identity != identity) {
            (p.identity, p.snooped) = (identity, Arc::default());
        }
    }

    /// See [`Topology::identify`]; 0 if there is no such port.
    pub fn identity(&self, name: &str) -> u64 {
        self.ports.get(name).map_or(0, |p| p.identity)
    }

    /// Removes a port; its number is retired.
    pub fn remove_port(&mut self, name: &str) -> Option<PortIdx> {
        let idx = self.ports.remove(name)?.idx;
        self.retired_ports.push(idx);
        Some(idx)
    }

    /// Notes whether frames can leave by the port, for snapshots to come; whether that changed anything. For the one in
    /// use: [`Snapshot::set_link`].
    pub fn set_up(&mut self, name: &str, up: bool) -> bool {
        self.ports.get_mut(name).is_some_and(|p| std::mem::replace(&mut p.up, up) != up)
    }

    /// A bridge's specification.
    pub fn bridge(&self, name: &str) -> Option<&BridgeSpec> {
        self.bridges.get(name).map(|b| &b.spec)
    }

    /// The names of all bridges that were set.
    pub fn bridge_names(&self) -> impl Iterator<Item = &str> {
        self.bridges.keys().map(String::as_str).filter(|b| !is_hidden(b))
    }

    /// A port's number and specification.
    pub fn port(&self, name: &str) -> Option<(PortIdx, &PortPolicy)> {
        self.ports.get(name).map(|p| (p.idx, &p.spec))
    }

    /// The segment of a VLAN that some port of the bridge carries.
    pub fn segment(&self, bridge: &str, vid: u16) -> Option<SegmentId> {
        let s = self.bridges.get(bridge)?.segments[vid as usize & 0xfff];
        (s != SegmentId::NONE).then_some(s)
    }

    /// The numbers that went out of use since the last call.
    pub fn retired(&mut self) -> Retired {
        Retired { ports: std::mem::take(&mut self.retired_ports), segments: std::mem::take(&mut self.retired_segments) }
    }

    /// Makes numbers usable again, after nothing refers to them any more.
    pub fn reclaim(&mut self, retired: Retired) {
        self.free_ports.extend(retired.ports);
        self.free_segments.extend(retired.segments);
    }

    /// What workers should forward by now. Numbers new VLANs and retires unused ones.
    ///
    /// # Errors
    /// See [`TopologyError`]: the topology is of no use then.
    pub fn snapshot(&mut self) -> Result<Snapshot, TopologyError> {
        // Its place may be another network's by now.
        for (port, p) in &self.ports {
            if let Some(network) = p.spec.network.as_ref().filter(|n| !self.networks.contains_key(*n)) {
                return Err(TopologyError::NoSuchNetwork { port: port.clone(), network: network.clone() });
            }
        }
        let mut segments = vec![Segment {
            bridge: "".into(),
            vid: 0,
            ageing_s: 300,
            flood: Arc::new([]),
            remotes: Arc::new([]),
            vni: None,
            keeps_tags: false,
            learns_remote: true,
            bindings: None,
            network: None,
            lists: None,
        }];
        let names: Vec<String> = self.bridges.keys().cloned().collect();
        for name in names {
            self.number_vlans(&name)?;
            self.fill_segments(&name, &mut segments);
        }
        self.fill_lists(&mut segments)?;
        let filtered: Vec<&Segment> = segments.iter().filter(|s| s.lists.is_some()).collect();
        let mut ports = Box::new([const { None }; MAX_PORTS]);
        for (name, p) in &self.ports {
            let filter = self.port_filter(name, p, &filtered)?;
            ports[p.idx.get()] = Some(Arc::new(Port { filter, ..self.port_snapshot(name, p) }));
        }
        self.number_remotes()?;
        self.fill_overlay(&mut segments, &mut ports);
        let filters_out = ports.iter().flatten().any(|p| p.filter.as_ref().is_some_and(|f| f.looks_out));
        Ok(Snapshot { ports, segments: segments.into(), filters_out, sessions: self.filters.sessions })
    }

    /// Gives each VLAN that a port of the bridge carries its segment.
    fn number_vlans(&mut self, bridge: &str) -> Result<(), TopologyError> {
        let mut carried = VlanSet::EMPTY;
        for p in self.ports.values().filter(|p| p.spec.bridge == bridge) {
            p.spec.vlan.carried().iter().for_each(|v| carried.insert(v));
        }
        let b = self.bridges.get_mut(bridge).expect("named by the caller from this map");
        if (0..4096u16).all(|v| carried.contains(v) == (b.segments[v as usize] != SegmentId::NONE)) {
            return Ok(());
        }
        let map = Arc::make_mut(&mut b.segments);
        for (vid, s) in (0u16..).zip(map.iter_mut()) {
            if !carried.contains(vid) && *s != SegmentId::NONE {
                self.retired_segments.push(std::mem::take(s));
            } else if carried.contains(vid) && *s == SegmentId::NONE {
                *s = match self.free_segments.pop() {
                    Some(free) => free,
                    None if self.next_segment < u16::MAX => {
                        self.next_segment += 1;
                        SegmentId(self.next_segment - 1)
                    }
                    None => return Err(TopologyError::TooManySegments { bridge: bridge.to_owned() }),
                };
            }
        }
        Ok(())
    }

    fn fill_segments(&self, bridge: &str, segments: &mut Vec<Segment>) {
        let b = &self.bridges[bridge];
        let members: Vec<(PortIdx, VlanSet)> =
            self.ports.values().filter(|p| p.spec.bridge == bridge).map(|p| (p.idx, p.spec.vlan.carried())).collect();
        // Most VLANs of a bridge with trunks have the same ports: one list serves them all.
        let mut last: Arc<[PortIdx]> = Arc::new([]);
        for (vid, s) in (0u16..).zip(b.segments.iter()).filter(|(_, s)| **s != SegmentId::NONE) {
            let flood: Vec<PortIdx> = members.iter().filter(|(_, v)| v.contains(vid)).map(|m| m.0).collect();
            if *flood != *last {
                last = flood.into();
            }
            if segments.len() <= s.get() {
                segments.resize(s.get() + 1, segments[0].clone());
            }
            let (bridge, flood) = (b.name.clone(), last.clone());
            segments[s.get()] = Segment {
                bridge,
                vid,
                ageing_s: b.spec.ageing_s,
                flood,
                remotes: Arc::new([]),
                vni: None,
                keeps_tags: false,
                learns_remote: true,
                bindings: None,
                network: None,
                lists: None,
            };
        }
    }

    fn port_snapshot(&self, name: &str, p: &PortState) -> Port {
        let all = &self.bridges[&p.spec.bridge].segments;
        let carried = p.spec.vlan.carried();
        let segments = match &p.spec.vlan {
            VlanMode::Access { vid } | VlanMode::Dot1qTunnel { vid, .. } => SegmentMap::One(all[*vid as usize & 0xfff]),
            _ if carried.is_all() => SegmentMap::Table(all.clone()),
            _ => {
                let mut own = [SegmentId::NONE; 4096];
                carried.iter().for_each(|v| own[v as usize] = all[v as usize]);
                SegmentMap::Table(Arc::new(own))
            }
        };
        let vlans = PortVlans::new(&p.spec.vlan);
        Port {
            idx: p.idx,
            link: p.up.into(),
            protected: p.spec.protected,
            mtu: p.spec.mtu,
            untagged: untagged(&vlans, &segments),
            tagged: match &segments {
                SegmentMap::Table(t) if vlans.tagged_in && vlans.tunnel.is_none() => Some(t.clone()),
                _ => None,
            },
            vlans,
            priority_tags: p.spec.priority_tags,
            segments,
            mac_limit: p.spec.mac_limit,
            storm: p.storm.clone(),
            role: Role::Device,
            vteps: self.vteps_behind(name),
            name: name.into(),
            filter: None,
        }
    }
}

fn storm_limits(spec: &PortPolicy) -> Arc<StormLimits> {
    let [broadcast, multicast, unknown_unicast] = spec.storm_fps.map(|f| f.map(RateLimit::new));
    Arc::new(StormLimits { broadcast, multicast, unknown_unicast })
}
