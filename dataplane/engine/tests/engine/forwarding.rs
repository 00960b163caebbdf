//! The pipeline on any machine: against a slow oracle, on random topologies and frames, and on
//! every truncation and many mutations of valid frames.

use dunlin_engine::{
    BURST, DropReason, Mtu, Vid,
    frame::HeapFrame,
    snapshot::{
        Forwarding,
        topology::{BridgeSpec, PortPolicy, Topology},
    },
    vlan::{PriorityTags, VlanMode, VlanSet},
};
use proptest::prelude::*;

use crate::{
    harness::{Switch, spec},
    oracle::{Oracle, Wire},
};

fn frame(dst: u8, src: u8, tags: &[(u16, u16)]) -> Vec<u8> {
    let mut f = vec![0x52, 0x54, 0, 0, 0, dst, 0x52, 0x54, 0, 0, 0, src];
    if dst == 0xff {
        f[..6].fill(0xff);
    }
    for (tpid, tci) in tags {
        f.extend(tpid.to_be_bytes());
        f.extend(tci.to_be_bytes());
    }
    f.extend([0x88, 0xb5]);
    f.resize(f.len() + 46, 0);
    f
}

fn modes() -> impl Strategy<Value = VlanMode> {
    let vid = prop_oneof![Just(Vid::of::<1>()), Just(Vid::of::<2>()), Just(Vid::of::<3>())];
    let set = prop_oneof![
        Just(VlanSet::ALL),
        proptest::collection::vec(0u16..4, 1..4).prop_map(|v| v.into_iter().collect::<VlanSet>()),
    ];
    (0..5, vid, set, any::<bool>()).prop_map(|(mode, vid, vlans, ad)| match mode {
        0 => VlanMode::Access { vid },
        1 => VlanMode::Trunk { vlans },
        2 => VlanMode::NativeTagged { native: vid, vlans },
        3 => VlanMode::NativeUntagged { native: vid, vlans },
        _ => VlanMode::Dot1qTunnel { vid, cvlans: vlans, tpid: if ad { 0x88a8 } else { 0x8100 } },
    })
}

fn specs() -> impl Strategy<Value = Vec<PortPolicy>> {
    let one =
        (modes(), any::<bool>(), 0usize..3, any::<bool>()).prop_map(|(vlan, protected, priority, other)| PortPolicy {
            forwarding: Forwarding {
                protected,
                priority_tags: [PriorityTags::Never, PriorityTags::IfNonzero, PriorityTags::Always][priority],
                ..Forwarding::default()
            },
            bridge: if other { "br1".into() } else { "br0".into() },
            ..spec(vlan)
        });
    proptest::collection::vec(one, 2..6)
}

fn frames() -> impl Strategy<Value = (usize, Wire)> {
    let tag = (prop_oneof![Just(0x8100u16), Just(0x88a8)], 0u16..5, 0u16..8);
    let tags = proptest::collection::vec(tag.prop_map(|(tpid, vid, pcp)| (tpid, pcp << 13 | vid)), 0..3);
    let dst = prop_oneof![4 => 1u8..6, 1 => Just(0xffu8)];
    (0usize..6, dst, 1u8..6, tags).prop_map(|(port, dst, src, tags)| (port, Wire { dst, src, tags }))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the ports and the frames, the pipeline does what a plain reading of Open
    /// vSwitch's documentation says.
    #[test]
    fn agrees_with_the_oracle(specs in specs(), frames in proptest::collection::vec(frames(), 1..40)) {
        let mut switch = Switch::new(specs.clone());
        let mut oracle = Oracle::new(specs);
        for (port, wire) in frames {
            let port = port % switch.ports.len();
            let sink = switch.run(port, [HeapFrame::new(frame(wire.dst, wire.src, &wire.tags))]);
            let mut got: Vec<(usize, Vec<u8>)> = sink
                .sent
                .into_iter()
                .map(|(p, f)| (switch.ports.iter().position(|i| i.get() == p).unwrap(), f))
                .collect();
            got.sort();
            let want: Vec<(usize, Vec<u8>)> =
                oracle.forward(port, &wire).into_iter().map(|(p, tags)| (p, frame(wire.dst, wire.src, &tags))).collect();
            prop_assert_eq!(got, want, "{:?} from port {}", wire, port);
        }
    }

    /// Octets that make no sense make no panic, and each frame has one fate.
    #[test]
    fn mutated_frames_have_a_fate(
        specs in specs(),
        ingress in 0usize..6,
        which in 0usize..6,
        changes in proptest::collection::vec((0usize..80, any::<u8>()), 0..8),
        cut in 0usize..120,
    ) {
        let mut switch = Switch::new(specs);
        let ingress = ingress % switch.ports.len();
        let mut f = valid_frames()[which].clone();
        for (at, to) in changes {
            let n = f.len();
            f[at % n] = to;
        }
        f.truncate(cut.max(1));
        switch.run(ingress, [HeapFrame::new(f)]);
        prop_assert_eq!(switch.totals().rx_frames, 1);
    }
}

