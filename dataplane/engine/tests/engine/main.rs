//! The engine on any machine, without DPDK, by what leaves and what is counted. One program: it is linked once, and its
//! tests run side by side.

mod allocations;
mod bursts;
mod cases;
mod corpus;
mod filter;
mod forwarding;
mod harness;
mod oracle;
mod overlay;
mod reasons;
mod security;
mod suppress;
