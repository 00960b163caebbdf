//! `dunlin route`: how VTEPs reach other networks.

use dunlin_control_api::v1::{ApplyRequest, Config, Route};

use crate::{
    output,
    session::{Session, setting},
};

#[derive(clap::Subcommand)]
pub enum Command {
    /// Add a route, or change the one there is
    Add {
        #[command(flatten)]
        key: Key,
        /// Neighbours it goes by, the best first: the first that answers is used
        #[arg(long, value_name = "ADDRESSES", value_delimiter = ',', required = true)]
        via: Vec<String>,
    },
    /// Remove a route
    #[command(visible_alias = "rm")]
    Del(Key),
    /// List the routes
    #[command(visible_alias = "ls")]
    List,
}

#[derive(clap::Args)]
pub struct Key {
    /// Where to, as 10.1.0.0/16
    to: String,
    /// Of which VTEP [default: the only one]
    #[arg(long)]
    vtep: Option<String>,
}

impl Key {
    fn route(self, via: Vec<String>) -> Route {
        Route { vtep: self.vtep.unwrap_or_default(), to: self.to, via }
    }
}

impl Command {
    pub async fn run(self, s: &mut Session) -> anyhow::Result<()> {
        let change = match self {
            Command::Add { key, via } => setting(Config { route: vec![key.route(via)], ..Default::default() }),
            Command::Del(key) => ApplyRequest { delete_routes: vec![key.route(Vec::new())], ..Default::default() },
            Command::List => return list(s).await,
        };
        let plan = s.apply(change).await?;
        output::plan(&plan, s.json, false)
    }
}

async fn list(s: &mut Session) -> anyhow::Result<()> {
    let (config, _) = s.config().await?;
    let gateways = config.vtep.iter().filter(|v| !v.gateway.is_empty()).map(|v| {
        let to = if v.gateway.contains(':') { "::/0" } else { "0.0.0.0/0" };
        Route { vtep: v.name.clone(), to: to.into(), via: vec![v.gateway.clone()] }
    });
    let routes: Vec<Route> = gateways.chain(config.route.iter().cloned()).collect();
    if s.json {
        return output::json(&routes);
    }
    let rows = routes.iter().map(|r| vec![r.to.clone(), r.via.join(","), r.vtep.clone()]);
    output::table(&["TO", "VIA", "VTEP"], 9, rows);
    Ok(())
}
