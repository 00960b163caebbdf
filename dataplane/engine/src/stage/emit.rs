//! Emit: the one way out. What leaves by one port goes through here together, whether it was for that port or is flooded, and
//! whether the port is a device or an end of tunnels:
//!
//! ```text
//! isolation → link → VLAN form → MTU → ACLs and connections → retag → hand over
//! ```
//!
//! Each check is made once for a frame and port, and once for all frames where their class and sizes allow it. A stage for
//! leaving frames is added in [`admit`] if it decides, and in [`send`] if it changes or delays frames. The frames'
//! [`Meta`] has what it may need: segment, VLAN and priority, addresses and their hashes.

use arrayvec::ArrayVec;

use super::{
    filter::{self, EgressRefused},
    recirculate::Recirculate,
    tunnel::{decap, encap},
};
use crate::{
    BURST, Burst, DropReason, Frame, Output, PortIdx,
    burst::{BurstInfo, Meta, Refused},
    context::Context,
    packet::headers::Heads,
    snapshot::Port,
    tunnel::Role,
    vlan::{EgressForm, PriorityTags, TPID_8021Q, Tag, Tunnel, VlanTagInfo, is_tag},
};

/// From where to where frames go.
#[derive(Clone, Copy)]
pub(crate) struct Hop<'a> {
    pub from: &'a Port,
    pub to: &'a Port,
    /// To all ports of the segment: no sender is notified of what became of its frame at one of them.
    pub flooded: bool,
}

/// Frames of a burst that leave by one port, and what was found out about them.
pub(crate) struct Group<'a, F> {
    pub frames: &'a mut Burst<F>,
    /// One for each frame, or one for all that are of one class.
    pub meta: &'a [Meta],
    pub info: BurstInfo,
}

/// What of a group may leave, and in which form.
pub(crate) struct Admitted {
    refused: EgressRefused,
    /// The tag that all leave with; none if each has one of its own, in `tags`.
    tag: Option<Tag>,
    tags: ArrayVec<Tag, BURST>,
}

impl Admitted {
    /// Whether all leave in the form that the first has, which is of the class of all if one form is for all.
    #[inline(always)]
    pub fn is_as_received(&self, first: &Meta) -> bool {
        self.refused.all == Refused::NONE && self.tag == Some(first.class.tag())
    }

    /// The tag with which frame `i` leaves; none if it does not.
    #[inline(always)]
    pub fn tag(&self, i: usize) -> Option<Tag> {
        if self.refused.all.has(i) { None } else { Some(self.tag.unwrap_or_else(|| self.tags[i])) }
    }
}

/// Sends a group to the port that all of it is for. Nothing is left of it.
#[inline(always)]
pub(crate) fn unicast<F: Frame>(
    cx: &Context<'_>,
    from: &Port,
    to: PortIdx,
    group: Group<'_, F>,
    out: &mut impl Output<F>,
    again: &mut impl Recirculate<F>,
) {
    let Some(to) = cx.snapshot.port(to) else { return refuse(cx, from, DropReason::PortGone, group) };
    if let Err(reason) = permit(from, to) {
        return refuse(cx, to, reason, group);
    }
    if to.is_device() || group.info.same_class {
        return unicast_to(cx, from, to, group, out, again);
    }
    // An end of tunnels takes those of one network together.
    group.each(|one| unicast_to(cx, from, to, one, out, again));
}

/// Drops a whole group, counted at `port`.
#[cold]
pub(crate) fn refuse<F>(cx: &Context<'_>, port: &Port, reason: DropReason, group: Group<'_, F>) {
    cx.drop(port.idx, reason, group.frames.len() as u64);
    group.frames.clear();
}

#[inline(always)]
fn unicast_to<F: Frame>(
    cx: &Context<'_>,
    from: &Port,
    to: &Port,
    group: Group<'_, F>,
    out: &mut impl Output<F>,
    again: &mut impl Recirculate<F>,
) {
    let hop = Hop { from, to, flooded: false };
    let admitted = admit(cx, hop, group.frames, group.meta, group.info, &mut None, out);
    send(cx, hop, group, &admitted, out, again);
}

