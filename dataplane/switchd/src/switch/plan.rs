//! Planning a transaction: its objects are checked and resolved by the model, and put into a copy of the topology.
//! Nothing has happened yet.
//!
//! | what does not fit | a change by the operator | a restore, or another try (`per_object`) |
//! |---|---|---|
//! | a field, a reference (control has checked them: it is of another version) | refuses the transaction | that object is a [`v1::Problem`], and is left out of a restore, or stays what it was; the rest is applied |
//! | a device that can't be opened or is not permitted, an MTU that a device refuses | refuses the transaction | that port has no device; the rest is applied |
//! | a core that is no worker here | refuses the transaction | the port runs on the other cores named, else on any |
//! | a device that is missing, or a core that is no worker, already | its port's policy changes | the same |
//! | a static address without room in the mac table | a problem | the same |
//! | another base generation, a sum of segments or numbers that is too large | refuses the transaction | the same |

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use dunlin_dataplane_api::v1;
use dunlin_dpdk::DpdkError;
use dunlin_engine::{
    Snapshot,
    snapshot::topology::{Topology, TopologyError},
    tables::acl::Acl,
};
use dunlin_model::{
    Bad, Change, Configuration, Kind,
    check::label,
    configuration::Possible,
    objects::{Key, keys_of_kind},
    spec::{DeviceSpec, PortSpec},
};

use super::{PortRuntime, Switch};
use crate::{acl, permit::Permit};

/// Why a transaction was refused.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// Objects that can't be.
    #[error("{}", .0.iter().map(Bad::to_string).collect::<Vec<_>>().join("\n"))]
    Bad(Vec<Bad>),
    /// It does not fit the rest.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// A device could not be opened, or refuses a setting.
    #[error("port '{port}': {error}")]
    Device {
        /// The port.
        port: String,
        /// Why not.
        error: DpdkError,
    },
    /// The change starts from another generation.
    #[error("the dataplane holds generation {holds}, and the change starts from {base}")]
    Base {
        /// What is there.
        holds: u64,
        /// What the change was made for.
        base: u64,
    },
    /// Another transaction is at work; nothing was done.
    #[error("another change is being applied: {0}")]
    Busy(String),
}

/// Why a port has no device that is administratively down.
pub(super) const ADMIN_DOWN: &str = "administratively down";

/// What of a transaction is not in force, if that does not refuse it.
#[derive(Default)]
pub struct Problems {
    per_object: bool,
    list: Vec<v1::Problem>,
}

impl Problems {
    pub fn of(t: &v1::Transaction) -> Self {
        Problems { per_object: t.per_object, list: Vec::new() }
    }

    /// Refuses the transaction, or notes what of an object can't be in force; the latter too, if it `was` so before.
    pub fn refuse(&mut self, (kind, name): (Kind, &str), field: &str, why: String, was: bool) -> Result<(), Refused> {
        if !self.per_object && !was {
            return Err(Refused::Bad(vec![Bad::new(label(kind, name), field, why)]));
        }
        self.note((kind, name), field, why);
        Ok(())
    }

    pub fn note(&mut self, (kind, name): (Kind, &str), field: &str, reason: impl Into<String>) {
        let (kind, name, field) = (kind.word().to_owned(), name.to_owned(), field.to_owned());
        self.list.push(v1::Problem { kind, name, field, reason: reason.into() });
    }

    pub fn per_object(&self) -> bool {
        self.per_object
    }

    pub fn into_list(self) -> Vec<v1::Problem> {
        self.list
    }
}

/// A configuration to be, and the keys of what means something else in it, or is tried again.
pub(super) struct Next {
    pub configuration: Configuration,
    pub touched: BTreeSet<Key>,
    /// Those, and what was deleted or left out: problems of before are not theirs any more.
    pub decided: BTreeSet<Key>,
}

