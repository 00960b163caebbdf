//! Flood: one frame to all other ports of its segment that are up.
//!
//! The buffer is shared by reference count. Ports that want another tag share one rewritten
//! copy: in one segment there are hardly ever more than two forms, so a flood copies at most
//! once, however many ports it reaches.

use crate::{
    DropReason, Frame, Output,
    pipeline::{Context, Meta},
    snapshot::Port,
    stage::egress::{check, retag},
    vlan::Tag,
};

#[inline(never)]
pub(crate) fn run<F: Frame>(cx: Context<'_>, from: &Port, frame: F, m: &Meta, out: &mut impl Output<F>) {
    let targets = cx.snapshot.segment(m.dst.segment()).map_or(&[][..], |s| &s.flood[..]);
    let mut rewritten: Option<(Tag, F)> = None;
    let mut waiting: Option<(&Port, Tag)> = None;
    let mut outcomes = 0u64;
    for to in targets.iter().filter_map(|t| cx.snapshot.port(*t)) {
        // Isolation is no loss worth a count here: a flood is not meant for protected peers.
        if to.idx == from.idx || (from.protected && to.protected) {
            continue;
        }
        outcomes += 1;
        match check(from, to, &frame, m) {
            // The last port gets the buffer itself, so everyone waits for a successor.
            Ok(tag) => {
                if let Some((port, tag)) = waiting.replace((to, tag)) {
                    send(cx, port, tag, &frame, m.class.tag(), &mut rewritten, out);
                }
            }
            Err(reason) => cx.drop(to.idx, reason, 1),
        }
    }
    match waiting {
        Some((port, tag)) if tag == m.class.tag() || rewritten.is_none() => match retag(frame, m.class.tag(), tag) {
            Some(frame) => out.transmit(port.idx, frame),
            None => cx.drop(port.idx, DropReason::NoBuffer, 1),
        },
        Some((port, tag)) => send(cx, port, tag, &frame, m.class.tag(), &mut rewritten, out),
        None if outcomes == 0 => return cx.drop(from.idx, DropReason::NoOtherPort, 1),
        None => {}
    }
    cx.counters.port(from.idx).clones.add(outcomes - 1);
}

/// Sends a share of the frame, or of its rewritten copy, to one port.
fn send<F: Frame>(
    cx: Context<'_>,
    to: &Port,
    want: Tag,
    frame: &F,
    has: Tag,
    rewritten: &mut Option<(Tag, F)>,
    out: &mut impl Output<F>,
) {
    if want == has {
        return out.transmit(to.idx, frame.share());
    }
    if rewritten.as_ref().is_none_or(|(tag, _)| *tag != want) {
        *rewritten = frame.copy().and_then(|copy| retag(copy, has, want)).map(|copy| (want, copy));
    }
    match rewritten {
        Some((_, copy)) => out.transmit(to.idx, copy.share()),
        None => cx.drop(to.idx, DropReason::NoBuffer, 1),
    }
}
