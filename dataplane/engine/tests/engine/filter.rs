//! Access lists, connection tracking and port security, by what leaves and what is counted.

use dunlin_engine::{
    DropReason, Fps, MacAddr, Vid,
    context::{Context, Now},
    frame::HeapFrame,
    snapshot::{
        Forwarding, MacLimit,
        security::Checks,
        topology::{AclNames, PortPolicy, SecuritySpec},
    },
    tables::{
        acl::{Acl, Action, Match, Rule, state},
        conntrack::{SessionLimits, Settings, Timeouts},
    },
    trace,
    vlan::{VlanMode, VlanSet},
};
use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};

use crate::harness::{Switch, spec};

pub(crate) const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];
pub(crate) const IPS: [[u8; 4]; 2] = [[10, 0, 0, 1], [10, 0, 0, 2]];

fn rule(action: Action, ask: Match) -> Rule {
    Rule { action, ask, ..Rule::default() }
}

fn numbered(mut rules: Vec<Rule>) -> Vec<Rule> {
    (0..).zip(&mut rules).for_each(|(n, r)| r.number = n);
    rules
}

/// Two access ports; the lists are those of the second.
pub(crate) fn switch(ingress: Option<(Vec<Rule>, Action)>, egress: Option<(Vec<Rule>, Action)>) -> Switch {
    let mut s = Switch::new(vec![
        spec(VlanMode::Access { vid: Vid::of::<1>() }),
        spec(VlanMode::Access { vid: Vid::of::<1>() }),
    ]);
    let mut names = AclNames::default();
    for (name, list, names) in [("in", ingress, &mut names.ingress), ("out", egress, &mut names.egress)] {
        if let Some((rules, default)) = list {
            s.topology.set_acl(Acl::new(name, &numbered(rules.clone()), rules.len(), default, 1));
            names.push(name.to_owned());
        }
    }
    s.topology.set_port("p1", PortPolicy { acls: names, ..spec(VlanMode::Access { vid: Vid::of::<1>() }) }).unwrap();
    s
}

pub(crate) fn tcp(from: usize, ports: (u16, u16), flags: &str, seq: u32, ack: u32, payload: &[u8]) -> HeapFrame {
    let b = PacketBuilder::ethernet2(MACS[from], MACS[1 - from]).ipv4(IPS[from], IPS[1 - from], 64);
    let mut t = b.tcp(ports.0, ports.1, seq, 10_000);
    for f in flags.chars() {
        t = match f {
            'S' => t.syn(),
            'A' => t.ack(ack),
            'F' => t.fin(),
            'R' => t.rst(),
            other => panic!("{other}"),
        };
    }
    let mut f = Vec::new();
    t.write(&mut f, payload).unwrap();
    HeapFrame::new(f)
}

pub(crate) fn udp(from: usize, ports: (u16, u16)) -> HeapFrame {
    udp_as(MACS[from], IPS[from], MACS[1 - from], IPS[1 - from], ports, b"hello")
}

pub(crate) fn udp_as(
    src: [u8; 6],
    from: [u8; 4],
    dst: [u8; 6],
    to: [u8; 4],
    ports: (u16, u16),
    payload: &[u8],
) -> HeapFrame {
    let mut f = Vec::new();
    PacketBuilder::ethernet2(src, dst).ipv4(from, to, 64).udp(ports.0, ports.1).write(&mut f, payload).unwrap();
    HeapFrame::new(f)
}

/// A message of a DHCP client (RFC 2131, 2): its kind, `chaddr`, `ciaddr`, and options behind the kind.
pub(crate) fn dhcp_client(kind: u8, client: [u8; 6], address: [u8; 4], options: &[u8]) -> Vec<u8> {
    let mut m = vec![0; 240];
    (m[0], m[1], m[2]) = (1, 1, 6);
    m[12..16].copy_from_slice(&address);
    m[28..34].copy_from_slice(&client);
    m[236..].copy_from_slice(&[0x63, 0x82, 0x53, 0x63]);
    m.extend([53, 1, kind]);
    m.extend(options);
    m.push(255);
    m
}

/// Whether the frame leaves by the other port.
pub(crate) fn passes(s: &mut Switch, from: usize, frame: HeapFrame) -> bool {
    let to = s.ports[1 - from].get();
    s.run(from, [frame]).sent.iter().any(|(p, _)| *p == to)
}

fn to_port(port: u16) -> Match {
    Match { protocol: Some(6), dst_ports: Some(port..=port), ..Match::default() }
}

