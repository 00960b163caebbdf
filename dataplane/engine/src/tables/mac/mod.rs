//! The mac table: which port an address of a segment is behind. One table for all bridges, read
//! and learned in place by all workers, with no lock on the way of a frame.
//!
//! **Shape.** Buckets of one cache line: eight entries of one word. An entry lives in one of two buckets that its
//! hash names; the second is read only when the first does not hold it, which is one time in hundreds. There are at least twice as
//! many slots as the table's capacity, so that two buckets are hardly ever full together; when
//! they are, one resident moves to its other bucket. The sweep brings entries back to their first bucket once that has
//! room, as after the table grew.
//!
//! **One word** has all: MAC and segment have 64 bits, and so has their hash, which can be undone. Its bits that name
//! the bucket need not be kept in the entry: in their place are port and state. See `word.rs`. So an entry is
//! entered, changed and removed by one compare-and-swap, and read whole. Two workers that learn one address at the same instant
//! may enter it twice; readers then see the first, and the sweep removes the second. Who does not
//! find a key searches again if any entry was moved meanwhile, so that it is found at every moment.
//!
//! **Age.** A frame's source is marked as seen when it is not marked already; the sweep takes the mark off and notes
//! the second beside the table. So a station that talks costs one write a sweep, lines of busy
//! addresses stay shared, and ages are as exact as sweeps are frequent.
//!
//! **Hash**: two multiplications by random odd numbers, because guests choose their addresses: with a fixed hash they
//! could choose each other's buckets too. One would do for addresses at random; but those that are counted up, as orchestrators
//! hand them out, crowd in few buckets with one such number in thirty, and a crowded bucket costs more than the
//! cycle a frame that the second takes.
//!
//! **It grows.** Memory for the capacity is there from the start, but only so many buckets are in
//! use as hold the entries at four a bucket: see `grow.rs`. A host with few stations keeps them in
//! the cache, and in few pages, however large the table may become.
//!
//! **When it is full** the port that holds most pays: see `evict.rs`. A burst evicts one entry at most, so that a port
//! that brings ever new addresses costs its worker little more than one whose addresses are known.

mod evict;
mod grow;
#[cfg(all(test, feature = "shuttle"))]
mod interleavings;
mod sweep;
#[cfg(test)]
mod tests;
mod view;
mod word;

use std::{
    ops::Range,
    sync::atomic::{
        Ordering::{AcqRel, Acquire, Relaxed},
        fence,
    },
};

pub use crate::types::{Hash, Key};
use crate::{
    MAX_PORTS, PortIdx,
    atomic::{AtomicU32, AtomicU64},
    intrinsics::{Bucket64, zeroed},
};
use grow::{Growth, START};
pub use sweep::Entry;
pub use view::View;
use view::find;
use word::{State, Word, inverse};

const WAYS: usize = 8;
/// How often a key is searched at most while others move.
const SEARCHES: usize = 16;
/// Octets of a large page, as x86-64 has them.
const PAGE: usize = 2 << 20;

/// What learning an address came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Learned {
    /// It was known at this port (or is static, which learning does not touch).
    Known,
    /// It is new.
    New,
    /// It was at another port until now.
    Moved {
        /// That port.
        from: PortIdx,
    },
    /// The port is at its limit; nothing changed.
    Limited,
    /// The table is full and this port has no claim on another's entry, or may not evict one now; nothing changed.
    Full,
}

/// What can be counted about the table as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Statistics {
    /// Entries now.
    pub entries: u64,
    /// The most there may be.
    pub capacity: u64,
    /// Addresses learned since start.
    pub learned: u64,
    /// Moves between ports since start.
    pub moves: u64,
    /// Entries removed because they were not seen for the ageing time.
    pub aged: u64,
    /// Entries removed to make room.
    pub evictions: u64,
    /// Addresses not learned because the table was full.
    pub refused_full: u64,
    /// Addresses not learned because their port was at its limit.
    pub refused_limit: u64,
}

/// The slots of a bucket.
fn slots_of(bucket: usize) -> Range<usize> {
    bucket * WAYS..(bucket + 1) * WAYS
}

