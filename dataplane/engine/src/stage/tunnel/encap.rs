//! Encapsulation: what leaves by a remote gets its outer headers, and becomes a frame of the VTEP's in the underlay. Never
//! from tunnel to tunnel: a frame is encapsulated once.

use crate::{
    Burst, DropReason, Frame, MacAddr, Output,
    burst::{BurstInfo, Fate, Meta},
    context::Context,
    snapshot::Port,
    stage::{
        emit::{self, Group, Hop, refuse},
        recirculate::{NoRecirc, RecircContext, Recirculate},
    },
    tables::mac::Key,
    tunnel::{Outer, Remote, Role, ip::Inner},
    vlan::Tag,
};

/// The tag that a frame has inside: none, unless its network keeps tags.
#[inline(always)]
pub(in crate::stage) fn form(cx: &Context<'_>, m: &Meta) -> Result<Tag, DropReason> {
    let segment = cx.snapshot.segment(m.dst.segment()).filter(|s| s.vni.is_some()).ok_or(DropReason::EgressVlan)?;
    Ok(match segment.keeps_tags && m.class.vid() != 0 {
        true => Tag::new(m.class.tpid(), m.class.priority() | m.class.vid()),
        false => Tag::NONE,
    })
}

/// Whether a frame may leave by a remote, and the tag that it has inside. The sender of one that is too large is notified.
#[inline(never)]
pub(in crate::stage) fn check<F: Frame>(
    cx: &Context<'_>,
    (hop, remote): (Hop<'_>, &Remote),
    frame: &F,
    m: &Meta,
    out: &mut impl Output<F>,
) -> Result<Tag, DropReason> {
    if matches!(hop.from.role, Role::Remote(_)) {
        return Err(DropReason::SplitHorizon);
    }
    let (tag, mtu) = (form(cx, m)?, remote.mtu(hop.to.mtu));
    if frame.wire_len() + tag.octets() > mtu + m.class.header_len() {
        // A flood goes to several, and which of them it was for is not known.
        if !hop.flooded {
            let inside = (m.class.without_tag(), m.dst.segment());
            out.too_big(hop.to.idx, inside, frame, m.class.header_len() as usize, mtu.saturating_sub(tag.octets()));
        }
        return Err(DropReason::MtuExceeded);
    }
    Ok(tag)
}

/// What encapsulation into one remote's tunnel needs, the same for all frames of a network.
struct EncapContext<'a> {
    remote: &'a Remote,
    vtep: &'a Port,
    vni: u32,
    next_hop: MacAddr,
}

impl<'a> EncapContext<'a> {
    #[inline(always)]
    fn find(cx: &Context<'a>, remote: &'a Remote, m: &Meta) -> Result<Self, DropReason> {
        let segment = cx.snapshot.segment(m.dst.segment()).ok_or(DropReason::EgressVlan)?;
        let vni = segment.vni.ok_or(DropReason::EgressVlan)?;
        let vtep = cx.snapshot.port(remote.vtep).ok_or(DropReason::LinkDown)?;
        let next_hop = remote.next_hop.get().ok_or(DropReason::NextHop)?;
        Ok(EncapContext { remote, vtep, vni, next_hop })
    }

    /// The plain frame with its outer headers.
    #[inline(always)]
    fn wrap<F: Frame>(&self, frame: F) -> Option<F> {
        let (inner, len) = (Inner::of(frame.head()), frame.len());
        let outer = &self.remote.outer;
        let mut frame = frame.grow_front(outer.len())?;
        outer.write(&mut frame.head_mut()[..outer.len()], self.next_hop, inner, len, self.vni);
        if let Some(sum) = outer.checksum(frame.len(), |from| frame.sum(from)) {
            frame.head_mut()[Outer::CHECKSUM].copy_from_slice(&sum.to_be_bytes());
        }
        Some(frame)
    }

    fn recirc(&self) -> RecircContext {
        RecircContext { port: self.vtep.idx, class: self.vtep.untagged.0, segment: self.vtep.untagged.1 }
    }
}

