//! Parse: addresses and outer tag out of the frame; with [`ingress_vlan`] in the same loop, because
//! a store and a load of both keys less is worth more than a loop of its own.
//!
//! Refuses frames too short to have them.

use crate::{
    DropReason, Frame, SegmentId,
    burst::{BurstInfo, Fate, Meta, Refused},
    context::Context,
    intrinsics::{Lanes, SimdKernel, dispatch_simd},
    snapshot::Port,
    stage::ingress_vlan,
    tables::mac::View,
    vlan::{TPID_8021AD, TPID_8021Q, Tag, VlanTagInfo},
};

/// Fills `meta`; frames without a tag are what `untagged` says. Asks for the buckets of the keys, so that
/// the next two stages find them in the cache. What is known of all, and the frames that go no further.
#[inline(always)]
pub(crate) fn run<F: Frame>(
    cx: &Context<'_>,
    port: &Port,
    untagged: &(VlanTagInfo, SegmentId),
    burst: &[F],
    meta: &mut [Meta],
) -> (BurstInfo, Refused) {
    let (mut info, mut refused) = (BurstInfo::NONE, Refused::NONE);
    // A loop of its own over the descriptors: the headers' cache lines are on their way meanwhile.
    for frame in burst {
        frame.prefetch();
        info.add(frame);
    }
    dispatch_simd(Parse { cx, port, untagged, burst, meta, same_class: &mut info.same_class, refused: &mut refused });
    (info, refused)
}

struct Parse<'a, F> {
    cx: &'a Context<'a>,
    port: &'a Port,
    untagged: &'a (VlanTagInfo, SegmentId),
    burst: &'a [F],
    meta: &'a mut [Meta],
    same_class: &'a mut bool,
    refused: &'a mut Refused,
}

impl<F: Frame> SimdKernel for Parse<'_, F> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let macs = self.cx.macs.view();
        let (mut any_bits, mut common_bits) = (0, u64::MAX);
        for (i, (frame, m)) in self.burst.iter().zip(self.meta).enumerate() {
            if let Err(reason) = parse::<L>(macs, self.port, self.untagged, frame.head(), m) {
                m.fate = Fate::drop(reason);
                self.refused.add(i);
            }
            any_bits |= m.class.bits();
            common_bits &= m.class.bits();
        }
        *self.same_class = any_bits == common_bits;
    }
}

#[inline(always)]
fn parse<L: Lanes>(
    macs: View<'_>,
    port: &Port,
    untagged: &(VlanTagInfo, SegmentId),
    head: &[u8],
    m: &mut Meta,
) -> Result<(), DropReason> {
    let mut short = [0; 16];
    let h = match head.first_chunk::<16>() {
        Some(h) => h,
        None => {
            short[..head.len()].copy_from_slice(head);
            head.first_chunk::<14>().ok_or(DropReason::Runt)?;
            &short
        }
    };
    let (class, segment) = match u16::from_be_bytes([h[12], h[13]]) {
        tpid @ (TPID_8021Q | TPID_8021AD) => tagged(port, tpid, head)?,
        _ => *untagged,
    };
    let (keys, hashes) = macs.of_frame::<L>(h, segment);
    [m.dst, m.src] = keys;
    [m.dst_hash, m.src_hash] = hashes;
    macs.prefetch(m.src_hash);
    macs.prefetch(m.dst_hash);
    m.class = class;
    Ok(())
}

/// The class and segment of a frame with a tag.
#[inline(always)]
fn tagged(port: &Port, tpid: u16, head: &[u8]) -> Result<(VlanTagInfo, SegmentId), DropReason> {
    // The tag and the EtherType behind it.
    let h = head.first_chunk::<18>().ok_or(DropReason::Runt)?;
    let tag = Tag::new(tpid, u16::from_be_bytes([h[14], h[15]]));
    let vid = tag.tci() & Tag::VID;
    Ok(match &port.tagged {
        Some(segments) if vid != 0 => (VlanTagInfo::new(tag, tpid, tag.tci()), segments[vid as usize]),
        _ => ingress_vlan::classify(port, tag, u16::from_be_bytes([h[16], h[17]])),
    })
}
