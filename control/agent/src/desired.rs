//! What the operator wants, one change at a time: validated whole, installed in the dataplane,
//! stored, and only then the truth. If any step fails, the ones before it are undone and the
//! caller is told; while the dataplane is down, a valid change is stored and installed when it
//! is back.

use std::{
    hash::{DefaultHasher, Hasher},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use dunlin_control_api::v1::{ApplyRequest, Config, Plan, Status};
use dunlin_dataplane_api::{Client, v1 as dp};
use prost::Message;
use tokio::sync::{Mutex, MutexGuard, RwLock, broadcast};
use tonic::Code;

use crate::{
    leases::{Leases, now_s},
    plan,
    store::{Store, StoreError},
    wish::{self, Bad},
};

/// Events kept for the slowest reader.
const EVENTS_KEPT: usize = 4096;
/// A dataplane that does not answer a change for so long is taken for down.
const PATIENCE: Duration = Duration::from_secs(10);
/// The same for a look at its state: well below what Prometheus waits for a page.
const LOOK_PATIENCE: Duration = Duration::from_secs(2);

/// What is said while a new store meets a dataplane that forwards.
pub const TAKE_OVER: &str = "the dataplane forwards by a configuration that this store, which is new, does not \
    have: 'dunlin apply -f' yours and it is taken over, or restart the dataplane to begin empty";

/// See the module.
pub struct Desired {
    pub dataplane_socket: PathBuf,
    store: Arc<Store>,
    current: Mutex<Current>,
    client: RwLock<Option<Client>>,
    error: RwLock<String>,
    /// That of `current`, for whoever must not wait for a change that is being made.
    revision: AtomicU64,
    pub restarts: AtomicU64,
    /// The dataplane forwards by what this new store does not have: the next change replaces it.
    pub take_over: AtomicBool,
    pub applied: AtomicU64,
    pub refused: AtomicU64,
    pub events: broadcast::Sender<dp::Event>,
    pub leases: Mutex<Leases>,
    started: Instant,
}

/// The configuration in force, or to be.
pub struct Current {
    pub config: Config,
    pub revision: u64,
    /// The same as the dataplane is told it.
    pub compiled: dp::Transaction,
}

/// Why a change was refused.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// It can't be.
    #[error(transparent)]
    Bad(#[from] Bad),
    /// It does not fit what there is.
    #[error("{0}")]
    NotThere(String),
    /// Someone else was faster.
    #[error("the configuration is at revision {now}, not {expected}: look again and repeat")]
    Conflict {
        /// The revision now.
        now: u64,
        /// The one the change was made for.
        expected: u64,
    },
    /// The dataplane said no.
    #[error("{0}")]
    Dataplane(String),
    /// It could not be stored.
    #[error("{0}; nothing was changed")]
    Store(#[from] StoreError),
}

impl Desired {
    /// What the store holds.
    pub fn load(store: Store, dataplane_socket: PathBuf) -> anyhow::Result<Self> {
        let (config, revision) = store.load()?;
        let leases = store.leases().unwrap_or_else(|e| {
            tracing::warn!("what DHCP gave stations is not known any more: {e}");
            Leases::default()
        });
        let compiled = compile(&config)?;
        Ok(Desired {
            dataplane_socket,
            store: Arc::new(store),
            current: Mutex::new(Current { config, revision, compiled }),
            revision: AtomicU64::new(revision),
            client: RwLock::new(None),
            error: RwLock::new("not found yet".into()),
            restarts: AtomicU64::new(0),
            take_over: AtomicBool::new(false),
            applied: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            events: broadcast::channel(EVENTS_KEPT).0,
            leases: Mutex::new(leases),
            started: Instant::now(),
        })
    }

    /// The configuration; no change happens while it is held.
    pub async fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().await
    }

    /// The dataplane, if it is up.
    pub async fn client(&self) -> Option<Client> {
        self.client.read().await.clone()
    }

    /// Notes that the dataplane is there, or why not.
    pub async fn set_client(&self, client: Result<Client, String>) {
        let (client, error) = match client {
            Ok(c) => (Some(c), String::new()),
            Err(e) => (None, e),
        };
        let up = client.is_some();
        let was_up = std::mem::replace(&mut *self.client.write().await, client).is_some();
        *self.error.write().await = error;
        if up != was_up {
            let _ = self.events.send(dp::Event::now(dp::event::What::Dataplane(dp::DataplaneEvent { up })));
        }
    }

    /// Validates, plans and, unless it is a dry run, carries out a change.
    pub async fn apply(&self, change: &ApplyRequest) -> Result<Plan, Refused> {
        let result = self.apply_counted(change).await;
        if !change.dry_run {
            match &result {
                Ok(_) => drop(self.applied.fetch_add(1, Relaxed)),
                // Nobody refused it: it is made again.
                Err(Refused::Conflict { .. }) => {}
                Err(_) => drop(self.refused.fetch_add(1, Relaxed)),
            }
        }
        result
    }

    async fn apply_counted(&self, change: &ApplyRequest) -> Result<Plan, Refused> {
        let mut current = self.current.lock().await;
        if let Some(expected) = change.expect_revision.filter(|r| *r != current.revision) {
            return Err(Refused::Conflict { now: current.revision, expected });
        }
        let config = plan::changed(&current.config, change).map_err(Refused::NotThere)?;
        let compiled = compile(&config)?;
        let items = plan::items(&current.config, &config);
        // Those that the change brings; the others were told.
        let before = wish::warnings(&current.compiled);
        let warnings: Vec<String> = wish::warnings(&compiled).into_iter().filter(|w| !before.contains(w)).collect();
        if change.dry_run || items.is_empty() {
            let in_force = !change.dry_run && self.client().await.is_some();
            return Ok(Plan { items, revision: current.revision, in_force, warnings });
        }
        let in_force = self.install(&current.compiled, &compiled).await?;
        let revision = current.revision + 1;
        if let Err(e) = self.save(&config, revision).await {
            if in_force {
                self.take_back(&compiled, &current.compiled).await;
            }
            return Err(e.into());
        }
        *current = Current { config, revision, compiled };
        self.revision.store(revision, Relaxed);
        Ok(Plan { items, revision, in_force, warnings })
    }

    /// Whether the dataplane has it now; an error if it refuses.
    async fn install(&self, from: &dp::Transaction, to: &dp::Transaction) -> Result<bool, Refused> {
        let Some(mut client) = self.client().await else { return Ok(false) };
        let step = match self.take_over.load(Relaxed) {
            true => to.clone(),
            false => dp::Transaction { generation: to.generation, ..wish::difference(from, to) },
        };
        match tokio::time::timeout(PATIENCE, client.apply(step)).await {
            Ok(Ok(_)) => {
                self.take_over.store(false, Relaxed);
                Ok(true)
            }
            Ok(Err(s)) if s.code() == Code::InvalidArgument => Err(Refused::Dataplane(s.message().into())),
            // It went away: reconciliation installs whatever is stored by then.
            Ok(Err(_)) | Err(_) => Ok(false),
        }
    }

    async fn take_back(&self, from: &dp::Transaction, to: &dp::Transaction) {
        let Some(mut client) = self.client().await else { return };
        let step =
            dp::Transaction { generation: to.generation, tolerate_device_errors: true, ..wish::difference(from, to) };
        if let Err(e) = client.apply(step).await {
            tracing::error!("taking back a change that could not be stored: {}", e.message());
        }
    }

    /// Keeps what DHCP gave stations, as the dataplane has it now.
    pub async fn note_leases(&self, ports: &[dp::PortState]) {
        let mut leases = self.leases.lock().await;
        if !leases.note(ports, now_s()) {
            return;
        }
        let (store, copy) = (self.store.clone(), leases.clone());
        let saved = tokio::task::spawn_blocking(move || store.save_leases(&copy)).await;
        if let Err(e) = saved.unwrap_or_else(|_| Err(StoreError::ended())) {
            tracing::warn!("what DHCP gave stations was not stored, and is lost if control ends now: {e}");
            // The next look tries again.
            *leases = Leases::default();
        }
    }

    async fn save(&self, config: &Config, revision: u64) -> Result<(), StoreError> {
        let (store, config) = (self.store.clone(), config.clone());
        tokio::task::spawn_blocking(move || store.save(&config, revision)).await.unwrap_or_else(|e| {
            tracing::error!("saving ended early: {e}");
            Err(StoreError::ended())
        })
    }

    /// Access lists with what their rules counted; none while the dataplane is down.
    pub async fn acls(&self) -> Vec<dp::AclState> {
        let Some(mut client) = self.client().await else { return Vec::new() };
        let all = async {
            let mut stream = client.list_acls(dp::AclFilter::default()).await.ok()?.into_inner();
            let mut acls = Vec::new();
            while let Ok(Some(a)) = stream.message().await {
                acls.push(a);
            }
            Some(acls)
        };
        tokio::time::timeout(LOOK_PATIENCE, all).await.ok().flatten().unwrap_or_default()
    }

    /// Everything there is to see, but addresses.
    pub async fn status(&self) -> Status {
        let mut status = Status {
            version: env!("CARGO_PKG_VERSION").into(),
            revision: self.revision.load(Relaxed),
            uptime_s: self.started.elapsed().as_secs(),
            dataplane_restarts: self.restarts.load(Relaxed),
            transactions_applied: self.applied.load(Relaxed),
            transactions_refused: self.refused.load(Relaxed),
            dataplane_error: self.error.read().await.clone(),
            ..Default::default()
        };
        if let Some(mut client) = self.client().await {
            match tokio::time::timeout(LOOK_PATIENCE, client.get_state(dp::StateRequest {})).await {
                Ok(Ok(state)) => {
                    status.dataplane_up = true;
                    if self.take_over.load(Relaxed) {
                        status.dataplane_error = TAKE_OVER.into();
                    }
                    status.dataplane = Some(state.into_inner());
                }
                Ok(Err(e)) => status.dataplane_error = e.message().into(),
                Err(_) => status.dataplane_error = format!("no answer for {} s", LOOK_PATIENCE.as_secs()),
            }
        }
        status
    }
}

/// The configuration as the dataplane is told it, with a generation that its content alone
/// determines: equal generations mean that nothing has to be installed.
fn compile(config: &Config) -> Result<dp::Transaction, Bad> {
    let mut t = wish::compile(config)?;
    let mut hasher = DefaultHasher::new();
    hasher.write(&t.encode_to_vec());
    t.generation = hasher.finish().max(1);
    Ok(t)
}
