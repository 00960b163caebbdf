//! What all workers look up and write in place, without locks: MAC addresses, connections, ARP/ND bindings; and ACLs, which are
//! read alone.

pub mod acl;
pub mod bindings;
pub mod conntrack;
pub mod mac;
