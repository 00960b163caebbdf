//! The value word of an entry.

use super::Hash;
use crate::PortIdx;

/// From the top: 8 bits of the key's hash as a check, 1 of "static", 1 always set, 6 unused, 16 of
/// port, 32 of the second it was last seen. So 0 is no value.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Value(pub(super) u64);

const STATIC: u64 = 1 << 55;
const VALID: u64 = 1 << 54;
/// Bits of the hash that name neither bucket of the largest table, in the same place.
const CHECK: u64 = 0xff << 56;

impl Value {
    #[inline(always)]
    pub(super) fn new(port: PortIdx, hash: Hash, stamp_s: u32, is_static: bool) -> Self {
        let flag = if is_static { STATIC | VALID } else { VALID };
        Value((port.get() as u64) << 32 | flag | u64::from(stamp_s)).of(hash)
    }

    /// The same, for the entry of another key.
    #[inline(always)]
    pub(super) fn of(self, hash: Hash) -> Self {
        Value(self.0 & !CHECK | hash.0 & CHECK)
    }

    #[inline(always)]
    pub(super) fn port(self) -> PortIdx {
        PortIdx::from_raw((self.0 >> 32) as u16)
    }

    #[inline(always)]
    pub(super) fn is_static(self) -> bool {
        self.0 & STATIC != 0
    }

    /// The same, asked out of line: most entries are learned, and their way stays short.
    #[cold]
    #[inline(never)]
    pub(super) fn is_static_indeed(self) -> bool {
        self.is_static()
    }

    /// Seconds of the learning caller's clock.
    #[inline(always)]
    pub(super) fn stamp(self) -> u32 {
        self.0 as u32
    }

    #[inline(always)]
    pub(super) fn belongs_to(self, hash: Hash) -> bool {
        (self.0 ^ hash.0) & CHECK == 0
    }
}
