//! What a change adds, changes and removes, in words; and a configuration with a change in it.

use dunlin_control_api::v1::{ApplyRequest, Config, Item, Neighbor, Network, Port, Route, StaticMac};
use std::collections::HashMap;

use serde::Serialize;
use serde_json::Value;

/// Of longer lists only what changed is told, and so much of it.
const LISTED: usize = 8;

/// `base` with the change in it. What is deleted and not there is told as an error.
pub fn changed(base: &Config, change: &ApplyRequest) -> Result<Config, String> {
    let set = change.set.clone().unwrap_or_default();
    let mut next = if change.replace { Config::default() } else { base.clone() };
    if set.dataplane.is_some() {
        next.dataplane = set.dataplane;
    }
    if set.sessions.is_some() {
        next.sessions = set.sessions;
    }
    for name in &change.delete_ports {
        remove(&mut next.port, |p| p.name == *name).ok_or_else(|| gone("port", name))?;
        next.mac.retain(|m| m.port != *name);
    }
    for name in &change.delete_bridges {
        let on = |p: &Port| p.bridge == *name || (p.bridge.is_empty() && name == crate::wish::DEFAULT_BRIDGE);
        if let Some(p) = next.port.iter().find(|p| on(p)) {
            return Err(format!("bridge '{name}': port '{}' is still on it; delete or move its ports first", p.name));
        }
        remove(&mut next.bridge, |b| b.name == *name).ok_or_else(|| gone("bridge", name))?;
    }
    for name in &change.delete_networks {
        if let Some(p) = next.port.iter().find(|p| p.network == *name) {
            return Err(format!("network '{name}': port '{}' is still in it; delete or move its ports first", p.name));
        }
        remove(&mut next.network, |n| n.name == *name).ok_or_else(|| gone("network", name))?;
    }
    for name in &change.delete_vteps {
        let alone = next.vtep.len() == 1;
        let uses = |n: &&Network| n.vtep == *name || (alone && n.vni.is_some());
        if let Some(n) = next.network.iter().find(uses) {
            return Err(format!("vtep '{name}': network '{}' still uses it", n.name));
        }
        remove(&mut next.vtep, |v| v.name == *name).ok_or_else(|| gone("vtep", name))?;
        next.route.retain(|r| r.vtep != *name);
        next.neighbor.retain(|n| n.vtep != *name);
    }
    for route in &change.delete_routes {
        remove(&mut next.route, |r| same_route(r, route)).ok_or_else(|| gone("route", &route.to))?;
    }
    for neighbor in &change.delete_neighbors {
        remove(&mut next.neighbor, |n| same_neighbor(n, neighbor))
            .ok_or_else(|| gone("static neighbor", &neighbor.address))?;
    }
    for name in &change.delete_acls {
        if let Some(user) = user_of_acl(&next, name) {
            return Err(format!("acl '{name}': {user} still has it; take it away there first"));
        }
        remove(&mut next.acl, |a| a.name == *name).ok_or_else(|| gone("acl", name))?;
    }
    for name in &change.delete_sets {
        remove(&mut next.set, |s| s.name == *name).ok_or_else(|| gone("set", name))?;
    }
    for name in &change.delete_groups {
        if let Some(p) = next.port.iter().find(|p| p.groups.contains(name)) {
            return Err(format!("group '{name}': port '{}' is still in it; take it out first", p.name));
        }
        remove(&mut next.group, |g| g.name == *name).ok_or_else(|| gone("group", name))?;
    }
    for mac in &change.delete_macs {
        remove(&mut next.mac, |m| same_mac(m, mac)).ok_or_else(|| gone("static mac", &mac.mac))?;
    }
    if change.replace {
        // As written, so that what stands there twice is seen.
        next.bridge.extend(set.bridge);
        next.port.extend(set.port);
        next.mac.extend(set.mac);
        next.vtep.extend(set.vtep);
        next.network.extend(set.network);
        next.route.extend(set.route);
        next.neighbor.extend(set.neighbor);
        next.acl.extend(set.acl);
        next.set.extend(set.set);
        next.group.extend(set.group);
    } else {
        set.bridge.into_iter().for_each(|b| put(&mut next.bridge, b, |a, b| a.name == b.name));
        set.port.into_iter().for_each(|p| put(&mut next.port, p, |a, b| a.name == b.name));
        set.mac.into_iter().for_each(|m| put(&mut next.mac, m, same_mac));
        set.vtep.into_iter().for_each(|v| put(&mut next.vtep, v, |a, b| a.name == b.name));
        set.network.into_iter().for_each(|n| put(&mut next.network, n, |a, b| a.name == b.name));
        set.route.into_iter().for_each(|r| put(&mut next.route, r, same_route));
        set.neighbor.into_iter().for_each(|n| put(&mut next.neighbor, n, same_neighbor));
        set.acl.into_iter().for_each(|a| put(&mut next.acl, a, |a, b| a.name == b.name));
        set.set.into_iter().for_each(|s| put(&mut next.set, s, |a, b| a.name == b.name));
        set.group.into_iter().for_each(|g| put(&mut next.group, g, |a, b| a.name == b.name));
    }
    next.mac.iter_mut().for_each(|m| m.mac = plain_mac(&m.mac));
    next.bridge.sort_by(|a, b| a.name.cmp(&b.name));
    next.port.sort_by(|a, b| a.name.cmp(&b.name));
    next.vtep.sort_by(|a, b| a.name.cmp(&b.name));
    next.network.sort_by(|a, b| a.name.cmp(&b.name));
    next.acl.sort_by(|a, b| a.name.cmp(&b.name));
    next.set.sort_by(|a, b| a.name.cmp(&b.name));
    next.group.sort_by(|a, b| a.name.cmp(&b.name));
    next.neighbor.sort_by(|a, b| (&a.vtep, &a.address).cmp(&(&b.vtep, &b.address)));
    next.route.sort_by(|a, b| (&a.vtep, &a.to).cmp(&(&b.vtep, &b.to)));
    next.mac.sort_by(|a, b| (&a.network, &a.bridge, a.vlan, &a.mac).cmp(&(&b.network, &b.bridge, b.vlan, &b.mac)));
    Ok(next)
}

