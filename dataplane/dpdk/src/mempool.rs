//! Pools of buffers.

use std::{
    ffi::{CString, c_void},
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use dpdk_sys as sys;

use crate::{DpdkError, Mbuf, eal::Eal};

/// Octets of data in a buffer of a standard pool, without headroom: an Ethernet frame of MTU
/// 1,500 with two tags, and what drivers want as the least (2 kB).
pub const STANDARD_ROOM: u16 = 2048;
/// Octets of data in a buffer of a jumbo pool. MTU 9,216 needs less, but AF_PACKET's slots are
/// powers of two, and its driver wants buffers of their size.
pub const JUMBO_ROOM: u16 = 16_384;
/// Octets of data in a buffer for one whole frame of the largest MTU, 9,216.
pub const FRAME_ROOM: u16 = 9216 + 64;
/// Octets in front of the data, for tags and encapsulation.
pub const HEADROOM: u16 = sys::RTE_PKTMBUF_HEADROOM as u16;

/// Buffers a thread keeps to itself, to touch the shared ring rarely.
const CACHE: u32 = 256;

struct Inner {
    pool: NonNull<sys::rte_mempool>,
    size: u32,
    room: u16,
    /// Buffers that are never given out: see [`withhold`].
    withheld: u32,
    /// Buffers that are out are in rings that nobody will ever read again.
    abandoned: AtomicBool,
}

// SAFETY: an rte_mempool is made for use by many threads at once; the pointer is valid until
// Drop, and Arc gives Drop to the last owner.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

/// Fills a pool from one piece of memory; how many buffers it then has, or a negative number.
///
/// # Safety
/// The pool is empty and used by nobody else.
unsafe fn populate(pool: *mut sys::rte_mempool, name: &CString, socket: i32) -> i32 {
    unsafe extern "C" fn free(_: *mut sys::rte_mempool_memhdr, zone: *mut c_void) {
        // SAFETY: it is the zone below, and freed once: with the pool.
        unsafe { sys::rte_memzone_free(zone.cast_const().cast()) };
    }
    // SAFETY: as the caller promises; the zone is as long as is said, and the pool's from here if that takes any of it.
    unsafe {
        let p = &*pool;
        // One cache line more, should the first buffer have to be aligned.
        let len = (p.header_size + p.elt_size + p.trailer_size) as usize * p.size as usize + 64;
        let zone = sys::rte_memzone_reserve(name.as_ptr(), len, socket, 0);
        let Some(z) = zone.as_ref() else { return -1 };
        let (start, opaque) = (z.__bindgen_anon_1.addr, zone.cast_mut().cast());
        let filled = sys::rte_mempool_populate_iova(pool, start.cast(), BAD_IOVA, len, Some(free), opaque);
        if filled <= 0 {
            sys::rte_memzone_free(zone);
        }
        filled
    }
}

/// RTE_BAD_IOVA, which is too much of a macro for bindgen.
const BAD_IOVA: u64 = u64::MAX;

/// Where devices find memory of DPDK's.
fn iova(at: *const u8) -> u64 {
    // SAFETY: any address may be asked for; a segment lives as long as what is allocated in it, and is not written meanwhile.
    match unsafe { sys::rte_mem_virt2memseg(at.cast(), std::ptr::null()).as_ref() } {
        // SAFETY: both variants are the address.
        Some(s) if s.iova != BAD_IOVA => s.iova + (at as u64 - unsafe { s.__bindgen_anon_1.addr } as u64),
        _ => BAD_IOVA,
    }
}

/// Notes of a pool's object where devices find it.
unsafe extern "C" fn locate(_: *mut sys::rte_mempool, _: *mut c_void, object: *mut c_void, _: u32) {
    // SAFETY: each object of a pool has its header right before it, and is nobody's yet.
    unsafe { (*object.cast::<sys::rte_mempool_objhdr>().sub(1)).iova = iova(object.cast()) };
}

/// Takes those buffers of a pool that nobody uses yet out of circulation, for good, that lie in two pages which for a
/// device are not side by side; how many.
///
/// # Safety
/// The pool is filled and used by nobody else yet.
unsafe fn withhold(pool: *mut sys::rte_mempool) -> u32 {
    let (mut whole, mut withheld) = (Vec::new(), 0);
    // SAFETY: as the caller promises; the buffers are this function's until they are given back, each once.
    unsafe {
        let last = (*pool).elt_size as usize - 1;
        while let Some(m) = NonNull::new(sys::dunlin_mbuf_alloc(pool)) {
            let first = m.as_ptr().cast::<u8>();
            match iova(first.add(last)).wrapping_sub(iova(first)) == last as u64 {
                true => whole.push(m.as_ptr()),
                false => withheld += 1,
            }
        }
        sys::rte_pktmbuf_free_bulk(whole.as_mut_ptr(), whole.len() as u32);
    }
    withheld
}

/// A NUMA node as DPDK names it: -1 for any.
fn socket(node: Option<u32>) -> i32 {
    node.map_or(-1, |n| n as i32)
}

/// A pool of buffers of one size. Clones are the same pool.
#[derive(Clone)]
pub struct Mempool(Arc<Inner>);

impl Mempool {
    /// `size` buffers of `room` octets beside the headroom, in the memory of a NUMA node if one is named.
    pub fn new(_: &Eal, size: u32, room: u16, node: Option<u32>) -> Result<Self, DpdkError> {
        // SAFETY: DPDK runs (the Eal proves it), the name is NUL-terminated and unique; NULL
        // comes back on failure.
        let create = |name: &CString, cache| unsafe {
            sys::rte_pktmbuf_pool_create(name.as_ptr(), size, cache, 0, room + HEADROOM, socket(node))
        };
        Self::made_by(size, room, create)
    }

    /// The same, its buffers without a gap between them and all in one piece of memory. AF_XDP wants
    /// that: DPDK's driver gives the kernel as much memory from the first buffer on as they take
    /// without gaps. An ordinary pool leaves some where a buffer would cross pages, many on small
    /// pages; its last buffers would be none of the kernel's, and what is received into them lost.
    ///
    /// A frame may leave by a NIC, which reads it from the buffer: those that lie in two pages which are apart for a device, a
    /// few where pages are large, are not used. That is asked for no more than it has to be: one piece for devices too
    /// is hard to find in memory that has been in use for long.
    pub fn in_one_piece(_: &Eal, size: u32, room: u16, node: Option<u32>) -> Result<Self, DpdkError> {
        let element = size_of::<sys::rte_mbuf>() as u32 + u32::from(room + HEADROOM);
        let private = size_of::<sys::rte_pktmbuf_pool_private>() as u32;
        let create = |name: &CString, cache| {
            let flags = sys::RTE_MEMPOOL_F_NO_IOVA_CONTIG;
            let mut about =
                sys::rte_pktmbuf_pool_private { mbuf_data_room_size: room + HEADROOM, ..Default::default() };
            // SAFETY: as in new(); the steps are those of rte_pktmbuf_pool_create, in its order. The
            // pool is used by nobody else yet, and is freed if it can't be filled.
            unsafe {
                let socket = socket(node);
                let pool = sys::rte_mempool_create_empty(name.as_ptr(), size, element, cache, private, socket, flags);
                if pool.is_null() {
                    return pool;
                }
                sys::rte_pktmbuf_pool_init(pool, (&raw mut about).cast());
                if populate(pool, name, socket) < size as i32 {
                    sys::rte_mempool_free(pool);
                    return std::ptr::null_mut();
                }
                sys::rte_mempool_obj_iter(pool, Some(locate), std::ptr::null_mut());
                sys::rte_mempool_obj_iter(pool, Some(sys::rte_pktmbuf_init), std::ptr::null_mut());
                pool
            }
        };
        let mut pool = Self::made_by(size, room, create)?;
        // SAFETY: it was made just now.
        let withheld = unsafe { withhold(pool.as_ptr()) };
        Arc::get_mut(&mut pool.0).expect("no clone yet").withheld = withheld;
        Ok(pool)
    }

    fn made_by(
        size: u32,
        room: u16,
        create: impl FnOnce(&CString, u32) -> *mut sys::rte_mempool,
    ) -> Result<Self, DpdkError> {
        let name = CString::new(crate::unique_name("dunlin-pool-")).expect("no NUL");
        match NonNull::new(create(&name, CACHE.min(size / 4))) {
            Some(pool) => {
                Ok(Mempool(Arc::new(Inner { pool, size, room, withheld: 0, abandoned: AtomicBool::new(false) })))
            }
            None => {
                let why = crate::strerror(crate::errno());
                let what = format!("a pool of {size} buffers of {room} octets");
                Err(DpdkError::new(what, format!("{why}; start the dataplane with more --memory")))
            }
        }
    }

    /// Octets of memory that one buffer of `room` octets takes, a little more than exact.
    pub fn footprint(room: u16, hugepages: bool) -> u64 {
        // Descriptor, object header, headroom and padding to cache lines.
        let object = u64::from(room) + u64::from(HEADROOM) + 320;
        // A buffer is contiguous for devices, so on small pages none crosses into the next by half.
        if hugepages { object } else { object.next_multiple_of(4096) }
    }

    pub(crate) fn as_ptr(&self) -> *mut sys::rte_mempool {
        self.0.pool.as_ptr()
    }

    /// How many buffers it has.
    pub fn size(&self) -> u32 {
        self.0.size
    }

    /// Octets of data in one buffer.
    pub fn room(&self) -> u16 {
        self.0.room
    }

    /// How many are out, those in devices' rings among them. Not exact while others use it.
    pub fn in_use(&self) -> u32 {
        self.0.in_use()
    }

    /// Gives up a pool whose device is closed and took buffers with it (see `xdp.rs`), so that its
    /// memory is free again when the last handle goes. The workers are readers of `domain`: when
    /// they have passed on, none of them has a frame of this pool any more, because frames live
    /// no longer than a round.
    pub fn abandon(self, domain: &crate::quiescent::Domain) {
        domain.synchronize();
        self.0.abandoned.store(true, SeqCst);
    }

    /// A buffer with `octets` in it; `None` if there is none left or they do not fit.
    pub fn frame(&self, octets: &[u8]) -> Option<Mbuf> {
        // SAFETY: the pool is valid; NULL comes back when it is empty.
        let m = NonNull::new(unsafe { sys::dunlin_mbuf_alloc(self.as_ptr()) })?;
        // SAFETY: a fresh buffer has one owner, which is this one from here.
        let mut m = unsafe { Mbuf::from_raw(m) };
        m.append(octets).then_some(m)
    }
}

impl Inner {
    fn in_use(&self) -> u32 {
        // SAFETY: the pool is valid as long as self is; the count may be taken at any time.
        let out = unsafe { sys::rte_mempool_in_use_count(self.pool.as_ptr()) };
        // While others use it, fewer may seem to be out than are.
        out.saturating_sub(self.withheld)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Buffers that are still out would point into freed memory: rather leak the pool.
        let out = self.in_use();
        let accounted_for = self.abandoned.load(SeqCst) && !crate::port::buffers_may_be_kept();
        if out > 0 && !accounted_for {
            tracing::warn!("{out} buffers of a pool are still in use; the pool is kept");
            return;
        }
        // SAFETY: this was the last handle, so no device has it. No buffer is out either; or those
        // that are were in the rings of a closed socket, because no frame of it is left with a
        // worker and no device keeps buffers.
        unsafe { sys::rte_mempool_free(self.pool.as_ptr()) }
    }
}
