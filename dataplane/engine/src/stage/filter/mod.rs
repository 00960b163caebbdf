//! Filter: port security, access lists and connection tracking, on the way in and on the way out. Costs one
//! look at the port where nothing of it is configured, and where frames of a burst leave by several ports of which any
//! on the host filters, one look at each frame's.
//!
//! 1. The headers of up to [`CHUNK`] frames are read, word by word ([`Heads`]).
//! 2. What the station may not send is refused.
//! 3. Where a rule asks for it, each frame's connection is looked up (`sessions.rs`).
//! 4. Each list classifies the frames that are left.
//! 5. Connections begin or go on with those that passed all lists.

mod announcements;
pub(crate) mod fragments;
mod sessions;

use std::sync::Arc;

use crate::{
    DropReason, Frame, Output, SegmentId,
    burst::{CHUNK, ChunkMask as Mask, Fate, Meta, Refused, filter_mask, iter_bits, low_bits},
    context::Context,
    output::Logged,
    packet::{
        headers::{DPORT, FRAGMENT, Family, Headers, Heads, ICMPV6, PROTOCOL, SPORT, SRC, SRC6, UDP},
        reject,
    },
    snapshot::{
        Port,
        port_filter::{Filter, Lists},
        security::{DHCP_SERVER, DHCPV6_SERVER, Security, V4},
    },
    stage::emit::Hop,
    tables::{
        acl::{Acl, Action, Best, Decision, NONE, Words},
        conntrack::{Inherited, Zone},
    },
    tunnel::Role,
};

/// Which way a frame passes the port that filters it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Direction {
    In,
    Out,
}

impl Direction {
    fn of(self, lists: &Lists) -> &[Arc<Acl>] {
        match self {
            Direction::In => &lists.ingress,
            Direction::Out => &lists.egress,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Direction::In => "ingress acl",
            Direction::Out => "egress acl",
        }
    }
}

/// What became of the frames of a chunk.
struct Outcome {
    refused: Mask,
    reasons: [DropReason; CHUNK],
    /// Those whose sender is to be notified.
    rejected: Mask,
}

impl Outcome {
    const NONE: Outcome = Outcome { refused: 0, reasons: [DropReason::AclDenied; CHUNK], rejected: 0 };

    fn refuse(&mut self, i: usize, reason: DropReason) {
        self.refused |= 1 << i;
        self.reasons[i] = reason;
    }

    fn is_refused(&self, i: usize) -> bool {
        self.refused >> i & 1 != 0
    }

    fn is_rejected(&self, i: usize) -> bool {
        self.rejected >> i & 1 != 0
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
    debug_assert_eq!(burst.len(), meta.len());
    let mut refused = Refused::NONE;
    for (chunk, (burst, meta)) in burst.chunks(CHUNK).zip(meta.chunks_mut(CHUNK)).enumerate() {
        let mut outcome = Outcome::NONE;
        let mut heads = Heads::new(burst, meta);
        heads.read();
        run(cx, (port, filter, Direction::In), low_bits(burst.len()), &mut heads, &mut outcome, out);
        for i in iter_bits(outcome.refused) {
            // What waits for its first fragment is taken out of the burst by the pipeline.
            if outcome.is_rejected(i) {
                send_reject(cx, (port, port), &burst[i], &meta[i], out);
            }
            meta[i].fate = Fate::drop(outcome.reasons[i]);
        }
        refused.add_chunk(chunk, outcome.refused);
    }
    refused
}

/// Refuses what may not leave by a port, of the frames that are not refused yet, and counts it as dropped there. Of what is
/// flooded, `heads` keeps what was read for the next port.
#[inline(never)]
pub(crate) fn egress<'a, F: Frame>(
    cx: &Context<'_>,
    hop: Hop<'_>,
    filter: &Filter,
    (frames, meta): (&'a [F], &'a [Meta]),
    refused: &mut EgressRefused,
    heads: &mut Option<Heads<'a, F>>,
    out: &mut impl Output<F>,
) {
    debug_assert_eq!(frames.len(), meta.len());
    if hop.flooded && frames.len() <= CHUNK {
        let heads = heads.get_or_insert_with(|| {
            let mut heads = Heads::new(frames, meta);
            heads.read();
            heads
        });
        return egress_chunk(cx, hop, filter, heads, (0, refused), out);
    }
    for (chunk, (frames, meta)) in frames.chunks(CHUNK).zip(meta.chunks(CHUNK)).enumerate() {
        let mut heads = Heads::new(frames, meta);
        heads.read();
        egress_chunk(cx, hop, filter, &mut heads, (chunk, refused), out);
    }
}

