//! Changes: what is refused, what goes along, what is named.

use super::*;

fn objects(toml: &str) -> Objects {
    let config: Config = toml::from_str(toml).unwrap();
    let set = config.into_objects();
    Objects::default().changed(Change { set, ..Default::default() }).unwrap()
}

fn some() -> Objects {
    objects(
        r#"
        [[set]]
        name = "lan"
        addresses = ["10.0.0.0/8"]
        [[acl]]
        name = "web"
        rules = ["allow ethertype arp", "allow tcp from @lan to any"]
        [[bridge]]
        name = "b1"
        [[network]]
        name = "blue"
        vlan = 7
        [[port]]
        name = "a"
        kind = "tap"
        bridge = "b1"
        egress_acls = ["web"]
        [[port]]
        name = "n"
        kind = "tap"
        network = "blue"
        [[mac]]
        mac = "52:54:00:00:00:01"
        bridge = "b1"
        port = "a"
        "#,
    )
}

fn refused(change: Change) -> Vec<String> {
    some().changed(change).unwrap_err().iter().map(Bad::to_string).collect()
}

fn delete(kind: Kind, name: &str) -> Change {
    Change { delete: vec![(kind, name.into())], ..Default::default() }
}

#[test]
fn what_is_used_stays_and_what_is_owned_goes_along() {
    assert_eq!(
        refused(delete(Kind::Bridge, "b1")),
        ["bridge 'b1': port 'a' still uses it; change or delete that first"]
    );
    assert_eq!(refused(delete(Kind::Set, "lan")), ["set 'lan': acl 'web' still uses it; change or delete that first"]);
    assert_eq!(refused(delete(Kind::Acl, "web")), ["acl 'web': port 'a' still uses it; change or delete that first"]);
    assert_eq!(refused(delete(Kind::Acl, "wed")), ["acl 'wed': there is none of that name; did you mean 'web'?"]);
    let next = some().changed(delete(Kind::Port, "a")).unwrap();
    assert_eq!(next.of_kind(Kind::Mac).count(), 0, "the static address goes with its port");
}

#[test]
fn what_a_change_names_is_there_and_all_errors_are_named() {
    let config: Config = toml::from_str(
        "[[port]]\nname = \"x\"\nkind = \"tap\"\nmtu = 1\n[[port]]\nname = \"y\"\nkind = \"tap\"\nbridge = \"b2\"\n\
         ingress_acls = [\"wep\"]\n[[port]]\nname = \"z\"\nkind = \"tap\"\n[[port]]\nname = \"z\"\nkind = \"tap\"\n",
    )
    .unwrap();
    assert_eq!(
        refused(Change { set: config.into_objects(), ..Default::default() }),
        [
            "port 'x': mtu: 1 is not in 68 to 9216",
            "port 'z': name: is declared twice; each port needs a name of its own",
            "port 'y': bridge: there is no bridge 'b2' (there are: b1)",
            "port 'y': ingress_acls: there is no acl 'wep' (there are: web); did you mean 'web'?",
        ]
    );
}

#[test]
fn a_new_name_is_used_wherever_the_old_one_was() {
    let rename =
        |kind, from: &str, to: &str| Change { rename: vec![(kind, from.into(), to.into())], ..Default::default() };
    let next = some().changed(rename(Kind::Port, "a", "web1")).unwrap();
    let config = next.config();
    assert!(config.port.iter().any(|p| p.name == "web1") && config.mac[0].port == "web1");
    let next = next.changed(rename(Kind::Set, "lan", "office")).unwrap();
    assert_eq!(next.config().acl[0].rules[1], "allow tcp from @office to any");
    assert_eq!(refused(rename(Kind::Port, "a", "n")), ["port 'a': name: there is a port 'n' already"]);
    assert_eq!(refused(rename(Kind::Port, "a", "-x"))[0].split(':').nth(1), Some(" name"));
}

#[test]
fn only_what_differs_is_found() {
    let a = some();
    let b = a.changed(delete(Kind::Port, "n")).unwrap();
    assert_eq!(a.differing(&b).into_iter().collect::<Vec<_>>(), [&(Kind::Port, "n".to_owned())]);
    assert!(a.differing(&a).is_empty());
}
