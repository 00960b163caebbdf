//! Cases from the field: frames by which other switches went wrong.

use dunlin_engine::{
    DropReason, MacAddr, Vid,
    frame::HeapFrame,
    snapshot::{
        Forwarding,
        security::Checks,
        topology::{PortPolicy, SecuritySpec},
    },
    tables::{acl::Action, conntrack::Settings},
    vlan::{self, PriorityTags, VlanMode, VlanSet},
};

use crate::{
    filter::{IPS, MACS, dhcp_client, open, passes, stateful, switch, tcp, udp_as},
    harness::{Switch, spec},
};

/// What is allowed to port 80 of the second port's host, and the answers.
fn guarded() -> Switch {
    switch(Some((stateful(), Action::Deny)), Some((stateful(), Action::Deny)))
}

/// States of the connections, and seconds since each was renewed.
fn sessions(s: &Switch) -> Vec<(&'static str, u32)> {
    let mut all = Vec::new();
    s.sessions.sessions((0, 1), &Settings::default(), s.now_s, |x| all.push((x.state, x.idle_s)));
    all
}

/// The switch forgot the connection, the client too, and the server has it still (RFC 5961, 4.2; RFC 9293, 3.10.7.3):
/// https://github.com/cilium/cilium/issues/45863.
#[test]
fn a_challenge_of_an_older_connection_is_answered() {
    let mut s = guarded();
    let syn = || tcp(0, (5000, 80), "S", 1000, 0, b"");
    assert!(passes(&mut s, 0, syn()));
    assert!(passes(&mut s, 1, tcp(1, (80, 5000), "A", 145_824_453, 643_160_523, b"")));
    // With data, it is no challenge.
    assert!(!passes(&mut s, 1, tcp(1, (80, 5000), "A", 145_824_453, 643_160_523, b"data")));
    // A reset that answers no challenge is another's.
    assert!(!passes(&mut s, 0, tcp(0, (5000, 80), "R", 643_160_524, 0, b"")));
    assert!(passes(&mut s, 0, tcp(0, (5000, 80), "R", 643_160_523, 0, b"")));
    assert_eq!(sessions(&s), [("opening", 0)]);
    assert!(passes(&mut s, 0, syn()));
    assert!(passes(&mut s, 1, tcp(1, (80, 5000), "SA", 7, 1001, b"")));
    assert!(passes(&mut s, 0, tcp(0, (5000, 80), "A", 1001, 8, b"")));
    assert_eq!(sessions(&s), [("open", 0)]);
    // Of an open connection, what is out of its windows stays out.
    assert!(!passes(&mut s, 1, tcp(1, (80, 5000), "A", 145_824_453, 643_160_523, b"")));
    assert!(!passes(&mut s, 0, tcp(0, (5000, 80), "R", 643_160_523, 0, b"")));
}

/// Challenges do not keep a connection that does not open: its age is that of the last SYN.
#[test]
fn a_challenge_renews_nothing() {
    let mut s = guarded();
    assert!(passes(&mut s, 0, tcp(0, (5000, 80), "S", 1000, 0, b"")));
    s.now_s += 20;
    assert!(passes(&mut s, 1, tcp(1, (80, 5000), "A", 145_824_453, 643_160_523, b"")));
    assert_eq!(sessions(&s), [("opening", 20)]);
}

