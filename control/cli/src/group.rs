//! `dunlin group`: what several ports have in common. 'dunlin port set --groups' puts a port into some.

use dunlin_control_api::v1::{ApplyRequest, Config, Group};

use crate::{
    output,
    session::{Session, found_or_new, put, setting},
};

#[derive(clap::Subcommand)]
pub enum Command {
    /// Add a group
    Add(Settings),
    /// Change a group; what is not named stays
    Set(Settings),
    /// Remove groups that no port is in
    #[command(visible_alias = "rm")]
    Del {
        /// Their names
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// List the groups
    #[command(visible_alias = "ls")]
    List,
}

#[derive(clap::Args)]
pub struct Settings {
    /// The group's name
    name: String,
    /// Access lists of what comes in by its ports; empty for none
    #[arg(long, value_name = "ACLS", value_delimiter = ',')]
    ingress_acls: Option<Vec<String>>,
    /// Access lists of what leaves by them
    #[arg(long, value_name = "ACLS", value_delimiter = ',')]
    egress_acls: Option<Vec<String>>,
}

/// Names that were given, none of them empty.
pub fn names(given: &Option<Vec<String>>) -> Option<Vec<String>> {
    given.as_ref().map(|all| all.iter().filter(|n| !n.is_empty()).cloned().collect())
}

impl Command {
    pub async fn run(self, s: &mut Session) -> anyhow::Result<()> {
        let (a, new) = match self {
            Command::Add(a) => (a, true),
            Command::Set(a) => (a, false),
            Command::Del { names } => {
                let plan = s.apply(ApplyRequest { delete_groups: names, ..Default::default() }).await?;
                return output::plan(&plan, s.json, false);
            }
            Command::List => return list(s).await,
        };
        let plan = s
            .change(|config| {
                let there = config.group.iter().find(|g| g.name == a.name);
                let new = new.then(|| Group { name: a.name.clone(), ..Default::default() });
                let mut group = found_or_new("group", &a.name, there, new)?;
                put(&mut group.ingress_acls, &names(&a.ingress_acls));
                put(&mut group.egress_acls, &names(&a.egress_acls));
                Ok(setting(Config { group: vec![group], ..Default::default() }))
            })
            .await?;
        output::plan(&plan, s.json, false)
    }
}

async fn list(s: &mut Session) -> anyhow::Result<()> {
    let (config, _) = s.config().await?;
    if s.json {
        return output::json(&config.group);
    }
    let rows = config.group.iter().map(|g| {
        let ports: Vec<&str> =
            config.port.iter().filter(|p| p.groups.contains(&g.name)).map(|p| p.name.as_str()).collect();
        vec![g.name.clone(), g.ingress_acls.join(","), g.egress_acls.join(","), ports.join(",")]
    });
    output::table(&["NAME", "INGRESS", "EGRESS", "PORTS"], 4, rows);
    Ok(())
}