#[inline(always)]
fn egress_chunk<F: Frame>(
    cx: &Context<'_>,
    hop: Hop<'_>,
    filter: &Filter,
    heads: &mut Heads<'_, F>,
    (chunk, refused): (usize, &mut EgressRefused),
    out: &mut impl Output<F>,
) {
    let of = low_bits(heads.frames().len()) & !refused.all.chunk(chunk);
    if of == 0 {
        return;
    }
    let mut outcome = Outcome::NONE;
    run(cx, (hop.to, filter, Direction::Out), of, heads, &mut outcome, out);
    for i in iter_bits(outcome.refused) {
        if outcome.reasons[i] == DropReason::EarlyFragment && !hop.flooded {
            refused.early.add(chunk * CHUNK + i);
            continue;
        }
        let is_early = outcome.reasons[i] == DropReason::EarlyFragment;
        cx.drop(hop.to.idx, if is_early { DropReason::EgressUnreadable } else { outcome.reasons[i] }, 1);
        // Which of the ports a flooded frame was for is not known.
        if outcome.is_rejected(i) && !hop.flooded {
            send_reject(cx, (hop.from, hop.to), &heads.frames()[i], &heads.meta()[i], out);
        }
    }
    refused.all.add_chunk(chunk, outcome.refused);
}

/// What of a group may not leave by a port.
#[derive(Clone, Copy)]
pub(crate) struct EgressRefused {
    pub all: Refused,
    /// Those that wait for their first fragment, which are not dropped yet.
    pub early: Refused,
}

impl EgressRefused {
    pub const NONE: EgressRefused = EgressRefused { all: Refused::NONE, early: Refused::NONE };
}

/// Notifies the sender of a frame that was rejected on its way `from` one port `to` another; who is behind a tunnel as if
/// the station there had answered. Without a buffer the sender is not notified; it may be of the next one.
#[cold]
fn send_reject<F: Frame>(cx: &Context<'_>, (from, to): (&Port, &Port), frame: &F, m: &Meta, out: &mut impl Output<F>) {
    let Some(headers) = reject::answerable(frame.head(), m.class.header_len() as usize) else { return };
    let replies = &from.limits.replies;
    if !(if cx.trace.is_some() { replies.would_admit(cx.now.ns) } else { replies.admit(cx.now.ns) }) {
        // The reply that is not made counts as made and dropped.
        cx.counters.port(from.idx).clones.add(1);
        return cx.drop(from.idx, DropReason::ReplyLimit, 1);
    }
    let answer = reject::answer(&headers, frame.head());
    let Some(mut answer) = answer.and_then(|octets| out.make(&octets)) else { return };
    if !matches!(from.role, Role::Device) {
        return out.answer_inside(to.idx, (m.class.without_tag(), m.dst.segment()), answer);
    }
    // In the form in which the frame was received.
    let tag = m.class.tag();
    if !tag.is_some() || answer.push_tag(tag.tpid(), tag.tci()) {
        cx.counters.port(from.idx).clones.add(1);
        out.transmit(from.idx, to.idx, answer);
    }
}