/// Sends frames of one class into a remote's tunnel, in the form that [`form`] says.
#[inline(never)]
pub(in crate::stage) fn run<F: Frame, R: Recirculate<F>>(
    cx: &Context<'_>,
    hop: Hop<'_>,
    remote: &Remote,
    group: Group<'_, F>,
    out: &mut impl Output<F>,
    again: &mut R,
) {
    let (n, to) = (group.frames.len() as u64, hop.to);
    let Some(first) = group.meta.first() else { return };
    let context = match EncapContext::find(cx, remote, first) {
        _ if R::LAST => return refuse(cx, to, DropReason::SplitHorizon, group),
        // Until it answers for the first time, or again.
        Err(DropReason::NextHop) => return hold(cx, to, group, out),
        Err(reason) => return refuse(cx, to, reason, group),
        Ok(context) => context,
    };
    if group.info.plain && n > 1 {
        return together(cx, to, &context, group, out);
    }
    for frame in group.frames.drain(..) {
        if frame.is_plain() {
            alone(cx, to, &context, frame, out, again);
            continue;
        }
        // Checksums and segments that the sender left to the switch: outer headers would hide them.
        match out.finish(frame) {
            Ok(pieces) => {
                cx.counters.port(hop.from.idx).clones.add(pieces.len() as u64 - 1);
                pieces.into_iter().for_each(|piece| alone(cx, to, &context, piece, out, again));
            }
            Err(reason) => cx.drop(to.idx, reason, 1),
        }
    }
}

/// Sends one plain frame; recirculated together with what others send by the same VTEP.
fn alone<F: Frame>(
    cx: &Context<'_>,
    to: &Port,
    context: &EncapContext<'_>,
    frame: F,
    out: &mut impl Output<F>,
    again: &mut impl Recirculate<F>,
) {
    let len = u64::from(frame.len());
    let Some(frame) = context.wrap(frame) else { return cx.drop(to.idx, DropReason::NoBuffer, 1) };
    let c = cx.counters.port(to.idx);
    c.tx_frames.add(1);
    c.tx_bytes.add(len);
    again.push(cx, context.recirc(), frame, out);
}

/// Sends plain frames, all by the uplink to one next hop, so that the second pass is short.
#[inline(always)]
fn together<F: Frame>(
    cx: &Context<'_>,
    to: &Port,
    context: &EncapContext<'_>,
    group: Group<'_, F>,
    out: &mut impl Output<F>,
) {
    let before = group.frames.len() as u64;
    let mut outer: Burst<F> = group.frames.drain(..).filter_map(|f| context.wrap(f)).collect();
    let (sent, header) = (outer.len() as u64, context.remote.outer.len() as u32);
    let octets = match sent == before {
        true => group.info.octets + sent * u64::from(header),
        false => outer.iter().map(|f| u64::from(f.len())).sum(),
    };
    if sent < before {
        cx.drop(to.idx, DropReason::NoBuffer, before - sent);
    }
    let c = cx.counters.port(to.idx);
    c.tx_frames.add(sent);
    c.tx_bytes.add(octets - sent * u64::from(header));
    // Copies have their payload in a second buffer: not plain.
    let plain = outer.iter().all(Frame::is_plain);
    let info = BurstInfo { octets, largest: group.info.largest + header, plain, same_class: true };
    send_outer(cx, context.vtep, &mut outer, info, out);
}

/// Keeps frames until the next hop is known.
#[cold]
fn hold<F: Frame>(cx: &Context<'_>, to: &Port, group: Group<'_, F>, out: &mut impl Output<F>) {
    let Some(m) = group.meta.first() else { return };
    let class = m.class.with_tag(form(cx, m).unwrap_or(Tag::NONE));
    for frame in group.frames.drain(..) {
        if !frame.is_plain() || out.hold(to.idx, (class, m.dst.segment()), frame).is_err() {
            cx.drop(to.idx, DropReason::NextHop, 1);
        }
    }
}

/// The second pass of frames that a VTEP sends into tunnels: they leave by its uplink and nowhere else, whatever was learned
/// of the underlay.
#[inline(always)]
pub(crate) fn send_outer<F: Frame>(
    cx: &Context<'_>,
    vtep: &Port,
    outer: &mut Burst<F>,
    info: BurstInfo,
    out: &mut impl Output<F>,
) {
    let n = outer.len() as u64;
    let c = cx.counters.port(vtep.idx);
    c.rx_frames.add(n);
    c.rx_bytes.add(info.octets);
    c.rx_bursts.add(1);
    let uplink = if let Role::Vtep(v) = &vtep.role { v.uplink } else { None };
    let Some(uplink) = uplink else {
        outer.clear();
        return cx.drop(vtep.idx, DropReason::PortGone, n);
    };
    let (class, segment) = vtep.untagged;
    let none = Key::new(MacAddr::default(), segment);
    let m = Meta { dst: none, src: none, class, fate: Fate::unicast(uplink), ..Meta::EMPTY };
    let group = Group { frames: outer, meta: std::slice::from_ref(&m), info };
    emit::unicast(cx, vtep, uplink, group, out, &mut NoRecirc);
}
