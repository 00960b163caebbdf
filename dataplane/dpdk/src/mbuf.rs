//! A buffer with a frame in it, and who owns it.
//!
//! [`Mbuf`] is one reference to a chain of `rte_mbuf` segments: it holds one count of each
//! segment's `refcnt` and gives it back when dropped. [`Mbuf::share`] makes a second reference to
//! the same chain. The descriptor and the octets of the first segment are written only by a reference
//! that is alone (`refcnt` 1 there). The segments behind it may be others' too ([`Mbuf::grow_front`] puts
//! headers in front of a shared frame), so those are not written. All may be read.

use std::{
    ptr::NonNull,
    sync::atomic::{AtomicU16, Ordering::Relaxed},
};

use dpdk_sys as sys;

use crate::{mempool, thread};

/// See the module.
#[repr(transparent)]
pub struct Mbuf(NonNull<sys::rte_mbuf>);

// SAFETY: buffers travel between threads by design (a pool's ring is multi-producer); a shared
// one is only read, and its counts are atomic.
unsafe impl Send for Mbuf {}

/// The low seven bits of `tx_offload`: the length of the layer-2 header.
const L2_LEN: u64 = 0x7f;

impl Mbuf {
    /// # Safety
    /// `m` is a valid chain, and its reference is handed over to the result.
    #[inline(always)]
    pub(crate) unsafe fn from_raw(m: NonNull<sys::rte_mbuf>) -> Self {
        Mbuf(m)
    }

    /// Hands the reference over to the owner of the pointer.
    #[inline(always)]
    pub(crate) fn into_raw(self) -> *mut sys::rte_mbuf {
        let m = self.0.as_ptr();
        std::mem::forget(self);
        m
    }

    #[inline(always)]
    pub(crate) fn as_ptr(&self) -> *mut sys::rte_mbuf {
        self.0.as_ptr()
    }

    #[inline(always)]
    pub(crate) fn raw(&self) -> &sys::rte_mbuf {
        // SAFETY: the pointer is valid while self holds its reference, and it is not written while
        // there is more than one (the refcnt itself is read atomically).
        unsafe { self.0.as_ref() }
    }

    /// The descriptor for writing, while it is not shared.
    #[inline(always)]
    fn raw_mut(&mut self) -> &mut sys::rte_mbuf {
        assert!(!self.is_shared(), "a shared buffer is not written");
        // SAFETY: valid as above, and the only reference is borrowed exclusively.
        unsafe { self.0.as_mut() }
    }

    /// Octets of the frame, in all segments.
    #[inline(always)]
    pub fn len(&self) -> u32 {
        self.raw().pkt_len
    }

    /// Whether it has no octets.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Segments in the chain, at least 1.
    #[inline(always)]
    pub fn segments(&self) -> u16 {
        self.raw().nb_segs
    }

    /// The octets of the first segment.
    #[inline(always)]
    pub fn head(&self) -> &[u8] {
        let m = self.raw();
        // SAFETY: DPDK keeps data_off + data_len within the segment's buf_len octets at buf_addr,
        // and so do push_tag and pop_tag; they live as long as the reference.
        unsafe { std::slice::from_raw_parts(m.buf_addr.cast::<u8>().add(m.data_off as usize), m.data_len as usize) }
    }

