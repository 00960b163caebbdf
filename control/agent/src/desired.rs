//! What the operator wants, one change at a time: validated whole, installed in the dataplane,
//! stored, and only then the truth. If any step fails, the ones before it are undone and the
//! caller gets the reason; while the dataplane is down, or hangs, a valid change is stored and installed when it
//! is back.
//!
//! Readers never wait: they have the configuration of the last change that was completed. A change waits for the one
//! before it, for a bounded time, and no call to the dataplane is without its deadline (`link.rs`).

use std::{
    collections::{BTreeMap, hash_map::RandomState},
    hash::BuildHasher,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use dunlin_control_api::v1::{Change, Plan, Status};
use dunlin_dataplane_api::{unix_ms, v1 as dp};
use dunlin_model::{Bad, Configuration, Kind, Objects, configuration::Resolved, objects, plan, spec::PortSpec};
use parking_lot::{Mutex, RwLock};
use tokio::{
    sync::{Notify, broadcast, watch},
    time::timeout,
};

use crate::{
    history::{Pending, Record},
    leases::{Identities, Leases, now_s},
    link::{ANSWER, Link, Outcome, at_work, fill, no_answer},
    store::{Saved, Store, StoreError, Stored},
    transaction::Target,
};

mod back;
mod leases;

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
    /// The revision, for those that watch the configuration.
    pub revisions: watch::Sender<u64>,
    pub restarts: AtomicU64,
    /// The dataplane forwards by what this new store does not have: the next change replaces it.
    pub take_over: AtomicBool,
    pub applied: AtomicU64,
    pub refused: AtomicU64,
    pub events: broadcast::Sender<dp::Event>,
    leases: Mutex<Leases>,
    /// Held while leases are stored: an older copy never replaces a newer one.
    saving_leases: tokio::sync::Mutex<()>,
    /// Objects of the store that this release does not accept: the next change takes them out.
    left_out: Mutex<Vec<objects::Key>>,
    /// What control itself can't do now, by what it concerns.
    warnings: Mutex<BTreeMap<&'static str, String>>,
    started: Instant,
}

/// The longest time in which a change may have to be confirmed.
const MAX_CONFIRM_S: u32 = 86_400;

/// The configuration in force, or to be.
#[derive(Clone)]
pub struct Current {
    pub target: Arc<Target>,
    pub revision: u64,
    /// The change that led here is taken back unless it is confirmed.
    pub pending: Option<Pending>,
}

impl Current {
    /// What is configured.
    pub fn objects(&self) -> &Objects {
        self.target.configuration.objects()
    }

    /// Identities of ports.
    pub fn identities(&self) -> &Identities {
        &self.target.identities
    }
}

