//! `dunlin acl`: access lists, their rules, and what these counted.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use dunlin_control_api::{
    dataplane::{AclFilter, AclState},
    model::{
        Kind, Objects, plan,
        v1::{Acl, Object, object::Spec},
    },
    v1::{Change, Plan},
};

use crate::{
    connection::{self, Connection},
    list::{Listing, Row},
    output,
};

#[derive(clap::Subcommand)]
pub enum Command {
    /// Add an access list
    Add(Add),
    /// Change an access list; what is not named stays
    Set(Settings),
    /// Rules of a list
    #[command(subcommand)]
    Rule(Rule),
}

#[derive(clap::Args)]
pub struct Add {
    #[command(flatten)]
    settings: Settings,
    /// No error if there is one of that name: it gets these settings
    #[arg(long)]
    may_exist: bool,
}

#[derive(clap::Args)]
pub struct Settings {
    /// Name of the list
    name: String,
    /// Action for frames that no rule matches [default: deny]
    #[arg(long, value_parser = ["allow", "deny", "reject", "default"])]
    default: Option<String>,
    /// Free text
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Take settings back to their defaults
    #[arg(long, value_name = "SETTINGS", value_delimiter = ',')]
    unset: Vec<String>,
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
        /// Position of the new rule, from 1 [default: last]
        #[arg(long, value_name = "N")]
        at: Option<usize>,
        /// The rule
        #[arg(required = true, trailing_var_arg = true)]
        rule: Vec<String>,
    },
    /// Replace a rule
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
    pub async fn run(self, s: &mut Connection) -> anyhow::Result<()> {
        let plan = match self {
            Command::Add(a) => settings(s, &a.settings, Some(a.may_exist)).await?,
            Command::Set(a) => settings(s, &a, None).await?,
            Command::Rule(r) => rule(s, r).await?,
        };
        output::plan(&plan, s.json, false)
    }
}

/// Changes one list; a new one, if there may be none.
async fn change(
    s: &mut Connection,
    name: &str,
    new: Option<bool>,
    edit: impl Fn(&mut Acl) -> anyhow::Result<()>,
) -> anyhow::Result<Plan> {
    s.change(|objects| {
        let mut acl = match (objects.get(Kind::Acl, name).map(|o| &o.spec), new) {
            (Some(Some(Spec::Acl(acl))), None | Some(true)) => acl.clone(),
            (Some(_), _) => {
                bail!("acl '{name}': there is one of that name already; change it with 'dunlin acl set {name}'")
            }
            (None, Some(_)) => Acl { name: name.to_owned(), ..Default::default() },
            (None, None) => bail!("{}", objects.not_there(Kind::Acl, name)),
        };
        edit(&mut acl)?;
        Ok(Change { set: vec![acl.into()], ..Default::default() })
    })
    .await
}

async fn settings(s: &mut Connection, a: &Settings, new: Option<bool>) -> anyhow::Result<Plan> {
    let rules = a.rules.as_deref().map(read).transpose()?;
    change(s, &a.name, new, |acl| {
        if let Some(action) = &a.default {
            acl.default = if action == "default" { String::new() } else { action.clone() };
        }
        if let Some(text) = &a.description {
            acl.description.clone_from(text);
        }
        if let Some(rules) = &rules {
            acl.rules.clone_from(rules);
        }
        for setting in &a.unset {
            match setting.as_str() {
                "default" => acl.default.clear(),
                "rules" => acl.rules.clear(),
                "description" => acl.description.clear(),
                "labels" => acl.labels.clear(),
                other => bail!("acl '{}': there is no setting '{other}'", a.name),
            }
        }
        Ok(())
    })
    .await
}

async fn rule(s: &mut Connection, r: Rule) -> anyhow::Result<Plan> {
    let (acl, number, text) = match &r {
        Rule::Add { acl, at, rule } => (acl, *at, Some(rule.join(" "))),
        Rule::Set { acl, number, rule } => (acl, Some(*number), Some(rule.join(" "))),
        Rule::Del { acl, number } => (acl, Some(*number), None),
    };
    let adds = matches!(r, Rule::Add { .. });
    change(s, acl, None, |a| {
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
async fn counts(s: &mut Connection, name: &str) -> anyhow::Result<Vec<AclState>> {
    match s.client.list_acls(AclFilter { name: name.to_owned() }).await {
        Ok(list) => connection::all(Ok(list)).await,
        Err(_) => Ok(Vec::new()),
    }
}

fn default(acl: &Acl) -> &str {
    if acl.default.is_empty() { "deny" } else { &acl.default }
}

/// The lists with what their rules counted.
pub async fn rows(objects: &Objects, s: &mut Connection) -> anyhow::Result<Listing> {
    let state = counts(s, "").await?;
    let state: HashMap<&str, &AclState> = state.iter().map(|a| (a.name.as_str(), a)).collect();
    let uses = objects.uses();
    let row = |(name, o): (&str, &std::sync::Arc<Object>)| {
        let Some(Spec::Acl(a)) = &o.spec else { unreachable!("of that kind") };
        let state = state.get(name);
        let frames: u64 = state.iter().flat_map(|x| &x.counts).map(|c| c.frames).sum();
        let users = uses.get(&(Kind::Acl, name.to_owned())).copied().unwrap_or(0);
        Row {
            cells: vec![
                ("name", name.to_owned()),
                ("default", default(a).to_owned()),
                ("rules", a.rules.len().to_string()),
                ("users", users.to_string()),
                ("frames", frames.to_string()),
                ("memory kib", state.map_or(0, |x| x.memory_bytes >> 10).to_string()),
            ],
            fields: plan::effective(Kind::Acl, o),
            json: serde_json::json!({ "config": a, "state": state }),
        }
    };
    let columns = vec!["name", "default", "rules", "users", "frames", "memory kib"];
    Ok((columns, 2, objects.of_kind(Kind::Acl).map(row).collect(), Vec::new()))
}

/// The rules of a list, with what they counted.
pub async fn show(o: &Object, s: &mut Connection) -> anyhow::Result<()> {
    let Some(Spec::Acl(acl)) = &o.spec else { bail!("it is no access list") };
    let state = counts(s, &acl.name).await?.into_iter().next();
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
