//! Building the trees that [`super::tree`] walks.
//!
//! A node cuts where it leaves the least work, by the ends of its rules' ranges. A rule that goes over a cut
//! is in both parts, so rules of many sorts (some by source alone, some by destination alone) would be copied
//! into each other's parts. When that takes more than the budget, or is no use, so that a leaf grows, those that are narrow
//! in one word get a tree of their own, and so on with the tree that has the largest leaf then, up to six trees: each
//! costs every frame a way down.
//! Half by source and half by destination, 1,000 rules took 158 ns a frame in one leaf and take 21 in two trees; 10,000
//! rules 1,580 and 37.

use std::cmp::Reverse;

use arrayvec::ArrayVec;

use super::{
    linear::Linear,
    tree::{EXTRA, Group, LAST, NONE, Node, Row, To, Tree},
};
use crate::{
    intrinsics::LANES,
    packet::headers::{COLUMNS, DPORT, DST, DST_MAC, DST6, SPORT, SRC, SRC_MAC, SRC6, VLAN},
};

/// Copies of rules, for each rule and for all, above which trees are parted: what stays within a core's cache.
const COPIES_EACH: usize = 8;
const COPIES: usize = 16_384;
/// The same for the last try.
const COPIES_LAST: usize = 32;
/// Rules times words that a try looks at for where to cut, for each rule and for all: mixed rules take 35 each, and one
/// look some 20 ns. Who wants to can make rules that take much more.
const WORK_EACH: usize = 64;
const WORK: usize = 1 << 20;
const MAX_DEPTH: usize = 12;
/// The most trees.
pub(super) const TREES: usize = 6;
/// A leaf of more blocks has rules that no cut separates: then another parting is tried.
const SMALL_LEAF: usize = 2;
/// Of so many rules at a node, some are asked where to cut.
const SAMPLE: usize = 512;
/// A range is narrow that is less than one in so many of all.
const NARROW: u32 = 64;

/// What rules are parted by first.
const ADDRESSES: [usize; 12] =
    [DST, SRC, DST6, DST6 + 1, DST6 + 2, SRC6, SRC6 + 1, SRC6 + 2, DST_MAC, DST_MAC + 1, SRC_MAC, SRC_MAC + 1];
/// What they are parted by if addresses don't tell many apart.
const OTHERS: [usize; 3] = [DPORT, SPORT, VLAN];

/// A rule: its place, and what it asks of each word.
pub(super) struct Item {
    id: u32,
    extra: bool,
    low: [u32; COLUMNS],
    high: [u32; COLUMNS],
}

impl Item {
    pub fn new(id: u32, extra: bool, ranges: &[(usize, u32, u32)]) -> Self {
        let mut item = Item { id, extra, low: [0; COLUMNS], high: [u32::MAX; COLUMNS] };
        for (word, low, high) in ranges {
            (item.low[*word], item.high[*word]) = (*low, *high);
        }
        item
    }

    /// What it asks of a word: whatever it is, from 0 to the most.
    pub fn range(&self, word: usize) -> (u32, u32) {
        (self.low[word], self.high[word])
    }

    /// Whether it asks nothing of a word that a cell does not say already.
    fn holds(&self, word: usize, cell: &Cell) -> bool {
        self.low[word] <= cell.low[word] && self.high[word] >= cell.high[word]
    }

    /// Its place, and whether it asks for more than ranges.
    pub fn id_and_extra(&self) -> u32 {
        self.id | if self.extra { EXTRA } else { 0 }
    }

    fn is_narrow(&self, word: usize) -> bool {
        let all = match word {
            SPORT | DPORT | VLAN => 0xffff,
            // Addresses of layer 2 have their lower 16 bits in a word of their own.
            w if w == SRC_MAC + 1 || w == DST_MAC + 1 => 0xffff,
            _ => u32::MAX,
        };
        self.high[word] - self.low[word] < all / NARROW
    }
}

/// The trees for these rules, which are in their order; `first` if only the first that matches is asked for.
pub(super) fn group(items: &[Item], first: bool) -> Group {
    let mut best: Option<Builder<'_>> = None;
    let mut parts: Vec<Vec<u32>> = vec![(0..items.len() as u32).collect()];
    let mut last = false;
    loop {
        let mut built = Builder::new(items, first, last);
        let is_whole = parts.iter().try_for_each(|rules| built.tree(rules)).is_some();
        let is_done = last || (is_whole && built.is_good()) || !part(items, &mut parts, &built.biggest);
        if is_whole {
            best = best.into_iter().chain([built]).min_by_key(Builder::cost);
        }
        if is_done && is_whole {
            break;
        }
        last = is_done;
    }
    let mut group = best.expect("the last try takes what comes").group;
    group.few = if first { Linear::new(items) } else { None };
    group
}

