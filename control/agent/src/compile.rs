//! The config compiler: from objects, each of which the model has checked by itself, to what the dataplane is sent. What
//! does not fit together is refused by object, field and value.

mod filter;
mod overlay;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use dunlin_dataplane_api::v1 as dp;
use dunlin_model::{
    Bad, DEFAULT_BRIDGE,
    v1::{Bridge, Config, Port, StaticMac},
};

use crate::leases::Identities;

const DEFAULT_AGEING_S: u32 = 300;
const DEFAULT_MTU: u32 = 1500;
const DEFAULT_MAX_SLEEP_US: u32 = 100;
/// The dataplane's limits: ports with a device, out of the engine's `MAX_PORTS`, which VTEPs and remotes
/// share; and its segment numbers.
const MAX_PORTS: usize = 1024;
const MAX_SEGMENTS: usize = 65_534;
const MAX_INTERFACE: usize = 15;
const MAX_SOCKET: usize = 107;

fn bad<T>(object: impl Into<String>, field: &str, why: impl Into<String>) -> Result<T, Bad> {
    Err(Bad::new(object, field, why))
}

/// A configuration as the dataplane is sent it.
#[derive(Clone)]
pub struct Compiled {
    /// One transaction that replaces whatever the dataplane holds.
    pub whole: dp::Transaction,
    /// The sets that the rules of each list name.
    sets_of: BTreeMap<String, BTreeSet<String>>,
}

/// Checks a configuration and turns it into what the dataplane is sent.
///
/// # Errors
/// The first object and field that can't be.
pub fn compile(config: &Config, identities: &Identities) -> Result<Compiled, Bad> {
    let mut bridges = BTreeMap::new();
    for b in &config.bridge {
        if bridges.insert(b.name.clone(), bridge(b)).is_some() {
            return bad(format!("bridge '{}'", b.name), "name", "is declared twice");
        }
    }
    let filters = filter::compile(config)?;
    let mut ports = BTreeMap::new();
    let mut resources: BTreeMap<String, String> = BTreeMap::new();
    for p in &config.port {
        let (ingress_acls, egress_acls) = filters.lists_of(p)?;
        let identity = identities.get(&p.name).copied().unwrap_or_default();
        let compiled = dp::Port { ingress_acls, egress_acls, security: filter::security(p)?, identity, ..port(p)? };
        let object = format!("port '{}'", p.name);
        let at = compiled.bridge.clone();
        if compiled.network.is_empty() && !bridges.contains_key(&at) {
            if at != DEFAULT_BRIDGE {
                let known: Vec<&str> = bridges.keys().map(String::as_str).collect();
                return bad(object, "bridge", format!("there is no bridge '{at}' (there are: {})", list(&known)));
            }
            let default = Bridge { name: DEFAULT_BRIDGE.into(), ..Default::default() };
            bridges.insert(at, bridge(&default));
        }
        let (field, resource) = resource(&compiled);
        if let Some(other) = resources.insert(resource.clone(), p.name.clone())
            && other != p.name
        {
            return bad(object, field, format!("'{resource}' belongs to port '{other}' already"));
        }
        if ports.insert(p.name.clone(), compiled).is_some() {
            return bad(object, "name", "is declared twice; each port needs a name of its own");
        }
    }
    check_limits(&bridges, &ports)?;
    if config.network.iter().any(|n| n.vlan.is_some() && n.bridge.is_empty()) && !bridges.contains_key(DEFAULT_BRIDGE) {
        let default = Bridge { name: DEFAULT_BRIDGE.into(), ..Default::default() };
        bridges.insert(DEFAULT_BRIDGE.into(), bridge(&default));
    }
    let overlay = overlay::compile(config, &bridges, &ports)?;
    for n in &config.network {
        filters.check_lists(&format!("network '{}'", n.name), &n.ingress_acls, &n.egress_acls)?;
    }
    let mut macs = BTreeMap::new();
    for m in &config.mac {
        let compiled = static_mac(m, &ports)?;
        overlay.check_mac(&compiled, &ports)?;
        let key = (compiled.network.clone(), compiled.bridge.clone(), compiled.vlan, compiled.mac.clone());
        if macs.insert(key, compiled).is_some() {
            return bad(format!("mac '{}'", m.mac), "mac", format!("is declared twice in VLAN {}", m.vlan));
        }
    }
    let whole = dp::Transaction {
        replace: true,
        set_bridges: bridges.into_values().collect(),
        set_ports: ports.into_values().collect(),
        set_macs: macs.into_values().collect(),
        settings: Some(settings(config)),
        set_networks: overlay.networks,
        set_vteps: overlay.vteps,
        set_acls: filters.acls.into_values().collect(),
        sessions: Some(filter::sessions(&config.sessions.clone().unwrap_or_default())),
        sets: filters.sets.into_values().collect(),
        ..Default::default()
    };
    Ok(Compiled { whole, sets_of: filters.sets_of })
}

