//! Where a worker's cycles go: the time-stamp counter is read behind each stage of some bursts.

use std::cell::Cell;

use crate::counters::Count;

/// The stages that are measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// The driver's receive.
    Receive,
    /// Headers, VLAN and segment.
    Parse,
    /// Port security, ingress ACLs and connections; what enters and leaves tunnels.
    Ingress,
    /// Both addresses in the MAC table, and learning.
    Lookup,
    /// Storm limits.
    Police,
    /// All that is done for frames that leave: VLAN form, egress ACLs, replication, encapsulation.
    Emit,
    /// The driver's transmit.
    Transmit,
}

impl Stage {
    /// All of them, in their order.
    pub const ALL: [Stage; 7] =
        [Stage::Receive, Stage::Parse, Stage::Ingress, Stage::Lookup, Stage::Police, Stage::Emit, Stage::Transmit];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        ["receive", "parse", "ingress", "lookup", "police", "emit", "transmit"][self as usize]
    }
}

/// What was measured, by stage, and of how many frames. Written by one worker, read by anyone.
#[derive(Default)]
pub struct StageCounts {
    /// Ticks of the time-stamp counter.
    pub cycles: [Count; Stage::ALL.len()],
    /// Frames of the rounds that were measured.
    pub frames: Count,
}

/// Measures one round.
pub struct StageClock<'a> {
    ticks: fn() -> u64,
    last: Cell<u64>,
    counts: &'a StageCounts,
}

impl<'a> StageClock<'a> {
    /// Begins now.
    pub fn start(ticks: fn() -> u64, counts: &'a StageCounts) -> Self {
        StageClock { ticks, last: Cell::new(ticks()), counts }
    }

    /// What passed since the stage before ended was this one's.
    #[inline(never)]
    pub fn end(&self, stage: Stage) {
        let now = (self.ticks)();
        self.counts.cycles[stage as usize].add(now.wrapping_sub(self.last.replace(now)));
    }

    /// What passed since then was for nothing that is measured.
    pub fn skip(&self) {
        self.last.set((self.ticks)());
    }
}
