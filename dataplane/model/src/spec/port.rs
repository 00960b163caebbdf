//! Ports: what is policy and moves with a VM, and where the port is attached on this host.

use ipnet::IpNet;

use super::{addresses, bad, unicast_mac, within};
use crate::{
    Bad, DEFAULT_BRIDGE, Fps, MacAddr, Mtu, Vid,
    check::label,
    defaults,
    kinds::Kind,
    limits,
    v1::Port,
    vlan::{PriorityTags, TPID_8021AD, TPID_8021Q, VlanMode, VlanSet},
};

/// A port with the settings of its groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortSpec {
    /// What moves with a VM.
    pub policy: PortPolicy,
    /// What stays with the host.
    pub attachment: Attachment,
}

/// What of a port moves with a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortPolicy {
    /// The bridge it belongs to; that of its network, if it has one.
    pub bridge: String,
    /// The network it is in, in place of bridge and VLANs.
    pub network: Option<String>,
    /// Its VLANs.
    pub vlan: VlanMode,
    /// What forwarding reads as it is configured.
    pub forwarding: Forwarding,
    /// The largest payload of a frame in octets, without Ethernet header and tag.
    pub mtu: Mtu,
    /// Broadcast, multicast and unknown-unicast limits in frames per second.
    pub storm_fps: [Option<Fps>; 3],
    /// Its ACLs, then those of its groups.
    pub acls: AclNames,
    /// How many connections are tracked for it.
    pub session_limits: SessionLimits,
    /// Port security; none, if absent.
    pub security: Option<SecuritySpec>,
    /// Administratively down: the port carries no frames.
    pub admin_down: bool,
}

impl PortPolicy {
    /// A port of `bridge` with these VLANs, the default MTU, and no limits.
    pub fn new(bridge: &str, vlan: VlanMode) -> Self {
        PortPolicy {
            bridge: bridge.to_owned(),
            network: None,
            vlan,
            forwarding: Forwarding::default(),
            mtu: Mtu::default(),
            storm_fps: [None; 3],
            acls: AclNames::default(),
            session_limits: SessionLimits::default(),
            security: None,
            admin_down: false,
        }
    }

    /// Whether there is a VLAN of one bridge that both ports carry.
    pub fn shares_vlan(&self, other: &Self) -> bool {
        self.bridge == other.bridge && (0..4096).any(|vid| self.carries(vid) && other.carries(vid))
    }

    /// Whether the port carries a VLAN of its bridge.
    pub fn carries(&self, vid: u16) -> bool {
        self.vlan.carries(vid)
    }
}

/// Settings of a port that stages of the dataplane read as they are configured. A port that is no device, such as the
/// end of a tunnel, has the defaults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forwarding {
    /// See [`PriorityTags`].
    pub priority_tags: PriorityTags,
    /// Frames between two protected ports are dropped.
    pub protected: bool,
    /// See [`MacLimit`].
    pub mac_limit: Option<MacLimit>,
    /// What the station announces of itself is for ingress ACLs to decide, as any frame.
    pub filters_announcements: bool,
}

/// Frames with a new source address above the limit of a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MacLimit {
    /// The most addresses learned at the port.
    pub limit: u32,
    /// Drop the frame (with its reason); otherwise it is forwarded and not learned.
    pub drop: bool,
}

/// How many connections of one port are tracked, where it is not what the sessions' settings say.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SessionLimits {
    /// In all.
    pub all: Option<u32>,
    /// Without an answer.
    pub unanswered: Option<u32>,
}

/// Names of ACLs, each direction in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AclNames {
    /// Ingress.
    pub ingress: Vec<String>,
    /// Egress.
    pub egress: Vec<String>,
}

impl AclNames {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ingress.is_empty() && self.egress.is_empty()
    }
}

/// Checks of port security.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Checks {
    /// The source MAC address is one of the port's.
    pub mac: bool,
    /// The source IP address is one of the port's.
    pub ip: bool,
    /// The sender's addresses in ARP are the port's.
    pub arp: bool,
    /// The addresses in neighbour discovery are the port's.
    pub nd: bool,
    /// No messages of a DHCP server.
    pub dhcp_guard: bool,
    /// No router advertisements and redirects.
    pub ra_guard: bool,
}

