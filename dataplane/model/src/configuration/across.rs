//! What must fit together across objects, and the sums that have a limit.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use hashbrown::{HashMap, HashSet, hash_map::Entry};
use imbl::OrdMap;

use super::Resolved;
use crate::{
    Bad, Kind, Vid, Vni,
    check::label,
    limits,
    objects::{Key, keys_of_kind},
    spec::{NetworkSpec, OverlaySpec, Place, PortPolicy, StaticSpec, Tunnel, Vtep, VtepSpec, remote_name},
    vlan::VlanSet,
};

/// The UDP port of Geneve: RFC 8926, 3.3.
const GENEVE_PORT: u16 = 6081;

/// What networks may have once only, and how many have each remote: so that a change looks at what it touches alone.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    vnis: OrdMap<(Tunnel, Vni), String>,
    vlans: OrdMap<(String, Vid), String>,
    /// By VTEP, address and encapsulation.
    remotes: OrdMap<(String, IpAddr, Tunnel), usize>,
}

/// Sums that are limited, because they are memory.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    pub prefixes: usize,
    pub rules: usize,
    pub combinations: usize,
}

impl Totals {
    /// Whether they are within the limits with the object of a key.
    pub fn check(&self, (kind, name): &Key) -> Result<(), Bad> {
        let what = [
            ("rules", self.rules, limits::ALL_RULES, "with it all lists have more than", "rules"),
            (
                "rules",
                self.combinations,
                limits::ALL_COMBINATIONS,
                "with it all lists have more than",
                "combinations of addresses and ports",
            ),
            (
                "addresses",
                self.prefixes,
                limits::ALL_PREFIXES,
                "with it all sets have more than",
                "prefixes, written out",
            ),
        ];
        match what.into_iter().find(|(_, n, most, ..)| n > most) {
            Some((field, _, most, why, of)) => Err(Bad::new(label(*kind, name), field, format!("{why} {most} {of}"))),
            None => Ok(()),
        }
    }
}

/// Takes what is touched out of the index and the totals.
pub(super) fn leave(r: &mut Resolved, touched: &BTreeSet<Key>) {
    for set in keys_of_kind(touched, Kind::Set).filter_map(|name| r.sets.get(name)) {
        r.totals.prefixes -= set.len();
    }
    for acl in keys_of_kind(touched, Kind::Acl).filter_map(|name| r.acls.get(name)) {
        r.totals.rules -= acl.rules.len();
        r.totals.combinations -= acl.combinations;
    }
    for name in keys_of_kind(touched, Kind::Network) {
        let Some(n) = r.networks.get(name) else { continue };
        if let Some(vlan) = &n.vlan {
            r.index.vlans.remove(vlan);
        }
        let Some(o) = &n.overlay else { continue };
        r.index.vnis.remove(&(o.kind, o.vni));
        for at in remotes(o) {
            match r.index.remotes.get_mut(&at) {
                Some(n) if *n > 1 => *n -= 1,
                _ => drop(r.index.remotes.remove(&at)),
            }
        }
    }
}

/// Names every object that does not fit the others, and enters networks that are touched into the index. `bad` has the
/// objects that are wrong by themselves.
pub(super) fn check(r: &mut Resolved, touched: &BTreeSet<Key>, bad: &mut Vec<Bad>) {
    let is_whole = bad.is_empty();
    let touches = |kinds: &[Kind]| kinds.iter().any(|k| keys_of_kind(touched, *k).next().is_some());
    networks(r, touched, bad);
    sums(r, bad);
    if touches(&[Kind::Port]) {
        resources(r, bad);
    }
    if touches(&[Kind::Port, Kind::Network]) {
        segments(r, bad);
    }
    vteps(r, bad);
    // Without its port an address would only repeat what is said of that.
    if is_whole && touches(&[Kind::Port, Kind::Network, Kind::Vtep, Kind::Mac]) {
        for (name, m) in &r.macs {
            bad.extend(static_mac(r, m).err().map(|(field, why)| Bad::new(label(Kind::Mac, name), field, why)));
        }
    }
}

