//! The verbs that every kind has, made of the model's definition: `add`, `set`, `unset`, `del`, `rename`, `list`, `show`.
//! A noun with further verbs, or others of these names, has a file of its own.

use std::{io::Read, path::Path};

use anyhow::{Context, anyhow, bail};
use clap::{Arg, ArgAction, ArgMatches, builder::PossibleValue};
use dunlin_control_api::{
    model::{
        Kind, Objects, did_you_mean, groups,
        kinds::plain_mac,
        meta::{self, Definition, Field, Type},
        plan, shown,
        v1::{Key, Object},
    },
    v1::{Change, Rename},
};
use serde_json::{Map, Value};

use crate::{config::MAX_FILE, connection::Connection, list, output, show, status};

/// What takes a setting back, in place of a value.
const DEFAULT: &str = "default";

/// The noun of a kind; two have the names of what they are about.
pub fn noun(kind: Kind) -> &'static str {
    match kind {
        Kind::Dataplane => "worker",
        Kind::Sessions => "session",
        kind => kind.word(),
    }
}

/// The key field that stands without an option.
pub fn main_key(d: &'static Definition) -> Option<&'static Field> {
    ["name", "to", "address", "mac"].iter().find_map(|n| d.field(n).filter(|f| f.is_key))
}

/// Adds the verbs that a noun does not have yet.
pub fn with_verbs(kind: Kind, mut noun: clap::Command) -> clap::Command {
    let d = meta::of(kind);
    let has = |noun: &clap::Command, verb: &str| noun.find_subcommand(verb).is_some();
    let verb = |name: &'static str, about: String| clap::Command::new(name).about(about);
    if !has(&noun, "set") {
        let about = format!("Change settings of {}; what is not named stays", an(kind));
        noun = noun.subcommand(
            settings(d, keys(d, verb("set", about))).arg(
                Arg::new("unset")
                    .long("unset")
                    .value_name("SETTINGS")
                    .value_delimiter(',')
                    .help("Take settings back to their defaults"),
            ),
        );
    }
    if !has(&noun, "unset") {
        let names = Arg::new("unset").value_name("SETTING").required(true).num_args(1..).help("Settings");
        noun = noun.subcommand(
            keys(d, verb("unset", format!("Take settings of {} back to their defaults", an(kind)))).arg(names),
        );
    }
    if !has(&noun, "show") {
        let about = format!("Show {}: configured values, defaults and state", an(kind));
        noun = noun.subcommand(keys(d, verb("show", about)));
    }
    if kind.is_single() {
        return noun;
    }
    if !has(&noun, "add") {
        noun = noun.subcommand(settings(d, keys(d, verb("add", format!("Add {}", an(kind))))).arg(may_exist()));
    }
    if !has(&noun, "del") {
        let if_exists = Arg::new("if-exists").long("if-exists").action(ArgAction::SetTrue);
        let if_exists = if_exists.help("No error if there is none of that name");
        let del = verb("del", format!("Delete {}s", kind)).visible_alias("rm").arg(if_exists);
        noun = noun.subcommand(if d.field("name").is_some() {
            del.arg(Arg::new("name").required(true).num_args(1..).value_name("NAME").help("Names"))
        } else {
            keys(d, del)
        });
    }
    if !has(&noun, "rename") && d.field("name").is_some() {
        let to = Arg::new("to").required(true).value_name("NEW").help("New name");
        noun =
            noun.subcommand(keys(d, verb("rename", format!("Rename {}; what refers to it follows", an(kind)))).arg(to));
    }
    if !has(&noun, "list") {
        noun = noun.subcommand(list::options(verb("list", format!("List {kind}s"))).visible_alias("ls"));
    }
    noun
}

pub fn may_exist() -> Arg {
    let help = "No error if there is one of that name: it gets these settings";
    Arg::new("may-exist").long("may-exist").action(ArgAction::SetTrue).help(help)
}

fn an(kind: Kind) -> String {
    match kind {
        Kind::Dataplane => "the workers".into(),
        Kind::Sessions => "connection tracking".into(),
        Kind::Acl => "an access list".into(),
        Kind::Mac => "a static MAC address".into(),
        kind => format!("a {kind}"),
    }
}

fn keys(d: &'static Definition, mut command: clap::Command) -> clap::Command {
    let main = main_key(d);
    for f in d.fields.iter().filter(|f| f.is_key) {
        let is_main = main.is_some_and(|m| m.name == f.name);
        let arg = Arg::new(f.name.as_str()).help(help(f)).value_name(f.value.as_str());
        command = command.arg(if is_main { arg.required(true) } else { arg.long(f.option.as_str()) });
    }
    command
}

fn settings(d: &'static Definition, mut command: clap::Command) -> clap::Command {
    for f in d.settings() {
        let arg = Arg::new(f.name.as_str()).long(f.option.as_str()).help(help(f));
        let arg = match f.holds {
            Type::Flag => {
                let values = ["true", "false", DEFAULT].map(|v| PossibleValue::new(v).hide(v == DEFAULT));
                arg.value_name("BOOL").num_args(0..=1).default_missing_value("true").value_parser(values.to_vec())
            }
            Type::Text => arg.value_name(f.value.as_str()).value_parser(values(f)),
            Type::Number => arg.value_name(f.value.as_str()),
            _ if f.is_file => {
                let text = format!("{}: a file with one a line ('#' begins a comment), '-' is standard input", help(f));
                arg.value_name(f.value.as_str()).help(text)
            }
            Type::Texts | Type::Numbers | Type::Bindings | Type::Labels => {
                arg.value_name(f.value.as_str()).value_delimiter(',').value_parser(values(f)).num_args(1)
            }
        };
        command = command.arg(arg);
    }
    command
}

/// What an option takes: its values, and what takes it back.
fn values(f: &'static Field) -> clap::builder::ValueParser {
    if f.one_of.is_empty() {
        return clap::builder::ValueParser::string();
    }
    let known = f.one_of.iter().map(|v| PossibleValue::new(v.as_str()));
    let hidden = [DEFAULT, ""].map(|v| PossibleValue::new(v).hide(true));
    clap::builder::PossibleValuesParser::new(known.chain(hidden)).into()
}

/// The help of a field with its limits and its default.
fn help(f: &Field) -> String {
    let mut text = f.help.trim_end_matches('.').to_owned();
    if let Some((least, most)) = f.range.filter(|(_, most)| *most < 1 << 31) {
        text += &format!(", {least} to {most}");
    }
    if !f.only_for.is_empty() {
        text = format!("{}: {text}", f.only_for.join(", "));
    }
    match &f.default {
        Some(d) => format!("{text} [default: {d}]"),
        None => text,
    }
}

/// Runs a verb.
pub async fn run(kind: Kind, verb: &str, m: &ArgMatches, s: &mut Connection) -> anyhow::Result<()> {
    match verb {
        "add" => add(kind, m, s).await,
        "set" | "unset" => set(kind, m, s).await,
        "del" => del(kind, m, s).await,
        "rename" => {
            let (from, to) = (name_of(kind, m), one(m, "to").unwrap_or_default());
            let from = Some(key(kind, from));
            s.apply_and_print(Change { rename: vec![Rename { from, to }], ..Default::default() }).await
        }
        "list" => list::run(kind, m, s).await,
        "show" => show::run(kind, m, s).await,
        other => Err(anyhow!("'{other}' is no verb of {kind}")),
    }
}

pub fn one(m: &ArgMatches, id: &str) -> Option<String> {
    m.try_get_one::<String>(id).ok().flatten().cloned()
}

fn many(m: &ArgMatches, id: &str) -> Option<Vec<String>> {
    m.try_get_many::<String>(id).ok().flatten().map(|v| v.cloned().collect())
}

fn flag(m: &ArgMatches, id: &str) -> bool {
    m.try_get_one::<bool>(id).ok().flatten().copied().unwrap_or_default()
}

/// The key fields that were given.
fn key_fields(kind: Kind, m: &ArgMatches) -> anyhow::Result<Map<String, Value>> {
    let mut fields = Map::new();
    for f in meta::of(kind).fields.iter().filter(|f| f.is_key) {
        if let Some(text) = one(m, &f.name) {
            put(&mut fields, f, &[text]).map_err(|e| anyhow!("{kind}: {}: {e}", f.name))?;
        }
    }
    Ok(fields)
}

fn key(kind: Kind, name: String) -> Key {
    Key { kind: kind.word().into(), name }
}

/// What the object that is meant is known by.
pub fn name_of(kind: Kind, m: &ArgMatches) -> String {
    let object = key_fields(kind, m).ok().and_then(|f| kind.object(f).ok());
    object.map_or_else(String::new, |o| o.name())
}

/// Puts what was given into a field; a default takes it out.
fn put(fields: &mut Map<String, Value>, f: &Field, given: &[String]) -> Result<(), String> {
    if matches!(given, [one] if one == DEFAULT || one.is_empty()) {
        fields.remove(&f.name);
        return Ok(());
    }
    let number = |t: &String| {
        t.parse::<u64>().map(Value::from).map_err(|_| format!("'{}' is no whole number, and not 'default'", shown(t)))
    };
    let given: Vec<&String> = given.iter().filter(|t| !t.is_empty()).collect();
    let pair = |t: &&String| {
        let (a, b) = t.split_once('=').ok_or_else(|| format!("'{}' is not {}", shown(t), f.value))?;
        Ok::<_, String>((a.to_owned(), b.to_owned()))
    };
    let value = match f.holds {
        Type::Text => given[0].as_str().into(),
        Type::Number => number(given[0])?,
        Type::Flag => (given[0] == "true").into(),
        Type::Texts => given.iter().map(|t| Value::from(t.as_str())).collect(),
        Type::Numbers => given.iter().map(|t| number(t)).collect::<Result<Value, String>>()?,
        Type::Labels => {
            let pairs = given.iter().map(pair).collect::<Result<Vec<_>, _>>()?;
            Value::Object(pairs.into_iter().map(|(k, v)| (k, v.into())).collect())
        }
        Type::Bindings => {
            let pairs = given.iter().map(pair).collect::<Result<Vec<_>, _>>()?;
            let binding = |(address, mac): (String, String)| match mac.strip_suffix("/router") {
                Some(mac) => serde_json::json!({ "address": address, "mac": mac, "router": true }),
                None => serde_json::json!({ "address": address, "mac": mac }),
            };
            pairs.into_iter().map(binding).collect()
        }
    };
    fields.insert(f.name.clone(), value);
    Ok(())
}

/// The object with the settings that were given.
fn with_settings(kind: Kind, object: &Object, m: &ArgMatches, files: &Files) -> anyhow::Result<Object> {
    let d = meta::of(kind);
    let label = dunlin_control_api::model::check::label(kind, &object.name());
    let mut fields = object.fields();
    for setting in many(m, "unset").unwrap_or_default() {
        let Some(f) = d.settings().find(|f| f.name == setting || f.option == setting) else {
            let known = d.settings().map(|f| f.option.as_str());
            bail!("{label}: there is no setting '{}'{}", shown(&setting), did_you_mean(&setting, known));
        };
        if kind == Kind::Port && f.name == "kind" {
            bail!("{label}: kind has no default; delete the port instead");
        }
        fields.remove(&f.name);
    }
    for f in d.settings() {
        if let Some(lines) = files.get(&f.name) {
            fields.insert(f.name.clone(), lines.clone());
        } else if let Some(given) = many(m, &f.name) {
            put(&mut fields, f, &given).map_err(|e| anyhow!("{label}: {}: {e}", f.name))?;
        }
    }
    kind.object(fields).with_context(|| label)
}

/// Lines of the files that options name, by setting.
type Files = Map<String, Value>;

/// Reads the files that options name: once, because standard input can't be read again when a change is tried again.
fn files(kind: Kind, m: &ArgMatches) -> anyhow::Result<Files> {
    let mut all = Files::new();
    for f in meta::of(kind).settings().filter(|f| f.is_file) {
        if let Some(path) = one(m, &f.name).filter(|p| p != DEFAULT && !p.is_empty()) {
            let read = lines(Path::new(&path)).with_context(|| format!("{kind}: {}", f.name))?;
            all.insert(f.name.clone(), read.into());
        }
    }
    Ok(all)
}

/// The lines of a file, without comments and empty ones.
fn lines(path: &Path) -> anyhow::Result<Vec<String>> {
    let mut text = String::new();
    let source: Box<dyn Read> = match path.as_os_str().to_str() {
        Some("-") => Box::new(std::io::stdin()),
        _ => Box::new(std::fs::File::open(path).with_context(|| path.display().to_string())?),
    };
    source.take(MAX_FILE + 1).read_to_string(&mut text).with_context(|| path.display().to_string())?;
    if text.len() as u64 > MAX_FILE {
        bail!("{}: larger than {} MiB, which is the most", path.display(), MAX_FILE >> 20);
    }
    let line = |line: &str| line.split('#').next().unwrap_or_default().trim().to_owned();
    Ok(text.lines().map(line).filter(|l| !l.is_empty()).collect())
}

async fn add(kind: Kind, m: &ArgMatches, s: &mut Connection) -> anyhow::Result<()> {
    if kind == Kind::Port && one(m, "kind").is_none() && !flag(m, "may-exist") {
        bail!("port '{}': kind: is missing; give --kind nic, host, tap or vhost-user", shown(&name_of(kind, m)));
    }
    let name = name_of(kind, m);
    let port = one(m, "port").filter(|_| kind == Kind::Mac);
    let files = files(kind, m)?;
    let only = [Some(key(kind, name.clone())), port.map(|p| key(Kind::Port, p))].into_iter().flatten().collect();
    let plan = s
        .change_of(only, |objects| {
            let mut fields = key_fields(kind, m)?;
            if kind == Kind::Mac {
                follow_port(objects, &mut fields, m)?;
            }
            let new = kind.object(fields)?;
            // Routes, neighbors and addresses have always been put in place by 'add'.
            let may_exist = flag(m, "may-exist") || meta::of(kind).field("name").is_none();
            let there = objects.get(kind, &new.name());
            if there.is_some() && !may_exist {
                let name = new.name();
                bail!("{kind} '{name}': there is one of that name already; change it with 'dunlin {kind} set {name}'");
            }
            let object = with_settings(kind, there.map_or(&new, |o| &**o), m, &files)?;
            Ok(Change { set: vec![object], ..Default::default() })
        })
        .await?;
    output::plan(&plan, s.json, false)?;
    if kind == Kind::Port && !s.json && one(m, "kind").is_some_and(|k| k == "host") {
        let state = s.state().await.ok();
        let port = state.iter().flat_map(|s| &s.ports).find(|p| p.name == name);
        port.and_then(status::fallback).into_iter().for_each(|note| println!("note: {note}"));
    }
    Ok(())
}

/// A static address at a port that has one VLAN is in that VLAN, unless it is said.
///
/// # Errors
/// The groups of the port are not among the objects: the caller tries again with all.
fn follow_port(objects: &Objects, fields: &mut Map<String, Value>, m: &ArgMatches) -> anyhow::Result<()> {
    let port = one(m, "port").and_then(|p| objects.get(Kind::Port, &p));
    let said = ["vlan", "network", "bridge"].iter().any(|f| fields.contains_key(*f));
    let (Some(o), false) = (port, said) else { return Ok(()) };
    let groups = o.fields().get("groups").and_then(Value::as_array).cloned().unwrap_or_default();
    if let Some(g) = groups.iter().find(|g| objects.get(Kind::Group, g.as_str().unwrap_or_default()).is_none()) {
        bail!("there is no group '{}'", plan::text(g));
    }
    let port = groups::inherited(objects, o).fields;
    let is_trunk = port.get("vlan_mode").is_some_and(|m| m != "access");
    for f in ["network", "bridge", "vlan"] {
        if let Some(v) = port.get(f).filter(|_| f != "vlan" || !is_trunk) {
            fields.insert(f.into(), v.clone());
        }
    }
    Ok(())
}

async fn set(kind: Kind, m: &ArgMatches, s: &mut Connection) -> anyhow::Result<()> {
    let files = files(kind, m)?;
    let name = if kind.is_single() { dunlin_control_api::model::SETTINGS.into() } else { name_of(kind, m) };
    let plan = s
        .change_of(vec![key(kind, name.clone())], |objects| {
            let there = objects.get(kind, &name).map(|o| (**o).clone()).or_else(|| kind.implicit(&name));
            let Some(object) = there else { bail!("{}", objects.not_there(kind, &name)) };
            Ok(Change { set: vec![with_settings(kind, &object, m, &files)?], ..Default::default() })
        })
        .await?;
    output::plan(&plan, s.json, false)
}

async fn del(kind: Kind, m: &ArgMatches, s: &mut Connection) -> anyhow::Result<()> {
    let plan = s
        .change(|objects| {
            let names = match meta::of(kind).field("name") {
                Some(_) => many(m, "name").unwrap_or_default(),
                None => vec![meant(kind, m, objects)?],
            };
            let wanted = |n: &String| !flag(m, "if-exists") || objects.get(kind, n).is_some();
            let delete = names.into_iter().filter(wanted).map(|n| key(kind, n)).collect();
            Ok(Change { delete, ..Default::default() })
        })
        .await?;
    output::plan(&plan, s.json, false)
}

/// The object without a name that is meant: the only one of the fields that were given.
fn meant(kind: Kind, m: &ArgMatches, objects: &Objects) -> anyhow::Result<String> {
    let given = key_fields(kind, m)?;
    let exact = kind.object(given.clone())?.name();
    if objects.get(kind, &exact).is_some() {
        return Ok(exact);
    }
    let text = |v: &Value| plain_mac(&plan::text(v));
    let fits = |o: &Object| given.iter().all(|(k, v)| o.fields().get(k).is_some_and(|x| text(x) == text(v)));
    let found: Vec<&str> = objects.of_kind(kind).filter(|(_, o)| fits(o)).map(|(n, _)| n).collect();
    match found[..] {
        [one] => Ok(one.to_owned()),
        [] => Ok(exact),
        _ => bail!("{kind} '{exact}': there are several: {}; name one with its options", found.join("; ")),
    }
}
