//! Applying a transaction: whole or not at all.
//!
//! 1. Everything is parsed and put into a copy of the topology; the first thing that does not
//!    fit refuses the transaction, and nothing has happened. Lists are compiled before that, while nobody waits for
//!    the switch.
//! 2. Devices are opened. Those that take over the resource of a port that goes are opened after
//!    it is closed; if that fails, the old one is opened again.
//! 3. The workers get the means to send by the new ports, the new snapshot, and then the new
//!    receive queues. Ports that go lose their receive queues first, then their place in the
//!    snapshot, then their means to send; then the device is closed.

use std::collections::{BTreeMap, BTreeSet};

use dunlin_dataplane_api::v1;
use dunlin_dpdk::{DpdkError, eal::prefer_hugepages};
use dunlin_engine::{
    PortIdx, SegmentId, Snapshot,
    acl::Acl,
    mac_table::Key,
    topology::{PortSpec, Topology, TopologyError},
    tunnel::Role,
};

use super::{PortSide, Switch};
use crate::{
    device::{Device, Opened, clean_up},
    events::port_event,
    queues::RxKind,
    spec::{self, BadField, DeviceSpec, Settings, StaticSpec, VtepConf},
    worker::Command,
};

/// Why a transaction was refused.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// A field can't be what it is.
    #[error(transparent)]
    Field(#[from] BadField),
    /// It does not fit the rest.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// A device could not be opened.
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
}

struct WantedPort {
    spec: PortSpec,
    device: DeviceSpec,
    pinned: Vec<usize>,
    steered: bool,
}

/// Name of a port, a receive queue of it.
type NewRx = (String, RxKind);

/// A transaction, understood.
struct Plan {
    topology: Topology,
    set: BTreeMap<String, WantedPort>,
    gone: Vec<String>,
    statics: BTreeMap<StaticSpec, String>,
    vteps: BTreeMap<String, VtepConf>,
    acl_rules: BTreeMap<String, Vec<String>>,
    settings: Settings,
}

/// The lists that `t` sets, compiled for so many workers.
pub fn compile(t: &v1::Transaction, workers: usize) -> Result<Vec<Acl>, Refused> {
    Ok(t.set_acls.iter().map(|a| spec::acl(a, workers)).collect::<Result<_, BadField>>()?)
}

impl Switch {
    /// Applies `t`, whose lists these are, whole or not at all. Ports whose device could not be opened are told if the
    /// transaction tolerates that.
    pub fn apply(&mut self, t: &v1::Transaction, acls: Vec<Acl>) -> Result<v1::Applied, Refused> {
        let moved = |p: &PortSide| p.device.as_ref().ok().and_then(Device::moved_tap);
        let before: Vec<_> = self.ports.values().map(|p| (p.spec.clone(), moved(p))).collect();
        let applied = self.apply_keeping_interfaces(t, acls)?;
        let used: Vec<&DeviceSpec> = self.ports.values().map(|p| &p.spec).collect();
        for (spec, moved) in before.into_iter().filter(|(s, _)| !used.contains(&s)) {
            match moved {
                Some(tap) => tap.remove(),
                None => clean_up(&spec),
            }
        }
        Ok(applied)
    }

    pub(super) fn apply_keeping_interfaces(
        &mut self,
        t: &v1::Transaction,
        acls: Vec<Acl>,
    ) -> Result<v1::Applied, Refused> {
        let plan = self.plan(t, acls)?;
        let mut opened = BTreeMap::new();
        let mut errors = Vec::new();
        let reopen = self.ports_to_reopen(&plan);
        let closing: Vec<String> = plan.gone.iter().chain(&reopen).cloned().collect();
        // First what needs nothing closed: if that fails, nobody has noticed anything.
        let (later, first): (Vec<_>, Vec<_>) =
            self.ports_to_open(&plan, &reopen).into_iter().partition(|n| self.takes_over(&plan, n, &closing));
        for name in &first {
            if let Err(e) = self.open_wanted(&plan, name, t.tolerate_device_errors, &mut opened, &mut errors) {
                self.close_opened(&plan, opened);
                return Err(e);
            }
        }
        let before: Vec<(String, DeviceSpec, u32)> =
            closing.iter().map(|n| (n.clone(), self.ports[n].spec.clone(), self.ports[n].mtu)).collect();
        if !later.is_empty() {
            closing.iter().for_each(|n| self.close_device(n));
            for name in &later {
                if let Err(e) = self.open_wanted(&plan, name, t.tolerate_device_errors, &mut opened, &mut errors) {
                    self.close_opened(&plan, opened);
                    self.restore(before);
                    return Err(e);
                }
            }
        }
        self.commit(t, plan, &closing, opened)?;
        Ok(v1::Applied { device_errors: errors })
    }

