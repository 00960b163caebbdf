//! The connection to control, and the errors people see when there is none.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{anyhow, bail};
use dunlin_control_api::{
    Client, ConnectError, connect, dataplane as dp,
    model::{Objects, v1::Key},
    parts, remote,
    v1::{Change, ConfigRequest, Plan, Status, StatusRequest},
};

use crate::output;

/// For how long a change is tried again when another change was faster.
const PATIENCE: Duration = Duration::from_secs(20);

/// The command, for the history: without how control is reached.
pub fn command_line() -> String {
    const HOW: [&str; 5] = ["--control", "--cert", "--key", "--ca", "--timeout"];
    let mut words = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(word) = arguments.next() {
        if HOW.contains(&word.as_str()) {
            arguments.next();
        } else if word != "--json" && !HOW.iter().any(|h| word.starts_with(&format!("{h}="))) {
            words.push(word);
        }
    }
    words.join(" ")
}

/// The dataplane is down, or does not answer.
#[derive(Debug)]
pub struct Unreachable(String);

impl Unreachable {
    pub fn new(why: String) -> Self {
        Unreachable(why)
    }
}

impl std::fmt::Display for Unreachable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unreachable {}

/// One run of the command.
pub struct Connection {
    pub client: Client,
    pub json: bool,
}

/// The server's words, without gRPC's.
pub fn status_to_error(s: &tonic::Status) -> anyhow::Error {
    match s.code() {
        tonic::Code::Unknown | tonic::Code::Unavailable | tonic::Code::Cancelled if is_lost(s) => anyhow!(
            "dunlin-control closed the connection during the call: see 'journalctl -u dunlin-control'. With https, its \
             --tls-client-ca may not have signed the certificate of --cert"
        ),
        tonic::Code::Unimplemented => {
            anyhow!("this is not dunlin-control's socket: the process that listens there has no such call")
        }
        tonic::Code::Unavailable | tonic::Code::Cancelled if s.message().is_empty() => anyhow!("dunlin-control ended"),
        tonic::Code::Unavailable | tonic::Code::DeadlineExceeded => Unreachable(s.message().to_owned()).into(),
        _ => anyhow!("{}", s.message()),
    }
}

/// All parts of a list.
pub async fn all<T>(list: Result<tonic::Response<tonic::Streaming<T>>, tonic::Status>) -> anyhow::Result<Vec<T>> {
    let mut stream = list.map_err(|s| status_to_error(&s))?.into_inner();
    let mut parts = Vec::new();
    while let Some(part) = stream.message().await.map_err(|s| status_to_error(&s))? {
        parts.push(part);
    }
    Ok(parts)
}

/// The connection ended during a call. A certificate is refused so, too: TLS 1.3 refuses a client after its handshake.
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

impl Connection {
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
        Ok(Connection { client, json })
    }

    /// Control's report.
    pub async fn status(&mut self) -> anyhow::Result<Status> {
        Ok(self.client.get_status(StatusRequest {}).await.map_err(|s| status_to_error(&s))?.into_inner())
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

    /// What is configured, and its revision.
    pub async fn objects(&mut self) -> anyhow::Result<(Objects, u64)> {
        self.some_objects(Vec::new()).await
    }

    /// Those of some keys that there are; all without keys.
    async fn some_objects(&mut self, only: Vec<Key>) -> anyhow::Result<(Objects, u64)> {
        let stream =
            self.client.get_config(ConfigRequest { only }).await.map_err(|s| status_to_error(&s))?.into_inner();
        let c = parts::join(stream, &parts::QUESTIONS).await.map_err(|s| status_to_error(&s))?;
        Ok((Objects::of(c.objects), c.revision))
    }

    /// Carries out a change.
    pub async fn apply(&mut self, change: Change) -> anyhow::Result<Plan> {
        self.send(change).await.map_err(|s| status_to_error(&s))
    }

    /// Carries out a change, and prints what it changed.
    pub async fn apply_and_print(&mut self, change: Change) -> anyhow::Result<()> {
        let plan = self.apply(change).await?;
        output::plan(&plan, self.json, false)
    }

    /// What a change would do.
    pub async fn diff(&mut self, change: Change) -> anyhow::Result<Plan> {
        let plan = self.client.diff(tokio_stream::iter(parts::split(change))).await;
        Ok(plan.map_err(|s| status_to_error(&s))?.into_inner())
    }

    async fn send(&mut self, change: Change) -> Result<Plan, tonic::Status> {
        let change = Change { command: command_line(), ..change };
        Ok(self.client.apply(tokio_stream::iter(parts::split(change))).await?.into_inner())
    }

    /// Makes a change out of the configuration as it is; again if another change was faster.
    pub async fn change(&mut self, make: impl FnMut(&Objects) -> anyhow::Result<Change>) -> anyhow::Result<Plan> {
        self.change_of(Vec::new(), make).await
    }

    /// The same out of the objects of some keys. What fails is tried with all of them, which messages name.
    pub async fn change_of(
        &mut self,
        mut only: Vec<Key>,
        mut make: impl FnMut(&Objects) -> anyhow::Result<Change>,
    ) -> anyhow::Result<Plan> {
        let begun = std::time::Instant::now();
        while begun.elapsed() < PATIENCE {
            let (objects, revision) = self.some_objects(only.clone()).await?;
            let change = match make(&objects) {
                Ok(change) => Change { expect_revision: Some(revision), ..change },
                Err(_) if !only.is_empty() => {
                    only.clear();
                    continue;
                }
                Err(e) => return Err(e),
            };
            match self.send(change).await {
                Err(s) if s.code() == tonic::Code::Aborted => {
                    // Not all at the same moment again.
                    let jitter = u64::from(std::process::id() % 17) + u64::from(begun.elapsed().subsec_micros() % 23);
                    tokio::time::sleep(Duration::from_millis(jitter)).await;
                }
                other => return other.map_err(|s| status_to_error(&s)),
            }
        }
        Err(anyhow!("the configuration keeps changing under this command; try again"))
    }
}
