//! One fuzz input: records of ingress port (1 octet), length (1 octet) and a frame, taken through
//! a switch with a port of each VLAN mode, in bursts of what follows each other on one port. No frame
//! may panic, and each must have one fate.

use arrayvec::ArrayVec;
use dunlin_engine::{
    Burst, DropReason, Fps, MAX_PORTS, MacAddr, Mtu, Pipeline, PortIdx, Vid, Vni,
    context::{Context, Now},
    counters::{Counters, PortTotals},
    frame::HeapFrame,
    output::{Events, MAX_PIECES, MacLearned, Punt, Transmit},
    snapshot::{
        Forwarding, MacLimit,
        security::Checks,
        topology::{AclNames, BridgeSpec, NetworkSpec, OverlaySpec, PortPolicy, SecuritySpec, Topology, VtepSpec},
    },
    tables::{
        acl::{Acl, Action, Match, Prefix, Rule, state},
        conntrack::{Conntrack, OneThread, SessionLimits, Settings},
        mac::{Key, MacTable},
    },
    tunnel::Kind,
    vlan::{PriorityTags, VlanMode, VlanSet},
};

struct Sent(u64);

impl Transmit<HeapFrame> for Sent {
    fn transmit(&mut self, _: PortIdx, _: PortIdx, _: HeapFrame) {
        self.0 += 1;
    }
    fn make(&mut self, octets: &[u8]) -> Option<HeapFrame> {
        Some(HeapFrame::new(octets))
    }
    fn finish(&mut self, frame: HeapFrame) -> Result<ArrayVec<HeapFrame, MAX_PIECES>, DropReason> {
        Ok(std::iter::once(frame).collect())
    }
}

impl Events for Sent {
    fn learned(&mut self, _: MacLearned) {}
}

impl Punt<HeapFrame> for Sent {
    fn local(&mut self, _: PortIdx, _: PortIdx, _: HeapFrame) -> bool {
        true
    }
}

fn modes() -> [VlanMode; 6] {
    let some: VlanSet = [0, 1, 2, 100].into_iter().collect();
    [
        VlanMode::Access { vid: Vid::of::<1>() },
        VlanMode::Trunk { vlans: VlanSet::ALL },
        VlanMode::Trunk { vlans: some.clone() },
        VlanMode::NativeTagged { native: Vid::of::<1>(), vlans: some.clone() },
        VlanMode::NativeUntagged { native: Vid::of::<2>(), vlans: some.clone() },
        VlanMode::Dot1qTunnel { vid: Vid::of::<1>(), cvlans: some, tpid: 0x88a8 },
    ]
}

/// A VTEP behind the second port, and a guest of a network that goes on at two other hosts: that guest.
fn add_overlay(topology: &mut Topology) -> PortIdx {
    let vtep = VtepSpec {
        uplink: "p1".into(),
        vid: Vid::of::<0>(),
        address: [10, 0, 0, 1].into(),
        mac: MacAddr::from_octets([2, 0, 0, 0, 0, 1]),
        udp_port: 4789,
        ttl: 64,
        udp6_checksums: true,
    };
    topology.set_vtep("vtep0", vtep).expect("there is room");
    let remotes = [[10, 0, 0, 2].into(), [10, 0, 0, 3].into()].into();
    let overlay = Some(OverlaySpec {
        kind: Kind::Vxlan,
        vni: Vni::of::<1>(),
        vtep: "vtep0".into(),
        remotes,
        group: None,
        keep_tags: false,
        learn: true,
        suppress: true,
        bindings: Default::default(),
    });
    topology.set_network("blue", NetworkSpec { vlan: None, overlay, acls: Default::default() });
    let joined =
        PortPolicy { network: Some("blue".into()), ..PortPolicy::new("", VlanMode::Access { vid: Vid::of::<0>() }) };
    let idx = topology.set_port("guest", joined).expect("there is room");
    topology.set_up("guest", true);
    topology.snapshot().expect("few VLANs");
    for r in topology.vteps().next().expect("one").remotes {
        r.next_hop.set(Some(MacAddr::from_octets([2, 0, 0, 0, 0, 2])));
    }
    idx
}

/// A list with something of everything.
fn acl() -> Acl {
    let rule = |number, action, ask| Rule { number, action, ask, log_every: 1 };
    let prefix = |a: &str, len| Some(Prefix { address: a.parse().expect("an address"), len });
    let rules = [
        rule(0, Action::Count, Match { fragment: Some(true), ..Match::default() }),
        rule(1, Action::Allow, Match { states: state::ESTABLISHED | state::RELATED, ..Match::default() }),
        rule(2, Action::Reject, Match { states: state::INVALID, ..Match::default() }),
        rule(3, Action::Reject, Match { protocol: Some(6), dst_ports: Some(0..=1023), ..Match::default() }),
        rule(4, Action::Deny, Match { src: prefix("10.0.0.0", 9), ..Match::default() }),
        rule(5, Action::Deny, Match { dst: prefix("2001:db8::", 48), ..Match::default() }),
        rule(6, Action::Reject, Match { protocol: Some(17), src_ports: Some(5..=9), ..Match::default() }),
        rule(7, Action::Allow, Match { states: state::NEW, ..Match::default() }),
        rule(8, Action::Deny, Match { ethertype: Some(0x9000), ..Match::default() }),
    ];
    Acl::new("all", &rules, rules.len(), Action::Allow, 1)
}

