//! DHCP leases of ports: kept, stored, and warned of where they are not known.

use dunlin_dataplane_api::v1 as dp;
use dunlin_model::{configuration::Resolved, spec::PortSpec};

use super::{Desired, blocking};
use crate::leases::now_s;

impl Desired {
    /// Ports whose running guests lose their network by a change, because their leases are not known.
    pub(super) fn cut_off_by_snooping(&self, from: &Resolved, to: &Resolved) -> Vec<String> {
        let snoops = |p: &PortSpec| p.policy.security.as_ref().is_some_and(|s| s.snoop);
        let leases = self.leases.lock();
        let starts = |(name, p): &(&String, &std::sync::Arc<PortSpec>)| {
            let knows = p.policy.security.as_ref().is_some_and(|s| !s.ips.is_empty()) || leases.has(name, now_s());
            snoops(p) && !knows && from.ports.get(*name).is_some_and(|b| !snoops(b))
        };
        let warning = |(name, _): (&String, &std::sync::Arc<PortSpec>)| {
            format!(
                "port '{name}': security: dhcp-snooping does not know the address that a running guest has: until the guest \
                 renews its lease, all else that it sends is dropped as spoofed_ip. Renew the lease in the guest, or name its address in ips"
            )
        };
        to.ports.iter().filter(starts).map(warning).collect()
    }

    /// Keeps the leases of a port as the dataplane has them now; stored when it returns.
    pub async fn note_leases(&self, port: &str, identity: u64, leases: &[dp::Lease]) {
        if self.current().identities().get(port) != Some(&identity) {
            return;
        }
        if self.leases.lock().note(port, identity, leases, now_s()) {
            self.save_leases().await;
        }
    }

    /// Forgets those of ports that are gone, or that are others under the same name.
    pub(super) async fn forget_leases(&self) {
        let current = self.current();
        let forgot = self.leases.lock().retain(|name, identity| current.identities().get(name) == Some(&identity));
        if forgot {
            self.save_leases().await;
        }
    }

    async fn save_leases(&self) {
        let _saving = self.saving_leases.lock().await;
        let (store, copy) = (self.store.clone(), self.leases.lock().clone());
        match blocking(move || store.save_leases(&copy)).await {
            Ok(()) => self.warn("leases", None),
            Err(e) => {
                tracing::warn!("DHCP leases were not stored, and are lost if control ends now: {e}");
                self.warn("leases", Some(format!("DHCP leases are not stored: {e}")));
            }
        }
    }
}
