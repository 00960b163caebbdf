//! Cases from the field, by which other switches went wrong, against kernels and daemons that show them.

use crate::{
    host::Host,
    net::{Background, Netns, eventually},
};

/// A client that can lose its connection without a word, always from the same port.
const CLIENT: &str = r#"
import socket, struct, subprocess, sys
link = lambda state: subprocess.run(["ip", "link", "set", "eth0", state], check=True)
k = socket.socket()
k.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
k.bind(("10.1.0.1", 5000))
k.settimeout(100)
k.connect(("10.1.0.2", 8080))
k.sendall(b"x" * 100000)
if k.recv(1) != b"y":
    sys.exit("no answer")
if sys.argv[1] == "vanish":
    # The reset goes into a link that is down.
    link("down")
    k.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    k.close()
    link("up")
"#;

/// A server that keeps its connections, and loses them all without a FIN when it is killed.
const SERVER: &str = r#"
import socket, struct, threading
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("10.1.0.2", 8080))
s.listen()
def serve(k):
    n = 0
    while n < 100000:
        n += len(k.recv(65536)) or 100000
    k.sendall(b"y")
    threading.Event().wait()
while True:
    k, _ = s.accept()
    k.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    threading.Thread(target=serve, args=[k]).start()
"#;

struct Connected {
    host: Host,
    client: Netns,
    server: Netns,
    listener: Background,
}

impl Connected {
    /// A client and a server behind a stateful list, which the client has called once; it does not know that any more.
    fn and_forgotten() -> Self {
        let (client, server) = (Netns::with_address("10.1.0.1/24"), Netns::with_address("10.1.0.2/24"));
        let host = Host::start();
        host.add_host("c", &client, "--vlan 10");
        host.add_host("s", &server, "--vlan 10");
        for acl in ["to-s", "from-s"] {
            host.dunlin(&format!("acl add {acl}"));
            host.dunlin(&format!("acl rule add {acl} allow ethertype arp"));
            host.dunlin(&format!("acl rule add {acl} allow state established,related"));
        }
        host.dunlin("acl rule add to-s allow tcp to any port 8080 state new");
        host.dunlin("port set s --egress-acls to-s --ingress-acls from-s");
        for (name, text) in [("client.py", CLIENT), ("server.py", SERVER)] {
            std::fs::write(host.path(name), text).unwrap();
        }
        let listener = Self::listener(&host, &server);
        let c = Connected { host, client, server, listener };
        c.call("vanish");
        c.host.wait_up("c");
        c
    }

    fn listener(host: &Host, server: &Netns) -> Background {
        let listener = server.spawn(&format!("/usr/bin/python3 {}", host.path("server.py")));
        server.listens(8080);
        listener
    }

    fn call(&self, how: &str) {
        self.client.run(&format!("/usr/bin/python3 {} {how}", self.host.path("client.py")));
    }

    fn sessions(&self) -> serde_json::Value {
        self.host.json("session list --l4-port 8080")
    }
}

/// The switch forgot the connection, as the client did; the server answers the new call with a challenge of the old one.
/// https://github.com/cilium/cilium/issues/45863
#[test]
fn a_server_that_has_an_older_connection_can_be_called() {
    let c = Connected::and_forgotten();
    c.host.dunlin("session flush --port s");
    c.call("once");
}

/// Both ends forgot the connection, the switch did not. https://github.com/openzro/openzro/pull/196
#[test]
fn ends_that_forgot_a_connection_open_it_again() {
    let mut c = Connected::and_forgotten();
    c.server.run("ip link set eth0 down");
    drop(std::mem::replace(&mut c.listener, Background(None)));
    c.server.run("ip link set eth0 up");
    c.host.wait_up("s");
    c.listener = Connected::listener(&c.host, &c.server);
    assert_eq!(c.sessions()[0]["state"], "open", "the switch knows it still");
    c.call("once");
}

/// A switch with the network blue, which goes on at another host.
fn with_overlay() -> (Host, Netns) {
    let peer = Netns::with_address("10.50.0.2/24");
    let host = Host::start();
    host.add_host("up", &peer, "");
    host.dunlin("vtep add v --uplink up --address 10.50.0.1/24");
    host.dunlin("network add blue --vni 100 --remotes 10.50.0.2");
    (host, peer)
}

