//! What a connection is found by: whose it is, its protocol, and its ends in an order that does not depend on who sends.
//!
//! Those of IPv4 are made for whole bursts, by columns, and so is their hash: sums of products of 32 bits, which vectors
//! have (NH of UMAC, RFC 4418: who does not know the secrets meets two keys of one sum once in 2^32), and then mixed, as
//! every part of it is used.

use super::Zone;
use crate::{
    burst::{CHUNK, ChunkMask as Mask},
    intrinsics::{LANES, Lanes},
    packet::headers::{DPORT, DST, HeaderBatch, PROTOCOL, SPORT, SRC},
};

/// The keys of the frames of a chunk, word by word.
pub(super) struct Keys<const K: usize> {
    pub words: [[u64; CHUNK]; K],
    pub hashes: [u64; CHUNK],
    /// A bit for each frame that the lower end sent.
    pub from_low: Mask,
}

impl<const K: usize> Keys<K> {
    pub const ZERO: Self = Keys { words: [[0; CHUNK]; K], hashes: [0; CHUNK], from_low: 0 };

    /// Of frame `i`.
    #[inline(always)]
    pub fn put(&mut self, i: usize, key: [u64; K], hash: u64, from_low: bool) {
        self.words.iter_mut().zip(key).for_each(|(column, word)| column[i] = word);
        self.hashes[i] = hash;
        self.from_low |= Mask::from(from_low) << i;
    }
}

impl Keys<3> {
    /// Of so many [`LANES`] frames of plain IPv4, of whom `whose` says of each.
    #[inline(always)]
    pub fn make<L: Lanes>(&mut self, parts: usize, columns: &HeaderBatch, whose: &[u32; CHUNK], secrets: &[u64; 2]) {
        let word = |w: usize| columns.word(w).as_chunks::<LANES>().0;
        let [src, dst, sport, dport, protocol] = [SRC, DST, SPORT, DPORT, PROTOCOL].map(word);
        let [a, b, c] = &mut self.words;
        for part in 0..parts {
            let mut from_low = [0; LANES];
            for i in 0..LANES {
                // No port is none: 0, which NO_PORT is in 16 bits.
                let from = (src[part][i], sport[part][i] & 0xffff);
                let ends = Ends4::new(from, (dst[part][i], dport[part][i] & 0xffff));
                let at = part * LANES + i;
                let key = ends.key(whose[at], protocol[part][i]);
                [a[at], b[at], c[at]] = key;
                self.hashes[at] = hash4(&key, secrets);
                from_low[i] = u32::from(ends.from_low);
            }
            self.from_low |= Mask::from(L::inside(&from_low, 1, 0)) << (part * LANES);
        }
    }
}

/// See the module.
#[inline(always)]
pub(super) fn hash4(key: &[u64; 3], secrets: &[u64; 2]) -> u64 {
    const LOWER: u64 = u32::MAX as u64;
    let plus = |word: u64, secret: u64| word.wrapping_add(secret) & LOWER;
    let ends = plus(key[1], secrets[0]) * plus(key[1] >> 32, secrets[0] >> 32);
    // The protocol over some bits of the port of the switch, of which there are few: 16 keys at most are alike.
    let others = plus(key[0], secrets[1]) * plus(key[0] >> 32 ^ key[2] << 24, secrets[1] >> 32);
    let mut h = ends.wrapping_add(others);
    // As MurmurHash3 ends.
    h = (h ^ h >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    h = (h ^ h >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ h >> 33
}

/// Both ends of an IPv4 frame, in the order that its connection has them: by address, then by port.
#[derive(Clone, Copy)]
pub(super) struct Ends4 {
    /// Addresses.
    pub low: u32,
    pub high: u32,
    /// The lower end's in the upper half.
    pub ports: u32,
    /// The lower end sent it.
    pub from_low: bool,
}

impl Ends4 {
    /// Ports are below 65,536. Without a branch: for whole bursts, the compiler makes vectors of it.
    #[inline(always)]
    pub fn new((src, sport): (u32, u32), (dst, dport): (u32, u32)) -> Ends4 {
        let from_low = (src < dst) | ((src == dst) & (sport <= dport));
        let ports = if from_low { sport << 16 | dport } else { dport << 16 | sport };
        Ends4 { low: src.min(dst), high: src.max(dst), ports, from_low }
    }

    /// The key of a connection between them.
    #[inline(always)]
    pub fn key(&self, whose: u32, protocol: u32) -> [u64; 3] {
        let two = |a: u32, b: u32| u64::from(a) << 32 | u64::from(b);
        [two(whose, self.ports), two(self.low, self.high), protocol.into()]
    }
}

/// The key of IPv6 between two ends, the lower one first.
#[inline(always)]
pub(super) fn between6(whose: Zone, (low, high): ([u64; 3], [u64; 3]), protocol: u64) -> [u64; 6] {
    [u64::from(whose.bits()) << 32 | low[2] << 16 | high[2], low[0], low[1], high[0], high[1], protocol]
}

/// The words of a key that IPv4 has.
#[inline(always)]
pub(super) fn key4(key: &[u64; 6]) -> &[u64; 3] {
    key.first_chunk().expect("six are more than three")
}