/// Parts once more the part whose tree has the largest leaf, of those that were begun, or the next one after it that
/// can be; whether there is one.
fn part(items: &[Item], parts: &mut Vec<Vec<u32>>, biggest: &[usize]) -> bool {
    if parts.len() == TREES {
        return false;
    }
    let mut worst: Vec<usize> = (0..biggest.len()).filter(|i| biggest[*i] > SMALL_LEAF).collect();
    worst.sort_by_key(|i| Reverse(biggest[*i]));
    let Some((at, word)) = worst.into_iter().find_map(|i| Some((i, telling_apart(items, &parts[i])?))) else {
        return false;
    };
    let (its_own, others) = parts[at].iter().copied().partition(|r| items[*r as usize].is_narrow(word));
    parts[at] = its_own;
    parts.push(others);
    true
}

/// The first word in which most rules are narrow, but not all, each in another place, if those are many.
fn telling_apart(items: &[Item], rules: &[u32]) -> Option<usize> {
    let places = |word: usize| {
        let narrow = rules.iter().map(|r| &items[*r as usize]).filter(|i| i.is_narrow(word));
        let mut lows: Vec<u32> = narrow.map(|i| i.low[word]).collect();
        if lows.len() == rules.len() {
            return 0;
        }
        lows.sort_unstable();
        lows.dedup();
        lows.len()
    };
    let most = |words: &[usize]| {
        let many = words.iter().map(|w| (places(*w), *w)).filter(|(n, _)| *n > LANES);
        many.min_by_key(|(n, _)| Reverse(*n)).map(|(_, w)| w)
    };
    most(&ADDRESSES).or_else(|| most(&OTHERS))
}

/// The part of all frames that a node is asked about.
#[derive(Clone)]
struct Cell {
    low: [u32; COLUMNS],
    high: [u32; COLUMNS],
}

impl Cell {
    const ALL: Cell = Cell { low: [0; COLUMNS], high: [u32::MAX; COLUMNS] };
}

/// A word, where to cut it, and what that costs.
struct Cut {
    word: usize,
    bounds: ArrayVec<u32, { LANES - 1 }>,
    cost: f64,
}

struct Builder<'a> {
    items: &'a [Item],
    /// The words that any rule of the tree asks about.
    words: ArrayVec<u8, COLUMNS>,
    group: Group,
    first: bool,
    /// Copies of rules that may still be made.
    budget: usize,
    /// Rules times words that may still be looked at.
    work: usize,
    /// Leaves grow when either is spent; otherwise it is given up.
    last: bool,
    /// Of each tree that was begun, the most blocks of a leaf.
    biggest: ArrayVec<usize, TREES>,
}

impl<'a> Builder<'a> {
    /// Of no tree yet. The `last` try has room for more copies, and takes leaves as they come when
    /// either is spent.
    fn new(items: &'a [Item], first: bool, last: bool) -> Self {
        // Node 0 is nowhere.
        let nodes = vec![Node { bounds: [u32::MAX; LANES], children: [To::NOWHERE; LANES] }];
        let group = Group { nodes, ..Group::default() };
        let each = if last { COPIES_LAST } else { COPIES_EACH };
        let (budget, work) = (each * items.len() + COPIES, WORK_EACH * items.len() + WORK);
        Builder { items, words: ArrayVec::new(), group, first, budget, work, last, biggest: ArrayVec::new() }
    }

    fn is_good(&self) -> bool {
        self.biggest.iter().all(|b| *b <= SMALL_LEAF)
    }

    /// In blocks, what the frame pays that pays most: the way down costs about as much as one.
    fn cost(&self) -> usize {
        self.biggest.iter().map(|b| 1 + b).sum()
    }

    /// A tree of these rules; `None` if the budget or the work is spent.
    fn tree(&mut self, rules: &[u32]) -> Option<()> {
        let asked = |w: &u8| rules.iter().any(|r| !self.items[*r as usize].holds(usize::from(*w), &Cell::ALL));
        self.words = (0..COLUMNS as u8).filter(asked).collect();
        self.biggest.push(0);
        let root = self.node(rules.to_vec(), Cell::ALL, 0)?;
        self.group.trees.push(Tree { root, words: self.words.clone() });
        Some(())
    }

