//! Filter: port security, access lists and connection tracking, on the way in and on the way out. Costs one
//! look at the port where nothing of it is configured.
//!
//! 1. The headers of the whole burst are read.
//! 2. What the station may not send is refused.
//! 3. Where a rule asks for it, each frame's connection is looked up: first all their signatures are asked for,
//!    then all entries. One that was let pass under other rules has the ones of now asked again, as if it
//!    began now. Where all lists let pass what goes on, whatever it is, one that goes on takes its frame in at once.
//! 4. Each list classifies the frames that are left.
//! 5. Connections begin or go on with those that passed all lists.

use std::sync::Arc;

use arrayvec::ArrayVec;

use crate::{
    BURST, DropReason, Frame, Output, SegmentId,
    acl::{Acl, Action, Best, Decision, NONE, state},
    conntrack::{Found, Full, Probe, Tracked, Zone},
    filter::{Filter, Lists},
    frame::Logged,
    headers::{FLAGS, FRAGMENT, Family, Headers, ICMP, ICMPV6, NO_PORT, SPORT, STATE, TCP},
    intrinsics::{Job, Lanes, widest},
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
    let (mut headers, mut odd) = (ArrayVec::<Headers, BURST>::new(), false);
    let with_macs = filter.asks_macs || cx.trace.is_some();
    widest(Read { burst, meta, with_macs, headers: &mut headers, odd: &mut odd });
    if let (Some(security), Way::In) = (&filter.security, way) {
        for (i, (h, frame)) in headers.iter().zip(burst).enumerate() {
            let checked = security.check(h, frame.head(), cx.now.s);
            cx.tell("security", || checked.err().map_or("passes", DropReason::describe).to_owned());
            checked.err().into_iter().for_each(|reason| outcome.refuse(i, reason));
        }
    }
    if odd {
        sort_out(cx, (port, filter, way), burst, meta, &mut headers, &mut outcome);
    }
    if filter.tracks {
        let (mut probes, mut tracked) = (ArrayVec::<Probe, BURST>::new(), [Tracked::No; BURST]);
        burst.iter().for_each(|_| probes.push(Probe::NONE));
        track(cx, (port, filter, way), burst, meta, &mut headers, (&mut probes, &mut tracked), outcome.refused);
        decide_all(cx, (port, filter, way), burst, meta, &headers, &mut outcome, out);
        go_on(cx, (port, filter, way), burst, meta, &headers, (&probes, &tracked), &mut outcome);
    } else {
        decide_all(cx, (port, filter, way), burst, meta, &headers, &mut outcome, out);
    }
    if let (Some(security), Way::Out, None) = (&filter.security, way, cx.trace) {
        for (i, (h, frame)) in headers.iter().zip(burst).enumerate() {
            if !outcome.refused.has(i) {
                security.snoop(h, frame.head(), cx.now.s);
            }
        }
    }
    outcome
}

/// Reads the headers of a burst, with the widest instructions that there are.
struct Read<'a, F> {
    burst: &'a [F],
    meta: &'a [Meta],
    with_macs: bool,
    headers: &'a mut ArrayVec<Headers, BURST>,
    /// Whether any frame is for [`sort_out`].
    odd: &'a mut bool,
}

impl<F: Frame> Job for Read<'_, F> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let (mut fragments, mut odd) = (0, false);
        for (frame, m) in self.burst.iter().zip(self.meta) {
            self.headers.push(Headers::EMPTY);
            let Some(h) = self.headers.last_mut() else { return };
            if self.with_macs {
                h.put_macs(m.dst.mac(), m.src.mac());
            }
            h.fill(frame.head(), overhead(m.class) as usize, m.class.vid());
            fragments |= h.words[FRAGMENT];
            odd |= h.broken | (m.src.segment() == SegmentId::NONE) | m.src.is_multicast();
        }
        *self.odd = odd | (fragments != 0);
    }
}

