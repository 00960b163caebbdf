//! Whatever changes led to a configuration, it means what its objects mean when they are read at once: what control
//! accepts, it can restore, and so can the dataplane.

#![allow(missing_docs, reason = "tests")]

use dunlin_model::{
    Bad, Change, Configuration, Kind,
    v1::{Acl, AddressSet, Bridge, Group, Neighbor, Network, Object, Port, Route, StaticMac, Vtep},
};
use proptest::prelude::*;

/// Of so many names of each kind: few, so that they meet.
const NAMES: usize = 3;

fn name(kind: &'static str) -> impl Strategy<Value = String> {
    (0..NAMES).prop_map(move |n| format!("{kind}{n}"))
}

/// One of some names, or none.
fn maybe(kind: &'static str) -> impl Strategy<Value = String> {
    prop_oneof![2 => Just(String::new()), 1 => name(kind)]
}

fn vlan() -> impl Strategy<Value = Option<u32>> {
    prop_oneof![Just(None), Just(Some(10)), Just(Some(20))]
}

fn list(kind: &'static str) -> impl Strategy<Value = Vec<String>> {
    proptest::collection::btree_set(name(kind), 0..2).prop_map(|s| s.into_iter().collect())
}

fn set() -> impl Strategy<Value = Object> {
    (name("set"), proptest::collection::vec(prop_oneof![Just("10.0.0.0/8".to_owned()), name("@set")], 0..3))
        .prop_map(|(name, addresses)| AddressSet { name, addresses, ..Default::default() }.into())
}

fn acl() -> impl Strategy<Value = Object> {
    (name("acl"), prop_oneof![Just("any".to_owned()), name("@set")]).prop_map(|(name, to)| {
        Acl { name, rules: vec![format!("allow from any to {to}")], ..Default::default() }.into()
    })
}

fn group() -> impl Strategy<Value = Object> {
    (name("group"), vlan(), maybe("bridge"), maybe("network"), list("acl"), any::<Option<bool>>()).prop_map(
        |(name, vlan, bridge, network, ingress_acls, protected)| {
            let vlan = vlan.filter(|_| network.is_empty());
            Group { name, vlan, bridge, network, ingress_acls, protected, ..Default::default() }.into()
        },
    )
}

fn port() -> impl Strategy<Value = Object> {
    let at = (vlan(), maybe("bridge"), maybe("network"));
    (name("port"), at, list("group"), list("acl"), 0..4u8).prop_map(
        |(name, (vlan, bridge, network), groups, ingress_acls, interface)| {
            let alone = network.is_empty();
            let interface = if interface == 0 { "shared".into() } else { String::new() };
            let (vlan, bridge) = (vlan.filter(|_| alone), if alone { bridge } else { String::new() });
            Port {
                name,
                kind: "tap".into(),
                vlan,
                bridge,
                network,
                groups,
                ingress_acls,
                interface,
                ..Default::default()
            }
            .into()
        },
    )
}

fn vtep() -> impl Strategy<Value = Object> {
    (name("vtep"), name("port"), 1..4u8, vlan()).prop_map(|(name, uplink, last, vlan)| {
        Vtep { name, uplink, vlan, address: format!("10.0.0.{last}/24"), ..Default::default() }.into()
    })
}

fn network() -> impl Strategy<Value = Object> {
    let overlay = (prop_oneof![Just(None), Just(Some(1)), Just(Some(2))], maybe("vtep"), 1..5u8, any::<bool>());
    (name("network"), vlan(), overlay).prop_map(|(name, vlan, (vni, vtep, last, gre))| {
        let inside = vni.is_some();
        Network {
            name,
            vlan,
            vni,
            vtep: if inside { vtep } else { String::new() },
            remotes: if inside { vec![format!("10.0.0.{last}")] } else { Vec::new() },
            tunnel: if inside && gre { "gre".into() } else { String::new() },
            ..Default::default()
        }
        .into()
    })
}

