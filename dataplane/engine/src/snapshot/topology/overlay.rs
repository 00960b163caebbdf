//! Networks, VTEPs and remotes: what makes a segment go on at other hosts. See `crate::tunnel`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use dunlin_model::spec::remote_name;

use super::{BridgeSpec, NetworkSpec, OverlaySpec, Topology, TopologyError, VtepSpec};
use crate::{
    MAX_PORTS, PortIdx, SegmentId, Vid,
    packet::Address,
    snapshot::{Forwarding, Port, Segment, SegmentMap, rate_limits::RateLimits, untagged},
    tables::bindings::{BindingTable, Proxy},
    tunnel::{Kind, Networks, NextHop, Outer, OuterSpec, Remote, Role, Vtep, group_mac},
    vlan::{PortVlans, TPID_8021Q, Tag, VlanMode, VlanTagInfo},
};

#[derive(Clone)]
pub(super) struct NetworkState {
    pub(super) name: Arc<str>,
    pub(super) spec: Arc<NetworkSpec>,
    /// Bridge and VLAN; of a hidden bridge if it has none of its own.
    pub(super) place: (Arc<str>, Vid),
    /// Requests that were answered.
    pub(super) answered: Arc<AtomicU64>,
}

#[derive(Clone)]
pub(super) struct VtepState {
    idx: PortIdx,
    spec: VtepSpec,
    name: Arc<str>,
    limits: Arc<RateLimits>,
    remotes: BTreeMap<(IpAddr, Kind), RemoteState>,
}

/// The remotes of a network, and where its floods go.
struct Reached {
    remotes: Arc<[PortIdx]>,
    floods: Arc<[PortIdx]>,
}

#[derive(Clone)]
struct RemoteState {
    idx: PortIdx,
    name: Arc<str>,
    next_hop: Arc<NextHop>,
}

/// A VTEP with its remotes, for the resolution of their next hops.
pub struct VtepView<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its number among the ports.
    pub idx: PortIdx,
    /// As configured.
    pub spec: &'a VtepSpec,
    /// The bridge of its uplink.
    pub bridge: &'a str,
    /// The other hosts' ends.
    pub remotes: Vec<RemoteView<'a>>,
}

/// Another host's end of tunnels.
pub struct RemoteView<'a> {
    /// Its address.
    pub address: IpAddr,
    /// How frames to it are carried.
    pub kind: Kind,
    /// Its number among the ports.
    pub idx: PortIdx,
    /// Its name there.
    pub name: &'a str,
    /// Where to send what is for it.
    pub next_hop: &'a Arc<NextHop>,
}

/// What names of hidden bridges begin with: no operator can call one so.
const HIDDEN: &str = "*";
/// VLANs of one hidden bridge, which hold networks without a VLAN of their own.
const HIDDEN_VLANS: usize = 4094;

impl Topology {
    /// Adds or changes a network; its ports are put to where it is. Whether it fits the rest is asked by
    /// [`Topology::snapshot`].
    pub fn set_network(&mut self, name: &str, spec: impl Into<Arc<NetworkSpec>>) {
        let spec = spec.into();
        self.built = None;
        let (before, answered) = self.networks.remove(name).map(|n| (n.place, n.answered)).unzip();
        let answered = answered.unwrap_or_default();
        let place = match (&spec.vlan, before) {
            (Some(_), before) => {
                self.hidden.extend(before.filter(|p| is_hidden(&p.0)));
                self.place(spec.vlan.as_ref().expect("matched"))
            }
            (None, Some(place)) if is_hidden(&place.0) => place,
            (None, _) => self.hidden_place(),
        };
        for p in self.ports.values_mut().filter(|p| p.spec.network.as_deref() == Some(name)) {
            (p.spec.bridge, p.spec.vlan) = (place.0.to_string(), VlanMode::Access { vid: place.1 });
        }
        self.networks.insert(name.to_owned(), NetworkState { name: name.into(), spec, place, answered });
    }

    fn place(&self, (bridge, vid): &(String, Vid)) -> (Arc<str>, Vid) {
        (self.bridges.get(bridge).map_or_else(|| bridge.as_str().into(), |b| b.name.clone()), *vid)
    }

