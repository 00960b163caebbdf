//! Short lists: each rule is compared with a whole burst, one word of 16 frames at once. What a rule does not ask about
//! is not looked at, and when every frame has met its rule the rest are not.
//!
//! **Measured** (the `filter` of `bench/instructions.py`, in its benchmark): ten rules of mixed kinds took 26 TSC cycles a
//! frame, headers and counting included, when each went down its tree to one block, and 21 so; 10 since headers are columns.

use arrayvec::ArrayVec;

use super::{
    build::Item,
    tree::{Asked, EXTRA},
};
use crate::{
    BURST,
    headers::{COLUMNS, those},
    intrinsics::{LANES, Lanes},
};

/// The longest such list.
const RULES: usize = 32;
/// Of fewer frames, each goes its own way down the tree.
pub(super) const FRAMES: u32 = 8;

/// A range that a rule asks a word to be in.
struct Range {
    word: u8,
    low: u32,
    width: u32,
}

/// See the module.
pub(super) struct Few {
    /// Each rule's place, with [`EXTRA`] if it asks for more than ranges, and where its ranges end.
    rules: Vec<(u32, usize)>,
    ranges: Vec<Range>,
}

impl Few {
    /// For these rules, which are in their order, if they are few.
    pub fn new(items: &[Item], words: &ArrayVec<u8, COLUMNS>) -> Option<Few> {
        if items.len() > RULES {
            return None;
        }
        let mut few = Few { rules: Vec::new(), ranges: Vec::new() };
        for item in items {
            for word in words {
                let (low, high) = item.range(usize::from(*word));
                if (low, high) != (0, u32::MAX) {
                    few.ranges.push(Range { word: *word, low, width: high - low });
                }
            }
            few.rules.push((item.id_and_extra(), few.ranges.len()));
        }
        Some(few)
    }

    /// The first rule of each frame whose bit is in `left`.
    #[inline(always)]
    pub fn first<L: Lanes>(&self, asked: &Asked<'_>, mut left: u32, best: &mut [u32; BURST]) {
        let mut from = 0;
        for (id, to) in &self.rules {
            let mut hits = left;
            for r in &self.ranges[from..*to] {
                hits &= inside::<L>(asked.columns.word(usize::from(r.word)), r);
            }
            from = *to;
            if id & EXTRA != 0 {
                hits = with_extra(hits, asked, id & !EXTRA);
            }
            if hits == 0 {
                continue;
            }
            // Not bit by bit: mostly there are many, and they are set at once.
            for (i, best) in best.iter_mut().enumerate() {
                *best = if hits >> i & 1 != 0 { *id & !EXTRA } else { *best };
            }
            left &= !hits;
            if left == 0 {
                return;
            }
        }
    }
}

/// A bit for each frame whose word is in the range.
#[inline(always)]
fn inside<L: Lanes>(column: &[u32; BURST], r: &Range) -> u32 {
    let mut hits = 0;
    for (i, half) in column.as_chunks::<LANES>().0.iter().enumerate() {
        hits |= L::inside(half, r.low, r.width) << (i * LANES);
    }
    hits
}

/// Those of `hits` that match the rest too.
#[inline(never)]
fn with_extra(hits: u32, asked: &Asked<'_>, rule: u32) -> u32 {
    those(hits, |i| asked.matches(rule, i))
}