fn add_guest(host: &Host, name: &str, ns: &Netns) {
    ns.run("ip link set eth0 mtu 1430 && ethtool -K eth0 tx off >/dev/null");
    host.add_host(name, ns, "--network blue --mtu 1430");
}

/// Whether an address is free says no answer for a guest that is gone (RFC 5227, RFC 4862).
#[test]
fn the_address_of_a_guest_that_left_is_free() {
    let (host, _peer) = with_overlay();
    let a = Netns::with_address("192.168.9.5/24");
    a.allow_ipv6();
    add_guest(&host, "a", &a);
    a.run("ip -6 addr add fd09::5/64 dev eth0 nodad");
    let bindings = || host.json("network list")[0]["state"]["bindings"].as_u64().unwrap();
    eventually("its addresses are learned", 5.0, || {
        a.try_run("busybox arping -U -c 1 -I eth0 192.168.9.5; ping -c 1 -W 1 fd09::99");
        bindings() >= 2
    });
    host.dunlin("port del a");
    drop(a);
    let b = Netns::new();
    b.allow_ipv6();
    b.run("sysctl -qw net.ipv6.conf.eth0.accept_dad=1");
    add_guest(&host, "b", &b);
    b.run("busybox arping -D -c 2 -w 3 -I eth0 192.168.9.5");
    b.run("ip addr add fd09::5/64 dev eth0");
    eventually("the address was probed", 10.0, || !b.run("ip -6 addr show dev eth0").contains("tentative"));
    assert!(!b.run("ip -6 addr show dev eth0").contains("dadfailed"));
}

/// A host keeps its default route when the switch answers in place of its router (RFC 4861, 7.2.5).
#[test]
fn the_router_that_the_switch_answers_for_stays_one() {
    let (host, _peer) = with_overlay();
    let (router, guest) = (Netns::new(), Netns::new());
    for (name, ns) in [("r", &router), ("g", &guest)] {
        ns.allow_ipv6();
        add_guest(&host, name, ns);
    }
    router.run("sysctl -qw net.ipv6.conf.all.forwarding=1");
    let address = |ns: &Netns| {
        let told = ns.run("ip -6 -o addr show dev eth0 scope link");
        told.split_whitespace().find_map(|w| w.strip_suffix("/64")).map(str::to_owned)
    };
    for ns in [&router, &guest] {
        // A link that was up before IPv6 was allowed gets its address now.
        ns.run("ip link set eth0 down && ip link set eth0 up");
        eventually("a link-local address", 10.0, || address(ns).is_some());
    }
    host.wait_up("r");
    host.wait_up("g");
    let conf = "interface eth0 { AdvSendAdvert on; MaxRtrAdvInterval 4; MinRtrAdvInterval 3; prefix fd09::/64 {}; };";
    std::fs::write(host.path("radvd.conf"), conf).unwrap();
    let (conf, pid) = (host.path("radvd.conf"), host.path("radvd.pid"));
    let _radvd = router.spawn(&format!("/usr/sbin/radvd -n -C {conf} -p {pid}"));
    let has_route = || guest.run("ip -6 route show default").contains("eth0");
    eventually("a default route", 20.0, has_route);
    let suppressed = || host.json("network list")[0]["state"]["suppressed"].as_u64().unwrap();
    let before = suppressed();
    let router_address = address(&router).unwrap();
    eventually("the switch answers for the router", 10.0, || {
        guest.run(&format!("ip -6 neigh del {router_address} dev eth0 || true"));
        guest.try_run(&format!("ping -c 1 -W 1 {router_address}%eth0"));
        suppressed() > before
    });
    eventually("the answer is there", 5.0, || {
        guest.run(&format!("ip -6 neigh show {router_address} dev eth0")).contains("router")
    });
    assert!(has_route());
}

