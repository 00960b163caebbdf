//! Decapsulation: what reaches a VTEP in a tunnel loses its outer headers, and becomes a frame of the remote's in the
//! overlay. Once: what is in a tunnel inside of a tunnel is dropped.

use crate::{
    Burst, DropReason, Frame, MacAddr, Output,
    context::Context,
    packet::Address,
    snapshot::Port,
    stage::{
        emit::{Group, Hop},
        recirculate::{RecircContext, Recirculate},
    },
    tunnel::{
        Format, Kind, Role, Vtep,
        ip::{self, Datagram, ETHERNET, Packet},
    },
    vlan::{TPID_8021AD, TPID_8021Q, Tag, VlanTagInfo},
};

/// A tunnel's frame, as far as its headers say.
struct Opened {
    /// Where the inner frame is.
    at: usize,
    len: u32,
    ecn: u8,
}

/// Whose frame was opened last, and as what its frames enter: most come in rows.
struct DecapCache {
    from: Address,
    kind: Kind,
    vni: u32,
    entry: RecircContext,
    /// Whether a tag inside says priority: see [`untag`].
    keeps_tags: bool,
    /// The same for what is most of all, VXLAN over IPv4: both addresses as they stand in the header; 0
    /// if it was something else.
    v4: u64,
}

impl DecapCache {
    const NONE: DecapCache = DecapCache {
        from: Address::NONE,
        kind: Kind::Vxlan,
        vni: 0,
        entry: RecircContext::NONE,
        keeps_tags: false,
        v4: 0,
    };

    /// Finds as what the frames of a remote's VNI enter.
    #[inline(always)]
    fn find(&mut self, cx: &Context<'_>, vtep: &Vtep, from: Address, kind: Kind, vni: u32) -> Result<(), DropReason> {
        // No network has VNI 0, so what stands there at first matches none.
        if (self.from, self.kind, self.vni) != (from, kind, vni) || vni == 0 {
            let port = *vtep.remotes.get(&(from, kind)).ok_or(DropReason::UnknownVtep)?;
            let (class, segment) = *vtep.networks.get(&(kind, vni)).ok_or(DropReason::UnknownVni)?;
            // Another network's remote is unknown in this one.
            let network = cx.snapshot.segment(segment).filter(|s| s.remotes.contains(&port));
            let keeps_tags = network.ok_or(DropReason::UnknownVtep)?.keeps_tags;
            *self = DecapCache { from, kind, vni, entry: RecircContext { port, class, segment }, keeps_tags, v4: 0 };
        }
        Ok(())
    }
}

/// What a frame of a VTEP's is, whose Ethernet header ends at `l3`; `None` if it is in no tunnel. As what
/// it enters is in `last` then.
#[inline(always)]
fn open(
    cx: &Context<'_>,
    vtep: &Vtep,
    (head, l3, len): (&[u8], usize, u32),
    last: &mut DecapCache,
) -> Option<Result<Opened, DropReason>> {
    let common = ip::vxlan_over_v4(head, l3, len, vtep.udp_port);
    if let Some(c) = common
        && last.v4 != 0
        && (c.addresses, c.vni) == (last.v4, last.vni)
    {
        return Some(Ok(Opened { at: c.at, len: c.len, ecn: c.ecn }));
    }
    let opened = open_any(cx, vtep, (head, l3, len), last);
    last.v4 = if matches!(opened, Some(Ok(_))) { common.map_or(0, |c| c.addresses) } else { 0 };
    opened
}

#[inline(never)]
fn open_any(
    cx: &Context<'_>,
    vtep: &Vtep,
    (head, l3, len): (&[u8], usize, u32),
    last: &mut DecapCache,
) -> Option<Result<Opened, DropReason>> {
    let datagram = match ip::packet(head, l3, len as usize) {
        Packet::Datagram(d) if d.to == vtep.address || vtep.groups.contains(&d.to) => d,
        Packet::Bad => return Some(Err(DropReason::BadTunnel)),
        _ => return None,
    };
    let kind = match datagram.to_port {
        Some(port) if port == vtep.udp_port => Kind::Vxlan,
        other => other_kind(vtep, &datagram, other)?,
    };
    let Some((vni, header)) = head.get(datagram.at..).and_then(|p| kind.read(p)) else {
        return Some(Err(DropReason::BadTunnel));
    };
    let Some(inner) = datagram.len.checked_sub(header) else { return Some(Err(DropReason::BadTunnel)) };
    let opened = Opened { at: datagram.at + header, len: inner as u32, ecn: datagram.ecn };
    Some(last.find(cx, vtep, datagram.from, kind, vni).map(|()| opened))
}

