//! `dunlin set`: addresses with a name, for rules.

use dunlin_control_api::v1::{AddressSet, ApplyRequest, Config};

use crate::{
    output,
    session::{Session, found_or_new, setting},
};

#[derive(clap::Subcommand)]
pub enum Command {
    /// Add a set, or addresses to a set
    Add(Change),
    /// Take addresses out of a set
    Remove(Change),
    /// Remove sets that no rule names
    #[command(visible_alias = "rm")]
    Del {
        /// Their names
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// List the sets
    #[command(visible_alias = "ls")]
    List,
}

#[derive(clap::Args)]
pub struct Change {
    /// The set's name
    name: String,
    /// Addresses, prefixes as 10.0.0.0/8, other sets as @NAME
    addresses: Vec<String>,
}

impl Command {
    pub async fn run(self, s: &mut Session) -> anyhow::Result<()> {
        let (change, add) = match self {
            Command::Add(c) => (c, true),
            Command::Remove(c) => (c, false),
            Command::Del { names } => {
                let plan = s.apply(ApplyRequest { delete_sets: names, ..Default::default() }).await?;
                return output::plan(&plan, s.json, false);
            }
            Command::List => return list(s).await,
        };
        let plan = s
            .change(|config| {
                let there = config.set.iter().find(|x| x.name == change.name);
                let new = add && there.is_none();
                let new = new.then(|| AddressSet { name: change.name.clone(), ..Default::default() });
                let mut set = found_or_new("set", &change.name, there, new)?;
                for a in &change.addresses {
                    let at = set.addresses.iter().position(|x| x == a);
                    match (at, add) {
                        (None, true) => set.addresses.push(a.clone()),
                        (Some(at), false) => drop(set.addresses.remove(at)),
                        (None, false) => anyhow::bail!("set '{}': '{a}' is not in it", change.name),
                        (Some(_), true) => {}
                    }
                }
                Ok(setting(Config { set: vec![set], ..Default::default() }))
            })
            .await?;
        output::plan(&plan, s.json, false)
    }
}

async fn list(s: &mut Session) -> anyhow::Result<()> {
    let (config, _) = s.config().await?;
    if s.json {
        return output::json(&config.set);
    }
    let rows = config.set.iter().map(|x| vec![x.name.clone(), x.addresses.len().to_string(), x.addresses.join(" ")]);
    output::table(&["NAME", "SIZE", "ADDRESSES"], 3, rows);
    Ok(())
}
