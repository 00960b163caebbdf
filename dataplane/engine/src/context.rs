//! What all stages of one burst work with.

use std::cell::RefCell;

use crate::{
    DropReason, PortIdx, Snapshot,
    counters::Counters,
    cycles::{Stage, StageClock},
    tables::{conntrack::Conntrack, mac::MacTable},
};

/// One thing that was found out about the frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    /// Where on its way.
    pub stage: &'static str,
    /// What.
    pub text: String,
}

/// Collects steps: see [`Context::trace`].
#[derive(Default, Debug)]
pub struct Trace(RefCell<Vec<Step>>);

impl Trace {
    pub(crate) fn note(&self, stage: &'static str, text: String) {
        self.0.borrow_mut().push(Step { stage, text });
    }

    /// All steps.
    pub fn into_steps(self) -> Vec<Step> {
        self.0.into_inner()
    }
}

/// The time, as the caller's clock has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Now {
    /// Seconds, for filters, connections and bindings.
    pub s: u32,
    /// Nanoseconds, for rates. May start anywhere; must not go back.
    pub ns: u64,
}

/// What all stages of one burst work with.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The configuration.
    pub snapshot: &'a Snapshot,
    /// Where addresses are.
    pub macs: &'a MacTable,
    /// The worker's own counters.
    pub counters: &'a Counters,
    /// Tracked connections.
    pub sessions: &'a Conntrack,
    /// The worker's number: which of the counters of rules are its own.
    pub worker: usize,
    /// The time of the burst.
    pub now: Now,
    /// Takes note of what happens; then nothing is changed that others see.
    pub trace: Option<&'a Trace>,
    /// Measures the stages, if this burst is one of those.
    pub cycles: Option<&'a StageClock<'a>>,
}

impl<'a> Context<'a> {
    /// Of the worker with this number, neither traced nor measured.
    pub fn new(
        snapshot: &'a Snapshot,
        (macs, sessions): (&'a MacTable, &'a Conntrack),
        (worker, counters): (usize, &'a Counters),
        now: Now,
    ) -> Self {
        Context { snapshot, macs, counters, sessions, worker, now, trace: None, cycles: None }
    }

    /// A stage has ended for the burst.
    #[inline(always)]
    pub(crate) fn end(&self, stage: Stage) {
        if let Some(clock) = self.cycles {
            clock.end(stage);
        }
    }

    #[inline]
    pub(crate) fn drop(&self, port: PortIdx, reason: DropReason, n: u64) {
        self.counters.port(port).drops[reason as usize].add(n);
        if self.trace.is_some() && n > 0 {
            self.note_drop(port, reason);
        }
    }

    #[cold]
    #[inline(never)]
    fn note_drop(&self, port: PortIdx, reason: DropReason) {
        let name = self.snapshot.port(port).map_or("(gone)", |p| &p.name);
        self.note("drop", || format!("at port '{name}': {}: {}", reason.name(), reason.describe().trim()));
    }

    /// Notes a step of a frame that is traced.
    #[inline(always)]
    pub(crate) fn note(&self, stage: &'static str, text: impl FnOnce() -> String) {
        if let Some(trace) = self.trace {
            trace.note(stage, text());
        }
    }
}