/// Not VXLAN: which kind it is. The two of GRE look alike; it is the one that the sender is known for.
#[inline(never)]
fn other_kind(vtep: &Vtep, d: &Datagram, to_port: Option<u16>) -> Option<Kind> {
    let nvgre = vtep.remotes.contains_key(&(d.from, Kind::Nvgre));
    Kind::ALL.into_iter().find(|k| k.udp_port(vtep.udp_port) == to_port && (*k != Kind::Gre || !nvgre))
}

/// Takes the outer headers off; `false` if the frame is to be dropped because of congestion.
#[inline(always)]
fn unwrap<F: Frame>(frame: &mut F, o: &Opened) -> bool {
    frame.cut(o.at, o.len);
    // Of the four values only these two change anything.
    o.ecn & 1 == 0 || ip::combine_ecn(frame.head_mut(), o.ecn)
}

/// As what the frame is recirculated, if its network keeps tags inside: one of the network's own VLAN is taken out,
/// and its priority kept. Any other stays, and its frame is refused later as one at an access port.
#[inline(always)]
fn untag<F: Frame>(frame: &mut F, last: &DecapCache) -> RecircContext {
    if last.keeps_tags
        && let Some(h) = frame.head().first_chunk::<16>()
        && let tag = Tag::new(u16::from_be_bytes([h[12], h[13]]), u16::from_be_bytes([h[14], h[15]]))
        && matches!(tag.tpid(), TPID_8021Q | TPID_8021AD)
        && tag.tci() & Tag::VID == last.entry.class.vid()
    {
        frame.pop_tag();
        return RecircContext { class: VlanTagInfo::new(Tag::NONE, tag.tpid(), tag.tci()), ..last.entry };
    }
    last.entry
}

/// Takes what is in tunnels to the VTEPs behind this uplink out of a burst, without the first pass:
/// where it goes is known. Everything else stays, what is wrong among it.
#[inline(never)]
pub(crate) fn bypass<F: Frame>(
    cx: &Context<'_>,
    port: &Port,
    burst: &mut Burst<F>,
    out: &mut impl Output<F>,
    again: &mut impl Recirculate<F>,
) {
    burst.iter().for_each(Frame::prefetch);
    for at in port.vteps.iter().filter_map(|v| cx.snapshot.port(*v)) {
        let Role::Vtep(vtep) = &at.role else { continue };
        let (mut rest, mut last) = (Burst::new(), DecapCache::NONE);
        let (mut frames, mut octets, mut congested) = (0, 0, 0);
        for mut frame in std::mem::take(burst) {
            let Some(opened) = match_local_tunnel(cx, port, (at, vtep), &frame, &mut last) else {
                rest.push(frame);
                continue;
            };
            frames += 1;
            octets += u64::from(frame.len());
            if unwrap(&mut frame, &opened) {
                let entry = untag(&mut frame, &last);
                again.push(cx, entry, frame, out);
            } else {
                congested += 1;
            }
        }
        *burst = rest;
        let c = cx.counters.port(port.idx);
        c.rx_frames.add(frames);
        c.rx_bytes.add(octets);
        let c = cx.counters.port(at.idx);
        c.tx_frames.add(frames - congested);
        c.tx_bytes.add(octets);
        cx.drop(at.idx, DropReason::Congestion, congested);
    }
}

/// What is in a good tunnel's frame for a VTEP.
#[inline(always)]
fn match_local_tunnel<F: Frame>(
    cx: &Context<'_>,
    port: &Port,
    (at, vtep): (&Port, &Vtep),
    frame: &F,
    last: &mut DecapCache,
) -> Option<Opened> {
    let head = frame.head();
    let h = head.first_chunk::<18>()?;
    let to = u64::from_be_bytes([h[0], h[1], h[2], h[3], h[4], h[5], h[6], h[7]]) >> 16;
    if to != vtep.mac.bits() || !frame.is_plain() || frame.is_shared() {
        return None;
    }
    let (segment, l3) = match u16::from_be_bytes([h[12], h[13]]) {
        TPID_8021Q | TPID_8021AD => {
            let vid = u16::from_be_bytes([h[14], h[15]]) & Tag::VID;
            (port.tagged.as_ref()?[usize::from(vid)], 18)
        }
        _ => (port.untagged.1, 14),
    };
    if segment != at.untagged.1 {
        return None;
    }
    open(cx, vtep, (head, l3, frame.len()), last)?.ok()
}

