//! `dunlin explain`: the reference of every setting, made of the model's definition.

use anyhow::anyhow;
use dunlin_control_api::model::{
    Kind, did_you_mean,
    meta::{self, Definition, Field, Type},
    shown,
};

use crate::output;

#[derive(clap::Args)]
pub struct Explain {
    /// A kind, as port, or a setting of it, as port.mtu; all kinds without
    what: Option<String>,
    /// Print a JSON schema of the configuration file, for editors
    #[arg(long, conflicts_with = "what")]
    schema: bool,
}

impl Explain {
    pub fn run(&self) -> anyhow::Result<()> {
        if self.schema {
            return output::json(&meta::json_schema());
        }
        let Some(what) = &self.what else {
            let rows = meta::all().iter().map(|d| vec![d.kind.to_string(), d.help.clone()]);
            output::table(&["KIND", "WHAT IT IS"], 9, rows);
            return Ok(());
        };
        let (word, field) = what.split_once('.').map_or((what.as_str(), None), |(k, f)| (k, Some(f)));
        let d = meta::of(Kind::parse(word).map_err(|e| anyhow!("{e}"))?);
        match field {
            None => kind(d),
            Some(name) => {
                let unknown = || {
                    let hint = did_you_mean(name, d.fields.iter().map(|f| f.name.as_str()));
                    anyhow!("{word}: there is no setting '{}'{hint}", shown(name))
                };
                one(d, d.field(name).ok_or_else(unknown)?);
            }
        }
        Ok(())
    }
}

fn kind(d: &Definition) {
    println!("{}: {}\n", d.kind, d.help);
    let rows = d
        .fields
        .iter()
        .map(|f| vec![f.name.clone(), type_of(f), f.default.clone().unwrap_or_default(), f.help.clone()]);
    output::table(&["SETTING", "TYPE", "DEFAULT", "WHAT IT IS"], 9, rows);
}

fn one(d: &Definition, f: &Field) {
    println!("{}.{}: {}\n", d.kind, f.name, f.help);
    let range = f.range.map(|(least, most)| format!("{least} to {most}"));
    let list = |all: &[String]| all.join(", ");
    let part = match d.kind {
        Kind::Port if f.is_attachment => "attachment: stays with the host when the VM moves",
        _ if ["description", "labels"].contains(&f.name.as_str()) => "",
        Kind::Port if meta::of(Kind::Group).field(&f.name).is_some_and(|g| !g.is_key) => {
            "policy: moves with the VM; a port group can have it"
        }
        _ => "",
    };
    output::facts(&[
        ("type", type_of(f)),
        ("default", f.default.clone().unwrap_or_default()),
        ("range", range.unwrap_or_default()),
        ("values", list(&f.one_of)),
        ("refers to", f.names.or(f.mentions).map(|k| k.to_string()).unwrap_or_default()),
        ("only for", list(&f.only_for)),
        ("only with", f.needs.clone().unwrap_or_default()),
        ("part", part.to_owned()),
        ("option", if f.is_key { String::new() } else { format!("--{}", f.option) }),
    ]);
}

fn type_of(f: &Field) -> String {
    let text = match f.holds {
        Type::Text => "text",
        Type::Number => "number",
        Type::Flag => "true or false",
        Type::Texts => "list of texts",
        Type::Numbers => "list of numbers",
        Type::Bindings => "list of { address, mac, router }",
        Type::Labels => "table of texts",
    };
    if f.is_key { format!("{text}, key") } else { text.to_owned() }
}
