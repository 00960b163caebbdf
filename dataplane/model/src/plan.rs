//! What a change adds, changes and removes, for people.

use std::collections::{BTreeSet, HashMap};

use serde_json::{Map, Value};

use crate::{
    Kind, Objects,
    meta::{self, Type},
    v1::{Item, Object},
};

/// Of longer lists only what changed is said, and so much of it.
const LISTED: usize = 8;

/// What differs between two configurations, by kind. A setting that is written and is the default is none.
pub fn items(from: &Objects, to: &Objects) -> Vec<Item> {
    let mut items = Vec::new();
    for (kind, name) in from.differing(to) {
        // The only object of its kind is always there: with its defaults, if it is not declared.
        let empty = kind.implicit(name).filter(|_| kind.is_single());
        let old = from.get(*kind, name).map(|o| &**o).or(empty.as_ref());
        let new = to.get(*kind, name).map(|o| &**o).or(empty.as_ref());
        let item = |action: &str, fields| {
            (*kind, Item { action: action.into(), object: kind.word().into(), name: name.clone(), fields })
        };
        match (old, new) {
            (Some(old), Some(new)) => {
                let mut fields = differences(&effective(*kind, old), &effective(*kind, new));
                if *kind == Kind::Port {
                    let said = |f: &String| fields.iter().any(|s| s.split(':').next() == f.split(':').next());
                    let more: Vec<String> = own_or_not(old, new).into_iter().filter(|f| !said(f)).collect();
                    fields.extend(more);
                }
                if !fields.is_empty() {
                    items.push(item("change", fields));
                }
            }
            (None, Some(new)) => items.push(item("add", described(*kind, new))),
            (Some(_), None) => items.push(item("remove", Vec::new())),
            (None, None) => {}
        }
    }
    // What goes is said first.
    items.sort_by_key(|(kind, i)| (*kind, i.action != "remove"));
    items.into_iter().map(|(_, i)| i).collect()
}

/// The fields of an object with the defaults of those that are absent.
pub fn effective(kind: Kind, o: &Object) -> Map<String, Value> {
    with_defaults(kind, o.fields())
}

/// Fields with the defaults of those that are absent.
pub fn with_defaults(kind: Kind, mut fields: Map<String, Value>) -> Map<String, Value> {
    // What a group does not set has no value there.
    if kind == Kind::Group {
        return fields;
    }
    for f in &meta::of(kind).fields {
        let default = match (&f.default, f.holds) {
            (Some(d), Type::Number) => d.parse::<u64>().map(Value::from).unwrap_or_else(|_| d.as_str().into()),
            (Some(d), Type::Flag) => (d == "true").into(),
            (Some(d), _) => d.as_str().into(),
            (None, Type::Flag) => false.into(),
            (None, _) => continue,
        };
        // What is only there with another field has its default only then.
        let applies = f.needs.as_ref().is_none_or(|n| fields.contains_key(n))
            && (f.only_for.is_empty()
                || fields.get("kind").is_some_and(|k| f.only_for.iter().any(|o| k == o.as_str())));
        if applies && !(f.name == "bridge" && fields.contains_key("network")) {
            fields.entry(f.name.clone()).or_insert(default);
        }
    }
    fields
}

/// Settings of a port that are its own and the default, and were not, or the other way round: with a group, that differs.
fn own_or_not(old: &Object, new: &Object) -> Vec<String> {
    let (old, new) = (old.fields(), new.fields());
    let may_come_from_a_group =
        |f: &&meta::Field| meta::of(Kind::Group).field(&f.name).is_some() && f.default.is_some();
    let one = |f: &meta::Field| match (old.get(&f.name), new.get(&f.name)) {
        (None, Some(v)) if Some(text(v)) == f.default => Some(format!("{}: (default) -> {}", f.name, text(v))),
        (Some(v), None) if Some(text(v)) == f.default => Some(format!("{}: {} -> (default)", f.name, text(v))),
        _ => None,
    };
    meta::of(Kind::Port).settings().filter(may_come_from_a_group).filter_map(one).collect()
}

/// The settings of an object.
fn described(kind: Kind, o: &Object) -> Vec<String> {
    let field = |(k, v): (String, Value)| match v {
        Value::Array(all) if all.len() > LISTED => format!("{k}: {} of them", all.len()),
        v => format!("{k}: {}", text(&v)),
    };
    let is_key = |k: &String| meta::of(kind).field(k).is_some_and(|f| f.is_key);
    o.fields().into_iter().filter(|(k, _)| !is_key(k)).map(field).collect()
}

fn differences(old: &Map<String, Value>, new: &Map<String, Value>) -> Vec<String> {
    let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let shown = |v: Option<&Value>| v.map_or_else(|| "(default)".into(), text);
    keys.into_iter()
        .filter(|k| old.get(*k) != new.get(*k))
        .flat_map(|k| match (old.get(k), new.get(k)) {
            (Some(Value::Array(a)), Some(Value::Array(b))) if k == "rules" || a.len().max(b.len()) > LISTED => {
                lines(k, a, b)
            }
            (a, b) => vec![format!("{k}: {} -> {}", shown(a), shown(b))],
        })
        .collect()
}