impl<F: Frame> Group<'_, F> {
    /// Each frame as a group of its own.
    #[cold]
    pub fn each(self, mut send: impl FnMut(Group<'_, F>)) {
        for (frame, m) in self.frames.drain(..).zip(self.meta) {
            let info = BurstInfo::of(&frame);
            let mut frames: Burst<F> = Some(frame).into_iter().collect();
            send(Group { frames: &mut frames, meta: std::slice::from_ref(m), info });
        }
    }
}

impl<F> Group<'_, F> {
    /// What was found out about frame `i`.
    #[inline(always)]
    pub fn meta_of(&self, i: usize) -> &Meta {
        meta_of(self.meta, i)
    }
}

#[inline(always)]
fn meta_of(meta: &[Meta], i: usize) -> &Meta {
    &meta[if meta.len() == 1 { 0 } else { i }]
}

/// Whether frames may go from one port to another, and the other is up.
#[inline(always)]
pub(crate) fn permit(from: &Port, to: &Port) -> Result<(), DropReason> {
    if from.forwarding.protected && to.forwarding.protected {
        return Err(DropReason::Protected);
    }
    if to.is_up() { Ok(()) } else { Err(DropReason::LinkDown) }
}

/// Which of the frames may leave, between ports of which [`permit`] says that some may; the others are counted as dropped.
/// `heads` keeps what was read of flooded frames for the next port.
#[inline(always)]
pub(crate) fn admit<'a, F: Frame>(
    cx: &Context<'_>,
    hop: Hop<'_>,
    frames: &'a [F],
    meta: &'a [Meta],
    info: BurstInfo,
    heads: &mut Option<Heads<'a, F>>,
    out: &mut impl Output<F>,
) -> Admitted {
    let tag = if info.same_class { meta.first().and_then(|first| form_of_all(cx, hop, first, info)) } else { None };
    let mut admitted = Admitted { refused: EgressRefused::NONE, tag, tags: ArrayVec::new() };
    if tag.is_none() {
        form_each(cx, hop, frames, meta, &mut admitted, out);
    }
    if let Some(filter) = hop.to.filter_for(hop.from) {
        filter::egress(cx, hop, filter, (frames, meta), &mut admitted.refused, heads, out);
    }
    admitted
}

/// The tag with which all frames of one class leave, if none of them has to be looked at by itself.
#[inline(always)]
fn form_of_all(cx: &Context<'_>, hop: Hop<'_>, first: &Meta, info: BurstInfo) -> Option<Tag> {
    let Hop { from, to, .. } = hop;
    let class = first.class;
    match &to.role {
        Role::Device => {
            let fits = info.largest <= to.mtu + class.header_len() && info.plain;
            let looked_at = from.vlans.tunnel.is_some() || to.vlans.tunnel.is_some();
            // Behind a tag there may be another one.
            let hides = class.tag().is_some() && class.vid() == to.vlans.native_out;
            if !fits || looked_at || hides || to.segments.of(class.vid()) != first.dst.segment() {
                return None;
            }
            form(to, class).ok()
        }
        Role::Remote(remote) => {
            let (tag, mtu) = (encap::form(cx, first).ok()?, remote.mtu(to.mtu));
            (info.plain && info.largest + tag.octets() <= mtu + class.header_len()).then_some(tag)
        }
        Role::Vtep(_) => Some(Tag::NONE),
    }
}

