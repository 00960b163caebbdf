//! Every refusal names object, field and value; what is accepted means what it says.

use std::time::Duration;

use super::*;
use crate::{
    Vid,
    vlan::{VlanMode, VlanSet},
};

fn configured(toml: &str) -> Result<Configuration, Vec<Bad>> {
    let config: v1::Config = toml::from_str(toml).unwrap();
    let change = Change { set: config.into_objects(), ..Default::default() };
    Configuration::default().changed(change).map(|(c, _)| c)
}

/// The same objects, read at once.
fn whole(c: &Configuration) -> Configuration {
    let set = c.objects().iter().map(|(_, o)| (**o).clone()).collect();
    Configuration::default().changed(Change { set, ..Default::default() }).unwrap().0
}

fn refusal(toml: &str) -> String {
    configured(toml).unwrap_err()[0].to_string()
}

fn with(fields: &str) -> String {
    format!("[[port]]\nname = \"web1\"\nkind = \"tap\"\n{fields}\n")
}

#[test]
fn refusals_name_object_field_and_reason() {
    for (fields, want) in [
        ("vlan = 4095", "port 'web1': vlan: 4095 is not in 1 to 4094"),
        ("vlan = 0", "port 'web1': vlan: 0 is not in 1 to 4094"),
        ("vlan_mode = \"acess\"", "port 'web1': vlan_mode: 'acess' is none of"),
        ("vlan_mode = \"access\"", "port 'web1': vlan: is missing; vlan_mode access needs it"),
        ("vlan_mode = \"trunk\"\nvlan = 7", "port 'web1': vlan: a trunk has none; 7"),
        ("trunks = \"10-20,15\"", "port 'web1': trunks: VLAN 15 of '15' is named before"),
        ("trunks = \"20-10\"", "port 'web1': trunks: '20-10' ends before it begins"),
        ("trunks = \"1,x\"", "port 'web1': trunks: 'x' is no VLAN"),
        ("vlan = 5\ntrunks = \"7\"", "port 'web1': trunks: is for trunk"),
        ("mtu = 67", "port 'web1': mtu: 67 is not in 68 to 9216"),
        ("mtu = 9217", "port 'web1': mtu: 9217"),
        ("socket = \"/run/x\"", "port 'web1': socket: is for kind vhost-user, this port is 'tap'"),
        ("storm_broadcast_fps = 0", "port 'web1': storm_broadcast_fps: 0 is not in 1 to 100000000"),
        ("session_limit = 0", "port 'web1': session_limit: 0 is not in 1 to"),
        ("mac_limit_action = \"drop\"", "port 'web1': mac_limit_action: needs a mac_limit"),
        ("bridge = \"br9\"", "port 'web1': bridge: there is no bridge 'br9'"),
        ("interface = \"much-too-long-a-name\"", "port 'web1': interface: 'much-too-long-a-name'"),
        ("cvlans = \"5\"", "port 'web1': cvlans: is for vlan_mode dot1q-tunnel"),
    ] {
        let error = refusal(&with(fields));
        assert!(error.starts_with(want), "{fields}: {error}");
    }
}

#[test]
fn names_and_devices_are_unique() {
    assert!(refusal(&(with("") + &with(""))).contains("port 'web1': name: is declared twice"));
    let two =
        "[[port]]\nname=\"a\"\nkind=\"tap\"\ninterface=\"x\"\n[[port]]\nname=\"b\"\nkind=\"host\"\ninterface=\"x\"\n";
    assert!(refusal(two).contains("port 'b': interface: 'x' belongs to port 'a' already"));
    let long = format!("[[port]]\nname=\"a\"\nkind=\"vhost-user\"\nsocket=\"/{}\"\n", "s".repeat(107));
    assert!(refusal(&long).contains("port 'a': socket: 108 octets long"));
}