#[test]
fn the_first_rule_that_matches_decides_and_is_counted() {
    let web = rule(Action::Allow, to_port(80));
    let noisy = rule(Action::Count, Match { protocol: Some(6), ..Match::default() });
    let mut s = switch(None, Some((vec![noisy, web, rule(Action::Deny, to_port(22))], Action::Allow)));
    assert!(passes(&mut s, 0, tcp(0, (1000, 80), "S", 1, 0, b"")));
    assert!(!passes(&mut s, 0, tcp(0, (1000, 22), "S", 1, 0, b"")));
    assert!(passes(&mut s, 0, udp(0, (22, 22))));
    // The other way nobody asks.
    assert!(passes(&mut s, 1, tcp(1, (22, 22), "S", 1, 0, b"")));
    assert_eq!(s.drops(DropReason::EgressAclDenied), 1);
    let counts = s.topology.acls().next().unwrap().counts();
    assert_eq!(counts, [(2, 108), (1, 54), (1, 54), (1, 47)]);
}

#[test]
fn a_rejected_sender_is_told() {
    let tcp_and_udp = vec![rule(Action::Reject, Match::default())];
    let mut s = switch(Some((tcp_and_udp, Action::Allow)), None);
    let sent = s.run(1, [tcp(1, (5, 80), "S", 77, 0, b""), udp(1, (5, 6))]).sent;
    assert_eq!(sent.iter().map(|(p, _)| *p).collect::<Vec<_>>(), [s.ports[1].get(); 2]);
    let reset = SlicedPacket::from_ethernet(&sent[0].1).unwrap();
    let Some(TransportSlice::Tcp(t)) = &reset.transport else { panic!("{reset:?}") };
    assert!(
        t.rst() && t.ack() && t.acknowledgment_number() == 78 && t.source_port() == 80 && t.destination_port() == 5
    );
    let Some(NetSlice::Ipv4(ip)) = &reset.net else { panic!("{reset:?}") };
    assert_eq!(ip.header().source(), IPS[0]);
    assert_eq!(t.checksum(), t.to_header().calc_checksum_ipv4(&ip.header().to_header(), &[]).unwrap());
    let error = SlicedPacket::from_ethernet(&sent[1].1).unwrap();
    let Some(TransportSlice::Icmpv4(i)) = &error.transport else { panic!("{error:?}") };
    assert_eq!((i.type_u8(), i.code_u8()), (3, 13));
    assert_eq!(s.drops(DropReason::AclRejected), 2);
    // What was flooded is not answered.
    let group = udp_as(MACS[1], IPS[1], [1, 0, 0x5e, 0, 0, 9], [224, 0, 0, 9], (5, 6), b"");
    assert!(s.run(1, [group]).sent.is_empty());
}

pub(crate) fn stateful() -> Vec<Rule> {
    let states = |states| Match { states, ..Match::default() };
    vec![
        rule(Action::Allow, states(state::ESTABLISHED | state::RELATED)),
        rule(Action::Deny, states(state::INVALID)),
        rule(Action::Allow, Match { states: state::NEW, ..to_port(80) }),
    ]
}

/// Opens a connection from the first station to port 80 of the second; the next sequence numbers.
pub(crate) fn open(s: &mut Switch, port: u16) -> (u32, u32) {
    assert!(passes(s, 0, tcp(0, (port, 80), "S", 100, 0, b"")));
    assert!(passes(s, 1, tcp(1, (80, port), "SA", 500, 101, b"")));
    assert!(passes(s, 0, tcp(0, (port, 80), "A", 101, 501, b"")));
    (101, 501)
}

