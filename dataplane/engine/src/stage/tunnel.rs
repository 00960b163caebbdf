//! Tunnel: between the two passes of a frame through the stages. What leaves by a remote gets its outer
//! headers and goes on as a frame of the VTEP's, in the underlay; what reaches the VTEP in a tunnel
//! loses them and goes on as a frame of the remote's, in the overlay. Never from tunnel to tunnel: a
//! frame is encapsulated once and decapsulated once.

use crate::{
    Burst, DropReason, Frame, MacAddr, Output, PortIdx, SegmentId,
    mac_table::Key,
    pipeline::{Context, Fate, Meta, NoMore, Refused},
    snapshot::Port,
    stage::{
        egress::{self, overhead, retag},
        parse::Parsed,
    },
    tunnel::{
        Address, Format, Kind, Remote, Role, Vtep,
        ip::{self, Datagram, Inner, Packet},
    },
    vlan::{Class, TPID_8021AD, TPID_8021Q, Tag},
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

    fn push(&mut self, cx: &Context<'_>, entry: Entry, frame: F, out: &mut impl Output<F>);
}

/// Whether what is flooded from one port is meant for the other: not from tunnel to tunnel.
#[inline(always)]
pub(crate) fn floods_to(from: &Port, to: &Port) -> bool {
    !matches!((&from.role, &to.role), (Role::Remote(_), Role::Remote(_)))
}

/// Sends one frame by a port that has no device.
#[inline(never)]
pub(crate) fn leave<F: Frame>(
    cx: &Context<'_>,
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

/// What encapsulation into one remote's tunnel needs, the same for a whole burst.
struct Way<'a> {
    remote: &'a Remote,
    vtep: &'a Port,
    vni: u32,
    next_hop: MacAddr,
    /// The tag that frames have inside: none, unless the network keeps them.
    tag: Tag,
}

impl<'a> Way<'a> {
    #[inline(always)]
    fn find(cx: &Context<'a>, remote: &'a Remote, m: &Meta) -> Result<Self, DropReason> {
        let segment = cx.snapshot.segment(m.dst.segment()).ok_or(DropReason::EgressVlan)?;
        let vni = segment.vni.ok_or(DropReason::EgressVlan)?;
        let vtep = cx.snapshot.port(remote.vtep).ok_or(DropReason::LinkDown)?;
        let next_hop = remote.next_hop.get().ok_or(DropReason::NextHop)?;
        let tag = match segment.keeps_tags && m.class.vid() != 0 {
            true => Tag::new(m.class.tpid(), m.class.priority() | m.class.vid()),
            false => Tag::NONE,
        };
        Ok(Way { remote, vtep, vni, next_hop, tag })
    }

    /// The plain frame with its outer headers.
    #[inline(always)]
    fn wrap<F: Frame>(&self, frame: F) -> Option<F> {
        let (inner, len) = (Inner::of(frame.head()), frame.len());
        let outer = &self.remote.outer;
        let mut frame = frame.grow_front(outer.len())?;
        outer.write(&mut frame.head_mut()[..outer.len()], self.next_hop, inner, len, self.vni);
        Some(frame)
    }

    fn entry(&self) -> Entry {
        Entry { port: self.vtep.idx, class: self.vtep.untagged.0, segment: self.vtep.untagged.1 }
    }
}

/// Sends a whole burst of one class, `first` among it, to one remote, if nothing in it has to be looked
/// at frame by frame; otherwise `false`, and nothing was done. All leave by the uplink to one next hop,
/// so the second pass is short.
#[inline(never)]
pub(crate) fn burst<F: Frame>(
    cx: &Context<'_>,
    (from, to): (&Port, PortIdx),
    burst: &mut Burst<F>,
    first: &Meta,
    all: &Parsed,
    out: &mut impl Output<F>,
) -> bool {
    let Some(to) = cx.snapshot.port(to) else { return false };
    let Role::Remote(remote) = &to.role else { return false };
    let fits = all.plain && all.largest <= to.mtu + overhead(first.class);
    // From another remote, it is the second pass already.
    if !fits || matches!(from.role, Role::Remote(_)) {
        return false;
    }
    let Ok(way) = Way::find(cx, remote, first) else { return false };
    // The tag inside would have to be made or taken out, frame by frame.
    if way.tag.is_some() || first.class.tag().is_some() {
        return false;
    }
    let before = burst.len();
    let outer: Burst<F> = std::mem::take(burst).into_iter().filter_map(|f| way.wrap(f)).collect();
    let (sent, headers) = (outer.len() as u64, remote.outer.len());
    cx.drop(to.idx, DropReason::NoBuffer, before as u64 - sent);
    let octets: u64 = match sent == before as u64 {
        true => all.octets + sent * headers as u64,
        false => outer.iter().map(|f| u64::from(f.len())).sum(),
    };
    let c = cx.counters.port(to.idx);
    c.tx_frames.add(sent);
    c.tx_bytes.add(octets - sent * headers as u64);
    // Copies have their payload in a second buffer: not plain.
    let plain = outer.iter().all(Frame::is_plain);
    send_outer(cx, way.vtep, outer, Parsed { octets, largest: all.largest + headers as u32, plain, ..*all }, out);
    true
}

/// The second pass of frames that a VTEP sends into tunnels: they leave by its uplink and nowhere else,
/// whoever of the underlay may have been heard where.
#[inline(always)]
pub(crate) fn send_outer<F: Frame>(
    cx: &Context<'_>,
    vtep: &Port,
    mut outer: Burst<F>,
    all: Parsed,
    out: &mut impl Output<F>,
) {
    let n = outer.len() as u64;
    let c = cx.counters.port(vtep.idx);
    c.rx_frames.add(n);
    c.rx_bytes.add(all.octets);
    c.rx_bursts.add(1);
    let uplink = if let Role::Vtep(v) = &vtep.role { v.uplink } else { None };
    let Some(uplink) = uplink else { return cx.drop(vtep.idx, DropReason::PortGone, n) };
    let (class, segment) = vtep.untagged;
    let nobody = Key::new(MacAddr::default(), segment);
    let m = Meta { dst: nobody, src: nobody, class, fate: Fate::unicast(uplink), ..Meta::EMPTY };
    if egress::burst(cx, vtep, uplink, &mut outer, std::slice::from_ref(&m), &all, out) {
        return;
    }
    for frame in outer {
        egress::unicast(cx, vtep, uplink, frame, &m, out, &mut NoMore);
    }
}

/// The same for frames of which nothing is known as a whole.
#[inline(never)]
pub(crate) fn send_each<F: Frame>(cx: &Context<'_>, vtep: &Port, outer: &mut Burst<F>, out: &mut impl Output<F>) {
    let octets = outer.iter().map(|f| u64::from(f.len())).sum();
    let largest = outer.iter().map(Frame::len).max().unwrap_or(0);
    let plain = outer.iter().all(Frame::is_plain);
    let all = Parsed { octets, largest, plain, same_class: true, refused: Refused::NONE };
    send_outer(cx, vtep, std::mem::take(outer), all, out);
}

#[inline(always)]
fn encapsulate<F: Frame, A: Again<F>>(
    cx: &Context<'_>,
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
    if frame.wire_len() > to.mtu + overhead(m.class) {
        // A flood asks several, and nobody knows yet which of them it was for.
        if m.fate != Fate::FLOOD {
            let inside = (m.class.without_tag(), m.dst.segment());
            out.too_big(to.idx, inside, &frame, overhead(m.class) as usize, to.mtu);
        }
        return Err(DropReason::MtuExceeded);
    }
    let way = match Way::find(cx, remote, m) {
        // Until it answers for the first time, or again.
        Err(DropReason::NextHop) if frame.is_plain() && out.hold(to.idx, (m.class, m.dst.segment()), &frame) => {
            return Ok(());
        }
        way => way?,
    };
    if way.tag.is_some() && frame.wire_len() + 4 > to.mtu + overhead(m.class) {
        return Err(DropReason::MtuExceeded);
    }
    let frame = retag(frame, m.class.tag(), way.tag).ok_or(DropReason::NoBuffer)?;
    let mut send = |frame: F, out: &mut _| {
        let len = u64::from(frame.len());
        let frame = way.wrap(frame).ok_or(DropReason::NoBuffer)?;
        let c = cx.counters.port(to.idx);
        c.tx_frames.add(1);
        c.tx_bytes.add(len);
        again.push(cx, way.entry(), frame, out);
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

/// A tunnel's frame, as far as its headers say.
struct Opened {
    /// Where the inner frame is.
    at: usize,
    len: u32,
    ecn: u8,
}

/// Whose frame was opened last, and as what its frames enter: most come in rows.
struct Last {
    from: Address,
    kind: Kind,
    vni: u32,
    entry: Entry,
    /// Whether a tag inside says priority: see [`untag`].
    keeps_tags: bool,
    /// The same for what is most of all, VXLAN over IPv4: both addresses as they stand in the header; 0
    /// if it was something else.
    v4: u64,
}

impl Last {
    const NONE: Last =
        Last { from: Address::NONE, kind: Kind::Vxlan, vni: 0, entry: Entry::NONE, keeps_tags: false, v4: 0 };

    /// Finds as what the frames of a remote's VNI enter.
    #[inline(always)]
    fn find(&mut self, cx: &Context<'_>, vtep: &Vtep, from: Address, kind: Kind, vni: u32) -> Result<(), DropReason> {
        // No network has VNI 0, so what stands there at first is nobody's.
        if (self.from, self.kind, self.vni) != (from, kind, vni) || vni == 0 {
            let port = *vtep.remotes.get(&(from, kind)).ok_or(DropReason::UnknownVtep)?;
            let (class, segment) = *vtep.networks.get(&(kind, vni)).ok_or(DropReason::UnknownVni)?;
            // Another network's remote is a stranger in this one.
            let network = cx.snapshot.segment(segment).filter(|s| s.remotes.contains(&port));
            let keeps_tags = network.ok_or(DropReason::UnknownVtep)?.keeps_tags;
            *self = Last { from, kind, vni, entry: Entry { port, class, segment }, keeps_tags, v4: 0 };
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
    last: &mut Last,
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
    last: &mut Last,
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

/// As what the frame goes on, if its network keeps tags inside: one of the network's own VLAN is taken out,
/// and its priority kept. Any other stays, and its frame is refused later as one at an access port.
#[inline(always)]
fn untag<F: Frame>(frame: &mut F, last: &Last) -> Entry {
    if last.keeps_tags
        && let Some(h) = frame.head().first_chunk::<16>()
        && let tag = Tag::new(u16::from_be_bytes([h[12], h[13]]), u16::from_be_bytes([h[14], h[15]]))
        && matches!(tag.tpid(), TPID_8021Q | TPID_8021AD)
        && tag.tci() & Tag::VID == last.entry.class.vid()
    {
        frame.pop_tag();
        return Entry { class: Class::new(Tag::NONE, tag.tpid(), tag.tci()), ..last.entry };
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
    again: &mut impl Again<F>,
) {
    burst.iter().for_each(Frame::prefetch);
    for at in port.vteps.iter().filter_map(|v| cx.snapshot.port(*v)) {
        let Role::Vtep(vtep) = &at.role else { continue };
        let (mut rest, mut last) = (Burst::new(), Last::NONE);
        let (mut frames, mut octets, mut congested) = (0, 0, 0);
        for mut frame in std::mem::take(burst) {
            let Some(opened) = mine(cx, port, (at, vtep), &frame, &mut last) else {
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
fn mine<F: Frame>(
    cx: &Context<'_>,
    port: &Port,
    (at, vtep): (&Port, &Vtep),
    frame: &F,
    last: &mut Last,
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

#[inline(always)]
fn decapsulate<F: Frame, A: Again<F>>(
    cx: &Context<'_>,
    (from, to): (&Port, &Port),
    vtep: &Vtep,
    mut frame: F,
    m: &Meta,
    out: &mut impl Output<F>,
    again: &mut A,
) -> Result<(), DropReason> {
    let octets = u64::from(frame.len());
    let l3 = overhead(m.class) as usize;
    let mut last = Last::NONE;
    let Some(opened) = open(cx, vtep, (frame.head(), l3, frame.len()), &mut last) else {
        if is_heard(frame.head(), l3, vtep) && !out.local(to.idx, from.idx, frame) {
            return Err(DropReason::LocalFull);
        }
        arrived(cx, to, octets);
        return Ok(());
    };
    if A::LAST {
        return Err(DropReason::NestedTunnel);
    }
    if vtep.uplink != Some(from.idx) {
        return Err(DropReason::NotUplink);
    }
    let opened = opened?;
    if !frame.is_plain() {
        // A VTEP sends none that leave anything to the receiver.
        return Err(DropReason::BadTunnel);
    }
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

/// Whether a station would look at the frame: it is to it, or ARP to all, or to a group of neighbour
/// discovery (RFC 2464, 7). Of what is flooded in the underlay, most is not.
fn is_heard(head: &[u8], l3: usize, vtep: &Vtep) -> bool {
    let Some(h) = head.first_chunk::<6>() else { return false };
    let to = MacAddr::from_octets(*h);
    let discovery = matches!(h, [0x33, 0x33, 0xff, ..] | [0x33, 0x33, 0, 0, 0, 1]);
    to == vtep.mac || discovery || (to == MacAddr::BROADCAST && head.get(l3 - 2..l3) == Some(&[8, 6]))
}

/// Counts a frame that the VTEP took.
#[inline(always)]
fn arrived(cx: &Context<'_>, vtep: &Port, octets: u64) {
    let c = cx.counters.port(vtep.idx);
    c.tx_frames.add(1);
    c.tx_bytes.add(octets);
}
