//! Tunnels: against the kernel's own VXLAN, and between two switches.

use std::time::{Duration, Instant};

use crate::{
    guest::Guest,
    host::Host,
    net::{Netns, eventually, sh, text},
};

/// A namespace that is another host: its address in the underlay, the kernel's VXLAN device, and an address
/// in the overlay behind it.
fn kernel_vtep(underlay: &str, vxlan: &str, overlay: &str) -> Netns {
    let ns = Netns::new();
    ns.allow_ipv6();
    // What the kernel leaves to its device is not left to a switch.
    ns.run("ethtool -K eth0 tx off >/dev/null");
    ns.run(&format!("ip addr add {underlay} dev eth0"));
    ns.run(&format!(
        "ip link add vx type vxlan {vxlan} dstport 4789 && ip link set vx up && ip addr add {overlay} dev vx"
    ));
    ns
}

/// A guest of the overlay; its MTU leaves room for the tunnel.
fn guest(address: &str) -> Netns {
    let ns = Netns::with_address(address);
    ns.run("ip link set eth0 mtu 1430 && ethtool -K eth0 tx off >/dev/null");
    ns
}

fn add_guest(host: &Host, name: &str, ns: &Netns, network: &str) {
    host.add_host(name, ns, &format!("--network {network} --mtu 1430"));
}

/// A switch whose VTEP is 10.50.0.1, on a link with `peer`, and its network blue.
fn beside(peer: &Netns) -> Host {
    let host = Host::start();
    host.add_host("up", peer, "");
    host.dunlin("vtep add v --uplink up --address 10.50.0.1/24");
    host.dunlin("network add blue --vni 100 --remotes 10.50.0.2");
    host
}

fn reached(host: &Host, remote: &str) -> bool {
    let vteps = host.json("vtep list");
    let mut remotes = vteps.as_array().unwrap().iter().flat_map(|v| v["remotes"].as_array().unwrap());
    remotes.any(|r| r["address"] == remote && r["next_hop_mac"] != "")
}

#[test]
fn the_kernel_is_a_peer() {
    for (family, underlay, own, remote, vxlan) in [
        (4, "10.50.0.2/24", "10.50.0.1/24", "10.50.0.2", "id 100 local 10.50.0.2 remote 10.50.0.1"),
        (6, "fd50::2/64", "fd50::1/64", "fd50::2", "id 100 local fd50::2 remote fd50::1 udp6zerocsumrx udp6zerocsumtx"),
    ] {
        let peer = kernel_vtep(underlay, vxlan, "192.168.9.2/24");
        let web = guest("192.168.9.1/24");
        let host = Host::start();
        host.add_host("up", &peer, "");
        host.dunlin(&format!("vtep add v --uplink up --address {own}"));
        host.dunlin(&format!("network add blue --vni 100 --remotes {remote}"));
        add_guest(&host, "web", &web, "blue");
        eventually("the next hop answers", 5.0, || reached(&host, remote));
        // The VTEP is a station like any other.
        let address = own.split('/').next().unwrap();
        assert!(peer.reaches(address, 3), "the VTEP answers pings");
        assert!(web.reaches("192.168.9.2", 5), "IPv{family}: {}", host.dunlin("vtep list"));
        assert!(peer.reaches("192.168.9.1", 2));
        let _server = peer.iperf_server();
        let report = web.run("iperf3 -J -c 192.168.9.2 -t 2");
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        let bits = report["end"]["sum_received"]["bits_per_second"].as_f64().unwrap();
        println!("IPv{family} underlay: TCP {:.2} Gbit/s", bits / 1e9);
        assert!(bits > 1e7, "{report}");
        let list = host.dunlin("vtep list") + &host.dunlin("network list") + &host.dunlin("neighbor list");
        println!("{list}{}", host.dunlin("mac list"));
        assert!(list.contains("reachable") && list.contains("blue"), "{list}");
        let macs = host.json("mac list");
        let behind =
            |port: &str| macs.as_array().unwrap().iter().filter(|m| m["port"] == port && m["bridge"] == "blue").count();
        assert_eq!((behind(&format!("v/{remote}")), behind("web")), (1, 1), "{macs}");
        assert!(
            host.metrics()
                .contains(&format!("dunlin_remote_reached{{kind=\"vxlan\",remote=\"{remote}\",vtep=\"v\"}} 1"))
        );
    }
}

