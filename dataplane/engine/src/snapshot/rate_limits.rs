//! Rates of one port: of broadcast, multicast and unknown unicast frames from it, and of replies to what it is rejected.
//!
//! A limit is the generic cell rate algorithm (ITU-T I.371): one word holds the time at which the
//! port will have "paid" for everything it sent, and a frame passes while that is at most one
//! burst ahead of now. The word is shared by the workers that serve the port and written only
//! for frames of a limited kind on a port that has a limit.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// One limit of one port. Integer arithmetic; the rounding error is below one part in 10^3 for
/// rates up to 1,000,000 frames per second.
#[derive(Debug)]
pub struct RateLimit {
    cost_ns: u64,
    burst_ns: u64,
    paid_until_ns: AtomicU64,
}

impl RateLimit {
    /// How much a port may send at once, as time of its rate: a tenth of a second.
    const BURST_NS: u64 = 100_000_000;

    /// A limit of `fps` frames per second, at least 1. Bursts of up to a tenth of a second's
    /// frames (and at least one) pass at once.
    pub fn new(fps: u64) -> Self {
        let cost_ns = (1_000_000_000 / fps.max(1)).max(1);
        RateLimit { cost_ns, burst_ns: Self::BURST_NS.max(cost_ns), paid_until_ns: AtomicU64::new(0) }
    }

    /// Whether a frame at `now_ns` would pass; it is not charged.
    pub fn would_admit(&self, now_ns: u64) -> bool {
        self.paid_after(self.paid_until_ns.load(Relaxed), now_ns).is_some()
    }

    /// Whether a frame at `now_ns` (any clock that does not go back) passes; it is charged if so.
    pub fn admit(&self, now_ns: u64) -> bool {
        self.paid_until_ns.fetch_update(Relaxed, Relaxed, |paid| self.paid_after(paid, now_ns)).is_ok()
    }

    /// Until when a port has paid with a frame more; nothing if that is too far ahead.
    fn paid_after(&self, paid_until_ns: u64, now_ns: u64) -> Option<u64> {
        let next = paid_until_ns.max(now_ns) + self.cost_ns;
        (next <= now_ns + self.burst_ns).then_some(next)
    }
}

/// Replies to rejected frames of one port, in a second (RFC 1812, 4.3.2.8; RFC 4443, 2.4 f).
const REPLIES_FPS: u64 = 1_000;

/// The limits of one port; `None` is no limit.
#[derive(Debug)]
pub struct RateLimits {
    /// For frames to the broadcast address.
    pub broadcast: Option<RateLimit>,
    /// For frames to other group addresses.
    pub multicast: Option<RateLimit>,
    /// For frames to an address that the mac table does not hold.
    pub unknown_unicast: Option<RateLimit>,
    /// For resets and ICMP errors to the sender of what was rejected.
    pub replies: RateLimit,
}

impl Default for RateLimits {
    fn default() -> Self {
        RateLimits { broadcast: None, multicast: None, unknown_unicast: None, replies: RateLimit::new(REPLIES_FPS) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_admits_the_rate_and_one_burst() {
        for fps in [1u64, 10, 1_000, 50_000] {
            let l = RateLimit::new(fps);
            let start = 5_000_000_000u64;
            let steps = 200_000u64;
            let admitted = (0..steps).filter(|i| l.admit(start + i * 1_000_000_000 / steps)).count() as u64;
            let want = fps + (fps / 10).max(1);
            assert!(admitted.abs_diff(want) <= 1 + want / 500, "{fps}: {admitted} for {want}");
        }
    }
}
