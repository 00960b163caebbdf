//! Tunnels between switches, on any machine: what one sends, the other gets.

use std::{collections::BTreeSet, net::IpAddr};

use crate::harness::Switch;

use dunlin_engine::{
    DropReason, Frame, MacAddr, Mtu, Vid, Vni,
    frame::HeapFrame,
    snapshot::topology::{NetworkSpec, OverlaySpec, PortPolicy, VtepSpec},
    tables::mac::Key,
    tunnel::Kind,
    vlan::{VlanMode, VlanSet},
};
use proptest::prelude::*;

pub(crate) const VNI: u32 = 0x12_3456;

pub(crate) fn ip(host: u8, v6: bool) -> IpAddr {
    if v6 { format!("fd00::{host}").parse().unwrap() } else { IpAddr::from([10, 0, 0, host]) }
}

fn vtep_mac(host: u8) -> MacAddr {
    MacAddr::from_octets([2, 0xff, 0, 0, 0, host])
}

/// A host with an uplink (port 0) and two guests (1 and 2) in network blue, whose remotes are known and
/// reached.
pub(crate) fn host(number: u8, remotes: &[u8], v6: bool) -> Switch {
    let trunk = PortPolicy::new("br0", VlanMode::Trunk { vlans: VlanSet::ALL });
    let mut s = Switch::new(vec![PortPolicy { mtu: Mtu::of::<1600>(), ..trunk }]);
    let vtep = VtepSpec {
        uplink: "p0".into(),
        vid: Vid::of::<0>(),
        address: ip(number, v6),
        mac: vtep_mac(number),
        udp_port: 4789,
        ttl: 64,
        udp6_checksums: true,
    };
    s.topology.set_vtep("vtep0", vtep).unwrap();
    set_blue(&mut s, None, remotes, v6);
    for name in ["p1", "p2"] {
        let joined = PortPolicy {
            network: Some("blue".into()),
            mtu: Mtu::of::<9000>(),
            ..PortPolicy::new("", VlanMode::Access { vid: Vid::of::<0>() })
        };
        s.ports.push(s.topology.set_port(name, joined).unwrap());
        s.topology.set_up(name, true);
    }
    s.topology.snapshot().unwrap();
    resolve(&s);
    let underlay = s.topology.segment("br0", 0u16).unwrap();
    let idx = s.topology.vteps().next().unwrap().idx;
    assert!(s.macs.set_static(Key::new(vtep_mac(number), underlay), idx));
    s
}

pub(crate) fn overlay(vni: u32, remotes: &[u8], v6: bool) -> OverlaySpec {
    OverlaySpec {
        kind: Kind::Vxlan,
        vni: Vni::new(vni.into()).expect("a VNI"),
        vtep: "vtep0".into(),
        remotes: remotes.iter().map(|r| ip(*r, v6)).collect(),
        group: None,
        keep_tags: false,
        learn: true,
        suppress: true,
        bindings: Default::default(),
    }
}

pub(crate) fn set_blue(s: &mut Switch, vlan: Option<(String, Vid)>, remotes: &[u8], v6: bool) {
    let overlay = Some(overlay(VNI, remotes, v6));
    s.topology.set_network("blue", NetworkSpec { vlan, overlay, acls: Default::default() });
}

pub(crate) fn resolve(s: &Switch) {
    for v in s.topology.vteps() {
        for r in v.remotes.into_iter().filter(|r| !r.address.is_multicast()) {
            let last = match r.address {
                IpAddr::V4(a) => a.octets()[3],
                IpAddr::V6(a) => a.octets()[15],
            };
            r.next_hop.set(Some(vtep_mac(last)));
        }
    }
}

fn frame(dst: u8, src: u8, len: usize) -> Vec<u8> {
    let mut f = vec![2, 0, 0, 0, 0, dst, 2, 0, 0, 0, 0, src, 0x88, 0xb5];
    if dst == 0xff {
        f[..6].fill(0xff);
    }
    f.resize(len, src);
    f
}

