//! Networks, VTEPs and routes: from what the operator wrote to what the dataplane is told.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use dunlin_dataplane_api::v1 as dp;
use dunlin_model::v1::{Config, Network, Vtep};
use ipnet::IpNet;

use super::{Bad, DEFAULT_BRIDGE, bad, carries, station_mac};

/// Kinds of tunnels, the default one first.
const KINDS: [&str; 4] = ["vxlan", "geneve", "gre", "nvgre"];
/// `MAX_PORTS` of the dataplane's engine.
const MAX_NUMBERED: usize = 4096;
/// The port of VXLAN that IANA assigned: RFC 7348, 5.
const VXLAN_PORT: u32 = 4789;
const DEFAULT_TTL: u32 = 64;

pub(super) struct Overlay {
    pub networks: Vec<dp::Network>,
    pub vteps: Vec<dp::Vtep>,
}

impl Overlay {
    /// Whether a static address of a network is at one of its ports or remotes.
    pub fn check_mac(&self, m: &dp::StaticMac, ports: &Ports) -> Result<(), Bad> {
        if m.network.is_empty() {
            return Ok(());
        }
        let object = format!("mac '{}'", m.mac);
        let Ok(at) = self.networks.binary_search_by(|n| n.name.cmp(&m.network)) else {
            return bad(object, "network", format!("there is no network '{}'", m.network));
        };
        let joined = ports.get(&m.port).is_some_and(|p| p.network == m.network);
        let remote = self.networks[at].overlay.as_ref().zip(m.port.split_once('/'));
        // VXLAN's name is VTEP/ADDRESS, others' have their kind behind that.
        let tunnelled = remote.is_some_and(|(o, (v, a))| {
            let kind = if o.kind == KINDS[0] { String::new() } else { format!("/{}", o.kind) };
            o.vtep == v && o.remotes.iter().any(|r| a.strip_prefix(r.as_str()) == Some(&kind))
        });
        if !joined && !tunnelled {
            let why = format!("'{}' is neither a port nor a remote (VTEP/ADDRESS) of network '{}'", m.port, m.network);
            return bad(object, "port", why);
        }
        Ok(())
    }
}

/// Ports whose frames can be too large for their network's tunnels.
pub(super) fn too_large(t: &dp::Transaction) -> Vec<String> {
    let vteps: BTreeMap<&str, &dp::Vtep> = t.set_vteps.iter().map(|v| (v.name.as_str(), v)).collect();
    let ports: BTreeMap<&str, &dp::Port> = t.set_ports.iter().map(|p| (p.name.as_str(), p)).collect();
    let mut joined: BTreeMap<&str, Vec<&dp::Port>> = BTreeMap::new();
    t.set_ports.iter().filter(|p| !p.network.is_empty()).for_each(|p| joined.entry(&p.network).or_default().push(p));
    let mut warnings = Vec::new();
    for n in &t.set_networks {
        let Some((o, v)) = n.overlay.as_ref().and_then(|o| Some((o, vteps.get(o.vtep.as_str())?))) else { continue };
        let uplink = ports.get(v.uplink.as_str()).map_or(0, |p| p.mtu);
        // Ethernet, IPv4, UDP and the tunnel's own header; GRE has no UDP, IPv6 is longer.
        let gre = o.kind == "gre" || o.kind == "nvgre";
        let takes = if gre { 42 } else { 50 } + if v.address.contains(':') { 20 } else { 0 };
        let fits = uplink.saturating_sub(takes + if o.keep_tags { 4 } else { 0 });
        let on_vlan = |p: &&dp::Port| !n.bridge.is_empty() && p.bridge == n.bridge && carries(p, n.vlan);
        let carriers = if n.bridge.is_empty() { &[][..] } else { &t.set_ports };
        let here = joined.get(n.name.as_str()).into_iter().flatten().copied().chain(carriers.iter().filter(on_vlan));
        for p in here.filter(|p| p.name != v.uplink && p.mtu > fits) {
            let (port, mtu, network) = (&p.name, p.mtu, &n.name);
            warnings.push(format!(
                "port '{port}': mtu: {mtu} is more than the {fits} that fit into the tunnels of network '{network}'"
            ));
        }
    }
    warnings
}