/// See the module.
pub struct MacTable {
    /// The buckets from [`Self::aligned`] on.
    lines: Box<[Bucket64]>,
    aligned: usize,
    /// When the sweep last found the entry of a slot marked as seen. (Of two quiet entries that are moved to one empty slot at the
    /// same instant, the one that has it then may have the other's.)
    stamps: Box<[AtomicU32]>,
    growth: Growth,
    seed: [u64; 2],
    inverse: [u64; 2],
    capacity: u32,
    total: AtomicU32,
    per_port: Box<[AtomicU32]>,
    learned: AtomicU64,
    moves: AtomicU64,
    aged: AtomicU64,
    evictions: AtomicU64,
    refused_full: AtomicU64,
    refused_limit: AtomicU64,
    sweep_at: AtomicU64,
}

impl MacTable {
    /// The smallest capacity: with fewer, who is to make room would be hard to find among all slots.
    pub const MIN_CAPACITY: u32 = 8_192;
    /// The largest capacity.
    pub const MAX_CAPACITY: u32 = 1_000_000;

    /// A table for `capacity` entries, [`Self::MIN_CAPACITY`] to [`Self::MAX_CAPACITY`] (values outside are brought
    /// into the range). 24 to 48 octets of memory for each, at least 3 MiB, and 2 MiB
    /// to begin at a page. `seed` should be random: two words with
    /// all bits equally likely.
    pub fn new(capacity: u32, seed: [u64; 2]) -> Self {
        let capacity = capacity.clamp(Self::MIN_CAPACITY, Self::MAX_CAPACITY);
        let buckets = (capacity as usize * 2).div_ceil(WAYS).next_power_of_two().max(START);
        // From the beginning of a page on: as few of them as can be.
        let lines = zeroed::<Bucket64>(buckets + PAGE / size_of::<Bucket64>());
        // Even multipliers would lose the key's high bits.
        let seed = seed.map(|s| s | 1);
        MacTable {
            aligned: lines.as_ptr().align_offset(PAGE).min(lines.len() - buckets),
            lines,
            stamps: zeroed(buckets * WAYS),
            growth: Growth::new(buckets),
            seed,
            inverse: seed.map(inverse),
            capacity,
            total: AtomicU32::new(0),
            per_port: (0..MAX_PORTS).map(|_| AtomicU32::new(0)).collect(),
            learned: AtomicU64::new(0),
            moves: AtomicU64::new(0),
            aged: AtomicU64::new(0),
            evictions: AtomicU64::new(0),
            refused_full: AtomicU64::new(0),
            refused_limit: AtomicU64::new(0),
            sweep_at: AtomicU64::new(0),
        }
    }

    /// Where its buckets are in memory, in octets: for a caller that can ask for larger pages there.
    pub fn memory(&self) -> (*const u8, usize) {
        let buckets = self.buckets(self.stamps.len() / WAYS);
        (buckets.as_ptr().cast(), size_of_val(buckets))
    }

    /// The first `n` buckets.
    #[inline(always)]
    fn buckets(&self, n: usize) -> &[Bucket64] {
        &self.lines[self.aligned..][..n]
    }