/// The same frame by frame.
#[inline(never)]
fn form_each<F: Frame>(
    cx: &Context<'_>,
    hop: Hop<'_>,
    frames: &[F],
    meta: &[Meta],
    admitted: &mut Admitted,
    out: &mut impl Output<F>,
) {
    for (i, frame) in frames.iter().enumerate() {
        let m = meta_of(meta, i);
        let form = match &hop.to.role {
            // That the port still has the segment is looked at here, not only its VLAN: while a port moves to another
            // bridge, the table may still have its addresses of before. They go with the port.
            Role::Device if hop.to.segments.of(m.class.vid()) != m.dst.segment() => {
                cx.drop(hop.from.idx, DropReason::PortGone, 1);
                admitted.refuse(i);
                continue;
            }
            Role::Device => check(hop.from, hop.to, frame, m),
            Role::Remote(remote) => encap::check(cx, (hop, remote), frame, m, out),
            Role::Vtep(_) => Ok(Tag::NONE),
        };
        match form {
            Ok(tag) => admitted.tags.push(tag),
            Err(reason) => {
                cx.drop(hop.to.idx, reason, 1);
                admitted.refuse(i);
            }
        }
    }
}

impl Admitted {
    fn refuse(&mut self, i: usize) {
        self.refused.all.add(i);
        self.tags.push(Tag::NONE);
    }
}

/// The tag with which frames of `class` leave by `to`, if they do.
#[inline(always)]
fn form(to: &Port, class: VlanTagInfo) -> Result<Tag, DropReason> {
    Ok(match to.vlans.egress(class.vid()) {
        EgressForm::Refused => return Err(DropReason::EgressVlan),
        EgressForm::Tagged => Tag::new(class.tpid(), class.priority() | class.vid()),
        EgressForm::Untagged => match to.forwarding.priority_tags {
            PriorityTags::Never => Tag::NONE,
            PriorityTags::IfNonzero if class.priority() == 0 => Tag::NONE,
            _ => Tag::new(TPID_8021Q, class.priority()),
        },
    })
}

/// Whether a frame may leave by a device, and the tag that it leaves with.
#[inline(always)]
fn check<F: Frame>(from: &Port, to: &Port, frame: &F, m: &Meta) -> Result<Tag, DropReason> {
    let want = form(to, m.class)?;
    if m.class.vid() == to.vlans.native_out && has_another_tag(frame, m.class) {
        return Err(DropReason::EgressVlan);
    }
    let mut header_len = m.class.header_len();
    if from.vlans.tunnel.is_some() && customer_vid(frame.head(), false).is_some() {
        header_len += 4;
    }
    if let Some(tunnel) = &to.vlans.tunnel {
        header_len += customer_tag(tunnel, frame, m)?;
    }
    if frame.wire_len() > to.mtu + header_len {
        return Err(DropReason::MtuExceeded);
    }
    Ok(want)
}

/// Octets of the customer's tag in a frame that leaves by a dot1q-tunnel port, if it may.
#[inline(never)]
fn customer_tag<F: Frame>(tunnel: &Tunnel, frame: &F, m: &Meta) -> Result<u32, DropReason> {
    let customer = customer_vid(frame.head(), m.class.tag().is_some());
    if !tunnel.cvlans.contains(customer.unwrap_or(0)) {
        return Err(DropReason::EgressVlan);
    }
    Ok(if customer.is_some() { 4 } else { 0 })
}

/// Whether there is a tag behind the frame's own.
#[cold]
fn has_another_tag<F: Frame>(frame: &F, class: VlanTagInfo) -> bool {
    customer_vid(frame.head(), class.tag().is_some()).is_some()
}

/// The VID of the tag behind the frame's own, if there is one.
fn customer_vid(head: &[u8], service_tag: bool) -> Option<u16> {
    let at = if service_tag { 16 } else { 12 };
    let h = head.get(at..at + 4)?;
    let tpid = u16::from_be_bytes([h[0], h[1]]);
    is_tag(tpid).then(|| u16::from_be_bytes([h[2], h[3]]) & 0x0fff)
}

/// Sends what may leave of a group, in its form.
#[inline(always)]
pub(crate) fn send<F: Frame>(
    cx: &Context<'_>,
    hop: Hop<'_>,
    mut group: Group<'_, F>,
    admitted: &Admitted,
    out: &mut impl Output<F>,
    again: &mut impl Recirculate<F>,
) {
    let Some(first) = group.meta.first() else { return };
    if admitted.refused.all == Refused::NONE
        && let Some(want) = admitted.tag
    {
        if want != first.class.tag() {
            retag_all(cx, hop.to, &mut group, first.class.tag(), want);
        }
    } else {
        if admitted.refused.early != Refused::NONE {
            hold_early(cx, hop, &group, admitted, out);
        }
        retag(cx, hop.to, &mut group, admitted);
    }
    hand_over(cx, hop, group, out, again);
}

