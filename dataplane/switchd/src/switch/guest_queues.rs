//! Steering by destination in the device: a guest has a receive queue of an uplink for itself, and rules
//! ("to this address in this VLAN: this queue") bring its frames there. The guest's worker polls it, and sends what the
//! guest sends through the transmit queue of the same number.
//!
//! A guest gets its queues when an address of its is learned or entered, as long as there are some, and keeps them until
//! its port goes, or another wants them and no rule leads to them. What has no rule is steered in software
//! (`steering.rs`). Every tick looks whether each rule is still true.
//!
//! A change of rules takes frames from one queue to another. So that none overtakes those before it, the queues that gain
//! some are paused until what was in the others is through: see [`Switch::with_queues_paused`]. What a guest sends changes its transmit
//! queue once, when it gets one; there the device decides what goes first.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use arrayvec::ArrayVec;
use dunlin_dataplane_api::v1;
use dunlin_dpdk::{
    Mbuf,
    port::{DESCRIPTORS, GUEST_DESCRIPTORS, RxQueue, TxQueue},
    steering::{Destination, Rule},
};
use dunlin_engine::{MAX_PORTS, PortIdx, tables::mac::Key, tunnel::Role};
use dunlin_model::spec::DeviceSpec;

use super::{PortRuntime, Switch, ask, placement::QueueSide};
use crate::{
    queues::{LoneCount, RxHandle, RxKind, TxHandle},
    worker::{Command, Which},
};

/// Addresses of one guest that an uplink has rules for. A guest that makes up more has them steered in software.
const ADDRESSES_PER_GUEST: usize = 8;
/// Addresses taken note of between two ticks; after more, the mac table is looked through, some ticks later.
const FRESH: usize = 1024;
const WALK_AFTER_TICKS: u32 = 20;
/// Addresses of one port that are looked at in such a walk.
const WALKED_PER_PORT: u8 = 64;
/// What some drivers hand out at once at most, however many are asked for.
const LEAST_BURST: u16 = 32;
/// Rounds after which what a queue held at the first is through.
const ROUNDS: u32 = (DESCRIPTORS / LEAST_BURST) as u32 + 1;

/// What is to be looked at for rules next.
#[derive(Default)]
pub(super) struct PendingMacs {
    /// Addresses that were learned, or moved there.
    noted: Vec<(Key, PortIdx)>,
    /// Ticks until the mac table is looked through.
    walk_in: Option<u32>,
}

/// Queues of an uplink that its device fills by destination.
pub struct GuestQueues {
    /// The number of the first; those before it are for everybody.
    first: u16,
    /// Those that no guest has.
    spare: Vec<(RxQueue, TxQueue)>,
    /// Who has which.
    owned: BTreeMap<PortIdx, GuestQueuePair>,
    rules: BTreeMap<Key, InstalledFlow>,
    refused: BTreeMap<Key, Refused>,
}

/// The pair of queues that a guest has.
struct GuestQueuePair {
    number: u16,
    sent: Arc<LoneCount>,
}

/// What a rule should be.
struct Wanted {
    key: Key,
    guest: PortIdx,
    to: Vec<Destination>,
}

/// An address that has a rule for each way its frames come.
struct InstalledFlow {
    guest: PortIdx,
    to: Vec<Destination>,
    rules: Vec<Rule>,
}

/// An address that goes without.
struct Refused {
    guest: PortIdx,
    why: Why,
}

enum Why {
    TooMany,
    NoQueue,
    Device(String),
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Why::TooMany => write!(f, "a guest has {ADDRESSES_PER_GUEST} by its queue already"),
            Why::NoQueue => f.write_str("no queue is free"),
            Why::Device(why) => f.write_str(why),
        }
    }
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

    /// Addresses of the guest that have a rule.
    fn ruled(&self, guest: PortIdx) -> usize {
        self.rules.values().filter(|r| r.guest == guest).count()
    }

    /// How many more addresses of the guest may be tried.
    fn room_for(&self, guest: PortIdx) -> usize {
        let tried = |r: &&Refused| r.guest == guest && matches!(r.why, Why::Device(_));
        ADDRESSES_PER_GUEST.saturating_sub(self.ruled(guest) + self.refused.values().filter(tried).count())
    }

    /// A guest whose queues no rule leads to.
    fn idle_guest(&self) -> Option<PortIdx> {
        self.owned.keys().copied().find(|guest| self.ruled(*guest) == 0)
    }

    /// Whether an address of the guest may be given a rule.
    fn may_take(&self, guest: PortIdx) -> bool {
        let has_queue = || !self.spare.is_empty() || self.owned.contains_key(&guest) || self.idle_guest().is_some();
        self.room_for(guest) > 0 && has_queue()
    }

    /// Takes note that an address goes without; of so many of a guest.
    fn refuse(&mut self, key: Key, guest: PortIdx, why: Why) {
        if self.refused.values().filter(|r| r.guest == guest).count() < ADDRESSES_PER_GUEST {
            self.refused.insert(key, Refused { guest, why });
        }
    }
}

