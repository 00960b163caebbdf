//! Which worker polls which receive queue: pinned by the operator, or where the load is least.
//!
//! A queue moves whole and between two rounds: the worker that has it sends what it received, then
//! hands the queue to the other one itself. So no frame is lost, and frames of one flow, which the
//! device puts into one queue, leave in the order they came.

use std::sync::Arc;

use dunlin_dataplane_api::v1;

use super::{PortRuntime, Switch, WorkerHandle, ask};
use crate::{
    queues::{LoneCount, RxHandle, RxKind},
    share::TimeShare,
    worker::Command,
};

/// Ticks between two looks of the automatic mode, which follows the mean over as many.
const AUTO_TICKS: u32 = 20;
/// Shares of a core by which the busiest worker must get better: for a move that was asked for, and
/// for one of the automatic mode, so that queues do not wander to and fro.
const GAIN: f64 = 0.02;
const AUTO_GAIN: f64 = 0.15;

/// One receive queue of a worker.
pub(super) struct QueueSide {
    pub port: String,
    pub number: u16,
    pub frames: Arc<LoneCount>,
    sampled: u64,
    /// Share of its worker's core that its frames take: over the last tick, and over the last few.
    pub share: f64,
    mean_share: f64,
}

impl QueueSide {
    /// Brings the shares up to date: of `busy_share` for `frames` of all queues.
    pub fn sample(&mut self, frames: u64, busy_share: f64) {
        let now = self.frames.get();
        let own = now - std::mem::replace(&mut self.sampled, now);
        self.share = if frames == 0 { 0.0 } else { busy_share * own as f64 / frames as f64 };
        self.mean_share += (self.share - self.mean_share) / f64::from(AUTO_TICKS);
    }
}

/// A queue that should move: from which worker, which of its queues, to which worker.
type Move = (usize, usize, usize);

/// What a queue weighs: its share of a core, and the workers it may go to.
#[derive(Clone, Debug, Default)]
struct Load {
    share: f64,
    may_go_to: Vec<usize>,
}

/// The moves that bring busy workers down, each by at least `gain`, out of the load of each worker and queue.
fn plan(mut loads: Vec<Vec<Load>>, gain: f64) -> Vec<Move> {
    let mut moves = Vec::new();
    // Each move brings two workers nearer to each other, so this ends; a bound all the same.
    while moves.len() < 64 {
        let totals: Vec<f64> = loads.iter().map(|w| w.iter().map(|q| q.share).sum()).collect();
        let mut order: Vec<usize> = (0..loads.len()).collect();
        order.sort_by(|a, b| totals[*b].total_cmp(&totals[*a]));
        // The busiest may have nothing that helps, one large queue or pinned ones: then the next. The
        // idlest may be of another node.
        let pairs =
            order.iter().enumerate().flat_map(|(i, most)| order[i + 1..].iter().rev().map(move |to| (*most, *to)));
        let mut best = pairs.filter_map(|(most, to)| {
            let after = |q: &Load| (totals[most] - q.share).max(totals[to] + q.share);
            let movable = loads[most].iter().enumerate().filter(|(_, q)| q.share > 0.0 && q.may_go_to.contains(&to));
            let (at, q) = movable.min_by(|(_, a), (_, b)| after(a).total_cmp(&after(b)))?;
            (after(q) <= totals[most] - gain).then_some((most, at, to))
        });
        let Some((from, at, to)) = best.next() else { break };
        // Its place stays, empty, so that places mean the same for later moves.
        let share = std::mem::take(&mut loads[from][at]).share;
        loads[to].push(Load { share, ..Load::default() });
        moves.push((from, at, to));
    }
    moves
}

/// The workers of `nodes` that should poll a device of `node`: those of the same, or all.
fn near(node: Option<u32>, nodes: &[Option<u32>]) -> Vec<usize> {
    let of_node: Vec<usize> = (0..nodes.len()).filter(|w| node.is_some() && nodes[*w] == node).collect();
    if of_node.is_empty() { (0..nodes.len()).collect() } else { of_node }
}

impl Switch {
    /// Gives a receive queue to the worker it is pinned to, or to the one that has fewest.
    pub(super) fn give_rx(&mut self, name: &str, queue: RxKind) {
        let fewest = self.near(name).into_iter().min_by_key(|w| self.workers[*w].queues.len());
        let to = self.pinned_to(name, queue.number()).or(fewest).expect("there is a worker");
        self.give_rx_to(name, queue, to);
    }

