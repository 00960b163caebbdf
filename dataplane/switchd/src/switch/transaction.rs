//! Applying transactions, one at a time: whole or not at all, but for what `plan.rs` has in its table.
//!
//! 1. The objects are checked by the model, and ACLs are compiled, while no other call waits for the switch.
//! 2. The transaction is planned under the switch's lock, against a copy of the topology; the first thing that does not
//!    fit refuses it, and nothing has happened.
//! 3. Devices are opened, without the lock, each for a bounded time (`opening.rs`): a device that hangs keeps nothing
//!    else from being in force. First those that need nothing closed. A device that takes over the resource of a port that goes is
//!    opened after that one is closed, and if that fails, the old one is opened again; no other port is touched.
//! 4. The rest is `commit.rs`, under the lock.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use dunlin_dataplane_api::v1;
use dunlin_model::{Kind, objects::Key, spec::DeviceSpec};
use parking_lot::{Mutex, MutexGuard};

use super::{
    Switch,
    opening::{self, Openings},
    plan::{Next, Plan, Problems, Refused, WantedPort},
};
use crate::device::{self, Device, Opened, Opener, clean_up};

/// For how long a transaction waits for the one before it.
const TURN: Duration = Duration::from_secs(2);
/// The same when the process ends.
const LAST_TURN: Duration = Duration::from_secs(3);

/// A port whose device is closed for a transaction: what it takes to open it again.
type Closed = (String, DeviceSpec, u32);
/// Devices opened for a transaction, or why they are not.
type NewDevices = BTreeMap<String, Result<Opened, String>>;

/// Applies transactions to a switch.
pub struct Applier {
    switch: Arc<Mutex<Switch>>,
    /// Held by the transaction at work.
    turn: Mutex<()>,
    /// What that waits for, and since when.
    progress: Mutex<Option<(String, Instant)>>,
    /// Devices that take long.
    openings: Openings,
    workers: usize,
}

/// The right to open and close devices.
pub struct Turn<'a>(#[allow(dead_code, reason = "held")] MutexGuard<'a, ()>);

impl Applier {
    pub fn new(switch: Arc<Mutex<Switch>>) -> Self {
        let workers = switch.lock().workers();
        Applier { switch, turn: Mutex::new(()), progress: Mutex::new(None), openings: Openings::default(), workers }
    }

    /// The switch it changes.
    pub fn switch(&self) -> &Mutex<Switch> {
        &self.switch
    }

    /// What the transaction at work waits for; empty if there is none.
    pub fn progress(&self) -> String {
        let progress = self.progress.lock();
        progress.as_ref().map_or_else(String::new, |(what, since)| format!("{what} ({} s)", since.elapsed().as_secs()))
    }

