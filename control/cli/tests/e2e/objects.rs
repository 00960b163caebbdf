//! The verbs that every kind of object has, files, and the way back.

use crate::{
    host::Host,
    net::{Netns, eventually, text},
};

#[test]
fn every_setting_can_be_taken_back() {
    let host = Host::start();
    host.dunlin("port add p --kind nic --device net_null0,no-rx=1 --vlan 10 --mac-limit 5 --storm-broadcast-fps 100");
    // An access port becomes a trunk in place, and joins a network.
    let said =
        host.dunlin("port set p --vlan default --mac-limit default --storm-broadcast-fps default --trunks 10,20");
    assert!(said.contains("vlan: 10 -> (default)") && said.contains("mac_limit: 5 -> (default)"), "{said}");
    host.dunlin("network add blue --vlan 30");
    host.dunlin("port set p --trunks default --network blue");
    assert!(host.dunlin("port list").contains("blue"));
    host.dunlin("port unset p network");
    assert!(host.dunlin("port list").contains("trunk all"));
    let why = host.refused("port unset p mtuu");
    assert!(why.contains("port 'p': there is no setting 'mtuu'; did you mean 'mtu'?"), "{why}");
    host.dunlin("session set --udp-s 40");
    assert!(host.dunlin("session unset udp-s").contains("udp_s: 40 -> 30"));
    assert!(host.dunlin("session show").contains("udp_s") && host.dunlin("worker show").contains("adaptive (default)"));
}

#[test]
fn objects_are_described_filtered_renamed_and_shown() {
    let host = Host::start();
    host.dunlin("bridge add b1 --description storage --labels owner=san,rack=7");
    host.dunlin("acl add web");
    host.dunlin(
        "port add p --kind nic --device net_null0,no-rx=1 --bridge b1 --egress-acls web --labels owner=web --vlan 10",
    );
    host.dunlin("port add q --kind nic --device net_null1,no-rx=1 --vlan 20");
    let list = |options: &str| host.dunlin(&format!("port list {options}"));
    assert_eq!(list("--filter labels.owner=web --columns name,vlan,mtu").lines().count(), 2);
    assert!(list("--filter vlan=20 --names --columns name").contains('q'));
    assert_eq!(list("--columns name --sort vlan").split_whitespace().collect::<Vec<_>>(), ["NAME", "p", "q"]);
    assert!(host.refused("port list --columns vlna").contains("there is no column 'vlna'; did you mean 'vlan'?"));
    // What refers to an object follows its new name; what is used stays.
    host.dunlin("acl rename web filter");
    host.dunlin("bridge rename b1 b2");
    let export = host.dunlin("export");
    assert!(export.contains("egress_acls = [\"filter\"]") && export.contains("bridge = \"b2\""), "{export}");
    let why = host.refused("bridge del b2");
    assert!(why.contains("bridge 'b2': port 'p' still uses it; change or delete that first"), "{why}");
    let shown = host.dunlin("bridge show b2");
    assert!(
        shown.contains("description  storage") && shown.contains("300 (default)") && shown.contains("port 'p'"),
        "{shown}"
    );
    assert!(host.dunlin("port show q").contains("1500 (default)"));
    // Scripts may say what they want, whatever is there.
    host.dunlin("port add q --kind nic --device net_null1,no-rx=1 --vlan 21 --may-exist");
    assert!(host.dunlin("port list --filter vlan=21").contains('q'));
    assert!(host.dunlin("port del nope q --if-exists").contains("- port q"));
    assert!(host.refused("port del qq").contains("there is none of that name"));
    for bad in ["bridge add ..", "bridge add a/b", "bridge add -- -x"] {
        assert!(host.refused(bad).contains("letters, digits"), "{bad}");
    }
    assert!(host.refused("port set p --mtu abc").contains("port 'p': mtu: 'abc' is no whole number"));
    assert!(host.refused("port set p --steering vmdk").contains("steering: 'vmdk' is none of rss, vmdq"));
    assert!(host.refused("set port p").contains("there is no command 'port' here"));
    assert!(host.dunlin("explain port.mtu").contains("68 to 9216"));
    assert!(host.refused("explain port.mtuu").contains("did you mean 'mtu'?"));
    let schema: serde_json::Value = serde_json::from_str(&host.dunlin("explain --schema")).unwrap();
    assert_eq!(schema["properties"]["port"]["items"]["properties"]["mtu"]["default"], 1500);
}

