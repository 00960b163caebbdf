//! `dunlin history`, `rollback`, `confirm`: the history of changes, and the way back.

use dunlin_control_api::v1::{ConfirmRequest, HistoryRequest, Plan, RollbackRequest};

use crate::{
    connection::{self, Connection, command_line, status_to_error},
    output,
};

#[derive(clap::Args)]
pub struct History {
    /// Show what this revision changed
    revision: Option<u64>,
    /// At most so many; 0 for all that are kept
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20)]
    limit: u32,
}

#[derive(clap::Args)]
pub struct Rollback {
    /// The revision to go back to, as 'dunlin history' lists them
    revision: u64,
}

impl History {
    pub async fn run(self, s: &mut Connection) -> anyhow::Result<()> {
        let request = HistoryRequest { limit: self.limit, revision: self.revision.unwrap_or(0) };
        let revisions = connection::all(s.client.get_history(request).await).await?;
        if s.json {
            return output::json(&revisions);
        }
        if let Some(n) = self.revision {
            let Some(r) = revisions.into_iter().next() else { anyhow::bail!("revision {n}: is not kept") };
            println!("{}  {}  {}", output::time(r.unix_ms), r.user, r.command);
            return output::plan(
                &Plan { items: r.items, revision: n, in_force: true, ..Default::default() },
                false,
                false,
            );
        }
        let rows = revisions.iter().map(|r| {
            let count = |action| r.items.iter().filter(|i| i.action == action).count();
            let changes = format!("+{} ~{} -{}", count("add"), count("change"), count("remove"));
            vec![r.revision.to_string(), output::time(r.unix_ms), r.user.clone(), changes, r.command.clone()]
        });
        output::table(&["REVISION", "TIME (UTC)", "USER", "CHANGES", "COMMAND"], 9, rows);
        Ok(())
    }
}

impl Rollback {
    pub async fn run(self, s: &mut Connection) -> anyhow::Result<()> {
        let request = RollbackRequest { revision: self.revision, command: command_line() };
        let plan = s.client.rollback(request).await.map_err(|e| status_to_error(&e))?.into_inner();
        output::plan(&plan, s.json, false)
    }
}

pub async fn confirm(s: &mut Connection) -> anyhow::Result<()> {
    let confirmed = s.client.confirm(ConfirmRequest {}).await.map_err(|e| status_to_error(&e))?.into_inner();
    if s.json {
        return output::json(&confirmed);
    }
    println!("revision {} is confirmed", confirmed.revision);
    Ok(())
}
