//! The switch as the configuring thread sees it: ports by name, their devices, the workers.
//!
//! All changes go through one lock, which no worker ever takes, and which is not held while a device is opened. A change
//! builds the next [`Snapshot`] beside the running one, hands it to the workers, and waits until each has passed
//! a quiescent state before anything the old one names is closed or used again.
//!
//! `transaction.rs` applies changes: it plans them (`plan.rs`), opens devices, and puts the plan into force (`commit.rs`).
//! `placement.rs` spreads receive queues over workers, `steering.rs` says which
//! worker owns which port, `guest_queues.rs` gives guests queues of an uplink, `monitor.rs` follows links, guests, ages
//! and moves, `overlay.rs` what VTEPs and networks need, `filter.rs` what access lists and connections do, `state.rs`
//! reports.

mod commit;
mod filter;
mod guest_queues;
mod monitor;
mod opening;
mod overlay;
mod placement;
mod plan;
mod sessions;
mod state;
mod steering;
mod transaction;

use std::{
    collections::BTreeMap,
    sync::{Arc, mpsc},
    time::Instant,
};

use dunlin_dataplane_api::v1;
use dunlin_dpdk::{
    eal::Eal,
    quiescent::{Domain, Workers},
};
use dunlin_engine::{
    PortIdx, Snapshot,
    counters::PortTotals,
    snapshot::topology::Topology,
    tables::{
        conntrack::Conntrack,
        mac::{Key, MacTable},
    },
};
use dunlin_model::{Configuration, spec::DeviceSpec};
use parking_lot::Mutex;

pub use guest_queues::GuestQueues;
pub use plan::Refused;
pub use transaction::Applier;

use crate::{
    device::{Device, Opener},
    events::Events,
    pools::Pools,
    queues::{RxHandle, RxKind},
    underlay::Underlay,
    worker::{Clock, Command, Which, WorkerShared},
};

/// What the process was started with.
#[derive(Clone, Debug)]
pub struct Options {
    pub cores: Vec<usize>,
    pub memory_mb: u32,
    pub hugepages: bool,
    /// Who may use the vhost-user sockets that are made; root alone without one.
    pub vhost_group: Option<dunlin_dataplane_api::socket::GroupId>,
}

/// See the module.
pub struct Switch {
    eal: Eal,
    options: Options,
    instance: u64,
    started: Instant,
    generation: u64,
    /// What is configured.
    configuration: Configuration,
    pools: Arc<Mutex<Pools>>,
    domain: Arc<Domain<Workers>>,
    workers: Vec<WorkerHandle>,
    topology: Topology,
    snapshot: Arc<Snapshot>,
    /// Snapshots before that one, as long as a worker that sleeps may still have them: none is freed by a worker.
    replaced: Vec<Arc<Snapshot>>,
    /// What is configured and not in force, but for devices that are missing.
    problems: Vec<v1::Problem>,
    ports: BTreeMap<String, PortRuntime>,
    /// Entries of the mac table that are not learned: the operator's, and the VTEPs' own addresses.
    entries: BTreeMap<Key, PortIdx>,
    /// What was counted at numbers of VTEPs and remotes before they were theirs.
    overlay_base: BTreeMap<PortIdx, PortTotals>,
    underlay: Arc<Underlay>,
    macs: Arc<MacTable>,
    sessions: Arc<Conntrack>,
    sessions_prepared: bool,
    /// The next part of the sessions to look through.
    sweep_part: usize,
    acl_base: filter::AclBase,
    clock: Clock,
    queue_moves: u64,
    auto_ticks: u32,
    owners: Option<Arc<crate::steering::Owners>>,
    fresh: guest_queues::PendingMacs,
    linked: bool,
    removed: PortTotals,
    events: Arc<Events>,
    changed: Arc<dyn Fn() + Send + Sync>,
    flaps: monitor::Flaps,
}

struct WorkerHandle {
    shared: Arc<WorkerShared>,
    /// The NUMA node its core is of.
    node: Option<u32>,
    queues: Vec<placement::QueueSide>,
    sample: state::LoopSample,
    recent: state::LoopSample,
}

struct PortRuntime {
    idx: PortIdx,
    mtu: u32,
    spec: DeviceSpec,
    device: Result<Device, String>,
    /// Queues that the guest has not enabled yet.
    spare_rx: Vec<RxKind>,
    complete_checksums: bool,
    /// Cores whose workers alone may poll it; any, if none is named.
    pinned: Vec<usize>,
    /// Its frames are steered to the workers of the ports they go to.
    steered: bool,
    up: bool,
    /// What the kernel interface behind it takes, if that is less than `mtu`.
    interface_mtu: Option<u32>,
    flaps: monitor::LinkFlaps,
    guest: (bool, bool),
    base: PortTotals,
}

/// What a switch is made of.
pub struct Parts {
    pub eal: Eal,
    pub options: Options,
    pub pools: Pools,
    pub domain: Arc<Domain<Workers>>,
    pub workers: Vec<Arc<WorkerShared>>,
    pub macs: Arc<MacTable>,
    pub sessions: Arc<Conntrack>,
    pub clock: Clock,
    pub events: Arc<Events>,
    pub changed: Arc<dyn Fn() + Send + Sync>,
    pub underlay: Arc<Underlay>,
    pub instance: u64,
}