/// Who is behind a tunnel is told that a frame was rejected, whatever the lists say of what the station there sends.
#[test]
fn who_is_behind_a_tunnel_is_told_of_a_rejection() {
    let peer = kernel_vtep("10.50.0.2/24", "id 100 local 10.50.0.2 remote 10.50.0.1", "192.168.9.2/24");
    let web = guest("192.168.9.1/24");
    let host = beside(&peer);
    for (name, default, rules) in [
        ("strict", "reject", "allow state established,related\nallow ethertype arp\n"),
        ("mute", "deny", "allow state established\nallow ethertype arp\n"),
    ] {
        std::fs::write(host.path(name), rules).unwrap();
        host.dunlin(&format!("acl add {name} --default {default} --rules {}", host.path(name)));
    }
    add_guest(&host, "web", &web, "blue");
    eventually("the next hop answers", 5.0, || reached(&host, "10.50.0.2"));
    assert!(web.reaches("192.168.9.2", 5));
    host.dunlin("port set web --egress-acls strict --ingress-acls mute");
    let refused = peer.try_run("curl -s -m 60 http://192.168.9.1:81/");
    assert_eq!(refused.status.code(), Some(7), "connection refused: {}", host.dunlin("port show web"));
    let told = text(&peer.try_run("ping -c 1 -W 2 192.168.9.1").stdout);
    assert!(told.contains("Packet filtered"), "{told}");
    assert!(host.drops("web", "egress_acl_rejected") >= 2);
    let counters = host.json("port show web")["state"]["counters"].clone();
    assert!(counters["clones"].as_u64() >= Some(2), "the station did not send them: {counters}");
}

/// The kernel finds other hosts by a multicast group of the underlay.
#[test]
fn a_multicast_group_of_the_underlay() {
    for (underlay, own, remote, group, kind) in [
        ("10.50.0.2/24", "10.50.0.1/24", "10.50.0.2", "239.1.1.1", ""),
        ("fd50::2/64", "fd50::1/64", "fd50::2", "ff05::101", "udp6zerocsumrx udp6zerocsumtx"),
    ] {
        let local = underlay.split('/').next().unwrap();
        let vxlan = format!("id 100 local {local} group {group} dev eth0 {kind}");
        let peer = kernel_vtep(underlay, &vxlan, "192.168.9.2/24");
        let host = Host::start();
        host.add_host("up", &peer, "");
        let capture = peer.capture("-c 1 -v -n -i eth0 \"igmp[0] == 0x16 or (ip6 and ip6[48] == 131)\"");
        host.dunlin(&format!("vtep add v --uplink up --address {own}"));
        host.dunlin(&format!("network add blue --vni 100 --remotes {remote} --group {group}"));
        let web = guest("192.168.9.1/24");
        add_guest(&host, "web", &web, "blue");
        eventually("the next hop answers", 5.0, || reached(&host, remote));
        assert!(web.reaches("192.168.9.2", 5), "{group}: {}", host.dunlin("vtep list"));
        // The kernel asks the group for who it has forgotten.
        peer.run("ip neigh flush dev vx; bridge fdb show dev vx | grep -v 00:00:00:00:00:00 | cut -d\" \" -f1 | xargs -r -n1 bridge fdb del dev vx || true");
        assert!(peer.reaches("192.168.9.1", 5), "{group}");
        let seen = capture.finish();
        assert!(seen.contains(group), "no report of the membership: {seen}");
    }
}

/// Two hosts in two subnets, with a router between.
struct Routed {
    a: Host,
    b: Host,
    router: Netns,
    second: String,
}

impl Routed {
    fn start() -> Self {
        let router = Netns::with_address("10.60.1.254/24");
        let second = format!("{}b", router.outside);
        sh(&format!("ip link add {second} type veth peer name eth1 netns {} && ip link set {second} up", router.name));
        router.run("ip link set eth1 up && ip addr add 10.60.2.254/24 dev eth1 && sysctl -qw net.ipv4.ip_forward=1");
        let routed = Routed { a: Host::start(), b: Host::start(), router, second };
        for (host, n, interface, other) in
            [(&routed.a, 1, &routed.router.outside, 2), (&routed.b, 2, &routed.second, 1)]
        {
            host.dunlin(&format!("port add up --kind host --interface {interface}"));
            host.wait_up("up");
            host.dunlin(&format!("vtep add v --uplink up --address 10.60.{n}.1/24 --gateway 10.60.{n}.254"));
            host.dunlin(&format!("network add blue --vni 77 --remotes 10.60.{other}.1"));
            eventually("the gateway answers", 5.0, || reached(host, &format!("10.60.{other}.1")));
        }
        routed
    }
}

