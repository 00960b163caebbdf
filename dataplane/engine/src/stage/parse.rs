//! Parse: addresses and outer tag out of the frame into its [`Meta`].
//!
//! Drops frames too short to have them, and frames whose source is no station's address (group,
//! broadcast or zero: what Linux's bridge refuses by `is_valid_ether_addr`).

use crate::{
    DropReason, Frame, MacAddr, SegmentId,
    mac_table::Key,
    pipeline::{Fate, Meta},
    vlan::{TPID_8021AD, TPID_8021Q, Tag},
};

/// How far ahead a header's cache line is asked for.
const AHEAD: usize = 4;

/// Fills `meta`; the octets of all frames.
#[inline(always)]
pub(crate) fn run<F: Frame>(burst: &[F], meta: &mut [Meta]) -> u64 {
    let mut octets = 0;
    burst.iter().take(AHEAD).for_each(F::prefetch);
    for (i, (frame, m)) in burst.iter().zip(meta).enumerate() {
        if let Some(next) = burst.get(i + AHEAD) {
            next.prefetch();
        }
        octets += u64::from(frame.len());
        parse(frame.head(), m);
    }
    octets
}

#[inline(always)]
fn parse(head: &[u8], m: &mut Meta) {
    m.tag = Tag::NONE;
    m.priority = 0;
    m.tpid = TPID_8021Q;
    let Some(h) = head.first_chunk::<14>() else {
        m.fate = Fate::Drop(DropReason::Runt);
        return;
    };
    // Two loads: addresses and EtherType overlap them.
    let first = u64::from_be_bytes([h[0], h[1], h[2], h[3], h[4], h[5], h[6], h[7]]);
    let second = u64::from_be_bytes([h[6], h[7], h[8], h[9], h[10], h[11], h[12], h[13]]);
    let (dst, src, ethertype) = (MacAddr::from_bits(first >> 16), MacAddr::from_bits(second >> 16), second as u16);
    if ethertype == TPID_8021Q || ethertype == TPID_8021AD {
        // The tag and the EtherType behind it.
        let Some(h) = head.first_chunk::<18>() else {
            m.fate = Fate::Drop(DropReason::Runt);
            return;
        };
        m.tag = Tag::new(ethertype, u16::from_be_bytes([h[14], h[15]]));
    }
    m.dst = Key::new(dst, SegmentId::NONE);
    m.src = Key::new(src, SegmentId::NONE);
    let invalid = src.is_multicast() || src == MacAddr::default();
    m.fate = if invalid { Fate::Drop(DropReason::InvalidSource) } else { Fate::Pending };
}
