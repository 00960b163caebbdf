//! Geneve (RFC 8926, 3.4): a VNI, and options that are not understood here. They are skipped, unless one
//! is critical: such a packet is dropped, as 3.4 says.

/// The port that IANA assigned.
pub(super) const UDP_PORT: u16 = 6081;
/// The first half of the header, without options: Ethernet is inside.
pub(super) const FIRST: [u8; 4] = [0, 0, 0x65, 0x58];
/// Control packets, and packets with a critical option.
const CONTROL: u8 = 0x80;
const CRITICAL: u8 = 0x40;

/// The VNI, and the octets of the header and its options that a payload begins with; `None` if it can't
/// be taken.
pub(super) fn read(payload: &[u8]) -> Option<(u32, usize)> {
    let h = payload.first_chunk::<8>()?;
    let (version, options) = (h[0] >> 6, usize::from(h[0] & 0x3f) * 4);
    let taken = version == 0 && h[1] & (CONTROL | CRITICAL) == 0 && h[2..4] == FIRST[2..];
    (taken && payload.len() >= 8 + options).then(|| (u32::from_be_bytes([0, h[4], h[5], h[6]]), 8 + options))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_skipped_unless_they_are_critical() {
        let mut p = vec![1, 0, 0x65, 0x58, 0, 0, 7, 0, 1, 2, 3, 0];
        assert_eq!(read(&p), Some((7, 12)));
        assert_eq!(read(&p[..11]), None);
        p[1] = CRITICAL;
        assert_eq!(read(&p), None);
        p[1] = CONTROL;
        assert_eq!(read(&p), None);
    }
}
