//! The way of a frame: every stage, in its order.
//!
//! ```text
//! receive → parse → ingress VLAN → learn → lookup → police → (unicast | flood | drop) → egress
//! ```
//!
//! A worker receives a burst from one queue, so the ingress port and all it configures are the
//! same for the whole burst. Each stage is one file in `stage/` and one loop over the burst;
//! what a stage finds out about a frame goes into its [`Meta`], and a frame's fate is a value
//! there. The tag stays in the frame until it leaves: [`Meta`] says what it means (its VLAN, its
//! priority), and `egress` writes only if the other port wants another form.
//!
//! **Thread.** A pipeline belongs to one worker. It shares the mac table, and nothing else that
//! is written.
//!
//! **Conservation.** For the ports together: received + clones = transmitted + dropped. A frame
//! that floods to n ports is n frames from there, n − 1 of them clones; one that has nowhere to
//! go is dropped for that reason.

use arrayvec::ArrayVec;

use crate::{
    DropReason, Frame, Output, PortIdx, Snapshot,
    counters::Counters,
    mac_table::{Hash, Key, MacTable},
    snapshot::Port,
    stage,
    vlan::{TPID_8021Q, Tag},
};

/// The most frames taken through the stages together.
pub const BURST: usize = 32;

/// The frames of one burst.
pub type Burst<F> = ArrayVec<F, BURST>;

/// What happens to a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fate {
    /// Not decided yet.
    Pending,
    /// Leaves by one port.
    Unicast(PortIdx),
    /// To all other ports of its segment.
    Flood,
    /// Dropped.
    Drop(DropReason),
}

/// What the stages found out about one frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Meta {
    /// Destination and, from the ingress VLAN on, segment.
    pub dst: Key,
    /// Source and segment.
    pub src: Key,
    pub dst_hash: Hash,
    pub src_hash: Hash,
    pub fate: Fate,
    /// The VLAN it is in; 0 is none.
    pub vid: u16,
    /// PCP and DEI, in their place in a TCI.
    pub priority: u16,
    /// The tag in the frame that says its VLAN or priority; none without such a tag (a customer's
    /// tag that passes through a dot1q-tunnel port is payload).
    pub tag: Tag,
    /// The TPID of the tag it gets where it leaves with one.
    pub tpid: u16,
}

impl Meta {
    pub(crate) const EMPTY: Meta = Meta {
        dst: Key::new(crate::MacAddr::BROADCAST, crate::SegmentId::NONE),
        src: Key::new(crate::MacAddr::BROADCAST, crate::SegmentId::NONE),
        dst_hash: Hash::ZERO,
        src_hash: Hash::ZERO,
        fate: Fate::Pending,
        vid: 0,
        priority: 0,
        tag: Tag::NONE,
        tpid: TPID_8021Q,
    };
}

/// The time, as the caller's clock has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Now {
    /// Seconds, for learning and ageing.
    pub s: u32,
    /// Nanoseconds, for rates. May start anywhere; must not go back.
    pub ns: u64,
}

/// What all stages of one burst work with.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The configuration.
    pub snapshot: &'a Snapshot,
    /// Where addresses are.
    pub macs: &'a MacTable,
    /// The worker's own counters.
    pub counters: &'a Counters,
    /// The time of the burst.
    pub now: Now,
}

impl Context<'_> {
    #[inline]
    pub(crate) fn drop(&self, port: PortIdx, reason: DropReason, n: u64) {
        self.counters.port(port).drops[reason as usize].add(n);
    }
}

/// One worker's scratch space.
pub struct Pipeline {
    meta: [Meta; BURST],
}

impl Default for Pipeline {
    fn default() -> Self {
        Pipeline { meta: [Meta::EMPTY; BURST] }
    }
}

impl Pipeline {
    /// Takes the frames of `burst`, received at `ingress`, through all stages. It is empty
    /// afterwards: every frame has been handed to `out` or dropped and counted.
    #[inline]
    pub fn run<F: Frame>(&mut self, cx: Context<'_>, ingress: PortIdx, burst: &mut Burst<F>, out: &mut impl Output<F>) {
        let counted = cx.counters.port(ingress);
        counted.rx_frames.add(burst.len() as u64);
        counted.rx_bursts.add(1);
        let Some(port) = cx.snapshot.port(ingress) else {
            counted.rx_bytes.add(burst.iter().map(|f| u64::from(f.len())).sum());
            cx.drop(ingress, DropReason::PortGone, burst.len() as u64);
            burst.clear();
            return;
        };
        let meta = &mut self.meta[..burst.len()];
        counted.rx_bytes.add(stage::parse::run(burst, meta));
        stage::ingress_vlan::run(cx, port, meta);
        stage::learn::run(cx, port, meta, out);
        stage::lookup::run(cx, port, meta);
        stage::police::run(cx, port, meta);
        dispatch(cx, port, burst, meta, out);
    }
}

/// Hands every frame on by its fate.
#[inline]
fn dispatch<F: Frame>(cx: Context<'_>, port: &Port, burst: &mut Burst<F>, meta: &[Meta], out: &mut impl Output<F>) {
    for (frame, m) in burst.drain(..).zip(meta) {
        match m.fate {
            Fate::Unicast(to) => stage::egress::unicast(cx, port, to, frame, m, out),
            Fate::Flood => stage::flood::run(cx, port, frame, m, out),
            Fate::Drop(reason) => cx.drop(port.idx, reason, 1),
            Fate::Pending => debug_assert!(false, "police decides for whoever is still pending"),
        }
    }
}