/// What of `sent` left by a port.
fn by(s: &Switch, sent: &[(usize, Vec<u8>)], port: usize) -> Vec<Vec<u8>> {
    sent.iter().filter(|(p, _)| *p == s.ports[port].get()).map(|(_, f)| f.clone()).collect()
}

fn carry(to: &mut Switch, frames: Vec<Vec<u8>>) -> Vec<(usize, Vec<u8>)> {
    to.run(0, frames.into_iter().map(HeapFrame::new)).sent
}

#[test]
fn two_hosts_are_one_segment() {
    for v6 in [false, true] {
        let (mut a, mut b) = (host(1, &[2], v6), host(2, &[1], v6));
        let hello = frame(0xff, 7, 60);
        let sent = a.run(1, [HeapFrame::new(hello.clone())]).sent;
        assert_eq!(by(&a, &sent, 2), std::slice::from_ref(&hello));
        let tunnelled = by(&a, &sent, 0);
        assert_eq!(tunnelled.len(), 1);
        assert_eq!(tunnelled[0].len(), 60 + if v6 { 70 } else { 50 });
        let arrived = carry(&mut b, tunnelled);
        assert_eq!((by(&b, &arrived, 1), by(&b, &arrived, 2)), (vec![hello.clone()], vec![hello]));
        assert_eq!(arrived.len(), 2, "nothing goes back into a tunnel");
        // The answer is no flood: both sides have learned.
        let answer = frame(7, 8, 900);
        let sent = b.run(1, [HeapFrame::new(answer.clone())]).sent;
        assert_eq!(sent.len(), 1);
        let arrived = carry(&mut a, by(&b, &sent, 0));
        assert_eq!(arrived, [(a.ports[1].get(), answer)]);
        let sent = a.run(1, (0..32).map(|i| HeapFrame::new(frame(8, 7, 60 + i)))).sent;
        let arrived = carry(&mut b, by(&a, &sent, 0));
        let lengths: Vec<usize> = by(&b, &arrived, 1).iter().map(Vec::len).collect();
        assert_eq!(lengths, (60..92).collect::<Vec<_>>());
    }
}

#[test]
fn every_kind_of_tunnel_carries_the_same() {
    for (kind, headers) in [(Kind::Geneve, 50), (Kind::Gre, 42), (Kind::Nvgre, 42)] {
        for v6 in [false, true] {
            let (mut a, mut b) = (host(1, &[2], v6), host(2, &[1], v6));
            for (s, other) in [(&mut a, 2), (&mut b, 1)] {
                let overlay = Some(OverlaySpec { kind, ..overlay(VNI, &[other], v6) });
                s.topology.set_network("blue", NetworkSpec { vlan: None, overlay, acls: Default::default() });
                s.topology.snapshot().unwrap();
                resolve(s);
            }
            let hello = frame(0xff, 7, 60);
            let sent = a.run(1, [HeapFrame::new(hello.clone())]).sent;
            let tunnelled = by(&a, &sent, 0);
            assert_eq!(tunnelled[0].len(), 60 + headers + if v6 { 20 } else { 0 }, "{kind:?}");
            let arrived = carry(&mut b, tunnelled);
            assert_eq!(by(&b, &arrived, 1), [hello], "{kind:?}");
            // The answer is no flood, and of the same kind.
            let sent = b.run(1, [HeapFrame::new(frame(7, 8, 60))]).sent;
            assert_eq!((sent.len(), carry(&mut a, by(&b, &sent, 0)).len()), (1, 1));
        }
    }
}

#[test]
fn a_flood_goes_to_every_remote_and_every_guest_once() {
    let mut a = host(1, &[2, 3, 4, 5], false);
    let sent = a.run(1, [HeapFrame::new(frame(0xff, 7, 60))]).sent;
    let to: BTreeSet<u8> = by(&a, &sent, 0).iter().map(|f| f[33]).collect();
    assert_eq!((to, sent.len()), ([2, 3, 4, 5].into(), 5));
    // Not known which of them: unknown unicast is the same.
    assert_eq!(a.run(2, [HeapFrame::new(frame(9, 6, 60))]).sent.len(), 5);
}

