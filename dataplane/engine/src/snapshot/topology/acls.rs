//! Access lists by name, and who has which.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use super::{AclNames, PortState, Topology, TopologyError};
use crate::{
    snapshot::{
        Segment,
        port_filter::{Filter, Lists},
        security::{Lease, Security},
    },
    tables::{acl::Acl, conntrack::Settings},
};

/// What [`Topology`] knows of filters.
#[derive(Clone, Default)]
pub(super) struct Filters {
    acls: BTreeMap<String, Arc<Acl>>,
    pub sessions: Settings,
}

impl Topology {
    /// Adds or changes a list.
    pub fn set_acl(&mut self, acl: Acl) {
        self.lists_change();
        self.filters.acls.insert(acl.name.to_string(), Arc::new(acl));
    }

    /// Removes a list. That no port has it any more is known when the snapshot is made.
    pub fn remove_acl(&mut self, name: &str) {
        self.lists_change();
        self.filters.acls.remove(name);
    }

    /// Segments have the lists of their networks.
    fn lists_change(&mut self) {
        if self.built.as_ref().is_some_and(|b| b.lists) {
            self.built = None;
        }
    }

    /// All lists.
    pub fn acls(&self) -> impl Iterator<Item = &Arc<Acl>> {
        self.filters.acls.values()
    }

    /// How connections are kept from now on.
    pub fn set_sessions(&mut self, settings: Settings) {
        self.filters.sessions = settings;
    }

    /// How they are.
    pub fn sessions(&self) -> &Settings {
        &self.filters.sessions
    }

    /// What DHCP gave a port's station.
    pub fn snooped(&self, port: &str, now_s: u32) -> Vec<Lease> {
        self.snooper(port).map_or_else(Vec::new, |p| p.snooped.live(now_s))
    }

    fn snooper(&self, port: &str) -> Option<&PortState> {
        self.ports.get(port).filter(|p| p.spec.security.as_ref().is_some_and(|s| s.snoop))
    }

    /// The ports at which DHCP gave or ended leases since this was asked last, with all that is known of theirs. An address
    /// that was given to another port of its VLAN meanwhile is not the port's any more.
    pub fn changed_leases(&self, now_s: u32) -> Vec<(&str, Vec<Lease>)> {
        let snoopers = || self.ports.keys().filter_map(|name| Some((&**name, self.snooper(name)?)));
        snoopers().for_each(|(_, p)| p.snooped.take_free(now_s));
        let changed: Vec<_> = snoopers().filter(|(_, p)| p.snooped.take_changed()).collect();
        for (name, p) in &changed {
            let given = p.snooped.live(now_s);
            for (_, other) in snoopers().filter(|(other, _)| other != name) {
                for l in other.snooped.live(now_s).iter().filter(|l| given.iter().any(|g| g.replaces(l))) {
                    if other.spec.shares_vlan(&p.spec) {
                        other.snooped.forget(l.address);
                    }
                }
            }
        }
        let also = snoopers().filter(|(_, p)| p.snooped.take_changed()).collect::<Vec<_>>();
        changed.into_iter().chain(also).map(|(name, p)| (name, p.snooped.all(now_s))).collect()
    }

    /// Notes what DHCP gave it before this dataplane was started; what it knows better stays.
    pub fn remember(&self, port: &str, address: IpAddr, until_s: u32) {
        if let Some(p) = self.ports.get(port)
            && !p.snooped.live(0).iter().any(|l| l.address == address && l.until_s >= until_s)
        {
            p.snooped.restore(address, until_s);
        }
    }

    pub(super) fn lists(&self, whose: impl Fn() -> String, names: &AclNames) -> Result<Lists, TopologyError> {
        let find = |names: &[String]| -> Result<Vec<Arc<Acl>>, TopologyError> {
            let one = |n: &String| {
                let unknown = || TopologyError::NoSuchAcl { object: whose(), acl: n.clone() };
                self.filters.acls.get(n).cloned().ok_or_else(unknown)
            };
            names.iter().map(one).collect()
        };
        Ok(Lists { ingress: find(&names.ingress)?, egress: find(&names.egress)? })
    }

    /// What may pass a port, which may carry some of the networks that have lists.
    pub(super) fn port_filter(
        &self,
        name: &str,
        p: &PortState,
        networks: &[&Segment],
    ) -> Result<Option<Box<Filter>>, TopologyError> {
        let lists = self.lists(|| format!("port '{name}'"), &p.spec.acls)?;
        let security = p.spec.security.as_ref().map(|s| {
            let snooped = s.snoop.then(|| p.snooped.clone());
            let ips = s.ips.iter().map(|p| (*p).into()).collect();
            Arc::new(Security::new(s.checks, s.macs.clone(), ips, snooped))
        });
        let its_own = |s: &&&Segment| *s.bridge == *p.spec.bridge && p.spec.carries(s.vid);
        let networks = networks.iter().filter(its_own).filter_map(|s| s.lists.as_deref());
        Ok(Filter::new(security, lists, networks, p.spec.session_limits).map(Box::new))
    }
}
