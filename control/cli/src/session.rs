//! The connection to control, and the errors people see when there is none.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use dunlin_control_api::{
    Client, ConnectError, connect, dataplane as dp, parts, remote,
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

/// The dataplane is down, or does not answer.
#[derive(Debug)]
pub struct Unreachable(String);

impl std::fmt::Display for Unreachable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unreachable {}

/// One run of the command.
pub struct Session {
    pub client: Client,
    pub json: bool,
}

/// The server's words, without gRPC's.
pub fn told(s: &tonic::Status) -> anyhow::Error {
    match s.code() {
        tonic::Code::Unknown | tonic::Code::Unavailable | tonic::Code::Cancelled if is_lost(s) => anyhow!(
            "dunlin-control closed the connection during the call: see 'journalctl -u dunlin-control'. With https, its \
             --tls-client-ca may not have signed the certificate of --cert"
        ),
        tonic::Code::Unimplemented => {
            anyhow!("this is not dunlin-control's socket: who listens there knows no such call")
        }
        tonic::Code::Unavailable | tonic::Code::Cancelled if s.message().is_empty() => anyhow!("dunlin-control ended"),
        tonic::Code::Unavailable | tonic::Code::DeadlineExceeded => Unreachable(s.message().to_owned()).into(),
        _ => anyhow!("{}", s.message()),
    }
}

/// The connection ended during a call. A certificate is refused so, too: TLS 1.3 tells a client after its handshake.
fn is_lost(s: &tonic::Status) -> bool {
    let reasons = remote::reasons(s);
    ["transport error", "operation was canceled", "received fatal alert"].iter().any(|w| reasons.contains(w))
}

fn no_connection(e: &ConnectError) -> anyhow::Error {
    let cure = if e.why.contains("Permission denied") {
        "Join the group that dunlin-control was started with (--group)"
    } else {
        "Start it with 'systemctl start dunlin-control', or name its socket with --control"
    };
    anyhow!("dunlin-control does not answer on {e}. {cure}")
}

impl Session {
    /// Connects to `control`, a socket or `https://HOST:PORT`; for the latter with certificate, key and CA.
    pub async fn open(control: &Path, tls: [&Option<PathBuf>; 3], json: bool) -> anyhow::Result<Self> {
        let url = control.to_str().filter(|c| c.starts_with("https://"));
        let client = match (url, tls) {
            (Some(url), [Some(cert), Some(key), Some(ca)]) => {
                let files = remote::Files { cert: cert.clone(), key: key.clone(), ca: ca.clone() };
                remote::connect(url, &files).await.map_err(|e| anyhow!("dunlin-control does not answer on {e}"))?
            }
            (Some(url), _) => bail!("--control {url}: give --cert, --key and --ca too"),
            (None, _) => connect(control).await.map_err(|e| no_connection(&e))?,
        };
        Ok(Session { client, json })
    }

    /// Control's report.
    pub async fn status(&mut self) -> anyhow::Result<Status> {
        Ok(self.client.get_status(StatusRequest {}).await.map_err(|s| told(&s))?.into_inner())
    }

    /// The dataplane's report.
    pub async fn state(&mut self) -> anyhow::Result<dp::State> {
        let status = self.status().await?;
        let why = status.dataplane_error;
        status.dataplane.ok_or_else(|| {
            Unreachable(format!("the dataplane is down ({why}); start it with 'systemctl start dunlin-dataplane'"))
                .into()
        })
    }

    /// The configuration and its revision.
    pub async fn config(&mut self) -> anyhow::Result<(Config, u64)> {
        let parts = self.client.get_config(ConfigRequest {}).await.map_err(|s| told(&s))?.into_inner();
        let c = parts::join(parts).await.map_err(|s| told(&s))?;
        Ok((c.config.unwrap_or_default(), c.revision))
    }

    /// Carries out a change.
    pub async fn apply(&mut self, change: ApplyRequest) -> anyhow::Result<Plan> {
        Ok(self.send(change).await.map_err(|s| told(&s))?)
    }

    async fn send(&mut self, change: ApplyRequest) -> Result<Plan, tonic::Status> {
        Ok(self.client.apply(tokio_stream::iter(parts::split(change))).await?.into_inner())
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
            match self.send(change).await {
                Err(s) if s.code() == tonic::Code::Aborted => {
                    // Not all at the same moment again.
                    let jitter = u64::from(std::process::id() % 17) + u64::from(begun.elapsed().subsec_micros() % 23);
                    tokio::time::sleep(Duration::from_millis(jitter)).await;
                }
                other => return other.map_err(|s| told(&s)),
            }
        }
        Err(anyhow!("the configuration keeps changing under this command; try again"))
    }
}
