//! What goes on, found together: most frames of a port that tracks are plain and of open connections. Their signatures
//! are asked for one by one, each one's entry a few frames later, and what is there is looked at when all were asked for.
//!
//! Frames of one connection stay in their order: from the first on that has to be looked at by itself, all are.
//!
//! **Measured** (the engine's benchmark, ns a frame): ends ordered by columns 19.2 to 17.1; entries asked for between keys,
//! not behind all of them, 22.7 to 21.5 with 50,000 connections. Not kept: looking at the first entries before the last
//! ones are asked for, by frames (4 more) or by chunks of 8 (nothing).

use arrayvec::ArrayVec;

use super::{
    Conntrack, Found, Zone,
    key::{Ends4, between6},
    tcp,
};
use crate::{
    BURST, Frame, PortIdx,
    conntrack::{
        table::{Slot, Table},
        tcp::{Fit, Segment},
    },
    headers::{DPORT, DST, DST6, Family, Heads, ICMP, ICMPV6, PROTOCOL, SPORT, SRC, SRC6, TCP, bits},
    stage::egress::overhead,
};

/// A frame's signatures are there when those of the seventh behind it were asked for.
const LAG: usize = 7;

/// Which connection a frame is of.
struct Wanted<const K: usize> {
    /// Its place in the burst.
    i: usize,
    key: [u64; K],
    hash: u64,
    slot: Slot,
    from_low: bool,
}

/// A frame of a connection that goes on.
pub(crate) struct Going {
    /// Its place in the burst.
    i: usize,
    found: Found,
}

impl Conntrack {
    /// Of the plain frames whose bits are in `of`, which came or leave by `port`: finds those of connections that this
    /// filter let pass, and says which they are. Where they go on whatever the lists say of them (`goes_on`), their
    /// connections take them in at once, at that second; otherwise that is left to [`Conntrack::advance_all`].
    #[inline(always)]
    pub(crate) fn find_all<F: Frame>(
        &self,
        heads: &Heads<'_, F>,
        of: u32,
        (port, filter): (PortIdx, u32),
        goes_on: Option<u32>,
        going: &mut ArrayVec<Going, BURST>,
    ) -> u32 {
        let some_are = |family: Family| of & heads.columns.of_family(family as usize) != 0;
        let mut known = 0;
        if some_are(Family::V4) {
            known |= self.find_v4(heads, of, (port, filter), goes_on, going);
        }
        if some_are(Family::V6) {
            known |= self.find_v6(heads, of, (port, filter), goes_on, going);
        }
        known
    }

    #[inline(never)]
    fn find_v4<F: Frame>(
        &self,
        heads: &Heads<'_, F>,
        of: u32,
        (port, filter): (PortIdx, u32),
        goes_on: Option<u32>,
        going: &mut ArrayVec<Going, BURST>,
    ) -> u32 {
        let [src, dst, sport, dport, protocol] = [SRC, DST, SPORT, DPORT, PROTOCOL].map(|w| heads.columns.word(w));
        // By columns, so that vectors do it. No port is none: 0, which NO_PORT is in 16 bits.
        let (mut low, mut high, mut ports, mut from_low) = ([0; BURST], [0; BURST], [0; BURST], [0; BURST]);
        for i in 0..BURST {
            let ends = Ends4::new((src[i], sport[i] & 0xffff), (dst[i], dport[i] & 0xffff));
            (low[i], high[i], ports[i], from_low[i]) = (ends.low, ends.high, ends.ports, u32::from(ends.from_low));
        }
        let key = |i: usize| {
            let ends = Ends4 { low: low[i], high: high[i], ports: ports[i], from_low: from_low[i] != 0 };
            let key = ends.key(whose(heads, port, i), protocol[i]);
            (key, self.hash4(&key), ends.from_low)
        };
        self.find_family((Family::V4, &self.v4), heads, of, (filter, goes_on), key, going)
    }

    #[inline(never)]
    fn find_v6<F: Frame>(
        &self,
        heads: &Heads<'_, F>,
        of: u32,
        (port, filter): (PortIdx, u32),
        goes_on: Option<u32>,
        going: &mut ArrayVec<Going, BURST>,
    ) -> u32 {
        let word = |word: usize, i: usize| u64::from(heads.columns.word(word)[i]);
        let key = |i: usize| {
            let two = |a, b| word(a, i) << 32 | word(b, i);
            let a = [two(SRC, SRC6), two(SRC6 + 1, SRC6 + 2), word(SPORT, i) & 0xffff];
            let b = [two(DST, DST6), two(DST6 + 1, DST6 + 2), word(DPORT, i) & 0xffff];
            let key = between6(whose(heads, port, i), if a <= b { (a, b) } else { (b, a) }, word(PROTOCOL, i));
            (key, self.hash(&key), a <= b)
        };
        self.find_family((Family::V6, &self.v6), heads, of, (filter, goes_on), key, going)
    }