    /// For lookups, a whole burst of them.
    #[inline(always)]
    pub fn view(&self) -> View<'_> {
        let buckets = self.buckets(self.growth.in_use());
        // Known here, it need not be checked for each frame.
        assert!(!buckets.is_empty());
        View { buckets, seed: self.seed }
    }

    /// See [`View::hash`].
    pub fn hash(&self, key: Key) -> Hash {
        self.view().hash(key)
    }

    /// The port that the key of `hash` is behind, wherever the entry is while the table grows.
    pub fn lookup(&self, hash: Hash) -> Option<PortIdx> {
        self.find_anywhere(hash).map(|(_, w)| w.port())
    }

    /// Whether a new address needs the place of another one.
    #[inline(always)]
    pub fn is_at_capacity(&self) -> bool {
        self.total.load(Relaxed) >= self.capacity
    }

    /// Notes that the key of `hash` sends from `port`. `limit`: the most addresses the port may have learned. At capacity,
    /// another entry is evicted only if `may_evict`: to find it costs as much as to forward many frames.
    pub fn learn(&self, hash: Hash, port: PortIdx, limit: Option<u32>, may_evict: bool) -> Learned {
        let fresh = Word::template(port, State::Referenced).with_key(Word::in_first(hash));
        let mut searches = 1..SEARCHES;
        while let Some((slot, w)) = self.find_anywhere(hash) {
            if w.is(State::Static) {
                return Learned::Known;
            }
            if w.port() == port {
                // Whoever loses this race lost it to another worker, a move or a removal: all fine.
                if !w.is(State::Referenced) {
                    self.change(slot, w, w.with(State::Referenced));
                }
                return Learned::Known;
            }
            if self.over_limit(port, limit) {
                return Learned::Limited;
            }
            if self.change(slot, w, fresh.with_key(w)) {
                self.moves.fetch_add(1, Relaxed);
                return Learned::Moved { from: w.port() };
            }
            // The sweep took its mark off, or another worker was faster.
            if searches.next().is_none() {
                return Learned::Known;
            }
        }
        if self.over_limit(port, limit) {
            return Learned::Limited;
        }
        if (may_evict || !self.is_at_capacity()) && self.insert(hash, fresh) {
            self.learned.fetch_add(1, Relaxed);
            Learned::New
        } else {
            Learned::Full
        }
    }

    /// Counts addresses that were not learned because the table is full: those of a burst at once, since all workers count
    /// here.
    pub fn count_refused(&self, n: u64) {
        self.refused_full.fetch_add(n, Relaxed);
    }

    /// Whether [`MacTable::learn`] would not learn it because of the limit.
    pub fn is_too_many(&self, hash: Hash, port: PortIdx, limit: Option<u32>) -> bool {
        let stays = self.find_anywhere(hash).is_some_and(|(_, w)| w.is(State::Static) || w.port() == port);
        !stays && self.is_full(port, limit)
    }

    /// Whether it was entered by configuration.
    pub fn is_static(&self, hash: Hash) -> bool {
        self.find_anywhere(hash).is_some_and(|(_, w)| w.is(State::Static))
    }

    fn is_full(&self, port: PortIdx, limit: Option<u32>) -> bool {
        limit.is_some_and(|l| self.per_port[port.get()].load(Relaxed) >= l)
    }

    fn over_limit(&self, port: PortIdx, limit: Option<u32>) -> bool {
        let over = self.is_full(port, limit);
        if over {
            self.refused_limit.fetch_add(1, Relaxed);
        }
        over
    }

    /// Where the key of `hash` may be, by bucket, and what its entry there has in common with others of it: two of now, and
    /// two of before while the table grows.
    fn candidates(&self, hash: Hash) -> impl Iterator<Item = (usize, Word)> {
        let numbers = [Some(self.growth.in_use()), self.growth.in_use_before()];
        numbers.into_iter().flatten().flat_map(move |n| hash.candidate_buckets(n))
    }

    /// Searches the same, and again if an entry was moved meanwhile: it may have gone from where no search had been yet to
    /// where somebody just had.
    fn find_anywhere(&self, hash: Hash) -> Option<(usize, Word)> {
        for _ in 0..SEARCHES {
            let moves = self.growth.moves();
            let found = self.search(hash);
            // Not before all was looked at.
            fence(Acquire);
            if found.is_some() || self.growth.moves() == moves {
                return found;
            }
        }
        None
    }

    /// On the way of what is flooded: by hand, so that it is compiled to little whatever is around it.
    #[inline(always)]
    fn search(&self, hash: Hash) -> Option<(usize, Word)> {
        let at = |bucket: usize, who| {
            let found = find(&self.lines[self.aligned + bucket], who);
            found.map(|(way, w)| (bucket * WAYS + way, w))
        };
        let both = |n| at(hash.first(n), Word::in_first(hash)).or_else(|| at(hash.second(n), Word::in_second(hash)));
        both(self.growth.in_use()).or_else(|| both(self.growth.in_use_before()?))
    }

    /// Enters an address that neither ages nor moves, in place of what was learned of it; at no
    /// moment is it absent or learned instead. `false` if the table is full.
    pub fn set_static(&self, key: Key, port: PortIdx) -> bool {
        let _guard = self.lock_resize();
        let hash = self.hash(key);
        let wanted = Word::template(port, State::Static).with_key(Word::in_first(hash));
        loop {
            let Some((slot, w)) = self.find_anywhere(hash) else {
                if !self.insert(hash, wanted) {
                    return false;
                }
                break;
            };
            if self.change(slot, w, wanted.with_key(w)) {
                break;
            }
        }
        // A worker may have learned it in another slot while it was entered.
        self.remove_if(hash, |w| !w.is(State::Static));
        true
    }

    /// Removes one address; whether it was there.
    pub fn remove(&self, key: Key) -> bool {
        let _guard = self.lock_resize();
        self.remove_if(self.hash(key), |_| true)
    }

    /// Removes those entries of the key of `hash` that `matches`: one, but for workers that learned it at the same instant.
    fn remove_if(&self, hash: Hash, matches: impl Fn(Word) -> bool) -> bool {
        self.until_nothing_moves(|| {
            let mut removed = 0;
            for (bucket, who) in self.candidates(hash) {
                for slot in slots_of(bucket) {
                    removed += u64::from(self.clear_if(slot, |w| w.is_of(who) && matches(w)));
                }
            }
            removed
        }) > 0
    }

    /// What all passes of `remove` removed: it is done again if an entry was moved meanwhile, maybe from where it
    /// was yet to come to where it had been.
    fn until_nothing_moves(&self, mut remove: impl FnMut() -> u64) -> u64 {
        let mut removed = 0;
        for _ in 0..SEARCHES {
            let moves = self.growth.moves();
            removed += remove();
            // Not before all was looked at.
            fence(Acquire);
            if self.growth.moves() == moves {
                break;
            }
        }
        removed
    }

    /// How many addresses are behind `port`, the static ones among them.
    pub fn port_entries(&self, port: PortIdx) -> u32 {
        self.per_port[port.get()].load(Relaxed)
    }

    /// The table's counts.
    pub fn statistics(&self) -> Statistics {
        Statistics {
            entries: u64::from(self.total.load(Relaxed)),
            capacity: u64::from(self.capacity),
            learned: self.learned.load(Relaxed),
            moves: self.moves.load(Relaxed),
            aged: self.aged.load(Relaxed),
            evictions: self.evictions.load(Relaxed),
            refused_full: self.refused_full.load(Relaxed),
            refused_limit: self.refused_limit.load(Relaxed),
        }
    }

    /// Puts `word` into a bucket of `hash`, of which there is no entry. `false` if there is no room.
    fn insert(&self, hash: Hash, word: Word) -> bool {
        self.grow();
        if self.is_at_capacity() && !self.evict_for_capacity(hash, word.port()) {
            return false;
        }
        self.place(hash, word, None).is_some()
    }

    /// Puts `word` into one of its two buckets, if need be in place of another's: the slot where it is then, and as what;
    /// `stamp`: as [`Self::fill`] has it.
    fn place(&self, hash: Hash, word: Word, stamp: Option<u32>) -> Option<(usize, Word)> {
        // Another worker may take the room that was made.
        for _ in 0..4 {
            let n = self.growth.in_use();
            for (bucket, who) in hash.candidate_buckets(n) {
                if let Some(slot) = self.fill(bucket, word.with_key(who), stamp) {
                    return Some((slot, word.with_key(who)));
                }
            }
            if self.make_room(hash) {
                continue;
            }
            self.growth.note_overflow();
            if !self.evict_for_slot(hash, word.port()) {
                return None;
            }
        }
        None
    }

    #[inline(always)]
    fn cell(&self, slot: usize) -> &AtomicU64 {
        &self.lines[self.aligned + slot / WAYS].0[slot % WAYS]
    }

    /// What is in a slot, if anything.
    fn entry(&self, slot: usize) -> Option<Word> {
        Some(Word(self.cell(slot).load(Acquire))).filter(|w| *w != Word::NONE)
    }

    /// When the sweep last found the entry of a slot marked as seen, in seconds.
    fn stamp(&self, slot: usize) -> Option<u32> {
        Some(self.stamps[slot].load(Relaxed))
    }

    /// Puts `to` in the place of `from`; `false` if another writer was faster.
    fn change(&self, slot: usize, from: Word, to: Word) -> bool {
        let moves = from.port() != to.port();
        // Counted first: the next change finds it counted.
        if moves {
            self.per_port[to.port().get()].fetch_add(1, Relaxed);
        }
        let changed = self.cell(slot).compare_exchange(from.0, to.0, AcqRel, Relaxed).is_ok();
        if moves {
            let less = if changed { from } else { to };
            self.per_port[less.port().get()].fetch_sub(1, Relaxed);
        }
        changed
    }

    /// Takes an empty slot of `bucket`, if there is one; `stamp`: when the address was seen, if it is not new.
    fn fill(&self, bucket: usize, word: Word, stamp: Option<u32>) -> Option<usize> {
        slots_of(bucket).find(|slot| {
            let cell = self.cell(*slot);
            if cell.load(Relaxed) != Word::NONE.0 {
                return false;
            }
            if let Some(stamp) = stamp {
                self.stamps[*slot].store(stamp, Relaxed);
            }
            // Counted first: an immediate removal finds it counted.
            self.total.fetch_add(1, Relaxed);
            self.per_port[word.port().get()].fetch_add(1, Relaxed);
            let filled = cell.compare_exchange(Word::NONE.0, word.0, AcqRel, Relaxed).is_ok();
            if !filled {
                self.uncount(word);
            }
            filled
        })
    }

    fn uncount(&self, word: Word) {
        self.total.fetch_sub(1, Relaxed);
        self.per_port[word.port().get()].fetch_sub(1, Relaxed);
    }

    /// Empties a slot that holds `word`; `false` if another writer was faster.
    fn clear(&self, slot: usize, word: Word) -> bool {
        let cleared = self.cell(slot).compare_exchange(word.0, Word::NONE.0, AcqRel, Relaxed).is_ok();
        if cleared {
            self.uncount(word);
        }
        cleared
    }

    /// Empties a slot while its entry `matches`, whatever others do to it meanwhile.
    fn clear_if(&self, slot: usize, mut matches: impl FnMut(Word) -> bool) -> bool {
        while let Some(w) = self.entry(slot).filter(|w| matches(*w)) {
            if self.clear(slot, w) {
                return true;
            }
        }
        false
    }

    /// Ends a move: the entry `w` has a copy, entered there before it is taken out here, so that it is found at every
    /// moment. What happened to it in between happens to the copy.
    fn retire_source(&self, slot: usize, w: Word, (copy, copied): (usize, Word)) {
        self.growth.note_move();
        let mut last = w;
        let was_there = self.clear_if(slot, |now| {
            last = now;
            now.is_of(w)
        });
        // Who made the copy static meant this entry.
        let is_fixed = |now: Word| now.is(State::Static);
        if !was_there {
            // Removed meanwhile.
            self.clear_if(copy, |now| now.is_of(copied) && (is_fixed(w) || !is_fixed(now)));
        } else if last != w && last != w.with(State::Idle) {
            // Moved to another port, made static or seen again meanwhile. When the sweep came by only its own slot knows.
            let last = if last.is(State::Idle) { last.with(State::Referenced) } else { last };
            let now = self.entry(copy).filter(|now| now.is_of(copied) && (is_fixed(last) || !is_fixed(*now)));
            let followed = now.is_some_and(|now| self.change(copy, now, last.with_key(copied)));
            if !followed && is_fixed(last) {
                self.clear_if(copy, |now| now.is_of(copied));
                self.place(last.hash(slot / WAYS), last, None);
            }
        }
    }

    /// Moves one resident of either bucket to its other bucket, if that has a free slot.
    fn make_room(&self, hash: Hash) -> bool {
        let n = self.growth.in_use();
        let mut slots = [hash.first(n), hash.second(n)].into_iter().flat_map(slots_of);
        slots.any(|slot| self.entry(slot).is_some_and(|w| self.move_over(slot, w)))
    }

    /// Moves the entry `w` of a slot to its other bucket, if that has a free slot.
    fn move_over(&self, slot: usize, w: Word) -> bool {
        let (bucket, n) = (slot / WAYS, self.growth.in_use());
        let [first, second] = w.hash(bucket).candidate_buckets(n);
        let (other, who) = if w.is_in_second() { first } else { second };
        let copied = w.with_key(who);
        let copy = if other != bucket { self.fill(other, copied, self.stamp(slot)) } else { None };
        if let Some(copy) = copy {
            self.retire_source(slot, w, (copy, copied));
        }
        copy.is_some()
    }
}