#[test]
fn a_connection_goes_on_and_nothing_else_does() {
    let mut s = switch(Some((stateful(), Action::Deny)), Some((stateful(), Action::Deny)));
    let (a, b) = open(&mut s, 4000);
    assert!(passes(&mut s, 0, tcp(0, (4000, 80), "A", a, b, b"get")));
    assert!(passes(&mut s, 1, tcp(1, (80, 4000), "A", b, a + 3, b"here")));
    // Out of its windows, either way.
    assert!(!passes(&mut s, 0, tcp(0, (4000, 80), "A", a + 1_000_000, b, b"x")));
    assert!(!passes(&mut s, 1, tcp(1, (80, 4000), "R", b + 1_000_000, 0, b"")));
    assert!(!passes(&mut s, 1, tcp(1, (80, 4000), "A", b, a + 70_000, b"")));
    // Nonsense, an answer to nothing, what no rule lets begin.
    assert!(!passes(&mut s, 0, tcp(0, (4000, 80), "SF", a, 0, b"")));
    assert!(!passes(&mut s, 1, tcp(1, (80, 4001), "SA", 1, 1, b"")));
    assert!(!passes(&mut s, 1, tcp(1, (4000, 22), "S", 1, 0, b"")));
    let mut sessions = Vec::new();
    s.sessions.sessions((0, 1), &Settings::default(), 1, |x| sessions.push((x.state, x.from.1, x.to.1, x.from_port)));
    assert_eq!(sessions, [("open", 4000, 80, false)]);
    // Closed by both, it may be opened again at once.
    assert!(passes(&mut s, 0, tcp(0, (4000, 80), "FA", a + 3, b + 4, b"")));
    assert!(passes(&mut s, 1, tcp(1, (80, 4000), "FA", b + 4, a + 4, b"")));
    assert!(passes(&mut s, 0, tcp(0, (4000, 80), "A", a + 4, b + 5, b"")));
    s.sessions.sessions((0, 1), &Settings::default(), 1, |x| assert_eq!(x.state, "closed"));
    open(&mut s, 4000);
    // Nothing came for too long.
    s.sessions.expire(
        (0, 1),
        &Settings { timeouts: Timeouts { tcp_open_s: 5, ..Timeouts::default() }, ..Settings::default() },
        7,
    );
    assert_eq!(s.sessions.statistics().sessions, 0);
}

#[test]
fn errors_about_a_connection_are_related_and_others_are_not() {
    let mut s = switch(Some((stateful(), Action::Deny)), Some((stateful(), Action::Deny)));
    open(&mut s, 4000);
    let about = |ports: (u16, u16)| {
        // From a router on the way: the packet of the second station did not get through.
        let cause = tcp(1, ports, "A", 501, 101, b"");
        let mut f = Vec::new();
        let b = PacketBuilder::ethernet2(MACS[0], MACS[1]).ipv4([10, 9, 9, 9], IPS[1], 64);
        b.icmpv4_raw(3, 4, [0, 0, 5, 0]).write(&mut f, &cause.octets()[14..14 + 28]).unwrap();
        HeapFrame::new(f)
    };
    assert!(passes(&mut s, 0, about((80, 4000))));
    assert!(!passes(&mut s, 0, about((80, 4001))));
}

#[test]
fn changed_rules_hold_for_what_goes_on() {
    let mut s = switch(Some((stateful(), Action::Deny)), Some((stateful(), Action::Deny)));
    let (a, b) = open(&mut s, 4000);
    let mut without = numbered(stateful());
    let web = without.pop().unwrap();
    s.topology.set_acl(Acl::new("out", &without, 2, Action::Deny, 1));
    assert!(!passes(&mut s, 0, tcp(0, (4000, 80), "A", a, b, b"x")));
    assert!(!passes(&mut s, 1, tcp(1, (80, 4000), "A", b, a, b"x")), "nor may the other end go on");
    // The rule is there again: so is the connection.
    s.topology.set_acl(Acl::new("out", &[&without[..], &[web]].concat(), 3, Action::Deny, 1));
    assert!(passes(&mut s, 1, tcp(1, (80, 4000), "A", b, a, b"x")));
    assert!(passes(&mut s, 0, tcp(0, (4000, 80), "A", a, b, b"x")));
}

#[test]
fn later_fragments_follow_their_first() {
    let dns = Match { protocol: Some(17), dst_ports: Some(53..=53), ..Match::default() };
    let mut s = switch(None, Some((vec![rule(Action::Allow, dns)], Action::Deny)));
    let fragment = |id: u8, offset: u16, ports| {
        let mut f = udp(0, ports).octets().to_vec();
        f[19] = id;
        f[20..22].copy_from_slice(&(if offset == 0 { 0x2000 } else { offset }).to_be_bytes());
        HeapFrame::new(f)
    };
    s.holds = false;
    assert!(!passes(&mut s, 0, fragment(1, 3, (1, 2))), "its first was not seen");
    assert!(passes(&mut s, 0, fragment(1, 0, (99, 53))));
    assert!(passes(&mut s, 0, fragment(1, 3, (1, 2))));
    assert!(!passes(&mut s, 0, fragment(2, 3, (1, 2))), "of another datagram");
    assert!(!passes(&mut s, 0, fragment(2, 0, (99, 54))));
    assert!(!passes(&mut s, 0, fragment(2, 3, (99, 53))), "whatever stands where ports would");
}