/// With snooping, a guest gives back no lease but its own. https://github.com/kamorin/DHCPig/issues/14
#[test]
fn a_guest_releases_no_lease_of_another_guest() {
    let (server, victim, guest) = (Netns::with_address("10.22.0.1/24"), Netns::new(), Netns::new());
    let host = Host::start();
    host.add_host("server", &server, "");
    for (name, ns) in [("victim", &victim), ("guest", &guest)] {
        let checks = format!("--security mac,ip,arp,dhcp-guard,dhcp-snooping --macs {}", ns.mac());
        host.add_host(name, ns, &checks);
    }
    let _dnsmasq = server.serve_dhcp("10.22.0.50,10.22.0.60", &host.path(""));
    let leases = |name: &str| host.port(name)["leases"].as_array().map_or(0, Vec::len);
    for (name, ns) in [("victim", &victim), ("guest", &guest)] {
        eventually("a lease", 20.0, || {
            ns.try_run("busybox udhcpc -i eth0 -n -q -f -t 4 -T 1 -s /bin/true");
            leases(name) == 1
        });
    }
    let at_server = || std::fs::read_to_string(host.path("dnsmasq.leases")).unwrap();
    let address = |name: &str| host.port(name)["leases"][0]["address"].as_str().unwrap().to_owned();
    let (its, own) = (address("victim"), address("guest"));
    let release = |client: &str, address: &str| {
        let chaddr = format!("bytes.fromhex(\"{}\")", client.replace(':', ""));
        guest.scapy(&format!(
            "Ether(src=\"{}\",dst=\"{}\")/IP(src=\"{own}\",dst=\"10.22.0.1\")/UDP(sport=68,dport=67)\
             /BOOTP(op=1,ciaddr=\"{address}\",chaddr={chaddr})\
             /DHCP(options=[(\"message-type\",\"release\"),(\"server_id\",\"10.22.0.1\"),\"end\"])",
            guest.mac(),
            server.mac()
        ));
    };
    release(&victim.mac(), &its);
    release(&guest.mac(), &its);
    eventually("both are dropped", 5.0, || host.drops("guest", "spoofed_dhcp") == 2);
    assert!(at_server().contains(&its) && leases("victim") == 1);
    // Its own it may give back: the server and the switch end it.
    release(&guest.mac(), &own);
    eventually("the lease is over", 10.0, || leases("guest") == 0 && !at_server().contains(&own));
}

/// The memory of a kernel interface's port is used again, whatever other devices may hold of its buffers.
#[test]
fn ports_that_come_and_go_keep_af_xdp() {
    let host = Host::with_options("--memory 320");
    let (a, b) = (Netns::with_address("10.1.0.1/24"), Netns::with_address("10.1.0.2/24"));
    // A device that keeps buffers for a while after they were sent, as NICs do.
    host.dunlin("port add nic --kind nic --device net_tap0,iface=rv9 --vlan 10");
    host.add_host("a", &a, "--vlan 10");
    let in_use = || {
        let pools = host.json("status")["dataplane"]["pools"].clone();
        let standard = pools.as_array().unwrap().iter().find(|p| p["name"] == "standard").unwrap().clone();
        standard["in_use"].as_u64().unwrap()
    };
    let mut first = None;
    for round in 0..10 {
        host.add_host("b", &b, "--vlan 10 --driver af_xdp");
        assert_eq!(host.port("b")["driver"], "af_xdp", "round {round}: {}", host.port("b"));
        b.run("ping -c 3 -i 0.05 -s 1400 -W 2 10.1.0.1");
        let now = in_use();
        assert!(now <= *first.get_or_insert(now) + 600, "round {round}: {now} buffers in use");
        host.dunlin("port del b");
    }
    host.check_conservation();
}