fn security() -> SecuritySpec {
    let all = Checks { mac: true, ip: true, arp: true, nd: true, dhcp_guard: true, ra_guard: true };
    let macs = vec![MacAddr::from_octets([2, 0, 0, 0, 0, 2]), MacAddr::from_octets([0; 6])];
    let ips = ["10.0.0.0/8", "::/1"].map(|p| p.parse().expect("a prefix")).to_vec();
    SecuritySpec { checks: all, macs, ips, snoop: true }
}

/// Runs one input to its end.
pub fn run(mut input: &[u8]) {
    let mut topology = Topology::default();
    topology.set_bridge("br0", BridgeSpec { ageing_s: 1 });
    topology.set_acl(acl());
    topology.set_sessions(Settings { port_max: 20, unanswered_max: 5, ..Settings::default() });
    let filters = AclNames { ingress: vec!["all".into()], egress: vec!["all".into()] };
    let mut ports = Vec::new();
    for (i, vlan) in modes().into_iter().enumerate() {
        let spec = PortPolicy {
            vlan: vlan.clone(),
            forwarding: Forwarding {
                priority_tags: if i % 2 == 0 { PriorityTags::IfNonzero } else { PriorityTags::Never },
                protected: i == 3,
                mac_limit: (i == 2).then_some(MacLimit { limit: 2, drop: true }),
                filters_announcements: i == 5,
            },
            mtu: Mtu::of::<128>(),
            session_limits: SessionLimits { all: Some(40), unanswered: Some(9) },
            storm_fps: [(i == 4).then_some(Fps::of::<3>()), None, Some(Fps::of::<5>())],
            acls: if i % 3 == 1 { filters.clone() } else { AclNames::default() },
            security: (i % 3 == 2).then(security),
            ..PortPolicy::new("br0", vlan)
        };
        let name = format!("p{i}");
        ports.push(topology.set_port(&name, spec).expect("it is valid"));
        topology.set_up(&name, i != 5);
    }
    ports.push(add_overlay(&mut topology));
    let snapshot = topology.snapshot().expect("few VLANs");
    let macs = MacTable::new(MacTable::MIN_CAPACITY, [0x1234_5678_9abc_def0, 0x9e37_79b9_7f4a_7c15]);
    let vtep = topology.vteps().next().map(|v| v.idx).expect("one");
    let underlay = topology.segment("br0", 0u16).expect("carried");
    assert!(macs.set_static(Key::new(MacAddr::from_octets([2, 0, 0, 0, 0, 1]), underlay), vtep));
    let (counters, sessions) =
        (Counters::default(), Conntrack::new(256, [0x2545_f491_4f6c_dd1d, 0xd6e8_feb8_6659_fd93], OneThread));
    let (mut pipeline, mut sent, mut frames, mut s) = (Pipeline::default(), Sent(0), 0, 0);
    let mut burst: Burst<HeapFrame> = Burst::new();
    while let [port, length, rest @ ..] = input {
        let (frame, left) = rest.split_at(rest.len().min(*length as usize));
        input = left;
        frames += 1;
        let ingress = ports[*port as usize % ports.len()];
        burst.push(HeapFrame::new(frame));
        let commit_at = input.first().is_some_and(|next| ports[*next as usize % ports.len()] == ingress);
        if commit_at && input.len() > 1 && !burst.is_full() {
            continue;
        }
        s += 1;
        let now = Now { s, ns: u64::from(s) * 1_000_000 };
        let cx = Context::new(&snapshot, (&macs, &sessions), (0, &counters), now);
        pipeline.run(cx, ingress, &mut burst, &mut sent);
        if s % 8 == 0 {
            macs.sweep(4, s, |_| 3, |_| ());
        }
    }
    assert_eq!(ports.iter().map(|p| counters.port(*p).rx_frames.get()).sum::<u64>(), frames);
    // The VTEP and its remotes count what goes through them; what leaves by devices is in `sent`.
    let mut t = PortTotals::default();
    (0..MAX_PORTS).filter_map(PortIdx::new).for_each(|p| t.add(counters.port(p)));
    assert_eq!(t.rx_frames + t.clones, sent.0 + t.tx_frames + t.drops.iter().sum::<u64>());
}
