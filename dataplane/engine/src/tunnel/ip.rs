//! The outer headers, up to UDP: made once per remote, and completed for each frame; and what of a
//! received packet's headers says that it is for a tunnel.
//!
//! IPv4 after RFC 791, with DF set and no fragment ever; IPv6 after RFC 8200; UDP without checksum,
//! over IPv6 as RFC 6935 and RFC 6936 allow it for tunnels. DSCP and ECN after RFC 6040, its normal
//! mode. The source port comes from the inner flow, so that the underlay can spread flows.

use std::net::IpAddr;

use super::vxlan;
use crate::MacAddr;

pub(crate) const ETHERTYPE_IPV4: u16 = 0x0800;
pub(crate) const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERNET: usize = 14;
const UDP: u8 = 17;
const UDP_LEN: usize = 8;
/// The first source port (RFC 6335's dynamic ports); 14 bits of the flow's hash are added.
const FIRST_SOURCE_PORT: u16 = 49_152;

/// Octets of the longest headers: Ethernet, IPv6, UDP, VXLAN.
pub(crate) const MAX_OUTER: usize = ETHERNET + 40 + UDP_LEN + vxlan::LEN;

/// The headers in front of frames to one remote.
#[derive(Clone, Debug)]
pub struct Outer {
    octets: [u8; MAX_OUTER],
    len: usize,
    /// The sum of the IPv4 header's words that are the same for all frames.
    sum: u32,
}

/// What outer headers are made of.
#[derive(Clone, Copy, Debug)]
pub struct OuterSpec {
    /// The VTEP's address of layer 2.
    pub mac: MacAddr,
    /// Its address of layer 3.
    pub from: IpAddr,
    /// The remote's, of the same family.
    pub to: IpAddr,
    /// The UDP port of VXLAN.
    pub udp_port: u16,
    /// TTL or hop limit.
    pub ttl: u8,
}

impl Outer {
    /// The headers for one remote.
    pub fn new(s: &OuterSpec) -> Self {
        let mut o = [0; MAX_OUTER];
        o[6..12].copy_from_slice(&s.mac.octets());
        let (ethertype, udp) = match (s.from, s.to) {
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                o[14] = 0x60;
                (o[20], o[21]) = (UDP, s.ttl);
                o[22..38].copy_from_slice(&from.octets());
                o[38..54].copy_from_slice(&to.octets());
                (ETHERTYPE_IPV6, ETHERNET + 40)
            }
            (from, to) => {
                let octets = |a| if let IpAddr::V4(a) = a { a.octets() } else { [0; 4] };
                o[14] = 0x45;
                o[20] = 0x40; // DF
                (o[22], o[23]) = (s.ttl, UDP);
                o[26..30].copy_from_slice(&octets(from));
                o[30..34].copy_from_slice(&octets(to));
                (ETHERTYPE_IPV4, ETHERNET + 20)
            }
        };
        o[12..14].copy_from_slice(&ethertype.to_be_bytes());
        o[udp + 2..udp + 4].copy_from_slice(&s.udp_port.to_be_bytes());
        vxlan::write(&mut o[udp + UDP_LEN..], 0);
        Outer { octets: o, len: udp + UDP_LEN + vxlan::LEN, sum: sum(&o[14..34]) }
    }

    /// Octets of the headers.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Always false: there are headers.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Writes the headers of a frame of `inner_len` octets into `to`, which has [`Outer::len`] of them.
    #[inline(always)]
    pub(crate) fn write(&self, to: &mut [u8], next_hop: MacAddr, inner: Inner, inner_len: u32, vni: u32) {
        let vxlan_and_frame = (vxlan::LEN as u32 + inner_len) as u16;
        let source_port = FIRST_SOURCE_PORT + (inner.flow & 0x3fff);
        let be = |n: u16| n.to_be_bytes();
        const V4: usize = ETHERNET + 20 + UDP_LEN + vxlan::LEN;
        if let Ok(h) = <&mut [u8; V4]>::try_from(&mut *to) {
            h.copy_from_slice(&self.octets[..V4]);
            let total = vxlan_and_frame + (20 + UDP_LEN as u16);
            h[15] = inner.tos;
            h[16..18].copy_from_slice(&be(total));
            h[24..26].copy_from_slice(&be(!fold(self.sum + u32::from(inner.tos) + u32::from(total))));
            h[34..36].copy_from_slice(&be(source_port));
            h[38..40].copy_from_slice(&be(total - 20));
            vxlan::set_vni(&mut h[42..], vni);
        } else if let Ok(h) = <&mut [u8; MAX_OUTER]>::try_from(&mut *to) {
            h.copy_from_slice(&self.octets);
            // The flow label as RFC 6438 has it.
            let first = 6u32 << 28 | u32::from(inner.tos) << 20 | u32::from(inner.flow);
            h[14..18].copy_from_slice(&first.to_be_bytes());
            h[18..20].copy_from_slice(&be(vxlan_and_frame + UDP_LEN as u16));
            h[54..56].copy_from_slice(&be(source_port));
            h[58..60].copy_from_slice(&be(vxlan_and_frame + UDP_LEN as u16));
            vxlan::set_vni(&mut h[62..], vni);
        }
        to[..6].copy_from_slice(&next_hop.octets());
    }
}