/// A snooping switch of the underlay keeps a group while its querier is answered, and forgets it when the network goes
/// (RFC 2236; RFC 2710). https://github.com/ovn-org/ovn/issues/126
#[test]
fn membership_of_a_multicast_group_lasts_and_ends() {
    for (own, remote, group) in [("10.50.0.1/24", "10.50.0.2", "239.1.1.1"), ("fd50::1/64", "fd50::2", "ff05::101")] {
        let (underlay, host) = (Netns::new(), Host::start());
        underlay.allow_ipv6();
        // Half a second between queries, two seconds of membership; the bridge is the querier itself.
        underlay.run(
            "ip link add br0 type bridge mcast_snooping 1 mcast_querier 1 mcast_query_interval 50 mcast_query_response_interval 20 \
             mcast_membership_interval 200 mcast_last_member_interval 10 mcast_startup_query_interval 20 && \
             ip addr add 10.50.0.9/24 dev br0 && ip link set eth0 master br0 && ip link set br0 up",
        );
        host.add_host("up", &underlay, "");
        host.dunlin(&format!("vtep add v --uplink up --address {own}"));
        host.dunlin(&format!("network add blue --vni 100 --remotes {remote} --group {group}"));
        let is_member = || underlay.run("bridge mdb show").contains(group);
        eventually("the bridge knows the member", 20.0, is_member);
        let queries = || {
            let punts = host.json("status")["dataplane"]["punts"].clone();
            let all = punts.as_array().unwrap().iter();
            all.filter(|p| p["kind"] == "membership_query").map(|p| p["frames"].as_u64().unwrap()).sum::<u64>()
        };
        // Reports that are sent unasked come each 30 s: only answers keep the group for so many queries.
        let begun = queries();
        eventually("queries come", 60.0, || {
            assert!(is_member(), "{group}: forgotten after {} queries", queries() - begun);
            queries() >= begun + 10
        });
        let capture = underlay.capture("-c 1 -v -n -i eth0 \"igmp[0] == 0x17 or (ip6 and ip6[48] == 132)\"");
        host.dunlin("network del blue");
        let seen = capture.finish();
        assert!(seen.contains(group), "no leave or done: {seen}");
    }
}

/// What others ask a VTEP is limited, by kind and by sender, and keeps nothing of its own from it (RFC 1812, 4.3.2.8).
#[test]
fn a_vtep_answers_at_a_limited_rate() {
    let (host, peer) = with_overlay();
    let mac = host.json("vtep list")[0]["mac"].as_str().unwrap().to_owned();
    let flood = format!(
        "from scapy.all import *\ns = conf.L2socket(iface='eth0')\n\
         b = bytes(Ether(dst='{mac}')/ARP(psrc='10.50.0.77', pdst='10.50.0.1'))\nfor _ in range(20000): s.outs.send(b)"
    );
    std::fs::write(host.path("flood.py"), flood).unwrap();
    peer.run(&format!("/usr/bin/python3 {}", host.path("flood.py")));
    let punts = || {
        let punts = host.json("status")["dataplane"]["punts"].clone();
        let of = |p: &serde_json::Value| (p["frames"].as_u64().unwrap(), p["dropped"].as_u64().unwrap());
        punts.as_array().unwrap().iter().find(|p| p["kind"] == "neighbor_request").map(of).unwrap()
    };
    // Some were lost before, in the kernel's ring.
    let counts = std::cell::Cell::new((0, 0));
    eventually("a fifth is read at most", 10.0, || {
        counts.set(punts());
        let (read, dropped) = counts.get();
        read > 0 && dropped > 2_000 && read * 4 < dropped
    });
    println!("{:?} read and dropped", counts.get());
    assert!(host.metrics().contains("dunlin_punt_dropped_total{kind=\"neighbor_request\"}"));
    // Another one is answered at once, and so is the VTEP.
    peer.run("busybox arping -c 1 -w 3 -I eth0 10.50.0.1");
    host.dunlin("neighbor flush");
    eventually("the VTEP resolves its neighbor", 5.0, || {
        host.json("vtep list")[0]["remotes"][0]["next_hop_mac"].as_str().is_some_and(|m| !m.is_empty())
    });
    host.check_conservation();
}