/// What of a whole transaction will not work as it is, though it is no mistake.
pub fn warnings(t: &dp::Transaction) -> Vec<String> {
    overlay::too_large(t)
}

/// What differs between two whole transactions, as one that changes the first into the second.
pub fn difference(old: &Compiled, new: &Compiled) -> dp::Transaction {
    let (from, to) = (&old.whole, &new.whole);
    let mac_key = |m: &dp::StaticMac| (m.network.clone(), m.bridge.clone(), m.vlan, m.mac.clone());
    let mac_keys = |t: &dp::Transaction| t.set_macs.iter().map(mac_key).collect::<BTreeSet<_>>();
    let (kept, before) = (mac_keys(to), from.set_macs.iter().map(|m| (mac_key(m), m)).collect::<BTreeMap<_, _>>());
    let is_new = |m: &&dp::StaticMac| before.get(&mac_key(m)) != Some(m);
    let (set_bridges, delete_bridges) = changed(&from.set_bridges, &to.set_bridges, |b| &b.name);
    let (set_ports, delete_ports) = changed(&from.set_ports, &to.set_ports, |p| &p.name);
    let (set_networks, delete_networks) = changed(&from.set_networks, &to.set_networks, |n| &n.name);
    let (set_vteps, delete_vteps) = changed(&from.set_vteps, &to.set_vteps, |v| &v.name);
    let (mut set_acls, delete_acls) = changed(&from.set_acls, &to.set_acls, |a| &a.name);
    // A list is another one too when a set that it names is.
    let (other_sets, _) = changed(&from.sets, &to.sets, |s| &s.name);
    let other_sets: BTreeSet<&String> = other_sets.iter().map(|s| &s.name).collect();
    let set: BTreeSet<&String> = set_acls.iter().map(|a| &a.name).collect();
    let names_other =
        |a: &&dp::Acl| new.sets_of[&a.name].iter().any(|s| other_sets.contains(s)) && !set.contains(&a.name);
    let more: Vec<dp::Acl> = to.set_acls.iter().filter(names_other).cloned().collect();
    set_acls.extend(more);
    dp::Transaction {
        set_bridges,
        delete_bridges,
        set_ports,
        delete_ports,
        set_macs: to.set_macs.iter().filter(is_new).cloned().collect(),
        delete_macs: from.set_macs.iter().filter(|m| !kept.contains(&mac_key(m))).cloned().collect(),
        settings: if from.settings == to.settings { None } else { to.settings },
        set_networks,
        delete_networks,
        set_vteps,
        delete_vteps,
        sets: sets_of(&set_acls, new),
        set_acls,
        delete_acls,
        sessions: if from.sessions == to.sessions { None } else { to.sessions },
        ..Default::default()
    }
}

/// The sets that some lists name.
fn sets_of(acls: &[dp::Acl], of: &Compiled) -> Vec<dp::AddressSet> {
    let named: BTreeSet<&String> = acls.iter().flat_map(|a| &of.sets_of[&a.name]).collect();
    of.whole.sets.iter().filter(|s| named.contains(&s.name)).cloned().collect()
}

/// What of the second is not in the first, and names of what is in the first and not in the second.
fn changed<T: Clone + PartialEq>(from: &[T], to: &[T], name: impl Fn(&T) -> &String) -> (Vec<T>, Vec<String>) {
    let before: HashMap<&String, &T> = from.iter().map(|x| (name(x), x)).collect();
    let kept: HashSet<&String> = to.iter().map(&name).collect();
    let set = to.iter().filter(|x| before.get(name(x)) != Some(x)).cloned().collect();
    (set, from.iter().map(&name).filter(|n| !kept.contains(n)).cloned().collect())
}

