//! Tunnels: segments that go on at other hosts, over a routed network.
//!
//! A **VTEP** is a station of its own in the segment of the underlay: a port without a device, with an
//! MAC and IP address. A **remote** is another host's VTEP as a port of the overlay:
//! addresses are learned at it, static entries and floods name it, it has counters, like any port.
//! So an encapsulated frame goes through the stages twice, each time as an ordinary frame: in the
//! overlay, from a guest's port to the remote; and in the underlay, from the VTEP to the next hop,
//! wherever that is, with whatever tag its port wants. The same the other way round.
//!
//! `stage/tunnel/` is the way between the two passes; the formats are one file each: `vxlan.rs`, `geneve.rs`,
//! `gre.rs`.
//! Who resolves next hops and answers for the VTEP's address is not here: see [`NextHop`] and
//! [`crate::output::Punt::local`].

mod geneve;
mod gre;
pub(crate) mod ip;
mod outer;
mod vxlan;

use std::{
    collections::{BTreeSet, HashMap},
    hash::{BuildHasherDefault, Hasher},
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
};

use crate::{MacAddr, PortIdx, SegmentId, packet::Address, vlan::VlanTagInfo};
pub use dunlin_model::spec::Tunnel as Kind;
pub use outer::{Outer, OuterSpec};

/// Octets of each encapsulation's header without anything optional.
pub(crate) const HEADER: usize = 8;

/// The formats.
pub(crate) trait Format: Sized {
    /// The UDP port of the encapsulation, where VXLAN's is `vxlan`; `None` for what needs no UDP.
    fn udp_port(self, vxlan: u16) -> Option<u16>;
    /// What the header begins with.
    fn first_word(self) -> [u8; 4];
    /// What the second word is made of: the VNI moved left by so many bits, and these bits of the flow.
    fn second_word(self) -> (u32, u16);
    /// The VNI, and the octets of the header that a payload begins with; `None` if it can't be taken.
    fn read(self, payload: &[u8]) -> Option<(u32, usize)>;
}

impl Format for Kind {
    fn udp_port(self, vxlan: u16) -> Option<u16> {
        match self {
            Kind::Vxlan => Some(vxlan),
            Kind::Geneve => Some(geneve::UDP_PORT),
            Kind::Gre | Kind::Nvgre => None,
        }
    }

    fn first_word(self) -> [u8; 4] {
        match self {
            Kind::Vxlan => vxlan::FIRST,
            Kind::Geneve => geneve::FIRST,
            Kind::Gre | Kind::Nvgre => gre::FIRST,
        }
    }

    fn second_word(self) -> (u32, u16) {
        match self {
            Kind::Vxlan | Kind::Geneve => (8, 0),
            Kind::Gre => (0, 0),
            Kind::Nvgre => (8, 0xff),
        }
    }

    #[inline(always)]
    fn read(self, payload: &[u8]) -> Option<(u32, usize)> {
        if self == Kind::Vxlan { vxlan::read(payload) } else { read_other(self, payload) }
    }
}

#[inline(never)]
fn read_other(kind: Kind, payload: &[u8]) -> Option<(u32, usize)> {
    match kind {
        Kind::Vxlan => vxlan::read(payload),
        Kind::Geneve => geneve::read(payload),
        Kind::Gre => gre::read(payload),
        Kind::Nvgre => gre::read(payload).map(|(key, len)| (key >> 8, len)),
    }
}

/// What a port is, beside its policy.
#[derive(Debug)]
pub enum Role {
    /// A device: a NIC, a kernel interface, a guest.
    Device,
    /// This host's end of tunnels.
    Vtep(Box<Vtep>),
    /// Another host's end, seen from here.
    Remote(Box<Remote>),
}

