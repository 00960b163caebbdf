//! The VTEPs as stations of the underlay: they resolve the next hops of their remotes, and answer ARP,
//! neighbour solicitations and pings.
//!
//! **Thread.** One, `underlay`, beside the configuring one: an answer never waits for a device that is
//! being opened. Workers punt frames to it ([`punt`]), it sends by way of the first worker, whose
//! pipeline takes its frames as received at the VTEP.
//!
//! `neighbors.rs` says who is asked when; `packets.rs` has the formats.

mod neighbors;
mod packets;
mod path_mtu;
pub mod punt;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use dunlin_engine::{MacAddr, PortIdx, tunnel::NextHop};
use dunlin_model::spec::Route;
use ipnet::IpNet;
use parking_lot::Mutex;

pub use neighbors::NeighborReport;
use neighbors::Neighbors;
use packets::PacketEvent;
use path_mtu::PathMtus;
use punt::{Cause, PuntCounts, PuntRings, PuntedFrame};

use crate::worker::{Command, WorkerShared};

/// Between two reports of a group's membership, without being asked: well below the 260 s after which
/// switches forget it (RFC 2236, 8.4).
const JOIN_AGAIN: Duration = Duration::from_secs(30);
/// The time between two looks at the neighbours.
const TICK: Duration = Duration::from_millis(50);

/// What this thread needs to know of a VTEP.
#[derive(Clone)]
pub struct VtepState {
    pub name: String,
    pub idx: PortIdx,
    /// Where it is: its uplink, and the underlay's bridge and VLAN.
    pub uplink: Option<PortIdx>,
    pub place: (String, u16),
    pub mac: MacAddr,
    /// Its address, and the network that is reached without a route.
    pub address: IpNet,
    pub ttl: u8,
    /// The UDP port of VXLAN.
    pub udp_port: u16,
    pub routes: Vec<Route>,
    /// Neighbours that need not be asked.
    pub neighbors: Vec<(IpAddr, MacAddr)>,
    /// Addresses of remotes, and who waits for their next hop.
    pub remotes: Vec<(IpAddr, Arc<NextHop>)>,
    /// Multicast groups to listen to.
    pub groups: Vec<IpAddr>,
}

/// A VTEP and what is known around it.
struct Side {
    station: VtepState,
    /// By remote: the neighbours it is reached by, the best first.
    ways: Vec<Vec<IpAddr>>,
    neighbors: Neighbors,
    path_mtus: PathMtus,
    /// When to say again which groups it listens to.
    join_at: Instant,
}

impl Side {
    /// Those neighbours are needed that a remote is reached by; one that has a backup is probed faster.
    fn want_neighbors(&mut self) {
        let fast_probed: BTreeSet<IpAddr> = self.ways.iter().filter(|w| w.len() > 1).flatten().copied().collect();
        self.neighbors.want(self.ways.iter().flatten().copied(), |a| fast_probed.contains(&a));
        self.neighbors.fix(&self.station.neighbors);
    }
}

impl VtepState {
    /// The neighbours by which `to` is reached, the best first.
    fn ways(&self, to: IpAddr) -> Vec<IpAddr> {
        if self.address.contains(&to) {
            return vec![to];
        }
        let routes = self.routes.iter().filter(|r| r.to.contains(&to));
        routes.max_by_key(|r| r.to.prefix_len()).map_or_else(Vec::new, |r| r.via.clone())
    }
}

/// All VTEPs of the host.
pub struct Underlay {
    vteps: Mutex<BTreeMap<PortIdx, Side>>,
    punted: Arc<PuntRings>,
    worker: Arc<WorkerShared>,
}

impl Underlay {
    /// Starts the thread; it ends when the last handle is gone.
    pub fn start(punted: Arc<PuntRings>, worker: Arc<WorkerShared>) -> std::io::Result<Arc<Self>> {
        let underlay = Arc::new(Underlay { vteps: Mutex::default(), punted, worker });
        let weak = Arc::downgrade(&underlay);
        let thread = std::thread::Builder::new().name("underlay".into()).spawn(move || run(&weak))?;
        underlay.punted.set_reader(thread.thread().clone());
        Ok(underlay)
    }

    /// These are the VTEPs from now on. What is known of neighbours stays.
    pub fn set(&self, stations: Vec<VtepState>) {
        let (mut vteps, now) = (self.vteps.lock(), Instant::now());
        let mut before = std::mem::take(&mut *vteps);
        for station in stations {
            let old = before.remove(&station.idx).filter(|b| {
                let is = |s: &VtepState| (s.address, s.mac, s.uplink, s.place.clone());
                is(&b.station) == is(&station)
            });
            let same_groups = old.as_ref().filter(|o| o.station.groups == station.groups);
            let left_groups = old.as_ref().map_or_else(Vec::new, |o| o.station.groups.clone());
            let join_at = same_groups.map_or(now, |o| o.join_at);
            let (neighbors, path_mtus) = old.map(|o| (o.neighbors, o.path_mtus)).unwrap_or_default();
            let ways = station.remotes.iter().map(|(to, _)| station.ways(*to)).collect();
            let left = left_groups.into_iter().filter(|g| !station.groups.contains(g));
            left.for_each(|g| self.send(station.idx, packets::leave(&station, g)));
            let mut side = Side { station, ways, neighbors, path_mtus, join_at };
            side.want_neighbors();
            vteps.insert(side.station.idx, side);
        }
        vteps.values_mut().for_each(|side| self.look_after(side, now));
    }