#[test]
fn defaults_are_filled_in() {
    let c = configured(&with("")).unwrap();
    let r = c.resolved();
    assert_eq!(r.bridges["br0"].ageing_s, 300);
    let p = &r.ports["web1"].policy;
    assert_eq!((p.bridge.as_str(), p.mtu.get(), &p.vlan), ("br0", 1500, &VlanMode::Trunk { vlans: VlanSet::ALL }));
    assert_eq!((r.dataplane.max_sleep, r.dataplane.rebalance), (Some(Duration::from_micros(100)), false));
    assert_eq!((r.sessions.timeouts.tcp_open_s, r.sessions.max, r.sessions.midstream), (86_400, None, true));
}

/// Whatever led there, the same objects mean the same and have the same sum.
#[test]
fn what_a_change_touches_is_resolved_again() {
    let base = r#"
        [[set]]
        name = "in"
        addresses = ["10.0.0.0/8"]
        [[set]]
        name = "out"
        addresses = ["@in", "192.0.2.1"]
        [[acl]]
        name = "web"
        rules = ["allow from @out to any"]
        [[group]]
        name = "g"
        mtu = 9000
        [[port]]
        name = "up"
        kind = "tap"
        [[port]]
        name = "a"
        kind = "tap"
        vlan = 7
        groups = ["g"]
        [[vtep]]
        name = "v"
        uplink = "up"
        address = "10.0.0.1/24"
        [[network]]
        name = "blue"
        vni = 5
        remotes = ["10.0.0.2"]
        "#;
    let c = configured(base).unwrap();
    let touched = |toml: &str| {
        let config: v1::Config = toml::from_str(toml).unwrap();
        let (next, touched) = c.changed(Change { set: config.into_objects(), ..Default::default() }).unwrap();
        let whole = whole(&next);
        assert_eq!(format!("{:?}", whole.resolved()), format!("{:?}", next.resolved()));
        assert_eq!((whole.objects().sum(), whole.objects().octets()), (next.objects().sum(), next.objects().octets()));
        touched.into_iter().map(|(k, n)| format!("{k} {n}")).collect::<Vec<_>>().join(", ")
    };
    assert_eq!(touched("[[set]]\nname = \"in\"\naddresses = [\"10.0.0.0/9\"]"), "set in, set out, acl web");
    assert_eq!(touched("[[group]]\nname = \"g\"\nmtu = 1400"), "group g, port a");
    assert_eq!(touched("[[port]]\nname = \"b\"\nkind = \"tap\""), "port b");
    assert_eq!(touched("[[vtep]]\nname = \"v\"\nuplink = \"up\"\naddress = \"10.0.0.3/24\""), "vtep v, network blue");
    assert_eq!(touched("[[route]]\nto = \"10.1.0.0/16\"\nvia = [\"10.0.0.9\"]"), "vtep v, route 10.1.0.0/16");
    let p = &c.resolved().ports["a"].policy;
    assert_eq!((p.mtu.get(), &p.vlan), (9000, &VlanMode::Access { vid: Vid::of::<7>() }));
    let bad = c.changed(Change {
        set: vec![v1::Group { name: "g".into(), macs: vec!["52:54:00:00:00:01".into()], ..Default::default() }.into()],
        ..Default::default()
    });
    assert!(bad.unwrap_err()[0].to_string().starts_with("port 'a': macs: is used by no check"));
}

/// A port's own segment holds against that of its group, unless that would open it to what the group keeps out.
#[test]
fn a_segment_of_the_ports_own_holds() {
    let base = "[[bridge]]\nname = \"b1\"\n[[network]]\nname = \"blue\"\n[[network]]\nname = \"red\"\n";
    let with = |group: &str, port: &str| {
        let group = format!("[[group]]\nname = \"g\"\n{group}\n");
        let port = format!("[[port]]\nname = \"p\"\nkind = \"tap\"\ngroups = [\"g\"]\n{port}\n");
        configured(&format!("{base}{group}{port}"))
            .map(|c| c.resolved().ports["p"].policy.clone())
            .map_err(|bad| bad[0].to_string())
    };
    for group in ["network = \"red\"", "vlan = 10", "vlan = 10\nbridge = \"b1\""] {
        assert_eq!(with(group, "network = \"blue\"").unwrap().network.as_deref(), Some("blue"), "{group}");
    }
    assert_eq!(with("bridge = \"b1\"", "vlan = 7").unwrap().bridge, "b1");
    let why = with("vlan = 10\nbridge = \"b1\"", "vlan = 7").unwrap_err();
    assert!(why.starts_with("port 'p': bridge: is missing: that of group 'g'"), "{why}");
    assert_eq!(with("vlan = 10\nbridge = \"b1\"", "vlan = 7\nbridge = \"br0\"").unwrap().bridge, "br0");
    let why = with("trunks = \"10,20\"", "vlan_mode = \"trunk\"").unwrap_err();
    assert!(why.starts_with("port 'p': trunks: are missing"), "{why}");
    assert!(with("trunks = \"10,20\"", "trunks = \"7\"").is_ok());
}