type Bridges = BTreeMap<String, dp::Bridge>;
type Ports = BTreeMap<String, dp::Port>;

pub(super) fn compile(config: &Config, bridges: &Bridges, ports: &Ports) -> Result<Overlay, Bad> {
    let mut vteps: BTreeMap<String, dp::Vtep> = BTreeMap::new();
    let mut addresses = BTreeMap::new();
    for v in &config.vtep {
        let compiled = vtep(v, config, ports)?;
        let object = format!("vtep '{}'", v.name);
        if let Some(other) = addresses.insert(host(&compiled.address), v.name.clone()) {
            return bad(object, "address", format!("{} is vtep '{other}' already", v.address));
        }
        if vteps.insert(v.name.clone(), compiled).is_some() {
            return bad(object, "name", "is declared twice");
        }
    }
    let routes = config.route.iter().map(|r| (format!("route '{}'", r.to), &r.vtep));
    let neighbors = config.neighbor.iter().map(|n| (format!("neighbor '{}'", n.address), &n.vtep));
    for (object, named) in routes.chain(neighbors) {
        let known = if named.is_empty() { vteps.len() == 1 } else { vteps.contains_key(named) };
        if !known {
            return bad(object, "vtep", which(named, &vteps));
        }
    }
    let (mut networks, mut vnis, mut vlans) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for n in &config.network {
        let compiled = network(n, bridges, ports, &vteps)?;
        let object = || format!("network '{}'", n.name);
        let kind = compiled.overlay.as_ref().map(|o| o.kind.clone());
        if let Some(other) = n.vni.and_then(|vni| vnis.insert((kind, vni), &n.name)) {
            return bad(object(), "vni", format!("{} is network '{other}' already", n.vni.unwrap_or_default()));
        }
        if let Some(v) = n.vlan
            && let Some(other) = vlans.insert((compiled.bridge.clone(), v), &n.name)
        {
            return bad(object(), "vlan", format!("{v} of bridge '{}' is network '{other}' already", compiled.bridge));
        }
        if networks.insert(n.name.clone(), compiled).is_some() {
            return bad(object(), "name", "is declared twice");
        }
    }
    check_limit(ports.len(), &vteps, &networks)?;
    if let Some(p) = ports.values().find(|p| !p.network.is_empty() && !networks.contains_key(&p.network)) {
        return bad(format!("port '{}'", p.name), "network", format!("there is no network '{}'", p.network));
    }
    Ok(Overlay { networks: networks.into_values().collect(), vteps: vteps.into_values().collect() })
}

/// What a dataplane numbers at most: ports, VTEPs and remotes together.
fn check_limit(
    ports: usize,
    vteps: &BTreeMap<String, dp::Vtep>,
    networks: &BTreeMap<String, dp::Network>,
) -> Result<(), Bad> {
    let remotes: BTreeSet<_> = networks
        .values()
        .filter_map(|n| n.overlay.as_ref())
        .flat_map(|o| o.remotes.iter().map(|r| (&o.vtep, &o.kind, r)))
        .collect();
    let all = ports + vteps.len() + remotes.len();
    match (all > MAX_NUMBERED, vteps.keys().next()) {
        (true, Some(v)) => bad(
            format!("vtep '{v}'"),
            "remotes",
            format!("{ports} ports, {} vteps and {} remotes are more than {MAX_NUMBERED}", vteps.len(), remotes.len()),
        ),
        _ => Ok(()),
    }
}

/// The address of "ADDRESS/PREFIX".
fn host(address: &str) -> Option<IpAddr> {
    address.parse::<IpNet>().ok().map(|a| a.addr())
}

fn which(name: &str, vteps: &BTreeMap<String, dp::Vtep>) -> String {
    let known: Vec<&str> = vteps.keys().map(String::as_str).collect();
    match name {
        "" if known.is_empty() => "there is no vtep; add one with 'dunlin vtep add'".into(),
        "" => format!("is missing, because there are several: one of {}; set it first", super::list(&known)),
        _ => format!("there is no vtep '{name}' (there are: {})", super::list(&known)),
    }
}

