//! Connections, for API clients: a view that needs the switch no more, because there may be millions of them.

use std::{net::IpAddr, sync::Arc};

use dunlin_dataplane_api::v1;
use dunlin_engine::{
    PortIdx, Snapshot,
    tables::conntrack::{Conntrack, Session, Statistics},
};

use super::Switch;

/// Connections at most in one part, about: what one message takes.
const A_PART: u32 = 4096;

const PROTOCOLS: [(&str, u8); 5] = [("tcp", 6), ("udp", 17), ("sctp", 132), ("icmp", 1), ("icmpv6", 58)];
const STATES: [&str; 7] = ["opening", "open", "closing", "closed", "unanswered", "answered", "refused"];

/// A protocol by its name, or its number.
pub(super) fn protocol_name(n: u8) -> String {
    PROTOCOLS.iter().find(|p| p.1 == n).map_or_else(|| n.to_string(), |p| p.0.to_owned())
}

/// A filter of connections, understood.
struct Wanted {
    port: Option<PortIdx>,
    address: Option<IpAddr>,
    protocol: Option<u8>,
    state: String,
    l4_port: Option<u16>,
}

impl Wanted {
    fn is(&self, s: &Session) -> bool {
        self.port.is_none_or(|p| s.zone.port == p)
            && self.address.is_none_or(|a| s.from.0 == a || s.to.0 == a)
            && self.protocol.is_none_or(|p| s.protocol == p)
            && (self.state.is_empty() || s.state == self.state)
            && self.l4_port.is_none_or(|p| s.from.1 == p || s.to.1 == p)
    }
}

/// The connections that a filter means.
pub struct Sessions {
    all: Arc<Conntrack>,
    snapshot: Arc<Snapshot>,
    now_s: u32,
    wanted: Wanted,
    left: usize,
}

impl Sessions {
    /// In how many parts they are reported.
    pub fn parts(&self) -> usize {
        (self.all.statistics().capacity / u64::from(A_PART)).max(1) as usize
    }

    /// One part of them; what is beyond the filter's limit is left out.
    pub fn part(&mut self, part: usize) -> Vec<v1::SessionEntry> {
        let mut entries = Vec::new();
        let parts = (part, self.parts());
        self.all.sessions(parts, self.snapshot.sessions(), self.now_s, |s| {
            if entries.len() < self.left && self.wanted.is(&s) {
                entries.push(entry(&self.snapshot, &s));
            }
        });
        self.left -= entries.len();
        entries
    }

    /// Whether as many were reported as may be.
    pub fn is_done(&self) -> bool {
        self.left == 0
    }

    /// Forgets them; how many.
    pub fn flush(&self) -> u64 {
        self.all.flush(self.snapshot.sessions(), self.now_s, |s| self.wanted.is(s))
    }
}

fn entry(snapshot: &Snapshot, s: &Session) -> v1::SessionEntry {
    let label = snapshot.segment(s.zone.segment).map(|x| x.label());
    v1::SessionEntry {
        port: snapshot.port(s.zone.port).map(|p| p.name.to_string()).unwrap_or_default(),
        bridge: label.as_ref().map(|l| l.0.to_string()).unwrap_or_default(),
        vlan: label.map_or(0, |l| u32::from(l.1)),
        protocol: protocol_name(s.protocol),
        from: s.from.0.to_string(),
        from_port: s.from.1.into(),
        to: s.to.0.to_string(),
        to_port: s.to.1.into(),
        outbound: s.from_port,
        state: s.state.into(),
        age_s: s.age_s,
        idle_s: s.idle_s,
        expires_s: s.expires_s,
    }
}

impl Switch {
    /// The connections that a filter means.
    pub fn sessions(&self, f: &v1::SessionFilter) -> Result<Sessions, String> {
        let port = match f.port.as_str() {
            "" => None,
            name => {
                Some(self.topology.port(name).ok_or_else(|| format!("port '{name}': there is none of that name"))?.0)
            }
        };
        let address = match f.address.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| format!("address: '{text}' is none"))?),
        };
        let protocol = match f.protocol.as_str() {
            "" => None,
            text => {
                let named = PROTOCOLS.iter().find(|p| p.0 == text).map(|p| p.1);
                Some(named.or_else(|| text.parse().ok()).ok_or_else(|| format!("protocol: '{text}' is none"))?)
            }
        };
        if !f.state.is_empty() && !STATES.contains(&f.state.as_str()) {
            return Err(format!("state: '{}' is none of {}", f.state, STATES.join(", ")));
        }
        let l4_port = match f.l4_port {
            Some(p) => Some(u16::try_from(p).map_err(|_| format!("port number: {p} is not in 0 to 65535"))?),
            None => None,
        };
        Ok(Sessions {
            all: self.sessions.clone(),
            snapshot: self.snapshot.clone(),
            now_s: self.clock.now().s,
            wanted: Wanted { port, address, protocol, state: f.state.clone(), l4_port },
            left: if f.limit == 0 { usize::MAX } else { f.limit as usize },
        })
    }

    /// Connections by numbers.
    pub(super) fn sessions_state(&self) -> v1::SessionsState {
        let Statistics { sessions, capacity, begun, expired, displaced, refused, octets } = self.sessions.statistics();
        let (octets_v4, octets_v6) = octets;
        v1::SessionsState { sessions, capacity, begun, expired, displaced, refused, octets_v4, octets_v6 }
    }
}
