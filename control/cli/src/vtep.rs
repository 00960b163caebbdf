//! `dunlin vtep`: this host's ends of tunnels.

use dunlin_control_api::dataplane as dp;

use crate::{connection::Connection, output};

#[derive(clap::Subcommand)]
pub enum Command {
    /// List VTEPs and remote VTEPs with their counters
    #[command(visible_alias = "ls")]
    List,
}

impl Command {
    pub async fn run(self, s: &mut Connection) -> anyhow::Result<()> {
        let Command::List = self;
        list(s).await
    }
}

async fn list(s: &mut Connection) -> anyhow::Result<()> {
    let vteps = s.state().await?.vteps;
    if s.json {
        return output::json(&vteps);
    }
    let row = |name: &str, what: &str, next_hop: &str, c: &Option<dp::Counters>, macs, mtu: &str| {
        let c = c.clone().unwrap_or_default();
        let dropped: u64 = c.drops.iter().map(|d| d.frames).sum();
        let numbers = [c.rx_frames, c.tx_frames, dropped, u64::from(macs)].map(|n| n.to_string());
        [name, what, next_hop].map(str::to_owned).into_iter().chain(numbers).chain([mtu.to_owned()]).collect()
    };
    let rows = vteps.iter().flat_map(|v| {
        let remotes = v.remotes.iter().map(move |r| {
            let next_hop = if r.next_hop_mac.is_empty() { "no answer" } else { &r.next_hop_mac };
            row(&r.name, &r.kind, next_hop, &r.counters, r.macs, &mtu(r))
        });
        std::iter::once(row(&v.name, &v.address, &v.mac, &v.counters, 0, "")).chain(remotes)
    });
    output::table(&["NAME", "ADDRESS", "MAC", "RX", "TX", "DROPS", "MACS", "MTU"], 3, rows);
    Ok(())
}

/// What of a guest's packet fits into a tunnel, and what limits it, if that is the path.
fn mtu(r: &dp::RemoteState) -> String {
    r.path_mtu.map_or_else(|| r.mtu.to_string(), |path| format!("{} (path {path})", r.mtu))
}