    /// Understands a transaction against the current topology, changing nothing.
    fn plan(&self, t: &v1::Transaction, acls: Vec<Acl>) -> Result<Plan, Refused> {
        let mut topology = self.topology.clone();
        let mut set = BTreeMap::new();
        for p in &t.set_ports {
            let (spec, device) = spec::port(p)?;
            let pinned = spec::pinned(p, &self.options.cores)?;
            if set.insert(p.name.clone(), WantedPort { spec, device, pinned, steered: p.vmdq }).is_some() {
                return Err(Refused::Inconsistent(format!("port '{}': set twice in one transaction", p.name)));
            }
        }
        let bridges: BTreeMap<String, _> =
            t.set_bridges.iter().map(|b| Ok((b.name.clone(), spec::bridge(b)?))).collect::<Result<_, BadField>>()?;
        let mut gone: BTreeSet<String> =
            t.delete_ports.iter().filter(|n| self.ports.contains_key(*n)).cloned().collect();
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
        let acl_rules = self.plan_acls(t, acls, &mut topology)?;
        let vteps = self.plan_overlay(t, &mut topology)?;
        for (name, p) in &set {
            topology.set_port(name, p.spec.clone())?;
        }
        bridges_gone.iter().try_for_each(|b| topology.remove_bridge(b))?;
        // Two ports on one interface would be a loop, two on one socket would be one guest's.
        let mut resources: BTreeMap<&str, &str> = BTreeMap::new();
        let kept = self.ports.iter().filter(|(n, _)| !gone.contains(*n) && !set.contains_key(*n));
        let all = kept.map(|(n, p)| (n, &p.spec)).chain(set.iter().map(|(n, w)| (n, &w.device)));
        for (name, device) in all {
            if let Some(other) = resources.insert(resource(device), name) {
                let why = format!("port '{name}': '{}' belongs to port '{other}' already", resource(device));
                return Err(Refused::Inconsistent(why));
            }
        }
        let statics = self.plan_statics(t, &topology)?;
        let settings = t.settings.as_ref().map(spec::settings).transpose()?.unwrap_or(self.settings);
        // The numbering of VLANs can fail too: find out now.
        topology.clone().snapshot()?;
        Ok(Plan { topology, set, gone: gone.into_iter().collect(), statics, vteps, acl_rules, settings })
    }

    /// Puts the lists that are set into the topology; all rules there are then, as written.
    fn plan_acls(
        &self,
        t: &v1::Transaction,
        acls: Vec<Acl>,
        topology: &mut Topology,
    ) -> Result<BTreeMap<String, Vec<String>>, Refused> {
        let mut rules = self.acl_rules.clone();
        let set: BTreeSet<&str> = t.set_acls.iter().map(|a| a.name.as_str()).collect();
        let gone = |n: &String| t.delete_acls.contains(n) || (t.replace && !set.contains(n.as_str()));
        for name in self.acl_rules.keys().filter(|n| gone(n)) {
            topology.remove_acl(name);
            rules.remove(name);
        }
        for (a, compiled) in t.set_acls.iter().zip(acls) {
            topology.set_acl(compiled);
            rules.insert(a.name.clone(), a.rules.clone());
        }
        if let Some(s) = &t.sessions {
            let capacity = self.sessions.statistics().capacity as u32;
            topology.set_sessions(spec::sessions(s, capacity)?);
        }
        Ok(rules)
    }

    /// Large pages for the tables of connections, once there is a rule that needs them: before, they take no
    /// memory.
    fn prepare_sessions(&mut self) {
        if !self.sessions_prepared && self.topology.acls().any(|a| a.stateful) {
            self.sessions_prepared = true;
            self.sessions.memory().for_each(prefer_hugepages);
        }
    }

