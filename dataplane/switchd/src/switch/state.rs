//! Reports: ports, workers, the mac table.

use dunlin_dataplane_api::v1;
use dunlin_dpdk::port::DeviceStats;
use dunlin_engine::{
    DropReason, MacAddr,
    counters::{Count, PortTotals},
    cycles::Stage,
    reason::Direction,
    snapshot::topology::is_hidden,
    tables::mac::{Entry, Key},
};

use super::{PortRuntime, Switch, WorkerHandle};

/// Problems that are named; of others it is said how many there are. All of them must fit into a message.
const MAX_PROBLEMS: usize = 1000;

/// A worker's loop counts at one moment, or between two.
#[derive(Clone, Copy, Default)]
pub struct LoopSample {
    polls: u64,
    bursts: u64,
    frames: u64,
    busy_cycles: u64,
    total_cycles: u64,
    slept_cycles: u64,
    stages: [u64; Stage::ALL.len()],
    measured: u64,
}

impl LoopSample {
    /// What was counted since `then`.
    fn since(self, then: Self) -> Self {
        LoopSample {
            polls: self.polls - then.polls,
            bursts: self.bursts - then.bursts,
            frames: self.frames - then.frames,
            busy_cycles: self.busy_cycles - then.busy_cycles,
            total_cycles: self.total_cycles - then.total_cycles,
            slept_cycles: self.slept_cycles - then.slept_cycles,
            stages: std::array::from_fn(|i| self.stages[i] - then.stages[i]),
            measured: self.measured - then.measured,
        }
    }

    fn stages(self) -> Vec<v1::StageState> {
        let cost = |s: &Stage| v1::StageState {
            name: s.name().into(),
            cycles_per_frame: ratio(self.stages[*s as usize], self.measured),
        };
        if self.measured == 0 { Vec::new() } else { Stage::ALL.iter().map(cost).collect() }
    }

    fn busy_share(self) -> f64 {
        ratio(self.busy_cycles, self.total_cycles)
    }
}

/// 0 of nothing is 0.
fn ratio(a: u64, b: u64) -> f64 {
    if b == 0 { 0.0 } else { a as f64 / b as f64 }
}

impl WorkerHandle {
    fn loop_sample(&self) -> LoopSample {
        let c = &self.shared.loop_counts;
        LoopSample {
            polls: c.polls.get(),
            bursts: c.bursts.get(),
            frames: c.frames.get(),
            busy_cycles: c.busy_cycles.get(),
            total_cycles: c.total_cycles.get(),
            slept_cycles: c.slept_cycles.get(),
            stages: self.shared.stages.cycles.each_ref().map(Count::get),
            measured: self.shared.stages.frames.get(),
        }
    }

    fn report(&self) -> v1::WorkerState {
        let (all, recent) = (self.loop_sample(), self.recent);
        v1::WorkerState {
            core: self.shared.core as u32,
            numa_node: self.node,
            queues: self
                .queues
                .iter()
                .map(|q| v1::WorkerQueue {
                    port: q.port.clone(),
                    queue: u32::from(q.number),
                    frames: q.frames.get(),
                    share: q.share,
                })
                .collect(),
            polls: all.polls,
            bursts: all.bursts,
            frames: all.frames,
            busy_cycles: all.busy_cycles,
            total_cycles: all.total_cycles,
            slept_cycles: all.slept_cycles,
            stages: recent.stages(),
            held_frames: self.shared.loop_counts.held.get(),
            allocations: self.shared.loop_counts.allocations.get(),
            passed_frames: self.shared.loop_counts.passed.get(),
            busy_share: recent.busy_share(),
            frames_per_burst: ratio(recent.frames, recent.bursts),
            cycles_per_frame: ratio(recent.busy_cycles, recent.frames),
            lost_events: self.shared.lost_events.load(std::sync::atomic::Ordering::Relaxed),
        }
    }
}

impl Switch {
    /// What is configured and not in force, devices that are missing among them.
    pub fn problems(&self) -> Vec<v1::Problem> {
        let missing = |(name, p): (&String, &PortRuntime)| {
            let reason = p.device.as_ref().err().filter(|_| p.is_waiting())?.clone();
            Some(v1::Problem { kind: "port".into(), name: name.clone(), field: "device".into(), reason })
        };
        let mut all: Vec<v1::Problem> =
            self.ports.iter().filter_map(missing).chain(self.problems.iter().cloned()).collect();
        if let Some(more) = all.len().checked_sub(MAX_PROBLEMS).filter(|n| *n > 0) {
            all.truncate(MAX_PROBLEMS);
            all.push(v1::Problem {
                kind: "dataplane".into(),
                name: "problems".into(),
                field: String::new(),
                reason: format!("and {more} more"),
            });
        }
        all
    }