/// Why a change was refused.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// It can't be: all that is wrong with it, a line each.
    #[error("{}", .0.iter().map(Bad::to_string).collect::<Vec<_>>().join("\n"))]
    Bad(Vec<Bad>),
    /// Another change waits to be confirmed.
    #[error("revision {0} waits for 'dunlin confirm', or is taken back in {1} s; no other change is made before")]
    Unconfirmed(u64, u64),
    /// There is nothing to go back to, or to confirm.
    #[error("{0}")]
    NotThere(String),
    /// Another change was faster.
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
        let Stored { objects, revision, identities: known, leases, pending } = store.load()?;
        let (configuration, left_out, warning) = restored(objects)?;
        let identities = identify(&known, configuration.resolved(), configuration.resolved());
        if identities != known {
            store.save_identities(&identities)?;
        }
        Ok(Desired {
            store: Arc::new(store),
            link,
            current: RwLock::new(Arc::new(Current {
                target: Arc::new(Target::new(configuration, identities)),
                revision,
                pending,
            })),
            turn: tokio::sync::Mutex::new(()),
            stored: Notify::new(),
            revisions: watch::channel(revision).0,
            restarts: AtomicU64::new(0),
            take_over: AtomicBool::new(false),
            applied: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            events: broadcast::channel(EVENTS_KEPT).0,
            leases: Mutex::new(leases),
            saving_leases: tokio::sync::Mutex::new(()),
            left_out: Mutex::new(left_out),
            warnings: Mutex::new(warning.into_iter().map(|w| ("store", w)).collect()),
            started: Instant::now(),
        })
    }

    /// The configuration.
    pub fn current(&self) -> Arc<Current> {
        self.current.read().clone()
    }

    /// The generation that the dataplane has when the configuration is in force.
    pub fn generation(&self) -> u64 {
        self.current.read().target.generation
    }

    /// Whether a change is being made.
    pub fn is_changing(&self) -> bool {
        self.turn.try_lock().is_err()
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
        self.everything(&self.current().target)
    }

    fn everything(&self, target: &Target) -> dp::Transaction {
        target.whole(&self.leases.lock())
    }

    /// Those of its objects that `problems` name.
    pub fn again(&self, problems: &[dp::Problem]) -> dp::Transaction {
        self.current().target.again(problems, &self.leases.lock())
    }

    /// Validates, plans and carries out a change of `user`'s.
    ///
    /// # Errors
    /// See [`Refused`]; nothing has changed then.
    pub async fn apply(&self, change: Change, user: &str) -> Result<Plan, Refused> {
        let result = async {
            let _turn = self.turn().await?;
            let current = self.current();
            if let Some(p) = &current.pending {
                return Err(Refused::Unconfirmed(current.revision, left_s(p)));
            }
            let confirm_s = change.confirm_s;
            if confirm_s > MAX_CONFIRM_S {
                let why = format!("{confirm_s} is not in 1 to {MAX_CONFIRM_S}");
                return Err(Refused::Bad(vec![Bad::new("apply", "confirm", why)]));
            }
            let pending = (confirm_s > 0)
                .then(|| Pending { back_to: current.revision, until_ms: unix_ms() + u64::from(confirm_s) * 1000 });
            let command = change.command.clone();
            let next = self.next(&current, change)?;
            self.carry_out(&current, next, How::Asked(pending), (user, &command)).await
        }
        .await;
        self.count(&result);
        result
    }

    /// What a change would do. The dataplane looks whether its devices, cores and memory are there.
    ///
    /// # Errors
    /// What would refuse it.
    pub async fn diff(&self, change: Change) -> Result<Plan, Refused> {
        let current = self.current();
        let next = self.next(&current, change)?;
        let mut plan = next.plan;
        if plan.items.is_empty() || !self.link.pending().is_empty() || self.take_over.load(Relaxed) {
            return Ok(plan);
        }
        let step = self.step(&current.target, &next.target);
        match self.link.apply(dp::Transaction { check_only: true, ..step }).await {
            Outcome::InForce(problems) => plan.problems = problems,
            Outcome::Refused(why) => return Err(Refused::Dataplane(why)),
            Outcome::Stale => {}
            Outcome::Pending(why) => plan.pending = format!("the dataplane could not be asked: {why}"),
        }
        Ok(plan)
    }

    async fn turn(&self) -> Result<tokio::sync::MutexGuard<'_, ()>, Refused> {
        timeout(TURN, self.turn.lock()).await.map_err(|_| Refused::Busy)
    }

    fn count(&self, result: &Result<Plan, Refused>) {
        match result {
            Ok(_) => drop(self.applied.fetch_add(1, Relaxed)),
            // Not refused: it is made again.
            Err(Refused::Conflict { .. } | Refused::Busy) => {}
            Err(_) => drop(self.refused.fetch_add(1, Relaxed)),
        }
    }

    /// The configuration with a change in it, checked.
    fn next(&self, current: &Current, change: Change) -> Result<Next, Refused> {
        if let Some(expected) = change.expect_revision.filter(|r| *r != current.revision) {
            return Err(Refused::Conflict { now: current.revision, expected });
        }
        self.planned(current, understood(change).map_err(|b| Refused::Bad(vec![b]))?)
    }

    fn planned(&self, current: &Current, change: objects::Change) -> Result<Next, Refused> {
        let before = &current.target.configuration;
        let (configuration, touched) = before.changed(change).map_err(Refused::Bad)?;
        let identities = identify(current.identities(), before.resolved(), configuration.resolved());
        let mut warnings = configuration.warnings(before, &touched);
        warnings.extend(self.cut_off_by_snooping(before.resolved(), configuration.resolved()));
        let items = plan::items(before.objects(), configuration.objects());
        let plan = Plan { items, revision: current.revision, warnings, ..Default::default() };
        Ok(Next { target: Arc::new(Target::new(configuration, identities)), plan })
    }

    async fn carry_out(
        &self,
        current: &Arc<Current>,
        next: Next,
        how: How,
        (user, command): (&str, &str),
    ) -> Result<Plan, Refused> {
        let Next { target, mut plan } = next;
        let pending_confirm = if let How::Asked(pending) = &how { pending.clone() } else { None };
        if plan.items.is_empty() && pending_confirm == current.pending {
            plan.in_force = self.link.client().is_some() && self.link.pending().is_empty();
            return Ok(plan);
        }
        let revision = current.revision + 1;
        let record = Record::new(revision, (current.objects(), target.configuration.objects()), user, command);
        if pending_confirm.is_some() && record.before.is_none() {
            let why = "the change is too large for the way back to be kept: make it in parts, or without 'confirm'";
            return Err(Refused::Bad(vec![Bad::new("apply", "confirm", why)]));
        }
        let outcome = match how {
            How::Asked(_) => self.install(&current.target, &target).await,
            How::TakenBack => self.catch_up(&target).await,
        };
        let pending = match outcome {
            Outcome::InForce(problems) => {
                plan.problems = problems;
                String::new()
            }
            Outcome::Refused(why) => return Err(Refused::Dataplane(why)),
            Outcome::Stale => "the dataplane holds another configuration; it is brought up to date".into(),
            Outcome::Pending(why) => why,
        };
        let next = Arc::new(Current { target, revision, pending: pending_confirm });
        if let Err(e) = self.save(current, &next, record).await {
            if pending.is_empty() {
                self.undo(&next.target, &current.target).await;
            }
            return Err(e.into());
        }
        let what = if command.is_empty() { "a change" } else { command };
        tracing::info!("revision {} by {user}: {}", next.revision, dunlin_model::shown_up_to(what, 300));
        plan.revision = next.revision;
        plan.in_force = pending.is_empty();
        plan.pending.clone_from(&pending);
        self.link.set_pending(pending);
        *self.current.write() = next;
        self.revisions.send_replace(plan.revision);
        self.forget_leases().await;
        if !plan.in_force {
            self.stored.notify_one();
        }
        Ok(plan)
    }

    /// Brings the dataplane from one configuration to another.
    async fn install(&self, from: &Target, to: &Target) -> Outcome {
        if self.take_over.load(Relaxed) {
            let outcome = self.settle(self.link.apply(self.everything(to)).await, to).await;
            if let Outcome::InForce(_) = outcome {
                self.take_over.store(false, Relaxed);
            }
            return outcome;
        }
        // What was stored before is not in force there: what is to be now is sent whole, if it can be.
        if !self.link.pending().is_empty() {
            return self.catch_up(to).await;
        }
        let outcome = self.settle(self.link.apply(self.step(from, to)).await, to).await;
        let Outcome::Stale = outcome else { return outcome };
        tracing::warn!("the dataplane holds another configuration than control installed: it is sent everything");
        match self.catch_up(from).await {
            Outcome::InForce(_) => self.settle(self.link.apply(self.step(from, to)).await, to).await,
            other => other,
        }
    }

    /// Sends everything, unless the dataplane is at work or does not answer.
    async fn catch_up(&self, to: &Target) -> Outcome {
        match self.link.connect().await {
            Err(why) => Outcome::Pending(why),
            Ok((_, info)) if !info.applying.is_empty() => Outcome::Pending(at_work(&info)),
            Ok((client, info)) => self.settle(fill(&client, self.everything(to), info.generation).await, to).await,
        }
    }

    /// Finds out what became of a change whose answer got lost.
    async fn settle(&self, outcome: Outcome, to: &Target) -> Outcome {
        match outcome {
            Outcome::Pending(why) if self.link.client().is_some() => self.link.ask(to.generation, why).await,
            other => other,
        }
    }

    /// Undoes a change that could not be stored.
    async fn undo(&self, from: &Target, to: &Target) {
        match self.link.apply(dp::Transaction { per_object: true, ..self.step(from, to) }).await {
            Outcome::InForce(_) => {}
            other => {
                tracing::error!("rolling back a change that could not be stored: {other:?}");
                self.link.set_pending("a change that could not be stored is being rolled back");
                self.stored.notify_one();
            }
        }
    }

    /// The transaction from one configuration to another.
    fn step(&self, from: &Target, to: &Target) -> dp::Transaction {
        to.step_from(from, &self.leases.lock())
    }

    async fn save(&self, before: &Arc<Current>, next: &Arc<Current>, record: Record) -> Result<(), StoreError> {
        let (store, before, next) = (self.store.clone(), before.clone(), next.clone());
        let left_out = self.left_out.lock().clone();
        blocking(move || {
            store.save(&Saved {
                before: before.objects(),
                after: next.objects(),
                left_out: &left_out,
                identities: next.identities(),
                record: &record,
                pending: next.pending.as_ref(),
            })
        })
        .await?;
        if !std::mem::take(&mut *self.left_out.lock()).is_empty() {
            self.warn("store", None);
        }
        Ok(())
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
        let current = self.current();
        let mut status = Status {
            version: env!("CARGO_PKG_VERSION").into(),
            revision: current.revision,
            confirm_left_s: current.pending.as_ref().map(left_s),
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
                Err(_) => status.dataplane_error = no_answer(),
            }
        }
        status
    }
}