/// How deep sets may go does not depend on their names, nor on which is looked at first.
#[test]
fn sets_in_sets_have_a_depth() {
    let chain = |n: usize, name: &dyn Fn(usize) -> String| {
        let one = |i: usize| {
            let inner = if i + 1 < n { format!("\"@{}\"", name(i + 1)) } else { "\"10.0.0.0/8\"".into() };
            format!("[[set]]\nname = \"{}\"\naddresses = [{inner}]\n", name(i))
        };
        configured(&(0..n).map(one).collect::<String>())
    };
    for name in [&(|i| format!("s{i:02}")) as &dyn Fn(usize) -> String, &|i| format!("s{:02}", 99 - i)] {
        assert!(chain(16, name).is_ok());
        let why = chain(17, name).unwrap_err()[0].to_string();
        assert!(why.contains("more than 16 deep"), "{why}");
    }
}

/// What would take more memory than all sets may have is refused before it does.
#[test]
fn sets_are_not_written_out_beyond_their_limit() {
    let set = |name: String, addresses: Vec<String>| -> v1::Object {
        v1::AddressSet { name, addresses, ..Default::default() }.into()
    };
    let large = (0..65_000u32).map(|i| format!("10.{}.{}.{}", i >> 16, i >> 8 & 0xff, i & 0xff)).collect();
    let mut all = vec![set("large".into(), large)];
    all.extend((0..200).map(|i| set(format!("c{i}"), vec!["@large".into(), format!("192.0.2.{i}")])));
    all.push(set("a".into(), (0..200).map(|i| format!("@c{i}")).collect()));
    let bad = Configuration::default().changed(Change { set: all, ..Default::default() }).unwrap_err();
    assert!(bad[0].to_string().contains("all sets have more than 4194304 prefixes"), "{}", bad[0]);
}

/// What may be there once only may change hands in one change, and is free again when its network is gone.
#[test]
fn vnis_and_vlans_change_hands() {
    let network = |name: &str, vni, vlan| -> v1::Object {
        let remotes = vec!["10.0.0.2".into()];
        v1::Network { name: name.into(), vni: Some(vni), vlan: Some(vlan), remotes, ..Default::default() }.into()
    };
    let base =
        "[[port]]\nname = \"up\"\nkind = \"tap\"\n[[vtep]]\nname = \"v\"\nuplink = \"up\"\naddress = \"10.0.0.1/24\"\n";
    let c = configured(base).unwrap();
    let set = |c: &Configuration, set: Vec<v1::Object>| c.changed(Change { set, ..Default::default() });
    let (c, _) = set(&c, vec![network("a", 1, 10), network("b", 2, 20)]).unwrap();
    let (c, _) = set(&c, vec![network("a", 2, 20), network("b", 1, 10)]).unwrap();
    let error = |c: &Configuration, o| set(c, vec![o]).unwrap_err()[0].to_string();
    assert_eq!(error(&c, network("c", 1, 30)), "network 'c': vni: 1 is network 'b' already");
    assert_eq!(error(&c, network("c", 3, 10)), "network 'c': vlan: 10 of bridge 'br0' is network 'b' already");
    let (c, _) = c.changed(Change { delete: vec![(Kind::Network, "b".into())], ..Default::default() }).unwrap();
    let (c, _) = set(&c, vec![network("c", 1, 10)]).unwrap();
    // The uplink carries the VLAN of a network: a VTEP there would send tunnels through themselves.
    let v = v1::Vtep {
        name: "v".into(),
        uplink: "up".into(),
        address: "10.0.0.1/24".into(),
        vlan: Some(10),
        ..Default::default()
    };
    assert!(error(&c, v.into()).starts_with("network 'c': vlan: is the underlay of vtep 'v'"));
    let whole = whole(&c);
    assert_eq!(format!("{:?}", whole.resolved()), format!("{:?}", c.resolved()));
}

