//! Planning a transaction: everything is parsed and put into a copy of the topology, and nothing has happened yet.
//!
//! | what does not fit | a change by the operator | a restore, or another try (`per_object`) |
//! |---|---|---|
//! | a field, a reference, a device that can't be opened, an MTU that a device refuses | refuses the transaction | that object is a [`v1::Problem`]; the rest is applied |
//! | a core that is no worker here | refuses the transaction | the port runs on the other cores named, else on any |
//! | a device that is missing already | its port's policy changes | the same |
//! | a static address without room in the mac table | a problem | the same |
//! | another base generation, a sum of segments or numbers that is too large | refuses the transaction | the same |
//!
//! An object that can't be in force is not in force at all: what it was before does not stay.

use std::collections::{BTreeMap, BTreeSet};

use dunlin_dataplane_api::v1;
use dunlin_dpdk::DpdkError;
use dunlin_engine::{
    acl::Acl,
    topology::{PortSpec, Topology, TopologyError},
};

use super::{PortSide, Switch};
use crate::spec::{self, BadField, DeviceSpec, Settings, StaticSpec, VtepConf};

/// Why a transaction was refused.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// A field can't be what it is.
    #[error(transparent)]
    Field(#[from] BadField),
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
    /// The same object twice, or a port that is not there.
    #[error("{0}")]
    Inconsistent(String),
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

    /// The value, or nothing where an object may be left out and was noted.
    pub fn take<T, E: Into<Refused>>(
        &mut self,
        kind: &str,
        name: &str,
        result: Result<T, E>,
    ) -> Result<Option<T>, Refused> {
        match result.map_err(Into::into) {
            Ok(value) => Ok(Some(value)),
            Err(e) if self.per_object => {
                let reason = e.to_string();
                let reason = reason.strip_prefix(&format!("{kind} '{name}': ")).unwrap_or(&reason);
                self.note(kind, name, "", reason);
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    pub fn note(&mut self, kind: &str, name: &str, field: &str, reason: impl Into<String>) {
        let (kind, name, field) = (kind.to_owned(), name.to_owned(), field.to_owned());
        self.list.push(v1::Problem { kind, name, field, reason: reason.into() });
    }

    pub fn per_object(&self) -> bool {
        self.per_object
    }

    pub fn into_list(self) -> Vec<v1::Problem> {
        self.list
    }
}

/// A port that is set.
pub(super) struct WantedPort {
    pub spec: PortSpec,
    pub device: DeviceSpec,
    pub pinned: Vec<usize>,
    pub steered: bool,
    /// It is there and needs another device, or another try at its own.
    pub reopen: bool,
    /// It is to have no device.
    pub admin_down: bool,
    /// Its device was not there before either: its policy changes all the same.
    pub waiting: bool,
}

/// A transaction, understood.
pub(super) struct Plan {
    pub topology: Topology,
    pub set: BTreeMap<String, WantedPort>,
    pub gone: Vec<String>,
    pub statics: BTreeMap<StaticSpec, String>,
    pub vteps: BTreeMap<String, VtepConf>,
    pub acl_rules: BTreeMap<String, Vec<String>>,
    pub settings: Settings,
    /// Running devices that get another MTU: it, and the one before.
    pub mtus: Vec<(String, u32, u32)>,
}

/// The lists that a transaction sets, compiled; nothing in the place of one that was left out.
pub(super) type Lists = Vec<Option<Acl>>;

/// Compiles the lists of `t` for so many workers. May take seconds: not to be called under the switch's lock.
pub(super) fn compile(t: &v1::Transaction, workers: usize, problems: &mut Problems) -> Result<Lists, Refused> {
    let mut sets = spec::Sets::new();
    for s in &t.sets {
        if let Some(prefixes) = problems.take("set", &s.name, spec::set(s))? {
            sets.insert(s.name.clone(), prefixes);
        }
    }
    t.set_acls.iter().map(|a| problems.take("acl", &a.name, spec::acl(a, &sets, workers))).collect()
}

impl Switch {
    /// Understands a transaction against the current topology, changing nothing.
    pub(super) fn plan(&self, t: &v1::Transaction, lists: Lists, problems: &mut Problems) -> Result<Plan, Refused> {
        let mut topology = self.topology.clone();
        let mut set = self.plan_ports(t, problems)?;
        let mut bridges = BTreeMap::new();
        for b in &t.set_bridges {
            if let Some(spec) = problems.take("bridge", &b.name, spec::bridge(b))? {
                bridges.insert(b.name.clone(), spec);
            }
        }
        let left_out = t.set_ports.iter().map(|p| &p.name).filter(|n| !set.contains_key(*n));
        let named = t.delete_ports.iter().chain(left_out).filter(|n| self.ports.contains_key(*n));
        let mut gone: BTreeSet<String> = named.cloned().collect();
        let mut bridges_gone: BTreeSet<String> = t.delete_bridges.iter().cloned().collect();
        if t.replace {
            gone.extend(self.ports.keys().filter(|n| !set.contains_key(*n)).cloned());
            let names: Vec<String> = topology.bridge_names().map(str::to_owned).collect();
            bridges_gone.extend(names.into_iter().filter(|n| !bridges.contains_key(n)));
        }
        if let Some(both) = gone.iter().find(|n| set.contains_key(*n)) {
            return Err(Refused::Inconsistent(format!("port '{both}': set and deleted in one transaction")));
        }
        for name in &gone {
            topology.remove_port(name);
        }
        bridges.into_iter().for_each(|(name, spec)| topology.set_bridge(&name, spec));
        let acl_rules = self.plan_acls(t, lists, &mut topology, problems)?;
        let mut vteps = self.plan_overlay(t, &mut topology, problems)?;
        self.one_port_a_device(&gone, &mut set, problems)?;
        let mut left_out = Vec::new();
        for (name, p) in &set {
            if problems.take("port", name, topology.set_port(name, p.spec.clone()))?.is_none() {
                left_out.push(name.clone());
            }
        }
        for name in left_out {
            self.leave_out(&name, &mut topology, &mut set, &mut gone);
        }
        // Whether it all fits together, the numbering of VLANs included, is known when a snapshot is made of it.
        while let Err(e) = topology.clone().snapshot() {
            let Some((kind, name)) = e.object().filter(|_| problems.per_object()) else { return Err(e.into()) };
            problems.take("", "", Err::<(), _>(e))?;
            let noted = problems.list.last_mut().expect("noted above");
            noted.reason = noted.reason.strip_prefix(&format!("{kind} '{name}': ")).unwrap_or(&noted.reason).to_owned();
            (noted.kind, noted.name) = (kind.to_owned(), name.clone());
            match kind {
                "port" => self.leave_out(&name, &mut topology, &mut set, &mut gone),
                "network" => topology.remove_network(&name),
                _ => {
                    topology.remove_vtep(&name);
                    vteps.remove(&name);
                }
            }
        }
        bridges_gone.iter().try_for_each(|b| topology.remove_bridge(b))?;
        let statics = self.plan_statics(t, &topology, problems)?;
        let mut settings = self.settings;
        if let Some(s) = &t.settings {
            settings = problems.take("dataplane", "settings", spec::settings(s))?.unwrap_or(settings);
        }
        let kept = |n: &&String, w: &WantedPort| self.ports.get(*n).is_some_and(|p| p.device.is_ok() && !w.reopen);
        let of = |n: &String, w: &WantedPort| (n.clone(), w.spec.mtu, self.ports[n].mtu);
        let running = set.iter().filter(|(n, w)| kept(n, w)).map(|(n, w)| of(n, w));
        let mtus = running.filter(|(_, now, before)| now != before).collect();
        Ok(Plan { topology, set, gone: gone.into_iter().collect(), statics, vteps, acl_rules, settings, mtus })
    }

    fn leave_out(
        &self,
        port: &str,
        topology: &mut Topology,
        set: &mut BTreeMap<String, WantedPort>,
        gone: &mut BTreeSet<String>,
    ) {
        topology.remove_port(port);
        set.remove(port);
        if self.ports.contains_key(port) {
            gone.insert(port.to_owned());
        }
    }

    fn plan_ports(
        &self,
        t: &v1::Transaction,
        problems: &mut Problems,
    ) -> Result<BTreeMap<String, WantedPort>, Refused> {
        let mut set = BTreeMap::new();
        for p in &t.set_ports {
            let Some((spec, device)) = problems.take("port", &p.name, spec::port(p))? else { continue };
            let cores = &self.options.cores;
            let pinned = match spec::pinned(p, cores) {
                Ok(pinned) => pinned,
                Err(e) if problems.per_object() => {
                    problems.note("port", &p.name, "workers", e.why());
                    p.workers.iter().map(|c| *c as usize).filter(|c| cores.contains(c)).collect()
                }
                Err(e) => return Err(e.into()),
            };
            let there = self.ports.get(&p.name);
            let admin_down = p.admin_down;
            let waiting = there.is_some_and(|p| p.is_waiting() && p.spec == device);
            let reopen = there.is_some_and(|p| match admin_down {
                true => p.device.as_ref().err().is_none_or(|why| why != ADMIN_DOWN),
                false => needs_another_device(p, &spec, &device),
            });
            let want = WantedPort { spec, device, pinned, steered: p.vmdq, reopen, admin_down, waiting };
            if set.insert(p.name.clone(), want).is_some() {
                return Err(Refused::Inconsistent(format!("port '{}': set twice in one transaction", p.name)));
            }
        }
        Ok(set)
    }

    /// Two ports on one interface would be a loop, two on one socket would be one guest's.
    fn one_port_a_device(
        &self,
        gone: &BTreeSet<String>,
        set: &mut BTreeMap<String, WantedPort>,
        problems: &mut Problems,
    ) -> Result<(), Refused> {
        let mut resources: BTreeMap<String, &str> = BTreeMap::new();
        let kept = self.ports.iter().filter(|(n, _)| !gone.contains(*n) && !set.contains_key(*n));
        resources.extend(kept.map(|(n, p)| (resource(&p.spec).to_owned(), n.as_str())));
        let mut left_out = Vec::new();
        for (name, w) in set.iter() {
            match resources.get(resource(&w.device)) {
                Some(other) => {
                    let why = format!("port '{name}': '{}' belongs to port '{other}' already", resource(&w.device));
                    problems.take("port", name, Err::<(), _>(Refused::Inconsistent(why)))?;
                    left_out.push(name.clone());
                }
                None => drop(resources.insert(resource(&w.device).to_owned(), name)),
            }
        }
        left_out.iter().for_each(|n| drop(set.remove(n)));
        Ok(())
    }

    /// Puts the lists that are set into the topology; all rules there are then, as written.
    fn plan_acls(
        &self,
        t: &v1::Transaction,
        lists: Lists,
        topology: &mut Topology,
        problems: &mut Problems,
    ) -> Result<BTreeMap<String, Vec<String>>, Refused> {
        let mut rules = self.acl_rules.clone();
        let set: BTreeSet<&str> = t.set_acls.iter().map(|a| a.name.as_str()).collect();
        let deleted: BTreeSet<&String> = t.delete_acls.iter().collect();
        let gone = |n: &String| deleted.contains(n) || (t.replace && !set.contains(n.as_str()));
        for name in self.acl_rules.keys().filter(|n| gone(n)) {
            topology.remove_acl(name);
            rules.remove(name);
        }
        for (a, compiled) in t.set_acls.iter().zip(lists) {
            match compiled {
                Some(compiled) => {
                    topology.set_acl(compiled);
                    rules.insert(a.name.clone(), a.rules.clone());
                }
                None => {
                    topology.remove_acl(&a.name);
                    rules.remove(&a.name);
                }
            }
        }
        if let Some(s) = &t.sessions {
            let capacity = self.sessions.statistics().capacity as u32;
            if let Some(s) = problems.take("sessions", "settings", spec::sessions(s, capacity))? {
                topology.set_sessions(s);
            }
        }
        Ok(rules)
    }

    /// Puts networks and VTEPs into the topology; all VTEPs there are then.
    fn plan_overlay(
        &self,
        t: &v1::Transaction,
        topology: &mut Topology,
        problems: &mut Problems,
    ) -> Result<BTreeMap<String, VtepConf>, Refused> {
        let mut vteps = self.vteps.clone();
        let set: BTreeSet<&str> = t.set_vteps.iter().map(|v| v.name.as_str()).collect();
        let networks: BTreeSet<&str> = t.set_networks.iter().map(|n| n.name.as_str()).collect();
        let deleted = |all: &'_ [String]| all.iter().cloned().collect::<BTreeSet<String>>();
        let (networks_gone, vteps_gone) = (deleted(&t.delete_networks), deleted(&t.delete_vteps));
        let gone = |name: &str, deleted: &BTreeSet<String>, set: &BTreeSet<&str>| {
            deleted.contains(name) || (t.replace && !set.contains(name))
        };
        if t.replace || !networks_gone.is_empty() {
            let old: Vec<String> = topology.networks().map(|(n, _)| n.to_owned()).collect();
            for n in old.iter().filter(|n| gone(n, &networks_gone, &networks)) {
                topology.remove_network(n);
            }
        }
        for name in self.vteps.keys().filter(|n| gone(n, &vteps_gone, &set)) {
            topology.remove_vtep(name);
            vteps.remove(name);
        }
        for v in &t.set_vteps {
            let Some(conf) = problems.take("vtep", &v.name, spec::vtep(v))? else {
                topology.remove_vtep(&v.name);
                vteps.remove(&v.name);
                continue;
            };
            if problems.take("vtep", &v.name, topology.set_vtep(&v.name, conf.spec.clone()))?.is_some() {
                vteps.insert(v.name.clone(), conf);
            }
        }
        for n in &t.set_networks {
            match problems.take("network", &n.name, spec::network(n))? {
                Some(spec) => topology.set_network(&n.name, spec),
                None => topology.remove_network(&n.name),
            }
        }
        topology.number_remotes()?;
        Ok(vteps)
    }

    fn plan_statics(
        &self,
        t: &v1::Transaction,
        topology: &Topology,
        problems: &mut Problems,
    ) -> Result<BTreeMap<StaticSpec, String>, Refused> {
        let mut statics = if t.replace { BTreeMap::new() } else { self.statics.clone() };
        for m in &t.delete_macs {
            statics.remove(&spec::static_mac(m)?.0);
        }
        for m in &t.set_macs {
            let Some((key, port)) = problems.take("mac", &m.mac, spec::static_mac(m))? else { continue };
            let why = match key.place(topology).map(|(bridge, vid)| topology.carries(&port, bridge, vid)) {
                Some(Some(true)) => {
                    statics.insert(key, port);
                    continue;
                }
                Some(Some(false)) => format!("port '{port}' does not carry that"),
                Some(None) => format!("there is no port '{port}'"),
                None => "there is no network of that name".into(),
            };
            statics.remove(&key);
            problems.take("mac", &m.mac, Err::<(), _>(Refused::Inconsistent(format!("{key}: {why}"))))?;
        }
        // What a port that goes had goes with it; one that leaves the VLAN must be deleted first.
        statics.retain(|_, port| topology.number_of(port).is_some());
        let carried = |(key, port): (&StaticSpec, &String)| {
            key.place(topology).and_then(|(bridge, vid)| topology.carries(port, bridge, vid)) == Some(true)
        };
        let left_over: Vec<StaticSpec> = statics.iter().filter(|s| !carried(*s)).map(|(k, _)| k.clone()).collect();
        for key in left_over {
            let port = statics.remove(&key).unwrap_or_default();
            let why = format!("port '{port}': the static {key} would be left over; delete it first");
            problems.take("mac", &key.mac.to_string(), Err::<(), _>(Refused::Inconsistent(why)))?;
        }
        Ok(statics)
    }
}

impl PortSide {
    /// It has no device, though it should.
    pub(super) fn is_waiting(&self) -> bool {
        self.device.as_ref().err().is_some_and(|why| why != ADMIN_DOWN)
    }
}

/// Whether a port that stays needs another device, or another try at its own.
fn needs_another_device(has: &PortSide, spec: &PortSpec, device: &DeviceSpec) -> bool {
    // Guests' frames come in as many buffers as they need.
    let by_mtu = !matches!(has.spec, DeviceSpec::VhostUser { .. });
    has.device.is_err() || has.spec != *device || (by_mtu && crate::device::other_device(&has.spec, has.mtu, spec.mtu))
}

/// What two devices can't have at the same time.
pub(super) fn resource(d: &DeviceSpec) -> &str {
    match d {
        DeviceSpec::Nic { device, .. } => device.split(',').next().unwrap_or(device),
        DeviceSpec::Host { interface, .. } | DeviceSpec::Tap { interface } => interface,
        DeviceSpec::VhostUser { socket, .. } => socket,
    }
}
