//! The headers of a chunk of a burst, word by word: what one word is in each frame stands side by side, so that all frames are
//! compared at once.
//!
//! Most frames are plain: IPv4 without options, in one piece, or TCP, UDP, SCTP or ICMP right behind IPv6's header, with
//! as much behind that as its protocol takes and 20 octets at least. They are not read one after the other: 32 octets of each
//! from before the EtherType on, and of IPv6 the next 32, are rows that the processor turns into columns, 16 at
//! once. The others are read by [`Headers::read`].
//!
//! **Measured** (`filter`, `track` and `secure` of the benchmark `instructions`, ns a frame over forwarding): 4, 12 and 4,
//! where it had been 8, 19 and 11 with every frame read by itself. To clear all words, or to load them across lines,
//! is slower.

use arrayvec::ArrayVec;

use super::{
    COLUMNS, DPORT, DST, DST_MAC, DST6, ETHERTYPE, Family, Headers, Layer4, PROTOCOL, SPORT, SRC, SRC_MAC, SRC6, STATE,
    VLAN, state,
};
use crate::{
    Frame, SegmentId,
    burst::{CHUNK, ChunkMask as Mask, Meta, iter_bits, low_bits},
    intrinsics::{LANES, Lanes, ROW, SimdKernel, dispatch_simd},
    packet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6},
};

/// One word of a chunk.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(crate) struct Column(pub [u32; CHUNK]);

impl Column {
    const ZERO: Column = Column([0; CHUNK]);
}

/// The words of plain IPv4.
const PLAIN: usize = SRC6;

/// See the module.
pub(crate) struct HeaderBatch {
    /// Only [`PLAIN`] of them as long as no list has others: to clear those as well took a twentieth of all filtering.
    words: ArrayVec<Column, COLUMNS>,
    /// Of each [`Family`], a bit for each frame.
    families: [Mask; 3],
    /// A bit for each frame that is plain.
    plain: Mask,
    /// A bit for each frame whose state says that its connection goes on.
    established: Mask,
    /// All that was read of those that are not, and where that is.
    rows: ArrayVec<Headers, CHUNK>,
    places: [u8; CHUNK],
}

impl HeaderBatch {
    #[inline(always)]
    fn new() -> Self {
        let mut words = ArrayVec::new();
        (0..PLAIN).for_each(|_| words.push(Column::ZERO));
        HeaderBatch { words, families: [0; 3], plain: 0, established: 0, rows: ArrayVec::new(), places: [0; CHUNK] }
    }

    /// Has all words.
    fn complete(&mut self) {
        while self.words.try_push(Column::ZERO).is_ok() {}
    }

    /// Of at most [`CHUNK`] frames whose headers were read before.
    pub fn of(headers: &[Headers]) -> Self {
        let mut c = HeaderBatch::new();
        for (i, h) in headers.iter().enumerate().take(CHUNK) {
            c.put(i, h);
        }
        c
    }

    /// Frame `i` is what was read of it.
    fn put(&mut self, i: usize, h: &Headers) {
        self.complete();
        self.families[h.family as usize] |= 1 << i;
        self.places[i] = self.rows.len() as u8;
        self.rows.push(*h);
        self.replace(i, h);
    }

    /// Frame `i`, which was put before, is this instead.
    fn replace(&mut self, i: usize, h: &Headers) {
        self.rows[usize::from(self.places[i])] = *h;
        for (column, word) in self.words.iter_mut().zip(&h.words) {
            column.0[i] = *word;
        }
    }

    /// One word of each frame; 0 where no frame has it.
    #[inline(always)]
    pub fn word(&self, word: usize) -> &[u32; CHUNK] {
        match self.words.as_slice().get(word) {
            Some(column) => &column.0,
            None => absent(),
        }
    }

    /// A bit for each frame of a family.
    #[inline(always)]
    pub fn of_family(&self, family: usize) -> Mask {
        self.families[family]
    }

    /// The family of frame `i`, as a number.
    pub fn family(&self, i: usize) -> usize {
        self.families.iter().position(|f| f >> i & 1 != 0).unwrap_or(Family::Other as usize)
    }

    /// A bit for each plain frame.
    #[inline(always)]
    pub fn plain(&self) -> Mask {
        self.plain
    }

    /// A bit for each frame where a word is this.
    #[inline(always)]
    pub fn with<L: Lanes>(&self, word: usize, value: u32) -> Mask {
        inside::<L>(self.word(word), CHUNK / LANES, (value, 0))
    }