/// Takes frames that the underlay has for a VTEP, without a tag, one by one.
#[inline(never)]
pub(in crate::stage) fn run<F: Frame, R: Recirculate<F>>(
    cx: &Context<'_>,
    hop: Hop<'_>,
    vtep: &Vtep,
    group: Group<'_, F>,
    out: &mut impl Output<F>,
    again: &mut R,
) {
    for frame in group.frames.drain(..) {
        if let Err(reason) = decapsulate(cx, hop, vtep, frame, out, again) {
            cx.drop(hop.to.idx, reason, 1);
        }
    }
}

#[inline(always)]
fn decapsulate<F: Frame, R: Recirculate<F>>(
    cx: &Context<'_>,
    hop: Hop<'_>,
    vtep: &Vtep,
    mut frame: F,
    out: &mut impl Output<F>,
    again: &mut R,
) -> Result<(), DropReason> {
    let Hop { from, to, .. } = hop;
    if !frame.is_plain() {
        return finish_first(cx, hop, vtep, frame, out, again);
    }
    let (octets, mut last) = (u64::from(frame.len()), DecapCache::NONE);
    let Some(opened) = open(cx, vtep, (frame.head(), ETHERNET, frame.len()), &mut last) else {
        if is_heard(frame.head(), ETHERNET, vtep) && !out.local(to.idx, from.idx, frame) {
            return Err(DropReason::LocalFull);
        }
        arrived(cx, to, octets);
        return Ok(());
    };
    if R::LAST {
        return Err(DropReason::NestedTunnel);
    }
    if vtep.uplink != Some(from.idx) {
        return Err(DropReason::NotUplink);
    }
    let opened = opened?;
    if frame.is_shared() {
        frame = frame.copy().ok_or(DropReason::NoBuffer)?;
    }
    if !unwrap(&mut frame, &opened) {
        return Err(DropReason::Congestion);
    }
    arrived(cx, to, octets);
    let entry = untag(&mut frame, &last);
    again.push(cx, entry, frame, out);
    Ok(())
}

/// What a VTEP on the same machine left to the device: checksums, and segments of what is inside.
#[cold]
fn finish_first<F: Frame, R: Recirculate<F>>(
    cx: &Context<'_>,
    hop: Hop<'_>,
    vtep: &Vtep,
    frame: F,
    out: &mut impl Output<F>,
    again: &mut R,
) -> Result<(), DropReason> {
    let pieces = out.finish(frame)?;
    cx.counters.port(hop.from.idx).clones.add(pieces.len() as u64 - 1);
    for piece in pieces {
        // Whatever was asked for is done now.
        let result =
            if piece.is_plain() { decapsulate(cx, hop, vtep, piece, out, again) } else { Err(DropReason::BadOffload) };
        if let Err(reason) = result {
            cx.drop(hop.to.idx, reason, 1);
        }
    }
    Ok(())
}

/// Whether a host would look at the frame: it is to it, or ARP to all, or to a group of neighbour
/// discovery (RFC 2464, 7), or a query of IGMP or MLD. Of what is flooded in the underlay, most is not.
fn is_heard(head: &[u8], l3: usize, vtep: &Vtep) -> bool {
    const IGMP: u8 = 2;
    const HOP_BY_HOP: u8 = 0;
    let Some(h) = head.first_chunk::<6>() else { return false };
    let to = MacAddr::from_octets(*h);
    let discovery = matches!(h, [0x33, 0x33, 0xff, ..] | [0x33, 0x33, 0, 0, 0, 1]);
    let query = match h {
        [1, 0, 0x5e, ..] => head.get(l3 + 9) == Some(&IGMP),
        // MLD has a router alert.
        [0x33, 0x33, ..] => head.get(l3 + 6) == Some(&HOP_BY_HOP),
        _ => false,
    };
    let to_all = to == MacAddr::BROADCAST && head.get(l3 - 2..l3) == Some(&[8, 6]);
    to == vtep.mac || discovery || to_all || (query && !vtep.groups.is_empty())
}

/// Counts a frame that the VTEP took.
#[inline(always)]
fn arrived(cx: &Context<'_>, vtep: &Port, octets: u64) {
    let c = cx.counters.port(vtep.idx);
    c.tx_frames.add(1);
    c.tx_bytes.add(octets);
}