/// Port security.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecuritySpec {
    /// What is checked.
    pub checks: Checks,
    /// MAC addresses of the port.
    pub macs: Vec<MacAddr>,
    /// IP prefixes of the port.
    pub ips: Vec<IpNet>,
    /// Addresses that DHCP gives are the port's too.
    pub snoop: bool,
}

/// Where a port is attached on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The device.
    pub device: DeviceSpec,
    /// Cores whose workers poll the port, queue i the i-th of them, in turn; any worker, if empty.
    pub workers: Vec<u32>,
    /// The worker of the destination port forwards its frames (VMDq-style steering).
    pub vmdq: bool,
}

/// The device of a port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DeviceSpec {
    /// A device of DPDK.
    Nic {
        /// PCI address or devargs.
        device: String,
        /// Receive queues; 0 for one for each worker.
        queues: u16,
        /// Header fields for RSS, in one order; the default ones, if empty.
        hash_fields: Vec<String>,
        /// Guests may get receive queues of their own.
        guests: bool,
    },
    /// A kernel interface.
    Host {
        /// Its name.
        interface: String,
        /// By what.
        driver: HostDriver,
    },
    /// A kernel interface that is made for the port.
    Tap {
        /// Its name.
        interface: String,
    },
    /// A guest.
    VhostUser {
        /// Path of the socket.
        socket: String,
        /// The switch makes the socket and QEMU connects.
        server: bool,
    },
}

/// How frames of a kernel interface are had.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum HostDriver {
    /// AF_PACKET for a veth, whose peer's segments and checksums it takes as they are; else AF_XDP. The other one where that
    /// can't be had.
    #[default]
    Auto,
    /// AF_PACKET.
    AfPacket,
    /// AF_XDP.
    AfXdp,
}

impl DeviceSpec {
    /// What two ports can't both have, and the field that it stands in.
    pub fn resource(&self) -> (&'static str, &str) {
        match self {
            DeviceSpec::Nic { device, .. } => ("device", device.split(',').next().unwrap_or(device)),
            DeviceSpec::Host { interface, .. } | DeviceSpec::Tap { interface } => ("interface", interface),
            DeviceSpec::VhostUser { socket, .. } => ("socket", socket),
        }
    }
}

impl PortSpec {
    /// Of a port whose groups' settings are filled in.
    pub(crate) fn new(p: &Port) -> Result<Self, Bad> {
        let object = label(Kind::Port, &p.name);
        let attachment =
            Attachment { device: device(&object, p)?, workers: p.workers.clone(), vmdq: p.steering == "vmdq" };
        Ok(PortSpec { policy: policy(&object, p)?, attachment })
    }
}

fn policy(object: &str, p: &Port) -> Result<PortPolicy, Bad> {
    if !p.network.is_empty() {
        let fields =
            [("bridge", !p.bridge.is_empty()), ("vlan", p.vlan.is_some()), ("vlan_mode", !p.vlan_mode.is_empty())];
        if let Some((field, _)) = fields.iter().find(|(_, set)| *set) {
            return bad(object, field, format!("is that of network '{}': leave it out", p.network));
        }
    }
    let bridge = match (p.network.is_empty(), p.bridge.as_str()) {
        (false, _) => "",
        (true, "") => DEFAULT_BRIDGE,
        (true, bridge) => bridge,
    };
    let acls = AclNames { ingress: p.ingress_acls.clone(), egress: p.egress_acls.clone() };
    check_lists(object, &acls)?;
    let fps = |field, n: Option<u64>| n.map(|n| within(object, field, n, Fps::new)).transpose();
    Ok(PortPolicy {
        network: Some(p.network.clone()).filter(|n| !n.is_empty()),
        forwarding: Forwarding {
            priority_tags: match p.priority_tags.as_str() {
                "if-nonzero" => PriorityTags::IfNonzero,
                "always" => PriorityTags::Always,
                _ => PriorityTags::Never,
            },
            protected: p.protected.unwrap_or_default(),
            mac_limit: p.mac_limit.map(|limit| MacLimit { limit, drop: p.mac_limit_action != "forward" }),
            filters_announcements: p.announcements == "off",
        },
        mtu: within(object, "mtu", p.mtu.unwrap_or(defaults::PORT_MTU), Mtu::new)?,
        storm_fps: [
            fps("storm_broadcast_fps", p.storm_broadcast_fps)?,
            fps("storm_multicast_fps", p.storm_multicast_fps)?,
            fps("storm_unknown_unicast_fps", p.storm_unknown_unicast_fps)?,
        ],
        acls,
        session_limits: SessionLimits { all: p.session_limit, unanswered: p.unanswered_limit },
        security: security(object, p)?,
        admin_down: p.admin == "down",
        ..PortPolicy::new(bridge, vlan(object, p)?)
    })
}

