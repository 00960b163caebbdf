//! `dunlin neighbor`: ARP and ND entries of the underlay.

use dunlin_control_api::dataplane::NeighborFilter;

use crate::{
    connection::{Connection, status_to_error},
    output,
};

#[derive(clap::Subcommand)]
pub enum Command {
    /// List neighbors in use, and whether they answer
    #[command(visible_alias = "ls")]
    List,
    /// Remove learned entries and resolve them again
    Flush {
        /// This one alone
        address: Option<String>,
        /// Of this VTEP alone
        #[arg(long)]
        vtep: Option<String>,
    },
}

impl Command {
    pub async fn run(self, s: &mut Connection) -> anyhow::Result<()> {
        match self {
            Command::List => list(s).await,
            Command::Flush { address, vtep } => {
                let filter = NeighborFilter { vtep: vtep.unwrap_or_default(), address: address.unwrap_or_default() };
                let n = s.client.flush_neighbors(filter).await.map_err(|e| status_to_error(&e))?.into_inner();
                if s.json {
                    return output::json(&n);
                }
                println!("{} neighbours asked again", n.entries);
                Ok(())
            }
        }
    }
}

async fn list(s: &mut Connection) -> anyhow::Result<()> {
    let vteps = s.state().await?.vteps;
    if s.json {
        let all: Vec<_> =
            vteps.iter().map(|v| serde_json::json!({ "vtep": v.name, "neighbors": v.neighbors })).collect();
        return output::json(&all);
    }
    let rows = vteps.iter().flat_map(|v| {
        v.neighbors.iter().map(|n| {
            let age = n.confirmed_s.map_or_else(|| "never".into(), |s| format!("{s} s ago"));
            vec![n.address.clone(), n.mac.clone(), n.state.clone(), age, v.name.clone()]
        })
    });
    output::table(&["ADDRESS", "MAC", "STATE", "ANSWERED", "VTEP"], 9, rows);
    Ok(())
}
