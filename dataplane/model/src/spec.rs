//! What objects mean: every value of a type that can't hold a bad one, defaults filled in. Made of messages that
//! [`crate::check`] has passed, and only here.

mod filter;
mod overlay;
mod port;

use std::{net::IpAddr, time::Duration};

pub use filter::{AclSpec, DefaultAction, SessionsSpec, Timeouts, addresses};
pub use overlay::{Binding, NetworkSpec, OverlaySpec, Route, Tunnel, Vtep, VtepSpec, remote_name};
pub(crate) use overlay::{neighbor, route};
pub use port::{
    AclNames, Attachment, Checks, DeviceSpec, Forwarding, HostDriver, MacLimit, PortPolicy, PortSpec, SecuritySpec,
    SessionLimits,
};

use crate::{
    Bad, DEFAULT_BRIDGE, MacAddr, Vid, defaults,
    v1::{Bridge, Dataplane, StaticMac},
};

pub(crate) fn bad<T>(object: impl Into<String>, field: &str, why: impl Into<String>) -> Result<T, Bad> {
    Err(Bad::new(object, field, why))
}

/// A number of the field; the definition has its range.
pub(crate) fn within<T>(object: &str, field: &str, n: impl Into<u64>, new: fn(u64) -> Option<T>) -> Result<T, Bad> {
    let n = n.into();
    new(n).ok_or_else(|| Bad::new(object, field, format!("{n} is out of range")))
}

/// The MAC address of one host or VM.
pub(crate) fn unicast_mac(object: &str, field: &str, text: &str) -> Result<MacAddr, Bad> {
    match text.parse::<MacAddr>() {
        Ok(mac) if mac.is_unicast() => Ok(mac),
        Ok(_) => bad(object, field, format!("'{text}' is no unicast MAC address")),
        Err(_) => bad(object, field, format!("'{}' is not six octets as 52:54:00:12:34:56", crate::shown(text))),
    }
}

/// Whether one host can have the IP address.
fn is_host(a: IpAddr) -> bool {
    !a.is_unspecified() && !a.is_multicast() && !a.is_loopback() && a != IpAddr::from([255; 4])
}

/// Settings of the workers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DataplaneSpec {
    /// The longest sleep of an idle worker; workers never sleep, if absent.
    pub max_sleep: Option<Duration>,
    /// Receive queues move from busy workers to idle ones.
    pub rebalance: bool,
}

impl From<&Dataplane> for DataplaneSpec {
    fn from(d: &Dataplane) -> Self {
        let us = d.max_sleep_us.unwrap_or(defaults::DATAPLANE_MAX_SLEEP_US);
        let max_sleep = (d.idle != "poll").then(|| Duration::from_micros(us.into()));
        DataplaneSpec { max_sleep, rebalance: d.rebalance == "auto" }
    }
}

impl Default for DataplaneSpec {
    fn default() -> Self {
        (&Dataplane::default()).into()
    }
}

/// A bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BridgeSpec {
    /// Seconds after which a MAC address that was not seen is removed.
    pub ageing_s: u32,
}

impl From<&Bridge> for BridgeSpec {
    fn from(b: &Bridge) -> Self {
        BridgeSpec { ageing_s: b.ageing_s.unwrap_or(defaults::BRIDGE_AGEING_S) }
    }
}

impl Default for BridgeSpec {
    fn default() -> Self {
        (&Bridge::default()).into()
    }
}

/// Where a static MAC address is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Place {
    /// In a network.
    Network(String),
    /// In a VLAN of a bridge; 0 is untagged.
    Vlan(String, Vid),
}

/// A static MAC address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StaticSpec {
    /// Its segment.
    pub place: Place,
    /// The address.
    pub mac: MacAddr,
    /// The port, or the remote VTEP as [`remote_name`] has it.
    pub port: String,
}

impl StaticSpec {
    pub(crate) fn new(object: &str, m: &StaticMac) -> Result<Self, Bad> {
        let mac = unicast_mac(object, "mac", &m.mac)?;
        let bridge = if m.bridge.is_empty() { DEFAULT_BRIDGE } else { &m.bridge };
        let place = match m.network.as_str() {
            "" => Place::Vlan(bridge.to_owned(), within(object, "vlan", m.vlan, Vid::new)?),
            network if !m.bridge.is_empty() || m.vlan != 0 => {
                return bad(object, "bridge", format!("and vlan are those of network '{network}': leave them out"));
            }
            network => Place::Network(network.to_owned()),
        };
        Ok(StaticSpec { place, mac, port: m.port.clone() })
    }
}
