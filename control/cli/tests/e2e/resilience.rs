//! Processes that die at any moment, in any order.

use std::{
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use crate::{
    host::{Host, binary},
    net::{Netns, eventually},
};

/// Ends what it supervises when it is told to end, which a kill would not.
struct Supervisor(std::process::Child);

impl Drop for Supervisor {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.0.id() as i32);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::SIGTERM);
        let _ = self.0.wait();
    }
}

fn two_hosts() -> (Host, Netns, Netns) {
    let (a, b) = (Netns::with_address("10.2.0.1/24"), Netns::with_address("10.2.0.2/24"));
    let host = Host::start();
    host.add_host("a", &a, "--vlan 10");
    host.add_host("b", &b, "--vlan 10");
    (host, a, b)
}

#[test]
fn control_dies_and_not_one_frame_is_lost() {
    let (mut host, a, b) = two_hosts();
    let receiver = b.receive("");
    let mac = b.mac();
    let more_arrive = |frames: u64| {
        let before = b.rx_packets();
        eventually("frames arrive", 5.0, || b.rx_packets() > before + frames);
    };
    let stream = a.stream(&format!("--dst {mac} --rate 3000"));
    std::thread::scope(|s| {
        more_arrive(1000);
        host.kill_control();
        more_arrive(4000);
        host.start_control();
        host.wait_until_filled();
        // And once more, in the middle of a change.
        let slow = host.path("control.sock");
        s.spawn(move || {
            let mut c = Command::new(binary("dunlin"));
            let _ = c.args(["--control", &slow, "bridge", "add", "later"]).output();
        });
        host.kill_control();
        host.start_control();
        host.wait_until_filled();
    });
    more_arrive(1000);
    receiver.expect(stream.end());
    // What was acknowledged is still wanted.
    assert_eq!(host.json("port list").as_array().unwrap().len(), 2);
    assert_eq!(host.json("status")["dataplane_restarts"], 0);
}

#[test]
fn the_dataplane_dies_and_is_refilled() {
    let (mut host, a, _b) = two_hosts();
    host.dunlin("mac add 52:54:00:00:00:77 --vlan 10 --port b");
    for _ in 0..3 {
        host.kill_dataplane();
        let down = host.refused("mac list");
        assert!(down.contains("the dataplane is down") && down.contains("systemctl start dunlin-dataplane"), "{down}");
        host.start_dataplane();
        // Counted from when it listens: starting DPDK takes its own time.
        eventually("it listens", 10.0, || std::os::unix::net::UnixStream::connect(host.path("dataplane.sock")).is_ok());
        let begun = Instant::now();
        eventually("ports are back", 2.0, || {
            let status = host.json("status");
            let state = status["dataplane"]["ports"].as_array().cloned().unwrap_or_default();
            state.len() == 2 && state.iter().all(|p| p["up"] == true)
        });
        assert!(a.reaches("10.2.0.2", 3));
        println!("refilled in {:?}", begun.elapsed());
    }
    assert!(host.json("mac list").as_array().unwrap().iter().any(|m| m["is_static"] == true));
}

/// With the supervisor that ships. (Within three seconds, on a machine that has the time.)
#[test]
fn the_supervisor_brings_forwarding_back() {
    let (mut host, a, b) = two_hosts();
    host.kill_dataplane();
    let supervise = format!("{}/../../configs/demo/supervise.sh", env!("CARGO_MANIFEST_DIR"));
    let supervisor = Supervisor(
        Command::new(supervise)
            .arg(host.path("dunlin-dataplane.log"))
            .arg(binary("dunlin-dataplane"))
            .args(host.dataplane_arguments().split_whitespace())
            .spawn()
            .unwrap(),
    );
    eventually("traffic flows", 10.0, || a.reaches("10.2.0.2", 1));
    let mac = b.mac();
    let receiver = b.receive("");
    let stream = a.stream(&format!("--dst {mac} --rate 1000"));
    let more_arrive = || {
        let before = b.rx_packets();
        eventually("frames arrive", 10.0, || b.rx_packets() > before + 500);
    };
    more_arrive();
    let pid = crate::net::sh(&format!("pgrep -P {} -x dunlin-dataplan", supervisor.0.id()));
    crate::net::sh(&format!("kill -9 {pid}"));
    more_arrive();
    stream.end();
    let summary = receiver.finish().pop().expect("a summary");
    drop(supervisor);
    println!("forwarding was away for {} ms", crate::net::number(&summary, "gap_ms"));
    assert!(crate::net::number(&summary, "lost") > 0, "it was not away: {summary}");
}