/// The whole of it, for the frames whose bits are in `of`.
#[inline(always)]
fn run<F: Frame>(
    cx: &Context<'_>,
    its: (&Port, &Filter, Direction),
    of: Mask,
    heads: &mut Heads<'_, F>,
    outcome: &mut Outcome,
    out: &mut impl Output<F>,
) {
    let (port, filter, direction) = its;
    if filter.asks_macs {
        heads.with_macs();
    }
    let mut from_clients = 0;
    if let (Some(security), Direction::In) = (&filter.security, direction) {
        from_clients = check_port_security(cx, security, of, heads, outcome);
    }
    if heads.needs_slow_path {
        handle_irregular(cx, its, of, heads, outcome);
    }
    let no_ip = of
        & !outcome.refused
        & !heads.columns.of_family(Family::V4 as usize)
        & !heads.columns.of_family(Family::V6 as usize);
    let of = match direction {
        Direction::In if no_ip != 0 && !port.forwarding.filters_announcements => {
            of & !announcements::of(cx, filter, no_ip, heads)
        }
        _ => of,
    };
    if filter.tracks {
        let mut found = sessions::Found::default();
        sessions::track(cx, its, of, heads, &mut found, outcome.refused);
        decide_all(cx, its, of, heads, outcome, out);
        sessions::commit(cx, its, heads, &found, outcome);
    } else {
        decide_all(cx, its, of, heads, outcome, out);
    }
    let Some(security) = filter.security.as_ref().filter(|_| cx.trace.is_none()) else { return };
    for i in iter_bits(from_clients & !outcome.refused) {
        if security.note_sent(&heads.row(i), heads.frames()[i].head(), cx.now.s) {
            out.leased();
        }
    }
    if direction == Direction::Out {
        for i in iter_bits(of & !outcome.refused) {
            let (protocol, port) = (heads.columns.word(PROTOCOL)[i] as u8, heads.columns.word(SPORT)[i]);
            // From DHCP servers, and neighbor discovery.
            if matches!((protocol, port), (UDP, DHCP_SERVER | DHCPV6_SERVER) | (ICMPV6, 135 | 136))
                && security.snoop(&heads.row(i), heads.frames()[i].head(), cx.now.s)
            {
                out.leased();
            }
        }
    }
}

/// Refuses what the station may not send. The messages of DHCP clients, where snooping looks at them.
#[inline(always)]
fn check_port_security<F: Frame>(
    cx: &Context<'_>,
    security: &Security,
    of: Mask,
    heads: &Heads<'_, F>,
    outcome: &mut Outcome,
) -> Mask {
    let (columns, meta, now_s) = (&heads.columns, heads.meta(), cx.now.s);
    let plain = |family: Family| columns.plain() & columns.of_family(family as usize);
    let (v4, v6) = (plain(Family::V4), plain(Family::V6));
    let (mut passed, mut passed_v6) = (None, None);
    let mut from_clients = 0;
    for i in iter_bits(of) {
        let (mac, word) = (meta[i].src.mac(), |w: usize| columns.word(w)[i]);
        let (protocol, sport, dport) = (word(PROTOCOL) as u8, word(SPORT), word(DPORT));
        let plain = match v4 >> i & 1 {
            0 => None,
            _ => security.check_plain(mac, &V4 { src: word(SRC), protocol, sport, dport }, now_s, &mut passed),
        };
        let checked = if let Some(checked) = plain {
            checked
        } else {
            let may_tell = (protocol, dport) == (UDP, DHCP_SERVER) || (protocol, sport) == (ICMPV6, 135);
            if security.snooped.is_some() && may_tell {
                from_clients |= 1 << i;
            }
            // Who sent the one before, if that passed: of the same there is nothing more to ask.
            let is_known = v6 >> i & 1 != 0 && !Security::asks_more_v6(protocol, sport, dport);
            let sender = is_known.then(|| (mac, [SRC, SRC6, SRC6 + 1, SRC6 + 2].map(word)));
            if sender.is_some() && sender == passed_v6 {
                Ok(())
            } else {
                let checked = security.check(&heads.row(i), heads.frames()[i].head(), now_s);
                passed_v6 = sender.filter(|_| checked.is_ok());
                checked
            }
        };
        cx.note("security", || checked.err().map_or("passes", DropReason::describe).to_owned());
        checked.err().into_iter().for_each(|reason| outcome.refuse(i, reason));
    }
    from_clients
}

