//! Punt rings: frames that the switch itself has to read, from all workers to the `underlay` thread.
//!
//! One ring for each kind, so that a flood of one takes nothing from another: answers to the switch's own questions arrive
//! whatever others ask. Each kind has a rate (RFC 1812, 4.3.2.8, and RFC 4443, 2.4 f, ask for one of errors), and
//! each sender a part of it. What is above it, or finds its ring full, is dropped, and counted here and at its port.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread::Thread,
    time::Instant,
};

use crossbeam_queue::ArrayQueue;
use dunlin_dpdk::Mbuf;
use dunlin_engine::{
    PortIdx, SegmentId,
    packet::{ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6},
    snapshot::rate_limits::RateLimit,
    vlan::VlanTagInfo,
};

/// Octets of a punted frame; larger ones, as large pings, are not taken.
const FRAME: usize = 1600;
/// Senders that share a limit, by a hash of their MAC addresses.
const SENDERS: usize = 64;

/// Why a frame is punted.
#[derive(Clone, Copy)]
pub enum Cause {
    /// It is for this VTEP itself, and came by this port.
    Vtep(PortIdx, PortIdx),
    /// It is too large for the tunnel to `remote`: see [`dunlin_engine::output::Punt::too_big`].
    TooBig { remote: PortIdx, inside: (VlanTagInfo, SegmentId), l3: usize, mtu: u32 },
    /// A reply to a sender behind a tunnel, whose frame was rejected: see
    /// [`dunlin_engine::output::Punt::answer_inside`].
    Reject { port: PortIdx, inside: (VlanTagInfo, SegmentId) },
}

/// The kinds of punted frames, each with a ring.
#[derive(Clone, Copy)]
enum Kind {
    NeighborReply,
    NeighborRequest,
    MembershipQuery,
    Echo,
    TooBig,
    Reject,
}

/// Of each kind: its name, frames a second, of which from one sender, and frames that wait.
const KINDS: [(&str, u64, u64, usize); 6] = [
    ("neighbor_reply", 5_000, 1_000, 256),
    ("neighbor_request", 1_000, 200, 64),
    ("membership_query", 50, 50, 16),
    ("echo", 1_000, 200, 64),
    ("too_big", 1_000, 1_000, 32),
    ("reject", 1_000, 1_000, 32),
];

/// The kind of a frame for a VTEP, which has no tag.
fn kind_of(frame: &[u8]) -> Kind {
    const IGMP: u8 = 2;
    const HOP_BY_HOP: u8 = 0;
    const ICMPV6: u8 = 58;
    let at = |i: usize| frame.get(i).copied().unwrap_or_default();
    match u16::from_be_bytes([at(12), at(13)]) {
        ETHERTYPE_ARP if at(21) == 2 => Kind::NeighborReply,
        ETHERTYPE_ARP => Kind::NeighborRequest,
        ETHERTYPE_IPV4 if at(23) == IGMP => Kind::MembershipQuery,
        ETHERTYPE_IPV6 => match (at(20), at(54)) {
            (ICMPV6, 136) => Kind::NeighborReply,
            (ICMPV6, 135) => Kind::NeighborRequest,
            // MLD has a router alert.
            (HOP_BY_HOP, _) => Kind::MembershipQuery,
            _ => Kind::Echo,
        },
        _ => Kind::Echo,
    }
}

pub struct PuntedFrame {
    pub cause: Cause,
    len: usize,
    octets: [u8; FRAME],
}

impl PuntedFrame {
    pub fn octets(&self) -> &[u8] {
        &self.octets[..self.len]
    }
}

struct Ring {
    waiting: ArrayQueue<Box<PuntedFrame>>,
    /// Empty ones, so that no worker allocates.
    spare: ArrayQueue<Box<PuntedFrame>>,
    rate: RateLimit,
    of_sender: [RateLimit; SENDERS],
    punted: AtomicU64,
    dropped: AtomicU64,
}

