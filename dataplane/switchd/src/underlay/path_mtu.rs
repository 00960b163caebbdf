//! Path MTU discovery for tunnels: what routers of the underlay say of packets that are too large for them (RFC 1191,
//! RFC 8201; RFC 4459, 3.2). Their messages are believed if they quote a packet that a VTEP may have sent (RFC 5927, 4).

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use etherparse::{
    Icmpv4Type, Icmpv6Type, IpNumber, Ipv4HeaderSlice, Ipv6HeaderSlice,
    icmpv4::DestUnreachableHeader::FragmentationNeeded,
};

use super::{VtepState, packets::IpPacket};

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

/// The remote and the MTU of a message that a packet of this VTEP's was too large.
pub(super) fn read(s: &VtepState, p: &IpPacket<'_>) -> Option<(IpAddr, u32)> {
    if p.to != s.address.addr() {
        return None;
    }
    let Quoted { ends, protocol, len, behind, mtu } = fragmentation_needed(p).or_else(|| packet_too_big(p))?;
    let is_ours = ends.0 == s.address.addr() && s.remotes.iter().any(|(remote, _)| *remote == ends.1);
    const GENEVE: u16 = 6081;
    /// What outer packets are sent from (RFC 7348, 5; RFC 6335, 6).
    const DYNAMIC: u16 = 49_152;
    let port = |at: usize| behind.get(at..)?.first_chunk().map(|o| u16::from_be_bytes(*o));
    let is_tunnels = match protocol {
        IpNumber::UDP => [s.udp_port, GENEVE].contains(&port(2)?) && port(0)? >= DYNAMIC,
        IpNumber::GRE => true,
        _ => false,
    };
    let least = if ends.1.is_ipv4() { LEAST_V4 } else { LEAST_V6 };
    (is_ours && is_tunnels && len > mtu).then_some((ends.1, mtu.max(least)))
}

/// The packet that a message is about, as far as it is quoted, and the MTU of the next hop.
struct Quoted<'a> {
    ends: (IpAddr, IpAddr),
    protocol: IpNumber,
    len: u32,
    /// What is behind its header.
    behind: &'a [u8],
    mtu: u32,
}

fn fragmentation_needed<'a>(p: &IpPacket<'a>) -> Option<Quoted<'a>> {
    let icmp = p.icmpv4()?;
    let Icmpv4Type::DestinationUnreachable(FragmentationNeeded { next_hop_mtu }) = icmp.icmp_type() else {
        return None;
    };
    let h = Ipv4HeaderSlice::from_slice(icmp.payload()).ok()?;
    let len = u32::from(h.total_len());
    let plateau = || *PLATEAUS.iter().find(|p| **p < len).unwrap_or(&LEAST_V4);
    Some(Quoted {
        ends: (h.source_addr().into(), h.destination_addr().into()),
        protocol: h.protocol(),
        len,
        behind: icmp.payload().get(h.slice().len()..)?,
        mtu: if next_hop_mtu == 0 { plateau() } else { next_hop_mtu.into() },
    })
}

fn packet_too_big<'a>(p: &IpPacket<'a>) -> Option<Quoted<'a>> {
    let icmp = p.icmpv6()?;
    let Icmpv6Type::PacketTooBig { mtu } = icmp.icmp_type() else { return None };
    let h = Ipv6HeaderSlice::from_slice(icmp.payload()).ok()?;
    Some(Quoted {
        ends: (h.source_addr().into(), h.destination_addr().into()),
        protocol: h.next_header(),
        len: 40 + u32::from(h.payload_length()),
        behind: icmp.payload().get(40..)?,
        mtu,
    })
}
