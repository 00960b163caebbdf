//! VTEPs and networks: what follows from them beside the snapshot, and their reports.

use std::{collections::BTreeSet, net::IpAddr};

use dunlin_dataplane_api::v1;
use dunlin_engine::{
    MacAddr, PortIdx,
    counters::PortTotals,
    snapshot::topology::{NetworkSpec, RemoteView, VtepView},
    tunnel::Role,
};

use super::{Switch, state::counters};
use crate::underlay::VtepState;

impl Switch {
    /// Brings the VTEPs' thread up to date with the topology.
    pub(super) fn follow_vteps(&mut self) {
        let mut stations = Vec::new();
        for v in self.topology.vteps() {
            let conf = &self.configuration.resolved().vteps[v.name];
            let hosts = v.remotes.iter().filter(|r| !r.address.is_multicast());
            stations.push(VtepState {
                name: v.name.to_owned(),
                idx: v.idx,
                uplink: self.topology.number_of(&v.spec.uplink),
                place: (v.bridge.to_owned(), v.spec.vid.get()),
                mac: v.spec.mac,
                address: conf.address,
                ttl: v.spec.ttl,
                udp_port: v.spec.udp_port,
                routes: conf.routes.clone(),
                neighbors: conf.neighbors.clone(),
                remotes: hosts.map(|r| (r.address, r.next_hop.clone())).collect(),
                groups: v.remotes.iter().map(|r| r.address).filter(IpAddr::is_multicast).collect(),
            });
        }
        self.underlay.set(stations);
    }

    fn counted(&self, idx: PortIdx) -> v1::Counters {
        let base = self.overlay_base.get(&idx);
        counters(&self.totals(idx).since(base.unwrap_or(&PortTotals::default())))
    }

    fn overlay_numbers(&self) -> BTreeSet<PortIdx> {
        self.topology.vteps().flat_map(|v| v.remotes.iter().map(|r| r.idx).chain([v.idx]).collect::<Vec<_>>()).collect()
    }

    /// Numbers that are VTEPs' or remotes' from now on begin to count. Before workers know them.
    pub(super) fn count_overlay(&mut self) {
        for idx in self.overlay_numbers() {
            if !self.overlay_base.contains_key(&idx) {
                let base = self.totals(idx);
                self.overlay_base.insert(idx, base);
            }
        }
    }

    /// What was counted at numbers that are no VTEP's or remote's any more is that of removed ports. After
    /// workers have forgotten them.
    pub(super) fn end_overlay_counts(&mut self) {
        let numbers = self.overlay_numbers();
        let gone: Vec<PortIdx> = self.overlay_base.keys().filter(|i| !numbers.contains(i)).copied().collect();
        for idx in gone {
            if let Some(base) = self.overlay_base.remove(&idx) {
                let counted = self.totals(idx).since(&base);
                super::commit::add_totals(&mut self.removed, &counted);
            }
        }
    }

    pub(super) fn vtep_reports(&self) -> Vec<v1::VtepState> {
        let neighbors = self.underlay.neighbors();
        self.topology.vteps().map(|v| self.vtep_report(&v, &neighbors)).collect()
    }

    fn vtep_report(&self, v: &VtepView<'_>, neighbors: &[(String, crate::underlay::NeighborReport)]) -> v1::VtepState {
        let shown = |m: Option<MacAddr>| m.map(|m| m.to_string()).unwrap_or_default();
        let remote = |r: &RemoteView<'_>| v1::RemoteState {
            address: r.address.to_string(),
            kind: r.kind.name().into(),
            name: r.name.to_owned(),
            next_hop_mac: shown(r.next_hop.get()),
            counters: Some(self.counted(r.idx)),
            macs: self.macs.port_entries(r.idx),
            mtu: self.snapshot.port(r.idx).map_or(0, |p| match &p.role {
                Role::Remote(remote) => remote.mtu(p.mtu),
                _ => p.mtu,
            }),
            path_mtu: Some(r.next_hop.path_mtu()).filter(|mtu| *mtu != u32::MAX),
        };
        let of_this = neighbors.iter().filter(|(vtep, _)| vtep == v.name);
        v1::VtepState {
            name: v.name.to_owned(),
            address: self.configuration.resolved().vteps[v.name].address.to_string(),
            mac: v.spec.mac.to_string(),
            counters: Some(self.counted(v.idx)),
            remotes: v.remotes.iter().map(remote).collect(),
            neighbors: of_this
                .map(|(_, n)| v1::NeighborState {
                    address: n.address.to_string(),
                    mac: shown(n.mac),
                    state: n.state.name().into(),
                    confirmed_s: n.confirmed_s,
                })
                .collect(),
        }
    }

    /// Resolves again the neighbours that `filter` matches; how many.
    pub fn flush_neighbors(&self, filter: &v1::NeighborFilter) -> Result<u64, String> {
        let address = match filter.address.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| format!("address: '{text}' is no IP address"))?),
        };
        if !filter.vtep.is_empty() && !self.configuration.resolved().vteps.contains_key(&filter.vtep) {
            return Err(format!("vtep '{}': there is none of that name", filter.vtep));
        }
        Ok(self.underlay.forget_neighbors(&filter.vtep, address) as u64)
    }

    pub(super) fn binding_report(&self) -> v1::BindingsState {
        let s = self.topology.bindings().statistics();
        v1::BindingsState { entries: s.entries, capacity: s.capacity, refused: s.refused }
    }

    pub(super) fn network_reports(&self) -> Vec<v1::NetworkState> {
        let learned = self.topology.bindings().per_segment();
        let report = |(name, spec): (&str, &NetworkSpec)| {
            let place = self.topology.network_place(name);
            let number = place.and_then(|(bridge, vid)| self.topology.segment(bridge, vid));
            let segment = number.and_then(|id| self.snapshot.segment(id));
            let configured = spec.overlay.as_ref().map_or(0, |o| o.bindings.len() as u32);
            let flood = segment.map_or(&[][..], |s| &s.flood);
            let joined: Vec<_> = flood.iter().filter_map(|i| self.snapshot.port(*i)).collect();
            let tunnel_mtu = joined.iter().filter(|p| !self.ports.contains_key(&*p.name)).map(|p| p.mtu).min();
            let ours = || joined.iter().filter(|p| self.ports.contains_key(&*p.name));
            v1::NetworkState {
                name: name.to_owned(),
                vni: spec.overlay.as_ref().map_or(0, |o| o.vni.get()),
                bindings: configured + number.and_then(|id| learned.get(&id)).copied().unwrap_or(0),
                suppressed: self.topology.answered(name),
                ports: ours().map(|p| p.name.to_string()).collect(),
                too_large: ours()
                    .filter(|p| tunnel_mtu.is_some_and(|m| p.mtu > m))
                    .map(|p| p.name.to_string())
                    .collect(),
            }
        };
        self.topology.networks().map(report).collect()
    }
}