/// A kernel interface is as promiscuous after its port as it was before.
#[test]
fn promiscuous_mode_ends_with_the_port() {
    let host = Host::start();
    for (kind, before) in [("", ""), ("--driver af_xdp", ""), ("--driver af_xdp", "promisc on"), ("", "promisc on")] {
        let ns = Netns::new();
        let flags = || crate::net::sh(&format!("ip -d link show {}", ns.outside));
        if !before.is_empty() {
            crate::net::sh(&format!("ip link set {} {before}", ns.outside));
        }
        host.add_host("p", &ns, kind);
        assert!(!flags().contains("promiscuity 0"), "{}", flags());
        host.dunlin("port del p");
        let is = (flags().contains("PROMISC"), !flags().contains("promiscuity 0"));
        assert_eq!(is, (!before.is_empty(), !before.is_empty()), "{kind} {before}: {}", flags());
    }
}

/// What the kernel loses before the switch because a ring is full is counted at the port.
#[test]
fn frames_that_a_full_ring_loses_are_counted() {
    for driver in ["af_xdp", "af_packet"] {
        let (host, a) = (Host::start(), Netns::new());
        host.add_host("a", &a, &format!("--driver {driver} --vlan 10"));
        let before = a.run("cat /sys/class/net/eth0/statistics/tx_packets").trim().parse::<u64>().unwrap();
        // The worker does nothing meanwhile.
        let pid = host.dataplane.as_ref().unwrap().id();
        crate::net::sh(&format!("kill -STOP {pid}"));
        a.send("--count 20000 --rate 1000000");
        crate::net::sh(&format!("kill -CONT {pid}"));
        let sent = a.run("cat /sys/class/net/eth0/statistics/tx_packets").trim().parse::<u64>().unwrap() - before;
        let counted = |key: &str| host.port("a")["device"][key].as_u64().unwrap();
        eventually("all frames were received or are counted as missed", 20.0, || {
            counted("rx_missed") > 1000 && host.count("a", "rx_frames") + counted("rx_missed") >= sent
        });
        println!("{driver}: {sent} sent, {} missed", counted("rx_missed"));
    }
}

/// A trace is of a frame as the port's host would send it, and says only what would happen.
#[test]
fn a_trace_has_the_hosts_own_addresses() {
    let (host, _peer) = with_overlay();
    let (a, b) = (Netns::with_address("10.1.0.1/24"), Netns::with_address("10.1.0.2/24"));
    host.add_host("a", &a, "--vlan 10 --mac-limit 1 --mac-limit-action drop");
    host.add_host("b", &b, "--vlan 10 --security ip --ips 10.1.0.2");
    assert!(a.reaches("10.1.0.2", 5));
    let trace = host.dunlin("trace --port a --ping 10.1.0.2");
    assert!(!trace.contains("drop") && trace.contains("by port 'b'"), "{trace}");
    // A flood into a tunnel, and at the uplink of a VTEP, loses nothing.
    let guest = Netns::with_address("192.168.9.5/24");
    add_guest(&host, "g", &guest);
    eventually("the next hop answers", 5.0, || {
        host.json("vtep list")[0]["remotes"][0]["next_hop_mac"].as_str().is_some_and(|m| !m.is_empty())
    });
    for at in ["g --arp 192.168.9.77", "up --arp 10.50.0.1"] {
        let trace = host.dunlin(&format!("trace --port {at}"));
        assert!(!trace.contains("drop"), "{at}: {trace}");
    }
}

/// An interface that takes less than its port sends is named.
#[test]
fn a_smaller_mtu_of_the_kernel_is_said() {
    let (host, a) = (Host::start(), Netns::new());
    host.add_host("a", &a, "");
    let says = |what: &str| host.dunlin("status").contains(what);
    assert!(!says("kernel interface"));
    crate::net::sh(&format!("ip link set {} mtu 1300", a.outside));
    eventually("the difference is said", 10.0, || says("port 'a': its kernel interface takes 1300 octets"));
    assert_eq!(host.port("a")["interface_mtu"], 1300);
    host.dunlin("port set a --mtu 1300");
    eventually("it is mended", 10.0, || !says("kernel interface"));
}