/// Those objects of a whole transaction that problems name, as one that sets them again.
pub fn of_problems(whole: &Compiled, ports: Vec<dp::Port>, problems: &[dp::Problem]) -> dp::Transaction {
    let named: HashSet<(&str, &str)> = problems.iter().map(|p| (p.kind.as_str(), p.name.as_str())).collect();
    fn of<T: Clone>(all: &[T], is: impl Fn(&T) -> bool) -> Vec<T> {
        all.iter().filter(|x| is(x)).cloned().collect()
    }
    let t = &whole.whole;
    let set_acls = of(&t.set_acls, |a| named.contains(&("acl", &*a.name)));
    dp::Transaction {
        set_bridges: of(&t.set_bridges, |b| named.contains(&("bridge", &*b.name))),
        set_ports: ports.into_iter().filter(|p| named.contains(&("port", &*p.name))).collect(),
        set_networks: of(&t.set_networks, |n| named.contains(&("network", &*n.name))),
        set_vteps: of(&t.set_vteps, |v| named.contains(&("vtep", &*v.name))),
        set_macs: of(&t.set_macs, |m| named.contains(&("mac", &*m.mac))),
        sets: sets_of(&set_acls, whole),
        set_acls,
        ..Default::default()
    }
}

/// A problem in a sentence.
pub fn problem_text(p: &dp::Problem) -> String {
    let field = if p.field.is_empty() { String::new() } else { format!("{}: ", p.field) };
    format!("{} '{}': {field}{}", p.kind, p.name, p.reason)
}

fn list(names: &[&str]) -> String {
    if names.is_empty() { "none".into() } else { names.join(", ") }
}

fn settings(config: &Config) -> dp::Settings {
    let d = config.dataplane.clone().unwrap_or_default();
    let max_sleep_us = d.max_sleep_us.unwrap_or(DEFAULT_MAX_SLEEP_US);
    dp::Settings { poll: d.idle == "poll", max_sleep_us, rebalance: d.rebalance == "auto" }
}

fn bridge(b: &Bridge) -> dp::Bridge {
    dp::Bridge { name: b.name.clone(), ageing_s: b.ageing_s.unwrap_or(DEFAULT_AGEING_S) }
}

fn port(p: &Port) -> Result<dp::Port, Bad> {
    let object = format!("port '{}'", p.name);
    if !p.network.is_empty() {
        let fields =
            [("bridge", !p.bridge.is_empty()), ("vlan", p.vlan.is_some()), ("vlan_mode", !p.vlan_mode.is_empty())];
        if let Some((field, _)) = fields.iter().find(|(_, set)| *set) {
            return bad(object, field, format!("is that of network '{}': leave it out", p.network));
        }
    }
    let bridge = match (p.network.is_empty(), p.bridge.as_str()) {
        (false, _) => String::new(),
        (true, "") => DEFAULT_BRIDGE.into(),
        (true, bridge) => bridge.to_owned(),
    };
    Ok(dp::Port {
        name: p.name.clone(),
        network: p.network.clone(),
        bridge,
        device: Some(dp::Device { kind: Some(device(&object, p)?) }),
        vlan: Some(vlan(&object, p)?),
        mtu: p.mtu.unwrap_or(DEFAULT_MTU),
        admin_down: p.admin == "down",
        protected: p.protected,
        workers: p.workers.clone(),
        vmdq: p.steering == "vmdq",
        mac_limit: p.mac_limit.map(|limit| dp::MacLimit { limit, drop: p.mac_limit_action != "forward" }),
        session_limit: p.session_limit.unwrap_or(0),
        unanswered_limit: p.unanswered_limit.unwrap_or(0),
        storm: Some(dp::StormLimits {
            broadcast_fps: p.storm_broadcast_fps.unwrap_or(0),
            multicast_fps: p.storm_multicast_fps.unwrap_or(0),
            unknown_unicast_fps: p.storm_unknown_unicast_fps.unwrap_or(0),
        }),
        ..Default::default()
    })
}

fn device(object: &str, p: &Port) -> Result<dp::device::Kind, Bad> {
    let interface = || {
        let name = if p.interface.is_empty() { &p.name } else { &p.interface };
        if name.len() > MAX_INTERFACE || name.contains(['/', ',', ' ']) {
            return bad(object, "interface", format!("'{name}' is no interface name (at most {MAX_INTERFACE} octets)"));
        }
        Ok(name.clone())
    };
    match p.kind.as_str() {
        "nic" if p.device.is_empty() => {
            bad(object, "device", "is missing: a PCI address as 0000:03:00.0, or DPDK devargs")
        }
        "nic" => Ok(dp::device::Kind::Nic(dp::Nic {
            device: full_pci_address(&p.device),
            queues: p.queues.unwrap_or(0),
            hash_fields: hash_fields(&p.hash_fields),
        })),
        "host" => {
            let af_packet_only = p.driver == "af_packet";
            Ok(dp::device::Kind::Host(dp::Host { interface: interface()?, af_packet_only }))
        }
        "tap" => Ok(dp::device::Kind::Tap(dp::Tap { interface: interface()? })),
        "vhost-user" => {
            let default = format!("/run/dunlin/vhost/{}.sock", p.name);
            let socket = if p.socket.is_empty() { default } else { p.socket.clone() };
            if socket.len() > MAX_SOCKET {
                let n = socket.len();
                return bad(object, "socket", format!("{n} octets long; the kernel takes at most {MAX_SOCKET}"));
            }
            if !socket.starts_with('/') {
                return bad(object, "socket", format!("'{socket}' is not an absolute path"));
            }
            Ok(dp::device::Kind::VhostUser(dp::VhostUser { socket, server: p.server }))
        }
        _ => bad(object, "kind", "is missing: nic, host, tap or vhost-user"),
    }
}

