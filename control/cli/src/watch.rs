//! `dunlin watch`: events as they happen.

use dunlin_control_api::{
    dataplane::{Lease, MacAt, MacMove, WatchRequest, event::What, port_event::Kind},
    v1::WatchConfigRequest,
};
use serde_json::json;
use tokio_stream::StreamExt;

use crate::connection::{Connection, status_to_error};

#[derive(clap::Args)]
pub struct Watch {
    /// Changes of the configuration, in place of events: all objects at first, then what each change sets and removes
    #[arg(long)]
    config: bool,
}

impl Watch {
    pub async fn run(self, s: &mut Connection) -> anyhow::Result<()> {
        if self.config { config(s).await } else { events(s).await }
    }
}

async fn config(s: &mut Connection) -> anyhow::Result<()> {
    let request = WatchConfigRequest::default();
    let mut changes = s.client.watch_config(request).await.map_err(|e| status_to_error(&e))?.into_inner();
    while let Some(c) = changes.next().await {
        let c = c.map_err(|e| status_to_error(&e))?;
        if s.json {
            let set: Vec<_> =
                c.set.iter().filter_map(|o| Some(json!({ "kind": o.kind()?.word(), "fields": o.fields() }))).collect();
            let delete: Vec<_> = c.delete.iter().map(|k| json!({ "kind": k.kind, "name": k.name })).collect();
            println!("{}", json!({ "revision": c.revision, "replace": c.replace, "set": set, "delete": delete }));
            continue;
        }
        let set = c.set.iter().filter_map(|o| Some(format!("set {} {}", o.kind()?, o.name())));
        for what in set.chain(c.delete.iter().map(|k| format!("delete {} {}", k.kind, k.name))) {
            println!("revision {}: {what}", c.revision);
        }
    }
    Ok(())
}

async fn events(s: &mut Connection) -> anyhow::Result<()> {
    let mut events = s.client.watch(WatchRequest {}).await.map_err(|e| status_to_error(&e))?.into_inner();
    while let Some(event) = events.next().await {
        let event = event.map_err(|e| status_to_error(&e))?;
        if s.json {
            println!("{}", serde_json::to_string(&event)?);
            continue;
        }
        let time = event.unix_ms / 1000 % 86_400;
        let clock = format!("{:02}:{:02}:{:02}", time / 3600, time / 60 % 60, time % 60);
        println!("{clock}  {}", event.what.as_ref().map(words).unwrap_or_default());
    }
    Ok(())
}

fn words(what: &What) -> String {
    let address = |m: &MacMove| format!("mac {} of bridge {} VLAN {}", m.mac, m.bridge, m.vlan);
    let at = |m: &MacAt, what| format!("mac {} of bridge {} VLAN {} {what} port {}", m.mac, m.bridge, m.vlan, m.port);
    match what {
        What::Port(p) => {
            let what = match p.kind() {
                Kind::Added => "added",
                Kind::Changed => "changed",
                Kind::Removed => "removed",
                Kind::Up => "up",
                Kind::Down => "down",
            };
            format!("port {} {what}", p.port)
        }
        What::Guest(g) => format!("guest of port {}: connected {}, running {}", g.port, g.connected, g.running),
        What::MacMove(m) => format!("{} moved from port {} to {}", address(m), m.from, m.to),
        What::Flap(f) => {
            let m = f.last.clone().unwrap_or_default();
            format!("{} flaps between ports {} and {}: {} moves", address(&m), m.from, m.to, f.moves)
        }
        What::Learned(m) => at(m, "learned at"),
        What::Aged(m) => at(m, "not seen any more at"),
        What::AclLog(l) => {
            let rule = if l.rule == 0 { "default".to_owned() } else { format!("rule {}", l.rule) };
            format!("acl {} {rule}: {} at port {} ({}): {}", l.acl, l.action, l.port, l.direction, l.frame)
        }
        What::Leases(l) => {
            let (given, ended): (Vec<_>, Vec<_>) = l.leases.iter().partition(|l| l.left_s > 0);
            let list = |leases: &[&Lease]| match leases {
                [] => "none".to_owned(),
                _ => leases.iter().map(|l| l.address.as_str()).collect::<Vec<_>>().join(", "),
            };
            format!("DHCP leases of port {}: {}; ended: {}", l.port, list(&given), list(&ended))
        }
        What::Dataplane(d) => format!("dataplane {}", if d.up { "up" } else { "down" }),
        What::Lost(n) => format!("{n} events lost: this reader was too slow"),
    }
}