fn is_station(a: IpAddr) -> bool {
    !a.is_unspecified() && !a.is_multicast() && !a.is_loopback() && a != IpAddr::from([255; 4])
}

fn vtep(v: &Vtep, config: &Config, ports: &Ports) -> Result<dp::Vtep, Bad> {
    let object = format!("vtep '{}'", v.name);
    let vlan = v.vlan.unwrap_or(0);
    match ports.get(&v.uplink) {
        None if v.uplink.is_empty() => return bad(object, "uplink", "is missing: the port that tunnels go by"),
        None => return bad(object, "uplink", format!("there is no port '{}'", v.uplink)),
        Some(p) if !p.network.is_empty() => {
            return bad(object, "uplink", format!("'{}' is in network '{}'; an uplink has VLANs", v.uplink, p.network));
        }
        Some(p) if !carries(p, vlan) => {
            return bad(object, "vlan", format!("port '{}' does not carry VLAN {vlan}", v.uplink));
        }
        Some(_) => {}
    }
    let Some(address) = v.address.parse::<IpNet>().ok().filter(|a| is_station(a.addr())) else {
        return bad(object, "address", format!("'{}' is no host's address as 10.0.0.1/24", v.address));
    };
    let mut routes = Vec::new();
    let mine = config.route.iter().filter(|r| r.vtep == v.name || r.vtep.is_empty());
    for r in mine {
        routes.push(route(&address, &r.to, &r.via)?);
    }
    let mut neighbors = BTreeMap::new();
    for n in config.neighbor.iter().filter(|n| n.vtep == v.name || n.vtep.is_empty()) {
        let object = format!("neighbor '{}'", n.address);
        match n.address.parse::<IpAddr>() {
            Ok(a) if address.contains(&a) && a != address.addr() => {}
            _ => return bad(object, "address", format!("is no neighbour in {}", address.trunc())),
        }
        let compiled = dp::Binding { address: n.address.clone(), mac: station_mac(&object, &n.mac)? };
        if neighbors.insert(n.address.clone(), compiled).is_some() {
            return bad(object, "address", format!("is there twice for vtep '{}'", v.name));
        }
    }
    if !v.gateway.is_empty() {
        let all = if address.addr().is_ipv4() { "0.0.0.0/0" } else { "::/0" };
        routes.push(route(&address, all, std::slice::from_ref(&v.gateway))?);
    }
    let mut seen = BTreeSet::new();
    if let Some(twice) = routes.iter().find(|r| !seen.insert(r.to.clone())) {
        return bad(format!("route '{}'", twice.to), "to", format!("is there twice for vtep '{}'", v.name));
    }
    Ok(dp::Vtep {
        name: v.name.clone(),
        uplink: v.uplink.clone(),
        vlan,
        address: address.to_string(),
        mac: if v.mac.is_empty() { String::new() } else { station_mac(&object, &v.mac)? },
        udp_port: v.udp_port.unwrap_or(VXLAN_PORT),
        ttl: v.ttl.unwrap_or(DEFAULT_TTL),
        routes,
        neighbors: neighbors.into_values().collect(),
    })
}

fn route(on_link: &IpNet, to: &str, via: &[String]) -> Result<dp::Route, Bad> {
    let object = format!("route '{to}'");
    match to.parse::<IpNet>() {
        Ok(n) if n.trunc() != n => return bad(object, "to", format!("has host bits; {} is meant", n.trunc())),
        Ok(n) if n.addr().is_ipv4() != on_link.addr().is_ipv4() => {
            return bad(object, "to", format!("is of another family than {on_link}"));
        }
        Ok(_) => {}
        Err(_) => return bad(object, "to", "is no prefix as 10.1.0.0/16"),
    }
    for v in via {
        match v.parse::<IpAddr>() {
            Ok(a) if a == on_link.addr() => return bad(object, "via", format!("{a} is the vtep itself: a loop")),
            Ok(a) if on_link.contains(&a) => {}
            _ => return bad(object, "via", format!("'{v}' is no neighbour in {}", on_link.trunc())),
        }
    }
    if via.is_empty() {
        return bad(object, "via", "is missing: the neighbour it goes by");
    }
    Ok(dp::Route { to: to.to_owned(), via: via.to_vec() })
}

