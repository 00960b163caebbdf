//! Whole conversations of two ends that keep to RFC 9293, over a network that loses, repeats and reorders: the tracker in
//! the middle never stands in the way of their end, and judges segments of others as a slow oracle does, which
//! keeps all that was seen, and counts sequence numbers without end.

use proptest::prelude::*;

use super::*;

/// Far enough from 0 for what is sent before.
const EPOCH: u64 = 1 << 33;
const MSS: u64 = 60_000;

/// A segment, in sequence numbers without end.
#[derive(Clone, Copy, Debug)]
struct Sent {
    from: usize,
    flags: u8,
    seq: u64,
    ack: u64,
    len: u64,
    /// As in the header.
    window: u32,
    scale: Option<u32>,
}

impl Sent {
    fn segment(self) -> Segment {
        let Sent { flags, seq, ack, len, window, scale, .. } = self;
        Segment { flags, seq: seq as u32, ack: ack as u32, len: len as u32, window, scale }
    }
}

/// One end.
#[derive(Clone, Debug)]
struct Tcp {
    /// The first octet that is not acknowledged, and the first that was not sent.
    una: u64,
    next: u64,
    fin: Option<u64>,
    /// How far the other end takes data.
    may: u64,
    expected: u64,
    /// Received out of order.
    early: Vec<(u64, u64)>,
    buffer: u64,
    scale: Option<u32>,
}

/// Both, and what is on its way to the tracker.
#[derive(Clone, Debug)]
struct Conversation {
    ends: [Tcp; 2],
    on_way: Vec<Sent>,
    scaled: bool,
}

#[derive(Clone, Debug)]
enum Op {
    Send {
        from: usize,
        len: u64,
    },
    Resend {
        from: usize,
        len: u64,
    },
    Acknowledge {
        from: usize,
    },
    Finish {
        from: usize,
    },
    /// One on its way arrives; it may stay there too, and be lost behind the tracker.
    Arrive {
        which: usize,
        again: bool,
        lost: bool,
    },
    Lose {
        which: usize,
    },
    Forge {
        from: usize,
        flags: u8,
        seq: i64,
        ack: i64,
        len: u64,
    },
}

impl Conversation {
    fn new([a, b]: [(u64, u64, Option<u32>); 2]) -> Conversation {
        let scaled = a.2.is_some() && b.2.is_some();
        let most = |scale: Option<u32>| if scaled { 65_535 << scale.unwrap_or(0) } else { 65_535 };
        // No end takes back what it said it would take, nor by rounding (RFC 7323, 2.4).
        let whole = |n: u64, scale: Option<u32>| {
            let shift = if scaled { scale.unwrap_or(0) } else { 0 };
            (n >> shift << shift).max(1 << shift)
        };
        let end = |(isn, buffer, scale): (u64, u64, Option<u32>), other: u64| Tcp {
            una: EPOCH + isn,
            next: EPOCH + isn,
            fin: None,
            may: 0,
            expected: EPOCH + other,
            early: Vec::new(),
            buffer: whole(buffer.min(most(scale)), scale),
            scale,
        };
        Conversation { ends: [end(a, b.0), end(b, a.0)], on_way: Vec::new(), scaled }
    }

    fn make(&self, from: usize, flags: u8, seq: u64, len: u64) -> Sent {
        let e = &self.ends[from];
        let shift = if self.scaled && flags & SYN == 0 { e.scale.unwrap_or(0) } else { 0 };
        let window = (e.buffer >> shift).min(65_535) as u32;
        let scale = if flags & SYN != 0 { e.scale } else { None };
        Sent { from, flags, seq, ack: if flags & ACK != 0 { e.expected } else { 0 }, len, window, scale }
    }

    fn shift(&self, s: &Sent) -> u32 {
        if self.scaled && s.flags & SYN == 0 { self.ends[s.from].scale.unwrap_or(0) } else { 0 }
    }

    fn next(&mut self, from: usize, flags: u8, len: u64) -> Sent {
        let sent = self.make(from, flags, self.ends[from].next, len);
        self.ends[from].next += len;
        sent
    }

    fn resend(&self, from: usize, len: u64) -> Option<Sent> {
        let e = &self.ends[from];
        let len = len.min(e.next - e.una);
        let has_fin = e.fin.is_some_and(|fin| e.una + len > fin);
        (len > 0).then(|| self.make(from, ACK | if has_fin { FIN } else { 0 }, e.una, len))
    }

    fn receive(&mut self, s: &Sent) {
        let shift = self.shift(s);
        let e = &mut self.ends[1 - s.from];
        if s.flags & ACK != 0 {
            e.una = e.una.max(s.ack);
            e.may = e.may.max(s.ack + (u64::from(s.window) << shift));
        }
        if s.len > 0 {
            e.early.push((s.seq, s.seq + s.len));
        }
        while let Some(i) = e.early.iter().position(|(from, to)| *from <= e.expected && e.expected < *to) {
            e.expected = e.early.remove(i).1;
        }
    }

