//! Learning, flooding, isolation, limits.

use crate::{
    host::Host,
    net::{Netns, Receiver, eventually, number, sh},
};

const STATION: &str = "52:54:00:aa:00:01";

/// A switch with `n` namespaces on ports p0, p1, …
fn switch(n: usize, options: &str) -> (Host, Vec<Netns>) {
    let host = Host::start();
    let spaces: Vec<Netns> = (0..n).map(|_| Netns::new()).collect();
    for (i, ns) in spaces.iter().enumerate() {
        host.add_host(&format!("p{i}"), ns, options);
    }
    (host, spaces)
}

/// How many probe frames each namespace gets while `send` runs.
fn received(spaces: &[Netns], send: impl FnOnce()) -> Vec<u64> {
    let receivers: Vec<_> = spaces.iter().map(|ns| ns.receive("")).collect();
    send();
    Receiver::finish_all(receivers).iter().map(|lines| number(lines.last().unwrap(), "received")).collect()
}

fn port_of(host: &Host, mac: &str) -> Option<String> {
    let list = host.json("mac list");
    let entry = list.as_array().unwrap().iter().find(|e| e["mac"] == mac)?;
    Some(entry["port"].as_str().unwrap().to_owned())
}

#[test]
fn unknown_floods_known_does_not_and_a_flush_forgets() {
    let (host, ns) = switch(3, "");
    let to_station = format!("--dst {STATION} --count 10");
    assert_eq!(received(&ns, || ns[0].send(&to_station)), [0, 10, 10]);
    // Sent on: two copies of each, one of them a clone.
    assert_eq!(host.count("p0", "clones"), 10);
    ns[1].send(&format!("--src {STATION}"));
    assert_eq!(port_of(&host, STATION).as_deref(), Some("p1"));
    assert_eq!(received(&ns, || ns[0].send(&to_station)), [0, 10, 0]);
    assert!(host.dunlin(&format!("mac flush --mac {STATION}")).contains("addresses removed: 1"));
    assert_eq!(received(&ns, || ns[0].send(&to_station)), [0, 10, 10]);
    // To an address behind the port it came from: nowhere.
    ns[0].send(&format!("--src {STATION}"));
    assert_eq!(received(&ns, || ns[0].send(&to_station)), [0, 0, 0]);
    assert_eq!(host.drops("p0", "same_port"), 10);
    // And an address goes with its port.
    host.dunlin("port del p0");
    assert_eq!(port_of(&host, STATION), None);
}