    /// Gives it to the worker `to`.
    pub(super) fn give_rx_to(&mut self, name: &str, queue: RxKind, to: usize) {
        let PortRuntime { idx, complete_checksums, .. } = self.ports[name];
        let (number, frames) = (queue.number(), Arc::new(LoneCount::default()));
        let of_one_guest = self.ports[name].is_for_guests(number);
        let rx = RxHandle {
            port: idx,
            queue,
            complete_checksums,
            of_one_guest,
            frames: frames.clone(),
            share: TimeShare::default(),
        };
        let side = QueueSide { port: name.to_owned(), number, frames, sampled: 0, share: 0.0, mean_share: 0.0 };
        self.workers[to].queues.push(side);
        self.workers[to].shared.post(None, [Command::AddRx(rx)]);
    }

    /// The workers that may poll a port of which nothing is pinned.
    fn near(&self, name: &str) -> Vec<usize> {
        let nodes: Vec<Option<u32>> = self.workers.iter().map(|w| w.node).collect();
        near(self.ports.get(name).and_then(|p| p.device.as_ref().ok()?.node), &nodes)
    }

    /// The worker that queue `number` of a port is pinned to. A guest's goes where the guest's own queues are.
    fn pinned_to(&self, name: &str, number: u16) -> Option<usize> {
        let port = self.ports.get(name).filter(|p| !p.is_for_guests(number))?;
        let cores = &port.pinned;
        let core = cores.get(usize::from(number) % cores.len().max(1))?;
        self.workers.iter().position(|w| w.shared.core == *core)
    }

    /// Moves the queues of a port to where they are pinned.
    pub(super) fn follow_pins(&mut self, name: &str) {
        for from in 0..self.workers.len() {
            // From the last to the first: a queue that leaves changes no place before it.
            for at in (0..self.workers[from].queues.len()).rev() {
                let q = &self.workers[from].queues[at];
                if q.port == name
                    && let Some(to) = self.pinned_to(name, q.number).filter(|to| *to != from)
                {
                    self.move_queue(from, at, to);
                }
            }
        }
    }

    /// Which worker has a queue, and which of its queues that is.
    pub(super) fn place_of(&self, port: &str, number: u16) -> Option<(usize, usize)> {
        let is = |q: &QueueSide| (q.port.as_str(), q.number) == (port, number);
        self.workers.iter().enumerate().find_map(|(i, w)| Some((i, w.queues.iter().position(is)?)))
    }

    pub(super) fn move_queue(&mut self, from: usize, at: usize, to: usize) -> v1::QueueMove {
        let side = self.workers[from].queues.remove(at);
        let (source, target) = (&self.workers[from].shared, &self.workers[to].shared);
        let moved = v1::QueueMove {
            port: side.port.clone(),
            queue: u32::from(side.number),
            from_core: source.core as u32,
            to_core: target.core as u32,
        };
        let (port, number) = (self.ports[&side.port].idx, side.number);
        // Waited for, so that a later change of the port's queues finds it with its new owner.
        ask(source, |reply| Command::MoveRx { port, number, to: target.clone(), reply });
        self.workers[to].queues.push(side);
        self.queue_moves += 1;
        moved
    }

    /// Moves queues from busy workers to idle ones, as often as that helps.
    pub fn rebalance(&mut self) -> Vec<v1::QueueMove> {
        self.rebalance_by(|q| q.share, GAIN)
    }

