//! Networks and VTEPs, from messages to what they mean.

use std::net::IpAddr;

use dunlin_dataplane_api::v1;
use dunlin_engine::{
    MacAddr,
    topology::{NetworkSpec, OverlaySpec, VtepSpec},
    tunnel::Kind,
};
use ipnet::IpNet;

use super::{BadField, bad, check_name};
use crate::underlay::Route;

/// The largest VNI: 24 bits.
const MAX_VNI: u32 = (1 << 24) - 1;

/// A VTEP and how it reaches others.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VtepConf {
    pub spec: VtepSpec,
    /// Its address and the network that needs no route.
    pub address: IpNet,
    pub routes: Vec<Route>,
    /// Neighbours whose address of layer 2 is given.
    pub neighbors: Vec<(IpAddr, MacAddr)>,
}

/// A network.
pub fn network(n: &v1::Network) -> Result<NetworkSpec, BadField> {
    check_name("network", &n.name)?;
    let object = || format!("network '{}'", n.name);
    let vlan = match (n.bridge.as_str(), n.vlan) {
        ("", _) => None,
        (bridge, vid @ 0..=4094) => Some((bridge.to_owned(), vid as u16)),
        (_, vid) => return Err(bad(object(), "vlan", format!("{vid} is not in 0 to 4094"))),
    };
    let overlay = n.overlay.as_ref().map(|o| overlay(&object, o)).transpose()?;
    let acls = super::filter::acl_names(&n.ingress_acls, &n.egress_acls);
    Ok(NetworkSpec { vlan, overlay, acls })
}

fn overlay(object: &dyn Fn() -> String, o: &v1::Overlay) -> Result<OverlaySpec, BadField> {
    if !(1..=MAX_VNI).contains(&o.vni) {
        return Err(bad(object(), "vni", format!("{} is not in 1 to {MAX_VNI}", o.vni)));
    }
    let remote = |r: &String| match r.parse::<IpAddr>() {
        Ok(a) if is_station(a) => Ok(a),
        _ => Err(bad(object(), "remotes", format!("'{r}' is no address of a host"))),
    };
    let remotes = o.remotes.iter().map(remote).collect::<Result<_, _>>()?;
    let known: Vec<&str> = Kind::ALL.iter().map(|k| k.name()).collect();
    let kind = Kind::ALL.into_iter().find(|k| k.name() == o.kind);
    let kind = kind.ok_or_else(|| bad(object(), "tunnel", format!("'{}' is none of {}", o.kind, known.join(", "))))?;
    let binding = |b: &v1::Binding| match b.address.parse::<IpAddr>() {
        Ok(a) if is_station(a) => Ok((a, station_mac(object, &b.mac)?)),
        _ => Err(bad(object(), "bindings", format!("'{}' is no address of a host", b.address))),
    };
    let bindings = o.bindings.iter().map(binding).collect::<Result<_, _>>()?;
    let suppress = !o.no_suppression;
    let group = match o.group.as_str() {
        "" => None,
        text => match text.parse::<IpAddr>() {
            Ok(g) if g.is_multicast() => Some(g),
            _ => return Err(bad(object(), "group", format!("'{text}' is no multicast group"))),
        },
    };
    Ok(OverlaySpec {
        keep_tags: o.keep_tags,
        group,
        suppress,
        bindings,
        kind,
        vni: o.vni,
        vtep: o.vtep.clone(),
        remotes,
        learn: !o.no_learning,
    })
}

fn is_station(a: IpAddr) -> bool {
    !a.is_unspecified() && !a.is_multicast() && !a.is_loopback() && a != IpAddr::from([255; 4])
}

/// A VTEP.
pub fn vtep(v: &v1::Vtep) -> Result<VtepConf, BadField> {
    check_name("vtep", &v.name)?;
    let object = || format!("vtep '{}'", v.name);
    let in_range = |field, n: u32, range: std::ops::RangeInclusive<u32>| match range.contains(&n) {
        true => Ok(n),
        false => Err(bad(object(), field, format!("{n} is not in {} to {}", range.start(), range.end()))),
    };
    let address: IpNet = match v.address.parse::<IpNet>() {
        Ok(a) if is_station(a.addr()) => a,
        _ => return Err(bad(object(), "address", format!("'{}' is no host's address as 10.0.0.1/24", v.address))),
    };
    let mac = if v.mac.is_empty() { made_of(address.addr()) } else { station_mac(&object, &v.mac)? };
    let spec = VtepSpec {
        uplink: v.uplink.clone(),
        vid: in_range("vlan", v.vlan, 0..=4094)? as u16,
        address: address.addr(),
        mac,
        udp_port: in_range("udp_port", v.udp_port, 1..=65_535)? as u16,
        ttl: in_range("ttl", v.ttl, 1..=255)? as u8,
    };
    let routes = v.routes.iter().map(|r| route(&object, r, &address)).collect::<Result<_, _>>()?;
    let neighbor = |n: &v1::Binding| match n.address.parse::<IpAddr>() {
        Ok(a) if address.contains(&a) && a != address.addr() => Ok((a, station_mac(&object, &n.mac)?)),
        _ => Err(bad(object(), "neighbor", format!("'{}' is no neighbour in {}", n.address, address.trunc()))),
    };
    let neighbors = v.neighbors.iter().map(neighbor).collect::<Result<_, _>>()?;
    Ok(VtepConf { spec, address, routes, neighbors })
}

fn station_mac(object: &dyn Fn() -> String, text: &str) -> Result<MacAddr, BadField> {
    match text.parse::<MacAddr>() {
        Ok(m) if !m.is_multicast() && m != MacAddr::default() => Ok(m),
        _ => Err(bad(object(), "mac", format!("'{text}' is no station's address"))),
    }
}

/// A locally administered address, the same at every start: nobody else in the underlay has this IP
/// address, so nobody has this one.
fn made_of(address: IpAddr) -> MacAddr {
    let o = match address {
        IpAddr::V4(a) => a.octets(),
        IpAddr::V6(a) => (a.octets().chunks(4).map(|c| u32::from_be_bytes([c[0], c[1], c[2], c[3]])))
            .fold(0u32, |h, w| (h ^ w).wrapping_mul(0x9e37_79b1).rotate_left(15))
            .to_be_bytes(),
    };
    MacAddr::from_octets([0x02, 0xd1, o[0], o[1], o[2], o[3]])
}

fn route(object: &dyn Fn() -> String, r: &v1::Route, on_link: &IpNet) -> Result<Route, BadField> {
    let to: IpNet = match r.to.parse::<IpNet>() {
        Ok(n) if n.trunc() == n => n,
        Ok(n) => return Err(bad(object(), "route", format!("'{}' has host bits; {} is meant", r.to, n.trunc()))),
        Err(_) => return Err(bad(object(), "route", format!("'{}' is no prefix as 10.1.0.0/16", r.to))),
    };
    let via = |a: &String| match a.parse::<IpAddr>() {
        Ok(a) if a == on_link.addr() => Err(bad(object(), "route", format!("to {to}: {a} is the vtep itself"))),
        Ok(a) if on_link.contains(&a) => Ok(a),
        _ => Err(bad(object(), "route", format!("to {to}: '{a}' is no neighbour in {}", on_link.trunc()))),
    };
    if r.via.is_empty() {
        return Err(bad(object(), "route", format!("to {to}: names no neighbour")));
    }
    Ok(Route { to, via: r.via.iter().map(via).collect::<Result<_, _>>()? })
}