/// A router of the underlay with a smaller MTU is believed: senders in the overlay get an ICMP error with what fits
/// (RFC 1191, RFC 8201; https://github.com/slackhq/nebula/pull/16).
#[test]
fn the_path_mtu_of_the_underlay_is_learned() {
    for (family, own, near, far, peer, inner, header) in [
        ("", "10.50.0.1/24", "10.50.0.254", "10.51.0.254", "10.51.0.2", 1350, 50),
        ("-6", "fd50::1/64", "fd50::254", "fd51::254", "fd51::2", 1330, 70),
    ] {
        let len = if family.is_empty() { 24 } else { 64 };
        let nodad = if family.is_empty() { "" } else { "nodad" };
        let (router, peer_ns, guest) = (Netns::new(), Netns::new(), Netns::with_address("192.168.9.5/24"));
        for ns in [&router, &peer_ns] {
            ns.allow_ipv6();
        }
        router.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        crate::net::sh(&format!(
            "ip -n {0} link del eth0; ip link add eth0 netns {0} type veth peer name eth1 netns {1}",
            peer_ns.name, router.name
        ));
        peer_ns.allow_ipv6();
        router.run("sysctl -qw net.ipv6.conf.eth1.disable_ipv6=0 net.ipv6.conf.eth1.accept_dad=0");
        router.run(&format!("ip addr add {near}/{len} dev eth0 {nodad}; ip link set eth1 mtu 1400 up; ip addr add {far}/{len} dev eth1 {nodad}"));
        let address = own.split('/').next().unwrap();
        peer_ns.run(&format!(
            "ip link set eth0 up; ip addr add {peer}/{len} dev eth0 {nodad}; ip {family} route add default via {far}"
        ));
        peer_ns.run(&format!("ip link add vx type vxlan id 100 local {peer} remote {address} dstport 4789 && ip addr add 192.168.9.2/24 dev vx && ip link set vx mtu {inner} up"));
        let host = Host::start();
        host.add_host("up", &router, "");
        host.dunlin(&format!("vtep add v --uplink up --address {own} --gateway {near}"));
        host.dunlin(&format!("network add blue --vni 100 --remotes {peer}"));
        let mtu = 1500 - header;
        guest.run(&format!("ip link set eth0 mtu {mtu}"));
        host.add_host("a", &guest, &format!("--network blue --mtu {mtu}"));
        assert!(guest.reaches("192.168.9.2", 10), "{}", host.dunlin("vtep list"));
        eventually("the sender is told", 10.0, || {
            let told = guest.try_run("ping -M do -s 1400 -c 2 -W 1 192.168.9.2");
            crate::net::text(&told.stdout).contains(&format!("{inner}"))
        });
        assert!(host.dunlin("vtep list").contains(&format!("{inner} (path 1400)")), "{}", host.dunlin("vtep list"));
        guest.run("ip route flush cache");
        // Back, its kernel leaves segments of what is inside to its device.
        for direction in ["", "-R"] {
            let _server = peer_ns.iperf_server();
            let report = guest.run(&format!("iperf3 -c 192.168.9.2 -t 2 -f m {direction}"));
            let received = report.lines().find(|l| l.contains("receiver")).expect("a result");
            assert!(!received.contains(" 0.00 Mbits/sec"), "{direction}: {report}");
        }
        // What no packet of the VTEP's is quoted in is not believed, nor what no link takes.
        let icmp = if family.is_empty() {
            let quoted =
                |from: &str| format!("IP(src='{from}',dst='{peer}',len=1450)/UDP(sport=50000,dport=4789)/(b'A'*8)");
            let with = |mtu, quoted: String| {
                format!(
                    "Ether(dst='{{}}')/IP(src='{near}',dst='{address}')/ICMP(type=3,code=4,nexthopmtu={mtu})/{quoted}"
                )
            };
            Some([with(700, quoted("10.50.0.9")), with(60, quoted(address))])
        } else {
            None
        };
        let mac = host.json("vtep list")[0]["mac"].as_str().unwrap().to_owned();
        for (packet, then) in icmp.into_iter().flatten().zip(["(path 1400)", "(path 576)"]) {
            router.scapy(&packet.replace("{}", &mac));
            eventually("it is believed as far as it may be", 5.0, || host.dunlin("vtep list").contains(then));
        }
    }
}

