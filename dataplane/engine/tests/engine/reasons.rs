//! Every reason for a drop is met by a frame, here or, where the engine can't drop by it, by name elsewhere.

use std::{collections::BTreeSet, net::IpAddr};

use crate::harness::{Switch, spec};

use dunlin_engine::{
    DropReason::{self, *},
    Fps, MacAddr, Mtu, Vid, Vni,
    frame::HeapFrame,
    snapshot::{
        self, Forwarding,
        security::Checks,
        topology::{AclNames, NetworkSpec, OverlaySpec, PortPolicy, SecuritySpec, VtepSpec},
    },
    tables::{
        acl::{Acl, Action, Match, Rule},
        conntrack::{SessionLimits, Settings},
        mac::Key,
    },
    tunnel::Kind,
    vlan::{VlanMode, VlanSet},
};
use etherparse::PacketBuilder;

/// What only the programs around the engine drop by, and where that is tested.
const ELSEWHERE: [(DropReason, &str); 6] = [
    (Truncated, "AF_PACKET cuts it: 'truncated_frames_are_dropped_by_name' of the end-to-end tests"),
    (RingFull, "the rings between workers: 'a_full_ring_between_workers_is_counted' of the end-to-end tests"),
    (TxFull, "a device's queue or a guest's ring, in 'queues.rs' of dunlin-dataplane"),
    (LocalFull, "the ring to the thread that speaks for VTEPs, in 'queues.rs' of dunlin-dataplane"),
    // The engine drops by what 'Output::finish' says, and by NoBuffer where a frame can't be copied.
    (BadOffload, "checksums and segments are made by dunlin-dpdk"),
    (NoBuffer, "frames of the tests are in ordinary memory, of which there is always enough"),
];

const BROADCAST: [u8; 6] = [0xff; 6];

fn mac(station: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, station]
}

fn ip(station: u8) -> IpAddr {
    [10, 0, 0, station].into()
}

fn access() -> PortPolicy {
    spec(VlanMode::Access { vid: Vid::of::<1>() })
}

fn frame(dst: [u8; 6], src: [u8; 6]) -> Vec<u8> {
    let mut f = [&dst[..], &src, &[0x88, 0xb5]].concat();
    f.resize(60, 0);
    f
}

/// TCP's first packet, to port 80.
fn syn(from: u8, to: u8, port: u16) -> Vec<u8> {
    let mut f = Vec::new();
    let b = PacketBuilder::ethernet2(mac(from), mac(to)).ipv4([10, 0, 0, from], [10, 0, 0, to], 64);
    b.tcp(port, 80, 1, 1000).syn().write(&mut f, b"").unwrap();
    f
}

fn udp(from: u8, to: u8, ports: (u16, u16)) -> Vec<u8> {
    let mut f = Vec::new();
    let b = PacketBuilder::ethernet2(mac(from), mac(to)).ipv4([10, 0, 0, from], [10, 0, 0, to], 64);
    b.udp(ports.0, ports.1).write(&mut f, b"hello").unwrap();
    f
}

fn icmpv6(from: u8, message: &[u8]) -> Vec<u8> {
    let mut source = [0; 16];
    (source[0], source[1], source[8], source[11], source[12], source[15]) = (0xfe, 0x80, 0, 0xff, 0xfe, from);
    let all_nodes = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let head = [0x86, 0xdd, 0x60, 0, 0, 0, 0, message.len() as u8, 58, 255];
    [&mac(9)[..], &mac(from), &head, &source, &all_nodes, message].concat()
}

/// Collects what drops there were.
#[derive(Default)]
struct Met(BTreeSet<DropReason>);

impl Met {
    /// These frames to port `port` of `s` are dropped by `reason`, each or at least one of them.
    fn by(&mut self, reason: DropReason, s: &mut Switch, port: usize, frames: impl IntoIterator<Item = Vec<u8>>) {
        let before = s.drops(reason);
        for f in frames {
            s.run(port, [HeapFrame::new(f)]);
        }
        let drops: Vec<_> = DropReason::ALL.iter().map(|r| (r.name(), s.drops(*r))).filter(|(_, n)| *n > 0).collect();
        assert!(s.drops(reason) > before, "{reason:?} not met: {drops:?}");
        self.0.insert(reason);
    }
}

/// Stations 1 and 2 behind two access ports, and 3 behind a third.
fn bridge(specs: [PortPolicy; 3]) -> Switch {
    let mut s = Switch::new(specs.to_vec());
    for port in 0..3 {
        s.run(port, [HeapFrame::new(frame(BROADCAST, mac(port as u8 + 1)))]);
    }
    s
}