impl Drop for Routed {
    fn drop(&mut self) {
        let _ = crate::net::try_sh(&format!("ip link del {}", self.second));
    }
}

#[test]
fn two_switches_share_a_segment_across_a_router() {
    let (near, far) = (guest("192.168.8.1/24"), guest("192.168.8.2/24"));
    let routed = Routed::start();
    add_guest(&routed.a, "near", &near, "blue");
    add_guest(&routed.b, "far", &far, "blue");
    assert!(near.reaches("192.168.8.2", 5), "{}", routed.a.dunlin("vtep list"));
    // A sequence, in its order and whole.
    near.send("--src 52:54:00:00:00:0a");
    far.send("--src 52:54:00:00:00:0b");
    let receiver = far.receive("--count 100000");
    near.send("--src 52:54:00:00:00:0a --dst 52:54:00:00:00:0b --count 100000 --rate 10000");
    let lines = receiver.finish();
    let summary = lines.last().expect("a summary");
    let count = |key| crate::net::number(summary, key);
    println!("{summary}");
    assert_eq!((count("received"), count("distinct"), count("disorder")), (100_000, 100_000, 0), "{summary}");
    // Nothing comes back out of the tunnel it came by, and nothing is unaccounted for.
    assert_eq!(routed.router.try_run("ping -c 1 -W 1 10.60.1.1").status.code(), Some(0));
}

/// QEMU guests on two hosts, before and after the restart of one host's dataplane.
#[test]
fn guests_of_two_hosts_are_on_one_segment() {
    let mut routed = Routed::start();
    let start = |host: &Host, n: u32| {
        let socket = host.path(&format!("web{n}.sock"));
        host.dunlin(&format!("port add web{n} --kind vhost-user --network blue --mtu 1450 --socket {socket}"));
        Guest::start(&format!("web{n}"), &socket, &format!("--mtu 1450 --ip 192.168.8.{n}/24"))
    };
    let (one, two) = (start(&routed.a, 1), start(&routed.b, 2));
    let (mut one, mut two) = (one.ready(), two.ready());
    assert!(one.reaches("192.168.8.2", 5) && two.reaches("192.168.8.1", 5));
    two.run("iperf3 -s -D");
    let report = one.run("iperf3 -c 192.168.8.2 -t 3 -f m");
    let line = report.lines().find(|l| l.contains("receiver")).unwrap_or_else(|| panic!("iperf3 failed: {report}"));
    println!("QEMU guest to QEMU guest of another host: {line}");
    routed.a.kill_dataplane();
    routed.a.start_dataplane();
    routed.a.wait_until_filled();
    routed.a.wait_up("web1");
    assert!(two.reaches("192.168.8.1", 10), "{}", routed.a.dunlin("vtep list"));
}

/// What is on the way between two hosts, as tshark sees it.
#[test]
fn what_is_sent_is_well_formed_and_spread() {
    let (near, far) = (guest("192.168.8.1/24"), guest("192.168.8.2/24"));
    let routed = Routed::start();
    add_guest(&routed.a, "near", &near, "blue");
    add_guest(&routed.b, "far", &far, "blue");
    assert!(near.reaches("192.168.8.2", 5));
    let file = routed.a.path("seen.pcap");
    let capture = routed.router.capture(&format!("-i eth0 -U -w {file} udp port 4789"));
    // Flows that differ in a port, with a DSCP, of all sizes.
    near.run("for p in $(seq 1 100); do head -c $((p * 13)) /dev/zero > /dev/udp/192.168.8.2/$((1000 + p)); done");
    near.run("ping -Q 0xb8 -c 3 -i 0.2 192.168.8.2");
    // The last is the answer to the last ping.
    eventually("all are captured", 5.0, || {
        sh(&format!("tshark -r {file} -Y \"icmp.type == 0\" 2>/dev/null | wc -l")).trim() == "3"
    });
    drop(capture);
    let tshark = |options: &str| {
        sh(&format!("tshark -r {file} -o ip.check_checksum:TRUE -o udp.check_checksum:TRUE {options} 2>/dev/null"))
    };
    let bad = tshark(
        "-Y \"_ws.malformed || ip.checksum.status == 0 || udp.checksum.status == 0 || !vxlan || vxlan.vni != 77\"",
    );
    assert_eq!(bad, "", "malformed");
    // The outer header is the first of each kind.
    let first = |field: &str, filter: &str| -> Vec<String> {
        tshark(&format!("-Y \"ip.src == 10.60.1.1 && {filter}\" -T fields -E occurrence=f -e {field}"))
            .lines()
            .map(str::to_owned)
            .collect()
    };
    assert!(first("ip.flags.df", "ip").iter().all(|df| df == "1" || df == "True"));
    let mut ports = first("udp.srcport", "udp.dstport >= 1001 && udp.dstport <= 1100");
    assert_eq!(ports.len(), 100);
    assert!(ports.iter().all(|p| p.parse::<u32>().unwrap() >= 49_152), "{ports:?}");
    ports.sort();
    ports.dedup();
    assert!(ports.len() > 90, "{} source ports for 100 flows", ports.len());
    assert_eq!(first("ip.dsfield.dscp", "icmp.type == 8"), ["46"; 3]);
}

