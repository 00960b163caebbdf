//! Segmentation and checksums in software, for receivers that can't.
//!
//! Guests leave checksums and TCP segmentation to the switch; the request travels in the buffer's
//! `ol_flags` and `tx_offload`. A port that can do the rest takes the frame as it is. For any
//! other, [`Finisher::finish`] does what the frame asks for: TCP over IPv4 by DPDK's own GSO
//! library, TCP over IPv6 here, because that library has none.
//!
//! What a guest asks for is checked against the frame's own headers before anything follows it.

pub(crate) mod vnet;

use arrayvec::ArrayVec;
use dpdk_sys as sys;

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

/// The most segments one frame may become: 64 KiB at the smallest segment a sane stack makes.
pub const MAX_SEGMENTS: usize = 128;

const TCP: u8 = 6;
const UDP: u8 = 17;

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

/// Why a frame could not be finished.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unfinished {
    /// The request does not fit the frame.
    BadRequest,
    /// No buffer was left.
    NoBuffer,
}

/// Where the headers are, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    l2: usize,
    l3: usize,
    l4: usize,
    mss: u32,
    v4: bool,
}

impl Layout {
    fn of(m: &Mbuf) -> Option<Layout> {
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

    fn l4_at(self) -> usize {
        self.l2 + self.l3
    }

    fn headers(self) -> usize {
        self.l4_at() + self.l4
    }

    /// For segmentation the TCP header must be there whole, and the segments not be too many.
    fn valid_for_tso(self, m: &Mbuf) -> bool {
        let head = m.head();
        self.l4 >= 20
            && m.len() as usize - self.l2 <= usize::from(u16::MAX)
            && head.len() >= self.headers()
            && (head[self.l4_at() + 12] >> 4) as usize * 4 == self.l4
            && self.mss > 0
            && (m.len() as usize - self.headers()).div_ceil(self.mss as usize) <= MAX_SEGMENTS
    }
}

/// Octets of the largest frame that `m` becomes on the wire.
#[inline]
pub fn wire_len(m: &Mbuf) -> u32 {
    if m.offload_flags() & TSO == 0 {
        return m.len();
    }
    // A request that does not fit is refused when the frame is finished.
    Layout::of(m).map_or(m.len(), |l| m.len().min(l.headers() as u32 + l.mss))
}

/// Whether a frame with these flags, in so many segments, needs [`Finisher::finish`] first.
#[inline(always)]
pub fn needs_finish(caps: Caps, flags: u64, segments: u16) -> bool {
    let more_than_a_checksum = flags & (TSO | UDP_SEG | IP_CKSUM) != 0;
    (flags != 0 && (!caps.checksum || more_than_a_checksum)) || (segments > 1 && !caps.chains)
}

/// Does in software what receivers don't; one for each worker.
pub struct Finisher {
    pool: Mempool,
    linear: Mempool,
}

impl Finisher {
    /// `pool` gives the buffers of segments; `linear` those of frames brought into one piece.
    pub fn new(pool: Mempool, linear: Mempool) -> Self {
        Finisher { pool, linear }
    }

    /// Where new buffers come from.
    pub fn pool(&self) -> &Mempool {
        &self.pool
    }

    /// Puts into `out` the frame or frames that a receiver with `caps` can take.
    pub fn finish(&self, m: Mbuf, caps: Caps, out: &mut ArrayVec<Mbuf, MAX_SEGMENTS>) -> Result<(), Unfinished> {
        let flags = m.offload_flags();
        if flags == 0 {
            out.push(self.linear(m, caps)?);
            return Ok(());
        }
        // Segmentation of UDP is offered to nobody; a guest may ask for it all the same.
        let layout = Layout::of(&m).filter(|_| flags & UDP_SEG == 0).ok_or(Unfinished::BadRequest)?;
        if flags & TSO != 0 {
            if !layout.valid_for_tso(&m) {
                return Err(Unfinished::BadRequest);
            }
            if caps.checksum && (if layout.v4 { caps.tso4 } else { caps.tso6 }) {
                out.push(m);
                return Ok(());
            }
            return self.segment(m, layout, caps, out);
        }
        let mut own = if m.is_shared() { m.copy().ok_or(Unfinished::NoBuffer)? } else { m };
        if !caps.checksum || flags & IP_CKSUM != 0 {
            complete(&mut own, layout)?;
        }
        out.push(self.linear(own, caps)?);
        Ok(())
    }