    /// The frames whose bits are in `of` are of connections that go on: see [`STATE`].
    #[inline(always)]
    pub fn set_established(&mut self, of: Mask) {
        self.established |= of;
        set(&mut self.words[STATE].0, of, state::number(state::ESTABLISHED));
    }

    /// What connection tracking says of frame `i`.
    #[inline(always)]
    pub fn set_state(&mut self, i: usize, state: u32) {
        let commit_at = Mask::from(state == state::number(state::ESTABLISHED));
        self.established = self.established & !(1 << i) | commit_at << i;
        self.words[STATE].0[i] = state;
    }

    /// Whether all frames whose bits are in `of` are of connections that go on.
    #[inline(always)]
    pub fn are_established(&self, of: Mask) -> bool {
        of & !self.established == 0
    }

    /// Takes over, of frames `from` on, what their rows say if they are IPv4, and says which of them are plain: a bit
    /// each, the first lowest.
    #[inline(always)]
    fn put_v4<L: Lanes>(&mut self, from: usize, rows: &Rows) -> u32 {
        let mut is_plain = [0; LANES];
        let Some(w) = self.words.first_chunk_mut::<PLAIN>() else { return 0 };
        for i in 0..LANES {
            let (version, total) = (rows[1][i] & 0xff, (rows[1][i] >> 16).swap_bytes() >> 16);
            let fragment = rows[2][i] & 0xff3f_0000;
            let protocol = rows[3][i] >> 8 & 0xff;
            let l4 = Layer4::of(protocol, rows[6][i].swap_bytes());
            is_plain[i] = u32::from((rows[0][i] >> 16).swap_bytes() >> 16 == u32::from(ETHERTYPE_IPV4))
                & u32::from(version == 0x45)
                & u32::from(fragment == 0)
                & u32::from(total >= 20 + l4.needed);
            (w[SRC].0[from + i], w[DST].0[from + i]) = (rows[4][i].swap_bytes(), rows[5][i].swap_bytes());
            (w[SPORT].0[from + i], w[DPORT].0[from + i], w[PROTOCOL].0[from + i]) = (l4.sport, l4.dport, protocol);
        }
        L::inside(&is_plain, 1, 0)
    }

    /// The same of those whose bits are in `of`, which are IPv6; `more` are the rows behind.
    #[inline(always)]
    fn put_v6<L: Lanes>(&mut self, from: usize, of: u32, rows: &Rows, more: &Rows) -> u32 {
        self.complete();
        let Some(w) = self.words.first_chunk_mut::<COLUMNS>() else { return 0 };
        let mut is_plain = [0; LANES];
        for i in 0..LANES {
            let (version, len) = (rows[1][i] >> 4 & 15, (rows[2][i] & 0xffff).swap_bytes() >> 16);
            let protocol = rows[2][i] >> 16 & 0xff;
            let l4 = Layer4::of(protocol, more[3][i].swap_bytes());
            is_plain[i] = of >> i & 1 & u32::from(version == 6) & u32::from(l4.needed != 0 && len >= l4.needed);
            let mut put = |word: usize, value: u32| {
                let w = &mut w[word].0[from + i];
                *w = if is_plain[i] != 0 { value } else { *w };
            };
            put(SRC, rows[3][i].swap_bytes());
            put(SRC6, rows[4][i].swap_bytes());
            put(SRC6 + 1, rows[5][i].swap_bytes());
            put(SRC6 + 2, rows[6][i].swap_bytes());
            put(DST, rows[7][i].swap_bytes());
            put(DST6, more[0][i].swap_bytes());
            put(DST6 + 1, more[1][i].swap_bytes());
            put(DST6 + 2, more[2][i].swap_bytes());
            put(SPORT, l4.sport);
            put(DPORT, l4.dport);
            put(PROTOCOL, protocol);
            put(ETHERTYPE, u32::from(ETHERTYPE_IPV6));
        }
        L::inside(&is_plain, 1, 0)
    }
}

/// Of a word that no frame has: apart, so that it is a branch that is never taken.
#[cold]
fn absent() -> &'static [u32; CHUNK] {
    &[0; CHUNK]
}

/// 32 octets of each of some frames, word by word as they lie in memory.
type Rows = [[u32; LANES]; ROW / 4];

