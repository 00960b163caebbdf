//! A frame and the header in front of it (`offload/vnet.rs`) as the pieces of one system call.

use std::io;

use arrayvec::ArrayVec;
use nix::libc::iovec;

use crate::{
    Mbuf,
    mempool::{Mempool, STANDARD_ROOM},
    offload::vnet,
};

/// Octets of the largest frame: 64 KiB of IP, an Ethernet header and two tags.
const LARGEST: usize = 65_535 + 14 + 8;
/// Buffers that one frame may need.
const MAX_BUFFERS: usize = LARGEST.div_ceil(STANDARD_ROOM as usize);

/// Empty buffers of one segment, for frames that are read next.
pub(super) struct Spare {
    buffers: ArrayVec<Mbuf, MAX_BUFFERS>,
    pool: Mempool,
}

impl Spare {
    pub fn new(pool: Mempool) -> Self {
        Spare { buffers: ArrayVec::new(), pool }
    }

    /// Where the buffers come from.
    pub fn pool(&self) -> &Mempool {
        &self.pool
    }

    /// A frame that `read` fills in: header and frame into the pieces, in their order; it returns their octets, or what a
    /// system call that fails does.
    ///
    /// # Errors
    /// There are no buffers, so that nothing was read; or the error of `read`.
    ///
    /// # Safety
    /// As many octets as `read` returns were written into the pieces.
    pub unsafe fn frame(&mut self, read: impl FnOnce(&mut [iovec]) -> isize) -> io::Result<Mbuf> {
        while !self.buffers.is_full() {
            self.buffers.push(self.pool.frame(&[]).ok_or(io::ErrorKind::OutOfMemory)?);
        }
        let mut header = [0u8; vnet::LEN];
        let mut pieces: ArrayVec<iovec, { MAX_BUFFERS + 1 }> = ArrayVec::new();
        pieces.push(iovec { iov_base: header.as_mut_ptr().cast(), iov_len: header.len() });
        for m in self.buffers.iter_mut().rev() {
            let room = m.room_mut();
            pieces.push(iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() });
        }
        let octets = usize::try_from(read(&mut pieces)).map_err(|_| io::Error::last_os_error())?;
        let octets = octets.saturating_sub(header.len());
        let mut m = self.buffers.pop().ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: here and below, the rooms were filled in this order with `octets`, as the caller promises.
        let mut left = octets - unsafe { m.fill(octets) };
        m.chain(std::iter::from_fn(|| {
            let mut next = if left > 0 { self.buffers.pop()? } else { return None };
            // SAFETY: as above.
            left -= unsafe { next.fill(left) };
            Some(next)
        }));
        vnet::read(header, &mut m);
        Ok(m)
    }
}

/// Adds header and frame to `pieces`; `false`, and nothing added, if there is no room.
pub(super) fn gather<const N: usize>(m: &Mbuf, header: &[u8; vnet::LEN], pieces: &mut ArrayVec<iovec, N>) -> bool {
    if pieces.remaining_capacity() < usize::from(m.segments()) + 1 {
        return false;
    }
    for p in std::iter::once(&header[..]).chain(m.pieces()) {
        pieces.push(iovec { iov_base: p.as_ptr().cast_mut().cast(), iov_len: p.len() });
    }
    true
}
