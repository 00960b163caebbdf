//! `dunlin port list` and `show`: ports with their state. The other verbs are those of every kind (`object.rs`).

use std::collections::HashMap;

use anyhow::bail;
use dunlin_control_api::{
    dataplane as dp,
    model::{
        Kind, Objects,
        groups::{self, Inherited},
        plan,
        v1::{Object, Port, object::Spec},
    },
};
use serde_json::{Map, Value};

use crate::{
    connection::Connection,
    list::{Listing, Row},
    output,
    show::settings,
};

fn vlans(p: &Port) -> String {
    let all = |list: &str| if list.is_empty() { "all".to_owned() } else { list.to_owned() };
    if !p.network.is_empty() {
        return p.network.clone();
    }
    match (p.vlan_mode.as_str(), p.vlan) {
        ("" | "access", Some(v)) => v.to_string(),
        ("native-tagged", Some(v)) => format!("{} native {v}t", all(&p.trunks)),
        ("native-untagged", Some(v)) => format!("{} native {v}", all(&p.trunks)),
        ("dot1q-tunnel", Some(v)) => format!("tunnel {v}"),
        _ => format!("trunk {}", all(&p.trunks)),
    }
}

fn drops(p: &dp::PortState) -> u64 {
    p.counters.iter().flat_map(|c| &c.drops).map(|d| d.frames).sum()
}

fn link(p: &dp::PortState) -> &'static str {
    match (&p.guest, p.up) {
        _ if p.admin_down => "admin down",
        _ if !p.error.is_empty() => "error",
        (_, true) => "up",
        (Some(g), false) if g.connected => "starting",
        (Some(_), false) => "no guest",
        (None, false) => "down",
    }
}

/// The settings of a port with those of its groups, as fields and as a port.
fn in_force(objects: &Objects, o: &Object) -> (Map<String, Value>, Port) {
    let fields = groups::inherited(objects, o).fields;
    match Kind::Port.object(fields.clone()).map(|o| o.spec) {
        Ok(Some(Spec::Port(p))) => (fields, p),
        _ => (fields, Port::default()),
    }
}

/// The ports with their state.
pub fn rows(objects: &Objects, state: Option<dp::State>) -> Listing {
    let is_down = state.is_none();
    let state = state.unwrap_or_default();
    let problems = state.info.clone().unwrap_or_default().problems;
    let of_port = |name: &str| problems.iter().filter(|p| p.kind == "port" && p.name == name).collect::<Vec<_>>();
    let states: HashMap<&str, &dp::PortState> = state.ports.iter().map(|p| (p.name.as_str(), p)).collect();
    let row = |(name, o): (&str, &std::sync::Arc<Object>)| {
        let Some(Spec::Port(p)) = &o.spec else { unreachable!("of that kind") };
        let (fields, with_groups) = in_force(objects, o);
        let (state, problems) = (states.get(name), of_port(name));
        let at = &with_groups;
        let bridge = if at.bridge.is_empty() && at.network.is_empty() { "br0" } else { &at.bridge };
        let mut cells = vec![
            ("name", name.to_owned()),
            ("kind", p.kind.clone()),
            ("bridge", bridge.to_owned()),
            ("vlan", vlans(at)),
        ];
        match state {
            Some(x) => {
                let c = x.counters.clone().unwrap_or_default();
                let is_whole = !x.error.is_empty() || problems.is_empty();
                cells.push(("link", if is_whole { link(x).into() } else { format!("{}, problem", link(x)) }));
                let numbers = [c.rx_frames, c.tx_frames, drops(x), u64::from(x.macs)];
                cells.extend(["rx", "tx", "drops", "macs"].into_iter().zip(numbers.map(|n| n.to_string())));
            }
            None => cells.push(("link", if is_down { "dataplane down" } else { "error" }.into())),
        }
        let json = serde_json::json!({ "config": p, "state": state, "problems": problems });
        Row { cells, fields: plan::with_defaults(Kind::Port, fields), json }
    };
    let rows = objects.of_kind(Kind::Port).map(row).collect();
    let notes = problems.iter().filter(|p| p.kind == "port").map(|p| format!("not in force: {}", output::problem(p)));
    let columns = vec!["name", "kind", "bridge", "vlan", "link", "rx", "tx", "drops", "macs"];
    (columns, 5, rows, notes.collect())
}

