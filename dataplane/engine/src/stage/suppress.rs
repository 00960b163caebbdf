//! Suppress: the ARP request or neighbor solicitation of a guest, which would be flooded into tunnels, is answered here if
//! the address is known (RFC 9161). Only networks that go on at other hosts have it.
//!
//! A configured binding is certain. One that was learned is used only while the mac table has its host where the binding was
//! heard, so that no answer names a host that has left; and never for a probe (RFC 5227, 2.1.1; RFC 4862, 5.4), which the
//! host itself must answer.

use std::net::IpAddr;

use crate::{
    DropReason, Frame, MacAddr, Output,
    burst::Meta,
    context::Context,
    packet::arp_nd::{self, ArpNd, Request},
    snapshot::Port,
    tables::{bindings::Proxy, mac::Key},
    tunnel::Role,
};

/// Whether the frame was answered, and is not to be flooded. It counts as dropped for that reason, its
/// answer as made here.
#[inline(never)]
pub(crate) fn run<F: Frame>(
    cx: &Context<'_>,
    from: &Port,
    frame: &F,
    m: &Meta,
    proxy: &Proxy,
    out: &mut impl Output<F>,
) -> bool {
    let segment = m.dst.segment();
    let learn = |address: IpAddr, mac: MacAddr, router| {
        // A host that speaks for another one is not believed.
        let is_news = !address.is_unspecified() && proxy.configured(address).is_none();
        if mac == m.src.mac() && is_news && cx.trace.is_none() {
            let port = (from.idx, matches!(from.role, Role::Remote(_)));
            proxy.learned.note((segment, address.into()), mac, port, router, cx.now.s);
        }
    };
    let question = match arp_nd::read(frame.head(), m.class.header_len() as usize) {
        Some(ArpNd::Solicitation(q)) => q,
        Some(ArpNd::Advertisement { address, mac, router }) => {
            learn(address, mac, router);
            return false;
        }
        None => return false,
    };
    learn(question.asker, question.mac, None);
    if !matches!(from.role, Role::Device) {
        return false;
    }
    // A host that asks for its own address wants to know whether another one has it.
    let known = known(cx, m, proxy, &question).filter(|(mac, _)| *mac != question.mac);
    let Some((mac, router)) = known else { return false };
    let Some(mut answer) = out.make(arp_nd::answer(&question, mac, router).octets()) else { return false };
    let tag = m.class.tag();
    if tag.is_some() && !answer.push_tag(tag.tpid(), tag.tci()) {
        return false;
    }
    if cx.trace.is_none() {
        proxy.count_answer();
    }
    cx.counters.port(from.idx).clones.add(1);
    out.transmit(from.idx, from.idx, answer);
    cx.drop(from.idx, DropReason::Suppressed, 1);
    true
}

/// The MAC address of the target, and whether it is a router's: as long as that is not known, a neighbor solicitation is not
/// answered, because a wrong answer takes the route from the host that asks.
fn known(cx: &Context<'_>, m: &Meta, proxy: &Proxy, q: &Request) -> Option<(MacAddr, bool)> {
    if let Some(b) = proxy.configured(q.target) {
        return Some((b.mac, b.router));
    }
    let segment = m.dst.segment();
    let l = proxy.learned.find((segment, q.target.into()), cx.now.s).filter(|_| !q.asker.is_unspecified())?;
    let is_there = cx.macs.lookup(cx.macs.hash(Key::new(l.mac, segment))) == Some(l.port);
    let router = if q.target.is_ipv4() { Some(false) } else { l.router };
    router.filter(|_| is_there).map(|is_router| (l.mac, is_router))
}