/// Open vSwitch's user-space tunnels at the other end.
#[test]
fn open_vswitch_is_a_peer() {
    let peer = Netns::new();
    peer.run("ethtool -K eth0 tx off >/dev/null");
    let host = Host::start();
    let run = host.path("ovs");
    std::fs::create_dir_all(&run).unwrap();
    let db = format!("--db=unix:{run}/db.sock");
    sh(&format!("ovsdb-tool create {run}/conf.db /usr/share/openvswitch/vswitch.ovsschema"));
    let _server = peer.spawn(&format!("env OVS_RUNDIR={run} ovsdb-server {run}/conf.db --remote=punix:{run}/db.sock"));
    eventually("ovsdb answers", 10.0, || std::path::Path::new(&format!("{run}/db.sock")).exists());
    sh(&format!("ovs-vsctl --no-wait {db} init"));
    let _switch = peer.spawn(&format!("env OVS_RUNDIR={run} ovs-vswitchd unix:{run}/db.sock"));
    sh(&format!(
        "ovs-vsctl --timeout=20 {db} add-br under -- set bridge under datapath_type=netdev -- add-port under eth0 -- \
         add-br over -- set bridge over datapath_type=netdev"
    ));
    peer.run("ip addr add 10.50.0.2/24 dev under && ip link set under up");
    peer.run("ip addr add 192.168.9.2/24 dev over && ip link set over mtu 1430 up");
    host.add_host("up", &peer, "");
    host.dunlin("vtep add v --uplink up --address 10.50.0.1/24");
    let web = guest("192.168.9.1/24");
    for kind in ["vxlan", "geneve", "gre"] {
        sh(&format!(
            "ovs-vsctl --timeout=20 {db} --if-exists del-port over tun -- add-port over tun -- set interface tun \
             type={kind} options:remote_ip=10.50.0.1 options:key=100"
        ));
        host.dunlin(&format!("network add {kind} --vni 100 --tunnel {kind} --remotes 10.50.0.2"));
        add_guest(&host, "web", &web, kind);
        eventually("the next hop answers", 10.0, || reached(&host, "10.50.0.2"));
        assert!(web.reaches("192.168.9.2", 10), "{kind}: {}", host.dunlin("vtep list"));
        assert!(peer.reaches("192.168.9.1", 3), "{kind}");
        host.dunlin("port del web");
        host.dunlin(&format!("network del {kind}"));
    }
}

