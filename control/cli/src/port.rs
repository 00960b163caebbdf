//! `dunlin port`: NICs, kernel interfaces and guests.

use std::collections::HashMap;

use anyhow::{Context, bail};
use dunlin_control_api::{
    dataplane as dp,
    v1::{ApplyRequest, Config, Port},
};

use crate::{
    group::names,
    output,
    session::{Session, put, setting},
};

#[derive(clap::Subcommand)]
pub enum Command {
    /// Add a port
    Add(Add),
    /// Change a port's settings; what is not named stays
    Set(Set),
    /// Remove ports
    #[command(visible_alias = "rm")]
    Del {
        /// Their names
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// List the ports
    #[command(visible_alias = "ls")]
    List,
    /// Show all there is to know of a port
    Show {
        /// Its name
        name: String,
    },
}

#[derive(clap::Args)]
pub struct Add {
    /// The port's name
    name: String,
    /// nic, host, tap or vhost-user
    #[arg(long, value_parser = ["nic", "host", "tap", "vhost-user"])]
    kind: String,
    #[command(flatten)]
    settings: Settings,
}

#[derive(clap::Args)]
pub struct Set {
    /// The port's name
    name: String,
    #[command(flatten)]
    settings: Settings,
    /// Take settings back to their defaults, as vlan,mac-limit
    #[arg(long, value_delimiter = ',', value_name = "SETTING")]
    unset: Vec<String>,
}

#[derive(clap::Args)]
struct Settings {
    /// Bridge [default: br0]
    #[arg(long)]
    bridge: Option<String>,
    /// Network, in place of a bridge and VLANs
    #[arg(long)]
    network: Option<String>,
    /// nic: PCI address or DPDK devargs
    #[arg(long)]
    device: Option<String>,
    /// host, tap: kernel interface [default: the port's name]
    #[arg(long)]
    interface: Option<String>,
    /// vhost-user: socket [default: /run/dunlin/vhost/NAME.sock]
    #[arg(long)]
    socket: Option<String>,
    /// vhost-user: Dunlin makes the socket and QEMU connects
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    server: Option<bool>,
    /// nic: receive queues [default: one a worker]
    #[arg(long, value_name = "N")]
    queues: Option<u32>,
    /// host: auto or af_packet
    #[arg(long, value_parser = ["auto", "af_packet"])]
    driver: Option<String>,
    /// access, trunk, native-tagged, native-untagged or dot1q-tunnel
    #[arg(long, value_parser = ["access", "trunk", "native-tagged", "native-untagged", "dot1q-tunnel"])]
    vlan_mode: Option<String>,
    /// VLAN of access and dot1q-tunnel, native VLAN of native-*
    #[arg(long, value_name = "VID")]
    vlan: Option<u32>,
    /// VLANs of a trunk, as 10,20-30 [default: all]
    #[arg(long, value_name = "VIDS")]
    trunks: Option<String>,
    /// dot1q-tunnel: customer VLANs let through [default: all]
    #[arg(long, value_name = "VIDS")]
    cvlans: Option<String>,
    /// dot1q-tunnel: 802.1ad or 802.1q
    #[arg(long, value_parser = ["802.1ad", "802.1q"])]
    qinq_ethertype: Option<String>,
    /// never, if-nonzero or always
    #[arg(long, value_parser = ["never", "if-nonzero", "always"])]
    priority_tags: Option<String>,
    /// Largest payload in octets [default: 1500]
    #[arg(long, value_name = "OCTETS")]
    mtu: Option<u32>,
    /// No frames between protected ports
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    protected: Option<bool>,
    /// Who processes its frames: the worker that receives them (rss), or that of their port (vmdq)
    #[arg(long, value_parser = ["rss", "vmdq"])]
    steering: Option<String>,
    /// nic: what the device hashes to spread frames over its queues [default: ip,tcp,udp,sctp]
    #[arg(long, value_name = "FIELDS", value_delimiter = ',', value_parser = ["mac", "vlan", "ip", "tcp", "udp", "sctp"])]
    hash_fields: Option<Vec<String>>,
    /// Cores whose workers poll it [default: any]
    #[arg(long, value_name = "CORES", value_delimiter = ',')]
    workers: Option<Vec<u32>>,
    /// Access lists of what comes in by it, in their order; empty for none
    #[arg(long, value_name = "ACLS", value_delimiter = ',')]
    ingress_acls: Option<Vec<String>>,
    /// Access lists of what leaves by it
    #[arg(long, value_name = "ACLS", value_delimiter = ',')]
    egress_acls: Option<Vec<String>>,
    /// Groups whose lists follow
    #[arg(long, value_name = "GROUPS", value_delimiter = ',')]
    groups: Option<Vec<String>>,
    /// What its station may not do, of all, mac, ip, arp, nd, dhcp-guard, ra-guard; and dhcp-snooping
    #[arg(long, value_name = "CHECKS", value_delimiter = ',')]
    security: Option<Vec<String>>,
    /// Its addresses of layer 2, for these
    #[arg(long, value_name = "MACS", value_delimiter = ',')]
    macs: Option<Vec<String>>,
    /// Its addresses of layer 3, or prefixes, for these
    #[arg(long, value_name = "IPS", value_delimiter = ',')]
    ips: Option<Vec<String>>,
    /// Most connections tracked [default: port_max of the sessions]
    #[arg(long, value_name = "N")]
    session_limit: Option<u32>,
    /// Most of those that nobody has answered [default: unanswered_max of the sessions]
    #[arg(long, value_name = "N")]
    unanswered_limit: Option<u32>,
    /// Most addresses learned
    #[arg(long, value_name = "N")]
    mac_limit: Option<u32>,
    /// Above that: drop or forward
    #[arg(long, value_parser = ["drop", "forward"])]
    mac_limit_action: Option<String>,
    /// Broadcast frames per second
    #[arg(long, value_name = "FPS")]
    storm_broadcast_fps: Option<u64>,
    /// Multicast frames per second
    #[arg(long, value_name = "FPS")]
    storm_multicast_fps: Option<u64>,
    /// Frames per second to unknown addresses
    #[arg(long, value_name = "FPS")]
    storm_unknown_unicast_fps: Option<u64>,
}

impl Settings {
    fn put_into(&self, p: &mut Port) {
        put(&mut p.bridge, &self.bridge);
        put(&mut p.network, &self.network);
        put(&mut p.device, &self.device);
        put(&mut p.interface, &self.interface);
        put(&mut p.socket, &self.socket);
        put(&mut p.driver, &self.driver);
        put(&mut p.steering, &self.steering);
        put(&mut p.vlan_mode, &self.vlan_mode);
        put(&mut p.trunks, &self.trunks);
        put(&mut p.cvlans, &self.cvlans);
        put(&mut p.qinq_ethertype, &self.qinq_ethertype);
        put(&mut p.priority_tags, &self.priority_tags);
        put(&mut p.mac_limit_action, &self.mac_limit_action);
        for (to, given) in [
            (&mut p.ingress_acls, &self.ingress_acls),
            (&mut p.egress_acls, &self.egress_acls),
            (&mut p.groups, &self.groups),
            (&mut p.security, &self.security),
            (&mut p.macs, &self.macs),
            (&mut p.ips, &self.ips),
        ] {
            put(to, &names(given));
        }
        p.server = self.server.unwrap_or(p.server);
        p.queues = self.queues.or(p.queues);
        p.mtu = self.mtu.or(p.mtu);
        put(&mut p.hash_fields, &self.hash_fields);
        put(&mut p.workers, &self.workers);
        p.protected = self.protected.unwrap_or(p.protected);
        p.vlan = self.vlan.or(p.vlan);
        p.mac_limit = self.mac_limit.or(p.mac_limit);
        p.session_limit = self.session_limit.or(p.session_limit);
        p.unanswered_limit = self.unanswered_limit.or(p.unanswered_limit);
        p.storm_broadcast_fps = self.storm_broadcast_fps.or(p.storm_broadcast_fps);
        p.storm_multicast_fps = self.storm_multicast_fps.or(p.storm_multicast_fps);
        p.storm_unknown_unicast_fps = self.storm_unknown_unicast_fps.or(p.storm_unknown_unicast_fps);
    }
}

/// The port with some fields back at their defaults.
fn unset(port: &Port, settings: &[String]) -> anyhow::Result<Port> {
    let serde_json::Value::Object(mut fields) = serde_json::to_value(port)? else { bail!("a port has fields") };
    for s in settings {
        let field = s.replace('-', "_");
        if field == "name" || field == "kind" {
            bail!("port '{}': {field} has no default; remove the port instead", port.name);
        }
        fields.remove(&field);
        // An unknown name would pass unseen: let the type refuse it.
        let mut probe = serde_json::Map::new();
        probe.insert(field.clone(), serde_json::Value::Null);
        if let Err(e) = serde_json::from_value::<Port>(probe.into())
            && e.to_string().contains("unknown field")
        {
            bail!("port '{}': there is no setting '{s}'", port.name);
        }
    }
    Ok(serde_json::from_value(fields.into())?)
}

impl Command {
    pub async fn run(self, s: &mut Session) -> anyhow::Result<()> {
        match self {
            Command::Add(a) => add(s, &a).await,
            Command::Set(a) => set(s, &a).await,
            Command::Del { names } => {
                let plan = s.apply(ApplyRequest { delete_ports: names, ..Default::default() }).await?;
                output::plan(&plan, s.json, false)
            }
            Command::List => list(s).await,
            Command::Show { name } => show(s, &name).await,
        }
    }
}

fn one(port: Port) -> ApplyRequest {
    setting(Config { port: vec![port], ..Default::default() })
}

async fn add(s: &mut Session, a: &Add) -> anyhow::Result<()> {
    let plan = s
        .change(|config| {
            if config.port.iter().any(|p| p.name == a.name) {
                bail!("port '{0}': there is one of that name already; change it with 'dunlin port set {0}'", a.name);
            }
            let mut port = Port { name: a.name.clone(), kind: a.kind.clone(), ..Default::default() };
            a.settings.put_into(&mut port);
            Ok(one(port))
        })
        .await?;
    output::plan(&plan, s.json, false)
}

async fn set(s: &mut Session, a: &Set) -> anyhow::Result<()> {
    let plan = s
        .change(|config| {
            let mut port = unset(configured(config, &a.name)?, &a.unset)?;
            a.settings.put_into(&mut port);
            Ok(one(port))
        })
        .await?;
    output::plan(&plan, s.json, false)
}

fn configured<'a>(config: &'a Config, name: &str) -> anyhow::Result<&'a Port> {
    config.port.iter().find(|p| p.name == name).with_context(|| {
        format!("port '{name}': there is none of that name; 'dunlin port list' shows them, 'dunlin port add' adds one")
    })
}