    fn linear(&self, m: Mbuf, caps: Caps) -> Result<Mbuf, Unfinished> {
        if caps.chains || m.segments() == 1 { Ok(m) } else { self.in_one_piece(&m) }
    }

    /// Large buffers are few, and a device may keep what it sends for a while.
    fn in_one_piece(&self, m: &Mbuf) -> Result<Mbuf, Unfinished> {
        let pool = if m.len() <= u32::from(self.pool.room()) { &self.pool } else { &self.linear };
        m.linear_copy(pool).ok_or(Unfinished::NoBuffer)
    }

    fn segment(
        &self,
        m: Mbuf,
        l: Layout,
        caps: Caps,
        out: &mut ArrayVec<Mbuf, MAX_SEGMENTS>,
    ) -> Result<(), Unfinished> {
        if m.len() as usize <= l.headers() + l.mss as usize {
            // Small enough already: a frame that only needs its checksum.
            let mut own = if m.is_shared() { m.copy().ok_or(Unfinished::NoBuffer)? } else { m };
            finish_segment(&mut own, l)?;
            out.push(self.linear(own, caps)?);
            return Ok(());
        }
        if l.v4 {
            // The library writes into the descriptor, which others may be about to send.
            let own = if m.is_shared() { m.copy().ok_or(Unfinished::NoBuffer)? } else { m };
            self.gso(&own, l, out)?;
        } else {
            self.segment_v6(&m, l, out)?;
        }
        for s in out.iter_mut() {
            finish_segment(s, l)?;
            if !caps.chains && s.segments() > 1 {
                *s = self.in_one_piece(s)?;
            }
        }
        Ok(())
    }

    /// TCP over IPv4: DPDK's library writes lengths, identification and sequence numbers.
    fn gso(&self, m: &Mbuf, l: Layout, out: &mut ArrayVec<Mbuf, MAX_SEGMENTS>) -> Result<(), Unfinished> {
        let ctx = sys::rte_gso_ctx {
            direct_pool: self.pool.as_ptr(),
            indirect_pool: self.pool.as_ptr(),
            flag: 0,
            gso_types: sys::DUNLIN_TX_OFFLOAD_TCP_TSO as u32,
            gso_size: (l.headers() as u32 + l.mss) as u16,
        };
        let mut raw = [std::ptr::null_mut(); MAX_SEGMENTS];
        // SAFETY: m is a valid chain of ours alone, whose header lengths were checked; the context's pools live;
        // raw has the room that is named. The library keeps references of its own to m's data.
        let n = unsafe { sys::rte_gso_segment(m.as_ptr(), &ctx, raw.as_mut_ptr(), MAX_SEGMENTS as u16) };
        match n {
            // It leaves the frame to the caller when it sees nothing to segment.
            0 => Err(Unfinished::BadRequest),
            n if n > 0 => {
                for r in &raw[..n as usize] {
                    let r = std::ptr::NonNull::new(*r).ok_or(Unfinished::NoBuffer)?;
                    // SAFETY: the first n entries are new chains, each handed to the caller once.
                    out.push(unsafe { Mbuf::from_raw(r) });
                }
                Ok(())
            }
            e if e == -nix::libc::ENOMEM => Err(Unfinished::NoBuffer),
            _ => Err(Unfinished::BadRequest),
        }
    }

