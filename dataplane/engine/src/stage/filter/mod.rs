//! Filter: port security, access lists and connection tracking, on the way in and on the way out. Costs one
//! look at the port where nothing of it is configured.
//!
//! 1. The headers of the whole burst are read, word by word ([`Heads`]).
//! 2. What the station may not send is refused.
//! 3. Where a rule asks for it, each frame's connection is looked up (`sessions.rs`).
//! 4. Each list classifies the frames that are left.
//! 5. Connections begin or go on with those that passed all lists.

mod sessions;

use std::sync::Arc;

use arrayvec::ArrayVec;

use crate::{
    BURST, DropReason, Frame, Output, SegmentId,
    acl::{Acl, Action, Best, Decision, NONE, Read, state},
    conntrack::Zone,
    filter::{Filter, Lists},
    frame::Logged,
    headers::{FRAGMENT, Heads, STATE, bits, lanes},
    pipeline::{Context, Fate, Meta, Refused},
    snapshot::Port,
    stage::{egress::overhead, reject},
    tunnel::Role,
};

/// Which way a frame passes the port that filters it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    In,
    Out,
}

impl Way {
    fn of(self, lists: &Lists) -> &[Arc<Acl>] {
        match self {
            Way::In => &lists.ingress,
            Way::Out => &lists.egress,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Way::In => "ingress acl",
            Way::Out => "egress acl",
        }
    }
}

/// What became of the frames of a burst.
struct Outcome {
    refused: Refused,
    reasons: [DropReason; BURST],
    /// Those whose sender is to be told.
    rejected: Refused,
}

impl Outcome {
    fn refuse(&mut self, i: usize, reason: DropReason) {
        self.refused.add(i);
        self.reasons[i] = reason;
    }
}

/// The frames that go no further, of a burst that came in by `port`.
#[inline(never)]
pub(crate) fn ingress<F: Frame>(
    cx: &Context<'_>,
    port: &Port,
    filter: &Filter,
    burst: &[F],
    meta: &mut [Meta],
    out: &mut impl Output<F>,
) -> Refused {
    let outcome = run(cx, (port, filter, Way::In), burst, meta, out);
    if outcome.refused == Refused::NONE {
        return Refused::NONE;
    }
    for i in 0..burst.len() {
        if outcome.refused.has(i) {
            meta[i].fate = Fate::drop(outcome.reasons[i]);
        }
        if outcome.rejected.has(i) {
            tell_sender(cx, (port, port), &burst[i], &meta[i], out);
        }
    }
    outcome.refused
}

/// Drops what may not leave by `to` of a burst of one class.
#[inline(never)]
pub(crate) fn egress_burst<F: Frame>(
    cx: &Context<'_>,
    from: &Port,
    (to, filter): (&Port, &Filter),
    burst: &mut crate::Burst<F>,
    meta: &[Meta],
    out: &mut impl Output<F>,
) {
    let outcome = run(cx, (to, filter, Way::Out), burst, meta, out);
    if outcome.refused == Refused::NONE {
        return;
    }
    let mut i = 0;
    burst.retain(|frame| {
        let (keep, reject) = (!outcome.refused.has(i), outcome.rejected.has(i));
        if !keep {
            cx.drop(to.idx, outcome.reasons[i], 1);
        }
        if reject {
            tell_sender(cx, (from, to), frame, &meta[i], out);
        }
        i += 1;
        keep
    });
}

/// Whether one frame may leave by `to`.
#[inline(never)]
pub(crate) fn egress<F: Frame>(
    cx: &Context<'_>,
    from: &Port,
    (to, filter): (&Port, &Filter),
    frame: &F,
    m: &Meta,
    out: &mut impl Output<F>,
) -> Result<(), DropReason> {
    let outcome = run(cx, (to, filter, Way::Out), std::slice::from_ref(frame), std::slice::from_ref(m), out);
    // Of what is flooded, nobody knows whom it was for.
    if outcome.rejected.has(0) && m.fate != Fate::FLOOD {
        tell_sender(cx, (from, to), frame, m, out);
    }
    if outcome.refused.has(0) { Err(outcome.reasons[0]) } else { Ok(()) }
}

