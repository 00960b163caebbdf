//! Finding the first rule that matches: trees that cut one word's range into at most 16 parts at a node,
//! and blocks of 16 rules at the leaves, all of which are compared at once.
//!
//! **A frame's way**: at each node one cache line of bounds is compared with one word, and how many of them
//! it reaches says which child; three nodes are enough for 10,000 rules. At the leaf, for each word that any
//! rule asks about, 16 lower ends and 16 widths are compared with it; what is left after all words is a bit
//! for each rule that matches, the first rule lowest. A burst goes down level by level, so that the lines of
//! 32 frames are fetched together.
//!
//! **Measured** (TSC cycles a frame, 10, 100, 1,000, 10,000 rules of mixed kinds of which the last matches, random
//! flows): 14, 23, 45, 54 to classify; `make bench SCENARIOS=acl` has the whole way, with headers and counters.
//! DPDK's rte_acl by its best method took 32, 32, 56 on the same rules and flows; at 10,000 it was still building
//! after 25 s, in 12 GB, where this takes 20 ms and 3 MiB. Kept: frames of one family together (a third less),
//! masks that stay in their registers. Not kept: prefetching of nodes and leaves (10 to 30 more: the processor is
//! ahead of it already).
//!
//! **Its worst case**: rules that overlap in every word can't be told apart by cuts. Then leaves grow, 16
//! rules costing some 10 cycles, but memory does not ([`super::build`] bounds it), and there is no cache to
//! be driven out of: every frame costs what a new flow costs.

use arrayvec::ArrayVec;

use super::{
    Match,
    few::{self, Few},
};
use crate::{
    BURST,
    headers::{Headers, WORDS},
    intrinsics::{Job, LANES, Lanes, widest},
};

/// No rule.
pub(crate) const NONE: u32 = u32::MAX;

/// Where a way down leads: nowhere (0); bit 31 clear, to a node: a word's number in bits 24 to 28, the
/// node's in the lower 24; bit 31 set, to blocks, the first one's number in the bits below.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct To(u32);

impl To {
    pub const NOWHERE: To = To(0);

    pub fn node(word: usize, number: usize) -> To {
        debug_assert!(number > 0 && number < 1 << 24);
        To((word as u32) << 24 | number as u32)
    }

    pub fn blocks(first: usize) -> To {
        To(1 << 31 | first as u32)
    }

    #[inline(always)]
    fn is_node(self) -> bool {
        self.0 >> 31 == 0 && self.0 != 0
    }

    /// The number of the first block.
    #[inline(always)]
    fn leaf(self) -> Option<usize> {
        (self.0 >> 31 == 1).then_some((self.0 & !(1 << 31)) as usize)
    }
}

/// Cuts one word's range: child i holds what reaches i of the bounds.
#[repr(align(64))]
pub(super) struct Node {
    /// Rising; the last one is never used, so that there are as many children.
    pub bounds: [u32; LANES],
    pub children: [To; LANES],
}

/// One value for each of 16 rules.
#[repr(align(64))]
pub(super) struct Row(pub [u32; LANES]);

/// The rules for one family of frames.
#[derive(Default)]
pub(super) struct Group {
    /// The words that any rule asks about.
    pub words: ArrayVec<u8, WORDS>,
    pub roots: ArrayVec<To, 4>,
    pub nodes: Vec<Node>,
    /// Blocks: for each word a row of lower ends and one of widths, then a row of rules, [`NONE`] where there
    /// is none; [`EXTRA`] is set for those that ask for more, [`LAST`] for the first of a leaf's last block.
    pub rows: Vec<Row>,
    /// The same for bursts, if the rules are few.
    pub few: Option<Few>,
}

/// The rule asks for more than ranges.
pub(super) const EXTRA: u32 = 1 << 31;
/// The block is its leaf's last.
pub(super) const LAST: u32 = 1 << 30;

/// The first rule of each frame of a burst.
pub(crate) type Best = [u32; BURST];

/// Fills `best` for at most [`BURST`] frames.
#[inline(always)]
pub(super) fn first(groups: &[Group; 3], frames: &[Headers], extras: &[Match], best: &mut Best) {
    widest(First { groups, frames, extras, best });
}

struct First<'a> {
    groups: &'a [Group; 3],
    frames: &'a [Headers],
    extras: &'a [Match],
    best: &'a mut Best,
}

