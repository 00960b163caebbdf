//! What control says is in force is what the dataplane holds, whatever devices and processes do; the faults here were seen.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use crate::{
    host::{Host, binary},
    net::{Background, Netns, eventually, sh, try_sh},
};

/// A device whose opening waits until somebody writes to its FIFO, and fails then.
fn slow_device(host: &Host) -> String {
    let fifo = host.path("fifo");
    sh(&format!("mkfifo {fifo}"));
    format!("net_pcap0,rx_pcap={fifo}")
}

fn timed<T>(what: impl FnOnce() -> T) -> (T, Duration) {
    let begun = Instant::now();
    (what(), begun.elapsed())
}

/// A list and a port whose device opens slowly, in one change; then a harmless one. The list is in force at the end.
#[test]
fn a_device_that_opens_slowly_hides_no_list() {
    let (a, b) = (Netns::with_address("10.60.0.1/24"), Netns::with_address("10.60.0.2/24"));
    let host = Host::with_options("--any-device");
    host.add_host("a", &a, "");
    host.add_host("b", &b, "");
    assert!(a.reaches("10.60.0.2", 3));
    let device = slow_device(&host);
    let change = host.dunlin("export").replacen("name = \"b\"\n", "name = \"b\"\negress_acls = [\"none\"]\n", 1)
        + &format!("[[acl]]\nname = \"none\"\n[[port]]\nname = \"slow\"\nkind = \"nic\"\ndevice = \"{device}\"\n");
    let o = host.apply(&change);
    let said = crate::net::text(&o.stdout);
    assert!(o.status.success() && said.contains("not in force yet") && said.contains("port 'slow'"), "{said}");
    // Nothing waits for the device.
    for command in ["export", "port list", "status", "mac list"] {
        let (_, time) = timed(|| host.dunlin(command));
        assert!(time < Duration::from_secs(3), "{command}: {time:?}");
    }
    let (_, time) = timed(|| host.dunlin("bridge add harmless"));
    assert!(time < Duration::from_secs(6), "{time:?}");
    // The device can't be opened after all: all the rest is in force.
    std::fs::write(host.path("fifo"), "no capture").unwrap();
    eventually("the list is in force", 30.0, || !a.reaches("10.60.0.2", 1));
    assert!(host.dunlin("status").contains("not in force: port 'slow': device"), "{}", host.dunlin("status"));
    assert!(host.logs().contains("the stored configuration is not in force"), "{}", host.logs());
}

/// A device that never opens: the process ends on SIGTERM all the same, and the next one forwards.
#[test]
fn a_dataplane_whose_device_hangs_ends_when_told() {
    let (a, b) = (Netns::with_address("10.61.0.1/24"), Netns::with_address("10.61.0.2/24"));
    let mut host = Host::with_options("--any-device");
    host.add_host("a", &a, "");
    host.add_host("b", &b, "");
    let device = slow_device(&host);
    assert!(host.dunlin(&format!("port add slow --kind nic --device {device}")).contains("not in force yet"));
    // It goes on forwarding.
    assert!(a.reaches("10.61.0.2", 3));
    host.dunlin("port del slow");
    let mut dataplane = host.dataplane.take().unwrap();
    sh(&format!("kill {}", dataplane.id()));
    eventually("it ends", 25.0, || dataplane.try_wait().unwrap().is_some());
    host.start_dataplane();
    host.wait_until_filled();
    host.wait_up("b");
    eventually("it forwards", 10.0, || a.reaches("10.61.0.2", 1));
}

