//! Checksums that need no buffers of DPDK; segmentation is tested on real guests end to end.

use super::*;

/// A TCP frame over IPv4, checksum field as given.
fn tcp4(tag: bool, payload: &[u8]) -> Vec<u8> {
    let mut f = vec![0x52, 0x54, 0, 0, 0, 1, 0x52, 0x54, 0, 0, 0, 2];
    if tag {
        f.extend([0x81, 0, 0, 10]);
    }
    f.extend([8, 0]);
    let total = (40 + payload.len()) as u16;
    f.extend([0x45, 0]);
    f.extend(total.to_be_bytes());
    f.extend([0, 1, 0x40, 0, 64, TCP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    f.extend([0x30, 0x39, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    f.extend(payload);
    f
}

#[test]
fn an_unfinished_checksum_is_recognized_and_a_finished_one_is_not() {
    for tag in [false, true] {
        let mut f = tcp4(tag, b"hello");
        let l3 = if tag { 18 } else { 14 };
        let field = l3 + 36;
        assert!(!l4_of(&f).unwrap().unfinished, "a zero field is no pseudo sum");
        let pseudo = pseudo_sum(&f[l3..], true, TCP, 25);
        f[field..field + 2].copy_from_slice(&pseudo.to_ne_bytes());
        assert_eq!(l4_of(&f), Some(L4 { at: l3 + 20, len: 25, field, unfinished: true }));
        f[l3 + 6] |= 0x20; // a fragment has no checksum of its own
        assert_eq!(l4_of(&f), None);
    }
}

#[test]
fn no_truncation_of_a_frame_is_read_beyond() {
    let f = tcp4(true, b"payload");
    for n in 0..f.len() {
        let _ = l4_of(&f[..n]);
    }
}

#[test]
fn needs_finish_only_for_what_the_receiver_lacks() {
    let all = Caps { checksum: true, tso4: true, tso6: true, chains: true };
    assert!(!needs_finish(Caps::default(), 0, 1));
    assert!(needs_finish(Caps::default(), 0, 2));
    assert!(needs_finish(Caps::default(), L4_TCP, 1));
    assert!(!needs_finish(all, L4_TCP, 3));
    assert!(needs_finish(all, TSO | L4_TCP, 1), "a request for segmentation is always checked");
}