    /// After workers have passed on: what old versions of lists counted goes on in the new ones.
    fn follow_acls(&mut self, before: &Topology, rules: BTreeMap<String, Vec<String>>) {
        let now: BTreeMap<&str, *const Acl> =
            self.topology.acls().map(|a| (&*a.name, std::sync::Arc::as_ptr(a))).collect();
        let old = std::mem::replace(&mut self.acl_rules, rules);
        for a in before.acls().filter(|a| now.get(&*a.name) != Some(&std::sync::Arc::as_ptr(a))) {
            let texts = old.get(&*a.name).map_or(&[][..], Vec::as_slice);
            self.acl_base.follow(a, texts, self.acl_rules.get(&*a.name).map(Vec::as_slice));
        }
    }

    /// Puts networks and VTEPs into the topology; all VTEPs there are then.
    fn plan_overlay(
        &self,
        t: &v1::Transaction,
        topology: &mut Topology,
    ) -> Result<BTreeMap<String, VtepConf>, Refused> {
        let mut vteps = self.vteps.clone();
        let set: BTreeSet<&String> = t.set_vteps.iter().map(|v| &v.name).collect();
        let networks: BTreeSet<&str> = t.set_networks.iter().map(|n| n.name.as_str()).collect();
        let gone = |name: &str, named: &[String], set: bool| named.iter().any(|n| n == name) || (t.replace && !set);
        let old: Vec<String> = topology.networks().map(|(n, _)| n.to_owned()).collect();
        for n in old.iter().filter(|n| gone(n, &t.delete_networks, networks.contains(n.as_str()))) {
            topology.remove_network(n);
        }
        for name in self.vteps.keys().filter(|n| gone(n, &t.delete_vteps, set.contains(n))) {
            topology.remove_vtep(name);
            vteps.remove(name);
        }
        for v in &t.set_vteps {
            let conf = spec::vtep(v)?;
            topology.set_vtep(&v.name, conf.spec.clone())?;
            vteps.insert(v.name.clone(), conf);
        }
        for n in &t.set_networks {
            topology.set_network(&n.name, spec::network(n)?);
        }
        topology.number_remotes()?;
        Ok(vteps)
    }

    fn plan_statics(&self, t: &v1::Transaction, topology: &Topology) -> Result<BTreeMap<StaticSpec, String>, Refused> {
        let mut statics = if t.replace { BTreeMap::new() } else { self.statics.clone() };
        for m in &t.delete_macs {
            statics.remove(&spec::static_mac(m)?.0);
        }
        for m in &t.set_macs {
            let (key, port) = spec::static_mac(m)?;
            let refused = |why: String| Err(Refused::Inconsistent(format!("{key}: {why}")));
            match key.place(topology).map(|(bridge, vid)| topology.carries(&port, bridge, vid)) {
                Some(Some(true)) => drop(statics.insert(key, port)),
                Some(Some(false)) => return refused(format!("port '{port}' does not carry that")),
                Some(None) => return refused(format!("there is no port '{port}'")),
                None => return refused("there is no network of that name".into()),
            }
        }
        // What a port that goes had goes with it; one that leaves the VLAN must be told of first.
        statics.retain(|_, port| topology.number_of(port).is_some());
        for (key, port) in &statics {
            let carried = key.place(topology).and_then(|(bridge, vid)| topology.carries(port, bridge, vid));
            if carried != Some(true) {
                let why = format!("port '{port}': the static {key} would be left over; delete it first");
                return Err(Refused::Inconsistent(why));
            }
        }
        Ok(statics)
    }

    /// Ports that stay but need another device, or another try at theirs.
    fn ports_to_reopen(&self, plan: &Plan) -> Vec<String> {
        let other = |has: &PortSide, want: &WantedPort| {
            // Guests' frames come in as many buffers as they need.
            let by_mtu = !matches!(has.spec, DeviceSpec::VhostUser { .. });
            has.device.is_err()
                || has.spec != want.device
                || (by_mtu && crate::device::other_device(&has.spec, has.mtu, want.spec.mtu))
        };
        plan.set
            .iter()
            .filter(|(n, w)| self.ports.get(*n).is_some_and(|p| other(p, w)))
            .map(|(n, _)| n.clone())
            .collect()
    }