/// BUM goes to the group once, known unicast to its host; and who of the group is no remote is a stranger.
#[test]
fn a_group_of_the_underlay_takes_the_place_of_copies() {
    for (v6, group, mac) in [(false, "239.1.2.3", [1, 0, 0x5e, 1, 2, 3]), (true, "ff05::102", [0x33, 0x33, 0, 0, 1, 2])]
    {
        let group: IpAddr = group.parse().unwrap();
        let set = |s: &mut Switch, remotes: &[u8]| {
            let overlay = Some(OverlaySpec { group: Some(group), ..overlay(VNI, remotes, v6) });
            s.topology.set_network("blue", NetworkSpec { vlan: None, overlay, acls: Default::default() });
            s.topology.snapshot().unwrap();
            resolve(s);
        };
        let (mut a, mut b) = (host(1, &[2], v6), host(2, &[1], v6));
        set(&mut a, &[2, 3, 4]);
        set(&mut b, &[1]);
        let sent = a.run(1, [HeapFrame::new(frame(0xff, 7, 60))]).sent;
        let tunnelled = by(&a, &sent, 0);
        assert_eq!((tunnelled.len(), &tunnelled[0][..6]), (1, &mac[..]), "one for all");
        assert_eq!(carry(&mut b, tunnelled.clone()).len(), 2);
        let sent = b.run(1, [HeapFrame::new(frame(7, 8, 60))]).sent;
        let answer = by(&b, &sent, 0);
        assert_eq!(answer[0][..6], vtep_mac(1).octets());
        assert_eq!(carry(&mut a, answer).len(), 1);
        set(&mut b, &[9]);
        assert_eq!(carry(&mut b, tunnelled).len(), 0);
        assert_eq!(b.drops(DropReason::UnknownVtep), 1);
    }
}

#[test]
fn a_network_can_be_a_vlan_too() {
    let mut a = host(1, &[2], false);
    a.topology.set_bridge("lan", dunlin_engine::snapshot::topology::BridgeSpec { ageing_s: 300 });
    let trunk = PortPolicy::new("lan", VlanMode::Trunk { vlans: VlanSet::ALL });
    a.ports.push(a.topology.set_port("trunk", trunk).unwrap());
    a.topology.set_up("trunk", true);
    set_blue(&mut a, Some(("lan".into(), Vid::of::<10>())), &[2], false);
    a.topology.snapshot().unwrap();
    resolve(&a);
    let mut tagged = frame(0xff, 7, 60);
    tagged.splice(12..12, [0x81, 0, 0, 10]);
    let sent = a.run(3, [HeapFrame::new(tagged.clone())]).sent;
    // Untagged to the guests, which moved with the network, and in the tunnel.
    assert_eq!(by(&a, &sent, 1), [frame(0xff, 7, 60)]);
    let tunnelled = by(&a, &sent, 0);
    assert_eq!(tunnelled[0][50..], frame(0xff, 7, 60));
    let mut b = host(2, &[1], false);
    assert_eq!(carry(&mut b, tunnelled).len(), 2);
    // And back: tagged again.
    let sent = b.run(1, [HeapFrame::new(frame(7, 8, 60))]).sent;
    let arrived = carry(&mut a, by(&b, &sent, 0));
    assert_eq!(by(&a, &arrived, 3)[0][12..16], [0x81, 0, 0, 10]);
}

