//! The small types that tables are keyed by.

use crate::MacAddr;

/// A port's place in every table of one dataplane. It never leaves the dataplane: outside of it
/// ports have names.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct PortIdx(u16);

impl PortIdx {
    /// `None` unless `i` is below [`crate::MAX_PORTS`].
    pub const fn new(i: usize) -> Option<Self> {
        if i < crate::MAX_PORTS { Some(PortIdx(i as u16)) } else { None }
    }

    /// The index, below [`crate::MAX_PORTS`].
    #[inline]
    pub const fn get(self) -> usize {
        // The mask lets the compiler see the bound; no value outside it is ever made.
        self.0 as usize & (crate::MAX_PORTS - 1)
    }

    #[inline]
    pub(crate) const fn from_raw(raw: u16) -> Self {
        PortIdx(raw & (crate::MAX_PORTS as u16 - 1))
    }
}

const _: () = assert!(crate::MAX_PORTS.is_power_of_two());

/// The unit of isolation: one (bridge, VLAN) pair. 0 is no segment.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct SegmentId(pub u16);

impl SegmentId {
    /// "In no segment": what a VLAN that the port does not carry maps to.
    pub const NONE: SegmentId = SegmentId(0);

    /// As an index.
    #[inline]
    pub const fn get(self) -> usize {
        self.0 as usize
    }
}

/// Address and segment in one word.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Key(pub(crate) u64);

impl Key {
    /// The key of `mac` in `segment`.
    #[inline(always)]
    pub const fn new(mac: MacAddr, segment: SegmentId) -> Self {
        Key(mac.bits() << 16 | segment.0 as u64)
    }

    /// Whether no station may have it: groups, and the address of all zeros.
    #[inline(always)]
    pub const fn is_invalid_source(self) -> bool {
        self.is_multicast() || self.0 >> 16 == 0
    }

    /// Whether the address is a group's.
    #[inline(always)]
    pub const fn is_multicast(self) -> bool {
        self.0 >> 56 & 1 != 0
    }

    /// The address.
    #[inline(always)]
    pub const fn mac(self) -> MacAddr {
        MacAddr::from_bits(self.0 >> 16)
    }

    /// The segment.
    #[inline(always)]
    pub const fn segment(self) -> SegmentId {
        SegmentId(self.0 as u16)
    }
}

/// A key's hash under one table's seed. As many hashes as keys: who has the hash has the key.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Hash(pub(crate) u64);

impl Hash {
    /// Of no key in particular.
    pub const ZERO: Hash = Hash(0);
}
