//! From messages to what they mean: every field checked here, once, with errors that name object,
//! field and value.

pub mod devargs;
mod filter;
mod overlay;
pub mod permit;

use dunlin_dataplane_api::v1;
use dunlin_dpdk::{
    steering::HashFields,
    vhost::{MAX_PATH, Role},
};
use dunlin_engine::{
    MacAddr,
    conntrack::SessionLimits,
    snapshot::MacLimit,
    topology::{BridgeSpec, PortSpec, Topology},
    vlan::{PriorityTags, TPID_8021AD, TPID_8021Q, VlanMode, VlanSet},
};

pub use filter::{Sets, acl, leases, sessions, set};
pub use overlay::{VtepConf, network, vtep};

use self::permit::Permit;
use crate::worker::Idle;

/// The device behind a port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DeviceSpec {
    /// With `guests`, some of whose receive queues are guests' own, if it can be told by rules where frames go.
    Nic {
        device: String,
        queues: u16,
        hash: HashFields,
        guests: bool,
    },
    Host {
        interface: String,
        af_packet_only: bool,
    },
    Tap {
        interface: String,
    },
    VhostUser {
        socket: String,
        role: Role,
    },
}

/// An address entered by the operator.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct StaticSpec {
    /// The network it is in, wherever that is; otherwise bridge and VLAN say it.
    network: Option<String>,
    bridge: String,
    vid: u16,
    pub mac: MacAddr,
}

impl StaticSpec {
    /// Bridge and VLAN; none if there is no such network.
    pub fn place<'a>(&'a self, topology: &'a Topology) -> Option<(&'a str, u16)> {
        match &self.network {
            Some(network) => topology.network_place(network),
            None => Some((&self.bridge, self.vid)),
        }
    }
}

impl std::fmt::Display for StaticSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.network {
            Some(network) => write!(f, "mac '{}' in network '{network}'", self.mac),
            None => write!(f, "mac '{}' in bridge '{}' VLAN {}", self.mac, self.bridge, self.vid),
        }
    }
}

/// A message that can't be carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{object}: {field}: {why}")]
pub struct BadField {
    object: String,
    field: &'static str,
    why: String,
}

impl BadField {
    /// The reason without the object and the field.
    pub fn why(&self) -> &str {
        &self.why
    }
}

const MAX_NAME: usize = 63;

fn bad(object: String, field: &'static str, why: impl Into<String>) -> BadField {
    BadField { object, field, why: why.into() }
}

fn check_name(kind: &str, name: &str) -> Result<(), BadField> {
    let ok = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(ok) {
        let why = format!("must be 1 to {MAX_NAME} of letters, digits, '.', '_', '-'");
        return Err(bad(format!("{kind} '{name}'"), "name", why));
    }
    Ok(())
}

/// A bridge.
pub fn bridge(b: &v1::Bridge) -> Result<BridgeSpec, BadField> {
    check_name("bridge", &b.name)?;
    if !(1..=1_000_000).contains(&b.ageing_s) {
        return Err(bad(format!("bridge '{}'", b.name), "ageing_s", format!("{} is not in 1 to 1000000", b.ageing_s)));
    }
    Ok(BridgeSpec { ageing_s: b.ageing_s })
}

/// The cores of `workers` that a port's receive queues are pinned to.
pub fn pinned(p: &v1::Port, workers: &[usize]) -> Result<Vec<usize>, BadField> {
    let cores: Vec<usize> = p.workers.iter().map(|c| *c as usize).collect();
    match cores.iter().find(|c| !workers.contains(c)) {
        Some(c) => {
            Err(bad(format!("port '{}'", p.name), "workers", format!("core {c} is no worker; there are {workers:?}")))
        }
        None => Ok(cores),
    }
}

/// A port and its device.
pub fn port(p: &v1::Port) -> Result<(PortSpec, DeviceSpec), BadField> {
    check_name("port", &p.name)?;
    let object = || format!("port '{}'", p.name);
    if !(68..=9216).contains(&p.mtu) {
        return Err(bad(object(), "mtu", format!("{} is not in 68 to 9216", p.mtu)));
    }
    let storm = p.storm.unwrap_or_default();
    let fps = |f: u64| (f > 0).then_some(f);
    let most = |n: u32| (n > 0).then_some(n);
    let spec = PortSpec {
        bridge: p.bridge.clone(),
        network: Some(p.network.clone()).filter(|n| !n.is_empty()),
        vlan: vlan(&object, &p.vlan.clone().unwrap_or_default())?,
        priority_tags: match p.vlan.as_ref().map(v1::Vlan::priority_tags) {
            Some(v1::vlan::PriorityTags::IfNonzero) => PriorityTags::IfNonzero,
            Some(v1::vlan::PriorityTags::Always) => PriorityTags::Always,
            _ => PriorityTags::Never,
        },
        identity: p.identity,
        protected: p.protected,
        mtu: p.mtu,
        mac_limit: p.mac_limit.map(|l| MacLimit { limit: l.limit, drop: l.drop }),
        storm_fps: [fps(storm.broadcast_fps), fps(storm.multicast_fps), fps(storm.unknown_unicast_fps)],
        acls: filter::acl_names(&p.ingress_acls, &p.egress_acls),
        session_limits: SessionLimits { all: most(p.session_limit), unanswered: most(p.unanswered_limit) },
        security: p.security.as_ref().map(|s| filter::security(&object, s)).transpose()?,
    };
    Ok((spec, device(&object, p.device.as_ref(), p.vmdq)?))
}

