//! Steering by destination in the device: a guest has a receive queue of an uplink for itself, and rules
//! ("to this address in this VLAN: this queue") bring its frames there. The guest's worker polls it, and sends what the
//! guest sends through the transmit queue of the same number.
//!
//! Guests get a queue when an address of theirs is learned or entered, as long as there are some; all others, and what
//! the device refuses, are steered in software (`steering.rs`). Whether a rule is still true is looked at every tick.
//!
//! A change of rules takes frames from one queue to another. So that none overtakes those before it, the queue that
//! gains them rests until what was in the others is through: see [`Switch::shift`].

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use dunlin_dataplane_api::v1;
use dunlin_dpdk::{
    port::{DESCRIPTORS, RxQueue, TxQueue},
    steering::{Destination, Rule},
};
use dunlin_engine::{BURST, PortIdx, counters::Count, mac_table::Key, tunnel::Role};

use super::{PortSide, Switch, ask, placement::QueueSide};
use crate::{
    queues::{RxHandle, RxKind, TxHandle},
    worker::{Command, Which},
};

/// Addresses of one guest that an uplink has rules for. A guest that makes up more has them steered in software.
const ADDRESSES_PER_GUEST: usize = 8;
/// Addresses taken note of between two ticks.
const FRESH: usize = 1024;
/// Rounds after which what a queue held at the first is through.
const ROUNDS: u32 = DESCRIPTORS as u32 / BURST as u32 + 1;

/// Queues of an uplink that its device fills by destination.
pub struct GuestQueues {
    /// The number of the first; those before it are for everybody.
    first: u16,
    /// Those that no guest has.
    spare: Vec<(RxQueue, TxQueue)>,
    /// Who has which.
    owned: BTreeMap<PortIdx, Own>,
    rules: BTreeMap<Key, (PortIdx, Vec<Rule>)>,
    /// Addresses that have no rule because there was no queue, or the device refused: and why.
    refused: BTreeMap<Key, String>,
}

/// The pair of queues that a guest has.
struct Own {
    number: u16,
    sent: Arc<Count>,
}

/// What a rule should be.
struct Wanted {
    key: Key,
    guest: PortIdx,
    to: Vec<Destination>,
}

impl GuestQueues {
    /// Of a device whose queues from `first` on these are; `None` if there is none.
    pub fn new(first: u16, mut spare: Vec<(RxQueue, TxQueue)>) -> Option<Self> {
        // The lowest number is the first to be given.
        spare.reverse();
        let (owned, rules, refused) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        (!spare.is_empty()).then_some(GuestQueues { first, spare, owned, rules, refused })
    }

    /// Whether some frames are steered by the device now.
    pub fn is_at_work(&self) -> bool {
        !self.rules.is_empty()
    }

    /// Whether an address has a rule, or can't have one.
    fn knows(&self, key: &Key) -> bool {
        self.rules.contains_key(key) || self.refused.contains_key(key)
    }

    /// Takes note that an address goes without.
    fn refuse(&mut self, key: Key, why: &str) {
        if self.refused.len() < FRESH {
            self.refused.insert(key, why.to_owned());
        }
    }
}

impl std::fmt::Display for GuestQueues {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (addresses, guests) = (self.rules.len(), self.owned.len());
        write!(f, "{addresses} addresses of {guests} guests by queues of their own, {} queues free", self.spare.len())?;
        match self.refused.values().next_back() {
            Some(why) => write!(f, "; {} addresses in software: {why}", self.refused.len()),
            None => Ok(()),
        }
    }
}

impl PortSide {
    /// Whether the queue of that number is a guest's, or kept for one.
    pub(super) fn is_for_guests(&self, number: u16) -> bool {
        let queues = self.device.as_ref().ok().and_then(|d| d.guest_queues.as_ref());
        queues.is_some_and(|q| number >= q.first)
    }
}

