//! Finding the first rule that matches: trees that cut one word's range into at most 16 parts at a node,
//! and blocks of 16 rules at the leaves, all of which are compared at once.
//!
//! **A frame's way**: at each node one cache line of bounds is compared with one word, and how many of them
//! it reaches says which child; three nodes are enough for 10,000 rules. At the first node, where all frames begin, a
//! whole chunk of a burst is compared with each bound. At the leaf, for each word that any rule of the tree asks about, 16 lower
//! ends and 16 widths are compared with it; what is left after all words is a bit for each rule that matches, the first
//! rule lowest. All frames of a chunk go down before the first leaf is compared.
//!
//! **Measured** (TSC cycles a frame, 10, 100, 1,000, 10,000 rules of mixed kinds of which the last matches, random
//! flows): 14, 23, 45, 54 to classify at first, short lists too, before `few.rs` took them; `make bench SCENARIOS=acl`
//! has the whole way, with headers and counters. DPDK's rte_acl by its best method took 32, 32, 56 on the same rules and
//! flows; at 10,000 it was still building after 25 s, in 12 GB, where this takes 20 ms and 3 MiB. Since then, in ns a frame
//! of the whole way in the engine's benchmark: ways and leaves compiled apart, the first node by bursts, and each tree
//! with its own words, 29.7 to 25.3 at 1,000 rules; the number of words known to the compiler, 22.6; each frame down
//! by itself, 21.6 (34 to 26.5 at 10,000). Kept before: frames of one family together (a third less), masks that stay in
//! their registers. Not kept: prefetching of nodes and leaves (10 to 30 cycles more: the processor is ahead of it
//! already); ranges of 16 bits in half the lines (nothing: instructions are what costs); words left out leaf by leaf
//! (10 more: how many there are can't be foreseen).
//!
//! **Its worst case**: rules that overlap in every word can't be told apart by cuts. Then leaves grow, 16
//! rules costing some 10 cycles, but memory does not ([`super::build`] bounds it), and there is no cache to
//! be driven out of: every frame costs what a new flow costs.

use arrayvec::ArrayVec;

use super::{Match, build::TREES, linear::Linear};
use crate::{
    burst::{CHUNK, ChunkMask as Mask, iter_bits},
    intrinsics::{LANES, Lanes, SimdKernel, dispatch_simd},
    packet::headers::{COLUMNS, HeaderBatch, Headers},
};

/// No rule.
pub(crate) const NONE: u32 = u32::MAX;

/// Where a way down leads: nowhere (0); bit 31 clear, to a node: a word's number in bits 24 to 28, the
/// node's in the lower 24; bit 31 set, to blocks, the number of the first one's first row in the bits below.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct To(u32);

impl To {
    pub const NOWHERE: To = To(0);

    pub fn node(word: usize, number: usize) -> To {
        debug_assert!(number > 0 && number < 1 << 24);
        To((word as u32) << 24 | number as u32)
    }

    pub fn blocks(row: usize) -> To {
        debug_assert!(row < 1 << 31);
        To(1 << 31 | row as u32)
    }

    #[inline(always)]
    fn is_node(self) -> bool {
        self.0 >> 31 == 0 && self.0 != 0
    }

    /// The number of the blocks' first row.
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

/// Some of the rules: where the way to them begins, and the words that any of them asks about.
pub(super) struct Tree {
    pub root: To,
    pub words: ArrayVec<u8, COLUMNS>,
}

/// The rules for one family of frames.
#[derive(Default)]
pub(super) struct Group {
    pub trees: ArrayVec<Tree, TREES>,
    pub nodes: Vec<Node>,
    /// Blocks: for each word of their tree a row of lower ends and one of widths, then a row of rules, [`NONE`] where
    /// there is none; [`EXTRA`] is set for those that ask for more, [`LAST`] for the first of a leaf's last block.
    pub rows: Vec<Row>,
    /// The same for bursts, if the rules are few.
    pub few: Option<Linear>,
}

/// The rule asks for more than ranges.
pub(super) const EXTRA: u32 = 1 << 31;
/// The block is its leaf's last.
pub(super) const LAST: u32 = 1 << 30;

/// The first rule of each frame of a chunk.
pub(crate) type Best = [u32; CHUNK];

/// Frames that rules are found for.
pub(crate) struct Asked<'a> {
    pub columns: &'a HeaderBatch,
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
        self.columns.word(word)[i & (CHUNK - 1)]
    }
}

/// Fills `best` for the frames whose bits are in `of`, with [`NONE`] for all others.
pub(super) fn first(groups: &[Group; 3], asked: &Asked<'_>, of: Mask, best: &mut Best) {
    best.fill(NONE);
    for (family, group) in groups.iter().enumerate() {
        let of = of & asked.columns.of_family(family);
        match &group.few {
            _ if of == 0 => {}
            Some(few) if few.is_for(of.count_ones()) => few.first(asked, of, best),
            _ => group.first(asked, of, best),
        }
    }
}

