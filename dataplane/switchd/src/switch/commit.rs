//! Putting a planned transaction into force. From here nothing is refused any more.
//!
//! The workers get the means to send by the new ports, the new snapshot, and then the new receive queues. Ports that go
//! lose their receive queues first, then their place in the snapshot, then their means to send; then the device is closed.

use std::collections::{BTreeMap, BTreeSet};

use dunlin_dataplane_api::v1;
use dunlin_dpdk::eal::prefer_hugepages;
use dunlin_engine::{
    PortIdx, SegmentId, Snapshot,
    counters::PortTotals,
    snapshot::topology::Topology,
    tables::{acl::Acl, mac::Key},
    tunnel::Role,
};
use dunlin_model::{Configuration, Kind, spec::Place, v1::object::Spec};

use super::{
    PortRuntime, Switch,
    plan::{Plan, WantedPort},
};
use crate::{
    device::Opened,
    events::port_event,
    queues::RxKind,
    worker::{Command, Idle},
};

/// The field of a static address that found no room.
const MAC_TABLE: &str = "mac_table";

/// Name of a port, a receive queue of it.
pub(super) type NewRx = (String, RxKind);

impl Switch {
    /// Puts `plan` into force, with the devices that were opened for it. `problems` is what was left out.
    pub(super) fn commit(
        &mut self,
        t: &v1::Transaction,
        plan: Plan,
        mut opened: BTreeMap<String, Result<Opened, String>>,
        problems: Vec<v1::Problem>,
    ) {
        for (name, ..) in self.closing(&plan) {
            self.close_device(&name);
        }
        let decided = plan.next.decided;
        let old_topology = std::mem::replace(&mut self.topology, plan.topology);
        let old_configuration = std::mem::replace(&mut self.configuration, plan.next.configuration);
        // Links that went up or down since the plan was made.
        for (name, p) in &self.ports {
            self.topology.set_up(name, p.up);
            plan.snapshot.set_link(p.idx, p.up);
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
        let now_s = self.clock.now().s;
        for (port, l) in t.ports.iter().flat_map(|p| p.leases.iter().map(move |l| (&p.name, l))) {
            if let Ok(address) = l.address.parse() {
                self.topology.remember(port, address, now_s.saturating_add(l.left_s));
            }
        }
        self.count_overlay();
        self.prepare_sessions();
        let before = self.snapshot.clone();
        self.publish(plan.snapshot);
        // No worker counts for them any more.
        for p in gone {
            let counted = self.totals(p.idx).since(&p.base);
            add_totals(&mut self.removed, &counted);
        }
        self.give_all_rx(rx);
        self.forget_retired();
        self.flush_departed(&before);
        self.flush_untracked(&before);
        drop(before);
        self.follow_acls(&old_topology, &old_configuration);
        let objects = self.configuration.objects();
        let stays = |p: &v1::Problem| {
            let key = Kind::from_word(&p.kind).map(|kind| (kind, p.name.clone()));
            key.is_some_and(|k| !decided.contains(&k) && (!t.replace || objects.get(k.0, &k.1).is_some()))
        };
        self.problems.retain(stays);
        self.problems.extend(problems);
        self.follow_entries();
        self.end_overlay_counts();
        self.follow_vteps();
        let max_sleep = self.configuration.resolved().dataplane.max_sleep;
        if old_configuration.resolved().dataplane.max_sleep != max_sleep {
            self.workers.iter().for_each(|w| w.shared.post(None, [Command::SetIdle(Idle { max_sleep })]));
        }
        self.follow_owners();
        self.follow_guests();
        self.generation = t.generation;
        self.sync_links(true);
    }

    fn set_port(&mut self, name: &str, want: WantedPort, opened: Option<Result<Opened, String>>) -> Vec<NewRx> {
        let (idx, _) = self.topology.port(name).expect("planned");
        let kind = match self.ports.get_mut(name) {
            Some(p) => {
                (p.mtu, p.spec, p.pinned) = (want.mtu(), want.device().clone(), want.pinned);
                p.steered = want.spec.attachment.vmdq;
                self.follow_pins(name);
                v1::port_event::Kind::Changed
            }
            None => {
                let side = PortRuntime {
                    idx,
                    mtu: want.mtu(),
                    spec: want.device().clone(),
                    device: Err("not opened".into()),
                    spare_rx: Vec::new(),
                    complete_checksums: false,
                    pinned: want.pinned,
                    steered: want.spec.attachment.vmdq,
                    up: false,
                    interface_mtu: None,
                    flaps: Default::default(),
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
        let mut names = BTreeMap::new();
        for (name, s) in &self.configuration.resolved().macs {
            let place = match &s.place {
                Place::Network(network) => self.topology.network_place(network),
                Place::Vlan(bridge, vid) => Some((bridge.as_str(), *vid)),
            };
            let segment = place.and_then(|(bridge, vid)| self.topology.segment(bridge, vid));
            if let (Some(segment), Some(idx)) = (segment, self.topology.number_of(&s.port)) {
                wanted.insert(Key::new(s.mac, segment), idx);
                names.insert(Key::new(s.mac, segment), name);
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
        self.problems.retain(|p| p.field != MAC_TABLE);
        for (key, idx) in &wanted {
            if !self.macs.set_static(*key, *idx) {
                let reason = "no room: the mac table is full of static entries (dunlin-dataplane --mac-table-size)";
                self.problems.push(v1::Problem {
                    kind: "mac".into(),
                    name: names.get(key).map_or_else(|| key.mac().to_string(), |n| (*n).clone()),
                    field: MAC_TABLE.into(),
                    reason: reason.into(),
                });
            }
        }
        self.entries = wanted;
    }

    /// Takes a port's device out of service and closes it. Its policy stays.
    pub(super) fn close_device(&mut self, name: &str) {
        let idx = self.ports[name].idx;
        let rx = self.take_rx(name, idx);
        if self.topology.set_up(name, false) {
            self.snapshot.set_link(idx, false);
        }
        self.take_tx(idx);
        drop(rx);
        let port = self.ports.get_mut(name).expect("the caller's name");
        port.spare_rx.clear();
        port.up = false;
        if let Ok(device) = std::mem::replace(&mut port.device, Err("closed".into())) {
            device.close();
        }
        self.macs.flush(idx.owns());
    }

    /// Puts a device, or the reason there is none, into service for a port that exists. Its receive
    /// queues are for [`Switch::give_all_rx`], once the port's policy is published.
    #[must_use]
    pub(super) fn install(&mut self, name: &str, opened: Result<Opened, String>) -> Vec<NewRx> {
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

    pub(super) fn give_all_rx(&mut self, rx: Vec<NewRx>) {
        for (name, queue) in rx {
            self.give_rx(&name, queue);
        }
    }

    /// Large pages for the tables of connections, once there is a rule that needs them: before, they take no
    /// memory.
    fn prepare_sessions(&mut self) {
        if !self.sessions_prepared && self.topology.acls().any(|a| a.stateful) {
            self.sessions_prepared = true;
            self.sessions.memory().for_each(prefer_hugepages);
        }
    }

    /// After workers have passed on: the new versions of lists count from what the old ones counted.
    fn follow_acls(&mut self, before: &Topology, old: &Configuration) {
        let now: BTreeMap<&str, *const Acl> =
            self.topology.acls().map(|a| (&*a.name, std::sync::Arc::as_ptr(a))).collect();
        let rules = |c: &Configuration, name: &str| match c.objects().get(Kind::Acl, name).map(|o| o.spec.clone()) {
            Some(Some(Spec::Acl(a))) => Some(a.rules),
            _ => None,
        };
        for a in before.acls().filter(|a| now.get(&*a.name) != Some(&std::sync::Arc::as_ptr(a))) {
            let (texts, now) = (rules(old, &a.name).unwrap_or_default(), rules(&self.configuration, &a.name));
            self.acl_base.follow(a, &texts, now.as_deref());
        }
    }
}

pub(super) fn add_totals(sum: &mut PortTotals, t: &PortTotals) {
    sum.rx_frames += t.rx_frames;
    sum.rx_bytes += t.rx_bytes;
    sum.tx_frames += t.tx_frames;
    sum.tx_bytes += t.tx_bytes;
    sum.clones += t.clones;
    sum.drops.iter_mut().zip(t.drops).for_each(|(s, d)| *s += d);
}
