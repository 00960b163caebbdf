//! What a VTEP sends and receives besides tunnels: ARP and neighbor discovery, whose formats are the engine's where frames
//! meet them on their way, and echo (RFC 792, RFC 4443), group membership, and errors about packets that are too large.
//! Frames here have no tag: the VTEP's port puts one on where its uplink wants it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dunlin_engine::{
    MacAddr,
    packet::{
        arp_nd::{self, ArpNd, link_local},
        checksum,
    },
    tunnel::group_mac,
};
use etherparse::{
    ArpEthIpv4Packet, ArpOperation, ArpPacket, EtherType, Ethernet2Header, Icmpv4Header, Icmpv4Slice, Icmpv4Type,
    Icmpv6Header, Icmpv6Slice, Icmpv6Type, IpDscp, IpNumber, Ipv4Header, Ipv4HeaderSlice, Ipv4Slice, Ipv6Header,
    Ipv6HeaderSlice, Ipv6RawExtHeader, Ipv6Slice, icmpv4::DestUnreachableHeader::FragmentationNeeded,
};

use super::{VtepState, path_mtu};

/// Neighbor discovery is for its own link only: RFC 4861, 7.1.
const ND_HOPS: u8 = 255;
/// Of errors, which routers send.
const HOPS: u8 = 64;
/// Internetwork control (RFC 2474, 4.2.2.2), as routers mark what they say of groups and of packets.
const CONTROL: u8 = 48;

/// What a frame came to.
pub enum PacketEvent {
    /// A neighbor announced its MAC address, and perhaps wants an answer.
    Neighbor { address: IpAddr, mac: MacAddr, answer: Option<Vec<u8>> },
    /// A querier asks which groups are listened to: one, or all (RFC 2236, 3; RFC 2710, 4).
    Query(Option<IpAddr>),
    /// A router says that a packet to a remote was too large for it.
    TooBig { remote: IpAddr, mtu: u32 },
    /// It wants an answer.
    Answer(Vec<u8>),
    /// It is nothing for a VTEP.
    Nothing,
}

/// An IP packet that is whole, and no fragment.
pub(super) struct IpPacket<'a> {
    pub from: IpAddr,
    pub to: IpAddr,
    pub protocol: IpNumber,
    /// Behind the header, its options and its extension headers.
    pub payload: &'a [u8],
    /// Of IPv4: differentiated services and congestion, as they are in the header.
    tos: u8,
    /// It has options, or extension headers.
    has_options: bool,
}

impl<'a> IpPacket<'a> {
    pub fn read(p: &'a [u8]) -> Option<Self> {
        if p.first()? >> 4 == 4 {
            let ip = Ipv4Slice::from_slice(p).ok()?;
            let h = ip.header();
            if checksum(h.slice()) != 0 || ip.is_payload_fragmented() {
                return None;
            }
            let (from, to) = (h.source_addr().into(), h.destination_addr().into());
            // By lengths: the slice borrows from `ip`, not from `p`.
            let payload = p.get(h.slice().len()..usize::from(h.total_len()))?;
            let has_options = h.slice().len() > Ipv4Header::MIN_LEN;
            return Some(IpPacket { from, to, protocol: h.protocol(), payload, tos: p[1], has_options });
        }
        let ip = Ipv6Slice::from_slice(p).ok()?;
        let (h, payload) = (ip.header(), ip.payload());
        let has_options = payload.ip_number != h.next_header();
        let (from, to) = (h.source_addr().into(), h.destination_addr().into());
        (!payload.fragmented).then_some(IpPacket {
            from,
            to,
            protocol: payload.ip_number,
            payload: payload.payload,
            tos: 0,
            has_options,
        })
    }

