//! VLANs of a port: the modes and their meaning are those of Open vSwitch's `vlan_mode` (ovs-vswitchd.conf.db(5), table
//! Port).
//!
//! VLAN 0 is "no VLAN": the VLAN of untagged frames on a trunk port.

use crate::Vid;

/// The TPID of a customer tag (IEEE 802.1Q).
pub const TPID_8021Q: u16 = 0x8100;
/// The TPID of a service tag (IEEE 802.1ad).
pub const TPID_8021AD: u16 = 0x88a8;

/// A set of VLAN ids, 0 to 4095.
#[derive(Clone, PartialEq, Eq)]
pub struct VlanSet([u64; 64]);

impl VlanSet {
    /// No VLAN.
    pub const EMPTY: VlanSet = VlanSet([0; 64]);
    /// All 4,096.
    pub const ALL: VlanSet = VlanSet([u64::MAX; 64]);

    /// Whether `vid` (its low 12 bits) is in the set.
    #[inline]
    pub const fn contains(&self, vid: u16) -> bool {
        self.0[(vid >> 6) as usize & 63] & (1 << (vid & 63)) != 0
    }

    /// Adds `vid` (its low 12 bits).
    pub const fn insert(&mut self, vid: u16) {
        self.0[(vid >> 6) as usize & 63] |= 1 << (vid & 63);
    }

    /// The ids in rising order.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        let words = (0u16..).zip(&self.0).filter(|(_, w)| **w != 0);
        words.flat_map(|(i, w)| (0..64).filter(move |b| w >> b & 1 != 0).map(move |b| i * 64 + b))
    }

    /// Adds all of another set.
    pub fn add(&mut self, other: &VlanSet) {
        self.0.iter_mut().zip(other.0).for_each(|(a, b)| *a |= b);
    }

    /// How many ids it holds.
    pub fn len(&self) -> usize {
        self.0.iter().map(|w| w.count_ones() as usize).sum()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        *self == Self::EMPTY
    }

    /// Whether it holds every id.
    pub fn is_all(&self) -> bool {
        *self == Self::ALL
    }
}

impl std::str::FromStr for VlanSet {
    type Err = String;

    /// Of a list as "10,20-30"; an empty one holds every id.
    fn from_str(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Ok(Self::ALL);
        }
        let mut set = Self::EMPTY;
        for part in text.split(',').map(str::trim) {
            let number = |s: &str| match s.trim().parse::<u16>() {
                Ok(n) if n <= 4094 => Ok(n),
                _ => Err(format!("'{part}' is no VLAN (0 to 4094) and no range as 20-30")),
            };
            let (a, b) = match part.split_once('-') {
                Some((a, b)) => (number(a)?, number(b)?),
                None => (number(part)?, number(part)?),
            };
            if a > b {
                return Err(format!("'{part}' ends before it begins"));
            }
            for v in a..=b {
                if set.contains(v) {
                    return Err(format!("VLAN {v} of '{part}' is named before: ranges must not overlap"));
                }
                set.insert(v);
            }
        }
        Ok(set)
    }
}

impl std::fmt::Debug for VlanSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_all() { f.write_str("all") } else { f.debug_set().entries(self.iter()).finish() }
    }
}

impl FromIterator<u16> for VlanSet {
    fn from_iter<I: IntoIterator<Item = u16>>(iter: I) -> Self {
        let mut set = Self::EMPTY;
        iter.into_iter().for_each(|v| set.insert(v));
        set
    }
}

/// Which frames a port carries and how they are tagged on its link.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum VlanMode {
    /// One VLAN, untagged on the link. A tagged frame is refused, unless its VID is 0.
    Access {
        /// The VLAN; 0 is the bridge's untagged traffic.
        vid: Vid,
    },
    /// The VLANs of the set, tagged; untagged frames are VLAN 0.
    Trunk {
        /// What it carries.
        vlans: VlanSet,
    },
    /// As a trunk, but untagged frames that arrive belong to `native`.
    NativeTagged {
        /// The VLAN of untagged frames; carried even if it is not in `vlans`.
        native: Vid,
        /// What else it carries.
        vlans: VlanSet,
    },
    /// As `NativeTagged`, and frames of `native` leave untagged.
    NativeUntagged {
        /// The VLAN of untagged frames, both ways.
        native: Vid,
        /// What else it carries.
        vlans: VlanSet,
    },
    /// One service VLAN that never shows on the link; the customer's own tags pass through it.
    Dot1qTunnel {
        /// The service VLAN.
        vid: Vid,
        /// The customer VLANs let through; an untagged frame counts as 0.
        cvlans: VlanSet,
        /// The TPID that the service tag gets where it shows.
        tpid: u16,
    },
}

/// Whether a frame that leaves without a VLAN gets a priority tag (VID 0): Open vSwitch's
/// `priority-tags`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum PriorityTags {
    /// Never; the priority is lost there.
    #[default]
    Never,
    /// When the frame has a priority other than 0.
    IfNonzero,
    /// Always.
    Always,
}

impl VlanMode {
    /// The VLANs a port of this mode carries.
    pub fn carried(&self) -> VlanSet {
        let mut set = VlanSet::EMPTY;
        self.add_to(&mut set);
        set
    }

    /// Adds the VLANs that a port of this mode carries.
    pub fn add_to(&self, set: &mut VlanSet) {
        match self {
            VlanMode::Access { vid } | VlanMode::Dot1qTunnel { vid, .. } => set.insert(vid.get()),
            VlanMode::Trunk { vlans } => set.add(vlans),
            VlanMode::NativeTagged { native, vlans } | VlanMode::NativeUntagged { native, vlans } => {
                set.insert(native.get());
                set.add(vlans);
            }
        }
    }

    /// Whether a port of this mode carries every VLAN.
    pub fn carries_all(&self) -> bool {
        match self {
            VlanMode::Access { .. } | VlanMode::Dot1qTunnel { .. } => false,
            VlanMode::Trunk { vlans }
            | VlanMode::NativeTagged { vlans, .. }
            | VlanMode::NativeUntagged { vlans, .. } => vlans.is_all(),
        }
    }

    /// Whether a port of this mode carries a VLAN.
    pub fn carries(&self, vid: u16) -> bool {
        match self {
            VlanMode::Access { vid: own } | VlanMode::Dot1qTunnel { vid: own, .. } => own.get() == vid,
            VlanMode::Trunk { vlans } => vlans.contains(vid),
            VlanMode::NativeTagged { native, vlans } | VlanMode::NativeUntagged { native, vlans } => {
                native.get() == vid || vlans.contains(vid)
            }
        }
    }
}