/// Lends fragments their ports, and refuses what learning would refuse (nothing is to begin with that) and what
/// can't be read to its end where a list asks for more: no other rule may let that pass instead.
#[cold]
fn handle_irregular<F: Frame>(
    cx: &Context<'_>,
    (port, filter, direction): (&Port, &Filter, Direction),
    of: Mask,
    heads: &mut Heads<'_, F>,
    outcome: &mut Outcome,
) {
    for i in iter_bits(of) {
        let m = &heads.meta()[i];
        let zone = Zone { port: port.idx, segment: m.dst.segment() };
        let (mut followed, mut is_fragment, mut hides_protocol) = (Inherited::Yes, false, false);
        let lend = |h: &mut Headers, head: &[u8]| {
            is_fragment = h.words[FRAGMENT] != 0;
            if is_fragment {
                followed = cx.sessions.inherit_ports(h, head, zone, cx.now.s, cx.trace.is_none());
                hides_protocol = !h.knows_protocol();
            }
        };
        let broken = heads.change(i, lend);
        let asks = filter.asks_ports || (filter.asks_layer4 && hides_protocol);
        let reason = |ingress, egress| if direction == Direction::In { ingress } else { egress };
        if direction == Direction::In && m.src.segment() == SegmentId::NONE {
            outcome.refuse(i, DropReason::IngressVlan);
        } else if direction == Direction::In && m.src.is_invalid_source() {
            outcome.refuse(i, DropReason::InvalidSource);
        } else if outcome.is_refused(i) {
            continue;
        } else if (is_fragment && broken && filter.asks_layer4) || (followed == Inherited::Overlaps && asks) {
            cx.note(direction.name(), || "it is a fragment that is too short, or writes over the first one".to_owned());
            outcome.refuse(i, reason(DropReason::BadFragment, DropReason::EgressBadFragment));
        } else if broken && filter.asks_layer4 {
            cx.note(direction.name(), || "its headers can't be read to the end, and a list asks for more".to_owned());
            outcome.refuse(i, reason(DropReason::Unreadable, DropReason::EgressUnreadable));
        } else if followed == Inherited::Early && asks {
            cx.note(direction.name(), || "its first fragment, which has its ports, has not come yet".to_owned());
            outcome.refuse(i, DropReason::EarlyFragment);
        }
    }
}

/// Evaluates all lists: the port's, then those of the networks that the frames are in.
#[inline(always)]
fn decide_all<F: Frame>(
    cx: &Context<'_>,
    (port, filter, direction): (&Port, &Filter, Direction),
    of: Mask,
    heads: &Heads<'_, F>,
    outcome: &mut Outcome,
    out: &mut impl Output<F>,
) {
    for acl in direction.of(&filter.lists) {
        decide(cx, (acl, direction, port), of, heads, outcome, out);
    }
    let mut left = if filter.by_segment { of } else { 0 };
    while left != 0 {
        // Those of one segment together.
        let segment = heads.meta()[left.trailing_zeros() as usize].dst.segment();
        let of = filter_mask(left, |i| heads.meta()[i].dst.segment() == segment);
        left &= !of;
        let lists = cx.snapshot.segment(segment).and_then(|s| s.lists.as_deref());
        for acl in lists.map_or(&[][..], |l| direction.of(l)) {
            decide(cx, (acl, direction, port), of, heads, outcome, out);
        }
    }
}

