//! `dunlin acl`: access lists, their rules, and what these counted.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use dunlin_control_api::{
    dataplane::{AclFilter, AclState},
    v1::{Acl, ApplyRequest, Config, Plan},
};

use crate::{
    output,
    session::{Session, found_or_new, put, setting, told},
};

#[derive(clap::Subcommand)]
pub enum Command {
    /// Add a list
    Add(Settings),
    /// Change a list; what is not named stays
    Set(Settings),
    /// Remove lists that nobody has
    #[command(visible_alias = "rm")]
    Del {
        /// Their names
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// List the lists
    #[command(visible_alias = "ls")]
    List,
    /// Show a list's rules, with what they counted
    Show {
        /// Its name
        name: String,
    },
    /// Rules of a list
    #[command(subcommand)]
    Rule(Rule),
}

#[derive(clap::Args)]
pub struct Settings {
    /// The list's name
    name: String,
    /// What becomes of a frame that no rule matches [default: deny]
    #[arg(long, value_parser = ["allow", "deny", "reject"])]
    default: Option<String>,
    /// All of its rules: a file with one on each line ('#' begins a comment), '-' for standard input
    #[arg(long, value_name = "FILE")]
    rules: Option<PathBuf>,
}

#[derive(clap::Subcommand)]
pub enum Rule {
    /// Add a rule, as: allow tcp from 10.0.0.0/8 to any port 80,443 state new log
    ///
    /// ACTION is allow, deny, reject or count; then, in any order: tcp, udp, sctp, icmp, icmpv6 or 'protocol N';
    /// from/to any, ADDRESS[/LENGTH] or @SET, each with 'port N', 'port N-M' or several with ','; type N, code N;
    /// flags syn,!ack; state new,established,related,invalid; fragment yes|no; src-mac/dst-mac MAC[/MASK];
    /// ethertype ipv4|ipv6|arp|0xNNNN; vlan N; log [every N-th].
    Add {
        /// The list
        acl: String,
        /// Its number, from 1; the rules from there on move on [default: behind the last]
        #[arg(long, value_name = "N")]
        at: Option<usize>,
        /// The rule
        #[arg(required = true, trailing_var_arg = true)]
        rule: Vec<String>,
    },
    /// Put another rule in a rule's place
    Set {
        /// The list
        acl: String,
        /// The number of the rule, from 1
        number: usize,
        /// The rule
        #[arg(required = true, trailing_var_arg = true)]
        rule: Vec<String>,
    },
    /// Remove a rule
    #[command(visible_alias = "rm")]
    Del {
        /// The list
        acl: String,
        /// The number of the rule, from 1
        number: usize,
    },
}

/// The rules of a file.
fn read(path: &Path) -> anyhow::Result<Vec<String>> {
    let text = match path.as_os_str().to_str() {
        Some("-") => std::io::read_to_string(std::io::stdin()).context("standard input")?,
        _ => std::fs::read_to_string(path).with_context(|| path.display().to_string())?,
    };
    let rule = |line: &str| line.split('#').next().unwrap_or_default().trim().to_owned();
    Ok(text.lines().map(rule).filter(|r| !r.is_empty()).collect())
}

impl Command {
    pub async fn run(self, s: &mut Session) -> anyhow::Result<()> {
        let plan = match self {
            Command::Add(a) => settings(s, &a, true).await?,
            Command::Set(a) => settings(s, &a, false).await?,
            Command::Del { names } => s.apply(ApplyRequest { delete_acls: names, ..Default::default() }).await?,
            Command::Rule(r) => rule(s, r).await?,
            Command::List => return list(s).await,
            Command::Show { name } => return show(s, &name).await,
        };
        output::plan(&plan, s.json, false)
    }
}

/// Changes one list.
async fn change(
    s: &mut Session,
    name: &str,
    new: bool,
    edit: impl Fn(&mut Acl) -> anyhow::Result<()>,
) -> anyhow::Result<Plan> {
    s.change(|config| {
        let there = config.acl.iter().find(|a| a.name == name);
        let new = new.then(|| Acl { name: name.to_owned(), ..Default::default() });
        let mut acl = found_or_new("acl", name, there, new)?;
        edit(&mut acl)?;
        Ok(setting(Config { acl: vec![acl], ..Default::default() }))
    })
    .await
}

async fn settings(s: &mut Session, a: &Settings, new: bool) -> anyhow::Result<Plan> {
    let rules = a.rules.as_deref().map(read).transpose()?;
    change(s, &a.name, new, |acl| {
        put(&mut acl.default, &a.default);
        put(&mut acl.rules, &rules);
        Ok(())
    })
    .await
}

async fn rule(s: &mut Session, r: Rule) -> anyhow::Result<Plan> {
    let (acl, number, text) = match &r {
        Rule::Add { acl, at, rule } => (acl, *at, Some(rule.join(" "))),
        Rule::Set { acl, number, rule } => (acl, Some(*number), Some(rule.join(" "))),
        Rule::Del { acl, number } => (acl, Some(*number), None),
    };
    let adds = matches!(r, Rule::Add { .. });
    change(s, acl, false, |a| {
        let at = number.unwrap_or(a.rules.len() + 1);
        let most = a.rules.len() + usize::from(adds);
        if !(1..=most).contains(&at) {
            bail!("acl '{acl}': rule {at}: there is none of that number; there are {}", a.rules.len());
        }
        match &text {
            Some(text) if adds => a.rules.insert(at - 1, text.clone()),
            Some(text) => a.rules[at - 1].clone_from(text),
            None => drop(a.rules.remove(at - 1)),
        }
        Ok(())
    })
    .await
}

/// What the dataplane counted; nothing while it is down.
async fn counts(s: &mut Session, name: &str) -> anyhow::Result<Vec<AclState>> {
    let mut all = Vec::new();
    let Ok(stream) = s.client.list_acls(AclFilter { name: name.to_owned() }).await else { return Ok(all) };
    let mut stream = stream.into_inner();
    while let Some(a) = stream.message().await.map_err(|e| told(&e))? {
        all.push(a);
    }
    Ok(all)
}

fn default(acl: &Acl) -> &str {
    if acl.default.is_empty() { "deny" } else { &acl.default }
}

async fn list(s: &mut Session) -> anyhow::Result<()> {
    let (config, _) = s.config().await?;
    let state = counts(s, "").await?;
    let of = |a: &Acl| state.iter().find(|x| x.name == a.name);
    if s.json {
        let rows: Vec<_> = config.acl.iter().map(|a| serde_json::json!({ "config": a, "state": of(a) })).collect();
        return output::json(&rows);
    }
    let rows = config.acl.iter().map(|a| {
        let has = |ingress: &[String], egress: &[String]| ingress.contains(&a.name) || egress.contains(&a.name);
        let ports = config.port.iter().filter(|p| has(&p.ingress_acls, &p.egress_acls)).count();
        let groups = config.group.iter().filter(|g| has(&g.ingress_acls, &g.egress_acls)).count();
        let networks = config.network.iter().filter(|n| has(&n.ingress_acls, &n.egress_acls)).count();
        let users = ports + groups + networks;
        let frames = of(a).map_or(0, |x| x.counts.iter().map(|c| c.frames).sum::<u64>());
        let memory = of(a).map_or(0, |x| x.memory_bytes >> 10);
        let mut row = vec![a.name.clone(), default(a).to_owned()];
        row.extend([a.rules.len() as u64, users as u64, frames, memory].map(|n| n.to_string()));
        row
    });
    output::table(&["NAME", "DEFAULT", "RULES", "USERS", "FRAMES", "KIB"], 2, rows);
    Ok(())
}

async fn show(s: &mut Session, name: &str) -> anyhow::Result<()> {
    let (config, _) = s.config().await?;
    let unknown = || format!("acl '{name}': there is none of that name; 'dunlin acl list' shows them");
    let acl = config.acl.iter().find(|a| a.name == name).with_context(unknown)?;
    let state = counts(s, name).await?.into_iter().next();
    if s.json {
        return output::json(&serde_json::json!({ "config": acl, "state": state }));
    }
    let count = |i: usize| state.as_ref().and_then(|x| x.counts.get(i)).copied().unwrap_or_default();
    let row = |number: String, text: &str, i: usize| {
        let c = count(i);
        vec![number, text.to_owned(), c.frames.to_string(), c.bytes.to_string()]
    };
    let mut rows: Vec<_> = acl.rules.iter().enumerate().map(|(i, r)| row((i + 1).to_string(), r, i)).collect();
    rows.push(row("default".into(), default(acl), acl.rules.len()));
    output::table(&["RULE", "TEXT", "FRAMES", "BYTES"], 2, rows);
    Ok(())
}