/// Gives all frames, which have one tag, another.
#[inline(never)]
fn retag_all<F: Frame>(cx: &Context<'_>, to: &Port, group: &mut Group<'_, F>, has: Tag, want: Tag) {
    let before = group.frames.len();
    group.frames.retain(|frame| rewrite(frame, has, want));
    if group.frames.len() < before {
        cx.drop(to.idx, DropReason::NoBuffer, (before - group.frames.len()) as u64);
    }
    group.info.octets = group.frames.iter().map(|f| u64::from(f.len())).sum();
}

/// Holds fragments that came before the first one of their datagram: shares of them, which are the only ones as soon as the
/// group's own are dropped.
#[cold]
fn hold_early<F: Frame>(
    cx: &Context<'_>,
    hop: Hop<'_>,
    group: &Group<'_, F>,
    admitted: &Admitted,
    out: &mut impl Output<F>,
) {
    for (i, frame) in group.frames.iter().enumerate().filter(|(i, _)| admitted.refused.early.has(*i)) {
        filter::fragments::hold(cx, (hop.from, hop.to), group.meta_of(i), frame.share(), out);
    }
}

/// Drops what was refused, and gives each frame its tag.
#[inline(never)]
fn retag<F: Frame>(cx: &Context<'_>, to: &Port, group: &mut Group<'_, F>, admitted: &Admitted) {
    let (mut i, mut no_buffer, mut octets) = (0, 0, 0);
    let meta = group.meta;
    group.frames.retain(|frame| {
        let (m, tag) = (meta_of(meta, i), admitted.tag(i));
        i += 1;
        let Some(want) = tag else { return false };
        if want != m.class.tag() && !rewrite(frame, m.class.tag(), want) {
            no_buffer += 1;
            return false;
        }
        octets += u64::from(frame.len());
        true
    });
    group.info.octets = octets;
    if no_buffer > 0 {
        cx.drop(to.idx, DropReason::NoBuffer, no_buffer);
    }
}

/// Hands over frames in the form in which they leave: `meta` says no more of them than their class, without the tag.
#[inline(always)]
pub(crate) fn hand_over<F: Frame>(
    cx: &Context<'_>,
    hop: Hop<'_>,
    group: Group<'_, F>,
    out: &mut impl Output<F>,
    again: &mut impl Recirculate<F>,
) {
    // All of it was refused, or found no buffer.
    if group.frames.is_empty() {
        return;
    }
    match &hop.to.role {
        Role::Device if group.info.plain => {
            out.transmit_burst(hop.to.idx, hop.from.idx, group.frames, group.info.octets);
        }
        Role::Device => group.frames.drain(..).for_each(|f| out.transmit(hop.to.idx, hop.from.idx, f)),
        Role::Remote(remote) => encap::run(cx, hop, remote, group, out, again),
        Role::Vtep(vtep) => decap::run(cx, hop, vtep, group, out, again),
    }
}

/// Octets of the shortest frame on a link, without FCS: IEEE 802.3, 3.2.8. A bridge that removes a tag pads (802.1Q,
/// annex G).
const SHORTEST: u32 = 60;

/// The frame with tag `want` instead of `has`, in place, or in a buffer of its own if others own it too. `false` if there is
/// no room or no buffer for it.
#[inline(always)]
pub(crate) fn rewrite<F: Frame>(frame: &mut F, has: Tag, want: Tag) -> bool {
    if frame.is_shared() {
        match frame.copy() {
            Some(own) => *frame = own,
            None => return false,
        }
    }
    if has.is_some() {
        frame.pop_tag();
        if !want.is_some() && frame.len() < SHORTEST {
            frame.pad(SHORTEST);
        }
    }
    !want.is_some() || frame.push_tag(want.tpid(), want.tci())
}
