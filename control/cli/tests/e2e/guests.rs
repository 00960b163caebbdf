//! Real guests in QEMU over vhost-user.

use crate::{
    guest::Guest,
    host::Host,
    net::{Netns, eventually},
};

#[test]
fn two_guests_and_a_kernel_host_talk_and_a_stranger_does_not() {
    let (friend, stranger) = (Netns::with_address("10.5.0.3/24"), Netns::with_address("10.5.0.4/24"));
    let host = Host::start();
    host.add_host("friend", &friend, "--vlan 10");
    host.add_host("stranger", &stranger, "--vlan 20");
    for g in ["web1", "web2"] {
        host.dunlin(&format!("port add {g} --kind vhost-user --vlan 10 --socket {}", host.path(&format!("{g}.sock"))));
        assert_eq!(host.port(g)["guest"]["connected"], false);
    }
    // Packed rings would not outlive the switch: they are not offered, also to a guest that could have them.
    let start = |n: u32| {
        let options = format!("--ip 10.5.0.{n}/24 --packed on");
        Guest::start(&format!("web{n}"), &host.path(&format!("web{n}.sock")), &options)
    };
    let (one, two) = (start(1), start(2));
    let (mut one, mut two) = (one.ready(), two.ready());
    assert!(one.reaches("10.5.0.2", 3), "guest to guest");
    assert!(two.reaches("10.5.0.3", 3), "guest to kernel host");
    assert!(friend.reaches("10.5.0.1", 3), "kernel host to guest");
    assert!(!stranger.reaches("10.5.0.1", 1) && !two.reaches("10.5.0.4", 1), "another VLAN");
    assert_eq!(host.port("web1")["guest"]["running"], true);

    // A guest that is killed harms nobody, and is taken back when it returns.
    let frames = host.count("web2", "rx_frames");
    one.kill();
    eventually("its port is down", 5.0, || {
        host.port("web1")["up"] == false && host.port("web1")["guest"]["connected"] == false
    });
    assert!(two.reaches("10.5.0.3", 3) && host.count("web2", "rx_frames") > frames);
    assert!(!friend.reaches("10.5.0.1", 1));
    let mut one = start(1).ready();
    assert!(one.reaches("10.5.0.2", 5), "after its return");

    // Restarted under the guests: they come back by themselves, without a hand's help.
    let mut host = host;
    host.kill_dataplane();
    host.start_dataplane();
    host.wait_until_filled();
    host.wait_up("web1");
    host.wait_up("web2");
    assert!(one.reaches("10.5.0.2", 5) && friend.reaches("10.5.0.1", 5), "after the dataplane's return");
}

#[test]
fn a_guest_with_two_queues_whose_socket_dunlin_makes() {
    let ns = Netns::with_address("10.5.1.1/24");
    let host = Host::with_options("--memory 512");
    host.add_host("ns", &ns, "--mtu 9000");
    ns.run("ip link set eth0 mtu 9000");
    let socket = host.path("multi.sock");
    host.dunlin(&format!("port add multi --kind vhost-user --server --mtu 9000 --socket {socket}"));
    assert!(std::path::Path::new(&socket).exists());
    let mut g = Guest::start("multi", &socket, "--vhost client --queues 2 --mtu 9000 --ip 10.5.1.2/24").ready();
    eventually("both queues are in use", 10.0, || host.port("multi")["guest"]["queue_pairs"] == 2);
    let queues = host.json("worker list")[0]["queues"].to_string();
    assert_eq!(queues.matches("multi").count(), 2, "{queues}");
    assert!(g.reaches("10.5.1.1", 3));
    // A jumbo frame whole, and one octet more than the port's MTU not.
    assert!(ns.try_run("ping -c 2 -W 2 -M do -s 8972 10.5.1.2").status.success());
    host.dunlin("port set multi --mtu 4000");
    assert!(ns.try_run("ping -c 2 -W 2 -M do -s 3972 10.5.1.2").status.success());
    assert!(!ns.try_run("ping -c 2 -W 1 -M do -s 3973 10.5.1.2").status.success());
    assert_eq!(host.drops("multi", "mtu_exceeded"), 2);
}

/// A guest that fills its rings with garbage harms nobody else: traffic of others goes on without
/// a loss, the switch goes on, and its books stay right.
#[test]
fn garbage_in_a_guests_rings_harms_nobody_else() {
    let (a, b) = (Netns::with_address("10.5.2.1/24"), Netns::with_address("10.5.2.2/24"));
    let host = Host::start();
    host.add_host("a", &a, "--vlan 10");
    host.add_host("b", &b, "--vlan 10");
    let socket = host.path("hostile.sock");
    host.dunlin(&format!("port add hostile --kind vhost-user --vlan 20 --server --socket {socket}"));
    let mac = b.mac();
    assert!(a.reaches("10.5.2.2", 3));
    let receiver = b.receive("");
    let stream = a.stream(&format!("--dst {mac} --rate 1500"));
    for seed in 0..5 {
        let out = crate::net::sh(&format!("{} {socket} 1.5 {seed}", crate::net::hostile()));
        assert!(out.contains("running"), "{out}");
    }
    receiver.expect(stream.end());
    eventually("it is gone", 5.0, || host.port("hostile")["guest"]["connected"] == false);
}

/// A second client of a guest's socket does not take it over.
#[test]
fn a_socket_has_one_guest() {
    let host = Host::start();
    let socket = host.path("one.sock");
    host.dunlin(&format!("port add one --kind vhost-user --server --socket {socket}"));
    let _first = crate::net::Background::hostile(&socket, "600");
    eventually("the first runs", 5.0, || host.port("one")["guest"]["running"] == true);
    drop(std::os::unix::net::UnixStream::connect(&socket));
    std::thread::sleep(std::time::Duration::from_millis(500));
    let guest = host.port("one")["guest"].clone();
    assert!(guest["running"] == true && guest["connected"] == true && guest["queue_pairs"] == 1, "{guest}");
}
