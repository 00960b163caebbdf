//! Filters look at bursts; what becomes of a frame must not depend on its company. Random bursts go through one switch
//! whole, and frame by frame through another: the same leaves, in the same order for each address, and the same is counted.
//!
//! Frames that begin or end connections are not among them: of those the next frame of the burst may not know yet.

use dunlin_engine::{
    BURST, DropReason, MacAddr, Mtu, PortIdx, Vid,
    counters::PortTotals,
    frame::HeapFrame,
    snapshot::{
        Forwarding,
        security::Checks,
        topology::{AclNames, NetworkSpec, OverlaySpec, PortPolicy, SecuritySpec},
    },
    tables::{
        acl::{Acl, Action, Match, Prefix, Rule, state},
        conntrack::{Session, Settings, Statistics},
    },
    vlan::{PriorityTags, VlanMode, VlanSet},
};
use etherparse::{PacketBuilder, PacketBuilderStep, TcpHeader};
use proptest::{collection::vec, prelude::*, sample::select};

use crate::{
    harness::{Switch, spec},
    overlay,
};

/// Stations: the last octet of both addresses, and the port each is behind. 9 is nobody.
const STATIONS: [(u8, usize); 6] = [(1, 0), (2, 0), (3, 1), (4, 2), (5, 3), (6, 4)];

fn mac(station: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, station]
}

fn ip(station: u8) -> [u8; 4] {
    [10, 0, 0, station]
}

fn tcp(from: u8, to: u8, ports: (u16, u16), seq: u32, flags: &str) -> Vec<u8> {
    let b = PacketBuilder::ethernet2(mac(from), mac(to)).ipv4(ip(from), ip(to), 64);
    flagged(b.tcp(ports.0, ports.1, seq, 10_000), flags)
}

fn flagged(mut b: PacketBuilderStep<TcpHeader>, flags: &str) -> Vec<u8> {
    for flag in flags.chars() {
        b = if flag == 'S' { b.syn() } else { b.ack(1) };
    }
    let mut f = Vec::new();
    b.write(&mut f, b"").unwrap();
    f
}

/// A frame that a station behind the first port sends, or pretends to.
fn frame() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![3 => v4_frame(), 1 => v6_frame()]
}

fn ip6(station: u8) -> [u8; 16] {
    [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, station]
}

fn tcp6(from: u8, to: u8, ports: (u16, u16), seq: u32, flags: &str) -> Vec<u8> {
    let b = PacketBuilder::ethernet2(mac(from), mac(to)).ipv6(ip6(from), ip6(to), 64);
    flagged(b.tcp(ports.0, ports.1, seq, 10_000), flags)
}

fn v6_frame() -> impl Strategy<Value = Vec<u8>> {
    let ends = (select(vec![1u8, 1, 1, 2, 9]), select(vec![3u8, 3, 4, 5, 6, 7]), select(vec![1u8, 1, 2, 9]));
    let l4 = (0u8..4, select(vec![80u16, 81, 547]), select(vec![10u32, 20, 1 << 30]));
    (ends, l4, 0u8..12).prop_map(|((src, dst, address), (kind, port, seq), form)| {
        let b = PacketBuilder::ethernet2(mac(src), mac(dst)).ipv6(ip6(src), ip6(dst), 64);
        let mut f = Vec::new();
        match kind {
            0 | 1 => f = tcp6(src, dst, (4000 + u16::from(src), port), seq, "A"),
            2 => b.udp(port, 81).write(&mut f, b"0123456789abcdefghij").unwrap(),
            _ => b.icmpv6_echo_request(7, 8).write(&mut f, b"0123456789abcdefghij").unwrap(),
        }
        f[37] = address;
        match form {
            // Destination options, a fragment, a customer's tag, a router's word, and one that is cut.
            0 => f.splice(54..54, [f[20], 0, 1, 4, 0, 0, 0, 0]).for_each(drop),
            1 => f.splice(54..54, [f[20], 0, 0, 1, 0, 0, 0, 9]).for_each(drop),
            2 => f.splice(12..12, [0x81, 0, 0, 5]).for_each(drop),
            3 if kind == 3 => f[54] = 134,
            4 => f.truncate(60),
            _ => {}
        }
        if form < 2 {
            (f[19], f[20]) = (f[19] + 8, if form == 0 { 60 } else { 44 });
        }
        f
    })
}