    pub fn icmpv4(&self) -> Option<Icmpv4Slice<'a>> {
        let is_right = self.protocol == IpNumber::ICMP && self.from.is_ipv4() && checksum(self.payload) == 0;
        Icmpv4Slice::from_slice(self.payload).ok().filter(|_| is_right)
    }

    pub fn icmpv6(&self) -> Option<Icmpv6Slice<'a>> {
        let (IpAddr::V6(from), IpAddr::V6(to)) = (self.from, self.to) else { return None };
        let icmp = Icmpv6Slice::from_slice(self.payload).ok()?;
        (self.protocol == IpNumber::IPV6_ICMP && icmp.is_checksum_valid(from.octets(), to.octets())).then_some(icmp)
    }

    /// The group that an IGMP or MLD query of any version asks for; `None` if it asks for all.
    fn query(&self) -> Option<Option<IpAddr>> {
        const IGMP_QUERY: u8 = 0x11;
        const MLD_QUERY: u8 = 130;
        let group: IpAddr = if self.protocol == IpNumber::IGMP {
            let group = self.payload.get(4..)?.first_chunk::<4>()?;
            (self.payload[0] == IGMP_QUERY && checksum(self.payload) == 0).then_some(Ipv4Addr::from(*group))?.into()
        } else {
            // The router alert stands in a hop-by-hop header (RFC 2710, 3).
            let mld = self.icmpv6().filter(|m| m.type_u8() == MLD_QUERY && self.has_options)?;
            Ipv6Addr::from(*mld.payload().first_chunk::<16>()?).into()
        };
        Some((!group.is_unspecified()).then_some(group))
    }

    /// The answer to an echo request to this address alone, without options.
    fn echo_reply(&self, s: &VtepState) -> Option<Vec<u8>> {
        if self.to != s.address.addr() || self.has_options {
            return None;
        }
        match (self.from, self.to) {
            (IpAddr::V4(from), IpAddr::V4(own)) => {
                let icmp = self.icmpv4()?;
                let Icmpv4Type::EchoRequest(echo) = icmp.icmp_type() else { return None };
                let reply = Icmpv4Header::with_checksum(Icmpv4Type::EchoReply(echo), icmp.payload());
                let message = [&reply.to_bytes()[..], icmp.payload()].concat();
                Some(ipv4((own, from), (IpNumber::ICMP, self.tos, s.ttl), &[], &message))
            }
            (IpAddr::V6(from), IpAddr::V6(own)) => {
                let icmp = self.icmpv6()?;
                let Icmpv6Type::EchoRequest(echo) = icmp.icmp_type() else { return None };
                Some(icmpv6((own, from), s.ttl, Icmpv6Type::EchoReply(echo), icmp.payload()))
            }
            _ => None,
        }
    }
}

fn ethernet(destination: MacAddr, source: MacAddr, ether_type: EtherType, payload: &[u8]) -> Vec<u8> {
    let header = Ethernet2Header { source: source.octets(), destination: destination.octets(), ether_type };
    let mut f = [&header.to_bytes()[..], payload].concat();
    // The least that Ethernet carries; devices would do it too, guests' would not.
    f.resize(f.len().max(60), 0);
    f
}

/// A packet of at most 64 KiB.
fn ipv4(
    (from, to): (Ipv4Addr, Ipv4Addr),
    (protocol, tos, ttl): (IpNumber, u8, u8),
    options: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    let mut h = Ipv4Header::default();
    (h.protocol, h.time_to_live, h.source, h.destination) = (protocol, ttl, from.octets(), to.octets());
    h.dscp = IpDscp::try_new(tos >> 2).unwrap_or_default();
    h.options = options.try_into().unwrap_or_default();
    h.total_len = (h.header_len() + payload.len()) as u16;
    h.header_checksum = h.calc_header_checksum();
    [&h.to_bytes()[..], payload].concat()
}

fn ipv6((from, to): (Ipv6Addr, Ipv6Addr), next_header: IpNumber, hop_limit: u8, payload: &[u8]) -> Vec<u8> {
    let (source, destination, payload_length) = (from.octets(), to.octets(), payload.len() as u16);
    let h = Ipv6Header { next_header, hop_limit, source, destination, payload_length, ..Default::default() };
    [&h.to_bytes()[..], payload].concat()
}

/// An ICMPv6 message, checksum and all.
fn message_v6((from, to): (Ipv6Addr, Ipv6Addr), kind: Icmpv6Type, body: &[u8]) -> Vec<u8> {
    // Refused is what has more than 4 GiB.
    let header = Icmpv6Header::with_checksum(kind, from.octets(), to.octets(), body);
    header.map_or_else(|_| Vec::new(), |h| [&h.to_bytes()[..], body].concat())
}

fn icmpv6(ends: (Ipv6Addr, Ipv6Addr), hops: u8, kind: Icmpv6Type, body: &[u8]) -> Vec<u8> {
    ipv6(ends, IpNumber::IPV6_ICMP, hops, &message_v6(ends, kind, body))
}

