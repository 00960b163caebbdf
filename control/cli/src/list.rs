//! `dunlin NOUN list`: rows with columns to choose, sort and filter by.

use std::collections::HashMap;

use anyhow::bail;
use clap::{Arg, ArgAction, ArgMatches};
use dunlin_control_api::{
    dataplane as dp,
    model::{
        Kind, Objects, did_you_mean, meta, plan, shown,
        v1::{Object, object::Spec},
    },
};
use serde_json::{Map, Value, json};

use crate::{acl, connection::Connection, object::one, output, port};

/// One object in a list.
pub struct Row {
    /// What its kind shows: column and text.
    pub cells: Vec<(&'static str, String)>,
    /// Its settings with defaults: further columns.
    pub fields: Map<String, Value>,
    /// For --json.
    pub json: Value,
}

/// Adds the options of a list to a command.
pub fn options(command: clap::Command) -> clap::Command {
    let columns = "Columns: those of the table, and any setting";
    command
        .arg(Arg::new("columns").long("columns").value_name("COLUMNS").value_delimiter(',').help(columns))
        .arg(Arg::new("sort").long("sort").value_name("COLUMN").help("Sort by a column"))
        .arg(
            Arg::new("filter")
                .long("filter")
                .value_name("COLUMN=VALUE")
                .action(ArgAction::Append)
                .help("Only rows with this value, as vlan=10, labels.owner=web or link=up; all of several"),
        )
        .arg(Arg::new("names").long("names").action(ArgAction::SetTrue).help("Print names alone"))
}

/// Lists the objects of a kind.
pub async fn run(kind: Kind, m: &ArgMatches, s: &mut Connection) -> anyhow::Result<()> {
    let (objects, _) = s.objects().await?;
    if m.get_flag("names") {
        objects.of_kind(kind).for_each(|(name, _)| println!("{name}"));
        return Ok(());
    }
    let (columns, numbers, rows, notes) = match kind {
        Kind::Port => port::rows(&objects, s.status().await?.dataplane),
        Kind::Acl => acl::rows(&objects, s).await?,
        Kind::Network => networks(&objects, s.status().await?.dataplane.unwrap_or_default()),
        kind => plain(kind, &objects),
    };
    print(m, s.json, (&columns, numbers), rows)?;
    if !s.json {
        notes.iter().for_each(|n| println!("{n}"));
    }
    Ok(())
}

/// Columns, from which on they are numbers, rows, and notes below the table.
pub type Listing = (Vec<&'static str>, usize, Vec<Row>, Vec<String>);

/// Kinds without a list of their own: key, settings that are set anywhere, and how many objects use each.
fn plain(kind: Kind, objects: &Objects) -> Listing {
    let of_kind: Vec<(&str, &Object)> = objects.of_kind(kind).map(|(n, o)| (n, &**o)).collect();
    let effective: Vec<Map<String, Value>> = of_kind.iter().map(|(_, o)| plan::effective(kind, o)).collect();
    let is_shown = |f: &&meta::Field| {
        f.is_key
            || effective.iter().any(|e| e.contains_key(&f.name))
                && !["description", "labels"].contains(&f.name.as_str())
    };
    let mut columns: Vec<&'static str> =
        meta::of(kind).fields.iter().filter(is_shown).map(|f| f.name.as_str()).collect();
    let named_by =
        meta::all().iter().any(|d| d.fields.iter().any(|f| f.names == Some(kind) || f.mentions == Some(kind)));
    if named_by {
        columns.push("used by");
    }
    let uses = if named_by { objects.uses() } else { Default::default() };
    let row = |((name, o), fields): (&(&str, &Object), &Map<String, Value>)| {
        let cells = if named_by {
            vec![("used by", uses.get(&(kind, (*name).to_owned())).copied().unwrap_or(0).to_string())]
        } else {
            Vec::new()
        };
        let json = if kind == Kind::Bridge { Value::Object(fields.clone()) } else { Value::Object(o.fields()) };
        Row { cells, fields: fields.clone(), json }
    };
    let rows = of_kind.iter().zip(&effective).map(row).collect();
    (columns, 99, rows, Vec::new())
}

fn networks(objects: &Objects, state: dp::State) -> Listing {
    let states: HashMap<&str, &dp::NetworkState> = state.networks.iter().map(|n| (n.name.as_str(), n)).collect();
    let row = |(name, o): (&str, &std::sync::Arc<Object>)| {
        let Some(Spec::Network(n)) = &o.spec else { unreachable!("of that kind") };
        let state = states.get(name);
        let vlan = |v| format!("{v} of {}", if n.bridge.is_empty() { "br0" } else { &n.bridge });
        let tunnel = if n.tunnel.is_empty() { "vxlan" } else { &n.tunnel };
        Row {
            cells: vec![
                ("name", name.to_owned()),
                ("vlan", n.vlan.map(vlan).unwrap_or_default()),
                ("vni", n.vni.map(|v| format!("{v} {tunnel}")).unwrap_or_default()),
                ("remotes", n.remotes.join(",")),
                ("ports", state.map_or(0, |x| x.ports.len()).to_string()),
            ],
            fields: plan::effective(Kind::Network, o),
            json: json!({ "config": n, "state": state }),
        }
    };
    let rows = objects.of_kind(Kind::Network).map(row).collect();
    (vec!["name", "vlan", "vni", "remotes", "ports"], 4, rows, Vec::new())
}

impl Row {
    /// The text of a column; `None` if there is no such column here.
    fn cell(&self, column: &str) -> Option<String> {
        let own = self.cells.iter().find(|(c, _)| *c == column).map(|(_, text)| text.clone());
        own.or_else(|| match column.split_once('.') {
            Some((field, key)) => self.fields.get(field)?.get(key).map(plan::text),
            None => self.fields.get(column).map(plan::text),
        })
    }

    /// The value that filters are compared with: the setting, if there is one, else what is shown.
    fn value(&self, column: &str) -> Option<String> {
        let setting = || self.fields.get(column).map(plan::text);
        let shown = || self.cell(column);
        setting().or_else(shown)
    }
}

fn print(m: &ArgMatches, as_json: bool, (default, numbers): (&[&str], usize), rows: Vec<Row>) -> anyhow::Result<()> {
    let plain = |c: &str| c.to_lowercase().replace('-', "_");
    let chosen: Option<Vec<String>> = m.get_many::<String>("columns").map(|c| c.map(|c| plain(c)).collect());
    let filters: Vec<(String, String)> = match m.get_many::<String>("filter") {
        None => Vec::new(),
        Some(all) => {
            let pair = |f: &String| {
                let (column, value) =
                    f.split_once('=').ok_or_else(|| anyhow::anyhow!("--filter {f}: is not COLUMN=VALUE"))?;
                Ok::<_, anyhow::Error>((plain(column), value.to_owned()))
            };
            all.map(pair).collect::<Result<_, _>>()?
        }
    };
    let sort = one(m, "sort").map(|c| plain(&c));
    // A column that no row has is mistyped, unless there are no rows.
    let is_known =
        |c: &str| rows.is_empty() || default.contains(&c) || rows.iter().any(|r| r.cell(c).is_some()) || is_setting(c);
    for c in chosen.iter().flatten().chain(filters.iter().map(|(c, _)| c)).chain(&sort) {
        if !is_known(c) {
            let known = default.iter().copied().chain(rows.iter().flat_map(|r| r.fields.keys().map(String::as_str)));
            bail!("there is no column '{}'{}", shown(c), did_you_mean(c, known));
        }
    }
    let mut rows: Vec<Row> = rows
        .into_iter()
        .filter(|r| {
            filters.iter().all(|(c, v)| r.value(c).unwrap_or_default() == *v || r.cell(c).as_deref() == Some(v))
        })
        .collect();
    if let Some(c) = &sort {
        let key = |r: &Row| {
            let text = r.cell(c).unwrap_or_default();
            (text.parse::<u64>().ok().is_none(), text.parse::<u64>().unwrap_or_default(), text)
        };
        rows.sort_by_key(key);
    }
    if as_json {
        return output::json(&rows.into_iter().map(|r| r.json).collect::<Vec<_>>());
    }
    let columns: Vec<String> = chosen.unwrap_or_else(|| default.iter().map(|c| (*c).to_owned()).collect());
    let is_default = columns.iter().eq(default.iter());
    let header: Vec<String> = columns.iter().map(|c| c.to_uppercase()).collect();
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let cells = rows.iter().map(|r| columns.iter().map(|c| r.cell(c).unwrap_or_default()).collect());
    output::table(&header, if is_default { numbers } else { usize::MAX }, cells);
    Ok(())
}

fn is_setting(column: &str) -> bool {
    let field = column.split('.').next().unwrap_or_default();
    meta::all().iter().any(|d| d.fields.iter().any(|f| f.name == field))
}
