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

/// veth leaves checksums unfinished, and neither AF_XDP nor AF_PACKET says so.
#[test]
fn kernel_hosts_need_no_ethtool() {
    for driver in ["auto", "af_packet"] {
        let (a, b) = (Netns::with_address("10.6.0.1/24"), Netns::with_address("10.6.0.2/24"));
        let host = Host::start();
        host.add_host("a", &a, &format!("--driver {driver}"));
        host.add_host("b", &b, &format!("--driver {driver}"));
        println!("{driver}: {}", host.port("a")["driver"]);
        if driver == "af_packet" {
            // A GSO frame is larger than AF_PACKET's slots: without XDP the sender must segment.
            for ns in [&a, &b] {
                ns.run("ethtool -K eth0 tso off gso off");
            }
        }
        let _server = b.iperf_server();
        let report = a.run("iperf3 -c 10.6.0.2 -t 2 -f m");
        assert!(megabits(&report) > 5.0, "{driver}: {report}");
        assert_eq!((bad_checksums(&a), bad_checksums(&b)), (0, 0), "{driver}");
        // And UDP.
        let _server = b.iperf_server();
        let report = a.run("iperf3 -u -b 20m -c 10.6.0.2 -t 1 -f m");
        assert!(megabits(&report) > 5.0, "{driver}: {report}");
    }
}

/// A guest sends 64 KiB at a time; a kernel interface takes frames of its MTU with checksums.
#[test]
fn a_guests_large_segments_reach_a_kernel_host() {
    let (ns, jumbo) = (Netns::with_address("10.6.1.1/24"), Netns::with_address("10.6.1.3/24"));
    // Jumbo frames are AF_PACKET's, whose slots a GSO frame of the kernel's would not fit.
    jumbo.run("ip link set eth0 mtu 9000 && ethtool -K eth0 tso off gso off");
    let host = Host::with_options("--memory 512");
    host.add_host("ns", &ns, "");
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

/// What AF_PACKET cuts is not passed on as if it were whole: it is dropped, by name and with advice.
#[test]
fn truncated_frames_are_dropped_by_name() {
    let (a, b) = (Netns::with_address("10.6.2.1/24"), Netns::with_address("10.6.2.2/24"));
    let host = Host::start();
    host.add_host("a", &a, "--driver af_packet");
    host.add_host("b", &b, "--driver af_packet");
    let _server = b.iperf_server();
    let _client = a.spawn("iperf3 -c 10.6.2.2 -t 60");
    crate::net::eventually("frames are cut", 5.0, || host.drops("a", "truncated") > 0);
    assert!(host.dunlin("port show a").contains("ethtool -K INTERFACE tso off"));
}

/// One large segment to several receivers that can't segment: each gets it whole, cut to its MTU,
/// and what is done for one does not show at the next.
#[test]
fn large_segments_are_flooded_in_pieces() {
    let spaces: Vec<Netns> = (1..=3).map(|i| Netns::with_address(&format!("10.99.0.{i}/24"))).collect();
    let host = Host::start();
    for (i, ns) in spaces.iter().enumerate() {
        host.add_host(&format!("p{i}"), ns, if i == 2 { "--driver af_packet" } else { "" });
    }
    let socket = host.path("g.sock");
    host.dunlin(&format!("port add g --kind vhost-user --server --socket {socket}"));
    let before: Vec<u64> = (0..3).map(|i| host.count(&format!("p{i}"), "tx_frames")).collect();
    crate::net::sh(&format!("{} {socket} broadcast 5000 100", crate::net::hostile()));
    for (i, before) in before.iter().enumerate() {
        // 4,946 octets of payload are four segments of at most 1,448.
        let sent = host.count(&format!("p{i}"), "tx_frames") - before;
        assert!((400..420).contains(&sent), "p{i}: {sent}");
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
    host.add_host("veth", &veth, "");
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