    /// The octets of each segment, in their order.
    pub fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let mut next = self.as_ptr().cast_const();
        std::iter::from_fn(move || {
            // SAFETY: the chain is valid, ends with NULL, and lives as long as the reference;
            // data_off and data_len are within each segment's buffer, as in head().
            let m = unsafe { next.as_ref() }?;
            next = m.next;
            // SAFETY: as above.
            Some(unsafe {
                std::slice::from_raw_parts(m.buf_addr.cast::<u8>().add(m.data_off as usize), m.data_len as usize)
            })
        })
    }

    /// The octets of the first segment for writing.
    ///
    /// # Panics
    /// If the buffer is shared.
    #[inline]
    pub fn head_mut(&mut self) -> &mut [u8] {
        let m = self.raw_mut();
        // SAFETY: as in head(), and no other reference to the buffer exists.
        unsafe { std::slice::from_raw_parts_mut(m.buf_addr.cast::<u8>().add(m.data_off as usize), m.data_len as usize) }
    }

    /// Asks for the descriptor's and, when that is there already, the data's first cache line.
    #[inline(always)]
    pub fn prefetch(&self) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let m = self.raw();
        // SAFETY: a prefetch reads nothing and faults never; the pointer is within the segment.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(m.buf_addr.cast::<i8>().add(m.data_off as usize)) }
    }

    /// One more reference to the same buffer.
    #[inline]
    pub fn share(&self) -> Mbuf {
        // SAFETY: the chain is valid; every segment's count goes up by one, which the result
        // gives back.
        unsafe { sys::dunlin_mbuf_share(self.as_ptr()) };
        Mbuf(self.0)
    }

    /// Whether there is another reference.
    #[inline(always)]
    pub fn is_shared(&self) -> bool {
        // SAFETY: the chain is valid, and its count is only ever touched atomically: this is what
        // rte_mbuf_refcnt_read does.
        unsafe { AtomicU16::from_ptr(&raw mut (*self.as_ptr()).refcnt).load(Relaxed) != 1 }
    }

    /// In one segment, and nothing is asked of the sending side.
    #[inline(always)]
    pub fn is_plain(&self) -> bool {
        self.segments() == 1 && self.offload_flags() == 0
    }

    /// The same frame in a buffer of one's own, from the same pool, or the thread's if that is a device's own. `None` if it
    /// is empty, or the thread is no worker.
    pub fn copy(&self) -> Option<Mbuf> {
        self.copy_range(0, self.len(), self.pool_for_copies()?.as_ptr())
    }

    /// Where its copies are made: never in a device's own pool, from which its driver alone allocates.
    fn pool_for_copies(&self) -> Option<NonNull<sys::rte_mempool>> {
        let own = self.raw().pool;
        // SAFETY: a pool lives as long as any of its buffers.
        if unsafe { mempool::is_of_device(own) } { thread::pool() } else { NonNull::new(own) }
    }

    /// The same frame in one segment of `pool`, for devices that take no chains.
    pub fn linear_copy(&self, pool: &crate::mempool::Mempool) -> Option<Mbuf> {
        if self.len() > u32::from(pool.room()) { None } else { self.copy_range(0, self.len(), pool.as_ptr()) }
    }

    /// `len` octets from `from` on, in a buffer or buffers of `pool`.
    pub(crate) fn copy_part(&self, from: u32, len: u32, pool: &crate::mempool::Mempool) -> Option<Mbuf> {
        self.copy_range(from, len, pool.as_ptr())
    }

    fn copy_range(&self, from: u32, len: u32, pool: *mut sys::rte_mempool) -> Option<Mbuf> {
        // SAFETY: the chain is valid and only read; pool is either a live pool's or the chain's
        // own or the thread's, which outlive it. NULL comes back when it is empty.
        let m = NonNull::new(unsafe { sys::rte_pktmbuf_copy(self.as_ptr(), pool, from, len) })?;
        Some(Mbuf(m))
    }

    /// Adds octets at the end of a single-segment frame; `false` if they do not fit.
    pub(crate) fn append(&mut self, octets: &[u8]) -> bool {
        let m = self.raw_mut();
        let used = m.data_off as usize + m.data_len as usize;
        if m.nb_segs != 1 || used + octets.len() > m.buf_len as usize {
            return false;
        }
        // SAFETY: `used + len` is within the segment's buf_len octets, which are ours alone.
        unsafe {
            let to = m.buf_addr.cast::<u8>().add(used);
            std::ptr::copy_nonoverlapping(octets.as_ptr(), to, octets.len());
        }
        m.data_len += octets.len() as u16;
        m.pkt_len += octets.len() as u32;
        true
    }

    /// Adds octets of zero up to a length of `len`, if it is in one segment that has room for them.
    ///
    /// # Panics
    /// If the buffer is shared.
    pub fn pad(&mut self, len: u32) {
        const ZEROS: [u8; 64] = [0; 64];
        let missing = len.saturating_sub(self.len()) as usize;
        // Without room it stays as it is: a device that needs more pads by itself.
        let _ = missing > 0 && self.append(&ZEROS[..missing.min(ZEROS.len())]);
    }

    /// Where octets can be put into an empty single-segment frame, to be followed by [`Mbuf::fill`].
    pub(crate) fn room_mut(&mut self) -> &mut [std::mem::MaybeUninit<u8>] {
        let m = self.raw_mut();
        // SAFETY: from data_off to buf_len is the segment's, which is ours alone.
        unsafe {
            let from = m.buf_addr.cast::<u8>().add(m.data_off as usize);
            std::slice::from_raw_parts_mut(from.cast(), (m.buf_len - m.data_off) as usize)
        }
    }

    /// `len` octets, or as many as have room, were put into the empty frame. How many.
    ///
    /// # Safety
    /// That many octets of [`Mbuf::room_mut`] were written.
    pub(crate) unsafe fn fill(&mut self, len: usize) -> usize {
        let m = self.raw_mut();
        let len = len.min((m.buf_len - m.data_off) as usize);
        m.data_len = len as u16;
        m.pkt_len = len as u32;
        len
    }

    /// Appends single-segment frames that are not shared to this one of the same kind.
    pub(crate) fn chain(&mut self, rest: impl Iterator<Item = Mbuf>) {
        let mut last = self.as_ptr();
        for next in rest {
            assert!(next.segments() == 1 && !next.is_shared(), "single segments of our own");
            let m = self.raw_mut();
            m.nb_segs += 1;
            m.pkt_len += next.len();
            let next = next.into_raw();
            // SAFETY: last is the chain's last segment, ours alone, whose next is NULL; the
            // segment behind it comes with the one reference that it had.
            unsafe { (*last).next = next };
            last = next;
        }
    }

    /// Puts a tag behind the two addresses. `false`, and unchanged, without headroom for it.
    ///
    /// # Panics
    /// If the buffer is shared or shorter than the addresses.
    #[inline]
    pub fn push_tag(&mut self, tpid: u16, tci: u16) -> bool {
        let m = self.raw_mut();
        if m.data_off < 4 {
            return false;
        }
        m.data_off -= 4;
        m.data_len += 4;
        m.pkt_len += 4;
        self.adjust_l2(4);
        let h = self.head_mut();
        h.copy_within(4..16, 0);
        h[12..14].copy_from_slice(&tpid.to_be_bytes());
        h[14..16].copy_from_slice(&tci.to_be_bytes());
        true
    }

    /// Takes out the tag behind the two addresses.
    ///
    /// # Panics
    /// If the buffer is shared or shorter than addresses and tag.
    #[inline]
    pub fn pop_tag(&mut self) {
        self.head_mut().copy_within(0..12, 4);
        let m = self.raw_mut();
        assert!(m.data_len >= 16, "the caller saw the tag");
        m.data_off += 4;
        m.data_len -= 4;
        m.pkt_len -= 4;
        self.adjust_l2(-4);
    }

    /// The frame with `n` octets more at its front, for [`Mbuf::head_mut`] to be written. If others own
    /// the buffer too, or it has no headroom, they are in a buffer of their own in front of it, or, where
    /// that is cheaper, in front of a copy. `None` if the pool is empty.
    ///
    /// # Panics
    /// If no buffer has so much headroom.
    #[inline(always)]
    pub fn grow_front(self, n: u16) -> Option<Mbuf> {
        assert!(n <= crate::mempool::HEADROOM);
        if self.is_shared() || self.raw().data_off < n { self.grow_elsewhere(n) } else { Some(self.grow_in_place(n)) }
    }

    #[inline(always)]
    fn grow_in_place(mut self, n: u16) -> Mbuf {
        let m = self.raw_mut();
        m.data_off -= n;
        m.data_len += n;
        m.pkt_len += u32::from(n);
        self
    }

    #[inline(never)]
    fn grow_elsewhere(self, n: u16) -> Option<Mbuf> {
        /// Above so many octets, a second buffer is cheaper than copying.
        const COPIED: u32 = 256;
        if self.len() <= COPIED {
            return self.copy().filter(|m| m.raw().data_off >= n).map(|m| m.grow_in_place(n));
        }
        // SAFETY: the chain's pool outlives its buffers, the thread's the thread; NULL comes back when it is empty.
        let front = NonNull::new(unsafe { sys::dunlin_mbuf_alloc(self.pool_for_copies()?.as_ptr()) })?;
        let mut front = Mbuf(front);
        let (len, segments) = (self.len(), self.segments());
        let m = front.raw_mut();
        m.data_len = n;
        m.pkt_len = len + u32::from(n);
        m.nb_segs = segments + 1;
        // The reference that self was is the chain's from here.
        m.next = self.into_raw();
        Some(front)
    }

    /// Leaves `len` octets from `from` on, as far as they are there.
    ///
    /// # Panics
    /// If the buffer is shared or has more than one segment.
    #[inline(always)]
    pub fn cut(&mut self, from: usize, len: u32) {
        let m = self.raw_mut();
        assert!(m.nb_segs == 1, "in one piece");
        let from = from.min(m.data_len as usize) as u16;
        m.data_off += from;
        m.data_len = u32::from(m.data_len - from).min(len) as u16;
        m.pkt_len = u32::from(m.data_len);
    }

    /// Offload requests say where the headers are: keep that true.
    fn adjust_l2(&mut self, by: i64) {
        if self.offload_flags() != 0 {
            let l2 = (self.tx_offload() & L2_LEN).wrapping_add_signed(by) & L2_LEN;
            let rest = self.tx_offload() & !L2_LEN;
            self.raw_mut().__bindgen_anon_3.tx_offload = rest | l2;
        }
    }

    /// Requests to the sending side: RTE_MBUF_F_TX_* bits.
    #[inline(always)]
    pub fn offload_flags(&self) -> u64 {
        self.raw().ol_flags & crate::offload::REQUESTS
    }

    pub(crate) fn set_flags(&mut self, clear: u64, set: u64) {
        let m = self.raw_mut();
        m.ol_flags = m.ol_flags & !clear | set;
    }

    /// The lengths, as [`Mbuf::tx_offload`] has them.
    pub(crate) fn set_tx_offload(&mut self, lengths: u64) {
        self.raw_mut().__bindgen_anon_3.tx_offload = lengths;
    }

    /// l2_len:7, l3_len:9, l4_len:8, tso_segsz:16 from the lowest bit.
    #[inline(always)]
    pub(crate) fn tx_offload(&self) -> u64 {
        // SAFETY: both variants of the union are plain integers of the same size.
        unsafe { self.raw().__bindgen_anon_3.tx_offload }
    }
}

impl Drop for Mbuf {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: self holds one reference of each segment, given back here once.
        unsafe { sys::dunlin_mbuf_free(self.as_ptr()) }
    }
}