/// All there is to know of a port.
pub async fn show(objects: &Objects, o: &Object, s: &mut Connection) -> anyhow::Result<()> {
    let Some(Spec::Port(port)) = &o.spec else { bail!("it is no port") };
    let name = &port.name;
    let state = s.status().await?.dataplane.unwrap_or_default();
    let mut problems = state.info.unwrap_or_default().problems;
    problems.retain(|p| p.kind == "port" && p.name == *name);
    let state = state.ports.into_iter().find(|p| p.name == *name);
    if s.json {
        let Inherited { fields, from, .. } = groups::inherited(objects, o);
        let effective = plan::with_defaults(Kind::Port, fields);
        return output::json(&serde_json::json!({
            "config": port, "effective": effective, "from_groups": from, "state": state, "problems": problems,
        }));
    }
    let mut facts = settings(objects, Kind::Port, o);
    facts.insert(1, ("vlans", vlans(&in_force(objects, o).1)));
    let Some(p) = state else {
        output::facts(&facts);
        println!("the dataplane is down: no state");
        return Ok(());
    };
    facts.extend([
        ("bridge", p.bridge.clone()),
        ("link", link(&p).to_owned()),
        ("error", p.error.clone()),
        ("fallback", p.fallback.clone()),
        ("driver", if p.note.is_empty() { p.driver.clone() } else { format!("{} ({})", p.driver, p.note) }),
        ("mac", p.mac.clone()),
        ("mtu", p.mtu.to_string()),
        ("queues", format!("{} rx, {} tx", p.rx_queues, p.tx_queues)),
        ("steering", if p.steering.is_empty() { "rss".into() } else { p.steering.clone() }),
        ("hashes", p.hash_fields.join(", ")),
        ("device steers", p.device_steering.clone()),
        (
            "guests' queues",
            p.guest_queues
                .iter()
                .map(|q| {
                    let (rx, tx) = (q.rx_frames, q.tx_frames);
                    format!("{} on core {} for {} ({rx} frames received, {tx} sent)", q.queue, q.core, q.port)
                })
                .collect::<Vec<_>>()
                .join(", "),
        ),
        ("numa node", p.numa_node.map(|n| n.to_string()).unwrap_or_default()),
        ("addresses", p.macs.to_string()),
        ("leases", p.leases.iter().map(|l| format!("{} for {} s", l.address, l.left_s)).collect::<Vec<_>>().join(", ")),
        (
            "connections",
            match p.sessions {
                0 => String::new(),
                n => format!("{n}, {} of them unanswered", p.unanswered_sessions),
            },
        ),
    ]);
    if let Some(g) = p.guest {
        let has = |name, yes: bool| if yes { name } else { "" };
        let features =
            [has("mergeable", g.mergeable), has("checksum", g.checksum), has("tso4", g.tso4), has("tso6", g.tso6)];
        let features: Vec<&str> = features.into_iter().filter(|f| !f.is_empty()).collect();
        facts.push(("guest", format!("connected {}, running {}", g.connected, g.running)));
        facts.push(("takes", features.join(", ")));
    }
    let c = p.counters.clone().unwrap_or_default();
    facts.push(("received", format!("{} frames, {} octets", c.rx_frames, c.rx_bytes)));
    facts.push(("transmitted", format!("{} frames, {} octets", c.tx_frames, c.tx_bytes)));
    facts.push(("cloned", format!("{} frames", c.clones)));
    for d in c.drops.iter().filter(|d| d.frames > 0) {
        facts.push(("dropped", format!("{} frames, {} {}: {}", d.frames, d.direction, d.reason, d.meaning)));
    }
    let d = p.device.unwrap_or_default();
    for (what, n) in [
        ("receive ring full", d.rx_missed),
        ("receive errors", d.rx_errors),
        ("no buffer", d.rx_no_buffer),
        ("transmit errors", d.tx_errors),
    ] {
        if n > 0 {
            facts.push(("device lost", format!("{n} frames: {what}")));
        }
    }
    output::facts(&facts);
    problems.iter().for_each(|p| println!("not in force: {}", output::problem(p)));
    Ok(())
}
