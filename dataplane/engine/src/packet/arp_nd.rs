//! Who has which address: ARP (RFC 826) and neighbour discovery (RFC 4861), read, and answered in a
//! station's stead.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{
    MacAddr,
    packet::{ETHERTYPE_ARP, ETHERTYPE_IPV6, icmpv6_checksum},
};

/// Ethernet and IPv4, addresses of 6 and 4 octets.
const ARP_HEAD: [u8; 6] = [0, 1, 8, 0, 6, 4];
const ICMPV6: u8 = 58;
/// It is for its own link only: RFC 4861, 7.1.
const HOPS: u8 = 255;
const ROUTER_ADVERTISEMENT: u8 = 134;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// Kinds of options: RFC 4861, 4.6.1.
const SOURCE: u8 = 1;
const TARGET: u8 = 2;
/// Flags of an advertisement: RFC 4861, 4.4.
const IS_ROUTER: u8 = 0x80;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;
/// ff02::1, where everyone listens: RFC 4291, 2.7.1.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// A question.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// Whose MAC address is wanted.
    pub target: IpAddr,
    /// Who asks; unspecified, if only to know whether the address is free.
    pub asker: IpAddr,
    /// The asker's MAC address.
    pub mac: MacAddr,
}

/// What a frame says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ArpNd {
    /// Who has this address?
    Solicitation(Request),
    /// This station has it.
    Advertisement {
        /// The IP address.
        address: IpAddr,
        /// That of layer 2.
        mac: MacAddr,
        /// Whether it is a router; `None` if the frame does not say it.
        router: Option<bool>,
    },
}

/// Reads a frame whose Ethernet header ends at `l3`; `None` if it says nothing of the kind, or says it
/// wrongly.
pub fn read(frame: &[u8], l3: usize) -> Option<ArpNd> {
    let ethertype = u16::from_be_bytes(octets(frame, l3.checked_sub(2)?)?);
    match ethertype {
        ETHERTYPE_ARP => read_arp(frame.get(l3..)?),
        ETHERTYPE_IPV6 => read_nd(station(octets(frame, 6)?)?, frame.get(l3..)?),
        _ => None,
    }
}

