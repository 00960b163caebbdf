//! Port security, and what is learned from DHCP and neighbor discovery.

use dunlin_engine::{
    DropReason, MacAddr, Vid,
    frame::HeapFrame,
    snapshot::{
        security::Checks,
        topology::{PortPolicy, SecuritySpec},
    },
    vlan::VlanMode,
};

use crate::{
    filter::{IPS, MACS, dhcp_client, passes, switch, udp, udp_as},
    harness::{Switch, spec},
};

fn icmpv6_from(from: usize, source: [u8; 16], extension: bool, message: &[u8]) -> HeapFrame {
    let next = if extension { 60 } else { 58 };
    let options: &[u8] = if extension { &[58, 0, 1, 4, 0, 0, 0, 0] } else { &[] };
    let len = (options.len() + message.len()) as u8;
    let all_nodes = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let head = [0x86, 0xdd, 0x60, 0, 0, 0, 0, len, next, 255];
    HeapFrame::new([&MACS[1 - from][..], &MACS[from], &head, &source, &all_nodes, options, message].concat())
}

/// A link-local address that is not made of the MAC address is its station's once it was probed, and no other station had it.
#[test]
fn a_random_link_local_address_is_learned() {
    let address = |low: u8| [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 9, 9, 9, 9, 9, 9, 9, low];
    let nd = |from, kind: u8, source, target: [u8; 16]| {
        icmpv6_from(from, source, false, &[&[kind, 0, 0, 0, 0, 0, 0, 0][..], &target].concat())
    };
    let probe = |from, low| nd(from, 135, [0; 16], address(low));
    let uses = |s: &mut Switch, low| passes(s, 1, nd(1, 136, address(low), address(low)));
    let mut s = switch(None, None);
    let checks = Checks { mac: true, ip: true, nd: true, ..Checks::default() };
    let security = Some(SecuritySpec { checks, macs: vec![MacAddr::from_octets(MACS[1])], ips: vec![], snoop: true });
    s.topology.set_port("p1", PortPolicy { security, ..spec(VlanMode::Access { vid: Vid::of::<1>() }) }).unwrap();
    assert!(!uses(&mut s, 1), "it was not probed");
    assert!(passes(&mut s, 1, probe(1, 1)));
    assert!(!uses(&mut s, 1), "an answer may come");
    assert!(!passes(&mut s, 1, nd(1, 135, [0; 16], [0xfd; 16])), "no other address is");
    // Another station has the second, a third one probes the third at the same time.
    assert!(passes(&mut s, 1, probe(1, 2)) && passes(&mut s, 1, probe(1, 3)));
    assert!(passes(&mut s, 0, nd(0, 136, address(2), address(2))) && passes(&mut s, 0, probe(0, 3)));
    s.now_s += 1;
    assert_eq!([1, 2, 3].map(|low| uses(&mut s, low)), [true, false, false]);
    // It is remembered as leases are, and an answer that comes late ends it.
    assert_eq!(s.topology.changed_leases(s.now_s).len(), 1);
    s.now_s += 1_000;
    assert!(passes(&mut s, 0, nd(0, 136, address(1), address(1))) && uses(&mut s, 1), "that is too late");
    assert!(passes(&mut s, 1, probe(1, 4)));
    s.now_s += 1;
    assert_eq!(s.topology.changed_leases(s.now_s)[0].1.len(), 2);
    assert!(passes(&mut s, 0, nd(0, 136, address(4), address(4))) && !uses(&mut s, 4));
    // So many at once.
    for low in 10..30 {
        assert!(passes(&mut s, 1, probe(1, low)));
        s.now_s += 1;
        s.topology.changed_leases(s.now_s);
    }
    assert_eq!(s.leases("p1").len(), 4);
    assert!(uses(&mut s, 29) && !uses(&mut s, 25));
}

