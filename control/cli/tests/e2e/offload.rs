//! Checksums and segmentation: what a sender leaves to the switch and a receiver can't do.

use crate::{guest::Guest, host::Host, net::Netns};

/// Retransmitted segments as iperf3 counts them would hide a wrong checksum; a transfer that
/// works at all, with the kernel's own counts of bad checksums at zero, does not.
fn bad_checksums(ns: &Netns) -> u64 {
    let snmp = ns.run("cat /proc/net/snmp");
    let tcp: Vec<&str> = snmp.lines().filter(|l| l.starts_with("Tcp:")).collect();
    let at = tcp[0].split_whitespace().position(|f| f == "InCsumErrors").unwrap();
    tcp[1].split_whitespace().nth(at).unwrap().parse().unwrap()
}

fn megabits(report: &str) -> f64 {
    let line = report.lines().find(|l| l.contains("receiver")).unwrap_or_else(|| panic!("iperf3 failed: {report}"));
    line.split_whitespace().rev().skip_while(|w| *w != "Mbits/sec").nth(1).unwrap().parse().unwrap()
}

/// Hosts leave checksums and segments to the switch, of what is in their own tunnels too
/// (https://github.com/projectcalico/calico/issues/7040): by whatever driver, nothing has to be turned off for that.
#[test]
fn kernel_hosts_need_no_ethtool() {
    for driver in ["auto", "af_packet", "af_xdp"] {
        let (a, b) = (Netns::with_address("10.6.0.1/24"), Netns::with_address("10.6.0.2/24"));
        let host = Host::start();
        host.add_host("a", &a, &format!("--driver {driver}"));
        host.add_host("b", &b, &format!("--driver {driver}"));
        let is = host.port("a")["driver"].as_str().unwrap().to_owned();
        assert_eq!(is, if driver == "auto" { "af_packet" } else { driver });
        for (ns, own, other) in [(&a, 1, 2), (&b, 2, 1)] {
            ns.run(&format!("ip link add vx type vxlan id 7 local 10.6.0.{own} remote 10.6.0.{other} dstport 4789"));
            ns.run(&format!("ip addr add 10.7.0.{own}/24 dev vx && ip link set vx mtu 1450 up"));
        }
        for address in ["10.6.0.2", "10.7.0.2"] {
            for protocol in ["", "-u -b 20m"] {
                let _server = b.iperf_server();
                let report = a.run(&format!("iperf3 -c {address} {protocol} -t 1 -f m"));
                println!("{is} to {address} {protocol}: {} Mbit/s", megabits(&report));
                assert!(megabits(&report) > 5.0, "{driver}: {report}");
            }
        }
        let large = host.count("a", "rx_bytes") / host.count("a", "rx_frames");
        assert!((large > 3000) == (is == "af_packet"), "{driver}: {large} octets a frame");
        assert_eq!((bad_checksums(&a), bad_checksums(&b)), (0, 0), "{driver}");
        let drops: u64 = ["bad_offload", "mtu_exceeded", "truncated"].iter().map(|r| host.drops("b", r)).sum();
        assert_eq!(drops, 0, "{}", host.port("b"));
    }
}

/// What a station sends by its port reaches no address of the host past the switch.
#[test]
fn a_station_does_not_reach_the_host_behind_its_port() {
    let a = Netns::with_address("10.6.4.1/24");
    crate::net::sh(&format!("ip addr add 10.6.4.9/24 dev {}", a.outside));
    assert!(a.reaches("10.6.4.9", 10), "the host answers while there is no port");
    let host = Host::start();
    for driver in ["auto", "af_packet"] {
        host.add_host("a", &a, &format!("--driver {driver}"));
        assert_eq!(host.port("a")["driver"], "af_packet");
        a.run("ip neigh flush dev eth0");
        assert!(!a.try_run("ping -c 2 -W 1 10.6.4.9").status.success(), "{driver}");
        host.dunlin("port del a");
        assert!(a.reaches("10.6.4.9", 10), "the interface is the host's again");
    }
}

/// A host's datagrams that it leaves to be cut (UDP_SEGMENT) arrive as it sent them, whatever the receiver takes.
#[test]
fn datagrams_are_cut_for_their_sender() {
    let (a, b) = (Netns::with_address("10.6.5.1/24"), Netns::with_address("10.6.5.2/24"));
    let host = Host::start();
    host.add_host("a", &a, "");
    for driver in ["af_packet", "af_xdp"] {
        host.add_host("b", &b, &format!("--driver {driver}"));
        assert!(a.reaches("10.6.5.2", 10));
        let socket = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)";
        let receiver = b.spawn(&format!(
            "python3 -c \"{socket}; s.bind((\\\"\\\", 9000)); s.settimeout(60); print([len(s.recv(4096)) for i in range(10)])\""
        ));
        crate::net::eventually("the receiver is there", 10.0, || b.try_run("ss -lnu | grep -q :9000").status.success());
        // SOL_UDP, UDP_SEGMENT.
        a.run(&format!(
            "python3 -c \"{socket}; s.setsockopt(17, 103, 1400); s.sendto(bytes(9 * 1400 + 77), (\\\"10.6.5.2\\\", 9000))\""
        ));
        let got = receiver.finish();
        assert!(got.contains(&format!("[{}77]", "1400, ".repeat(9))), "{driver}: {got}");
        host.dunlin("port del b");
    }
}

