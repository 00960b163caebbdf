//! What a VTEP says and hears: ARP and neighbour discovery, whose formats are the engine's, and echo
//! (RFC 792, RFC 4443).
//! Frames here have no tag: the VTEP's port puts one on where its uplink wants it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dunlin_engine::{
    MacAddr,
    packet::{
        ETHERTYPE_ARP,
        arp_nd::{self, ArpNd},
        checksum, icmpv6_checksum,
    },
    tunnel::group_mac,
};

use super::{VtepState, path_mtu};

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
pub(super) const ICMPV6: u8 = 58;
/// Neighbour discovery is for its own link only: RFC 4861, 7.1.
const ND_HOPS: u8 = 255;
const NS: u8 = 135;

/// What a frame came to.
pub enum PacketEvent {
    /// A neighbour said its address, and perhaps wants an answer.
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

fn ethernet(to: MacAddr, from: MacAddr, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut f = [&to.octets()[..], &from.octets(), &ethertype.to_be_bytes(), payload].concat();
    // The least that Ethernet carries; devices would do it too, guests' would not.
    f.resize(f.len().max(60), 0);
    f
}

pub(super) fn octets<const N: usize>(f: &[u8], at: usize) -> Option<[u8; N]> {
    f.get(at..at + N)?.try_into().ok()
}

/// Asks for the MAC address of `address`: all hosts of the link, or the one that had it.
pub fn ask(s: &VtepState, address: IpAddr, known: Option<MacAddr>) -> Vec<u8> {
    match (s.address.addr(), address) {
        (IpAddr::V6(own), IpAddr::V6(to)) => {
            let o = to.octets();
            // The solicited-node group: RFC 4291, 2.7.1, and RFC 2464, 7.
            let group =
                Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(o[13]), u16::from_be_bytes([o[14], o[15]]));
            let body = [&[NS, 0, 0, 0, 0, 0, 0, 0][..], &o, &[1, 1], &s.mac.octets()].concat();
            let packet = icmpv6(own, known.map_or(group, |_| to), ND_HOPS, body);
            ethernet(known.unwrap_or(group_mac(group.into())), s.mac, IPV6, &packet)
        }
        (IpAddr::V4(own), IpAddr::V4(to)) => arp_request(s, own, to, known.unwrap_or(MacAddr::BROADCAST)),
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

/// A message about a group, of type `igmp` or `mld`, with the router alert that both ask for.
fn membership(s: &VtepState, to: IpAddr, group: IpAddr, (igmp, mld): (u8, u8)) -> Vec<u8> {
    match (s.address.addr(), to, group) {
        (IpAddr::V4(own), IpAddr::V4(to), IpAddr::V4(group)) => {
            let mut body = [&[igmp, 0, 0, 0][..], &group.octets()].concat();
            let sum = checksum(&body);
            body[2..4].copy_from_slice(&sum.to_be_bytes());
            let head = [0x46, 0xc0, 0, 32, 0, 0, 0, 0, 1, 2, 0, 0];
            let mut packet = [&head[..], &own.octets(), &to.octets(), &[0x94, 4, 0, 0]].concat();
            let sum = checksum(&packet);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
            ethernet(group_mac(to.into()), s.mac, IPV4, &[packet, body].concat())
        }
        (IpAddr::V6(_), IpAddr::V6(to), IpAddr::V6(group)) => {
            let own = link_local(s.mac);
            let mut body = [&[mld, 0, 0, 0, 0, 0, 0, 0][..], &group.octets()].concat();
            let sum = icmpv6_checksum(own, to, &body);
            body[2..4].copy_from_slice(&sum.to_be_bytes());
            // A hop-by-hop header with the alert, and padding.
            let alert = [ICMPV6, 0, 5, 2, 0, 0, 1, 0];
            let len = (alert.len() + body.len()) as u16;
            let head = [&[0x60, 0, 0, 0][..], &len.to_be_bytes(), &[0, 1], &own.octets(), &to.octets()].concat();
            ethernet(group_mac(to.into()), s.mac, IPV6, &[&head[..], &alert, &body].concat())
        }
        // Groups are of the VTEP's family: refused earlier otherwise.
        _ => Vec::new(),
    }
}

/// The group that an IGMP or MLD query of any version asks for; `None` if it asks for all.
fn query(p: &[u8]) -> Option<Option<IpAddr>> {
    let group: IpAddr = match p.first()? >> 4 {
        4 => {
            let h: [u8; 20] = octets(p, 0)?;
            let header = usize::from(h[0] & 15) * 4;
            let igmp = p.get(header..usize::from(u16::from_be_bytes([h[2], h[3]])))?;
            if header < 20 || h[9] != 2 || igmp.first() != Some(&0x11) || checksum(igmp) != 0 {
                return None;
            }
            Ipv4Addr::from(octets::<4>(igmp, 4)?).into()
        }
        6 => {
            let (from, to) = (Ipv6Addr::from(octets::<16>(p, 8)?), Ipv6Addr::from(octets::<16>(p, 24)?));
            let (len, alert) = (usize::from(u16::from_be_bytes(octets(p, 4)?)), octets::<2>(p, 40)?);
            let mld = p.get(40 + 8 + usize::from(alert[1]) * 8..40 + len)?;
            if p[6] != 0 || alert[0] != ICMPV6 || mld.first() != Some(&130) || icmpv6_checksum(from, to, mld) != 0 {
                return None;
            }
            Ipv6Addr::from(octets::<16>(mld, 8)?).into()
        }
        _ => return None,
    };
    Some((!group.is_unspecified()).then_some(group))
}

/// The address of its link that a station makes of its MAC address: RFC 4291, appendix A.
fn link_local(mac: MacAddr) -> Ipv6Addr {
    let o = mac.octets();
    let word = |a, b| u16::from_be_bytes([a, b]);
    Ipv6Addr::new(0xfe80, 0, 0, 0, word(o[0] ^ 2, o[1]), word(o[2], 0xff), word(0xfe, o[3]), word(o[4], o[5]))
}

fn arp_request(s: &VtepState, own: Ipv4Addr, to: Ipv4Addr, frame_to: MacAddr) -> Vec<u8> {
    // Ethernet and IPv4, addresses of 6 and 4 octets; a request.
    let head = [0, 1, 8, 0, 6, 4, 0, 1];
    let body = [&head[..], &s.mac.octets(), &own.octets(), &[0; 6], &to.octets()].concat();
    ethernet(frame_to, s.mac, ETHERTYPE_ARP, &body)
}

fn icmpv6(from: Ipv6Addr, to: Ipv6Addr, hops: u8, mut body: Vec<u8>) -> Vec<u8> {
    let len = body.len() as u16;
    body[2..4].fill(0);
    let sum = icmpv6_checksum(from, to, &body);
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    let head = [&[0x60, 0, 0, 0][..], &len.to_be_bytes(), &[ICMPV6, hops], &from.octets(), &to.octets()].concat();
    [head, body].concat()
}

/// Understands a frame for the VTEP, with or without a tag.
pub fn parse(s: &VtepState, frame: &[u8]) -> PacketEvent {
    let tagged = matches!(octets::<2>(frame, 12), Some([0x81, 0] | [0x88, 0xa8]));
    let l3 = if tagged { 18 } else { 14 };
    let own = s.address.addr();
    match arp_nd::read(frame, l3) {
        // Who claims the VTEP's own address is no neighbour.
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
    if let Some(group) = frame.get(l3..).and_then(query) {
        return PacketEvent::Query(group);
    }
    if let Some((remote, mtu)) = frame.get(l3..).and_then(|p| path_mtu::read(s, p)) {
        return PacketEvent::TooBig { remote, mtu };
    }
    let echo = octets(frame, l3 - 2).and_then(|e| match (u16::from_be_bytes(e), own) {
        (IPV4, IpAddr::V4(own)) => echo_v4(s, own, frame, frame.get(l3..)?),
        (IPV6, IpAddr::V6(own)) => echo_v6(s, own, frame, frame.get(l3..)?),
        _ => None,
    });
    echo.map_or(PacketEvent::Nothing, PacketEvent::Answer)
}

fn station(mac: [u8; 6]) -> Option<MacAddr> {
    let mac = MacAddr::from_octets(mac);
    (!mac.is_multicast() && mac != MacAddr::default()).then_some(mac)
}

fn echo_v4(s: &VtepState, own: Ipv4Addr, frame: &[u8], p: &[u8]) -> Option<Vec<u8>> {
    let h: [u8; 20] = octets(p, 0)?;
    let len = usize::from(u16::from_be_bytes([h[2], h[3]]));
    // Echo requests to this address alone, whole, and without options.
    let icmp = p.get(20..len)?;
    let plain = h[0] == 0x45 && h[9] == 1 && h[6] & 0x3f == 0 && h[7] == 0 && h[16..20] == own.octets();
    if !plain || icmp.len() < 8 || icmp[..2] != [8, 0] || checksum(&h) != 0 || checksum(icmp) != 0 {
        return None;
    }
    let mut reply = icmp.to_vec();
    reply[0] = 0;
    reply[2..4].fill(0);
    let sum = checksum(&reply);
    reply[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut head = h;
    (head[8], head[10], head[11]) = (s.ttl, 0, 0);
    head[12..16].copy_from_slice(&own.octets());
    head[16..20].copy_from_slice(&h[12..16]);
    let sum = checksum(&head);
    head[10..12].copy_from_slice(&sum.to_be_bytes());
    Some(ethernet(station(octets(frame, 6)?)?, s.mac, IPV4, &[&head[..], &reply].concat()))
}

fn echo_v6(s: &VtepState, own: Ipv6Addr, frame: &[u8], p: &[u8]) -> Option<Vec<u8>> {
    let len = usize::from(u16::from_be_bytes(octets(p, 4)?));
    let (from, to) = (Ipv6Addr::from(octets::<16>(p, 8)?), Ipv6Addr::from(octets::<16>(p, 24)?));
    let body = p.get(40..40 + len)?;
    let right = p[6] == ICMPV6 && body.len() >= 8 && icmpv6_checksum(from, to, body) == 0;
    if !right || to != own || body[..2] != [128, 0] {
        return None;
    }
    let reply = icmpv6(own, from, s.ttl, [&[129, 0, 0, 0], &body[4..]].concat());
    Some(ethernet(station(octets(frame, 6)?)?, s.mac, IPV6, &reply))
}

/// What tells the sender of a packet that it is too large: "fragmentation needed" (RFC 1191) or "packet too
/// big" (RFC 4443, 3.2), from the station it was for, as the kernel's tunnels do it: the switch has no
/// address of its own there. `None` where no sender may be notified.
pub fn too_big(frame: &[u8], l3: usize, mtu: u32) -> Option<Vec<u8>> {
    let (to, from) = (MacAddr::from_octets(octets(frame, 0)?), station(octets(frame, 6)?)?);
    let packet = frame.get(l3..)?;
    if to.is_multicast() {
        return None;
    }
    let reply = match u16::from_be_bytes(octets(frame, l3 - 2)?) {
        IPV4 => fragmentation_needed(packet, mtu)?,
        IPV6 => packet_too_big(packet, mtu)?,
        _ => return None,
    };
    Some(ethernet(from, to, u16::from_be_bytes(octets(frame, l3 - 2)?), &reply))
}

fn fragmentation_needed(packet: &[u8], mtu: u32) -> Option<Vec<u8>> {
    const DF: u8 = 0x40;
    /// ICMP's errors: they are not answered.
    const ERRORS: [u8; 5] = [3, 4, 5, 11, 12];
    let h: [u8; 20] = octets(packet, 0)?;
    let header = usize::from(h[0] & 15) * 4;
    let first = h[6] & 0x1f == 0 && h[7] == 0;
    let error = h[9] == 1 && packet.get(header).is_none_or(|t| ERRORS.contains(t));
    if h[0] >> 4 != 4 || header < 20 || h[6] & DF == 0 || !first || error {
        return None;
    }
    // As much of it as fits into 576 octets: RFC 1812, 4.3.2.3.
    let part = &packet[..packet.len().min(576 - 28)];
    let mut icmp = [&[3, 4, 0, 0, 0, 0][..], &(mtu as u16).to_be_bytes(), part].concat();
    let sum = checksum(&icmp);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    let len = (20 + icmp.len()) as u16;
    let mut head = [&[0x45, 0xc0][..], &len.to_be_bytes(), &[0, 0, 0, 0, 64, 1, 0, 0], &h[16..20], &h[12..16]].concat();
    let sum = checksum(&head);
    head[10..12].copy_from_slice(&sum.to_be_bytes());
    Some([head, icmp].concat())
}

fn packet_too_big(packet: &[u8], mtu: u32) -> Option<Vec<u8>> {
    let (from, to) = (Ipv6Addr::from(octets::<16>(packet, 8)?), Ipv6Addr::from(octets::<16>(packet, 24)?));
    let error = packet[6] == ICMPV6 && packet.get(40).is_none_or(|t| *t < 128);
    if packet[0] >> 4 != 6 || from.is_unspecified() || from.is_multicast() || error {
        return None;
    }
    // As much of it as fits into 1,280 octets: RFC 4443, 2.4.
    let part = &packet[..packet.len().min(1280 - 48)];
    Some(icmpv6(to, from, 64, [&[2, 0, 0, 0][..], &mtu.to_be_bytes(), part].concat()))
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
        assert_eq!(query(&whole), Some(None));
        for first in 0..=255u8 {
            for len in 0..=40 {
                let mut p = vec![0; len];
                p.iter_mut().zip(whole).for_each(|(to, from)| *to = from);
                if let Some(f) = p.first_mut() {
                    *f = first;
                }
                let _ = query(&p);
                if let [_, _, _, l, ..] = &mut p[..] {
                    *l = 4;
                }
                let _ = query(&p);
            }
        }
    }
}