pub(super) fn check_lists(object: &str, acls: &AclNames) -> Result<(), Bad> {
    for (field, names) in [("ingress_acls", &acls.ingress), ("egress_acls", &acls.egress)] {
        if names.len() > limits::ACLS {
            let why = format!("{} of them, those of its groups included; there may be {}", names.len(), limits::ACLS);
            return bad(object, field, why);
        }
        if let Some((_, twice)) = names.iter().enumerate().find(|(i, n)| names[..*i].contains(n)) {
            return bad(object, field, format!("acl '{twice}' stands there twice"));
        }
    }
    Ok(())
}

fn device(object: &str, p: &Port) -> Result<DeviceSpec, Bad> {
    let interface = || {
        let name = if p.interface.is_empty() { &p.name } else { &p.interface };
        let is_path = name.contains(['/', ',', ' ']) || [".", ".."].contains(&name.as_str());
        if name.len() > limits::INTERFACE || is_path {
            let why = format!("'{name}' is no interface name (at most {} octets)", limits::INTERFACE);
            return bad(object, "interface", why);
        }
        Ok(name.clone())
    };
    match p.kind.as_str() {
        "nic" if p.device.is_empty() => {
            bad(object, "device", "is missing: a PCI address as 0000:03:00.0, or DPDK devargs")
        }
        "nic" => Ok(DeviceSpec::Nic {
            device: full_pci_address(&p.device),
            queues: p.queues.unwrap_or(0) as u16,
            hash_fields: in_one_order(&p.hash_fields),
            guests: p.steering == "vmdq",
        }),
        "host" => {
            let driver = match p.driver.as_str() {
                "af_packet" => HostDriver::AfPacket,
                "af_xdp" => HostDriver::AfXdp,
                _ => HostDriver::Auto,
            };
            Ok(DeviceSpec::Host { interface: interface()?, driver })
        }
        "tap" => Ok(DeviceSpec::Tap { interface: interface()? }),
        "vhost-user" => {
            let default = format!("/run/dunlin/vhost/{}.sock", p.name);
            let socket = if p.socket.is_empty() { default } else { p.socket.clone() };
            if socket.len() > limits::SOCKET_PATH {
                let (n, most) = (socket.len(), limits::SOCKET_PATH);
                return bad(object, "socket", format!("{n} octets long; the kernel takes at most {most}"));
            }
            if !socket.starts_with('/') {
                return bad(object, "socket", format!("'{socket}' is not an absolute path"));
            }
            Ok(DeviceSpec::VhostUser { socket, server: p.server })
        }
        _ => bad(object, "kind", "is missing: nic, host, tap or vhost-user"),
    }
}

/// The same fields in one order, each once.
fn in_one_order(fields: &[String]) -> Vec<String> {
    let known = crate::meta::of(Kind::Port).field("hash_fields").map_or(&[][..], |f| &f.one_of);
    known.iter().filter(|k| fields.contains(k)).cloned().collect()
}

