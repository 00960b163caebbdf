//! `dunlin NOUN show`: what is configured, what holds by default, and the state.

use clap::ArgMatches;
use dunlin_control_api::model::{
    Kind, Objects, SETTINGS,
    groups::{self, Inherited},
    meta, plan,
    v1::Object,
};

use crate::{acl, connection::Connection, object, output, port};

/// Shows one object.
pub async fn run(kind: Kind, m: &ArgMatches, s: &mut Connection) -> anyhow::Result<()> {
    let name = if kind.is_single() { SETTINGS.into() } else { object::name_of(kind, m) };
    of(kind, &name, s).await
}

/// Shows the object of a kind and name.
pub async fn of(kind: Kind, name: &str, s: &mut Connection) -> anyhow::Result<()> {
    let (objects, _) = s.objects().await?;
    let Some(o) = objects.get(kind, name).map(|o| (**o).clone()).or_else(|| kind.implicit(name)) else {
        anyhow::bail!("{}", objects.not_there(kind, name));
    };
    match kind {
        Kind::Port => return port::show(&objects, &o, s).await,
        Kind::Acl => return acl::show(&o, s).await,
        _ => {}
    }
    if s.json {
        return output::json(&serde_json::json!({ "config": o.fields(), "effective": plan::effective(kind, &o) }));
    }
    output::facts(&settings(&objects, kind, &o));
    let users: Vec<String> = objects.names_of_users(kind, name);
    if !users.is_empty() {
        println!("used by  {}", users.join(", "));
    }
    Ok(())
}

/// The settings of an object, a line each: what is configured, with the groups that it comes from, then what holds by
/// default.
pub fn settings(objects: &Objects, kind: Kind, o: &Object) -> Vec<(&'static str, String)> {
    let Inherited { fields, from, .. } = groups::inherited(objects, o);
    let (own, effective) = (o.fields(), plan::with_defaults(kind, fields.clone()));
    let line = |f: &'static meta::Field| {
        let text = plan::text(effective.get(&f.name)?);
        let of =
            from.get(&f.name).map(|g| format!("{} {}", if g.len() > 1 { "groups" } else { "group" }, g.join(", ")));
        Some((
            f.name.as_str(),
            match of {
                Some(groups) if own.contains_key(&f.name) => format!("{text} (with {groups})"),
                Some(groups) => format!("{text} ({groups})"),
                None if fields.contains_key(&f.name) || f.is_key => text,
                None => format!("{text} (default)"),
            },
        ))
    };
    let (set, default): (Vec<_>, Vec<_>) =
        meta::of(kind).fields.iter().filter_map(line).partition(|(_, text)| !text.ends_with(" (default)"));
    set.into_iter().chain(default).collect()
}