impl Switch {
    /// Takes note of an address that may be a guest's.
    pub(super) fn note_address(&mut self, key: Key, port: PortIdx) {
        if self.fresh.len() < FRESH {
            self.fresh.push((key, port));
        }
    }

    /// Brings the devices' rules in line with the mac table: with what was noted of it, or all of it, then trying again
    /// what was refused.
    pub(super) fn follow_guests(&mut self, all: bool) {
        let has = |p: &PortSide| p.device.as_ref().is_ok_and(|d| d.guest_queues.is_some());
        let uplinks: Vec<String> = self.ports.iter().filter(|(_, p)| has(p)).map(|(n, _)| n.clone()).collect();
        // With so many new ones, some may not have been noted.
        if (all || self.fresh.len() == FRESH) && !uplinks.is_empty() {
            let mut fresh = Vec::new();
            self.macs.for_each(|e| fresh.push((Key::new(e.mac, e.segment), e.port)));
            self.fresh = fresh;
        }
        let fresh = std::mem::take(&mut self.fresh);
        for uplink in &uplinks {
            if all {
                self.guest_queues(uplink).refused.clear();
            }
            self.drop_old_rules(uplink);
            for (guest, wanted) in self.missing_rules(uplink, &fresh) {
                self.steer_to(uplink, guest, wanted);
            }
            self.follow_owners_of_guest_queues(uplink);
        }
    }

    /// Of an uplink that has some.
    fn guest_queues(&mut self, uplink: &str) -> &mut GuestQueues {
        let port = self.ports.get_mut(uplink).expect("the caller's name");
        port.device.as_mut().ok().and_then(|d| d.guest_queues.as_mut()).expect("the caller looked")
    }

    /// How frames to `key`, which is at `port`, arrive at the uplink; `None` if that is no guest behind it.
    fn wanted(&self, uplink: PortIdx, key: Key, port: PortIdx) -> Option<Wanted> {
        let (up, guest) = (self.snapshot.port(uplink)?, self.snapshot.port(port)?);
        let steered = self.ports.get(&*guest.name).is_none_or(|p| p.steered);
        if steered || !matches!(guest.role, Role::Device) || up.vlans.tunnel.is_some() {
            return None;
        }
        let segment = key.segment();
        let vid = self.snapshot.segment(segment)?.vid;
        let tagged = up.tagged.as_ref().is_some_and(|t| t.get(usize::from(vid)) == Some(&segment));
        let destination = |vid| Destination { mac: key.mac().octets(), vid };
        let to: Vec<_> = [(tagged && vid != 0).then_some(Some(vid)), (up.untagged.1 == segment).then_some(None)]
            .into_iter()
            .flatten()
            .map(destination)
            .collect();
        (!to.is_empty()).then_some(Wanted { key, guest: port, to })
    }

    /// Rules whose address is not there any more, or somewhere else; queues of guests that have no rule left.
    fn drop_old_rules(&mut self, uplink: &str) {
        let idx = self.ports[uplink].idx;
        let now = |switch: &Switch, key: Key| {
            let at = switch.macs.lookup(key, switch.macs.hash(key))?;
            switch.wanted(idx, key, at)
        };
        let rules: Vec<(Key, PortIdx)> =
            self.guest_queues(uplink).rules.iter().map(|(key, (guest, _))| (*key, *guest)).collect();
        let mut old: BTreeMap<PortIdx, Vec<Key>> = BTreeMap::new();
        for (key, guest) in rules {
            if now(self, key).is_none_or(|w| w.guest != guest) {
                old.entry(guest).or_default().push(key);
                // Where it is now is for this tick to see.
                self.fresh.extend(now(self, key).map(|w| (key, w.guest)));
            }
        }
        let macs = self.macs.clone();
        self.guest_queues(uplink).refused.retain(|key, _| macs.lookup(*key, macs.hash(*key)).is_some());
        for (guest, keys) in old {
            let queue = self.guest_queues(uplink).owned[&guest].number;
            self.shift(idx, Which::AllBut(queue), |switch| {
                keys.iter().for_each(|key| drop(switch.guest_queues(uplink).rules.remove(key)));
            });
            self.release_queue(uplink, guest);
        }
    }