    /// The right to close devices that are lost, unless a transaction is at work.
    pub fn try_turn(&self) -> Option<Turn<'_>> {
        self.turn.try_lock().map(Turn)
    }

    /// Applies `t`; what is not in force afterwards, and ports that wait for their device.
    ///
    /// # Errors
    /// It does not fit, starts from another generation, or another transaction is at work: nothing has changed.
    pub fn apply(&self, t: &v1::Transaction) -> Result<v1::Applied, Refused> {
        let busy = || Refused::Busy(self.progress());
        let _turn = self.turn.try_lock_for(TURN).ok_or_else(busy)?;
        let _done = Cleared(&self.progress);
        self.note("checking the configuration".into());
        let (holds, now, again) = {
            let switch = self.switch.lock();
            (switch.generation, switch.configuration.clone(), switch.not_in_force())
        };
        if let Some(base) = t.base_generation.filter(|b| *b != holds) {
            return Err(Refused::Base { holds, base });
        }
        let mut problems = Problems::of(t);
        let mut next = Next::of(&now, t, &mut problems)?;
        if t.replace {
            next.touched.extend(again.iter().cloned());
            next.decided.extend(again);
        }
        self.note("compiling access lists".into());
        let lists = next.compile(self.workers)?;
        self.openings.reap(|spec| self.switch.lock().ports.values().any(|p| p.spec == *spec));
        let plan = self.switch.lock().plan(t, next, lists, &mut problems)?;
        let before = self.switch.lock().interfaces(&plan);
        if t.check_only {
            self.check(&plan, &mut problems)?;
            return Ok(v1::Applied { problems: problems.into_list() });
        }
        let set: Vec<String> = plan.set.keys().cloned().collect();
        self.carry_out(t, plan, problems)?;
        let switch = self.switch.lock();
        switch.remove_interfaces(before);
        let of_this = |p: &v1::Problem| t.per_object || p.kind != "port" || set.contains(&p.name);
        Ok(v1::Applied { problems: switch.problems().into_iter().filter(of_this).collect() })
    }

    fn note(&self, what: String) {
        *self.progress.lock() = Some((what, Instant::now()));
    }

    fn carry_out(&self, t: &v1::Transaction, plan: Plan, mut problems: Problems) -> Result<(), Refused> {
        let opener = self.switch.lock().opener();
        self.prepare(&plan, &opener, &mut problems)?;
        let to_open: Vec<&String> = {
            let switch = self.switch.lock();
            switch.to_open(&plan).map(|(n, _)| n).collect()
        };
        let closing = self.switch.lock().closing(&plan);
        let takes_from =
            |w: &WantedPort| closing.iter().find(|(_, spec, _)| spec.resource().1 == w.device().resource().1);
        let (later, first): (Vec<&String>, Vec<&String>) =
            to_open.into_iter().partition(|n| takes_from(&plan.set[*n]).is_some());
        let mut opened = BTreeMap::new();
        // First what needs nothing closed: if that fails, nothing was touched.
        if let Err(e) = self.open_all(&first, &plan, &opener, &problems, &mut opened) {
            self.close_opened(&plan, opened);
            return Err(e);
        }
        let taken: Vec<Closed> = later.iter().filter_map(|n| takes_from(&plan.set[*n])).cloned().collect();
        if !taken.is_empty() {
            taken.iter().for_each(|(n, ..)| self.switch.lock().close_device(n));
            if let Err(e) = self.open_all(&later, &plan, &opener, &problems, &mut opened) {
                self.close_opened(&plan, opened);
                self.restore(taken, &opener);
                return Err(e);
            }
        }
        let refused = match self.set_mtus(&plan.mtus, &mut problems) {
            Ok(refused) => refused,
            Err(e) => {
                self.close_opened(&plan, opened);
                self.restore(taken, &opener);
                return Err(e);
            }
        };
        self.note("handing over to the workers".into());
        let mut switch = self.switch.lock();
        switch.commit(t, plan, opened, problems.into_list());
        // So that the next try is one.
        for (name, before) in refused {
            if let Some(p) = switch.ports.get_mut(&name) {
                p.mtu = before;
            }
        }
        Ok(())
    }

    /// What can be known of devices without opening them: every one that would refuse is a problem.
    fn check(&self, plan: &Plan, problems: &mut Problems) -> Result<(), Refused> {
        let switch = self.switch.lock();
        let opener = switch.opener();
        for (name, w) in switch.to_open(plan) {
            let fits = device::check(w.device()).and_then(|()| opener.prepare(w.device(), w.mtu()));
            if let Some(e) = fits.err().filter(|_| !w.waiting) {
                problems.note((Kind::Port, name), "device", e.to_string());
            }
        }
        Ok(())
    }

    /// Makes the buffers that running devices will need, before any is stopped.
    fn prepare(&self, plan: &Plan, opener: &Opener, problems: &mut Problems) -> Result<(), Refused> {
        for (name, w) in plan.set.iter().filter(|(_, w)| w.reopen && !w.waiting && w.without_device().is_none()) {
            if let Err(mut error) = opener.prepare(w.device(), w.mtu())
                && !problems.per_object()
            {
                error.why += "; start the dataplane with more --memory";
                error.what = format!("mtu: {}: {}", w.mtu(), error.what);
                return Err(Refused::Device { port: name.clone(), error });
            }
        }
        Ok(())
    }

    /// Gives running devices another MTU: all, or none. Per object, those that refuse keep theirs: they, and what it is.
    fn set_mtus(&self, mtus: &[(String, u32, u32)], problems: &mut Problems) -> Result<Vec<(String, u32)>, Refused> {
        let switch = self.switch.lock();
        let mut refused = Vec::new();
        let device = |n: &String| switch.ports.get(n).and_then(|p| p.device.as_ref().ok());
        for (i, (name, mtu, has)) in mtus.iter().enumerate() {
            let Some(Err(error)) = device(name).map(|d| d.set_mtu(*mtu)) else { continue };
            if problems.per_object() {
                problems.note((Kind::Port, name), "mtu", error.to_string());
                refused.push((name.clone(), *has));
                continue;
            }
            for (name, _, before) in &mtus[..i] {
                if let Some(Err(e)) = device(name).map(|d| d.set_mtu(*before)) {
                    tracing::error!("port '{name}': setting its MTU back: {e}");
                }
            }
            return Err(Refused::Device { port: name.clone(), error });
        }
        Ok(refused)
    }

    fn open_all(
        &self,
        names: &[&String],
        plan: &Plan,
        opener: &Opener,
        problems: &Problems,
        opened: &mut NewDevices,
    ) -> Result<(), Refused> {
        for name in names {
            let want = &plan.set[*name];
            if let Some(why) = want.without_device() {
                opened.insert((*name).clone(), Err(why.into()));
                continue;
            }
            self.note(format!("port '{name}': opening its device"));
            let patience = if problems.per_object() { opening::RESTORE } else { opening::CHANGE };
            match self.openings.open(opener, want.device(), want.mtu(), patience) {
                Ok(o) => drop(opened.insert((*name).clone(), Ok(o))),
                Err(e) if problems.per_object() || want.waiting => {
                    opened.insert((*name).clone(), Err(e.to_string()));
                }
                Err(error) => return Err(Refused::Device { port: (*name).clone(), error }),
            }
        }
        Ok(())
    }

    fn close_opened(&self, plan: &Plan, opened: NewDevices) {
        for (name, o) in opened {
            let Ok(opened) = o else { continue };
            let made_interface = opened.made_interface;
            opened.close();
            if made_interface {
                clean_up(plan.set[&name].device());
            }
        }
    }

    /// Opens again what was closed for a transaction that then failed.
    fn restore(&self, closed: Vec<Closed>, opener: &Opener) {
        for (name, spec, mtu) in closed {
            self.note(format!("port '{name}': opening its device again"));
            let result = self.openings.open(opener, &spec, mtu, opening::CHANGE).map_err(|e| e.to_string());
            if let Err(e) = &result {
                tracing::error!("port '{name}' was closed for a change that failed, and does not open again: {e}");
            }
            let mut switch = self.switch.lock();
            let rx = switch.install(&name, result);
            switch.give_all_rx(rx);
            switch.follow_owners();
            switch.follow_guests();
            switch.sync_links(true);
        }
    }

    /// Closes every device and ends the workers; whether that was possible. Taps stay: the process may be back in a
    /// moment.
    pub fn shut_down(&self) -> bool {
        let Some(_turn) = self.turn.try_lock_for(LAST_TURN) else {
            tracing::error!("devices are not closed: {}", self.progress());
            return false;
        };
        let nothing = v1::Transaction { replace: true, ..Default::default() };
        let mut problems = Problems::of(&nothing);
        let now = self.switch.lock().configuration.clone();
        let next = Next::of(&now, &nothing, &mut problems);
        let plan = next.and_then(|next| self.switch.lock().plan(&nothing, next, Vec::new(), &mut problems));
        if let Err(e) = plan.and_then(|plan| self.carry_out(&nothing, plan, problems)) {
            tracing::warn!("closing ports: {e}");
        }
        self.switch.lock().stop_workers();
        true
    }
}

