//! The small types that tables are keyed by.

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