/// Both ends forgot the connection, the switch did not (RFC 9293, 3.5.1):
/// https://github.com/openzro/openzro/pull/196.
#[test]
fn a_connection_that_both_ends_forgot_is_opened_again() {
    // The sequence numbers of the new one ahead, behind, and near those of before.
    for (syn, answer) in [(3_000_000_000, 9), (5, 4_000_000_000), (150, 600), (1_000_000, 2_000_000)] {
        let mut s = guarded();
        let (a, b) = open(&mut s, 4000);
        assert!(passes(&mut s, 0, tcp(0, (4000, 80), "A", a, b, &[0; 1000])));
        s.now_s += 30;
        // A SYN that gets no answer does not renew what was there.
        assert!(passes(&mut s, 0, tcp(0, (4000, 80), "S", syn, 0, b"")), "{syn}");
        assert_eq!(sessions(&s), [("open", 30)]);
        // And what was there goes on: the SYN may have been an old one, or forged.
        assert!(passes(&mut s, 0, tcp(0, (4000, 80), "A", a + 1000, b, b"x")), "{syn}");
        assert!(passes(&mut s, 1, tcp(1, (80, 4000), "A", b, a + 1001, b"y")), "{syn}");
        // An answer to another SYN is none, unless it could be of what was there.
        assert_eq!(passes(&mut s, 1, tcp(1, (80, 4000), "SA", answer, syn + 2, b"")), syn == 150, "{syn}");
        assert!(passes(&mut s, 0, tcp(0, (4000, 80), "S", syn, 0, b"")), "{syn}");
        assert!(passes(&mut s, 1, tcp(1, (80, 4000), "SA", answer, syn + 1, b"")), "{syn}");
        assert_eq!(sessions(&s), [("opening", 0)]);
        assert!(passes(&mut s, 0, tcp(0, (4000, 80), "A", syn + 1, answer + 1, b"get")), "{syn}");
        assert!(passes(&mut s, 1, tcp(1, (80, 4000), "A", answer + 1, syn + 4, &[0; 1400])), "{syn}");
        assert!(passes(&mut s, 0, tcp(0, (4000, 80), "A", syn + 4, answer + 1401, b"")), "{syn}");
        assert_eq!(sessions(&s), [("open", 0)]);
    }
}

/// The same while the first call is not answered in full, and after a FIN that was not answered.
#[test]
fn a_call_that_was_left_off_is_opened_again() {
    for closes in [false, true] {
        let mut s = guarded();
        if closes {
            let (a, b) = open(&mut s, 4000);
            assert!(passes(&mut s, 0, tcp(0, (4000, 80), "FA", a, b, b"")));
        } else {
            assert!(passes(&mut s, 0, tcp(0, (4000, 80), "S", 100, 0, b"")));
            assert!(passes(&mut s, 1, tcp(1, (80, 4000), "SA", 500, 101, b"")));
        }
        assert!(passes(&mut s, 0, tcp(0, (4000, 80), "S", 3_000_000_000, 0, b"")), "{closes}");
        assert!(passes(&mut s, 1, tcp(1, (80, 4000), "SA", 2_000_000_000, 3_000_000_001, b"")), "{closes}");
        assert!(passes(&mut s, 0, tcp(0, (4000, 80), "A", 3_000_000_001, 2_000_000_001, b"get")), "{closes}");
        assert!(passes(&mut s, 1, tcp(1, (80, 4000), "A", 2_000_000_001, 3_000_000_004, b"here")), "{closes}");
        assert_eq!(sessions(&s), [("open", 0)], "{closes}");
    }
}

/// The SYN of the end that was called does not open a connection that no rule lets begin from there.
#[test]
fn the_called_end_cannot_turn_a_connection_round() {
    let mut s = guarded();
    open(&mut s, 4000);
    passes(&mut s, 1, tcp(1, (80, 4000), "S", 77_000_000, 0, b""));
    assert!(!passes(&mut s, 0, tcp(0, (4000, 80), "SA", 88_000_000, 77_000_001, b"")));
}

/// One SYN, answered twice: the server was restarted in between, or another one stands behind the address.
#[test]
fn a_second_answer_to_a_syn_passes() {
    let mut s = guarded();
    assert!(passes(&mut s, 0, tcp(0, (4000, 80), "S", 100, 0, b"")));
    assert!(passes(&mut s, 1, tcp(1, (80, 4000), "SA", 500, 101, b"")));
    assert!(passes(&mut s, 1, tcp(1, (80, 4000), "SA", 3_000_000_000, 101, b"")));
    assert!(passes(&mut s, 0, tcp(0, (4000, 80), "A", 101, 3_000_000_001, b"get")));
    assert!(passes(&mut s, 1, tcp(1, (80, 4000), "A", 3_000_000_001, 104, b"here")));
    assert_eq!(sessions(&s), [("open", 0)]);
}

