//! Connections, for a filter that asks for their state.
//!
//! Plain frames of connections that go on are found together, and where all lists let pass what goes on, whatever it is,
//! taken in at once ([`Conntrack::find_all`]). The others are looked up after them, each by itself. A connection that was
//! let pass under other rules has the ones of now asked again, as if it began now.
//!
//! [`Conntrack::find_all`]: crate::tables::conntrack::Conntrack::find_all

use std::sync::Arc;

use arrayvec::ArrayVec;

use super::{Direction, Outcome};
use crate::{
    DropReason, Frame, SegmentId,
    burst::{CHUNK, ChunkMask as Mask, Meta, iter_bits},
    context::Context,
    packet::headers::{FLAGS, Family, Headers, Heads, ICMP, ICMPV6, NO_PORT, SPORT, STATE, TCP},
    snapshot::{Port, port_filter::Filter},
    tables::{
        acl::{Acl, Action, state},
        conntrack::{self, Established, Full, Probe, Tracked, Wanted, Zone},
    },
};

/// What was found of the frames of a chunk.
#[derive(Default)]
pub(super) struct Found {
    going: ArrayVec<Established, CHUNK>,
    others: ArrayVec<Other, CHUNK>,
}

/// A frame that was looked up by itself.
struct Other {
    /// Its place in the chunk.
    i: usize,
    headers: Headers,
    probe: Probe,
    tracked: Tracked,
    /// It is of a connection of before that the other end began.
    answers: bool,
}

/// Finds the connection of each frame, and says for the lists what that says of its state.
#[inline(always)]
pub(super) fn track<F: Frame>(
    cx: &Context<'_>,
    (port, filter, direction): (&Port, &Filter, Direction),
    of: Mask,
    heads: &mut Heads<'_, F>,
    found: &mut Found,
    refused: Mask,
) {
    let commit_at = (filter.permits_established[direction as usize] && cx.trace.is_none()).then_some(cx.now.s);
    let mut known = 0;
    // Traces note each.
    if cx.trace.is_none() {
        let wanted = Wanted { heads, of: of & !refused, port: port.idx, filter: filter.id, commit_at };
        known = cx.sessions.find_all(&wanted, &mut found.going);
        heads.columns.set_established(known);
    }
    if of != known {
        track_others(cx, (port, filter, direction), of & !known, heads, &mut found.others, (commit_at, refused));
    }
}

/// The same for those whose bits are in `left`, one by one.
#[inline(never)]
fn track_others<F: Frame>(
    cx: &Context<'_>,
    (port, filter, direction): (&Port, &Filter, Direction),
    left: Mask,
    heads: &mut Heads<'_, F>,
    others: &mut ArrayVec<Other, CHUNK>,
    (commit_at, refused): (Option<u32>, Mask),
) {
    let (burst, meta) = (heads.frames(), heads.meta());
    let zone = |m: &Meta| Zone { port: port.idx, segment: m.dst.segment() };
    for i in iter_bits(left) {
        others.push(Other { i, headers: heads.row(i), probe: Probe::NONE, tracked: Tracked::No, answers: false });
        let Some(Other { headers, probe, .. }) = others.last_mut() else { return };
        cx.sessions.probe(headers, || burst[i].head(), zone(&meta[i]), probe);
        cx.sessions.prefetch(probe);
    }
    others.iter_mut().for_each(|o| cx.sessions.prefetch_entry(&mut o.probe));
    let settings = &cx.snapshot.sessions;
    for Other { i, headers: h, probe, tracked, answers } in others {
        let i = *i;
        let commit_at = commit_at.filter(|_| refused >> i & 1 == 0);
        let t = cx.sessions.track(h, probe, &burst[i], (zone(&meta[i]), filter.id), settings, commit_at);
        let f = &mut probe.found;
        if t == Tracked::Known && f.filter != filter.id {
            revalidate(cx, (port, filter, direction), f, h, meta[i].dst.segment());
        }
        *answers = t == Tracked::New
            && cx.sessions.is_in_grace(cx.now.s)
            && would_answer(cx, (port, filter, direction), h, meta[i].dst.segment());
        h.words[STATE] = state::number(match t {
            Tracked::New if *answers => state::ESTABLISHED,
            Tracked::No | Tracked::New if h.family == Family::Other => 0,
            // Neighbour discovery and the like begin nothing, but are let pass as what begins something.
            Tracked::No | Tracked::New => state::NEW,
            // Refused by the rules of now: only those can let it begin anew.
            Tracked::Known if f.refused && begins(f, h, direction) => state::NEW,
            Tracked::Known if f.refused => state::INVALID,
            Tracked::Known | Tracked::Taken => state::ESTABLISHED,
            Tracked::Related => state::RELATED,
            Tracked::Invalid => state::INVALID,
        });
        heads.columns.set_state(i, h.words[STATE]);
        cx.note("sessions", || {
            let name = ["not tracked", "new", "established", "related", "invalid"][h.words[STATE] as usize];
            format!("port '{}': {name}", port.name)
        });
        *tracked = t;
    }
}

/// Whether a frame would begin the connection in the direction in which it was begun before.
fn begins(f: &conntrack::Found, h: &Headers, direction: Direction) -> bool {
    const SYN_AND_ACK: u32 = 0x12;
    f.from_port == (direction == Direction::In)
        && (h.protocol() != TCP || h.words[FLAGS] & (SYN_AND_ACK | NO_PORT) == 2)
}

