//! What a connection's words say, and what a frame of it changes in them. For TCP the states of both ends
//! and their windows, as van Rooij ("Real Stateful TCP Packet Filtering in IP Filter", 2001) has them, and
//! Linux and FreeBSD after him: a segment is of the connection if it lies where the other end said it would
//! take data, and acknowledges what that end has sent.
//!
//! **Ends that forgot the connection** (a crash, a restored snapshot) call again from the same port, and the other end,
//! or this table, still has the old one. The answers of RFC 9293 (3.5.1, 3.10.7) and RFC 5961 (4.2) must pass, or the
//! ends never agree: see [`Fit::Resync`] and [`reopens`].

use std::sync::atomic::Ordering::Relaxed;

#[cfg(test)]
mod oracle;

use super::table::{STATE, State};
use crate::{atomic::AtomicU32, packet::headers::TCP};

/// Seconds: when it was seen last; its flags, see below; when it was begun; the filter by which it was let
/// pass last. Then of both ends, the one that began first: what it sent up to; how far it may send; its
/// window.
pub(super) const SEEN_S: usize = 0;
pub(super) const FLAGS: usize = 1;
pub(super) const BEGUN_S: usize = 2;
pub(super) const FILTER: usize = 3;
const SENT: usize = 4;
const LIMIT: usize = 6;
const WINDOW: usize = 8;

/// Of an end that was open before and has sent nothing since: more than any window (RFC 7323, 2.3).
const UNKNOWN_WINDOW: u32 = 1 << 30;

/// The TCP state of each end, 3 bits each: see [`End`].
const END_BITS: u32 = 3;
/// The end whose address is the lower one began it.
pub(super) const LOW_BEGAN: u32 = 1 << 8;
/// The station behind the port began it.
pub(super) const FROM_PORT: u32 = 1 << 9;
/// Both ends were heard of.
pub(super) const SEEN_REPLY: u32 = 1 << 10;
/// The rules changed since, and do not let it pass any more.
pub(super) const REFUSED: u32 = 1 << 11;
/// Met in the middle: its windows' scales are not known.
const MIDSTREAM: u32 = 1 << 12;
/// See [`is_assured`]: it need not be asked again.
pub(super) const ASSURED: u32 = 1 << 13;
/// Each end's window scale, 4 bits each.
const SCALE: u32 = 16;
/// Each end said its scale.
const SCALED: u32 = 1 << 24;
/// The end that began it sent another SYN while both ends were open; and of the acknowledgement that this SYN asks for,
/// the lower bits, of which there is room for so many.
const SYN_AGAIN: u32 = 1 << 14;
const SYN_ACK: u32 = 26;
const SYN_ACK_BITS: u32 = 0x3f;
/// The end that is taken for the one that began it was not heard of: see [`super::GRACE_S`].
pub(super) const UNCONFIRMED: u32 = 1 << 15;

/// What a connection's state says of it at one instant.
#[derive(Clone, Copy)]
pub(super) struct What {
    pub flags: u32,
    pub filter: u32,
    pub seen_s: u32,
}

impl What {
    #[inline(always)]
    pub fn of(state: &State) -> What {
        What {
            flags: state[FLAGS].load(Relaxed),
            filter: state[FILTER].load(Relaxed),
            seen_s: state[SEEN_S].load(Relaxed),
        }
    }

    /// Let pass under this filter.
    #[inline(always)]
    pub fn passes(self, filter: u32) -> bool {
        (self.flags & REFUSED == 0) & (self.filter == filter)
    }

    /// Whether a frame that is no segment says anything about it.
    #[inline(always)]
    pub fn is_news(self, now_s: u32) -> bool {
        (self.seen_s != now_s) | (self.flags & ASSURED == 0)
    }

    /// Which end a frame is from: 0 is the one that began it.
    #[inline(always)]
    pub fn end(self, from_low: bool) -> usize {
        usize::from((self.flags & LOW_BEGAN != 0) != from_low)
    }
}

