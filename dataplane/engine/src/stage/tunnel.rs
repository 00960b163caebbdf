//! Tunnel: between the two passes of a frame through the stages. What leaves by a remote gets its outer
//! headers and goes on as a frame of the VTEP's, in the underlay; what reaches the VTEP in a tunnel
//! loses them and goes on as a frame of the remote's, in the overlay. Never from tunnel to tunnel: a
//! frame is encapsulated once and decapsulated once.

use crate::{
    DropReason, Frame, Output, PortIdx, SegmentId,
    pipeline::{Context, Meta},
    snapshot::Port,
    stage::egress::{overhead, retag},
    tunnel::{
        Remote, Role, Vtep,
        ip::{self, Inner, Packet},
        vxlan,
    },
    vlan::{Class, TPID_8021Q, Tag},
};

/// As what a frame begins its second pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    /// The port that it counts as received at.
    pub port: PortIdx,
    /// What it is there.
    pub class: Class,
    pub segment: SegmentId,
}

impl Entry {
    pub const NONE: Entry =
        Entry { port: PortIdx::from_raw(0), class: Class::new(Tag::NONE, TPID_8021Q, 0), segment: SegmentId::NONE };
}

/// Who takes frames through the stages once more.
pub(crate) trait Again<F: Frame> {
    /// Nobody does: this is the second pass.
    const LAST: bool;

    fn push(&mut self, cx: Context<'_>, entry: Entry, frame: F, out: &mut impl Output<F>);
}

/// Whether what is flooded from one port is meant for the other: not from tunnel to tunnel.
#[inline(always)]
pub(crate) fn floods_to(from: &Port, to: &Port) -> bool {
    !matches!((&from.role, &to.role), (Role::Remote(_), Role::Remote(_)))
}

/// Sends one frame by a port that has no device.
#[inline(never)]
pub(crate) fn leave<F: Frame>(
    cx: Context<'_>,
    from: &Port,
    to: &Port,
    frame: F,
    m: &Meta,
    out: &mut impl Output<F>,
    again: &mut impl Again<F>,
) {
    let outcome = match &to.role {
        Role::Remote(r) => encapsulate(cx, (from, to), r, frame, m, out, again),
        Role::Vtep(v) => decapsulate(cx, (from, to), v, frame, m, out, again),
        // Its entry goes with the port; this frame met it in between.
        Role::Device => return cx.drop(from.idx, DropReason::PortGone, 1),
    };
    if let Err(reason) = outcome {
        cx.drop(to.idx, reason, 1);
    }
}

#[inline(always)]
fn encapsulate<F: Frame, A: Again<F>>(
    cx: Context<'_>,
    (from, to): (&Port, &Port),
    remote: &Remote,
    frame: F,
    m: &Meta,
    out: &mut impl Output<F>,
    again: &mut A,
) -> Result<(), DropReason> {
    if A::LAST {
        return Err(DropReason::SplitHorizon);
    }
    let vni = cx.snapshot.segment(m.dst.segment()).and_then(|s| s.vni).ok_or(DropReason::EgressVlan)?;
    let vtep = cx.snapshot.port(remote.vtep).ok_or(DropReason::LinkDown)?;
    if frame.wire_len() > to.mtu + overhead(m.class) {
        return Err(DropReason::MtuExceeded);
    }
    let next_hop = remote.next_hop.get().ok_or(DropReason::NextHop)?;
    let frame = retag(frame, m.class.tag(), Tag::NONE).ok_or(DropReason::NoBuffer)?;
    let entry = Entry { port: vtep.idx, class: vtep.untagged.0, segment: vtep.untagged.1 };
    let mut send = |frame: F, out: &mut _| {
        let (inner, len) = (Inner::of(frame.head()), frame.len());
        let mut frame = frame.grow_front(remote.outer.len()).ok_or(DropReason::NoBuffer)?;
        remote.outer.write(&mut frame.head_mut()[..remote.outer.len()], next_hop, inner, len, vni);
        let c = cx.counters.port(to.idx);
        c.tx_frames.add(1);
        c.tx_bytes.add(u64::from(len));
        again.push(cx, entry, frame, out);
        Ok(())
    };
    if frame.is_plain() {
        return send(frame, out);
    }
    // Checksums and segments that the sender left to the switch: outer headers would hide them.
    let pieces = out.finish(frame)?;
    cx.counters.port(from.idx).clones.add(pieces.len() as u64 - 1);
    for piece in pieces {
        if let Err(reason) = send(piece, out) {
            cx.drop(to.idx, reason, 1);
        }
    }
    Ok(())
}

#[inline(always)]
fn decapsulate<F: Frame, A: Again<F>>(
    cx: Context<'_>,
    (from, to): (&Port, &Port),
    vtep: &Vtep,
    mut frame: F,
    m: &Meta,
    out: &mut impl Output<F>,
    again: &mut A,
) -> Result<(), DropReason> {
    let l3 = overhead(m.class) as usize;
    let octets = u64::from(frame.len());
    let datagram = match ip::packet(frame.head(), l3, octets as usize) {
        Packet::Udp(d) if d.to == vtep.address && d.to_port == vtep.udp_port => d,
        Packet::Bad => return Err(DropReason::BadTunnel),
        _ => {
            arrived(cx, to, octets);
            out.local(to.idx, from.idx, frame);
            return Ok(());
        }
    };
    if A::LAST {
        return Err(DropReason::NestedTunnel);
    }
    if vtep.uplink != Some(from.idx) {
        return Err(DropReason::NotUplink);
    }
    if !frame.is_plain() {
        // A VTEP sends none that leave anything to the receiver.
        return Err(DropReason::BadTunnel);
    }
    let vni = frame.head().get(datagram.at..).and_then(vxlan::read).ok_or(DropReason::BadTunnel)?;
    let remote = *vtep.remotes.get(&datagram.from).ok_or(DropReason::UnknownVtep)?;
    let (class, segment) = *vtep.networks.get(&vni).ok_or(DropReason::UnknownVni)?;
    let inner = datagram.len.checked_sub(vxlan::LEN).ok_or(DropReason::BadTunnel)?;
    if frame.is_shared() {
        frame = frame.copy().ok_or(DropReason::NoBuffer)?;
    }
    frame.cut(datagram.at + vxlan::LEN, inner as u32);
    // Of the four values only these two change anything.
    if datagram.ecn & 1 == 1 && !ip::combine_ecn(frame.head_mut(), datagram.ecn) {
        return Err(DropReason::Congestion);
    }
    arrived(cx, to, octets);
    again.push(cx, Entry { port: remote, class, segment }, frame, out);
    Ok(())
}

/// Counts a frame that the VTEP took.
#[inline(always)]
fn arrived(cx: Context<'_>, vtep: &Port, octets: u64) {
    let c = cx.counters.port(vtep.idx);
    c.tx_frames.add(1);
    c.tx_bytes.add(octets);
}
