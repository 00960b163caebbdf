//! Counters of one worker: written by it alone, read by anyone.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::{DropReason, MAX_PORTS, PortIdx};

/// A count with a single writer, so that adding needs no locked instruction.
#[derive(Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds `n`. Only the thread that owns the counters may call it: two writers lose counts.
    #[inline(always)]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Makes it `n`, where it says how many there are. For the thread that owns the counters, as [`Count::add`].
    #[inline(always)]
    pub fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    /// The count now.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// What one worker counted at one port.
#[repr(align(128))]
pub struct PortCounters {
    /// Frames taken from the port's receive queues.
    pub rx_frames: Count,
    /// Their octets, without FCS.
    pub rx_bytes: Count,
    /// Frames the port's transmit queues accepted.
    pub tx_frames: Count,
    /// Their octets, without FCS.
    pub tx_bytes: Count,
    /// Frames that the switch itself made out of one that arrived here: a copy for every port a
    /// frame is flooded to beyond the first, a segment beyond the first.
    pub clones: Count,
    /// Receive bursts that were not empty.
    pub rx_bursts: Count,
    /// Frames dropped, by reason.
    pub drops: [Count; DropReason::COUNT],
}

impl Default for PortCounters {
    fn default() -> Self {
        let zero = Count::default;
        PortCounters {
            rx_frames: zero(),
            rx_bytes: zero(),
            tx_frames: zero(),
            tx_bytes: zero(),
            clones: zero(),
            rx_bursts: zero(),
            drops: std::array::from_fn(|_| zero()),
        }
    }
}

/// The counters of one worker for all ports.
pub struct Counters {
    ports: Box<[PortCounters; MAX_PORTS]>,
}

impl Default for Counters {
    fn default() -> Self {
        let ports: Box<[PortCounters]> = (0..MAX_PORTS).map(|_| PortCounters::default()).collect();
        Counters { ports: ports.try_into().unwrap_or_else(|_| unreachable!("as many as were made")) }
    }
}

impl Counters {
    /// Those of one port.
    #[inline]
    pub fn port(&self, port: PortIdx) -> &PortCounters {
        &self.ports[port.get()]
    }
}

/// A sum over workers, at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortTotals {
    /// As in [`PortCounters`].
    pub rx_frames: u64,
    /// As in [`PortCounters`].
    pub rx_bytes: u64,
    /// As in [`PortCounters`].
    pub tx_frames: u64,
    /// As in [`PortCounters`].
    pub tx_bytes: u64,
    /// As in [`PortCounters`].
    pub clones: u64,
    /// Indexed by [`DropReason`].
    pub drops: [u64; DropReason::COUNT],
}

impl Default for PortTotals {
    fn default() -> Self {
        PortTotals { rx_frames: 0, rx_bytes: 0, tx_frames: 0, tx_bytes: 0, clones: 0, drops: [0; DropReason::COUNT] }
    }
}

impl PortTotals {
    /// Adds what a worker counted.
    pub fn add(&mut self, c: &PortCounters) {
        self.rx_frames += c.rx_frames.get();
        self.rx_bytes += c.rx_bytes.get();
        self.tx_frames += c.tx_frames.get();
        self.tx_bytes += c.tx_bytes.get();
        self.clones += c.clones.get();
        for (sum, d) in self.drops.iter_mut().zip(&c.drops) {
            *sum += d.get();
        }
    }

    /// What was counted since `base` was taken.
    #[must_use]
    pub fn since(&self, base: &PortTotals) -> PortTotals {
        let mut d = PortTotals {
            rx_frames: self.rx_frames - base.rx_frames,
            rx_bytes: self.rx_bytes - base.rx_bytes,
            tx_frames: self.tx_frames - base.tx_frames,
            tx_bytes: self.tx_bytes - base.tx_bytes,
            clones: self.clones - base.clones,
            drops: [0; DropReason::COUNT],
        };
        for (i, v) in d.drops.iter_mut().enumerate() {
            *v = self.drops[i] - base.drops[i];
        }
        d
    }
}