/// Who asks for an address that is known is answered at its port; the other host hears nothing.
#[test]
fn arp_is_answered_at_the_edge() {
    let peer = kernel_vtep("10.50.0.2/24", "id 100 local 10.50.0.2 remote 10.50.0.1", "192.168.9.2/24");
    peer.run("ip -6 addr add fd09::2/64 dev vx nodad");
    let web = guest("192.168.9.1/24");
    web.allow_ipv6();
    web.run("ip -6 addr add fd09::1/64 dev eth0 nodad");
    let host = Host::start();
    host.add_host("up", &peer, "");
    host.dunlin("vtep add v --uplink up --address 10.50.0.1/24");
    let mac = peer.run("cat /sys/class/net/vx/address").trim().to_owned();
    let other = "52:54:00:00:00:77";
    host.dunlin(&format!(
        "network add blue --vni 100 --remotes 10.50.0.2 --bindings 192.168.9.2={mac},fd09::2={mac},192.168.9.77={other}"
    ));
    add_guest(&host, "web", &web, "blue");
    eventually("the next hop answers", 5.0, || reached(&host, "10.50.0.2"));
    let suppressed = || host.json("network list")[0]["state"]["suppressed"].as_u64().unwrap();
    // The kernel's own question, and the address is right.
    assert!(web.reaches("192.168.9.2", 3) && web.reaches("fd09::2", 3));
    assert!(suppressed() >= 2, "{}", suppressed());
    // Nobody is there to answer: only the switch can have.
    let _ = web.reaches("192.168.9.77", 1);
    assert!(web.run("ip neigh show 192.168.9.77").contains(other));
    // Off, the question goes where nobody answers.
    host.dunlin("network set blue --suppression off");
    web.run("ip neigh flush all");
    let before = suppressed();
    let _ = web.reaches("192.168.9.77", 1);
    assert!(!web.run("ip neigh show 192.168.9.77").contains(other));
    assert!(web.reaches("192.168.9.2", 3), "flooded, and answered by the station itself");
    assert_eq!(suppressed(), before);
    assert!(host.metrics().contains("dunlin_network_suppressed_total{network=\"blue\"}"));
}

/// A host with one NIC: its kernel keeps its address, on a tap in the underlay, beside the VTEP; the
/// underlay is a VLAN of the uplink.
#[test]
fn the_hosts_kernel_shares_the_uplink() {
    let peer = Netns::new();
    peer.run("ethtool -K eth0 tx off >/dev/null");
    let host = Host::start();
    host.add_host("up", &peer, "--vlan-mode native-untagged --vlan 20 --trunks 30");
    host.dunlin("vtep add v --uplink up --vlan 20 --address 10.51.0.1/24");
    host.dunlin("network add blue --vni 100 --remotes 10.51.0.2");
    let tap = format!("t{}", peer.outside);
    host.dunlin(&format!("port add mgmt --kind tap --interface {tap} --vlan 20"));
    // In a namespace of its own, so that the test machine's routes stay as they are.
    let kernel = Netns::new();
    sh(&format!("ip link set {tap} netns {}", kernel.name));
    kernel.run(&format!("ip addr add 10.51.0.9/24 dev {tap} && ip link set {tap} up"));
    peer.run("ip addr add 10.51.0.2/24 dev eth0");
    peer.run("ip link add vx type vxlan id 100 local 10.51.0.2 remote 10.51.0.1 dstport 4789 && ip link set vx up && ip addr add 192.168.9.2/24 dev vx");
    let web = guest("192.168.9.1/24");
    add_guest(&host, "web", &web, "blue");
    assert!(web.reaches("192.168.9.2", 10), "through the tunnel");
    assert!(peer.reaches("10.51.0.9", 5), "the host's kernel");
    assert!(kernel.reaches("10.51.0.2", 3) && kernel.reaches("10.51.0.1", 3), "out, and the VTEP itself");
}

#[test]
fn another_gateway_takes_over_within_a_second() {
    let (near, far) = (guest("192.168.8.1/24"), guest("192.168.8.2/24"));
    let routed = Routed::start();
    add_guest(&routed.a, "near", &near, "blue");
    add_guest(&routed.b, "far", &far, "blue");
    // A second router on the same link: the same namespace by another address and interface.
    routed.router.run(
        "ip link add m0 link eth0 type macvlan mode bridge && ip link set m0 up && ip addr add 10.60.1.253/24 dev m0",
    );
    routed.router.run("sysctl -qw net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.eth0.rp_filter=0 net.ipv4.conf.m0.rp_filter=0 net.ipv4.conf.all.rp_filter=0");
    routed.a.dunlin("vtep set v --gateway 10.60.1.254");
    routed.a.dunlin("route add 10.60.2.0/24 --via 10.60.1.253,10.60.1.254");
    let first = routed.router.run("cat /sys/class/net/m0/address").trim().to_owned();
    let by = |mac: &str| routed.a.json("vtep list")[0]["remotes"][0]["next_hop_mac"] == *mac;
    eventually("the better way is taken", 5.0, || by(&first));
    assert!(near.reaches("192.168.8.2", 5));
    let begun = Instant::now();
    routed.router.run("ip link set m0 down");
    eventually("the other way is taken", 3.0, || !by(&first));
    let took = begun.elapsed();
    assert!(near.reaches("192.168.8.2", 3));
    // Within a second, on a machine that has the time.
    println!("another next hop after {} ms", took.as_millis());
}

