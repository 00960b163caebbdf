//! The header in front of every frame of a tap or a socket of AF_PACKET: struct virtio_net_hdr of VIRTIO 1.2, 5.1.6, in
//! its legacy form of 10 octets, native byte order. By it the kernel tells which checksum is
//! missing and how a large segment is to be cut, and is given the same.

use dpdk_sys as sys;

use super::{
    IPV4, L4_MASK, L4_TCP, L4_UDP, REQUESTS, TSO, UDP_SEG, checksum,
    layout::{IpPacket, Layout, SCTP, TCP, UDP, ip_packet, network_header},
};
use crate::Mbuf;

/// Octets of it.
pub(crate) const LEN: usize = 10;

const NEEDS_CSUM: u8 = sys::VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
const GSO_NONE: u8 = sys::VIRTIO_NET_HDR_GSO_NONE as u8;
const GSO_TCPV4: u8 = sys::VIRTIO_NET_HDR_GSO_TCPV4 as u8;
const GSO_TCPV6: u8 = sys::VIRTIO_NET_HDR_GSO_TCPV6 as u8;
/// VIRTIO_NET_HDR_GSO_UDP_L4, which DPDK 22.11 does not name.
const GSO_UDP_L4: u8 = 5;
/// Only the first segment has CWR: that is so in any case.
const GSO_ECN: u8 = sys::VIRTIO_NET_HDR_GSO_ECN as u8;

/// Takes over into the fresh buffer `m` what the kernel wrote before the frame. A request for segments that does
/// not fit the frame is refused when the frame is to be finished.
#[inline(always)]
pub(crate) fn read(h: [u8; LEN], m: &mut Mbuf) {
    if h[0] & NEEDS_CSUM != 0 {
        read_request(h, m);
    }
}

fn read_request(h: [u8; LEN], m: &mut Mbuf) {
    let word = |at: usize| u16::from_ne_bytes([h[at], h[at + 1]]);
    let (gso, mss, start, offset) = (h[1] & !GSO_ECN, word(4), usize::from(word(6)), usize::from(word(8)));
    let l4_flag = match offset {
        16 => L4_TCP,
        6 => L4_UDP,
        _ => 0,
    };
    let packet = network_header(m.head()).and_then(|(l3, ethertype)| ip_packet(m.head(), l3, ethertype));
    let Some(packet) = packet.filter(|p| p.l4 == start && l4_flag != 0) else {
        return read_other(m, (start, offset), gso, mss);
    };
    request(m, packet, l4_flag, gso, mss);
}

/// What is in a tunnel, or no TCP or UDP.
#[cold]
fn read_other(m: &mut Mbuf, (start, offset): (usize, usize), gso: u8, mss: u16) {
    if gso != GSO_NONE {
        let flag = if offset == 6 { L4_UDP } else { L4_TCP };
        return match inner_packet(m, start, gso) {
            Some(packet) => request(m, packet, flag, gso, mss),
            // To be refused.
            None => m.set_flags(REQUESTS, flag | TSO),
        };
    }
    let is_sctp = offset == 8
        && network_header(m.head())
            .and_then(|(l3, ethertype)| ip_packet(m.head(), l3, ethertype))
            .is_some_and(|p| p.l4 == start && p.protocol == SCTP);
    // Nobody after this knows how. What does not fit stays as its sender made it.
    let _ = match is_sctp {
        true => checksum::complete_crc(m, start),
        false => {
            let len = (m.len() as usize).saturating_sub(start);
            checksum::complete(m, start, len, start + offset)
        }
    };
}

/// Asks for TCP segments with so many octets of payload.
pub(super) fn request_segments(m: &mut Mbuf, packet: IpPacket, mss: u16) {
    request(m, packet, L4_TCP, if packet.v4 { GSO_TCPV4 } else { GSO_TCPV6 }, mss);
}

/// Asks for what the header does, of this packet.
fn request(m: &mut Mbuf, packet: IpPacket, l4_flag: u64, gso: u8, mss: u16) {
    let family = if packet.v4 { IPV4 } else { sys::RTE_MBUF_F_TX_IPV6 };
    let (l2, l3) = (packet.at as u64, (packet.l4 - packet.at) as u64);
    let (segments, l4) = match gso {
        GSO_NONE => (0, 0),
        GSO_TCPV4 | GSO_TCPV6 => (TSO, m.head().get(packet.l4 + 12).map_or(0, |o| u64::from(o >> 4) * 4)),
        GSO_UDP_L4 => (UDP_SEG, 8),
        // To be refused: without a length of layer 4.
        _ => (TSO, 0),
    };
    // Headers that are longer than these fields hold are refused, for want of any that fit.
    let lengths = if l2 < 1 << 7 && l3 < 1 << 9 { l2 | l3 << 7 | l4 << 16 | u64::from(mss) << 24 } else { 0 };
    m.set_flags(REQUESTS, l4_flag | family | segments);
    m.set_tx_offload(lengths);
}

/// The packet in a tunnel of any kind, whose layer 4 begins at `l4` and which ends with the frame: that, and all else of its
/// header, is no coincidence.
fn inner_packet(m: &Mbuf, l4: usize, gso: u8) -> Option<IpPacket> {
    let (header, ethertype) = if m.head().get(l4.checked_sub(20)?)? == &0x45 { (20, 0x0800) } else { (40, 0x86dd) };
    let packet = ip_packet(m.head(), l4.checked_sub(header)?, ethertype)?;
    let protocol = if gso == GSO_UDP_L4 { UDP } else { TCP };
    let fits = packet.l4 == l4 && packet.protocol == protocol && l4 + packet.l4_len == m.len() as usize;
    fits.then_some(packet)
}

/// What `m` asks for, for the kernel. A request that does not fit the frame is left out: the
/// checksum stays wrong, as its sender made it.
#[inline(always)]
pub(crate) fn write(m: &Mbuf) -> [u8; LEN] {
    if m.offload_flags() == 0 { [0; LEN] } else { write_request(m) }
}

fn write_request(m: &Mbuf) -> [u8; LEN] {
    let mut h = [0; LEN];
    let flags = m.offload_flags();
    let Some(l) = Layout::of(m) else { return h };
    let offset = if flags & L4_MASK == L4_UDP { 6u16 } else { 16 };
    h[0] = NEEDS_CSUM;
    if flags & TSO != 0 {
        h[1] = if l.v4 { GSO_TCPV4 } else { GSO_TCPV6 };
        h[2..4].copy_from_slice(&(l.headers() as u16).to_ne_bytes());
        h[4..6].copy_from_slice(&(l.mss as u16).to_ne_bytes());
    }
    h[6..8].copy_from_slice(&(l.l4_at() as u16).to_ne_bytes());
    h[8..10].copy_from_slice(&offset.to_ne_bytes());
    h
}
