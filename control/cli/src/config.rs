//! `dunlin apply`, `diff`, `export`: the whole configuration as a file. All errors of a file are said at once, with their
//! lines.

use std::{
    collections::HashSet,
    io::Read,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, bail};
use dunlin_control_api::{
    model::{
        Kind, check, did_you_mean,
        meta::{self, Field, Type},
        shown,
        v1::Object,
    },
    v1::{Change, Plan},
};
use serde_json::{Map, Value};

use crate::{connection::Connection, object::main_key, output};

/// The largest file, in octets: more is refused by control.
pub const MAX_FILE: u64 = 128 << 20;
/// A file that removes so large a part of the objects, of so many at least, is asked about.
const MOST: usize = 2;
const FEW: usize = 4;

#[derive(clap::Args)]
pub struct Apply {
    /// The file, TOML; '-' is standard input
    #[arg(short, long, value_name = "PATH")]
    file: PathBuf,
    /// Keep what the file does not name
    #[arg(long)]
    keep: bool,
    /// Allow a file that names nothing: everything is removed
    #[arg(long)]
    empty: bool,
    /// Do not ask before most of the configuration is removed
    #[arg(short, long)]
    yes: bool,
    /// Only say what would change; the dataplane looks whether devices, cores and memory are there
    #[arg(long)]
    dry_run: bool,
    /// Go back by itself unless 'dunlin confirm' comes within this time, as 60s or 5m
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    confirm: Option<u32>,
}

#[derive(clap::Args)]
pub struct Diff {
    /// The file, TOML; '-' is standard input
    #[arg(short, long, value_name = "PATH")]
    file: PathBuf,
    /// Exit with 1 if something would change
    #[arg(long)]
    exit_code: bool,
}

fn seconds(text: &str) -> Result<u32, String> {
    let (number, unit) = text.split_at(text.trim_end_matches(char::is_alphabetic).len());
    let factor = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err("is no time as 60s, 5m or 1h".into()),
    };
    let n: u32 = number.parse().map_err(|_| "is no time as 60s, 5m or 1h")?;
    n.checked_mul(factor).filter(|n| *n > 0).ok_or_else(|| "is too long, or 0".into())
}