    /// The way to these rules within a cell; `None` if the budget or the work is spent.
    fn node(&mut self, mut rules: Vec<u32>, cell: Cell, depth: usize) -> Option<To> {
        // Nothing is behind a rule that takes all there is.
        let all = |i: &u32| self.takes_all(&self.items[*i as usize], &cell);
        if self.first
            && let Some(last) = rules.iter().position(all)
        {
            rules.truncate(last + 1);
        }
        if rules.is_empty() {
            return Some(To::NOWHERE);
        }
        let is_small = rules.len() <= LANES || depth == MAX_DEPTH;
        if !is_small {
            self.work = self.work.saturating_sub(rules.len() * self.words.len());
        }
        let is_spent = self.work == 0 || self.budget == 0;
        if is_spent && !self.last {
            // Of this tree nothing is known but that it is too large.
            self.biggest.last_mut().into_iter().for_each(|b| *b = usize::MAX);
            return None;
        }
        let cut = if is_small || is_spent { None } else { self.best_cut(&rules, &cell) };
        let Some(cut) = cut else { return Some(self.leaf(&rules)) };
        let number = self.group.nodes.len();
        self.group.nodes.push(Node { bounds: [u32::MAX; LANES], children: [To::NOWHERE; LANES] });
        let mut children = [To::NOWHERE; LANES];
        for (i, child) in children.iter_mut().enumerate().take(cut.bounds.len() + 1) {
            let mut part = cell.clone();
            if i > 0 {
                part.low[cut.word] = cut.bounds[i - 1];
            }
            if let Some(next) = cut.bounds.get(i) {
                part.high[cut.word] = next - 1;
            }
            let (low, high) = (part.low[cut.word], part.high[cut.word]);
            let items = self.items;
            let within =
                |r: &&u32| items[**r as usize].low[cut.word] <= high && items[**r as usize].high[cut.word] >= low;
            let inside: Vec<u32> = rules.iter().filter(within).copied().collect();
            *child = self.node(inside, part, depth + 1)?;
        }
        // The largest word of all reaches the bounds that are none too.
        let last = children[cut.bounds.len()];
        children[cut.bounds.len()..].fill(last);
        let node = &mut self.group.nodes[number];
        node.bounds[..cut.bounds.len()].copy_from_slice(&cut.bounds);
        node.children = children;
        Some(To::node(cut.word, number))
    }

    fn takes_all(&self, item: &Item, cell: &Cell) -> bool {
        !item.extra && self.words.iter().all(|w| item.holds(usize::from(*w), cell))
    }

    /// Where to cut, if that makes less of it.
    fn best_cut(&self, rules: &[u32], cell: &Cell) -> Option<Cut> {
        let cuts = self.words.iter().filter_map(|w| self.cut(usize::from(*w), rules, cell));
        let best = cuts.min_by(|a, b| a.cost.total_cmp(&b.cost))?;
        // At least an eighth of the rules must be gone from where a frame gets to.
        (best.cost < rules.len() as f64 * 0.875).then_some(best)
    }

    /// Cuts a word's range at the ends of the rules' ranges, as many between any two.
    fn cut(&self, word: usize, rules: &[u32], cell: &Cell) -> Option<Cut> {
        let (low, high) = (cell.low[word], cell.high[word]);
        let step = rules.len().div_ceil(SAMPLE);
        let mut ends: Vec<u32> = Vec::with_capacity(2 * rules.len().min(SAMPLE));
        for r in rules.iter().step_by(step) {
            let item = &self.items[*r as usize];
            ends.extend((item.low[word] > low).then_some(item.low[word]));
            ends.extend((item.high[word] < high).then(|| item.high[word] + 1));
        }
        if ends.is_empty() {
            return None;
        }
        ends.sort_unstable();
        let distinct = 1 + ends.windows(2).filter(|w| w[0] != w[1]).count();
        let mut bounds = ArrayVec::new();
        if distinct < LANES {
            ends.dedup();
            bounds.extend(ends);
        } else {
            for i in 1..LANES {
                let end = ends[i * ends.len() / LANES];
                if bounds.last().is_none_or(|b| *b < end) {
                    bounds.push(end);
                }
            }
        }
        let mut sizes = [0i64; LANES + 1];
        for r in rules {
            let item = &self.items[*r as usize];
            let child = |v: u32| bounds.iter().filter(|b| **b <= v).count();
            sizes[child(item.low[word].max(low))] += 1;
            sizes[child(item.high[word].min(high)) + 1] -= 1;
        }
        // What a frame is left with, if it is where the rules are.
        let (mut here, mut sum, mut squares) = (0i64, 0.0, 0.0);
        for s in &sizes[..=bounds.len()] {
            here += s;
            sum += here as f64;
            squares += (here * here) as f64;
        }
        // Copies are work for another frame's cache.
        let copies = (sum / rules.len() as f64).max(1.0);
        Some(Cut { word, bounds, cost: squares / sum * copies.powf(0.25) })
    }

    fn leaf(&mut self, rules: &[u32]) -> To {
        self.budget = self.budget.saturating_sub(rules.len().next_multiple_of(LANES));
        let first = self.group.rows.len();
        self.biggest.last_mut().into_iter().for_each(|b| *b = rules.len().div_ceil(LANES).max(*b));
        let mut blocks = rules.chunks(LANES).peekable();
        while let Some(block) = blocks.next() {
            for word in self.words.iter().map(|w| usize::from(*w)) {
                let (mut lows, mut widths) = ([u32::MAX; LANES], [0; LANES]);
                for (i, r) in block.iter().enumerate() {
                    let item = &self.items[*r as usize];
                    (lows[i], widths[i]) = (item.low[word], item.high[word] - item.low[word]);
                }
                self.group.rows.extend([Row(lows), Row(widths)]);
            }
            let mut ids = [NONE; LANES];
            for (id, r) in ids.iter_mut().zip(block) {
                let item = &self.items[*r as usize];
                *id = item.id_and_extra();
            }
            if blocks.peek().is_none() {
                ids[0] |= LAST;
            }
            self.group.rows.push(Row(ids));
        }
        To::blocks(first)
    }
}