/// The VLAN's tag goes through the tunnel, with its priority, where both ends keep it.
#[test]
fn tags_are_kept_where_that_is_wanted() {
    let keeping = |number: u8, other: u8| {
        let mut s = host(number, &[other], false);
        s.topology.set_bridge("lan", dunlin_engine::snapshot::topology::BridgeSpec { ageing_s: 300 });
        let trunk = PortPolicy::new("lan", VlanMode::Trunk { vlans: VlanSet::ALL });
        s.ports.push(s.topology.set_port("trunk", trunk).unwrap());
        s.topology.set_up("trunk", true);
        let overlay = Some(OverlaySpec { keep_tags: true, ..overlay(VNI, &[other], false) });
        s.topology.set_network(
            "blue",
            NetworkSpec { vlan: Some(("lan".into(), Vid::of::<10>())), overlay, acls: Default::default() },
        );
        s.topology.snapshot().unwrap();
        resolve(&s);
        s
    };
    let (mut a, mut b) = (keeping(1, 2), keeping(2, 1));
    let tagged = |dst, src, tci: [u8; 2]| {
        let mut f = frame(dst, src, 60);
        f.splice(12..12, [0x81, 0, tci[0], tci[1]]);
        f
    };
    // With a priority, to a trunk and to guests.
    let sent = a.run(3, [HeapFrame::new(tagged(0xff, 7, [0x60, 10]))]).sent;
    let tunnelled = by(&a, &sent, 0);
    assert_eq!((tunnelled[0].len(), &tunnelled[0][62..66]), (50 + 64, &[0x81, 0, 0x60, 10][..]));
    let arrived = carry(&mut b, tunnelled.clone());
    assert_eq!(by(&b, &arrived, 3), [tagged(0xff, 7, [0x60, 10])]);
    assert_eq!(by(&b, &arrived, 1), [frame(0xff, 7, 60)]);
    // Whole bursts, from a guest without a tag, to the trunk behind the other end.
    let sent = b.run(1, (0..8).map(|_| HeapFrame::new(frame(7, 8, 60)))).sent;
    let arrived = carry(&mut a, by(&b, &sent, 0));
    assert_eq!(by(&a, &arrived, 3), vec![tagged(7, 8, [0, 10]); 8]);
    // Another VLAN's tag, and any tag where none are kept, is refused.
    let mut other = tunnelled[0].clone();
    other[65] = 11;
    assert_eq!(carry(&mut b, vec![other]).len(), 0);
    assert_eq!(carry(&mut host(2, &[1], false), tunnelled).len(), 0);
    assert_eq!(b.drops(DropReason::IngressVlan), 1);
}

/// A VXLAN frame of host 2's to host 1's VTEP, with a frame of station 8's for station `dst` in it.
fn tunnelled(dst: u8) -> Vec<u8> {
    let mut b = host(2, &[1], false);
    let sent = b.run(1, [HeapFrame::new(frame(dst, 8, 60))]).sent;
    by(&b, &sent, 0).remove(0)
}