/// The lists that ask about what begins in this direction, in a segment.
fn lists<'a>(
    cx: &Context<'a>,
    filter: &'a Filter,
    (direction, segment): (Direction, SegmentId),
) -> impl Iterator<Item = &'a Arc<Acl>> {
    let of_segment = cx.snapshot.segment(segment).and_then(|s| s.lists.as_deref());
    direction.of(&filter.lists).iter().chain(of_segment.map_or(&[][..], |l| direction.of(l)))
}

/// Whether rules let all that is alike begin.
fn let_begin<'a>(mut lists: impl Iterator<Item = &'a Arc<Acl>>, h: &Headers) -> bool {
    lists.all(|acl| acl.decision(acl.classify_one(h)).action == Action::Allow)
}

/// Whether it is a TCP segment that begins no connection.
pub(super) fn is_midstream(h: &Headers) -> bool {
    const SYN: u32 = 2;
    h.protocol() == TCP && h.words[FLAGS] & (SYN | NO_PORT) == 0
}

/// Whether a frame, which the rules of its direction do not permit to begin a connection, may belong to one that the other
/// end began before the switch was started: the rules of the other direction permit it.
#[cold]
fn would_answer(
    cx: &Context<'_>,
    (_, filter, direction): (&Port, &Filter, Direction),
    h: &Headers,
    segment: SegmentId,
) -> bool {
    let other = if direction == Direction::In { Direction::Out } else { Direction::In };
    let [mut own, mut first] = [*h, h.reversed()];
    for h in [&mut own, &mut first] {
        h.words[STATE] = state::number(state::NEW);
    }
    first.words[FLAGS] = 2;
    // Other protocols go on with the next frame of the end that began.
    is_midstream(h)
        && !let_begin(lists(cx, filter, (direction, segment)), &own)
        && let_begin(lists(cx, filter, (other, segment)), &first)
}

/// The rules changed since the connection was let pass: would they let it begin now?
#[cold]
fn revalidate(
    cx: &Context<'_>,
    (port, filter, direction): (&Port, &Filter, Direction),
    f: &mut conntrack::Found,
    h: &Headers,
    segment: SegmentId,
) {
    let begun = if f.from_port { Direction::In } else { Direction::Out };
    let mut first = if begun == direction { *h } else { h.reversed() };
    first.words[STATE] = state::number(state::NEW);
    match (h.protocol(), first.words[SPORT]) {
        (TCP, _) => first.words[FLAGS] = 2,
        (ICMP, 0) => first.words[SPORT] = 8,
        (ICMPV6, 129) => first.words[SPORT] = 128,
        _ => {}
    }
    let passes = let_begin(lists(cx, filter, (begun, segment)), &first);
    (f.refused, f.filter) = (!passes, filter.id);
    cx.note("sessions", || {
        format!(
            "port '{}': the rules changed: it is {}",
            port.name,
            if passes { "still permitted" } else { "not permitted any more" }
        )
    });
    if cx.trace.is_none() {
        cx.sessions.judge(f, passes, filter.id);
    }
}

/// Begins connections, and takes those on whose frames passed.
#[inline(always)]
pub(super) fn commit<F: Frame>(
    cx: &Context<'_>,
    (port, filter, direction): (&Port, &Filter, Direction),
    heads: &Heads<'_, F>,
    found: &Found,
    outcome: &mut Outcome,
) {
    if !found.going.is_empty() {
        cx.sessions.advance_all(heads, &found.going, !outcome.refused, cx.now.s);
    }
    let (burst, meta) = (heads.frames(), heads.meta());
    let limits = (&cx.snapshot.sessions, &filter.session_limits);
    for Other { i, headers: h, probe, tracked, answers } in &found.others {
        let (i, frame, f) = (*i, &burst[*i], &probe.found);
        if outcome.is_refused(i) {
            continue;
        }
        let begun = match tracked {
            Tracked::Known if cx.trace.is_some() => Ok(()),
            Tracked::Known => {
                if f.refused && h.words[STATE] == state::number(state::NEW) {
                    cx.sessions.judge(f, true, filter.id);
                }
                cx.sessions.advance(f, h, frame.head(), cx.now.s);
                Ok(())
            }
            Tracked::New if cx.trace.is_some() => {
                let would = cx.sessions.would_begin(probe, port.idx, limits);
                cx.note("sessions", || match would {
                    Ok(false) => "it would begin one".to_owned(),
                    Ok(true) => "it would begin one, and another that has no reply yet would be evicted".to_owned(),
                    Err(_) => "there are too many to begin one".to_owned(),
                });
                would.map(|_| ())
            }
            Tracked::New => {
                let zone = Zone { port: port.idx, segment: meta[i].dst.segment() };
                let how = (zone, direction == Direction::In, filter.id, *answers);
                cx.sessions.begin(probe, h, frame.head(), how, limits, cx.now.s)
            }
            Tracked::No | Tracked::Taken | Tracked::Related | Tracked::Invalid => Ok(()),
        };
        if let Err(full) = begun {
            let reason = match (full, direction) {
                (Full::Connections, Direction::In) => DropReason::SessionLimit,
                (Full::Connections, Direction::Out) => DropReason::EgressSessionLimit,
                (Full::Unanswered, Direction::In) => DropReason::UnansweredLimit,
                (Full::Unanswered, Direction::Out) => DropReason::EgressUnansweredLimit,
            };
            outcome.refuse(i, reason);
        }
    }
}
