//! Numbers of the field, as types that can't hold one out of their range. The ranges are those of the proto file.

use crate::defaults;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident: $int:ident, $range:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub struct $name($int);

        impl $name {
            /// `None` if `n` is out of range.
            pub const fn new(n: u64) -> Option<Self> {
                if *defaults::$range.start() <= n && n <= *defaults::$range.end() { Some($name(n as $int)) } else { None }
            }

            /// A constant, checked when it is compiled.
            pub const fn of<const N: u64>() -> Self {
                const { Self::new(N).expect("out of range") }
            }

            /// The number.
            #[inline]
            pub const fn get(self) -> $int {
                self.0
            }
        }

        impl From<$name> for $int {
            fn from(n: $name) -> $int {
                n.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// A VLAN id (IEEE 802.1Q), 1 to 4094; 0 is no VLAN: the untagged frames of a trunk.
    Vid: u16, STATICMAC_VLAN_RANGE
}

number! {
    /// The number of a network in tunnels, 1 to 2^24 - 1: the VNI of VXLAN, Geneve and NVGRE, the key of GRE.
    Vni: u32, NETWORK_VNI_RANGE
}

number! {
    /// The largest payload of a frame in octets, without Ethernet header and tag.
    Mtu: u32, PORT_MTU_RANGE
}

number! {
    /// A rate in frames per second.
    Fps: u64, PORT_STORM_BROADCAST_FPS_RANGE
}

impl Default for Mtu {
    fn default() -> Self {
        Mtu::of::<{ defaults::PORT_MTU as u64 }>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn out_of_range_is_no_number() {
        assert_eq!(
            (Vid::new(0).map(Vid::get), Vid::new(4094).map(Vid::get), Vid::new(4095)),
            (Some(0), Some(4094), None)
        );
        assert_eq!((Vni::new(0), Vni::new(1 << 24), Vni::new((1 << 32) + 5)), (None, None, None));
        assert_eq!((Mtu::new(67), Mtu::default().get(), Mtu::new(9217)), (None, 1500, None));
        assert!(Fps::new(0).is_none());
    }
}
