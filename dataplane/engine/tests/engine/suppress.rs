//! ARP requests and neighbor solicitations that the switch answers in place of a host behind a tunnel.

use std::net::IpAddr;

use dunlin_engine::{
    DropReason, MacAddr,
    frame::HeapFrame,
    packet::{
        arp_nd::{ArpNd, Request, answer, read},
        icmpv6_checksum,
    },
    snapshot::topology::{NetworkSpec, OverlaySpec},
};
use dunlin_model::spec::Binding;

use crate::{
    harness::{Sink, Switch},
    overlay::{VNI, host, ip, overlay},
};

fn mac(n: u8) -> MacAddr {
    MacAddr::from_octets([2, 0, 0, 0, 0, n])
}

/// The ARP request of host `by`, with MAC address and last octet of that number, for the address of `of`; as a probe, if
/// `by` has none yet.
fn request(of: u8, by: u8, probe: bool) -> HeapFrame {
    // A request is a reply with another operation, to all.
    let sender = if probe { IpAddr::from([0; 4]) } else { ip(by, false) };
    let said = answer(&Request { target: sender, asker: ip(of, false), mac: mac(0) }, mac(by), false);
    let mut f = said.octets().to_vec();
    f[..6].fill(0xff);
    f[21] = 1;
    HeapFrame::new(f)
}

/// An ICMPv6 message to all nodes, from fe80::`from` of MAC address `from`.
fn nd(from: [u8; 16], by: u8, body: &[u8]) -> HeapFrame {
    let to = "ff02::1".parse().unwrap();
    let mut body = body.to_vec();
    let sum = icmpv6_checksum(from.into(), to, &body);
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    let len = body.len() as u8;
    let eth = [&[0x33, 0x33, 0, 0, 0, 1][..], &mac(by).octets(), &[0x86, 0xdd]].concat();
    HeapFrame::new([&eth[..], &[0x60, 0, 0, 0, 0, len, 58, 255], &from, &to.octets(), &body].concat())
}

fn link_local(n: u8) -> [u8; 16] {
    let mut a = [0; 16];
    (a[0], a[1], a[15]) = (0xfe, 0x80, n);
    a
}

fn solicitation(of: u8, by: u8, probe: bool) -> HeapFrame {
    let from = if probe { [0; 16] } else { link_local(by) };
    nd(from, by, &[&[135, 0, 0, 0, 0, 0, 0, 0][..], &link_local(of), &[1, 1], &mac(by).octets()].concat())
}

fn advertisement(by: u8, flags: u8) -> HeapFrame {
    nd(link_local(by), by, &[&[136, 0, 0, 0, flags, 0, 0, 0][..], &link_local(by), &[2, 1], &mac(by).octets()].concat())
}

/// What the switch answered to the first guest; `None` if the frame was flooded.
fn answered(a: &Switch, sink: &Sink) -> Option<ArpNd> {
    match &sink.sent[..] {
        [(port, f)] if *port == a.ports[1].get() => Some(read(f, 14).expect("an answer")),
        sent => {
            assert!(sent.len() > 1 && sent.iter().all(|(p, _)| *p != a.ports[1].get()), "{sent:?}");
            None
        }
    }
}

fn with_binding(a: &mut Switch, address: IpAddr, mac: MacAddr, router: bool) {
    let bindings = [(address, Binding { mac, router })].into();
    let known = OverlaySpec { bindings, ..overlay(VNI, &[2], false) };
    a.topology.set_network("blue", NetworkSpec { vlan: None, overlay: Some(known), acls: Default::default() });
}

#[test]
fn a_request_for_a_known_address_is_answered() {
    let mut a = host(1, &[2], false);
    assert_eq!(a.run(1, [request(8, 7, false)]).sent.len(), 2, "not known: to the other guest and the other host");
    assert_eq!(a.run(2, [request(7, 8, false)]).sent.len(), 1, "the sender of a request is known");
    let sink = a.run(1, [request(8, 7, false)]);
    let announcement = ArpNd::Advertisement { address: ip(8, false), mac: mac(8), router: None };
    assert_eq!(answered(&a, &sink), Some(announcement));
    assert_eq!(a.drops(DropReason::Suppressed), 2);
    // Its own address, after it moved or to see whether it is free; and after a long time.
    assert_eq!(a.run(1, [request(7, 7, false)]).sent.len(), 2);
    a.now_s += 400;
    assert_eq!(a.run(1, [request(8, 7, false)]).sent.len(), 2);
    // What is configured is certain, also for a probe (RFC 9161, 3.2); and where suppression is off nothing is answered.
    with_binding(&mut a, ip(9, false), mac(9), false);
    assert_eq!(a.run(1, [request(9, 7, false)]).sent.len(), 1);
    assert_eq!(a.run(1, [request(9, 7, true)]).sent.len(), 1);
    let off = OverlaySpec { suppress: false, ..overlay(VNI, &[2], false) };
    a.topology.set_network("blue", NetworkSpec { vlan: None, overlay: Some(off), acls: Default::default() });
    assert_eq!(a.run(1, [request(9, 7, false)]).sent.len(), 2);
}

