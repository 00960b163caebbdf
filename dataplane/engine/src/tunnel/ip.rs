//! What of a packet's headers a tunnel reads: that a received one is for a tunnel, what of an inner frame
//! shows outside, and checksums.
//!
//! Tunnels are never fragmented. Over IPv6 a UDP checksum that is not zero is verified; RFC 6935 and RFC 6936 allow
//! zero for tunnels. ECN after RFC 6040, its normal mode.

use crate::packet::{Address, ETHERTYPE_IPV4, ETHERTYPE_IPV6, checksum, fold, sum, sum_of};

pub(crate) const ETHERNET: usize = 14;
pub(super) const UDP: u8 = 17;
pub(super) const UDP_LEN: usize = 8;
pub(super) const GRE: u8 = 47;

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

/// A packet of UDP or GRE that was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Datagram {
    pub from: Address,
    pub to: Address,
    /// The UDP port that it is for; `None` for GRE.
    pub to_port: Option<u16>,
    /// Where its payload is, and how many octets that has.
    pub at: usize,
    pub len: usize,
    /// ECN of its IP header.
    pub ecn: u8,
}

/// What a received packet is to a tunnel's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packet {
    Datagram(Datagram),
    /// Something else, whole or not.
    Other,
    /// UDP or GRE, but cut, a fragment, or with a wrong IPv4 checksum.
    Bad,
}

/// Looks at a packet behind an Ethernet header that ends at `l3`, of a frame with `len` octets in all.
#[inline(always)]
pub(crate) fn packet(head: &[u8], l3: usize, len: usize) -> Packet {
    let Some(ip) = head.get(l3..) else { return Packet::Other };
    let be = |o: &[u8], at: usize| u16::from_be_bytes([o[at], o[at + 1]]);
    let (from, to, protocol, at, ip_len, ecn) = match be(head, l3 - 2) {
        ETHERTYPE_IPV4 => {
            let Some(h) = ip.first_chunk::<20>() else { return Packet::Other };
            if !matches!(h[9], UDP | GRE) || h[0] >> 4 != 4 {
                return Packet::Other;
            }
            let header = usize::from(h[0] & 15) * 4;
            let good = if header == 20 { is_whole(h) } else { ip.get(..header).is_some_and(|o| checksum(o) == 0) };
            if be(h, 6) & 0x3fff != 0 || header < 20 || !good {
                return Packet::Bad;
            }
            let from = Address::v4([h[12], h[13], h[14], h[15]]);
            let to = Address::v4([h[16], h[17], h[18], h[19]]);
            (from, to, h[9], header, usize::from(be(h, 2)), h[1] & 3)
        }
        ETHERTYPE_IPV6 => {
            let Some(h) = ip.first_chunk::<40>() else { return Packet::Other };
            if !matches!(h[6], UDP | GRE) || h[0] >> 4 != 6 {
                return Packet::Other;
            }
            let from = Address(u128::from_be_bytes(h[8..24].try_into().expect("16 octets")));
            let to = Address(u128::from_be_bytes(h[24..40].try_into().expect("16 octets")));
            (from, to, h[6], 40, 40 + usize::from(be(h, 4)), h[1] >> 4 & 3)
        }
        _ => return Packet::Other,
    };
    if at > ip_len || l3 + ip_len > len {
        return Packet::Bad;
    }
    if protocol == GRE {
        let to_port = None;
        return Packet::Datagram(Datagram { from, to, to_port, at: l3 + at, len: ip_len - at, ecn });
    }
    let Some(udp) = ip.get(at..at + UDP_LEN) else { return Packet::Bad };
    let udp_len = usize::from(be(udp, 4));
    if udp_len < UDP_LEN || at + udp_len > ip_len {
        return Packet::Bad;
    }
    // Over IPv6, where nothing else protects the addresses (RFC 6936, 4). IPv4 has a checksum of its own, and a receiver of
    // VXLAN need not look at UDP's (RFC 7348, 5).
    if ip[0] >> 4 == 6 && be(udp, 6) != 0 {
        let Some(octets) = ip.get(at..at + udp_len) else { return Packet::Bad };
        let all = sum(&ip[8..40]) + u32::from(UDP) + udp_len as u32 + u32::from(sum_of(octets));
        if fold(all) != 0xffff {
            return Packet::Bad;
        }
    }
    let (to_port, at) = (Some(be(udp, 2)), l3 + at + UDP_LEN);
    Packet::Datagram(Datagram { from, to, to_port, at, len: udp_len - UDP_LEN, ecn })
}

/// VXLAN over IPv4 without options, which is most of all, read at once.
#[derive(Clone, Copy)]
pub(crate) struct Common {
    /// Source and destination as they stand in the header.
    pub addresses: u64,
    pub vni: u32,
    /// Where the inner frame is, and how many octets that has.
    pub at: usize,
    pub len: u32,
    /// ECN of the outer header.
    pub ecn: u8,
}

/// See [`Common`]: what [`packet`] and `vxlan.rs` say too, in one piece. `None` for anything else, and for
/// whatever is wrong.
#[inline(always)]
pub(crate) fn vxlan_over_v4(head: &[u8], l3: usize, len: u32, udp_port: u16) -> Option<Common> {
    const HEADERS: usize = 20 + UDP_LEN + 8;
    let h = head.get(l3..)?.first_chunk::<HEADERS>()?;
    let be = |at: usize| u16::from_be_bytes([h[at], h[at + 1]]);
    let (ip_len, udp_len) = (u32::from(be(2)), u32::from(be(24)));
    let good = head[l3 - 2..l3] == ETHERTYPE_IPV4.to_be_bytes()
        && be(22) == udp_port
        && h[9] == UDP
        && h[0] == 0x45
        && be(6) & 0x3fff == 0
        && h[28] & 0x08 != 0
        && udp_len >= (UDP_LEN + 8) as u32
        && udp_len + 20 <= ip_len
        && l3 as u32 + ip_len <= len
        && is_whole(h.first_chunk().expect("20 of 36"));
    good.then(|| Common {
        addresses: u64::from_ne_bytes(*h[12..].first_chunk().expect("8 of 24")),
        vni: u32::from_be_bytes([0, h[32], h[33], h[34]]),
        at: l3 + HEADERS,
        len: udp_len - (UDP_LEN + 8) as u32,
        ecn: h[1] & 3,
    })
}

/// Puts the outer header's ECN into an inner untagged frame, after RFC 6040, 4.2. `false` if the
/// frame is to be dropped: congestion was met, and its sender could not be notified.
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

#[cfg(test)]
mod tests {
    use super::*;

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