fn v4_frame() -> impl Strategy<Value = Vec<u8>> {
    let ends = (select(vec![1u8, 1, 1, 2, 9]), select(vec![3u8, 3, 4, 5, 6, 7]), select(vec![1u8, 1, 2, 9]));
    let l4 = (0u8..4, select(vec![80u16, 81, 22, 67]), select(vec![10u32, 20, 1 << 30]));
    (ends, l4, 0u8..16, 0usize..60).prop_map(|((src, dst, address), (kind, port, seq), form, cut)| {
        let b = PacketBuilder::ethernet2(mac(src), mac(dst)).ipv4(ip(address), ip(dst), 64);
        let mut f = Vec::new();
        match kind {
            0 | 1 => f = tcp(src, dst, (4000 + u16::from(src), port), seq, "A"),
            2 => b.udp(port, if port == 67 { 68 } else { port }).write(&mut f, b"0123456789abcdefghij").unwrap(),
            _ => b.icmpv4_echo_request(7, 8).write(&mut f, b"0123456789abcdefghij").unwrap(),
        }
        f[29] = address;
        match form {
            // Options, fragments, a customer's tag, IPv6 by its EtherType, and one that is cut.
            0 => f.splice(34..34, [1, 1, 1, 0]).for_each(drop),
            1 => f[20] = 0x20,
            2 => f[21] = 3,
            3 => f.splice(12..12, [0x81, 0, 0, 5]).for_each(drop),
            4 => f[13] = 6,
            5 => f.truncate(14 + cut),
            _ => {}
        }
        if form == 0 {
            f[14] = 0x46;
        }
        f
    })
}

fn list(s: &mut Switch, name: &str, rules: &[(Action, Match)], default: Action) -> Vec<String> {
    let rules: Vec<Rule> = (0..)
        .zip(rules)
        .map(|(number, (action, ask))| Rule { number, action: *action, ask: ask.clone(), log_every: 0 })
        .collect();
    s.topology.set_acl(Acl::new(name, &rules, rules.len(), default, 1));
    vec![name.to_owned()]
}

/// The first port's stations speak as themselves; behind the second and third one connections are tracked, of the
/// third after other rules; the fourth asks for flags and fragments, the fifth for nothing.
fn switch() -> Switch {
    let access = || spec(VlanMode::Access { vid: Vid::of::<1>() });
    let mut s = Switch::new((0..5).map(|_| access()).collect());
    let of = |states| Match { states, ..Match::default() };
    let tcp_to = |port: u16| Match { protocol: Some(6), dst_ports: Some(port..=port), ..Match::default() };
    let new = |port| (Action::Allow, Match { states: state::NEW, tcp_flags: Some((18, 2)), ..tcp_to(port) });
    let known = (Action::Allow, of(state::ESTABLISHED | state::RELATED));
    let deny = |ask| (Action::Deny, ask);
    let fragments = Match { fragment: Some(true), ..Match::default() };
    let from_two = Match { src: Some(Prefix { address: ip(2).into(), len: 32 }), ..Match::default() };
    let acked = Match { protocol: Some(6), tcp_flags: Some((16, 16)), ..Match::default() };
    let first = list(&mut s, "first", &[(Action::Count, tcp_to(80)), deny(tcp_to(22))], Action::Allow);
    let second = list(&mut s, "second", &[known.clone(), new(80)], Action::Deny);
    let third = list(&mut s, "third", &[deny(from_two), known, new(80)], Action::Deny);
    let fourth = list(&mut s, "fourth", &[deny(fragments), (Action::Allow, acked)], Action::Reject);
    let checks = Checks { mac: true, ip: true, arp: true, nd: true, dhcp_guard: true, ra_guard: true };
    let macs = vec![MacAddr::from_octets(mac(1)), MacAddr::from_octets(mac(2))];
    let own = |n| [std::net::IpAddr::from(ip(n)).into(), std::net::IpAddr::from(ip6(n)).into()];
    let ips = [own(1), own(2)].concat();
    let security = Some(SecuritySpec { checks, macs, ips, snoop: false });
    let acls = AclNames { ingress: first, egress: Vec::new() };
    s.topology.set_port("p0", PortPolicy { security, acls, ..access() }).unwrap();
    for (name, egress) in [("p1", second), ("p2", third), ("p3", fourth)] {
        let acls = AclNames { ingress: Vec::new(), egress };
        s.topology.set_port(name, PortPolicy { acls, ..access() }).unwrap();
    }
    for (station, port) in STATIONS {
        let hello = PacketBuilder::ethernet2(mac(station), mac(8)).ipv4(ip(station), ip(8), 64).udp(1, 2);
        let mut f = Vec::new();
        hello.write(&mut f, b"").unwrap();
        s.run(port, [HeapFrame::new(f)]);
    }
    // Open connections, the ones that frames go on with.
    for (from, to) in [(1u8, 3u8), (2, 3), (1, 4)] {
        let port = STATIONS.iter().find(|s| s.0 == to).unwrap().1;
        let ports = (4000 + u16::from(from), 80);
        for (by, at, flags, seq) in [(0, (from, to), "S", 0), (port, (to, from), "SA", 0), (0, (from, to), "A", 1)] {
            let ports = if by == 0 { ports } else { (ports.1, ports.0) };
            s.run(by, [HeapFrame::new(tcp(at.0, at.1, ports, seq, flags))]);
            s.run(by, [HeapFrame::new(tcp6(at.0, at.1, ports, seq, flags))]);
        }
    }
    s
}

