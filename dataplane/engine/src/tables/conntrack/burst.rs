//! What goes on, found together: most frames of a port that tracks are plain and of open connections. Their keys and hashes
//! are made together; then their signatures are asked for one by one, each one's entry a few frames later, and what is
//! there is looked at when all were asked for.
//!
//! Frames of one connection stay in their order: from the first one on that has to be looked at by itself, all of it are.
//!
//! **Measured** (the engine's benchmark `track`, ns a frame): keys and hashes made by columns, and state read with the key,
//! 16.8 to 16.3; with that, entries asked for between signatures, not behind all of them, 16.3 to 14.9. Not kept: looking at
//! the first entries before the last ones are asked for (nothing).

use arrayvec::ArrayVec;

use super::{
    Conntrack, Found, Zone,
    key::{Keys, between6},
};
use crate::{
    Frame, PortIdx,
    burst::{CHUNK, ChunkMask as Mask, filter_mask, iter_bits},
    intrinsics::{LANES, Lanes, SimdKernel, dispatch_simd},
    packet::headers::{DPORT, DST, DST6, Family, Heads, ICMP, ICMPV6, PROTOCOL, SPORT, SRC, SRC6, TCP, parts},
    tables::conntrack::{
        table::{Slot, Table},
        tcp::{self, Fit, Segment, What},
    },
};

/// A frame's signatures are there when those of the seventh behind it were asked for.
const LAG: usize = 7;

/// What is asked of the connections of a chunk.
pub(crate) struct Wanted<'a, 'b, F> {
    pub heads: &'a Heads<'b, F>,
    /// Of these frames.
    pub of: Mask,
    /// They came or leave by this port.
    pub port: PortIdx,
    /// It let them pass.
    pub filter: u32,
    /// They go on whatever the lists say of them, at this second.
    pub commit_at: Option<u32>,
}

/// A frame of a connection that goes on.
pub(crate) struct Established {
    /// Its place in the chunk.
    i: usize,
    found: Found,
}

impl Conntrack {
    /// Finds the connections of plain frames that go on, and says which frames those are. What goes on whatever the lists
    /// say is taken in at once; otherwise that is left to [`Conntrack::advance_all`].
    #[inline(always)]
    pub(crate) fn find_all<F: Frame>(
        &self,
        wanted: &Wanted<'_, '_, F>,
        going: &mut ArrayVec<Established, CHUNK>,
    ) -> Mask {
        let mut known = 0;
        for family in [Family::V4, Family::V6] {
            if wanted.of & wanted.heads.columns.of_family(family as usize) != 0 {
                dispatch_simd(Find { all: self, wanted, family, going, known: &mut known });
            }
        }
        known
    }

    /// Takes in those of the frames whose bits are in `of`, which were let pass.
    pub(crate) fn advance_all<F: Frame>(&self, heads: &Heads<'_, F>, going: &[Established], of: Mask, now_s: u32) {
        for Established { i, found } in going.iter().filter(|g| of >> g.i & 1 != 0) {
            let protocol = heads.columns.word(PROTOCOL)[*i] as u8;
            let segment = if protocol == TCP { plain_segment(found.family, heads, *i) } else { None };
            self.take_if_still(found, protocol, segment.as_ref(), now_s);
        }
    }
}

/// See [`Conntrack::find_all`].
struct Find<'a, 'b, 'c, F> {
    all: &'a Conntrack,
    wanted: &'a Wanted<'b, 'c, F>,
    family: Family,
    going: &'a mut ArrayVec<Established, CHUNK>,
    known: &'a mut Mask,
}

impl<F: Frame> SimdKernel for Find<'_, '_, '_, F> {
    #[inline(always)]
    fn run<L: Lanes>(mut self) {
        let all = self.all;
        let of = self.wanted.of & self.wanted.heads.columns.of_family(self.family as usize);
        *self.known |= match self.family {
            Family::V6 => self.find::<L, _>(&all.v6, of, &self.keys_v6(of)),
            _ => self.find::<L, _>(&all.v4, of, &self.keys_v4::<L>(of)),
        };
    }
}