#[test]
fn static_addresses_belong_to_a_port_of_their_bridge() {
    let mac = |m: &str| with("vlan = 10") + &format!("[[mac]]\nmac = \"{m}\"\nvlan = 10\nport = \"web1\"\n");
    assert!(configured(&mac("52:54:00:00:00:01")).is_ok());
    assert!(refusal(&mac("01:00:5e:00:00:01")).contains("is no unicast MAC address"));
    assert!(refusal(&mac("52:54:00:00:00:+1")).contains("is not six octets"));
    let other = mac("52:54:00:00:00:01").replacen("vlan = 10", "vlan = 20", 1);
    assert!(refusal(&other).contains("'web1' does not carry VLAN 10"), "{}", refusal(&other));
    assert!(refusal(&mac("52:54:00:00:01")).contains("is not six octets"));
    assert!(
        refusal(&mac("52:54:00:00:00:01").replace("port = \"web1\"", "port = \"x\"")).contains("there is no port 'x'")
    );
}

/// The examples that ship are valid, and the one that shows every setting shows every setting.
#[test]
fn shipped_examples_compile() {
    let host = include_str!("../../../../configs/host.toml");
    configured(include_str!("../../../../configs/demo/demo.toml")).unwrap();
    let c = configured(host).unwrap();
    let r = c.resolved();
    assert_eq!((r.ports.len(), r.networks.len(), r.vteps.values().map(|v| v.routes.len()).sum::<usize>()), (8, 1, 2));
    for d in crate::meta::all() {
        for f in d.fields.iter().filter(|f| f.name != "description" && f.name != "labels") {
            let name = &f.name;
            assert!(host.contains(&format!("{name} = ")), "configs/host.toml does not show '{name}' of {}", d.kind);
        }
    }
}

/// A change that could never be installed is refused.
#[test]
fn the_dataplanes_limits_are_known() {
    let taps =
        |n: usize| (0..n).map(|i| format!("[[port]]\nname = \"t{i}\"\nkind = \"tap\"\nvlan = 5\n")).collect::<String>();
    assert!(configured(&taps(1024)).is_ok());
    assert!(refusal(&taps(1025)).contains("one too many: a dataplane holds 1024 ports"));
    let bridges = |n: usize| {
        let one =
            |i| format!("[[bridge]]\nname = \"b{i}\"\n[[port]]\nname = \"t{i}\"\nkind = \"tap\"\nbridge = \"b{i}\"\n");
        (0..n).map(one).collect::<String>()
    };
    assert!(configured(&bridges(15)).is_ok());
    assert!(refusal(&bridges(17)).contains("(bridge, VLAN) pairs"));
    let addresses: Vec<String> = (0..256).map(|i| format!("\"10.0.{i}.1\"")).collect();
    let set = format!("[[set]]\nname = \"s\"\naddresses = [{}]\n", addresses.join(", "));
    let acls = |n: usize, rules: &str| {
        let one = |i| format!("[[acl]]\nname = \"a{i}\"\nrules = [{rules}]\n");
        set.clone() + &(0..n).map(one).collect::<String>()
    };
    let all_pairs = "\"allow from @s to @s\"";
    assert!(configured(&acls(4, all_pairs)).is_ok());
    let why = refusal(&acls(5, all_pairs));
    assert!(why.contains("acl 'a4': rules: with it all lists have more than 262144 combinations"), "{why}");
    let why = refusal(&acls(1, &format!("{all_pairs}, \"deny\"")));
    assert!(why.contains("acl 'a0': rule 2: with it the list has more than 65536 combinations"), "{why}");
}

