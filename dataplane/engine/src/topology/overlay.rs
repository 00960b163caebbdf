//! Networks, VTEPs and remotes: what makes a segment go on at other hosts. See `crate::tunnel`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use super::{BridgeSpec, Topology, TopologyError};
use crate::{
    MAX_PORTS, MacAddr, PortIdx, SegmentId,
    snapshot::{Port, Segment, SegmentMap, untagged},
    storm::StormLimits,
    tunnel::{Address, Bindings, Kind, Networks, NextHop, Outer, OuterSpec, Remote, Role, Vtep, group_mac},
    vlan::{Class, PortVlans, PriorityTags, TPID_8021Q, Tag, VlanMode},
};

/// A network as configured: a segment with a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkSpec {
    /// The bridge and VLAN that it is on this host; one that shows nowhere, without.
    pub vlan: Option<(String, u16)>,
    /// What it is in tunnels.
    pub overlay: Option<OverlaySpec>,
    /// Its lists, for every port that carries it.
    pub acls: super::AclNames,
}

/// How a network goes on at other hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverlaySpec {
    /// How its frames are carried.
    pub kind: Kind,
    /// 1 to 2^24 - 1.
    pub vni: u32,
    /// The VTEP that it uses.
    pub vtep: String,
    /// The other hosts' VTEPs.
    pub remotes: BTreeSet<IpAddr>,
    /// A multicast group of the underlay that broadcasts go to, instead of a copy to each of them.
    pub group: Option<IpAddr>,
    /// Whether frames keep the VLAN's tag in tunnels; RFC 7348, 6.1, wants them without.
    pub keep_tags: bool,
    /// Whether addresses are learned from what they send.
    pub learn: bool,
    /// Whether questions for addresses are answered where it is known who has them.
    pub suppress: bool,
    /// Who has which address for certain.
    pub bindings: BTreeMap<IpAddr, MacAddr>,
}

/// A VTEP as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VtepSpec {
    /// The port by which tunnels come and go.
    pub uplink: String,
    /// The VLAN of the uplink's bridge that is the underlay; 0 for untagged.
    pub vid: u16,
    /// Where tunnels end.
    pub address: IpAddr,
    /// Its address of layer 2.
    pub mac: MacAddr,
    /// The UDP port of VXLAN.
    pub udp_port: u16,
    /// TTL or hop limit of what it sends.
    pub ttl: u8,
}

/// An object that names another which is not there, or does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} '{name}': {field}: {why}")]
pub struct OverlayError {
    kind: &'static str,
    name: String,
    field: &'static str,
    why: String,
}

impl OverlayError {
    /// Kind and name of the object.
    pub fn object(&self) -> (&'static str, String) {
        (self.kind, self.name.clone())
    }
}

fn unfit(kind: &'static str, name: &str, field: &'static str, why: String) -> OverlayError {
    OverlayError { kind, name: name.to_owned(), field, why }
}

#[derive(Clone)]
pub(super) struct NetworkState {
    pub(super) name: Arc<str>,
    pub(super) spec: NetworkSpec,
    /// Bridge and VLAN; of a hidden bridge if it has none of its own.
    pub(super) place: (String, u16),
    pub(super) bindings: Arc<Bindings>,
}

#[derive(Clone)]
pub(super) struct VtepState {
    idx: PortIdx,
    spec: VtepSpec,
    name: Arc<str>,
    storm: Arc<StormLimits>,
    remotes: BTreeMap<(IpAddr, Kind), RemoteState>,
}

#[derive(Clone)]
struct RemoteState {
    idx: PortIdx,
    name: Arc<str>,
    next_hop: Arc<NextHop>,
}

/// A VTEP with its remotes, for whoever resolves their next hops.
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
const HIDDEN_VLANS: std::ops::RangeInclusive<u16> = 1..=4094;

impl OverlaySpec {
    /// Where frames of the network are sent: its remotes, and its group.
    fn destinations(&self) -> impl Iterator<Item = (IpAddr, Kind)> {
        self.remotes.iter().copied().chain(self.group).map(|a| (a, self.kind))
    }
}