/// Whether an address is free says the host that has it (RFC 5227, 2.1.1; RFC 4862, 5.4), not what was learned of one that
/// may be gone; and a probe says nothing of its sender.
#[test]
fn a_probe_is_for_the_host_itself() {
    let mut a = host(1, &[2], false);
    for (known, asks, probes) in [
        (request(7, 8, false), request(8, 7, false), request(8, 7, true)),
        (advertisement(8, 0x20), solicitation(8, 7, false), solicitation(8, 7, true)),
    ] {
        a.run(2, [known]);
        let learned = a.topology.bindings().statistics().entries;
        let sink = a.run(1, [probes]);
        assert_eq!(answered(&a, &sink), None);
        assert_eq!(a.topology.bindings().statistics().entries, learned);
        let sink = a.run(1, [asks]);
        assert!(answered(&a, &sink).is_some());
    }
}

/// A host that is gone, or is behind another port now, is not answered for.
#[test]
fn a_host_that_left_is_not_answered_for() {
    let mut a = host(1, &[2], false);
    let announce = |a: &mut Switch| _ = a.run(2, [request(8, 8, false)]);
    announce(&mut a);
    // Its MAC address is heard by another port, in frames that say nothing of its IP address.
    let mut moved = vec![0xff; 6];
    moved.extend(mac(8).octets());
    moved.extend([0x88, 0xb5]);
    moved.resize(60, 0);
    a.run(1, [HeapFrame::new(moved)]);
    let sink = a.run(1, [request(8, 7, false)]);
    assert_eq!(answered(&a, &sink), None);
    announce(&mut a);
    let sink = a.run(1, [request(8, 7, false)]);
    assert!(answered(&a, &sink).is_some());
    // Its port is removed.
    a.topology.remove_port("p2");
    let retired = a.topology.retired();
    a.macs.purge(|e| retired.ports.contains(&e.port));
    a.topology.reclaim(retired);
    assert_eq!(a.topology.bindings().statistics().entries, 1, "that of the first guest");
    let sink = a.run(1, [request(8, 7, false)]);
    assert!(sink.sent.iter().all(|(p, _)| *p != a.ports[1].get()), "not answered: to the other host");
}

/// A host deletes its default route if an advertisement of its router lacks the R flag (RFC 4861, 7.2.5; RFC 9047).
#[test]
fn a_router_stays_one_in_the_answer() {
    let is_router = |a: &mut Switch| {
        let sink = a.run(1, [solicitation(8, 7, false)]);
        let Some(ArpNd::Advertisement { router, .. }) = answered(a, &sink) else { panic!("{:?}", sink.sent) };
        router.unwrap()
    };
    let mut a = host(1, &[2], false);
    // A solicitation does not say what its sender is.
    a.run(2, [solicitation(3, 8, false)]);
    let sink = a.run(1, [solicitation(8, 7, false)]);
    assert_eq!(answered(&a, &sink), None);
    a.run(2, [advertisement(8, 0x20)]);
    assert!(!is_router(&mut a));
    a.run(2, [advertisement(8, 0xa0)]);
    assert!(is_router(&mut a));
    // Nor that a router is none any more.
    a.now_s += 100;
    a.run(2, [solicitation(3, 8, false)]);
    assert!(is_router(&mut a));
    a.run(2, [advertisement(8, 0x20)]);
    assert!(!is_router(&mut a));
    // A router advertisement says it as well.
    a.run(2, [nd(link_local(8), 8, &[134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 0, 0, 0, 0, 8])]);
    assert!(is_router(&mut a));
    with_binding(&mut a, IpAddr::from(link_local(8)), mac(8), true);
    assert!(is_router(&mut a));
}

/// What a host says of another one is not believed.
#[test]
fn a_host_speaks_for_itself() {
    let mut a = host(1, &[2], false);
    let mut forged = request(8, 8, false).octets().to_vec();
    forged[11] = 6;
    a.run(2, [HeapFrame::new(forged)]);
    assert_eq!(a.topology.bindings().statistics().entries, 0);
    let sink = a.run(1, [request(8, 7, false)]);
    assert_eq!(answered(&a, &sink), None);
}
