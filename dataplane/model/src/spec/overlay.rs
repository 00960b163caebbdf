//! Networks, VTEPs, routes and neighbours.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

use super::{AclNames, bad, is_host, port::check_lists, unicast_mac, within};
use crate::{Bad, DEFAULT_BRIDGE, MacAddr, Vid, Vni, defaults, v1};

/// The encapsulation of a network in tunnels. All carry Ethernet, and a number of 24 bits that names the network.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum Tunnel {
    /// RFC 7348.
    #[default]
    Vxlan,
    /// RFC 8926.
    Geneve,
    /// RFC 2784 and RFC 2890: transparent Ethernet bridging.
    Gre,
    /// RFC 7637.
    Nvgre,
}

impl Tunnel {
    /// All of them.
    pub const ALL: [Tunnel; 4] = [Tunnel::Vxlan, Tunnel::Geneve, Tunnel::Gre, Tunnel::Nvgre];

    /// Its name in the CLI and the API.
    pub const fn name(self) -> &'static str {
        match self {
            Tunnel::Vxlan => "vxlan",
            Tunnel::Geneve => "geneve",
            Tunnel::Gre => "gre",
            Tunnel::Nvgre => "nvgre",
        }
    }

    /// Octets of the outer headers: Ethernet, IP, UDP and the tunnel's own.
    pub(crate) const fn octets(self, v4: bool) -> u32 {
        let udp_and_header = if matches!(self, Tunnel::Gre | Tunnel::Nvgre) { 8 } else { 16 };
        14 + if v4 { 20 } else { 40 } + udp_and_header
    }
}

/// A network: a segment with a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkSpec {
    /// Bridge and VLAN on this host; none, if the network has no VLAN.
    pub vlan: Option<(String, Vid)>,
    /// The network in tunnels; it stays on this host, if absent.
    pub overlay: Option<OverlaySpec>,
    /// ACLs of every port that carries the network.
    pub acls: AclNames,
}

/// A network in tunnels to other hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverlaySpec {
    /// The encapsulation.
    pub kind: Tunnel,
    /// Its number in tunnels.
    pub vni: Vni,
    /// The VTEP of the tunnels.
    pub vtep: String,
    /// The other hosts' VTEPs.
    pub remotes: BTreeSet<IpAddr>,
    /// Multicast group of the underlay for BUM traffic; without one, each remote gets a copy.
    pub group: Option<IpAddr>,
    /// Whether frames keep the VLAN's tag in tunnels; RFC 7348, 6.1, wants them without.
    pub keep_tags: bool,
    /// Whether MAC addresses are learned from tunnels.
    pub learn: bool,
    /// Whether ARP requests and neighbor solicitations for known addresses are answered.
    pub suppress: bool,
    /// Static ARP/ND bindings.
    pub bindings: BTreeMap<IpAddr, Binding>,
}

/// The host or router that has an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    /// Its MAC address.
    pub mac: MacAddr,
    /// Whether it is a router.
    pub router: bool,
}

impl OverlaySpec {
    /// Where frames of the network are sent: its remotes, and its group.
    pub fn destinations(&self) -> impl Iterator<Item = (IpAddr, Tunnel)> {
        self.remotes.iter().copied().chain(self.group).map(|a| (a, self.kind))
    }
}

/// What a remote VTEP is called: the VTEP of this host and the remote address, and the encapsulation unless that is
/// VXLAN.
pub fn remote_name(vtep: &str, address: IpAddr, kind: Tunnel) -> String {
    match kind {
        Tunnel::Vxlan => format!("{vtep}/{address}"),
        kind => format!("{vtep}/{address}/{}", kind.name()),
    }
}

/// A VTEP as an end of tunnels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VtepSpec {
    /// The port that carries the tunnels.
    pub uplink: String,
    /// The VLAN of the uplink's bridge that is the underlay; 0 for untagged.
    pub vid: Vid,
    /// Its IP address.
    pub address: IpAddr,
    /// Its MAC address.
    pub mac: MacAddr,
    /// The UDP port of VXLAN.
    pub udp_port: u16,
    /// TTL or hop limit of outer packets.
    pub ttl: u8,
    /// Whether tunnels over IPv6 have UDP checksums.
    pub udp6_checksums: bool,
}