/// The same fields in one order, each once.
fn hash_fields(names: &[String]) -> Vec<String> {
    const KNOWN: [&str; 6] = ["mac", "vlan", "ip", "tcp", "udp", "sctp"];
    KNOWN.into_iter().filter(|k| names.iter().any(|n| n == k)).map(Into::into).collect()
}

/// "03:00.0" is short for "0000:03:00.0", and the same device.
fn full_pci_address(device: &str) -> String {
    let b = device.as_bytes();
    let short = b.len() >= 7 && b[2] == b':' && b[5] == b'.' && (b.len() == 7 || b[7] == b',');
    if short { format!("0000:{device}") } else { device.to_owned() }
}

/// What two ports can't both have, and the field it stands in.
fn resource(p: &dp::Port) -> (&'static str, String) {
    match p.device.as_ref().and_then(|d| d.kind.as_ref()) {
        Some(dp::device::Kind::Nic(n)) => ("device", n.device.split(',').next().unwrap_or_default().to_owned()),
        Some(dp::device::Kind::Host(h)) => ("interface", h.interface.clone()),
        Some(dp::device::Kind::Tap(t)) => ("interface", t.interface.clone()),
        Some(dp::device::Kind::VhostUser(v)) => ("socket", v.socket.clone()),
        None => ("kind", String::new()),
    }
}

fn vlan(object: &str, p: &Port) -> Result<dp::Vlan, Bad> {
    use dp::vlan::{Mode, PriorityTags};
    let mode = match (p.vlan_mode.as_str(), p.vlan) {
        ("", None) | ("trunk", None) => Mode::Trunk,
        ("" | "access", Some(_)) => Mode::Access,
        ("trunk", Some(v)) => {
            let why =
                format!("a trunk has none; {v} belongs in trunks, or the mode is native-tagged or native-untagged");
            return bad(object, "vlan", why);
        }
        ("native-tagged", Some(_)) => Mode::NativeTagged,
        ("native-untagged", Some(_)) => Mode::NativeUntagged,
        (_, Some(_)) => Mode::Dot1qTunnel,
        (m, None) => return bad(object, "vlan", format!("is missing; vlan_mode {m} needs it")),
    };
    if !p.trunks.is_empty() && matches!(mode, Mode::Access | Mode::Dot1qTunnel) {
        return bad(object, "trunks", "is for trunk, native-tagged and native-untagged");
    }
    for (field, set) in [("cvlans", !p.cvlans.is_empty()), ("qinq_ethertype", !p.qinq_ethertype.is_empty())] {
        if set && mode != Mode::Dot1qTunnel {
            return bad(object, field, "is for vlan_mode dot1q-tunnel");
        }
    }
    let priority_tags = match p.priority_tags.as_str() {
        "if-nonzero" => PriorityTags::IfNonzero,
        "always" => PriorityTags::Always,
        _ => PriorityTags::Never,
    };
    Ok(dp::Vlan {
        mode: mode.into(),
        tag: p.vlan.unwrap_or(0),
        trunks: vlan_list(object, "trunks", &p.trunks)?,
        cvlans: vlan_list(object, "cvlans", &p.cvlans)?,
        qinq_8021q: p.qinq_ethertype == "802.1q",
        priority_tags: priority_tags.into(),
    })
}

/// "10,20-30" as numbers; nothing twice.
fn vlan_list(object: &str, field: &str, text: &str) -> Result<Vec<u32>, Bad> {
    let mut seen = BTreeSet::new();
    for part in text.split(',').map(str::trim).filter(|_| !text.trim().is_empty()) {
        let number = |s: &str| match s.trim().parse::<u32>() {
            Ok(n) if n <= 4094 => Ok(n),
            _ => bad(object, field, format!("'{part}' is no VLAN (0 to 4094) and no range as 20-30")),
        };
        let (a, b) = match part.split_once('-') {
            Some((a, b)) => (number(a)?, number(b)?),
            None => (number(part)?, number(part)?),
        };
        if a > b {
            return bad(object, field, format!("'{part}' ends before it begins"));
        }
        for v in a..=b {
            if !seen.insert(v) {
                return bad(object, field, format!("VLAN {v} of '{part}' is named before: ranges must not overlap"));
            }
        }
    }
    Ok(seen.into_iter().collect())
}