fn network(
    n: &Network,
    bridges: &Bridges,
    ports: &Ports,
    vteps: &BTreeMap<String, dp::Vtep>,
) -> Result<dp::Network, Bad> {
    let object = format!("network '{}'", n.name);
    let bridge = match (n.vlan, n.bridge.as_str()) {
        (Some(_), "") => DEFAULT_BRIDGE.to_owned(),
        (Some(_), bridge) => bridge.to_owned(),
        (None, _) => String::new(),
    };
    if !bridge.is_empty() && !bridges.contains_key(&bridge) {
        return bad(object, "bridge", format!("there is no bridge '{bridge}'"));
    }
    let local = dp::Network {
        name: n.name.clone(),
        bridge,
        vlan: n.vlan.unwrap_or(0),
        overlay: None,
        ingress_acls: n.ingress_acls.clone(),
        egress_acls: n.egress_acls.clone(),
    };
    let Some(vni) = n.vni else { return Ok(local) };
    let vtep = match vteps.get(&n.vtep) {
        Some(v) => v,
        None if n.vtep.is_empty() && vteps.len() == 1 => vteps.values().next().expect("one"),
        None => return bad(object, "vtep", which(&n.vtep, vteps)),
    };
    let own = host(&vtep.address);
    let mut remotes = BTreeSet::new();
    for r in &n.remotes {
        match r.parse::<IpAddr>() {
            Ok(a) if Some(a) == own => {
                return bad(object, "remotes", format!("{a} is this host's own vtep '{}'", vtep.name));
            }
            Ok(a) if is_station(a) && own.is_some_and(|o| o.is_ipv4() == a.is_ipv4()) => {
                if !remotes.insert(a) {
                    return bad(object, "remotes", format!("{a} is named twice"));
                }
            }
            _ => return bad(object, "remotes", format!("'{r}' is no address that {} can reach", vtep.address)),
        }
    }
    if ports.get(&vtep.uplink).is_some_and(|p| n.vlan.is_some() && p.bridge == local.bridge && vtep.vlan == local.vlan)
    {
        let why = format!("is the underlay of vtep '{}': the tunnels would go through themselves", vtep.name);
        return bad(object, "vlan", why);
    }
    match n.group.parse::<IpAddr>() {
        Ok(g) if g.is_multicast() && own.is_some_and(|o| o.is_ipv4() == g.is_ipv4()) => {}
        _ if n.group.is_empty() => {}
        _ => return bad(object, "group", format!("'{}' is no multicast group of {}'s family", n.group, vtep.address)),
    }
    let keep_tags = n.inner_tags == "keep";
    if keep_tags && n.vlan.is_none() {
        return bad(object, "inner_tags", "needs a vlan, whose tag is kept");
    }
    let mut bindings = BTreeMap::new();
    for b in &n.bindings {
        let Some(address) = b.address.parse::<IpAddr>().ok().filter(|a| is_station(*a)) else {
            return bad(object, "bindings", format!("'{}' is no address of a host", b.address));
        };
        let compiled = dp::Binding { address: address.to_string(), mac: station_mac(&object, &b.mac)? };
        if bindings.insert(address, compiled).is_some() {
            return bad(object, "bindings", format!("{address} is there twice"));
        }
    }
    let kind = if n.tunnel.is_empty() { KINDS[0] } else { &n.tunnel };
    let remotes = remotes.into_iter().map(|a| a.to_string()).collect();
    let overlay = Some(dp::Overlay {
        kind: kind.into(),
        vni,
        vtep: vtep.name.clone(),
        remotes,
        no_learning: n.learning == "off",
        no_suppression: n.suppression == "off",
        keep_tags,
        group: n.group.clone(),
        bindings: bindings.into_values().collect(),
    });
    Ok(dp::Network { overlay, ..local })
}