impl Next {
    /// Checks the objects of a transaction by the model.
    ///
    /// # Errors
    /// They do not fit; per object, not even without those that are wrong.
    pub fn of(now: &Configuration, t: &v1::Transaction, problems: &mut Problems) -> Result<Self, Refused> {
        let key = |k: &dunlin_model::v1::Key| Some((Kind::from_word(&k.kind)?, k.name.clone()));
        let deleted: Vec<Key> = t.delete.iter().filter_map(key).collect();
        // What was left out before can't be removed.
        let delete = deleted.iter().filter(|(kind, name)| now.objects().get(*kind, name).is_some()).cloned().collect();
        let change = Change { replace: t.replace, rename: Vec::new(), delete, set: t.set.clone() };
        let possible = match problems.per_object {
            true => now.changed_as_far_as_possible(change),
            false => now.changed(change).map(|(configuration, touched)| Possible {
                configuration,
                touched,
                left_out: Vec::new(),
            }),
        };
        let Possible { configuration, touched, left_out } = possible.map_err(Refused::Bad)?;
        let mut decided: BTreeSet<Key> = touched.iter().cloned().chain(deleted).collect();
        for ((kind, name), b) in left_out {
            problems.note((kind, &name), &b.field, b.why);
            decided.insert((kind, name));
        }
        Ok(Next { configuration, touched, decided })
    }

    fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &String> {
        keys_of_kind(&self.touched, kind)
    }

    /// Compiles the ACLs that are touched, for so many workers. May take seconds: not to be called under the switch's lock.
    ///
    /// # Errors
    /// A rule names a set that is not there: the model has checked that.
    pub fn compile(&self, workers: usize) -> Result<Vec<Acl>, Refused> {
        let r = self.configuration.resolved();
        let one = |name: &String| {
            let compiled = acl::compile(name, r.acls.get(name)?, &r.sets, workers);
            Some(compiled.map_err(|why| Refused::Bad(vec![Bad::new(label(Kind::Acl, name), "rules", why)])))
        };
        self.of_kind(Kind::Acl).filter_map(one).collect()
    }
}

/// A port that is set.
pub(super) struct WantedPort {
    pub spec: Arc<PortSpec>,
    /// Cores that are workers here, of those that the port names.
    pub pinned: Vec<usize>,
    /// It is there and needs another device, or another try at its own.
    pub reopen: bool,
    /// Its device was not there before either: its policy changes all the same.
    pub waiting: bool,
    /// Why it may not have its device.
    pub forbidden: Option<String>,
}

impl WantedPort {
    pub fn device(&self) -> &DeviceSpec {
        &self.spec.attachment.device
    }

    pub fn mtu(&self) -> u32 {
        self.spec.policy.mtu.get()
    }

    /// Why no device is to be opened for it.
    pub fn without_device(&self) -> Option<&str> {
        if self.spec.policy.admin_down { Some(ADMIN_DOWN) } else { self.forbidden.as_deref() }
    }
}

/// A transaction, understood.
pub(super) struct Plan {
    pub next: Next,
    pub topology: Topology,
    /// Of that topology.
    pub snapshot: Snapshot,
    pub set: BTreeMap<String, WantedPort>,
    pub gone: Vec<String>,
    /// Running devices that get another MTU: it, and the one before.
    pub mtus: Vec<(String, u32, u32)>,
}