    /// Takes a guest's queue back if no rule leads to it.
    fn release_queue(&mut self, uplink: &str, guest: PortIdx) {
        let idx = self.ports[uplink].idx;
        let queues = self.guest_queues(uplink);
        if queues.rules.values().any(|(of, _)| *of == guest) {
            return;
        }
        let Some(Own { number: queue, .. }) = queues.owned.remove(&guest) else { return };
        let (mut rx, mut tx) = (None, None);
        for w in &mut self.workers {
            w.queues.retain(|q| (q.port.as_str(), q.number) != (uplink, queue));
            rx =
                rx.or(
                    ask(&w.shared, |reply| Command::RemoveRx(idx, Which::Only(queue), reply)).and_then(|mut q| q.pop())
                );
            tx = tx.or(ask(&w.shared, |reply| Command::RemoveGuestTx(idx, guest, reply)).flatten());
        }
        if let (Some(RxHandle { queue: RxKind::Eth(rx), .. }), Some(TxHandle::Guest(tx, _))) = (rx, tx) {
            let queues = self.guest_queues(uplink);
            queues.spare.push((rx, tx));
            // Others may want it.
            queues.refused.clear();
        }
    }

    /// What of `fresh` should have a rule and has none, by guest.
    fn missing_rules(&mut self, uplink: &str, fresh: &[(Key, PortIdx)]) -> BTreeMap<PortIdx, Vec<Wanted>> {
        let moved = std::mem::take(&mut self.fresh);
        let idx = self.ports[uplink].idx;
        let mut seen = BTreeSet::new();
        let mut missing: BTreeMap<PortIdx, Vec<Wanted>> = BTreeMap::new();
        for (key, port) in fresh.iter().chain(&moved) {
            // It may have moved on since it was noted.
            let still = self.macs.lookup(*key, self.macs.hash(*key)) == Some(*port);
            if still
                && seen.insert(*key)
                && let Some(w) = self.wanted(idx, *key, *port)
                && !self.guest_queues(uplink).knows(key)
            {
                missing.entry(*port).or_default().push(w);
            }
        }
        missing
    }

    /// Makes rules for addresses of one guest.
    fn steer_to(&mut self, uplink: &str, guest: PortIdx, wanted: Vec<Wanted>) {
        let idx = self.ports[uplink].idx;
        let has = self.guest_queues(uplink).rules.values().filter(|(of, _)| *of == guest).count();
        let (now, rest) = wanted.split_at(wanted.len().min(ADDRESSES_PER_GUEST.saturating_sub(has)));
        let queues = self.guest_queues(uplink);
        rest.iter().for_each(|w| queues.refuse(w.key, "a guest has rules for 8 addresses"));
        if now.is_empty() {
            return;
        }
        let Some(queue) = self.queue_for(uplink, guest) else {
            let queues = self.guest_queues(uplink);
            return now.iter().for_each(|w| queues.refuse(w.key, "no queue is free"));
        };
        self.shift(idx, Which::Only(queue), |switch| {
            for w in now {
                let device = switch.ports[uplink].device.as_ref().expect("it has queues");
                let rules: Result<Vec<Rule>, _> = w.to.iter().map(|to| device.send_to_queue(*to, queue)).collect();
                let queues = switch.guest_queues(uplink);
                match rules {
                    Ok(rules) => drop(queues.rules.insert(w.key, (guest, rules))),
                    Err(e) => queues.refuse(w.key, &e.why),
                }
            }
        });
        self.release_queue(uplink, guest);
    }

