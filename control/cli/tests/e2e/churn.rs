//! Ports come and go a thousand times under traffic: others lose nothing, nothing leaks.

use crate::{
    host::Host,
    net::{Netns, eventually},
};

fn resident_kb(host: &Host) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", host.dataplane.as_ref().unwrap().id())).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn buffers_in_use(host: &Host) -> Vec<(String, u64)> {
    let pools = host.json("status")["dataplane"]["pools"].as_array().unwrap().clone();
    pools.iter().map(|p| (p["name"].as_str().unwrap().to_owned(), p["in_use"].as_u64().unwrap())).collect()
}

#[test]
fn a_thousand_ports_come_and_go_and_nobody_notices() {
    let (a, b) = (Netns::with_address("10.3.0.1/24"), Netns::with_address("10.3.0.2/24"));
    let host = Host::start();
    host.add_host("a", &a, "--vlan 10");
    host.add_host("b", &b, "--vlan 10");
    assert!(a.reaches("10.3.0.2", 3));
    let guest =
        |i: u32| format!("port add g{i} --kind vhost-user --vlan 10 --socket {}", host.path(&format!("g{i}.sock")));
    let round = |i: u32| {
        // Every kind that needs no peer: a device of DPDK's, a guest's socket, now and then a tap.
        match i % 10 {
            0 => {
                let name = format!("dt{}{}", std::process::id() % 10_000, i % 100);
                host.dunlin(&format!("port add x{i} --kind tap --interface {name} --vlan 10"));
                host.dunlin(&format!("port del x{i}"));
            }
            n if n % 2 == 0 => {
                host.dunlin(&guest(i));
                host.dunlin(&format!("port del g{i}"));
            }
            _ => {
                host.dunlin(&format!("port add n{i} --kind nic --device net_null{i},no-rx=1 --vlan 20"));
                host.dunlin(&format!("port set n{i} --vlan 30"));
                host.dunlin(&format!("port del n{i}"));
            }
        }
    };
    // Once through, so that what is made once is made.
    (0..40).for_each(round);
    let before = (resident_kb(&host), buffers_in_use(&host));
    let receiver = b.receive("");
    let mac = b.mac();
    let stream = a.stream(&format!("--dst {mac} --rate 1500"));
    (40..1040).for_each(round);
    receiver.expect(stream.end());
    let mut after = (0, Vec::new());
    eventually(&format!("no buffer leaked: {before:?}, then {after:?}"), 5.0, || {
        after = (resident_kb(&host), buffers_in_use(&host));
        after.1 == before.1
    });
    let grown = after.0.saturating_sub(before.0);
    println!("resident memory: {} kB, then {} kB", before.0, after.0);
    assert!(grown < 8 * 1024, "grew by {grown} kB: {before:?}, {after:?}");
}

/// The same for kernel interfaces: an AF_XDP port that was removed leaves its interface, its
/// memory and its sockets free, so that it can come back.
#[test]
fn kernel_interfaces_come_and_go() {
    let (a, b) = (Netns::with_address("10.3.1.1/24"), Netns::with_address("10.3.1.2/24"));
    let host = Host::start();
    host.add_host("a", &a, "");
    host.add_host("b", &b, "--driver af_xdp");
    let driver = host.port("b")["driver"].clone();
    let descriptors = || {
        let pid = host.dataplane.as_ref().unwrap().id();
        crate::net::sh(&format!("ls /proc/{pid}/fd | wc -l")).trim().parse::<u32>().unwrap()
    };
    assert!(a.reaches("10.3.1.2", 3));
    let mut before = (0, 0);
    for i in 0..40 {
        host.dunlin("port del b");
        host.add_host("b", &b, "--driver af_xdp");
        assert_eq!(host.port("b")["driver"], driver, "round {i}: {}", host.port("b")["note"]);
        assert!(a.reaches("10.3.1.2", 3), "round {i}");
        if i == 9 {
            before = (resident_kb(&host), descriptors());
        }
    }
    let after = (resident_kb(&host), descriptors());
    println!("{driver}: {before:?}, then {after:?}");
    assert!(after.0 < before.0 + 8 * 1024 && after.1 <= before.1 + 2, "{before:?}, {after:?}");

    // One that is made anew under its name, as every restart of a container does.
    crate::net::sh(&format!("ip link del {}", b.outside));
    eventually("its port is down", 5.0, || host.port("b")["up"] == false);
    crate::net::sh(&format!(
        "ip link add {1} type veth peer name eth0 netns {0} && ip link set {1} up && ip -n {0} link set eth0 up && \
         ip -n {0} addr add 10.3.1.2/24 dev eth0",
        b.name, b.outside
    ));
    // Its address is another, which nobody told the other host.
    eventually("it is taken again", 10.0, || {
        a.run("ip neigh flush dev eth0");
        a.reaches("10.3.1.2", 1)
    });
}