    #[inline(always)]
    fn find_family<F: Frame, const K: usize>(
        &self,
        (family, table): (Family, &Table<K>),
        heads: &Heads<'_, F>,
        of: u32,
        (filter, goes_on): (u32, Option<u32>),
        key: impl Fn(usize) -> ([u64; K], u64, bool),
        going: &mut ArrayVec<Going, BURST>,
    ) -> u32 {
        let columns = &heads.columns;
        let of = of & columns.of_family(family as usize);
        let other = of & !columns.plain();
        let before_other = (other & other.wrapping_neg()).wrapping_sub(1);
        let mut wanted = ArrayVec::<Wanted<K>, BURST>::new();
        for i in bits(of & before_other) {
            // Type and code of ICMP are no ports.
            if matches!(columns.word(PROTOCOL)[i] as u8, ICMP | ICMPV6) {
                continue;
            }
            let ((key, hash, from_low), mut slot) = (key(i), Slot::NONE);
            table.prefetch(hash, &mut slot);
            wanted.push(Wanted { i, key, hash, slot, from_low });
            if let Some(w) = wanted.len().checked_sub(LAG + 1).and_then(|before| wanted.get_mut(before)) {
                table.prefetch_entry(w.hash, &mut w.slot);
            }
        }
        let last = wanted.len().saturating_sub(LAG);
        wanted[last..].iter_mut().for_each(|w| table.prefetch_entry(w.hash, &mut w.slot));
        let mut known = 0;
        for w in &mut wanted {
            if !table.find(w.hash, &w.key, &mut w.slot) {
                continue;
            }
            let (found, state) = self.found(w.slot, family, w.from_low);
            // Nor if its slot was given to another one, whose flags these are.
            if found.refused || found.filter != filter || !table.is_still(w.slot) {
                continue;
            }
            let protocol = columns.word(PROTOCOL)[w.i] as u8;
            let Ok(segment) = plain_segment(protocol, family, heads, w.i) else { break };
            if segment.as_ref().is_some_and(|t| tcp::fits(state, found.end, t) != Fit::Yes) {
                break;
            }
            match goes_on {
                Some(now_s) => self.take((&found, state), protocol, segment.as_ref(), now_s),
                None => going.push(Going { i: w.i, found }),
            }
            known |= 1 << w.i;
        }
        known
    }

    /// Takes in those of the frames whose bits are in `of`, which were let pass.
    pub(crate) fn advance_all<F: Frame>(&self, heads: &Heads<'_, F>, going: &[Going], of: u32, now_s: u32) {
        for Going { i, found } in going.iter().filter(|g| of >> g.i & 1 != 0) {
            let protocol = heads.columns.word(PROTOCOL)[*i] as u8;
            if let Ok(segment) = plain_segment(protocol, found.family, heads, *i)
                && self.is_still(found)
            {
                self.take((found, self.state(found)), protocol, segment.as_ref(), now_s);
            }
        }
    }
}

/// The upper half of frame `i`'s key.
#[inline(always)]
fn whose<F: Frame>(heads: &Heads<'_, F>, port: PortIdx, i: usize) -> u64 {
    Zone { port, segment: heads.meta()[i].dst.segment() }.bits()
}

/// A segment that is none.
struct Unreadable;

/// The TCP segment of plain frame `i`, if it is TCP.
#[inline(always)]
fn plain_segment<F: Frame>(
    protocol: u8,
    family: Family,
    heads: &Heads<'_, F>,
    i: usize,
) -> Result<Option<Segment>, Unreadable> {
    if protocol != TCP {
        return Ok(None);
    }
    let (head, l3) = (heads.frames()[i].head(), overhead(heads.meta()[i].class) as usize);
    // IPv6's length is without its header (RFC 8200, 3).
    let (length_at, header, counted) = if family == Family::V6 { (l3 + 4, 40, 40) } else { (l3 + 2, 20, 0) };
    let length = head.get(length_at..).and_then(<[u8]>::first_chunk).ok_or(Unreadable)?;
    let end = l3 as u32 + counted + u32::from(u16::from_be_bytes(*length));
    Segment::read(head, l3 as u16 + header, end).map(Some).ok_or(Unreadable)
}