/// A port pinned to a core that is no worker after a restart: it runs elsewhere, and is named.
#[test]
fn a_core_that_is_gone_keeps_no_port_dark() {
    let (a, b) = (Netns::with_address("10.62.0.1/24"), Netns::with_address("10.62.0.2/24"));
    let mut host = Host::with_options("--cores 0,1");
    host.add_host("a", &a, "--workers 1");
    host.add_host("b", &b, "");
    host.kill_dataplane();
    host.set_options("--cores 0");
    host.start_dataplane();
    host.wait_until_filled();
    host.wait_up("a");
    assert!(a.reaches("10.62.0.2", 5));
    let why = "port 'a': workers: core 1 is no worker";
    assert!(host.dunlin("status").contains(why) && host.dunlin("port list").contains(why));
    assert!(host.logs().contains(why), "{}", host.logs());
    assert!(host.metrics().contains("dunlin_problem{field=\"workers\",kind=\"port\",name=\"a\"} 1"));
    assert_eq!(host.try_dunlin("status").status.code(), Some(1));
    // What was not there before is refused, and the pin can be taken back.
    assert!(host.refused("port set b --workers 1").contains("core 1 is no worker"));
    // It stops no change of other settings.
    host.dunlin("port set a --description pinned --mac-limit 9");
    assert!(host.dunlin("port list").contains(why));
    host.dunlin("port set a --unset workers");
    assert_eq!(host.try_dunlin("status").status.code(), Some(0), "{}", host.dunlin("status"));
}

/// A change that fails closes nothing but what it takes over.
#[test]
fn a_take_over_that_fails_bounces_nothing_else() {
    let (a, b) = (Netns::with_address("10.63.0.1/24"), Netns::with_address("10.63.0.2/24"));
    let host = Host::start();
    host.add_host("a", &a, "");
    host.add_host("b", &b, "--driver af_xdp");
    let mac = b.mac();
    let receiver = b.receive("");
    std::thread::scope(|s| {
        s.spawn(|| a.send(&format!("--dst {mac} --count 3000 --rate 1000")));
        // "t" takes over the device of "c", and the interface of "u" does not exist; "b" only changes.
        host.dunlin("port add c --kind nic --device net_null5,no-rx=1");
        let file = host.dunlin("export").replace("name = \"c\"", "name = \"t\"")
            + "[[port]]\nname = \"u\"\nkind = \"host\"\ninterface = \"nope0\"\n";
        assert!(!host.apply(&file).status.success());
    });
    let lines = receiver.finish();
    assert!(lines.last().unwrap().starts_with("received=3000 distinct=3000 lost=0"), "{lines:?}");
    // A device that can't take an MTU is not stopped for it.
    let error = host.refused("port set b --mtu 9000");
    assert!(error.contains("mtu"), "{error}");
    assert!(a.reaches("10.63.0.2", 3));
    host.wait_up("b");
}

/// `status` says by its exit status how the switch is, for probes (LSB: 3 is "not running").
#[test]
fn the_exit_status_says_how_the_switch_is() {
    let a = Netns::new();
    let mut host = Host::start();
    host.add_host("a", &a, "");
    let codes = |host: &Host| ["status", "--json status"].map(|c| host.try_dunlin(c).status.code().unwrap());
    assert_eq!(codes(&host), [0, 0]);
    sh(&format!("ip link del {}", a.outside));
    eventually("a port has no device", 10.0, || codes(&host) == [1, 1]);
    host.kill_dataplane();
    eventually("it is down", 5.0, || codes(&host) == [3, 3]);
    for command in ["mac list", "session list", "worker list", "trace --port a --frame 00"] {
        assert_eq!(host.try_dunlin(command).status.code(), Some(3), "{command}");
    }
}

/// Metrics that can't be served are no reason to serve nothing else.
#[test]
fn a_metrics_address_in_use_stops_nothing() {
    let mut host = Host::start();
    host.kill_control();
    let taken = std::net::TcpListener::bind(("127.0.0.1", host.metrics_port)).unwrap();
    host.start_control();
    host.wait_until_filled();
    host.dunlin("bridge add b1");
    let said = || host.dunlin("status").contains("metrics are not served on 127.0.0.1:");
    eventually("it is said", 5.0, said);
    drop(taken);
    eventually("they are served when that is possible", 15.0, || {
        try_sh(&format!("curl -sf http://127.0.0.1:{}/metrics", host.metrics_port)).status.success()
    });
    assert!(!said());
}