    /// A VLAN of a hidden bridge that no network has.
    fn hidden_place(&mut self) -> (Arc<str>, Vid) {
        if let Some(place) = self.hidden.pop() {
            return place;
        }
        let n = self.hidden_made;
        self.hidden_made += 1;
        let bridge = format!("{HIDDEN}{}", n / HIDDEN_VLANS);
        if n.is_multiple_of(HIDDEN_VLANS) {
            self.set_bridge(&bridge, BridgeSpec::default());
        }
        let name = self.bridges.get(&bridge).map_or_else(|| bridge.into(), |b| b.name.clone());
        (name, Vid::new((n % HIDDEN_VLANS) as u64 + 1).expect("1 to 4094"))
    }

    /// Removes a network. A port that is still in it is found by [`Topology::snapshot`].
    pub fn remove_network(&mut self, name: &str) {
        self.built = None;
        let place = self.networks.remove(name).map(|n| n.place);
        self.hidden.extend(place.filter(|p| is_hidden(&p.0)));
    }

    /// Adds or changes a VTEP; its number stays the same. Whether it fits the rest is asked by
    /// [`Topology::snapshot`].
    pub fn set_vtep(&mut self, name: &str, spec: VtepSpec) -> Result<PortIdx, TopologyError> {
        self.built = None;
        if let Some(v) = self.vteps.get_mut(name) {
            v.spec = spec;
            return Ok(v.idx);
        }
        let idx = self.free_port(name)?;
        let v = VtepState { idx, spec, name: name.into(), limits: Arc::default(), remotes: BTreeMap::new() };
        self.vteps.insert(name.to_owned(), v);
        Ok(idx)
    }

    /// Removes a VTEP; its number and those of its remotes are retired.
    pub fn remove_vtep(&mut self, name: &str) {
        if let Some(v) = self.vteps.remove(name) {
            self.built = None;
            self.retired_ports.push(v.idx);
            self.retired_ports.extend(v.remotes.values().map(|r| r.idx));
        }
    }

    fn bridge_of(&self, vtep: &VtepSpec) -> Option<&String> {
        self.ports.get(&vtep.uplink).map(|p| &p.spec.bridge)
    }

    /// The number of a port, a VTEP or a remote by its name.
    pub fn number_of(&self, name: &str) -> Option<PortIdx> {
        let remote = |v: &VtepState| v.remotes.values().find(|r| *r.name == *name).map(|r| r.idx);
        let vtep = || self.vteps.get(name).map(|v| v.idx).or_else(|| self.vteps.values().find_map(remote));
        self.port(name).map(|(idx, _)| idx).or_else(vtep)
    }

    /// Whether a port, or a remote, carries a VLAN of a bridge; `None` if there is none of that name.
    pub fn carries(&self, name: &str, bridge: &str, vid: u16) -> Option<bool> {
        if let Some((_, p)) = self.port(name) {
            return Some(p.bridge == bridge && p.carries(vid));
        }
        self.number_of(name)?;
        let reaches = |n: &NetworkState| {
            let of = |o: &OverlaySpec| o.remotes.iter().any(|r| remote_name(&o.vtep, *r, o.kind) == name);
            *n.place.0 == *bridge && n.place.1.get() == vid && n.spec.overlay.as_ref().is_some_and(of)
        };
        Some(self.networks.values().any(reaches))
    }

    /// The bridge and VLAN of a network.
    pub fn network_place(&self, name: &str) -> Option<(&str, Vid)> {
        self.networks.get(name).map(|n| (&*n.place.0, n.place.1))
    }

    /// What was learned of addresses in all networks.
    pub fn bindings(&self) -> &BindingTable {
        &self.bindings
    }

    /// Requests that were answered in a network.
    pub fn answered(&self, network: &str) -> u64 {
        self.networks.get(network).map_or(0, |n| n.answered.load(Relaxed))
    }

    /// Name and specification of a network.
    pub fn network(&self, name: &str) -> Option<(&str, &NetworkSpec)> {
        self.networks.get_key_value(name).map(|(n, s)| (n.as_str(), &*s.spec))
    }

    /// Names and specifications of all networks.
    pub fn networks(&self) -> impl Iterator<Item = (&str, &NetworkSpec)> {
        self.networks.iter().map(|(n, s)| (n.as_str(), &*s.spec))
    }