fn vlans(p: &Port) -> String {
    let all = |list: &str| if list.is_empty() { "all".to_owned() } else { list.to_owned() };
    if !p.network.is_empty() {
        return p.network.clone();
    }
    match (p.vlan_mode.as_str(), p.vlan) {
        ("" | "access", Some(v)) => v.to_string(),
        ("native-tagged", Some(v)) => format!("{} native {v}t", all(&p.trunks)),
        ("native-untagged", Some(v)) => format!("{} native {v}", all(&p.trunks)),
        ("dot1q-tunnel", Some(v)) => format!("tunnel {v}"),
        _ => format!("trunk {}", all(&p.trunks)),
    }
}

fn drops(p: &dp::PortState) -> u64 {
    p.counters.iter().flat_map(|c| &c.drops).map(|d| d.frames).sum()
}

fn link(p: &dp::PortState) -> &'static str {
    match (&p.guest, p.up) {
        _ if !p.error.is_empty() => "error",
        (_, true) => "up",
        (Some(g), false) if g.connected => "starting",
        (Some(_), false) => "no guest",
        (None, false) => "down",
    }
}

async fn list(s: &mut Session) -> anyhow::Result<()> {
    let (config, _) = s.config().await?;
    let state = s.status().await?.dataplane;
    let is_down = state.is_none();
    let state = state.unwrap_or_default();
    let problems = state.info.clone().unwrap_or_default().problems;
    let of_port = |name: &str| problems.iter().filter(|p| p.kind == "port" && p.name == name).collect::<Vec<_>>();
    let states: HashMap<&str, &dp::PortState> = state.ports.iter().map(|p| (p.name.as_str(), p)).collect();
    if s.json {
        let row = |p: &Port| {
            let (state, problems) = (states.get(p.name.as_str()), of_port(&p.name));
            serde_json::json!({ "config": p, "state": state, "problems": problems })
        };
        return output::json(&config.port.iter().map(row).collect::<Vec<_>>());
    }
    let rows = config.port.iter().map(|p| {
        let bridge = if p.bridge.is_empty() && p.network.is_empty() { "br0" } else { &p.bridge };
        let mut row = vec![p.name.clone(), p.kind.clone(), bridge.to_owned(), vlans(p)];
        match states.get(p.name.as_str()) {
            Some(x) => {
                let c = x.counters.clone().unwrap_or_default();
                let is_whole = !x.error.is_empty() || of_port(&p.name).is_empty();
                row.push(if is_whole { link(x).into() } else { format!("{}, problem", link(x)) });
                row.extend([c.rx_frames, c.tx_frames, drops(x), u64::from(x.macs)].map(|n| n.to_string()));
            }
            None => row.push(if is_down { "dataplane down" } else { "error" }.into()),
        }
        row
    });
    output::table(&["NAME", "KIND", "BRIDGE", "VLAN", "LINK", "RX", "TX", "DROPS", "MACS"], 5, rows);
    problems.iter().filter(|p| p.kind == "port").for_each(|p| println!("not in force: {}", output::problem(p)));
    Ok(())
}