#[test]
fn what_does_not_belong_is_dropped_by_its_reason() {
    let mut a = host(1, &[2], false);
    let good = tunnelled(0xff);
    let fixed = |mut f: Vec<u8>| {
        f[24..26].fill(0);
        let sum = dunlin_engine::packet::checksum(&f[14..34]);
        f[24..26].copy_from_slice(&sum.to_be_bytes());
        f
    };
    let with = |at: usize, octet: u8| {
        let mut f = good.clone();
        f[at] = octet;
        fixed(f)
    };
    let outcome = |a: &mut Switch, port, f: Vec<u8>| {
        let before = a.totals().drops;
        let sent = a.run(port, [HeapFrame::new(f)]).sent.len();
        let after = a.totals().drops;
        (sent, DropReason::ALL.iter().find(|r| after[**r as usize] > before[**r as usize]).copied())
    };
    assert_eq!(outcome(&mut a, 0, good.clone()), (2, None));
    assert_eq!(outcome(&mut a, 0, with(29, 77)), (0, Some(DropReason::UnknownVtep)));
    assert_eq!(outcome(&mut a, 0, with(48, 77)), (0, Some(DropReason::UnknownVni)));
    assert_eq!(outcome(&mut a, 0, with(42, 0)), (0, Some(DropReason::BadTunnel)), "no I flag");
    assert_eq!(outcome(&mut a, 0, with(20, 0x20)), (0, Some(DropReason::BadTunnel)), "a fragment");
    assert_eq!(outcome(&mut a, 0, good[..70].to_vec()), (0, Some(DropReason::BadTunnel)), "cut");
    let mut wrong = good.clone();
    wrong[25] ^= 1;
    assert_eq!(outcome(&mut a, 0, wrong), (0, Some(DropReason::BadTunnel)), "checksum");
    // Behind a good one, which is remembered: from nobody to nobody, and no IPv4 at all.
    let mut nobody = good.clone();
    nobody[26..34].fill(0);
    let mut other = good.clone();
    other[12..14].copy_from_slice(&[0x88, 0xb5]);
    let sink = a.run(0, [good.clone(), fixed(nobody), other].map(HeapFrame::new));
    assert_eq!((sink.sent.len(), sink.local.len()), (2, 2));
    // Congestion that the sender can't be told of.
    let mut v4 = good.clone();
    v4[62..64].copy_from_slice(&[8, 0]);
    v4[15] = 3;
    assert_eq!(outcome(&mut a, 0, fixed(v4)), (0, Some(DropReason::Congestion)));
    // From another port of the underlay.
    let other =
        PortPolicy { mtu: Mtu::of::<1600>(), ..PortPolicy::new("br0", VlanMode::Access { vid: Vid::of::<0>() }) };
    a.ports.push(a.topology.set_port("other", other).unwrap());
    a.topology.set_up("other", true);
    assert_eq!(outcome(&mut a, 3, good.clone()), (0, Some(DropReason::NotUplink)));
    // A remote of another network is a stranger in this one.
    a.topology.set_network(
        "red",
        NetworkSpec { vlan: None, overlay: Some(overlay(77, &[3], false)), acls: Default::default() },
    );
    let joined =
        PortPolicy { network: Some("red".into()), ..PortPolicy::new("", VlanMode::Access { vid: Vid::of::<0>() }) };
    a.ports.push(a.topology.set_port("red1", joined).unwrap());
    a.topology.set_up("red1", true);
    assert_eq!(outcome(&mut a, 0, with(48, 77)), (0, Some(DropReason::UnknownVni)));
    let mut of_red = with(48, 77);
    of_red[46..49].copy_from_slice(&[0, 0, 77]);
    assert_eq!(outcome(&mut a, 0, of_red), (0, Some(DropReason::UnknownVtep)));
    // From one tunnel into another.
    set_blue(&mut a, None, &[2, 3], false);
    a.topology.snapshot().unwrap();
    resolve(&a);
    let blue = a.topology.network_place("blue").map(|(b, v)| a.topology.segment(b, v).unwrap()).unwrap();
    let third = a.topology.vteps().next().unwrap().remotes[1].idx;
    assert!(a.macs.set_static(Key::new(MacAddr::from_octets([2, 0, 0, 0, 0, 99]), blue), third));
    assert_eq!(outcome(&mut a, 0, tunnelled(99)), (0, Some(DropReason::SplitHorizon)));
    // Nobody answers for the next hop; and what does not fit into the underlay's MTU.
    // By the uplink alone, although nobody of the underlay has heard the third host.
    assert_eq!(outcome(&mut a, 1, frame(99, 7, 1564)), (1, None));
    assert_eq!(outcome(&mut a, 1, frame(99, 7, 1565)), (0, Some(DropReason::MtuExceeded)));
    a.topology.vteps().next().unwrap().remotes[1].next_hop.set(None);
    let mut large = HeapFrame::new(frame(99, 7, 900));
    large.segment_len = Some(300);
    let before = a.drops(DropReason::NextHop);
    a.run(1, [large]);
    assert_eq!(a.drops(DropReason::NextHop), before + 1, "what can't be held");
}

