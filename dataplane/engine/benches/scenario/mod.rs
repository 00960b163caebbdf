//! A switch and bursts of frames for it, without DPDK: what `burst.rs` times and what
//! `instructions.rs` counts.

use std::net::Ipv4Addr;

use arrayvec::ArrayVec;
use dunlin_engine::{
    BURST, Burst, DropReason, Frame, MacAddr, Pipeline, PortIdx, Snapshot, Vid,
    context::{Context, Now},
    counters::Counters,
    output::{Events, MAX_PIECES, MacLearned, Punt, Transmit},
    snapshot::{
        security::Checks,
        topology::{AclNames, BridgeSpec, PortPolicy, SecuritySpec, Topology},
    },
    tables::{
        acl::{Acl, Action, Match, Prefix, Rule, state},
        conntrack::{Conntrack, OneThread},
        mac::MacTable,
    },
    vlan::{VlanMode, VlanSet},
};

/// A frame in memory that lives for ever; as with a driver's buffer, a pointer to it is what moves.
#[derive(Clone, Copy)]
pub struct Handle(&'static Slot);

struct Slot {
    octets: [u8; 60],
    /// The same frame with its tag taken out, or put in again.
    other: Option<&'static Slot>,
}

impl Frame for Handle {
    #[inline(always)]
    fn len(&self) -> u32 {
        self.0.octets.len() as u32
    }
    #[inline(always)]
    fn head(&self) -> &[u8] {
        &self.0.octets
    }
    #[inline(always)]
    fn wire_len(&self) -> u32 {
        self.len()
    }
    #[inline(always)]
    fn is_plain(&self) -> bool {
        true
    }
    fn prefetch(&self) {}
    fn share(&self) -> Self {
        *self
    }
    fn copy(&self) -> Option<Self> {
        Some(*self)
    }
    fn is_shared(&self) -> bool {
        false
    }
    fn push_tag(&mut self, _: u16, _: u16) -> bool {
        false
    }
    fn pop_tag(&mut self) {
        self.0 = self.0.other.expect("it has a tag");
    }
    fn pad(&mut self, _: u32) {}
    fn grow_front(self, _: usize) -> Option<Self> {
        unreachable!("no scenario has a tunnel")
    }
    fn sum(&self, _: usize) -> u16 {
        unreachable!("no scenario has a tunnel")
    }
    fn head_mut(&mut self) -> &mut [u8] {
        unreachable!("no scenario has a tunnel")
    }
    fn cut(&mut self, _: usize, _: u32) {
        unreachable!("no scenario has a tunnel")
    }
}

/// Counts what leaves.
#[derive(Default)]
pub struct Sink {
    pub frames: u64,
}

impl Transmit<Handle> for Sink {
    #[inline(always)]
    fn transmit(&mut self, _: PortIdx, _: PortIdx, frame: Handle) {
        self.frames += u64::from(frame.len() > 0);
    }
    #[inline(always)]
    fn transmit_burst(&mut self, _: PortIdx, _: PortIdx, burst: &mut Burst<Handle>, _: u64) {
        self.frames += burst.len() as u64;
        burst.clear();
    }
    fn make(&mut self, _: &[u8]) -> Option<Handle> {
        None
    }
    fn finish(&mut self, frame: Handle) -> Result<ArrayVec<Handle, MAX_PIECES>, DropReason> {
        Ok(std::iter::once(frame).collect())
    }
}

impl Events for Sink {
    fn learned(&mut self, _: MacLearned) {}
}

impl Punt<Handle> for Sink {
    fn local(&mut self, _: PortIdx, _: PortIdx, _: Handle) -> bool {
        true
    }
}

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Two ports, all frames of a burst to the other one, untagged.
    Forward,
    /// The same from a trunk to an access port: the tag is taken out.
    TrunkToAccess,
    /// Sixteen ports, each frame of a burst to another one.
    Spread,
    /// To an address nobody knows: flooded to eight ports.
    Flood,
    /// Forwarding, the last of ten rules lets everything pass.
    Filter,
    /// Forwarding, of connections that go on and are tracked at the first port.
    Track,
    /// Forwarding, the station behind the first port speaks as itself.
    Secure,
    /// From and to sixteen times as many stations, in a table that holds a fraction of them: neither is known.
    Full,
}

