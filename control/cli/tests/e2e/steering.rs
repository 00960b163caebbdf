//! Steering by destination in the device. DPDK's driver of taps takes rules where the kernel can carry them out, so these
//! run on another host (`elsewhere.rs`).

use crate::{
    elsewhere,
    host::Host,
    net::{Netns, Receiver, Stream, eventually, number, probe, sh},
};

const STATION: &str = "52:54:00:00:00:0a";
const NEAR: &str = "52:54:00:00:00:0b";
const FAR: &str = "52:54:00:00:00:0c";
const LATE: &str = "52:54:00:00:00:0d";

/// An uplink whose kernel side is `up0`.
fn add_uplink(host: &Host, options: &str) {
    // One queue beside guests': DPDK's driver of taps has no hash that would leave those alone.
    let device = "--kind nic --device net_tap0,iface=up0 --queues 1 --workers 0 --steering vmdq";
    host.dunlin(&format!("port add up {device} {options}"));
    sh("sysctl -qw net.ipv6.conf.up0.disable_ipv6=1");
    host.wait_up("up");
}

/// Sends probe frames to the uplink.
fn send(options: &str) {
    sh(&format!("{} send up0 {options}", probe()));
}

fn in_order(name: &str, receiver: Receiver, frames: u64) {
    let lines = receiver.finish();
    let summary = lines.last().expect("a summary");
    let count = |key| number(summary, key);
    assert_eq!((count("received"), count("lost"), count("disorder")), (frames, 0, 0), "{name}: {summary}");
}

/// The pair of queues of the uplink that a guest has.
fn queue_of(host: &Host, guest: &str) -> Option<serde_json::Value> {
    let queues = host.port("up")["guest_queues"].as_array().unwrap().clone();
    queues.into_iter().find(|q| q["port"] == guest)
}

fn passed(host: &Host) -> u64 {
    host.json("worker list").as_array().unwrap().iter().map(|w| w["passed_frames"].as_u64().unwrap()).sum()
}

#[test]
fn guests_have_queues_of_their_own() {
    elsewhere::run("steering::guests_have_queues_of_their_own_there");
}

/// A count of the pair of queues that a guest has.
fn count(host: &Host, guest: &str, key: &str) -> u64 {
    queue_of(host, guest).expect("it has one")[key].as_u64().unwrap()
}

/// Numbered frames to one address, until it is ended, no faster than `at` receives them.
fn stream(host: &Host, at: &Netns, to: &str, rate: u32) -> (Stream, Receiver) {
    let progress = format!("--progress {}", host.path(&at.name));
    let receiver = at.receive(&progress);
    (Stream::by("up0", &format!("--src {STATION} --dst {to} --rate {rate} {progress}")), receiver)
}

/// A fixed number of them.
fn send_to(to: &str, count: u32) {
    send(&format!("--src {STATION} --dst {to} --count {count} --rate 200"));
}

/// Each guest's frames come by a queue of the uplink that its worker polls, in their order.
#[test]
#[ignore = "run by guests_have_queues_of_their_own, on another host"]
fn guests_have_queues_of_their_own_there() {
    let (near, far) = (Netns::new(), Netns::new());
    let host = Host::with_options("--cores 0,1");
    add_uplink(&host, "--vlan 10");
    host.add_host("near", &near, "--workers 0 --vlan 10");
    host.add_host("far", &far, "--workers 1 --vlan 10");
    send(&format!("--src {STATION}"));
    a_guest_changes_workers(&host, &near, &far);
    a_rule_goes_and_comes(&host, &far);
    // What it sends goes by the queue of the same number, as far as its worker has it.
    let before = count(&host, "far", "tx_frames");
    far.send(&format!("--src {FAR} --dst {STATION} --count 30"));
    assert_eq!((count(&host, "far", "tx_frames") - before, count(&host, "far", "core")), (30, 1));
    // The address moves to another guest, and its frames with it.
    let receiver = near.receive("--count 600");
    near.send(&format!("--src {FAR}"));
    send_to(FAR, 600);
    in_order("near", receiver, 600);
    let addresses = ["near", "far"].map(|guest| count(&host, guest, "addresses"));
    assert_eq!(addresses, [2, 0], "{}", host.dunlin("port show up"));
    one_more_than_there_are_queues(&host, &far);
}

