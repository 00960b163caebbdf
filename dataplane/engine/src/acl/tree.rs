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
//! flows; short lists too, before `few.rs` took them): 14, 23, 45, 54 to classify; `make bench SCENARIOS=acl` has the whole way, with headers and counters.
//! DPDK's rte_acl by its best method took 32, 32, 56 on the same rules and flows; at 10,000 it was still building
//! after 25 s, in 12 GB, where this takes 20 ms and 3 MiB. Kept: frames of one family together (a third less),
//! masks that stay in their registers. Not kept: prefetching of nodes and leaves (10 to 30 more: the processor is
//! ahead of it already).
//!
//! **Its worst case**: rules that overlap in every word can't be told apart by cuts. Then leaves grow, 16
//! rules costing some 10 cycles, but memory does not ([`super::build`] bounds it), and there is no cache to
//! be driven out of: every frame costs what a new flow costs.

use arrayvec::ArrayVec;

use super::{Match, few::Few};
use crate::{
    BURST,
    headers::{COLUMNS, Columns, Headers, bits},
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
    pub words: ArrayVec<u8, COLUMNS>,
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

/// Frames that rules are found for.
pub(crate) struct Asked<'a> {
    pub columns: &'a Columns,
    /// All that was read of one of them: rarely needed.
    pub row: &'a dyn Fn(usize) -> Headers,
    /// What each rule asks for beyond ranges.
    pub extras: &'a [Match],
}

impl Asked<'_> {
    /// Whether frame `i` is what a rule asks for beyond ranges.
    #[inline(never)]
    pub fn matches(&self, rule: u32, i: usize) -> bool {
        let extra = &self.extras[rule as usize];
        // No plain frame is a fragment: to see that, none is read again.
        let is_whole = self.columns.plain() >> i & 1 != 0;
        !(is_whole && extra.fragment == Some(true)) && extra.matches(&(self.row)(i))
    }

    #[inline(always)]
    fn word(&self, word: usize, i: usize) -> u32 {
        self.columns.word(word)[i & (BURST - 1)]
    }
}

/// Fills `best` for the frames whose bits are in `of`, with [`NONE`] for all others.
#[inline(always)]
pub(super) fn first(groups: &[Group; 3], asked: &Asked<'_>, of: u32, best: &mut Best) {
    widest(First { groups, asked, of, best });
}

struct First<'a, 'b> {
    groups: &'a [Group; 3],
    asked: &'a Asked<'b>,
    of: u32,
    best: &'a mut Best,
}

impl Job for First<'_, '_> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        self.best.fill(NONE);
        for (family, group) in self.groups.iter().enumerate() {
            let of = self.of & self.asked.columns.of_family(family);
            if of == 0 {
                continue;
            }
            match &group.few {
                Some(few) if few.is_for(of.count_ones()) => few.first::<L>(self.asked, of, self.best),
                _ => group.first::<L>(self.asked, of, self.best),
            }
        }
    }
}

impl Group {
    /// The same for frames that are all of its family.
    #[inline(always)]
    fn first<L: Lanes>(&self, asked: &Asked<'_>, of: u32, best: &mut Best) {
        let mut frames = ArrayVec::<u8, BURST>::new();
        for i in bits(of) {
            frames.push(i as u8);
        }
        let mut at = [To::NOWHERE; BURST];
        for root in &self.roots {
            at.fill(*root);
            let mut going = root.is_node();
            while going {
                going = false;
                for (at, i) in at.iter_mut().zip(&frames) {
                    if at.is_node() {
                        *at = self.step::<L>(*at, asked, usize::from(*i));
                        going |= at.is_node();
                    }
                }
            }
            for (at, i) in at.iter().zip(&frames) {
                if let Some(leaf) = at.leaf() {
                    let best = &mut best[usize::from(*i)];
                    self.scan::<L>(leaf, asked, usize::from(*i), |id| {
                        *best = id.min(*best);
                        false
                    });
                }
            }
        }
    }

    #[inline(always)]
    fn step<L: Lanes>(&self, at: To, asked: &Asked<'_>, i: usize) -> To {
        let node = &self.nodes[at.0 as usize & 0xff_ffff];
        let word = asked.word(at.0 as usize >> 24 & 31, i);
        // The last bound is none.
        let reached = L::at_most(&node.bounds, word) & ((1 << (LANES - 1)) - 1);
        node.children[reached.count_ones() as usize & (LANES - 1)]
    }

    #[inline(always)]
    fn block(&self, number: usize) -> &[Row] {
        let rows = 2 * self.words.len() + 1;
        &self.rows[number * rows..][..rows]
    }

    /// A bit for each rule of a block whose ranges hold the words of frame `i`.
    #[inline(always)]
    fn hits<L: Lanes>(&self, block: &[Row], asked: &Asked<'_>, i: usize) -> u32 {
        let mut hits = u32::MAX >> (32 - LANES);
        for (word, rows) in self.words.iter().zip(block.chunks_exact(2)) {
            hits = L::within(&rows[0].0, &rows[1].0, asked.word(usize::from(*word), i), hits);
        }
        hits
    }

    /// Tells of the rules of a leaf that match frame `i`, in their order, for as long as it is wanted.
    #[inline(always)]
    fn scan<L: Lanes>(&self, leaf: usize, asked: &Asked<'_>, i: usize, mut each: impl FnMut(u32) -> bool) {
        for number in leaf.. {
            let block = self.block(number);
            let mut hits = self.hits::<L>(block, asked, i);
            let ids = &block[block.len() - 1].0;
            while hits != 0 {
                let id = ids[hits.trailing_zeros() as usize];
                if id == NONE {
                    break;
                }
                let rule = id & !(EXTRA | LAST);
                if (id & EXTRA == 0 || asked.matches(rule, i)) && !each(rule) {
                    return;
                }
                hits &= hits - 1;
            }
            if ids[0] & LAST != 0 {
                return;
            }
        }
    }

    /// Every rule that matches frame `i`, in no order.
    pub fn all(&self, asked: &Asked<'_>, i: usize, each: impl FnMut(u32)) {
        widest(All { group: self, asked, i, each });
    }

    pub fn memory(&self) -> usize {
        size_of_val(&*self.nodes) + size_of_val(&*self.rows)
    }
}

struct All<'a, 'b, F> {
    group: &'a Group,
    asked: &'a Asked<'b>,
    i: usize,
    each: F,
}

impl<F: FnMut(u32)> Job for All<'_, '_, F> {
    #[inline(always)]
    fn run<L: Lanes>(mut self) {
        for root in &self.group.roots {
            let mut at = *root;
            while at.is_node() {
                at = self.group.step::<L>(at, self.asked, self.i);
            }
            if let Some(leaf) = at.leaf() {
                self.group.scan::<L>(leaf, self.asked, self.i, |id| {
                    (self.each)(id);
                    true
                });
            }
        }
    }
}