impl Kind {
    #[allow(dead_code, reason = "one of those who share this file names them by itself")]
    pub const ALL: [(&'static str, Kind); 8] = [
        ("forward", Kind::Forward),
        ("trunk_to_access", Kind::TrunkToAccess),
        ("spread", Kind::Spread),
        ("flood", Kind::Flood),
        ("filter", Kind::Filter),
        ("track", Kind::Track),
        ("secure", Kind::Secure),
        ("full", Kind::Full),
    ];
}

/// A switch that knows its stations, and their frames.
pub struct Scenario {
    snapshot: Snapshot,
    macs: MacTable,
    counters: Counters,
    sessions: Conntrack,
    pipeline: Pipeline,
    ingress: PortIdx,
    bursts: Vec<[Handle; BURST]>,
    next: usize,
    pub sink: Sink,
}

impl Scenario {
    /// `pairs` stations behind the first port and as many behind the others, talking.
    pub fn new(kind: Kind, pairs: u32) -> Self {
        let (pairs, capacity) = match kind {
            Kind::Full => (pairs * 16, MacTable::MIN_CAPACITY),
            _ => (pairs, (pairs * 4).max(65_536)),
        };
        let ports = match kind {
            Kind::Spread => 16,
            Kind::Flood => 9,
            _ => 2,
        };
        let mut topology = Topology::default();
        topology.set_bridge("br0", BridgeSpec { ageing_s: 300 });
        let tagged = kind == Kind::TrunkToAccess;
        let idx: Vec<PortIdx> = (0..ports)
            .map(|i| {
                let vlan = match tagged && i == 0 {
                    true => VlanMode::Trunk { vlans: VlanSet::ALL },
                    false => VlanMode::Access { vid: Vid::of::<10>() },
                };
                let name = format!("p{i}");
                let acls = match list(kind).filter(|_| i == 0) {
                    Some(list) => {
                        topology.set_acl(list);
                        let names = || vec!["list".to_owned()];
                        AclNames { ingress: names(), egress: names() }
                    }
                    None => AclNames::default(),
                };
                let security = (kind == Kind::Secure && i == 0).then(|| security(pairs));
                let spec = PortPolicy { acls, security, ..PortPolicy::new("br0", vlan) };
                let idx = topology.set_port(&name, spec).expect("a port");
                topology.set_up(&name, true);
                idx
            })
            .collect();
        let behind = |station: u32| 1 + station as usize % (ports - 1);
        let to_first: Vec<Handle> = (0..pairs).map(|s| frame((0, s), (behind(s), s), false)).collect();
        let from_first: Vec<Handle> = shuffled(pairs).map(|s| frame((behind(s), s), (0, s), tagged)).collect();
        let mut s = Scenario {
            snapshot: topology.snapshot().expect("a snapshot"),
            macs: MacTable::new(capacity, [0x1234_5678_9abc_def0, 0x9e37_79b9_7f4a_7c15]),
            counters: Counters::default(),
            sessions: Conntrack::new(pairs, [0x2545_f491_4f6c_dd1d, 0xd6e8_feb8_6659_fd93], OneThread),
            pipeline: Pipeline::default(),
            ingress: idx[0],
            bursts: bursts(&from_first),
            next: 0,
            sink: Sink::default(),
        };
        if kind != Kind::Flood {
            for (i, f) in to_first.iter().enumerate() {
                s.run_from(idx[behind(i as u32)], [*f; 1].into_iter().collect());
            }
        }
        // Once around: every source is known.
        (0..s.bursts.len()).for_each(|_| s.run());
        s.macs.sweep(1, 1, |_| 300, |_| ());
        s
    }

    fn run_from(&mut self, ingress: PortIdx, mut burst: Burst<Handle>) {
        let now = Now { s: 1, ns: 1_000_000_000 };
        let cx = Context::new(&self.snapshot, (&self.macs, &self.sessions), (0, &self.counters), now);
        self.pipeline.run(cx, ingress, &mut burst, &mut self.sink);
    }

