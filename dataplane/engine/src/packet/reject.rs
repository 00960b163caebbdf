//! What tells a sender that its frame was rejected: a TCP reset, or that the destination is administratively
//! prohibited (ICMP type 3, code 13 of RFC 1812, 5.2.7.1; ICMPv6 type 1, code 1 of RFC 4443, 3.1).

use std::net::IpAddr;

use arrayvec::ArrayVec;

use crate::{
    MacAddr,
    packet::{
        checksum,
        headers::{FLAGS, Family, Headers, ICMP, ICMPV6, TCP},
    },
};

/// Octets of the rejected packet that an error shows.
const SHOWN: usize = 512;
/// What an answer takes at most: Ethernet, IPv6, ICMPv6, and what is shown.
const LONGEST: usize = 14 + 40 + 8 + SHOWN;
const HOPS: u8 = 64;
/// TCP's flag.
const RST: u32 = 4;

/// The headers of a frame that may be answered; none of one that must not be (RFC 1122, 3.2.2; RFC 4443, 2.4).
pub(crate) fn answerable(head: &[u8], l3: usize) -> Option<Headers> {
    let mac = |at: usize| head.get(at..at + 6).and_then(<[u8]>::first_chunk::<6>).map(|o| MacAddr::from_octets(*o));
    let (dst, src) = (mac(0)?, mac(6)?);
    let h = Headers::read(head, l3, 0, dst, src);
    let (from, to) = h.addresses().filter(|_| usize::from(h.l3) == l3)?;
    let is_broadcast = matches!(from, IpAddr::V4(a) if a.is_broadcast());
    let is_a_hosts = !(from.is_unspecified() || from.is_multicast() || is_broadcast);
    if dst.is_multicast() || src.is_multicast() || !is_a_hosts || to.is_multicast() || h.broken || h.is_later_fragment()
    {
        return None;
    }
    let is_error = match (h.protocol(), h.ports()) {
        (ICMP, Some((kind, _))) => !matches!(kind, 8 | 13 | 15 | 17),
        (ICMPV6, Some((kind, _))) => kind < 128 || (133..=137).contains(&kind),
        _ => false,
    };
    let is_reset = h.protocol() == TCP && h.words[FLAGS] & RST != 0;
    (!is_error && !is_reset).then_some(h)
}

/// The answer to a frame with these headers, untagged.
pub(crate) fn answer(h: &Headers, head: &[u8]) -> Option<ArrayVec<u8, LONGEST>> {
    let ((src, dst), l3) = (h.macs(), usize::from(h.l3));
    let end = (h.end as usize).min(head.len());
    let (protocol, payload) = match h.protocol() {
        TCP => (TCP, reset(h, head)?),
        _ => unreachable(h.family, head.get(l3..end)?)?,
    };
    let mut f = ArrayVec::<u8, LONGEST>::new();
    put(&mut f, &src.octets())?;
    put(&mut f, &dst.octets())?;
    put(&mut f, &h.ethertype().to_be_bytes())?;
    // Addresses exchanged, and a pseudo header for the checksum (RFC 9293, 3.1; RFC 8200, 8.1).
    let mut pseudo = ArrayVec::<u8, { 40 + 8 + SHOWN }>::new();
    let len = payload.len() as u16;
    if h.family == Family::V4 {
        let mut ip = [0x45, 0, 0, 0, 0, 0, 0x40, 0, HOPS, protocol, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        ip[2..4].copy_from_slice(&(20 + len).to_be_bytes());
        ip[12..16].copy_from_slice(&head[l3 + 16..l3 + 20]);
        ip[16..20].copy_from_slice(&head[l3 + 12..l3 + 16]);
        let sum = checksum(&ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        put(&mut f, &ip)?;
        if protocol == TCP {
            put(&mut pseudo, &ip[12..20])?;
            put(&mut pseudo, &[0, TCP, 0, len as u8])?;
        }
    } else {
        put(&mut f, &[0x60, 0, 0, 0, (len >> 8) as u8, len as u8, protocol, HOPS])?;
        for part in [&head[l3 + 24..l3 + 40], &head[l3 + 8..l3 + 24]] {
            put(&mut f, part)?;
            put(&mut pseudo, part)?;
        }
        put(&mut pseudo, &[0, 0, (len >> 8) as u8, len as u8, 0, 0, 0, protocol])?;
    }
    put(&mut pseudo, &payload)?;
    let sum = checksum(&pseudo).to_be_bytes();
    let at = f.len() + if protocol == TCP { 16 } else { 2 };
    put(&mut f, &payload)?;
    f[at..at + 2].copy_from_slice(&sum);
    Some(f)
}

fn put<const N: usize>(to: &mut ArrayVec<u8, N>, octets: &[u8]) -> Option<()> {
    to.try_extend_from_slice(octets).ok()
}

type Payload = ArrayVec<u8, { 8 + SHOWN }>;

/// RFC 9293, 3.5.2.
fn reset(h: &Headers, head: &[u8]) -> Option<Payload> {
    let t = head.get(usize::from(h.l4)..)?.first_chunk::<20>()?;
    let (flags, word) = (t[13], |at: usize| u32::from_be_bytes([t[at], t[at + 1], t[at + 2], t[at + 3]]));
    let payload = (h.end as usize).checked_sub(usize::from(h.l4) + usize::from(t[12] >> 4) * 4)? as u32;
    let len = payload + u32::from(flags & 1) + u32::from(flags >> 1 & 1);
    let (seq, ack, flags) = if flags & 16 != 0 { (word(8), 0, 4) } else { (0, word(4).wrapping_add(len), 4 | 16) };
    let mut p = Payload::new();
    put(&mut p, &t[2..4])?;
    put(&mut p, &t[0..2])?;
    put(&mut p, &seq.to_be_bytes())?;
    put(&mut p, &ack.to_be_bytes())?;
    put(&mut p, &[0x50, flags, 0, 0, 0, 0, 0, 0])?;
    Some(p)
}

fn unreachable(family: Family, packet: &[u8]) -> Option<(u8, Payload)> {
    let (protocol, kind) = if family == Family::V4 { (ICMP, [3, 13]) } else { (ICMPV6, [1, 1]) };
    let mut p = Payload::new();
    put(&mut p, &kind)?;
    put(&mut p, &[0; 6])?;
    put(&mut p, &packet[..packet.len().min(SHOWN)])?;
    Some((protocol, p))
}