/// What is known of a TCP end.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u32)]
pub(super) enum End {
    Silent,
    /// It sent SYN.
    Opening,
    /// Its SYN was acknowledged.
    Open,
    /// It sent FIN.
    Closing,
    /// Its FIN was acknowledged.
    Closed,
    /// One of them sent RST.
    Reset,
}

pub(super) fn end(flags: u32, i: usize) -> End {
    use End::{Closed, Closing, Open, Opening, Reset, Silent};
    [Silent, Opening, Open, Closing, Closed, Reset, Reset, Reset][(flags >> (i as u32 * END_BITS) & 7) as usize]
}

fn with_end(flags: u32, i: usize, e: End) -> u32 {
    let at = i as u32 * END_BITS;
    flags & !(7 << at) | (e as u32) << at
}

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// What a segment says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    flags: u8,
    seq: u32,
    ack: u32,
    window: u32,
    /// In sequence numbers.
    len: u32,
    scale: Option<u32>,
}

impl Segment {
    /// Of a frame that is TCP, and no later fragment, that begins at `l4`, in a packet that ends at `end`.
    #[inline(always)]
    pub fn read(head: &[u8], l4: u16, end: u32) -> Option<Segment> {
        let at = usize::from(l4);
        let p = head.get(at..)?.first_chunk::<20>()?;
        let header = usize::from(p[12] >> 4) * 4;
        let payload = (end as usize).checked_sub(at + header)?;
        let word = |i: usize| u32::from_be_bytes([p[i], p[i + 1], p[i + 2], p[i + 3]]);
        let flags = p[13] & 0x3f;
        let len = payload as u32 + u32::from(flags & FIN) + u32::from(flags & SYN != 0);
        let scale = if flags & SYN == 0 { None } else { window_scale(head.get(at + 20..at + header)?) };
        let window = u32::from(u16::from_be_bytes([p[14], p[15]]));
        (header >= 20).then_some(Segment { flags, seq: word(4), ack: word(8), window, len, scale })
    }

    /// Whether it can begin a connection; one that was begun before we looked can be met by any segment with
    /// an acknowledgement, if that is allowed.
    pub fn begins(&self, midstream: bool) -> bool {
        match self.flags & (SYN | ACK | FIN | RST) {
            SYN => true,
            f => midstream && f & (ACK | SYN | RST) == ACK,
        }
    }

    /// Flags that no segment has together, and none at all.
    pub fn is_nonsense(&self) -> bool {
        let f = self.flags & (SYN | ACK | FIN | RST);
        f == 0 || f & FIN != 0 && f & ACK == 0 || f & SYN != 0 && f & (FIN | RST) != 0
    }
}

/// RFC 7323, 2.2.
fn window_scale(mut options: &[u8]) -> Option<u32> {
    loop {
        options = match options {
            [0, ..] | [] | [_] => return None,
            [1, rest @ ..] => rest,
            [3, 3, shift, ..] => return Some(u32::from(*shift).min(14)),
            [_, len, ..] => options.get(usize::from(*len).max(2)..)?,
        };
    }
}

/// The words of a connection that a frame of end `i` begins: of the other one than 0, only if both were open before.
pub(super) fn begun(segment: Option<&Segment>, now_s: u32, flags: u32, filter: u32, i: usize) -> [u32; STATE] {
    let mut s = [0; STATE];
    (s[SEEN_S], s[BEGUN_S], s[FILTER], s[FLAGS]) = (now_s, now_s, filter, flags);
    let Some(t) = segment else { return s };
    s[SENT + i] = t.seq.wrapping_add(t.len);
    if t.flags & SYN != 0 && i == 0 {
        s[FLAGS] |= End::Opening as u32 | t.scale.map_or(0, |c| SCALED | c << SCALE);
        (s[LIMIT], s[WINDOW]) = (s[SENT], t.window.max(1));
    } else {
        // Both ends were open before: what this end may send, the other end says with its first segment.
        let sender = if t.flags & FIN != 0 { End::Closing } else { End::Open };
        s[FLAGS] = with_end(with_end(s[FLAGS], 1 - i, End::Open), i, sender) | MIDSTREAM;
        let window = t.window.max(1) << 14;
        (s[WINDOW + i], s[LIMIT + i]) = (window, s[SENT + i].wrapping_add(UNKNOWN_WINDOW));
        (s[SENT + 1 - i], s[LIMIT + 1 - i], s[WINDOW + 1 - i]) = (t.ack, t.ack.wrapping_add(window), UNKNOWN_WINDOW);
    }
    s
}

