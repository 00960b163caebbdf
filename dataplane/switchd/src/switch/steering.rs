//! Who owns which port, for steering by destination (`crate::steering`).

use std::{collections::BTreeSet, sync::Arc};

use dunlin_engine::{MAX_PORTS, PortIdx};

use super::{Switch, ask_all};
use crate::{
    queues::RxHandle,
    steering::{Link, Owners, ring},
    worker::{Command, Which},
};

impl Switch {
    /// Brings the workers' owners up to date with ports and queues. A port is its first queue's worker's.
    ///
    /// While they change, the steered ports' queues rest with this thread, and the rings are empty: no
    /// frame of before is overtaken by one of after. The devices' own rings take what arrives meanwhile.
    pub(super) fn follow_owners(&mut self) {
        let steered: Vec<PortIdx> = self.ports.values().filter(|p| p.steered).map(|p| p.idx).collect();
        let wanted = if steered.is_empty() || self.workers.len() < 2 { None } else { Some(self.owners(steered)) };
        if wanted.as_ref() == self.owners.as_deref() {
            return;
        }
        if !self.linked {
            self.link_workers();
        }
        let both = [wanted.as_ref(), self.owners.as_deref()];
        let paused: BTreeSet<PortIdx> = both.into_iter().flatten().flat_map(|o| o.steered.iter().copied()).collect();
        let queues: Vec<_> = paused.into_iter().flat_map(|idx| self.pause(idx, Which::ALL)).collect();
        self.drain_rings();
        self.owners = wanted.map(Arc::new);
        for w in &self.workers {
            w.shared.post(None, [Command::SteerBy(self.owners.clone())]);
        }
        self.resume(queues);
    }

    /// Takes queues of a port from their workers for a moment: each with the worker's number.
    pub(super) fn pause(&self, port: PortIdx, which: Which) -> Vec<(usize, RxHandle)> {
        let back = ask_all(&self.workers, |reply| Command::RemoveRx(port, which, reply));
        back.into_iter().flat_map(|(i, queues)| queues.into_iter().map(move |rx| (i, rx))).collect()
    }

    /// Gives them back.
    pub(super) fn resume(&self, paused: Vec<(usize, RxHandle)>) {
        for (i, rx) in paused {
            self.workers[i].shared.post(None, [Command::AddRx(rx)]);
        }
    }

    fn owners(&self, steered: Vec<PortIdx>) -> Owners {
        let mut of = Box::new([None; MAX_PORTS]);
        // The lowest queue last, so that it is the one that counts.
        let mut queues: Vec<(u16, &str, usize)> = Vec::new();
        for (i, w) in self.workers.iter().enumerate() {
            queues.extend(w.queues.iter().map(|q| (q.number, q.port.as_str(), i)));
        }
        queues.sort_unstable_by(|a, b| b.cmp(a));
        for (_, port, worker) in queues {
            if let Some(p) = self.ports.get(port).filter(|p| !p.steered) {
                of[p.idx.get()] = u8::try_from(worker).ok();
            }
        }
        Owners { steered, of }
    }

    /// A ring from every worker to every other, made when the first port is steered.
    fn link_workers(&mut self) {
        let n = self.workers.len();
        let mut ends: Vec<_> = (0..n).map(|_| (Vec::new(), Vec::new())).collect();
        for from in 0..n {
            for to in 0..n {
                let producer = (from != to).then(|| {
                    let (producer, consumer) = ring();
                    ends[to].1.push(consumer);
                    Link { ring: producer, doorbell: self.workers[to].shared.doorbell.clone() }
                });
                ends[from].0.push(producer);
            }
        }
        for (w, (to, from)) in self.workers.iter().zip(ends) {
            w.shared.post(None, [Command::Connect(to, from)]);
        }
        self.linked = true;
    }

    /// Waits until every frame that was on its way between workers has arrived. Nobody passes more of
    /// those that matter to the caller.
    pub(super) fn drain_rings(&self) {
        if self.linked {
            self.pass_rounds(1);
        }
    }

    /// Waits until every worker has gone so many rounds, or has nothing to do.
    pub(super) fn pass_rounds(&self, rounds: u32) {
        ask_all(&self.workers, |reply| Command::Drain(rounds, reply));
    }
}