/// What can't be sent yet is handed out to be held, and sent when the next hop is known.
#[test]
fn frames_wait_for_their_next_hop() {
    let mut a = host(1, &[2], false);
    a.run(0, [HeapFrame::new(tunnelled(0xff))]);
    let next_hop = a.topology.vteps().next().unwrap().remotes[0].next_hop.clone();
    next_hop.set(None);
    let sink = a.run(1, [frame(8, 7, 60), frame(8, 7, 61)].map(HeapFrame::new));
    assert_eq!((sink.sent.len(), sink.held.len(), a.drops(DropReason::NextHop)), (0, 2, 0));
    next_hop.set(Some(vtep_mac(2)));
    let sent: Vec<_> =
        sink.held.into_iter().flat_map(|(remote, inside, f)| a.send_into(remote, inside, f).sent).collect();
    assert_eq!(by(&a, &sent, 0).iter().map(Vec::len).collect::<Vec<_>>(), [110, 111]);
    a.check_conservation();
}

#[test]
fn segments_left_to_the_switch_are_made_before() {
    let mut a = host(1, &[2], false);
    a.run(0, [HeapFrame::new(tunnelled(0xff))]);
    let mut large = HeapFrame::new(frame(8, 7, 3000));
    large.segment_len = Some(1000);
    let sent = a.run(1, [large]).sent;
    assert_eq!(by(&a, &sent, 0).iter().map(Vec::len).collect::<Vec<_>>(), [1050; 3]);
}

#[test]
fn what_is_for_the_vtep_itself_is_handed_over() {
    let mut a = host(1, &[2], false);
    let mut arp = frame(0xff, 9, 60);
    arp[12..14].copy_from_slice(&[8, 6]);
    let sink = a.run(0, [HeapFrame::new(arp.clone())]);
    assert_eq!((sink.local.len(), &sink.local[0].1), (1, &arp));
    let mut to_it = arp.clone();
    to_it[..6].copy_from_slice(&vtep_mac(1).octets());
    assert_eq!(a.run(0, [HeapFrame::new(to_it)]).local.len(), 1);
}

#[test]
fn nothing_is_learned_where_that_is_turned_off() {
    let mut a = host(1, &[2], false);
    let overlay = OverlaySpec { learn: false, ..overlay(VNI, &[2], false) };
    a.topology.set_network("blue", NetworkSpec { vlan: None, overlay: Some(overlay), acls: Default::default() });
    let sink = a.run(0, [HeapFrame::new(tunnelled(0xff))]);
    assert_eq!((sink.sent.len(), sink.learned.len()), (2, 0));
    assert_eq!(a.run(1, [HeapFrame::new(frame(0xff, 7, 60))]).learned.len(), 1);
}

/// Whether networks and VTEPs fit together is the model's to check; what does not, does no harm here.
#[test]
fn what_does_not_fit_carries_no_frames() {
    let mut a = host(1, &[2], false);
    let red = |vni, vlan, vtep: &str, remote| NetworkSpec {
        vlan,
        overlay: Some(OverlaySpec { vtep: vtep.into(), remotes: [remote].into(), ..overlay(vni, &[], false) }),
        acls: Default::default(),
    };
    for spec in [
        red(1, None, "vtep9", ip(2, false)),
        red(1, None, "vtep0", ip(1, false)),
        red(1, None, "vtep0", ip(2, true)),
        red(1, Some(("br0".into(), Vid::of::<0>())), "vtep0", ip(2, false)),
        red(1, Some(("lan".into(), Vid::of::<1>())), "vtep0", ip(2, false)),
    ] {
        a.topology.set_network("red", spec);
        a.run(1, [HeapFrame::new(frame(0xff, 7, 60))]);
    }
    a.topology.remove_network("red");
    a.topology.remove_network("blue");
    let refused = a.topology.clone().snapshot().err().map(|e| e.to_string());
    assert_eq!(refused.as_deref(), Some("port 'p1': network: there is no network 'blue'"));
    let mut b = host(1, &[2], false);
    b.topology.remove_port("p0");
    b.run(1, [HeapFrame::new(frame(0xff, 7, 60))]);
}