impl Switch {
    /// Puts a configuration into a copy of the topology, changing nothing.
    pub(super) fn plan(
        &self,
        t: &v1::Transaction,
        next: Next,
        lists: Vec<Acl>,
        problems: &mut Problems,
    ) -> Result<Plan, Refused> {
        let mut topology = self.topology.clone();
        let r = next.configuration.resolved();
        let set = self.plan_ports(&next, problems)?;
        let gone: Vec<String> = next.of_kind(Kind::Port).filter(|n| !r.ports.contains_key(*n)).cloned().collect();
        for name in &gone {
            topology.remove_port(name);
        }
        r.bridges.iter().for_each(|(name, spec)| topology.set_bridge(name, *spec));
        next.of_kind(Kind::Acl).filter(|n| !r.acls.contains_key(*n)).for_each(|n| topology.remove_acl(n));
        lists.into_iter().for_each(|acl| topology.set_acl(acl));
        topology.set_sessions(acl::sessions(&r.sessions, self.sessions.statistics().capacity as u32));
        for name in next.of_kind(Kind::Vtep) {
            let Some(v) = r.vteps.get(name) else {
                topology.remove_vtep(name);
                continue;
            };
            topology.set_vtep(name, v.spec.clone())?;
        }
        for name in next.of_kind(Kind::Network) {
            match r.networks.get(name) {
                Some(n) => topology.set_network(name, n.clone()),
                None => topology.remove_network(name),
            }
        }
        for (name, p) in &set {
            topology.set_port(name, p.spec.policy.clone())?;
        }
        t.ports.iter().for_each(|p| topology.identify(&p.name, p.identity));
        let old: Vec<String> =
            topology.bridge_names().filter(|n| !r.bridges.contains_key(*n)).map(str::to_owned).collect();
        old.iter().try_for_each(|b| topology.remove_bridge(b))?;
        let snapshot = topology.snapshot()?;
        let kept = |n: &String, w: &WantedPort| self.ports.get(n).is_some_and(|p| p.device.is_ok() && !w.reopen);
        let of = |n: &String, w: &WantedPort| (n.clone(), w.mtu(), self.ports[n].mtu);
        let running = set.iter().filter(|(n, w)| kept(n, w)).map(|(n, w)| of(n, w));
        let mtus = running.filter(|(_, now, before)| now != before).collect();
        Ok(Plan { next, topology, snapshot, set, gone, mtus })
    }

    fn plan_ports(&self, next: &Next, problems: &mut Problems) -> Result<BTreeMap<String, WantedPort>, Refused> {
        let mut set = BTreeMap::new();
        for name in next.of_kind(Kind::Port) {
            let Some(spec) = next.configuration.resolved().ports.get(name) else { continue };
            let (at, cores) = (&spec.attachment, &self.options.cores);
            let (pinned, others): (Vec<usize>, Vec<usize>) =
                at.workers.iter().map(|c| *c as usize).partition(|c| cores.contains(c));
            // What was a problem already stops no change of other settings.
            let same = self.configuration.resolved().ports.get(name).is_some_and(|b| b.attachment == *at);
            if let Some(c) = others.first() {
                let why = format!("core {c} is no worker; there are {cores:?}");
                problems.refuse((Kind::Port, name), "workers", why, same)?;
            }
            let forbidden = Permit::get().check(&at.device).err();
            if let Some(why) = forbidden.clone().filter(|_| !problems.per_object && !same) {
                problems.refuse((Kind::Port, name), at.device.resource().0, why, false)?;
            }
            let there = self.ports.get(name);
            let waiting = there.is_some_and(|p| p.is_waiting() && p.spec == at.device);
            let mut want = WantedPort { spec: spec.clone(), pinned, reopen: false, waiting, forbidden };
            want.reopen = there.is_some_and(|p| match want.without_device() {
                Some(why) => p.device.as_ref().err().is_none_or(|before| before != why),
                None => needs_another_device(p, spec),
            });
            set.insert(name.clone(), want);
        }
        Ok(set)
    }
}

impl PortRuntime {
    /// It has no device, though it should.
    pub(super) fn is_waiting(&self) -> bool {
        self.device.as_ref().err().is_some_and(|why| why != ADMIN_DOWN)
    }
}

/// Whether a port that stays needs another device, or another try at its own.
fn needs_another_device(has: &PortRuntime, wants: &PortSpec) -> bool {
    let device = &wants.attachment.device;
    // Guests' frames come in as many buffers as they need.
    let by_mtu = !matches!(has.spec, DeviceSpec::VhostUser { .. });
    has.device.is_err()
        || has.spec != *device
        || (by_mtu && crate::device::other_device(&has.spec, has.mtu, wants.policy.mtu.get()))
}
