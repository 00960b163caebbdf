//! The stages, one file each. Their order is in `pipeline.rs`.

pub(crate) mod emit;
pub(crate) mod fast_lookup;
pub(crate) mod filter;
pub(crate) mod flood;
pub(crate) mod ingress_vlan;
pub(crate) mod learn;
pub(crate) mod lookup;
pub(crate) mod parse;
pub(crate) mod police;
pub(crate) mod recirculate;
pub(crate) mod suppress;
pub(crate) mod tunnel;