fn carries(p: &dp::Port, vlan: u32) -> bool {
    use dp::vlan::Mode;
    let Some(v) = &p.vlan else { return false };
    let listed = || v.trunks.is_empty() || v.trunks.contains(&vlan);
    match v.mode() {
        Mode::Access | Mode::Dot1qTunnel => v.tag == vlan,
        Mode::Trunk => listed(),
        Mode::NativeTagged | Mode::NativeUntagged => v.tag == vlan || listed(),
    }
}

/// What a dataplane holds at most: checked here, so that a change made while it is down fits later.
fn check_limits(bridges: &BTreeMap<String, dp::Bridge>, ports: &BTreeMap<String, dp::Port>) -> Result<(), Bad> {
    if let Some((name, _)) = ports.iter().nth(MAX_PORTS) {
        return bad(format!("port '{name}'"), "name", format!("one too many: a dataplane holds {MAX_PORTS} ports"));
    }
    let mut carried: HashMap<&str, Box<[bool; 4096]>> = HashMap::new();
    for p in ports.values() {
        let of_bridge = carried.entry(&p.bridge).or_insert_with(|| Box::new([false; 4096]));
        match p.vlan.as_ref().filter(|v| matches!(v.mode(), dp::vlan::Mode::Access | dp::vlan::Mode::Dot1qTunnel)) {
            Some(v) => of_bridge[v.tag as usize & 0xfff] = true,
            None => (0..4096).filter(|v| carries(p, *v)).for_each(|v| of_bridge[v as usize] = true),
        }
    }
    let mut segments = 0;
    for bridge in bridges.keys() {
        segments += carried.get(bridge.as_str()).map_or(0, |c| c.iter().filter(|v| **v).count());
        if segments > MAX_SEGMENTS {
            let why = format!("more than {MAX_SEGMENTS} (bridge, VLAN) pairs are carried; restrict trunks");
            return bad(format!("bridge '{bridge}'"), "name", why);
        }
    }
    Ok(())
}

/// An address of layer 2 that one station has, in one way of writing.
fn station_mac(object: &str, mac: &str) -> Result<String, Bad> {
    let octets: Vec<&str> = mac.split([':', '-']).collect();
    let octet = |o: &&str| match o.len() == 2 && o.bytes().all(|b| b.is_ascii_hexdigit()) {
        true => u8::from_str_radix(o, 16).ok(),
        false => None,
    };
    let parsed: Option<Vec<u8>> = octets.iter().map(octet).collect();
    match parsed.as_deref() {
        Some([first, rest @ ..]) if rest.len() == 5 => {
            if first & 1 == 1 || mac.bytes().all(|b| b"0:-".contains(&b)) {
                return bad(object, "mac", "is no station's address");
            }
        }
        _ => return bad(object, "mac", "is not six octets as 52:54:00:12:34:56"),
    }
    Ok(mac.to_ascii_lowercase().replace('-', ":"))
}

fn static_mac(m: &StaticMac, ports: &BTreeMap<String, dp::Port>) -> Result<dp::StaticMac, Bad> {
    let object = format!("mac '{}'", m.mac);
    let mac = station_mac(&object, &m.mac)?;
    if !m.network.is_empty() {
        if !m.bridge.is_empty() || m.vlan != 0 {
            return bad(object, "bridge", format!("and vlan are those of network '{}': leave them out", m.network));
        }
        // Whether the port, or the remote VTEP, is in that network, is known when all is compiled.
        return Ok(dp::StaticMac { network: m.network.clone(), mac, port: m.port.clone(), ..Default::default() });
    }
    let bridge = if m.bridge.is_empty() { DEFAULT_BRIDGE } else { &m.bridge };
    match ports.get(&m.port) {
        None => return bad(object, "port", format!("there is no port '{}'", m.port)),
        Some(p) if p.bridge != bridge => {
            return bad(object, "port", format!("'{}' is on bridge '{}', not '{bridge}'", m.port, p.bridge));
        }
        Some(p) if !carries(p, m.vlan) => {
            let why = format!("'{}' does not carry VLAN {}; name the right one with vlan", m.port, m.vlan);
            return bad(object, "vlan", why);
        }
        Some(_) => {}
    }
    Ok(dp::StaticMac { bridge: bridge.into(), vlan: m.vlan, mac, port: m.port.clone(), ..Default::default() })
}

#[cfg(test)]
mod tests;
