//! Receive queues and the workers that poll them.

use crate::{
    host::Host,
    net::{Netns, eventually},
};

/// The ports whose queues the worker on `core` polls.
fn polled_by(host: &Host, core: u64) -> Vec<String> {
    let workers = host.json("worker list");
    let worker = workers.as_array().unwrap().iter().find(|w| w["core"] == core).expect("a worker").clone();
    worker["queues"].as_array().unwrap().iter().map(|q| q["port"].as_str().unwrap().to_owned()).collect()
}

/// A queue wanders from worker to worker under traffic; the flow does not notice.
#[test]
fn a_queue_that_moves_loses_and_reorders_nothing() {
    let (a, b) = (Netns::new(), Netns::new());
    let host = Host::with_options("--cores 0,1");
    // One queue a port.
    host.add_host("a", &a, "--workers 0 --driver af_xdp");
    host.add_host("b", &b, "--workers 1 --driver af_xdp");
    assert_eq!((polled_by(&host, 0), polled_by(&host, 1)), (vec!["a".to_owned()], vec!["b".to_owned()]));
    // Known, so that nothing floods back.
    b.send("--src 52:54:00:00:00:0b");
    let receiver = b.receive("");
    let stream = a.stream("--src 52:54:00:00:00:0a --dst 52:54:00:00:00:0b --rate 5000");
    let received = || host.count("a", "rx_frames");
    for i in 1..=60 {
        let before = received();
        host.dunlin(&format!("port set a --workers {}", i % 2));
        eventually("frames flow", 5.0, || received() > before + 100);
    }
    let moved = host.json("status")["dataplane"]["queue_moves"].as_u64().unwrap();
    let summary = receiver.expect(stream.end());
    println!("{moved} moves: {summary}");
    assert!(moved >= 59, "{moved}");
}

#[test]
fn a_core_that_is_no_worker_is_refused() {
    let ns = Netns::new();
    let host = Host::with_options("--cores 0");
    host.add_host("a", &ns, "");
    let error = host.refused("port set a --workers 1");
    assert!(error.contains("port 'a': workers: core 1 is no worker; there are [0]"), "{error}");
    assert_eq!(polled_by(&host, 0), ["a"]);
}

/// What a device hashes is chosen by name, and what it can't do is said.
#[test]
fn a_device_says_what_it_hashes_and_steers_by() {
    let host = Host::with_options("--cores 0");
    let null = "--kind nic --device net_null0,no-rx=1 --queues 2";
    let error = host.refused(&format!("port add a {null} --hash-fields ip,ipx"));
    assert!(error.contains("'ipx'"), "{error}");
    host.dunlin(&format!("port add a {null} --hash-fields mac,udp"));
    // DPDK's null driver offers no hash of addresses of layer 2.
    assert_eq!(host.port("a")["hash_fields"], serde_json::json!(["udp"]));
    let device = host.port("a")["device_steering"].as_str().unwrap().to_owned();
    assert!(device.starts_with("0 VMDq pools, rules by MAC and VLAN: ") && !device.ends_with("yes"), "{device}");
    host.dunlin("port set a --unset hash-fields");
    assert_eq!(host.port("a")["hash_fields"], serde_json::json!(["ip", "tcp", "udp", "sctp"]));
    // One queue needs no hash.
    host.dunlin("port set a --queues 1");
    assert_eq!(host.port("a")["hash_fields"], serde_json::json!([]));
    println!("{}", host.dunlin("port show a"));
}

/// Two busy queues on one worker: one goes to the other, when asked and by itself.
#[test]
fn busy_queues_spread() {
    let host = Host::with_options("--cores 0,1");
    let together = || {
        for i in 0..2 {
            host.dunlin(&format!("port set p{i} --workers 0"));
            host.dunlin(&format!("port set p{i} --unset workers"));
        }
        assert_eq!(polled_by(&host, 0).len(), 2);
    };
    for i in 0..2 {
        // Frames without end, all of them invalid: load without receivers.
        host.dunlin(&format!("port add p{i} --kind nic --device net_null{i},size=60 --queues 1"));
    }
    together();
    eventually("the load is seen", 5.0, || {
        let queues = host.json("worker list")[0]["queues"].clone();
        queues.as_array().unwrap().iter().all(|q| q["share"].as_f64().unwrap() > 0.2)
    });
    let told = host.dunlin("worker rebalance");
    assert!(told.contains("core 0 -> 1") && told.contains("1 queues moved"), "{told}");
    assert_eq!((polled_by(&host, 0).len(), polled_by(&host, 1).len()), (1, 1));
    assert!(host.dunlin("worker rebalance").contains("0 queues moved"));
    together();
    host.dunlin("worker set --rebalance auto");
    eventually("it moves by itself", 20.0, || polled_by(&host, 1).len() == 1);
}

