//! Fragments that come before the first one of their datagram (RFC 791, 3.2, and RFC 8200, 4.5, ask for no order), where a
//! list asks for the ports that only the first one has: they wait at the worker, and are taken through the pipeline again
//! as soon as the first one was read at the same port.

use crate::{
    DropReason, Frame, Output, burst::Meta, context::Context, packet::headers::Headers, snapshot::Port,
    tables::conntrack::Zone,
};

/// Lets a frame that came `from` a port wait for the first fragment of its datagram at the port `at`, which filters it.
#[cold]
pub(crate) fn hold<F: Frame>(
    cx: &Context<'_>,
    (from, at): (&Port, &Port),
    m: &Meta,
    frame: F,
    out: &mut impl Output<F>,
) {
    let l3 = m.class.header_len() as usize;
    let headers = Headers::read(frame.head(), l3, m.class.vid(), m.dst.mac(), m.src.mac());
    let datagram = cx.sessions.datagram(&headers, Zone { port: at.idx, segment: m.dst.segment() });
    let inside = (!from.is_device()).then_some((m.class, m.dst.segment()));
    if out.hold_fragment((from.idx, inside), datagram, frame).is_err() {
        cx.drop(from.idx, DropReason::EarlyFragment, 1);
    }
}