/// Asks for the MAC address of `address`: all hosts of the link, or the one that had it.
pub fn ask(s: &VtepState, address: IpAddr, known: Option<MacAddr>) -> Vec<u8> {
    match (s.address.addr(), address) {
        (IpAddr::V6(own), IpAddr::V6(to)) => {
            let [.., a, b, c] = to.octets();
            // The solicited-node group: RFC 4291, 2.7.1, and RFC 2464, 7.
            let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]));
            let body = [&to.octets()[..], &[1, 1], &s.mac.octets()].concat();
            let ends = (own, known.map_or(group, |_| to));
            let packet = icmpv6(ends, ND_HOPS, Icmpv6Type::NeighborSolicitation, &body);
            ethernet(known.unwrap_or(group_mac(group.into())), s.mac, EtherType::IPV6, &packet)
        }
        (IpAddr::V4(own), IpAddr::V4(to)) => {
            let request = ArpEthIpv4Packet {
                operation: ArpOperation::REQUEST,
                sender_mac: s.mac.octets(),
                sender_ipv4: own.octets(),
                target_mac: [0; 6],
                target_ipv4: to.octets(),
            };
            let packet = ArpPacket::from(request).to_bytes();
            ethernet(known.unwrap_or(MacAddr::BROADCAST), s.mac, EtherType::ARP, &packet)
        }
        // Routes and remotes are of the VTEP's family: refused earlier otherwise.
        _ => Vec::new(),
    }
}

/// Says that the VTEP listens to a group: an IGMPv2 report (RFC 2236), or one of MLD (RFC 2710).
pub fn join(s: &VtepState, group: IpAddr) -> Vec<u8> {
    membership(s, group, group, (0x16, 131))
}

/// Says that the VTEP does not listen to a group any more, to all routers (RFC 2236, 3; RFC 2710, 4).
pub fn leave(s: &VtepState, group: IpAddr) -> Vec<u8> {
    let routers = match group {
        IpAddr::V4(_) => Ipv4Addr::new(224, 0, 0, 2).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2).into(),
    };
    membership(s, routers, group, (0x17, 132))
}

/// A message about a group, of type `igmp` or `mld`, with the router alert that both ask for (RFC 2113, RFC 2711).
fn membership(s: &VtepState, to: IpAddr, group: IpAddr, (igmp, mld): (u8, u8)) -> Vec<u8> {
    match (s.address.addr(), to, group) {
        (IpAddr::V4(own), IpAddr::V4(to), IpAddr::V4(group)) => {
            let mut body = [&[igmp, 0, 0, 0][..], &group.octets()].concat();
            let sum = checksum(&body);
            body[2..4].copy_from_slice(&sum.to_be_bytes());
            let packet = ipv4((own, to), (IpNumber::IGMP, CONTROL << 2, 1), &[0x94, 4, 0, 0], &body);
            ethernet(group_mac(to.into()), s.mac, EtherType::IPV4, &packet)
        }
        (IpAddr::V6(_), IpAddr::V6(to), IpAddr::V6(group)) => {
            let ends = (link_local(s.mac), to);
            let kind = Icmpv6Type::Unknown { type_u8: mld, code_u8: 0, bytes5to8: [0; 4] };
            let Ok(alert) = Ipv6RawExtHeader::new_raw(IpNumber::IPV6_ICMP, &[5, 2, 0, 0, 1, 0]) else {
                return Vec::new();
            };
            let body = [&alert.to_bytes()[..], &message_v6(ends, kind, &group.octets())].concat();
            let packet = ipv6(ends, IpNumber::IPV6_HEADER_HOP_BY_HOP, 1, &body);
            ethernet(group_mac(to.into()), s.mac, EtherType::IPV6, &packet)
        }
        // Groups are of the VTEP's family: refused earlier otherwise.
        _ => Vec::new(),
    }
}

/// Where the network header of a frame is, with or without a tag.
fn network_header(frame: &[u8]) -> usize {
    if matches!(frame.get(12..14), Some([0x81, 0] | [0x88, 0xa8])) { 18 } else { 14 }
}

/// Understands a frame for the VTEP, with or without a tag.
pub fn parse(s: &VtepState, frame: &[u8]) -> PacketEvent {
    let (l3, own) = (network_header(frame), s.address.addr());
    match arp_nd::read(frame, l3) {
        // A host that claims the VTEP's own address is no neighbor.
        Some(ArpNd::Solicitation(q)) if q.asker != own => {
            let answer = (q.target == own).then(|| arp_nd::answer(&q, s.mac, false).octets().to_vec());
            return PacketEvent::Neighbor { address: q.asker, mac: q.mac, answer };
        }
        Some(ArpNd::Advertisement { address, mac, .. }) if address != own => {
            return PacketEvent::Neighbor { address, mac, answer: None };
        }
        Some(_) => return PacketEvent::Nothing,
        None => {}
    }
    let Some(packet) = frame.get(l3..).and_then(IpPacket::read) else { return PacketEvent::Nothing };
    if let Some(group) = packet.query() {
        return PacketEvent::Query(group);
    }
    if let Some((remote, mtu)) = path_mtu::read(s, &packet) {
        return PacketEvent::TooBig { remote, mtu };
    }
    let answer = || reply_to(frame, l3, s.mac, &packet.echo_reply(s)?);
    answer().map_or(PacketEvent::Nothing, PacketEvent::Answer)
}

