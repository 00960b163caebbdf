//! `dunlin neighbor`: the stations of the underlay that VTEPs send by.

use dunlin_control_api::{
    dataplane::NeighborFilter,
    v1::{ApplyRequest, Config, Neighbor},
};

use crate::{
    output,
    session::{Session, told},
};

#[derive(clap::Subcommand)]
pub enum Command {
    /// List the neighbours that are needed, and whether they answer
    #[command(visible_alias = "ls")]
    List,
    /// Say a neighbour's address of layer 2, so that it is not asked
    Add {
        #[command(flatten)]
        key: Key,
        /// Its address of layer 2
        #[arg(long)]
        mac: String,
    },
    /// Ask a neighbour by itself again
    #[command(visible_alias = "rm")]
    Del(Key),
    /// Forget what is known of them, and ask again
    Flush {
        /// This one alone
        address: Option<String>,
        /// Of this VTEP alone
        #[arg(long)]
        vtep: Option<String>,
    },
}

#[derive(clap::Args)]
pub struct Key {
    /// Its IP address
    address: String,
    /// Of which VTEP [default: the only one]
    #[arg(long)]
    vtep: Option<String>,
}

impl Key {
    fn neighbor(self, mac: String) -> Neighbor {
        Neighbor { vtep: self.vtep.unwrap_or_default(), address: self.address, mac }
    }
}

impl Command {
    pub async fn run(self, s: &mut Session) -> anyhow::Result<()> {
        match self {
            Command::List => list(s).await,
            Command::Add { key, mac } => {
                let set = Config { neighbor: vec![key.neighbor(mac)], ..Default::default() };
                let plan = s.apply(ApplyRequest { set: Some(set), ..Default::default() }).await?;
                output::plan(&plan, s.json, false)
            }
            Command::Del(key) => {
                let delete_neighbors = vec![key.neighbor(String::new())];
                let plan = s.apply(ApplyRequest { delete_neighbors, ..Default::default() }).await?;
                output::plan(&plan, s.json, false)
            }
            Command::Flush { address, vtep } => {
                let filter = NeighborFilter { vtep: vtep.unwrap_or_default(), address: address.unwrap_or_default() };
                let n = s.client.flush_neighbors(filter).await.map_err(|e| told(&e))?.into_inner();
                if s.json {
                    return output::json(&n);
                }
                println!("{} neighbours asked again", n.entries);
                Ok(())
            }
        }
    }
}

async fn list(s: &mut Session) -> anyhow::Result<()> {
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