/// A VTEP and how it reaches others.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Vtep {
    /// See [`VtepSpec`].
    pub spec: VtepSpec,
    /// Its address and the network that needs no route.
    pub address: IpNet,
    /// Static routes, the default one included.
    pub routes: Vec<Route>,
    /// Static ARP/ND entries.
    pub neighbors: Vec<(IpAddr, MacAddr)>,
}

/// A static route.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Route {
    /// The destination.
    pub to: IpNet,
    /// Next hops in order of preference.
    pub via: Vec<IpAddr>,
}

impl NetworkSpec {
    /// Of a network. `vtep` is the VTEP of its tunnels, if it has a VNI.
    pub(crate) fn new(object: &str, n: &v1::Network, vtep: Option<(&str, &VtepSpec)>) -> Result<Self, Bad> {
        let bridge = if n.bridge.is_empty() { DEFAULT_BRIDGE } else { &n.bridge };
        let acls = AclNames { ingress: n.ingress_acls.clone(), egress: n.egress_acls.clone() };
        check_lists(object, &acls)?;
        let overlay = n.vni.zip(vtep).map(|(vni, vtep)| overlay(object, n, vni, vtep)).transpose()?;
        let vlan = n.vlan.map(|v| Ok((bridge.to_owned(), within(object, "vlan", v, Vid::new)?))).transpose()?;
        Ok(NetworkSpec { vlan, overlay, acls })
    }
}

fn overlay(object: &str, n: &v1::Network, vni: u32, (vtep, own): (&str, &VtepSpec)) -> Result<OverlaySpec, Bad> {
    let mut remotes = BTreeSet::new();
    for r in &n.remotes {
        match r.parse::<IpAddr>() {
            Ok(a) if a == own.address => {
                return bad(object, "remotes", format!("{a} is this host's own vtep '{vtep}'"));
            }
            Ok(a) if is_host(a) && own.address.is_ipv4() == a.is_ipv4() => {
                if !remotes.insert(a) {
                    return bad(object, "remotes", format!("{a} is named twice"));
                }
            }
            _ => {
                let r = crate::shown(r);
                return bad(object, "remotes", format!("'{r}' is no address that {} can reach", own.address));
            }
        }
    }
    let group = match n.group.parse::<IpAddr>() {
        Ok(g) if g.is_multicast() && own.address.is_ipv4() == g.is_ipv4() => Some(g),
        _ if n.group.is_empty() => None,
        _ => {
            let why = format!("'{}' is no multicast group of {}'s family", crate::shown(&n.group), own.address);
            return bad(object, "group", why);
        }
    };
    let keep_tags = n.inner_tags == "keep";
    if keep_tags && n.vlan.is_none() {
        return bad(object, "inner_tags", "needs a vlan, whose tag is kept");
    }
    let mut bindings = BTreeMap::new();
    for b in &n.bindings {
        let Some(address) = b.address.parse::<IpAddr>().ok().filter(|a| is_host(*a)) else {
            return bad(object, "bindings", format!("'{}' is no address of a host", crate::shown(&b.address)));
        };
        let binding = Binding { mac: unicast_mac(object, "bindings", &b.mac)?, router: b.router };
        if bindings.insert(address, binding).is_some() {
            return bad(object, "bindings", format!("{address} is there twice"));
        }
    }
    Ok(OverlaySpec {
        kind: Tunnel::ALL.into_iter().find(|k| k.name() == n.tunnel).unwrap_or_default(),
        vni: within(object, "vni", vni, Vni::new)?,
        vtep: vtep.to_owned(),
        remotes,
        group,
        keep_tags,
        learn: n.learning != "off",
        suppress: n.suppression != "off",
        bindings,
    })
}