impl Tree {
    #[inline(always)]
    fn columns<'a>(&self, asked: &Asked<'a>) -> ArrayVec<&'a [u32; CHUNK], COLUMNS> {
        let mut columns = ArrayVec::new();
        for word in &self.words {
            columns.push(asked.columns.word(usize::from(*word)));
        }
        columns
    }
}

impl Group {
    /// Fills `best` for frames that are all of its family.
    fn first(&self, asked: &Asked<'_>, of: Mask, best: &mut Best) {
        for tree in &self.trees {
            let mut at = [tree.root; CHUNK];
            // Each by itself: together they had too few registers.
            dispatch_simd(Descend { group: self, asked, of, at: &mut at });
            dispatch_simd(Scan { group: self, asked, of, at: &at, tree, best });
        }
    }

    /// What is there, and the word that it cuts.
    #[inline(always)]
    fn node(&self, at: To) -> (&Node, usize) {
        (&self.nodes[at.0 as usize & 0xff_ffff], at.0 as usize >> 24 & 31)
    }

    #[inline(always)]
    fn step<L: Lanes>(&self, at: To, asked: &Asked<'_>, i: usize) -> To {
        let (node, word) = self.node(at);
        // The last bound is none.
        let reached = L::at_most(&node.bounds, asked.word(word, i)) & ((1 << (LANES - 1)) - 1);
        node.children[reached.count_ones() as usize & (LANES - 1)]
    }

    /// Reports the rules of a leaf, from a row on, that match frame `i`, in their order, for as long as it is wanted.
    #[inline(always)]
    fn scan<L: Lanes>(
        &self,
        (mut row, columns): (usize, &[&[u32; CHUNK]]),
        asked: &Asked<'_>,
        i: usize,
        mut each: impl FnMut(u32) -> bool,
    ) {
        while let Some([ranges @ .., Row(ids)]) = self.rows.get(row..row + 2 * columns.len() + 1) {
            row += 2 * columns.len() + 1;
            // A bit for each rule whose ranges hold the frame's words.
            let mut hits = u32::MAX >> (32 - LANES);
            for (column, [low, width]) in columns.iter().zip(ranges.as_chunks().0) {
                hits = L::within(&low.0, &width.0, column[i], hits);
            }
            while hits != 0 {
                let id = ids[hits.trailing_zeros() as usize % LANES];
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
        dispatch_simd(All { group: self, asked, i, each });
    }

    pub fn memory(&self) -> usize {
        size_of_val(&*self.nodes) + size_of_val(&*self.rows)
    }
}

/// Takes the frames, which are all at the root, to their leaves.
struct Descend<'a, 'b> {
    group: &'a Group,
    asked: &'a Asked<'b>,
    of: Mask,
    at: &'a mut [To; CHUNK],
}

impl SimdKernel for Descend<'_, '_> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Descend { group, asked, of, at } = self;
        if !at[0].is_node() {
            return;
        }
        let (node, word) = group.node(at[0]);
        let mut reached = [0; CHUNK];
        for bound in &node.bounds[..LANES - 1] {
            for (reached, x) in reached.iter_mut().zip(asked.columns.word(word)) {
                *reached += u32::from(bound <= x);
            }
        }
        for (at, reached) in at.iter_mut().zip(&reached) {
            *at = node.children[*reached as usize % LANES];
        }
        for i in iter_bits(of) {
            while at[i].is_node() {
                at[i] = group.step::<L>(at[i], asked, i);
            }
        }
    }
}

/// Finds the first rule of each frame's leaf.
struct Scan<'a, 'b> {
    group: &'a Group,
    asked: &'a Asked<'b>,
    of: Mask,
    at: &'a [To; CHUNK],
    tree: &'a Tree,
    best: &'a mut Best,
}

impl SimdKernel for Scan<'_, '_> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let columns = self.tree.columns(self.asked);
        // With a number of words that is known here.
        match columns.as_slice() {
            &[a, b, c] => self.compare::<L>(&[a, b, c]),
            &[a, b, c, d] => self.compare::<L>(&[a, b, c, d]),
            &[a, b, c, d, e] => self.compare::<L>(&[a, b, c, d, e]),
            columns => self.compare::<L>(columns),
        }
    }
}

impl Scan<'_, '_> {
    #[inline(always)]
    fn compare<L: Lanes>(self, columns: &[&[u32; CHUNK]]) {
        for i in iter_bits(self.of) {
            if let Some(row) = self.at[i].leaf() {
                self.group.scan::<L>((row, columns), self.asked, i, |id| {
                    self.best[i] = id.min(self.best[i]);
                    false
                });
            }
        }
    }
}

struct All<'a, 'b, F> {
    group: &'a Group,
    asked: &'a Asked<'b>,
    i: usize,
    each: F,
}

impl<F: FnMut(u32)> SimdKernel for All<'_, '_, F> {
    #[inline(always)]
    fn run<L: Lanes>(mut self) {
        for tree in &self.group.trees {
            let mut at = tree.root;
            while at.is_node() {
                at = self.group.step::<L>(at, self.asked, self.i);
            }
            if let Some(row) = at.leaf() {
                self.group.scan::<L>((row, &tree.columns(self.asked)), self.asked, self.i, |id| {
                    (self.each)(id);
                    true
                });
            }
        }
    }
}
