//! What changes by itself: links, guests, ages, addresses that move.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use dunlin_dataplane_api::{unix_ms, v1};
use dunlin_engine::{MacAddr, PortIdx, SegmentId, output::MacLearned, tables::mac::Key};

use super::Switch;
use crate::events::{guest_event, port_event};

/// Moves within [`FLAP_WINDOW_MS`] that make a flap.
const FLAP_MOVES: u64 = 5;
const FLAP_WINDOW_MS: u64 = 10_000;
/// How long a flap is reported after its last move.
const FLAP_KEPT_MS: u64 = 300_000;
/// Addresses followed at most: the rest is only counted.
const FLAP_TRACKED: usize = 4096;
/// Times that a link may go down within [`FLAP_WINDOW_MS`] before it is held down.
const LINK_DOWNS: u32 = 5;
/// For so long.
const HOLD_DOWN: Duration = Duration::from_secs(1);
/// Learned and moved addresses taken from one worker in one tick.
const LEARNED_A_TICK: usize = 8192;
/// Learned and aged addresses reported in one tick: events of ports and guests must not drown in them.
const REPORTED_A_TICK: u64 = 1024;

/// What was reported of addresses in this tick, and how many were too many.
#[derive(Default)]
struct Reported {
    reported: u64,
    skipped: u64,
}

impl Reported {
    fn report(
        &mut self,
        switch: &Switch,
        what: fn(v1::MacAt) -> v1::event::What,
        segment: SegmentId,
        mac: MacAddr,
        port: PortIdx,
    ) {
        if self.reported == REPORTED_A_TICK {
            self.skipped += 1;
        } else if let Some(at) = switch.mac_at(segment, mac, port) {
            self.reported += 1;
            switch.events.send(what(at));
        }
    }
}

/// How often a port's link goes down: a guest that starts and stops its device in a loop must not keep the switch busy.
#[derive(Default)]
pub(super) struct LinkFlaps {
    downs: u32,
    since: Option<Instant>,
    held_until: Option<Instant>,
}

impl LinkFlaps {
    /// Whether the link counts as down, whatever the device says.
    fn are_held(&self, now: Instant) -> bool {
        self.held_until.is_some_and(|until| now < until)
    }

    /// The link went down; whether it is held down from now on.
    fn note(&mut self, now: Instant) -> bool {
        let window = Duration::from_millis(FLAP_WINDOW_MS);
        if self.since.is_none_or(|since| now.duration_since(since) > window) {
            (self.since, self.downs) = (Some(now), 0);
        }
        self.downs += 1;
        let held = self.downs > LINK_DOWNS;
        self.held_until = held.then(|| now + HOLD_DOWN);
        held
    }
}

#[derive(Default)]
pub struct Flaps(HashMap<(SegmentId, MacAddr), Track>);

struct Track {
    moves: u64,
    since_ms: u64,
    last_ms: u64,
    last: v1::MacMove,
    flapping: bool,
}

impl Flaps {
    /// Whether an address flaps.
    pub(super) fn has(&self, segment: SegmentId, mac: MacAddr) -> bool {
        self.0.get(&(segment, mac)).is_some_and(|t| t.flapping)
    }
}

impl Switch {
    /// Brings the snapshot up to date with links and guests; tells what changed. Devices that are lost are closed if
    /// that may be done now.
    pub fn sync_links(&mut self, may_close: bool) {
        let lost = |p: &super::PortRuntime| p.device.as_ref().ok().and_then(|d| d.lost());
        let all = self.ports.iter().filter(|_| may_close);
        let gone: Vec<(String, String)> = all.filter_map(|(n, p)| Some((n.clone(), lost(p)?))).collect();
        for (name, why) in gone {
            tracing::warn!("port '{name}': {why}");
            self.close_device(&name);
            self.events.send(port_event(&name, v1::port_event::Kind::Down));
            if let Some(p) = self.ports.get_mut(&name) {
                p.device = Err(why);
            }
        }
        let mut downs = Vec::new();
        let mut more_queues = Vec::new();
        for (name, p) in &mut self.ports {
            let up = p.device.as_ref().is_ok_and(|d| d.up()) && !p.flaps.are_held(Instant::now());
            if let Some(g) = p.device.as_ref().ok().and_then(|d| d.guest()) {
                if (g.connected, g.running) != p.guest {
                    p.guest = (g.connected, g.running);
                    self.events.send(guest_event(name, g.connected, g.running));
                }
                let given = usize::from(dunlin_dpdk::vhost::MAX_QUEUE_PAIRS) - p.spare_rx.len();
                for _ in given..usize::from(g.queue_pairs) {
                    let queue = p.spare_rx.remove(0);
                    more_queues.push((name.clone(), queue));
                }
            }
            if up != p.up {
                p.up = up;
                self.topology.set_up(name, up);
                self.snapshot.set_link(p.idx, up);
                let kind = if up { v1::port_event::Kind::Up } else { v1::port_event::Kind::Down };
                self.events.send(port_event(name, kind));
                if !up {
                    downs.push(p.idx);
                    if p.flaps.note(Instant::now()) {
                        tracing::warn!("port '{name}': its link flaps: it is held down for {} s", HOLD_DOWN.as_secs());
                    }
                }
            }
        }
        if !more_queues.is_empty() {
            more_queues.into_iter().for_each(|(name, queue)| self.give_rx(&name, queue));
            self.follow_owners();
        }
        for idx in downs {
            self.macs.flush(idx.owns());
        }
    }