fn of_bridging(met: &mut Met) {
    let mut s = bridge([access(), access(), access()]);
    let tagged = [&frame(mac(2), mac(1))[..12], &[0x81, 0, 0, 5, 0x88, 0xb5], &[0; 46]].concat();
    met.by(Runt, &mut s, 0, [vec![0; 13]]);
    met.by(InvalidSource, &mut s, 0, [frame(mac(2), BROADCAST)]);
    met.by(IngressVlan, &mut s, 0, [tagged]);
    met.by(ReservedMulticast, &mut s, 0, [frame([1, 0x80, 0xc2, 0, 0, 0], mac(1))]);
    met.by(SamePort, &mut s, 0, [frame(mac(1), mac(4))]);
    s.topology.set_port("p1", PortPolicy { mtu: Mtu::of::<68>(), ..access() }).unwrap();
    met.by(MtuExceeded, &mut s, 0, [[&frame(mac(2), mac(1))[..], &[0; 40]].concat()]);
    s.topology.set_up("p1", false);
    met.by(LinkDown, &mut s, 0, [frame(mac(2), mac(1))]);
    s.topology.set_up("p2", false);
    met.by(NoOtherPort, &mut s, 0, [frame(BROADCAST, mac(1))]);
    s.topology.remove_port("p1");
    met.by(PortGone, &mut s, 1, [frame(mac(1), mac(2))]);

    let protected = || PortPolicy { forwarding: Forwarding { protected: true, ..Default::default() }, ..access() };
    met.by(Protected, &mut bridge([protected(), protected(), access()]), 0, [frame(mac(2), mac(1))]);
    // From a customer's VLAN that the other end does not take.
    let customer = |cvlans| spec(VlanMode::Dot1qTunnel { vid: Vid::of::<1>(), cvlans, tpid: 0x88a8 });
    let untagged: VlanSet = [0].into_iter().collect();
    let tagged = [&frame(mac(3), mac(1))[..12], &[0x81, 0, 0, 5, 0x88, 0xb5], &[0; 46]].concat();
    let mut s = bridge([customer(VlanSet::ALL), access(), customer(untagged)]);
    met.by(EgressVlan, &mut s, 0, [tagged]);
    let limited = {
        let mac_limit = Some(snapshot::MacLimit { limit: 1, drop: true });
        PortPolicy { forwarding: Forwarding { mac_limit, ..Default::default() }, ..access() }
    };
    met.by(DropReason::MacLimit, &mut bridge([limited, access(), access()]), 0, [frame(mac(2), mac(7))]);
    let slow = PortPolicy { storm_fps: [Some(Fps::of::<1>()); 3], ..access() };
    let mut s = bridge([slow, access(), access()]);
    for (reason, dst) in
        [(StormBroadcast, BROADCAST), (StormMulticast, [1, 0, 0x5e, 0, 0, 9]), (StormUnknownUnicast, mac(8))]
    {
        met.by(reason, &mut s, 0, [frame(dst, mac(1)), frame(dst, mac(1)), frame(dst, mac(1))]);
    }
}

fn of_security(met: &mut Met) {
    let checks = Checks { mac: true, ip: true, arp: true, nd: true, dhcp_guard: true, ra_guard: true };
    let (macs, ips) = (vec![MacAddr::from_octets(mac(1))], vec![]);
    let security = Some(SecuritySpec { checks, macs, ips, snoop: false });
    let snooping = security.clone().map(|s| SecuritySpec { snoop: true, ..s });
    let mut s = bridge([access(), access(), access()]);
    s.topology.set_port("p0", PortPolicy { security, ..access() }).unwrap();
    let mut arp = [&mac(2)[..], &mac(1), &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2], &mac(1), &[10, 0, 0, 9], &mac(2)].concat();
    arp.resize(60, 0);
    let mut advertised = [&[136, 0, 0, 0, 0, 0, 0, 0][..], &[0xfd; 16], &[2, 1], &mac(1)].concat();
    advertised[1] = 0;
    met.by(SpoofedMac, &mut s, 0, [frame(mac(2), mac(7))]);
    met.by(SpoofedIp, &mut s, 0, [udp(1, 2, (1, 2))]);
    met.by(SpoofedArp, &mut s, 0, [arp]);
    met.by(SpoofedNd, &mut s, 0, [icmpv6(1, &advertised)]);
    met.by(DhcpServer, &mut s, 0, [udp(1, 2, (67, 68))]);
    s.topology.set_port("p0", PortPolicy { security: snooping, ..access() }).unwrap();
    met.by(SpoofedDhcp, &mut s, 0, [udp(1, 2, (68, 67))]);
    met.by(RouterAdvertisement, &mut s, 0, [icmpv6(1, &[134, 0, 0, 0, 64, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0])]);
}