#[test]
fn a_station_speaks_as_itself() {
    let mut s = switch(None, None);
    let checks = Checks { mac: true, ip: true, arp: true, nd: true, dhcp_guard: true, ra_guard: true };
    let ips = vec![std::net::IpAddr::from(IPS[1]).into()];
    let security = Some(SecuritySpec { checks, macs: vec![MacAddr::from_octets(MACS[1])], ips, snoop: true });
    s.topology.set_port("p1", PortPolicy { security, ..spec(VlanMode::Access { vid: Vid::of::<1>() }) }).unwrap();
    let mut expect = |f: HeapFrame, reason: Option<DropReason>| {
        let before = reason.map(|r| s.drops(r));
        assert_eq!(passes(&mut s, 1, f), reason.is_none(), "{reason:?}");
        assert_eq!(reason.map(|r| s.drops(r)), before.map(|b| b + 1), "{reason:?}");
    };
    expect(udp(1, (1, 2)), None);
    expect(udp_as([2, 9, 9, 9, 9, 9], IPS[1], MACS[0], IPS[0], (1, 2), b""), Some(DropReason::SpoofedMac));
    expect(udp_as(MACS[1], [10, 0, 0, 9], MACS[0], IPS[0], (1, 2), b""), Some(DropReason::SpoofedIp));
    let discover = dhcp_client(1, MACS[1], [0; 4], &[]);
    expect(udp_as(MACS[1], [0; 4], [0xff; 6], [255; 4], (68, 67), &discover), None);
    expect(udp_as(MACS[1], IPS[1], MACS[0], IPS[0], (67, 68), b""), Some(DropReason::DhcpServer));
    let arp = |mac: [u8; 6], ip: [u8; 4]| {
        let mut f = [&MACS[0][..], &MACS[1], &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2], &mac, &ip, &MACS[0], &IPS[0]].concat();
        f.resize(60, 0);
        HeapFrame::new(f)
    };
    expect(arp(MACS[1], IPS[1]), None);
    expect(arp(MACS[1], IPS[0]), Some(DropReason::SpoofedArp));
    expect(arp(MACS[0], IPS[1]), Some(DropReason::SpoofedArp));
    let icmpv6 = |source, extension, message: &[u8]| icmpv6_from(1, source, extension, message);
    let its_own = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe, 0, 0, 2];
    let other = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe, 0, 0, 3];
    let announced = |target: [u8; 16], mac: [u8; 6]| [&[136, 0, 0, 0, 0, 0, 0, 0][..], &target, &[2, 1], &mac].concat();
    let advertisement = [134, 0, 0, 0, 64, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0];
    expect(icmpv6(its_own, false, &announced(its_own, MACS[1])), None);
    expect(icmpv6(other, false, &announced(its_own, MACS[1])), Some(DropReason::SpoofedIp));
    expect(icmpv6(its_own, false, &announced(other, MACS[1])), Some(DropReason::SpoofedNd));
    expect(icmpv6(its_own, true, &announced(its_own, MACS[0])), Some(DropReason::SpoofedNd));
    expect(icmpv6(its_own, false, &advertisement), Some(DropReason::RouterAdvertisement));
    expect(icmpv6(its_own, true, &advertisement), Some(DropReason::RouterAdvertisement));
    // A fragment's header, with nothing of what it is a fragment of.
    expect(icmpv6(its_own, true, &[]), Some(DropReason::RouterAdvertisement));
}

fn snoops(s: &mut Switch, port: usize, vid: u16) {
    let checks = Checks { ip: true, ..Checks::default() };
    let macs = vec![MacAddr::from_octets(MACS[port])];
    let security = Some(SecuritySpec { checks, macs, ips: vec![], snoop: true });
    let vlan = VlanMode::Access { vid: Vid::new(vid.into()).unwrap() };
    s.topology.set_port(&format!("p{port}"), PortPolicy { security, ..spec(vlan) }).unwrap();
}

/// A server at the other port gives an address for 100 s.
fn dhcp_ack(to: usize, client: [u8; 6], address: [u8; 4]) -> HeapFrame {
    let mut m = [0u8; 240].to_vec();
    (m[0], m[1], m[2]) = (2, 1, 6);
    m[16..20].copy_from_slice(&address);
    m[28..34].copy_from_slice(&client);
    m[236..240].copy_from_slice(&[0x63, 0x82, 0x53, 0x63]);
    m.extend([53, 1, 5, 51, 4, 0, 0, 0, 100, 255]);
    udp_as(MACS[1 - to], IPS[1 - to], MACS[to], IPS[to], (67, 68), &m)
}

/// A server that gives an address to the station of another port takes it from the one before.
#[test]
fn an_address_that_dhcp_gave_to_another_port_is_not_the_first_ones() {
    for (vid, stays) in [(1, false), (2, true)] {
        let mut s = switch(None, None);
        let address = [10, 0, 0, 77];
        s.run(0, [udp(0, (1, 2))]);
        s.run(1, [udp(1, (1, 2))]);
        snoops(&mut s, 1, 1);
        assert!(passes(&mut s, 0, dhcp_ack(1, MACS[1], address)));
        assert_eq!(s.topology.changed_leases(s.now_s).len(), 1);
        assert!(s.topology.changed_leases(s.now_s).is_empty(), "nothing is new");
        // The first one moves to another VLAN, or not.
        s.topology.set_port("p1", spec(VlanMode::Access { vid: Vid::of::<1>() })).unwrap();
        snoops(&mut s, 0, 1);
        s.topology.remember("p0", IPS[0].into(), s.now_s + 100);
        assert!(passes(&mut s, 1, dhcp_ack(0, MACS[0], address)));
        snoops(&mut s, 1, vid);
        let changed: Vec<_> = s.topology.changed_leases(s.now_s).iter().map(|(port, _)| port.to_string()).collect();
        assert_eq!(changed, if stays { vec!["p0"] } else { vec!["p0", "p1"] });
        assert_eq!(!s.leases("p1").is_empty(), stays);
        assert_eq!(s.leases("p0").len(), 2, "what was known before stays too");
    }
}

#[test]
fn an_address_that_dhcp_gave_is_the_stations_for_its_lease() {
    let mut s = switch(None, None);
    snoops(&mut s, 1, 1);
    assert!(!passes(&mut s, 1, udp(1, (1, 2))));
    let ack = |client| dhcp_ack(1, client, IPS[1]);
    assert!(passes(&mut s, 0, ack([9; 6])));
    assert!(!passes(&mut s, 1, udp(1, (1, 2))), "that was given to somebody else");
    assert!(passes(&mut s, 0, ack(MACS[1])));
    assert!(passes(&mut s, 1, udp(1, (1, 2))));
    assert_eq!(s.leases("p1"), [(IPS[1].into(), 101)]);
    s.now_s = 102;
    assert!(!passes(&mut s, 1, udp(1, (1, 2))));
}
