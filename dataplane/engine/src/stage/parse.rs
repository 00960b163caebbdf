//! Parse: addresses and outer tag out of the frame; with [`ingress_vlan`] in the same loop, because
//! a store and a load of both keys less is worth more than a loop of its own.
//!
//! Refuses frames too short to have them.

use crate::{
    DropReason, Frame, SegmentId,
    mac_table::{Key, View},
    pipeline::{Context, Fate, Meta, Refused},
    snapshot::Port,
    stage::ingress_vlan,
    vlan::{Class, TPID_8021AD, TPID_8021Q, Tag},
};

/// What is known of a burst as a whole.
#[derive(Clone, Copy)]
pub(crate) struct Parsed {
    /// Of all frames.
    pub octets: u64,
    /// Of the largest frame.
    pub largest: u32,
    /// Every frame is what [`Frame::is_plain`] says.
    pub plain: bool,
    /// Every frame is in the same VLAN, tagged alike.
    pub same_class: bool,
    /// The frames that go no further.
    pub refused: Refused,
}

/// Fills `meta`; frames without a tag are what `untagged` says. Asks for the buckets of the keys, so that
/// the next two stages find them in the cache.
#[inline(always)]
pub(crate) fn run<F: Frame>(
    cx: &Context<'_>,
    port: &Port,
    untagged: &(Class, SegmentId),
    burst: &[F],
    meta: &mut [Meta],
) -> Parsed {
    let mut all = Parsed { octets: 0, largest: 0, plain: true, same_class: true, refused: Refused::NONE };
    // A loop of its own over the descriptors: the headers' cache lines are on their way meanwhile.
    for frame in burst {
        frame.prefetch();
        all.octets += u64::from(frame.len());
        all.largest = all.largest.max(frame.len());
        all.plain &= frame.is_plain();
    }
    let macs = cx.macs.view();
    let (mut any_bits, mut common_bits) = (0, u64::MAX);
    for (i, (frame, m)) in burst.iter().zip(meta).enumerate() {
        if let Err(reason) = parse(macs, port, untagged, frame.head(), m) {
            m.fate = Fate::drop(reason);
            all.refused.add(i);
        }
        any_bits |= m.class.bits();
        common_bits &= m.class.bits();
    }
    all.same_class = any_bits == common_bits;
    all
}

#[inline(always)]
fn parse(
    macs: View<'_>,
    port: &Port,
    untagged: &(Class, SegmentId),
    head: &[u8],
    m: &mut Meta,
) -> Result<(), DropReason> {
    let h = head.first_chunk::<14>().ok_or(DropReason::Runt)?;
    // Two loads: addresses and EtherType overlap them.
    let first = u64::from_be_bytes([h[0], h[1], h[2], h[3], h[4], h[5], h[6], h[7]]);
    let second = u64::from_be_bytes([h[6], h[7], h[8], h[9], h[10], h[11], h[12], h[13]]);
    let (class, segment) = match second as u16 {
        tpid @ (TPID_8021Q | TPID_8021AD) => tagged(port, tpid, head)?,
        _ => *untagged,
    };
    (m.dst, m.src) = (Key::from_wire(first, segment), Key::from_wire(second, segment));
    (m.dst_hash, m.src_hash) = (macs.hash(m.dst), macs.hash(m.src));
    macs.prefetch(m.src_hash);
    macs.prefetch(m.dst_hash);
    m.class = class;
    Ok(())
}

/// The class and segment of a frame with a tag.
#[inline(always)]
fn tagged(port: &Port, tpid: u16, head: &[u8]) -> Result<(Class, SegmentId), DropReason> {
    // The tag and the EtherType behind it.
    let h = head.first_chunk::<18>().ok_or(DropReason::Runt)?;
    let tag = Tag::new(tpid, u16::from_be_bytes([h[14], h[15]]));
    let vid = tag.tci() & Tag::VID;
    Ok(match &port.tagged {
        Some(segments) if vid != 0 => (Class::new(tag, tpid, tag.tci()), segments[vid as usize]),
        _ => ingress_vlan::classify(port, tag),
    })
}