/// A download goes on when the dataplane is restarted: only its server speaks, for whom no rule lets anything begin
/// (https://github.com/cilium/cilium/issues/2644).
#[test]
fn a_download_survives_a_restart() {
    let (client, server) = (Netns::with_address("10.1.0.1/24"), Netns::with_address("10.1.0.2/24"));
    let mut host = Host::start();
    host.add_host("c", &client, "--vlan 10");
    host.add_host("s", &server, "--vlan 10");
    stateful(&host, "tcp to any port 5201");
    for default in ["deny", "reject"] {
        host.dunlin(&format!("acl set from-s --default {default}"));
        let _server = server.iperf_server();
        let _download = client.spawn("iperf3 -c 10.1.0.2 -R -t 600");
        eventually("it has begun", 10.0, || host.count("c", "tx_bytes") > 10_000_000);
        host.kill_dataplane();
        host.start_dataplane();
        host.wait_until_filled();
        eventually("it goes on", 20.0, || host.count("c", "tx_bytes") > 10_000_000);
    }
}

/// Lists that let connections of this kind begin at the port "s", and nothing begin there that it sends.
fn stateful(host: &Host, new: &str) {
    for acl in ["to-s", "from-s"] {
        host.dunlin(&format!("acl add {acl}"));
        host.dunlin(&format!("acl rule add {acl} allow ethertype arp"));
        host.dunlin(&format!("acl rule add {acl} allow icmpv6"));
        host.dunlin(&format!("acl rule add {acl} allow state established,related"));
    }
    host.dunlin(&format!("acl rule add to-s allow {new} state new"));
    host.dunlin("port set s --egress-acls to-s --ingress-acls from-s");
}

/// Fragments arrive in any order, whatever list asks for their ports (https://github.com/cilium/cilium/issues/25709).
#[test]
fn the_last_fragment_may_come_first() {
    let (c, s) = (Netns::new(), Netns::new());
    let host = Host::start();
    for (name, ns, own) in [("c", &c, 1), ("s", &s, 2)] {
        ns.allow_ipv6();
        ns.run(&format!("ip addr add 10.1.0.{own}/24 dev eth0 && ip addr add fd01::{own}/64 dev eth0 nodad"));
        host.add_host(name, ns, "--vlan 10");
    }
    assert!(c.reaches("10.1.0.2", 5) && c.reaches("fd01::2", 5));
    stateful(&host, "udp to any port 9000");
    let received = "import socket; s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); s.bind((\\\"::\\\", 9000)); s.settimeout(100); \
                    print([len(s.recv(4096)) for i in range(6)])";
    let receiver = s.spawn(&format!("python3 -c \"{received}\""));
    eventually("the receiver is there", 10.0, || s.try_run("ss -lnu | grep -q :9000").status.success());
    let mac = s.mac();
    for (i, order) in ["2, 1, 0", "2, 0, 1", "1, 0, 2"].into_iter().enumerate() {
        let ether = format!("Ether(dst='{mac}')");
        c.scapy(&format!(
            "(lambda f: [f[i] for i in ({order})])(fragment({ether}/IP(src='10.1.0.1',dst='10.1.0.2',id={i}+7)/\
             UDP(sport=4000,dport=9000)/(b'A'*3000), fragsize=1400))"
        ));
        c.scapy(&format!(
            "(lambda f: [{ether}/f[i] for i in ({order})])(fragment6(IPv6(src='fd01::1',dst='fd01::2')/\
             IPv6ExtHdrFragment(id={i}+7)/UDP(sport=4000,dport=9000)/(b'A'*3000), 1400))"
        ));
    }
    assert!(receiver.finish().contains("[3000, 3000, 3000, 3000, 3000, 3000]"));
    host.check_conservation();
}