    fn ports_to_open(&self, plan: &Plan, reopen: &[String]) -> Vec<String> {
        plan.set.keys().filter(|n| !self.ports.contains_key(*n) || reopen.contains(n)).cloned().collect()
    }

    /// Whether the port wants what another, or it itself, has to let go of first.
    fn takes_over(&self, plan: &Plan, name: &str, closing: &[String]) -> bool {
        closing.iter().any(|c| resource(&self.ports[c].spec) == resource(&plan.set[name].device))
    }

    fn open_wanted(
        &mut self,
        plan: &Plan,
        name: &str,
        tolerate: bool,
        opened: &mut BTreeMap<String, Result<Opened, String>>,
        errors: &mut Vec<v1::PortError>,
    ) -> Result<(), Refused> {
        let want = &plan.set[name];
        // A port whose device is not there can have its policy changed all the same.
        let waiting = self.ports.get(name).is_some_and(|p| p.device.is_err() && p.spec == want.device);
        let tolerate = tolerate || waiting;
        match self.open(&want.device, want.spec.mtu) {
            Ok(o) => drop(opened.insert(name.to_owned(), Ok(o))),
            Err(error) if tolerate => {
                errors.push(v1::PortError { port: name.to_owned(), error: error.to_string() });
                opened.insert(name.to_owned(), Err(error.to_string()));
            }
            Err(error) => return Err(Refused::Device { port: name.to_owned(), error }),
        }
        Ok(())
    }

    fn close_opened(&mut self, plan: &Plan, opened: BTreeMap<String, Result<Opened, String>>) {
        for (name, o) in opened {
            let Ok(Opened { device, rx, tx, made_interface, .. }) = o else { continue };
            drop((rx, tx));
            device.close(&self.domain);
            if made_interface {
                clean_up(&plan.set[&name].device);
            }
        }
    }

    /// Takes a port's device out of service and closes it. Its policy stays.
    pub(super) fn close_device(&mut self, name: &str) {
        let idx = self.ports[name].idx;
        let rx = self.take_rx(name, idx);
        if self.topology.set_up(name, false)
            && let Err(e) = self.publish()
        {
            // The same topology was published before with one port more up.
            tracing::error!("taking port '{name}' out of service: {e}");
        }
        self.take_tx(idx);
        drop(rx);
        let port = self.ports.get_mut(name).expect("the caller's name");
        port.spare_rx.clear();
        port.up = false;
        if let Ok(device) = std::mem::replace(&mut port.device, Err("closed".into())) {
            device.close(&self.domain);
        }
        self.macs.flush(idx.owns());
    }

    /// Opens again what was closed for a transaction that then failed.
    fn restore(&mut self, closed: Vec<(String, DeviceSpec, u32)>) {
        for (name, spec, mtu) in closed {
            let result = self.open(&spec, mtu).map_err(|e| e.to_string());
            if let Err(e) = &result {
                tracing::error!("port '{name}' was closed for a change that failed, and does not open again: {e}");
            }
            let rx = self.install(&name, result);
            self.give_all_rx(rx);
        }
        self.follow_owners();
        self.follow_guests();
        self.follow_links();
    }

    /// Puts a device, or the reason there is none, into service for a port that exists. Its receive
    /// queues are for [`Switch::give_all_rx`], once the port's policy is published.
    #[must_use]
    fn install(&mut self, name: &str, opened: Result<Opened, String>) -> Vec<NewRx> {
        let port = self.ports.get_mut(name).expect("the caller's name");
        let idx = port.idx;
        match opened {
            Ok(Opened { device, mut rx, tx, complete_checksums, .. }) => {
                // A guest's further queues follow when it enables them.
                let now = if device.guest().is_some() { 1 } else { rx.len() };
                port.spare_rx = rx.split_off(now.min(rx.len()));
                port.device = Ok(device);
                port.complete_checksums = complete_checksums;
                self.give_tx(idx, tx);
                rx.into_iter().map(|queue| (name.to_owned(), queue)).collect()
            }
            Err(why) => {
                port.device = Err(why);
                Vec::new()
            }
        }
    }

