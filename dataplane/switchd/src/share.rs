//! Shares of a worker's time. A worker polls its queues in turn. Frames of one port may cost many times what those of others
//! do: ever new connections, rejections, neighbors without end. While the worker is busy, such a port is polled less often, so
//! that what it costs is at its own expense (deficit round robin, by cycles in place of octets: Shreedhar and Varghese, 1995).
//!
//! A queue that has no competitor is polled in every round.

use dunlin_engine::BURST;

/// Frames of a burst from which on a queue counts as busy: more wait behind them.
const BUSY: usize = BURST / 4;
/// Bursts of fewer frames are not measured.
const LEAST: usize = 8;

/// Cycles that a queue may take in a round: what a burst of the cheapest busy one costs.
const fn quantum(cheapest: u32) -> i64 {
    cheapest as i64 * BURST as i64
}

/// The busy queues of one round.
#[derive(Clone, Copy)]
pub struct Contention {
    busy: u32,
    /// Cycles a frame.
    cheapest: u32,
}

impl Contention {
    pub const NONE: Contention = Contention { busy: 0, cheapest: u32::MAX };
}

/// One queue's.
#[derive(Default)]
pub struct TimeShare {
    /// Cycles a frame, of late; 0 if it was never measured.
    cost: u32,
    /// Cycles that it took beyond its share.
    debt: i64,
    is_busy: bool,
}

impl TimeShare {
    /// Whether the queue is to be left out of this round, after a round as `last`.
    #[inline(always)]
    pub fn waits(&mut self, last: &Contention, now: &mut Contention) -> bool {
        if self.debt == 0 {
            return false;
        }
        let has_competitor = last.busy > u32::from(self.is_busy);
        self.debt = if has_competitor { (self.debt - quantum(last.cheapest)).max(0) } else { 0 };
        let waits = self.debt > 0;
        now.busy += u32::from(waits);
        waits
    }

    /// It had `n` frames.
    #[inline(always)]
    pub fn took(&mut self, n: usize, now: &mut Contention) {
        self.is_busy = n >= BUSY;
        self.debt = n as i64 * i64::from(self.cost);
        if self.is_busy && self.cost > 0 {
            now.busy += 1;
            now.cheapest = now.cheapest.min(self.cost);
        }
    }

    /// They took so many cycles. One measurement, in which the worker may have been interrupted, does not count for much.
    pub fn measured(&mut self, n: usize, cycles: u64) {
        if n >= LEAST {
            let cost = (cycles / n as u64).clamp(1, 1 << 20) as u32;
            let known = if self.cost == 0 { cost } else { self.cost };
            self.cost = (known * 3 + cost.min(known * 8)) / 4;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rounds in which each queue was polled, of queues with these costs that always have full bursts.
    fn polled(costs: &[u64], rounds: usize) -> Vec<usize> {
        let mut shares: Vec<TimeShare> = costs.iter().map(|_| TimeShare::default()).collect();
        let (mut polled, mut last) = (vec![0; costs.len()], Contention::NONE);
        for _ in 0..rounds {
            let mut now = Contention::NONE;
            for (i, share) in shares.iter_mut().enumerate() {
                if !share.waits(&last, &mut now) {
                    share.took(BURST, &mut now);
                    share.measured(BURST, costs[i] * BURST as u64);
                    polled[i] += 1;
                }
            }
            last = now;
        }
        polled
    }

    #[test]
    fn a_queue_pays_for_what_its_frames_cost() {
        assert_eq!(polled(&[100, 100, 100], 1_000), [1_000; 3]);
        assert_eq!(polled(&[1_000], 1_000), [1_000], "alone");
        let p = polled(&[100, 1_000, 100], 1_000);
        assert_eq!((p[0], p[2]), (1_000, 1_000));
        assert!((90..110).contains(&p[1]), "{p:?}");
    }

    #[test]
    fn a_queue_that_is_not_busy_keeps_no_other_waiting() {
        let (mut expensive, mut last) = (TimeShare::default(), Contention::NONE);
        let mut quiet = TimeShare::default();
        for _ in 0..100 {
            let mut now = Contention::NONE;
            assert!(!expensive.waits(&last, &mut now));
            expensive.took(BURST, &mut now);
            expensive.measured(BURST, 128_000);
            assert!(!quiet.waits(&last, &mut now));
            quiet.took(2, &mut now);
            last = now;
        }
    }
}