/// A guest that was moved is heard: RARP always, gratuitous ARP where its IP address is known to be the port's.
#[test]
fn a_station_announces_itself_whatever_lists_say() {
    let (mac, own, others) = (MACS[0], IPS[0], [10, 0, 0, 99]);
    let announces = |ethertype: u16, operation: u8, [sender, target]: [[u8; 6]; 2], [from, to]: [[u8; 4]; 2]| {
        let head = [&[0xff; 6][..], &mac, &ethertype.to_be_bytes(), &[0, 1, 8, 0, 6, 4, 0, operation]].concat();
        HeapFrame::new([&head[..], &sender, &from, &target, &to, &[0; 18]].concat())
    };
    let rarp = |sender, target| announces(0x8035, 3, [sender, target], [[0; 4]; 2]);
    let garp = |address| announces(0x0806, 1, [mac, [0; 6]], [address; 2]);
    let mut s = switch(Some((vec![], Action::Deny)), None);
    let port = |checks: Checks, filters_announcements| PortPolicy {
        acls: AclNames { ingress: vec!["in".into()], egress: vec![] },
        security: Some(SecuritySpec {
            checks,
            macs: vec![MacAddr::from_octets(mac)],
            ips: vec![std::net::IpAddr::from(own).into()],
            snoop: false,
        }),
        forwarding: Forwarding { filters_announcements, ..Forwarding::default() },
        ..spec(VlanMode::Access { vid: Vid::of::<1>() })
    };
    let arp = Checks { arp: true, ..Checks::default() };
    for (checks, filtered, heard) in
        [(arp, false, [true, true]), (Checks::default(), false, [true, false]), (arp, true, [false; 2])]
    {
        s.topology.set_port("p0", port(checks, filtered)).unwrap();
        assert_eq!([passes(&mut s, 0, rarp(mac, mac)), passes(&mut s, 0, garp(own))], heard);
        // What is said of others, and what asks.
        for other in [
            rarp(MACS[1], MACS[1]),
            rarp(mac, MACS[1]),
            garp(others),
            announces(0x0806, 1, [mac, [0; 6]], [own, others]),
        ] {
            assert!(!passes(&mut s, 0, other));
        }
    }
}

/// After a start, what the other end may have begun goes on when its answer is met first, and is not reset; later it is
/// unknown traffic.
#[test]
fn a_restart_forgets_no_connection_that_only_answers() {
    let established = || vec![rule(Action::Allow, Match { states: state::ESTABLISHED, ..Match::default() })];
    for default in [Action::Deny, Action::Reject] {
        let mut s = switch(Some((established(), default)), Some((stateful(), Action::Deny)));
        s.run(0, [udp(0, (1, 2))]);
        s.run(1, [udp(1, (1, 2))]);
        s.sessions.begin_grace(s.now_s);
        // No rule lets that begin.
        assert!(s.run(1, [tcp(1, (22, 4001), "A", 7, 9, b"data")]).sent.is_empty(), "nor is it reset");
        assert!(passes(&mut s, 1, tcp(1, (80, 4000), "A", 1000, 500, b"data")));
        assert!(passes(&mut s, 0, tcp(0, (4000, 80), "A", 500, 1004, b"")));
        assert!(passes(&mut s, 1, tcp(1, (80, 4000), "A", 1004, 500, b"data")));
        assert!(!passes(&mut s, 0, tcp(0, (4000, 80), "A", 500, 1_000_000_000, b"")), "within its windows");
        // What was sent and acknowledged meanwhile is not known: the other end's window is, with its first segment.
        assert!(passes(&mut s, 1, tcp(1, (80, 4003), "A", 1000, 500, b"data")));
        assert!(passes(&mut s, 0, tcp(0, (4003, 80), "A", 500, 500_000_000, b"")));
        assert!(passes(&mut s, 1, tcp(1, (80, 4003), "A", 500_000_000, 500, b"data")));
        assert!(!passes(&mut s, 1, tcp(1, (80, 4003), "A", 700_000_000, 500, b"data")));
        // By what looks like an answer, nobody calls.
        assert!(passes(&mut s, 1, tcp(1, (80, 4009), "A", 7, 9, b"")));
        assert!(!passes(&mut s, 1, tcp(1, (80, 4009), "S", 70, 0, b"")));
        assert!(!passes(&mut s, 1, udp(1, (80, 4000))));
        assert_eq!(s.sessions.of_port(s.ports[1]).1, 1, "nor is that answered by its own sender");
        s.now_s += 121;
        assert!(passes(&mut s, 1, tcp(1, (80, 4000), "A", 1008, 500, b"data")), "it is known now");
        let late = s.run(1, [tcp(1, (80, 4002), "A", 1000, 500, b"data")]).sent;
        assert_eq!(late.len(), usize::from(default == Action::Reject), "a reset, if that is wanted");
    }
}

