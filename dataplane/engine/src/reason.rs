//! Why frames are dropped: one value, which is also the index of its counter.

/// The side of a port that a drop is counted on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// Counted on the port the frame came in by.
    Rx,
    /// Counted on the port the frame (or its copy) should have left by.
    Tx,
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal, $dir:ident;)+) => {
        /// Why a frame was dropped. Every drop has exactly one; the enum indexes the counters.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum DropReason { $($(#[doc = $doc])+ $variant,)+ }

        impl DropReason {
            /// Every reason, in the order of the counters.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$variant,)+];
            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The name in the CLI, the metrics and the API: stable, lower case, underscores.
            pub const fn name(self) -> &'static str {
                match self { $(DropReason::$variant => $name,)+ }
            }

            /// The side it is counted on.
            pub const fn direction(self) -> Direction {
                match self { $(DropReason::$variant => Direction::$dir,)+ }
            }

            /// A sentence for people.
            pub const fn describe(self) -> &'static str {
                match self { $(DropReason::$variant => concat!($($doc),+),)+ }
            }
        }
    };
}

reasons! {
    /// Shorter than its Ethernet header and tag.
    Runt = "runt", Rx;
    /// Received by AF_XDP without its end: shorter than its IP header says.
    Truncated = "truncated", Rx;
    /// The source address is a group address, broadcast or all zeros.
    InvalidSource = "invalid_source", Rx;
    /// Reply to a rejected frame not sent: the limit is 1,000 a second for each port (RFC 1812, 4.3.2.8; RFC 4443, 2.4 f).
    ReplyLimit = "reply_limit", Rx;
    /// The port does not carry the frame's VLAN; or another tag stands behind a priority tag.
    IngressVlan = "ingress_vlan", Rx;
    /// To 01-80-C2-00-00-00…0F, which stays on its link. Between dot1q-tunnel ports, spanning tree (00) of the customer and
    /// 0B, 0C, 0D and 0F pass (IEEE 802.1Q, 8.6.3).
    ReservedMulticast = "reserved_multicast", Rx;
    /// The source of layer 2 is none of the port's.
    SpoofedMac = "spoofed_mac", Rx;
    /// The source of layer 3 is none of the port's, or hidden behind a second tag.
    SpoofedIp = "spoofed_ip", Rx;
    /// In ARP, as somebody else.
    SpoofedArp = "spoofed_arp", Rx;
    /// In neighbour discovery, as somebody else.
    SpoofedNd = "spoofed_nd", Rx;
    /// From a DHCP server, where there may be none.
    DhcpServer = "dhcp_server", Rx;
    /// DHCP message with the MAC address of another client, as a relay, for an address that is not bound to this port, or
    /// that can't be read without doubt.
    SpoofedDhcp = "spoofed_dhcp", Rx;
    /// A router's advertisement or redirect, where there may be none.
    RouterAdvertisement = "router_advertisement", Rx;
    /// A rule of an ingress access list denies it: 'dunlin trace' says which.
    AclDenied = "acl_denied", Rx;
    /// A rule of an ingress access list rejects it; its sender was notified, unless it may not be (RFC 1122).
    AclRejected = "acl_rejected", Rx;
    /// Its headers can't be read to the end (cut, or too many), and an ingress access list asks for what they hide.
    Unreadable = "unreadable", Rx;
    /// A fragment before the first one of its datagram, which has the ports that an access list asks for: the first did not
    /// come within 5 s, or too many fragments waited already.
    EarlyFragment = "early_fragment", Rx;
    /// A first fragment that ends before its ports and flags do, or a later one that writes over the first (RFC 1858, 3128 and
    /// 5722); an ingress access list asks for them.
    BadFragment = "bad_fragment", Rx;
    /// It would begin a connection, and the port, or the host, has as many as it may.
    SessionLimit = "session_limit", Rx;
    /// It would begin a connection, and the port has too many without a reply.
    UnansweredLimit = "unanswered_limit", Rx;
    /// The port has learned as many addresses as it may, and is set to drop above that.
    MacLimit = "mac_limit", Rx;
    /// The destination is on the port the frame came from.
    SamePort = "same_port", Rx;
    /// Over the port's limit for broadcast frames.
    StormBroadcast = "storm_broadcast", Rx;
    /// Over the port's limit for multicast frames.
    StormMulticast = "storm_multicast", Rx;
    /// Over the port's limit for frames to unknown addresses.
    StormUnknownUnicast = "storm_unknown_unicast", Rx;
    /// A question for an address, answered in its station's stead instead of being flooded.
    Suppressed = "suppressed", Rx;
    /// To be flooded, but no other port of its segment is up.
    NoOtherPort = "no_other_port", Rx;
    /// Received for a guest of another worker, whose ring was full: that worker is too slow.
    RingFull = "ring_full", Rx;
    /// The port it came by or was to leave by was removed or changed while it was on its way.
    PortGone = "port_gone", Rx;
    /// Asks for segmentation or a checksum that its own headers don't allow.
    BadOffload = "bad_offload", Tx;
    /// The port the address was learned on does not carry the frame's VLAN any more; or the frame would leave untagged
    /// with another tag behind its own, which the next switch takes for its VLAN.
    EgressVlan = "egress_vlan", Tx;
    /// Both ports are protected from each other.
    Protected = "protected", Tx;
    /// A rule of an egress access list denies it: 'dunlin trace' says which.
    EgressAclDenied = "egress_acl_denied", Tx;
    /// A rule of an egress access list rejects it; its sender was notified, unless it may not be (RFC 1122) or
    /// the frame was flooded.
    EgressAclRejected = "egress_acl_rejected", Tx;
    /// The same as 'unreadable', for an egress access list; or as 'early_fragment', of a frame that is flooded.
    EgressUnreadable = "egress_unreadable", Tx;
    /// The same as 'bad_fragment', for an egress access list.
    EgressBadFragment = "egress_bad_fragment", Tx;
    /// It would begin a connection to a port that has, or on a host that has, as many as it may.
    EgressSessionLimit = "egress_session_limit", Tx;
    /// It would begin a connection to a port that has too many that it does not answer.
    EgressUnansweredLimit = "egress_unanswered_limit", Tx;
    /// The link is down, or the guest is not there.
    LinkDown = "link_down", Tx;
    /// Larger than the MTU of the port it should leave by.
    MtuExceeded = "mtu_exceeded", Tx;
    /// The transmit queue, or the guest's ring, was full.
    TxFull = "tx_full", Tx;
    /// In a tunnel that is cut, fragmented, without a VNI, or with a wrong checksum.
    BadTunnel = "bad_tunnel", Tx;
    /// A tunnel to this VTEP by another port than its uplink.
    NotUplink = "not_uplink", Tx;
    /// In a tunnel from a VTEP that no network of this host names.
    UnknownVtep = "unknown_vtep", Tx;
    /// In a tunnel with a VNI that no network of this host has, or none that a port here is in.
    UnknownVni = "unknown_vni", Tx;
    /// A tunnel within a tunnel.
    NestedTunnel = "nested_tunnel", Tx;
    /// Came in a tunnel, and is for another one.
    SplitHorizon = "split_horizon", Tx;
    /// Met congestion in a tunnel, and its sender can't be notified (RFC 6040).
    Congestion = "congestion", Tx;
    /// The next hop to the VTEP does not answer.
    NextHop = "next_hop", Tx;
    /// For this VTEP's own address, more than it can take.
    LocalFull = "local_full", Tx;
    /// No buffer left for a copy, a tag or a segment.
    NoBuffer = "no_buffer", Tx;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_and_ordered_as_the_counters() {
        for (i, r) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*r as usize, i);
            assert!(DropReason::ALL.iter().filter(|o| o.name() == r.name()).count() == 1);
        }
    }
}
