//! What decides at a port whether a frame may pass: its security, and the lists of it, its groups and its
//! segments' networks.

use std::sync::Arc;

use crate::{
    snapshot::security::Security,
    tables::{acl::Acl, conntrack::SessionLimits},
};

/// Lists, each in its order: of what comes in by a port, and of what leaves by it.
#[derive(Clone, Debug, Default)]
pub struct Lists {
    /// From the station behind the port.
    pub ingress: Vec<Arc<Acl>>,
    /// To it.
    pub egress: Vec<Arc<Acl>>,
}

impl Lists {
    fn all(&self) -> impl Iterator<Item = &Arc<Acl>> + use<'_> {
        self.ingress.iter().chain(&self.egress)
    }
}

/// One port's.
#[derive(Debug)]
pub struct Filter {
    /// As whom it may speak.
    pub security: Option<Arc<Security>>,
    /// Its own lists, and its groups'.
    pub lists: Lists,
    /// Whether anything is asked of what comes in, and of what leaves.
    pub(crate) looks_in: bool,
    pub(crate) looks_out: bool,
    /// Whether a network that it carries has some too.
    pub(crate) by_segment: bool,
    /// Whether any of all these asks for the state of connections.
    pub(crate) tracks: bool,
    /// Whether any rule asks for MAC addresses.
    pub(crate) asks_macs: bool,
    /// Whether any rule asks for what is behind the IP header.
    pub(crate) asks_layer4: bool,
    /// Whether any rule asks for what only the first fragment of a datagram has.
    pub(crate) asks_ports: bool,
    /// Whether all lists let pass what goes on, whatever it is: on the way in, and on the way out.
    pub(crate) permits_established: [bool; 2],
    /// How many connections may be.
    pub(crate) session_limits: SessionLimits,
    /// Another number for other lists: under which a connection was let pass.
    pub(crate) id: u32,
}

impl Filter {
    /// For a port with these lists, which carries segments with those; none if there is nothing to do.
    pub(crate) fn new<'a>(
        security: Option<Arc<Security>>,
        lists: Lists,
        segments: impl Iterator<Item = &'a Lists>,
        session_limits: SessionLimits,
    ) -> Option<Filter> {
        let mut all: Vec<Arc<Acl>> = lists.all().cloned().collect();
        let its_own = all.len();
        let mut ways = vec![lists.ingress.len(), lists.egress.len()];
        let lets = |l: &[Arc<Acl>]| l.iter().all(|a| a.permits_established());
        let mut permits_established = [lets(&lists.ingress), lets(&lists.egress)];
        let (mut looks_in, mut looks_out) = (!lists.ingress.is_empty(), !lists.egress.is_empty());
        segments.for_each(|l| {
            all.extend(l.all().cloned());
            ways.extend([l.ingress.len(), l.egress.len()]);
            permits_established =
                [permits_established[0] && lets(&l.ingress), permits_established[1] && lets(&l.egress)];
            looks_in |= !l.ingress.is_empty();
            looks_out |= !l.egress.is_empty();
        });
        let by_segment = all.len() > its_own;
        if security.is_none() && all.is_empty() {
            return None;
        }
        // FNV-1a: it need only differ from the last few.
        let step = |id: u32, v: u64| (id ^ v as u32).wrapping_mul(0x0100_0193);
        let id = all.iter().fold(0x811c_9dc5u32, |id, a| step(step(id, a.version), a.version >> 32));
        // The same lists the other way round are other lists.
        let id = ways.iter().fold(id, |id, n| step(id, *n as u64));
        let (tracks, asks_layer4) = (all.iter().any(|a| a.stateful), all.iter().any(|a| a.asks_layer4));
        let asks_ports = all.iter().any(|a| a.asks_ports);
        looks_in |= tracks || security.is_some();
        looks_out |= tracks || security.as_ref().is_some_and(|s| s.snooped.is_some());
        let asks_macs = all.iter().any(|a| a.asks_macs);
        Some(Filter {
            security,
            lists,
            looks_in,
            looks_out,
            by_segment,
            tracks,
            asks_macs,
            asks_layer4,
            asks_ports,
            permits_established,
            session_limits,
            id,
        })
    }
}
