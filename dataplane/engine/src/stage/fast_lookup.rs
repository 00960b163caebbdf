//! Fast lookup: one probe of the mac table for both addresses of every frame, which answers nearly all: the source is
//! known where it is, the destination at its port. What [`learn`](super::learn) and [`lookup`](super::lookup) have
//! left to do is then for few frames, and its memory has been asked for.

use crate::{
    DropReason, PortIdx,
    burst::{Fate, Mask, Meta},
    context::Context,
    intrinsics::{Lanes, SimdKernel, dispatch_simd},
};

/// What one look found out, of frames by their bits.
#[derive(Clone, Copy)]
pub(crate) struct Probed {
    /// Those whose source is not known at their port, or was not seen lately.
    pub unknown: Mask,
    /// Those whose destination was not found; the fates of the others are decided.
    pub missing: Mask,
    /// All bits of the others' fates, and those that they have in common.
    any_bits: u32,
    common_bits: u32,
}

impl Probed {
    /// Takes in the fate of one that was missing.
    pub(crate) fn add(&mut self, fate: Fate) {
        self.any_bits |= fate.bits();
        self.common_bits &= fate.bits();
    }

    /// Whether all fates are the same.
    pub(crate) fn same_fate(&self) -> bool {
        self.any_bits == self.common_bits
    }
}

/// Looks once for every frame.
#[inline(always)]
pub(crate) fn run(cx: &Context<'_>, port: PortIdx, meta: &mut [Meta]) -> Probed {
    let mut seen = Probed { unknown: 0, missing: 0, any_bits: 0, common_bits: u32::MAX };
    dispatch_simd(FastLookup { cx, port, meta, seen: &mut seen });
    seen
}

struct FastLookup<'a> {
    cx: &'a Context<'a>,
    port: PortIdx,
    meta: &'a mut [Meta],
    seen: &'a mut Probed,
}

impl SimdKernel for FastLookup<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let macs = self.cx.macs.view();
        let (known, back) = (macs.known_at(self.port), Fate::unicast(self.port));
        let mut seen = *self.seen;
        for (i, m) in self.meta.iter_mut().enumerate() {
            if !macs.is_known::<L>(&m.src_hash, known) {
                macs.prefetch_second(m.src_hash);
                seen.unknown |= 1 << i;
            }
            let Some(to) = macs.first_probe::<L>(&m.dst_hash) else {
                macs.prefetch_second(m.dst_hash);
                seen.missing |= 1 << i;
                continue;
            };
            m.fate = Fate::unicast(to);
            if m.fate == back {
                m.fate = Fate::drop(DropReason::SamePort);
            }
            seen.add(m.fate);
        }
        *self.seen = seen;
    }
}
