//! What a configuration may have at most, so that whatever is accepted can be restored.

/// Ports with a device.
pub const PORTS: usize = 1024;
/// Ports, VTEPs and remote VTEPs together.
pub const NUMBERED: usize = 4096;
/// (bridge, VLAN) pairs and networks without a VLAN together.
pub const SEGMENTS: usize = 65_534;
/// Rules of one ACL, and of all.
pub const RULES: usize = 10_000;
/// See [`RULES`].
pub const ALL_RULES: usize = 100_000;
/// Combinations of addresses and ports of one ACL, and of all: rules with sets and several ports, written out.
pub const COMBINATIONS: usize = 65_536;
/// See [`COMBINATIONS`].
pub const ALL_COMBINATIONS: usize = 262_144;
/// ACLs of one port, each way.
pub const ACLS: usize = 16;
/// Prefixes of one set, those of the sets that it names included.
pub const PREFIXES: usize = 65_536;
/// Prefixes of all sets together.
pub const ALL_PREFIXES: usize = 4 << 20;
/// Sets that name sets: how deep.
pub const DEPTH: usize = 16;
/// Octets of the name of a kernel interface (IFNAMSIZ without its end).
pub const INTERFACE: usize = 15;
/// Octets of the path of a Unix socket (sun_path without its end).
pub const SOCKET_PATH: usize = 107;
/// Octets of the whole configuration, encoded.
pub const OCTETS: usize = 128 << 20;
