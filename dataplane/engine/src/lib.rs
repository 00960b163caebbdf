//! Dunlin's forwarding logic: bursts of frames in, verdicts out.
//!
//! No DPDK, no I/O and no clock of its own: it is generic over [`Frame`], told the time by its
//! caller, and hands frames that leave to an [`Output`]. So everything here is tested on any
//! machine, with [`frame::HeapFrame`] in the place of a DPDK buffer.
//!
//! **Who owns which thread.** None is started here. A worker calls [`pipeline::Pipeline::run`]
//! with its own pipeline and counters; the [`mac_table::MacTable`] is shared by all workers and
//! read and written in place; a [`snapshot::Snapshot`] is immutable and made by whoever
//! configures, through [`topology::Topology`].
//!
//! **Read next** `pipeline.rs`: the way of a frame, every stage in its order.

#![deny(unsafe_code)]

pub mod acl;
pub mod burst;
pub mod conntrack;
pub mod counters;
pub mod cycles;
pub mod discovery;
pub mod filter;
pub mod frame;
pub mod headers;
mod intrinsics;
pub mod mac_table;
pub mod output;
pub mod pipeline;
pub mod reason;
pub mod security;
pub mod snapshot;
mod stage;
pub mod storm;
pub mod topology;
pub mod trace;
pub mod tunnel;
pub mod types;
pub mod vlan;

pub use burst::{BURST, Burst};
pub use dunlin_model::{Fps, MacAddr, Mtu, Vid, Vni};
pub use frame::Frame;
pub use output::Output;
pub use pipeline::Pipeline;
pub use reason::DropReason;
pub use snapshot::Snapshot;
pub use types::{PortIdx, SegmentId};

/// The most ports a dataplane holds, VTEPs and remote ones among them. Fixed so that counters and
/// tables are flat arrays.
pub const MAX_PORTS: usize = dunlin_model::limits::NUMBERED;