/// Any order (RFC 791, 3.2), in any direction: a fragment before its first one waits for that, and then is judged like it.
#[test]
fn fragments_may_come_in_any_order() {
    let dns = || vec![rule(Action::Allow, Match { protocol: Some(17), dst_ports: Some(53..=53), ..Match::default() })];
    let deny = Action::Deny;
    for lists in [(None, Some((dns(), deny))), (Some((dns(), deny)), None), (Some((dns(), deny)), Some((dns(), deny)))]
    {
        let from = if lists.0.is_some() { 1 } else { 0 };
        let mut s = switch(lists.0.clone(), lists.1.clone());
        s.run(1 - from, [udp(1 - from, (53, 53))]);
        s.run(from, [udp(from, (53, 53))]);
        let fragment = |id: u8, offset: u16, port: u16| {
            let mut f = udp(from, (99, port)).octets().to_vec();
            f[19] = id;
            f[20..22].copy_from_slice(&(if offset == 0 { 0x2000 } else { offset }).to_be_bytes());
            HeapFrame::new(f)
        };
        for (id, port) in [(1, 53), (2, 54)] {
            let waiting = s.run(from, [fragment(id, 6, 1), fragment(id, 3, 1)]);
            assert!(waiting.sent.is_empty() && waiting.early.len() == 2);
            let waiting = s.run_held(waiting.early);
            assert!(waiting.sent.is_empty() && waiting.early.len() == 2, "the first has not come");
            let passes = port == 53;
            let first = s.run(from, [fragment(id, 0, port)]);
            assert_eq!(first.sent.len(), usize::from(passes));
            let all = s.run_held(waiting.early);
            assert_eq!((all.sent.len(), all.early.len()), (if passes { 2 } else { 0 }, 0));
        }
        assert_eq!(s.drops(DropReason::EarlyFragment), 0);
        // Where there is no room, they are dropped by name.
        s.holds = false;
        assert!(!passes(&mut s, from, fragment(3, 3, 1)));
        assert_eq!(s.drops(DropReason::EarlyFragment), 1);
    }
}

/// A list that asks for no ports lets a fragment pass on its own.
#[test]
fn a_list_of_protocols_asks_no_fragment_for_ports() {
    let mut s =
        switch(None, Some((vec![rule(Action::Allow, Match { protocol: Some(17), ..Match::default() })], Action::Deny)));
    let mut f = udp(0, (1, 2)).octets().to_vec();
    f[20..22].copy_from_slice(&3u16.to_be_bytes());
    assert!(passes(&mut s, 0, HeapFrame::new(f)));
}

/// What would write over the ports and flags that were judged is dropped (RFC 1858, 3; RFC 3128; RFC 5722).
#[test]
fn fragments_that_overlap_their_first_are_dropped() {
    let web = Match { protocol: Some(6), dst_ports: Some(80..=80), ..Match::default() };
    let mut s = switch(None, Some((vec![rule(Action::Allow, web)], Action::Deny)));
    let fragment = |offset: u16, len: usize| {
        let mut f = tcp(0, (5, 80), "S", 1, 0, &[0; 44]).octets().to_vec();
        f[20..22].copy_from_slice(&(if offset == 0 { 0x2000 } else { offset }).to_be_bytes());
        f[16..18].copy_from_slice(&(20 + len as u16).to_be_bytes());
        f.truncate(34 + len);
        HeapFrame::new(f)
    };
    assert!(passes(&mut s, 0, fragment(0, 32)));
    assert!(!passes(&mut s, 0, fragment(1, 32)) && !passes(&mut s, 0, fragment(3, 32)));
    assert!(passes(&mut s, 0, fragment(4, 32)));
    assert!(!passes(&mut s, 0, fragment(0, 16)), "it ends before the flags");
    assert_eq!(s.drops(DropReason::EgressBadFragment), 3);
}