    /// TCP over IPv6. Each segment is copied together with as many octets in front of its payload
    /// as the headers have, which the headers then take the place of: one piece, one copy.
    fn segment_v6(&self, m: &Mbuf, l: Layout, out: &mut ArrayVec<Mbuf, MAX_SEGMENTS>) -> Result<(), Unfinished> {
        let headers = &m.head()[..l.headers()];
        let mut at = headers.len() as u32;
        while at < m.len() {
            let payload = l.mss.min(m.len() - at);
            let mut s = m
                .copy_part(at - headers.len() as u32, headers.len() as u32 + payload, &self.pool)
                .ok_or(Unfinished::NoBuffer)?;
            let last = at + payload == m.len();
            let h = s.head_mut();
            h.get_mut(..headers.len()).ok_or(Unfinished::BadRequest)?.copy_from_slice(headers);
            let v6_payload = (l.l3 - 40 + l.l4) as u32 + payload;
            h[l.l2 + 4..l.l2 + 6].copy_from_slice(&(v6_payload as u16).to_be_bytes());
            let tcp = &mut h[l.l4_at()..];
            let seq = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
            tcp[4..8].copy_from_slice(&seq.wrapping_add(at - headers.len() as u32).to_be_bytes());
            if !last {
                tcp[13] &= !(0x01 | 0x08); // FIN and PSH belong to the last one
            }
            if at > headers.len() as u32 {
                tcp[13] &= !0x80; // CWR to the first one (RFC 3168, 6.1.2)
            }
            out.push(s);
            at += payload;
        }
        Ok(())
    }
}

/// Completes the checksum that the sender left with the sum of the pseudo header in its field,
/// and the IPv4 header's.
fn complete(m: &mut Mbuf, l: Layout) -> Result<(), Unfinished> {
    let field = match m.offload_flags() & L4_MASK {
        L4_TCP => Some(l.l4_at() + 16),
        L4_UDP => Some(l.l4_at() + 6),
        0 => None,
        // SCTP's CRC and whatever is new: not offered to guests.
        _ => return Err(Unfinished::BadRequest),
    };
    if let Some(field) = field {
        complete_at(m, l.l4_at(), field)?;
    }
    if l.v4 && m.offload_flags() & IP_CKSUM != 0 {
        ipv4_checksum(m, l);
    }
    m.set_flags(REQUESTS, 0);
    Ok(())
}

/// The field at `field` becomes the checksum of everything from `from`, itself included.
fn complete_at(m: &mut Mbuf, from: usize, field: usize) -> Result<(), Unfinished> {
    let len = (m.len() as usize).checked_sub(from).ok_or(Unfinished::BadRequest)?;
    complete_range(m, from, len, field)
}

fn complete_range(m: &mut Mbuf, from: usize, len: usize, field: usize) -> Result<(), Unfinished> {
    let sum = raw_sum(m, from, len)?;
    let value = if sum == 0xffff { 0xffff } else { !sum };
    let at = m.head_mut().get_mut(field..field + 2).ok_or(Unfinished::BadRequest)?;
    at.copy_from_slice(&value.to_ne_bytes());
    Ok(())
}

/// A finished segment's own checksums, from nothing.
fn finish_segment(m: &mut Mbuf, l: Layout) -> Result<(), Unfinished> {
    let l4_len = m.len() as usize - l.l4_at();
    let head = m.head_mut();
    let pseudo = pseudo_sum(&head[l.l2..], l.v4, TCP, l4_len as u32);
    head[l.l4_at() + 16..l.l4_at() + 18].copy_from_slice(&pseudo.to_ne_bytes());
    complete_at(m, l.l4_at(), l.l4_at() + 16)?;
    if l.v4 {
        ipv4_checksum(m, l);
    }
    m.set_flags(REQUESTS, 0);
    Ok(())
}

fn ipv4_checksum(m: &mut Mbuf, l: Layout) {
    let ip = &mut m.head_mut()[l.l2..l.l2 + l.l3];
    ip[10..12].fill(0);
    let sum = !fold(sum_words(ip));
    ip[10..12].copy_from_slice(&sum.to_ne_bytes());
}

/// The ones' complement sum of a range of the chain, in the order it has in memory. (DPDK's
/// own, rte_raw_cksum_mbuf, is wrong for chains with a piece of odd length.)
fn raw_sum(m: &Mbuf, from: usize, len: usize) -> Result<u16, Unfinished> {
    let (mut skip, mut left, mut done, mut sum) = (from, len, 0, 0u32);
    for piece in m.pieces() {
        let skipped = skip.min(piece.len());
        skip -= skipped;
        let piece = &piece[skipped..];
        let piece = &piece[..left.min(piece.len())];
        let part = fold(sum_words(piece));
        // A piece that begins at an odd offset has its octets in the other halves.
        sum += u32::from(if done % 2 == 1 { part.swap_bytes() } else { part });
        done += piece.len();
        left -= piece.len();
    }
    if left == 0 { Ok(fold(sum)) } else { Err(Unfinished::BadRequest) }
}

/// The sum of the pseudo header (RFC 9293, 3.1; RFC 8200, 8.1), folded, in memory order.
fn pseudo_sum(l3: &[u8], v4: bool, proto: u8, l4_len: u32) -> u16 {
    let addresses = if v4 { &l3[12..20] } else { &l3[8..40] };
    let rest = [0, proto, (l4_len >> 24) as u8, (l4_len >> 16) as u8, (l4_len >> 8) as u8, l4_len as u8];
    fold(sum_words(addresses) + sum_words(&rest))
}

/// At most 64 KiB: the sum does not overflow.
fn sum_words(octets: &[u8]) -> u32 {
    let mut words = octets.chunks_exact(2);
    let sum: u32 = words.by_ref().map(|c| u32::from(u16::from_ne_bytes([c[0], c[1]]))).sum();
    // The odd octet at the end is followed by a zero (RFC 1071).
    sum + words.remainder().first().map_or(0, |last| u32::from(u16::from_ne_bytes([*last, 0])))
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Completes the checksum of a TCP or UDP frame that a Linux stack on the same machine left
/// unfinished, as it does on veth: the field holds just the sum of the pseudo header. AF_PACKET
/// and AF_XDP don't pass on the kernel's own mark for it. A frame that is finished already is
/// left alone: it has that sum in its field once in 65,536, and then completing writes the very
/// same value.
///
/// `false` if the frame's end is missing: AF_PACKET cuts what is larger than its slots.
#[must_use]
pub fn complete_unfinished(m: &mut Mbuf) -> bool {
    let Some(l4) = l4_of(m.head()) else { return true };
    if l4.at + l4.len > m.len() as usize {
        return false;
    }
    if l4.unfinished {
        // The range was checked, and nobody shares a frame that was just received.
        let _ = complete_range(m, l4.at, l4.len, l4.field);
    }
    true
}

/// The TCP or UDP part of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct L4 {
    at: usize,
    /// By the IP header.
    len: usize,
    /// Where the checksum is.
    field: usize,
    unfinished: bool,
}

/// Where the network header is, behind at most two tags, and its EtherType.
fn network_header(head: &[u8]) -> Option<(usize, u16)> {
    let mut l3 = 14;
    loop {
        let ethertype = u16::from_be_bytes([*head.get(l3 - 2)?, *head.get(l3 - 1)?]);
        if l3 == 22 || !matches!(ethertype, 0x8100 | 0x88a8) {
            return Some((l3, ethertype));
        }
        l3 += 4;
    }
}

/// Finds it in a frame that is no fragment.
fn l4_of(head: &[u8]) -> Option<L4> {
    let word = |at: usize| Some(u16::from_be_bytes([*head.get(at)?, *head.get(at + 1)?]));
    let (l3, ethertype) = network_header(head)?;
    let (v4, proto, at, len) = match ethertype {
        0x0800 => {
            let ihl = (*head.get(l3)? & 0xf) as usize * 4;
            let whole = word(l3 + 6)? & 0x3fff == 0;
            let len = (word(l3 + 2)? as usize).checked_sub(ihl)?;
            (true, *head.get(l3 + 9).filter(|_| whole && ihl >= 20)?, l3 + ihl, len)
        }
        0x86dd => (false, *head.get(l3 + 6)?, l3 + 40, word(l3 + 4)? as usize),
        _ => return None,
    };
    let field = match proto {
        TCP if len >= 20 => at + 16,
        UDP if len >= 8 => at + 6,
        _ => return None,
    };
    let has = u16::from_ne_bytes([*head.get(field)?, *head.get(field + 1)?]);
    Some(L4 { at, len, field, unfinished: has == pseudo_sum(&head[l3..], v4, proto, len as u32) })
}

#[cfg(test)]
mod tests;
