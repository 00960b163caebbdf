//! Port security: as whom the station behind a port may speak.
//!
//! Which MAC and IP addresses it has is configured, or, for the latter, seen in what a DHCP server
//! gives it ([`Snooped`]). What it sends as somebody else, or as a DHCP server or a router, is dropped, each
//! for its own reason. Headers that hide what a packet is (extension headers that don't end, fragments of
//! neighbour discovery, a second VLAN tag) are taken for the worst that they could be: RFC 6980, RFC 7113.

mod dhcp;
mod snooped;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

pub use dunlin_model::spec::Checks;

use crate::{
    DropReason, MacAddr,
    packet::{
        ETHERTYPE_ARP,
        arp_nd::link_local,
        headers::{DPORT, FRAGMENT, Family, Headers, ICMPV6, SPORT, SRC, UDP},
    },
    tables::acl::Prefix,
};
use dhcp::{ACK, ClientMessage, NAK, REQUEST, ServerMessage, dhcpv6_reply, udp_payload};
pub use snooped::{Lease, Snooped};

/// Ports of UDP (RFC 2131, RFC 8415).
pub(crate) const DHCP_SERVER: u32 = 67;
const DHCP_CLIENT: u32 = 68;
pub(crate) const DHCPV6_SERVER: u32 = 547;
const DHCPV6_CLIENT: u32 = 546;

/// One port's.
#[derive(Clone, Debug, Default)]
pub struct Security {
    checks: Checks,
    /// Rising.
    macs: Vec<MacAddr>,
    /// Rising, none within another: what holds an address is the last one that begins at it or before.
    ips: Vec<Prefix>,
    pub(crate) snooped: Option<Arc<Snooped>>,
}

/// What is asked of an IPv4 packet: its source, its protocol, and ports as [`Headers`] have them.
pub(crate) struct V4 {
    pub src: u32,
    pub protocol: u8,
    pub sport: u32,
    pub dport: u32,
}

impl V4 {
    fn of(h: &Headers) -> V4 {
        V4 { src: h.words[SRC], protocol: h.protocol(), sport: h.words[SPORT], dport: h.words[DPORT] }
    }

    /// To a DHCP server, by whatever port: servers do not ask.
    #[inline(always)]
    fn is_to_server(&self) -> bool {
        (self.protocol, self.dport) == (UDP, DHCP_SERVER)
    }

    /// Between the ports of DHCP, or one of them.
    #[inline(always)]
    fn is_dhcp(&self) -> bool {
        self.protocol == UDP && [self.sport, self.dport].iter().any(|p| matches!(*p, DHCP_SERVER | DHCP_CLIENT))
    }
}

impl Security {
    /// What is looked at, the station's MAC and IP addresses, however many (no bit behind a prefix's length is set),
    /// and those of layer 3 that DHCP gave it, if they are to be learned.
    pub fn new(checks: Checks, mut macs: Vec<MacAddr>, mut ips: Vec<Prefix>, snooped: Option<Arc<Snooped>>) -> Self {
        macs.sort_unstable();
        // The wider one first: what is in it is left out.
        ips.sort_unstable();
        ips.dedup_by(|next, kept| kept.contains(next.address));
        Security { checks, macs, ips, snooped }
    }

    /// Whether an ARP packet that passed names an IP address of the port's.
    pub(crate) fn checks_arp(&self) -> bool {
        self.checks.arp
    }

    #[inline(always)]
    fn has_mac(&self, mac: MacAddr) -> bool {
        self.macs.binary_search(&mac).is_ok()
    }

    /// Whether a frame that the station sent may pass.
    pub(crate) fn check(&self, h: &Headers, head: &[u8], now_s: u32) -> Result<(), DropReason> {
        let c = &self.checks;
        let (src, _) = h.macs();
        if c.mac && !self.has_mac(src) {
            return Err(DropReason::SpoofedMac);
        }
        match h.family {
            Family::V4 => {
                let p = V4::of(h);
                match &self.snooped {
                    Some(_) if p.is_to_server() => self.check_dhcp(h, head, &p, now_s),
                    _ => self.check_v4(&p, now_s),
                }
            }
            Family::V6 => self.check_v6(h, head, src, now_s),
            Family::Other => match h.ethertype() {
                ETHERTYPE_ARP if c.arp => self.check_arp(head, usize::from(h.l3), src, now_s),
                _ if h.broken && *c != Checks { mac: c.mac, ..Checks::default() } => Err(DropReason::SpoofedIp),
                _ => Ok(()),
            },
        }
    }