impl Job for First<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let n = self.frames.len().min(BURST);
        let (frames, best) = (&self.frames[..n], &mut self.best[..n]);
        best.fill(NONE);
        let (mut any, mut common) = (0, u8::MAX);
        for h in frames {
            any |= h.family as u8;
            common &= h.family as u8;
        }
        if any == common {
            let group = &self.groups[any as usize];
            return match &group.few {
                Some(few) if n >= few::FRAMES => {
                    few.first::<L>(frames, u32::MAX >> (BURST - n), self.extras, best);
                }
                _ => group.first::<L>(frames, self.extras, best),
            };
        }
        for (family, group) in self.groups.iter().enumerate() {
            let mut of = 0u32;
            for (i, h) in frames.iter().enumerate() {
                of |= u32::from(h.family as usize == family) << i;
            }
            if let Some(few) = group.few.as_ref().filter(|_| of != 0) {
                few.first::<L>(frames, of, self.extras, best);
                continue;
            }
            while of != 0 {
                let i = of.trailing_zeros() as usize;
                group.first::<L>(&frames[i..=i], self.extras, &mut best[i..=i]);
                of &= of - 1;
            }
        }
    }
}

impl Group {
    /// The same for frames that are all of its family.
    #[inline(always)]
    fn first<L: Lanes>(&self, frames: &[Headers], extras: &[Match], best: &mut [u32]) {
        let mut at = [To::NOWHERE; BURST];
        for root in &self.roots {
            at.fill(*root);
            let mut going = root.is_node();
            while going {
                going = false;
                for (at, h) in at.iter_mut().zip(frames) {
                    if at.is_node() {
                        *at = self.step::<L>(*at, h);
                        going |= at.is_node();
                    }
                }
            }
            for ((at, h), best) in at.iter().zip(frames).zip(&mut *best) {
                if let Some(leaf) = at.leaf() {
                    self.scan::<L>(leaf, h, extras, |id| {
                        *best = id.min(*best);
                        false
                    });
                }
            }
        }
    }

    #[inline(always)]
    fn step<L: Lanes>(&self, at: To, h: &Headers) -> To {
        let node = &self.nodes[at.0 as usize & 0xff_ffff];
        let word = h.words[(at.0 as usize >> 24 & 31).min(WORDS - 1)];
        // The last bound is none.
        let reached = L::at_most(&node.bounds, word) & ((1 << (LANES - 1)) - 1);
        node.children[reached.count_ones() as usize & (LANES - 1)]
    }

    #[inline(always)]
    fn block(&self, number: usize) -> &[Row] {
        let rows = 2 * self.words.len() + 1;
        &self.rows[number * rows..][..rows]
    }

    /// A bit for each rule of a block whose ranges hold the frame's words.
    #[inline(always)]
    fn hits<L: Lanes>(&self, block: &[Row], h: &Headers) -> u32 {
        let mut hits = u32::MAX >> (32 - LANES);
        for (word, rows) in self.words.iter().zip(block.chunks_exact(2)) {
            hits = L::within(&rows[0].0, &rows[1].0, h.words[(*word as usize).min(WORDS - 1)], hits);
        }
        hits
    }

    /// Tells of the rules of a leaf that match, in their order, for as long as it is wanted.
    #[inline(always)]
    fn scan<L: Lanes>(&self, leaf: usize, h: &Headers, extras: &[Match], mut each: impl FnMut(u32) -> bool) {
        for number in leaf.. {
            let block = self.block(number);
            let mut hits = self.hits::<L>(block, h);
            let ids = &block[block.len() - 1].0;
            while hits != 0 {
                let id = ids[hits.trailing_zeros() as usize];
                if id == NONE {
                    break;
                }
                let rule = id & !(EXTRA | LAST);
                if (id & EXTRA == 0 || extras[rule as usize].matches(h)) && !each(rule) {
                    return;
                }
                hits &= hits - 1;
            }
            if ids[0] & LAST != 0 {
                return;
            }
        }
    }

    /// Every rule that matches, in no order.
    pub fn all(&self, h: &Headers, extras: &[Match], each: impl FnMut(u32)) {
        widest(All { group: self, h, extras, each });
    }

    pub fn memory(&self) -> usize {
        size_of_val(&*self.nodes) + size_of_val(&*self.rows)
    }
}

struct All<'a, F> {
    group: &'a Group,
    h: &'a Headers,
    extras: &'a [Match],
    each: F,
}

impl<F: FnMut(u32)> Job for All<'_, F> {
    #[inline(always)]
    fn run<L: Lanes>(mut self) {
        for root in &self.group.roots {
            let mut at = *root;
            while at.is_node() {
                at = self.group.step::<L>(at, self.h);
            }
            if let Some(leaf) = at.leaf() {
                self.group.scan::<L>(leaf, self.h, self.extras, |id| {
                    (self.each)(id);
                    true
                });
            }
        }
    }
}
