//! Segmentation and checksums in software, for receivers that can't.
//!
//! Guests and hosts leave checksums and segmentation to the switch; the request travels in the buffer's
//! `ol_flags` and `tx_offload`. A port that can do the rest takes the frame as it is. For any
//! other, [`SoftwareOffload::finish`] does what the frame asks for.
//!
//! What a sender asks for is checked against the frame's own headers before anything follows it: `layout.rs`. How kernels
//! ask is in `vnet.rs`; `segment.rs` cuts.

mod checksum;
mod layout;
mod segment;
pub(crate) mod vnet;

use arrayvec::ArrayVec;
use dpdk_sys as sys;
use layout::{IpPacket, Layout, TCP, ip_packet, network_header};

use crate::{Mbuf, mempool::Mempool};

const TSO: u64 = sys::RTE_MBUF_F_TX_TCP_SEG;
const L4_MASK: u64 = sys::RTE_MBUF_F_TX_L4_MASK;
const L4_TCP: u64 = sys::RTE_MBUF_F_TX_TCP_CKSUM;
const L4_UDP: u64 = sys::RTE_MBUF_F_TX_UDP_CKSUM;
const IP_CKSUM: u64 = sys::RTE_MBUF_F_TX_IP_CKSUM;
const UDP_SEG: u64 = sys::RTE_MBUF_F_TX_UDP_SEG;
const IPV4: u64 = sys::RTE_MBUF_F_TX_IPV4;

/// All flags that ask the sending side for something.
pub(crate) const REQUESTS: u64 = TSO | UDP_SEG | L4_MASK | IP_CKSUM;

/// The most segments one frame may become: 64 KiB at the smallest segment a sane stack makes, and
/// as many datagrams as Linux takes at once (UDP_MAX_SEGMENTS).
pub const MAX_SEGMENTS: usize = 128;

/// What the receiving side does by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Caps {
    /// Completes TCP and UDP checksums.
    pub checksum: bool,
    /// Takes unsegmented TCP over IPv4.
    pub tso4: bool,
    /// Takes unsegmented TCP over IPv6.
    pub tso6: bool,
    /// Takes frames in several buffers.
    pub chains: bool,
}

impl Caps {
    /// Of what takes the header of `vnet.rs`.
    pub(crate) const KERNEL: Caps = Caps { checksum: true, tso4: true, tso6: true, chains: true };
}

/// Why a frame could not be finished.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OffloadError {
    /// The request does not fit the frame.
    BadRequest,
    /// No buffer was left.
    NoBuffer,
}

/// Octets of the largest frame that `m` becomes on the wire.
#[inline]
pub fn wire_len(m: &Mbuf) -> u32 {
    if m.offload_flags() & (TSO | UDP_SEG) == 0 {
        return m.len();
    }
    // A request that does not fit is refused when the frame is finished.
    Layout::of(m).map_or(m.len(), |l| m.len().min(l.headers() as u32 + l.mss))
}

/// Whether a frame with these flags, in so many segments, needs [`SoftwareOffload::finish`] first.
#[inline(always)]
pub fn needs_finish(caps: Caps, flags: u64, segments: u16) -> bool {
    let more_than_a_checksum = flags & (TSO | UDP_SEG | IP_CKSUM) != 0;
    (flags != 0 && (!caps.checksum || more_than_a_checksum)) || (segments > 1 && !caps.chains)
}

/// Does in software what receivers don't; one for each worker.
pub struct SoftwareOffload {
    pool: Mempool,
    linear: Mempool,
}

impl SoftwareOffload {
    /// `pool` gives the buffers of segments; `linear` those of frames brought into one piece.
    pub fn new(pool: Mempool, linear: Mempool) -> Self {
        SoftwareOffload { pool, linear }
    }

    /// Where new buffers come from.
    pub fn pool(&self) -> &Mempool {
        &self.pool
    }

    /// Puts into `out` the frame or frames that a receiver with `caps` can take.
    pub fn finish(&self, m: Mbuf, caps: Caps, out: &mut ArrayVec<Mbuf, MAX_SEGMENTS>) -> Result<(), OffloadError> {
        let flags = m.offload_flags();
        if flags == 0 {
            out.push(self.linear(m, caps)?);
            return Ok(());
        }
        let layout = Layout::of(&m).ok_or(OffloadError::BadRequest)?;
        if flags & (TSO | UDP_SEG) != 0 {
            if !layout.valid_for_segments(&m) {
                return Err(OffloadError::BadRequest);
            }
            let takes_it = flags & TSO != 0 && caps.checksum && (if layout.v4 { caps.tso4 } else { caps.tso6 });
            // No receiver has a field that says that the headers before it are a tunnel's.
            if takes_it && !layout.is_inner(&m) {
                out.push(m);
                return Ok(());
            }
            return self.segment(&m, layout, caps, out);
        }
        let mut own = if m.is_shared() { m.copy().ok_or(OffloadError::NoBuffer)? } else { m };
        if !caps.checksum || flags & IP_CKSUM != 0 {
            complete(&mut own, layout)?;
        }
        out.push(self.linear(own, caps)?);
        Ok(())
    }

