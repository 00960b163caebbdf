//! The mac table: which port an address of a segment is behind. One table for all bridges, read
//! and learned in place by all workers, with no lock on the way of a frame.
//!
//! **Shape.** Buckets of one cache line: four keys and four values, each one word. An entry
//! lives in one of two buckets that its hash names; the second is read only when the first does
//! not hold it. There are at least twice as many slots as the table's capacity, so that two
//! buckets are hardly ever full together; when they are, one resident moves to its other bucket.
//!
//! **Key**: MAC in the upper 48 bits, segment in the lower 16. All bits set, which no key is, it says
//! that a writer is busy with the slot; 0 that it is empty.
//! **Value**: see [`value`].
//!
//! **What is atomic.** A writer takes a slot by a compare-and-swap of its key for "busy", writes the
//! value, then the key. A reader takes key, value and key again: a slot that changed under it does
//! not match. The refresh of an entry is one compare-and-swap of the value,
//! made only when the second has changed, so that lines of busy addresses stay shared. Two
//! workers that learn one address at the same instant may enter it twice; readers then see the
//! first, and the sweep removes the second. Who does not find a key searches again if any entry was moved
//! meanwhile, so that it is found at every moment.
//!
//! **Hash**: a multiply folded to 64 bits, keyed with a random seed at start, because guests
//! choose their addresses: with a fixed hash they could choose each other's buckets too. Addresses
//! that are counted up, as orchestrators hand them out, meet in few buckets with one seed in ten:
//! then the table grows early. A second round of mixing would spread them, and took 3 cycles a frame.
//!
//! **It grows.** Memory for the capacity is there from the start, but only so many buckets are in
//! use as hold the entries at two a bucket: see `grow.rs`. A host with few stations keeps them in
//! the cache, and in few pages, however large the table may become.
//!
//! **When it is full** the port that holds most pays: see `evict.rs`.

mod evict;
mod grow;
mod sweep;
#[cfg(test)]
mod tests;
mod value;

use std::{
    num::NonZeroU64,
    sync::atomic::{
        AtomicU32, AtomicU64,
        Ordering::{AcqRel, Acquire, Relaxed, Release},
        fence,
    },
};

use crate::{
    MAX_PORTS, MacAddr, PortIdx, SegmentId,
    intrinsics::{Words, prefetch},
};
use grow::Growth;
pub use sweep::Entry;
use value::Value;

const WAYS: usize = 4;
/// How often a key is searched at most while others move.
const SEARCHES: usize = 16;
/// In the place of a key: a writer is at work. (Segment 65,535 does not exist.)
const BUSY: u64 = u64::MAX;

/// Address and segment in one word.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Key(u64);

impl Key {
    /// The key of `mac` in `segment`.
    #[inline(always)]
    pub const fn new(mac: MacAddr, segment: SegmentId) -> Self {
        Key(mac.bits() << 16 | segment.0 as u64)
    }

    /// The key of the address in the upper 48 bits of `octets`, as they are loaded from a frame.
    #[inline(always)]
    pub const fn from_wire(octets: u64, segment: SegmentId) -> Self {
        Key(octets & !0xffff | segment.0 as u64)
    }

    /// Whether no station may have it: groups, and the address of all zeros.
    #[inline(always)]
    pub const fn is_nobodys(self) -> bool {
        self.is_multicast() || self.0 >> 16 == 0
    }

    /// Whether the address is a group's.
    #[inline(always)]
    pub const fn is_multicast(self) -> bool {
        self.0 >> 56 & 1 != 0
    }

    /// The address.
    #[inline(always)]
    pub const fn mac(self) -> MacAddr {
        MacAddr::from_bits(self.0 >> 16)
    }

    /// The segment.
    #[inline(always)]
    pub const fn segment(self) -> SegmentId {
        SegmentId(self.0 as u16)
    }
}

/// A key's hash under one table's seed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Hash(u64);

impl Hash {
    /// Of no key in particular.
    pub const ZERO: Hash = Hash(0);
}

/// See [`View::known_at`].
#[derive(Clone, Copy)]
pub struct Known(Value);

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
    /// The table is full and this port has no claim on another's entry; nothing changed.
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

#[repr(align(64))]
#[derive(Default)]
struct Bucket {
    keys: Words,
    values: [AtomicU64; WAYS],
}

const _: () = assert!(size_of::<Bucket>() == 64);

impl Bucket {
    /// The way that holds `key`, if any does.
    #[inline(always)]
    fn way_of(&self, key: Key) -> Option<usize> {
        let ways = self.keys.equal(key.0);
        // Below WAYS, and the compiler sees it.
        if ways == 0 { None } else { Some(ways.trailing_zeros() as usize & (WAYS - 1)) }
    }