fn of_filters(met: &mut Met) {
    let mut s = bridge([access(), access(), access()]);
    s.topology.set_acl(Acl::new("all", &[], 0, Action::Reject, 1));
    let acls = AclNames { ingress: vec!["all".to_owned()], egress: vec![] };
    s.topology.set_port("p0", PortPolicy { acls, ..access() }).unwrap();
    met.by(ReplyLimit, &mut s, 0, (0..120).map(|n| syn(1, 2, 4000 + n)));
    let ports = Match { protocol: Some(6), dst_ports: Some(80..=80), ..Match::default() };
    let fragment = |flags: u8, offset: u8, total: u8| {
        let mut f = syn(1, 2, 4000);
        (f[17], f[20], f[21]) = (total, flags, offset);
        f
    };
    let whole = syn(1, 2, 4000)[17];
    let with = |s: &mut Switch, action, ingress: bool| {
        let rule = Rule { action, ask: ports.clone(), ..Rule::default() };
        s.topology.set_acl(Acl::new("list", &[rule], 1, Action::Allow, 1));
        let names = || vec!["list".to_owned()];
        let acls = match ingress {
            true => AclNames { ingress: names(), egress: vec![] },
            false => AclNames { ingress: vec![], egress: names() },
        };
        let of_p0 = if ingress { acls.clone() } else { AclNames::default() };
        let of_p1 = if ingress { AclNames::default() } else { acls };
        s.topology.set_port("p0", PortPolicy { acls: of_p0, ..access() }).unwrap();
        s.topology.set_port("p1", PortPolicy { acls: of_p1, ..access() }).unwrap();
    };
    for (ingress, denied, rejected, unreadable) in [
        (true, AclDenied, AclRejected, [Unreadable, BadFragment]),
        (false, EgressAclDenied, EgressAclRejected, [EgressUnreadable, EgressBadFragment]),
    ] {
        let mut s = bridge([access(), access(), access()]);
        with(&mut s, Action::Deny, ingress);
        met.by(denied, &mut s, 0, [syn(1, 2, 4000)]);
        met.by(unreadable[0], &mut s, 0, [fragment(0, 0, 28)]);
        met.by(unreadable[1], &mut s, 0, [fragment(0x20, 0, 28)]);
        if ingress {
            s.holds = false;
            met.by(EarlyFragment, &mut s, 0, [fragment(0, 9, whole)]);
        }
        with(&mut s, Action::Reject, ingress);
        met.by(rejected, &mut s, 0, [syn(1, 2, 4000)]);
    }
    for (ingress, connections, unanswered) in
        [(true, SessionLimit, UnansweredLimit), (false, EgressSessionLimit, EgressUnansweredLimit)]
    {
        for (reason, all, unanswered) in [(connections, 0, 9), (unanswered, 9, 0)] {
            let mut s = bridge([access(), access(), access()]);
            let states = dunlin_engine::tables::acl::state::NEW;
            let rule = Rule { action: Action::Allow, ask: Match { states, ..Match::default() }, ..Rule::default() };
            s.topology.set_acl(Acl::new("list", &[rule], 1, Action::Deny, 1));
            s.topology.set_sessions(Settings::default());
            let mut acls = AclNames::default();
            if ingress { &mut acls.ingress } else { &mut acls.egress }.push("list".to_owned());
            let session_limits = SessionLimits { all: Some(all), unanswered: Some(unanswered) };
            let name = if ingress { "p0" } else { "p1" };
            s.topology.set_port(name, PortPolicy { acls, session_limits, ..access() }).unwrap();
            met.by(reason, &mut s, 0, [syn(1, 2, 4000)]);
        }
    }
}

/// A host with an uplink (port 0) and a guest (port 1) of a network that goes on at other hosts.
fn host(number: u8, remotes: &[u8]) -> Switch {
    let trunk = spec(VlanMode::Trunk { vlans: VlanSet::ALL });
    let mut s = Switch::new(vec![PortPolicy { mtu: Mtu::of::<1600>(), ..trunk }]);
    let (address, mac) = (ip(number), MacAddr::from_octets(mac(100 + number)));
    let vtep = VtepSpec {
        uplink: "p0".into(),
        vid: Vid::of::<0>(),
        address,
        mac,
        udp_port: 4789,
        ttl: 64,
        udp6_checksums: true,
    };
    s.topology.set_vtep("vtep0", vtep).unwrap();
    let overlay = Some(OverlaySpec {
        kind: Kind::Vxlan,
        vni: Vni::of::<7>(),
        vtep: "vtep0".into(),
        remotes: remotes.iter().map(|r| ip(*r)).collect(),
        group: None,
        keep_tags: false,
        learn: true,
        suppress: true,
        bindings: Default::default(),
    });
    s.topology.set_network("blue", NetworkSpec { vlan: None, overlay, acls: Default::default() });
    let joined =
        PortPolicy { network: Some("blue".into()), ..PortPolicy::new("", VlanMode::Access { vid: Vid::of::<0>() }) };
    s.ports.push(s.topology.set_port("p1", joined).unwrap());
    s.topology.set_up("p1", true);
    s.topology.snapshot().unwrap();
    for r in s.topology.vteps().next().unwrap().remotes {
        let IpAddr::V4(address) = r.address else { unreachable!() };
        r.next_hop.set(Some(MacAddr::from_octets(self::mac(100 + address.octets()[3]))));
    }
    let (underlay, idx) = (s.topology.segment("br0", 0u16).unwrap(), s.topology.vteps().next().unwrap().idx);
    assert!(s.macs.set_static(Key::new(mac, underlay), idx));
    s
}

