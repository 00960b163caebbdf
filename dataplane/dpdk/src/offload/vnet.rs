//! The header in front of every frame of a tap: struct virtio_net_hdr of VIRTIO 1.2, 5.1.6, in
//! its legacy form of 10 octets, native byte order. By it the kernel tells which checksum is
//! missing and how a large segment is to be cut, and is told the same.

use dpdk_sys as sys;

use super::{IPV4, L4_MASK, L4_TCP, L4_UDP, Layout, REQUESTS, TSO, complete_at, network_header};
use crate::Mbuf;

/// Octets of it.
pub(crate) const LEN: usize = 10;

const NEEDS_CSUM: u8 = sys::VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
const GSO_NONE: u8 = sys::VIRTIO_NET_HDR_GSO_NONE as u8;
const GSO_TCPV4: u8 = sys::VIRTIO_NET_HDR_GSO_TCPV4 as u8;
const GSO_TCPV6: u8 = sys::VIRTIO_NET_HDR_GSO_TCPV6 as u8;

/// Takes over into the fresh buffer `m` what the kernel wrote before the frame. A request that does
/// not fit the frame, which kernels don't make, is left out: the frame goes on as it is.
pub(crate) fn read(h: [u8; LEN], m: &mut Mbuf) {
    let word = |at: usize| u16::from_ne_bytes([h[at], h[at + 1]]);
    let (gso, mss, start, offset) = (h[1], word(4), usize::from(word(6)), usize::from(word(8)));
    if h[0] & NEEDS_CSUM == 0 {
        return;
    }
    let l4_flag = match offset {
        16 => L4_TCP,
        6 => L4_UDP,
        _ => 0,
    };
    match network_header(m.head()) {
        Some((l2, ip @ (0x0800 | 0x86dd))) if l4_flag != 0 && l2 < start && start - l2 < 512 => {
            let v4 = if ip == 0x0800 { IPV4 } else { sys::RTE_MBUF_F_TX_IPV6 };
            let mut lengths = l2 as u64 | (((start - l2) as u64) << 7);
            let mut tso = 0;
            if gso == GSO_TCPV4 || gso == GSO_TCPV6 {
                let Some(octet) = m.head().get(start + 12) else { return };
                lengths |= (u64::from(octet >> 4) * 4) << 16 | (u64::from(mss) << 24);
                tso = TSO;
            } else if gso != GSO_NONE {
                return;
            }
            m.set_flags(REQUESTS, l4_flag | v4 | tso);
            m.set_tx_offload(lengths);
        }
        // A checksum of something else than TCP or UDP over IP: nobody after this knows it.
        _ => drop(complete_at(m, start, start + offset)),
    }
}

/// What `m` asks for, for the kernel. A request that does not fit the frame is left out: the
/// checksum stays wrong, as its sender made it.
pub(crate) fn write(m: &Mbuf) -> [u8; LEN] {
    let mut h = [0; LEN];
    let flags = m.offload_flags();
    let (true, Some(l)) = (flags != 0, Layout::of(m)) else { return h };
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