    /// The value of `key`, if it is here. The key is read again after it, so that both belong together.
    #[inline(always)]
    fn get(&self, key: Key) -> Option<NonZeroU64> {
        let i = self.way_of(key)?;
        // Not before the key was seen.
        fence(Acquire);
        let v = self.values[i].load(Acquire);
        if self.keys.0[i].load(Relaxed) == key.0 { NonZeroU64::new(v) } else { None }
    }
}

/// See the module.
pub struct MacTable {
    buckets: Box<[Bucket]>,
    growth: Growth,
    seed: [u64; 2],
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
    /// The largest capacity.
    pub const MAX_CAPACITY: u32 = 1_000_000;

    /// A table for `capacity` entries, 1 to [`Self::MAX_CAPACITY`] (values outside are brought
    /// into the range). 32 to 64 octets of memory for each. `seed` should be random: two words with
    /// all bits equally likely, the second of them a multiplier.
    pub fn new(capacity: u32, seed: [u64; 2]) -> Self {
        let capacity = capacity.clamp(1, Self::MAX_CAPACITY);
        let buckets = (capacity as usize * 2).div_ceil(WAYS).next_power_of_two().max(16);
        MacTable {
            buckets: (0..buckets).map(|_| Bucket::default()).collect(),
            growth: Growth::new(buckets),
            // An even multiplier would lose the key's high bits.
            seed: [seed[0], seed[1] | 1],
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

    /// Where its buckets are in memory, in octets: for whoever can ask for larger pages there.
    pub fn memory(&self) -> (*const u8, usize) {
        (self.buckets.as_ptr().cast(), size_of_val(&*self.buckets))
    }

    /// For lookups, a whole burst of them.
    #[inline(always)]
    pub fn view(&self) -> View<'_> {
        let buckets = &self.buckets[..self.growth.in_use()];
        // Known here, it need not be checked for each frame.
        assert!(!buckets.is_empty());
        View { buckets, seed: self.seed }
    }

    /// See [`View::hash`].
    pub fn hash(&self, key: Key) -> Hash {
        self.view().hash(key)
    }

    /// The port that `key` is behind, wherever the entry is while the table grows.
    pub fn lookup(&self, key: Key, hash: Hash) -> Option<PortIdx> {
        self.find_anywhere(key, hash).map(|(_, v)| v.port())
    }

    fn first(&self, hash: Hash) -> &Bucket {
        self.view().first(hash)
    }

    fn second(&self, hash: Hash) -> &Bucket {
        self.view().second(hash)
    }

    /// Notes that `key` sends from `port`. `now_s` is the caller's clock in seconds; `limit` the
    /// most addresses the port may have learned.
    pub fn learn(&self, key: Key, hash: Hash, port: PortIdx, now_s: u32, limit: Option<u32>) -> Learned {
        let fresh = Value::new(port, hash, now_s, false);
        if let Some((cell, v)) = self.find_anywhere(key, hash) {
            if v.is_static() || v.0 == fresh.0 {
                return Learned::Known;
            }
            if v.port() == port {
                // Whoever loses this race lost it to a refresh, a move or a removal: all fine.
                let _ = cell.compare_exchange(v.0, fresh.0, AcqRel, Relaxed);
                return Learned::Known;
            }
            if self.over_limit(port, limit) {
                return Learned::Limited;
            }
            if cell.compare_exchange(v.0, fresh.0, AcqRel, Relaxed).is_err() {
                return Learned::Known;
            }
            self.per_port[v.port().get()].fetch_sub(1, Relaxed);
            self.per_port[port.get()].fetch_add(1, Relaxed);
            self.moves.fetch_add(1, Relaxed);
            return Learned::Moved { from: v.port() };
        }
        if self.over_limit(port, limit) {
            return Learned::Limited;
        }
        if self.insert(key, hash, fresh) {
            self.learned.fetch_add(1, Relaxed);
            Learned::New
        } else {
            self.refused_full.fetch_add(1, Relaxed);
            Learned::Full
        }
    }

    /// Whether [`MacTable::learn`] would not learn it because of the limit.
    pub fn is_too_many(&self, key: Key, hash: Hash, port: PortIdx, limit: Option<u32>) -> bool {
        let stays = self.find_anywhere(key, hash).is_some_and(|(_, v)| v.is_static() || v.port() == port);
        !stays && self.is_full(port, limit)
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

    /// What was in use before, while the table grows.
    fn before(&self) -> Option<View<'_>> {
        self.growth.in_use_before().map(|n| View { buckets: &self.buckets[..n], ..self.view() })
    }

    /// The buckets that may hold a key: the two of now, and the two of before.
    fn candidates(&self, hash: Hash) -> impl Iterator<Item = &Bucket> {
        [Some(self.view()), self.before()].into_iter().flatten().flat_map(move |v| [v.first(hash), v.second(hash)])
    }

    /// Searches the same, and again if an entry was moved meanwhile: it may have gone from where nobody had looked yet to
    /// where somebody just had.
    fn find_anywhere(&self, key: Key, hash: Hash) -> Option<(&AtomicU64, Value)> {
        for _ in 0..SEARCHES {
            let moves = self.growth.moves();
            let found = self.search(key, hash);
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
    fn search(&self, key: Key, hash: Hash) -> Option<(&AtomicU64, Value)> {
        let now = self.view();
        find(now.first(hash), key, hash).or_else(|| find(now.second(hash), key, hash)).or_else(|| {
            let before = self.before()?;
            find(before.first(hash), key, hash).or_else(|| find(before.second(hash), key, hash))
        })
    }

    /// Enters an address that neither ages nor moves, in place of what was learned of it; at no
    /// moment is it absent or learned instead. `false` if the table is full.
    pub fn set_static(&self, key: Key, port: PortIdx) -> bool {
        let _still = self.hold_still();
        let hash = self.hash(key);
        let wanted = Value::new(port, hash, 0, true);
        loop {
            let Some((cell, v)) = self.find_anywhere(key, hash) else {
                if !self.insert(key, hash, wanted) {
                    return false;
                }
                break;
            };
            if cell.compare_exchange(v.0, wanted.0, AcqRel, Relaxed).is_ok() {
                self.per_port[v.port().get()].fetch_sub(1, Relaxed);
                self.per_port[port.get()].fetch_add(1, Relaxed);
                break;
            }
        }
        // A worker may have learned it in another slot while it was entered.
        for bucket in self.candidates(hash) {
            for i in 0..WAYS {
                if bucket.keys.0[i].load(Acquire) == key.0 && !Value(bucket.values[i].load(Acquire)).is_static() {
                    self.clear(bucket, i, key.0);
                }
            }
        }
        true
    }

    /// Removes one address; whether it was there.
    pub fn remove(&self, key: Key) -> bool {
        let _still = self.hold_still();
        let hash = self.hash(key);
        let mut removed = false;
        // Twice at most in the table (see the module), but a bucket can be both.
        for bucket in self.candidates(hash) {
            for i in 0..WAYS {
                if bucket.keys.0[i].load(Acquire) == key.0 {
                    removed |= self.clear(bucket, i, key.0).is_some();
                }
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

    /// Puts `value` under `key`, which is in neither bucket. `false` if there is no room.
    fn insert(&self, key: Key, hash: Hash, value: Value) -> bool {
        if self.total.load(Relaxed) >= self.capacity && !self.evict_for_capacity(hash, value.port()) {
            return false;
        }
        self.grow();
        self.place(key, hash, value).is_some()
    }

    /// Puts `value` into one of its two buckets, if need be in place of another's. Where it is then.
    fn place(&self, key: Key, hash: Hash, value: Value) -> Option<(&Bucket, usize)> {
        for _ in 0..2 {
            for bucket in [self.first(hash), self.second(hash)] {
                for i in 0..WAYS {
                    if bucket.keys.0[i].load(Relaxed) == 0 && self.fill(bucket, i, key, value) {
                        return Some((bucket, i));
                    }
                }
            }
            if self.make_room(hash) {
                continue;
            }
            self.growth.is_crowded();
            if !self.evict_for_slot(hash, value.port()) {
                return None;
            }
        }
        None
    }

    /// The value of a slot that holds `key`; `None` if it does not, or not any more.
    fn value_of(&self, bucket: &Bucket, i: usize, key: u64) -> Option<Value> {
        let v = Value(bucket.values[i].load(Acquire));
        let whole = key != 0 && key != BUSY && v.belongs_to(self.hash(Key(key)));
        (whole && bucket.keys.0[i].load(Relaxed) == key).then_some(v)
    }

    /// Ends a move: the entry of `key`, which had the value `v`, has a copy, and is taken out here.
    /// Entered there before it is taken out here, it is found at every moment; what happened to it
    /// in between happens to the copy.
    fn give_up(&self, bucket: &Bucket, i: usize, key: u64, v: Value, copy: (&Bucket, usize)) {
        let (to, j) = copy;
        self.growth.note_move();
        let Some(last) = self.clear(bucket, i, key) else {
            // Removed meanwhile.
            self.clear(to, j, key);
            return;
        };
        if last.0 == v.0 {
            return;
        }
        // Moved to another port, made static or seen again meanwhile.
        if to.keys.0[j].load(Acquire) == key && to.values[j].compare_exchange(v.0, last.0, AcqRel, Relaxed).is_ok() {
            self.per_port[v.port().get()].fetch_sub(1, Relaxed);
            self.per_port[last.port().get()].fetch_add(1, Relaxed);
        } else if last.is_static() {
            self.clear(to, j, key);
            self.place(Key(key), self.hash(Key(key)), last);
        }
    }

    /// Takes an empty slot; `false` if another writer was faster.
    fn fill(&self, bucket: &Bucket, i: usize, key: Key, value: Value) -> bool {
        if bucket.keys.0[i].compare_exchange(0, BUSY, AcqRel, Relaxed).is_err() {
            return false;
        }
        bucket.values[i].store(value.0, Release);
        bucket.keys.0[i].store(key.0, Release);
        self.total.fetch_add(1, Relaxed);
        self.per_port[value.port().get()].fetch_add(1, Relaxed);
        true
    }

    /// Empties a slot that holds `key`; its last value, or `None` if another writer was faster.
    fn clear(&self, bucket: &Bucket, i: usize, key: u64) -> Option<Value> {
        bucket.keys.0[i].compare_exchange(key, BUSY, AcqRel, Relaxed).ok()?;
        // From here a refresh by someone who found the entry before fails: the value is gone.
        let v = Value(bucket.values[i].swap(0, AcqRel));
        bucket.keys.0[i].store(0, Release);
        self.total.fetch_sub(1, Relaxed);
        self.per_port[v.port().get()].fetch_sub(1, Relaxed);
        Some(v)
    }

    /// Moves one resident of either bucket to its other bucket, if that has a free slot.
    fn make_room(&self, hash: Hash) -> bool {
        for bucket in [self.first(hash), self.second(hash)] {
            for i in 0..WAYS {
                let key = bucket.keys.0[i].load(Acquire);
                let Some(v) = self.value_of(bucket, i, key) else { continue };
                let h = self.hash(Key(key));
                let other = [self.first(h), self.second(h)].into_iter().find(|b| !std::ptr::eq(*b, bucket));
                let free = |o: &Bucket| (0..WAYS).find(|j| self.fill(o, *j, Key(key), v));
                if let Some((o, j)) = other.and_then(|o| Some((o, free(o)?))) {
                    self.give_up(bucket, i, key, v, (o, j));
                    return true;
                }
            }
        }
        false
    }
}

/// The part of the table that a frame needs, by value: its words stay in registers, where the
/// table's own, beside counts that others write, would be loaded again and again.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// Those in use, a power of two.
    buckets: &'a [Bucket],
    seed: [u64; 2],
}

impl<'a> View<'a> {
    /// The hash of `key`, to be passed to the other calls.
    #[inline(always)]
    pub fn hash(self, key: Key) -> Hash {
        let m = u128::from(key.0 ^ self.seed[0]) * u128::from(self.seed[1]);
        Hash(m as u64 ^ (m >> 64) as u64)
    }

    /// Asks for the first bucket of `hash`.
    #[inline(always)]
    pub fn prefetch(self, hash: Hash) {
        prefetch(self.first(hash));
    }

    #[inline(always)]
    fn first(self, hash: Hash) -> &'a Bucket {
        &self.buckets[hash.0 as usize & (self.buckets.len() - 1)]
    }

    #[inline(always)]
    fn second(self, hash: Hash) -> &'a Bucket {
        // The upper half names the second bucket. It may be the first again: then there is one.
        &self.buckets[(hash.0 >> 32) as usize & (self.buckets.len() - 1)]
    }

    /// The port that `key` is behind.
    #[inline(always)]
    pub fn lookup(self, key: Key, hash: Hash) -> Option<PortIdx> {
        let found = self.first(hash).get(key).or_else(|| self.second(hash).get(key));
        found.map(|v| Value(v.get()).port())
    }

    /// What addresses that are known at `port` and were seen in this second have in common, for
    /// [`View::is_known`].
    #[inline(always)]
    pub fn known_at(self, port: PortIdx, now_s: u32) -> Known {
        Known(Value::new(port, Hash::ZERO, now_s, false))
    }

    /// Whether learning `key` would change nothing. Nearly always the answer for a station that
    /// talks, by two comparisons; `false` says that [`MacTable::learn`] has to look.
    #[inline(always)]
    pub fn is_known(self, key: Key, hash: Hash, known: Known) -> bool {
        let bucket = self.first(hash);
        bucket.way_of(key).is_some_and(|i| {
            let v = Value(bucket.values[i].load(Relaxed));
            v == known.0.of(hash) || v.is_static_indeed()
        })
    }
}

/// The slot of `key` in one bucket. The value's check octet guards whoever writes to the slot then
/// against one that was reused in between.
fn find(bucket: &Bucket, key: Key, hash: Hash) -> Option<(&AtomicU64, Value)> {
    let i = bucket.way_of(key)?;
    fence(Acquire);
    let v = Value(bucket.values[i].load(Acquire));
    (v.belongs_to(hash) && bucket.keys.0[i].load(Relaxed) == key.0).then_some((&bucket.values[i], v))
}