    fn run(&mut self, op: &Op) -> Option<(Sent, bool)> {
        match *op {
            Op::Send { from, len } => {
                let e = &self.ends[from];
                let len = len.min(e.may.saturating_sub(e.next));
                if len > 0 && e.fin.is_none() {
                    let sent = self.next(from, ACK, len);
                    self.on_way.push(sent);
                }
            }
            Op::Resend { from, len } => self.on_way.extend(self.resend(from, len)),
            Op::Acknowledge { from } => self.on_way.push(self.make(from, ACK, self.ends[from].next, 0)),
            Op::Finish { from } => {
                let e = &mut self.ends[from];
                if e.fin.is_none() && e.next < e.may {
                    e.fin = Some(e.next);
                    let sent = self.next(from, ACK | FIN, 1);
                    self.on_way.push(sent);
                }
            }
            Op::Lose { which } if !self.on_way.is_empty() => {
                self.on_way.remove(which % self.on_way.len());
            }
            Op::Arrive { which, again, lost } if !self.on_way.is_empty() => {
                let at = which % self.on_way.len();
                let sent = if again { self.on_way[at] } else { self.on_way.remove(at) };
                return Some((sent, lost));
            }
            Op::Lose { .. } | Op::Arrive { .. } | Op::Forge { .. } => {}
        }
        None
    }
}

/// What was taken in, all of it.
struct Oracle {
    seen: Vec<(Sent, u32)>,
}

impl Oracle {
    fn from(&self, end: usize) -> impl Iterator<Item = &(Sent, u32)> {
        self.seen.iter().filter(move |(s, _)| s.from == end)
    }

    fn window(&self, end: usize) -> u64 {
        self.from(end).map(|(s, shift)| (u64::from(s.window) << shift).max(1)).max().unwrap()
    }

    /// The rules of van Rooij's paper, for a segment without SYN between ends that are both open.
    fn fits(&self, s: &Sent) -> bool {
        let sent = |end: usize| self.from(end).map(|(s, _)| s.seq + s.len).max().unwrap();
        let (mine, other) = (s.from, 1 - s.from);
        let acks = self.from(other).filter(|(s, _)| s.flags & ACK != 0);
        let limit = acks.map(|(s, shift)| s.ack + (u64::from(s.window) << shift).max(1)).max().unwrap_or(0);
        // What an end said in its SYN is taken as sent.
        let limit =
            limit.max(self.from(mine).map(|(s, _)| if s.flags & SYN != 0 { s.seq + s.len } else { 0 }).max().unwrap());
        let is_nonsense = s.flags & FIN != 0 && s.flags & ACK == 0 || s.flags & (FIN | ACK | RST) == 0;
        let seq = s.seq <= limit + 1 && s.seq + s.len + 1 + self.window(other) >= sent(mine);
        let ack = s.flags & ACK == 0 || s.ack <= sent(other) && s.ack + self.window(mine).max(66_000) >= sent(other);
        !is_nonsense && seq && ack
    }
}

/// The tracker, and what it is asked.
struct Tracker {
    state: Option<State>,
    oracle: Oracle,
}

impl Tracker {
    /// A segment of the conversation comes by.
    fn see(&mut self, talk: &Conversation, s: &Sent, began: usize) -> Fit {
        let t = s.segment();
        let Some(state) = &self.state else {
            if !t.begins(true) {
                return Fit::No;
            }
            let flags = if began == s.from { 0 } else { UNCONFIRMED };
            let i = usize::from(began != s.from);
            self.state = Some(begun(Some(&t), 1, flags, 1, i).map(AtomicU32::new));
            return Fit::Yes;
        };
        let i = usize::from(began != s.from);
        let fit = fits(state, i, &t);
        if fit == Fit::Yes {
            advance(state, i, &t);
            self.oracle.seen.push((*s, talk.shift(s)));
        }
        fit
    }
}

fn op() -> impl Strategy<Value = Op> {
    let from = 0..2usize;
    let distance = || prop_oneof![-70_000..70_000i64, -(1i64 << 30)..1 << 30, -2..3i64];
    prop_oneof![
        6 => (from.clone(), 1..MSS).prop_map(|(from, len)| Op::Send { from, len }),
        2 => (from.clone(), 1..MSS).prop_map(|(from, len)| Op::Resend { from, len }),
        3 => from.clone().prop_map(|from| Op::Acknowledge { from }),
        1 => from.clone().prop_map(|from| Op::Finish { from }),
        9 => (any::<usize>(), prop::bool::weighted(0.1), prop::bool::weighted(0.2))
            .prop_map(|(which, again, lost)| Op::Arrive { which, again, lost }),
        2 => any::<usize>().prop_map(|which| Op::Lose { which }),
        4 => (from, prop_oneof![Just(ACK), Just(ACK | FIN), Just(RST), Just(RST | ACK), Just(FIN), Just(0)],
              distance(), distance(), prop_oneof![Just(0), 1..2_000u64])
            .prop_map(|(from, flags, seq, ack, len)| Op::Forge { from, flags, seq, ack, len }),
    ]
}

