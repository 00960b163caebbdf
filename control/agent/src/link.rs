//! The dataplane as control reaches it: every call has a deadline, and a refusal, no answer and an unknown outcome are different results.
//!
//! No lock is held while an answer is waited for.

use std::{path::PathBuf, time::Duration};

use dunlin_dataplane_api::{Client, connect, parts, v1 as dp};
use parking_lot::RwLock;
use tokio::time::{Instant, timeout};
use tonic::Code;

/// A dataplane that is alive answers a look within this time.
pub const ANSWER: Duration = Duration::from_secs(2);
/// For so long a change is waited for, as long as the dataplane says that it is at work.
const CHANGE: Duration = Duration::from_secs(10);
/// The same for a whole configuration, for which no operator waits.
const WHOLE: Duration = Duration::from_secs(120);

/// What became of a transaction.
#[derive(Debug)]
pub enum Outcome {
    /// In force, but for what is named.
    InForce(Vec<dp::Problem>),
    /// The dataplane refused it: nothing has changed there.
    Refused(String),
    /// The dataplane holds another generation than the change starts from: nothing has changed there.
    Stale,
    /// It is not in force yet, or it can't be known, and why: reconciliation finds out by the generation.
    Pending(String),
}

/// See the module.
pub struct Link {
    socket: PathBuf,
    state: RwLock<State>,
}

struct State {
    client: Option<Client>,
    /// Why there is none.
    error: String,
    /// Why the dataplane does not hold what is stored, if it does not.
    pending: String,
}

impl Link {
    pub fn new(socket: PathBuf) -> Self {
        Link {
            socket,
            state: RwLock::new(State { client: None, error: "not found yet".into(), pending: String::new() }),
        }
    }

    /// The dataplane, if it is up.
    pub fn client(&self) -> Option<Client> {
        self.state.read().client.clone()
    }

    /// Why it is not up; empty if it is.
    pub fn error(&self) -> String {
        self.state.read().error.clone()
    }

    /// Why it does not hold what is stored; empty if it does, as far as is known.
    pub fn pending(&self) -> String {
        self.state.read().pending.clone()
    }

    pub fn set_pending(&self, why: impl Into<String>) {
        self.state.write().pending = why.into();
    }

    /// Notes that the dataplane is there, or why not; whether that is a change.
    pub fn set(&self, client: Result<Client, String>) -> bool {
        let mut state = self.state.write();
        let was_up = state.client.is_some();
        (state.client, state.error) = match client {
            Ok(c) => (Some(c), String::new()),
            Err(e) => (None, e),
        };
        was_up != state.client.is_some()
    }

    /// Makes a new connection, and asks what is there.
    ///
    /// # Errors
    /// Why the dataplane does not answer, for people.
    pub async fn connect(&self) -> Result<(Client, dp::Info), String> {
        let connected = timeout(ANSWER, connect(&self.socket)).await.map_err(|_| no_answer())?;
        let client = connected.map_err(|e| format!("{e}; is dunlin-dataplane running?"))?;
        let info = info(&client).await?;
        Ok((client, info))
    }

    /// Sends a transaction and waits for what becomes of it, as long as the dataplane is at work.
    pub async fn apply(&self, t: dp::Transaction) -> Outcome {
        let Some(client) = self.client() else {
            return Outcome::Pending(format!("the dataplane is down ({})", self.error()));
        };
        apply(client, t, CHANGE).await
    }

    /// What became of the transaction that brings the dataplane to `generation`, after its answer got lost.
    pub async fn ask(&self, generation: u64, why: String) -> Outcome {
        match self.connect().await {
            Ok((_, info)) if info.generation == generation => Outcome::InForce(info.problems),
            Ok((_, info)) if !info.applying.is_empty() => Outcome::Pending(at_work(&info)),
            _ => Outcome::Pending(why),
        }
    }
}

/// Brings a dataplane to a whole configuration, whatever else it holds; what can't be installed is left out, and named.
pub async fn fill(client: &Client, whole: dp::Transaction, base_generation: u64) -> Outcome {
    let t = dp::Transaction { per_object: true, base_generation: Some(base_generation), ..whole };
    apply(client.clone(), t, WHOLE).await
}

/// What the dataplane says of itself.
///
/// # Errors
/// It does not answer in time, or not well.
pub async fn info(client: &Client) -> Result<dp::Info, String> {
    let mut client = client.clone();
    let answer = timeout(ANSWER, client.get_info(dp::InfoRequest {})).await.map_err(|_| no_answer())?;
    Ok(answer.map_err(|s| s.message().to_owned())?.into_inner())
}

/// What is said of a dataplane that does not answer in time.
pub fn no_answer() -> String {
    format!("no answer for {} s", ANSWER.as_secs())
}

/// What is said of a dataplane that applies a change.
pub fn at_work(info: &dp::Info) -> String {
    format!("the dataplane is at work on a change: {}", info.applying)
}

async fn apply(mut client: Client, t: dp::Transaction, patience: Duration) -> Outcome {
    let probe = client.clone();
    let begun = Instant::now();
    let mut call = std::pin::pin!(client.apply(tokio_stream::iter(parts::split(t))));
    loop {
        match timeout(ANSWER / 2, &mut call).await {
            Ok(Ok(applied)) => return Outcome::InForce(applied.into_inner().problems),
            Ok(Err(s)) => return outcome(&s),
            Err(_) => match info(&probe).await {
                Ok(i) if begun.elapsed() > patience => return Outcome::Pending(at_work(&i)),
                Ok(_) => {}
                Err(why) => return Outcome::Pending(format!("the dataplane hangs: {why}")),
            },
        }
    }
}

fn outcome(s: &tonic::Status) -> Outcome {
    match s.code() {
        Code::InvalidArgument | Code::ResourceExhausted => Outcome::Refused(s.message().into()),
        Code::FailedPrecondition => Outcome::Stale,
        _ => Outcome::Pending(s.message().into()),
    }
}