/// How a change comes to be made.
enum How {
    /// Refused whole if the dataplane can't do all of it.
    Asked(Option<Pending>),
    /// Made in any case: what the dataplane can't do of it is a problem of that object.
    TakenBack,
}

/// A configuration to be.
struct Next {
    target: Arc<Target>,
    plan: Plan,
}

/// Seconds until a change is taken back.
fn left_s(p: &Pending) -> u64 {
    p.until_ms.saturating_sub(unix_ms()).div_ceil(1000)
}

/// Runs what may block, on a thread that may.
async fn blocking<T: Send + 'static>(
    f: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(f).await.unwrap_or_else(|e| {
        tracing::error!("using the store ended early: {e}");
        Err(StoreError::ended())
    })
}

/// A change as the model has it.
fn understood(change: Change) -> Result<objects::Change, Bad> {
    let key = |k: &dunlin_model::v1::Key| Ok((Kind::parse(&k.kind)?, k.name.clone()));
    let rename = |r: &dunlin_control_api::v1::Rename| {
        let (kind, from) = key(&r.from.clone().unwrap_or_default())?;
        Ok((kind, from, r.to.clone()))
    };
    Ok(objects::Change {
        replace: change.replace,
        rename: change.rename.iter().map(rename).collect::<Result<_, Bad>>()?,
        delete: change.delete.iter().map(key).collect::<Result<_, Bad>>()?,
        set: change.set,
    })
}