impl Topology {
    /// Adds or changes a network; its ports are put to where it is. Whether it fits the rest is asked by
    /// [`Topology::snapshot`].
    pub fn set_network(&mut self, name: &str, spec: NetworkSpec) {
        let (before, bindings) = self.networks.remove(name).map(|n| (n.place, n.bindings)).unzip();
        let bindings = bindings.unwrap_or_default();
        let place = match (&spec.vlan, before) {
            (Some(_), before) => {
                self.hidden.extend(before.filter(|p| is_hidden(&p.0)));
                spec.vlan.clone().expect("matched")
            }
            (None, Some(place)) if is_hidden(&place.0) => place,
            (None, _) => self.hidden_place(),
        };
        for p in self.ports.values_mut().filter(|p| p.spec.network.as_deref() == Some(name)) {
            (p.spec.bridge, p.spec.vlan) = (place.0.clone(), VlanMode::Access { vid: place.1 });
        }
        self.networks.insert(name.to_owned(), NetworkState { name: name.into(), spec, place, bindings });
    }

    /// A VLAN of a hidden bridge that no network has.
    fn hidden_place(&mut self) -> (String, u16) {
        if let Some(place) = self.hidden.pop() {
            return place;
        }
        let n = self.hidden_made;
        self.hidden_made += 1;
        let vlans = HIDDEN_VLANS.len();
        let bridge = format!("{HIDDEN}{}", n / vlans);
        if n.is_multiple_of(vlans) {
            self.set_bridge(&bridge, BridgeSpec { ageing_s: 300 });
        }
        (bridge, HIDDEN_VLANS.start() + (n % vlans) as u16)
    }

    /// Removes a network. A port that is still in it is found by [`Topology::snapshot`].
    pub fn remove_network(&mut self, name: &str) {
        let place = self.networks.remove(name).map(|n| n.place);
        self.hidden.extend(place.filter(|p| is_hidden(&p.0)));
    }

    /// Adds or changes a VTEP; its number stays the same. Whether it fits the rest is asked by
    /// [`Topology::snapshot`].
    pub fn set_vtep(&mut self, name: &str, spec: VtepSpec) -> Result<PortIdx, TopologyError> {
        if let Some(v) = self.vteps.get_mut(name) {
            v.spec = spec;
            return Ok(v.idx);
        }
        let idx = self.free_port(name)?;
        let v = VtepState { idx, spec, name: name.into(), storm: Arc::default(), remotes: BTreeMap::new() };
        self.vteps.insert(name.to_owned(), v);
        Ok(idx)
    }

    /// Removes a VTEP; its number and those of its remotes are retired.
    pub fn remove_vtep(&mut self, name: &str) {
        if let Some(v) = self.vteps.remove(name) {
            self.retired_ports.push(v.idx);
            self.retired_ports.extend(v.remotes.values().map(|r| r.idx));
        }
    }

    /// Whether networks, VTEPs and ports fit together.
    pub(super) fn check_overlay(&self) -> Result<(), TopologyError> {
        for (port, p) in &self.ports {
            if let Some(network) = p.spec.network.as_ref().filter(|n| !self.networks.contains_key(*n)) {
                return Err(TopologyError::NoSuchNetwork { port: port.clone(), network: network.clone() });
            }
        }
        let (mut addresses, mut stations) = (BTreeMap::new(), BTreeMap::new());
        for (name, v) in &self.vteps {
            let station = (self.bridge_of(&v.spec), v.spec.vid, v.spec.mac.bits());
            if let Some(other) = stations.insert(station, name) {
                let why = format!("{} is that of vtep '{other}' in the same underlay", v.spec.mac);
                return Err(unfit("vtep", name, "mac", why).into());
            }
            self.check_vtep(name, &v.spec)?;
            if let Some(other) = addresses.insert(v.spec.address, name) {
                return Err(
                    unfit("vtep", name, "address", format!("{} is vtep '{other}' already", v.spec.address)).into()
                );
            }
        }
        let mut gre: BTreeMap<(&str, IpAddr), Kind> = BTreeMap::new();
        let (mut vnis, mut vlans) = (BTreeMap::new(), BTreeMap::new());
        for (name, n) in &self.networks {
            if let Some((bridge, vid)) = &n.spec.vlan {
                if !self.bridges.contains_key(bridge) {
                    return Err(unfit("network", name, "bridge", format!("there is no bridge '{bridge}'")).into());
                }
                if let Some(other) = vlans.insert((bridge, vid), name) {
                    let why = format!("{vid} of bridge '{bridge}' is network '{other}' already");
                    return Err(unfit("network", name, "vlan", why).into());
                }
            }
            if let Some(o) = &n.spec.overlay {
                if let Some(other) = vnis.insert((o.kind, o.vni), name) {
                    return Err(unfit("network", name, "vni", format!("{} is network '{other}' already", o.vni)).into());
                }
                self.check_remotes(name, &n.spec, o)?;
                // On the wire, the two look alike.
                for r in o.remotes.iter().filter(|_| matches!(o.kind, Kind::Gre | Kind::Nvgre)) {
                    if gre.insert((&o.vtep, *r), o.kind).is_some_and(|k| k != o.kind) {
                        let why = format!("{r} has gre and nvgre already, which can't be told apart");
                        return Err(unfit("network", name, "tunnel", why).into());
                    }
                }
            }
        }
        Ok(())
    }

