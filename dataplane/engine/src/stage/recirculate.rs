//! Recirculate: a frame that enters or leaves a tunnel goes through the stages once more, as another frame of another port.

use crate::{
    DropReason, Frame, Output, PortIdx, SegmentId,
    context::Context,
    vlan::{TPID_8021Q, Tag, VlanTagInfo},
};

/// As what a frame begins its second pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RecircContext {
    /// The port that it counts as received at.
    pub port: PortIdx,
    /// What it is there.
    pub class: VlanTagInfo,
    pub segment: SegmentId,
}

impl RecircContext {
    pub const NONE: RecircContext = RecircContext {
        port: PortIdx::from_raw(0),
        class: VlanTagInfo::new(Tag::NONE, TPID_8021Q, 0),
        segment: SegmentId::NONE,
    };
}

/// Takes frames through the stages once more.
pub(crate) trait Recirculate<F: Frame> {
    /// This is the second pass: there is no other.
    const LAST: bool;

    fn push(&mut self, cx: &Context<'_>, context: RecircContext, frame: F, out: &mut impl Output<F>);
}

/// Behind the second pass there is none.
pub(crate) struct NoRecirc;

impl<F: Frame> Recirculate<F> for NoRecirc {
    const LAST: bool = true;

    fn push(&mut self, cx: &Context<'_>, context: RecircContext, _: F, _: &mut impl Output<F>) {
        // The stages ask before they push; a frame that comes all the same is dropped, and counted.
        cx.counters.port(context.port).rx_frames.add(1);
        cx.drop(context.port, DropReason::NestedTunnel, 1);
    }
}