    fn linear(&self, m: Mbuf, caps: Caps) -> Result<Mbuf, OffloadError> {
        if caps.chains || m.segments() == 1 { Ok(m) } else { self.in_one_piece(&m) }
    }

    /// Large buffers are few, and a device may keep what it sends for a while.
    fn in_one_piece(&self, m: &Mbuf) -> Result<Mbuf, OffloadError> {
        let pool = if m.len() <= u32::from(self.pool.room()) { &self.pool } else { &self.linear };
        m.linear_copy(pool).ok_or(OffloadError::NoBuffer)
    }
}

/// Completes the checksum that the sender left with the sum of the pseudo header in its field,
/// and the IPv4 header's.
fn complete(m: &mut Mbuf, l: Layout) -> Result<(), OffloadError> {
    let field = match m.offload_flags() & L4_MASK {
        L4_TCP => Some(l.l4_at() + 16),
        L4_UDP => Some(l.l4_at() + 6),
        0 => None,
        // SCTP's CRC and whatever is new: not offered to guests.
        _ => return Err(OffloadError::BadRequest),
    };
    if let Some(field) = field {
        let len = (m.len() as usize).checked_sub(l.l4_at()).ok_or(OffloadError::BadRequest)?;
        checksum::complete(m, l.l4_at(), len, field)?;
    }
    if l.v4 && m.offload_flags() & IP_CKSUM != 0 {
        checksum::ipv4(&mut m.head_mut()[l.l2..l.l2 + l.l3]);
    }
    m.set_flags(REQUESTS, 0);
    Ok(())
}

/// Completes the checksum of a TCP or UDP packet that a Linux stack on the same machine left
/// unfinished, as it does on veth: the field holds just the sum of the pseudo header. AF_XDP does not
/// pass on the kernel's own mark for it. A frame that is finished already is
/// left alone: it has that sum in its field once in 65,536, and then completing writes the very
/// same value.
///
/// Of what is in a tunnel, the innermost packet is the one: its sender counts it as finished in the sums outside of it.
///
/// `false` if the frame's end is missing.
#[must_use]
pub fn complete_unfinished(m: &mut Mbuf) -> bool {
    let Ok(unfinished) = unfinished(m) else { return false };
    if let Some((packet, field)) = unfinished {
        // The range was checked, and a frame that was just received is not shared.
        let _ = checksum::complete(m, packet.l4, packet.l4_len, field);
    }
    true
}

/// The packet whose checksum is not finished, and where that is; an error if the frame's end is missing.
fn unfinished(m: &Mbuf) -> Result<Option<(IpPacket, usize)>, ()> {
    let head = m.head();
    let mut next = network_header(head).and_then(|(l3, ethertype)| ip_packet(head, l3, ethertype));
    while let Some(packet) = next {
        if packet.l4 + packet.l4_len > m.len() as usize {
            return Err(());
        }
        if let Some(field) = packet.field()
            && let Some(&[a, b]) = head.get(field..field + 2)
            && let has = u16::from_ne_bytes([a, b])
            && has == checksum::pseudo_sum(&head[packet.at..], packet.v4, packet.protocol, packet.l4_len as u32)
        {
            return Ok(Some((packet, field)));
        }
        next = packet.inner(head);
    }
    Ok(None)
}

/// Octets of the largest packet that a guest's request may be missing of, as most guests have it (RFC 894).
const MTU: usize = 1500;
/// Octets of the packets that a large segment is cut into if the size that its sender asks for is not known: they pass every link of IPv6
/// (RFC 8200, 5).
const LEAST_MTU: usize = 1280;

/// Does what DPDK's vhost library does not say of a frame out of a guest: it passes on a request only of a frame with one
/// tag, 802.1Q, at most. (With RTE_VHOST_USER_NET_COMPLIANT_OL_FLAGS it would of some others; but some releases then follow the
/// place that the guest names out of the frame.) An open checksum is known by its sum. Of a large segment the size to cut it
/// into is not known.
#[inline(always)]
pub fn complete_tagged(m: &mut Mbuf) {
    let is_tag = |at: usize| matches!(m.head().get(at..at + 2), Some([0x81, 0] | [0x88, 0xa8]));
    if is_tag(12) && m.offload_flags() == 0 && (is_tag(16) || m.head()[12] == 0x88) {
        complete_behind_tags(m);
    }
}

fn complete_behind_tags(m: &mut Mbuf) {
    let Ok(Some((packet, field))) = unfinished(m) else { return };
    let octet = m.head().get(packet.l4 + 12).copied().unwrap_or(0);
    let headers = packet.l4 - packet.at + usize::from(octet >> 4) * 4;
    if packet.protocol == TCP && packet.l4 - packet.at + packet.l4_len > MTU && headers < LEAST_MTU {
        vnet::request_segments(m, packet, (LEAST_MTU - headers) as u16);
    } else {
        let _ = checksum::complete(m, packet.l4, packet.l4_len, field);
    }
}

#[cfg(test)]
mod tests;
