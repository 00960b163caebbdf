//! Suppress: a guest's ARP request or neighbour solicitation, about to be flooded into tunnels, is
//! answered here if it is known who has the address. Only networks that go on at other hosts have it.

use crate::{
    DropReason, Frame, Output,
    discovery::{self, Said},
    pipeline::{Context, Meta},
    snapshot::Port,
    stage::egress::overhead,
    tunnel::{Bindings, Role},
};

/// Whether the frame was answered, and is not to be flooded. It counts as dropped for that reason, its
/// answer as made here.
#[inline(never)]
pub(crate) fn run<F: Frame>(
    cx: &Context<'_>,
    from: &Port,
    frame: &F,
    m: &Meta,
    known: &Bindings,
    out: &mut impl Output<F>,
) -> bool {
    let question = match discovery::read(frame.head(), overhead(m.class) as usize) {
        Some(Said::Asks(q)) => q,
        Some(Said::Tells { address, mac }) => {
            if cx.trace.is_none() {
                known.note(address, mac, cx.now.s);
            }
            return false;
        }
        None => return false,
    };
    // Who speaks for another station is not believed.
    if question.mac == m.src.mac() && cx.trace.is_none() {
        known.note(question.asker, question.mac, cx.now.s);
    }
    if !matches!(from.role, Role::Device) {
        return false;
    }
    // Whoever asks for the address that is its own wants to know whether another one has it.
    let Some(mac) = known.find(question.target, cx.now.s).filter(|mac| *mac != question.mac) else { return false };
    let Some(mut answer) = out.make(discovery::answer(&question, mac).octets()) else { return false };
    let tag = m.class.tag();
    if tag.is_some() && !answer.push_tag(tag.tpid(), tag.tci()) {
        return false;
    }
    if cx.trace.is_none() {
        known.count_answer();
    }
    cx.counters.port(from.idx).clones.add(1);
    out.transmit(from.idx, answer);
    cx.drop(from.idx, DropReason::Suppressed, 1);
    true
}