    /// The same for a frame with a plain IPv4 packet; `None` if that is not enough to judge it. `passed` is the sender of the
    /// one before, if that passed: mostly it is the same, of which there is nothing more to ask.
    #[inline(always)]
    pub(crate) fn check_plain(
        &self,
        mac: MacAddr,
        p: &V4,
        now_s: u32,
        passed: &mut Option<(MacAddr, u32)>,
    ) -> Option<Result<(), DropReason>> {
        if *passed == Some((mac, p.src)) && !p.is_dhcp() {
            return Some(Ok(()));
        }
        *passed = None;
        if self.snooped.is_some() && p.is_to_server() {
            return None;
        }
        if self.checks.mac && !self.has_mac(mac) {
            return Some(Err(DropReason::SpoofedMac));
        }
        let checked = self.check_v4(p, now_s);
        // By DHCP it may have passed without an address.
        *passed = (checked.is_ok() && !p.is_dhcp()).then_some((mac, p.src));
        Some(checked)
    }

    #[inline(always)]
    fn has(&self, address: IpAddr, now_s: u32) -> bool {
        let before = &self.ips[..self.ips.partition_point(|p| p.address <= address)];
        before.last().is_some_and(|p| p.contains(address))
            || self.snooped.as_ref().is_some_and(|s| s.has(address, now_s))
    }

    #[inline(always)]
    fn check_v4(&self, p: &V4, now_s: u32) -> Result<(), DropReason> {
        let c = &self.checks;
        if c.dhcp_guard && p.protocol == UDP && (p.sport == DHCP_SERVER || p.dport == DHCP_CLIENT) {
            return Err(DropReason::DhcpServer);
        }
        // Who has no address yet asks a DHCP server for one.
        let asks = p.src == 0 && p.is_to_server() && p.sport == DHCP_CLIENT;
        if !c.ip || asks || self.has(Ipv4Addr::from_bits(p.src).into(), now_s) {
            return Ok(());
        }
        Err(DropReason::SpoofedIp)
    }

    /// A client's message: for itself (RFC 2131, 7), by no relay, and about no other port's address. A request to renew
    /// (4.3.2) passes from an address that is not known yet: its acknowledgement says that it is the port's, also after
    /// snooping was switched on, or the lease was forgotten, under a client that has one.
    fn check_dhcp(&self, h: &Headers, head: &[u8], p: &V4, now_s: u32) -> Result<(), DropReason> {
        let from_client = p.sport == DHCP_CLIENT && h.words[FRAGMENT] == 0;
        let message = udp_payload(h, head).filter(|_| from_client).and_then(ClientMessage::read);
        let its_own = |m: &ClientMessage| {
            m.relay.is_unspecified() && [Some(m.client), m.identifier].iter().flatten().all(|mac| self.has_mac(*mac))
        };
        let m = message.filter(its_own).ok_or(DropReason::SpoofedDhcp)?;
        let renews = m.kind == REQUEST && m.address.to_bits() == p.src && p.src != 0;
        if !renews && m.released_address().is_some_and(|address| !self.has(address.into(), now_s)) {
            return Err(DropReason::SpoofedDhcp);
        }
        if renews { Ok(()) } else { self.check_v4(p, now_s) }
    }

    /// Takes note of what the station sends and may: an address that it gives back, and one that it probes. Whether a
    /// lease has ended.
    pub(crate) fn note_sent(&self, h: &Headers, head: &[u8], now_s: u32) -> bool {
        let Some(snooped) = &self.snooped else { return false };
        if let Some(target) = probed(h, head) {
            snooped.probe(target, now_s);
        }
        let message = udp_payload(h, head).and_then(ClientMessage::read);
        message.and_then(|m| m.released_address()).is_some_and(|address| snooped.forget(address.into()))
    }