fn vlan(object: &dyn Fn() -> String, v: &v1::Vlan) -> Result<VlanMode, BadField> {
    let vid = |field, n: u32| match u16::try_from(n) {
        Ok(n) if n <= 4094 => Ok(n),
        _ => Err(bad(object(), field, format!("{n} is not in 0 to 4094"))),
    };
    let set = |field, list: &[u32]| -> Result<VlanSet, BadField> {
        if list.is_empty() { Ok(VlanSet::ALL) } else { list.iter().map(|n| vid(field, *n)).collect() }
    };
    let tag = vid("vlan.tag", v.tag)?;
    let mode = v1::vlan::Mode::try_from(v.mode).map_err(|_| bad(object(), "vlan.mode", format!("{}", v.mode)))?;
    Ok(match mode {
        v1::vlan::Mode::Access => VlanMode::Access { vid: tag },
        v1::vlan::Mode::Trunk => VlanMode::Trunk { vlans: set("vlan.trunks", &v.trunks)? },
        v1::vlan::Mode::NativeTagged => VlanMode::NativeTagged { native: tag, vlans: set("vlan.trunks", &v.trunks)? },
        v1::vlan::Mode::NativeUntagged => {
            VlanMode::NativeUntagged { native: tag, vlans: set("vlan.trunks", &v.trunks)? }
        }
        v1::vlan::Mode::Dot1qTunnel => VlanMode::Dot1qTunnel {
            vid: tag,
            cvlans: set("vlan.cvlans", &v.cvlans)?,
            tpid: if v.qinq_8021q { TPID_8021Q } else { TPID_8021AD },
        },
    })
}

fn device(object: &dyn Fn() -> String, d: Option<&v1::Device>, vmdq: bool) -> Result<DeviceSpec, BadField> {
    use v1::device::Kind;
    let interface = |field, name: &str| match name.len() {
        1..=15 if !name.contains(['/', ',', ' ']) && ![".", ".."].contains(&name) => Ok(name.to_owned()),
        _ => Err(bad(object(), field, format!("'{name}' is no interface name (1 to 15 octets)"))),
    };
    match d.and_then(|d| d.kind.as_ref()) {
        Some(Kind::Nic(n)) if n.device.is_empty() => {
            Err(bad(object(), "device", "is missing: a PCI address (0000:03:00.0) or DPDK devargs"))
        }
        Some(Kind::Nic(n)) => match HashFields::from_names(&n.hash_fields) {
            Ok(hash) => {
                Permit::get().device(&n.device).map_err(|why| bad(object(), "device", why))?;
                let queues = n.queues.min(64) as u16;
                Ok(DeviceSpec::Nic { device: n.device.clone(), queues, hash, guests: vmdq })
            }
            Err(name) => {
                let known: Vec<_> = HashFields::known().collect();
                Err(bad(object(), "hash_fields", format!("'{name}' is none of {}", known.join(", "))))
            }
        },
        Some(Kind::Host(h)) => {
            Ok(DeviceSpec::Host { interface: interface("interface", &h.interface)?, af_packet_only: h.af_packet_only })
        }
        Some(Kind::Tap(t)) => Ok(DeviceSpec::Tap { interface: interface("interface", &t.interface)? }),
        Some(Kind::VhostUser(v)) => {
            if !v.socket.starts_with('/') || v.socket.len() > MAX_PATH {
                let why = format!("'{}' must be an absolute path of at most {MAX_PATH} octets", v.socket);
                return Err(bad(object(), "socket", why));
            }
            Permit::get().socket(&v.socket).map_err(|why| bad(object(), "socket", why))?;
            let role = if v.server { Role::Server } else { Role::Client };
            Ok(DeviceSpec::VhostUser { socket: v.socket.clone(), role })
        }
        None => Err(bad(object(), "device", "is missing: one of nic, host, tap, vhost_user")),
    }
}

/// A static address and the port it is on.
pub fn static_mac(m: &v1::StaticMac) -> Result<(StaticSpec, String), BadField> {
    let object = || format!("mac '{}' in bridge '{}'", m.mac, m.bridge);
    let mac: MacAddr = m.mac.parse().map_err(|e: dunlin_engine::types::BadMac| bad(object(), "mac", e.to_string()))?;
    if mac.is_multicast() || mac == MacAddr::default() {
        return Err(bad(object(), "mac", "is no station's address"));
    }
    if m.vlan > 4094 {
        return Err(bad(object(), "vlan", format!("{} is not in 0 to 4094", m.vlan)));
    }
    let network = Some(m.network.clone()).filter(|n| !n.is_empty());
    Ok((StaticSpec { network, bridge: m.bridge.clone(), vid: m.vlan as u16, mac }, m.port.clone()))
}

/// What holds for all workers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Settings {
    pub idle: Idle,
    /// Queues move to less busy workers by themselves.
    pub rebalance: bool,
}

/// The workers' settings.
pub fn settings(s: &v1::Settings) -> Result<Settings, BadField> {
    Ok(Settings { idle: idle(s)?, rebalance: s.rebalance })
}

fn idle(s: &v1::Settings) -> Result<Idle, BadField> {
    if s.poll {
        return Ok(Idle { max_sleep: None });
    }
    if !(1..=10_000).contains(&s.max_sleep_us) {
        let why = format!("{} is not in 1 to 10000", s.max_sleep_us);
        return Err(bad("settings".into(), "max_sleep_us", why));
    }
    Ok(Idle { max_sleep: Some(std::time::Duration::from_micros(u64::from(s.max_sleep_us))) })
}