/// A kernel interface that gets another driver than it should says so where it is looked for.
#[test]
fn a_fallback_to_another_driver_is_said() {
    let (host, bridge) = (Host::start(), format!("db{}", std::process::id() % 100_000));
    crate::net::sh(&format!("ip link add {bridge} type bridge && ip link set {bridge} mtu 9000 up"));
    let said = host.dunlin(&format!("port add a --kind host --interface {bridge} --mtu 9000"));
    let why = "port 'a': its kernel interface is driven by af_packet, which is not the first choice: AF_XDP: 9000 is more than";
    assert!(said.contains(why), "{said}");
    assert!(host.dunlin("status").contains(why));
    assert!(host.metrics().contains("dunlin_port_fallback{driver=\"af_packet\",port=\"a\"} 1"));
    let ns = Netns::new();
    host.add_host("b", &ns, "--driver af_xdp");
    assert!(!host.dunlin("status").contains("port 'b'"));
    assert!(host.metrics().contains(&format!("dunlin_pool_buffers{{pool=\"xdp-{}\"}}", ns.outside)));
    crate::net::sh(&format!("ip link del {bridge}"));
}

/// Tunnels over IPv6 have UDP checksums, which receivers ask for by default; a wrong one is dropped (RFC 8200, 8.1; RFC 6936).
#[test]
fn tunnels_over_ipv6_have_checksums() {
    let (host, peer) = (Host::start(), Netns::new());
    peer.allow_ipv6();
    peer.run("ethtool -K eth0 tx off >/dev/null; ip addr add fd50::2/64 dev eth0 nodad");
    // Without udp6zerocsumrx.
    peer.run("ip link add vx type vxlan id 100 local fd50::2 remote fd50::1 dev eth0 dstport 4789 && ip link set vx up && ip addr add 192.168.9.2/24 dev vx");
    host.add_host("up", &peer, "");
    host.dunlin("vtep add v --uplink up --address fd50::1/64");
    host.dunlin("network add blue --vni 100 --remotes fd50::2");
    let guest = Netns::with_address("192.168.9.5/24");
    guest.run("ip link set eth0 mtu 1400 && ethtool -K eth0 tx off >/dev/null");
    host.add_host("g", &guest, "--network blue --mtu 1400");
    assert!(guest.reaches("192.168.9.2", 10), "{}", host.dunlin("vtep list"));
    guest.run("ping -c 2 -W 2 -s 1372 192.168.9.2");
    guest.run("ping -c 2 -W 2 -s 1371 192.168.9.2");
    let errors = peer.run("nstat -az Udp6InCsumErrors");
    assert!(errors.contains("Udp6InCsumErrors                0"), "{errors}");
    // Not the right one, none, and the right one.
    let mac = host.json("vtep list")[0]["mac"].as_str().unwrap().to_owned();
    let own = peer.mac();
    let bad = || {
        let vteps = host.json("vtep list");
        let drops = vteps[0]["counters"]["drops"].as_array().unwrap().clone();
        drops.iter().filter(|d| d["reason"] == "bad_tunnel").map(|d| d["frames"].as_u64().unwrap()).sum::<u64>()
    };
    assert_eq!(bad(), 0);
    let outer = |sum: &str| {
        format!(
            "Ether(dst='{mac}',src='{own}')/IPv6(src='fd50::2',dst='fd50::1')/UDP(sport=5000,dport=4789{sum})/VXLAN(vni=100,flags=8)/\
             Ether(dst='ff:ff:ff:ff:ff:ff',src='02:00:00:00:00:99')/IP(src='192.168.9.2',dst='192.168.9.5')/UDP(sport=1,dport=2)/(b'A'*31)"
        )
    };
    let before = host.count("g", "tx_frames");
    peer.scapy(&outer(",chksum=0x1234"));
    eventually("the wrong one is dropped", 5.0, || bad() == 1);
    peer.scapy(&outer(",chksum=0"));
    peer.scapy(&outer(""));
    eventually("the others arrive", 5.0, || host.count("g", "tx_frames") >= before + 2);
    assert_eq!(bad(), 1);
    // The choice of none: its receiver must allow it.
    host.dunlin("vtep set v --udp6-checksums off");
    eventually("the kernel drops what has none", 10.0, || {
        guest.try_run("ping -c 1 -W 1 192.168.9.2");
        !peer.run("nstat -az Udp6InCsumErrors").contains("Udp6InCsumErrors                0")
    });
}