/// What a segment is to the connection that it seems to be of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fit {
    /// It is of it.
    Yes,
    /// An end has forgotten the connection and says so, or asks for another one: the segment may pass, so that both ends
    /// agree again, and neither renews the connection nor changes its windows.
    Resync,
    /// Out of its windows, or of no use in its state.
    No,
    /// It begins another one between the same ends, after the last was closed.
    Reopen,
}

/// Whether a segment of end `i` fits; changes nothing.
#[inline(always)]
pub(super) fn fits(state: &State, i: usize, t: &Segment) -> Fit {
    let flags = state[FLAGS].load(Relaxed);
    let (mine, other) = (end(flags, i), end(flags, 1 - i));
    if t.is_nonsense() {
        return Fit::No;
    }
    if t.flags & (SYN | ACK) == SYN {
        let over = mine >= End::Closing && other >= End::Closing || mine == End::Reset;
        return match (over, mine) {
            (true, _) => Fit::Reopen,
            // Both at once.
            (_, End::Silent) => Fit::Yes,
            // Perhaps taken up at an answer: the answering end must not open a connection by it.
            (_, End::Open) if i == 1 && flags & UNCONFIRMED != 0 => Fit::No,
            // Sent again, or by an end that has forgotten, and will learn that from the other.
            (_, End::Open) => Fit::Resync,
            // The same after its FIN, which the other end has not answered with its own.
            (_, End::Closing | End::Closed) if i == 0 => Fit::Resync,
            (_, End::Opening) if i == 0 || t.seq.wrapping_add(t.len) == state[SENT + i].load(Relaxed) => Fit::Yes,
            _ => Fit::No,
        };
    }
    if mine == End::Reset {
        // A late acknowledgement is no harm; data is.
        return if t.len == 0 { Fit::Yes } else { Fit::No };
    }
    let opening = mine == End::Opening && t.flags & RST != 0 || other == End::Opening;
    if (opening || t.flags & SYN != 0)
        && let Some(fit) = fits_opening(state, i, t)
    {
        return fit;
    }
    let window = |e: usize| state[WINDOW + e].load(Relaxed);
    let (my_window, its_window) = (window(i), window(1 - i));
    let (sent, limit, heard) =
        (state[SENT + i].load(Relaxed), state[LIMIT + i].load(Relaxed), state[SENT + 1 - i].load(Relaxed));
    // Of a connection that was met in the middle, what was sent before is not known, but that this end would take it.
    let acked = if flags & MIDSTREAM != 0 { heard.wrapping_add(my_window) } else { heard };
    // Until the other end was heard of, an acknowledgement must be of what it sent.
    let ack_fits = t.flags & ACK == 0
        || (t.ack == 0 && t.flags & RST != 0)
        || (its_window != 0 && at_most(t.ack, acked) && at_most(heard.wrapping_sub(my_window.max(66_000)), t.ack));
    if my_window == 0 {
        // Its first. It says nothing yet that could be held against it.
        return if ack_fits { Fit::Yes } else { Fit::No };
    }
    // A reset answers a SYN with no sequence of its own (RFC 9293, 3.5.2).
    if t.flags & RST != 0 && t.seq == 0 && mine <= End::Opening {
        return if ack_fits { Fit::Yes } else { Fit::No };
    }
    let last = t.seq.wrapping_add(t.len);
    // One octet beyond probes a closed window.
    let seq_fits =
        at_most(t.seq, limit.wrapping_add(1)) && at_most(sent.wrapping_sub(its_window).wrapping_sub(1), last);
    if seq_fits && ack_fits { Fit::Yes } else { Fit::No }
}

