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

/// The sum of octets as big-endian 16-bit words, folded, the last one filled up with zero. Made of wide words in any order
/// of octets: RFC 1071, 2.
#[inline]
pub fn sum_of(octets: &[u8]) -> u16 {
    let (words, rest) = octets.as_chunks::<4>();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    let all =
        words.iter().map(|w| u64::from(u32::from_ne_bytes(*w))).sum::<u64>() + u64::from(u32::from_ne_bytes(last));
    let halves = (all & 0xffff_ffff) + (all >> 32);
    let sum = (halves & 0xffff) + (halves >> 16 & 0xffff) + (halves >> 32);
    u16::from_be(fold(sum as u32))
}

/// The same of octets that are in pieces.
pub fn sum_of_pieces<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> u16 {
    let (mut all, mut is_odd) = (0u32, false);
    for piece in pieces {
        let sum = sum_of(piece);
        all += u32::from(if is_odd { sum.swap_bytes() } else { sum });
        is_odd ^= piece.len() % 2 == 1;
    }
    fold(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn wide_sums_and_pieces_are_the_same(octets in proptest::collection::vec(any::<u8>(), 0..300), cuts in (0usize..300, 0usize..300)) {
            let (a, b) = (cuts.0.min(octets.len()), cuts.1.min(octets.len()));
            let (a, b) = (a.min(b), a.max(b));
            prop_assert_eq!(sum_of(&octets), fold(sum(&octets)));
            prop_assert_eq!(sum_of_pieces([&octets[..a], &octets[a..b], &octets[b..]].into_iter()), fold(sum(&octets)));
        }
    }
}
