//! What goes on, taken in at once: most frames of a port that tracks are of open connections, and of these nothing has to
//! be known but where they are.

use arrayvec::ArrayVec;

use super::{Conntrack, Zone, between4, tcp};
use crate::{
    BURST, Frame, PortIdx,
    conntrack::{
        table::Slot,
        tcp::{Fit, Segment},
    },
    headers::{DPORT, DST, Family, Heads, ICMP, ICMPV6, PROTOCOL, SPORT, SRC, TCP, bits},
    pipeline::Meta,
    stage::egress::overhead,
};

/// Which connection a frame is of.
#[derive(Clone, Copy)]
struct Wanted {
    /// Its place in the burst.
    i: usize,
    key: [u64; 3],
    hash: u64,
    slot: Slot,
    from_low: bool,
}

impl Conntrack {
    /// Of the plain frames whose bits are in `of`, which passed or leave by `port`: takes in those of connections that
    /// this filter let pass, at this second, and says which they are.
    #[inline(always)]
    pub(crate) fn take_all<F: Frame>(
        &self,
        heads: &Heads<'_, F>,
        of: u32,
        (port, filter): (PortIdx, u32),
        now_s: u32,
    ) -> u32 {
        let (columns, burst, meta) = (&heads.columns, heads.frames(), heads.meta());
        let mut wanted = ArrayVec::<Wanted, BURST>::new();
        let word = |word: usize, i: usize| u64::from(columns.word(word)[i]);
        for i in bits(of & columns.plain()) {
            // No port is none: 0, which NO_PORT is in 16 bits.
            let end = |address, port| word(address, i) << 16 | word(port, i) & 0xffff;
            let (a, b) = (end(SRC, SPORT), end(DST, DPORT));
            let key = between4(Zone { port, segment: meta[i].dst.segment() }.bits(), (a, b), word(PROTOCOL, i));
            let (hash, mut slot) = (self.hash4(&key), Slot::NONE);
            self.v4.prefetch(hash, &mut slot);
            wanted.push(Wanted { i, key, hash, slot, from_low: a <= b });
        }
        for w in &mut wanted {
            self.v4.prefetch_entry(w.hash, &mut w.slot);
        }
        let mut taken = 0;
        for w in &mut wanted {
            let i = w.i;
            let protocol = columns.word(PROTOCOL)[i] as u8;
            // Type and code are no ports.
            let has_ends = !matches!(protocol, ICMP | ICMPV6);
            if has_ends && self.take_in(w, protocol, (&burst[i], &meta[i]), filter, now_s) {
                taken |= 1 << i;
            }
        }
        taken
    }

    #[inline(always)]
    fn take_in<F: Frame>(
        &self,
        w: &mut Wanted,
        protocol: u8,
        (frame, m): (&F, &Meta),
        filter: u32,
        now_s: u32,
    ) -> bool {
        if !self.v4.find(w.hash, &w.key, &mut w.slot) {
            return false;
        }
        let (f, state) = self.found(w.slot, Family::V4, w.from_low);
        if f.refused || f.filter != filter {
            return false;
        }
        let mut segment = None;
        if protocol == TCP {
            let (head, l3) = (frame.head(), overhead(m.class) as usize);
            let Some(total) = head.get(l3 + 2..).and_then(<[u8]>::first_chunk) else { return false };
            segment = Segment::read(head, l3 as u16 + 20, l3 as u32 + u32::from(u16::from_be_bytes(*total)));
            let fits = |t: &Segment| tcp::fits(state, f.end, t) == Fit::Yes;
            if !segment.as_ref().is_some_and(fits) {
                return false;
            }
        }
        self.take((&f, state), protocol, segment.as_ref(), now_s);
        true
    }
}