/// A frame of station 8 behind host 2, as it arrives at host 1.
fn tunnelled(inside: Vec<u8>) -> Vec<u8> {
    let mut two = host(2, &[1]);
    let uplink = two.ports[0].get();
    let sent = two.run(1, [HeapFrame::new(inside)]).sent;
    sent.into_iter().find(|(port, _)| *port == uplink).expect("it goes to host 1").1
}

fn of_tunnels(met: &mut Met) {
    let mut s = host(1, &[2]);
    let good = tunnelled(frame(BROADCAST, mac(8)));
    let with = |octets: &[(usize, u8)]| {
        let mut f = good.clone();
        octets.iter().for_each(|(at, octet)| f[*at] = *octet);
        f[24..26].fill(0);
        let sum = dunlin_engine::packet::checksum(&f[14..34]);
        f[24..26].copy_from_slice(&sum.to_be_bytes());
        f
    };
    met.by(BadTunnel, &mut s, 0, [with(&[(42, 0)])]);
    met.by(UnknownVtep, &mut s, 0, [with(&[(29, 77)])]);
    met.by(UnknownVni, &mut s, 0, [with(&[(48, 77)])]);
    // Of IPv4 inside, whose sender has no ECN.
    met.by(Congestion, &mut s, 0, [with(&[(15, 3), (62, 8), (63, 0)])]);
    let underlay = PortPolicy { mtu: Mtu::of::<1600>(), ..spec(VlanMode::Access { vid: Vid::of::<0>() }) };
    s.ports.push(s.topology.set_port("other", underlay).unwrap());
    s.topology.set_up("other", true);
    met.by(NotUplink, &mut s, 2, [good.clone()]);
    // Who asks where station 1 is, after that said so itself.
    let asks = |of: u8, by: u8| {
        let head = [0, 1, 8, 0, 6, 4, 0, 1];
        let mut f =
            [&BROADCAST[..], &mac(by), &[8, 6], &head, &mac(by), &[10, 9, 0, by], &[0; 6], &[10, 9, 0, of]].concat();
        f.resize(60, 0);
        f
    };
    met.by(Suppressed, &mut s, 1, [asks(8, 1), asks(1, 8), asks(8, 1)]);
    // From one tunnel into another, and into one whose next hop does not answer.
    let mut s = host(1, &[2, 3]);
    let blue = s.topology.network_place("blue").map(|(b, v)| s.topology.segment(b, v).unwrap()).unwrap();
    let (third, next_hop) = {
        let third = &s.topology.vteps().next().unwrap().remotes[1];
        (third.idx, third.next_hop.clone())
    };
    assert!(s.macs.set_static(Key::new(MacAddr::from_octets(mac(99)), blue), third));
    met.by(SplitHorizon, &mut s, 0, [tunnelled(frame(mac(99), mac(8)))]);
    next_hop.set(None);
    s.holds = false;
    met.by(NextHop, &mut s, 1, [frame(mac(99), mac(1))]);
    // In a tunnel, another tunnel's packet to the VTEP, where the network has its address.
    let vtep = s.topology.vteps().next().unwrap().idx;
    assert!(s.macs.set_static(Key::new(MacAddr::from_octets(mac(101)), blue), vtep));
    met.by(NestedTunnel, &mut s, 0, [tunnelled(good)]);
}

#[test]
fn every_reason_is_met() {
    let mut met = Met::default();
    of_bridging(&mut met);
    of_security(&mut met);
    of_filters(&mut met);
    of_tunnels(&mut met);
    for reason in DropReason::ALL {
        let elsewhere = ELSEWHERE.iter().find(|(r, _)| r == reason);
        assert!(met.0.contains(reason) != elsewhere.is_some(), "{reason:?}: {elsewhere:?}");
    }
}