/// What differs between long lists: lines that came and went, as far as they are few.
fn lines(key: &str, old: &[Value], new: &[Value]) -> Vec<String> {
    let mut balance: HashMap<String, i32> = HashMap::new();
    new.iter().for_each(|v| *balance.entry(text(v)).or_default() += 1);
    old.iter().for_each(|v| *balance.entry(text(v)).or_default() -= 1);
    // Of lines that are alike, the last ones came or went.
    let mut changed = |all: &[Value], sign: i32, mark: &str| -> Vec<String> {
        let mut said: Vec<String> = Vec::new();
        for (i, v) in all.iter().enumerate().rev() {
            let left = balance.get_mut(&text(v)).expect("counted above");
            if *left * sign > 0 {
                *left -= sign;
                said.push(format!("{key}: {mark} {}: {}", i + 1, text(v)));
            }
        }
        said.reverse();
        said
    };
    let mut all = changed(old, -1, "-");
    all.extend(changed(new, 1, "+"));
    if all.is_empty() {
        all.push(format!("{key}: the same in another order"));
    }
    if let Some(more) = all.len().checked_sub(LISTED).filter(|n| *n > 0) {
        all.truncate(LISTED);
        all.push(format!("{key}: and {more} more"));
    }
    all
}

/// A value in one line.
pub fn text(v: &Value) -> String {
    match v {
        Value::String(s) => s.clone(),
        Value::Array(all) => all.iter().map(text).collect::<Vec<_>>().join(","),
        Value::Object(o) if o.contains_key("address") => {
            let router = if o.contains_key("router") { "/router" } else { "" };
            format!("{}={}{router}", text(&o["address"]), text(&o["mac"]))
        }
        Value::Object(o) => o.iter().map(|(k, v)| format!("{k}={}", text(v))).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Change,
        v1::{Acl, Bridge, Group, Port},
    };

    fn port(name: &str, vlan: Option<u32>) -> Object {
        Port { name: name.into(), kind: "tap".into(), vlan, ..Default::default() }.into()
    }

    fn said(from: &Objects, to: &Objects) -> Vec<String> {
        items(from, to).iter().map(|i| format!("{} {} {} {}", i.action, i.object, i.name, i.fields.join(";"))).collect()
    }

    #[test]
    fn a_change_names_what_it_adds_changes_and_removes() {
        let base = Objects::of([
            Bridge { name: "br1".into(), ..Default::default() }.into(),
            port("a", Some(10)),
            port("b", None),
        ]);
        let set = vec![port("a", Some(20)), port("c", None)];
        let next = base.changed(Change { set, delete: vec![(Kind::Port, "b".into())], ..Default::default() }).unwrap();
        assert_eq!(said(&base, &next), ["remove port b ", "change port a vlan: 10 -> 20", "add port c kind: tap"]);
        assert!(items(&next, &next).is_empty());
    }

    #[test]
    fn a_default_that_is_written_is_no_difference() {
        let bridge = |ageing_s| Objects::of([Bridge { name: "b".into(), ageing_s, ..Default::default() }.into()]);
        assert!(items(&bridge(None), &bridge(Some(300))).is_empty());
        assert_eq!(said(&bridge(None), &bridge(Some(5))), ["change bridge b ageing_s: 300 -> 5"]);
        let settings = Objects::of([crate::v1::Dataplane { idle: "adaptive".into(), ..Default::default() }.into()]);
        assert!(items(&Objects::default(), &settings).is_empty());
    }

    /// A port's own value holds against that of a group, also if it is the default.
    #[test]
    fn a_default_of_a_ports_own_is_a_difference() {
        let port = |mtu, protected| {
            let groups = vec!["g".into()];
            Objects::of([
                Port { name: "p".into(), kind: "tap".into(), groups, mtu, protected, ..Default::default() }.into()
            ])
        };
        assert_eq!(said(&port(None, None), &port(Some(1500), None)), ["change port p mtu: (default) -> 1500"]);
        assert_eq!(said(&port(None, Some(false)), &port(None, None)), ["change port p protected: false -> (default)"]);
        assert_eq!(said(&port(Some(1500), None), &port(Some(9000), None)), ["change port p mtu: 1500 -> 9000"]);
        let group = |protected| Objects::of([Group { name: "g".into(), protected, ..Default::default() }.into()]);
        assert_eq!(said(&group(None), &group(Some(false))), ["change group g protected: (default) -> false"]);
    }

    #[test]
    fn of_rules_that_are_alike_one_is_said() {
        let acl = |rules: &[&str]| {
            Objects::of([Acl {
                name: "a".into(),
                rules: rules.iter().map(|r| (*r).into()).collect(),
                ..Default::default()
            }
            .into()])
        };
        assert_eq!(said(&acl(&["x"]), &acl(&["x", "x"])), ["change acl a rules: + 2: x"]);
    }
}