/// The dataplane was restarted under an upload: the client sends one segment again, and the server acknowledges what it
/// got meanwhile.
#[test]
fn a_connection_met_at_a_retransmission_goes_on() {
    let mut s = guarded();
    let segment = |seq| tcp(0, (4000, 80), "A", seq, 1, &[0; 1400]);
    assert!(passes(&mut s, 0, segment(1_000_000)));
    assert!(passes(&mut s, 1, tcp(1, (80, 4000), "A", 1, 1_001_400, b"")));
    assert!(passes(&mut s, 1, tcp(1, (80, 4000), "A", 1, 1_002_800, b"")));
    assert!(passes(&mut s, 1, tcp(1, (80, 4000), "A", 1, 1_900_000, b"")));
    assert!(passes(&mut s, 0, segment(1_900_000)));
    assert!(passes(&mut s, 1, tcp(1, (80, 4000), "A", 1, 1_901_400, b"")));
    // What nobody can have sent is not acknowledged.
    assert!(!passes(&mut s, 1, tcp(1, (80, 4000), "A", 1, 3_500_000_000, b"")));
}

/// A tag behind a priority tag would be the frame's VLAN at the next switch (CVE-2021-27853).
#[test]
fn no_tag_hides_behind_a_priority_tag() {
    let access = spec(VlanMode::Access { vid: Vid::of::<10>() });
    let native = spec(VlanMode::NativeUntagged { native: Vid::of::<10>(), vlans: [20].into_iter().collect() });
    let always = Forwarding { priority_tags: PriorityTags::Always, ..Default::default() };
    let mut s = Switch::new(vec![access.clone(), native, PortPolicy { forwarding: always, ..access }]);
    let behind = |tags: &[u16]| {
        let tags: Vec<u8> = tags.iter().flat_map(|t| t.to_be_bytes()).collect();
        let mut f = [&[0xff; 6][..], &MACS[0], &tags, &[8, 6]].concat();
        f.resize(64, 0);
        HeapFrame::new(f)
    };
    for tags in [
        &[0x8100, 0, 0x8100, 20][..],
        &[0x8100, 0, 0x88a8, 20],
        &[0x88a8, 0, 0x8100, 20],
        &[0x8100, 0xe000, 0x8100, 20],
        &[0x8100, 0, 0x8100, 0, 0x8100, 20],
    ] {
        let before = s.drops(DropReason::IngressVlan);
        assert_eq!(s.run(0, [behind(tags)]).sent.len(), 0, "{tags:x?}");
        assert_eq!(s.run(1, [behind(tags)]).sent.len(), 0, "{tags:x?}");
        assert_eq!(s.drops(DropReason::IngressVlan), before + 2, "{tags:x?}");
    }
    // A priority tag alone is none.
    assert_eq!(s.run(0, [behind(&[0x8100, 0x6000])]).sent.len(), 2);
}

/// What leaves untagged, where others leave tagged, has no other tag: neither a customer's, nor a second one.
#[test]
fn no_tag_comes_out_where_its_own_is_taken_off() {
    let native = spec(VlanMode::NativeUntagged { native: Vid::of::<10>(), vlans: [20].into_iter().collect() });
    let customer = spec(VlanMode::Dot1qTunnel { vid: Vid::of::<10>(), cvlans: VlanSet::ALL, tpid: vlan::TPID_8021AD });
    let trunk = spec(VlanMode::Trunk { vlans: VlanSet::ALL });
    let access = spec(VlanMode::Access { vid: Vid::of::<10>() });
    let mut s = Switch::new(vec![native, customer, trunk, access]);
    let tagged = |to: [u8; 6], from: [u8; 6], tags: &[u8]| {
        let mut f = [&to[..], &from, tags, &[0x88, 0xb5]].concat();
        f.resize(64, 0);
        HeapFrame::new(f)
    };
    let (peer, other) = ([2, 0, 0, 0, 0, 9], MACS[0]);
    let ports = |s: &mut Switch, from, frame| s.run(from, [frame]).sent.iter().map(|(p, _)| *p).collect::<Vec<_>>();
    let [p0, _, p2, p3] = [0, 1, 2, 3].map(|i| s.ports[i].get());
    // Flooded: to the trunk and the access port alone. The latter's station is at the end of its line: for it the tag is
    // payload.
    assert_eq!(ports(&mut s, 1, tagged([0xff; 6], other, &[0x81, 0, 0, 20])), [p2, p3]);
    assert_eq!(s.drops(DropReason::EgressVlan), 1);
    // To a known station behind the port, one by one and as a burst of one class.
    s.run(0, [tagged([0xff; 6], peer, &[])]);
    assert!(ports(&mut s, 1, tagged(peer, other, &[0x81, 0, 0, 20])).is_empty());
    let double = || tagged(peer, other, &[0x81, 0, 0, 10, 0x81, 0, 0, 20]);
    assert!(ports(&mut s, 2, double()).is_empty());
    assert!(s.run(2, [double(), double()]).sent.is_empty());
    assert_eq!(s.drops(DropReason::EgressVlan), 5);
    // With one tag of its own, it leaves.
    assert_eq!(ports(&mut s, 2, tagged(peer, other, &[0x81, 0, 0, 10])), [p0]);
}

