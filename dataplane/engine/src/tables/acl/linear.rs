//! Short lists: each rule is compared with a whole chunk of a burst, one word of 16 frames at once. What a rule does not ask about
//! is not looked at; what it asks for that fewest frames have is looked at first, and mostly decides; and when every
//! frame has met its rule the rest are not.
//!
//! **Measured** (rules of mixed kinds and flows at random, as `make bench SCENARIOS=acl` has them, in the engine's
//! benchmark; TSC cycles a frame, headers and counting included, down a tree and so): 50 rules 32 and 18, 100 rules 37
//! and 31, 200 rules 38 and 42. With AVX2 in place of AVX-512: 41 and 23, 47 and 35 at 100, 46 and 37 at 128.

use super::{
    build::Item,
    tree::{Asked, Best, EXTRA},
};
use crate::{
    burst::{ChunkMask as Mask, filter_mask},
    intrinsics::{Lanes, SimdKernel, dispatch_simd},
    packet::headers::{COLUMNS, DPORT, ETHERTYPE, PROTOCOL, SPORT, STATE, VLAN, inside, parts, set},
};

/// The longest such list.
const RULES: usize = 128;
/// For fewer frames, and for fewer than one in so many rules, each frame goes its own way down the tree.
const FRAMES: usize = 8;
const RULES_A_FRAME: usize = 6;

/// A range that a rule asks a word to be in.
struct Range {
    word: u8,
    low: u32,
    width: u32,
}

/// See the module.
pub(super) struct Linear {
    /// Each rule's place, with [`EXTRA`] if it asks for more than ranges, and where its ranges end.
    rules: Vec<(u32, usize)>,
    ranges: Vec<Range>,
}

impl Range {
    /// About the share of all frames that have it: a guess.
    fn share(&self) -> f64 {
        let all = match usize::from(self.word) {
            // Mostly one of two, and mostly the same.
            PROTOCOL => 2.0,
            ETHERTYPE | STATE => 1.5,
            SPORT | DPORT => 65_536.0,
            VLAN => 4096.0,
            _ => u32::MAX.into(),
        };
        (f64::from(self.width) + 1.0) / all
    }
}

impl Linear {
    /// For these rules, which are in their order, if they are few.
    pub fn new(items: &[Item]) -> Option<Linear> {
        if items.len() > RULES {
            return None;
        }
        let mut few = Linear { rules: Vec::new(), ranges: Vec::new() };
        for item in items {
            let from = few.ranges.len();
            for word in 0..COLUMNS {
                let (low, high) = item.range(word);
                if (low, high) != (0, u32::MAX) {
                    few.ranges.push(Range { word: word as u8, low, width: high - low });
                }
            }
            // Of the words of an address the last first: the others are its neighbours' too.
            few.ranges[from..].sort_by(|a, b| a.share().total_cmp(&b.share()).then(b.word.cmp(&a.word)));
            few.rules.push((item.id_and_extra(), few.ranges.len()));
        }
        Some(few)
    }

    /// Whether it is the shorter way for so many frames.
    #[inline(always)]
    pub fn is_for(&self, frames: u32) -> bool {
        frames as usize >= FRAMES.max(self.rules.len() / RULES_A_FRAME)
    }

    /// Fills `best` for the frames whose bits are in `of`.
    pub fn first(&self, asked: &Asked<'_>, of: Mask, best: &mut Best) {
        dispatch_simd(First { few: self, asked, of, best });
    }
}

struct First<'a, 'b> {
    few: &'a Linear,
    asked: &'a Asked<'b>,
    of: Mask,
    best: &'a mut Best,
}

impl SimdKernel for First<'_, '_> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let First { few, asked, of: mut left, best } = self;
        let (parts, mut from) = (parts(left), 0);
        for (id, to) in &few.rules {
            let mut hits = left;
            for r in &few.ranges[from..*to] {
                hits &= inside::<L>(asked.columns.word(usize::from(r.word)), parts, (r.low, r.width));
                if hits == 0 {
                    break;
                }
            }
            from = *to;
            if id & EXTRA != 0 {
                hits = with_extra(hits, asked, id & !EXTRA);
            }
            if hits == 0 {
                continue;
            }
            set(best, hits, *id & !EXTRA);
            left &= !hits;
            if left == 0 {
                return;
            }
        }
    }
}

/// Those of `hits` that match the rest too.
#[inline(never)]
fn with_extra(hits: Mask, asked: &Asked<'_>, rule: u32) -> Mask {
    filter_mask(hits, |i| asked.matches(rule, i))
}
