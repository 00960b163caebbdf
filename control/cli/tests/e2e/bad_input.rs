//! What can't be: refused whole, by object, field and reason, and nothing is lost.

use std::{
    os::unix::fs::PermissionsExt,
    process::{Command, Stdio},
};

use crate::{
    host::{Host, binary},
    net::{Netns, sh, text, try_sh},
};

#[test]
fn configurations_are_refused_by_name_and_nothing_is_applied() {
    let ns = Netns::new();
    let host = Host::start();
    host.add_host("good", &ns, "--vlan 10");
    let before = host.dunlin("export");
    let folder = host.path("folder");
    std::fs::create_dir(&folder).unwrap();
    let port = |fields: &str| format!("[[port]]\nname = \"web1\"\n{fields}\n");
    for (toml, wants) in [
        (
            port("kind = \"tap\"\nvlna = 10"),
            vec!["line 4, column 1: port 'web1': vlna: there is no such setting; did you mean 'vlan'?"],
        ),
        (port("kind = \"tap\"\nvlan = 10\ntrunks = \"5\""), vec!["port 'web1': trunks: is for trunk"]),
        (port("kind = \"tap\"\ntrunks = \"1-9,5\""), vec!["port 'web1': trunks: VLAN 5", "overlap"]),
        (port("kind = \"tap\"") + &port("kind = \"tap\""), vec!["port 'web1'", "twice"]),
        (
            port("kind = \"nic\"\ndevice = \"ffff:ff:1f.7\""),
            vec!["port 'web1'", "ffff:ff:1f.7", "there is none at that address"],
        ),
        (port("kind = \"nic\"\ndevice = \"net_nonsense0\""), vec!["port 'web1'", "net_nonsense0"]),
        (port("kind = \"host\"\ninterface = \"nope0\""), vec!["port 'web1'", "interface 'nope0'", "ip link"]),
        (port(&format!("kind = \"vhost-user\"\nsocket = \"{folder}\"")), vec!["port 'web1'", "is a folder"]),
        (
            port(&format!("kind = \"vhost-user\"\nsocket = \"/{}\"", "x".repeat(107))),
            vec!["port 'web1': socket: 108 octets", "107"],
        ),
        (port("kind = \"tap\"\nmtu = 0"), vec!["port 'web1': mtu: 0 is not in 68 to 9216"]),
        (port("kind = \"nic\"\ndevice = \"net_null0\"\nqueues = 0"), vec!["port 'web1': queues: 0 is not in 1 to 64"]),
        ("[[bridge]]\nname = \"br1\"\nageing_s = 0\n".into(), vec!["bridge 'br1': ageing_s: 0 is not in 1 to 1000000"]),
        ("[dataplane]\nmax_sleep_us = 0\n".into(), vec!["dataplane: max_sleep_us: 0 is not in 1 to 10000"]),
        (String::new(), vec!["names nothing", "--empty"]),
        (port("kind = \"tap\"\nbridge = \"nope\""), vec!["port 'web1': bridge: there is no bridge 'nope'"]),
    ] {
        let o = host.apply(&toml);
        let error = text(&o.stderr);
        assert!(!o.status.success(), "{toml} was taken");
        assert!(wants.iter().all(|w| error.contains(w)), "{toml}\n{error}");
        assert_eq!(host.dunlin("export"), before, "after {toml}");
    }
    // A transaction of which one port can't be leaves out the other too.
    let both = before.clone()
        + "[[port]]\nname = \"zz\"\nkind = \"host\"\ninterface = \"nope0\"\n[[port]]\nname = \"ok\"\nkind = \"nic\"\ndevice = \"net_null7\"\n";
    assert!(!host.apply(&both).status.success());
    assert_eq!(host.dunlin("export"), before);
    assert_eq!(host.json("status")["dataplane"]["ports"].as_array().unwrap().len(), 1);
    host.wait_up("good");
    assert!(host.refused("port del nope").contains("port 'nope'"));
    assert!(host.refused("port add good --kind tap").contains("port 'good': there is one of that name already"));
}

#[test]
fn a_pci_device_of_the_kernel_says_how_to_bind_it() {
    // Whatever PCI device the machine has.
    let any = try_sh(
        "for d in /sys/bus/pci/devices/*; do case $(basename $(readlink $d/driver)) in ''|vfio-pci) ;; *) basename $d; break;; esac; done",
    );
    let address = text(&any.stdout).trim().to_owned();
    if address.is_empty() {
        println!("this machine has no PCI device that the kernel drives: not tested");
        return;
    }
    let host = Host::start();
    let error = host.refused(&format!("port add up --kind nic --device {address}"));
    assert!(
        error.contains("the kernel's driver") && error.contains(&format!("dpdk-devbind.py --bind=vfio-pci {address}")),
        "{error}"
    );
}

#[test]
fn start_up_says_what_is_missing() {
    let run = |name: &str, arguments: &[&str]| {
        let o = Command::new(binary(name)).args(arguments).stdin(Stdio::null()).output().unwrap();
        assert!(!o.status.success());
        text(&o.stderr)
    };
    let error = run("dunlin-dataplane", &["--cores", "777"]);
    assert!(error.contains("there is no core 777"), "{error}");
    let error = run("dunlin-dataplane", &["--memory", "900000", "--cores", "0"]);
    assert!(
        error.contains("hugepages:") && error.contains("900000 MiB need 450000") && error.contains("nr_hugepages"),
        "{error}"
    );
    let error = run("dunlin", &["--control", "/nonexistent/control.sock", "status"]);
    assert!(error.contains("dunlin-control does not answer on /nonexistent/control.sock"), "{error}");
    assert!(error.contains("systemctl start dunlin-control"), "{error}");
    let error = run("dunlin-control", &["--store", "/tmp", "--socket", "/tmp/dunlin-none.sock"]);
    assert!(error.contains("store /tmp: is a folder"), "{error}");
}