/// A guest sends 64 KiB at a time; a kernel interface takes frames of its MTU with checksums.
#[test]
fn a_guests_large_segments_reach_a_kernel_host() {
    let (ns, jumbo) = (Netns::with_address("10.6.1.1/24"), Netns::with_address("10.6.1.3/24"));
    // Jumbo frames are AF_PACKET's.
    jumbo.run("ip link set eth0 mtu 9000");
    let host = Host::with_options("--memory 512");
    host.add_host("ns", &ns, "--driver af_xdp");
    host.add_host("jumbo", &jumbo, "--mtu 9000");
    host.dunlin(&format!("port add g --kind vhost-user --mtu 9000 --socket {}", host.path("g.sock")));
    let mut g = Guest::start("g", &host.path("g.sock"), "--ip 10.6.1.2/24").ready();
    assert_eq!(host.port("g")["guest"]["tso4"], true, "the guest takes and sends large segments");
    for (ns, address) in [(&ns, "10.6.1.1"), (&jumbo, "10.6.1.3")] {
        let server = ns.iperf_server();
        let before = (host.count("g", "rx_frames"), host.count("g", "rx_bytes"));
        let report = g.run(&format!("iperf3 -c {address} -t 2 -f m"));
        assert!(megabits(&report) > 10.0, "{report}");
        drop(server);
        let (frames, bytes) = (host.count("g", "rx_frames") - before.0, host.count("g", "rx_bytes") - before.1);
        assert!(bytes / frames > 3000, "the guest sent large segments: {bytes} octets in {frames} frames");
        assert_eq!(bad_checksums(ns), 0, "{address}");
        // And back.
        let _server = ns.iperf_server();
        let report = g.run(&format!("iperf3 -R -c {address} -t 2 -f m"));
        assert!(megabits(&report) > 10.0, "{report}");
    }
    // The switch made the segments: each is in the books.
    assert!(host.count("ns", "clones") > 1000, "{}", host.count("ns", "clones"));
    for reason in ["bad_offload", "mtu_exceeded", "no_buffer"] {
        assert_eq!(host.drops("ns", reason), 0, "{reason}");
    }
}

/// A guest leaves checksums and segments behind two tags, or one of 802.1ad, to the switch as well, of which DPDK says
/// nothing (https://github.com/FDio/vpp/issues/3202).
#[test]
fn what_a_guest_leaves_open_behind_two_tags_is_finished() {
    let (host, ns) = (Host::start(), Netns::new());
    host.add_host("ns", &ns, "--driver af_xdp");
    for length in [200, 5000] {
        let capture = ns.spawn("timeout 100 tcpdump -nni eth0 -vv -c 100 ether src 02:00:00:00:00:01 2>&1");
        crate::net::eventually("it captures", 10.0, || {
            ns.try_run("ip -d link show eth0 | grep -q \"promiscuity 1\"").status.success()
        });
        for tags in ["88a8000a81000014", "8100000a81000014", "88a8000a"] {
            let socket = host.path("h.sock");
            host.dunlin(&format!("port add h --kind vhost-user --server --socket {socket}"));
            crate::net::sh(&format!("{} {socket} broadcast {length} 100 {tags}", crate::net::hostile()));
            host.dunlin("port del h");
        }
        let captured = capture.finish();
        let packets = captured.matches("cksum 0x").count();
        assert!(packets >= 100 && captured.matches("(correct)").count() == packets, "{length}: {captured}");
        if length > 1500 {
            assert!(captured.contains("length 1240") && !captured.contains("length 1448"), "{captured}");
        }
    }
    assert_eq!(host.drops("ns", "mtu_exceeded") + host.drops("ns", "bad_offload"), 0);
}

/// TCP between two guests behind two tags, with large segments.
#[test]
fn guests_talk_behind_two_tags() {
    let host = Host::start();
    let mut guests = ["a", "b"].map(|name| {
        let socket = host.path(&format!("{name}.sock"));
        host.dunlin(&format!("port add {name} --kind vhost-user --socket {socket}"));
        Guest::start(name, &socket, "--ip 10.6.1.2/24").ready()
    });
    for (n, g) in (1..).zip(&mut guests) {
        for (i, outer) in [(0, "802.1Q"), (1, "802.1ad")] {
            g.run(&format!("ip link add link eth0 name s{i} type vlan proto {outer} id 1{i}; ip link set s{i} up"));
            g.run(&format!("ip link add link s{i} name q{i} type vlan id 20"));
            // Tags that are not the trunk's count as what it carries.
            g.run(&format!("ip link set q{i} mtu 1492; ip link set q{i} up"));
            g.run(&format!("ip addr add 10.6.6{i}.{n}/24 dev q{i}"));
        }
    }
    let [a, b] = &mut guests;
    b.run("iperf3 -s -D");
    for i in [0, 1] {
        let sent = |host: &Host| (host.count("a", "rx_frames"), host.count("a", "rx_bytes"));
        let before = sent(&host);
        let report = a.run(&format!("iperf3 -c 10.6.6{i}.2 -t 2 -f m"));
        assert!(megabits(&report) > 10.0, "{report}");
        let (frames, bytes) = (sent(&host).0 - before.0, sent(&host).1 - before.1);
        assert!(bytes / frames > 3000, "it sent large segments: {bytes} octets in {frames} frames");
    }
    assert_eq!(host.drops("b", "mtu_exceeded") + host.drops("b", "bad_offload"), 0);
}

