//! The value word of an entry.

use super::Hash;
use crate::PortIdx;

/// From the top: 16 bits of port, 1 of "static", 7 unused, 8 of the key's hash as a check, 32 of
/// the second it was last seen.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Value(pub(super) u64);

const STATIC: u64 = 1 << 47;

impl Value {
    #[inline(always)]
    pub(super) fn new(port: PortIdx, hash: Hash, stamp_s: u32, is_static: bool) -> Self {
        let flag = if is_static { STATIC } else { 0 };
        Value((port.get() as u64) << 48 | flag | check(hash) << 32 | u64::from(stamp_s))
    }

    #[inline(always)]
    pub(super) fn port(self) -> PortIdx {
        PortIdx::from_raw((self.0 >> 48) as u16)
    }

    #[inline(always)]
    pub(super) fn is_static(self) -> bool {
        self.0 & STATIC != 0
    }

    /// Seconds of the learning caller's clock.
    #[inline(always)]
    pub(super) fn stamp(self) -> u32 {
        self.0 as u32
    }

    #[inline(always)]
    pub(super) fn belongs_to(self, hash: Hash) -> bool {
        self.0 >> 32 & 0xff == check(hash)
    }
}

/// Bits of the hash that name neither bucket of the largest table.
#[inline(always)]
fn check(hash: Hash) -> u64 {
    hash.0 >> 56
}