/// The same packet in a frame of IEEE 802.3 (CVE-2021-27854, -27861, -27862): what stations read behind LLC and SNAP is
/// checked as if it stood behind an EtherType.
#[test]
fn port_security_reads_behind_llc_and_snap() {
    let mut s = secured(false);
    let advert = {
        let mut icmp = vec![134, 0, 0, 0, 64, 0, 0, 9];
        icmp.resize(16, 0);
        [&[0x60, 0, 0, 0, 0, 16, 58, 255, 0xfe, 0x80][..], &[0; 13], &[0x66, 0xff, 2], &[0; 13], &[1], &icmp].concat()
    };
    let arp = [&[0, 1, 8, 0, 6, 4, 0, 2][..], &MACS[0], &[10, 0, 0, 9], &MACS[1], &IPS[1]].concat();
    let other = &udp_as(MACS[0], [10, 0, 0, 9], MACS[1], IPS[1], (1, 2), b"x").octets()[14..].to_vec();
    let offer = &udp_as(MACS[0], IPS[0], MACS[1], IPS[1], (67, 68), b"x").octets()[14..].to_vec();
    let own = &udp_as(MACS[0], IPS[0], MACS[1], IPS[1], (1, 2), b"x").octets()[14..].to_vec();
    let framed = |tags: &[u8], length: u16, llc: &[u8], packet: &[u8]| {
        let mut f = [&MACS[1][..], &MACS[0], tags, &length.to_be_bytes(), llc, packet].concat();
        f.resize(f.len().max(60), 0);
        HeapFrame::new(f)
    };
    for oui in [[0, 0, 0], [0, 0, 0xf8]] {
        let snap = |ethertype: [u8; 2]| [&[0xaa, 0xaa, 3][..], &oui, &ethertype].concat();
        for tags in [&[][..], &[0x81, 0, 0, 0]] {
            for length in [0, 8, 64, 1400, 0x5f0] {
                for (ethertype, packet, reason) in [
                    ([0x86, 0xdd], &advert, DropReason::RouterAdvertisement),
                    ([8, 6], &arp, DropReason::SpoofedArp),
                    ([8, 0], other, DropReason::SpoofedIp),
                    ([8, 0], offer, DropReason::DhcpServer),
                    // A tag behind SNAP, whatever is behind that.
                    ([0x81, 0], other, DropReason::SpoofedIp),
                ] {
                    let before = s.drops(reason);
                    assert!(!passes(&mut s, 0, framed(tags, length, &snap(ethertype), packet)), "{reason:?} {length}");
                    assert_eq!(s.drops(reason), before + 1, "{reason:?} {length} {tags:?}");
                }
                assert!(passes(&mut s, 0, framed(tags, length, &snap([8, 0]), own)));
            }
        }
    }
    // The service access points of IP and of ARP, and SNAP that is cut.
    for llc in [&[6, 6, 3][..], &[0x98, 0x98, 3], &[0xaa, 0xaa, 0x13, 0, 0, 0, 8, 0]] {
        assert!(!passes(&mut s, 0, framed(&[], 64, llc, other)), "{llc:?}");
    }
    // Spanning tree and IPX are neither.
    assert!(passes(&mut s, 0, framed(&[], 38, &[0x42, 0x42, 3], &[0; 35])));
    assert!(passes(&mut s, 0, framed(&[], 38, &[0xe0, 0xe0, 3], &[0; 35])));
}

/// The first port's host may speak as itself only; by DHCP too, if `snoop`.
fn secured(snoop: bool) -> Switch {
    let mut s = switch(None, None);
    let checks = Checks { mac: true, ip: true, arp: true, nd: true, dhcp_guard: true, ra_guard: true };
    let ips = if snoop { vec![] } else { vec![std::net::IpAddr::from(IPS[0]).into()] };
    let security = Some(SecuritySpec { checks, macs: vec![MacAddr::from_octets(MACS[0])], ips, snoop });
    s.topology.set_port("p0", PortPolicy { security, ..spec(VlanMode::Access { vid: Vid::of::<1>() }) }).unwrap();
    s
}