/// "03:00.0" is short for "0000:03:00.0", and the same device.
fn full_pci_address(device: &str) -> String {
    let b = device.as_bytes();
    let short = b.len() >= 7 && b[2] == b':' && b[5] == b'.' && (b.len() == 7 || b[7] == b',');
    if short { format!("0000:{device}") } else { device.to_owned() }
}

fn vlan(object: &str, p: &Port) -> Result<VlanMode, Bad> {
    let is_trunk = matches!(p.vlan_mode.as_str(), "trunk" | "native-tagged" | "native-untagged")
        || (p.vlan_mode.is_empty() && p.vlan.is_none());
    let is_tunnel = p.vlan_mode == "dot1q-tunnel";
    if !p.trunks.is_empty() && !is_trunk {
        return bad(object, "trunks", "is for trunk, native-tagged and native-untagged");
    }
    for (field, set) in [("cvlans", !p.cvlans.is_empty()), ("qinq_ethertype", !p.qinq_ethertype.is_empty())] {
        if set && !is_tunnel {
            return bad(object, field, "is for vlan_mode dot1q-tunnel");
        }
    }
    let set = |field, text: &str| text.parse::<VlanSet>().or_else(|why| bad(object, field, why));
    let vid = |n: u32| within(object, "vlan", n, Vid::new);
    let vlans = set("trunks", &p.trunks)?;
    Ok(match (p.vlan_mode.as_str(), p.vlan) {
        ("" | "trunk", None) => VlanMode::Trunk { vlans },
        ("" | "access", Some(v)) => VlanMode::Access { vid: vid(v)? },
        ("trunk", Some(v)) => {
            let why =
                format!("a trunk has none; {v} belongs in trunks, or the mode is native-tagged or native-untagged");
            return bad(object, "vlan", why);
        }
        ("native-tagged", Some(v)) => VlanMode::NativeTagged { native: vid(v)?, vlans },
        ("native-untagged", Some(v)) => VlanMode::NativeUntagged { native: vid(v)?, vlans },
        (_, Some(v)) => VlanMode::Dot1qTunnel {
            vid: vid(v)?,
            cvlans: set("cvlans", &p.cvlans)?,
            tpid: if p.qinq_ethertype == "802.1q" { TPID_8021Q } else { TPID_8021AD },
        },
        (mode, None) => return bad(object, "vlan", format!("is missing; vlan_mode {mode} needs it")),
    })
}

const SNOOPING: &str = "dhcp-snooping";

fn security(object: &str, p: &Port) -> Result<Option<SecuritySpec>, Bad> {
    let names = |word: &str| p.security.iter().any(|w| w == word || (w == "all" && word != SNOOPING));
    let checks = Checks {
        mac: names("mac"),
        ip: names("ip"),
        arp: names("arp"),
        nd: names("nd"),
        dhcp_guard: names("dhcp-guard"),
        ra_guard: names("ra-guard"),
    };
    let snoop = names(SNOOPING);
    let macs = p.macs.iter().map(|m| unicast_mac(object, "macs", m)).collect::<Result<Vec<_>, _>>()?;
    let ips = addresses(object, "ips", &p.ips)?;
    if checks == Checks::default() && !snoop {
        if macs.is_empty() && ips.is_empty() {
            return Ok(None);
        }
        let field = if macs.is_empty() { "ips" } else { "macs" };
        let why = "is used by no check: name checks in security, as 'all', or clear macs and ips too";
        return bad(object, field, why);
    }
    if snoop && macs.is_empty() {
        let why =
            format!("'{SNOOPING}' can't know which lease is the guest's: name the MAC addresses of the guest in macs");
        return bad(object, "security", why);
    }
    if checks.mac && macs.is_empty() {
        return bad(object, "security", "'mac' permits no frame: name the MAC addresses of the guest in macs");
    }
    for (check, on) in [("ip", checks.ip), ("arp", checks.arp), ("nd", checks.nd)] {
        if on && ips.is_empty() && !snoop {
            let why =
                format!("'{check}' permits no frame: name the IP addresses of the guest in ips, or add '{SNOOPING}'");
            return bad(object, "security", why);
        }
    }
    Ok(Some(SecuritySpec { checks, macs, ips, snoop }))
}
