//! What a frame needs of the table.

use std::sync::atomic::Ordering::Relaxed;

use super::{
    Hash, Key,
    word::{State, Word},
};
use crate::{
    PortIdx, SegmentId,
    intrinsics::{Bucket64, Lanes, prefetch},
};

/// The part of the table that a frame needs, by value: its words stay in registers, where the
/// table's own, beside counts that others write, would be loaded again and again.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// Those in use, a power of two.
    pub(super) buckets: &'a [Bucket64],
    pub(super) seed: [u64; 2],
}

/// See [`View::known_at`].
#[derive(Clone, Copy)]
pub(crate) struct Known {
    seen: Word,
    fixed: Word,
}

impl<'a> View<'a> {
    /// The hash of `key`, to be passed to the other calls.
    #[inline(always)]
    pub fn hash(self, key: Key) -> Hash {
        Hash::of(key, self.seed)
    }

    /// The keys of destination and source in the head of a frame, in `segment`, and their hashes.
    #[inline(always)]
    pub(crate) fn of_frame<L: Lanes>(self, head: &[u8; 16], segment: SegmentId) -> ([Key; 2], [Hash; 2]) {
        let [keys, hashes] = L::two(head, segment.0, self.seed);
        (keys.map(Key), hashes.map(Hash))
    }

    /// Asks for the first bucket of `hash`.
    #[inline(always)]
    pub fn prefetch(self, hash: Hash) {
        prefetch(self.first(hash));
    }

    /// Asks for the second one: seldom.
    #[cold]
    #[inline(never)]
    pub(crate) fn prefetch_second(self, hash: Hash) {
        prefetch(&self.buckets[hash.second(self.buckets.len())]);
    }

    #[inline(always)]
    fn first(self, hash: Hash) -> &'a Bucket64 {
        &self.buckets[hash.first(self.buckets.len())]
    }

    /// The port that the key of `hash` is behind, if one look finds it, as it nearly always does; `None` says that
    /// [`super::MacTable::lookup`] has to search.
    #[inline(always)]
    pub(crate) fn first_probe<L: Lanes>(self, hash: &Hash) -> Option<PortIdx> {
        let word = Word(L::pick(self.first(*hash), &hash.0, Word::OF_HASH, Word::IDENTITY));
        if word == Word::NONE { None } else { Some(word.port()) }
    }

    /// What the addresses at `port` that were seen since the sweep came by have in common, and those that are static, for
    /// [`View::is_known`].
    #[inline(always)]
    pub(crate) fn known_at(self, port: PortIdx) -> Known {
        Known { seen: Word::template(port, State::Referenced), fixed: Word::template(port, State::Static) }
    }

    /// Whether the key of `hash` is one of them, by one look. Nearly always the answer for a station that talks; `false`
    /// says that [`super::MacTable::learn`] has to look.
    #[inline(always)]
    pub(crate) fn is_known<L: Lanes>(self, hash: &Hash, known: Known) -> bool {
        let bucket = self.first(*hash);
        let holds = |who: Word| L::holds(bucket, &hash.0, Word::OF_HASH, who.0);
        holds(known.seen) || holds(known.fixed)
    }
}

/// The entry of `who` in one bucket: which word it is, and the word.
#[inline(always)]
pub(super) fn find(bucket: &Bucket64, who: Word) -> Option<(usize, Word)> {
    let mut ways = bucket.agree(who.0, Word::IDENTITY);
    while ways != 0 {
        let way = ways.trailing_zeros() as usize & 7;
        // Others may have written it since.
        let word = Word(bucket.0[way].load(Relaxed));
        if word.is_of(who) {
            return Some((way, word));
        }
        ways &= ways - 1;
    }
    None
}