/// The frames of a chunk, and what filters ask of them.
pub(crate) struct Heads<'a, F> {
    burst: &'a [F],
    meta: &'a [Meta],
    pub columns: HeaderBatch,
    has_macs: bool,
    /// Whether any is a fragment, or can't be read to its end, or has an invalid source.
    pub needs_slow_path: bool,
}

impl<'a, F: Frame> Heads<'a, F> {
    /// Of these, not read yet.
    #[inline(always)]
    pub fn new(burst: &'a [F], meta: &'a [Meta]) -> Self {
        debug_assert_eq!(burst.len(), meta.len());
        Heads { burst, meta, columns: HeaderBatch::new(), has_macs: false, needs_slow_path: false }
    }

    /// Reads them where they are to stay, but for MAC addresses.
    #[inline(always)]
    pub fn read(&mut self) {
        dispatch_simd(Read { heads: self });
        let c = &mut self.columns;
        for i in iter_bits(low_bits(self.burst.len()) & !c.plain) {
            self.read_other(i);
        }
    }

    #[inline(never)]
    fn read_other(&mut self, i: usize) {
        let h = self.read_one(i);
        self.needs_slow_path |= h.broken | (h.words[super::FRAGMENT] != 0);
        self.columns.put(i, &h);
    }

    #[inline(always)]
    fn read_one(&self, i: usize) -> Headers {
        let m = &self.meta[i];
        Headers::read(self.burst[i].head(), m.class.header_len() as usize, m.class.vid(), m.dst.mac(), m.src.mac())
    }

    /// Adds MAC addresses, if they are not there.
    pub fn with_macs(&mut self) {
        if std::mem::replace(&mut self.has_macs, true) {
            return;
        }
        self.columns.complete();
        for (i, m) in self.meta.iter().enumerate().take(self.burst.len()) {
            let w = &mut self.columns.words;
            let (src, dst) = (m.src.mac().bits(), m.dst.mac().bits());
            (w[SRC_MAC].0[i], w[SRC_MAC + 1].0[i]) = ((src >> 16) as u32, src as u32 & 0xffff);
            (w[DST_MAC].0[i], w[DST_MAC + 1].0[i]) = ((dst >> 16) as u32, dst as u32 & 0xffff);
        }
    }

    /// All that was read of frame `i`.
    #[inline(always)]
    pub fn row(&self, i: usize) -> Headers {
        let c = &self.columns;
        let mut h = if c.plain >> i & 1 != 0 { self.read_one(i) } else { c.rows[usize::from(c.places[i])] };
        h.words[STATE] = c.words[STATE].0[i];
        h
    }

    /// Reads frame `i` again, if it is not plain, and changes what was read with its octets; whether it can't be read to
    /// its end.
    pub fn change(&mut self, i: usize, change: impl FnOnce(&mut Headers, &[u8])) -> bool {
        if self.columns.plain >> i & 1 != 0 {
            return false;
        }
        let mut h = self.read_one(i);
        change(&mut h, self.burst[i].head());
        self.columns.replace(i, &h);
        h.broken
    }

    /// The frames.
    #[inline(always)]
    pub fn frames(&self) -> &'a [F] {
        self.burst
    }

    /// What the stages before found out about them.
    #[inline(always)]
    pub fn meta(&self) -> &'a [Meta] {
        self.meta
    }
}

/// Reads the plain ones.
struct Read<'a, 'b, F> {
    heads: &'a mut Heads<'b, F>,
}

impl<F: Frame> SimdKernel for Read<'_, '_, F> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Heads { burst, meta, columns, needs_slow_path, .. } = self.heads;
        columns.words[ETHERTYPE] = Column([u32::from(ETHERTYPE_IPV4); CHUNK]);
        let mut vlans = Column::ZERO;
        let n = burst.len().min(meta.len()).min(CHUNK);
        let mut from = 0;
        while from < n {
            let (mut rows, mut more, mut v6) = ([&[0; ROW]; LANES], [&[0; ROW]; LANES], 0);
            for i in from..n.min(from + LANES) {
                let (m, head) = (&meta[i], burst[i].head());
                let l3 = m.class.header_len() as usize;
                vlans.0[i] = u32::from(m.class.vid());
                *needs_slow_path |= (m.src.segment() == SegmentId::NONE) | m.src.is_invalid_source();
                // As much as IPv4's header and TCP's take.
                if let Some(at) = head.get(l3 - 4..)
                    && at.len() >= 44
                    && let Some((row, behind)) = at.split_first_chunk()
                {
                    rows[i - from] = row;
                    // IPv6's and TCP's.
                    if at[2..4] == ETHERTYPE_IPV6.to_be_bytes()
                        && let Some(next) = behind.first_chunk()
                    {
                        more[i - from] = next;
                        v6 |= 1 << (i - from);
                    }
                }
            }
            let rows = L::transpose(&rows);
            let plain = Mask::from(columns.put_v4::<L>(from, &rows)) << from;
            columns.families[Family::V4 as usize] |= plain;
            columns.plain |= plain;
            if v6 != 0 {
                let plain = Mask::from(columns.put_v6::<L>(from, v6, &rows, &L::transpose(&more))) << from;
                columns.families[Family::V6 as usize] |= plain;
                columns.plain |= plain;
            }
            from += LANES;
        }
        columns.words[VLAN] = vlans;
    }
}