/// What a segment of end `i` is while an end's SYN is not acknowledged; `None` if the windows say that.
#[cold]
fn fits_opening(state: &State, i: usize, t: &Segment) -> Option<Fit> {
    let load = |at: usize| state[at].load(Relaxed);
    let flags = load(FLAGS);
    let (mine, other) = (end(flags, i), end(flags, 1 - i));
    match t.flags & (SYN | ACK | RST) {
        // The other end called, and this one still has an older connection: it says what it expects (RFC 5961, 4.2).
        ACK if mine == End::Silent && other == End::Opening && t.len == 0 => Some(Fit::Resync),
        // The answer to that (RFC 9293, 3.10.7.3): see [`note_resync`].
        RST if mine == End::Opening && load(WINDOW + 1 - i) == 0 && t.seq != 0 && t.seq == load(SENT + 1 - i) => {
            Some(Fit::Resync)
        }
        // The same SYN answered once more, by an end that forgot its first answer, or by another station.
        f if f == SYN | ACK && mine == End::Opening && t.ack == load(SENT + 1 - i) => Some(Fit::Yes),
        f if f == SYN | ACK && reopens(flags, i, t) => Some(Fit::Yes),
        _ => None,
    }
}

/// Whether a SYN that came while both ends were open is answered by this segment: both forgot the connection of before,
/// and it is another one from now on.
fn reopens(flags: u32, i: usize, t: &Segment) -> bool {
    i == 1 && end(flags, 1) >= End::Opening && flags & SYN_AGAIN != 0 && flags >> SYN_ACK == t.ack & SYN_ACK_BITS
}

/// Remembers a segment of end `i` that is [`Fit::Resync`]: the SYN that may begin another connection, or what an end says
/// of one that is older than this.
#[cold]
pub(super) fn note_resync(state: &State, i: usize, t: &Segment) {
    let flags = state[FLAGS].load(Relaxed);
    let last = t.seq.wrapping_add(t.len);
    if t.flags & (SYN | ACK) == SYN && i == 0 {
        // The one that began it, sent again, asks for nothing new.
        if last == state[SENT].load(Relaxed) {
            return;
        }
        let asked = last & SYN_ACK_BITS;
        let with = |f: u32| Some(f & !(SYN_ACK_BITS << SYN_ACK) | SYN_AGAIN | asked << SYN_ACK);
        let _ = state[FLAGS].fetch_update(Relaxed, Relaxed, with);
    } else if t.flags & ACK != 0 && end(flags, i) == End::Silent {
        // It has sent nothing of this connection: the word is free.
        put(&state[SENT + i], t.ack);
    }
}

/// Makes the connection the one that this SYN with ACK of end 1 opens. Window and scale of the other end's SYN are not
/// known any more.
#[cold]
fn reopen(state: &State, t: &Segment) {
    let last = t.seq.wrapping_add(t.len);
    for (at, value) in [(SENT, t.ack), (LIMIT, t.ack.wrapping_add(t.window.max(1))), (WINDOW, 1 << 16)] {
        put(&state[at], value);
    }
    for (at, value) in [(SENT, last), (LIMIT, last.wrapping_add(1 << 16)), (WINDOW, t.window.max(1))] {
        put(&state[at + 1], value);
    }
    let ends = (1 << (2 * END_BITS)) - 1;
    let stays = !(ends | SYN_AGAIN | SYN_ACK_BITS << SYN_ACK);
    let with = |f: u32| Some(with_end(with_end(f & stays, 0, End::Open), 1, End::Opening) | MIDSTREAM);
    let _ = state[FLAGS].fetch_update(Relaxed, Relaxed, with);
}

/// Whether `a` is not behind `b`, in a circle.
#[inline(always)]
fn at_most(a: u32, b: u32) -> bool {
    b.wrapping_sub(a) as i32 >= 0
}

/// Stores what changed, so that a line stays clean otherwise.
#[inline(always)]
pub(super) fn put(word: &AtomicU32, value: u32) {
    if word.load(Relaxed) != value {
        word.store(value, Relaxed);
    }
}

