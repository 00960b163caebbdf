//! End-to-end tests: the real binaries, real kernel hosts in namespaces, real guests in QEMU.
//!
//! Each test starts a switch of its own (`host.rs`), on sockets, namespaces and files of its own,
//! so that they can run side by side. `make e2e` builds the binaries and runs them; they need
//! root. At its end every [`host::Host`] checks conservation: received + cloned = transmitted +
//! dropped, to the frame.

#![allow(missing_docs, reason = "tests")]

mod elsewhere;
mod guest;
mod host;
mod net;

mod bad_input;
mod bridging;
mod cases;
mod churn;
mod contract;
mod filter;
mod guests;
mod metrics;
mod nic;
mod objects;
mod offload;
mod overlay;
mod placement;
mod resilience;
mod security;
mod steering;
mod vlan;