/// What of an inner frame shows in its outer headers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inner {
    /// A hash of its flow.
    pub flow: u16,
    /// DSCP and ECN; 0 if it is no IP.
    pub tos: u8,
}

impl Inner {
    /// Of an untagged frame.
    #[inline(always)]
    pub fn of(head: &[u8]) -> Self {
        let word = |at: usize| head.get(at..at + 4).map_or(0, |w| u32::from_ne_bytes([w[0], w[1], w[2], w[3]]));
        let half = |at: usize| head.get(at..at + 2).map_or(0, |w| u16::from_be_bytes([w[0], w[1]]));
        let mix = |a: u64| (a.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as u16;
        match half(12) {
            ETHERTYPE_IPV4 if head.len() >= 34 => {
                let (protocol, header) = (head[23], usize::from(head[14] & 15) * 4);
                // No ports in a fragment: all of a packet take one way.
                let ports = if half(20) & 0x3fff == 0 && has_ports(protocol) { word(14 + header) } else { 0 };
                let pair = u64::from(word(26)) << 32 | u64::from(word(30));
                let rest = u64::from(ports) << 8 | u64::from(protocol);
                Inner { flow: mix(pair ^ rest.wrapping_mul(0xc2b2_ae3d_27d4_eb4f)), tos: head[15] }
            }
            ETHERTYPE_IPV6 if head.len() >= 54 => {
                let next = head[20];
                let ports = if has_ports(next) { word(54) } else { 0 };
                let pairs = (22..54).step_by(8).fold(u64::from(ports) << 8 | u64::from(next), |h, at| {
                    (h ^ (u64::from(word(at)) << 32 | u64::from(word(at + 4)))).wrapping_mul(0xc2b2_ae3d_27d4_eb4f)
                });
                Inner { flow: mix(pairs), tos: head[14] << 4 | head[15] >> 4 }
            }
            _ => {
                let pair = u64::from(word(0)) << 32 | u64::from(word(8));
                Inner { flow: mix(pair ^ u64::from(word(4))), tos: 0 }
            }
        }
    }
}

/// TCP, UDP, SCTP: ports come first.
#[inline(always)]
fn has_ports(protocol: u8) -> bool {
    matches!(protocol, 6 | UDP | 132)
}

/// An IP address in one word, one of IPv4 as RFC 4291, 2.5.5.2 maps it: made and compared faster than
/// an [`IpAddr`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Address(u128);

impl Address {
    /// No host's.
    pub(crate) const NONE: Address = Address(0);

    #[inline(always)]
    fn v4(octets: [u8; 4]) -> Self {
        Address(0xffff << 32 | u128::from(u32::from_be_bytes(octets)))
    }
}

impl From<IpAddr> for Address {
    fn from(a: IpAddr) -> Self {
        match a {
            IpAddr::V4(a) => Address::v4(a.octets()),
            IpAddr::V6(a) => Address(a.to_bits()),
        }
    }
}

/// A UDP packet that was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Datagram {
    pub from: Address,
    pub to: Address,
    pub to_port: u16,
    /// Where its payload is, and how many octets that has.
    pub at: usize,
    pub len: usize,
    /// ECN of its IP header.
    pub ecn: u8,
}

/// What a received packet is to a tunnel's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packet {
    Udp(Datagram),
    /// Something else, whole or not.
    Other,
    /// UDP, but cut, a fragment, or with a wrong IPv4 checksum.
    Bad,
}

