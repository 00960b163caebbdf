//! `dunlin session`: connections that were let pass, and how they are kept.

use dunlin_control_api::{
    dataplane::{SessionEntry, SessionFilter},
    v1::Config,
};

use crate::{
    output,
    session::{Session, put, setting, told},
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
    /// Change how connections are kept; what is not named stays
    Set(Settings),
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

#[derive(clap::Args)]
pub struct Settings {
    /// Seconds for TCP before both ends have spoken [default: 30]
    #[arg(long, value_name = "S")]
    tcp_opening_s: Option<u32>,
    /// Seconds for open TCP [default: 86400]
    #[arg(long, value_name = "S")]
    tcp_open_s: Option<u32>,
    /// Seconds for TCP that one end has closed [default: 120]
    #[arg(long, value_name = "S")]
    tcp_closing_s: Option<u32>,
    /// Seconds for TCP that is closed or reset [default: 10]
    #[arg(long, value_name = "S")]
    tcp_closed_s: Option<u32>,
    /// Seconds for UDP that nobody has answered [default: 30]
    #[arg(long, value_name = "S")]
    udp_s: Option<u32>,
    /// Seconds for UDP that was answered [default: 120]
    #[arg(long, value_name = "S")]
    udp_answered_s: Option<u32>,
    /// Seconds for ICMP's questions [default: 30]
    #[arg(long, value_name = "S")]
    icmp_s: Option<u32>,
    /// Seconds for other protocols [default: 120]
    #[arg(long, value_name = "S")]
    other_s: Option<u32>,
    /// The most in all
    #[arg(long, value_name = "N")]
    max: Option<u32>,
    /// The most of one port [default: half of what there is room for]
    #[arg(long, value_name = "N")]
    port_max: Option<u32>,
    /// The most of one port that nobody has answered [default: an eighth of what there is room for]
    #[arg(long, value_name = "N")]
    unanswered_max: Option<u32>,
    /// Whether TCP that was begun unseen is taken up where it is met
    #[arg(long, value_parser = ["on", "off"])]
    midstream: Option<String>,
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
    pub async fn run(self, s: &mut Session) -> anyhow::Result<()> {
        match self {
            Command::List { filter, limit } => list(s, filter.message(limit)).await,
            Command::Flush(f) => {
                let n = s.client.flush_sessions(f.message(0)).await.map_err(|e| told(&e))?.into_inner();
                if s.json {
                    return output::json(&n);
                }
                println!("{} connections forgotten", n.entries);
                Ok(())
            }
            Command::Set(a) => set(s, &a).await,
        }
    }
}

async fn set(s: &mut Session, a: &Settings) -> anyhow::Result<()> {
    let plan = s
        .change(|config| {
            let mut x = config.sessions.clone().unwrap_or_default();
            for (to, given) in [
                (&mut x.tcp_opening_s, a.tcp_opening_s),
                (&mut x.tcp_open_s, a.tcp_open_s),
                (&mut x.tcp_closing_s, a.tcp_closing_s),
                (&mut x.tcp_closed_s, a.tcp_closed_s),
                (&mut x.udp_s, a.udp_s),
                (&mut x.udp_answered_s, a.udp_answered_s),
                (&mut x.icmp_s, a.icmp_s),
                (&mut x.other_s, a.other_s),
                (&mut x.max, a.max),
                (&mut x.port_max, a.port_max),
                (&mut x.unanswered_max, a.unanswered_max),
            ] {
                *to = given.or(*to);
            }
            put(&mut x.midstream, &a.midstream);
            Ok(setting(Config { sessions: Some(x), ..Default::default() }))
        })
        .await?;
    output::plan(&plan, s.json, false)
}

async fn list(s: &mut Session, filter: SessionFilter) -> anyhow::Result<()> {
    let mut stream = s.client.list_sessions(filter).await.map_err(|e| told(&e))?.into_inner();
    let mut all: Vec<SessionEntry> = Vec::new();
    while let Some(part) = stream.message().await.map_err(|e| told(&e))? {
        all.extend(part.entries);
    }
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
