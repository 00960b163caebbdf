//! Hashes and entries: each one word.

use crate::types::{Hash, Key};
use crate::{
    MAX_PORTS, PortIdx,
    intrinsics::{mixed, unmixed},
};

/// Buckets of the smallest table, as a power of 2: so many bits of a hash, [`PLACE`], are said by the bucket that an
/// entry is in, and make room in its word for what is known of the address.
pub(super) const LEAST_BITS: u32 = 15;

const PLACE: u64 = (1 << LEAST_BITS) - 1;
/// Set in the second of a key's two buckets.
const SECOND: u64 = 1;
/// Two bits, none of them set where there is no entry.
const STATE: u32 = 1;
const PORT: u32 = 3;

const _: () = assert!(MAX_PORTS.is_power_of_two() && MAX_PORTS << PORT == 1 << LEAST_BITS);

/// What is known of an address besides its port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// Learned, and not seen since the sweep came by.
    Idle = 1,
    /// Learned, and seen since.
    Referenced = 2,
    /// Entered by configuration.
    Static = 3,
}

impl Hash {
    /// The hash of `key`.
    #[inline(always)]
    pub(super) fn of(key: Key, seed: [u64; 2]) -> Self {
        Hash(mixed(key.0, seed))
    }

    /// The key that has it. `inverse`: [`inverse`] of each seed.
    pub(super) fn key(self, inverse: [u64; 2]) -> Key {
        Key(unmixed(self.0, inverse))
    }

    /// Its first bucket of `n`, a power of two.
    #[inline(always)]
    pub(super) fn first(self, n: usize) -> usize {
        self.0 as usize & (n - 1)
    }

    /// Its second one. May be the first again: then there is one.
    #[inline(always)]
    pub(super) fn second(self, n: usize) -> usize {
        (self.0 as usize ^ alt_bucket_offset(self.0 & !PLACE)) & (n - 1)
    }

    /// Both buckets of `n`, in the order in which they are searched, and what its entries there have in common.
    #[inline(always)]
    pub(super) fn candidate_buckets(self, n: usize) -> [(usize, Word); 2] {
        [(self.first(n), Word::in_first(self)), (self.second(n), Word::in_second(self))]
    }
}

/// By how much both buckets differ, for those bits of a hash that an entry's word has.
#[inline(always)]
fn alt_bucket_offset(rest: u64) -> usize {
    // The golden ratio's bits; the product's upper ones depend on nearly all of `rest`, which can't be foretold.
    (rest.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as usize
}

/// What undoes the multiplication by an odd number.
pub(super) const fn inverse(odd: u64) -> u64 {
    // Newton's iteration: each round doubles how many of the lowest bits are right, and it begins with three.
    let (mut x, mut i) = (odd, 0);
    while i < 5 {
        x = x.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(x)));
        i += 1;
    }
    x
}

/// An entry: its hash, in the place of whose bits that the bucket says are, from the lowest: 1 bit of "in its second
/// bucket", 2 of [`State`], 12 of port. 0 is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Word(pub(super) u64);

impl Word {
    pub(super) const NONE: Word = Word(0);
    /// The bits that are alike in the entries of one key in one of its buckets.
    pub(super) const IDENTITY: u64 = !PLACE | SECOND;

    /// The bits that a hash and the entry of it in its first bucket have in common.
    pub(super) const OF_HASH: u64 = !PLACE;

    /// What an entry of `hash` in its first bucket has in common with others of it.
    #[inline(always)]
    pub(super) fn in_first(hash: Hash) -> Self {
        Word(hash.0 & Self::OF_HASH)
    }

    /// The same in its second bucket.
    #[inline(always)]
    pub(super) fn in_second(hash: Hash) -> Self {
        Word(hash.0 & Self::OF_HASH | SECOND)
    }

    /// An entry of `port` without a key, which is filled in by [`Word::with_key`].
    #[inline(always)]
    pub(super) fn template(port: PortIdx, state: State) -> Self {
        Word((port.get() as u64) << PORT | (state as u64) << STATE)
    }

    /// The entry of whom `who` is, with port and state of this one.
    pub(super) fn with_key(self, who: Word) -> Self {
        Word(self.0 & !Self::IDENTITY | who.0 & Self::IDENTITY)
    }

    #[inline(always)]
    pub(super) fn is_of(self, who: Word) -> bool {
        // A hash whose bits are all 0 is not an empty slot's.
        (self.0 ^ who.0) & Self::IDENTITY == 0 && self.0 != 0
    }

    pub(super) fn is_in_second(self) -> bool {
        self.0 & SECOND != 0
    }

    /// The hash of an entry that is in `bucket`.
    pub(super) fn hash(self, bucket: usize) -> Hash {
        let rest = self.0 & !PLACE;
        let name = bucket ^ if self.is_in_second() { alt_bucket_offset(rest) } else { 0 };
        Hash(rest | name as u64 & PLACE)
    }

    /// The bucket of `n` in which an entry of `hash` like this one belongs.
    pub(super) fn home(self, hash: Hash, n: usize) -> usize {
        if self.is_in_second() { hash.second(n) } else { hash.first(n) }
    }

    #[inline(always)]
    pub(super) fn port(self) -> PortIdx {
        PortIdx::from_raw((self.0 >> PORT) as u16)
    }

    pub(super) fn is(self, state: State) -> bool {
        self.0 >> STATE & 3 == state as u64
    }

    pub(super) fn with(self, state: State) -> Self {
        Word(self.0 & !(3 << STATE) | (state as u64) << STATE)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Wherever an entry is, whatever is noted of it, its key comes out as it went in.
        #[test]
        fn nothing_of_a_key_is_lost(key: u64, seed: [u64; 2], port in 0..MAX_PORTS, bits in LEAST_BITS..=18) {
            let seed = seed.map(|s| s | 1);
            let (hash, n) = (Hash::of(Key(key), seed), 1 << bits);
            let port = PortIdx::new(port).unwrap();
            let word = Word::template(port, State::Referenced).with_key(Word::in_first(hash)).with(State::Static);
            let second = word.with_key(Word::in_second(hash));
            for (word, (bucket, who)) in [word, second].into_iter().zip(hash.candidate_buckets(n)) {
                prop_assert!(word.is_of(who) && word.is(State::Static) && word.port() == port);
                prop_assert_eq!(word.hash(bucket), hash);
                prop_assert_eq!(word.hash(bucket).key(seed.map(inverse)), Key(key));
            }
            prop_assert!(!word.is_of(Word::in_second(hash)));
        }
    }
}
