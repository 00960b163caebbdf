//! Parse: addresses and outer tag out of the frame into its [`Meta`].
//!
//! Drops frames too short to have them, and frames whose source is no station's address (group,
//! broadcast or zero: what Linux's bridge refuses by `is_valid_ether_addr`).

use crate::{
    DropReason, Frame, MacAddr, SegmentId,
    mac_table::Key,
    pipeline::{Fate, Meta},
    vlan::{TPID_8021AD, TPID_8021Q},
};

/// How far ahead a header's cache line is asked for.
const AHEAD: usize = 4;

#[inline]
pub(crate) fn run<F: Frame>(burst: &[F], meta: &mut [Meta]) {
    burst.iter().take(AHEAD).for_each(F::prefetch);
    for (i, (frame, m)) in burst.iter().zip(meta).enumerate() {
        if let Some(next) = burst.get(i + AHEAD) {
            next.prefetch();
        }
        *m = parse(frame.head());
    }
}

#[inline]
fn parse(head: &[u8]) -> Meta {
    let mut m = Meta { fate: Fate::Drop(DropReason::Runt), ..Meta::EMPTY };
    let Some(h) = head.first_chunk::<14>() else { return m };
    let dst = MacAddr::from_octets([h[0], h[1], h[2], h[3], h[4], h[5]]);
    let src = MacAddr::from_octets([h[6], h[7], h[8], h[9], h[10], h[11]]);
    let ethertype = u16::from_be_bytes([h[12], h[13]]);
    if ethertype == TPID_8021Q || ethertype == TPID_8021AD {
        // The tag and the EtherType behind it.
        let Some(h) = head.first_chunk::<18>() else { return m };
        m.tag = Some((ethertype, u16::from_be_bytes([h[14], h[15]])));
    }
    m.dst = Key::new(dst, SegmentId::NONE);
    m.src = Key::new(src, SegmentId::NONE);
    m.fate = match src.is_multicast() || src == MacAddr::default() {
        true => Fate::Drop(DropReason::InvalidSource),
        false => Fate::Pending,
    };
    m
}
