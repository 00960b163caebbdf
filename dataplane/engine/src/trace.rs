//! What would happen to a frame, and why: the pipeline itself, on the snapshot that workers use, written to
//! change nothing and to say what it does.

use arrayvec::ArrayVec;

use crate::{
    Burst, DropReason, Pipeline, PortIdx, Snapshot,
    context::{Context, Step, Trace},
    frame::HeapFrame,
    output::{Events, MAX_PIECES, MacLearned, Punt, Transmit},
};

/// Where a traced frame ends.
struct TraceSink<'a> {
    trace: &'a Trace,
    snapshot: &'a Snapshot,
}

impl TraceSink<'_> {
    fn name(&self, port: PortIdx) -> &str {
        self.snapshot.port(port).map_or("(gone)", |p| &p.name)
    }
}

impl Transmit<HeapFrame> for TraceSink<'_> {
    fn transmit(&mut self, port: PortIdx, _: PortIdx, frame: HeapFrame) {
        let h = frame.octets();
        let tag = match h.get(12..16) {
            Some([0x81, 0, a, b]) => format!(", tagged VLAN {}", u16::from_be_bytes([*a, *b]) & 0xfff),
            Some([0x88, 0xa8, a, b]) => format!(", service tag {}", u16::from_be_bytes([*a, *b]) & 0xfff),
            _ => ", untagged".to_owned(),
        };
        self.trace.note("transmit", format!("by port '{}', {} octets{tag}", self.name(port), h.len()));
    }
    fn make(&mut self, octets: &[u8]) -> Option<HeapFrame> {
        Some(HeapFrame::new(octets))
    }
    fn finish(&mut self, frame: HeapFrame) -> Result<ArrayVec<HeapFrame, MAX_PIECES>, DropReason> {
        Ok([frame].into_iter().collect())
    }
}

impl Events for TraceSink<'_> {
    fn learned(&mut self, _: MacLearned) {}
}

impl Punt<HeapFrame> for TraceSink<'_> {
    fn local(&mut self, vtep: PortIdx, _: PortIdx, _: HeapFrame) -> bool {
        self.trace.note("local", format!("for VTEP '{}' itself", self.name(vtep)));
        true
    }
    fn too_big(
        &mut self,
        remote: PortIdx,
        _: (crate::vlan::VlanTagInfo, crate::SegmentId),
        _: &HeapFrame,
        _: usize,
        mtu: u32,
    ) {
        self.trace
            .note("tunnel", format!("too large for '{}', which takes packets of {mtu} octets", self.name(remote)));
    }
    fn answer_inside(&mut self, port: PortIdx, _: (crate::vlan::VlanTagInfo, crate::SegmentId), _: HeapFrame) {
        self.trace
            .note("tunnel", format!("a reply goes to its sender, as if from the host at port '{}'", self.name(port)));
    }
    fn hold(
        &mut self,
        remote: PortIdx,
        _: (crate::vlan::VlanTagInfo, crate::SegmentId),
        _: HeapFrame,
    ) -> Result<(), HeapFrame> {
        self.trace.note("hold", format!("until the next hop to '{}' is known", self.name(remote)));
        Ok(())
    }
}

/// What would happen to a frame received at `ingress`. The counters in `cx` take what is counted on the
/// way: give it some of their own, and the number of a worker that is none.
pub fn run(cx: Context<'_>, ingress: PortIdx, frame: &[u8]) -> Vec<Step> {
    let trace = Trace::default();
    let mut burst: Burst<HeapFrame> = Burst::new();
    burst.push(HeapFrame::new(frame));
    let mut out = TraceSink { trace: &trace, snapshot: cx.snapshot };
    Pipeline::default().run(Context { trace: Some(&trace), ..cx }, ingress, &mut burst, &mut out);
    trace.into_steps()
}
