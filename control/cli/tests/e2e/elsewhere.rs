//! Tests on another host: a virtual machine with a kernel that can do what this one's may not, and this host's files.
//!
//! The test there is one of this program's, marked `#[ignore]`; [`run`] is called by the test that stands for it here.

use std::{
    os::unix::fs::PermissionsExt,
    process::{Command, Stdio},
};

use crate::net::{Background, eventually};

/// Emulated processors are slow: who waits there waits so many times as long.
const SLOWER: u32 = 6;

/// Runs a test of this program, by its path, on another host.
pub fn run(test: &str) {
    let folder =
        std::env::temp_dir().join(format!("dunlin-e2e-host-{}-{}", std::process::id(), test.replace(':', "_")));
    std::fs::create_dir_all(&folder).unwrap();
    let path = |file: &str| folder.join(file).display().to_string();
    let program = format!(
        "#!/bin/bash\nexport PATH=/usr/sbin:/usr/bin:/sbin:/bin DUNLIN_SLOWER={SLOWER}\n\
         exec {} --ignored --exact {test} --nocapture\n",
        std::env::current_exe().unwrap().display()
    );
    std::fs::write(path("program"), program).unwrap();
    std::fs::set_permissions(path("program"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let start = |command: &mut Command| {
        let log = std::fs::File::create(path("log")).unwrap();
        let piped = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        Background(Some(piped.spawn().expect("QEMU and virtiofsd are there")))
    };
    let socket = path("root.sock");
    let _root = start(Command::new("/usr/lib/qemu/virtiofsd").args([
        &format!("--socket-path={socket}"),
        "--thread-pool-size=4",
        "-osource=/,sandbox=chroot,cache=always",
    ]));
    eventually("virtiofsd listens", 10.0, || std::path::Path::new(&socket).exists());
    let image = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/guest");
    let append = format!("console=ttyS0 quiet panic=-1 mitigations=off dunlin.host={}", path("program"));
    // Without MSI-X: QEMU 7.2 crashes with it, where a process of the host serves a device and the processor is emulated.
    let machine = start(Command::new("timeout").args(["240", "qemu-system-x86_64", "-nodefaults", "-no-reboot"]).args(
        "-accel tcg,thread=multi -cpu max -smp 2 -m 1536M -machine q35,memory-backend=mem -display none -serial stdio \
         -object memory-backend-memfd,id=mem,size=1536M,share=on"
            .split_whitespace(),
    ).args(["-chardev", &format!("socket,id=root,path={socket}"), "-device", "vhost-user-fs-pci,chardev=root,tag=root,vectors=0"])
     .args(["-kernel", &format!("{image}/vmlinuz"), "-initrd", &format!("{image}/initrd"), "-append", &append]));
    let told = machine.finish();
    let _ = std::fs::remove_dir_all(&folder);
    println!("{told}");
    assert!(
        told.contains("test result: ok. 1 passed") && told.contains("DUNLIN-HOST-ENDED 0"),
        "{test} failed elsewhere"
    );
}