    /// What the process is.
    pub fn info(&self) -> v1::Info {
        v1::Info {
            version: env!("CARGO_PKG_VERSION").into(),
            instance: self.instance,
            generation: self.generation,
            uptime_s: self.started.elapsed().as_secs(),
            cores: self.options.cores.iter().map(|c| *c as u32).collect(),
            memory_mb: self.options.memory_mb,
            hugepages: self.options.hugepages,
            applying: String::new(),
            problems: self.problems(),
        }
    }

    /// Everything there is to see, but addresses.
    pub fn state(&self) -> v1::State {
        let m = self.macs.statistics();
        v1::State {
            info: Some(self.info()),
            ports: self.ports.iter().map(|(name, p)| self.port_state(name, p)).collect(),
            workers: self.workers.iter().map(WorkerHandle::report).collect(),
            macs: Some(v1::MacState {
                entries: m.entries,
                capacity: m.capacity,
                learned: m.learned,
                moves: m.moves,
                aged: m.aged,
                evictions: m.evictions,
                refused_full: m.refused_full,
                refused_limit: m.refused_limit,
            }),
            removed_ports: Some(counters(&self.removed)),
            pools: self
                .pools
                .lock()
                .all()
                .into_iter()
                .map(|(name, p)| v1::PoolState { name, size: p.size(), in_use: p.in_use() })
                .collect(),
            flaps: self.flap_reports(),
            queue_moves: self.queue_moves,
            vteps: self.vtep_reports(),
            networks: self.network_reports(),
            sessions: Some(self.sessions_state()),
            bindings: Some(self.binding_report()),
            punts: self
                .underlay
                .punt_counts()
                .map(|p| v1::PuntState { kind: p.kind.into(), frames: p.frames, dropped: p.dropped })
                .collect(),
        }
    }

    fn port_state(&self, name: &str, p: &PortRuntime) -> v1::PortState {
        let device = p.device.as_ref();
        let stats = device.map_or_else(|_| DeviceStats::default(), |d| d.stats());
        let guest = device.ok().and_then(|d| d.guest());
        let (sessions, unanswered_sessions) = self.sessions.of_port(p.idx);
        let guest_queues = p.guest_queues();
        let placed = self.topology.port(name).map(|(_, s)| s);
        v1::PortState {
            identity: self.topology.identity(name),
            leases: self.leases(name),
            guest_queues: guest_queues.map_or_else(Vec::new, |g| self.guest_queue_reports(name, g)),
            sessions,
            unanswered_sessions,
            name: name.into(),
            bridge: placed.map(|s| s.bridge.clone()).filter(|b| !is_hidden(b)).unwrap_or_default(),
            network: placed.and_then(|s| s.network.clone()).unwrap_or_default(),
            up: p.up,
            error: p.device.as_ref().err().filter(|_| p.is_waiting()).cloned().unwrap_or_default(),
            admin_down: p.device.is_err() && !p.is_waiting(),
            driver: device.map_or("none", |d| d.driver).into(),
            note: device.map_or_else(|_| String::new(), |d| d.note.clone()),
            mtu: p.mtu,
            mac: device.ok().and_then(|d| d.mac).map(|m| MacAddr::from_octets(m).to_string()).unwrap_or_default(),
            guest: guest.map(|g| v1::GuestState {
                connected: g.connected,
                running: g.running,
                queue_pairs: u32::from(g.queue_pairs),
                mergeable: g.mergeable,
                checksum: g.caps.checksum,
                tso4: g.caps.tso4,
                tso6: g.caps.tso6,
            }),
            counters: Some(counters(&self.totals(p.idx).since(&p.base))),
            device: Some(v1::DeviceCounters {
                rx_missed: stats.rx_missed,
                rx_errors: stats.rx_errors,
                rx_no_buffer: stats.rx_no_buffer,
                tx_errors: stats.tx_errors,
            }),
            hash_fields: device
                .ok()
                .and_then(|d| d.hash)
                .map_or_else(Vec::new, |h| h.names().into_iter().map(Into::into).collect()),
            device_steering: device.ok().map(|d| d.steers_by()).unwrap_or_default(),
            numa_node: device.ok().and_then(|d| d.node),
            steering: match (&self.owners, p.steered, guest_queues) {
                (_, true, Some(g)) if g.is_at_work() => "vmdq, in the device",
                (Some(_), true, _) => "vmdq, in software",
                (None, true, _) => "vmdq, of one worker",
                (_, false, _) => "",
            }
            .into(),
            interface_mtu: p.interface_mtu,
            fallback: device.map_or_else(|_| String::new(), |d| d.fallback.clone()),
            macs: self.macs.port_entries(p.idx),
            rx_queues: guest.map_or_else(|| device.map_or(0, |d| d.rx_queues), |g| u32::from(g.queue_pairs)),
            tx_queues: guest.map_or_else(|| device.map_or(0, |d| d.tx_queues), |g| u32::from(g.queue_pairs)),
        }
    }