fn user_of_acl(config: &Config, acl: &String) -> Option<String> {
    let named = |ingress: &[String], egress: &[String]| ingress.contains(acl) || egress.contains(acl);
    let port =
        config.port.iter().find(|p| named(&p.ingress_acls, &p.egress_acls)).map(|p| format!("port '{}'", p.name));
    let group =
        || config.group.iter().find(|g| named(&g.ingress_acls, &g.egress_acls)).map(|g| format!("group '{}'", g.name));
    let network = || {
        config.network.iter().find(|n| named(&n.ingress_acls, &n.egress_acls)).map(|n| format!("network '{}'", n.name))
    };
    port.or_else(group).or_else(network)
}

fn gone(kind: &str, name: &str) -> String {
    format!("{kind} '{name}': there is none of that name")
}

fn remove<T>(list: &mut Vec<T>, matches: impl FnMut(&T) -> bool) -> Option<T> {
    list.iter().position(matches).map(|i| list.remove(i))
}

fn put<T>(list: &mut Vec<T>, item: T, same: impl Fn(&T, &T) -> bool) {
    match list.iter_mut().find(|x| same(x, &item)) {
        Some(x) => *x = item,
        None => list.push(item),
    }
}

fn same_mac(a: &StaticMac, b: &StaticMac) -> bool {
    let bridge =
        |m: &StaticMac| if m.bridge.is_empty() { crate::wish::DEFAULT_BRIDGE.into() } else { m.bridge.clone() };
    (bridge(a), a.vlan, &a.network, plain_mac(&a.mac)) == (bridge(b), b.vlan, &b.network, plain_mac(&b.mac))
}

fn same_neighbor(a: &Neighbor, b: &Neighbor) -> bool {
    (&a.vtep, &a.address) == (&b.vtep, &b.address)
}

fn same_route(a: &Route, b: &Route) -> bool {
    (&a.vtep, &a.to) == (&b.vtep, &b.to)
}

/// One way of writing an address, so that the same one makes no difference.
fn plain_mac(mac: &str) -> String {
    mac.to_ascii_lowercase().replace('-', ":")
}

