//! The outer headers of one remote: made once, and completed for each frame.
//!
//! IPv4 after RFC 791, with DF set; IPv6 after RFC 8200. DSCP and ECN are the inner packet's: RFC 6040. The
//! source port of UDP comes from the inner flow, so that the underlay can spread flows.

use std::net::IpAddr;

use super::{
    Format, HEADER, Kind,
    ip::{ETHERNET, GRE, Inner, UDP, UDP_LEN},
};
use crate::{
    MacAddr,
    packet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, fold, sum},
};

/// The first source port (RFC 6335's dynamic ports); 14 bits of the flow's hash are added.
const FIRST_SOURCE_PORT: u16 = 49_152;

/// Octets of the headers: IPv4 or IPv6, with UDP or with GRE alone.
const V4_UDP: usize = ETHERNET + 20 + UDP_LEN + HEADER;
const V4_GRE: usize = ETHERNET + 20 + HEADER;
const V6_UDP: usize = ETHERNET + 40 + UDP_LEN + HEADER;
const V6_GRE: usize = ETHERNET + 40 + HEADER;

/// The headers in front of frames to one remote.
#[derive(Clone, Debug)]
pub struct Outer {
    octets: [u8; V6_UDP],
    len: usize,
    /// The sum of the IPv4 header's words that are the same for all frames.
    sum: u32,
    /// The sum of the pseudo header's addresses and protocol, where UDP has a checksum.
    pseudo: Option<u32>,
    /// How the VNI and the flow are the last word: see [`Kind::second_word`].
    vni_shift: u32,
    flow_mask: u16,
}

/// What outer headers are made of.
#[derive(Clone, Copy, Debug)]
pub struct OuterSpec {
    /// The tunnel's kind.
    pub kind: Kind,
    /// The VTEP's MAC address.
    pub mac: MacAddr,
    /// Its IP address.
    pub from: IpAddr,
    /// The remote's, of the same family.
    pub to: IpAddr,
    /// The UDP port of VXLAN.
    pub udp_port: u16,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Over IPv6, UDP has a checksum (RFC 8200, 8.1); else it is 0 (RFC 6935).
    pub udp6_checksums: bool,
}

