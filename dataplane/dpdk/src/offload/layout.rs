//! Where the headers are: what a buffer says of itself, checked, and what the frame's own octets say.

use super::{IPV4, L4_MASK, L4_UDP, MAX_SEGMENTS, UDP_SEG};
use crate::Mbuf;

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const GRE: u8 = 47;
pub(super) const SCTP: u8 = 132;

const IP: u16 = 0x0800;
const IPV6: u16 = 0x86dd;

/// Of a frame that asks for something, from its buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// Octets up to the IP header of what the request is about: of what is in a tunnel, outer headers are among them.
    pub l2: usize,
    pub l3: usize,
    pub l4: usize,
    pub mss: u32,
    pub v4: bool,
}

impl Layout {
    pub fn of(m: &Mbuf) -> Option<Layout> {
        let o = m.tx_offload();
        let l = Layout {
            l2: (o & 0x7f) as usize,
            l3: (o >> 7 & 0x1ff) as usize,
            l4: (o >> 16 & 0xff) as usize,
            mss: (o >> 24 & 0xffff) as u32,
            v4: m.raw().ol_flags & IPV4 != 0,
        };
        let head = m.head();
        let version = head.get(l.l2)? >> 4;
        let fits = match l.v4 {
            true => version == 4 && l.l3 >= 20 && l.l3 == (head[l.l2] & 0xf) as usize * 4,
            false => version == 6 && l.l3 >= 40,
        };
        let l4_min = match m.offload_flags() & L4_MASK {
            L4_UDP => 8,
            _ => 20,
        };
        (l.l2 >= 14 && fits && head.len() >= l.l2 + l.l3 + l4_min).then_some(l)
    }

    pub fn l4_at(self) -> usize {
        self.l2 + self.l3
    }

    pub fn headers(self) -> usize {
        self.l4_at() + self.l4
    }

    /// Whether the request is about what is in a tunnel.
    pub fn is_inner(self, m: &Mbuf) -> bool {
        network_header(m.head()).is_none_or(|(l3, _)| l3 != self.l2)
    }

    /// For segmentation the layer 4 header must be there whole, and the segments not be too many.
    pub fn valid_for_segments(self, m: &Mbuf) -> bool {
        let head = m.head();
        let whole = match m.offload_flags() & UDP_SEG {
            0 => self.l4 >= 20 && head.get(self.l4_at() + 12).is_some_and(|o| (o >> 4) as usize * 4 == self.l4),
            _ => self.l4 == 8,
        };
        whole
            && m.len() as usize - self.l2 <= usize::from(u16::MAX)
            && head.len() >= self.headers()
            && self.mss > 0
            && (m.len() as usize - self.headers()).div_ceil(self.mss as usize) <= MAX_SEGMENTS
    }
}

fn word(head: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*head.get(at)?, *head.get(at + 1)?]))
}

/// Tags that are looked behind.
const TAGS: usize = 3;

/// Where the network header is, behind a few tags at most, and its EtherType.
pub(super) fn network_header(head: &[u8]) -> Option<(usize, u16)> {
    let mut l3 = 14;
    loop {
        let ethertype = word(head, l3 - 2)?;
        if l3 == 14 + 4 * TAGS || !matches!(ethertype, 0x8100 | 0x88a8) {
            return Some((l3, ethertype));
        }
        l3 += 4;
    }
}

/// An IP packet that is no fragment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct IpPacket {
    pub v4: bool,
    /// Of what is behind the header and IPv6's extension headers.
    pub protocol: u8,
    pub at: usize,
    pub l4: usize,
    /// Octets of layer 4, by the IP header.
    pub l4_len: usize,
}

/// Reads the IP header at `at`.
pub(super) fn ip_packet(head: &[u8], at: usize, ethertype: u16) -> Option<IpPacket> {
    let version = head.get(at)? >> 4;
    match (ethertype, version) {
        (IP, 4) => {
            let header = (head[at] & 0xf) as usize * 4;
            let whole = word(head, at + 6)? & 0x3fff == 0;
            let l4_len = usize::from(word(head, at + 2)?).checked_sub(header)?;
            let protocol = *head.get(at + 9).filter(|_| whole && header >= 20)?;
            Some(IpPacket { v4: true, protocol, at, l4: at + header, l4_len })
        }
        (IPV6, 6) => {
            let (mut protocol, mut l4) = (*head.get(at + 6)?, at + 40);
            let end = l4 + usize::from(word(head, at + 4)?);
            // Hop-by-hop options, routing and destination options (RFC 8200, 4).
            while matches!(protocol, 0 | 43 | 60) {
                let len = usize::from(*head.get(l4 + 1)?) * 8 + 8;
                (protocol, l4) = (head[l4], l4 + len);
            }
            Some(IpPacket { v4: false, protocol, at, l4, l4_len: end.checked_sub(l4)? })
        }
        _ => None,
    }
}

impl IpPacket {
    /// Where its checksum is, of TCP and UDP.
    pub fn field(&self) -> Option<usize> {
        match self.protocol {
            TCP if self.l4_len >= 20 => Some(self.l4 + 16),
            UDP if self.l4_len >= 8 => Some(self.l4 + 6),
            _ => None,
        }
    }

    /// The packet in the tunnel that this one belongs to, if it looks like one of a kind that hosts make: VXLAN (RFC 7348,
    /// and Linux's port of before), Geneve (RFC 8926), GRE (RFC 2784 and 2890), and IP in IP (RFC 2003, 2473, 4213).
    pub fn inner(&self, head: &[u8]) -> Option<IpPacket> {
        const ETHERNET: u16 = 0x6558;
        let (payload, ethertype) = match self.protocol {
            4 => (self.l4, IP),
            41 => (self.l4, IPV6),
            UDP => match word(head, self.l4 + 2)? {
                4789 | 8472 => (self.l4 + 16, ETHERNET),
                6081 => (self.l4 + 16 + usize::from(head.get(self.l4 + 8)? & 0x3f) * 4, word(head, self.l4 + 10)?),
                _ => return None,
            },
            GRE => {
                let flags = word(head, self.l4)?;
                let fields = [0x8000, 0x2000, 0x1000].iter().filter(|f| flags & **f != 0).count();
                (self.l4 + 4 + 4 * fields, word(head, self.l4 + 2)?)
            }
            _ => return None,
        };
        match ethertype {
            ETHERNET => {
                let (l3, ethertype) = network_header(head.get(payload..)?)?;
                ip_packet(head, payload + l3, ethertype)
            }
            _ => ip_packet(head, payload, ethertype),
        }
    }
}