#[test]
fn a_port_is_taken_down_and_up() {
    let (a, b) = (Netns::with_address("10.66.0.1/24"), Netns::with_address("10.66.0.2/24"));
    let mut host = Host::start();
    host.add_host("a", &a, "");
    host.add_host("b", &b, "");
    assert!(a.reaches("10.66.0.2", 3));
    host.dunlin("port set b --admin down");
    host.dunlin("wait-until port-down b");
    assert!(!a.reaches("10.66.0.2", 1));
    assert!(host.dunlin("port list").contains("admin down"));
    // It is no problem, and stays so over a restart.
    host.kill_dataplane();
    host.start_dataplane();
    host.dunlin("wait-until in-force --timeout 60");
    assert_eq!(host.try_dunlin("status").status.code(), Some(0));
    assert_eq!(host.port("b")["admin_down"], true);
    host.dunlin("port set b --admin default");
    host.dunlin("wait-until port-up b --timeout 60");
    assert!(a.reaches("10.66.0.2", 5));
}

#[test]
fn a_group_moves_its_ports_and_a_ports_own_value_wins() {
    let (a, b) = (Netns::with_address("10.66.0.1/24"), Netns::with_address("10.66.0.2/24"));
    let mut host = Host::start();
    host.dunlin("group add web --vlan 10 --mac-limit 4 --mtu 1400");
    host.add_host("a", &a, "--groups web");
    host.add_host("b", &b, "--vlan 10");
    assert!(a.reaches("10.66.0.2", 3));
    let columns = |port: &str| {
        let list = host.dunlin("port list --columns name,vlan,mtu,mac_limit");
        list.lines().find(|l| l.starts_with(port)).unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!((columns("a"), columns("b")), ("a 10 1400 4".to_owned(), "b 10 1500".to_owned()));
    let shown = host.dunlin("port show a");
    assert!(shown.contains("1400 (group web)") && shown.contains("br0 (default)"), "{shown}");
    // A static address is in the VLAN that the port has from its group.
    host.dunlin("mac add 52:54:00:00:00:99 --port a");
    assert!(host.dunlin("mac list").contains("52:54:00:00:00:99"));
    let why = host.refused("group set web --vlan 20");
    assert!(why.contains("'a' does not carry VLAN 10"), "{why}");
    host.dunlin("mac del 52:54:00:00:00:99");
    let said = host.dunlin("group set web --vlan 20");
    assert!(said.contains("~ group web  (vlan: 10 -> 20)"), "{said}");
    assert!(!a.reaches("10.66.0.2", 1));
    host.dunlin("port set a --vlan 10");
    assert!(a.reaches("10.66.0.2", 3));
    // Also a default of the port's own, against the group's.
    host.dunlin("group set web --admin down");
    host.dunlin("wait-until port-down a");
    let said = host.dunlin("port set a --admin up");
    assert!(said.contains("admin: (default) -> up"), "{said}");
    host.dunlin("wait-until port-up a --timeout 60");
    assert!(a.reaches("10.66.0.2", 3));
    let why = host.refused("port set a --vlan default --vlan-mode trunk");
    assert!(why.contains("port 'a': trunks: are missing") && why.contains("group 'web'"), "{why}");
    // It is the same after a restart of the dataplane.
    host.kill_dataplane();
    host.start_dataplane();
    host.dunlin("wait-until in-force --timeout 60");
    assert_eq!(host.port("a")["mtu"], 1400);
    assert!(a.reaches("10.66.0.2", 5));
    let why = host.refused("group set web --security ip");
    assert!(why.contains("port 'a': security: 'ip' permits no frame"), "{why}");
    let why = host.refused("group set web --queues 2");
    assert!(why.contains("--queues"), "{why}");
}

#[test]
fn a_file_is_checked_whole() {
    let host = Host::start();
    for i in 0..6 {
        host.dunlin(&format!("bridge add b{i} --ageing 30"));
    }
    let all = host.apply(
        "[[port]]\nname = \"x\"\nkind = \"tap\"\nmtu = 1\nvlna = 3\n\n[[prot]]\nname = \"y\"\n\n[[bridge]]\nname = 7\n",
    );
    let said = text(&all.stderr);
    for wants in [
        "line 5, column 1: port 'x': vlna: there is no such setting; did you mean 'vlan'?",
        "line 7, column 1: there is no kind 'prot'; did you mean 'port'?",
        "name: is 7; a text in quotes is wanted",
    ] {
        assert!(said.contains(wants), "{wants}\n{said}");
    }
    let range = host.apply("[[port]]\nname = \"x\"\nkind = \"tap\"\n\nmtu = 1\n");
    assert!(text(&range.stderr).contains("line 5, column 1: port 'x': mtu: 1 is not in 68 to 9216"), "{range:?}");
    // A file that would remove most of the host is asked about; the same name twice is refused with --keep too.
    let few = host.apply("[[bridge]]\nname = \"b0\"\n");
    assert!(text(&few.stderr).contains("5 of 6 objects would be removed; add --yes"), "{few:?}");
    std::fs::write(host.path("twice.toml"), "[[bridge]]\nname = \"t\"\n[[bridge]]\nname = \"t\"\n").unwrap();
    assert!(
        host.refused(&format!("apply --keep -f {}", host.path("twice.toml")))
            .contains("line 4, column 1: bridge 't': name: is declared twice")
    );
    // The dataplane is asked too, and a default that is written is no difference.
    let file = host.path("dry.toml");
    let export = host.dunlin("export");
    std::fs::write(
        &file,
        export.clone() + "[[port]]\nname = \"h\"\nkind = \"host\"\ninterface = \"nope0\"\nmtu = 1500\n",
    )
    .unwrap();
    let o = host.try_dunlin(&format!("apply --dry-run -f {file}"));
    let said = text(&o.stdout) + &text(&o.stderr);
    assert!(!o.status.success() && said.contains("nope0"), "{said}");
    std::fs::write(&file, export.clone() + "[sessions]\nudp_s = 30\n").unwrap();
    assert_eq!(
        host.try_dunlin(&format!("diff --exit-code -f {file}")).status.code(),
        Some(0),
        "{}",
        host.dunlin(&format!("diff -f {file}"))
    );
    std::fs::write(&file, export.replacen("ageing_s = 30", "ageing_s = 31", 1)).unwrap();
    assert_eq!(host.try_dunlin(&format!("diff --exit-code -f {file}")).status.code(), Some(1));
    let o = std::process::Command::new(crate::host::binary("dunlin"))
        .args(["--control", &host.path("control.sock"), "apply", "-f", "/dev/zero"])
        .output()
        .unwrap();
    assert!(text(&o.stderr).contains("larger than 128 MiB"), "{}", text(&o.stderr));
}

#[test]
fn what_was_changed_is_listed_and_taken_back() {
    let host = Host::start();
    host.dunlin("bridge add b1");
    host.dunlin("bridge set b1 --ageing 20");
    let history = host.dunlin("history");
    assert!(history.contains("root") && history.contains("bridge set b1 --ageing 20"), "{history}");
    assert!(host.dunlin("history 2").contains("ageing_s: 300 -> 20"));
    host.dunlin("rollback 1");
    assert!(host.dunlin("export").contains("b1") && !host.dunlin("export").contains("20"));
    // A change that has to be confirmed is taken back by itself.
    let file = host.path("f.toml");
    std::fs::write(&file, "[[bridge]]\nname = \"b1\"\n[[bridge]]\nname = \"b2\"\n").unwrap();
    host.dunlin(&format!("apply -f {file} --confirm 60s"));
    assert!(host.refused("bridge add b3").contains("waits for 'dunlin confirm'"));
    host.dunlin("confirm");
    host.dunlin("bridge add b3");
    std::fs::write(
        &file,
        "[[bridge]]\nname = \"b1\"\n[[bridge]]\nname = \"b2\"\n[[bridge]]\nname = \"b3\"\n[[bridge]]\nname = \"b4\"\n",
    )
    .unwrap();
    host.dunlin(&format!("apply -f {file} --confirm 1s"));
    eventually("it is taken back", 15.0, || !host.dunlin("export").contains("b4"));
    assert!(host.dunlin("export").contains("b3") && host.dunlin("history").contains("not confirmed"));
}