    /// What was punted since start, by kind.
    pub fn punt_counts(&self) -> impl Iterator<Item = PuntCounts> {
        self.punted.counts()
    }

    /// What is known of the neighbours, by VTEP.
    pub fn neighbors(&self) -> Vec<(String, NeighborReport)> {
        let now = Instant::now();
        let vteps = self.vteps.lock();
        let of =
            |s: &Side| s.neighbors.report(now).into_iter().map(|r| (s.station.name.clone(), r)).collect::<Vec<_>>();
        vteps.values().flat_map(of).collect()
    }

    /// Resolves again neighbors of a VTEP, or of all; how many.
    pub fn forget_neighbors(&self, vtep: &str, address: Option<IpAddr>) -> usize {
        let mut vteps = self.vteps.lock();
        let mut forgotten = 0;
        for side in vteps.values_mut().filter(|s| vtep.is_empty() || s.station.name == vtep) {
            forgotten += side.neighbors.forget(address);
            side.want_neighbors();
            self.look_after(side, Instant::now());
        }
        forgotten
    }

    fn send(&self, vtep: PortIdx, octets: Vec<u8>) {
        self.worker.post(None, [Command::InjectFrame(vtep, None, octets.into())]);
    }

    /// Asks neighbors that are due, hands remotes their next hop, and says which groups are listened to.
    fn look_after(&self, side: &mut Side, now: Instant) {
        let Side { station: s, ways, neighbors: n, path_mtus, join_at } = side;
        for (address, known) in n.due(now) {
            self.send(s.idx, packets::ask(s, address, known));
        }
        for ((address, next_hop), ways) in s.remotes.iter().zip(ways.iter()) {
            next_hop.set(ways.iter().find_map(|w| n.reachable(*w)));
            next_hop.set_path_mtu(path_mtus.of(*address, now));
        }
        if now >= *join_at && !s.groups.is_empty() {
            *join_at = now + JOIN_AGAIN;
            s.groups.iter().for_each(|g| self.send(s.idx, packets::join(s, *g)));
        }
    }

    fn handle_packet(&self, frame: &PuntedFrame) {
        let octets = frame.octets();
        let (vtep, from) = match frame.cause {
            Cause::Vtep(vtep, from) => (vtep, from),
            Cause::TooBig { remote, inside, l3, mtu } => {
                if let Some(error) = packets::too_big(octets, l3, mtu) {
                    self.worker.post(None, [Command::InjectFrame(remote, Some(inside), error.into())]);
                }
                return;
            }
            Cause::Reject { port, inside } => {
                return self.worker.post(None, [Command::InjectFrame(port, Some(inside), octets.into())]);
            }
        };
        let mut vteps = self.vteps.lock();
        let Some(side) = vteps.get_mut(&vtep) else { return };
        let s = &side.station;
        match packets::parse(s, octets) {
            PacketEvent::Neighbor { address, mac, answer } => {
                // Whom a guest of the underlay pretends to be is answered, and not believed.
                if let Some(octets) = answer {
                    self.send(s.idx, octets);
                }
                if s.uplink == Some(from) && side.neighbors.heard(address, mac, Instant::now()) {
                    self.look_after(side, Instant::now());
                }
            }
            PacketEvent::Answer(octets) => self.send(s.idx, octets),
            PacketEvent::TooBig { remote, mtu } => {
                let now = Instant::now();
                if s.uplink == Some(from) && side.path_mtus.note(remote, mtu, now) {
                    tracing::info!("vtep '{}': the path to {remote} takes packets of {mtu} octets", s.name);
                    self.look_after(side, now);
                }
            }
            PacketEvent::Query(group) => {
                // Of a guest in the underlay's segment none is believed.
                if s.uplink == Some(from) {
                    let asked = s.groups.iter().filter(|g| group.is_none_or(|asked| asked == **g));
                    asked.for_each(|g| self.send(s.idx, packets::join(s, *g)));
                }
            }
            PacketEvent::Nothing => {}
        }
    }
}

fn run(underlay: &Weak<Underlay>) {
    let mut next = Instant::now();
    let mut read = 0;
    loop {
        if read == 0 {
            std::thread::park_timeout(next.saturating_duration_since(Instant::now()));
        }
        let Some(u) = underlay.upgrade() else { return };
        read = u.punted.read(|frame| u.handle_packet(frame));
        let now = Instant::now();
        if now >= next {
            u.vteps.lock().values_mut().for_each(|side| u.look_after(side, now));
            next = now + TICK;
        }
    }
}