/// With snooping, a client speaks for itself: https://github.com/kamorin/DHCPig/issues/14.
#[test]
fn a_dhcp_client_speaks_for_itself() {
    let mut s = secured(true);
    let by = |port, address, message: &[u8]| udp_as(MACS[0], address, MACS[1], IPS[1], (port, 67), message);
    let from = |address, message: &[u8]| by(68, address, message);
    let acknowledged = |address: [u8; 4]| {
        let mut m = dhcp_client(5, MACS[0], [0; 4], &[51, 4, 0, 0, 0, 100]);
        m[0] = 2;
        m[16..20].copy_from_slice(&address);
        udp_as(MACS[1], IPS[1], MACS[0], address, (67, 68), &m)
    };
    let (mine, others) = ([10, 0, 0, 100], [10, 0, 0, 101]);
    assert!(passes(&mut s, 0, from([0; 4], &dhcp_client(1, MACS[0], [0; 4], &[]))));
    assert!(passes(&mut s, 1, acknowledged(mine)));
    assert!(passes(&mut s, 0, from(mine, &dhcp_client(3, MACS[0], mine, &[]))));
    let mut relayed = dhcp_client(1, MACS[0], [0; 4], &[]);
    relayed[24] = 10;
    let requested = [&[50, 4][..], &others].concat();
    let refused = [
        ("in another's name", dhcp_client(1, [2, 9, 9, 9, 9, 9], [0; 4], &[])),
        ("with another's identifier", dhcp_client(1, MACS[0], [0; 4], &[61, 7, 1, 2, 9, 9, 9, 9, 9])),
        ("a release of another's", dhcp_client(7, MACS[0], others, &[])),
        ("a decline of another's", dhcp_client(4, MACS[0], [0; 4], &requested)),
        ("a decline of nothing", dhcp_client(4, MACS[0], [0; 4], &[])),
        ("a second kind", dhcp_client(1, MACS[0], others, &[53, 1, 7])),
        ("options elsewhere", dhcp_client(1, MACS[0], others, &[52, 1, 3])),
        ("an option that is cut", dhcp_client(1, MACS[0], others, &[12, 200])),
        ("a kind of two octets", dhcp_client(3, MACS[0], others, &[53, 2, 7, 0])),
        (
            "an address of five",
            dhcp_client(4, MACS[0], [0; 4], &[&[50, 5, 10, 0, 0, 101, 0, 50, 4][..], &mine].concat()),
        ),
        ("as a relay", relayed),
        ("cut", dhcp_client(7, MACS[0], others, &[])[..200].to_vec()),
    ];
    for (n, (what, message)) in (1..).zip(refused) {
        assert!(!passes(&mut s, 0, from(mine, &message)), "{what}");
        assert_eq!(s.drops(DropReason::SpoofedDhcp), n, "{what}");
    }
    // By another port than a client's; servers do not look at it.
    assert!(!passes(&mut s, 0, by(1234, mine, &dhcp_client(7, MACS[0], others, &[]))));
    assert!(!passes(&mut s, 0, by(67, mine, &dhcp_client(1, MACS[0], [0; 4], &[]))));
    // Its own it may give back, and has it no more then.
    assert_eq!(s.leases("p0"), [(mine.into(), 101)]);
    assert!(passes(&mut s, 0, from(mine, &dhcp_client(7, MACS[0], mine, &[]))));
    assert!(s.leases("p0").is_empty());
    assert!(!passes(&mut s, 0, udp_as(MACS[0], mine, MACS[1], IPS[1], (1, 2), b"")));
    // A server refuses the address: for another client that is nothing.
    assert!(passes(&mut s, 1, acknowledged(mine)));
    let refuses = |client| {
        let mut m = dhcp_client(6, client, [0; 4], &[]);
        m[0] = 2;
        udp_as(MACS[1], IPS[1], MACS[0], [255; 4], (67, 68), &m)
    };
    assert!(passes(&mut s, 1, refuses([2, 9, 9, 9, 9, 9])));
    assert_eq!(s.leases("p0"), [(mine.into(), 101)]);
    assert!(passes(&mut s, 1, refuses(MACS[0])));
    assert!(s.leases("p0").is_empty());
}

