//! MAC addresses.

use std::{fmt, str::FromStr};

/// A 48-bit Ethernet address, in the low 48 bits, first octet on the wire highest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct MacAddr(u64);

impl MacAddr {
    /// FF-FF-FF-FF-FF-FF.
    pub const BROADCAST: MacAddr = MacAddr(0xffff_ffff_ffff);

    /// From the octets in their order on the wire.
    #[inline]
    pub const fn from_octets(o: [u8; 6]) -> Self {
        MacAddr(u64::from_be_bytes([0, 0, o[0], o[1], o[2], o[3], o[4], o[5]]))
    }

    /// From the low 48 bits of `bits`; the others are ignored.
    #[inline]
    pub const fn from_bits(bits: u64) -> Self {
        MacAddr(bits & 0xffff_ffff_ffff)
    }

    /// The address as a number below 2^48.
    #[inline]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The octets in their order on the wire.
    pub const fn octets(self) -> [u8; 6] {
        let b = self.0.to_be_bytes();
        [b[2], b[3], b[4], b[5], b[6], b[7]]
    }

    /// Group addresses, the broadcast address among them (IEEE 802 I/G bit).
    #[inline]
    pub const fn is_multicast(self) -> bool {
        self.0 & (1 << 40) != 0
    }

    /// 01-80-C2-00-00-00 to 0F: not forwarded by a bridge (IEEE 802.1Q, 8.6.3).
    #[inline]
    pub const fn is_reserved(self) -> bool {
        self.0 & !0xf == 0x0180_c200_0000
    }

    /// Those of the reserved addresses that a provider bridge forwards as data of its customer: the bridge group address of
    /// spanning tree, and 0B, 0C, 0D and 0F (IEEE 802.1Q-2018, 8.6.3, table 8-2 leaves them out).
    #[inline]
    pub const fn is_customers(self) -> bool {
        self.is_reserved() && matches!(self.0 & 0xf, 0 | 0xb | 0xc | 0xd | 0xf)
    }

    /// Whether a host can have it: it is no group address and not zero.
    pub const fn is_unicast(self) -> bool {
        !self.is_multicast() && self.0 != 0
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let o = self.octets();
        write!(f, "{:02x}:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}", o[0], o[1], o[2], o[3], o[4], o[5])
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text was not six hexadecimal octets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not an Ethernet address (six octets, as 52:54:00:12:34:56)")]
pub struct BadMac(String);

impl FromStr for MacAddr {
    type Err = BadMac;

    fn from_str(s: &str) -> Result<Self, BadMac> {
        let bad = || BadMac(s.to_owned());
        let mut octets = [0u8; 6];
        let mut parts = s.split([':', '-']);
        for o in &mut octets {
            let p = parts.next().filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()));
            *o = u8::from_str_radix(p.ok_or_else(bad)?, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() { Err(bad()) } else { Ok(MacAddr::from_octets(octets)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_round_trip_and_refusals() {
        let m: MacAddr = "52:54:00:12:34:56".parse().unwrap();
        assert_eq!(m.to_string(), "52:54:00:12:34:56");
        assert_eq!(MacAddr::from_octets(m.octets()), m);
        for bad in
            ["", "52:54:00:12:34", "52:54:00:12:34:56:78", "52:54:0:12:34:56", "g2:54:00:12:34:56", "+2:54:00:12:34:56"]
        {
            assert!(bad.parse::<MacAddr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn reserved_is_the_sixteen_link_addresses() {
        assert!("01:80:c2:00:00:00".parse::<MacAddr>().unwrap().is_reserved());
        assert!("01:80:c2:00:00:0f".parse::<MacAddr>().unwrap().is_reserved());
        assert!(!"01:80:c2:00:00:10".parse::<MacAddr>().unwrap().is_reserved());
        let customers = |n: u8| MacAddr::from_octets([1, 0x80, 0xc2, 0, 0, n]).is_customers();
        assert_eq!((0..0x20).filter(|n| customers(*n)).collect::<Vec<u8>>(), [0, 0xb, 0xc, 0xd, 0xf]);
    }
}