#[test]
fn a_flood_of_first_packets_harms_no_connection() {
    let mut s = switch(Some((stateful(), Action::Deny)), Some((stateful(), Action::Deny)));
    s.topology.set_sessions(Settings { port_max: 2, unanswered_max: 1, ..Settings::default() });
    // The port's own limits go before.
    let session_limits = SessionLimits { all: Some(200), unanswered: Some(50) };
    let acls = AclNames { ingress: vec!["in".into()], egress: vec!["out".into()] };
    s.topology
        .set_port("p1", PortPolicy { acls, session_limits, ..spec(VlanMode::Access { vid: Vid::of::<1>() }) })
        .unwrap();
    let old: Vec<_> = (0..100).map(|i| (5000 + i, open(&mut s, 5000 + i))).collect();
    let syn = |i: u32| {
        let [_, x, y, z] = i.to_be_bytes();
        let syn = PacketBuilder::ethernet2(MACS[0], MACS[1]).ipv4([11, x, y, z], IPS[1], 64).tcp(9, 80, 1, 9).syn();
        let mut f = Vec::new();
        syn.write(&mut f, b"").unwrap();
        HeapFrame::new(f)
    };
    for i in (0..100_000).step_by(50) {
        s.run(0, (i..i + 50).map(syn));
    }
    assert_eq!(s.sessions.of_port(s.ports[1]), (150, 50));
    assert!(s.sessions.statistics().displaced > 90_000);
    for (port, (a, b)) in old {
        assert!(passes(&mut s, 0, tcp(0, (port, 80), "A", a, b, b"x")), "{port}");
    }
    // New ones get in: there is always one of the flood's that makes room.
    assert!((0..2000).all(|i| passes(&mut s, 0, tcp(0, (20_000 + i, 80), "S", 1, 0, b""))));
}

/// What the engine says of a frame on the configuration of now.
fn traced(s: &mut Switch, from: usize, frame: HeapFrame) -> Vec<String> {
    let (snapshot, counters) = (s.topology.snapshot().unwrap(), dunlin_engine::counters::Counters::default());
    let (macs, sessions, now) = (&s.macs, &s.sessions, Now { s: 1, ns: 1 });
    let cx = Context::new(&snapshot, (macs, sessions), (1, &counters), now);
    let steps = trace::run(cx, s.ports[from], frame.octets());
    steps.into_iter().map(|s| format!("{}: {}", s.stage, s.text)).collect()
}

fn says(steps: &[String], what: &str) {
    assert!(steps.iter().any(|s| s.contains(what)), "{what}: {steps:#?}");
}

#[test]
fn a_trace_says_what_would_happen_and_changes_nothing() {
    let mut s = switch(Some((stateful(), Action::Deny)), Some((stateful(), Action::Deny)));
    let steps = traced(&mut s, 0, tcp(0, (4000, 80), "S", 1, 0, b""));
    says(&steps, "egress acl: port 'p1': acl 'out': rule 3: allow");
    says(&steps, "sessions: port 'p1': new");
    says(&steps, "transmit: by port 'p1', 54 octets, untagged");
    let steps = traced(&mut s, 0, tcp(0, (4000, 22), "S", 1, 0, b""));
    says(&steps, "acl 'out': default: deny");
    says(&steps, "drop: at port 'p1': egress_acl_denied");
    assert_eq!((s.sessions.statistics().sessions, s.macs.statistics().entries), (0, 0));
    assert!(s.topology.acls().all(|a| a.counts().iter().all(|c| *c == (0, 0))));
    says(&traced(&mut s, 0, tcp(0, (4000, 80), "S", 1, 0, b"")), "sessions: it would begin one");
    // Then it does happen.
    open(&mut s, 4000);
    says(&traced(&mut s, 1, tcp(1, (80, 4000), "A", 501, 101, b"")), "sessions: port 'p1': established");
}

#[test]
fn a_trace_knows_limits() {
    let mut s = switch(None, Some((stateful(), Action::Allow)));
    let limited = |s: &mut Switch| {
        let spec = PortPolicy {
            forwarding: Forwarding { mac_limit: Some(MacLimit { limit: 1, drop: true }), ..Default::default() },
            storm_fps: [Some(Fps::of::<1>()), None, None],
            ..spec(VlanMode::Access { vid: Vid::of::<1>() })
        };
        s.topology.set_port("p0", spec).unwrap();
    };
    limited(&mut s);
    assert!(passes(&mut s, 0, udp(0, (1, 2))));
    let other = |dst| udp_as([2, 0, 0, 0, 0, 9], IPS[0], dst, IPS[1], (1, 2), b"");
    says(&traced(&mut s, 0, other(MACS[1])), "learn: 02:00:00:00:00:09 would not be learned");
    says(&traced(&mut s, 0, other(MACS[1])), "drop: at port 'p0': mac_limit");
    let broadcast = || udp_as(MACS[0], IPS[0], [0xff; 6], [255; 4], (1, 2), b"");
    says(&traced(&mut s, 0, broadcast()), "storm: port 'p0': within its limit");
    assert!(passes(&mut s, 0, broadcast()), "a trace took nothing of the limit");
    says(&traced(&mut s, 0, broadcast()), "drop: at port 'p0': storm_broadcast");
    // The oldest that nobody has answered makes room for the next.
    s.topology.set_sessions(Settings { unanswered_max: 1, ..Settings::default() });
    assert_eq!(s.sessions.of_port(s.ports[1]).1, 2);
    says(&traced(&mut s, 0, udp(0, (3, 4))), "another that has no reply yet would be evicted");
    assert_eq!(s.sessions.statistics().displaced, 0);
}

