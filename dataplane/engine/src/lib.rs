//! Dunlin's forwarding logic: bursts of frames in, verdicts out.
//!
//! No DPDK, no I/O and no clock of its own: it is generic over [`Frame`], given the time by its
//! caller, and hands frames that leave to an [`Output`]. So everything here is tested on any
//! machine, with [`frame::HeapFrame`] in the place of a DPDK buffer.
//!
//! **Who owns which thread.** None is started here. A worker calls [`pipeline::Pipeline::run`]
//! with its own pipeline and counters; the [`tables`] are shared by all workers, read and written in place; a
//! [`snapshot::Snapshot`] is immutable, and made off the workers by [`snapshot::topology::Topology`].
//!
//! **What stands on what.** Each line uses only those above it:
//!
//! ```text
//! types, vlan, reason, counters, cycles, frame, atomic, intrinsics
//! burst       a burst of frames, and what stages find out about each
//! packet/     headers, checksums, ARP/ND, replies to rejected frames
//! tables/     MAC addresses, connections, ARP/ND bindings, ACLs
//! tunnel/     VXLAN, Geneve, GRE: formats, VTEPs and remotes
//! snapshot/   what is configured, in the form in which stages ask for it; `topology/` makes it
//! output      what is asked of the worker: transmit, punt, events
//! context     what all stages of a burst work with
//! stage/      one file a stage
//! pipeline    the stages in their order
//! trace       the pipeline, changing nothing and noting each step
//! ```
//!
//! **Read next** `pipeline.rs`: the way of a frame, every stage in its order.

#![deny(unsafe_code)]

mod atomic;
mod burst;
pub mod context;
pub mod counters;
pub mod cycles;
pub mod frame;
mod intrinsics;
pub mod output;
pub mod packet;
pub mod pipeline;
pub mod reason;
pub mod snapshot;
mod stage;
pub mod tables;
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
