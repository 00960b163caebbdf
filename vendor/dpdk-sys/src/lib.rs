//! Raw bindings to the system's libdpdk, 22.11 or newer.
//!
//! Made by bindgen from the explicit allowlist in `build.rs`, plus `shim.c`, which gives DPDK's
//! inline functions a symbol. No safety is added here: `dunlin-dpdk` is the only user, read its
//! `lib.rs` next. The asserts below hold the layouts that code on the way of a frame relies on.

#![allow(non_camel_case_types, non_upper_case_globals, non_snake_case, missing_docs)]
#![allow(clippy::all, unsafe_op_in_unsafe_fn)]

include!(concat!(env!("OUT_DIR"), "/bindings.rs"));

// A frame's header word, its length and its reference count share the first cache line, and the
// whole descriptor is two lines: DPDK's ABI since 21.11.
const _: () = assert!(size_of::<rte_mbuf>() == 128);
const _: () = assert!(align_of::<rte_mbuf>() == 64);
const _: () = assert!(std::mem::offset_of!(rte_mbuf, buf_addr) == 0);
const _: () = assert!(std::mem::offset_of!(rte_mbuf, ol_flags) == 24);
const _: () = assert!(std::mem::offset_of!(rte_mbuf, pkt_len) == 36);
const _: () = assert!(std::mem::offset_of!(rte_mbuf, data_len) == 40);
const _: () = assert!(size_of::<rte_ether_addr>() == 6);
