//! NICs on a PCI bus, taken from the kernel as the README says, on another host (`elsewhere.rs`).

use crate::{
    elsewhere::{self, KERNEL_NIC, PLAIN_NIC, RSS_NIC},
    host::Host,
    net::{Netns, sh},
};

/// The name of the interface that the kernel has on a PCI device.
fn interface(address: &str) -> String {
    sh(&format!("ls -d /sys/bus/pci/devices/{address}/virtio*/net/* | xargs -n 1 basename")).trim().to_owned()
}

fn bind(address: &str) {
    sh(&format!("dpdk-devbind.py --bind=vfio-pci {address}"));
}

/// Frames received by each receive queue of a port, by its number.
fn by_queue(host: &Host, port: &str) -> Vec<u64> {
    let workers = host.json("worker list");
    let queues = workers.as_array().unwrap().iter().flat_map(|w| w["queues"].as_array().unwrap().clone());
    let mut all: Vec<(u64, u64)> = queues
        .filter(|q| q["port"] == port)
        .map(|q| (q["queue"].as_u64().unwrap(), q["frames"].as_u64().unwrap()))
        .collect();
    all.sort_unstable();
    all.into_iter().map(|q| q.1).collect()
}

#[test]
fn nics_are_taken_from_the_kernel() {
    elsewhere::run_with_nics("nic::nics_are_taken_from_the_kernel_there");
}

/// Two models of NICs forward between a wire and a namespace; one spreads flows over two queues, each polled by a worker.
#[test]
#[ignore = "run by nics_are_taken_from_the_kernel, on another host"]
fn nics_are_taken_from_the_kernel_there() {
    let peer = interface(KERNEL_NIC);
    sh(&format!("ip addr add 10.1.0.1/24 dev {peer} && ip link set {peer} up"));
    let host = Host::with_options("--cores 0,1");
    let inside = Netns::with_address("10.1.0.2/24");
    host.add_host("inside", &inside, "--vlan 10");
    let refused = host.refused(&format!("port add up --kind nic --device {RSS_NIC}"));
    assert!(refused.contains("the kernel's driver 'virtio-pci' has it; bind it with"), "{refused}");
    bind(RSS_NIC);
    bind(PLAIN_NIC);
    // One after the other: two on one wire are a loop.
    host.dunlin(&format!("port add up --kind nic --device {PLAIN_NIC} --queues 1 --vlan 10"));
    host.wait_up("up");
    assert!(inside.reaches("10.1.0.1", 10), "{}", host.dunlin("port show up"));
    host.dunlin("port del up");
    host.dunlin(&format!("port add up --kind nic --device {RSS_NIC} --queues 8 --workers 0,1 --vlan 10"));
    host.wait_up("up");
    assert!(inside.reaches("10.1.0.1", 10), "{}", host.dunlin("port show up"));
    let _server = inside.spawn("iperf3 -s -1");
    sh("sleep 3; iperf3 -c 10.1.0.2 -P 8 -t 5 >&2");
    let told = host.dunlin("port show up");
    println!("{told}{}", host.dunlin("worker list"));
    assert!(told.contains("2 of 8 receive queues"), "{told}");
    let queues = by_queue(&host, "up");
    assert!(queues.len() == 2 && queues.iter().all(|frames| *frames > 100), "{queues:?}");
}