async fn show(s: &mut Session, name: &str) -> anyhow::Result<()> {
    let (config, _) = s.config().await?;
    let port = configured(&config, name)?;
    let state = s.status().await?.dataplane.unwrap_or_default();
    let mut problems = state.info.unwrap_or_default().problems;
    problems.retain(|p| p.kind == "port" && p.name == name);
    let state = state.ports.into_iter().find(|p| p.name == name);
    if s.json {
        return output::json(&serde_json::json!({ "config": port, "state": state, "problems": problems }));
    }
    let mut facts = vec![("name", name.to_owned()), ("vlans", vlans(port))];
    let configured: Vec<String> = match serde_json::to_value(port)? {
        serde_json::Value::Object(fields) => {
            let shown = fields.into_iter().filter(|(k, _)| k != "name");
            shown.map(|(k, v)| format!("{k} {}", v.as_str().map_or_else(|| v.to_string(), str::to_owned))).collect()
        }
        _ => Vec::new(),
    };
    facts.push(("configured", configured.join(", ")));
    let Some(p) = state else {
        output::facts(&facts);
        println!("the dataplane is down: no state");
        return Ok(());
    };
    facts.extend([
        ("bridge", p.bridge.clone()),
        ("link", link(&p).to_owned()),
        ("error", p.error.clone()),
        ("driver", if p.note.is_empty() { p.driver.clone() } else { format!("{} ({})", p.driver, p.note) }),
        ("mac", p.mac.clone()),
        ("mtu", p.mtu.to_string()),
        ("queues", format!("{} rx, {} tx", p.rx_queues, p.tx_queues)),
        ("steering", if p.steering.is_empty() { "rss".into() } else { p.steering.clone() }),
        ("hashes", p.hash_fields.join(", ")),
        ("device steers", p.device_steering.clone()),
        (
            "guests' queues",
            p.guest_queues
                .iter()
                .map(|q| {
                    let (rx, tx) = (q.rx_frames, q.tx_frames);
                    format!("{} on core {} for {} ({rx} frames received, {tx} sent)", q.queue, q.core, q.port)
                })
                .collect::<Vec<_>>()
                .join(", "),
        ),
        ("numa node", p.numa_node.map(|n| n.to_string()).unwrap_or_default()),
        ("addresses", p.macs.to_string()),
        ("leases", p.leases.iter().map(|l| format!("{} for {} s", l.address, l.left_s)).collect::<Vec<_>>().join(", ")),
        (
            "connections",
            match p.sessions {
                0 => String::new(),
                n => format!("{n}, {} of them unanswered", p.unanswered_sessions),
            },
        ),
    ]);
    if let Some(g) = p.guest {
        let has = |name, yes: bool| if yes { name } else { "" };
        let features =
            [has("mergeable", g.mergeable), has("checksum", g.checksum), has("tso4", g.tso4), has("tso6", g.tso6)];
        let features: Vec<&str> = features.into_iter().filter(|f| !f.is_empty()).collect();
        facts.push(("guest", format!("connected {}, running {}", g.connected, g.running)));
        facts.push(("takes", features.join(", ")));
    }
    let c = p.counters.clone().unwrap_or_default();
    facts.push(("received", format!("{} frames, {} octets", c.rx_frames, c.rx_bytes)));
    facts.push(("transmitted", format!("{} frames, {} octets", c.tx_frames, c.tx_bytes)));
    facts.push(("cloned", format!("{} frames", c.clones)));
    for d in c.drops.iter().filter(|d| d.frames > 0) {
        facts.push(("dropped", format!("{} frames, {} {}: {}", d.frames, d.direction, d.reason, d.meaning)));
    }
    let d = p.device.unwrap_or_default();
    for (what, n) in [
        ("receive ring full", d.rx_missed),
        ("receive errors", d.rx_errors),
        ("no buffer", d.rx_no_buffer),
        ("transmit errors", d.tx_errors),
    ] {
        if n > 0 {
            facts.push(("device lost", format!("{n} frames: {what}")));
        }
    }
    output::facts(&facts);
    problems.iter().for_each(|p| println!("not in force: {}", output::problem(p)));
    Ok(())
}
