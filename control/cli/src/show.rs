//! `dunlin NOUN show`: what is configured, what holds by default, and the state.

use clap::ArgMatches;
use dunlin_control_api::model::{Kind, meta, plan};

use crate::{acl, connection::Connection, object, output, port};

/// Shows one object.
pub async fn run(kind: Kind, m: &ArgMatches, s: &mut Connection) -> anyhow::Result<()> {
    let name = if kind.is_single() { dunlin_control_api::model::SETTINGS.into() } else { object::name_of(kind, m) };
    let (objects, _) = s.objects().await?;
    let Some(o) = objects.get(kind, &name).map(|o| (**o).clone()).or_else(|| kind.implicit(&name)) else {
        anyhow::bail!("{}", objects.not_there(kind, &name));
    };
    match kind {
        Kind::Port => return port::show(&o, s).await,
        Kind::Acl => return acl::show(&o, s).await,
        _ => {}
    }
    if s.json {
        return output::json(&serde_json::json!({ "config": o.fields(), "effective": plan::effective(kind, &o) }));
    }
    output::facts(&settings(kind, &o));
    let users: Vec<String> = objects.names_of_users(kind, &name);
    if !users.is_empty() {
        println!("used by  {}", users.join(", "));
    }
    Ok(())
}

/// The settings of an object, a line each: what is configured, then what holds by default.
pub fn settings(kind: Kind, o: &dunlin_control_api::model::v1::Object) -> Vec<(&'static str, String)> {
    let (fields, effective) = (o.fields(), plan::effective(kind, o));
    let line = |f: &'static meta::Field| {
        let text = plan::text(effective.get(&f.name)?);
        let text = if fields.contains_key(&f.name) || f.is_key { text } else { format!("{text} (default)") };
        Some((f.name.as_str(), text))
    };
    let (set, default): (Vec<_>, Vec<_>) =
        meta::of(kind).fields.iter().filter_map(line).partition(|(_, text)| !text.ends_with(" (default)"));
    set.into_iter().chain(default).collect()
}