/// The first frames of all, sent before anyone has answered who leads to the other host.
#[test]
fn the_first_frames_wait_for_the_next_hop() {
    let peer = kernel_vtep("10.50.0.2/24", "id 100 local 10.50.0.2 remote 10.50.0.1", "192.168.9.2/24");
    let host = Host::start();
    host.add_host("up", &peer, "");
    let web = guest("192.168.9.1/24");
    host.dunlin("vtep add v --uplink up --address 10.50.0.1/24");
    host.dunlin("network add blue --vni 100 --remotes 10.50.0.2");
    add_guest(&host, "web", &web, "blue");
    eventually("the next hop answers", 5.0, || reached(&host, "10.50.0.2"));
    assert!(web.reaches("192.168.9.2", 3));
    // Forgotten, and asked again: what is sent meanwhile arrives all the same.
    let receiver = peer.receive_on("vx", "");
    let to = peer.run("cat /sys/class/net/vx/address").trim().to_owned();
    let stream = web.stream(&format!("--dst {to} --rate 200"));
    let received = || host.count("web", "rx_frames");
    for _ in 0..5 {
        let before = received();
        eventually("frames flow", 5.0, || received() > before + 80);
        host.dunlin("neighbor flush");
    }
    eventually("the next hop answers again", 5.0, || reached(&host, "10.50.0.2"));
    println!("{}", receiver.expect(stream.end()));
}

#[test]
fn tunnels_from_strangers_are_dropped_and_counted() {
    let peer = kernel_vtep("10.50.0.3/24", "id 100 local 10.50.0.3 remote 10.50.0.1", "192.168.9.3/24");
    let host = beside(&peer);
    let web = guest("192.168.9.1/24");
    add_guest(&host, "web", &web, "blue");
    assert!(!peer.reaches("192.168.9.1", 1));
    let drops = |reason: &str| {
        let vteps = host.json("vtep list");
        let drops = vteps[0]["counters"]["drops"].as_array().unwrap().clone();
        drops.iter().find(|d| d["reason"] == reason).unwrap()["frames"].as_u64().unwrap()
    };
    assert!(drops("unknown_vtep") > 0);
    // Known, but with a VNI that nobody here has.
    host.dunlin("network set blue --remotes 10.50.0.2,10.50.0.3 --vni 101");
    assert!(!peer.reaches("192.168.9.1", 1));
    assert!(drops("unknown_vni") > 0);
    host.dunlin("network set blue --vni 100");
    assert!(peer.reaches("192.168.9.1", 3));
    assert!(host.metrics().contains("dunlin_tunnel_dropped_frames_total{name=\"v\",reason=\"unknown_vtep\"}"));
}

#[test]
fn bad_overlays_are_refused_and_nothing_is_lost() {
    let host = Host::start();
    host.dunlin("port add up --kind tap --interface dnov0");
    host.dunlin("vtep add v --uplink up --address 10.50.0.1/24");
    host.dunlin("network add blue --vni 100 --remotes 10.50.0.2");
    for (command, words) in [
        ("network add red --vni 100", "vni: 100 is network 'blue' already"),
        ("network add red --vni 16777216", "vni: 16777216 is not in 1 to 16777215"),
        ("network set blue --remotes 10.50.0.1", "10.50.0.1 is this host's own vtep 'v'"),
        ("vtep add w --uplink nope --address 10.50.1.1/24", "there is no port 'nope'"),
        ("vtep add w --uplink up --address 10.50.0.1/24", "10.50.0.1/24 is vtep 'v' already"),
        ("route add 10.1.0.0/16 --via 10.50.0.1", "a loop"),
        ("route add 10.1.0.0/16 --via 10.9.0.1", "is no neighbour in 10.50.0.0/24"),
        ("port del up", "vtep 'v' still uses it"),
        ("vtep del v", "network 'blue' still uses it"),
        ("network del nope", "network 'nope': there is none"),
    ] {
        let error = host.refused(command);
        assert!(error.contains(words), "{command}: {error}");
    }
    let exported = host.dunlin("export");
    assert!(exported.contains("vni = 100") && !exported.contains("red"), "{exported}");
    // A tap outlives the dataplane.
    sh("ip link del dnov0");
}

