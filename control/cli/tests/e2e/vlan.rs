//! VLAN modes, with Open vSwitch's meaning: every mode as ingress against every mode as egress,
//! and scapy as a second opinion on the tags.

use crate::{
    host::Host,
    net::{Netns, Receiver},
};

/// Name, options, of the ports of the matrix.
const PORTS: [(&str, &str); 5] = [
    ("access", "--vlan 10"),
    ("trunk", "--trunks 0,10,20"),
    ("ntagged", "--vlan-mode native-tagged --vlan 10 --trunks 20"),
    ("nuntagged", "--vlan-mode native-untagged --vlan 10 --trunks 20"),
    ("tunnel", "--vlan-mode dot1q-tunnel --vlan 10"),
];

/// Tags of the frames that are sent, by sequence number.
const SENT: [&str; 5] = ["", "8100:a00a", "8100:0014", "8100:001e", "8100:6000"];

/// Where a frame goes from each port: VLAN, priority bits, TPID and what stays inside, or nothing.
fn classified(from: &str, sent: &str) -> Option<(u16, u16, &'static str, String)> {
    let untagged = sent.is_empty();
    let tci = if untagged { 0 } else { u16::from_str_radix(&sent[5..], 16).unwrap() };
    let (vid, priority) = (tci & 0xfff, tci & 0xf000);
    match from {
        "tunnel" => Some((10, priority, "88a8", sent.to_owned())),
        "access" if vid == 0 => Some((10, priority, "8100", String::new())),
        "access" => None,
        _ if vid == 30 => None,
        "trunk" => Some((vid, priority, "8100", String::new())),
        _ => Some((if vid == 0 { 10 } else { vid }, priority, "8100", String::new())),
    }
}

/// The tags seen at a port, or nothing.
fn seen_at(to: &str, (vid, priority, tpid, inner): &(u16, u16, &str, String)) -> Option<String> {
    let tagged = format!("{tpid}:{:04x}", priority | vid);
    let outer = match (to, vid) {
        // A tag that comes out there would be taken for the frame's VLAN.
        ("nuntagged", 10) if !inner.is_empty() => return None,
        ("access" | "tunnel" | "nuntagged", 10) => "",
        ("trunk", 0) => "",
        ("trunk" | "ntagged", 10 | 20) | ("nuntagged", 20) => &tagged,
        _ => return None,
    };
    let tags: Vec<&str> = [outer, inner].into_iter().filter(|t| !t.is_empty()).collect();
    Some(if tags.is_empty() { "none".into() } else { tags.join(",") })
}

#[test]
fn every_mode_against_every_mode() {
    let host = Host::start();
    let spaces: Vec<Netns> = PORTS.iter().map(|_| Netns::new()).collect();
    for ((name, options), ns) in PORTS.iter().zip(&spaces) {
        host.add_host(name, ns, options);
    }
    for (i, (from, _)) in PORTS.iter().enumerate() {
        let receivers: Vec<_> = spaces.iter().map(|ns| ns.receive("--frames")).collect();
        for (seq, tags) in SENT.iter().enumerate() {
            spaces[i].send(&format!("--first {seq} --tags \"{tags}\" --size 80"));
        }
        for (j, lines) in Receiver::finish_all(receivers).into_iter().enumerate() {
            let to = PORTS[j].0;
            for (seq, sent) in SENT.iter().enumerate() {
                let mut want = classified(from, sent).and_then(|c| seen_at(to, &c));
                if i == j {
                    want = None; // never back by the port it came from
                }
                let got = lines.iter().find(|l| l.starts_with(&format!("seq={seq} ")));
                let got = got.map(|l| l.split("tags=").nth(1).unwrap().split(' ').next().unwrap().to_owned());
                assert_eq!(got, want, "from {from} to {to}, sent with tags '{sent}'");
            }
        }
    }
    // Each drop has its reason: VLAN 10, 20 and 30 at the access port, VLAN 30 at the others.
    assert_eq!(host.drops("access", "ingress_vlan"), 3);
    assert_eq!(host.drops("trunk", "ingress_vlan"), 1);
    assert_eq!(host.drops("tunnel", "ingress_vlan"), 0);
}

#[test]
fn customer_vlans_and_priority_tags() {
    let host = Host::start();
    let (customer, uplink, plain) = (Netns::new(), Netns::new(), Netns::new());
    host.add_host("customer", &customer, "--vlan-mode dot1q-tunnel --vlan 25 --cvlans 100-199 --qinq-ethertype 802.1q");
    host.add_host("uplink", &uplink, "--trunks 25");
    host.add_host("plain", &plain, "--vlan 25 --priority-tags if-nonzero");
    let at_uplink = uplink.receive("--frames --count 2");
    customer.send("--first 1 --tags 8100:0064");
    customer.send("--first 2 --tags 8100:0005");
    customer.send("--first 3");
    plain.send("--first 4");
    let lines = at_uplink.finish();
    let tags: Vec<&str> = lines.iter().filter_map(|l| l.split("tags=").nth(1)?.split(' ').next()).collect();
    assert_eq!(tags, ["8100:0019,8100:0064", "8100:0019"], "{lines:?}");
    // From a customer VLAN that is not let through, and untagged, which counts as 0.
    assert_eq!(host.drops("customer", "ingress_vlan"), 2);

    let at_plain = plain.receive("--frames --count 2");
    uplink.send("--first 5 --tags 8100:0019");
    uplink.send("--first 6 --tags 8100:e019");
    let lines = at_plain.finish();
    let tags: Vec<&str> = lines.iter().filter_map(|l| l.split("tags=").nth(1)?.split(' ').next()).collect();
    assert_eq!(tags, ["none", "8100:e000"], "{lines:?}");
}

#[test]
fn scapy_writes_and_checks_the_tags() {
    let host = Host::start();
    let (trunk, access) = (Netns::new(), Netns::new());
    host.add_host("trunk", &trunk, "--trunks 10,20");
    host.add_host("access", &access, "--vlan 10");
    let script = format!("/usr/bin/python3 {}/tests/e2e/tags.py", env!("CARGO_MANIFEST_DIR"));
    let sniff = |out: &str| format!("{script} sniff {out}");
    let send = |sport: u16, tags: &str| format!("{script} send {sport} {tags}");
    let ready = [host.path("sniff-a"), host.path("sniff-t")];
    let (a, t) = (access.spawn(&sniff(&ready[0])), trunk.spawn(&sniff(&ready[1])));
    crate::net::eventually("scapy listens", 15.0, || ready.iter().all(|f| std::path::Path::new(f).exists()));
    trunk.run(&send(1, "10:3"));
    trunk.run(&send(2, "20:0"));
    access.run(&send(3, ""));
    ready.iter().for_each(|f| std::fs::write(format!("{f}.end"), "").unwrap());
    assert_eq!(a.finish().lines().last().unwrap(), "tags=[] ports=[1] checksums=[True]");
    assert_eq!(t.finish().lines().last().unwrap(), "tags=[(10, 0)] ports=[3] checksums=[True]");
}
