//! `dunlin network`: segments with a name, on this host and across hosts.

use dunlin_control_api::v1::{ApplyRequest, Binding, Config, Network};

use crate::{
    group::names,
    output,
    session::{Session, found_or_new, put, setting},
};

#[derive(clap::Subcommand)]
pub enum Command {
    /// Add a network
    Add(Settings),
    /// Change a network; what is not named stays
    Set(Settings),
    /// Remove networks that no port is in
    #[command(visible_alias = "rm")]
    Del {
        /// Their names
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// List the networks
    #[command(visible_alias = "ls")]
    List,
}

#[derive(clap::Args)]
pub struct Settings {
    /// The network's name
    name: String,
    /// Its VLAN on this host [default: none that shows]
    #[arg(long, value_name = "VID")]
    vlan: Option<u32>,
    /// The bridge of that VLAN [default: br0]
    #[arg(long)]
    bridge: Option<String>,
    /// What it is in tunnels, 1 to 16777215
    #[arg(long)]
    vni: Option<u32>,
    /// The VTEP it uses [default: the only one]
    #[arg(long)]
    vtep: Option<String>,
    /// Other hosts' VTEPs
    #[arg(long, value_name = "ADDRESSES", value_delimiter = ',')]
    remotes: Option<Vec<String>>,
    /// Whether the VLAN's tag is kept in tunnels [default: strip]
    #[arg(long, value_parser = ["strip", "keep"])]
    inner_tags: Option<String>,
    /// Multicast group of the underlay for broadcasts [default: a copy to each remote]
    #[arg(long)]
    group: Option<String>,
    /// Whether addresses are learned from what comes in tunnels
    #[arg(long, value_parser = ["on", "off"])]
    learning: Option<String>,
    /// How frames are carried [default: vxlan]
    #[arg(long, value_parser = ["vxlan", "geneve", "gre", "nvgre"])]
    tunnel: Option<String>,
    /// Whether ARP and neighbour discovery are answered where it is known who has the address
    #[arg(long, value_parser = ["on", "off"])]
    suppression: Option<String>,
    /// Access lists of what comes in by its ports; empty for none
    #[arg(long, value_name = "ACLS", value_delimiter = ',')]
    ingress_acls: Option<Vec<String>>,
    /// Access lists of what leaves by them
    #[arg(long, value_name = "ACLS", value_delimiter = ',')]
    egress_acls: Option<Vec<String>>,
    /// Who has which address for certain, as 10.0.0.5=52:54:00:00:00:05,…
    #[arg(long, value_name = "ADDRESS=MAC", value_delimiter = ',', value_parser = binding)]
    bindings: Option<Vec<Binding>>,
}

fn binding(text: &str) -> Result<Binding, String> {
    let (address, mac) = text.split_once('=').ok_or("is not ADDRESS=MAC")?;
    Ok(Binding { address: address.into(), mac: mac.into() })
}

impl Settings {
    fn put_into(&self, n: &mut Network) {
        n.vlan = self.vlan.or(n.vlan);
        n.vni = self.vni.or(n.vni);
        for (to, from) in [
            (&mut n.bridge, &self.bridge),
            (&mut n.vtep, &self.vtep),
            (&mut n.learning, &self.learning),
            (&mut n.tunnel, &self.tunnel),
            (&mut n.suppression, &self.suppression),
            (&mut n.group, &self.group),
            (&mut n.inner_tags, &self.inner_tags),
        ] {
            put(to, from);
        }
        put(&mut n.bindings, &self.bindings);
        put(&mut n.remotes, &self.remotes);
        put(&mut n.ingress_acls, &names(&self.ingress_acls));
        put(&mut n.egress_acls, &names(&self.egress_acls));
    }
}

impl Command {
    pub async fn run(self, s: &mut Session) -> anyhow::Result<()> {
        let plan = match self {
            Command::Add(a) => change(s, &a, true).await?,
            Command::Set(a) => change(s, &a, false).await?,
            Command::Del { names } => s.apply(ApplyRequest { delete_networks: names, ..Default::default() }).await?,
            Command::List => return list(s).await,
        };
        output::plan(&plan, s.json, false)
    }
}

async fn change(s: &mut Session, a: &Settings, new: bool) -> anyhow::Result<dunlin_control_api::v1::Plan> {
    s.change(|config| {
        let there = config.network.iter().find(|x| x.name == a.name);
        let new = new.then(|| Network { name: a.name.clone(), ..Default::default() });
        let mut network = found_or_new("network", &a.name, there, new)?;
        a.put_into(&mut network);
        Ok(setting(Config { network: vec![network], ..Default::default() }))
    })
    .await
}

async fn list(s: &mut Session) -> anyhow::Result<()> {
    let (config, _) = s.config().await?;
    let state = s.state().await?.networks;
    if s.json {
        let rows: Vec<_> = config
            .network
            .iter()
            .map(|n| serde_json::json!({ "config": n, "state": state.iter().find(|x| x.name == n.name) }))
            .collect();
        return output::json(&rows);
    }
    let rows = config.network.iter().map(|n| {
        let ports = state.iter().find(|x| x.name == n.name).map_or(0, |x| x.ports.len());
        let vlan = n
            .vlan
            .map_or_else(String::new, |v| format!("{v} of {}", if n.bridge.is_empty() { "br0" } else { &n.bridge }));
        let kind = if n.tunnel.is_empty() { "vxlan" } else { &n.tunnel };
        let vni = n.vni.map(|v| format!("{v} {kind}")).unwrap_or_default();
        vec![n.name.clone(), vlan, vni, n.remotes.join(","), ports.to_string()]
    });
    output::table(&["NAME", "VLAN", "VNI", "REMOTES", "PORTS"], 4, rows);
    Ok(())
}