/// Snooping is switched on under a client that has a lease: its next renewal passes, and the answer restores it.
#[test]
fn a_renewal_passes_before_the_lease_is_known() {
    let mut s = secured(true);
    let mine = [10, 0, 0, 100];
    let from = |address, message: &[u8]| udp_as(MACS[0], address, MACS[1], IPS[1], (68, 67), message);
    let renewal = || from(mine, &dhcp_client(3, MACS[0], mine, &[]));
    assert!(!passes(&mut s, 0, udp_as(MACS[0], mine, MACS[1], IPS[1], (1, 2), b"")));
    assert!(passes(&mut s, 0, renewal()));
    // Not for another address than it sends from, nor anything else from there.
    assert!(!passes(&mut s, 0, from([10, 0, 0, 9], &dhcp_client(3, MACS[0], mine, &[]))));
    assert!(!passes(&mut s, 0, from(mine, &dhcp_client(8, MACS[0], mine, &[]))));
    let mut m = dhcp_client(5, MACS[0], mine, &[51, 4, 0, 0, 0, 100]);
    (m[0], m[16], m[17], m[18], m[19]) = (2, 10, 0, 0, 100);
    assert!(passes(&mut s, 1, udp_as(MACS[1], IPS[1], MACS[0], mine, (67, 68), &m)));
    assert!(passes(&mut s, 0, udp_as(MACS[0], mine, MACS[1], IPS[1], (1, 2), b"")));
}

/// Replies to what is rejected have a rate for each port (RFC 1812, 4.3.2.8; RFC 4443, 2.4 f); what is not sent is counted.
#[test]
fn a_port_gets_few_replies_to_what_it_is_rejected() {
    let mut s = switch(None, Some((vec![], Action::Reject)));
    s.run(1, [udp_as(MACS[1], IPS[1], MACS[0], IPS[0], (1, 2), b"")]);
    let burst = || (0..50).map(|n| udp_as(MACS[0], IPS[0], MACS[1], IPS[1], (n, 9), b"x"));
    let (mut replies, rejected) = (0, 50 * 2_000);
    for n in 0..2_000 {
        // A hundred bursts a second: 20 seconds.
        s.now_s = 1 + n / 100;
        replies += s.run(0, burst()).sent.len() as u64;
    }
    assert!((20 * 100..=21 * 1_000).contains(&replies), "{replies}");
    assert_eq!(s.drops(DropReason::ReplyLimit), rejected - replies);
    assert_eq!(s.drops(DropReason::EgressAclRejected), rejected);
    // What gets no reply takes none from the others' rate.
    s.now_s += 10;
    let resets = (0..1_000).map(|_| tcp(0, (1, 2), "R", 1, 0, b""));
    let before = s.drops(DropReason::ReplyLimit);
    for reset in resets {
        assert!(s.run(0, [reset]).sent.is_empty());
    }
    assert_eq!(s.drops(DropReason::ReplyLimit), before);
    assert_eq!(s.run(0, [tcp(0, (1, 2), "S", 1, 0, b"")]).sent.len(), 1);
}

/// A port that sends from ever new addresses finds the table full: each burst takes the place of one entry at most, and its
/// neighbours stay known.
#[test]
fn a_flood_of_addresses_costs_its_port_alone() {
    let access = || spec(VlanMode::Access { vid: Vid::of::<1>() });
    let mut s = Switch::new(vec![access(), access(), access()]);
    let from = |n: u32, to: u32| {
        let mac = |n: u32| [&[2, 0][..], &n.to_be_bytes()].concat();
        let mut f = [mac(to), mac(n), vec![0x88, 0xb5]].concat();
        f.resize(60, 0);
        HeapFrame::new(f)
    };
    for n in 0..100 {
        s.run(1, [from(n, 900)]);
    }
    let capacity = s.macs.statistics().capacity as u32;
    for n in (0..capacity * 2).step_by(100) {
        s.run(0, (n..n + 100).map(|n| from(1_000_000 + n, 5)));
    }
    let full = s.macs.statistics();
    assert!(full.entries <= full.capacity && full.evictions + full.refused_full > u64::from(capacity / 2), "{full:?}");
    for n in (0..10_000).step_by(100) {
        s.run(0, (n..n + 100).map(|n| from(2_000_000 + n, 5)));
    }
    let after = s.macs.statistics();
    assert_eq!((after.evictions + after.refused_full) - (full.evictions + full.refused_full), 10_000);
    assert!(after.evictions - full.evictions <= 100, "one a burst: {after:?}");
    // The neighbours are known, and a new one is learned at once.
    for n in 0..100 {
        assert_eq!(s.run(2, [from(5_000, n)]).sent.len(), 1, "{n}");
    }
    assert_eq!(s.run(1, [from(5_001, 5_000)]).sent.len(), 1);
    assert_eq!(s.run(2, [from(5_000, 5_001)]).sent.len(), 1);
}