fn sums(r: &Resolved, bad: &mut Vec<Bad>) {
    if let Some((name, _)) = r.ports.iter().nth(limits::PORTS) {
        let why = format!("one too many: a dataplane holds {} ports", limits::PORTS);
        bad.push(Bad::new(label(Kind::Port, name), "name", why));
    }
    let (ports, vteps, remotes) = (r.ports.len(), r.vteps.len(), r.index.remotes.len());
    if let Some(v) = r.vteps.keys().next().filter(|_| ports + vteps + remotes > limits::NUMBERED) {
        let most = limits::NUMBERED;
        let why = format!("{ports} ports, {vteps} vteps and {remotes} remotes are more than {most}");
        bad.push(Bad::new(label(Kind::Vtep, v), "remotes", why));
    }
}

/// Keys of the index: one for each address that a network sends to.
fn remotes(o: &OverlaySpec) -> impl Iterator<Item = (String, IpAddr, Tunnel)> {
    o.destinations().map(|(address, kind)| (o.vtep.clone(), address, kind))
}

/// Two ports on one interface would be a loop, two on one socket would be one guest's.
fn resources(r: &Resolved, bad: &mut Vec<Bad>) {
    let mut known: HashMap<&str, &str> = HashMap::new();
    for (name, p) in &r.ports {
        let (field, resource) = p.attachment.device.resource();
        match known.entry(resource) {
            Entry::Occupied(other) => {
                let why = format!("'{resource}' belongs to port '{}' already", other.get());
                bad.push(Bad::new(label(Kind::Port, name), field, why));
            }
            Entry::Vacant(free) => drop(free.insert(name)),
        }
    }
}

fn segments(r: &Resolved, bad: &mut Vec<Bad>) {
    let mut carried: BTreeMap<&str, VlanSet> = BTreeMap::new();
    for p in r.ports.values().filter(|p| p.policy.network.is_none()) {
        let of_bridge = carried.entry(&p.policy.bridge).or_insert(VlanSet::EMPTY);
        p.policy.vlan.add_to(of_bridge);
    }
    // Networks without a VLAN are segments of their own.
    let mut sum = r.networks.len() - r.index.vlans.len().min(r.networks.len());
    for (bridge, vid) in r.index.vlans.keys() {
        carried.entry(bridge).or_insert(VlanSet::EMPTY).insert(vid.get());
    }
    for (bridge, vlans) in carried {
        sum += vlans.len();
        if sum > limits::SEGMENTS {
            let why = format!("more than {} (bridge, VLAN) pairs and networks; restrict trunks", limits::SEGMENTS);
            return bad.push(Bad::new(label(Kind::Bridge, bridge), "name", why));
        }
    }
}

fn vteps(r: &Resolved, bad: &mut Vec<Bad>) {
    let (mut addresses, mut macs) = (HashMap::new(), HashMap::new());
    for (name, v) in &r.vteps {
        let mut unfit = |field: &str, why: String| bad.push(Bad::new(label(Kind::Vtep, name), field, why));
        let (spec, uplink) = (&v.spec, r.ports.get(&v.spec.uplink).map(|p| &p.policy));
        if let Some((field, why)) = uplink.and_then(|p| unfit_uplink(spec, p)) {
            unfit(field, why);
        }
        if spec.udp_port == GENEVE_PORT {
            unfit("udp_port", format!("{GENEVE_PORT} is Geneve's"));
        }
        if let Some(other) = addresses.insert(spec.address, name) {
            unfit("address", format!("{} is vtep '{other}' already", v.address));
        }
        if let Some(other) = macs.insert((uplink.map(|p| p.bridge.as_str()), spec.vid, spec.mac), name) {
            unfit("mac", format!("{} is that of vtep '{other}' in the same underlay", spec.mac));
        }
    }
}