    fn give_all_rx(&mut self, rx: Vec<NewRx>) {
        for (name, queue) in rx {
            self.give_rx(&name, queue);
        }
    }

    /// From here nothing is refused any more.
    fn commit(
        &mut self,
        t: &v1::Transaction,
        plan: Plan,
        closing: &[String],
        mut opened: BTreeMap<String, Result<Opened, String>>,
    ) -> Result<(), Refused> {
        for name in closing {
            if self.ports[name].device.is_ok() {
                self.close_device(name);
            }
        }
        let ups: Vec<String> = self.ports.iter().filter(|(_, p)| p.up).map(|(n, _)| n.clone()).collect();
        let old_topology = std::mem::replace(&mut self.topology, plan.topology);
        for name in self.ports.keys() {
            self.topology.set_up(name, ups.contains(name));
        }
        let mut gone = Vec::new();
        for name in &plan.gone {
            if let Some(p) = self.ports.remove(name) {
                gone.push(p);
                self.events.send(port_event(name, v1::port_event::Kind::Removed));
            }
        }
        let mut rx = Vec::new();
        for (name, want) in plan.set {
            rx.extend(self.set_port(&name, want, opened.remove(&name)));
        }
        for p in &t.set_ports {
            let now_s = self.clock.now().s;
            let leases = p.security.iter().flat_map(spec::leases);
            leases.for_each(|(address, left)| self.topology.remember(&p.name, address, now_s.saturating_add(left)));
        }
        self.count_overlay();
        self.prepare_sessions();
        let before = self.snapshot.clone();
        self.publish()?;
        // Nobody counts for them any more.
        for p in gone {
            let counted = self.totals(p.idx).since(&p.base);
            add_totals(&mut self.removed, &counted);
        }
        self.give_all_rx(rx);
        self.forget_retired();
        self.flush_departed(&before);
        self.flush_untracked(&before);
        drop(before);
        (self.statics, self.vteps) = (plan.statics, plan.vteps);
        self.follow_acls(&old_topology, plan.acl_rules);
        self.follow_entries();
        self.end_overlay_counts();
        self.install_bindings(&t.set_networks);
        self.follow_vteps();
        if self.settings.idle != plan.settings.idle {
            self.workers.iter().for_each(|w| w.shared.tell(None, [Command::SetIdle(plan.settings.idle)]));
        }
        self.settings = plan.settings;
        self.follow_owners();
        self.follow_guests();
        self.generation = t.generation;
        self.follow_links();
        Ok(())
    }

    fn set_port(&mut self, name: &str, want: WantedPort, opened: Option<Result<Opened, String>>) -> Vec<NewRx> {
        let (idx, placed) = self.topology.port(name).expect("planned");
        let bridge = placed.bridge.clone();
        let kind = match self.ports.get_mut(name) {
            Some(p) => {
                if p.mtu != want.spec.mtu
                    && opened.is_none()
                    && let Ok(device) = &p.device
                    && let Err(e) = device.set_mtu(want.spec.mtu)
                {
                    tracing::warn!("port '{name}': {e}; the switch keeps to the new MTU, the device does not");
                }
                (p.mtu, p.bridge, p.spec, p.pinned) = (want.spec.mtu, bridge, want.device, want.pinned);
                p.steered = want.steered;
                self.follow_pins(name);
                v1::port_event::Kind::Changed
            }
            None => {
                let side = PortSide {
                    idx,
                    bridge,
                    mtu: want.spec.mtu,
                    spec: want.device,
                    device: Err("not opened".into()),
                    spare_rx: Vec::new(),
                    complete_checksums: false,
                    pinned: want.pinned,
                    steered: want.steered,
                    up: false,
                    guest: (false, false),
                    base: self.totals(idx),
                };
                self.ports.insert(name.to_owned(), side);
                v1::port_event::Kind::Added
            }
        };
        // A device that is tried again and again is no news each time.
        if kind == v1::port_event::Kind::Added || !matches!(opened, Some(Err(_))) {
            self.events.send(port_event(name, kind));
        }
        opened.map_or_else(Vec::new, |result| self.install(name, result))
    }

