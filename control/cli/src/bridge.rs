//! `dunlin bridge`: separate VLAN spaces.

use anyhow::{Context, bail};
use dunlin_control_api::v1::{ApplyRequest, Bridge, Config};

use crate::{
    output,
    session::{Session, setting},
};

#[derive(clap::Subcommand)]
pub enum Command {
    /// Add a bridge
    Add(Settings),
    /// Change a bridge
    Set(Settings),
    /// Remove bridges that have no port
    #[command(visible_alias = "rm")]
    Del {
        /// Their names
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// List the bridges
    #[command(visible_alias = "ls")]
    List,
}

#[derive(clap::Args)]
pub struct Settings {
    /// The bridge's name
    name: String,
    /// Seconds after which an unseen address is forgotten [default: 300]
    #[arg(long, value_name = "S")]
    ageing: Option<u32>,
}

impl Command {
    pub async fn run(self, s: &mut Session) -> anyhow::Result<()> {
        let plan = match self {
            Command::Add(a) => change(s, &a, true).await?,
            Command::Set(a) => change(s, &a, false).await?,
            Command::Del { names } => s.apply(ApplyRequest { delete_bridges: names, ..Default::default() }).await?,
            Command::List => return list(s).await,
        };
        output::plan(&plan, s.json, false)
    }
}

async fn change(s: &mut Session, a: &Settings, new: bool) -> anyhow::Result<dunlin_control_api::v1::Plan> {
    s.change(|config| {
        let there = config.bridge.iter().find(|b| b.name == a.name);
        let mut bridge = match (there, new) {
            (Some(_), true) => bail!("bridge '{0}': exists; change it with 'dunlin bridge set {0}'", a.name),
            (None, true) => Bridge { name: a.name.clone(), ageing_s: None },
            // br0 is there as soon as a port is on it, declared or not.
            (None, false) if a.name == "br0" => Bridge { name: a.name.clone(), ageing_s: None },
            (there, false) => there.cloned().with_context(|| format!("bridge '{}': there is none", a.name))?,
        };
        bridge.ageing_s = a.ageing.or(bridge.ageing_s);
        Ok(setting(Config { bridge: vec![bridge], ..Default::default() }))
    })
    .await
}

async fn list(s: &mut Session) -> anyhow::Result<()> {
    let (config, _) = s.config().await?;
    let ports = |name: &str| {
        let on = |p: &&dunlin_control_api::v1::Port| p.bridge == name || (p.bridge.is_empty() && name == "br0");
        config.port.iter().filter(on).count().to_string()
    };
    let mut bridges: Vec<Bridge> = config.bridge.clone();
    // It is there without being declared as soon as a port is on it.
    if !bridges.iter().any(|b| b.name == "br0") && ports("br0") != "0" {
        bridges.insert(0, Bridge { name: "br0".into(), ageing_s: None });
    }
    bridges.iter_mut().for_each(|b| b.ageing_s = b.ageing_s.or(Some(300)));
    if s.json {
        return output::json(&bridges);
    }
    let rows =
        bridges.iter().map(|b| vec![b.name.clone(), format!("{} s", b.ageing_s.unwrap_or_default()), ports(&b.name)]);
    output::table(&["NAME", "AGEING", "PORTS"], 1, rows);
    Ok(())
}