impl std::fmt::Display for GuestQueues {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (addresses, guests) = (self.rules.len(), self.owned.len());
        write!(f, "{addresses} addresses of {guests} guests by queues of their own, {} queues free", self.spare.len())?;
        let whys: BTreeSet<String> = self.refused.values().map(|r| r.why.to_string()).collect();
        if !whys.is_empty() {
            let whys: Vec<String> = whys.into_iter().take(3).collect();
            write!(f, "; {} addresses in software: {}", self.refused.len(), whys.join(", "))?;
        }
        Ok(())
    }
}

impl PortRuntime {
    /// Its queues for guests, if it has some.
    pub(super) fn guest_queues(&self) -> Option<&GuestQueues> {
        self.device.as_ref().ok()?.guest_queues.as_ref()
    }

    /// Whether the queue of that number is a guest's, or kept for one.
    pub(super) fn is_for_guests(&self, number: u16) -> bool {
        self.guest_queues().is_some_and(|q| number >= q.first)
    }

    /// Whether those behind it are of this host. Behind a NIC is the world.
    fn may_be_guest(&self) -> bool {
        !self.steered && !matches!(self.spec, DeviceSpec::Nic { .. })
    }
}

impl Switch {
    /// Takes note of an address that may be a guest's.
    pub(super) fn note_address(&mut self, key: Key, port: PortIdx) {
        match self.fresh.noted.len() < FRESH {
            true => self.fresh.noted.push((key, port)),
            false => drop(self.fresh.walk_in.get_or_insert(WALK_AFTER_TICKS)),
        }
    }

    /// One tick: brings the devices' rules in line with what was noted of the mac table since the last.
    pub(super) fn follow_noted_guests(&mut self) {
        let left = self.fresh.walk_in.map(|left| left.saturating_sub(1));
        self.fresh.walk_in = left.filter(|left| *left > 0);
        if left == Some(0) {
            self.fresh.noted = self.walk_macs();
        }
        self.follow_fresh();
    }

    /// Brings the devices' rules in line with ports and the whole mac table; what was refused is tried again.
    pub(super) fn follow_guests(&mut self) {
        for uplink in self.uplinks_with_queues() {
            self.guest_queues(&uplink).refused.clear();
        }
        self.fresh.noted = self.walk_macs();
        self.follow_fresh();
    }

    /// The same as far as it is noted what to look at; queues follow their guests to other workers.
    pub(super) fn follow_fresh(&mut self) {
        let fresh = std::mem::take(&mut self.fresh.noted);
        for uplink in self.uplinks_with_queues() {
            let again = self.drop_old_rules(&uplink);
            let missing = self.missing_rules(&uplink, fresh.iter().chain(&again));
            self.make_rules(&uplink, missing);
            self.follow_owners_of_guest_queues(&uplink);
        }
    }

    fn uplinks_with_queues(&self) -> Vec<String> {
        self.ports.iter().filter(|(_, p)| p.guest_queues().is_some()).map(|(n, _)| n.clone()).collect()
    }

    /// Addresses at ports that some uplink may give a rule, a few of each.
    fn walk_macs(&self) -> Vec<(Key, PortIdx)> {
        let uplinks: Vec<&GuestQueues> = self.ports.values().filter_map(PortRuntime::guest_queues).collect();
        let mut left = [0; MAX_PORTS];
        for p in self.ports.values().filter(|p| p.may_be_guest() && uplinks.iter().any(|q| q.may_take(p.idx))) {
            left[p.idx.get()] = WALKED_PER_PORT;
        }
        let mut found = Vec::new();
        if left.iter().any(|left| *left > 0) {
            self.macs.for_each(|e| {
                let left = &mut left[e.port.get()];
                if *left > 0 {
                    *left -= 1;
                    found.push((Key::new(e.mac, e.segment), e.port));
                }
            });
        }
        found
    }

    /// Of an uplink that has some.
    fn guest_queues(&mut self, uplink: &str) -> &mut GuestQueues {
        let port = self.ports.get_mut(uplink).expect("the caller's name");
        port.device.as_mut().ok().and_then(|d| d.guest_queues.as_mut()).expect("the caller looked")
    }