/// Looks at a packet behind an Ethernet header that ends at `l3`, of a frame with `len` octets in all.
#[inline(always)]
pub(crate) fn packet(head: &[u8], l3: usize, len: usize) -> Packet {
    let Some(ip) = head.get(l3..) else { return Packet::Other };
    let be = |o: &[u8], at: usize| u16::from_be_bytes([o[at], o[at + 1]]);
    let (from, to, udp_at, ip_len, ecn) = match be(head, l3 - 2) {
        ETHERTYPE_IPV4 => {
            let Some(h) = ip.first_chunk::<20>() else { return Packet::Other };
            if h[9] != UDP || h[0] >> 4 != 4 {
                return Packet::Other;
            }
            let header = usize::from(h[0] & 15) * 4;
            let good = if header == 20 { is_whole(h) } else { ip.get(..header).is_some_and(|o| checksum(o) == 0) };
            if be(h, 6) & 0x3fff != 0 || header < 20 || !good {
                return Packet::Bad;
            }
            let from = Address::v4([h[12], h[13], h[14], h[15]]);
            let to = Address::v4([h[16], h[17], h[18], h[19]]);
            (from, to, header, usize::from(be(h, 2)), h[1] & 3)
        }
        ETHERTYPE_IPV6 => {
            let Some(h) = ip.first_chunk::<40>() else { return Packet::Other };
            if h[6] != UDP || h[0] >> 4 != 6 {
                return Packet::Other;
            }
            let from = Address(u128::from_be_bytes(h[8..24].try_into().expect("16 octets")));
            let to = Address(u128::from_be_bytes(h[24..40].try_into().expect("16 octets")));
            (from, to, 40, 40 + usize::from(be(h, 4)), h[1] >> 4 & 3)
        }
        _ => return Packet::Other,
    };
    let Some(udp) = ip.get(udp_at..udp_at + UDP_LEN) else { return Packet::Bad };
    let udp_len = usize::from(be(udp, 4));
    if udp_len < UDP_LEN || udp_at + udp_len > ip_len || l3 + ip_len > len {
        return Packet::Bad;
    }
    let at = l3 + udp_at + UDP_LEN;
    Packet::Udp(Datagram { from, to, to_port: be(udp, 2), at, len: udp_len - UDP_LEN, ecn })
}

/// Puts the outer header's ECN into an inner untagged frame, after RFC 6040, 4.2. `false` if the
/// frame is to be dropped: congestion was met, and its sender could not be told.
#[inline(never)]
pub(crate) fn combine_ecn(inner: &mut [u8], outer: u8) -> bool {
    let Some(ethertype) = inner.get(12..14) else { return true };
    let (at, shift) = match u16::from_be_bytes([ethertype[0], ethertype[1]]) {
        ETHERTYPE_IPV4 if inner.len() >= 34 => (15, 0),
        ETHERTYPE_IPV6 if inner.len() >= 54 => (15, 4),
        _ => return true,
    };
    let has = inner[at] >> shift & 3;
    let wants = match (has, outer) {
        (0, 3) => return false,
        (_, 3) => 3,
        (2, 1) => 1,
        _ => has,
    };
    if wants != has {
        inner[at] = inner[at] & !(3 << shift) | wants << shift;
        if shift == 0 {
            // RFC 1624: HC' = ~(~HC + ~m + m').
            let old = u16::from_be_bytes([inner[24], inner[25]]);
            let new = !fold(u32::from(!old) + u32::from(!u16::from(has)) + u32::from(wants));
            inner[24..26].copy_from_slice(&new.to_be_bytes());
        }
    }
    true
}

/// Whether a header of IPv4 without options has a right checksum. A sum of ones' complement is the same
/// in any order of octets and any width of words: RFC 1071, 2.
#[inline(always)]
fn is_whole(h: &[u8; 20]) -> bool {
    let word = |at: usize| u64::from(u32::from_ne_bytes([h[at], h[at + 1], h[at + 2], h[at + 3]]));
    let sum = word(0) + word(4) + word(8) + word(12) + word(16);
    fold(((sum & 0xffff_ffff) as u32 & 0xffff) + ((sum as u32) >> 16) + (sum >> 32) as u32) == 0xffff
}