fn octets<const N: usize>(from: &[u8], at: usize) -> Option<[u8; N]> {
    from.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn station(mac: [u8; 6]) -> Option<MacAddr> {
    let mac = MacAddr::from_octets(mac);
    (!mac.is_multicast() && mac != MacAddr::default()).then_some(mac)
}

fn read_arp(p: &[u8]) -> Option<ArpNd> {
    if octets(p, 0)? != ARP_HEAD {
        return None;
    }
    let mac = station(octets(p, 8)?)?;
    let (asker, target) = (Ipv4Addr::from(octets::<4>(p, 14)?), Ipv4Addr::from(octets::<4>(p, 24)?));
    match octets(p, 6)? {
        [0, 1] if asker != target => {
            Some(ArpNd::Solicitation(Request { target: target.into(), asker: asker.into(), mac }))
        }
        // To oneself: said without being asked (RFC 5227, 3).
        [0, 1 | 2] => Some(ArpNd::Advertisement { address: asker.into(), mac, router: None }),
        _ => None,
    }
}

fn read_nd(sender: MacAddr, p: &[u8]) -> Option<ArpNd> {
    let len = usize::from(u16::from_be_bytes(octets(p, 4)?));
    let body = p.get(40..)?.get(..len)?;
    if p[0] >> 4 != 6 || p[6] != ICMPV6 || p[7] != HOPS || body.len() < 16 || body[1] != 0 {
        return None;
    }
    let (from, to) = (Ipv6Addr::from(octets::<16>(p, 8)?), Ipv6Addr::from(octets::<16>(p, 24)?));
    if icmpv6_checksum(from, to, body) != 0 {
        return None;
    }
    if body[0] == ROUTER_ADVERTISEMENT {
        // From a router's own address on this link, with 0 for its lifetime also while it is no default router
        // (RFC 4861, 4.2).
        let mac = option(&body[16..], SOURCE).unwrap_or(sender);
        return Some(ArpNd::Advertisement { address: from.into(), mac, router: Some(true) });
    }
    let target = IpAddr::from(octets::<16>(body, 8)?);
    if body.len() < 24 {
        return None;
    }
    match body[0] {
        SOLICITATION => {
            let mac = option(&body[24..], SOURCE).unwrap_or(sender);
            Some(ArpNd::Solicitation(Request { target, asker: from.into(), mac }))
        }
        ADVERTISEMENT => {
            let (mac, router) = (option(&body[24..], TARGET).unwrap_or(sender), body[4] & IS_ROUTER != 0);
            Some(ArpNd::Advertisement { address: target, mac, router: Some(router) })
        }
        _ => None,
    }
}

/// The address in an option of this kind.
fn option(mut options: &[u8], kind: u8) -> Option<MacAddr> {
    while let [k, units, rest @ ..] = options {
        if *k == kind && *units == 1 {
            return station(octets(rest, 0)?);
        }
        // An option of length 0 ends it: RFC 4861, 4.6.
        options = options.get(usize::from(*units).checked_mul(8).filter(|n| *n > 0)?..)?;
    }
    None
}

/// An answer, ready to be sent, without a tag.
pub struct Answer {
    octets: [u8; 86],
    len: usize,
}

impl Answer {
    /// The frame.
    pub fn octets(&self) -> &[u8] {
        &self.octets[..self.len]
    }
}

/// The answer to a question: its target is at `mac`, and a router or not. A host takes its default router for gone if an
/// answer does not say that it is one (RFC 4861, 7.2.5).
pub fn answer(q: &Request, mac: MacAddr, router: bool) -> Answer {
    let mut f = [0; 86];
    f[..6].copy_from_slice(&q.mac.octets());
    f[6..12].copy_from_slice(&mac.octets());
    match (q.target, q.asker) {
        (IpAddr::V6(target), IpAddr::V6(asker)) => {
            let unasked = asker.is_unspecified();
            let to = if unasked { ALL_NODES } else { asker };
            if unasked {
                f[..6].copy_from_slice(&[0x33, 0x33, 0, 0, 0, 1]);
            }
            f[12..14].copy_from_slice(&ETHERTYPE_IPV6.to_be_bytes());
            (f[14], f[19], f[20], f[21]) = (0x60, 32, ICMPV6, HOPS);
            f[22..38].copy_from_slice(&target.octets());
            f[38..54].copy_from_slice(&to.octets());
            let flags = OVERRIDE | if unasked { 0 } else { SOLICITED } | if router { IS_ROUTER } else { 0 };
            (f[54], f[58]) = (ADVERTISEMENT, flags);
            f[62..78].copy_from_slice(&target.octets());
            (f[78], f[79]) = (TARGET, 1);
            f[80..86].copy_from_slice(&mac.octets());
            let sum = icmpv6_checksum(target, to, &f[54..86]);
            f[56..58].copy_from_slice(&sum.to_be_bytes());
            Answer { octets: f, len: 86 }
        }
        (target, asker) => {
            let v4 = |a| if let IpAddr::V4(a) = a { a.octets() } else { [0; 4] };
            f[12..14].copy_from_slice(&ETHERTYPE_ARP.to_be_bytes());
            f[14..20].copy_from_slice(&ARP_HEAD);
            f[21] = 2;
            f[22..28].copy_from_slice(&mac.octets());
            f[28..32].copy_from_slice(&v4(target));
            f[32..38].copy_from_slice(&q.mac.octets());
            f[38..42].copy_from_slice(&v4(asker));
            // The least that Ethernet carries.
            Answer { octets: f, len: 60 }
        }
    }
}

/// The address of its link that a host makes of its MAC address: RFC 4291, appendix A.
pub fn link_local(mac: MacAddr) -> Ipv6Addr {
    let o = mac.octets();
    let word = |a, b| u16::from_be_bytes([a, b]);
    Ipv6Addr::new(0xfe80, 0, 0, 0, word(o[0] ^ 2, o[1]), word(o[2], 0xff), word(0xfe, o[3]), word(o[4], o[5]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(n: u8) -> MacAddr {
        MacAddr::from_octets([2, 0, 0, 0, 0, n])
    }

    #[test]
    fn an_answer_is_read_as_what_it_says() {
        for (target, asker) in
            [("10.0.0.2", "10.0.0.1"), ("10.0.0.2", "0.0.0.0"), ("fd00::2", "fd00::1"), ("fd00::2", "::")]
        {
            let (target, asker): (IpAddr, IpAddr) = (target.parse().unwrap(), asker.parse().unwrap());
            let a = answer(&Request { target, asker, mac: mac(1) }, mac(2), true);
            let tells = ArpNd::Advertisement { address: target, mac: mac(2), router: target.is_ipv6().then_some(true) };
            assert_eq!(read(a.octets(), 14), Some(tells), "{target} {asker}");
            // Cut or changed, it says nothing, and nothing panics.
            for n in 0..a.octets().len() {
                let _ = read(&a.octets()[..n], 14);
            }
            let mut changed = a.octets().to_vec();
            changed[30] ^= 1;
            assert_ne!(read(&changed, 14), Some(tells));
        }
    }

    #[test]
    fn questions_and_what_is_said_unasked() {
        let mut arp =
            answer(&Request { target: [10, 0, 0, 1].into(), asker: [10, 0, 0, 2].into(), mac: mac(9) }, mac(1), false);
        arp.octets[21] = 1;
        let asks = Request { target: [10, 0, 0, 2].into(), asker: [10, 0, 0, 1].into(), mac: mac(1) };
        assert_eq!(read(arp.octets(), 14), Some(ArpNd::Solicitation(asks)));
        arp.octets[41] = 1;
        let tells = ArpNd::Advertisement { address: [10, 0, 0, 1].into(), mac: mac(1), router: None };
        assert_eq!(read(arp.octets(), 14), Some(tells));
        assert_eq!(option(&[1, 0, 0, 0], SOURCE), None);
        assert_eq!(option(&[3, 1, 0, 0, 0, 0, 0, 0, 1, 1, 2, 0, 0, 0, 0, 7], SOURCE), Some(mac(7)));
    }
}