fn object() -> impl Strategy<Value = Object> {
    prop_oneof![
        set(),
        acl(),
        group(),
        name("bridge").prop_map(|name| Bridge { name, ..Default::default() }.into()),
        port(),
        port(),
        vtep(),
        network(),
        network(),
        (maybe("vtep"), 1..3u8).prop_map(|(vtep, n)| {
            Route { vtep, to: format!("10.{n}.0.0/16"), via: vec!["10.0.0.9".into()], ..Default::default() }.into()
        }),
        maybe("vtep").prop_map(|vtep| {
            Neighbor { vtep, address: "10.0.0.9".into(), mac: "52:54:00:00:00:09".into(), ..Default::default() }.into()
        }),
        (maybe("network"), vlan(), name("port")).prop_map(|(network, vlan, port)| {
            let vlan = if network.is_empty() { vlan.unwrap_or(0) } else { 0 };
            StaticMac { network, vlan, port, mac: "52:54:00:00:00:01".into(), ..Default::default() }.into()
        }),
    ]
}

#[derive(Clone, Debug)]
enum Step {
    Set(Vec<Object>),
    Replace(Vec<Object>),
    /// The n-th of what is there.
    Delete(usize),
    Rename(usize, String),
}

fn step() -> impl Strategy<Value = Step> {
    let some = || proptest::collection::vec(object(), 1..4);
    prop_oneof![
        8 => some().prop_map(Step::Set),
        1 => proptest::collection::vec(object(), 1..12).prop_map(Step::Replace),
        4 => (0..20usize).prop_map(Step::Delete),
        1 => (0..20usize, "[a-z]{3}").prop_map(|(n, to)| Step::Rename(n, to)),
    ]
}

fn change(step: &Step, now: &Configuration) -> Change {
    let nth = |n: usize| now.objects().iter().map(|(k, _)| k.clone()).nth(n % now.objects().len().max(1));
    match step {
        Step::Set(set) => Change { set: set.clone(), ..Default::default() },
        Step::Replace(set) => Change { set: set.clone(), replace: true, ..Default::default() },
        Step::Delete(n) => Change { delete: nth(*n).into_iter().collect(), ..Default::default() },
        Step::Rename(n, to) => Change {
            rename: nth(*n).map(|(k, name)| (k, name, to.clone())).into_iter().collect(),
            ..Default::default()
        },
    }
}

/// The configuration read at once.
fn whole(c: &Configuration) -> Result<Configuration, Vec<Bad>> {
    let set = c.objects().iter().map(|(_, o)| (**o).clone()).collect();
    Configuration::default().changed(Change { set, ..Default::default() }).map(|(c, _)| c)
}

/// The step that the dataplane is sent: what differs, and nothing of names that changed.
fn sent(from: &Configuration, to: &Configuration) -> Change {
    let mut change = Change::default();
    for (kind, name) in from.objects().differing(to.objects()) {
        match to.objects().get(*kind, name) {
            Some(o) => change.set.push((**o).clone()),
            None => change.delete.push((*kind, name.clone())),
        }
    }
    change
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_configuration_is_what_its_objects_mean(steps in proptest::collection::vec(step(), 1..14)) {
        let base = [
            Port { name: "port0".into(), kind: "tap".into(), ..Default::default() }.into(),
            Vtep { name: "vtep0".into(), uplink: "port0".into(), address: "10.0.0.1/24".into(), ..Default::default() }.into(),
            Bridge { name: "bridge0".into(), ..Default::default() }.into(),
            AddressSet { name: "set0".into(), ..Default::default() }.into(),
            Acl { name: "acl0".into(), ..Default::default() }.into(),
            Group { name: "group0".into(), ..Default::default() }.into(),
        ];
        let first = Change { set: base.to_vec(), ..Default::default() };
        let mut control = Configuration::default().changed(first).unwrap().0;
        let mut dataplane = control.clone();
        for step in &steps {
            let Ok((next, _)) = control.changed(change(step, &control)) else { continue };
            let whole = whole(&next);
            prop_assert!(whole.is_ok(), "accepted, and can't be restored: {:?} after {step:?}", whole.unwrap_err());
            prop_assert_eq!(format!("{:?}", whole.unwrap()), format!("{:?}", next), "after {:?}", step);
            let there = dataplane.changed(sent(&control, &next));
            prop_assert!(there.is_ok(), "accepted, and the dataplane refuses it: {:?} after {step:?}", there.unwrap_err());
            dataplane = there.unwrap().0;
            prop_assert_eq!(dataplane.objects().sum(), next.objects().sum());
            prop_assert_eq!(format!("{:?}", dataplane), format!("{:?}", next));
            control = next;
        }
        prop_assert!(control.objects().of_kind(Kind::Port).count() <= NAMES * 2 + 14);
    }
}
