//! Path MTU discovery for tunnels: what routers of the underlay say of packets that are too large for them (RFC 1191,
//! RFC 8201; RFC 4459, 3.2). Their messages are believed if they quote a packet that a VTEP may have sent (RFC 5927, 4).

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

use dunlin_engine::packet::{checksum, icmpv6_checksum};

use super::{
    VtepState,
    packets::{ICMPV6, octets},
};

/// After so long without another message, a larger MTU is tried again (RFC 1191, 6.3; RFC 8201, 4).
const AGE: Duration = Duration::from_secs(600);
/// Nothing below is believed, so that a forged message does limited harm. Each link of IPv4 takes 68 octets, and
/// none of today less than this; each of IPv6 takes 1,280.
const LEAST_V4: u32 = 576;
const LEAST_V6: u32 = 1280;
/// What links are likely to take, for routers that do not say it (RFC 1191, 7.1).
const PLATEAUS: [u32; 5] = [8166, 4352, 2002, 1492, 1006];

/// What is known of the paths of one VTEP, by remote.
#[derive(Default)]
pub(super) struct PathMtus(BTreeMap<IpAddr, (u32, Instant)>);

impl PathMtus {
    /// A router takes packets to `remote` of so many octets; whether that is news.
    pub fn note(&mut self, remote: IpAddr, mtu: u32, now: Instant) -> bool {
        let known = self.0.get(&remote).map_or(u32::MAX, |(mtu, _)| *mtu);
        // A larger one says nothing of the others on the path.
        if mtu > known {
            return false;
        }
        self.0.insert(remote, (mtu, now));
        mtu < known
    }

    /// What is known of a path, if that is not too old.
    pub fn of(&mut self, remote: IpAddr, now: Instant) -> Option<u32> {
        let (mtu, since) = *self.0.get(&remote)?;
        if now.duration_since(since) < AGE {
            return Some(mtu);
        }
        self.0.remove(&remote);
        None
    }
}

/// The remote and the MTU of a message, in the packet `p`, that a packet of this VTEP's was too large.
pub(super) fn read(s: &VtepState, p: &[u8]) -> Option<(IpAddr, u32)> {
    let (quoted, mtu, least) = match s.address.addr() {
        IpAddr::V4(own) => fragmentation_needed(own, p)?,
        IpAddr::V6(own) => packet_too_big(own, p)?,
    };
    let (from, to, protocol, len, behind) = quoted;
    let is_ours = from == s.address.addr() && s.remotes.iter().any(|(remote, _)| *remote == to);
    const GENEVE: u16 = 6081;
    /// What outer packets are sent from (RFC 7348, 5; RFC 6335, 6).
    const DYNAMIC: u16 = 49_152;
    let port = |at: usize| octets::<2>(behind, at).map(u16::from_be_bytes);
    let is_tunnels = match protocol {
        17 => [s.udp_port, GENEVE].contains(&port(2)?) && port(0)? >= DYNAMIC,
        47 => true,
        _ => false,
    };
    (is_ours && is_tunnels && len > mtu).then_some((to, mtu.max(least)))
}

/// Source, destination, protocol, length, and what is behind the header of a packet that is quoted.
type Quoted<'a> = (IpAddr, IpAddr, u8, u32, &'a [u8]);

fn fragmentation_needed(own: Ipv4Addr, p: &[u8]) -> Option<(Quoted<'_>, u32, u32)> {
    let h: [u8; 20] = octets(p, 0)?;
    let (header, len) = (usize::from(h[0] & 15) * 4, usize::from(u16::from_be_bytes([h[2], h[3]])));
    let icmp = p.get(header..len)?;
    let is_whole = h[0] >> 4 == 4 && header >= 20 && h[6] & 0x3f == 0 && h[7] == 0 && h[16..20] == own.octets();
    if !is_whole || h[9] != 1 || icmp.get(..2)? != [3, 4] || checksum(icmp) != 0 {
        return None;
    }
    let quoted = icmp.get(8..)?;
    let q: [u8; 20] = octets(quoted, 0)?;
    let behind = quoted.get(usize::from(q[0] & 15) * 4..)?;
    let said = u32::from(u16::from_be_bytes(octets(icmp, 6)?));
    let was = u32::from(u16::from_be_bytes([q[2], q[3]]));
    let mtu = if said == 0 { *PLATEAUS.iter().find(|p| **p < was).unwrap_or(&LEAST_V4) } else { said };
    let address = |at: usize| Some(Ipv4Addr::from(octets::<4>(&q, at)?).into());
    Some(((address(12)?, address(16)?, q[9], was, behind), mtu, LEAST_V4))
}

fn packet_too_big(own: Ipv6Addr, p: &[u8]) -> Option<(Quoted<'_>, u32, u32)> {
    let address = |p: &[u8], at: usize| Some(Ipv6Addr::from(octets::<16>(p, at)?));
    let (from, to) = (address(p, 8)?, address(p, 24)?);
    let len = usize::from(u16::from_be_bytes(octets(p, 4)?));
    let icmp = p.get(40..40 + len)?;
    if p[6] != ICMPV6 || to != own || icmp.first() != Some(&2) || icmpv6_checksum(from, to, icmp) != 0 {
        return None;
    }
    let quoted = icmp.get(8..)?;
    let behind = quoted.get(40..)?;
    let mtu = u32::from_be_bytes(octets(icmp, 4)?);
    let len = 40 + u32::from(u16::from_be_bytes(octets(quoted, 4)?));
    Some(((address(quoted, 8)?.into(), address(quoted, 24)?.into(), quoted[6], len, behind), mtu, LEAST_V6))
}