#[test]
fn a_trace_knows_that_a_closed_connection_makes_room() {
    let mut s = switch(Some((stateful(), Action::Deny)), Some((stateful(), Action::Deny)));
    s.topology.set_sessions(Settings { port_max: 1, ..Settings::default() });
    let (a, b) = open(&mut s, 4000);
    let begins = |port| tcp(0, (port, 80), "S", 9_000_000, 0, b"");
    says(&traced(&mut s, 0, begins(4001)), "there are too many to begin one");
    assert!(passes(&mut s, 0, tcp(0, (4000, 80), "FA", a, b, b"")));
    assert!(passes(&mut s, 1, tcp(1, (80, 4000), "FA", b, a + 1, b"")));
    says(&traced(&mut s, 0, begins(4001)), "there are too many to begin one");
    says(&traced(&mut s, 0, begins(4000)), "it would begin one");
    assert!(!passes(&mut s, 0, begins(4001)));
    assert!(passes(&mut s, 0, begins(4000)));
    // Two are there, and only one may be: the closed one that goes makes no room for itself.
    s.topology.set_sessions(Settings::default());
    assert!(passes(&mut s, 0, tcp(0, (4002, 80), "S", 100, 0, b"")));
    assert!(passes(&mut s, 1, tcp(1, (80, 4002), "RA", 0, 101, b"")));
    open(&mut s, 4001);
    s.topology.set_sessions(Settings { port_max: 1, ..Settings::default() });
    let would = traced(&mut s, 0, begins(4002));
    assert_eq!(would.iter().any(|t| t.contains("it would begin one")), passes(&mut s, 0, begins(4002)), "{would:?}");
}

/// Rules about ports, and everything else let pass: what hides its ports must not be everything else.
#[test]
fn what_hides_its_ports_passes_no_list_that_asks_for_them() {
    let rules = vec![rule(Action::Deny, to_port(22))];
    let mut s = switch(None, Some((rules, Action::Allow)));
    let ssh = tcp(0, (5, 22), "S", 1, 0, b"");
    let change = |f: &dyn Fn(&mut Vec<u8>)| {
        let mut octets = ssh.octets().to_vec();
        f(&mut octets);
        HeapFrame::new(octets)
    };
    // A first fragment that ends before the ports' header does, and the rest, for which there is nothing to wait.
    s.holds = false;
    let tiny = change(&|o| {
        (o[17], o[20], o[21]) = (28, 0x20, 0);
        o.truncate(42);
    });
    let rest = change(&|o| (o[20], o[21]) = (0, 1));
    assert!(!passes(&mut s, 0, tiny) && !passes(&mut s, 0, rest));
    assert_eq!((s.drops(DropReason::EgressBadFragment), s.drops(DropReason::EgressUnreadable)), (1, 1), "flooded");
    // Padding behind the packet's own end is no header.
    let padded = change(&|o| o[17] = 24);
    assert!(!passes(&mut s, 0, padded));
    // Behind a second tag that says nothing, and behind a third.
    let trunk = || spec(VlanMode::Trunk { vlans: VlanSet::ALL });
    let acls = AclNames { ingress: vec![], egress: vec!["out".into()] };
    s.topology.set_port("p0", trunk()).unwrap();
    s.topology.set_port("p1", PortPolicy { acls, ..trunk() }).unwrap();
    let tagged = |n: usize| {
        change(&|o| {
            o.splice(12..12, [&[0x81, 0, 0, 1][..], &[0x81, 0, 0, 0].repeat(n - 1)].concat());
        })
    };
    assert!(!passes(&mut s, 0, tagged(1)) && !passes(&mut s, 0, tagged(2)));
    assert_eq!(s.drops(DropReason::EgressAclDenied), 2);
    assert!(!passes(&mut s, 0, tagged(3)));
    assert_eq!(s.drops(DropReason::EgressUnreadable), 3);
    assert!(passes(&mut s, 0, tcp(0, (5, 23), "S", 1, 0, b"")));
}

#[test]
fn what_is_flooded_is_not_answered() {
    let mut s = switch(None, Some((vec![], Action::Reject)));
    // Nobody knows yet where its receiver is.
    assert!(s.run(0, [tcp(0, (5, 80), "A", 1, 1, b"")]).sent.is_empty());
    // Once it is known, its sender is told.
    s.run(1, [udp(1, (1, 2))]);
    assert_eq!(s.run(0, [tcp(0, (5, 80), "A", 1, 1, b"")]).sent.len(), 1);
    assert_eq!(s.drops(DropReason::EgressAclRejected), 2);
}

