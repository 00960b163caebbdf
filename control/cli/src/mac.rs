//! `dunlin mac`: addresses and where they are.

use dunlin_control_api::{
    dataplane::{MacEntry, MacFilter},
    v1::{ApplyRequest, Config, StaticMac},
};
use tokio_stream::StreamExt;

use crate::{
    output,
    session::{Session, told},
};

#[derive(clap::Subcommand)]
pub enum Command {
    /// List addresses, and those that flap
    #[command(visible_alias = "ls")]
    List(Filter),
    /// Enter a static address
    Add(Static),
    /// Remove a static address
    #[command(visible_alias = "rm")]
    Del(Key),
    /// Forget learned addresses; all, or those that match
    Flush(Filter),
}

#[derive(clap::Args)]
pub struct Filter {
    /// Of this bridge
    #[arg(long)]
    bridge: Option<String>,
    /// Of this VLAN
    #[arg(long)]
    vlan: Option<u32>,
    /// Behind this port
    #[arg(long)]
    port: Option<String>,
    /// This address
    #[arg(long)]
    mac: Option<String>,
}

#[derive(clap::Args)]
pub struct Key {
    /// The address
    mac: String,
    /// Its bridge
    #[arg(long, default_value = "br0")]
    bridge: String,
    /// Its VLAN; 0 is the untagged traffic of trunks
    #[arg(long, default_value_t = 0)]
    vlan: u32,
    /// Its network, in place of bridge and VLAN
    #[arg(long, conflicts_with_all = ["bridge", "vlan"])]
    network: Option<String>,
}

#[derive(clap::Args)]
pub struct Static {
    #[command(flatten)]
    key: Key,
    /// The port it is behind, or a remote as VTEP/ADDRESS
    #[arg(long)]
    port: String,
}

impl Filter {
    fn message(&self) -> MacFilter {
        MacFilter {
            bridge: self.bridge.clone().unwrap_or_default(),
            vlan: self.vlan,
            port: self.port.clone().unwrap_or_default(),
            mac: self.mac.clone().unwrap_or_default(),
        }
    }
}

impl Key {
    fn message(&self, port: &str) -> StaticMac {
        let (mac, port) = (self.mac.clone(), port.into());
        match &self.network {
            Some(network) => StaticMac { mac, port, network: network.clone(), ..Default::default() },
            None => StaticMac { bridge: self.bridge.clone(), vlan: self.vlan, mac, port, ..Default::default() },
        }
    }
}

impl Command {
    pub async fn run(self, s: &mut Session) -> anyhow::Result<()> {
        let change = match self {
            Command::List(f) => return list(s, &f).await,
            Command::Flush(f) => {
                let n = s.client.flush_macs(f.message()).await.map_err(|e| told(&e))?.into_inner();
                if s.json {
                    return output::json(&n);
                }
                println!("{} addresses forgotten", n.entries);
                return Ok(());
            }
            Command::Add(a) => {
                let set = Config { mac: vec![a.key.message(&a.port)], ..Default::default() };
                ApplyRequest { set: Some(set), ..Default::default() }
            }
            Command::Del(k) => ApplyRequest { delete_macs: vec![k.message("")], ..Default::default() },
        };
        let plan = s.apply(change).await?;
        output::plan(&plan, s.json, false)
    }
}

async fn list(s: &mut Session, f: &Filter) -> anyhow::Result<()> {
    let mut stream = s.client.list_macs(f.message()).await.map_err(|e| told(&e))?.into_inner();
    let mut entries: Vec<MacEntry> = Vec::new();
    while let Some(chunk) = stream.next().await {
        entries.extend(chunk.map_err(|e| told(&e))?.entries);
    }
    if s.json {
        return output::json(&entries);
    }
    let rows = entries.iter().map(|e| {
        let age = if e.is_static { "static".into() } else { format!("{} s", e.age_s) };
        vec![e.bridge.clone(), e.vlan.to_string(), e.mac.clone(), e.port.clone(), age]
    });
    output::table(&["BRIDGE", "VLAN", "MAC", "PORT", "AGE"], 4, rows);
    for flap in s.state().await?.flaps {
        let m = flap.last.unwrap_or_default();
        println!("{} flaps: {} moves, last from port '{}' to '{}'", m.mac, flap.moves, m.from, m.to);
    }
    Ok(())
}