    /// How frames to `key`, which is at `port`, arrive at the uplink; `None` if that is no guest behind it.
    fn wanted(&self, uplink: PortIdx, key: Key, port: PortIdx) -> Option<Wanted> {
        let (up, guest) = (self.snapshot.port(uplink)?, self.snapshot.port(port)?);
        let may_be = self.ports.get(&*guest.name).is_some_and(PortRuntime::may_be_guest);
        if !may_be || !matches!(guest.role, Role::Device) || up.vlans.tunnel.is_some() {
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

    /// Takes back rules that are not true any more, and the queues of ports that are gone. What should be looked at again
    /// for it: addresses that moved, and those that there was no room for.
    fn drop_old_rules(&mut self, uplink: &str) -> Vec<(Key, PortIdx)> {
        let idx = self.ports[uplink].idx;
        let macs = self.macs.clone();
        let at = |key: Key| macs.lookup(macs.hash(key));
        let queues = self.ports[uplink].guest_queues().expect("the caller looked");
        let is_old = |(key, r): &(&Key, &InstalledFlow)| {
            let now = at(**key).and_then(|port| self.wanted(idx, **key, port));
            now.is_none_or(|w| w.guest != r.guest || w.to != r.to)
        };
        let old: Vec<Key> = queues.rules.iter().filter(is_old).map(|(key, _)| *key).collect();
        let gone: Vec<PortIdx> = queues.owned.keys().copied().filter(|g| self.snapshot.port(*g).is_none()).collect();
        let first = queues.first;
        if !old.is_empty() {
            self.with_queues_paused(idx, Which::of(0..first), |switch| switch.roll_back(uplink, &old));
        }
        gone.iter().for_each(|guest| self.release_queues(uplink, *guest));
        let mut again: Vec<Key> = Vec::new();
        self.guest_queues(uplink).refused.retain(|key, r| {
            let is_there = at(*key).is_some();
            let for_room = !old.is_empty() && !matches!(r.why, Why::Device(_));
            again.extend((is_there && for_room).then_some(*key));
            is_there && !for_room
        });
        again.extend(old);
        again.into_iter().filter_map(|key| Some((key, at(key)?))).collect()
    }

    fn roll_back(&mut self, uplink: &str, old: &[Key]) {
        let queues = self.guest_queues(uplink);
        for key in old {
            let Some(InstalledFlow { guest, to, rules }) = queues.rules.remove(key) else { continue };
            let kept: Vec<Rule> = rules.into_iter().filter_map(|r| r.roll_back().err()).collect();
            // Frames still come by its queue, which is therefore polled; the next tick tries again.
            if !kept.is_empty() {
                queues.rules.insert(*key, InstalledFlow { guest, to, rules: kept });
            }
        }
    }

    /// Takes a guest's queues back, unless a rule leads to them.
    fn release_queues(&mut self, uplink: &str, guest: PortIdx) {
        let idx = self.ports[uplink].idx;
        let queues = self.guest_queues(uplink);
        if queues.ruled(guest) > 0 {
            return;
        }
        let Some(GuestQueuePair { number, .. }) = queues.owned.remove(&guest) else { return };
        let Some((worker, at)) = self.place_of(uplink, number) else { return };
        self.workers[worker].queues.remove(at);
        let worker = &self.workers[worker].shared;
        let rx = ask(worker, |reply| Command::RemoveRx(idx, Which::of([number]), reply)).and_then(|mut rx| rx.pop());
        let tx = ask(worker, |reply| Command::RemoveGuestTx(idx, guest, reply)).flatten();
        if let (Some(RxHandle { queue: RxKind::Eth(rx), .. }), Some(TxHandle::Guest(tx, _))) = (rx, tx) {
            self.guest_queues(uplink).spare.push((rx, tx));
        }
    }

    /// What of `fresh` should have a rule and has none, by guest.
    fn missing_rules<'a>(
        &mut self,
        uplink: &str,
        fresh: impl Iterator<Item = &'a (Key, PortIdx)>,
    ) -> BTreeMap<PortIdx, Vec<Wanted>> {
        let idx = self.ports[uplink].idx;
        let mut seen = BTreeSet::new();
        let mut missing: BTreeMap<PortIdx, Vec<Wanted>> = BTreeMap::new();
        for (key, port) in fresh {
            let queues = self.guest_queues(uplink);
            if queues.rules.contains_key(key) || queues.refused.contains_key(key) || !seen.insert(*key) {
                continue;
            }
            // It may have moved on since it was noted; what moves all the time is not worth the trouble.
            let still = self.macs.lookup(self.macs.hash(*key)) == Some(*port);
            if still
                && !self.flaps.has(key.segment(), key.mac())
                && let Some(w) = self.wanted(idx, *key, *port)
            {
                missing.entry(*port).or_default().push(w);
            }
        }
        missing
    }

    /// Makes rules, for all guests at once.
    fn make_rules(&mut self, uplink: &str, missing: BTreeMap<PortIdx, Vec<Wanted>>) {
        let mut now: Vec<(u16, Wanted)> = Vec::new();
        for (guest, mut wanted) in missing {
            let room = self.guest_queues(uplink).room_for(guest).min(wanted.len());
            let rest = wanted.split_off(room);
            let queue = if wanted.is_empty() { None } else { self.queue_for(uplink, guest) };
            let queues = self.guest_queues(uplink);
            rest.into_iter().for_each(|w| queues.refuse(w.key, guest, Why::TooMany));
            match queue {
                Some(queue) => now.extend(wanted.into_iter().map(|w| (queue, w))),
                None => wanted.into_iter().for_each(|w| queues.refuse(w.key, guest, Why::NoQueue)),
            }
        }
        if now.is_empty() {
            return;
        }
        let gaining = Which::of(now.iter().map(|(queue, _)| *queue));
        self.with_queues_paused(self.ports[uplink].idx, gaining, |switch| {
            for (queue, Wanted { key, guest, to }) in now {
                let device = switch.ports[uplink].device.as_ref().expect("it has queues");
                let rules: Result<Vec<Rule>, _> = to.iter().map(|to| device.send_to_queue(*to, queue)).collect();
                let queues = switch.guest_queues(uplink);
                match rules {
                    Ok(rules) => drop(queues.rules.insert(key, InstalledFlow { guest, to, rules })),
                    Err(e) => queues.refuse(key, guest, Why::Device(e.why)),
                }
            }
        });
    }

    /// The number of the guest's queues: those it has, or free ones, or another's that has no rule.
    fn queue_for(&mut self, uplink: &str, guest: PortIdx) -> Option<u16> {
        let idx = self.ports[uplink].idx;
        let queues = self.guest_queues(uplink);
        if let Some(own) = queues.owned.get(&guest) {
            return Some(own.number);
        }
        if queues.spare.is_empty()
            && let Some(idle) = queues.idle_guest()
        {
            self.release_queues(uplink, idle);
        }
        let worker = self.owner(guest);
        let queues = self.guest_queues(uplink);
        let (mut rx, tx) = queues.spare.pop()?;
        discard(&mut rx);
        let (number, sent) = (rx.number(), Arc::new(LoneCount::default()));
        queues.owned.insert(guest, GuestQueuePair { number, sent: sent.clone() });
        self.give_rx_to(uplink, RxKind::Eth(rx), worker);
        self.workers[worker].shared.post(None, [Command::AddGuestTx(idx, guest, TxHandle::Guest(tx, sent))]);
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
                self.workers[to].shared.post(None, add);
            }
        }
    }

    /// The receive queues of uplinks that a guest has.
    pub(super) fn uplink_queues_of(&self, guest: &str) -> impl Iterator<Item = &QueueSide> {
        let guest = self.ports.get(guest).map(|p| p.idx);
        self.ports.iter().filter_map(move |(uplink, p)| {
            let (worker, at) = self.place_of(uplink, p.guest_queues()?.owned.get(&guest?)?.number)?;
            self.workers[worker].queues.get(at)
        })
    }

    /// The guests that have queues of an uplink.
    pub(super) fn guest_queue_reports(&self, uplink: &str, queues: &GuestQueues) -> Vec<v1::GuestQueue> {
        let report = |(guest, own): (&PortIdx, &GuestQueuePair)| {
            let place = self.place_of(uplink, own.number);
            v1::GuestQueue {
                port: self.port_name(*guest),
                queue: u32::from(own.number),
                addresses: queues.ruled(*guest) as u32,
                core: place.map_or(0, |(w, _)| self.workers[w].shared.core as u32),
                rx_frames: place.map_or(0, |(w, at)| self.workers[w].queues[at].frames.get()),
                tx_frames: own.sent.get(),
            }
        };
        queues.owned.iter().map(report).collect()
    }

    /// Makes a change after which frames of an uplink go into the queues `gaining`, from others. The gaining ones rest
    /// until what the others held at the change is through, and what of it went from worker to worker.
    fn with_queues_paused(&mut self, uplink: PortIdx, gaining: Which, change: impl FnOnce(&mut Self)) {
        let paused = self.pause(uplink, gaining);
        change(self);
        self.pass_rounds(ROUNDS);
        self.drain_rings();
        self.resume(paused);
    }
}

/// Throws away what came by a queue while it had no owner: before the device was set up to put there, or after its
/// last rule went. Its addresses are of that time.
fn discard(rx: &mut RxQueue) {
    let mut burst: ArrayVec<Mbuf, { LEAST_BURST as usize }> = ArrayVec::new();
    for _ in 0..=GUEST_DESCRIPTORS / LEAST_BURST {
        if rx.receive(&mut burst) == 0 {
            break;
        }
        burst.clear();
    }
}
