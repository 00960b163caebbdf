//! Short lists: each rule is compared with a whole burst, one word of 16 frames at once. What a rule does not ask about
//! is not looked at, and when every frame has met its rule the rest are not.
//!
//! **Measured** (the `filter` of `bench/instructions.py`, in its benchmark): ten rules of mixed kinds take 21 TSC cycles a
//! frame, headers and counting included; 26 when each frame went down its tree to one block. Compilers make gathers of
//! the columns; single loads in their place took 1 to 5 cycles more.

use arrayvec::ArrayVec;

use super::{Match, build::Item, tree::EXTRA};
use crate::{
    BURST,
    headers::{Headers, WORDS},
    intrinsics::{LANES, Lanes},
};

/// The longest such list.
const RULES: usize = 32;
/// Of fewer frames, each goes its own way down the tree.
pub(super) const FRAMES: usize = 8;

/// One word of a burst.
type Column = [[u32; LANES]; BURST / LANES];

/// A range that a rule asks a word to be in.
struct Range {
    column: u8,
    low: u32,
    width: u32,
}

/// See the module.
pub(super) struct Few {
    /// The words that any rule asks about.
    words: ArrayVec<u8, WORDS>,
    /// Each rule's place, with [`EXTRA`] if it asks for more than ranges, and where its ranges end.
    rules: Vec<(u32, usize)>,
    ranges: Vec<Range>,
}

impl Few {
    /// For these rules, which are in their order, if they are few.
    pub fn new(items: &[Item], words: &ArrayVec<u8, WORDS>) -> Option<Few> {
        if items.len() > RULES {
            return None;
        }
        let mut few = Few { words: words.clone(), rules: Vec::new(), ranges: Vec::new() };
        for item in items {
            for (column, word) in (0u8..).zip(words) {
                let (low, high) = item.range(usize::from(*word));
                if (low, high) != (0, u32::MAX) {
                    few.ranges.push(Range { column, low, width: high - low });
                }
            }
            few.rules.push((item.id_and_extra(), few.ranges.len()));
        }
        Some(few)
    }

    /// The first rule of each frame, of at most [`BURST`], whose bit is in `left`.
    #[inline(always)]
    pub fn first<L: Lanes>(&self, frames: &[Headers], mut left: u32, extras: &[Match], best: &mut [u32]) {
        let mut columns = ArrayVec::<Column, WORDS>::new();
        for word in &self.words {
            let mut column = [[0; LANES]; BURST / LANES];
            for (to, h) in column.as_flattened_mut().iter_mut().zip(frames) {
                *to = h.words[usize::from(*word).min(WORDS - 1)];
            }
            columns.push(column);
        }
        let mut from = 0;
        for (id, to) in &self.rules {
            let mut hits = left;
            for r in &self.ranges[from..*to] {
                hits &= inside::<L>(&columns[usize::from(r.column)], r);
            }
            from = *to;
            if id & EXTRA != 0 {
                hits = with_extra(hits, frames, &extras[(id & !EXTRA) as usize]);
            }
            left &= !hits;
            if hits.count_ones() as usize == frames.len() {
                return best.fill(*id & !EXTRA);
            }
            while hits != 0 {
                best[hits.trailing_zeros() as usize] = *id & !EXTRA;
                hits &= hits - 1;
            }
            if left == 0 {
                return;
            }
        }
    }
}

/// A bit for each frame whose word is in the range.
#[inline(always)]
fn inside<L: Lanes>(column: &Column, r: &Range) -> u32 {
    let mut hits = 0;
    for (i, half) in column.iter().enumerate() {
        hits |= L::inside(half, r.low, r.width) << (i * LANES);
    }
    hits
}

/// Those of `hits` that match the rest too.
#[inline(never)]
fn with_extra(mut hits: u32, frames: &[Headers], extra: &Match) -> u32 {
    let mut left = hits;
    while left != 0 {
        let i = left.trailing_zeros();
        if !extra.matches(&frames[i as usize]) {
            hits &= !(1 << i);
        }
        left &= left - 1;
    }
    hits
}