impl Role {
    /// Whether what is sent to it has somewhere to go: for a remote, a next hop that is known.
    pub fn is_reached(&self) -> bool {
        if let Role::Remote(r) = self { r.next_hop.get().is_some() } else { true }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Vtep {
    /// Its MAC address.
    pub mac: MacAddr,
    /// Its IP address: where tunnels end.
    pub address: Address,
    /// The port tunnels may arrive by; no guest of the underlay's segment can pretend to be a VTEP.
    pub uplink: Option<PortIdx>,
    /// The UDP port of VXLAN.
    pub udp_port: u16,
    /// From a kind and a VNI to what its frames are here.
    pub networks: Networks,
    /// Multicast groups that tunnels may be sent to, in place of its address.
    pub groups: BTreeSet<Address>,
    /// The VTEPs that tunnels may come from, and of what kind.
    pub remotes: HashMap<(Address, Kind), PortIdx, BuildHasherDefault<FxHasher>>,
}

/// By kind and VNI: what its frames are here.
pub type Networks = HashMap<(Kind, u32), (VlanTagInfo, SegmentId), BuildHasherDefault<FxHasher>>;

/// See the module.
#[derive(Debug)]
pub struct Remote {
    /// The VTEP by which it is reached.
    pub vtep: PortIdx,
    /// The headers in front of frames to it.
    pub outer: Outer,
    /// The station of the underlay that takes them.
    pub next_hop: Arc<NextHop>,
}

impl Remote {
    /// The largest payload of an inner frame, of which the port that stands for the remote says what its uplink takes: less,
    /// if the path to it takes less.
    #[inline(always)]
    pub fn mtu(&self, of_uplink: u32) -> u32 {
        of_uplink.min(self.next_hop.path_mtu().saturating_sub(self.outer.len() as u32))
    }
}

/// The path to a remote, as the underlay thread has resolved it: the next hop's MAC address, and the path's MTU.
#[derive(Debug)]
pub struct NextHop {
    mac: AtomicU64,
    path_mtu: AtomicU32,
}

impl Default for NextHop {
    fn default() -> Self {
        NextHop { mac: AtomicU64::new(0), path_mtu: AtomicU32::new(u32::MAX) }
    }
}

impl NextHop {
    /// Frames go to this address from now on; nowhere, without one.
    pub fn set(&self, mac: Option<MacAddr>) {
        self.mac.store(mac.map_or(0, MacAddr::bits), Relaxed);
    }

    /// The address, if it is known.
    #[inline(always)]
    pub fn get(&self) -> Option<MacAddr> {
        match self.mac.load(Relaxed) {
            0 => None,
            bits => Some(MacAddr::from_bits(bits)),
        }
    }

    /// A router said that it takes IP packets of so many octets; without a limit, what is known is forgotten.
    pub fn set_path_mtu(&self, mtu: Option<u32>) {
        self.path_mtu.store(mtu.unwrap_or(u32::MAX), Relaxed);
    }

    /// Octets of the largest IP packet on the path, or [`u32::MAX`].
    #[inline(always)]
    pub fn path_mtu(&self) -> u32 {
        self.path_mtu.load(Relaxed)
    }
}

/// The MAC address of a group: RFC 1112, 6.4, and RFC 2464, 7.
pub fn group_mac(group: IpAddr) -> MacAddr {
    MacAddr::from_octets(match group {
        IpAddr::V4(a) => {
            let [_, b, c, d] = a.octets();
            [1, 0, 0x5e, b & 0x7f, c, d]
        }
        IpAddr::V6(a) => {
            let o = a.octets();
            [0x33, 0x33, o[12], o[13], o[14], o[15]]
        }
    })
}

/// A hash for keys that the operator chooses: VNIs and VTEPs' addresses.
#[derive(Default)]
pub struct FxHasher(u64);

impl Hasher for FxHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    #[inline(always)]
    fn write(&mut self, octets: &[u8]) {
        for part in octets.chunks(8) {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            self.write_u64(u64::from_le_bytes(word));
        }
    }
    #[inline(always)]
    fn write_u32(&mut self, n: u32) {
        self.write_u64(u64::from(n));
    }
    #[inline(always)]
    fn write_u64(&mut self, n: u64) {
        let product = u128::from(self.0 ^ n ^ 0xf39c_c060_5ced_c835) * 0x9e37_79b9_7f4a_7c15;
        self.0 = (product >> 64) as u64 ^ product as u64;
    }
    #[inline(always)]
    fn write_u128(&mut self, n: u128) {
        self.write_u64(n as u64);
        self.write_u64((n >> 64) as u64);
    }
}