/// Identities of the ports of `to`: a port that stays keeps its own, unless none of its MAC addresses stays.
fn identify(before: &Identities, from: &Resolved, to: &Resolved) -> Identities {
    // The upper half rises: ports that are added later are younger. The lower is random, so that no two hosts give the same.
    let mut youngest = before.values().max().map_or(0, |i| i >> 32);
    let mut new = || {
        youngest += 1;
        youngest << 32 | RandomState::new().hash_one(now_s()) >> 32
    };
    let macs = |p: &PortSpec| p.policy.security.as_ref().map_or(&[][..], |s| &s.macs).to_vec();
    let mut identity = |name: &String, p: &PortSpec| {
        let (old, now) = (from.ports.get(name).map(|p| macs(p)).unwrap_or_default(), macs(p));
        let moved = !old.is_empty() && !old.iter().any(|m| now.contains(m));
        before.get(name).copied().filter(|_| !moved).unwrap_or_else(&mut new)
    };
    to.ports.iter().map(|(name, p)| (name.clone(), identity(name, p))).collect()
}

/// What the store has. An object that an earlier release accepted and this one does not is left out, and named: the rest
/// of the host must not be without its configuration.
///
/// # Errors
/// The rest can't be, either.
fn restored(objects: Objects) -> Result<(Configuration, Vec<objects::Key>, Option<String>), Refused> {
    let set = objects.iter().map(|(_, o)| (**o).clone()).collect();
    let change = objects::Change { set, ..Default::default() };
    let possible = Configuration::default().changed_as_far_as_possible(change).map_err(Refused::Bad)?;
    for ((kind, name), why) in &possible.left_out {
        let fields = objects.get(*kind, name).map(|o| serde_json::Value::Object(o.fields()).to_string());
        tracing::error!("left out, because this release does not accept it: {why}: {}", fields.unwrap_or_default());
    }
    let warning = possible.left_out.first().map(|(_, why)| {
        let n = possible.left_out.len();
        format!(
            "{n} objects of the store are left out, because this release does not accept them; the log has them, and the \
             next change removes them: {why}"
        )
    });
    Ok((possible.configuration, possible.left_out.into_iter().map(|(key, _)| key).collect(), warning))
}

#[cfg(test)]
mod tests {
    use dunlin_model::v1::Port;

    use super::*;

    #[test]
    fn ports_that_are_added_later_are_younger() {
        let resolved = |names: &[&str]| {
            let port = |name: &&str| Port { name: (*name).into(), kind: "tap".into(), ..Default::default() }.into();
            restored(Objects::of(names.iter().map(port))).unwrap().0
        };
        let (one, two) = (resolved(&["b"]), resolved(&["a", "b"]));
        let first = identify(&Identities::new(), one.resolved(), one.resolved());
        let second = identify(&first, one.resolved(), two.resolved());
        assert!(first["b"] > 0 && second["b"] == first["b"] && second["a"] > second["b"]);
    }

    #[test]
    fn what_is_not_accepted_any_more_is_left_out_and_named() {
        let port = |name: &str, mtu| Port { name: name.into(), kind: "tap".into(), mtu, ..Default::default() }.into();
        let (configuration, left_out, warning) =
            restored(Objects::of([port("good", None), port("bad", Some(1))])).unwrap();
        assert_eq!(configuration.resolved().ports.keys().collect::<Vec<_>>(), ["good"]);
        assert_eq!(left_out, [(Kind::Port, "bad".to_owned())]);
        assert!(warning.is_some_and(|w| w.contains("port 'bad': mtu: 1 is not in 68 to 9216")));
    }
}
