//! Internet checksums over the pieces of a frame (RFC 1071), and SCTP's CRC (RFC 9260, appendix A).

use super::OffloadError;
use crate::Mbuf;

/// The field at `field` becomes the checksum of `len` octets from `from`, itself included.
pub(super) fn complete(m: &mut Mbuf, from: usize, len: usize, field: usize) -> Result<(), OffloadError> {
    let sum = raw_sum(m, from, len)?;
    let value = if sum == 0xffff { 0xffff } else { !sum };
    let at = m.head_mut().get_mut(field..field + 2).ok_or(OffloadError::BadRequest)?;
    at.copy_from_slice(&value.to_ne_bytes());
    Ok(())
}

/// The same for the CRC of an SCTP packet that begins at `from` and ends with the frame.
pub(super) fn complete_crc(m: &mut Mbuf, from: usize) -> Result<(), OffloadError> {
    let field = from + 8..from + 12;
    m.head_mut().get_mut(field.clone()).ok_or(OffloadError::BadRequest)?.fill(0);
    let (mut skip, mut crc) = (from, 0);
    for piece in m.pieces() {
        let skipped = skip.min(piece.len());
        skip -= skipped;
        crc = crc32c::crc32c_append(crc, &piece[skipped..]);
    }
    m.head_mut()[field].copy_from_slice(&crc.to_le_bytes());
    Ok(())
}

/// Writes the checksum of an IPv4 header.
pub(super) fn ipv4(header: &mut [u8]) {
    header[10..12].fill(0);
    let sum = !fold(sum_words(header));
    header[10..12].copy_from_slice(&sum.to_ne_bytes());
}

/// The ones' complement sum of a range of the chain, in the order it has in memory. (DPDK's
/// own, rte_raw_cksum_mbuf, is wrong for chains with a piece of odd length.)
fn raw_sum(m: &Mbuf, from: usize, len: usize) -> Result<u16, OffloadError> {
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
    if left == 0 { Ok(fold(sum)) } else { Err(OffloadError::BadRequest) }
}

/// The sum of the pseudo header (RFC 9293, 3.1; RFC 8200, 8.1), folded, in memory order.
pub(super) fn pseudo_sum(l3: &[u8], v4: bool, proto: u8, l4_len: u32) -> u16 {
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