/// Lends fragments their ports, and refuses what learning would refuse (nothing is to begin with that) and what
/// can't be read to its end where a list asks for more: no other rule may let that pass instead.
#[cold]
fn sort_out<F: Frame>(
    cx: &Context<'_>,
    (port, filter, way): (&Port, &Filter, Way),
    burst: &[F],
    meta: &[Meta],
    headers: &mut [Headers],
    outcome: &mut Outcome,
) {
    for (i, ((h, frame), m)) in headers.iter_mut().zip(burst).zip(meta).enumerate() {
        let zone = Zone { port: port.idx, segment: m.dst.segment() };
        if h.words[FRAGMENT] != 0 {
            h.broken |= !cx.sessions.follow_fragment(h, frame.head(), zone, cx.now.s, cx.trace.is_none());
        }
        if way == Way::In && m.src.segment() == SegmentId::NONE {
            outcome.refuse(i, DropReason::IngressVlan);
        } else if way == Way::In && m.src.is_multicast() {
            outcome.refuse(i, DropReason::InvalidSource);
        } else if h.broken && filter.asks_layer4 && !outcome.refused.has(i) {
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
    burst: &[F],
    meta: &[Meta],
    headers: &[Headers],
    outcome: &mut Outcome,
    out: &mut impl Output<F>,
) {
    for acl in way.of(&filter.lists) {
        decide(cx, (acl, way, port), burst, headers, outcome, out);
    }
    if filter.by_segment {
        for i in 0..burst.len() {
            let lists = cx.snapshot.segment(meta[i].dst.segment()).and_then(|s| s.lists.as_deref());
            for acl in lists.map_or(&[][..], |l| way.of(l)) {
                if outcome.refused.has(i) {
                    break;
                }
                let mut one = Outcome { refused: Refused::NONE, rejected: Refused::NONE, ..*outcome };
                decide(cx, (acl, way, port), &burst[i..=i], &headers[i..=i], &mut one, out);
                if one.refused.has(0) {
                    outcome.refuse(i, one.reasons[0]);
                    if one.rejected.has(0) {
                        outcome.rejected.add(i);
                    }
                }
            }
        }
    }
}

/// Asks one list about all frames that were not refused before.
#[inline(never)]
fn decide<F: Frame>(
    cx: &Context<'_>,
    (acl, way, port): (&Arc<Acl>, Way, &Port),
    burst: &[F],
    headers: &[Headers],
    outcome: &mut Outcome,
    out: &mut impl Output<F>,
) {
    let mut best: Best = [NONE; BURST];
    match acl.established {
        // What lists that ask for states mostly begin with.
        Some(rule) if all_established(headers) => best = [rule; BURST],
        _ => acl.classify(headers, &mut best),
    }
    // Most bursts are let pass whole by one rule.
    let first = acl.decision(best[0]);
    let alike = best[..burst.len()].iter().fold(0, |differs, b| differs | (b ^ best[0])) == 0;
    let nothing_to_tell = first.log_every == 0 && cx.trace.is_none() && !acl.counts_some();
    if alike && nothing_to_tell && first.action == Action::Allow && outcome.refused == Refused::NONE {
        let c = acl.count(cx.worker, first.number);
        c.frames.add(burst.len() as u64);
        c.bytes.add(burst.iter().map(|f| u64::from(f.len())).sum());
        return;
    }
    for (i, (frame, h)) in burst.iter().zip(headers).enumerate() {
        if outcome.refused.has(i) {
            continue;
        }
        if acl.counts_some() {
            acl.counted_before(h, best[i], |d| {
                let n = count(cx, acl, d, frame);
                tell(cx, (acl, way, port), d, n, h, out);
            });
        }
        let decision = acl.decision(best[i]);
        let n = count(cx, acl, &decision, frame);
        if decision.log_every != 0 || cx.trace.is_some() {
            tell(cx, (acl, way, port), &decision, n, h, out);
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

/// Whether all are of connections that go on.
#[inline(always)]
fn all_established(headers: &[Headers]) -> bool {
    let differs = |d, h: &Headers| d | (h.words[STATE] ^ state::number(state::ESTABLISHED));
    headers.iter().fold(0, differs) == 0
}

/// Counts a frame for a rule; which of the rule's it was.
#[inline(always)]
fn count<F: Frame>(cx: &Context<'_>, acl: &Acl, decision: &Decision, frame: &F) -> u64 {
    let c = acl.count(cx.worker, decision.number);
    c.frames.add(1);
    c.bytes.add(u64::from(frame.len()));
    c.frames.get()
}

/// Tells of a rule's decision whoever wants to know.
#[cold]
fn tell<F>(
    cx: &Context<'_>,
    (acl, way, port): (&Arc<Acl>, Way, &Port),
    decision: &Decision,
    n: u64,
    h: &Headers,
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
        let (acl, headers) = (acl.clone(), *h);
        let (rule, action, port) = (decision.number, decision.action, port.idx);
        out.logged(Logged { acl, rule, action, port, ingress: way == Way::In, headers });
    }
}

/// Finds the connection of each frame, and puts into its headers what that says of its state.
#[inline(always)]
fn track<F: Frame>(
    cx: &Context<'_>,
    (port, filter, way): (&Port, &Filter, Way),
    burst: &[F],
    meta: &[Meta],
    headers: &mut [Headers],
    (probes, tracked): (&mut [Probe], &mut [Tracked; BURST]),
    refused: Refused,
) {
    let zone = |m: &Meta| Zone { port: port.idx, segment: m.dst.segment() };
    for (((h, frame), m), p) in headers.iter().zip(burst).zip(meta).zip(&mut *probes) {
        cx.sessions.probe(h, || frame.head(), zone(m), p);
        cx.sessions.prefetch(p);
    }
    probes.iter_mut().for_each(|p| cx.sessions.prefetch_entry(p));
    let settings = &cx.snapshot.sessions;
    let goes_on = (filter.lets_go_on[way as usize] && cx.trace.is_none()).then_some(cx.now.s);
    for (i, (h, frame)) in headers.iter_mut().zip(burst).enumerate() {
        let goes_on = goes_on.filter(|_| !refused.has(i));
        let t = cx.sessions.track(h, &mut probes[i], frame, (zone(&meta[i]), filter.id), settings, goes_on);
        let f = &mut probes[i].found;
        if t == Tracked::Known && f.filter != filter.id {
            judge_again(cx, (port, filter, way), f, h, meta[i].dst.segment());
        }
        h.words[STATE] = state::number(match t {
            Tracked::No | Tracked::New if h.family == Family::Other => 0,
            // Neighbour discovery and the like begin nothing, but are let pass as what begins something.
            Tracked::No | Tracked::New => state::NEW,
            // Refused by the rules of now: only those can let it begin anew.
            Tracked::Known if f.refused && begins(f, h, way) => state::NEW,
            Tracked::Known if f.refused => state::INVALID,
            Tracked::Known | Tracked::Taken => state::ESTABLISHED,
            Tracked::Related => state::RELATED,
            Tracked::Invalid => state::INVALID,
        });
        cx.tell("sessions", || {
            let name = ["not tracked", "new", "established", "related", "invalid"][h.words[STATE] as usize];
            format!("port '{}': {name}", port.name)
        });
        tracked[i] = t;
    }
}

/// Whether a frame would begin the connection in the direction in which it was begun before.
fn begins(f: &Found, h: &Headers, way: Way) -> bool {
    const SYN_AND_ACK: u32 = 0x12;
    f.from_port == (way == Way::In) && (h.protocol() != TCP || h.words[FLAGS] & (SYN_AND_ACK | NO_PORT) == 2)
}

/// The rules changed since the connection was let pass: would they let it begin now?
#[cold]
fn judge_again(
    cx: &Context<'_>,
    (port, filter, way): (&Port, &Filter, Way),
    f: &mut Found,
    h: &Headers,
    segment: SegmentId,
) {
    let begun = if f.from_port { Way::In } else { Way::Out };
    let mut first = if begun == way { *h } else { h.reversed() };
    first.words[STATE] = state::number(state::NEW);
    match (h.protocol(), first.words[SPORT]) {
        (TCP, _) => first.words[FLAGS] = 2,
        (ICMP, 0) => first.words[SPORT] = 8,
        (ICMPV6, 129) => first.words[SPORT] = 128,
        _ => {}
    }
    let segment = cx.snapshot.segment(segment).and_then(|s| s.lists.as_deref());
    let lists = begun.of(&filter.lists).iter().chain(segment.map_or(&[][..], |l| begun.of(l)));
    let passes = |acl: &Arc<Acl>| {
        let mut best: Best = [NONE; BURST];
        acl.classify(&[first], &mut best);
        acl.decision(best[0]).action == Action::Allow
    };
    let passes = lists.into_iter().all(passes);
    (f.refused, f.filter) = (!passes, filter.id);
    cx.tell("sessions", || {
        format!("port '{}': the rules changed: it {} go on", port.name, if passes { "may" } else { "may not" })
    });
    if cx.trace.is_none() {
        cx.sessions.judge(f, passes, filter.id);
    }
}

/// Begins connections, and takes those on whose frames passed.
#[inline(always)]
fn go_on<F: Frame>(
    cx: &Context<'_>,
    (port, filter, way): (&Port, &Filter, Way),
    burst: &[F],
    meta: &[Meta],
    headers: &[Headers],
    (probes, tracked): (&[Probe], &[Tracked; BURST]),
    outcome: &mut Outcome,
) {
    let is_done = |t: &Tracked| matches!(t, Tracked::Taken);
    if tracked[..burst.len()].iter().all(is_done) {
        return;
    }
    let limits = (&cx.snapshot.sessions, &filter.session_limits);
    for (i, (h, frame)) in headers.iter().zip(burst).enumerate() {
        if outcome.refused.has(i) {
            continue;
        }
        let f = &probes[i].found;
        let begun = match tracked[i] {
            Tracked::Known if cx.trace.is_some() => Ok(()),
            Tracked::Known => {
                if f.refused && h.words[STATE] == state::number(state::NEW) {
                    cx.sessions.judge(f, true, filter.id);
                }
                cx.sessions.advance(f, h, frame.head(), cx.now.s);
                Ok(())
            }
            Tracked::New if cx.trace.is_some() => {
                let would = cx.sessions.would_begin(&probes[i], port.idx, limits);
                cx.tell("sessions", || match would {
                    Ok(false) => "it would begin one".to_owned(),
                    Ok(true) => "it would begin one, and another that nobody has answered would go".to_owned(),
                    Err(_) => "there are too many to begin one".to_owned(),
                });
                would.map(|_| ())
            }
            Tracked::New => {
                let zone = Zone { port: port.idx, segment: meta[i].dst.segment() };
                let how = (zone, way == Way::In, filter.id);
                cx.sessions.begin(&probes[i], h, frame.head(), how, limits, cx.now.s)
            }
            Tracked::No | Tracked::Taken | Tracked::Related | Tracked::Invalid => Ok(()),
        };
        if let Err(full) = begun {
            let reason = match (full, way) {
                (Full::Connections, Way::In) => DropReason::SessionLimit,
                (Full::Connections, Way::Out) => DropReason::EgressSessionLimit,
                (Full::Unanswered, Way::In) => DropReason::UnansweredLimit,
                (Full::Unanswered, Way::Out) => DropReason::EgressUnansweredLimit,
            };
            outcome.refuse(i, reason);
        }
    }
}