/// An uplink that one worker polls, and guests of both: each guest's frames go through its own
/// worker, in their order, also while the guest changes workers.
#[test]
fn an_uplink_is_steered_to_the_workers_of_its_guests() {
    let (up, near, far) = (Netns::new(), Netns::new(), Netns::new());
    let host = Host::with_options("--cores 0,1");
    host.add_host("up", &up, "--workers 0 --steering vmdq");
    host.add_host("near", &near, "--workers 0");
    host.add_host("far", &far, "--workers 1");
    assert_eq!(host.port("up")["steering"], "vmdq, in software");
    near.send("--src 52:54:00:00:00:0b");
    far.send("--src 52:54:00:00:00:0c");
    let (to_near, to_far) = (near.receive(""), far.receive(""));
    let streams =
        ["0b", "0c"].map(|to| up.stream(&format!("--src 52:54:00:00:00:0a --dst 52:54:00:00:00:{to} --rate 3000")));
    let passed = |host: &Host| host.json("worker list")[0]["passed_frames"].as_u64().unwrap();
    let received = || host.count("up", "rx_frames");
    for i in 1..=40 {
        let before = received();
        host.dunlin(&format!("port set far --workers {}", i % 2));
        eventually("frames flow", 5.0, || received() > before + 100);
    }
    host.dunlin("port set far --workers 1");
    eventually("frames are passed", 5.0, || passed(&host) > 1_000);
    let [near_sent, far_sent] = streams.map(|s| s.end());
    println!("near: {}", to_near.expect(near_sent));
    println!("far: {}", to_far.expect(far_sent));
    assert!(passed(&host) < far_sent, "{} of {far_sent}", passed(&host));
    assert_eq!(host.drops("up", "ring_full"), 0);
    // And off again: whoever receives forwards.
    host.dunlin("port set far --workers 1");
    host.dunlin("port set up --steering rss");
    let before = passed(&host);
    let receiver = far.receive("--count 100");
    up.send("--src 52:54:00:00:00:0a --dst 52:54:00:00:00:0c --count 100");
    assert_eq!((receiver.summary("received"), passed(&host)), (100, before));
    assert!(host.refused("port set far --steering nonsense").contains("nonsense"));
}

/// More than the other worker can take: dropped by its own reason, and nothing is lost from the books.
#[test]
fn a_full_ring_between_workers_is_counted() {
    let host = Host::with_options("--cores 0,1 --any-device");
    assert!(
        host.refused("port add v --kind vhost-user --steering vmdq")
            .contains("steering: is for kind nic or host or tap")
    );
    host.dunlin("port add sink --kind nic --device net_null0,no-rx=1 --queues 1 --workers 1");
    host.dunlin("mac add 02:00:00:00:00:01 --port sink");
    let busy = frames(&host, "busy.pcap", 9, &[[0xff; 6]; 64]);
    host.dunlin(&format!(
        "port add busy --kind nic --device net_pcap8,rx_pcap={busy},infinite_rx=1 --queues 1 --workers 1"
    ));
    let file = frames(&host, "up.pcap", 1, &[[2, 0, 0, 0, 0, 1]; 64]);
    host.dunlin(&format!(
        "port add up --kind nic --device net_pcap7,rx_pcap={file},infinite_rx=1 --queues 1 --workers 0 --steering vmdq"
    ));
    eventually("the ring is full at times", 5.0, || host.drops("up", "ring_full") > 0);
    // Taken away under full load, with frames on their way.
    host.dunlin("port del up");
    host.dunlin("port del busy");
    assert!(host.json("worker list")[0]["passed_frames"].as_u64().unwrap() > 1_000);
    host.check_conservation();
}

/// A file of frames with these destinations, for DPDK's pcap driver.
fn frames(host: &Host, name: &str, source: u8, destinations: &[[u8; 6]]) -> String {
    let mut file = Vec::new();
    [0xa1b2_c3d4u32, 0x0004_0002, 0, 0, 65_535, 1].iter().for_each(|w| file.extend(w.to_le_bytes()));
    for to in destinations {
        [0u32, 0, 60, 60].iter().for_each(|w| file.extend(w.to_le_bytes()));
        let mut frame = [&to[..], &[2, 0, 0, 0, 1, source], &[0x88, 0xb5]].concat();
        frame.resize(60, 0);
        file.extend(frame);
    }
    std::fs::write(host.path(name), file).unwrap();
    host.path(name)
}

/// Queues of one worker fill the same port in one round, by whole bursts, by single frames and by
/// copies, in every order: nothing is lost on the way, to the frame.
#[test]
fn many_queues_fill_one_port_in_one_round() {
    let host = Host::with_options("--any-device");
    let (p, q, all) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2], [0xff; 6]);
    for (name, mac, i) in [("p", "02:00:00:00:00:01", 0), ("q", "02:00:00:00:00:02", 1)] {
        host.dunlin(&format!("port add {name} --kind nic --device net_null{i},no-rx=1 --queues 1"));
        host.dunlin(&format!("mac add {mac} --port {name}"));
    }
    let both: Vec<[u8; 6]> = (0..64).map(|i| if i % 2 == 0 { p } else { q }).collect();
    let one_alone: Vec<[u8; 6]> = (0..256).map(|i| if i % 128 == 0 { p } else { q }).collect();
    for (i, to) in [&both[..], &[p; 64], &[all; 64], &one_alone, &[p; 64], &both].iter().enumerate() {
        let file = frames(&host, &format!("{i}.pcap"), i as u8, to);
        host.dunlin(&format!("port add r{i} --kind nic --device net_pcap{i},rx_pcap={file},infinite_rx=1 --queues 1"));
    }
    eventually("frames flow", 5.0, || host.count("p", "tx_frames") > 10_000);
    (0..6).for_each(|i| drop(host.dunlin(&format!("port del r{i}"))));
    for port in ["p", "q"] {
        assert_eq!(host.count(port, "tx_bytes"), 60 * host.count(port, "tx_frames"), "{port}");
        assert_eq!(host.drops(port, "tx_full"), 0, "{port}");
    }
}