/// Sets the words of all frames whose bits are in `of`. Not bit by bit: mostly there are many.
#[inline(always)]
pub(crate) fn set(words: &mut [u32; CHUNK], of: Mask, value: u32) {
    // In parts, because what shifts words of 32 bits does more of them at once.
    for (part, words) in words.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let of = (of >> (part * 32)) as u32;
        for (i, word) in words.iter_mut().enumerate() {
            *word = if of >> i & 1 != 0 { value } else { *word };
        }
    }
}

/// A bit for each frame whose word is at least `low` and exceeds it by at most `width`, of so many [`LANES`] of them.
#[inline(always)]
pub(crate) fn inside<L: Lanes>(column: &[u32; CHUNK], parts: usize, (low, width): (u32, u32)) -> Mask {
    let mut hits = 0;
    for (i, part) in column.as_chunks::<LANES>().0.iter().enumerate().take(parts) {
        hits |= Mask::from(L::inside(part, low, width)) << (i * LANES);
    }
    hits
}

/// How many times [`LANES`] frames the last of `of` is among.
#[inline(always)]
pub(crate) fn parts(of: Mask) -> usize {
    (Mask::BITS - of.leading_zeros()).div_ceil(LANES as u32) as usize
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::{
        MacAddr,
        frame::HeapFrame,
        packet::headers::WORDS,
        tables::acl::tests::frame,
        tables::mac::Key,
        vlan::{TPID_8021Q, Tag, VlanTagInfo},
    };

    /// A frame as it may come: with a tag or none, some octets changed, longer than its packet.
    fn on_the_wire() -> impl Strategy<Value = (HeapFrame, Meta)> {
        let changes = vec((10usize..44, any::<u8>()), 0..3);
        let change = prop_oneof![3 => Just(Vec::new()), 2 => changes];
        (frame(), proptest::option::of(0u16..0x2000), change, 0usize..20).prop_map(
            |((mut octets, dst, src, vid, _), tag, changes, padding)| {
                octets.resize(octets.len().max(14) + padding, 0);
                for (at, octet) in changes {
                    if let Some(o) = octets.get_mut(at) {
                        *o = octet;
                    }
                }
                if let Some(tci) = tag {
                    let [a, b] = tci.to_be_bytes();
                    octets.splice(12..12, [0x81, 0, a, b]);
                }
                let class = VlanTagInfo::new(tag.map_or(Tag::NONE, |tci| Tag::new(TPID_8021Q, tci)), TPID_8021Q, vid);
                let key = |mac: MacAddr| Key::new(mac, SegmentId(1));
                (HeapFrame::new(octets), Meta { dst: key(dst), src: key(src), class, ..Meta::EMPTY })
            },
        )
    }

    proptest! {
        #[test]
        fn columns_are_what_reading_finds(frames in vec(on_the_wire(), 1..=CHUNK)) {
            let (frames, meta): (Vec<_>, Vec<_>) = frames.into_iter().unzip();
            let mut heads = Heads::new(&frames, &meta);
            heads.read();
            heads.with_macs();
            for (i, frame) in frames.iter().enumerate() {
                let read = heads.read_one(i);
                let words: [u32; COLUMNS] = std::array::from_fn(|w| heads.columns.word(w)[i]);
                prop_assert_eq!(&words[..], &read.words[..COLUMNS], "{:?}", frame.octets());
                prop_assert_eq!(heads.columns.family(i), read.family as usize);
                prop_assert_eq!(&heads.row(i).words[..WORDS], &read.words[..]);
                if heads.columns.plain() >> i & 1 != 0 {
                    prop_assert!(!read.broken && read.words[super::super::FRAGMENT] == 0);
                }
            }
        }
    }
}
