//! DHCP leases of ports as the dataplane snooped them last: a dataplane that was restarted gets them back.

use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

use dunlin_dataplane_api::v1 as dp;
use serde::{Deserialize, Serialize};

/// Seconds by which the end of a lease may seem to move from look to look.
const SAME_S: u64 = 5;

/// Identities of ports by name: a port that is deleted and added again has another one.
pub type Identities = BTreeMap<String, u64>;

/// By port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Leases(BTreeMap<String, OfPort>);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct OfPort {
    /// Of the port that they were given to: one of the same name that is added later has none of them.
    identity: u64,
    leases: Vec<Lease>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Lease {
    address: String,
    /// When it was seen, in seconds since 1970: it outlives a restart of the host as well.
    seen_s: u64,
    /// Seconds that were left then, and the most that are ever given back, whatever becomes of the clock.
    left_s: u32,
}

impl Lease {
    fn until_s(&self) -> u64 {
        self.seen_s.saturating_add(u64::from(self.left_s))
    }
}

impl Leases {
    /// Takes what the dataplane has for a port at `now_s`, in seconds since 1970; whether that is news. What it was given
    /// before and the dataplane does not know stays until it ends; what has no seconds left was ended.
    pub fn note(&mut self, port: &str, identity: u64, leases: &[dp::Lease], now_s: u64) -> bool {
        let lease = |l: &dp::Lease| Lease { address: l.address.clone(), seen_s: now_s, left_s: l.left_s };
        let mut new: Vec<Lease> = leases.iter().map(lease).collect();
        let before = self.0.get(port).filter(|p| p.identity == identity);
        let known = before.map_or(&[][..], |p| &p.leases);
        let lives = |l: &&Lease| l.until_s() > now_s && !new.iter().any(|n| n.address == l.address);
        let kept: Vec<Lease> = known.iter().filter(lives).cloned().collect();
        new.retain(|n| n.left_s > 0);
        new.extend(kept);
        new.sort_by(|a, b| a.address.cmp(&b.address));
        let same = |(a, b): (&Lease, &Lease)| a.address == b.address && a.until_s().abs_diff(b.until_s()) <= SAME_S;
        if known.len() == new.len() && known.iter().zip(&new).all(same) {
            return false;
        }
        self.0.insert(port.to_owned(), OfPort { identity, leases: new });
        true
    }

    /// Forgets those of ports that are not `there` any more, by name and identity; whether there were some.
    pub fn retain(&mut self, there: impl Fn(&str, u64) -> bool) -> bool {
        let before = self.0.len();
        self.0.retain(|name, p| there(name, p.identity));
        self.0.len() != before
    }

    /// Whether something is known of a port at `now_s`.
    pub fn has(&self, port: &str, now_s: u64) -> bool {
        self.0.get(port).is_some_and(|p| p.leases.iter().any(|l| l.until_s() > now_s))
    }

    /// What is left of the leases of a port.
    pub fn left(&self, port: &str, identity: u64, now_s: u64) -> Vec<dp::Lease> {
        let known = self.0.get(port).filter(|k| k.identity == identity);
        let left = |l: &Lease| dp::Lease {
            address: l.address.clone(),
            left_s: l.until_s().saturating_sub(now_s).min(l.left_s.into()) as u32,
        };
        known.into_iter().flat_map(|k| &k.leases).map(left).filter(|l| l.left_s > 0).collect()
    }
}

/// Seconds since 1970.
pub fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(left_s: u32) -> [dp::Lease; 1] {
        [dp::Lease { address: "192.0.2.1".into(), left_s }]
    }

    #[test]
    fn what_is_left_is_given_back_to_the_same_port_alone() {
        let mut l = Leases::default();
        assert!(l.note("web1", 7, &lease(100), 1000));
        assert!(!l.note("web1", 7, &lease(58), 1041), "the clocks differ by a second");
        assert!(l.note("web1", 7, &lease(100), 1050), "it was renewed");
        let left = |l: &Leases, identity, now_s| l.left("web1", identity, now_s).first().map(|l| l.left_s);
        assert_eq!((left(&l, 7, 1060), left(&l, 7, 1149), left(&l, 7, 1150)), (Some(90), Some(1), None));
        assert_eq!(left(&l, 7, 0), Some(100), "the clock was set back");
        assert_eq!(left(&l, 8, 1060), None, "another port of the same name");
        assert!(!l.note("web1", 7, &[], 1060), "a dataplane that was restarted knows of none");
        let mut released = l.clone();
        assert!(released.note("web1", 7, &lease(0), 1060));
        assert_eq!(left(&released, 7, 1060), None);
        assert_eq!((left(&l, 7, 1060), l.has("web1", 1060), l.has("web1", 1150)), (Some(90), true, false));
        assert!(l.retain(|name, identity| (name, identity) == ("web1", 8)));
        assert_eq!(left(&l, 7, 1060), None);
    }
}
