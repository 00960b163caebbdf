//! Access lists and port security: what they counted, what there is, what would be.

use std::{collections::BTreeMap, net::IpAddr};

use dunlin_dataplane_api::v1;
use dunlin_engine::{
    context::Context, counters::Counters, output::Logged, packet::headers::Headers, snapshot::security::Lease,
    tables::acl::Acl, trace,
};

use super::{Switch, sessions::protocol_name};

/// The tables of connections are looked through for old ones in this many steps.
const SWEEP_PARTS: usize = 16;
/// Frames that are logged, taken from one worker in one tick.
const LOGGED_A_TICK: usize = 1024;
/// The largest frame that can be traced, in octets.
const MAX_TRACED: usize = 9216 + 22;

/// What the rules of lists counted before they were compiled anew, by list and rule as it is written.
#[derive(Default)]
pub(super) struct AclBase(BTreeMap<String, Vec<(u64, u64)>>);

impl AclBase {
    /// Frames and octets of each rule, since the list was made.
    fn counts(&self, acl: &Acl) -> Vec<(u64, u64)> {
        let base = self.0.get(&*acl.name);
        let of = |i: usize| base.and_then(|b| b.get(i)).copied().unwrap_or_default();
        acl.counts().into_iter().enumerate().map(|(i, (f, b))| (f + of(i).0, b + of(i).1)).collect()
    }

    /// What is counted goes on for rules that are in the list that follows; `None` if there is none.
    pub fn follow(&mut self, before: &Acl, old: &[String], now: Option<&[String]>) {
        let counts = self.counts(before);
        self.0.remove(&*before.name);
        let Some(now) = now else { return };
        // The same text twice: in the order in which they stand.
        let mut by_text: BTreeMap<&str, std::collections::VecDeque<(u64, u64)>> = BTreeMap::new();
        old.iter().zip(&counts).for_each(|(text, c)| by_text.entry(text).or_default().push_back(*c));
        let mut base: Vec<(u64, u64)> = now
            .iter()
            .map(|text| by_text.get_mut(text.as_str()).and_then(|q| q.pop_front()).unwrap_or_default())
            .collect();
        base.push(counts.last().copied().unwrap_or_default());
        self.0.insert(before.name.to_string(), base);
    }
}

impl Switch {
    /// All lists, or the one of a name.
    pub fn list_acls(&self, f: &v1::AclFilter) -> Result<Vec<v1::AclState>, String> {
        let meant = |a: &&std::sync::Arc<Acl>| f.name.is_empty() || *a.name == *f.name;
        let count = |(frames, bytes)| v1::RuleCount { frames, bytes };
        let report = |a: &std::sync::Arc<Acl>| v1::AclState {
            name: a.name.to_string(),
            counts: self.acl_base.counts(a).into_iter().map(count).collect(),
            memory_bytes: a.memory() as u64,
        };
        let all: Vec<_> = self.topology.acls().filter(meant).map(report).collect();
        if all.is_empty() && !f.name.is_empty() {
            return Err(format!("acl '{}': there is none of that name", f.name));
        }
        Ok(all)
    }

    /// What would happen to a frame.
    pub fn trace(&self, r: &v1::TraceRequest) -> Result<Vec<v1::TraceStep>, String> {
        let Some((port, _)) = self.topology.port(&r.port) else {
            return Err(format!("port '{}': there is none of that name", r.port));
        };
        if r.frame.len() > MAX_TRACED {
            return Err(format!("frame: {} octets; at most {MAX_TRACED} can be traced", r.frame.len()));
        }
        let counters = Counters::default();
        let (tables, none) = ((&*self.macs, &*self.sessions), (self.workers.len(), &counters));
        let cx = Context::new(&self.snapshot, tables, none, self.clock.now());
        let steps = trace::run(cx, port, &r.frame);
        Ok(steps.into_iter().map(|s| v1::TraceStep { stage: s.stage.into(), text: s.text }).collect())
    }

    /// Reports what was given to stations since the last look, if that was something: control stores it.
    pub fn sync_leases(&mut self, tick: bool) {
        // All flags are taken, not only the first.
        if self.workers.iter().filter(|w| w.shared.take_leased()).count() == 0 && !tick {
            return;
        }
        let now_s = self.clock.now().s;
        for (port, leases) in self.topology.changed_leases(now_s) {
            let identity = self.topology.identity(port);
            let leases = leases.iter().map(|l| lease(l, now_s)).collect();
            self.events.send(v1::event::What::Leases(v1::LeaseEvent { port: port.to_owned(), identity, leases }));
        }
    }

    /// What DHCP gave a port's station.
    pub(super) fn leases(&self, port: &str) -> Vec<v1::Lease> {
        let now_s = self.clock.now().s;
        self.topology.snooped(port, now_s).iter().map(|l| lease(l, now_s)).collect()
    }

    /// One tick: forgets a part of the connections and bindings that are too old, and tells of what rules log.
    pub(super) fn tick_filters(&mut self) {
        self.sweep_part = (self.sweep_part + 1) % SWEEP_PARTS;
        let (part, now_s) = ((self.sweep_part, SWEEP_PARTS), self.clock.now().s);
        self.sessions.expire(part, self.topology.sessions(), now_s);
        self.topology.bindings().expire(part, now_s);
        for w in 0..self.workers.len() {
            for _ in 0..LOGGED_A_TICK {
                let Some(l) = self.workers[w].shared.next_logged() else { break };
                self.events.send(v1::event::What::AclLog(self.log_entry(&l)));
            }
        }
    }

    fn log_entry(&self, l: &Logged) -> v1::AclLog {
        let is_rule = (l.rule as usize) < l.acl.number_of_rules();
        let direction = if l.ingress { "ingress" } else { "egress" };
        let entry = v1::AclLog {
            acl: l.acl.name.to_string(),
            rule: if is_rule { l.rule + 1 } else { 0 },
            action: l.action.name().into(),
            port: self.port_name(l.port),
            direction: direction.into(),
            frame: describe(&l.headers),
        };
        tracing::info!(
            "acl '{}' rule {}: {} at port '{}', {direction}: {}",
            entry.acl,
            entry.rule,
            entry.action,
            entry.port,
            entry.frame
        );
        entry
    }
}

/// A frame in words, as "tcp 10.0.0.1:4000 -> 10.0.0.2:80".
fn describe(h: &Headers) -> String {
    let (src, dst) = h.macs();
    let Some((from, to)) = h.addresses() else { return format!("{src} -> {dst} ethertype {:#06x}", h.ethertype()) };
    let protocol = protocol_name(h.protocol());
    match h.ports() {
        Some((kind, code)) if protocol.starts_with("icmp") => {
            format!("{protocol} {from} -> {to} type {kind} code {code}")
        }
        Some((a, b)) => {
            let end = |ip: IpAddr, port| std::net::SocketAddr::new(ip, port).to_string();
            format!("{protocol} {} -> {}", end(from, a), end(to, b))
        }
        None => format!("{protocol} {from} -> {to}"),
    }
}

fn lease(l: &Lease, now_s: u32) -> v1::Lease {
    v1::Lease { address: l.address.to_string(), left_s: l.until_s.saturating_sub(now_s) }
}