/// One large segment to several receivers: who can't segment gets it cut to its MTU, who can gets it whole, and what is done
/// for one does not show at the next.
#[test]
fn large_segments_are_flooded_in_pieces() {
    let spaces: Vec<Netns> = (1..=3).map(|i| Netns::with_address(&format!("10.99.0.{i}/24"))).collect();
    let host = Host::start();
    for (i, ns) in spaces.iter().enumerate() {
        host.add_host(&format!("p{i}"), ns, if i == 2 { "" } else { "--driver af_xdp" });
    }
    let socket = host.path("g.sock");
    host.dunlin(&format!("port add g --kind vhost-user --server --socket {socket}"));
    let before: Vec<u64> = (0..3).map(|i| host.count(&format!("p{i}"), "tx_frames")).collect();
    crate::net::sh(&format!("{} {socket} broadcast 5000 100", crate::net::hostile()));
    for (i, before) in before.iter().enumerate() {
        // 4,946 octets of payload are four segments of at most 1,448.
        let sent = host.count(&format!("p{i}"), "tx_frames") - before;
        let usual = if i == 2 { 100 } else { 400 };
        assert!((usual..usual + 20).contains(&sent), "p{i}: {sent}");
        assert_eq!(host.drops(&format!("p{i}"), "tx_full"), 0, "p{i}");
    }
    assert_eq!(host.count("g", "rx_frames"), 100);
}

/// Taps in namespaces, where they were moved while they were ports: jumbo frames, large segments
/// taken and given whole, checksums left to the other side; and what goes to a veth is finished.
#[test]
fn taps_move_to_namespaces_and_take_large_segments() {
    let spaces: Vec<Netns> = (0..2).map(|_| Netns::new()).collect();
    let veth = Netns::with_address("10.6.3.9/24");
    let host = Host::start();
    host.add_host("veth", &veth, "--driver af_xdp");
    let id = std::process::id() % 100_000;
    for (i, ns) in spaces.iter().enumerate() {
        let name = format!("dt{id}x{i}");
        host.dunlin(&format!("port add t{i} --kind tap --interface {name} --mtu 9000"));
        crate::net::sh(&format!("ip link set {name} netns {}", ns.name));
        ns.run(&format!("ip addr add 10.6.3.{}/24 dev {name}; ip link set {name} up mtu 9000", i + 1));
        host.wait_up(&format!("t{i}"));
    }
    // Jumbo frames between the taps, and none that are too large for the veth.
    assert!(spaces[0].run("ping -c 2 -W 2 -M do -s 8972 10.6.3.2").contains(" 0% packet loss"));
    let transfer = |from: &Netns, to: &Netns, address: &str, options: &str| {
        let _server = to.iperf_server();
        let report = from.run(&format!("iperf3 -c {address} -t 2 -f m {options}"));
        assert!(megabits(&report) > 10.0, "{report}");
        println!("{address}: {} Mbit/s", megabits(&report));
    };
    transfer(&spaces[0], &spaces[1], "10.6.3.2", "");
    let large = host.count("t1", "tx_bytes") / host.count("t1", "tx_frames");
    assert!(large > 9100, "the tap takes segments whole: {large} octets a frame");
    // The veth's MTU is smaller: its connections agree on 1,460 octets, the switch cuts them.
    transfer(&spaces[0], &veth, "10.6.3.9", "");
    transfer(&spaces[0], &veth, "10.6.3.9", "-R");
    assert!(host.count("veth", "clones") + host.count("t0", "clones") > 1000);
    for ns in spaces.iter().chain([&veth]) {
        assert_eq!(bad_checksums(ns), 0);
    }
    // The link is what the interface says, wherever it is.
    spaces[1].run(&format!("ip link set dt{id}x1 down"));
    crate::net::eventually("t1 is down", 5.0, || host.port("t1")["up"] == false);
    spaces[1].run(&format!("ip link set dt{id}x1 up"));
    host.wait_up("t1");
    // A port's end is its interface's.
    host.dunlin("port del t1");
    assert!(!spaces[1].try_run(&format!("ip link show dt{id}x1")).status.success());
}
