//! `dunlin set`: named sets of addresses, for ACL rules.

use dunlin_control_api::{
    model::{
        Kind,
        v1::{AddressSet, object::Spec},
    },
    v1::Change as Request,
};

use crate::{connection::Connection, output};

#[derive(clap::Subcommand)]
pub enum Command {
    /// Add a set, or addresses to a set
    Add(Change),
    /// Remove addresses from a set
    Remove(Change),
}

#[derive(clap::Args)]
pub struct Change {
    /// The set's name
    name: String,
    /// Addresses, prefixes as 10.0.0.0/8, other sets as @NAME
    addresses: Vec<String>,
}

impl Command {
    pub async fn run(self, s: &mut Connection) -> anyhow::Result<()> {
        let (change, add) = match self {
            Command::Add(c) => (c, true),
            Command::Remove(c) => (c, false),
        };
        let plan = s
            .change(|objects| {
                let there = objects.get(Kind::Set, &change.name).and_then(|o| match &o.spec {
                    Some(Spec::Set(set)) => Some(set.clone()),
                    _ => None,
                });
                let mut set = match there {
                    Some(set) => set,
                    None if add => AddressSet { name: change.name.clone(), ..Default::default() },
                    None => anyhow::bail!("{}", objects.not_there(Kind::Set, &change.name)),
                };
                for a in &change.addresses {
                    let at = set.addresses.iter().position(|x| x == a);
                    match (at, add) {
                        (None, true) => set.addresses.push(a.clone()),
                        (Some(at), false) => drop(set.addresses.remove(at)),
                        (None, false) => anyhow::bail!("set '{}': '{a}' is not in it", change.name),
                        (Some(_), true) => {}
                    }
                }
                Ok(Request { set: vec![set.into()], ..Default::default() })
            })
            .await?;
        output::plan(&plan, s.json, false)
    }
}