    /// Frees the numbers of what is gone, with its addresses.
    fn forget_retired(&mut self) {
        let retired = self.topology.retired();
        if retired.ports.is_empty() && retired.segments.is_empty() {
            return;
        }
        let ports: BTreeSet<PortIdx> = retired.ports.iter().copied().collect();
        let segments: BTreeSet<SegmentId> = retired.segments.iter().copied().collect();
        self.macs.purge(|e| ports.contains(&e.port) || segments.contains(&e.segment));
        self.sessions.flush(self.topology.sessions(), self.clock.now().s, |s| {
            ports.contains(&s.zone.port) || segments.contains(&s.zone.segment)
        });
        self.topology.reclaim(retired);
    }

    /// Forgets addresses at ports that don't carry their segment any more, and those that were learned from
    /// tunnels in a segment that is another network's now, or has another VNI.
    fn flush_departed(&self, before: &Snapshot) {
        let now = &self.snapshot;
        self.macs.flush(|e| {
            let (Some(segment), Some(port)) = (now.segment(e.segment), now.port(e.port)) else { return true };
            let renamed =
                || before.segment(e.segment).is_some_and(|b| (&b.network, b.vni) != (&segment.network, segment.vni));
            !port.carries(e.segment, segment) || (matches!(port.role, Role::Remote(_)) && renamed())
        });
    }

    /// Forgets connections of ports that are not tracked any more, or that left the segment: their windows went
    /// on unseen.
    fn flush_untracked(&self, before: &Snapshot) {
        let now = &self.snapshot;
        let tracks = |s: &Snapshot, idx| s.port(idx).is_some_and(|p| p.tracks());
        let moved = |p: &dunlin_engine::snapshot::Port| match now.port(p.idx) {
            Some(n) => !n.tracks() || n.untagged.1 != p.untagged.1 || n.tagged != p.tagged,
            None => false,
        };
        if !before.ports().any(|p| tracks(before, p.idx) && moved(p)) {
            return;
        }
        self.sessions.flush(self.topology.sessions(), self.clock.now().s, |s| {
            let carried = || now.segment(s.zone.segment).zip(now.port(s.zone.port));
            !tracks(now, s.zone.port) || !carried().is_some_and(|(x, p)| p.carries(s.zone.segment, x))
        });
    }

    /// Brings the entries that are not learned up to date: the operator's, and the VTEPs' own.
    fn follow_entries(&mut self) {
        let mut wanted = BTreeMap::new();
        for (s, port) in &self.statics {
            let place = s.place(&self.topology).and_then(|(bridge, vid)| self.topology.segment(bridge, vid));
            if let (Some(segment), Some(idx)) = (place, self.topology.number_of(port)) {
                wanted.insert(Key::new(s.mac, segment), idx);
            }
        }
        for v in self.topology.vteps() {
            if let Some(underlay) = self.topology.segment(v.bridge, v.spec.vid) {
                wanted.insert(Key::new(v.spec.mac, underlay), v.idx);
            }
        }
        for key in self.entries.keys().filter(|k| !wanted.contains_key(k)) {
            self.macs.remove(*key);
        }
        for (key, idx) in &wanted {
            if !self.macs.set_static(*key, *idx) {
                tracing::warn!("mac '{}': the mac table is full of static entries", key.mac());
            }
        }
        self.entries = wanted;
    }
}

pub(super) fn add_totals(sum: &mut dunlin_engine::counters::PortTotals, t: &dunlin_engine::counters::PortTotals) {
    sum.rx_frames += t.rx_frames;
    sum.rx_bytes += t.rx_bytes;
    sum.tx_frames += t.tx_frames;
    sum.tx_bytes += t.tx_bytes;
    sum.clones += t.clones;
    sum.drops.iter_mut().zip(t.drops).for_each(|(s, d)| *s += d);
}

/// What two devices can't have at the same time.
fn resource(d: &DeviceSpec) -> &str {
    match d {
        DeviceSpec::Nic { device, .. } => device.split(',').next().unwrap_or(device),
        DeviceSpec::Host { interface, .. } | DeviceSpec::Tap { interface } => interface,
        DeviceSpec::VhostUser { socket, .. } => socket,
    }
}
