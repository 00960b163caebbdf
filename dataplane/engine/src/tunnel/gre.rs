//! GRE (RFC 2784, with the key of RFC 2890) with Ethernet inside, in two kinds: transparent Ethernet
//! bridging, whose key is the VNI; and NVGRE (RFC 7637), whose key is the VNI and eight bits of the flow.

/// The first half of the header: a key follows; Ethernet is inside.
pub(super) const FIRST: [u8; 4] = [KEY, 0, 0x65, 0x58];
const CHECKSUM: u8 = 0x80;
const KEY: u8 = 0x20;
const SEQUENCE: u8 = 0x10;

/// The key, and the octets of the header that a payload begins with; `None` if it can't be taken. A
/// checksum is skipped: what is inside has its own. So is a sequence number.
pub(super) fn read(payload: &[u8]) -> Option<(u32, usize)> {
    let h = payload.first_chunk::<4>()?;
    if h[0] & !(CHECKSUM | SEQUENCE) != KEY || h[1] != 0 || h[2..] != FIRST[2..] {
        return None;
    }
    let key_at = if h[0] & CHECKSUM != 0 { 8 } else { 4 };
    let len = key_at + 4 + if h[0] & SEQUENCE != 0 { 4 } else { 0 };
    let key = payload.get(key_at..key_at + 4)?.try_into().ok()?;
    (payload.len() >= len).then(|| (u32::from_be_bytes(key), len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_and_sequence_number_are_skipped() {
        assert_eq!(read(&[KEY, 0, 0x65, 0x58, 0, 0, 0, 9]), Some((9, 8)));
        let all = [KEY | CHECKSUM | SEQUENCE, 0, 0x65, 0x58, 1, 2, 0, 0, 0, 0, 0, 9, 0, 0, 0, 1];
        assert_eq!(read(&all), Some((9, 16)));
        assert_eq!(read(&all[..15]), None);
        assert_eq!(read(&[0, 0, 0x65, 0x58, 0, 0, 0, 9]), None, "no key");
        assert_eq!(read(&[KEY, 1, 0x65, 0x58, 0, 0, 0, 9]), None, "another version");
        assert_eq!(read(&[KEY, 0, 8, 0, 0, 0, 0, 9]), None, "no Ethernet");
    }
}