#[test]
fn overlays_are_refused_by_object_field_and_reason() {
    let base = "[[port]]\nname = \"up\"\nkind = \"nic\"\ndevice = \"0000:03:00.0\"\n";
    let vtep = |fields: &str| format!("{base}[[vtep]]\nname = \"v\"\nuplink = \"up\"\n{fields}\n");
    let good = vtep("address = \"10.0.0.1/24\"");
    let network = |fields: &str| format!("{good}[[network]]\nname = \"blue\"\n{fields}\n");
    for (toml, want) in [
        (vtep("address = \"10.0.0.1\""), "vtep 'v': address: '10.0.0.1' is no host's address"),
        (vtep("address = \"224.0.0.1/24\""), "vtep 'v': address: '224.0.0.1/24'"),
        (vtep("address = \"10.0.0.1/24\"\nvlan = 5000"), "vtep 'v': vlan: 5000 is not in 1 to 4094"),
        (vtep("address = \"10.0.0.1/24\"\nttl = 256"), "vtep 'v': ttl: 256 is not in 1 to 255"),
        (vtep("address = \"10.0.0.1/24\"\ngateway = \"10.0.1.1\""), "vtep 'v': gateway: '10.0.1.1' is no neighbour"),
        (vtep("address = \"10.0.0.1/24\"\ngateway = \"10.0.0.1\""), "vtep 'v': gateway: 10.0.0.1 is the vtep itself"),
        (good.replace("\"up\"\naddress", "\"nope\"\naddress"), "vtep 'v': uplink: there is no port 'nope'"),
        (
            format!("{good}[[route]]\nto = \"10.1.0.1/16\"\nvia = [\"10.0.0.2\"]\n"),
            "route '10.1.0.1/16': to: has host bits",
        ),
        (format!("{good}[[route]]\nto = \"10.1.0.0/16\"\n"), "route '10.1.0.0/16': via: is missing"),
        (
            format!("{good}[[route]]\nvtep = \"w\"\nto = \"10.1.0.0/16\"\n"),
            "route '10.1.0.0/16 w': vtep: there is no vtep 'w'",
        ),
        (vtep("address = \"10.0.0.1/24\"\nmac = \"zz\""), "vtep 'v': mac: 'zz' is not six octets"),
        (
            network("vni = 1\nvlan = 5").replace("address =", "vlan = 5\naddress ="),
            "network 'blue': vlan: is the underlay",
        ),
        (network("vni = 0"), "network 'blue': vni: 0 is not in 1 to 16777215"),
        (network("vni = 16777216"), "network 'blue': vni: 16777216"),
        (network("vni = 1\nremotes = [\"10.0.0.1\"]"), "network 'blue': remotes: 10.0.0.1 is this host's own vtep 'v'"),
        (
            network("vni = 1\nremotes = [\"fd00::1\"]"),
            "network 'blue': remotes: 'fd00::1' is no address that 10.0.0.1 can reach",
        ),
        (network("remotes = [\"10.0.0.2\"]"), "network 'blue': remotes: needs a vni"),
        (
            network("vni = 1") + "[[network]]\nname = \"red\"\nvni = 1\n",
            "network 'red': vni: 1 is network 'blue' already",
        ),
        (
            network("vlan = 7") + "[[network]]\nname = \"red\"\nvlan = 7\n",
            "network 'red': vlan: 7 of bridge 'br0' is network 'blue' already",
        ),
        (with("network = \"blue\""), "port 'web1': network: there is no network 'blue'"),
        (
            with("network = \"blue\"\nvlan = 3") + "[[network]]\nname = \"blue\"\nvlan = 9\n",
            "port 'web1': vlan: is that of network 'blue'",
        ),
    ] {
        let error = refusal(&toml);
        assert!(error.starts_with(want), "{error}, not {want}");
    }
    assert_eq!(configured(&network("vni = 7\nremotes = [\"10.0.0.2\"]")).unwrap().resolved().networks.len(), 1);
}