fn a_guest_changes_workers(host: &Host, near: &Netns, far: &Netns) {
    near.send(&format!("--src {NEAR}"));
    far.send(&format!("--src {FAR}"));
    eventually("both have queues", 5.0, || queue_of(host, "near").is_some() && queue_of(host, "far").is_some());
    let streams = [(near, NEAR), (far, FAR)].map(|(at, to)| stream(host, at, to, 200));
    let more_come = |guest: &str, frames| {
        let before = count(host, guest, "rx_frames");
        eventually("frames come by its queue", 10.0, || count(host, guest, "rx_frames") >= before + frames);
    };
    for i in 1..=7 {
        host.dunlin(&format!("port set far --workers {}", i % 2));
        more_come("far", 20);
    }
    // In their place, no frame needs another worker.
    more_come("near", 20);
    let before = passed(host);
    more_come("far", 500);
    more_come("near", 20);
    assert_eq!(passed(host), before, "{}", host.dunlin("port show up"));
    for (stream, receiver) in streams {
        receiver.expect(stream.end());
    }
    let told = host.dunlin("port show up");
    assert!(told.contains("vmdq, in the device") && told.contains("2 addresses of 2 guests"), "{told}");
}

/// An address is forgotten and learned again while its frames come: those before a change are not overtaken.
fn a_rule_goes_and_comes(host: &Host, far: &Netns) {
    let (stream, receiver) = stream(host, far, FAR, 2000);
    let received = || host.count("far", "tx_frames");
    for _ in 0..4 {
        let before = received();
        host.dunlin(&format!("mac flush --mac {FAR}"));
        eventually("its rule is gone", 5.0, || count(host, "far", "addresses") == 0);
        far.send(&format!("--src {FAR}"));
        eventually("it has a rule again", 5.0, || count(host, "far", "addresses") == 1);
        eventually("frames flow", 5.0, || received() > before + 1000);
    }
    receiver.expect(stream.end());
}

/// Three guests have queues; who comes then is steered in software, until one has no use for its own.
fn one_more_than_there_are_queues(host: &Host, far: &Netns) {
    let (third, late) = (Netns::new(), Netns::new());
    host.add_host("third", &third, "--workers 1 --vlan 10");
    host.add_host("late", &late, "--workers 1 --vlan 10");
    far.send(&format!("--src {FAR}"));
    third.send("--src 52:54:00:00:00:1c");
    eventually("all have queues", 5.0, || queue_of(host, "third").is_some() && count(host, "far", "addresses") == 1);
    late.send(&format!("--src {LATE}"));
    eventually("it is said", 5.0, || host.dunlin("port show up").contains("no queue is free"));
    let receiver = late.receive("--count 100");
    send_to(LATE, 100);
    in_order("late", receiver, 100);
    host.dunlin(&format!("mac flush --mac {FAR}"));
    eventually("another has its queue", 5.0, || queue_of(host, "late").is_some() && queue_of(host, "far").is_none());
    host.dunlin("port del third");
    assert!(queue_of(host, "third").is_none(), "{}", host.dunlin("port show up"));
}

#[test]
fn rules_name_the_vlan() {
    elsewhere::run("steering::rules_name_the_vlan_there");
}

/// On a trunk rules name the VLAN: the kernel has them. (DPDK's driver asks it for an inner EtherType of 3 with it, which no
/// frame has, so here the frames are steered in software all the same.)
#[test]
#[ignore = "run by rules_name_the_vlan, on another host"]
fn rules_name_the_vlan_there() {
    let far = Netns::new();
    let host = Host::with_options("--cores 0,1");
    add_uplink(&host, "--trunks 10,11");
    host.add_host("far", &far, "--workers 1 --vlan 11");
    let rules = || sh("tc filter show dev up0 parent 1:");
    far.send(&format!("--src {FAR}"));
    eventually("it has a queue", 5.0, || queue_of(&host, "far").is_some());
    let told = rules();
    assert!(
        ["vlan_id 11", &format!("dst_mac {FAR}"), "queue_mapping 1"].iter().all(|part| told.contains(part)),
        "{told}"
    );
    let receiver = far.receive("--count 100");
    send(&format!("--tags 8100:000b --src {STATION} --dst {FAR} --count 100 --rate 200"));
    in_order("far", receiver, 100);
    // Forgotten, and its rule with it.
    host.dunlin("mac flush --bridge br0");
    eventually("the rule is gone", 5.0, || !rules().contains(FAR));
    // The VLAN of the uplink is another way for the same frames to come.
    far.send(&format!("--src {FAR}"));
    eventually("it has a rule again", 5.0, || rules().contains(FAR));
    host.dunlin("port set up --unset trunks");
    host.dunlin("port set up --vlan 11");
    assert!(rules().contains(FAR) && !rules().contains("vlan_id"), "{}", rules());
    // With the usual steering, the device has no rules.
    host.dunlin("port set up --steering rss");
    eventually("there is no rule", 5.0, || !rules().contains("queue_mapping"));
    assert_eq!(host.port("up")["rx_queues"], 1);
}
