//! Checksums.

use std::net::Ipv6Addr;

use super::headers::ICMPV6;

/// The Internet checksum (RFC 1071) of octets whose own checksum field is 0.
pub fn checksum(octets: &[u8]) -> u16 {
    !fold(sum(octets))
}

/// The sum of 16-bit words, not folded.
#[inline(always)]
pub(crate) fn sum(octets: &[u8]) -> u32 {
    let words = octets.chunks_exact(2);
    let rest = words.remainder().first().map_or(0, |o| u32::from(*o) << 8);
    words.map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum::<u32>() + rest
}

/// A sum as ones' complement.
#[inline(always)]
pub(crate) fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// The checksum of an ICMPv6 message (RFC 4443, 2.3), 0 if a right one is in it.
pub fn icmpv6_checksum(from: Ipv6Addr, to: Ipv6Addr, body: &[u8]) -> u16 {
    let mut pseudo = [0; 40];
    pseudo[..16].copy_from_slice(&from.octets());
    pseudo[16..32].copy_from_slice(&to.octets());
    pseudo[32..36].copy_from_slice(&(body.len() as u32).to_be_bytes());
    pseudo[39] = ICMPV6;
    // Both are of whole words, or the body's odd end is the last: the sums can be added.
    let sum = u32::from(!checksum(&pseudo)) + u32::from(!checksum(body));
    !((sum & 0xffff) + (sum >> 16)) as u16
}