    /// One burst.
    #[inline(never)]
    pub fn run(&mut self) {
        let burst = Burst::from(self.bursts[self.next]);
        self.next = (self.next + 1) % self.bursts.len();
        self.run_from(self.ingress, burst);
    }
}

/// As whom the stations behind the first port may speak.
fn security(pairs: u32) -> SecuritySpec {
    let net = "10.0.0.0/9".parse().expect("a prefix");
    let macs = (0..pairs).map(|s| MacAddr::from_bits(0x0200 << 32 | u64::from(s))).collect();
    let checks = Checks { mac: true, ip: true, arp: true, nd: true, dhcp_guard: true, ra_guard: true };
    SecuritySpec { checks, macs, ips: vec![net], snoop: false }
}

/// What the first port asks, both ways.
fn list(kind: Kind) -> Option<Acl> {
    let rule = |action, ask| Rule { action, ask, ..Rule::default() };
    let mut rules = match kind {
        Kind::Filter => {
            // Of mixed kinds: each asks about some of addresses, ports and protocol.
            let prefix = |n: u32| Some(Prefix { address: Ipv4Addr::from_bits(0xac10_0000 | n << 8).into(), len: 24 });
            let refused = (0..9u16).map(|i| {
                let (at, ports) = (u32::from(i), Some(1000 + i..=1010 + i));
                let protocol = Some(if i % 2 == 0 { 6 } else { 17 });
                let ask = match i % 3 {
                    0 => Match { protocol, src: prefix(at), dst: prefix(at + 9), dst_ports: ports, ..Match::default() },
                    1 => Match { protocol, dst: prefix(at), dst_ports: ports, ..Match::default() },
                    _ => Match { protocol, src_ports: ports.clone(), dst_ports: ports, ..Match::default() },
                };
                rule(Action::Deny, ask)
            });
            refused.chain([rule(Action::Allow, Match::default())]).collect::<Vec<_>>()
        }
        Kind::Track => {
            let of = |states| Match { states, ..Match::default() };
            vec![rule(Action::Allow, of(state::ESTABLISHED | state::RELATED)), rule(Action::Allow, of(state::NEW))]
        }
        _ => return None,
    };
    (0..).zip(&mut rules).for_each(|(n, r)| r.number = n);
    Some(Acl::new("list", &rules, rules.len(), Action::Deny, 1))
}

/// All numbers below `n`, in an order without pattern that is always the same.
fn shuffled(n: u32) -> impl Iterator<Item = u32> {
    let size = n.next_power_of_two();
    // A full-period generator modulo a power of two (Hull and Dobell).
    let step = move |x: &u32| Some(x.wrapping_mul(5).wrapping_add(0x9e37_79b1 | 1) & (size - 1));
    std::iter::successors(Some(0), step).take(size as usize).filter(move |x| *x < n)
}

fn bursts(frames: &[Handle]) -> Vec<[Handle; BURST]> {
    let all = frames.len().div_ceil(BURST);
    (0..all).map(|b| std::array::from_fn(|i| frames[(b * BURST + i) % frames.len()])).collect()
}

fn frame(to: (usize, u32), from: (usize, u32), tagged: bool) -> Handle {
    let mac = |(port, station): (usize, u32)| {
        [[2, port as u8], [0, 0], [0, 0]]
            .concat()
            .into_iter()
            .enumerate()
            .map(move |(i, o)| if i < 2 { o } else { station.to_be_bytes()[i - 2] })
    };
    let octets = |tag: &[u8]| {
        let mut all: Vec<u8> = mac(to).chain(mac(from)).chain(tag.iter().copied()).chain([8, 0]).collect();
        // UDP between addresses of the stations.
        let ip = |(port, station): (usize, u32)| (10 << 24 | (port as u32 & 1) << 23 | station).to_be_bytes();
        all.extend([0x45, 0, 0, 40, 0, 0, 0, 0, 64, 17, 0, 0]);
        all.extend(ip(from).into_iter().chain(ip(to)).chain([16, 0, 16, 0, 0, 20, 0, 0]));
        all.resize(60, 0);
        <[u8; 60]>::try_from(all).expect("60 octets")
    };
    let slot = |octets, other| &*Box::leak(Box::new(Slot { octets, other }));
    let plain = slot(octets(&[]), None);
    Handle(if tagged { slot(octets(&[0x81, 0, 0, 10]), Some(plain)) } else { plain })
}