/// Of each list, frames and octets of its rules.
type RuleCounts = Vec<Vec<(u64, u64)>>;

/// All that is counted, and the connections.
fn counted(s: &Switch) -> (Vec<PortTotals>, RuleCounts, Statistics, Vec<Session>) {
    let mut sessions = Vec::new();
    s.sessions.sessions((0, 1), &Settings::default(), s.now_s, |one| sessions.push(one));
    let ports = s.ports.iter().map(|p| {
        let mut t = PortTotals::default();
        t.add(s.counters.port(*p));
        t
    });
    (ports.collect(), s.topology.acls().map(|a| a.counts()).collect(), s.sessions.statistics(), sessions)
}

proptest! {
    #[test]
    fn company_changes_nothing(bursts in vec(vec(frame(), 1..=BURST), 1..4)) {
        let (mut whole, mut single) = (switch(), switch());
        for (burst, now_s) in bursts.into_iter().zip(2..) {
            (whole.now_s, single.now_s) = (now_s, now_s);
            let together = whole.run(0, burst.iter().cloned().map(HeapFrame::new)).sent;
            let alone = burst.iter().flat_map(|f| single.run(0, [HeapFrame::new(f.clone())]).sent);
            let (mut together, mut alone) = (together, alone.collect::<Vec<_>>());
            // What is for different addresses may overtake each other (802.1Q, 6.5.3): frames of a burst that go to one
            // port are sent together.
            let order = |(port, frame): &(usize, Vec<u8>)| (*port, frame[..6].to_vec());
            together.sort_by_key(order);
            alone.sort_by_key(order);
            prop_assert_eq!(together, alone);
            prop_assert_eq!(counted(&whole), counted(&single));
        }
    }
}

/// Behind rules that are asked before what is established too.
#[test]
fn a_connection_that_goes_on_stays_young() {
    let mut s = switch();
    s.now_s = 50;
    let frames = [tcp(1, 3, (4001, 80), 10, "A"), tcp(1, 4, (4001, 80), 10, "A"), tcp6(1, 4, (4001, 80), 10, "A")];
    s.run(0, frames.map(HeapFrame::new));
    let (_, _, _, sessions) = counted(&s);
    let young = |port: usize| sessions.iter().filter(|c| c.zone.port == s.ports[port] && c.idle_s == 0).count();
    assert_eq!((young(1), young(2)), (1, 2), "{sessions:#?}");
}

/// That the frames above meet all that the lists and checks of these ports drop by. (All other reasons: `reasons.rs`.)
#[test]
fn frames_meet_all_lists_and_checks() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};
    let (mut s, mut runner) = (switch(), TestRunner::deterministic());
    for _ in 0..200 {
        let burst = vec(frame(), BURST).new_tree(&mut runner).unwrap().current();
        s.run(0, burst.into_iter().map(HeapFrame::new));
    }
    use DropReason::{AclDenied, DhcpServer, EgressAclDenied, EgressAclRejected, EgressUnreadable};
    use DropReason::{RouterAdvertisement, SpoofedIp, SpoofedMac, Unreadable};
    let security = [DhcpServer, RouterAdvertisement, SpoofedIp, SpoofedMac];
    let lists = [AclDenied, EgressAclDenied, EgressAclRejected, EgressUnreadable, Unreadable];
    for reason in security.into_iter().chain(lists) {
        assert!(s.drops(reason) > 0, "{reason:?}");
    }
    let counts: Vec<_> = s.topology.acls().flat_map(|a| a.counts()).collect();
    assert!(counts.iter().all(|c| c.0 > 0), "{counts:?}");
}