#[test]
fn a_connection_met_in_the_middle_goes_on() {
    let mut s = switch(Some((stateful(), Action::Deny)), Some((stateful(), Action::Deny)));
    // An upload, whose acknowledgements come late.
    assert_eq!(s.run(0, (0..10).map(|i| tcp(0, (9, 80), "A", 1000 + i * 100, 7, &[1; 100]))).sent.len(), 10);
    assert_eq!(s.run(0, (10..20).map(|i| tcp(0, (9, 80), "A", 1000 + i * 100, 7, &[1; 100]))).sent.len(), 10);
    assert!(passes(&mut s, 1, tcp(1, (80, 9), "A", 7, 2000, b"")));
    assert_eq!(s.sessions.statistics().begun, 1);
    // Not where that is not wanted.
    s.topology.set_sessions(Settings { midstream: false, ..Settings::default() });
    assert!(!passes(&mut s, 0, tcp(0, (10, 80), "A", 1000, 7, b"x")));
}

#[test]
fn a_guessed_reset_and_a_forgotten_connection_end_nothing() {
    let mut s = switch(Some((stateful(), Action::Deny)), Some((stateful(), Action::Deny)));
    let (a, b) = open(&mut s, 4000);
    passes(&mut s, 0, tcp(0, (4000, 80), "R", a + 100, 0, b""));
    assert!(passes(&mut s, 1, tcp(1, (80, 4000), "A", b, a, b"data")), "it was not the one that was expected");
    // The client forgot it and begins anew: the server tells it, and is believed.
    assert!(passes(&mut s, 0, tcp(0, (4000, 80), "S", 77_000_000, 0, b"")));
    assert!(passes(&mut s, 1, tcp(1, (80, 4000), "A", b + 4, a, b"")));
    assert!(passes(&mut s, 0, tcp(0, (4000, 80), "R", a, 0, b"")));
    assert!(passes(&mut s, 0, tcp(0, (4000, 80), "S", 77_000_000, 0, b"")));
    assert!(passes(&mut s, 1, tcp(1, (80, 4000), "SA", 5, 77_000_001, b"")));
}

#[test]
fn pings_of_both_with_one_identifier_are_two_connections_and_may_be_fragments() {
    let question =
        rule(Action::Allow, Match { protocol: Some(1), icmp_type: Some(8), states: state::NEW, ..Match::default() });
    let rules = || vec![stateful().remove(0), question.clone()];
    let mut s = switch(Some((vec![stateful().remove(0)], Action::Deny)), Some((rules(), Action::Deny)));
    let echo = |from: usize, request: bool, fragment: u16| {
        let mut f = Vec::new();
        let b = PacketBuilder::ethernet2(MACS[from], MACS[1 - from]).ipv4(IPS[from], IPS[1 - from], 64);
        match request {
            true => b.icmpv4_echo_request(1, 1).write(&mut f, &[7; 32]).unwrap(),
            false => b.icmpv4_echo_reply(1, 1).write(&mut f, &[7; 32]).unwrap(),
        }
        f[20..22].copy_from_slice(&fragment.to_be_bytes());
        HeapFrame::new(f)
    };
    assert!(passes(&mut s, 0, echo(0, true, 0)));
    assert!(passes(&mut s, 1, echo(1, false, 0)));
    assert!(!passes(&mut s, 1, echo(1, true, 0)), "it was asked, and may not ask");
    // A reply in two parts.
    assert!(passes(&mut s, 1, echo(1, false, 0x2000)));
    assert!(passes(&mut s, 1, echo(1, false, 7)));
    assert_eq!(s.sessions.statistics().begun, 1);
}

#[test]
fn the_same_list_the_other_way_is_another() {
    let mut s = switch(None, Some((stateful(), Action::Deny)));
    let (a, b) = open(&mut s, 4000);
    let acls = AclNames { ingress: vec!["out".into()], egress: vec![] };
    s.topology.set_port("p1", PortPolicy { acls, ..spec(VlanMode::Access { vid: Vid::of::<1>() }) }).unwrap();
    // Begun from outside, which nothing forbids now.
    assert!(passes(&mut s, 0, tcp(0, (4000, 80), "A", a, b, b"x")));
    s.topology.set_acl(Acl::new("out", &[], 0, Action::Deny, 1));
    assert!(!passes(&mut s, 1, tcp(1, (80, 4000), "A", b, a, b"x")));
}