#[test]
fn changes_made_while_the_dataplane_is_down_are_kept() {
    let (mut host, a, _b) = two_hosts();
    host.kill_dataplane();
    assert!(host.dunlin("port set b --vlan 20").contains("stored, and not in force yet: the dataplane is down"));
    host.kill_control();
    host.start_control();
    host.start_dataplane();
    host.wait_until_filled();
    host.wait_up("b");
    assert!(!a.reaches("10.2.0.2", 1));
    host.dunlin("port set b --vlan 10");
    assert!(a.reaches("10.2.0.2", 3));
}

/// `kill -9` at any instant of a stream of changes: what was acknowledged is there.
#[test]
fn acknowledged_changes_survive_kill_9() {
    let mut host = Host::start();
    let mut acknowledged = 0;
    for round in 0..4u64 {
        let control = host.path("control.sock");
        let done = Arc::new(AtomicU64::new(0));
        let counted = done.clone();
        let changer = std::thread::spawn(move || {
            for i in 0..10_000 {
                let name = format!("r{round}n{i}");
                let o = Command::new(binary("dunlin"))
                    .args(["--control", &control, "bridge", "add", &name])
                    .output()
                    .unwrap();
                if !o.status.success() {
                    break;
                }
                counted.fetch_add(1, Relaxed);
            }
        });
        eventually("changes are made", 5.0, || done.load(Relaxed) > 3 + 7 * round);
        host.kill_control();
        changer.join().unwrap();
        acknowledged += done.load(Relaxed);
        host.start_control();
        host.wait_until_filled();
        let there = host.json("bridge list").as_array().unwrap().len() as u64;
        // One may have been stored whose answer got lost.
        assert!((acknowledged..=acknowledged + 1).contains(&there), "{there} for {acknowledged}");
        acknowledged = there;
    }
    assert!(acknowledged > 4, "some changes were made: {acknowledged}");
}

/// Control that comes back with an empty store does not cut the host off; the first change takes
/// the dataplane over.
#[test]
fn a_lost_store_does_not_stop_forwarding() {
    let (mut host, a, _b) = two_hosts();
    let config = host.dunlin("export");
    host.kill_control();
    std::fs::rename(host.path("state.redb"), host.path("elsewhere")).unwrap();
    host.start_control();
    host.wait_until_filled();
    assert!(a.reaches("10.2.0.2", 3));
    assert!(host.dunlin("status").contains("this store, which is new, does not have"));
    assert!(host.apply(&config).status.success());
    assert!(a.reaches("10.2.0.2", 3) && !host.dunlin("status").contains("which is new"));
    assert_eq!(host.dunlin("export"), config);
}

/// What could keep a dataplane from being refilled is refused when it is wished for.
#[test]
fn a_static_address_keeps_its_port_in_the_vlan() {
    let (mut host, a, _b) = two_hosts();
    host.dunlin("mac add 52:54:00:00:00:01 --vlan 10 --port b");
    let error = host.refused("port set b --vlan 20");
    assert!(error.contains("52:54:00:00:00:01") && error.contains("does not carry VLAN 10"), "{error}");
    assert!(host.refused("mac flush --bridge br0 --vlan 65546 --mac 52:54:00:00:00:01").contains("65546"));
    host.kill_dataplane();
    host.start_dataplane();
    host.wait_until_filled();
    eventually("it forwards", 5.0, || a.reaches("10.2.0.2", 1));
}

/// A whole file: what it adds, changes and removes, said before and done after.
#[test]
fn a_file_is_planned_applied_and_exported() {
    let (host, a, _b) = two_hosts();
    let before = host.dunlin("export");
    let file = host.path("host.toml");
    let other = before.replacen("vlan = 10", "vlan = 20", 1)
        + "[[port]]\nname = \"t\"\nkind = \"nic\"\ndevice = \"net_null0,no-rx=1\"\n";
    std::fs::write(&file, &other).unwrap();
    let plan = host.dunlin(&format!("diff -f {file}"));
    assert!(plan.contains("~ port a  (vlan: 10 -> 20)") && plan.contains("+ port t"), "{plan}");
    assert_eq!(host.dunlin("export"), before, "a diff changes nothing");
    host.dunlin(&format!("apply -f {file}"));
    assert!(!a.reaches("10.2.0.2", 1));
    assert!(host.dunlin(&format!("diff -f {file}")).contains("nothing to change"));
    std::fs::write(&file, &before).unwrap();
    let plan = host.dunlin(&format!("apply -f {file}"));
    assert!(plan.contains("- port t") && plan.contains("0 added, 1 changed, 1 removed"), "{plan}");
    assert!(a.reaches("10.2.0.2", 3));
    for line in host.dunlin("port list").lines().chain(host.dunlin("port --help").lines()) {
        assert!(line.chars().count() <= 100, "{line}");
    }
}