    fn rebalance_by(&mut self, share: impl Fn(&QueueSide) -> f64, gain: f64) -> Vec<v1::QueueMove> {
        // What a guest has of uplinks goes with its first queue.
        let with_uplinks = |q: &QueueSide| match q.number {
            0 => share(q) + self.uplink_queues_of(&q.port).map(&share).sum::<f64>(),
            _ => share(q),
        };
        let load = |w: &WorkerHandle| {
            let movable = |q: &QueueSide| self.ports.get(&q.port).is_some_and(|p| p.pinned.is_empty());
            let may_go_to = |q: &QueueSide| if movable(q) { self.near(&q.port) } else { Vec::new() };
            let of_guests = |q: &QueueSide| self.ports.get(&q.port).is_some_and(|p| p.is_for_guests(q.number));
            let load = |q: &QueueSide| Load { share: with_uplinks(q), may_go_to: may_go_to(q) };
            w.queues.iter().map(|q| if of_guests(q) { Load::default() } else { load(q) }).collect()
        };
        let moves = plan(self.workers.iter().map(load).collect(), gain);
        // By name: places shift with every move.
        let queue = |from: usize, at: usize| &self.workers[from].queues[at];
        let named: Vec<_> = moves
            .into_iter()
            .map(|(from, at, to)| (queue(from, at).port.clone(), queue(from, at).number, to))
            .collect();
        let mut moved = Vec::new();
        for (port, number, to) in named {
            moved.extend(self.place_of(&port, number).map(|(from, at)| self.move_queue(from, at, to)));
        }
        self.follow_owners();
        self.follow_fresh();
        moved
    }

    /// One tick of the automatic mode.
    pub(super) fn rebalance_automatically(&mut self) {
        self.auto_ticks += 1;
        if !self.configuration.resolved().dataplane.rebalance || self.auto_ticks < AUTO_TICKS {
            return;
        }
        self.auto_ticks = 0;
        for m in self.rebalance_by(|q| q.mean_share, AUTO_GAIN) {
            tracing::info!(
                "queue {} of port '{}' moved from core {} to core {}",
                m.queue,
                m.port,
                m.from_core,
                m.to_core
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free(shares: &[&[f64]]) -> Vec<Vec<Load>> {
        let all = || (0..shares.len()).collect();
        shares.iter().map(|w| w.iter().map(|s| Load { share: *s, may_go_to: all() }).collect()).collect()
    }

    #[test]
    fn the_busiest_worker_gives_what_helps_most() {
        assert_eq!(plan(free(&[&[0.4, 0.4], &[]]), GAIN), [(0, 0, 1)]);
        assert_eq!(plan(free(&[&[0.6, 0.3], &[0.1]]), GAIN), [(0, 1, 1)]);
        // One queue that fills a core can't be made smaller.
        assert_eq!(plan(free(&[&[1.0], &[]]), GAIN), []);
        assert_eq!(plan(free(&[&[0.3], &[0.3]]), GAIN), []);
        // It does not keep the others from spreading.
        assert_eq!(plan(free(&[&[1.0], &[0.4, 0.4], &[]]), GAIN), [(1, 0, 2)]);
        assert_eq!(plan(Vec::new(), GAIN), []);
        assert_eq!(plan(free(&[&[0.5, 0.5]]), GAIN), []);
    }

    #[test]
    fn pinned_queues_stay_and_small_gains_move_nothing() {
        let mut pinned = free(&[&[0.4, 0.3], &[]]);
        pinned[0][0].may_go_to.clear();
        assert_eq!(plan(pinned, GAIN), [(0, 1, 1)]);
        assert_eq!(plan(free(&[&[0.3, 0.1], &[0.2]]), AUTO_GAIN), []);
        assert_eq!(plan(free(&[&[0.3, 0.1], &[0.2]]), GAIN), [(0, 1, 1)]);
    }

    #[test]
    fn many_queues_spread_evenly() {
        let mut loads = free(&[&[0.1; 8], &[], &[]]);
        for (from, at, to) in plan(loads.clone(), GAIN) {
            let load = std::mem::take(&mut loads[from][at]);
            loads[to].push(load);
        }
        let most = loads.iter().map(|w| w.iter().map(|q| q.share).sum::<f64>()).fold(0.0, f64::max);
        assert!(most < 0.31, "{loads:?}");
    }

    #[test]
    fn queues_stay_on_their_node() {
        let nodes = [Some(0), Some(0), Some(1)];
        assert_eq!(near(Some(0), &nodes), [0, 1]);
        assert_eq!((near(Some(7), &nodes), near(None, &nodes)), (vec![0, 1, 2], vec![0, 1, 2]));
        let mut loads = free(&[&[0.4, 0.4], &[0.1], &[]]);
        loads[0].iter_mut().for_each(|q| q.may_go_to = near(Some(0), &nodes));
        assert_eq!(plan(loads, GAIN), [(0, 0, 1), (1, 0, 2)]);
    }
}
