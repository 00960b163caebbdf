//! Port groups: the settings of a port with those of its groups.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use crate::{
    Kind, Objects,
    meta::{self, Field},
    v1::Object,
};

/// The unit of VLANs and network.
const SEGMENT: &str = "segment";

/// Settings of a port.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inherited {
    /// Those that are set, by the port or by one of its groups.
    pub fields: Map<String, Value>,
    /// The groups that the others than the port's own come from, by field.
    pub from: BTreeMap<String, Vec<String>>,
    /// Groups whose VLAN settings do not hold, because the port or another group has some.
    pub left: Vec<String>,
    /// One of them that has a bridge too.
    pub bridge_left: Option<String>,
}

/// A port with what it takes from its groups: a setting that it does not have itself is that of the first group that has
/// it; fields of one unit are taken together; lists of ACLs add up.
pub fn inherited(objects: &Objects, port: &Object) -> Inherited {
    let mut all = Inherited { fields: port.fields(), ..Default::default() };
    let names: Vec<String> = match all.fields.get("groups") {
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => return all,
    };
    let settings: Vec<&Field> =
        meta::of(Kind::Group).settings().filter(|f| !["description", "labels"].contains(&f.name.as_str())).collect();
    for name in names {
        let Some(group) = objects.get(Kind::Group, &name).map(|g| g.fields()) else { continue };
        let units: BTreeSet<&String> =
            settings.iter().filter(|f| all.fields.contains_key(&f.name)).filter_map(|f| f.unit.as_ref()).collect();
        // The bridge belongs to the VLANs that the group has, if it has some.
        let has_segment = settings.iter().any(|f| f.unit.as_deref() == Some(SEGMENT) && group.contains_key(&f.name));
        let left = has_segment && units.iter().any(|u| *u == SEGMENT);
        all.left.extend(Some(name.clone()).filter(|_| left));
        for f in &settings {
            let Some(value) = group.get(&f.name) else { continue };
            if f.name == "bridge" && left {
                all.bridge_left.get_or_insert_with(|| name.clone());
                continue;
            }
            if f.adds {
                add(&mut all.fields, &f.name, value);
            } else if all.fields.contains_key(&f.name) || f.unit.as_ref().is_some_and(|u| units.contains(u)) {
                continue;
            } else {
                all.fields.insert(f.name.clone(), value.clone());
            }
            all.from.entry(f.name.clone()).or_default().push(name.clone());
        }
    }
    // The bridge of a port in a network is that of the network.
    if all.fields.contains_key("network") && all.from.remove("bridge").is_some() {
        all.fields.remove("bridge");
    }
    all
}

/// Adds what is in `more` and not in the list yet.
fn add(fields: &mut Map<String, Value>, name: &str, more: &Value) {
    let list = fields.entry(name).or_insert_with(|| Value::Array(Vec::new()));
    if let (Value::Array(list), Value::Array(more)) = (list, more) {
        let new: Vec<Value> = more.iter().filter(|v| !list.contains(v)).cloned().collect();
        list.extend(new);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::{Group, Port};

    fn text(all: &Inherited, field: &str) -> String {
        let value = all.fields.get(field).map(crate::plan::text).unwrap_or_default();
        let from = all.from.get(field).map(|g| format!(" of {}", g.join("+"))).unwrap_or_default();
        value + &from
    }

    fn port(port: Port, groups: &[Group]) -> Inherited {
        let names = groups.iter().map(|g| g.name.clone()).collect();
        let port = Port { name: "p".into(), groups: names, ..port };
        inherited(&Objects::of(groups.iter().cloned().map(Object::from)), &port.into())
    }

    #[test]
    fn the_ports_own_value_wins_then_that_of_the_first_group() {
        let web =
            Group { name: "web".into(), mtu: Some(9000), vlan: Some(10), protected: Some(true), ..Default::default() };
        let all = Group {
            name: "all".into(),
            mtu: Some(1400),
            mac_limit: Some(4),
            mac_limit_action: "forward".into(),
            ..Default::default()
        };
        let groups = [web, all];
        let p = port(Port { protected: Some(false), ..Default::default() }, &groups);
        let of = |f| text(&p, f);
        assert_eq!(
            (of("mtu"), of("vlan"), of("protected")),
            ("9000 of web".into(), "10 of web".into(), "false".into())
        );
        assert_eq!((of("mac_limit"), of("mac_limit_action")), ("4 of all".into(), "forward of all".into()));
        let own = port(Port { mac_limit: Some(9), ..Default::default() }, &groups);
        assert_eq!((text(&own, "mac_limit"), text(&own, "mac_limit_action")), ("9".into(), String::new()));
    }

    #[test]
    fn a_segment_is_the_ports_own_or_all_of_it_a_groups() {
        let trunk = Group {
            name: "g".into(),
            bridge: "b1".into(),
            vlan_mode: "native-tagged".into(),
            vlan: Some(5),
            ..Default::default()
        };
        let groups = [trunk];
        let p = port(Port { vlan: Some(7), ..Default::default() }, &groups);
        assert_eq!(
            (text(&p, "vlan"), text(&p, "vlan_mode"), text(&p, "bridge")),
            ("7".into(), String::new(), String::new())
        );
        // The bridge is that of the VLANs.
        let bridge = Group { name: "b".into(), bridge: "b2".into(), ..Default::default() };
        let both = [bridge, groups[0].clone()];
        assert_eq!(text(&port(Port { vlan: Some(7), ..Default::default() }, &both), "bridge"), "b2 of b");
        assert_eq!(port(Port { vlan: Some(7), ..Default::default() }, &groups).left, ["g"]);
        let p = port(Port { network: "blue".into(), ..Default::default() }, &groups);
        assert_eq!((text(&p, "network"), text(&p, "bridge")), ("blue".into(), String::new()));
    }

    #[test]
    fn acls_add_up_the_ports_own_first() {
        let group = |name: &str, acls: &[&str]| Group {
            name: name.into(),
            ingress_acls: acls.iter().map(|a| (*a).into()).collect(),
            ..Default::default()
        };
        let own = Port { ingress_acls: vec!["a".into()], ..Default::default() };
        let p = port(own, &[group("x", &["b", "a"]), group("y", &["c", "b"])]);
        assert_eq!(text(&p, "ingress_acls"), "a,b,c of x+y");
    }
}