    /// One tick: ages a part of the mac table, and takes note of moves.
    pub fn tick(&mut self) {
        let snapshot = self.snapshot.clone();
        let ageing = |s: SegmentId| snapshot.segment(s).map_or(0, |s| s.ageing_s);
        let mut reported = Reported::default();
        self.macs.sweep(self.macs.parts(), self.clock.now().s, ageing, |e| {
            reported.report(self, v1::event::What::Aged, e.segment, e.mac, e.port);
        });
        let now_ms = unix_ms();
        for w in 0..self.workers.len() {
            // Not until it is empty: a guest that makes up addresses fills it as fast as it is read.
            for _ in 0..LEARNED_A_TICK {
                let Some(m) = self.workers[w].shared.next_learned() else { break };
                self.note_address(Key::new(m.mac, m.segment), m.at);
                match m.from {
                    Some(from) => self.note_move(&m, from, now_ms),
                    None => reported.report(self, v1::event::What::Learned, m.segment, m.mac, m.at),
                }
            }
        }
        if reported.skipped > 0 {
            self.events.send(v1::event::What::Lost(reported.skipped));
        }
        self.flaps
            .0
            .retain(|_, t| now_ms.saturating_sub(t.last_ms) < if t.flapping { FLAP_KEPT_MS } else { FLAP_WINDOW_MS });
        self.free_replaced();
        self.follow_noted_guests();
        self.tick_filters();
        self.sample_workers();
        self.sample_interfaces();
        self.rebalance_automatically();
    }

    pub(super) fn port_name(&self, idx: PortIdx) -> String {
        self.snapshot.port(idx).map_or_else(|| "(gone)".into(), |p| p.name.to_string())
    }

    fn mac_at(&self, segment: SegmentId, mac: MacAddr, port: PortIdx) -> Option<v1::MacAt> {
        let segment = self.snapshot.segment(segment)?;
        let (bridge, vid) = segment.label();
        let (bridge, vlan) = (bridge.to_string(), u32::from(vid));
        Some(v1::MacAt { bridge, vlan, mac: mac.to_string(), port: self.port_name(port) })
    }

    fn note_move(&mut self, m: &MacLearned, from: PortIdx, now_ms: u64) {
        let Some(at) = self.mac_at(m.segment, m.mac, m.at) else { return };
        let v1::MacAt { bridge, vlan, mac, port: to } = at;
        let last = v1::MacMove { bridge, vlan, mac, from: self.port_name(from), to };
        let tracks = &mut self.flaps.0;
        if tracks.len() >= FLAP_TRACKED && !tracks.contains_key(&(m.segment, m.mac)) {
            return;
        }
        let t = tracks.entry((m.segment, m.mac)).or_insert_with(|| Track {
            moves: 0,
            since_ms: now_ms,
            last_ms: now_ms,
            last: last.clone(),
            flapping: false,
        });
        if !t.flapping && now_ms - t.since_ms > FLAP_WINDOW_MS {
            (t.moves, t.since_ms) = (0, now_ms);
        }
        t.moves += 1;
        t.last_ms = now_ms;
        t.last = last.clone();
        // Of an address that flaps, the report is enough: its moves are not reported one by one.
        if t.flapping {
            return;
        }
        self.events.send(v1::event::What::MacMove(last));
        if t.moves >= FLAP_MOVES {
            t.flapping = true;
            tracing::warn!("{} flaps between ports '{}' and '{}'", t.last.mac, t.last.from, t.last.to);
            self.events.send(v1::event::What::Flap(t.report()));
        }
    }

    /// Addresses that flap now or did within the last minutes.
    pub(super) fn flap_reports(&self) -> Vec<v1::Flap> {
        self.flaps.0.values().filter(|t| t.flapping).map(Track::report).collect()
    }
}

impl Track {
    fn report(&self) -> v1::Flap {
        v1::Flap { last: Some(self.last.clone()), moves: self.moves, since_unix_ms: self.since_ms }
    }
}