impl Ring {
    fn new((_, fps, of_sender, n): (&str, u64, u64, usize)) -> Self {
        let spare = ArrayQueue::new(n);
        let none = PortIdx::new(0).expect("the first");
        for _ in 0..n {
            let empty = PuntedFrame { cause: Cause::Vtep(none, none), len: 0, octets: [0; FRAME] };
            let _ = spare.push(Box::new(empty));
        }
        Ring {
            waiting: ArrayQueue::new(n),
            spare,
            rate: RateLimit::new(fps),
            of_sender: std::array::from_fn(|_| RateLimit::new(of_sender)),
            punted: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        }
    }

    /// Whether there is room for a frame, as to its rates.
    fn admits(&self, frame: &[u8], now_ns: u64) -> bool {
        // Of the sender's MAC address; which senders share a limit matters little.
        let hash = frame.get(6..12).map_or(0, |mac| mac.iter().fold(0usize, |h, o| h * 31 + usize::from(*o)));
        self.of_sender[hash % SENDERS].admit(now_ns) && self.rate.admit(now_ns)
    }

    fn put(&self, cause: Cause, frame: &[u8]) -> bool {
        let Some(mut punted) = self.spare.pop() else { return false };
        let len = frame.len().min(FRAME);
        (punted.cause, punted.len) = (cause, len);
        punted.octets[..len].copy_from_slice(&frame[..len]);
        self.waiting.push(punted).is_ok()
    }
}

/// What was punted of one kind.
pub struct PuntCounts {
    pub kind: &'static str,
    pub frames: u64,
    pub dropped: u64,
}

/// All rings.
pub struct PuntRings {
    rings: [Ring; KINDS.len()],
    began: Instant,
    reader: OnceLock<Thread>,
}

impl Default for PuntRings {
    fn default() -> Self {
        PuntRings { rings: KINDS.map(Ring::new), began: Instant::now(), reader: OnceLock::new() }
    }
}

impl PuntRings {
    /// The thread that reads is woken from now on.
    pub fn set_reader(&self, thread: Thread) {
        let _ = self.reader.set(thread);
    }

    /// Punts a frame, or the front of one that is too large; `false` if there is no room for it, or too many came of late.
    pub fn punt(&self, cause: Cause, frame: &Mbuf) -> bool {
        let octets = frame.head();
        let is_whole = octets.len() <= FRAME && octets.len() as u32 == frame.len();
        let kind = match cause {
            Cause::Vtep(..) => kind_of(octets),
            Cause::TooBig { .. } => Kind::TooBig,
            Cause::Reject { .. } => Kind::Reject,
        };
        let ring = &self.rings[kind as usize];
        let fits = is_whole || !matches!(cause, Cause::Vtep(..));
        // Before anything is copied or woken: a guest may send nothing else.
        let punted = fits && ring.admits(octets, self.began.elapsed().as_nanos() as u64) && ring.put(cause, octets);
        if punted { &ring.punted } else { &ring.dropped }.fetch_add(1, Relaxed);
        if punted && let Some(t) = self.reader.get() {
            t.unpark();
        }
        punted
    }

    /// Hands over some of each kind, those that matter most first; how many. The caller looks at the clock in between,
    /// however many there are.
    pub fn read(&self, mut each: impl FnMut(&PuntedFrame)) -> usize {
        const AT_ONCE: usize = 32;
        let mut read = 0;
        for ring in &self.rings {
            for _ in 0..AT_ONCE {
                let Some(frame) = ring.waiting.pop() else { break };
                each(&frame);
                let _ = ring.spare.push(frame);
                read += 1;
            }
        }
        read
    }

    /// What was punted since start, by kind.
    pub fn counts(&self) -> impl Iterator<Item = PuntCounts> {
        KINDS.iter().zip(&self.rings).map(|((kind, ..), ring)| PuntCounts {
            kind,
            frames: ring.punted.load(Relaxed),
            dropped: ring.dropped.load(Relaxed),
        })
    }
}