/// The Internet checksum (RFC 1071) of octets whose own checksum field is 0.
pub fn checksum(octets: &[u8]) -> u16 {
    !fold(sum(octets))
}

/// The sum of 16-bit words, not folded.
#[inline(always)]
fn sum(octets: &[u8]) -> u32 {
    let words = octets.chunks_exact(2);
    let rest = words.remainder().first().map_or(0, |o| u32::from(*o) << 8);
    words.map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum::<u32>() + rest
}

/// A sum as ones' complement.
#[inline(always)]
fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(from: &str, to: &str) -> OuterSpec {
        let ip = |s: &str| s.parse().unwrap();
        OuterSpec { mac: MacAddr::from_octets([2, 0, 0, 0, 0, 9]), from: ip(from), to: ip(to), udp_port: 4789, ttl: 64 }
    }

    #[test]
    fn what_is_written_is_read() {
        for (from, to) in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")] {
            let outer = Outer::new(&spec(from, to));
            let mut frame = vec![0; outer.len() + 60];
            let inner = Inner { flow: 0x7fff, tos: 0xb9 };
            outer.write(&mut frame[..outer.len()], MacAddr::from_octets([2, 0, 0, 0, 0, 1]), inner, 60, 0xab_cdef);
            assert_eq!(frame[..6], [2, 0, 0, 0, 0, 1]);
            let Packet::Udp(d) = packet(&frame, 14, frame.len()) else { panic!("{from}: {frame:x?}") };
            assert_eq!(
                (d.from, d.to, d.to_port, d.len, d.ecn),
                (from.parse::<IpAddr>().unwrap().into(), to.parse::<IpAddr>().unwrap().into(), 4789, 68, 1)
            );
            assert_eq!(vxlan::read(&frame[d.at..]), Some(0xab_cdef));
            // Cut anywhere, it is no datagram, and nothing panics.
            (14..frame.len()).for_each(|n| assert!(!matches!(packet(&frame[..n], 14, n), Packet::Udp(_)), "{n}"));
        }
    }

    #[test]
    fn a_wrong_checksum_and_fragments_are_bad() {
        let outer = Outer::new(&spec("10.0.0.1", "10.0.0.2"));
        let mut frame = vec![0; outer.len() + 60];
        outer.write(&mut frame[..outer.len()], MacAddr::BROADCAST, Inner { flow: 1, tos: 0 }, 60, 1);
        let mut wrong = frame.clone();
        wrong[24] ^= 1;
        assert_eq!(packet(&wrong, 14, wrong.len()), Packet::Bad);
        frame[20] = 0x20; // more fragments
        assert_eq!(packet(&frame, 14, frame.len()), Packet::Bad);
    }

    #[test]
    fn ecn_is_combined_as_rfc_6040_says() {
        for (inner, outer, wants) in [
            (0, 0, Some(0)),
            (0, 1, Some(0)),
            (0, 3, None),
            (2, 3, Some(3)),
            (2, 1, Some(1)),
            (1, 3, Some(3)),
            (1, 2, Some(1)),
            (3, 0, Some(3)),
        ] {
            let mut f = vec![0; 60];
            f[12..14].copy_from_slice(&ETHERTYPE_IPV4.to_be_bytes());
            (f[14], f[15], f[22]) = (0x45, 0xb8 | inner, 64);
            let checksum = !fold(sum(&f[14..34]));
            f[24..26].copy_from_slice(&checksum.to_be_bytes());
            assert_eq!(combine_ecn(&mut f, outer).then(|| f[15] & 3), wants, "{inner} {outer}");
            assert_eq!(fold(sum(&f[14..34])), 0xffff);
        }
    }

    #[test]
    fn flows_differ_and_stay() {
        let frame = |port: u16| {
            let mut f = vec![0; 60];
            f[12..14].copy_from_slice(&ETHERTYPE_IPV4.to_be_bytes());
            (f[14], f[23]) = (0x45, UDP);
            f[34..36].copy_from_slice(&port.to_be_bytes());
            f
        };
        let flows: std::collections::BTreeSet<u16> = (0..1000).map(|p| Inner::of(&frame(p)).flow & 0x3fff).collect();
        assert!(flows.len() > 900, "{}", flows.len());
        assert_eq!(Inner::of(&frame(7)).flow, Inner::of(&frame(7)).flow);
    }
}