#[test]
fn sixteen_thousand_networks() {
    let mut a = host(1, &[2], false);
    for n in 0..16_000u32 {
        let name = format!("n{n}");
        let overlay = overlay(1_000_000 + n, &[2], false);
        a.topology.set_network(&name, NetworkSpec { vlan: None, overlay: Some(overlay), acls: Default::default() });
        if n % 16 == 0 {
            let joined = PortPolicy {
                network: Some(name.clone()),
                ..PortPolicy::new("", VlanMode::Access { vid: Vid::of::<0>() })
            };
            a.topology.set_port(&name, joined).unwrap();
        }
    }
    a.topology.snapshot().unwrap();
    let places: BTreeSet<_> = (0..16_000).map(|n| a.topology.network_place(&format!("n{n}")).unwrap()).collect();
    assert_eq!(places.len(), 16_000);
}

#[test]
fn no_truncation_panics() {
    let mut a = host(1, &[2], false);
    let good = tunnelled(0xff);
    for n in 0..good.len() {
        a.run(0, [HeapFrame::new(&good[..n])]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever arrives, in mixed bursts: nothing panics, nothing is lost from the books, and nothing
    /// but whole frames comes out of a tunnel.
    #[test]
    fn mutations_are_survived(changes in proptest::collection::vec((0usize..110, any::<u8>(), any::<bool>()), 1..40)) {
        let mut a = host(1, &[2], false);
        let burst = changes.chunks(2).take(32).map(|c| {
            let mut f = tunnelled(0xff);
            for (at, octet, apply) in c {
                if *apply {
                    f[*at] = *octet;
                }
            }
            HeapFrame::new(f)
        });
        let sink = a.run(0, burst.collect::<Vec<_>>());
        for (port, f) in &sink.sent {
            let guest = *port != a.ports[0].get();
            prop_assert!(!guest || HeapFrame::new(f.as_slice()).len() <= 110);
        }
    }
}

/// What split horizon drops is gone: it is no frame of the network whose frame follows in the burst.
#[test]
fn what_is_dropped_between_tunnels_enters_no_other_network() {
    let with_red = |number: u8, remotes: &[u8]| {
        let mut s = host(number, remotes, false);
        let overlay = Some(overlay(77, remotes, false));
        s.topology.set_network("red", NetworkSpec { vlan: None, overlay, acls: Default::default() });
        let joined =
            PortPolicy { network: Some("red".into()), ..PortPolicy::new("", VlanMode::Access { vid: Vid::of::<0>() }) };
        s.ports.push(s.topology.set_port("p3", joined).unwrap());
        s.topology.set_up("p3", true);
        s.topology.snapshot().unwrap();
        resolve(&s);
        s
    };
    let (mut a, mut b, mut c) = (with_red(1, &[2, 3]), with_red(2, &[1]), with_red(3, &[1]));
    let outer = |s: &mut Switch, port: usize, f: Vec<u8>| {
        let sent = s.run(port, [HeapFrame::new(f)]).sent;
        by(s, &sent, 0)
    };
    // Address 7 is behind the third host.
    let hello = outer(&mut c, 1, frame(0xff, 7, 60));
    carry(&mut a, hello);
    let (blue, red) = (outer(&mut b, 1, frame(7, 8, 60)), outer(&mut b, 3, frame(0xff, 9, 60)));
    assert_eq!((blue.len(), red.len()), (1, 1));
    let sent = carry(&mut a, [blue, red].concat());
    assert_eq!(by(&a, &sent, 3), [frame(0xff, 9, 60)]);
    assert_eq!(a.drops(DropReason::SplitHorizon), 1);
    a.check_conservation();
}