/// The customer's spanning tree is data for the provider (IEEE 802.1Q-2018, 8.6.3): between dot1q-tunnel ports, and with a
/// service tag between switches; not to hosts of the provider. Pause, LACP, 802.1X and LLDP stay on their link.
#[test]
fn a_customers_spanning_tree_passes_the_provider() {
    let tunnel =
        || spec(VlanMode::Dot1qTunnel { vid: Vid::of::<100>(), cvlans: VlanSet::ALL, tpid: vlan::TPID_8021AD });
    let trunk = spec(VlanMode::Trunk { vlans: VlanSet::ALL });
    let access = || spec(VlanMode::Access { vid: Vid::of::<100>() });
    let mut s = Switch::new(vec![tunnel(), tunnel(), trunk, access(), access()]);
    let to = |n: u8, tag: &[u8]| {
        let mut f = [&[1, 0x80, 0xc2, 0, 0, n][..], &MACS[0], tag, &[0, 38, 0x42, 0x42, 3]].concat();
        f.resize(60, 0);
        HeapFrame::new(f)
    };
    let ports = |s: &mut Switch, from, frame| {
        s.run(from, [frame]).sent.iter().map(|(p, _)| *p).collect::<std::collections::BTreeSet<_>>()
    };
    let [_, p1, p2, ..] = [0, 1, 2, 3, 4].map(|i| s.ports[i].get());
    let p0 = s.ports[0].get();
    let mut dropped = 0;
    for n in 0..16 {
        let passes = [0, 0xb, 0xc, 0xd, 0xf].contains(&n);
        let expected = |ports: [usize; 2]| ports.into_iter().filter(|_| passes).collect();
        assert_eq!(ports(&mut s, 0, to(n, &[])), expected([p1, p2]), "{n:x}");
        assert_eq!(ports(&mut s, 2, to(n, &[0x88, 0xa8, 0, 100])), expected([p0, p1]), "{n:x}");
        // Ordinary ports, and a customer's tag that is none of the provider's.
        assert!(ports(&mut s, 3, to(n, &[])).is_empty(), "{n:x}");
        assert!(ports(&mut s, 2, to(n, &[0x81, 0, 0, 100])).is_empty(), "{n:x}");
        dropped += 2 + if passes { 0 } else { 2 };
        assert_eq!(s.drops(DropReason::ReservedMulticast), dropped, "{n:x}");
    }
}

/// A frame that loses its tag is as long as a link wants the shortest to be, with zeros, where it leaves alone and where it
/// is flooded (IEEE 802.3, 3.2.8): https://github.com/openvswitch/ovs-issues/issues/221.
#[test]
fn an_untagged_frame_is_no_runt() {
    let trunk = || spec(VlanMode::Trunk { vlans: VlanSet::ALL });
    let access = || spec(VlanMode::Access { vid: Vid::of::<10>() });
    let mut s = Switch::new(vec![trunk(), access(), access(), trunk()]);
    let tagged = |dst: [u8; 6]| [&dst[..], &[2, 0, 0, 0, 0, 1], &[0x81, 0, 0, 10, 0x88, 0xb5], &[7; 42]].concat();
    let flooded = s.run(0, [HeapFrame::new(tagged([0xff; 6]))]).sent;
    s.run(1, [HeapFrame::new([&[0xff; 6][..], &[2, 0, 0, 0, 0, 2, 0x88, 0xb5], &[0; 46]].concat())]);
    let unicast = s.run(0, [HeapFrame::new(tagged([2, 0, 0, 0, 0, 2]))]).sent;
    assert_eq!((flooded.len(), unicast.len()), (3, 1));
    for (port, frame) in flooded.iter().chain(&unicast) {
        assert_eq!(frame.len(), 60);
        let untagged = *port != s.ports[3].get();
        assert_eq!(frame[frame.len() - 4..], if untagged { [0; 4] } else { [7; 4] });
    }
}