impl Switch {
    pub fn new(p: Parts) -> Self {
        let side = |shared: Arc<WorkerShared>| WorkerHandle {
            node: crate::numa::of_core(shared.core),
            shared,
            queues: Vec::new(),
            sample: state::LoopSample::default(),
            recent: state::LoopSample::default(),
        };
        Switch {
            eal: p.eal,
            options: p.options,
            instance: p.instance,
            started: Instant::now(),
            generation: 0,
            configuration: Configuration::default(),
            pools: Arc::new(Mutex::new(p.pools)),
            domain: p.domain,
            workers: p.workers.into_iter().map(side).collect(),
            topology: Topology::default(),
            snapshot: Arc::new(Snapshot::empty()),
            replaced: Vec::new(),
            problems: Vec::new(),
            ports: BTreeMap::new(),
            entries: BTreeMap::new(),
            overlay_base: BTreeMap::new(),
            underlay: p.underlay,
            macs: p.macs,
            sessions: p.sessions,
            sessions_prepared: false,
            sweep_part: 0,
            acl_base: filter::AclBase::default(),
            clock: p.clock,
            queue_moves: 0,
            auto_ticks: 0,
            owners: None,
            fresh: guest_queues::PendingMacs::default(),
            linked: false,
            removed: PortTotals::default(),
            events: p.events,
            changed: p.changed,
            flaps: monitor::Flaps::default(),
        }
    }

    /// Hands a snapshot of the topology to the workers and waits until none uses the one before.
    fn publish(&mut self, next: Snapshot) {
        let previous = std::mem::replace(&mut self.snapshot, Arc::new(next));
        for w in &self.workers {
            w.shared.post(Some(self.snapshot.clone()), []);
        }
        self.domain.synchronize();
        self.replaced.push(previous);
        self.free_replaced();
    }

    /// Frees snapshots that no worker has any more.
    fn free_replaced(&mut self) {
        self.replaced.retain(|s| Arc::strong_count(s) > 1);
    }

    fn opener(&self) -> Opener {
        Opener {
            eal: self.eal,
            pools: self.pools.clone(),
            domain: self.domain.clone(),
            workers: self.workers.len(),
            changed: self.changed.clone(),
            vhost_group: self.options.vhost_group,
        }
    }

    /// Gives the workers what they need to send by a new device.
    fn give_tx(&mut self, idx: PortIdx, tx: Vec<crate::queues::TxHandle>) {
        for (w, handle) in self.workers.iter().zip(tx) {
            w.shared.post(None, [Command::AddTx(idx, handle)]);
        }
    }

    /// Takes all receive queues of a port back; afterwards nothing more arrives by it.
    fn take_rx(&mut self, name: &str, idx: PortIdx) -> Vec<RxHandle> {
        self.workers.iter_mut().for_each(|w| w.queues.retain(|q| q.port != name));
        let back = self.pause(idx, Which::ALL);
        self.drain_rings();
        back.into_iter().map(|(_, rx)| rx).collect()
    }

    /// Takes all means of sending by a port back.
    fn take_tx(&mut self, idx: PortIdx) {
        drop(ask_all(&self.workers, |reply| Command::RemoveTx(idx, reply)));
    }

    /// What was counted at a port number since the dataplane started.
    fn totals(&self, idx: PortIdx) -> PortTotals {
        let mut t = PortTotals::default();
        self.workers.iter().for_each(|w| t.add(w.shared.counters.port(idx)));
        t
    }

    /// How many workers there are, for as long as the switch is.
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    fn stop_workers(&self) {
        for w in &self.workers {
            w.shared.post(None, [Command::Stop]);
        }
    }
}

/// Leaves a command with a worker and waits for its answer; `None` if the worker has ended.
fn ask<T>(worker: &WorkerShared, command: impl FnOnce(mpsc::Sender<T>) -> Command) -> Option<T> {
    let (reply, answer) = mpsc::channel();
    worker.post(None, [command(reply)]);
    answered(worker, &answer)
}

/// The same of all workers at once: their numbers and answers.
fn ask_all<T>(workers: &[WorkerHandle], command: impl Fn(mpsc::Sender<T>) -> Command) -> Vec<(usize, T)> {
    let asked = |w: &WorkerHandle| {
        let (reply, answer) = mpsc::channel();
        w.shared.post(None, [command(reply)]);
        answer
    };
    let answers: Vec<_> = workers.iter().map(asked).collect();
    let workers = workers.iter().enumerate().zip(&answers);
    workers.filter_map(|((i, w), answer)| Some((i, answered(&w.shared, answer)?))).collect()
}

fn answered<T>(worker: &WorkerShared, answer: &mpsc::Receiver<T>) -> Option<T> {
    let came = answer.recv_timeout(std::time::Duration::from_secs(5));
    if let Err(mpsc::RecvTimeoutError::Timeout) = came {
        tracing::error!("the worker on core {} does not answer: is another process on that core?", worker.core);
    }
    came.ok()
}
