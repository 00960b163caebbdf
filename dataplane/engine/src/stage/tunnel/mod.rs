//! Tunnel: between the two passes of a frame through the stages, at a port that is an end of tunnels.

pub(crate) mod decap;
pub(crate) mod encap;
