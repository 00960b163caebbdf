//! Where buffers come from, out of one memory size.
//!
//! Two thirds of the memory are buffers of the standard pool; the rest is for rings, for the
//! buffers of jumbo ports, and for AF_XDP, which wants memory of its own for each interface.

use dunlin_dpdk::{
    DpdkError,
    eal::Eal,
    mempool::{FRAME_ROOM, JUMBO_ROOM, Mempool, STANDARD_ROOM},
};

/// Buffers of one AF_XDP interface: its fill, receive and transmit rings hold 2,048 each.
const XDP_BUFFERS: u32 = 8191;
const LINEAR_BUFFERS: u32 = 511;

/// All pools of the dataplane.
pub struct Pools {
    eal: Eal,
    pub standard: Mempool,
    /// For bringing chains into one piece.
    pub linear: Mempool,
    jumbo: Option<Mempool>,
    jumbo_buffers: u32,
}

impl Pools {
    /// The least memory that makes sense, in MiB.
    pub const MIN_MEMORY_MB: u32 = 64;

    pub fn new(eal: Eal, memory_mb: u32, hugepages: bool) -> Result<Self, DpdkError> {
        let budget = u64::from(memory_mb) * 1024 * 1024 * 2 / 3;
        let linear_takes = u64::from(LINEAR_BUFFERS) * Mempool::footprint(FRAME_ROOM, hugepages);
        let size = budget.saturating_sub(linear_takes) / Mempool::footprint(STANDARD_ROOM, hugepages);
        Ok(Pools {
            eal,
            // One less than a power of two wastes no slot of the ring behind a pool.
            standard: Mempool::new(&eal, size.clamp(1023, (1 << 24) - 1) as u32, STANDARD_ROOM)?,
            linear: Mempool::new(&eal, LINEAR_BUFFERS, FRAME_ROOM)?,
            jumbo: None,
            jumbo_buffers: (budget / 5 / Mempool::footprint(JUMBO_ROOM, hugepages)).clamp(511, 65_535) as u32,
        })
    }

    /// Whether frames of this MTU need larger buffers than the standard ones.
    pub fn is_jumbo(mtu: u32) -> bool {
        // AF_PACKET's headers are in the slot, which is no larger than the buffer.
        mtu + 14 + 8 + 100 > u32::from(STANDARD_ROOM)
    }

    /// The pool for a device that receives frames of `mtu`.
    pub fn for_mtu(&mut self, mtu: u32) -> Result<Mempool, DpdkError> {
        if !Self::is_jumbo(mtu) {
            return Ok(self.standard.clone());
        }
        if self.jumbo.is_none() {
            self.jumbo = Some(Mempool::new(&self.eal, self.jumbo_buffers, JUMBO_ROOM)?);
        }
        Ok(self.jumbo.clone().expect("made above"))
    }

    /// A pool of its own for an AF_XDP interface, to be abandoned when that is closed.
    pub fn for_xdp(&self) -> Result<Mempool, DpdkError> {
        Mempool::in_one_piece(&self.eal, XDP_BUFFERS, STANDARD_ROOM)
    }

    /// Name, pool.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, &Mempool)> {
        [("standard", Some(&self.standard)), ("linear", Some(&self.linear)), ("jumbo", self.jumbo.as_ref())]
            .into_iter()
            .filter_map(|(name, p)| Some((name, p?)))
    }
}
