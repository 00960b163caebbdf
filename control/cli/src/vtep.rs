//! `dunlin vtep`: this host's ends of tunnels.

use dunlin_control_api::v1::{ApplyRequest, Config, Vtep};

use crate::{
    output,
    session::{Session, found_or_new, put, setting},
};

#[derive(clap::Subcommand)]
pub enum Command {
    /// Add a VTEP
    Add(Settings),
    /// Change a VTEP; what is not named stays
    Set(Settings),
    /// Remove VTEPs that no network uses
    #[command(visible_alias = "rm")]
    Del {
        /// Their names
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// List the VTEPs and the remote ones that each knows
    #[command(visible_alias = "ls")]
    List,
}

#[derive(clap::Args)]
pub struct Settings {
    /// The VTEP's name
    name: String,
    /// The port that tunnels go by
    #[arg(long, value_name = "PORT")]
    uplink: Option<String>,
    /// The uplink's VLAN that is the underlay [default: untagged]
    #[arg(long, value_name = "VID")]
    vlan: Option<u32>,
    /// Its address, as 10.0.0.1/24
    #[arg(long)]
    address: Option<String>,
    /// Where to send what no route is for
    #[arg(long, value_name = "ADDRESS")]
    gateway: Option<String>,
    /// Its address of layer 2 [default: made of its IP address]
    #[arg(long)]
    mac: Option<String>,
    /// UDP port of VXLAN [default: 4789]
    #[arg(long, value_name = "PORT")]
    udp_port: Option<u32>,
    /// TTL of what it sends [default: 64]
    #[arg(long)]
    ttl: Option<u32>,
}

impl Settings {
    fn put_into(&self, v: &mut Vtep) {
        for (to, from) in [
            (&mut v.uplink, &self.uplink),
            (&mut v.address, &self.address),
            (&mut v.gateway, &self.gateway),
            (&mut v.mac, &self.mac),
        ] {
            put(to, from);
        }
        v.vlan = self.vlan.or(v.vlan);
        v.udp_port = self.udp_port.or(v.udp_port);
        v.ttl = self.ttl.or(v.ttl);
    }
}

impl Command {
    pub async fn run(self, s: &mut Session) -> anyhow::Result<()> {
        let plan = match self {
            Command::Add(a) => change(s, &a, true).await?,
            Command::Set(a) => change(s, &a, false).await?,
            Command::Del { names } => s.apply(ApplyRequest { delete_vteps: names, ..Default::default() }).await?,
            Command::List => return list(s).await,
        };
        output::plan(&plan, s.json, false)
    }
}

async fn change(s: &mut Session, a: &Settings, new: bool) -> anyhow::Result<dunlin_control_api::v1::Plan> {
    s.change(|config| {
        let there = config.vtep.iter().find(|x| x.name == a.name);
        let new = new.then(|| Vtep { name: a.name.clone(), ..Default::default() });
        let mut vtep = found_or_new("vtep", &a.name, there, new)?;
        a.put_into(&mut vtep);
        Ok(setting(Config { vtep: vec![vtep], ..Default::default() }))
    })
    .await
}

async fn list(s: &mut Session) -> anyhow::Result<()> {
    let vteps = s.state().await?.vteps;
    if s.json {
        return output::json(&vteps);
    }
    let row = |name: &str, what: &str, next_hop: &str, c: &Option<dunlin_control_api::dataplane::Counters>, macs| {
        let c = c.clone().unwrap_or_default();
        let dropped: u64 = c.drops.iter().map(|d| d.frames).sum();
        let numbers = [c.rx_frames, c.tx_frames, dropped, u64::from(macs)];
        [name, what, next_hop].map(str::to_owned).into_iter().chain(numbers.map(|n| n.to_string())).collect()
    };
    let rows = vteps.iter().flat_map(|v| {
        let remotes = v.remotes.iter().map(move |r| {
            let next_hop = if r.next_hop_mac.is_empty() { "no answer" } else { &r.next_hop_mac };
            row(&r.name, &r.kind, next_hop, &r.counters, r.macs)
        });
        std::iter::once(row(&v.name, &v.address, &v.mac, &v.counters, 0)).chain(remotes)
    });
    output::table(&["NAME", "ADDRESS", "MAC", "RX", "TX", "DROPS", "MACS"], 3, rows);
    Ok(())
}