    /// Whether anything but its sender's addresses is asked of an IPv6 packet with these ports.
    #[inline(always)]
    pub(crate) fn asks_more_v6(protocol: u8, sport: u32, dport: u32) -> bool {
        protocol == ICMPV6 || protocol == UDP && (sport == DHCPV6_SERVER || dport == DHCPV6_CLIENT)
    }

    fn check_v6(&self, h: &Headers, head: &[u8], mac: MacAddr, now_s: u32) -> Result<(), DropReason> {
        let c = &self.checks;
        let kind = h.ports().filter(|_| h.protocol() == ICMPV6).map(|(kind, _)| kind);
        if c.ra_guard && (h.broken || matches!(kind, Some(134 | 137))) {
            return Err(DropReason::RouterAdvertisement);
        }
        let is_server = h.protocol() == UDP && Self::asks_more_v6(UDP, h.words[SPORT], h.words[DPORT]);
        if c.dhcp_guard && (h.broken || is_server) {
            return Err(DropReason::DhcpServer);
        }
        let Some((IpAddr::V6(src), _)) = h.addresses() else { return Ok(()) };
        if c.ip && !(src.is_unspecified() && h.protocol() == ICMPV6) && !self.has_v6(src, mac, now_s) {
            return Err(DropReason::SpoofedIp);
        }
        if c.nd && h.broken {
            return Err(DropReason::SpoofedNd);
        }
        if c.nd && (133..=137).any(|k| kind == Some(k)) {
            return self.check_nd(h, head, mac, now_s);
        }
        Ok(())
    }

    /// Whether the station may use a link-local address when it has probed it (RFC 6620): of RFC 7217 they can't be known
    /// before.
    fn learns(&self, address: Ipv6Addr) -> bool {
        self.snooped.is_some() && Snooped::is_link_local(address)
    }

    /// Also the link-local address that is made of its MAC address.
    fn has_v6(&self, address: Ipv6Addr, mac: MacAddr, now_s: u32) -> bool {
        address == link_local(mac) || self.has(address.into(), now_s)
    }

    fn check_nd(&self, h: &Headers, head: &[u8], mac: MacAddr, now_s: u32) -> Result<(), DropReason> {
        let bad = Err(DropReason::SpoofedNd);
        // Not in fragments: RFC 6980, 5.
        let (Some(m), Some(kind), 0) = (head.get(usize::from(h.l4)..), h.ports().map(|p| p.0), h.words[FRAGMENT])
        else {
            return bad;
        };
        let (options, tells) = match kind {
            133 => (8, false),
            135 | 136 => (24, kind == 136),
            _ => return Ok(()),
        };
        // From the unspecified address: is the one asked for free (RFC 4862)? That must be for itself.
        let probes = kind == 135 && is_from_unspecified(h);
        if tells || probes {
            let Some(target) = m.get(8..24).and_then(<[u8]>::first_chunk::<16>) else { return bad };
            let target = Ipv6Addr::from(*target);
            if !(self.has_v6(target, mac, now_s) || probes && self.learns(target)) {
                return bad;
            }
        }
        // Both kinds of MAC addresses, of the sender and of the target, are its own.
        let end = (h.end as usize).saturating_sub(usize::from(h.l4)).min(m.len());
        let Some(mut rest) = m.get(options..end) else { return bad };
        while let [kind, len, ..] = rest {
            let n = usize::from(*len) * 8;
            let (Some(option), 1..) = (rest.get(..n), n) else { return bad };
            if matches!(kind, 1 | 2) && option.get(2..8) != Some(&mac.octets()) {
                return bad;
            }
            rest = &rest[n..];
        }
        Ok(())
    }

    fn check_arp(&self, head: &[u8], l3: usize, mac: MacAddr, now_s: u32) -> Result<(), DropReason> {
        let bad = Err(DropReason::SpoofedArp);
        let Some(p) = head.get(l3..).and_then(<[u8]>::first_chunk::<28>) else { return bad };
        let sender = Ipv4Addr::new(p[14], p[15], p[16], p[17]);
        // From the unspecified address: is the one asked for free (RFC 5227)? That must be for itself.
        let claimed = if sender.is_unspecified() { Ipv4Addr::new(p[24], p[25], p[26], p[27]) } else { sender };
        let its_own = self.has(claimed.into(), now_s);
        if p[..6] == [0, 1, 8, 0, 6, 4] && p[8..14] == mac.octets() && its_own { Ok(()) } else { bad }
    }

