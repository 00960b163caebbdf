//! `dunlin session`: tracked connections.

use dunlin_control_api::dataplane::{SessionEntry, SessionFilter};

use crate::{
    connection::{self, Connection, status_to_error},
    output,
};

#[derive(clap::Subcommand)]
pub enum Command {
    /// List connections
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        filter: Filter,
        /// At most so many; 0 for all
        #[arg(long, value_name = "N", default_value_t = 10_000)]
        limit: u32,
    },
    /// Forget connections; all, or those that match
    Flush(Filter),
}

#[derive(clap::Args)]
pub struct Filter {
    /// Of this port
    #[arg(long)]
    port: Option<String>,
    /// One end has this address
    #[arg(long)]
    address: Option<String>,
    /// tcp, udp, sctp, icmp, icmpv6 or a number
    #[arg(long)]
    protocol: Option<String>,
    /// opening, open, closing, closed, unanswered, answered or refused
    #[arg(long)]
    state: Option<String>,
    /// One end has this port number
    #[arg(long, value_name = "N")]
    l4_port: Option<u32>,
}

impl Filter {
    fn message(&self, limit: u32) -> SessionFilter {
        let text = |t: &Option<String>| t.clone().unwrap_or_default();
        SessionFilter {
            port: text(&self.port),
            address: text(&self.address),
            protocol: text(&self.protocol),
            state: text(&self.state),
            limit,
            l4_port: self.l4_port,
        }
    }
}

impl Command {
    pub async fn run(self, s: &mut Connection) -> anyhow::Result<()> {
        match self {
            Command::List { filter, limit } => list(s, filter.message(limit)).await,
            Command::Flush(f) => {
                let n = s.client.flush_sessions(f.message(0)).await.map_err(|e| status_to_error(&e))?.into_inner();
                if s.json {
                    return output::json(&n);
                }
                println!("connections removed: {}", n.entries);
                Ok(())
            }
        }
    }
}

async fn list(s: &mut Connection, filter: SessionFilter) -> anyhow::Result<()> {
    let parts = connection::all(s.client.list_sessions(filter).await).await?;
    let all: Vec<SessionEntry> = parts.into_iter().flat_map(|p| p.entries).collect();
    if s.json {
        return output::json(&all);
    }
    let end = |address: &str, port: u32| match address.contains(':') {
        true => format!("[{address}]:{port}"),
        false => format!("{address}:{port}"),
    };
    let rows = all.iter().map(|x| {
        let way = if x.outbound { "out" } else { "in" };
        vec![
            x.port.clone(),
            x.protocol.clone(),
            end(&x.from, x.from_port),
            end(&x.to, x.to_port),
            way.into(),
            x.state.clone(),
            x.age_s.to_string(),
            x.idle_s.to_string(),
            x.expires_s.to_string(),
        ]
    });
    output::table(&["PORT", "PROTO", "FROM", "TO", "WAY", "STATE", "AGE", "IDLE", "LEFT"], 6, rows);
    Ok(())
}
