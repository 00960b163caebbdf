//! NICs on a PCI bus, taken from the kernel as the README says, on another host (`elsewhere.rs`).

use crate::{
    elsewhere::{self, FAR_NIC, KERNEL_NIC, PLAIN_NIC, RSS_NIC},
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
    let before = by_queue(&host, "up");
    // 400 flows of a datagram.
    sh("/usr/bin/python3 -c 'import socket, time\n\
        for port in range(20000, 20400):\n  \
            s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n  \
            s.bind((\"10.1.0.1\", port))\n  \
            s.sendto(b\"x\" * 20, (\"10.1.0.2\", 9))\n  \
            time.sleep(0.005)'");
    let told = host.dunlin("port show up");
    assert!(told.contains("2 of 8 receive queues"), "{told}");
    let of_each: Vec<u64> = by_queue(&host, "up").iter().zip(&before).map(|(now, before)| now - before).collect();
    assert!(of_each.len() == 2 && of_each.iter().all(|n| *n > 100), "{of_each:?}");
    assert!((400..420).contains(&of_each.iter().sum::<u64>()), "{of_each:?}");
}

#[test]
fn a_nic_stays_on_its_node() {
    elsewhere::run_with_nodes("nic::a_nic_stays_on_its_node_there");
}

/// The queues and buffers of a NIC are of its own NUMA node, and so is the worker that polls it.
#[test]
#[ignore = "run by a_nic_stays_on_its_node, on another host"]
fn a_nic_stays_on_its_node_there() {
    sh("for node in 0 1; do \
        echo 200 > /sys/devices/system/node/node$node/hugepages/hugepages-2048kB/nr_hugepages; done");
    bind(FAR_NIC);
    let host = Host::with_hugepages("--cores 0,1 --memory 256");
    let in_use = |pool: &str| {
        let pools = host.json("status")["dataplane"]["pools"].as_array().unwrap().clone();
        pools.iter().find(|p| p["name"] == pool).unwrap_or_else(|| panic!("{pools:?}"))["in_use"].as_u64().unwrap()
    };
    let before = [in_use("standard-0"), in_use("standard-1")];
    host.dunlin(&format!("port add up --kind nic --device {FAR_NIC} --queues 1"));
    assert_eq!(host.port("up")["numa_node"], 1, "{}", host.dunlin("port show up"));
    assert_eq!((in_use("standard-0") - before[0], in_use("standard-1") - before[1] >= 512), (0, true));
    // Both workers are idle, and that of the other node would be the first.
    let workers = host.json("worker list");
    let polls = |w: &serde_json::Value| w["queues"].as_array().unwrap().len();
    assert_eq!([polls(&workers[0]), polls(&workers[1])], [0, 1], "{workers}");
}
