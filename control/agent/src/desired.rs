//! What the operator wants, one change at a time: validated whole, installed in the dataplane,
//! stored, and only then the truth. If any step fails, the ones before it are undone and the
//! caller gets the reason; while the dataplane is down, or hangs, a valid change is stored and installed when it
//! is back.
//!
//! Readers never wait: they have the configuration of the last change that was completed. A change waits for the one
//! before it, for a bounded time, and no call to the dataplane is without its deadline (`link.rs`).

use std::{
    collections::{BTreeMap, hash_map::RandomState},
    hash::{BuildHasher, DefaultHasher, Hasher},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use dunlin_control_api::v1::{ApplyRequest, Config, Plan, Port, Status};
use dunlin_dataplane_api::{parts, v1 as dp};
use parking_lot::{Mutex, RwLock};
use prost::Message;
use tokio::{
    sync::{Notify, broadcast},
    time::timeout,
};

use crate::{
    leases::{Leases, now_s},
    link::{ANSWER, Link, Outcome, fill},
    plan,
    store::{Identities, Store, StoreError, Stored},
    wish::{self, Bad, Compiled},
};

/// Events kept for the slowest reader.
const EVENTS_KEPT: usize = 4096;
/// For so long a change waits for the one before it.
const TURN: Duration = Duration::from_secs(15);

/// What is said while a new store meets a dataplane that forwards.
pub const TAKE_OVER: &str = "the dataplane forwards by a configuration that this store, which is new, does not \
    have: 'dunlin apply -f' yours and it is taken over, or restart the dataplane to begin empty";

/// See the module.
pub struct Desired {
    store: Arc<Store>,
    pub link: Link,
    /// Replaced whole by each change.
    current: RwLock<Arc<Current>>,
    /// Held by the change that is being made.
    turn: tokio::sync::Mutex<()>,
    /// Wakes reconciliation.
    pub stored: Notify,
    pub restarts: AtomicU64,
    /// The dataplane forwards by what this new store does not have: the next change replaces it.
    pub take_over: AtomicBool,
    pub applied: AtomicU64,
    pub refused: AtomicU64,
    pub events: broadcast::Sender<dp::Event>,
    leases: Mutex<Leases>,
    /// What control itself can't do now, by what it concerns.
    warnings: Mutex<BTreeMap<&'static str, String>>,
    started: Instant,
}

/// The configuration in force, or to be.
pub struct Current {
    pub config: Config,
    pub revision: u64,
    pub identities: Identities,
    /// The same as the dataplane is sent it.
    pub compiled: Compiled,
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
    /// Another change takes long.
    #[error("another change is being made since {} s; nothing was changed, try again", TURN.as_secs())]
    Busy,
    /// The dataplane said no.
    #[error("{0}")]
    Dataplane(String),
    /// It could not be stored.
    #[error("{0}; nothing was changed")]
    Store(#[from] StoreError),
}

impl Desired {
    /// What the store holds.
    ///
    /// # Errors
    /// The store can't be read, or holds a configuration that can't be.
    pub fn load(store: Store, link: Link) -> anyhow::Result<Self> {
        let Stored { config, revision, identities: known, leases } = store.load()?;
        let identities = identify(&known, &config, &config);
        let compiled = compile(&config, &identities)?;
        if identities != known {
            store.save(&config, revision, &identities)?;
        }
        Ok(Desired {
            store: Arc::new(store),
            link,
            current: RwLock::new(Arc::new(Current { config, revision, identities, compiled })),
            turn: tokio::sync::Mutex::new(()),
            stored: Notify::new(),
            restarts: AtomicU64::new(0),
            take_over: AtomicBool::new(false),
            applied: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            events: broadcast::channel(EVENTS_KEPT).0,
            leases: Mutex::new(leases),
            warnings: Mutex::default(),
            started: Instant::now(),
        })
    }

    /// The configuration.
    pub fn current(&self) -> Arc<Current> {
        self.current.read().clone()
    }

    /// Notes what control can't do now, or that it can.
    pub fn warn(&self, about: &'static str, what: Option<String>) {
        let mut warnings = self.warnings.lock();
        match what {
            Some(what) => drop(warnings.insert(about, what)),
            None => drop(warnings.remove(about)),
        }
    }

    /// The whole configuration as a dataplane that knows of nothing is sent it.
    pub fn whole(&self) -> dp::Transaction {
        let mut whole = self.current().compiled.whole.clone();
        self.leases.lock().restore(&mut whole.set_ports, now_s());
        whole
    }

    /// Those of its objects that `problems` name.
    pub fn again(&self, problems: &[dp::Problem]) -> dp::Transaction {
        let current = self.current();
        let mut ports = current.compiled.whole.set_ports.clone();
        self.leases.lock().restore(&mut ports, now_s());
        let generation = current.compiled.whole.generation;
        dp::Transaction { generation, ..wish::of_problems(&current.compiled, ports, problems) }
    }

    /// Validates, plans and, unless it is a dry run, carries out a change.
    ///
    /// # Errors
    /// See [`Refused`]; nothing has changed then.
    pub async fn apply(&self, change: &ApplyRequest) -> Result<Plan, Refused> {
        let result = self.apply_counted(change).await;
        if !change.dry_run {
            match &result {
                Ok(_) => drop(self.applied.fetch_add(1, Relaxed)),
                // Not refused: it is made again.
                Err(Refused::Conflict { .. } | Refused::Busy) => {}
                Err(_) => drop(self.refused.fetch_add(1, Relaxed)),
            }
        }
        result
    }

    async fn apply_counted(&self, change: &ApplyRequest) -> Result<Plan, Refused> {
        let _turn = timeout(TURN, self.turn.lock()).await.map_err(|_| Refused::Busy)?;
        let current = self.current();
        if let Some(expected) = change.expect_revision.filter(|r| *r != current.revision) {
            return Err(Refused::Conflict { now: current.revision, expected });
        }
        let config = plan::changed(&current.config, change).map_err(Refused::NotThere)?;
        let identities = identify(&current.identities, &current.config, &config);
        let compiled = compile(&config, &identities)?;
        let items = plan::items(&current.config, &config);
        // Those that the change brings; the others were said before.
        let before = wish::warnings(&current.compiled.whole);
        let mut warnings: Vec<String> =
            wish::warnings(&compiled.whole).into_iter().filter(|w| !before.contains(w)).collect();
        warnings.extend(self.cut_off_by_snooping(&current.compiled.whole, &compiled.whole));
        let mut plan = Plan { items, revision: current.revision, warnings, ..Default::default() };
        if change.dry_run || plan.items.is_empty() {
            plan.in_force = !change.dry_run && self.link.client().is_some();
            return Ok(plan);
        }
        let pending = match self.install(&current.compiled, &compiled).await {
            Outcome::InForce(problems) => {
                plan.problems = problems;
                String::new()
            }
            Outcome::Refused(why) => return Err(Refused::Dataplane(why)),
            Outcome::Stale => "the dataplane holds another configuration; it is brought up to date".into(),
            Outcome::Pending(why) => why,
        };
        let next = Current { config, revision: current.revision + 1, identities, compiled };
        if let Err(e) = self.save(&next).await {
            if pending.is_empty() {
                self.roll_back(&next.compiled, &current.compiled).await;
            }
            return Err(e.into());
        }
        plan.revision = next.revision;
        plan.in_force = pending.is_empty();
        plan.pending.clone_from(&pending);
        self.link.set_pending(pending);
        *self.current.write() = Arc::new(next);
        self.forget_leases().await;
        if !plan.in_force {
            self.stored.notify_one();
        }
        Ok(plan)
    }

    /// Brings the dataplane from one configuration to another.
    async fn install(&self, from: &Compiled, to: &Compiled) -> Outcome {
        if self.take_over.load(Relaxed) {
            let outcome = self.settle(self.link.apply(to.whole.clone()).await, to).await;
            if let Outcome::InForce(_) = outcome {
                self.take_over.store(false, Relaxed);
            }
            return outcome;
        }
        // What was stored before is not in force there: what is to be now is sent whole, if it can be.
        if !self.link.pending().is_empty() {
            return self.catch_up(to).await;
        }
        let step = || {
            let base_generation = Some(from.whole.generation);
            dp::Transaction { generation: to.whole.generation, base_generation, ..wish::difference(from, to) }
        };
        let outcome = self.settle(self.link.apply(step()).await, to).await;
        let Outcome::Stale = outcome else { return outcome };
        tracing::warn!("the dataplane holds another configuration than control installed: it is sent everything");
        match self.catch_up(from).await {
            Outcome::InForce(_) => self.settle(self.link.apply(step()).await, to).await,
            other => other,
        }
    }

    /// Sends everything, unless the dataplane is at work or does not answer.
    async fn catch_up(&self, to: &Compiled) -> Outcome {
        match self.link.connect().await {
            Err(why) => Outcome::Pending(why),
            Ok((_, info)) if !info.applying.is_empty() => {
                Outcome::Pending(format!("the dataplane is at work on a change: {}", info.applying))
            }
            Ok((client, info)) => {
                let mut whole = to.whole.clone();
                self.leases.lock().restore(&mut whole.set_ports, now_s());
                self.settle(fill(&client, whole, info.generation).await, to).await
            }
        }
    }

    /// Finds out what became of a change whose answer got lost.
    async fn settle(&self, outcome: Outcome, to: &Compiled) -> Outcome {
        match outcome {
            Outcome::Pending(why) if self.link.client().is_some() => self.link.ask(to.whole.generation, why).await,
            other => other,
        }
    }

    async fn roll_back(&self, from: &Compiled, to: &Compiled) {
        let step = dp::Transaction {
            generation: to.whole.generation,
            base_generation: Some(from.whole.generation),
            per_object: true,
            ..wish::difference(from, to)
        };
        match self.link.apply(step).await {
            Outcome::InForce(_) => {}
            other => {
                tracing::error!("rolling back a change that could not be stored: {other:?}");
                self.link.set_pending("a change that could not be stored is being rolled back");
                self.stored.notify_one();
            }
        }
    }

    /// Ports whose running stations lose their network by a change, because it is not known what DHCP gave them.
    fn cut_off_by_snooping(&self, from: &dp::Transaction, to: &dp::Transaction) -> Vec<String> {
        let snoops = |p: &dp::Port| p.security.as_ref().is_some_and(|s| s.snoop);
        let before: BTreeMap<&str, &dp::Port> = from.set_ports.iter().map(|p| (p.name.as_str(), p)).collect();
        let leases = self.leases.lock();
        let starts = |p: &&dp::Port| {
            let knows = p.security.as_ref().is_some_and(|s| !s.ips.is_empty()) || leases.has(&p.name, now_s());
            snoops(p) && !knows && before.get(p.name.as_str()).is_some_and(|b| !snoops(b))
        };
        let warning = |p: &dp::Port| {
            format!(
                "port '{}': security: dhcp-snooping does not know the address that a running guest has: until the guest \
                 asks a DHCP server anew (not only for a renewal), all that it sends is dropped as spoofed_ip. Renew the \
                 lease in the guest, or name its address in ips",
                p.name
            )
        };
        to.set_ports.iter().filter(starts).map(warning).collect()
    }

    /// Keeps what DHCP gave a port's station, as the dataplane has it now; stored when it returns.
    pub async fn note_leases(&self, port: &str, identity: u64, leases: &[dp::Lease]) {
        if self.current().identities.get(port) != Some(&identity) {
            return;
        }
        if self.leases.lock().note(port, identity, leases, now_s()) {
            self.save_leases().await;
        }
    }

    /// Forgets those of ports that are gone, or that are others under the same name.
    async fn forget_leases(&self) {
        let current = self.current();
        let forgot = self.leases.lock().retain(|name, identity| current.identities.get(name) == Some(&identity));
        if forgot {
            self.save_leases().await;
        }
    }

    async fn save_leases(&self) {
        let (store, copy) = (self.store.clone(), self.leases.lock().clone());
        let saved = tokio::task::spawn_blocking(move || store.save_leases(&copy)).await;
        match saved.unwrap_or_else(|_| Err(StoreError::ended())) {
            Ok(()) => self.warn("leases", None),
            Err(e) => {
                tracing::warn!("DHCP leases were not stored, and are lost if control ends now: {e}");
                self.warn("leases", Some(format!("DHCP leases are not stored: {e}")));
            }
        }
    }

    async fn save(&self, next: &Current) -> Result<(), StoreError> {
        let (store, config) = (self.store.clone(), next.config.clone());
        let (revision, identities) = (next.revision, next.identities.clone());
        let save = move || store.save(&config, revision, &identities);
        tokio::task::spawn_blocking(save).await.unwrap_or_else(|e| {
            tracing::error!("saving ended early: {e}");
            Err(StoreError::ended())
        })
    }

    /// Access lists with what their rules counted; none while the dataplane is down.
    pub async fn acls(&self) -> Vec<dp::AclState> {
        let Some(mut client) = self.link.client() else { return Vec::new() };
        let all = async {
            let mut stream = client.list_acls(dp::AclFilter::default()).await.ok()?.into_inner();
            let mut acls = Vec::new();
            while let Ok(Some(a)) = stream.message().await {
                acls.push(a);
            }
            Some(acls)
        };
        timeout(ANSWER, all).await.ok().flatten().unwrap_or_default()
    }

    /// Everything there is to see, but addresses.
    pub async fn status(&self) -> Status {
        let mut status = Status {
            version: env!("CARGO_PKG_VERSION").into(),
            revision: self.current().revision,
            uptime_s: self.started.elapsed().as_secs(),
            dataplane_restarts: self.restarts.load(Relaxed),
            transactions_applied: self.applied.load(Relaxed),
            transactions_refused: self.refused.load(Relaxed),
            dataplane_error: self.link.error(),
            pending: self.link.pending(),
            warnings: self.warnings.lock().values().cloned().collect(),
            ..Default::default()
        };
        if let Some(mut client) = self.link.client() {
            match timeout(ANSWER, client.get_state(dp::StateRequest {})).await {
                Ok(Ok(state)) => {
                    status.dataplane_up = true;
                    if self.take_over.load(Relaxed) {
                        status.dataplane_error = TAKE_OVER.into();
                    }
                    status.dataplane = Some(state.into_inner());
                }
                Ok(Err(e)) => status.dataplane_error = e.message().into(),
                Err(_) => status.dataplane_error = format!("no answer for {} s", ANSWER.as_secs()),
            }
        }
        status
    }
}

/// The configuration as the dataplane is sent it, with a generation that its content alone
/// determines: equal generations mean that nothing has to be installed.
fn compile(config: &Config, identities: &Identities) -> Result<Compiled, Bad> {
    let mut compiled = wish::compile(config, identities)?;
    let octets = compiled.whole.encode_to_vec();
    let size = octets.len().max(config.encoded_len());
    if size > parts::MAX_CONFIGURATION {
        return Err(Bad::whole(parts::too_large(size)));
    }
    let mut hasher = DefaultHasher::new();
    hasher.write(&octets);
    compiled.whole.generation = hasher.finish().max(1);
    Ok(compiled)
}

/// What tells the ports of `to` from others that have or had their names: a port that stays keeps its own, unless none of
/// its station's MAC addresses stays.
fn identify(before: &Identities, from: &Config, to: &Config) -> Identities {
    // Random, so that no two hosts give the same.
    let new = || RandomState::new().hash_one(now_s()).max(1);
    let old: BTreeMap<&str, &Vec<String>> = from.port.iter().map(|p| (p.name.as_str(), &p.macs)).collect();
    let identity = |p: &Port| {
        let macs = old.get(p.name.as_str());
        let moved = macs.is_some_and(|old| !old.is_empty() && !old.iter().any(|m| p.macs.contains(m)));
        before.get(&p.name).copied().filter(|_| !moved).unwrap_or_else(new)
    };
    to.port.iter().map(|p| (p.name.clone(), identity(p))).collect()
}