#[test]
fn a_flush_takes_what_it_names() {
    let (host, ns) = switch(2, "");
    host.dunlin("bridge add br1");
    host.dunlin("port set p1 --bridge br1");
    let learn = || {
        ns[0].send("--src 52:54:00:00:01:01");
        ns[0].send("--src 52:54:00:00:01:02 --tags 8100:0007");
        ns[1].send("--src 52:54:00:00:01:03");
    };
    let left = |flush: &str| {
        host.dunlin("mac flush");
        learn();
        host.dunlin(&format!("mac flush {flush}"));
        let mut last: Vec<String> =
            host.json("mac list").as_array().unwrap().iter().map(|e| e["mac"].to_string()).collect();
        last.retain(|m| m.contains("00:01:0"));
        last.sort();
        last.iter().map(|m| m[16..18].to_owned()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(left("--port p0"), "03");
    assert_eq!(left("--bridge br0 --vlan 7"), "01 03");
    assert_eq!(left("--bridge br1"), "01 02");
    assert_eq!(left("--mac 52:54:00:00:01:01"), "02 03");
}

/// What the operator generates: completions that a shell takes, man pages that man reads.
#[test]
fn completions_and_man_pages_are_whole() {
    let host = Host::start();
    std::fs::write(host.path("completion"), host.dunlin("completions bash")).unwrap();
    let offered = sh(&format!(
        "source {}; COMP_WORDS=(dunlin port add x --kind \"\"); COMP_CWORD=5; _dunlin dunlin \"\" --kind; echo \"${{COMPREPLY[*]}}\"",
        host.path("completion")
    ));
    assert!(offered.contains("vhost-user") && offered.contains("tap"), "{offered}");
    host.dunlin(&format!("man {}", host.path("man")));
    let pages = sh(&format!("ls {}", host.path("man")));
    assert!(pages.contains("dunlin.1") && pages.contains("dunlin-port-add.1"), "{pages}");
}

/// How workers idle is set by a verb, and a polling worker does not sleep.
#[test]
fn workers_idle_as_they_are_told() {
    let host = Host::start();
    let slept = || host.json("worker list")[0]["slept_cycles"].as_u64().unwrap();
    let before = slept();
    eventually("an idle worker sleeps", 5.0, || slept() > before);
    assert!(host.dunlin("worker set --idle poll").contains("idle: adaptive -> poll"));
    // The last sleep may be counted a little later.
    eventually("a polling worker does not sleep", 5.0, || {
        let before = slept();
        std::thread::sleep(std::time::Duration::from_millis(300));
        slept() == before
    });
    let before = slept();
    host.dunlin("worker set --idle adaptive --max-sleep-us 1000");
    eventually("it sleeps again", 5.0, || slept() > before);
    assert!(host.refused("worker set --max-sleep-us 0").contains("max_sleep_us: 0 is not in 1 to 10000"));
}

/// Each stage of the pipeline says what it costs.
#[test]
fn a_worker_shows_its_stages() {
    let (host, ns) = switch(2, "");
    let core = host.json("worker list")[0]["core"].as_u64().unwrap();
    let stream = ns[0].stream("--src 52:54:00:aa:00:01 --dst ff:ff:ff:ff:ff:ff --rate 3000");
    let stages = ["receive", "parse", "ingress", "lookup", "police", "emit", "transmit"];
    eventually("stages were measured", 20.0, || {
        let state = host.json(&format!("worker show {core}"));
        let cost = |name: &str| {
            let all = state["stages"].as_array().unwrap();
            all.iter().find(|s| s["name"] == name).map_or(0.0, |s| s["cycles_per_frame"].as_f64().unwrap())
        };
        // They add up to no more than what a frame costs in all, give or take what was not measured.
        let sum: f64 = stages.iter().map(|s| cost(s)).sum();
        stages.iter().all(|s| cost(s) > 0.0) && sum < 2.0 * state["cycles_per_frame"].as_f64().unwrap()
    });
    eventually("the stages are shown", 20.0, || {
        let shown = host.dunlin(&format!("worker show {core}"));
        stages.iter().all(|s| shown.contains(s))
    });
    drop(stream);
    assert!(host.refused("worker show 4000").contains("core 4000 has no worker; there are workers on"));
}

/// Kernel interfaces wake a worker, however long it may sleep.
#[test]
fn idle_workers_are_woken() {
    let (host, ns) = (Host::start(), [Netns::with_address("10.7.0.1/24"), Netns::with_address("10.7.0.2/24")]);
    host.add_host("a", &ns[0], "--vlan 10");
    host.dunlin("port add b --kind tap --interface woken0 --vlan 10");
    ns[1].run("ip link del eth0");
    sh(&format!("ip link set woken0 netns {}", ns[1].name));
    ns[1].run("ip link set woken0 up && ip addr add 10.7.0.2/24 dev woken0");
    host.dunlin("worker set --idle adaptive --max-sleep-us 10000");
    assert!(ns[0].reaches("10.7.0.2", 10));
    let rounds = || host.json("worker list")[0]["polls"].as_u64().unwrap();
    eventually("an idle worker does nothing", 10.0, || {
        let before = rounds();
        std::thread::sleep(std::time::Duration::from_millis(500));
        rounds() - before < 1000
    });
    let pings = ns[0].run("ping -c 40 -i 0.03 10.7.0.2");
    let ms = pings.lines().filter_map(|l| l.split("time=").nth(1)?.split(' ').next()?.parse::<f64>().ok());
    let at_once = ms.filter(|ms| *ms < 3.0).count();
    assert!(at_once >= 20, "{pings}");
}

#[test]
fn invalid_and_reserved_frames_are_dropped_with_their_reason() {
    let (host, ns) = switch(2, "");
    let got = received(&ns, || {
        ns[0].send("--src ff:ff:ff:ff:ff:ff --count 3");
        ns[0].send("--src 01:00:5e:00:00:01 --count 4");
        ns[0].send("--dst 01:80:c2:00:00:00 --count 5");
        ns[0].send("--dst 01:80:c2:00:00:0e --count 6");
        ns[0].send("--dst 01:80:c2:00:00:10 --count 2");
    });
    assert_eq!(got, [0, 2]);
    assert_eq!(host.drops("p0", "invalid_source"), 7);
    assert_eq!(host.drops("p0", "reserved_multicast"), 11);
}

#[test]
fn protected_ports_reach_others_only() {
    let (host, ns) = switch(3, "");
    host.dunlin("port set p0 --protected");
    host.dunlin("port set p1 --protected");
    assert_eq!(received(&ns, || ns[0].send("--count 5")), [0, 0, 5]);
    ns[1].send(&format!("--src {STATION}"));
    assert_eq!(received(&ns, || ns[0].send(&format!("--dst {STATION} --count 5"))), [0, 0, 0]);
    assert_eq!(host.drops("p1", "protected"), 5);
    host.dunlin("port set p1 --protected false");
    assert_eq!(received(&ns, || ns[0].send(&format!("--dst {STATION} --count 5"))), [0, 5, 0]);
}

#[test]
fn bridges_are_separate() {
    let (host, ns) = switch(2, "--vlan 10");
    host.dunlin("bridge add other --ageing 60");
    host.dunlin("port set p1 --bridge other");
    assert_eq!(received(&ns, || ns[0].send("--count 5")), [0, 0]);
    assert_eq!(host.drops("p0", "no_other_port"), 5);
    assert!(host.refused("bridge del other").contains("bridge 'other': port 'p1' still uses it"));
    host.dunlin("port set p1 --bridge br0");
    host.dunlin("bridge del other");
    assert_eq!(received(&ns, || ns[0].send("--count 5")), [0, 5]);
}

#[test]
fn addresses_age_and_static_ones_do_not() {
    let (host, ns) = switch(2, "");
    host.dunlin("mac add 52:54:00:bb:00:01 --port p1");
    host.dunlin("bridge add br0 --ageing 2");
    ns[0].send(&format!("--src {STATION}"));
    assert_eq!(port_of(&host, STATION).as_deref(), Some("p0"));
    eventually("the address is forgotten", 12.0, || port_of(&host, STATION).is_none());
    assert_eq!(port_of(&host, "52:54:00:bb:00:01").as_deref(), Some("p1"));
    // A static address stays where it is, whoever claims it, and no flush takes it.
    ns[0].send("--src 52:54:00:bb:00:01");
    host.dunlin("mac flush");
    assert_eq!(port_of(&host, "52:54:00:bb:00:01").as_deref(), Some("p1"));
    host.dunlin("mac del 52:54:00:bb:00:01");
    assert_eq!(port_of(&host, "52:54:00:bb:00:01"), None);
}

#[test]
fn mac_limits_drop_or_forward_unlearned() {
    let (host, ns) = switch(2, "");
    for (action, want) in [("drop", 2), ("forward", 5)] {
        host.dunlin("mac flush");
        host.dunlin(&format!("port set p0 --mac-limit 2 --mac-limit-action {action}"));
        let got = received(&ns, || (1..=5).for_each(|i| ns[0].send(&format!("--src 52:54:00:cc:00:0{i}"))));
        assert_eq!(got, [0, want], "{action}");
        assert_eq!(host.port("p0")["macs"], 2);
    }
    assert_eq!(host.drops("p0", "mac_limit"), 3);
}

#[test]
fn storms_are_limited_by_kind() {
    let (host, ns) = switch(2, "");
    host.dunlin("port set p0 --storm-broadcast-fps 100 --storm-multicast-fps 50 --storm-unknown-unicast-fps 20");
    for (dst, fps, reason) in [
        ("ff:ff:ff:ff:ff:ff", 100, "storm_broadcast"),
        ("01:00:5e:00:00:05", 50, "storm_multicast"),
        (STATION, 20, "storm_unknown_unicast"),
    ] {
        // A second at ten times the rate: the rate passes, and a tenth of it as a burst.
        let n = fps * 10;
        let got = received(&ns, || ns[0].send(&format!("--dst {dst} --count {n} --rate {n}")))[1];
        assert!((fps * 95 / 100..=fps * 125 / 100).contains(&got), "{reason}: {got} of {n}");
        assert_eq!(host.drops("p0", reason), n - got);
    }
}

#[test]
fn moves_are_counted_and_flapping_is_reported_by_name() {
    let (host, ns) = switch(2, "");
    for i in 0..12 {
        ns[i % 2].send(&format!("--src {STATION}"));
    }
    eventually("the flap is reported", 5.0, || {
        let status = host.json("status");
        let flaps = status["dataplane"]["flaps"].as_array().unwrap().clone();
        flaps.iter().any(|f| {
            let ports = [f["last"]["from"].as_str().unwrap(), f["last"]["to"].as_str().unwrap()];
            f["last"]["mac"] == STATION && ports.contains(&"p0") && ports.contains(&"p1")
        })
    });
    assert_eq!(host.json("status")["dataplane"]["macs"]["moves"], 11);
    assert!(host.dunlin("mac list").contains(&format!("{STATION} flaps")));
}

#[test]
fn a_full_table_spares_the_quiet_port() {
    let host = Host::with_options("--mac-table-size 8192");
    let ns: Vec<Netns> = (0..3).map(|_| Netns::new()).collect();
    for (i, n) in ns.iter().enumerate() {
        host.add_host(&format!("p{i}"), n, "");
    }
    ns[1].send(&format!("--src {STATION}"));
    // 20,000 made-up sources from one port.
    let flood = "python3 -c \"import socket; s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0); s.bind((\\\"eth0\\\", 0)); \
         [s.send(bytes([255]*6) + bytes([2,0,0,0,i>>8,i&255]) + bytes.fromhex(\\\"88b5\\\") + bytes(46)) for i in range(20000)]\"";
    // Some are lost where nobody takes them fast enough.
    eventually("the table is full", 5.0, || {
        ns[0].run(flood);
        host.json("status")["dataplane"]["macs"]["evictions"].as_u64().unwrap() > 100
    });
    assert_eq!(port_of(&host, STATION).as_deref(), Some("p1"));
    let macs = host.json("status")["dataplane"]["macs"].clone();
    assert!(macs["entries"].as_u64().unwrap() <= 8194, "{macs}");
}