/// Takes in a segment of end `i` that fits and was let pass.
#[inline(always)]
pub(super) fn advance(state: &State, i: usize, t: &Segment) {
    let before = state[FLAGS].load(Relaxed);
    let mut flags = before;
    if t.flags & (SYN | ACK) == SYN | ACK && reopens(flags, i, t) && t.ack != state[SENT].load(Relaxed) {
        return reopen(state, t);
    }
    if t.flags & SYN != 0 && end(flags, i) > End::Opening {
        return;
    }
    let load = |at: usize| state[at].load(Relaxed);
    // A reset of whose place its receiver is not sure ends nothing there, nor here (RFC 5961, 3.2).
    let exact = t.seq == load(SENT + i) || (t.seq == 0 && end(flags, i) <= End::Opening);
    if t.flags & RST != 0 && !exact {
        return;
    }
    let last = t.seq.wrapping_add(t.len);
    let first = load(WINDOW + i) == 0;
    if t.flags & SYN != 0 && end(flags, i) <= End::Opening {
        flags = with_end(flags, i, End::Opening);
        if let Some(scale) = t.scale {
            let at = SCALE + 4 * i as u32;
            flags = flags & !(15 << at) | SCALED << i | scale << at;
        }
        put(&state[SENT + i], last);
        put(&state[LIMIT + i], last);
    } else if first || at_most(load(SENT + i), last) {
        put(&state[SENT + i], last);
    }
    // Scales count if both said theirs, and not in SYNs (RFC 7323, 2.2).
    let scale = match () {
        () if t.flags & SYN != 0 => 0,
        () if flags & MIDSTREAM != 0 => 14,
        () if flags & SCALED != 0 && flags & SCALED << 1 != 0 => flags >> (SCALE + 4 * i as u32) & 15,
        () => 0,
    };
    let window = t.window << scale;
    if load(WINDOW + i) == UNKNOWN_WINDOW {
        put(&state[WINDOW + i], 1);
        put(&state[LIMIT + 1 - i], load(SENT + 1 - i));
    }
    put(&state[WINDOW + i], load(WINDOW + i).max(window).max(1));
    if first {
        put(&state[LIMIT + i], max(load(LIMIT + i), last));
    }
    if t.flags & ACK != 0 {
        let may = t.ack.wrapping_add(window.max(1));
        put(&state[LIMIT + 1 - i], max(load(LIMIT + 1 - i), may));
        if flags & MIDSTREAM != 0 {
            put(&state[SENT + 1 - i], max(load(SENT + 1 - i), t.ack));
        }
        if end(flags, 1 - i) == End::Opening {
            flags = with_end(flags, 1 - i, End::Open);
        } else if end(flags, 1 - i) == End::Closing && t.ack == load(SENT + 1 - i) {
            flags = with_end(flags, 1 - i, End::Closed);
        }
    }
    if t.flags & RST != 0 {
        flags = with_end(with_end(flags, 0, End::Reset), 1, End::Reset);
    } else if t.flags & FIN != 0 && end(flags, i) < End::Closing {
        flags = with_end(flags, i, End::Closing);
    }
    if flags != before {
        // The other end's worker may be at it too: both changes count.
        let _ = state[FLAGS].fetch_update(Relaxed, Relaxed, |now| Some(merge(now, flags)));
    }
}

/// Flags of two that changed them at once: the later state of each end. `b` are those of a segment that was taken in: what
/// is remembered of another SYN is never its own, scales are.
fn merge(a: u32, b: u32) -> u32 {
    let ends = (0..2).fold(0, |f, i| with_end(f, i, end(a, i).max(end(b, i))));
    let (again, scales) = (SYN_AGAIN | SYN_ACK_BITS << SYN_ACK, 0xff << SCALE);
    let rest = !(((1 << (2 * END_BITS)) - 1) | again | scales);
    ends | a & again | b & scales | (a | b) & rest
}

fn max(a: u32, b: u32) -> u32 {
    if at_most(a, b) { b } else { a }
}

/// Whether it is known to go on, rather than to be tried: of TCP, that both ends are open.
pub(super) fn is_assured(protocol: u8, flags: u32) -> bool {
    let is_open = |i| (End::Open..End::Reset).contains(&end(flags, i));
    flags & SEEN_REPLY != 0 && (protocol != TCP || (0..2).all(is_open))
}