/// Evaluates one list for those of the frames whose bits are in `of` that were not refused before.
#[inline(never)]
fn decide<F: Frame>(
    cx: &Context<'_>,
    (acl, direction, port): (&Arc<Acl>, Direction, &Port),
    of: Mask,
    heads: &Heads<'_, F>,
    outcome: &mut Outcome,
    out: &mut impl Output<F>,
) {
    let of = of & !outcome.refused;
    let frames = heads.frames();
    let read: Words<'_> = (&heads.columns, &|i| heads.row(i));
    let mut best: Best = [NONE; CHUNK];
    match acl.established {
        // What lists that ask for states mostly begin with.
        Some(rule) if heads.columns.are_established(of) => best = [rule; CHUNK],
        _ => acl.classify(read, of, &mut best),
    }
    // Most chunks are let pass whole by one rule.
    let first = acl.decision(best[of.trailing_zeros() as usize % CHUNK]);
    let alike = of == low_bits(frames.len()) && best[..frames.len()].iter().fold(0, |d, b| d | (b ^ best[0])) == 0;
    let nothing_to_tell = first.log_every == 0 && cx.trace.is_none() && !acl.counts_some();
    if alike && nothing_to_tell && first.action == Action::Allow {
        let c = acl.count(cx.worker, first.number);
        c.frames.add(frames.len() as u64);
        c.bytes.add(frames.iter().map(|f| u64::from(f.len())).sum());
        return;
    }
    for i in iter_bits(of) {
        let frame = &frames[i];
        if acl.counts_some() {
            acl.counted_before(read, i, best[i], |d| {
                let n = count(cx, acl, d, frame);
                note_decision(cx, (acl, direction, port), d, n, (heads, i), out);
            });
        }
        let decision = acl.decision(best[i]);
        let n = count(cx, acl, &decision, frame);
        if decision.log_every != 0 || cx.trace.is_some() {
            note_decision(cx, (acl, direction, port), &decision, n, (heads, i), out);
        }
        match (decision.action, direction) {
            (Action::Allow | Action::Count, _) => {}
            (Action::Deny, Direction::In) => outcome.refuse(i, DropReason::AclDenied),
            (Action::Deny, Direction::Out) => outcome.refuse(i, DropReason::EgressAclDenied),
            // A reset would end a connection that the switch has only forgotten.
            (Action::Reject, _) if cx.sessions.is_in_grace(cx.now.s) && sessions::is_midstream(&heads.row(i)) => {
                outcome.refuse(
                    i,
                    if direction == Direction::In { DropReason::AclDenied } else { DropReason::EgressAclDenied },
                );
            }
            (Action::Reject, _) => {
                let reason =
                    if direction == Direction::In { DropReason::AclRejected } else { DropReason::EgressAclRejected };
                outcome.refuse(i, reason);
                outcome.rejected |= 1 << i;
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

/// Reports a rule's decision about frame `i` to the log and the trace.
#[cold]
fn note_decision<F: Frame>(
    cx: &Context<'_>,
    (acl, direction, port): (&Arc<Acl>, Direction, &Port),
    decision: &Decision,
    n: u64,
    (heads, i): (&Heads<'_, F>, usize),
    out: &mut impl Output<F>,
) {
    cx.note(direction.name(), || {
        let rule = match decision.number as usize {
            number if number < acl.number_of_rules() => format!("rule {}", number + 1),
            _ => "default".to_owned(),
        };
        format!("port '{}': acl '{}': {rule}: {}", port.name, acl.name, decision.action.name())
    });
    if cx.trace.is_none() && acl.may_log(decision, n, cx.now.ns) {
        let (acl, headers) = (acl.clone(), heads.row(i));
        let (rule, action, port) = (decision.number, decision.action, port.idx);
        out.logged(Logged { acl, rule, action, port, ingress: direction == Direction::In, headers });
    }
}