/// Tells the sender of a frame that was rejected on its way `from` one port `to` another; who is behind a tunnel as if
/// the station there had answered. Not told is, for want of buffers, who could be told of the next one.
#[cold]
fn tell_sender<F: Frame>(cx: &Context<'_>, (from, to): (&Port, &Port), frame: &F, m: &Meta, out: &mut impl Output<F>) {
    let answer = reject::answer(frame.head(), overhead(m.class) as usize).and_then(|octets| out.make(&octets));
    let Some(mut answer) = answer else { return };
    if !matches!(from.role, Role::Device) {
        return out.answer_inside(to.idx, (m.class.without_tag(), m.dst.segment()), answer);
    }
    // In the form in which the frame was received.
    let tag = m.class.tag();
    if !tag.is_some() || answer.push_tag(tag.tpid(), tag.tci()) {
        cx.counters.port(from.idx).clones.add(1);
        out.transmit(from.idx, answer);
    }
}

#[inline(always)]
fn run<F: Frame>(
    cx: &Context<'_>,
    (port, filter, way): (&Port, &Filter, Way),
    burst: &[F],
    meta: &[Meta],
    out: &mut impl Output<F>,
) -> Outcome {
    let mut outcome =
        Outcome { refused: Refused::NONE, reasons: [DropReason::AclDenied; BURST], rejected: Refused::NONE };
    let mut heads = Heads::new(burst, meta);
    heads.read(filter.asks_macs);
    if let (Some(security), Way::In) = (&filter.security, way) {
        for (i, frame) in burst.iter().enumerate() {
            let checked = security.check(&heads.row(i), frame.head(), cx.now.s);
            cx.tell("security", || checked.err().map_or("passes", DropReason::describe).to_owned());
            checked.err().into_iter().for_each(|reason| outcome.refuse(i, reason));
        }
    }
    let its = (port, filter, way);
    if heads.odd {
        sort_out(cx, its, meta, &mut heads, &mut outcome);
    }
    if filter.tracks {
        let mut others = ArrayVec::new();
        sessions::track(cx, its, (burst, meta), &mut heads, &mut others, outcome.refused);
        decide_all(cx, its, (burst, meta), &heads, &mut outcome, out);
        sessions::go_on(cx, its, (burst, meta), &others, &mut outcome);
    } else {
        decide_all(cx, its, (burst, meta), &heads, &mut outcome, out);
    }
    if let (Some(security), Way::Out, None) = (&filter.security, way, cx.trace) {
        for (i, frame) in burst.iter().enumerate() {
            if !outcome.refused.has(i) {
                security.snoop(&heads.row(i), frame.head(), cx.now.s);
            }
        }
    }
    outcome
}

/// Lends fragments their ports, and refuses what learning would refuse (nothing is to begin with that) and what
/// can't be read to its end where a list asks for more: no other rule may let that pass instead.
#[cold]
fn sort_out<F: Frame>(
    cx: &Context<'_>,
    (port, filter, way): (&Port, &Filter, Way),
    meta: &[Meta],
    heads: &mut Heads<'_, F>,
    outcome: &mut Outcome,
) {
    for (i, m) in meta.iter().enumerate().take(heads.frames().len()) {
        let zone = Zone { port: port.idx, segment: m.dst.segment() };
        let is_fragment = |h: &crate::headers::Headers| h.words[FRAGMENT] != 0;
        let lend = |h: &mut crate::headers::Headers, head: &[u8]| {
            if is_fragment(h) {
                h.broken |= !cx.sessions.follow_fragment(h, head, zone, cx.now.s, cx.trace.is_none());
            }
        };
        let broken = heads.change(i, lend);
        if way == Way::In && m.src.segment() == SegmentId::NONE {
            outcome.refuse(i, DropReason::IngressVlan);
        } else if way == Way::In && m.src.is_multicast() {
            outcome.refuse(i, DropReason::InvalidSource);
        } else if broken && filter.asks_layer4 && !outcome.refused.has(i) {
            cx.tell(way.name(), || "its headers can't be read to the end, and a list asks for more".to_owned());
            let reason = if way == Way::In { DropReason::Unreadable } else { DropReason::EgressUnreadable };
            outcome.refuse(i, reason);
        }
    }
}

