//! `dunlin mac`: the MAC table.

use dunlin_control_api::dataplane::{MacEntry, MacFilter};

use crate::{
    connection::{self, Connection, status_to_error},
    output,
};

#[derive(clap::Subcommand)]
pub enum Command {
    /// List static and learned addresses, and those that flap
    #[command(visible_alias = "ls")]
    List(Filter),
    /// Remove learned addresses; all, or those that match
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

impl Command {
    pub async fn run(self, s: &mut Connection) -> anyhow::Result<()> {
        match self {
            Command::List(f) => list(s, &f).await,
            Command::Flush(f) => {
                let n = s.client.flush_macs(f.message()).await.map_err(|e| status_to_error(&e))?.into_inner();
                if s.json {
                    return output::json(&n);
                }
                println!("addresses removed: {}", n.entries);
                Ok(())
            }
        }
    }
}

async fn list(s: &mut Connection, f: &Filter) -> anyhow::Result<()> {
    let parts = connection::all(s.client.list_macs(f.message()).await).await?;
    let entries: Vec<MacEntry> = parts.into_iter().flat_map(|p| p.entries).collect();
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
