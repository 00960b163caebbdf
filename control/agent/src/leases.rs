//! What DHCP gave stations, as the dataplane saw it last: for one that was restarted, which did not see it.

use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

use dunlin_dataplane_api::v1 as dp;
use serde::{Deserialize, Serialize};

/// Seconds by which the end of a lease may seem to move from look to look.
const SAME_S: u64 = 5;

/// By port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Leases(BTreeMap<String, Vec<Lease>>);

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
    /// Takes what the dataplane has at `now_s`, in seconds since 1970; whether that is news.
    pub fn note(&mut self, ports: &[dp::PortState], now_s: u64) -> bool {
        let lease = |l: &dp::Lease| Lease { address: l.address.clone(), seen_s: now_s, left_s: l.left_s };
        let of = |p: &dp::PortState| (p.name.clone(), p.leases.iter().map(lease).collect());
        let new = Leases(ports.iter().filter(|p| !p.leases.is_empty()).map(of).collect());
        let differs = !self.is_like(&new);
        if differs {
            *self = new;
        }
        differs
    }

    fn is_like(&self, other: &Leases) -> bool {
        let same = |(a, b): (&Lease, &Lease)| a.address == b.address && a.until_s().abs_diff(b.until_s()) <= SAME_S;
        let same_all = |(a, b): (&Vec<Lease>, &Vec<Lease>)| a.len() == b.len() && a.iter().zip(b).all(same);
        self.0.keys().eq(other.0.keys()) && self.0.values().zip(other.0.values()).all(same_all)
    }

    /// Gives ports what is left of theirs.
    pub fn give(&self, ports: &mut [dp::Port], now_s: u64) {
        for p in ports {
            let (Some(security), Some(leases)) = (&mut p.security, self.0.get(&p.name)) else { continue };
            let left = |l: &Lease| dp::Lease {
                address: l.address.clone(),
                left_s: l.until_s().saturating_sub(now_s).min(l.left_s.into()) as u32,
            };
            security.leases = leases.iter().map(left).filter(|l| l.left_s > 0).collect();
        }
    }
}

/// Seconds since 1970.
pub fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(left_s: u32) -> [dp::PortState; 1] {
        let leases = vec![dp::Lease { address: "192.0.2.1".into(), left_s }];
        [dp::PortState { name: "web1".into(), leases, ..Default::default() }]
    }

    #[test]
    fn what_is_left_is_given_back() {
        let mut l = Leases::default();
        assert!(l.note(&port(100), 1000));
        assert!(!l.note(&port(58), 1041), "the clocks differ by a second");
        assert!(l.note(&port(100), 1050), "it was renewed");
        let mut ports =
            [dp::Port { name: "web1".into(), security: Some(dp::Security::default()), ..Default::default() }];
        let mut left = |now_s| {
            l.give(&mut ports, now_s);
            ports[0].security.as_ref().unwrap().leases.first().map(|l| l.left_s)
        };
        assert_eq!((left(1060), left(1149), left(1150)), (Some(90), Some(1), None));
        assert_eq!(left(0), Some(100), "the clock was set back");
    }
}
