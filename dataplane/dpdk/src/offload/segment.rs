//! Segmentation: TCP (as Linux's tcp_gso_segment does it) and UDP (one datagram a piece), over IPv4 and IPv6, also of what is
//! in a tunnel, whose outer headers then are each piece's.
//!
//! Each piece is copied together with as many octets in front of its payload as the headers have, which the headers then
//! take the place of: one copy.

use arrayvec::ArrayVec;

use super::{
    Caps, MAX_SEGMENTS, OffloadError, REQUESTS, SoftwareOffload, UDP_SEG, checksum,
    layout::{GRE, IpPacket, Layout, TCP, UDP, ip_packet, network_header},
};
use crate::Mbuf;

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;
/// Checksum Present, of GRE.
const GRE_CHECKSUM: u8 = 0x80;

impl SoftwareOffload {
    pub(super) fn segment(
        &self,
        m: &Mbuf,
        l: Layout,
        caps: Caps,
        out: &mut ArrayVec<Mbuf, MAX_SEGMENTS>,
    ) -> Result<(), OffloadError> {
        let outer = if l.is_inner(m) { Some(outer(m.head(), l)?) } else { None };
        let headers = &m.head()[..l.headers()];
        let is_udp = m.offload_flags() & UDP_SEG != 0;
        let mut at = headers.len() as u32;
        loop {
            let payload = l.mss.min(m.len() - at);
            let from = at - headers.len() as u32;
            let piece = m.copy_part(from, headers.len() as u32 + payload, self.pool());
            let mut piece = piece.ok_or(OffloadError::NoBuffer)?;
            piece.head_mut().get_mut(..headers.len()).ok_or(OffloadError::BadRequest)?.copy_from_slice(headers);
            let number = out.len() as u16;
            let is_last = at + payload == m.len();
            if !is_udp {
                number_tcp(&mut piece.head_mut()[l.l4_at()..], from, is_last);
            }
            set_lengths(&mut piece, l.l2, l.v4, number);
            layer4(&mut piece, (l.l2, l.l4_at()), l.v4, if is_udp { UDP } else { TCP })?;
            if let Some(outer) = &outer {
                set_lengths(&mut piece, outer.at, outer.v4, number);
                // A checksum of 0 is none (RFC 6935, 5).
                if outer.protocol == UDP && piece.head()[outer.l4 + 6..outer.l4 + 8] != [0, 0] {
                    layer4(&mut piece, (outer.at, outer.l4), outer.v4, UDP)?;
                } else if outer.protocol == UDP {
                    udp_length(&mut piece, outer.l4);
                }
            }
            out.push(self.linear(piece, caps)?);
            at += payload;
            if is_last {
                return Ok(());
            }
        }
    }
}

/// The packet in whose tunnel the segments are.
fn outer(head: &[u8], l: Layout) -> Result<IpPacket, OffloadError> {
    let packet = network_header(head).and_then(|(l3, ethertype)| ip_packet(head, l3, ethertype));
    let header = |p: &IpPacket| match p.protocol {
        UDP => 8,
        GRE => 4,
        _ => 0,
    };
    let packet = packet.filter(|p| p.l4 + header(p) <= l.l2);
    // A sum over the payload that is not UDP's: no sender leaves that to a device.
    let has_sum = |p: &IpPacket| p.protocol == GRE && head[p.l4] & GRE_CHECKSUM != 0;
    packet.filter(|p| !has_sum(p)).ok_or(OffloadError::BadRequest)
}

/// Sequence number and flags of a piece with so many octets of payload before it.
fn number_tcp(tcp: &mut [u8], before: u32, is_last: bool) {
    let seq = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
    tcp[4..8].copy_from_slice(&seq.wrapping_add(before).to_be_bytes());
    if !is_last {
        tcp[13] &= !(FIN | PSH);
    }
    // RFC 3168, 6.1.2.
    if before > 0 {
        tcp[13] &= !CWR;
    }
}

/// Length, and of IPv4 identification and checksum, of the header at `at` in the piece of this number.
fn set_lengths(m: &mut Mbuf, at: usize, v4: bool, number: u16) {
    let len = (m.len() as usize - at) as u16;
    let ip = &mut m.head_mut()[at..];
    if v4 {
        ip[2..4].copy_from_slice(&len.to_be_bytes());
        let id = u16::from_be_bytes([ip[4], ip[5]]).wrapping_add(number);
        ip[4..6].copy_from_slice(&id.to_be_bytes());
        let header = (ip[0] & 0xf) as usize * 4;
        checksum::ipv4(&mut ip[..header]);
    } else {
        ip[4..6].copy_from_slice(&(len - 40).to_be_bytes());
    }
}

fn udp_length(m: &mut Mbuf, l4: usize) {
    let len = (m.len() as usize - l4) as u16;
    m.head_mut()[l4 + 4..l4 + 6].copy_from_slice(&len.to_be_bytes());
}

/// Length and checksum of layer 4, from nothing.
fn layer4(m: &mut Mbuf, (l3, l4): (usize, usize), v4: bool, protocol: u8) -> Result<(), OffloadError> {
    let field = l4 + if protocol == UDP { 6 } else { 16 };
    if protocol == UDP {
        udp_length(m, l4);
    }
    let len = m.len() as usize - l4;
    let head = m.head_mut();
    let pseudo = checksum::pseudo_sum(&head[l3..], v4, protocol, len as u32);
    head[field..field + 2].copy_from_slice(&pseudo.to_ne_bytes());
    m.set_flags(REQUESTS, 0);
    checksum::complete(m, l4, len, field)
}