impl Apply {
    pub async fn run(self, s: &mut Connection) -> anyhow::Result<ExitCode> {
        let file = read(&self.file)?;
        if file.objects.is_empty() && !self.keep && !self.dry_run && !self.empty {
            bail!(
                "{}: names nothing, so everything would be removed; add --empty if that is meant",
                self.file.display()
            );
        }
        let confirm_s = self.confirm.unwrap_or(0);
        let change = Change { replace: !self.keep, set: file.objects.clone(), confirm_s, ..Default::default() };
        if self.dry_run {
            let plan = file.explained(s.diff(change).await)?;
            output::plan(&plan, s.json, true)?;
            return Ok(if plan.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        if !self.keep && !self.yes && !self.empty {
            ask_before_most_goes(s, &file, &change).await?;
        }
        let plan = file.explained(s.apply(change).await)?;
        output::plan(&plan, s.json, false)?;
        if confirm_s > 0 && !s.json {
            println!("taken back in {confirm_s} s unless 'dunlin confirm' comes before");
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// A file of one bridge alone would remove all the rest of a host: rather a mistake.
async fn ask_before_most_goes(s: &mut Connection, file: &File, change: &Change) -> anyhow::Result<()> {
    let (now, _) = s.objects().await?;
    let kept: HashSet<(Kind, String)> = file.objects.iter().filter_map(|o| Some((o.kind()?, o.name()))).collect();
    let removed = now.iter().filter(|(k, _)| !kept.contains(*k)).count();
    if now.len() < FEW || removed * MOST <= now.len() {
        return Ok(());
    }
    // What is wrong with the file comes first.
    file.explained(s.diff(Change { confirm_s: 0, ..change.clone() }).await)?;
    let what = format!("{removed} of {} objects would be removed", now.len());
    if !std::io::IsTerminal::is_terminal(&std::io::stdin()) {
        bail!("{what}; add --yes if that is meant, or --keep to keep what the file does not name");
    }
    eprint!("{what}. Go on? [y/N] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("standard input")?;
    if !answer.trim().eq_ignore_ascii_case("y") {
        bail!("nothing was changed");
    }
    Ok(())
}

impl Diff {
    pub async fn run(self, s: &mut Connection) -> anyhow::Result<ExitCode> {
        let file = read(&self.file)?;
        let change = Change { replace: true, set: file.objects.clone(), ..Default::default() };
        let plan = file.explained(s.diff(change).await)?;
        output::plan(&plan, s.json, true)?;
        Ok(if self.exit_code && !plan.items.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

pub async fn export(s: &mut Connection) -> anyhow::Result<()> {
    let config = s.objects().await?.0.config();
    if s.json {
        return output::json(&config);
    }
    print!("{}", toml::to_string(&config)?);
    Ok(())
}

/// A file, read.
struct File {
    path: String,
    text: String,
    objects: Vec<Object>,
}

fn read(path: &Path) -> anyhow::Result<File> {
    let is_input = path == Path::new("-");
    let shown_path = if is_input { "standard input".to_owned() } else { path.display().to_string() };
    let mut octets = Vec::new();
    let source: Box<dyn Read> = match is_input {
        true => Box::new(std::io::stdin()),
        false => Box::new(std::fs::File::open(path).with_context(|| shown_path.clone())?),
    };
    source.take(MAX_FILE + 1).read_to_end(&mut octets).with_context(|| shown_path.clone())?;
    if octets.len() as u64 > MAX_FILE {
        bail!("{shown_path}: larger than {} MiB, which is the most", MAX_FILE >> 20);
    }
    let text = String::from_utf8(octets).map_err(|e| {
        let line = 1 + e.as_bytes()[..e.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count();
        anyhow::anyhow!("{shown_path}: line {line}: is not UTF-8")
    })?;
    let table: toml::Table = toml::from_str(&text).with_context(|| shown_path.clone())?;
    let mut file = File { path: shown_path, text, objects: Vec::new() };
    let mut errors = Vec::new();
    for (word, value) in table {
        file.read_kind(&word, value, &mut errors);
    }
    match errors.is_empty() {
        true => Ok(file),
        false => Err(anyhow::anyhow!("{}", errors.join("\n"))),
    }
}

impl File {
    fn read_kind(&mut self, word: &str, value: toml::Value, errors: &mut Vec<String>) {
        let Some(kind) = Kind::from_word(word) else {
            let hint = did_you_mean(word, Kind::ALL.iter().map(|k| k.word()));
            let line = self.line(|l| l.trim_start_matches('[').starts_with(word)).unwrap_or(1);
            errors.push(self.at(line, &format!("there is no kind '{}'{hint}", shown(word))));
            return;
        };
        let tables: Vec<toml::Table> = match (kind.is_single(), value) {
            (true, toml::Value::Table(t)) => vec![t],
            (false, toml::Value::Array(all)) if all.iter().all(toml::Value::is_table) => {
                all.into_iter().filter_map(|t| if let toml::Value::Table(t) = t { Some(t) } else { None }).collect()
            }
            (single, _) => {
                let header = if single { format!("[{word}]") } else { format!("[[{word}]]") };
                let line = self.line(|l| l.trim_start_matches('[').starts_with(word)).unwrap_or(1);
                errors.push(
                    self.at(line, &format!("begin {} '{word}' with {header}", if single { "the" } else { "each" })),
                );
                return;
            }
        };
        for (number, table) in tables.into_iter().enumerate() {
            match object(kind, table) {
                Ok(object) => self.objects.push(object),
                Err(bad) => errors.extend(bad.into_iter().map(|(label, field, why)| {
                    let line = self.line_of(kind, number, &field);
                    self.at(line, &format!("{label}: {field}: {why}"))
                })),
            }
        }
    }

    fn at(&self, line: usize, what: &str) -> String {
        let indent = self.text.lines().nth(line - 1).map_or(0, |l| l.len() - l.trim_start().len());
        format!("{}: line {line}, column {}: {what}", self.path, indent + 1)
    }

    /// The first line, from 1, that is meant.
    fn line(&self, is: impl Fn(&str) -> bool) -> Option<usize> {
        self.text.lines().position(|l| is(l.trim())).map(|i| i + 1)
    }

    /// The line of a field of the n-th object of a kind, or of that object.
    fn line_of(&self, kind: Kind, number: usize, field: &str) -> usize {
        let header = |l: &str| {
            let l = l.split('#').next().unwrap_or_default().trim();
            l == format!("[[{kind}]]") || l == format!("[{kind}]")
        };
        let begin = self.text.lines().enumerate().filter(|(_, l)| header(l.trim())).nth(number).map_or(0, |(i, _)| i);
        let block =
            self.text.lines().enumerate().skip(begin + 1).take_while(|(_, l)| !l.trim_start().starts_with("[["));
        let assigns = |l: &str| l.split_once('=').is_some_and(|(k, _)| k.trim() == field);
        block.into_iter().find(|(_, l)| assigns(l)).map_or(begin, |(i, _)| i) + 1
    }

    /// What control says of the file's objects, with their lines.
    fn explained(&self, result: anyhow::Result<Plan>) -> anyhow::Result<Plan> {
        result.map_err(|e| {
            if e.downcast_ref::<crate::connection::Unreachable>().is_some() {
                return e;
            }
            let lines: Vec<String> = e.to_string().lines().map(|l| self.located(l)).collect();
            anyhow::anyhow!("{}", lines.join("\n"))
        })
    }

    /// An error as "port 'web1': mtu: …", with the line that it is about.
    fn located(&self, error: &str) -> String {
        let place = || {
            let (label, rest) = error.split_once(": ")?;
            let (word, name) = label.split_once(" '").map_or((label, ""), |(w, n)| (w, n.trim_end_matches('\'')));
            let kind = Kind::from_word(word)?;
            let is = |o: &&Object| o.name() == name || o.fields().values().any(|v| v == name);
            let of_kind: Vec<&Object> = self.objects.iter().filter(|o| o.kind() == Some(kind)).collect();
            // Of what is declared twice, the second is meant.
            let number = match rest.contains("declared twice") {
                true => of_kind.iter().rposition(is),
                false => of_kind.iter().position(|o| kind.is_single() || is(o)),
            }?;
            let field = rest.split_once(": ").map_or("", |(f, _)| if f.starts_with("rule ") { "rules" } else { f });
            Some(self.line_of(kind, number, field))
        };
        place().map_or_else(|| format!("{}: {error}", self.path), |line| self.at(line, error))
    }
}

type BadField = (String, String, String);

/// An object of a table; all that is wrong with its fields and their types.
fn object(kind: Kind, table: toml::Table) -> Result<Object, Vec<BadField>> {
    let definition = meta::of(kind);
    let name = main_key(definition).and_then(|f| table.get(&f.name)?.as_str()).unwrap_or_default();
    let label = check::label(kind, name);
    let (mut fields, mut bad) = (Map::new(), Vec::new());
    for (field, value) in table {
        let Some(f) = definition.fields.iter().find(|f| f.name == field) else {
            let hint = did_you_mean(&field, definition.fields.iter().map(|f| f.name.as_str()));
            let why = format!("there is no such setting{hint} ('dunlin explain {kind}' lists them)");
            bad.push((label.clone(), shown(&field), why));
            continue;
        };
        match value_of(f, value) {
            Ok(v) => drop(fields.insert(field, v)),
            Err(why) => bad.push((label.clone(), field, why)),
        }
    }
    if !bad.is_empty() {
        return Err(bad);
    }
    kind.object(fields).map_err(|e| vec![(label, String::new(), e.to_string())])
}

fn value_of(f: &Field, value: toml::Value) -> Result<Value, String> {
    let text = |v: &toml::Value| v.as_str().map(Value::from);
    let number = |v: &toml::Value| v.as_integer().and_then(|n| u64::try_from(n).ok()).map(Value::from);
    let all =
        |one: &dyn Fn(&toml::Value) -> Option<Value>| value.as_array()?.iter().map(one).collect::<Option<Value>>();
    let (found, wanted) = match f.holds {
        Type::Text => (text(&value), "a text in quotes"),
        Type::Number => (number(&value), "a whole number without quotes, 0 or more"),
        Type::Flag => (value.as_bool().map(Value::from), "true or false"),
        Type::Texts => (all(&text), "a list of texts, as [\"a\", \"b\"]"),
        Type::Numbers => (all(&number), "a list of whole numbers, as [1, 2]"),
        Type::Labels => {
            let pairs = value
                .as_table()
                .map(|t| t.iter().map(|(k, v)| Some((k.clone(), text(v)?))).collect::<Option<Map<_, _>>>());
            (pairs.flatten().map(Value::Object), "a table of texts, as { owner = \"web\" }")
        }
        Type::Bindings => {
            let pair = |v: &toml::Value| {
                let t =
                    v.as_table().filter(|t| t.keys().all(|k| ["address", "mac", "router"].contains(&k.as_str())))?;
                let router = t.get("router").map_or(Some(false), toml::Value::as_bool)?;
                let text = |name| t.get(name)?.as_str();
                Some(serde_json::json!({ "address": text("address")?, "mac": text("mac")?, "router": router }))
            };
            (
                all(&pair),
                "a list of tables, as [{ address = \"10.0.0.5\", mac = \"52:54:00:00:00:05\", router = false }]",
            )
        }
    };
    found.ok_or_else(|| format!("is {}; {wanted} is wanted", shown(&value.to_string())))
}
