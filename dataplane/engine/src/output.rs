//! What the pipeline asks of the worker that runs it: to transmit frames, to punt them to the slow path, to take note of events.

use arrayvec::ArrayVec;

use crate::{
    Burst, DropReason, MacAddr, PortIdx, SegmentId,
    packet::headers::Headers,
    tables::{acl, conntrack::Datagram},
    vlan::VlanTagInfo,
};

/// The most frames that one becomes when its segments are cut.
pub const MAX_PIECES: usize = 128;

/// Where frames leave.
pub trait Transmit<F> {
    /// `frame`, which came from port `from`, leaves by port `to` in the form that it has now.
    fn transmit(&mut self, to: PortIdx, from: PortIdx, frame: F);

    /// The same for all frames of `burst`, `octets` long together; every one of them is plain
    /// ([`crate::Frame::is_plain`]). It is empty afterwards.
    fn transmit_burst(&mut self, to: PortIdx, from: PortIdx, burst: &mut Burst<F>, octets: u64) {
        let _ = octets;
        burst.drain(..).for_each(|f| self.transmit(to, from, f));
    }

    /// A frame of the switch's own; `None` when there is no buffer left.
    fn make(&mut self, octets: &[u8]) -> Option<F>;

    /// What `frame` becomes when checksums and segments that its sender left to the switch are made; all plain.
    ///
    /// # Errors
    /// The reason to drop it: no buffer is left, or what it asks for can't be done.
    fn finish(&mut self, frame: F) -> Result<ArrayVec<F, MAX_PIECES>, DropReason>;
}

/// Frames for the slow path: what the switch itself has to read or answer, off the workers.
pub trait Punt<F> {
    /// `frame`, received at `from`, is for the VTEP itself: ARP, neighbour discovery, a ping. `false` if there is no
    /// room for it: it is dropped as [`DropReason::LocalFull`].
    fn local(&mut self, vtep: PortIdx, from: PortIdx, frame: F) -> bool;

    /// `frame`, whose IP packet begins at `l3`, is too large for the tunnel to `remote`, which takes packets
    /// of `mtu` octets. It counts as dropped; its sender may be notified, by a frame received at the remote in
    /// the segment `inside`.
    fn too_big(&mut self, remote: PortIdx, inside: (VlanTagInfo, SegmentId), frame: &F, l3: usize, mtu: u32) {
        let _ = (remote, inside, frame, l3, mtu);
    }

    /// Injects a frame that the switch made as if received from a host behind `port`, in the segment `inside`:
    /// for [`crate::Pipeline::run_inside`]. A reply to a sender behind a tunnel; none is owed.
    fn answer_inside(&mut self, port: PortIdx, inside: (VlanTagInfo, SegmentId), frame: F) {
        let _ = (port, inside, frame);
    }

    /// Keeps `frame`, which can't be sent into the tunnel to `remote` before its next hop is resolved,
    /// with what it is in the overlay, for [`crate::Pipeline::send_into`].
    ///
    /// # Errors
    /// There is no room: the frame, to be dropped.
    fn hold(&mut self, remote: PortIdx, inside: (VlanTagInfo, SegmentId), frame: F) -> Result<(), F> {
        let _ = (remote, inside);
        Err(frame)
    }

    /// Keeps `frame`, a fragment that came by port `from` before the first one of its `datagram`, for
    /// [`crate::Pipeline::run_held`] when that has come ([`Conntrack::has_first`]); with what it is in the overlay, if it
    /// came out of a tunnel.
    ///
    /// # Errors
    /// There is no room: the frame, to be dropped.
    ///
    /// [`Conntrack::has_first`]: crate::tables::conntrack::Conntrack::has_first
    fn hold_fragment(
        &mut self,
        (from, inside): (PortIdx, Option<(VlanTagInfo, SegmentId)>),
        datagram: Datagram,
        frame: F,
    ) -> Result<(), F> {
        let _ = (from, inside, datagram);
        Err(frame)
    }
}

/// What happened, for subscribers and logs.
pub trait Events {
    /// An address was learned, or seen at another port than before. At most once per frame.
    fn learned(&mut self, event: MacLearned);

    /// A rule that logs decided a frame. Rare: see [`crate::tables::acl`].
    fn logged(&mut self, event: Logged) {
        let _ = event;
    }

    /// A DHCP server leased an address, or its host gave it back: [`crate::snapshot::topology::Topology::snooped`] has it.
    fn leased(&mut self) {}
}

/// All of it: what a worker gives the pipeline.
pub trait Output<F>: Transmit<F> + Punt<F> + Events {}

impl<F, T: Transmit<F> + Punt<F> + Events> Output<F> for T {}

/// A rule that logs decided, or counted, a frame.
#[derive(Clone, Debug)]
pub struct Logged {
    /// The list.
    pub acl: std::sync::Arc<acl::Acl>,
    /// The rule's number in it, from 0; beyond its rules for the default.
    pub rule: u32,
    /// What followed.
    pub action: acl::Action,
    /// The port that it is attached to.
    pub port: PortIdx,
    /// On its way in, or out.
    pub ingress: bool,
    /// What the frame was.
    pub headers: Headers,
}

/// An address sends from `at`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MacLearned {
    /// The segment it was seen in.
    pub segment: SegmentId,
    /// The address.
    pub mac: MacAddr,
    /// Where it was, if it was known.
    pub from: Option<PortIdx>,
    /// Where it is.
    pub at: PortIdx,
}