fn unfit_uplink(v: &VtepSpec, uplink: &PortPolicy) -> Option<(&'static str, String)> {
    if let Some(network) = &uplink.network {
        return Some(("uplink", format!("'{}' is in network '{network}'; an uplink has VLANs", v.uplink)));
    }
    (!uplink.carries(v.vid.get())).then(|| ("vlan", format!("port '{}' does not carry VLAN {}", v.uplink, v.vid)))
}

fn networks(r: &mut Resolved, touched: &BTreeSet<Key>, bad: &mut Vec<Bad>) {
    for name in keys_of_kind(touched, Kind::Network) {
        let Some(n) = r.networks.get(name).cloned() else { continue };
        let mut unfit = |field: &str, why: String| bad.push(Bad::new(label(Kind::Network, name), field, why));
        if let Some((bridge, vid)) = &n.vlan
            && let Some(other) = r.index.vlans.insert((bridge.clone(), *vid), name.clone())
        {
            unfit("vlan", format!("{vid} of bridge '{bridge}' is network '{other}' already"));
        }
        let Some(o) = &n.overlay else { continue };
        if let Some(other) = r.index.vnis.insert((o.kind, o.vni), name.clone()) {
            unfit("vni", format!("{} is network '{other}' already", o.vni));
        }
        for at in remotes(o) {
            *r.index.remotes.entry(at).or_insert(0) += 1;
        }
        let other = match o.kind {
            Tunnel::Gre => Tunnel::Nvgre,
            Tunnel::Nvgre => Tunnel::Gre,
            Tunnel::Vxlan | Tunnel::Geneve => continue,
        };
        for a in o.remotes.iter().filter(|a| r.index.remotes.contains_key(&(o.vtep.clone(), **a, other))) {
            unfit("tunnel", format!("{a} has gre and nvgre already, which look alike on the wire"));
        }
    }
    for (name, v) in &r.vteps {
        let Some(uplink) = r.ports.get(&v.spec.uplink) else { continue };
        let Some(network) = r.index.vlans.get(&(uplink.policy.bridge.clone(), v.spec.vid)) else { continue };
        let is_its = |o: &OverlaySpec| o.vtep == *name;
        if r.networks.get(network).and_then(|n| n.overlay.as_ref()).is_some_and(is_its) {
            let why = format!("is the underlay of vtep '{name}': the tunnels would go through themselves");
            bad.push(Bad::new(label(Kind::Network, network), "vlan", why));
        }
    }
}

fn static_mac(r: &Resolved, m: &StaticSpec) -> Result<(), (&'static str, String)> {
    let at = &m.port;
    let port = r.ports.get(at).map(|p| &p.policy);
    match &m.place {
        Place::Network(network) => {
            let overlay = r.networks.get(network).and_then(|n| n.overlay.as_ref());
            let is_remote = |o: &OverlaySpec| o.remotes.iter().any(|a| remote_name(&o.vtep, *a, o.kind) == *at);
            if port.is_some_and(|p| p.network.as_ref() == Some(network)) || overlay.is_some_and(is_remote) {
                return Ok(());
            }
            let why = format!("'{at}' is neither a port nor a remote (VTEP/ADDRESS) of network '{network}'");
            Err(("port", why))
        }
        Place::Vlan(bridge, vid) => match port {
            None => Err(("port", format!("there is no port '{at}'"))),
            Some(PortPolicy { network: Some(n), .. }) => {
                Err(("port", format!("'{at}' is in network '{n}', not on bridge '{bridge}'")))
            }
            Some(p) if p.bridge != *bridge => {
                Err(("port", format!("'{at}' is on bridge '{}', not '{bridge}'", p.bridge)))
            }
            Some(p) if !p.carries(vid.get()) => {
                Err(("vlan", format!("'{at}' does not carry VLAN {vid}; name the right one with vlan")))
            }
            Some(_) => Ok(()),
        },
    }
}