    /// All VTEPs.
    pub fn vteps(&self) -> impl Iterator<Item = VtepView<'_>> {
        self.vteps.iter().map(|(name, v)| VtepView {
            name,
            idx: v.idx,
            spec: &v.spec,
            bridge: self.bridge_of(&v.spec).map_or("", |b| b),
            remotes: v
                .remotes
                .iter()
                .map(|((address, kind), r)| RemoteView {
                    address: *address,
                    kind: *kind,
                    idx: r.idx,
                    name: &r.name,
                    next_hop: &r.next_hop,
                })
                .collect(),
        })
    }

    /// Gives every VTEP that networks name as remote a number, and retires those none names any more.
    pub(super) fn number_remotes(&mut self) -> Result<(), TopologyError> {
        let networks = self.networks.clone();
        let mut wanted: BTreeMap<&str, BTreeSet<(IpAddr, Kind)>> = BTreeMap::new();
        for o in networks.values().filter_map(|n| n.spec.overlay.as_ref()) {
            wanted.entry(&o.vtep).or_default().extend(o.destinations());
        }
        for (name, v) in &mut self.vteps {
            let wanted = wanted.remove(name.as_str()).unwrap_or_default();
            v.remotes.retain(|at, r| {
                let stays = wanted.contains(at);
                self.retired_ports.extend(Some(r.idx).filter(|_| !stays));
                stays
            });
            for (address, kind) in wanted {
                if v.remotes.contains_key(&(address, kind)) {
                    continue;
                }
                let label = remote_name(name, address, kind);
                let Some(idx) = self.free_ports.pop() else { return Err(TopologyError::TooManyPorts { port: label }) };
                let state = RemoteState { idx, name: label.as_str().into(), next_hop: Arc::default() };
                if address.is_multicast() {
                    state.next_hop.set(Some(group_mac(address)));
                }
                v.remotes.insert((address, kind), state);
            }
        }
        Ok(())
    }

    /// The VTEPs whose tunnels come by a port.
    pub(super) fn vteps_behind(&self, port: &str) -> Box<[PortIdx]> {
        self.vteps.values().filter(|v| v.spec.uplink == port).map(|v| v.idx).collect()
    }

    fn free_port(&mut self, port: &str) -> Result<PortIdx, TopologyError> {
        self.free_ports.pop().ok_or_else(|| TopologyError::TooManyPorts { port: port.to_owned() })
    }

    /// Makes networks of numbered segments, with their lists and remotes; the segments of each VTEP by VNI.
    pub(super) fn fill_networks(&self, segments: &mut [Segment]) -> Result<BTreeMap<String, Networks>, TopologyError> {
        let mut known: BTreeMap<String, Networks> =
            self.vteps.keys().map(|v| (v.clone(), Networks::default())).collect();
        // Most networks are of the bridge, and have the remotes, of the one before: one look-up serves them all.
        let (mut bridge, mut numbers): (Option<&Arc<str>>, &[SegmentId]) = (None, &[]);
        let mut reached: Option<(&OverlaySpec, Reached)> = None;
        for (name, n) in &self.networks {
            if bridge.is_none_or(|b| !Arc::ptr_eq(b, &n.place.0)) {
                let named = self.bridges.get(&*n.place.0);
                (bridge, numbers) = (Some(&n.place.0), named.map_or(&[][..], |b| &b.segments[..]));
            }
            let id = numbers.get(n.place.1.get() as usize).copied().unwrap_or(SegmentId::NONE);
            let Some(segment) = segments.get_mut(id.get()).filter(|_| id != SegmentId::NONE) else { continue };
            segment.network = Some(n.name.clone());
            if !n.spec.acls.is_empty() {
                segment.lists = Some(Arc::new(self.lists(|| format!("network '{name}'"), &n.spec.acls)?));
            }
            let Some(o) = &n.spec.overlay else { continue };
            let same = |(b, _): &(&OverlaySpec, Reached)| {
                (&b.vtep, b.kind, b.group, &b.remotes) == (&o.vtep, o.kind, o.group, &o.remotes)
            };
            if !reached.as_ref().is_some_and(same) {
                reached = Some((o, self.reached(o)));
            }
            let (_, r) = reached.as_ref().expect("set above");
            segment.remotes = r.remotes.clone();
            segment.flood = match segment.flood.is_empty() {
                true => r.floods.clone(),
                false => segment.flood.iter().chain(r.floods.iter()).copied().collect(),
            };
            (segment.vni, segment.learns_remote) = (Some(o.vni.get()), o.learn);
            segment.keeps_tags = o.keep_tags;
            segment.proxy = o.suppress.then(|| Proxy {
                spec: n.spec.clone(),
                learned: self.bindings.clone(),
                answered: n.answered.clone(),
            });
            let class = VlanTagInfo::new(Tag::NONE, TPID_8021Q, n.place.1.get());
            if let Some(of_vtep) = known.get_mut(&o.vtep) {
                of_vtep.insert((o.kind, o.vni.get()), (class, id));
            }
        }
        Ok(known)
    }

    fn reached(&self, o: &OverlaySpec) -> Reached {
        let remotes = self.vteps.get(&o.vtep).map(|v| &v.remotes);
        let number = |at: (IpAddr, Kind)| remotes?.get(&at).map(|r| r.idx);
        let all: Arc<[PortIdx]> = o.remotes.iter().filter_map(|a| number((*a, o.kind))).collect();
        // Broadcasts go to each of them, or to the group.
        let group = o.group.and_then(|g| number((g, o.kind)));
        Reached { floods: group.map_or_else(|| all.clone(), |g| [g].into()), remotes: all }
    }

    fn underlay(&self, v: &VtepState) -> SegmentId {
        self.bridge_of(&v.spec).and_then(|bridge| self.segment(bridge, v.spec.vid)).unwrap_or(SegmentId::NONE)
    }

    /// Makes VTEPs stations of the segments of their underlays.
    pub(super) fn join_underlays(&self, segments: &mut [Segment]) {
        for v in self.vteps.values() {
            let id = self.underlay(v);
            if let Some(underlay) = segments.get_mut(id.get()).filter(|_| id != SegmentId::NONE) {
                underlay.flood = underlay.flood.iter().copied().chain([v.idx]).collect();
            }
        }
    }

    /// Adds VTEPs and remotes to the ports.
    pub(super) fn fill_vteps(&self, known: &BTreeMap<String, Networks>, ports: &mut [Option<Arc<Port>>; MAX_PORTS]) {
        for (name, v) in &self.vteps {
            let networks = known.get(name).cloned().unwrap_or_default();
            let groups = v.remotes.keys().map(|(a, _)| *a).filter(IpAddr::is_multicast).map(Into::into).collect();
            self.fill_vtep(v, self.underlay(v), (networks, groups), ports);
        }
    }

    fn fill_vtep(
        &self,
        v: &VtepState,
        underlay: SegmentId,
        (networks, groups): (Networks, BTreeSet<Address>),
        ports: &mut [Option<Arc<Port>>; MAX_PORTS],
    ) {
        let s = &v.spec;
        // What leaves by the uplink, leaves whole: no router may fragment it.
        let mtu = self.ports.get(&s.uplink).map_or(0, |p| p.spec.mtu.get());
        let vtep = Vtep {
            mac: s.mac,
            address: s.address.into(),
            uplink: self.ports.get(&s.uplink).map(|p| p.idx),
            udp_port: s.udp_port,
            networks,
            groups,
            remotes: v.remotes.iter().map(|((a, kind), r)| (((*a).into(), *kind), r.idx)).collect(),
        };
        let vlans = PortVlans::new(&VlanMode::Access { vid: s.vid });
        let bare = |idx, vlans: PortVlans, untagged, mtu, role, name: &Arc<str>| Port {
            idx,
            link: true.into(),
            forwarding: Forwarding::default(),
            mtu,
            untagged,
            tagged: None,
            vlans,
            segments: SegmentMap::One(SegmentId::NONE),
            limits: v.limits.clone(),
            role,
            vteps: Box::new([]),
            name: name.clone(),
            filter: None,
        };
        let inside = untagged(&vlans, &SegmentMap::One(underlay));
        ports[v.idx.get()] = Some(Arc::new(bare(v.idx, vlans, inside, mtu, Role::Vtep(Box::new(vtep)), &v.name)));
        for ((address, kind), r) in &v.remotes {
            let outer = Outer::new(&OuterSpec {
                kind: *kind,
                mac: s.mac,
                from: s.address,
                to: *address,
                udp_port: s.udp_port,
                ttl: s.ttl,
                udp6_checksums: s.udp6_checksums,
            });
            // Around the inner payload: its own Ethernet header, and all behind the outer one.
            let mtu = mtu.saturating_sub(outer.len() as u32);
            let remote = Remote { vtep: v.idx, outer, next_hop: r.next_hop.clone() };
            let nothing = PortVlans::new(&VlanMode::Access { vid: Vid::of::<0>() });
            let none = untagged(&nothing, &SegmentMap::One(SegmentId::NONE));
            ports[r.idx.get()] =
                Some(Arc::new(bare(r.idx, nothing, none, mtu, Role::Remote(Box::new(remote)), &r.name)));
        }
    }
}

/// Whether a bridge was made for networks without a VLAN of their own.
pub fn is_hidden(bridge: &str) -> bool {
    bridge.starts_with(HIDDEN)
}