    /// Takes note of what a DHCP server gives the station, in a frame on its way to it; whether that was something.
    pub(crate) fn snoop(&self, h: &Headers, head: &[u8], now_s: u32) -> bool {
        let Some(snooped) = &self.snooped else { return false };
        // Another station that has an address, or probes it too.
        if let Some(target) =
            target(h, head).filter(|_| h.ports().is_some_and(|(kind, _)| kind == 136) || is_from_unspecified(h))
        {
            snooped.contest(target, now_s);
        }
        if h.protocol() != UDP || h.words[FRAGMENT] != 0 {
            return false;
        }
        let Some(message) = head.get(usize::from(h.l4) + 8..) else { return false };
        let mut given = false;
        match h.ports() {
            Some((67, 68)) => {
                let answer = ServerMessage::read(message).filter(|m| self.has_mac(m.client));
                given = match answer.map(|m| (m.kind, m)) {
                    Some((ACK, m)) if m.lease_s > 0 && !m.address.is_unspecified() => {
                        snooped.note(m.address.into(), now_s.saturating_add(m.lease_s), Some(m.client));
                        true
                    }
                    // The client must stop using what it has (RFC 2131, 3.2).
                    Some((NAK, m)) => snooped.forget_client(m.client, self.macs.len() == 1),
                    _ => false,
                };
            }
            Some((547, 546)) if self.has_mac(h.macs().1) => dhcpv6_reply(message, |address, lease_s| {
                snooped.note(address.into(), now_s.saturating_add(lease_s), None);
                given = true;
            }),
            _ => {}
        }
        given
    }
}

fn is_from_unspecified(h: &Headers) -> bool {
    h.addresses().is_some_and(|(src, _)| src.is_unspecified())
}

/// The address that a neighbor solicitation or advertisement is about.
fn target(h: &Headers, head: &[u8]) -> Option<Ipv6Addr> {
    let is_nd = h.protocol() == ICMPV6 && h.words[FRAGMENT] == 0 && matches!(h.ports(), Some((135 | 136, _)));
    let octets = head.get(usize::from(h.l4) + 8..)?.first_chunk::<16>()?;
    is_nd.then(|| Ipv6Addr::from(*octets))
}

/// The address of which a station asks whether it is free (RFC 4862, 5.4).
fn probed(h: &Headers, head: &[u8]) -> Option<Ipv6Addr> {
    target(h, head).filter(|_| is_from_unspecified(h) && h.ports().is_some_and(|(kind, _)| kind == 135))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prefix() -> impl Strategy<Value = Prefix> {
        // Near each other, so that some are within others.
        let v4 = (0u32..64, 24u8..=32).prop_map(|(a, len)| (IpAddr::from((10 << 24 | a).to_be_bytes()), len));
        let v6 = (0u128..64, 120u8..=128).prop_map(|(a, len)| (IpAddr::from((0xfd << 120 | a).to_be_bytes()), len));
        prop_oneof![v4, v6].prop_map(|(address, len)| match address {
            IpAddr::V4(a) => Prefix { address: (a & Ipv4Addr::from_bits(u32::MAX << (32 - len))).into(), len },
            IpAddr::V6(a) => Prefix { address: (a & Ipv6Addr::from_bits(u128::MAX << (128 - len))).into(), len },
        })
    }

    proptest! {
        #[test]
        fn it_has_what_any_of_its_prefixes_has(ips in proptest::collection::vec(prefix(), 0..8)) {
            let security = Security::new(Checks::default(), Vec::new(), ips.clone(), None);
            for n in 0u8..80 {
                for address in [IpAddr::from([10, 0, 0, n]), IpAddr::from((0xfd << 120 | u128::from(n)).to_be_bytes())] {
                    prop_assert_eq!(security.has(address, 0), ips.iter().any(|p| p.contains(address)), "{}", address);
                }
            }
        }
    }
}