/// As many networks and ports as a large host has: a change of one port takes no longer for them than for a few.
#[test]
fn sixteen_thousand_networks_and_a_thousand_ports() {
    let host = Host::start();
    let mut toml = String::from("[[port]]\nname = \"up\"\nkind = \"tap\"\ninterface = \"dnov1\"\n\n");
    toml += "[[vtep]]\nname = \"v\"\nuplink = \"up\"\naddress = \"10.50.0.1/24\"\n\n";
    for n in 1..=16_000 {
        toml += &format!("[[network]]\nname = \"n{n}\"\nvni = {n}\nremotes = [\"10.50.0.2\"]\n\n");
    }
    for n in 1..=1_000 {
        let network = n * 16;
        let port = format!("name = \"p{n}\"\nkind = \"vhost-user\"\nnetwork = \"n{network}\"\nmtu = 1400\n");
        toml += &format!("[[port]]\n{port}socket = \"{}\"\n\n", host.path(&format!("p{n}.sock")));
    }
    let begun = Instant::now();
    let o = host.apply(&toml);
    assert!(o.status.success(), "{}", crate::net::text(&o.stderr));
    println!("16,000 networks and 1,000 ports in {} ms", begun.elapsed().as_millis());
    let mut times: Vec<Duration> = (0..21)
        .map(|n| {
            let begun = Instant::now();
            host.dunlin(&format!("port set p500 --mtu {}", 1300 + n));
            begun.elapsed()
        })
        .collect();
    times.sort();
    println!("one port changed in {:?} (median of 21; {:?} to {:?})", times[10], times[0], times[20]);
    assert_eq!(host.json("status")["dataplane"]["networks"].as_array().unwrap().len(), 16_000);
    sh("ip link del dnov1");
}

/// A guest with an MTU of 1,500 over an underlay of 1,500 finds out what fits.
#[test]
fn a_path_mtu_is_discovered() {
    let peer = kernel_vtep("10.50.0.2/24", "id 100 local 10.50.0.2 remote 10.50.0.1", "192.168.9.2/24");
    peer.run("ip -6 addr add fd09::2/64 dev vx nodad");
    let web = Netns::with_address("192.168.9.1/24");
    web.allow_ipv6();
    web.run("ip -6 addr add fd09::1/64 dev eth0 nodad");
    let host = beside(&peer);
    host.add_host("web", &web, "--network blue");
    let status = host.dunlin("status");
    assert!(status.contains("network 'blue': frames of port 'web' can be too large"), "{status}");
    let told = host.dunlin("port set web --mtu 1451");
    assert!(
        told.contains("note: port 'web': mtu: 1451 is more than the 1450 that fit into the tunnels of network 'blue'"),
        "{told}"
    );
    assert!(!host.dunlin("port set web --mtu 1450").contains("note:"));
    host.dunlin("port set web --mtu 1500");
    assert!(web.reaches("192.168.9.2", 5));
    // 28 octets of IPv4 and ICMP, or 48 of IPv6 and ICMPv6, around what is named here.
    let fits = |to: &str, size: u32| web.try_run(&format!("ping -M do -c 2 -W 1 -s {size} {to}"));
    assert!(fits("192.168.9.2", 1450 - 28).status.success());
    let told = crate::net::text(&fits("192.168.9.2", 1451 - 28).stdout);
    assert!(told.contains("mtu") && told.contains("1450"), "{told}");
    assert!(web.reaches("fd09::2", 5));
    assert!(fits("fd09::2", 1450 - 48).status.success());
    let told = crate::net::text(&fits("fd09::2", 1451 - 48).stdout);
    assert!(told.contains("mtu") && told.contains("1450"), "{told}");
    // Forgotten again, TCP finds it by itself, in the direction that is too large.
    web.run("ip route flush cache; ip -6 route flush cache");
    let _server = peer.iperf_server();
    let report: serde_json::Value = serde_json::from_str(&web.run("iperf3 -J -c 192.168.9.2 -t 2")).unwrap();
    let bits = report["end"]["sum_received"]["bits_per_second"].as_f64().unwrap();
    println!("TCP {:.2} Gbit/s after path MTU discovery", bits / 1e9);
    assert!(bits > 1e7, "{report}");
}