impl Outer {
    /// The headers for one remote.
    pub fn new(s: &OuterSpec) -> Self {
        let mut o = [0; V6_UDP];
        o[6..12].copy_from_slice(&s.mac.octets());
        let to_port = s.kind.udp_port(s.udp_port);
        let protocol = if to_port.is_some() { UDP } else { GRE };
        let (ethertype, mut at) = match (s.from, s.to) {
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                o[14] = 0x60;
                (o[20], o[21]) = (protocol, s.ttl);
                o[22..38].copy_from_slice(&from.octets());
                o[38..54].copy_from_slice(&to.octets());
                (ETHERTYPE_IPV6, ETHERNET + 40)
            }
            (from, to) => {
                let octets = |a| if let IpAddr::V4(a) = a { a.octets() } else { [0; 4] };
                o[14] = 0x45;
                o[20] = 0x40; // DF
                (o[22], o[23]) = (s.ttl, protocol);
                o[26..30].copy_from_slice(&octets(from));
                o[30..34].copy_from_slice(&octets(to));
                (ETHERTYPE_IPV4, ETHERNET + 20)
            }
        };
        o[12..14].copy_from_slice(&ethertype.to_be_bytes());
        if let Some(port) = to_port {
            o[at + 2..at + 4].copy_from_slice(&port.to_be_bytes());
            at += UDP_LEN;
        }
        o[at..at + 4].copy_from_slice(&s.kind.first_word());
        let (vni_shift, flow_mask) = s.kind.second_word();
        let len = at + HEADER;
        let pseudo = (len == V6_UDP && s.udp6_checksums).then(|| sum(&o[22..54]) + u32::from(UDP));
        Outer { octets: o, len, sum: sum(&o[14..34]), pseudo, vni_shift, flow_mask }
    }

    /// Octets of the headers.
    #[inline(always)]
    #[allow(clippy::len_without_is_empty, reason = "there are headers")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The UDP checksum of a frame whose headers are written, if it has one. `sum` adds up its octets from an offset on.
    #[inline(always)]
    pub(crate) fn checksum(&self, frame_len: u32, sum: impl FnOnce(usize) -> u16) -> Option<u16> {
        const L4: usize = ETHERNET + 40;
        let udp_len = frame_len - L4 as u32;
        let all = self.pseudo? + udp_len + u32::from(sum(L4));
        // 0 is none: RFC 768.
        Some(match !fold(all) {
            0 => 0xffff,
            sum => sum,
        })
    }

    /// Where that is in the frame.
    pub(crate) const CHECKSUM: std::ops::Range<usize> = ETHERNET + 46..ETHERNET + 48;

    /// Writes the headers of a frame of `inner_len` octets into `to`, which has [`Outer::len`] of them.
    #[inline(always)]
    pub(crate) fn write(&self, to: &mut [u8], next_hop: MacAddr, inner: Inner, inner_len: u32, vni: u32) {
        let key = (vni << self.vni_shift | u32::from(inner.flow & self.flow_mask)).to_be_bytes();
        match self.len {
            V4_UDP => self.fill::<V4_UDP>(to, next_hop, inner, inner_len, key),
            V4_GRE => self.fill::<V4_GRE>(to, next_hop, inner, inner_len, key),
            V6_UDP => self.fill::<V6_UDP>(to, next_hop, inner, inner_len, key),
            _ => self.fill::<V6_GRE>(to, next_hop, inner, inner_len, key),
        }
    }

    #[inline(always)]
    fn fill<const N: usize>(&self, to: &mut [u8], next_hop: MacAddr, inner: Inner, inner_len: u32, key: [u8; 4]) {
        let (v4, udp) = (N < ETHERNET + 40, N == V4_UDP || N == V6_UDP);
        let Ok(h) = <&mut [u8; N]>::try_from(to) else { return };
        h.copy_from_slice(&self.octets[..N]);
        let be = |n: u16| n.to_be_bytes();
        let l4 = N - HEADER - if udp { UDP_LEN } else { 0 };
        let l4_len = (N - l4) as u16 + inner_len as u16;
        h[..6].copy_from_slice(&next_hop.octets());
        if v4 {
            let total = l4_len + 20;
            h[15] = inner.tos;
            h[16..18].copy_from_slice(&be(total));
            h[24..26].copy_from_slice(&be(!fold(self.sum + u32::from(inner.tos) + u32::from(total))));
        } else {
            // The flow label as RFC 6438 has it.
            let first = 6u32 << 28 | u32::from(inner.tos) << 20 | u32::from(inner.flow);
            h[14..18].copy_from_slice(&first.to_be_bytes());
            h[18..20].copy_from_slice(&be(l4_len));
        }
        if udp {
            h[l4..l4 + 2].copy_from_slice(&be(FIRST_SOURCE_PORT + (inner.flow & 0x3fff)));
            h[l4 + 4..l4 + 6].copy_from_slice(&be(l4_len));
        }
        h[N - 4..].copy_from_slice(&key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tunnel::ip::{Datagram, Packet, packet};

    fn outer(kind: Kind, from: &str, to: &str) -> Outer {
        let ip = |s: &str| s.parse().unwrap();
        let mac = MacAddr::from_octets([2, 0, 0, 0, 0, 9]);
        Outer::new(&OuterSpec { kind, mac, from: ip(from), to: ip(to), udp_port: 4789, ttl: 64, udp6_checksums: false })
    }

    #[test]
    fn what_is_written_is_read() {
        for kind in [Kind::Vxlan, Kind::Geneve, Kind::Gre, Kind::Nvgre] {
            for (from, to) in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")] {
                let outer = outer(kind, from, to);
                let mut frame = vec![0; outer.len() + 60];
                let inner = Inner { flow: 0x7fff, tos: 0xb9 };
                let next_hop = MacAddr::from_octets([2, 0, 0, 0, 0, 1]);
                outer.write(&mut frame[..outer.len()], next_hop, inner, 60, 0xab_cdef);
                assert_eq!(frame[..6], [2, 0, 0, 0, 0, 1]);
                let Packet::Datagram(d) = packet(&frame, 14, frame.len()) else { panic!("{from}: {frame:x?}") };
                let ip = |s: &str| s.parse::<IpAddr>().unwrap().into();
                let want = Datagram {
                    from: ip(from),
                    to: ip(to),
                    to_port: kind.udp_port(4789),
                    at: outer.len() - 8,
                    len: 68,
                    ecn: 1,
                };
                assert_eq!(d, want);
                assert_eq!(kind.read(&frame[d.at..]), Some((0xab_cdef, 8)), "{kind:?}");
                // Cut anywhere, it is no tunnel's, and nothing panics.
                for n in 14..frame.len() {
                    assert!(!matches!(packet(&frame[..n], 14, n), Packet::Datagram(_)), "{n}");
                }
            }
        }
    }

    #[test]
    fn a_wrong_checksum_and_fragments_are_bad() {
        let outer = outer(Kind::Vxlan, "10.0.0.1", "10.0.0.2");
        let mut frame = vec![0; outer.len() + 60];
        outer.write(&mut frame[..outer.len()], MacAddr::BROADCAST, Inner { flow: 1, tos: 0 }, 60, 1);
        let mut wrong = frame.clone();
        wrong[24] ^= 1;
        assert_eq!(packet(&wrong, 14, wrong.len()), Packet::Bad);
        frame[20] = 0x20; // more fragments
        assert_eq!(packet(&frame, 14, frame.len()), Packet::Bad);
    }
}