/// No counter goes back while a guest takes nothing.
#[test]
fn counters_of_a_stuck_guest_only_grow() {
    let a = Netns::new();
    let host = Host::start();
    host.add_host("a", &a, "");
    let socket = host.path("g.sock");
    host.dunlin(&format!("port add g --kind vhost-user --server --socket {socket}"));
    let _guest = Background::hostile(&socket, "stuck 60");
    host.wait_up("g");
    let flood = a.spawn(
        "python3 -c \"import socket; s = socket.socket(17, 3); s.bind((\\\"eth0\\\", 0)); \
                         f = bytes.fromhex(\\\"ffffffffffff02000000000188b5\\\") + bytes(1000); \
                         [s.send(f) for _ in iter(int, 1)]\"",
    );
    let mut last = std::collections::BTreeMap::new();
    eventually("it drops", 10.0, || host.drops("g", "tx_full") > 1000);
    for _ in 0..200 {
        for line in host.metrics().lines().filter(|l| l.starts_with("dunlin_port_") && l.contains("_total")) {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let value: f64 = value.parse().unwrap();
            let before = last.insert(series.to_owned(), value).unwrap_or(0.0);
            assert!(value >= before, "{series}: {before} -> {value}");
        }
    }
    drop(flood);
}

/// A guest that comes and goes in a loop is held down, and keeps nothing busy.
#[test]
fn a_guest_that_flaps_is_held_down() {
    let (a, b) = (Netns::with_address("10.64.0.1/24"), Netns::with_address("10.64.0.2/24"));
    let host = Host::start();
    host.add_host("a", &a, "");
    host.add_host("b", &b, "");
    let socket = host.path("g.sock");
    host.dunlin(&format!("port add g --kind vhost-user --server --socket {socket}"));
    let _guest = Background::hostile(&socket, "flap 30");
    eventually("it is held down", 30.0, || host.logs().contains("port 'g': its link flaps: it is held down"));
    for i in 0..10 {
        let (_, time) = timed(|| host.dunlin(&format!("bridge add b{i}")));
        assert!(time < Duration::from_secs(3), "{time:?}");
    }
    assert!(a.reaches("10.64.0.2", 3));
}

/// A lease is stored when it is acknowledged: however soon the processes die, the station keeps its address.
#[test]
fn a_lease_survives_a_kill_right_after_it() {
    let (server, client) = (Netns::with_address("10.65.0.1/24"), Netns::new());
    let mut host = Host::start();
    host.add_host("server", &server, "");
    let checks = format!("--security all,dhcp-snooping --macs {}", client.mac());
    host.add_host("client", &client, &checks);
    client.run("ip addr add 10.65.0.50/24 dev eth0");
    let _dnsmasq = server.serve_dhcp("10.65.0.50,10.65.0.50", &host.path(""));
    let lease = |ns: &Netns| ns.try_run("busybox udhcpc -i eth0 -n -q -f -t 4 -T 1 -s /bin/true").status.success();
    eventually("a lease", 20.0, || lease(&client));
    // Nothing else in the store has this address.
    let stored = || std::fs::read(host.path("state.redb")).unwrap().windows(10).any(|o| o == b"10.65.0.50");
    eventually("it is stored", 2.0, stored);
    // Both at once: what is only in memory is gone.
    host.kill_dataplane();
    host.kill_control();
    host.start_dataplane();
    host.start_control();
    host.wait_until_filled();
    host.wait_up("client");
    assert!(client.reaches("10.65.0.1", 5), "{}", host.dunlin("port show client"));
    // Another port of the same name has none of it.
    host.dunlin("port del client");
    host.add_host("client", &client, &checks);
    assert!(!client.reaches("10.65.0.1", 1), "{}", host.dunlin("port show client"));
    assert!(!host.dunlin("port show client").contains("10.65.0.50"));
    // Snooping that is switched on under a running guest is warned of.
    host.dunlin("port set client --unset security,macs");
    let said = host.dunlin(&format!("port set client {checks}"));
    assert!(said.contains("note: port 'client': security: dhcp-snooping does not know the address"), "{said}");
}

/// A newer store is refused with both versions, by the exit status that systemd does not restart (78).
#[test]
fn permanent_failures_exit_with_78() {
    let mut host = Host::start();
    host.kill_control();
    std::fs::write(host.path("state.redb"), "no store").unwrap();
    let o = Command::new(binary("dunlin-control")).args(host.control_arguments().split_whitespace()).output().unwrap();
    let error = crate::net::text(&o.stderr);
    assert_eq!(o.status.code(), Some(78), "{error}");
    assert!(error.contains("can't be trusted") && !error.contains("panicked"), "{error}");
}