/// Clears the progress when the transaction is over.
struct Cleared<'a>(&'a Mutex<Option<(String, Instant)>>);

impl Drop for Cleared<'_> {
    fn drop(&mut self) {
        *self.0.lock() = None;
    }
}

/// A port, its device, and what removes its tap where that was moved to another namespace.
type Interface = (String, DeviceSpec, Option<dunlin_dpdk::kernel::tap::TapRemover>);

impl Switch {
    /// Objects that are configured and not in force, and can be tried again.
    fn not_in_force(&self) -> Vec<Key> {
        let key = |p: v1::Problem| Some((Kind::from_word(&p.kind)?, p.name));
        let is_there = |(kind, name): &Key| self.configuration.objects().get(*kind, name).is_some();
        self.problems().into_iter().filter_map(key).filter(is_there).collect()
    }

    /// Ports that get a device.
    ///
    /// The oldest ports are the first: after a restart, those get what there is too little of, as memory for AF_XDP, that had
    /// it before.
    fn to_open<'a>(&self, plan: &'a Plan) -> impl Iterator<Item = (&'a String, &'a WantedPort)> {
        let mut all: Vec<_> = plan.set.iter().filter(|(n, w)| w.reopen || !self.ports.contains_key(*n)).collect();
        all.sort_by_key(|(n, _)| plan.topology.identity(n));
        all.into_iter()
    }

    /// Open devices of ports that go, or get another one.
    pub(super) fn closing(&self, plan: &Plan) -> Vec<Closed> {
        let reopened = plan.set.iter().filter(|(_, w)| w.reopen).map(|(n, _)| n);
        let names = plan.gone.iter().chain(reopened);
        let open = |n: &&String| self.ports.get(*n).filter(|p| p.device.is_ok());
        names.filter_map(|n| open(&n).map(|p| (n.clone(), p.spec.clone(), p.mtu))).collect()
    }

    /// Interfaces of the ports that a plan touches.
    fn interfaces(&self, plan: &Plan) -> Vec<Interface> {
        let moved = |p: &super::PortRuntime| p.device.as_ref().ok().and_then(Device::moved_tap);
        let of = |n: &String| self.ports.get(n).map(|p| (n.clone(), p.spec.clone(), moved(p)));
        plan.gone.iter().chain(plan.set.keys()).filter_map(of).collect()
    }

    /// Removes interfaces that were made for ports which have another device now, or are gone.
    fn remove_interfaces(&self, before: Vec<Interface>) {
        for (name, spec, moved) in before {
            let has = |p: &super::PortRuntime| p.spec == spec;
            if self.ports.get(&name).is_some_and(has) || self.ports.values().any(has) {
                continue;
            }
            match moved {
                Some(tap) => tap.remove(),
                None => clean_up(&spec),
            }
        }
    }
}