    fn check_vtep(&self, name: &str, v: &VtepSpec) -> Result<(), OverlayError> {
        if Some(v.udp_port) == Kind::Geneve.udp_port(v.udp_port) {
            return Err(unfit("vtep", name, "udp_port", format!("{} is Geneve's", v.udp_port)));
        }
        match self.ports.get(&v.uplink) {
            None => Err(unfit("vtep", name, "uplink", format!("there is no port '{}'", v.uplink))),
            Some(p) if !p.spec.vlan.carried().contains(v.vid) => {
                Err(unfit("vtep", name, "vlan", format!("port '{}' does not carry VLAN {}", v.uplink, v.vid)))
            }
            Some(_) => Ok(()),
        }
    }

    fn check_remotes(&self, name: &str, n: &NetworkSpec, o: &OverlaySpec) -> Result<(), OverlayError> {
        let Some(v) = self.vteps.get(&o.vtep).map(|v| &v.spec) else {
            return Err(unfit("network", name, "vtep", format!("there is no vtep '{}'", o.vtep)));
        };
        if let Some(r) = o.remotes.iter().find(|r| r.is_ipv4() != v.address.is_ipv4()) {
            let why = format!("{r} can't be reached from {}, which is of the other family", v.address);
            return Err(unfit("network", name, "remotes", why));
        }
        if let Some(g) = o.group.filter(|g| !g.is_multicast() || g.is_ipv4() != v.address.is_ipv4()) {
            let why = format!("{g} is no multicast group of the family of {}", v.address);
            return Err(unfit("network", name, "group", why));
        }
        if o.remotes.contains(&v.address) {
            let why = format!("{} is this host's own vtep '{}'", v.address, o.vtep);
            return Err(unfit("network", name, "remotes", why));
        }
        if n.vlan.as_ref().is_some_and(|(b, vid)| self.bridge_of(v) == Some(b) && *vid == v.vid) {
            let why = format!("is the underlay of vtep '{}': the tunnels would go through themselves", o.vtep);
            return Err(unfit("network", name, "vlan", why));
        }
        Ok(())
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
            return Some(p.bridge == bridge && p.vlan.carried().contains(vid));
        }
        self.number_of(name)?;
        let reaches = |n: &NetworkState| {
            let of = |o: &OverlaySpec| o.remotes.iter().any(|r| remote_name(&o.vtep, *r, o.kind) == name);
            n.place.0 == bridge && n.place.1 == vid && n.spec.overlay.as_ref().is_some_and(of)
        };
        Some(self.networks.values().any(reaches))
    }

    /// The bridge and VLAN of a network.
    pub fn network_place(&self, name: &str) -> Option<(&str, u16)> {
        self.networks.get(name).map(|n| (n.place.0.as_str(), n.place.1))
    }

    /// Who has which address in a network.
    pub fn bindings(&self, network: &str) -> Option<&Arc<Bindings>> {
        self.networks.get(network).map(|n| &n.bindings)
    }

    /// Name and specification of a network.
    pub fn network(&self, name: &str) -> Option<(&str, &NetworkSpec)> {
        self.networks.get_key_value(name).map(|(n, s)| (n.as_str(), &s.spec))
    }

    /// Names and specifications of all networks.
    pub fn networks(&self) -> impl Iterator<Item = (&str, &NetworkSpec)> {
        self.networks.iter().map(|(n, s)| (n.as_str(), &s.spec))
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
    pub fn number_remotes(&mut self) -> Result<(), TopologyError> {
        let mut wanted: BTreeMap<String, BTreeSet<(IpAddr, Kind)>> = BTreeMap::new();
        for o in self.networks.values().filter_map(|n| n.spec.overlay.as_ref()) {
            match wanted.get_mut(&o.vtep) {
                Some(w) => w.extend(o.destinations()),
                None => drop(wanted.insert(o.vtep.clone(), o.destinations().collect())),
            }
        }
        let names: Vec<String> = self.vteps.keys().cloned().collect();
        for name in names {
            let wanted = wanted.remove(&name).unwrap_or_default();
            let has: Vec<(IpAddr, Kind)> = self.vteps[&name].remotes.keys().copied().collect();
            for gone in has.iter().filter(|a| !wanted.contains(a)) {
                let v = self.vteps.get_mut(&name).expect("named above");
                self.retired_ports.extend(v.remotes.remove(gone).map(|r| r.idx));
            }
            for remote in wanted.into_iter().filter(|a| !has.contains(a)) {
                let label = remote_name(&name, remote.0, remote.1);
                let state =
                    RemoteState { idx: self.free_port(&label)?, name: label.as_str().into(), next_hop: Arc::default() };
                if remote.0.is_multicast() {
                    state.next_hop.set(Some(group_mac(remote.0)));
                }
                self.vteps.get_mut(&name).expect("named above").remotes.insert(remote, state);
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

    fn segment_at(&self, (bridge, vid): (&str, u16)) -> SegmentId {
        self.segment(bridge, vid).unwrap_or(SegmentId::NONE)
    }

    /// Adds VTEPs and remotes to numbered segments and to the ports.
    pub(super) fn fill_overlay(&self, segments: &mut [Segment], ports: &mut [Option<Arc<Port>>; MAX_PORTS]) {
        let mut known: BTreeMap<&str, Networks> = BTreeMap::new();
        for n in self.networks.values() {
            let id = self.segment_at((&n.place.0, n.place.1));
            let Some(segment) = segments.get_mut(id.get()).filter(|_| id != SegmentId::NONE) else { continue };
            segment.network = Some(n.name.clone());
            let Some(o) = &n.spec.overlay else { continue };
            let remotes = self.vteps.get(&o.vtep).map(|v| &v.remotes);
            let number = |at: (IpAddr, Kind)| remotes?.get(&at).map(|r| r.idx);
            let members = o.remotes.iter().filter_map(|a| number((*a, o.kind)));
            segment.remotes = members.collect();
            // Broadcasts go to each of them, or to the group.
            let group = o.group.and_then(|g| number((g, o.kind)));
            let floods: &[PortIdx] = group.as_ref().map_or(&segment.remotes, std::slice::from_ref);
            segment.flood = segment.flood.iter().chain(floods).copied().collect();
            (segment.vni, segment.learns_remote) = (Some(o.vni), o.learn);
            segment.keeps_tags = o.keep_tags;
            segment.bindings = o.suppress.then(|| n.bindings.clone());
            let class = Class::new(Tag::NONE, TPID_8021Q, n.place.1);
            known.entry(&o.vtep).or_default().insert((o.kind, o.vni), (class, id));
        }
        for (name, v) in &self.vteps {
            let bridge = self.bridge_of(&v.spec).map_or("", |b| b);
            let id = self.segment_at((bridge, v.spec.vid));
            if let Some(underlay) = segments.get_mut(id.get()).filter(|_| id != SegmentId::NONE) {
                underlay.flood = underlay.flood.iter().copied().chain([v.idx]).collect();
            }
            let networks = known.remove(name.as_str()).unwrap_or_default();
            let of_vtep = self.networks.values().filter_map(|n| n.spec.overlay.as_ref()).filter(|o| o.vtep == *name);
            let groups = of_vtep.filter_map(|o| o.group).map(Into::into).collect();
            self.fill_vtep(v, id, (networks, groups), ports);
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
        // What leaves by the uplink, leaves whole: nobody on the way may fragment it.
        let mtu = self.ports.get(&s.uplink).map_or(0, |p| p.spec.mtu);
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
            protected: false,
            mtu,
            untagged,
            tagged: None,
            vlans,
            priority_tags: PriorityTags::Never,
            segments: SegmentMap::One(SegmentId::NONE),
            mac_limit: None,
            storm: v.storm.clone(),
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
            });
            // Around the inner payload: its own Ethernet header, and all behind the outer one.
            let mtu = mtu.saturating_sub(outer.len() as u32);
            let remote = Remote { vtep: v.idx, outer, next_hop: r.next_hop.clone() };
            let nothing = PortVlans::new(&VlanMode::Access { vid: 0 });
            let none = untagged(&nothing, &SegmentMap::One(SegmentId::NONE));
            ports[r.idx.get()] =
                Some(Arc::new(bare(r.idx, nothing, none, mtu, Role::Remote(Box::new(remote)), &r.name)));
        }
    }
}

/// What people call a remote: its VTEP and its address, and its kind unless that is VXLAN.
fn remote_name(vtep: &str, address: IpAddr, kind: Kind) -> String {
    match kind {
        Kind::Vxlan => format!("{vtep}/{address}"),
        kind => format!("{vtep}/{address}/{}", kind.name()),
    }
}

/// Whether a bridge was made for networks without a VLAN of their own.
pub fn is_hidden(bridge: &str) -> bool {
    bridge.starts_with(HIDDEN)
}
