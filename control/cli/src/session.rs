//! The connection to control, and the errors people see when there is none.

use std::{path::Path, time::Duration};

use anyhow::{Context, anyhow};
use dunlin_control_api::{
    Client, connect, dataplane as dp,
    v1::{ApplyRequest, Config, ConfigRequest, Plan, Status, StatusRequest},
};

/// For how long a change is tried again when somebody else was faster.
const PATIENCE: Duration = Duration::from_secs(20);

/// Sets what was given; the rest stays.
pub fn put<T: Clone>(to: &mut T, given: &Option<T>) {
    if let Some(value) = given {
        to.clone_from(value);
    }
}

/// The change that sets what is in `config`.
pub fn setting(config: Config) -> ApplyRequest {
    ApplyRequest { set: Some(config), ..Default::default() }
}

/// The object to change, or a new one of a name that is free.
pub fn found_or_new<T: Clone>(kind: &str, name: &str, there: Option<&T>, new: Option<T>) -> anyhow::Result<T> {
    match (there, new) {
        (Some(_), Some(_)) => Err(anyhow!("{kind} '{name}': exists; change it with 'dunlin {kind} set {name}'")),
        (None, Some(new)) => Ok(new),
        (there, None) => there.cloned().with_context(|| format!("{kind} '{name}': there is none of that name")),
    }
}

/// One run of the command.
pub struct Session {
    pub client: Client,
    pub json: bool,
}

/// The server's words, without gRPC's.
pub fn told(s: &tonic::Status) -> anyhow::Error {
    match s.code() {
        tonic::Code::Unknown if s.message().contains("transport") => {
            anyhow!("dunlin-control went away during the call; see 'journalctl -u dunlin-control'")
        }
        tonic::Code::Unimplemented => {
            anyhow!("this is not dunlin-control's socket: who listens there knows no such call")
        }
        tonic::Code::Unavailable | tonic::Code::Cancelled if s.message().is_empty() => anyhow!("dunlin-control ended"),
        _ => anyhow!("{}", s.message()),
    }
}

impl Session {
    pub async fn open(socket: &Path, json: bool) -> anyhow::Result<Self> {
        let client = connect(socket).await.map_err(|e| {
            anyhow!(
                "dunlin-control does not answer on {e}. Start it with 'systemctl start dunlin-control', \
                 or name its socket with --control"
            )
        })?;
        Ok(Session { client, json })
    }

    /// Control's report.
    pub async fn status(&mut self) -> anyhow::Result<Status> {
        Ok(self.client.get_status(StatusRequest {}).await.map_err(|s| told(&s))?.into_inner())
    }

    /// The dataplane's report.
    pub async fn state(&mut self) -> anyhow::Result<dp::State> {
        let status = self.status().await?;
        status.dataplane.with_context(|| {
            format!(
                "the dataplane is down ({}); start it with 'systemctl start dunlin-dataplane'",
                status.dataplane_error
            )
        })
    }

    /// The configuration and its revision.
    pub async fn config(&mut self) -> anyhow::Result<(Config, u64)> {
        let c = self.client.get_config(ConfigRequest {}).await.map_err(|s| told(&s))?.into_inner();
        Ok((c.config.unwrap_or_default(), c.revision))
    }

    /// Carries out a change.
    pub async fn apply(&mut self, change: ApplyRequest) -> anyhow::Result<Plan> {
        Ok(self.client.apply(change).await.map_err(|s| told(&s))?.into_inner())
    }

    /// Makes a change out of the configuration as it is; again if somebody else was faster.
    pub async fn change(
        &mut self,
        mut make: impl FnMut(&Config) -> anyhow::Result<ApplyRequest>,
    ) -> anyhow::Result<Plan> {
        let begun = std::time::Instant::now();
        while begun.elapsed() < PATIENCE {
            let (config, revision) = self.config().await?;
            let change = ApplyRequest { expect_revision: Some(revision), ..make(&config)? };
            match self.client.apply(change).await {
                Err(s) if s.code() == tonic::Code::Aborted => {
                    // Not all at the same moment again.
                    let jitter = u64::from(std::process::id() % 17) + u64::from(begun.elapsed().subsec_micros() % 23);
                    tokio::time::sleep(Duration::from_millis(jitter)).await;
                }
                other => return Ok(other.map_err(|s| told(&s))?.into_inner()),
            }
        }
        Err(anyhow!("the configuration keeps changing under this command; try again"))
    }
}
