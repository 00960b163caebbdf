//! Neighbours: who is asked when, and whom frames can be sent to.
//!
//! As RFC 4861's unreachability detection, for ARP too: an answer is good for a while, then the neighbour
//! is asked again by itself; who does not answer some times is down, and is asked on, less often. A
//! neighbour that has a stand-in, because a route names several, is asked so often that a second is
//! not over before the stand-in takes its place.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use dunlin_engine::MacAddr;

/// Between two questions to one that has not answered yet.
const RETRY: Duration = Duration::from_millis(250);
/// Questions without an answer until it is down.
const TRIES: u32 = 3;
/// Between two questions to one that is down.
const DOWN_RETRY: Duration = Duration::from_secs(1);
/// Between an answer and the next question, with and without a stand-in.
const FRESH_FAST_PROBED: Duration = Duration::from_millis(200);
const FRESH: Duration = Duration::from_secs(15);
/// With a stand-in, questions come as fast as that.
const RETRY_WATCHED: Duration = Duration::from_millis(150);

/// How a neighbour is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NeighborState {
    /// It is asked for the first time.
    Resolving,
    /// It answers.
    Reachable,
    /// It does not.
    Down,
    /// The operator said its address.
    Static,
}

impl NeighborState {
    pub fn name(self) -> &'static str {
        match self {
            NeighborState::Resolving => "resolving",
            NeighborState::Reachable => "reachable",
            NeighborState::Down => "down",
            NeighborState::Static => "static",
        }
    }
}

/// A neighbour, for people.
pub struct NeighborReport {
    pub address: IpAddr,
    pub mac: Option<MacAddr>,
    pub state: NeighborState,
    /// Seconds since its last answer.
    pub confirmed_s: Option<u64>,
}

struct Neighbor {
    mac: Option<MacAddr>,
    state: NeighborState,
    confirmed: Option<Instant>,
    ask_at: Option<Instant>,
    unanswered: u32,
    fast_probed: bool,
}

/// Those of one VTEP that its remotes need.
#[derive(Default)]
pub struct Neighbors(BTreeMap<IpAddr, Neighbor>);

impl Neighbors {
    /// These are needed, and no others.
    pub fn want(&mut self, addresses: impl Iterator<Item = IpAddr>, fast_probed: impl Fn(IpAddr) -> bool) {
        let mut before = std::mem::take(&mut self.0);
        for a in addresses {
            let new = || Neighbor {
                mac: None,
                state: NeighborState::Resolving,
                confirmed: None,
                ask_at: None,
                unanswered: 0,
                fast_probed: false,
            };
            let known = || Neighbor { fast_probed: fast_probed(a), ..before.remove(&a).unwrap_or_else(new) };
            self.0.entry(a).or_insert_with(known);
        }
    }

    /// The operator says the addresses of these, and of no others.
    pub fn fix(&mut self, fixed: &[(IpAddr, MacAddr)]) {
        for (address, n) in &mut self.0 {
            match fixed.iter().find(|f| f.0 == *address) {
                Some((_, mac)) => (n.mac, n.state) = (Some(*mac), NeighborState::Static),
                None if n.state == NeighborState::Static => {
                    (n.mac, n.state, n.ask_at, n.unanswered) = (None, NeighborState::Resolving, None, 0);
                }
                None => {}
            }
        }
    }

    /// Who is due to be asked, and the MAC address to ask, where one is known.
    pub fn due(&mut self, now: Instant) -> Vec<(IpAddr, Option<MacAddr>)> {
        let mut ask = Vec::new();
        for (address, n) in self.0.iter_mut().filter(|(_, n)| n.state != NeighborState::Static) {
            if n.ask_at.is_some_and(|t| t > now) {
                continue;
            }
            if n.unanswered >= TRIES {
                n.state = NeighborState::Down;
            }
            n.unanswered = n.unanswered.saturating_add(1);
            let down = n.state == NeighborState::Down;
            n.ask_at = Some(
                now + if down {
                    DOWN_RETRY
                } else if n.fast_probed {
                    RETRY_WATCHED
                } else {
                    RETRY
                },
            );
            ask.push((*address, n.mac.filter(|_| !down)));
        }
        ask
    }

    /// A neighbour said its address; whether anything is new by that.
    pub fn heard(&mut self, address: IpAddr, mac: MacAddr, now: Instant) -> bool {
        let Some(n) = self.0.get_mut(&address).filter(|n| n.state != NeighborState::Static) else { return false };
        let news = n.mac != Some(mac) || n.state != NeighborState::Reachable;
        (n.mac, n.state, n.confirmed, n.unanswered) = (Some(mac), NeighborState::Reachable, Some(now), 0);
        n.ask_at = Some(now + if n.fast_probed { FRESH_FAST_PROBED } else { FRESH });
        news
    }

    /// The address of one that answers.
    pub fn reachable(&self, address: IpAddr) -> Option<MacAddr> {
        self.0.get(&address).filter(|n| matches!(n.state, NeighborState::Reachable | NeighborState::Static))?.mac
    }

    /// Forgets one, or all; how many.
    pub fn forget(&mut self, address: Option<IpAddr>) -> usize {
        let before = self.0.len();
        self.0.retain(|a, _| address.is_some_and(|wanted| wanted != *a));
        before - self.0.len()
    }

    pub fn report(&self, now: Instant) -> Vec<NeighborReport> {
        let of = |(address, n): (&IpAddr, &Neighbor)| NeighborReport {
            address: *address,
            mac: n.mac,
            state: n.state,
            confirmed_s: n.confirmed.map(|t| now.saturating_duration_since(t).as_secs()),
        };
        self.0.iter().map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_answer_is_down_within_a_second() {
        let (one, two) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let mac = MacAddr::from_octets([2, 0, 0, 0, 0, 1]);
        let mut n = Neighbors::default();
        let start = Instant::now();
        n.want([one, two].into_iter(), |a| a == one);
        assert_eq!(n.due(start), [(one, None), (two, None)]);
        assert!(n.heard(one, mac, start) && n.heard(two, mac, start));
        assert!(!n.heard(one, mac, start), "no news");
        assert!(!n.heard(IpAddr::from([10, 0, 0, 3]), mac, start), "it was not asked for");
        let mut asked = 0;
        for ms in (0..900).step_by(50) {
            asked += n.due(start + Duration::from_millis(ms)).len();
        }
        assert_eq!((n.reachable(one), n.reachable(two), asked), (None, Some(mac), 4));
        assert!(n.heard(one, mac, start + Duration::from_secs(2)));
        assert_eq!(n.reachable(one), Some(mac));
    }
}