    /// Notes which kernel interfaces take less than their ports send; called once a second.
    pub(super) fn sample_interfaces(&mut self) {
        for (name, p) in &mut self.ports {
            let mtu = p.device.as_ref().ok().and_then(|d| d.interface_mtu()).filter(|mtu| *mtu < p.mtu);
            if let Some(mtu) = mtu.filter(|_| p.interface_mtu != mtu) {
                tracing::warn!(
                    "port '{name}': its interface takes {mtu} octets, and drops larger frames up to {}",
                    p.mtu
                );
            }
            p.interface_mtu = mtu;
        }
    }

    /// Notes the workers' counts; called once a second.
    pub(super) fn sample_workers(&mut self) {
        for w in &mut self.workers {
            let (now, then) = (w.loop_sample(), w.sample);
            w.recent = now.since(then);
            w.sample = now;
            let busy = w.recent.busy_share();
            w.queues.iter_mut().for_each(|q| q.sample(w.recent.frames, busy));
        }
    }

    /// The addresses that `filter` matches, at one moment.
    pub fn list_macs(&self, filter: &v1::MacFilter) -> Result<Vec<v1::MacEntry>, String> {
        let matches = self.matcher(filter)?;
        let now_s = self.clock.now().s;
        let mut list = Vec::new();
        self.macs.for_each(|e| {
            if !matches(e) {
                return;
            }
            if let (Some(s), Some(p)) = (self.snapshot.segment(e.segment), self.snapshot.port(e.port)) {
                list.push(v1::MacEntry {
                    bridge: s.label().0.to_string(),
                    vlan: u32::from(s.label().1),
                    mac: e.mac.to_string(),
                    port: p.name.to_string(),
                    is_static: e.is_static,
                    age_s: e.age_s(now_s),
                });
            }
        });
        list.sort_by(|a, b| (&a.bridge, a.vlan, &a.mac).cmp(&(&b.bridge, b.vlan, &b.mac)));
        Ok(list)
    }

    /// Forgets the learned addresses that `filter` matches; how many.
    pub fn flush_macs(&self, filter: &v1::MacFilter) -> Result<u64, String> {
        if let Some(vid) = filter.vlan.filter(|v| *v > 4094) {
            return Err(format!("vlan: {vid} is not in 0 to 4094"));
        }
        // One address of one VLAN needs no walk through the table.
        if let (Some(vid), false, false) = (filter.vlan, filter.bridge.is_empty(), filter.mac.is_empty())
            && let Some(segment) = self.topology.segment(&filter.bridge, vid as u16)
            && filter.port.is_empty()
        {
            let key = Key::new(parse_mac(&filter.mac)?, segment);
            return Ok(u64::from(!self.entries.contains_key(&key) && self.macs.remove(key)));
        }
        let matches = self.matcher(filter)?;
        Ok(self.macs.flush(matches))
    }

    fn matcher<'a>(&'a self, f: &'a v1::MacFilter) -> Result<impl Fn(&Entry) -> bool + 'a, String> {
        let mac = if f.mac.is_empty() { None } else { Some(parse_mac(&f.mac)?) };
        let port = match self.topology.number_of(&f.port) {
            Some(idx) => Some(idx),
            None if f.port.is_empty() => None,
            None => return Err(format!("port '{}': there is none of that name", f.port)),
        };
        if !f.bridge.is_empty()
            && self.topology.bridge(&f.bridge).is_none()
            && self.topology.network_place(&f.bridge).is_none()
        {
            return Err(format!("bridge '{}': there is none of that name", f.bridge));
        }
        Ok(move |e: &Entry| {
            mac.is_none_or(|m| m == e.mac)
                && port.is_none_or(|p| p == e.port)
                && self.snapshot.segment(e.segment).is_some_and(|s| {
                    (f.bridge.is_empty() || **s.label().0 == *f.bridge)
                        && f.vlan.is_none_or(|v| v == u32::from(s.label().1))
                })
        })
    }
}

fn parse_mac(s: &str) -> Result<MacAddr, String> {
    s.parse().map_err(|e: dunlin_model::mac::BadMac| e.to_string())
}

pub(super) fn counters(t: &PortTotals) -> v1::Counters {
    let drops = DropReason::ALL.iter().map(|r| v1::Drop {
        reason: r.name().into(),
        direction: match r.direction() {
            Direction::Rx => "rx",
            Direction::Tx => "tx",
        }
        .into(),
        frames: t.drops[*r as usize],
        meaning: if t.drops[*r as usize] > 0 { r.describe().trim().to_owned() } else { String::new() },
    });
    v1::Counters {
        rx_frames: t.rx_frames,
        rx_bytes: t.rx_bytes,
        tx_frames: t.tx_frames,
        tx_bytes: t.tx_bytes,
        clones: t.clones,
        drops: drops.collect(),
    }
}