fn end_of_it() -> impl Strategy<Value = (u64, u64, Option<u32>)> {
    let isn = prop_oneof![0..1u64 << 32, (1u64 << 32) - 100_000..1 << 32];
    (isn, prop_oneof![1..70_000u64, 1..1u64 << 30], prop::option::of(0..15u32))
}

/// The conversation after what was done to it, up to its end: what is on its way is lost, and nothing more.
fn finish(talk: &mut Conversation, mut pass: impl FnMut(&Conversation, &Sent)) {
    talk.on_way.clear();
    for round in 0..200_000 {
        let from = round % 2;
        let mut out = Vec::new();
        match talk.resend(from, MSS) {
            Some(sent) => out.push(sent),
            None => drop(talk.run(&Op::Finish { from })),
        }
        out.append(&mut talk.on_way);
        for s in out {
            pass(talk, &s);
            talk.receive(&s);
            let reply = talk.make(1 - s.from, ACK, talk.ends[1 - s.from].next, 0);
            pass(talk, &reply);
            talk.receive(&reply);
        }
        if talk.ends.iter().all(|e| e.fin.is_some_and(|fin| e.una > fin)) {
            return;
        }
    }
    panic!("it does not end: {talk:?}");
}

fn converse(ends: [(u64, u64, Option<u32>); 2], ops: &[Op], unseen: usize, began: usize) -> Result<(), TestCaseError> {
    let mut talk = Conversation::new(ends);
    let mut tracker = Tracker { state: None, oracle: Oracle { seen: Vec::new() } };
    for (from, flags) in [(0, SYN), (1, SYN | ACK), (0, ACK)] {
        let s = talk.next(from, flags, u64::from(flags & SYN != 0));
        if unseen == 0 {
            prop_assert_eq!(tracker.see(&talk, &s, 0), Fit::Yes);
            if flags == SYN {
                tracker.oracle.seen.push((s, 0));
            }
        }
        talk.receive(&s);
    }
    for (n, op) in ops.iter().enumerate() {
        if let Op::Forge { from, flags, seq, ack, len } = *op
            && let Some(state) = &tracker.state
            && unseen == 0
            && !(0..2).any(|i| end(state[FLAGS].load(Relaxed), i) == End::Reset)
        {
            let (mine, other) = (&talk.ends[from], &talk.ends[1 - from]);
            let at = |base: u64, by: i64| base.checked_add_signed(by).unwrap();
            let len = len + u64::from(flags & FIN);
            let s =
                Sent { flags, seq: at(mine.next, seq), ack: at(other.next, ack), len, ..talk.make(from, ACK, 0, 0) };
            let is_bare_reset = flags & (RST | ACK) == RST | ACK && s.ack as u32 == 0;
            prop_assume!(!is_bare_reset);
            let fit = fits(state, from, &s.segment());
            prop_assert_eq!(fit == Fit::Yes, tracker.oracle.fits(&s), "{:?}: {:?}", fit, s);
        }
        let Some((s, lost)) = talk.run(op) else { continue };
        if n < unseen {
            if !lost {
                talk.receive(&s);
            }
            continue;
        }
        let fit = tracker.see(&talk, &s, began);
        if unseen == 0 {
            prop_assert_eq!(fit == Fit::Yes, tracker.oracle.fits(&s), "{:?}", s);
        }
        if fit == Fit::Yes && !lost {
            talk.receive(&s);
        }
    }
    let mut refused = None;
    finish(&mut talk, |talk, s| {
        if tracker.see(talk, s, began) != Fit::Yes {
            refused.get_or_insert(*s);
        }
    });
    prop_assert!(refused.is_none(), "{:?}", refused);
    // A FIN that was not seen is not known.
    if unseen == 0 {
        let flags = tracker.state.unwrap()[FLAGS].load(Relaxed);
        prop_assert_eq!([end(flags, 0), end(flags, 1)], [End::Closed, End::Closed]);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { max_global_rejects: 100_000, ..ProptestConfig::with_cases(4_000) })]

    /// All of it is seen: what the tracker says of each segment is what the oracle says.
    #[test]
    fn conversations_end_and_the_oracle_agrees(ends in [end_of_it(), end_of_it()], ops in prop::collection::vec(op(), 0..120)) {
        converse(ends, &ops, 0, 0)?;
    }

    /// The tracker begins in the middle, with a segment of either end: see [`crate::tables::conntrack::GRACE_S`].
    #[test]
    fn conversations_of_which_the_beginning_was_not_seen_end(
        ends in [end_of_it(), end_of_it()], ops in prop::collection::vec(op(), 0..120), unseen in 1..60usize, began in 0..2usize,
    ) {
        converse(ends, &ops, unseen, began)?;
    }
}