impl<F: Frame> Find<'_, '_, '_, F> {
    /// The plain frames, but for those behind others of what may be the same connection.
    #[inline(always)]
    fn plain<L: Lanes>(&self, of: Mask, hashes: &[u64; CHUNK]) -> Mask {
        let is_plain = self.wanted.heads.columns.plain();
        // Type and code of ICMP are no ports.
        let mut plain = of & is_plain & !self.with::<L>(ICMP) & !self.with::<L>(ICMPV6);
        for i in iter_bits(of & !is_plain) {
            plain &= !filter_mask(plain & from(i), |j| hashes[j] == hashes[i]);
        }
        plain
    }

    #[inline(always)]
    fn with<L: Lanes>(&self, protocol: u8) -> Mask {
        self.wanted.heads.columns.with::<L>(PROTOCOL, protocol.into())
    }

    #[inline(always)]
    fn zone(&self, i: usize) -> Zone {
        Zone { port: self.wanted.port, segment: self.wanted.heads.meta()[i].dst.segment() }
    }

    #[inline(always)]
    fn keys_v4<L: Lanes>(&self, of: Mask) -> Keys<3> {
        let mut whose = [0; CHUNK];
        for i in iter_bits(of) {
            whose[i] = self.zone(i).bits();
        }
        let mut keys = Keys::ZERO;
        keys.make::<L>(parts(of), &self.wanted.heads.columns, &whose, &self.all.secrets);
        keys
    }

    #[inline(always)]
    fn keys_v6(&self, of: Mask) -> Keys<6> {
        let mut keys = Keys::ZERO;
        for i in iter_bits(of) {
            let word = |word: usize| u64::from(self.wanted.heads.columns.word(word)[i]);
            let two = |a, b| word(a) << 32 | word(b);
            let a = [two(SRC, SRC6), two(SRC6 + 1, SRC6 + 2), word(SPORT) & 0xffff];
            let b = [two(DST, DST6), two(DST6 + 1, DST6 + 2), word(DPORT) & 0xffff];
            let key = between6(self.zone(i), if a <= b { (a, b) } else { (b, a) }, word(PROTOCOL));
            keys.put(i, key, self.all.hash(&key), a <= b);
        }
        keys
    }

    #[inline(always)]
    fn find<L: Lanes, const K: usize>(&mut self, table: &Table<K>, of: Mask, keys: &Keys<K>) -> Mask {
        let Wanted { heads, filter, commit_at, .. } = *self.wanted;
        let of = self.plain::<L>(of, &keys.hashes);
        let at = ask::<L, K>(table, of, keys);
        let (mut slots, mut flags) = ([Slot::NONE; CHUNK], [0; CHUNK]);
        let (mut known, mut news) = (0, 0);
        for i in iter_bits(of) {
            let (slot, what, is_there) = table.look(at[i], |w| keys.words[w][i]);
            (slots[i], flags[i]) = (slot, what.flags);
            if !(is_there & what.passes(filter)) {
                continue;
            }
            known |= 1 << i;
            if commit_at.is_none_or(|now_s| what.is_news(now_s)) {
                news |= 1 << i;
            }
        }
        let family = self.family;
        let found = |i: usize| {
            let what = What { flags: flags[i], filter, seen_s: 0 };
            Found::new(slots[i], family, what, keys.from_low >> i & 1 != 0)
        };
        let segments = self.with::<L>(TCP);
        let mut left = known & segments;
        while let Some(i) = iter_bits(left).next() {
            left &= left - 1;
            let found = found(i);
            let fits = |t: &Segment| tcp::fits(table.state(found.slot), found.end, t) == Fit::Yes;
            match plain_segment(family, heads, i).filter(fits) {
                Some(t) => self.commit(i, found, Some(&t)),
                None => {
                    let alone = filter_mask(known & from(i), |j| slots[j].is_same_place(slots[i]));
                    (known, left) = (known & !alone, left & !alone);
                }
            }
        }
        for i in iter_bits(known & news & !segments) {
            self.commit(i, found(i), None);
        }
        known
    }

    #[inline(always)]
    fn commit(&mut self, i: usize, found: Found, segment: Option<&Segment>) {
        match self.wanted.commit_at {
            None => self.going.push(Established { i, found }),
            Some(now_s) => {
                let protocol = self.wanted.heads.columns.word(PROTOCOL)[i] as u8;
                self.all.take_if_still(&found, protocol, segment, now_s);
            }
        }
    }
}

/// Frame `i` and those behind it.
#[inline(always)]
fn from(i: usize) -> Mask {
    Mask::MAX << i
}

/// Where what is asked for is likely: their entries were asked for.
#[inline(always)]
fn ask<L: Lanes, const K: usize>(table: &Table<K>, of: Mask, keys: &Keys<K>) -> [u32; CHUNK] {
    let (mut at, mut signatures) = ([0; CHUNK], [0; CHUNK]);
    for from in (0..parts(of)).map(|p| p * LANES) {
        for i in from..from + LANES {
            (at[i], signatures[i]) = table.likely(keys.hashes[i]);
        }
    }
    let mut behind = iter_bits(of);
    for (n, i) in iter_bits(of).enumerate() {
        table.prefetch(at[i]);
        if n >= LAG
            && let Some(i) = behind.next()
        {
            at[i] = table.prefetch_entry(keys.hashes[i], (at[i], signatures[i]));
        }
    }
    for i in behind {
        at[i] = table.prefetch_entry(keys.hashes[i], (at[i], signatures[i]));
    }
    at
}

/// The TCP segment of plain frame `i`, if it can be read.
#[inline(always)]
fn plain_segment<F: Frame>(family: Family, heads: &Heads<'_, F>, i: usize) -> Option<Segment> {
    let (head, l3) = (heads.frames()[i].head(), heads.meta()[i].class.header_len() as usize);
    // IPv6's length is without its header (RFC 8200, 3).
    let (length_at, header, counted) = if family == Family::V6 { (l3 + 4, 40, 40) } else { (l3 + 2, 20, 0) };
    let length = head.get(length_at..).and_then(<[u8]>::first_chunk)?;
    let end = l3 as u32 + counted + u32::from(u16::from_be_bytes(*length));
    Segment::read(head, l3 as u16 + header, end)
}