/// Tags that frames come with: the octets behind the addresses.
const TAGS: [&[u8]; 7] = [
    &[],
    &[0x81, 0, 0, 10],
    &[0x81, 0, 0x60, 10],
    &[0x81, 0, 0, 20],
    &[0x81, 0, 0xa0, 0],
    &[0x88, 0xa8, 0, 20],
    &[0x81, 0, 0, 10, 0x81, 0, 0, 20],
];

/// From a station behind one of the ports of [`trunks_and_tunnels`], in a form that the port may not take.
fn tagged_frame(port: usize) -> impl Strategy<Value = Vec<u8>> {
    let own = prop_oneof![3 => (3u8..9).boxed(), 1 => Just(port as u8).boxed()];
    let groups: Vec<[u8; 6]> = vec![[0xff; 6], [1, 0x80, 0xc2, 0, 0, 0], [1, 0, 0x5e, 0, 0, 1], [2, 0xff, 0, 0, 0, 1]];
    let to = prop_oneof![2 => own.prop_map(mac).boxed(), 1 => select(groups).boxed()];
    (to, select(TAGS.to_vec()), select(vec![50usize, 1400, 1500, 1596])).prop_map(move |(to, tag, payload)| {
        [&to[..], &mac(port as u8), tag, &[0x88, 0xb5], &vec![port as u8; payload]].concat()
    })
}

/// The uplink of a VTEP, two guests of a network that is VLAN 10 here and extends to two other hosts, and ports of the other
/// VLAN modes; VLAN 20 is tunneled with its tags.
fn trunks_and_tunnels() -> Switch {
    let mut s = overlay::host(1, &[2, 3], false);
    overlay::set_blue(&mut s, Some(("br0".into(), Vid::of::<10>())), &[2, 3], false);
    let red = OverlaySpec { keep_tags: true, ..overlay::overlay(77, &[2], false) };
    let vlan = Some(("br0".into(), Vid::of::<20>()));
    s.topology.set_network("red", NetworkSpec { vlan, overlay: Some(red), acls: Default::default() });
    let some: VlanSet = [0, 10, 20].into_iter().collect();
    let modes = [
        VlanMode::Trunk { vlans: VlanSet::ALL },
        VlanMode::NativeUntagged { native: Vid::of::<10>(), vlans: some.clone() },
        VlanMode::Dot1qTunnel { vid: Vid::of::<10>(), cvlans: some, tpid: 0x88a8 },
        VlanMode::Access { vid: Vid::of::<20>() },
        VlanMode::Access { vid: Vid::of::<10>() },
    ];
    for (i, mode) in modes.into_iter().enumerate() {
        let name = format!("p{}", i + 3);
        let forwarding =
            Forwarding { priority_tags: PriorityTags::IfNonzero, protected: i % 2 == 1, ..Default::default() };
        let policy = PortPolicy { forwarding, mtu: Mtu::of::<1500>(), ..PortPolicy::new("br0", mode) };
        s.ports.push(s.topology.set_port(&name, policy).unwrap());
        s.topology.set_up(&name, i != 4);
    }
    s.topology.snapshot().unwrap();
    overlay::resolve(&s);
    for port in (0..8).filter(|p| *p != 1 && *p != 2) {
        for tag in TAGS {
            let hello = [&[0xff; 6], &mac(port as u8)[..], tag, &[0x88, 0xb5], &[0; 46]].concat();
            s.run(port, [HeapFrame::new(hello)]);
        }
    }
    s
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn company_changes_nothing_at_trunks_and_tunnels(
        bursts in vec(select(vec![0usize, 3, 4, 5, 6]).prop_flat_map(|port| (Just(port), vec(tagged_frame(port), 1..=BURST))), 1..4)
    ) {
        let (mut whole, mut single) = (trunks_and_tunnels(), trunks_and_tunnels());
        for (port, burst) in bursts {
            let mut together = whole.run(port, burst.iter().cloned().map(HeapFrame::new)).sent;
            let mut alone: Vec<_> = burst.iter().flat_map(|f| single.run(port, [HeapFrame::new(f.clone())]).sent).collect();
            together.sort();
            alone.sort();
            prop_assert_eq!(together, alone);
            let totals = |s: &Switch| (0..24).map(|i| {
                let mut t = PortTotals::default();
                t.add(s.counters.port(PortIdx::new(i).unwrap()));
                t
            }).collect::<Vec<_>>();
            prop_assert_eq!(totals(&whole), totals(&single));
        }
    }
}