/// A frame with this packet to the sender of `frame`, if that may be one.
fn reply_to(frame: &[u8], l3: usize, from: MacAddr, packet: &[u8]) -> Option<Vec<u8>> {
    let sender = MacAddr::from_octets(*frame.get(6..)?.first_chunk()?);
    let ether_type = EtherType(u16::from_be_bytes(*frame.get(l3 - 2..)?.first_chunk()?));
    (!sender.is_multicast() && sender != MacAddr::default()).then(|| ethernet(sender, from, ether_type, packet))
}

/// What notifies the sender of a packet that it is too large: "fragmentation needed" (RFC 1191) or "packet too
/// big" (RFC 4443, 3.2), from the host it was for, as the kernel's tunnels do it: the switch has no
/// address of its own there. `None` where no sender may be notified.
pub fn too_big(frame: &[u8], l3: usize, mtu: u32) -> Option<Vec<u8>> {
    let to = MacAddr::from_octets(*frame.first_chunk()?);
    let packet = frame.get(l3..).filter(|_| !to.is_multicast())?;
    let error = match packet.first()? >> 4 {
        4 => fragmentation_needed(packet, mtu)?,
        6 => packet_too_big(packet, mtu)?,
        _ => return None,
    };
    reply_to(frame, l3, to, &error)
}

fn fragmentation_needed(packet: &[u8], mtu: u32) -> Option<Vec<u8>> {
    /// ICMP's errors: they are not answered.
    const ERRORS: [u8; 5] = [3, 4, 5, 11, 12];
    let h = Ipv4HeaderSlice::from_slice(packet).ok()?;
    let is_error = || packet.get(h.slice().len()).is_none_or(|t| ERRORS.contains(t));
    if !h.dont_fragment() || h.fragments_offset().value() != 0 || (h.protocol() == IpNumber::ICMP && is_error()) {
        return None;
    }
    // As much of it as fits into 576 octets: RFC 1812, 4.3.2.3.
    let part = &packet[..packet.len().min(576 - 28)];
    let kind = Icmpv4Type::DestinationUnreachable(FragmentationNeeded { next_hop_mtu: mtu as u16 });
    let message = [&Icmpv4Header::with_checksum(kind, part).to_bytes()[..], part].concat();
    Some(ipv4((h.destination_addr(), h.source_addr()), (IpNumber::ICMP, CONTROL << 2, HOPS), &[], &message))
}

fn packet_too_big(packet: &[u8], mtu: u32) -> Option<Vec<u8>> {
    let h = Ipv6HeaderSlice::from_slice(packet).ok()?;
    let (from, to) = (h.source_addr(), h.destination_addr());
    let is_error = h.next_header() == IpNumber::IPV6_ICMP && packet.get(40).is_none_or(|t| *t < 128);
    if from.is_unspecified() || from.is_multicast() || is_error {
        return None;
    }
    // As much of it as fits into 1,280 octets: RFC 4443, 2.4.
    let part = &packet[..packet.len().min(1280 - 48)];
    Some(icmpv6((to, from), HOPS, Icmpv6Type::PacketTooBig { mtu }, part))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However short a packet is, and whatever lengths it says that it has.
    #[test]
    fn queries_are_read_from_any_octets() {
        let igmp = [
            0x46, 0, 0, 32, 0, 0, 0, 0, 1, 2, 0, 0, 10, 0, 0, 1, 224, 0, 0, 1, 0x94, 4, 0, 0, 0x11, 100, 0, 0, 0, 0, 0,
            0,
        ];
        let mut whole = igmp;
        let sum = checksum(&whole[24..]);
        whole[26..28].copy_from_slice(&sum.to_be_bytes());
        let sum = checksum(&whole[..24]);
        whole[10..12].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(IpPacket::read(&whole).unwrap().query(), Some(None));
        for first in 0..=255u8 {
            for len in 0..=40 {
                let mut p = vec![0; len];
                p.iter_mut().zip(whole).for_each(|(to, from)| *to = from);
                if let Some(f) = p.first_mut() {
                    *f = first;
                }
                let _ = IpPacket::read(&p).and_then(|p| p.query());
                if let [_, _, _, l, ..] = &mut p[..] {
                    *l = 4;
                }
                let _ = IpPacket::read(&p).and_then(|p| p.query());
            }
        }
    }
}
