//! Tests on another host: a virtual machine with a kernel that can do what this one's may not, NICs of its own, and this
//! host's files.
//!
//! The test there is one of this program's, marked `#[ignore]`; the test that stands for it here calls [`run`].

use std::{
    os::{
        fd::OwnedFd,
        unix::{fs::PermissionsExt, net::UnixListener},
    },
    path::Path,
    process::{Command, Stdio},
};

use crate::net::{Background, Netns};

/// Emulated processors are slow: who waits there waits so many times as long.
const SLOWER: u32 = 6;
/// After so many seconds, many times what is usual, it is ended.
const PATIENCE: &str = "3600";

/// Without MSI-X for the root: QEMU 7.2 crashes with it, where a process of the host serves a device and the processor is
/// emulated.
const MACHINE: &str = "-nodefaults -no-reboot -accel tcg,thread=multi -cpu max -smp 2 -display none -serial stdio \
    -machine q35 -device vhost-user-fs-pci,chardev=root,tag=root,vectors=0";

const ONE_NODE: &str = "-m 1536M -object memory-backend-memfd,id=mem,size=1536M,share=on -machine memory-backend=mem";

/// Two NUMA nodes of a processor each; the second has a PCI bus of its own, with the NIC of [`run_with_nodes`].
const TWO_NODES: &str = "-m 2G \
    -object memory-backend-memfd,id=near,size=1G,share=on -numa node,nodeid=0,cpus=0,memdev=near \
    -object memory-backend-memfd,id=far,size=1G,share=on -numa node,nodeid=1,cpus=1,memdev=far \
    -device intel-iommu -device pxb-pcie,id=bus1,bus_nr=128,bus=pcie.0,numa_node=1 \
    -device pcie-root-port,id=port1,bus=bus1,chassis=1 -netdev hubport,id=nic0,hubid=0 \
    -device e1000e,bus=port1,netdev=nic0,romfile=";

pub const FAR_NIC: &str = "0000:81:00.0";

/// The NICs of [`run_with_nics`], on one wire: the kernel there has the last, the others are DPDK's to take.
pub const RSS_NIC: &str = "0000:00:10.0";
pub const PLAIN_NIC: &str = "0000:00:11.0";
pub const KERNEL_NIC: &str = "0000:00:12.0";

const NICS: &str = "-device intel-iommu \
    -netdev tap,id=nic0,ifname=nic0,queues=2,script=no,downscript=no \
    -device virtio-net-pci,netdev=nic0,addr=10,mac=52:54:00:00:10:00,mq=on,rss=on,vectors=8,disable-legacy=on,\
iommu_platform=on,romfile= \
    -netdev tap,id=nic1,ifname=nic1,script=no,downscript=no \
    -device e1000e,netdev=nic1,addr=11,mac=52:54:00:00:11:00,romfile= \
    -netdev tap,id=nic2,ifname=nic2,script=no,downscript=no \
    -device virtio-net-pci,netdev=nic2,addr=12,mac=52:54:00:00:12:00,romfile=";

/// Runs a test of this program, by its path, on another host.
pub fn run(test: &str) {
    boot(test, ONE_NODE, None);
}

/// The same on a host of two NUMA nodes.
pub fn run_with_nodes(test: &str) {
    boot(test, TWO_NODES, None);
}

/// The same on a host with three NICs, and an IOMMU to take them from the kernel.
pub fn run_with_nics(test: &str) {
    let wire = Netns::new();
    wire.run("ip link add wire type bridge mcast_snooping 0 && ip link set wire up");
    for (nic, queues) in [("nic0", "multi_queue"), ("nic1", ""), ("nic2", "")] {
        wire.run(&format!("ip tuntap add {nic} mode tap {queues} && ip link set {nic} master wire up"));
    }
    boot(test, &format!("{ONE_NODE} {NICS}"), Some(&wire));
}

fn boot(test: &str, machine: &str, wire: Option<&Netns>) {
    let name = format!("dunlin-e2e-host-{}-{}", std::process::id(), test.replace(':', "_"));
    let folder = std::env::temp_dir().join(name);
    std::fs::create_dir_all(&folder).unwrap();
    let path = |file: &str| folder.join(file).display().to_string();
    let (program, socket) = (path("program"), path("root.sock"));
    write_program(Path::new(&program), test);
    let start = |command: &mut Command| Background(Some(command.spawn().expect("QEMU and virtiofsd are there")));
    // It is listened on before anyone connects.
    let listener = OwnedFd::from(UnixListener::bind(&socket).unwrap());
    let _root = start(
        Command::new("/usr/lib/qemu/virtiofsd")
            .args(["--fd=0", "-osource=/,sandbox=chroot,cache=always"])
            .stdin(listener)
            .stdout(Stdio::null())
            .stderr(Stdio::null()),
    );
    let image = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/guest");
    let append = format!("console=ttyS0 quiet panic=-1 mitigations=off intel_iommu=on dunlin.host={program}");
    let mut qemu = Command::new("timeout");
    qemu.arg(PATIENCE);
    if let Some(wire) = wire {
        qemu.args(["ip", "netns", "exec", &wire.name]);
    }
    qemu.arg("qemu-system-x86_64").args(["-chardev", &format!("socket,id=root,path={socket}")]);
    qemu.args(MACHINE.split_whitespace()).args(machine.split_whitespace());
    qemu.args(["-kernel", &format!("{image}/vmlinuz"), "-initrd", &format!("{image}/initrd"), "-append", &append]);
    let told = start(qemu.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped())).finish();
    let _ = std::fs::remove_dir_all(&folder);
    println!("{told}");
    let passed = told.contains("test result: ok. 1 passed") && told.contains("DUNLIN-HOST-ENDED 0");
    assert!(passed, "{test} failed there");
}

/// What the host is to run.
fn write_program(path: &Path, test: &str) {
    let this = std::env::current_exe().unwrap();
    let script = format!(
        "#!/bin/bash\nexport PATH=/usr/sbin:/usr/bin:/sbin:/bin DUNLIN_SLOWER={SLOWER}\n\
         exec {} --ignored --exact {test} --nocapture 2>&1\n",
        this.display()
    );
    std::fs::write(path, script).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}