/// Ports that a change makes trunks of all VLANs: what isolated them is gone.
pub(super) fn opened(before: &Resolved, after: &Resolved, touched: &BTreeSet<Key>) -> Vec<String> {
    let opens = |name: &&String| {
        let (Some(b), Some(a)) = (before.ports.get(*name), after.ports.get(*name)) else { return false };
        let was_all = b.policy.network.is_none() && b.policy.vlan.carries_all();
        !was_all && a.policy.network.is_none() && a.policy.vlan.carries_all()
    };
    let warning = |name: &String| {
        let bridge = &after.ports[name].policy.bridge;
        format!("port '{name}': vlan: has none any more, and carries all VLANs of bridge '{bridge}' as a trunk")
    };
    keys_of_kind(touched, Kind::Port).filter(opens).map(warning).collect()
}

/// Ports whose frames can be too large for the tunnels of a network; those that `touched` has to do with.
pub(super) fn warnings(r: &Resolved, touched: &BTreeSet<Key>) -> Vec<String> {
    let some = |kind: Kind| keys_of_kind(touched, kind).map(String::as_str).collect::<HashSet<&str>>();
    let (networks, vteps, ports) = (some(Kind::Network), some(Kind::Vtep), some(Kind::Port));
    let of_vtep =
        |(name, v): (&String, &Arc<Vtep>)| vteps.contains(name.as_str()) || ports.contains(v.spec.uplink.as_str());
    let (mut joined, mut on_bridge): (Ports<'_>, Ports<'_>) = Default::default();
    for (name, p) in r.ports.iter().map(|(n, p)| (n, &p.policy)) {
        match &p.network {
            Some(n) => joined.entry(n).or_default().push((name, p)),
            None => on_bridge.entry(&p.bridge).or_default().push((name, p)),
        }
    }
    // All networks, if a VTEP has changed; otherwise those that have, and those of ports that have.
    let mut names: BTreeSet<&str> = networks.clone().into_iter().collect();
    if r.vteps.iter().any(of_vtep) {
        names.extend(r.networks.keys().map(String::as_str));
    }
    for p in ports.iter().filter_map(|p| r.ports.get(*p)).map(|p| &p.policy) {
        names.extend(p.network.as_deref());
        let carried = r.index.vlans.iter().filter(|((bridge, vid), _)| *bridge == p.bridge && p.carries(vid.get()));
        names.extend(carried.map(|(_, name)| name.as_str()));
    }
    let mut all = Vec::new();
    for (name, n) in names.into_iter().filter_map(|name| r.networks.get_key_value(name)) {
        let Some((o, v)) = n.overlay.as_ref().and_then(|o| Some((o, &r.vteps.get(&o.vtep)?.spec))) else { continue };
        let everywhere =
            networks.contains(name.as_str()) || vteps.contains(o.vtep.as_str()) || ports.contains(v.uplink.as_str());
        let uplink = r.ports.get(&v.uplink).map_or(0, |p| p.policy.mtu.get());
        let fits = uplink.saturating_sub(o.kind.octets(v.address.is_ipv4()) + if o.keep_tags { 4 } else { 0 });
        for (port, p) in
            members(n, name, &joined, &on_bridge).filter(|(port, p)| **port != v.uplink && p.mtu.get() > fits)
        {
            if everywhere || ports.contains(port.as_str()) {
                let mtu = p.mtu;
                all.push(format!(
                    "port '{port}': mtu: {mtu} is more than the {fits} that fit into the tunnels of network '{name}'"
                ));
            }
        }
    }
    all
}

type Ports<'a> = HashMap<&'a str, Vec<(&'a String, &'a PortPolicy)>>;

/// Ports that carry a network.
fn members<'a>(
    n: &'a NetworkSpec,
    name: &str,
    joined: &'a Ports<'a>,
    on_bridge: &'a Ports<'a>,
) -> impl Iterator<Item = (&'a String, &'a PortPolicy)> {
    let here = n.vlan.as_ref().and_then(|(bridge, vid)| Some((on_bridge.get(bridge.as_str())?, *vid)));
    let on_vlan = here.into_iter().flat_map(|(ports, vid)| ports.iter().filter(move |(_, p)| p.carries(vid.get())));
    joined.get(name).into_iter().flatten().chain(on_vlan).copied()
}
