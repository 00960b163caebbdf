//! What frames are made of: headers, and the few packets that the switch itself reads and makes.

pub mod arp_nd;
mod checksum;
pub mod headers;
pub(crate) mod reject;

use std::net::IpAddr;

pub use checksum::{checksum, icmpv6_checksum, sum_of, sum_of_pieces};
pub(crate) use checksum::{fold, sum};

/// The EtherType of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// The EtherType of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
/// The EtherType of ARP.
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// The EtherType of RARP (RFC 903).
pub const ETHERTYPE_RARP: u16 = 0x8035;

/// An IP address in one word, one of IPv4 as RFC 4291, 2.5.5.2 maps it: made and compared faster than
/// an [`IpAddr`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(pub(crate) u128);

impl Address {
    /// No host's.
    pub(crate) const NONE: Address = Address(0);

    pub(crate) fn bits(self) -> u128 {
        self.0
    }

    pub(crate) fn from_bits(bits: u128) -> Self {
        Address(bits)
    }

    #[inline(always)]
    pub(crate) fn v4(octets: [u8; 4]) -> Self {
        Address(0xffff << 32 | u128::from(u32::from_be_bytes(octets)))
    }
}

impl From<IpAddr> for Address {
    fn from(a: IpAddr) -> Self {
        match a {
            IpAddr::V4(a) => Address::v4(a.octets()),
            IpAddr::V6(a) => Address(a.to_bits()),
        }
    }
}