/// Asks all lists: the port's, then those of the networks that the frames are in.
#[inline(always)]
fn decide_all<F: Frame>(
    cx: &Context<'_>,
    (port, filter, way): (&Port, &Filter, Way),
    (burst, meta): (&[F], &[Meta]),
    heads: &Heads<'_, F>,
    outcome: &mut Outcome,
    out: &mut impl Output<F>,
) {
    for acl in way.of(&filter.lists) {
        decide(cx, (acl, way, port), lanes(burst.len()), heads, outcome, out);
    }
    if !filter.by_segment {
        return;
    }
    let mut left = lanes(burst.len());
    while left != 0 {
        // Those of one segment together.
        let segment = meta[left.trailing_zeros() as usize].dst.segment();
        let of = bits(left).filter(|i| meta[*i].dst.segment() == segment).fold(0, |of, i| of | 1 << i);
        left &= !of;
        let lists = cx.snapshot.segment(segment).and_then(|s| s.lists.as_deref());
        for acl in lists.map_or(&[][..], |l| way.of(l)) {
            decide(cx, (acl, way, port), of, heads, outcome, out);
        }
    }
}

/// Asks one list about those of the frames whose bits are in `of` that were not refused before.
#[inline(never)]
fn decide<F: Frame>(
    cx: &Context<'_>,
    (acl, way, port): (&Arc<Acl>, Way, &Port),
    of: u32,
    heads: &Heads<'_, F>,
    outcome: &mut Outcome,
    out: &mut impl Output<F>,
) {
    let of = outcome.refused.but(of);
    let frames = heads.frames();
    let read: Read<'_> = (&heads.columns, &|i| heads.row(i));
    let mut best: Best = [NONE; BURST];
    match acl.established {
        // What lists that ask for states mostly begin with.
        Some(rule) if heads.columns.are_all(of, STATE, state::number(state::ESTABLISHED)) => best = [rule; BURST],
        _ => acl.classify(read, of, &mut best),
    }
    // Most bursts are let pass whole by one rule.
    let first = acl.decision(best[of.trailing_zeros() as usize % BURST]);
    let alike = of == lanes(frames.len()) && best[..frames.len()].iter().fold(0, |d, b| d | (b ^ best[0])) == 0;
    let nothing_to_tell = first.log_every == 0 && cx.trace.is_none() && !acl.counts_some();
    if alike && nothing_to_tell && first.action == Action::Allow {
        let c = acl.count(cx.worker, first.number);
        c.frames.add(frames.len() as u64);
        c.bytes.add(frames.iter().map(|f| u64::from(f.len())).sum());
        return;
    }
    for i in bits(of) {
        let frame = &frames[i];
        if acl.counts_some() {
            acl.counted_before(read, i, best[i], |d| {
                let n = count(cx, acl, d, frame);
                tell(cx, (acl, way, port), d, n, (heads, i), out);
            });
        }
        let decision = acl.decision(best[i]);
        let n = count(cx, acl, &decision, frame);
        if decision.log_every != 0 || cx.trace.is_some() {
            tell(cx, (acl, way, port), &decision, n, (heads, i), out);
        }
        match (decision.action, way) {
            (Action::Allow | Action::Count, _) => {}
            (Action::Deny, Way::In) => outcome.refuse(i, DropReason::AclDenied),
            (Action::Deny, Way::Out) => outcome.refuse(i, DropReason::EgressAclDenied),
            (Action::Reject, _) => {
                let reason = if way == Way::In { DropReason::AclRejected } else { DropReason::EgressAclRejected };
                outcome.refuse(i, reason);
                outcome.rejected.add(i);
            }
        }
    }
}

/// Counts a frame for a rule; which of the rule's it was.
#[inline(always)]
fn count<F: Frame>(cx: &Context<'_>, acl: &Acl, decision: &Decision, frame: &F) -> u64 {
    let c = acl.count(cx.worker, decision.number);
    c.frames.add(1);
    c.bytes.add(u64::from(frame.len()));
    c.frames.get()
}

/// Tells of a rule's decision about frame `i` whoever wants to know.
#[cold]
fn tell<F: Frame>(
    cx: &Context<'_>,
    (acl, way, port): (&Arc<Acl>, Way, &Port),
    decision: &Decision,
    n: u64,
    (heads, i): (&Heads<'_, F>, usize),
    out: &mut impl Output<F>,
) {
    cx.tell(way.name(), || {
        let rule = match decision.number as usize {
            number if number < acl.number_of_rules() => format!("rule {}", number + 1),
            _ => "default".to_owned(),
        };
        format!("port '{}': acl '{}': {rule}: {}", port.name, acl.name, decision.action.name())
    });
    if cx.trace.is_none() && acl.may_log(decision, n, cx.now.ns) {
        let (acl, headers) = (acl.clone(), heads.row(i));
        let (rule, action, port) = (decision.number, decision.action, port.idx);
        out.logged(Logged { acl, rule, action, port, ingress: way == Way::In, headers });
    }
}
