//! From what was configured to what workers read: bridges and ports by name in, snapshots out.
//!
//! It lives on the configuring thread. A transaction works on a clone and keeps it if all went
//! well, so nothing is ever half applied. Port and segment numbers are handed out here and stay
//! the same while their port or VLAN is there; a number is used again only after its entries are
//! out of the mac table: see [`Topology::retired`].

mod acls;
mod overlay;

use std::{collections::BTreeMap, sync::Arc};

pub use dunlin_model::spec::{AclNames, BridgeSpec, NetworkSpec, OverlaySpec, PortPolicy, SecuritySpec, VtepSpec};
pub use overlay::{RemoteView, VtepView, is_hidden};

use crate::{
    MAX_PORTS, PortIdx, SegmentId, Vid,
    snapshot::{
        Port, Segment, SegmentMap, Snapshot,
        rate_limits::{RateLimit, RateLimits},
        security::Snooped,
        untagged,
    },
    tables::bindings::BindingTable,
    tunnel::{Networks, Role},
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
    limits: Arc<RateLimits>,
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
    /// Shares what did not change with the topology before.
    networks: imbl::OrdMap<String, overlay::NetworkState>,
    vteps: BTreeMap<String, overlay::VtepState>,
    filters: acls::Filters,
    /// Of all networks; one for this topology and its copies.
    bindings: Arc<BindingTable>,
    /// Segments as they are; `None` after a change that may make them others.
    built: Option<Arc<Built>>,
    /// VLANs of hidden bridges that are free again, and how many were ever made.
    hidden: Vec<(Arc<str>, Vid)>,
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
            networks: imbl::OrdMap::new(),
            vteps: BTreeMap::new(),
            filters: acls::Filters::default(),
            bindings: Arc::default(),
            built: None,
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

/// Segments and what VTEPs know of them: most changes of a port leave them as they are.
struct Built {
    segments: Arc<[Segment]>,
    /// Segments of the networks of each VTEP.
    networks: BTreeMap<String, Networks>,
    /// Whether there are networks with ACLs.
    lists: bool,
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
        if self.bridges.get(name).is_some_and(|b| b.spec == spec) {
            return;
        }
        self.built = None;
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
            self.built = None;
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
            if (&p.spec.bridge, &p.spec.vlan) != (&spec.bridge, &spec.vlan) {
                self.built = None;
            }
            if p.spec.storm_fps != spec.storm_fps {
                p.limits = rate_limits(&spec);
            }
            p.spec = spec;
            return Ok(p.idx);
        }
        let idx = self.free_ports.pop().ok_or_else(|| TopologyError::TooManyPorts { port: name.to_owned() })?;
        self.built = None;
        let limits = rate_limits(&spec);
        self.ports
            .insert(name.to_owned(), PortState { idx, up: false, identity: 0, spec, limits, snooped: Arc::default() });
        Ok(idx)
    }

    /// Sets the identity of a port: a port that is deleted and added again has another one, and no snooped addresses.
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
        self.built = None;
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
    pub fn segment(&self, bridge: &str, vid: impl Into<u16>) -> Option<SegmentId> {
        let s = self.bridges.get(bridge)?.segments[vid.into() as usize & 0xfff];
        (s != SegmentId::NONE).then_some(s)
    }

    /// The numbers that went out of use since the last call.
    pub fn retired(&mut self) -> Retired {
        Retired { ports: std::mem::take(&mut self.retired_ports), segments: std::mem::take(&mut self.retired_segments) }
    }

    /// Makes numbers usable again, after nothing refers to them any more.
    pub fn reclaim(&mut self, retired: Retired) {
        self.bindings.purge(&retired.ports, &retired.segments);
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
        let built = match self.built.take() {
            Some(built) => built,
            None => Arc::new(self.build()?),
        };
        let filtered: Vec<&Segment> = match built.lists {
            true => built.segments.iter().filter(|s| s.lists.is_some()).collect(),
            false => Vec::new(),
        };
        let mut ports = Box::new([const { None }; MAX_PORTS]);
        for (name, p) in &self.ports {
            let filter = self.port_filter(name, p, &filtered)?;
            ports[p.idx.get()] = Some(Arc::new(Port { filter, ..self.port_snapshot(name, p) }));
        }
        self.fill_vteps(&built.networks, &mut ports);
        let segments = built.segments.clone();
        self.built = Some(built);
        Ok(Snapshot { ports, segments, sessions: self.filters.sessions })
    }

    /// Numbers and fills segments.
    fn build(&mut self) -> Result<Built, TopologyError> {
        self.number_vlans()?;
        self.number_remotes()?;
        let none: Arc<[PortIdx]> = Arc::new([]);
        let mut segments = vec![Segment::new(("".into(), 0), BridgeSpec::default().ageing_s, none.clone(), &none)];
        self.fill_segments(&mut segments);
        let networks = self.fill_networks(&mut segments)?;
        self.join_underlays(&mut segments);
        let lists = segments.iter().any(|s| s.lists.is_some());
        Ok(Built { segments: segments.into(), networks, lists })
    }

    /// Gives each VLAN that a port of a bridge carries its segment.
    fn number_vlans(&mut self) -> Result<(), TopologyError> {
        let mut carried: BTreeMap<&str, VlanSet> = BTreeMap::new();
        for p in self.ports.values() {
            p.spec.vlan.add_to(carried.entry(&p.spec.bridge).or_insert(VlanSet::EMPTY));
        }
        for (bridge, b) in &mut self.bridges {
            let carried = carried.remove(bridge.as_str()).unwrap_or(VlanSet::EMPTY);
            if (0..4096u16).all(|v| carried.contains(v) == (b.segments[v as usize] != SegmentId::NONE)) {
                continue;
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
                        None => return Err(TopologyError::TooManySegments { bridge: bridge.clone() }),
                    };
                }
            }
        }
        Ok(())
    }

    fn fill_segments(&self, segments: &mut Vec<Segment>) {
        // Ports of one VLAN by that; the others are asked for each VLAN.
        let (mut trunks, mut single) = (BTreeMap::<&str, Vec<_>>::new(), BTreeMap::<(&str, u16), Vec<PortIdx>>::new());
        for p in self.ports.values() {
            let bridge = p.spec.bridge.as_str();
            match &p.spec.vlan {
                VlanMode::Access { vid } | VlanMode::Dot1qTunnel { vid, .. } => {
                    single.entry((bridge, vid.get())).or_default().push(p.idx);
                }
                mode => trunks.entry(bridge).or_default().push((p.idx, mode)),
            }
        }
        // Most VLANs of a bridge with trunks have the same ports: one list serves them all.
        let mut last: Arc<[PortIdx]> = Arc::new([]);
        for (name, b) in &self.bridges {
            let trunks = trunks.get(name.as_str()).map_or(&[][..], Vec::as_slice);
            for (vid, s) in (0u16..).zip(b.segments.iter()).filter(|(_, s)| **s != SegmentId::NONE) {
                let single = single.get(&(name.as_str(), vid)).into_iter().flatten().copied();
                let flood: Vec<PortIdx> =
                    trunks.iter().filter(|(_, v)| v.carries(vid)).map(|m| m.0).chain(single).collect();
                if *flood != *last {
                    last = flood.into();
                }
                let segment = Segment::new((b.name.clone(), vid), b.spec.ageing_s, last.clone(), &segments[0].remotes);
                if segments.len() < s.get() {
                    segments.resize(s.get(), segments[0].clone());
                }
                match segments.get_mut(s.get()) {
                    Some(place) => *place = segment,
                    None => segments.push(segment),
                }
            }
        }
    }

    fn port_snapshot(&self, name: &str, p: &PortState) -> Port {
        let all = &self.bridges[&p.spec.bridge].segments;
        let carried = p.spec.vlan.carried();
        let segments = match &p.spec.vlan {
            VlanMode::Access { vid } | VlanMode::Dot1qTunnel { vid, .. } => {
                SegmentMap::One(all[vid.get() as usize & 0xfff])
            }
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
            forwarding: p.spec.forwarding,
            mtu: p.spec.mtu.get(),
            untagged: untagged(&vlans, &segments),
            tagged: match &segments {
                SegmentMap::Table(t) if vlans.tagged_in && vlans.tunnel.is_none() => Some(t.clone()),
                _ => None,
            },
            vlans,
            segments,
            limits: p.limits.clone(),
            role: Role::Device,
            vteps: self.vteps_behind(name),
            name: name.into(),
            filter: None,
        }
    }
}

fn rate_limits(spec: &PortPolicy) -> Arc<RateLimits> {
    let [broadcast, multicast, unknown_unicast] = spec.storm_fps.map(|f| f.map(|f| RateLimit::new(f.get())));
    Arc::new(RateLimits { broadcast, multicast, unknown_unicast, ..Default::default() })
}
