//! `dunlin wait-until`: for scripts that go on when the switch is ready.

use std::time::Duration;

use crate::connection::Connection;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);

#[derive(clap::Args)]
pub struct WaitUntil {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Until all that is configured is in force
    InForce,
    /// Until frames can leave by a port
    PortUp {
        /// The port
        name: String,
    },
    /// Until no frame can leave by a port, or there is none of that name
    PortDown {
        /// The port
        name: String,
    },
}

impl WaitUntil {
    pub async fn run(self, s: &mut Connection) -> anyhow::Result<()> {
        loop {
            let status = s.status().await?;
            let state = status.dataplane.unwrap_or_default();
            let up = |name: &str| state.ports.iter().any(|p| p.name == name && p.up);
            let done = match &self.what {
                What::InForce => {
                    let problems = state.info.iter().any(|i| !i.problems.is_empty());
                    status.dataplane_up && status.pending.is_empty() && !problems
                }
                What::PortUp { name } => up(name),
                What::PortDown { name } => status.dataplane_up && !up(name),
            };
            if done {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}
