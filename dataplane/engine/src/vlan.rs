//! What a port does with VLAN tags: the modes and their meaning are those of Open vSwitch's
//! `vlan_mode` (ovs-vswitchd.conf.db(5), table Port), so that they need not be learned twice.
//!
//! VLAN 0 is "no VLAN": the VLAN of untagged frames on a trunk port. A priority-tagged frame
//! (VID 0 in its tag) is treated as untagged, and its priority is kept.

pub use dunlin_model::vlan::{PriorityTags, TPID_8021AD, TPID_8021Q, VlanMode, VlanSet};

/// Whether an EtherType is that of a VLAN tag.
#[inline(always)]
pub(crate) fn is_tag(ethertype: u16) -> bool {
    matches!(ethertype, TPID_8021Q | TPID_8021AD)
}

/// How a frame leaves a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EgressForm {
    /// The port does not carry the VLAN.
    Refused,
    /// Without the VLAN's tag.
    Untagged,
    /// With it.
    Tagged,
}

/// A customer's side of a service VLAN.
#[derive(Clone, Debug)]
pub struct Tunnel {
    /// Customer VLANs let through.
    pub cvlans: VlanSet,
    /// The TPID that the service tag gets where it shows.
    pub tpid: u16,
}

/// A port's mode in the form that the stages ask it in: a comparison or two a frame.
#[derive(Clone, Debug)]
pub struct PortVlans {
    /// The VLAN of frames that arrive untagged or with VID 0.
    pub untagged_in: u16,
    /// Whether frames may arrive with another VID.
    pub tagged_in: bool,
    /// The VLAN whose frames leave untagged, beside VLAN 0.
    untagged_out: u16,
    /// The same VLAN of a port whose other VLANs leave tagged: the other end of the link takes the outer tag of a frame for
    /// its VLAN, so that these frames may have no other tag than their own.
    pub native_out: u16,
    /// See [`Tunnel`].
    pub tunnel: Option<Box<Tunnel>>,
    /// The VLANs of frames that leave tagged, or untagged if it is VLAN 0.
    tagged_out: VlanSet,
}

impl PortVlans {
    /// No VLAN is called that.
    const NONE: u16 = u16::MAX;

    /// The VLANs of a port of this mode.
    pub fn new(mode: &VlanMode) -> Self {
        let plain = |untagged_in, tagged_in, untagged_out, tagged_out| PortVlans {
            untagged_in,
            tagged_in,
            untagged_out,
            native_out: Self::NONE,
            tunnel: None,
            tagged_out,
        };
        match mode {
            VlanMode::Access { vid } => plain(vid.get(), false, vid.get(), VlanSet::EMPTY),
            VlanMode::Trunk { vlans } => plain(0, true, Self::NONE, vlans.clone()),
            VlanMode::NativeTagged { native, .. } => plain(native.get(), true, Self::NONE, mode.carried()),
            VlanMode::NativeUntagged { native, vlans } => {
                let native = native.get();
                PortVlans { native_out: native, ..plain(native, true, native, vlans.clone()) }
            }
            VlanMode::Dot1qTunnel { vid, cvlans, tpid } => {
                let tunnel = Some(Box::new(Tunnel { cvlans: cvlans.clone(), tpid: *tpid }));
                PortVlans { tunnel, ..plain(vid.get(), true, vid.get(), VlanSet::EMPTY) }
            }
        }
    }

    /// How a frame of VLAN `vid` leaves the port.
    #[inline(always)]
    pub fn egress(&self, vid: u16) -> EgressForm {
        if vid == self.untagged_out {
            EgressForm::Untagged
        } else if !self.tagged_out.contains(vid) {
            EgressForm::Refused
        } else if vid == 0 {
            EgressForm::Untagged
        } else {
            EgressForm::Tagged
        }
    }
}

/// A frame's VLAN and priority, and how it shows them, in one word: the tag that it has (none
/// without one, and for a customer's tag that passes a dot1q-tunnel port as payload), and TPID and
/// TCI of the one it gets where it leaves with a tag.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VlanTagInfo(u64);

impl VlanTagInfo {
    /// See the type. The VLAN is in `tci`, with PCP and DEI in their place.
    #[inline(always)]
    pub const fn new(tag: Tag, tpid: u16, tci: u16) -> Self {
        VlanTagInfo((tag.0 as u64) << 32 | (tpid as u64) << 16 | tci as u64)
    }

    /// All of it.
    #[inline(always)]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The tag in the frame that says its VLAN or priority.
    #[inline(always)]
    pub const fn tag(self) -> Tag {
        Tag((self.0 >> 32) as u32)
    }

    /// The same without the tag in the frame.
    #[inline(always)]
    pub const fn without_tag(self) -> VlanTagInfo {
        VlanTagInfo(self.0 & 0xffff_ffff)
    }

    /// Octets of the Ethernet header of the frame, with the tag that it has.
    #[inline(always)]
    pub const fn header_len(self) -> u32 {
        14 + self.tag().octets()
    }

    /// The same with this tag in the frame instead.
    #[inline(always)]
    pub const fn with_tag(self, tag: Tag) -> VlanTagInfo {
        VlanTagInfo((tag.0 as u64) << 32 | self.0 & 0xffff_ffff)
    }

    /// The TPID of the tag it gets.
    #[inline(always)]
    pub const fn tpid(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// The VLAN it is in; 0 is none.
    #[inline(always)]
    pub const fn vid(self) -> u16 {
        self.0 as u16 & Tag::VID
    }

    /// PCP and DEI, in their place in a TCI.
    #[inline(always)]
    pub const fn priority(self) -> u16 {
        self.0 as u16 & !Tag::VID
    }
}

/// A tag as it is on the wire: TPID in the upper 16 bits, TCI in the lower; or none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tag(u32);

impl Tag {
    /// No tag.
    pub const NONE: Tag = Tag(0);
    /// The bits of a TCI that are the VLAN; the others are priority and drop eligibility.
    pub const VID: u16 = 0x0fff;

    /// A tag; `tpid` is not 0.
    #[inline(always)]
    pub const fn new(tpid: u16, tci: u16) -> Self {
        Tag((tpid as u32) << 16 | tci as u32)
    }

    /// Whether there is one.
    #[inline(always)]
    pub const fn is_some(self) -> bool {
        self.0 != 0
    }

    /// Octets that it takes in a frame.
    #[inline(always)]
    pub const fn octets(self) -> u32 {
        if self.is_some() { 4 } else { 0 }
    }

    /// Its TPID; 0 without a tag.
    #[inline(always)]
    pub const fn tpid(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// Its TCI; 0 without a tag.
    #[inline(always)]
    pub const fn tci(self) -> u16 {
        self.0 as u16
    }
}