    /// The number of the guest's queue: the one it has, or a free one.
    fn queue_for(&mut self, uplink: &str, guest: PortIdx) -> Option<u16> {
        let idx = self.ports[uplink].idx;
        let worker = self.owner(guest);
        let queues = self.guest_queues(uplink);
        if let Some(own) = queues.owned.get(&guest) {
            return Some(own.number);
        }
        let (rx, tx) = queues.spare.pop()?;
        let (number, sent) = (rx.number(), Arc::new(Count::default()));
        queues.owned.insert(guest, Own { number, sent: sent.clone() });
        self.give_rx_to(uplink, RxKind::Eth(rx), worker);
        self.workers[worker].shared.tell(None, [Command::AddGuestTx(idx, guest, TxHandle::Guest(tx, sent))]);
        Some(number)
    }

    /// The worker that sends to a guest.
    fn owner(&self, guest: PortIdx) -> usize {
        self.owners.as_ref().and_then(|o| o.of[guest.get()]).map_or(0, usize::from)
    }

    /// A guest that has changed workers takes its queues with it.
    fn follow_owners_of_guest_queues(&mut self, uplink: &str) {
        let idx = self.ports[uplink].idx;
        let owned: Vec<(PortIdx, u16)> =
            self.guest_queues(uplink).owned.iter().map(|(g, own)| (*g, own.number)).collect();
        for (guest, number) in owned {
            let to = self.owner(guest);
            if let Some((from, at)) = self.place_of(uplink, number).filter(|(from, _)| *from != to) {
                self.move_queue(from, at, to);
                let tx = ask(&self.workers[from].shared, |reply| Command::RemoveGuestTx(idx, guest, reply)).flatten();
                let add = tx.map(|tx| Command::AddGuestTx(idx, guest, tx));
                self.workers[to].shared.tell(None, add);
            }
        }
    }

    /// Which worker has a queue, and which of its queues that is.
    fn place_of(&self, port: &str, number: u16) -> Option<(usize, usize)> {
        let is = |q: &QueueSide| (q.port.as_str(), q.number) == (port, number);
        self.workers.iter().enumerate().find_map(|(i, w)| Some((i, w.queues.iter().position(is)?)))
    }

    /// The receive queues of uplinks that a guest has.
    pub(super) fn uplink_queues_of(&self, guest: &str) -> impl Iterator<Item = &QueueSide> {
        let guest = self.ports.get(guest).map(|p| p.idx);
        self.ports.iter().filter_map(move |(uplink, p)| {
            let queues = p.device.as_ref().ok()?.guest_queues.as_ref()?;
            let (worker, at) = self.place_of(uplink, queues.owned.get(&guest?)?.number)?;
            self.workers[worker].queues.get(at)
        })
    }

    /// The guests that have queues of an uplink.
    pub(super) fn guest_queue_reports(&self, uplink: &str, queues: &GuestQueues) -> Vec<v1::GuestQueue> {
        let report = |(guest, own): (&PortIdx, &Own)| {
            let place = self.place_of(uplink, own.number);
            v1::GuestQueue {
                port: self.port_name(*guest),
                queue: u32::from(own.number),
                addresses: queues.rules.values().filter(|(of, _)| of == guest).count() as u32,
                core: place.map_or(0, |(w, _)| self.workers[w].shared.core as u32),
                rx_frames: place.map_or(0, |(w, at)| self.workers[w].queues[at].frames.get()),
                tx_frames: own.sent.get(),
            }
        };
        queues.owned.iter().map(report).collect()
    }

    /// Makes a change after which frames of an uplink go into the queues `gaining`, from others. The gaining ones rest
    /// until what the others held at the change is through, and what of it went from worker to worker.
    fn shift(&mut self, uplink: PortIdx, gaining: Which, change: impl FnOnce(&mut Self)) {
        let resting = self.rest(uplink, gaining);
        change(self);
        self.pass_rounds(ROUNDS);
        self.pass_rounds(1);
        self.go_on(resting);
    }
}