/// One of each kind that a host sends.
fn valid_frames() -> Vec<Vec<u8>> {
    use etherparse::PacketBuilder;
    let [a, b] = [[0x52, 0x54, 0, 0, 0, 1], [0x52, 0x54, 0, 0, 0, 2]];
    let mut out = Vec::new();
    let mut put = |write: &dyn Fn(&mut Vec<u8>)| {
        let mut f = Vec::new();
        write(&mut f);
        out.push(f);
    };
    put(&|f| {
        PacketBuilder::ethernet2(a, b)
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .tcp(1, 2, 3, 4)
            .write(f, &[0; 40])
            .unwrap()
    });
    put(&|f| {
        let vid = 10.try_into().unwrap();
        let p = PacketBuilder::ethernet2(a, b).single_vlan(vid).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
        p.udp(1, 2).write(f, &[0; 40]).unwrap();
    });
    put(&|f| {
        let p = PacketBuilder::ethernet2(a, b).double_vlan(25.try_into().unwrap(), 100.try_into().unwrap());
        p.ipv6([1; 16], [2; 16], 64).udp(1, 2).write(f, &[0; 40]).unwrap();
    });
    put(&|f| {
        let p = PacketBuilder::ethernet2(a, [0xff; 6]).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
        p.icmpv4_echo_request(1, 2).write(f, &[0; 40]).unwrap();
    });
    out.push(frame(0xff, 1, &[(0x8100, 0x6000)]));
    out.push(frame(2, 1, &[(0x88a8, 1), (0x8100, 2)]));
    out
}

#[test]
fn every_truncation_has_a_fate() {
    let modes = [
        VlanMode::Access { vid: Vid::of::<10>() },
        VlanMode::Trunk { vlans: VlanSet::ALL },
        VlanMode::Dot1qTunnel { vid: Vid::of::<25>(), cvlans: VlanSet::ALL, tpid: 0x88a8 },
    ];
    let mut switch = Switch::new(modes.map(spec).to_vec());
    let mut sent = 0;
    for f in valid_frames() {
        for n in 0..=f.len() {
            for port in 0..3 {
                switch.run(port, [HeapFrame::new(&f[..n])]);
                sent += 1;
            }
        }
    }
    assert_eq!(switch.totals().rx_frames, sent);
    // Shorter than 14 octets, or than 18 with a tag: runts.
    assert!(switch.drops(DropReason::Runt) >= 6 * 14 * 3);
}

#[test]
fn the_mtu_is_of_the_payload() {
    let mut specs = vec![spec(VlanMode::Trunk { vlans: VlanSet::ALL }); 2];
    specs[1].mtu = Mtu::of::<100>();
    let mut switch = Switch::new(specs);
    let sized = |n: usize, tags: &[(u16, u16)]| {
        let mut f = frame(0xff, 1, tags);
        f.resize(n, 0);
        HeapFrame::new(f)
    };
    assert_eq!(switch.run(0, [sized(114, &[])]).sent.len(), 1);
    assert_eq!(switch.run(0, [sized(118, &[(0x8100, 5)])]).sent.len(), 1);
    assert_eq!(switch.run(0, [sized(115, &[]), sized(119, &[(0x8100, 5)])]).sent.len(), 0);
    assert_eq!(switch.drops(DropReason::MtuExceeded), 2);
    // A frame that will be segmented counts by its segments.
    let mut large = sized(5000, &[]);
    large.segment_len = Some(114);
    assert_eq!(switch.run(0, [large]).sent.len(), 1);
}