/// What differs between two configurations.
pub fn items(from: &Config, to: &Config) -> Vec<Item> {
    let mut items = Vec::new();
    let (a, b) = (from.dataplane.clone().unwrap_or_default(), to.dataplane.clone().unwrap_or_default());
    compare("dataplane", &[a], &[b], |_| "settings".into(), &mut items);
    let (a, b) = (from.sessions.clone().unwrap_or_default(), to.sessions.clone().unwrap_or_default());
    compare("sessions", &[a], &[b], |_| "settings".into(), &mut items);
    compare("set", &from.set, &to.set, |s| s.name.clone(), &mut items);
    compare("acl", &from.acl, &to.acl, |a| a.name.clone(), &mut items);
    compare("group", &from.group, &to.group, |g| g.name.clone(), &mut items);
    compare("bridge", &from.bridge, &to.bridge, |b| b.name.clone(), &mut items);
    compare("vtep", &from.vtep, &to.vtep, |v| v.name.clone(), &mut items);
    compare("route", &from.route, &to.route, |r| format!("{} {}", r.to, r.vtep).trim().to_owned(), &mut items);
    let name = |n: &Neighbor| format!("{} {}", n.address, n.vtep).trim().to_owned();
    compare("neighbor", &from.neighbor, &to.neighbor, name, &mut items);
    compare("network", &from.network, &to.network, |n| n.name.clone(), &mut items);
    compare("port", &from.port, &to.port, |p| p.name.clone(), &mut items);
    let name = |m: &StaticMac| match m.network.as_str() {
        "" => format!("{} VLAN {} of {}", m.mac, m.vlan, m.bridge),
        network => format!("{} of {network}", m.mac),
    };
    compare("mac", &from.mac, &to.mac, name, &mut items);
    items
}

fn compare<T: Serialize + PartialEq>(
    object: &str,
    from: &[T],
    to: &[T],
    name: impl Fn(&T) -> String,
    items: &mut Vec<Item>,
) {
    let item =
        |action: &str, x: &T, fields| Item { action: action.into(), object: object.into(), name: name(x), fields };
    let kept: std::collections::HashSet<String> = to.iter().map(&name).collect();
    let before: HashMap<String, &T> = from.iter().map(|o| (name(o), o)).collect();
    for old in from.iter().filter(|o| !kept.contains(&name(o))) {
        items.push(item("remove", old, Vec::new()));
    }
    for new in to {
        match before.get(&name(new)) {
            None => items.push(item("add", new, described(new))),
            Some(old) if *old != new => items.push(item("change", new, differences(*old, new))),
            Some(_) => {}
        }
    }
}

/// The fields of an object but its name.
fn described<T: Serialize>(x: &T) -> Vec<String> {
    let field = |(k, v): (String, Value)| match v {
        Value::Array(all) if all.len() > LISTED => format!("{k}: {} of them", all.len()),
        v => format!("{k}: {}", text(&v)),
    };
    fields(x).into_iter().filter(|(k, _)| k != "name").map(field).collect()
}

fn differences<T: Serialize>(old: &T, new: &T) -> Vec<String> {
    let (old, new) = (fields(old), fields(new));
    let keys: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
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
    let told = |all: &[Value], sign: i32, mark: &str| -> Vec<String> {
        let changed = all.iter().zip(1..).filter(|(v, _)| balance[&text(v)] * sign > 0);
        changed.map(|(v, i)| format!("{key}: {mark} {i}: {}", text(v))).collect()
    };
    let mut all = told(old, -1, "-");
    all.extend(told(new, 1, "+"));
    if all.is_empty() {
        all.push(format!("{key}: the same in another order"));
    }
    if let Some(more) = all.len().checked_sub(LISTED).filter(|n| *n > 0) {
        all.truncate(LISTED);
        all.push(format!("{key}: and {more} more"));
    }
    all
}

fn fields<T: Serialize>(x: &T) -> serde_json::Map<String, Value> {
    match serde_json::to_value(x) {
        Ok(Value::Object(map)) => map,
        _ => serde_json::Map::new(),
    }
}

fn text(v: &Value) -> String {
    match v {
        Value::String(s) => s.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dunlin_control_api::v1::Bridge;

    fn port(name: &str, vlan: Option<u32>) -> Port {
        Port { name: name.into(), kind: "tap".into(), vlan, ..Default::default() }
    }

    #[test]
    fn a_change_names_what_it_adds_changes_and_removes() {
        let base = Config {
            bridge: vec![Bridge { name: "br0".into(), ageing_s: None }],
            port: vec![port("a", Some(10)), port("b", None)],
            ..Default::default()
        };
        let change = ApplyRequest {
            set: Some(Config { port: vec![port("a", Some(20)), port("c", None)], ..Default::default() }),
            delete_ports: vec!["b".into()],
            ..Default::default()
        };
        let next = changed(&base, &change).unwrap();
        let told: Vec<String> =
            items(&base, &next).iter().map(|i| format!("{} {} {}", i.action, i.name, i.fields.join(";"))).collect();
        assert_eq!(told, ["remove b ", "change a vlan: 10 -> 20", "add c kind: tap"]);
        assert!(items(&next, &next).is_empty());
    }

    #[test]
    fn deleting_what_is_not_there_is_an_error() {
        let change = ApplyRequest { delete_ports: vec!["nope".into()], ..Default::default() };
        assert!(changed(&Config::default(), &change).unwrap_err().contains("port 'nope'"));
    }
}