#[test]
fn a_truncated_store_is_refused_and_kept() {
    let mut host = Host::start();
    host.dunlin("bridge add keep");
    host.kill_control();
    let store = host.path("state.redb");
    let whole = std::fs::read(&store).unwrap();
    for length in [0, 100, whole.len() / 2] {
        std::fs::write(&store, &whole[..length]).unwrap();
        let o =
            Command::new(binary("dunlin-control")).args(host.control_arguments().split_whitespace()).output().unwrap();
        let error = text(&o.stderr);
        assert!(
            !o.status.success() && error.contains(&store) && error.contains("can't be trusted"),
            "{length}: {error}"
        );
        assert_eq!(std::fs::read(&store).unwrap(), &whole[..length], "the file is left as it is");
    }
    std::fs::write(&store, &whole).unwrap();
    host.start_control();
    host.wait_until_filled();
    assert!(host.dunlin("bridge list").contains("keep"));
}

#[test]
fn a_full_disk_refuses_the_change_and_takes_it_back() {
    let mut host = Host::start();
    host.kill_control();
    // A file system of its own, small enough to fill.
    let small = host.path("small");
    sh(&format!("mkdir {small} && mount -t tmpfs -o size=3m none {small}"));
    let arguments = host.control_arguments().replace(&host.path("state.redb"), &format!("{small}/state.redb"));
    let mut control = Command::new(binary("dunlin-control"))
        .args(arguments.split_whitespace())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    host.wait_until_filled();
    host.dunlin("bridge add before");
    let _ = try_sh(&format!("dd if=/dev/zero of={small}/filler bs=4k"));
    let mut refused = None;
    for i in 0..200 {
        // Long lists of VLANs make the configuration grow.
        let o = host.try_dunlin(&format!("port add full{i} --kind nic --device net_null{i} --trunks {}", vlans()));
        if !o.status.success() {
            refused = Some((i, text(&o.stderr)));
            break;
        }
    }
    let (i, error) = refused.expect("the disk is full at some time");
    assert!(error.contains("store") && error.contains("nothing was changed"), "{error}");
    let wanted = host.json("port list").as_array().unwrap().len();
    let there = host.json("status")["dataplane"]["ports"].as_array().unwrap().len();
    assert_eq!((wanted, there), (i, i), "the refused port is nowhere");
    // With room again it goes on.
    sh(&format!("rm {small}/filler"));
    host.dunlin("bridge add after");
    control.kill().unwrap();
    control.wait().unwrap();
    sh(&format!("umount {small}"));
    host.start_control();
    host.wait_until_filled();
}

fn vlans() -> String {
    (1..4094).step_by(2).map(|v| v.to_string()).collect::<Vec<_>>().join(",")
}

/// A group of the system's that is not root's, and its number.
fn some_group() -> (String, u32) {
    let groups = std::fs::read_to_string("/etc/group").unwrap();
    let other = groups.lines().map(|l| l.split(':').collect::<Vec<_>>()).find(|f| f[2] != "0").expect("a group");
    (other[0].to_owned(), other[2].parse().unwrap())
}

#[test]
fn sockets_belong_to_the_groups_that_are_named() {
    use std::os::unix::fs::MetadataExt;
    let (group, gid) = some_group();
    let host = Host::with_options(&format!("--group {group} --vhost-group {group}"));
    host.dunlin(&format!("port add g --kind vhost-user --server --socket {}", host.path("g.sock")));
    for socket in ["dataplane.sock", "g.sock"] {
        let m = std::fs::metadata(host.path(socket)).unwrap();
        assert_eq!((m.permissions().mode() & 0o777, m.gid()), (0o660, gid), "{socket}");
    }
}

#[test]
fn sockets_are_for_their_group_and_clients_of_another_version_are_refused() {
    let host = Host::start();
    for socket in ["control.sock", "dataplane.sock"] {
        let mode = std::fs::metadata(host.path(socket)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660, "{socket}");
    }
    let o = Command::new(binary("dunlin-control"))
        .args([
            "--group",
            "no-such-group",
            "--socket",
            &host.path("x.sock"),
            "--store",
            &host.path("x.redb"),
            "--metrics",
            "127.0.0.1:0",
        ])
        .output()
        .unwrap();
    assert!(
        text(&o.stderr).contains("group 'no-such-group'") && text(&o.stderr).contains("groupadd"),
        "{}",
        text(&o.stderr)
    );
    // A client that speaks a version to come.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let error = runtime.block_on(async {
        let channel = dunlin_dataplane_api::connect_channel(&host.folder.join("control.sock")).await.unwrap();
        let mut client = dunlin_control_api::v1::control_client::ControlClient::new(channel);
        let mut request = tonic::Request::new(dunlin_control_api::v1::StatusRequest {});
        request.metadata_mut().insert("dunlin-api-version", "2.0".parse().unwrap());
        client.get_status(request).await.unwrap_err()
    });
    assert!(error.message().contains("the client speaks API version 2.0, this process 1.0"), "{error}");
    // Another of the same on the same socket.
    let o = Command::new(binary("dunlin-control"))
        .args(["--socket", &host.path("control.sock"), "--store", &host.path("y.redb"), "--metrics", "127.0.0.1:0"])
        .output()
        .unwrap();
    assert!(text(&o.stderr).contains("another process listens on it"), "{}", text(&o.stderr));
}