#[test]
fn a_flood_copies_once_for_all_ports_of_another_form() {
    let mut specs = vec![spec(VlanMode::Trunk { vlans: VlanSet::ALL })];
    specs.extend(vec![spec(VlanMode::Access { vid: Vid::of::<10>() }); 5]);
    specs.extend(vec![spec(VlanMode::Trunk { vlans: VlanSet::ALL }); 3]);
    let mut switch = Switch::new(specs);
    let sink = switch.run(0, [HeapFrame::new(frame(0xff, 1, &[(0x8100, 10)]))]);
    let tagged = sink.sent.iter().filter(|(_, f)| f[12..14] == [0x81, 0]).count();
    assert_eq!((sink.sent.len(), tagged), (8, 3));
    assert_eq!(switch.totals().clones, 7);
}

#[test]
fn moves_are_told_and_followed() {
    let mut switch = Switch::new(vec![spec(VlanMode::Access { vid: Vid::of::<1>() }); 3]);
    let first = switch.run(0, [HeapFrame::new(frame(0xff, 9, &[]))]);
    assert_eq!((first.learned[0].from, first.learned[0].at), (None, switch.ports[0]));
    assert!(switch.run(0, [HeapFrame::new(frame(0xff, 9, &[]))]).learned.is_empty(), "known already");
    let sink = switch.run(1, [HeapFrame::new(frame(0xff, 9, &[]))]);
    assert_eq!((sink.learned[0].from, sink.learned[0].at), (Some(switch.ports[0]), switch.ports[1]));
    let sink = switch.run(2, [HeapFrame::new(frame(9, 8, &[]))]);
    assert_eq!(sink.sent.iter().map(|s| s.0).collect::<Vec<_>>(), [switch.ports[1].get()]);
}

#[test]
fn a_port_that_is_down_gets_nothing() {
    let mut switch = Switch::new(vec![spec(VlanMode::Access { vid: Vid::of::<1>() }); 3]);
    switch.run(1, [HeapFrame::new(frame(0xff, 9, &[]))]);
    switch.topology.set_up("p1", false);
    assert_eq!(switch.run(0, [HeapFrame::new(frame(9, 8, &[]))]).sent.len(), 0);
    assert_eq!(switch.drops(DropReason::LinkDown), 1);
    assert_eq!(switch.run(0, [HeapFrame::new(frame(0xff, 8, &[]))]).sent.len(), 1);
}

#[test]
fn numbers_of_segments_stay_and_come_back() {
    let mut t = Topology::default();
    t.set_bridge("br0", BridgeSpec { ageing_s: 300 });
    t.set_port("a", spec(VlanMode::Access { vid: Vid::of::<10>() })).unwrap();
    t.set_port("b", spec(VlanMode::Access { vid: Vid::of::<20>() })).unwrap();
    t.snapshot().unwrap();
    let (ten, twenty) = (t.segment("br0", 10u16).unwrap(), t.segment("br0", 20u16).unwrap());
    t.set_port("b", spec(VlanMode::Access { vid: Vid::of::<30>() })).unwrap();
    t.snapshot().unwrap();
    assert_eq!(t.segment("br0", 10u16), Some(ten));
    assert_eq!(t.segment("br0", 20u16), None);
    // Not used again before its addresses are purged.
    assert_ne!(t.segment("br0", 30u16), Some(twenty));
    let retired = t.retired();
    assert_eq!(retired.segments, [twenty]);
    t.reclaim(retired);
    t.set_port("a", spec(VlanMode::Access { vid: Vid::of::<40>() })).unwrap();
    t.snapshot().unwrap();
    assert_eq!(t.segment("br0", 40u16), Some(twenty));
}

#[test]
fn a_burst_is_more_than_one_frame() {
    let mut switch = Switch::new(vec![spec(VlanMode::Access { vid: Vid::of::<1>() }); 2]);
    switch.run(1, (0..BURST as u8).map(|i| HeapFrame::new(frame(0xff, i + 1, &[]))));
    let sink = switch.run(0, (0..BURST as u8).map(|i| HeapFrame::new(frame(i + 1, 200, &[]))));
    // In their order, each by its own destination.
    let order: Vec<u8> = sink.sent.iter().map(|(_, f)| f[5]).collect();
    assert_eq!(order, (1..=BURST as u8).collect::<Vec<_>>());
}