impl Vtep {
    /// Of a VTEP without its routes and neighbours.
    pub(crate) fn new(object: &str, v: &v1::Vtep) -> Result<Self, Bad> {
        let Some(address) = v.address.parse::<IpNet>().ok().filter(|a| is_host(a.addr())) else {
            return bad(
                object,
                "address",
                format!("'{}' is no host's address as 10.0.0.1/24", crate::shown(&v.address)),
            );
        };
        if v.uplink.is_empty() {
            return bad(object, "uplink", "is missing: the port that carries the tunnels");
        }
        let spec = VtepSpec {
            uplink: v.uplink.clone(),
            vid: within(object, "vlan", v.vlan.unwrap_or(0), Vid::new)?,
            address: address.addr(),
            mac: if v.mac.is_empty() { made_of(address.addr()) } else { unicast_mac(object, "mac", &v.mac)? },
            udp_port: v.udp_port.unwrap_or(defaults::VTEP_UDP_PORT) as u16,
            ttl: v.ttl.unwrap_or(defaults::VTEP_TTL) as u8,
            udp6_checksums: v.udp6_checksums != "off",
        };
        let mut vtep = Vtep { spec, address, routes: Vec::new(), neighbors: Vec::new() };
        if !v.gateway.is_empty() {
            let all = if address.addr().is_ipv4() { "0.0.0.0/0" } else { "::/0" };
            let default = v1::Route { to: all.into(), via: vec![v.gateway.clone()], ..Default::default() };
            let default = route(object, &vtep, &default);
            vtep.routes.push(default.map_err(|e| Bad { field: "gateway".into(), ..e })?);
        }
        Ok(vtep)
    }
}

/// A locally administered MAC address, the same at every start: no other host of the underlay has the IP address that it
/// is made of.
fn made_of(address: IpAddr) -> MacAddr {
    let o = match address {
        IpAddr::V4(a) => a.octets(),
        IpAddr::V6(a) => (a.octets().chunks(4).map(|c| u32::from_be_bytes([c[0], c[1], c[2], c[3]])))
            .fold(0u32, |h, w| (h ^ w).wrapping_mul(0x9e37_79b1).rotate_left(15))
            .to_be_bytes(),
    };
    MacAddr::from_octets([0x02, 0xd1, o[0], o[1], o[2], o[3]])
}

/// A route of `vtep`, which has the ones before.
pub(crate) fn route(object: &str, vtep: &Vtep, r: &v1::Route) -> Result<Route, Bad> {
    let on_link = vtep.address;
    let to = match r.to.parse::<IpNet>() {
        Ok(n) if n.trunc() != n => return bad(object, "to", format!("has host bits; {} is meant", n.trunc())),
        Ok(n) if n.addr().is_ipv4() != on_link.addr().is_ipv4() => {
            return bad(object, "to", format!("is of another family than {on_link}"));
        }
        Ok(n) => n,
        Err(_) => return bad(object, "to", "is no prefix as 10.1.0.0/16"),
    };
    let next_hop = |v: &String| match v.parse::<IpAddr>() {
        Ok(a) if a == on_link.addr() => bad(object, "via", format!("{a} is the vtep itself: a loop")),
        Ok(a) if on_link.contains(&a) => Ok(a),
        _ => bad(object, "via", format!("'{}' is no neighbour in {}", crate::shown(v), on_link.trunc())),
    };
    let via = r.via.iter().map(next_hop).collect::<Result<Vec<_>, _>>()?;
    if via.is_empty() {
        return bad(object, "via", "is missing: the neighbour it goes by");
    }
    if vtep.routes.iter().any(|r| r.to == to) {
        return bad(object, "to", "is there twice for its vtep");
    }
    Ok(Route { to, via })
}

/// A static ARP/ND entry of `vtep`, which has the ones before.
pub(crate) fn neighbor(object: &str, vtep: &Vtep, n: &v1::Neighbor) -> Result<(IpAddr, MacAddr), Bad> {
    let address = match n.address.parse::<IpAddr>() {
        Ok(a) if vtep.address.contains(&a) && a != vtep.address.addr() => a,
        _ => return bad(object, "address", format!("is no neighbour in {}", vtep.address.trunc())),
    };
    if vtep.neighbors.iter().any(|(a, _)| *a == address) {
        return bad(object, "address", "is there twice for its vtep");
    }
    let mac = unicast_mac(object, "mac", &n.mac)?;
    Ok((address, mac))
}
