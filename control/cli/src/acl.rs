//! `dunlin acl`: access lists, their rules, and what these counted.

use std::collections::HashMap;

use anyhow::bail;
use dunlin_control_api::{
    dataplane::{AclFilter, AclState},
    model::{
        Kind, Objects, plan,
        v1::{Acl, Key, Object, object::Spec},
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
    /// Rules of a list
    #[command(subcommand)]
    Rule(Rule),
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

impl Command {
    pub async fn run(self, s: &mut Connection) -> anyhow::Result<()> {
        let plan = match self {
            Command::Rule(r) => rule(s, r).await?,
        };
        output::plan(&plan, s.json, false)
    }
}

/// Changes the rules of a list.
async fn change(
    s: &mut Connection,
    name: &str,
    edit: impl Fn(&mut Vec<String>) -> anyhow::Result<()>,
) -> anyhow::Result<Plan> {
    let key = Key { kind: Kind::Acl.word().into(), name: name.to_owned() };
    s.change_of(vec![key], |objects| {
        let Some(Some(Spec::Acl(acl))) = objects.get(Kind::Acl, name).map(|o| &o.spec) else {
            bail!("{}", objects.not_there(Kind::Acl, name));
        };
        let mut acl = acl.clone();
        edit(&mut acl.rules)?;
        Ok(Change { set: vec![acl.into()], ..Default::default() })
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
    change(s, acl, |rules| {
        let at = number.unwrap_or(rules.len() + 1);
        let most = rules.len() + usize::from(adds);
        if !(1..=most).contains(&at) {
            bail!("acl '{acl}': rule {at}: there is none of that number; there are {}", rules.len());
        }
        match &text {
            Some(text) if adds => rules.insert(at - 1, text.clone()),
            Some(text) => rules[at - 1].clone_from(text),
            None => drop(rules.remove(at - 1)),
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
