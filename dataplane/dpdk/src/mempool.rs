//! Pools of buffers.
//!
//! **How long a pool lives.** As long as any of its buffers. When the last handle goes while buffers are out, in a device's
//! transmit ring or in a queue, the pool is retired: it is freed when they are back.
//!
//! **A device's own pool** ([`Mempool::for_device`]) is never freed, but used again by the next device that wants such a pool.
//! Its driver takes buffers out of it, and some never come back: DPDK's AF_XDP driver leaves those in the rings that it shares
//! with the kernel. Frames that live on elsewhere differ from them in their `port` field: an allocation sets it to "none",
//! and every frame that the driver hands out is marked ([`crate::port::RxQueue::receive`]). Nothing but the driver allocates
//! from such a pool (see [`Mbuf::copy`]), and it has no caches per thread: so, with the device closed, a buffer that is
//! neither in the pool nor marked is lost, and is put back.

use std::{
    collections::HashSet,
    ffi::{CString, c_void},
    ptr::NonNull,
    sync::{Arc, Weak},
};

use dpdk_sys as sys;
use parking_lot::Mutex;

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

#[derive(Clone, Copy)]
struct Pool {
    raw: NonNull<sys::rte_mempool>,
    size: u32,
    room: u16,
    node: Option<u32>,
    /// It is a device's own.
    of_device: bool,
    /// Buffers that are never given out: see [`skip_straddling`].
    skipped: u32,
}

// SAFETY: an rte_mempool is made for use by many threads at once; the pointer is valid until the pool is freed, which is when
// it is neither in a handle nor retired.
unsafe impl Send for Pool {}
// SAFETY: as above.
unsafe impl Sync for Pool {}

/// What the handles of one pool share.
struct Inner(Pool);

impl Drop for Inner {
    fn drop(&mut self) {
        let mut retired = RETIRED.lock();
        retired.push(self.0);
        // Those of which buffers were out may be whole by now.
        for pool in retired.extract_if(.., |p| !p.of_device && p.in_use() == 0) {
            // SAFETY: it has no handle and no buffer is out, so that nothing knows it any more.
            unsafe { sys::rte_mempool_free(pool.raw.as_ptr()) }
        }
    }
}

/// Fills a pool from one piece of memory; how many buffers it then has, or a negative number.
///
/// # Safety
/// The pool is empty and used by no other.
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
unsafe extern "C" fn set_iova(_: *mut sys::rte_mempool, _: *mut c_void, object: *mut c_void, _: u32) {
    // SAFETY: each object of a pool has its header right before it, and has no owner yet.
    unsafe { (*object.cast::<sys::rte_mempool_objhdr>().sub(1)).iova = iova(object.cast()) };
}

/// Takes those buffers of a pool that are not in use yet out of circulation, for good, that lie in two pages which for a
/// device are not side by side; how many.
///
/// # Safety
/// The pool is filled and used by no other yet.
unsafe fn skip_straddling(pool: *mut sys::rte_mempool) -> u32 {
    let (mut whole, mut skipped) = (Vec::new(), 0);
    // SAFETY: as the caller promises; the buffers are this function's until they are given back, each once.
    unsafe {
        let last = (*pool).elt_size as usize - 1;
        while let Some(m) = NonNull::new(sys::dunlin_mbuf_alloc(pool)) {
            let first = m.as_ptr().cast::<u8>();
            match iova(first.add(last)).wrapping_sub(iova(first)) == last as u64 {
                true => whole.push(m.as_ptr()),
                // Not lost: see the module.
                false => {
                    (*m.as_ptr()).port = MARK;
                    skipped += 1;
                }
            }
        }
        sys::rte_pktmbuf_free_bulk(whole.as_mut_ptr(), whole.len() as u32);
    }
    skipped
}

/// A NUMA node as DPDK names it: -1 for any.
fn socket(node: Option<u32>) -> i32 {
    node.map_or(-1, |n| n as i32)
}

/// A pool that is only looked at: it goes when its last handle does.
pub struct WeakMempool(Weak<Inner>);

impl WeakMempool {
    /// The pool, if it is still there.
    pub fn upgrade(&self) -> Option<Mempool> {
        self.0.upgrade().map(Mempool)
    }
}

/// A pool of buffers of one size. Clones are the same pool.
#[derive(Clone)]
pub struct Mempool(Arc<Inner>);

impl Mempool {
    /// `size` buffers of `room` octets beside the headroom, in the memory of a NUMA node if one is named.
    pub fn new(_: &Eal, size: u32, room: u16, node: Option<u32>) -> Result<Self, DpdkError> {
        // SAFETY: DPDK runs (the Eal proves it), the name is NUL-terminated and unique; NULL
        // comes back on failure.
        let create = |name: &CString| unsafe {
            let cache = CACHE.min(size / 4).max(1);
            sys::rte_pktmbuf_pool_create(name.as_ptr(), size, cache, 0, room + HEADROOM, socket(node))
        };
        Ok(Mempool(Arc::new(Inner(Pool::made_by((size, room, node), create)?))))
    }

    /// A pool for one AF_XDP device, perhaps one that a closed device had before. Its buffers are without a gap between them
    /// and all in one piece of memory: DPDK's driver gives the kernel as much memory from the first buffer on as they take
    /// without gaps. An ordinary pool leaves some where a buffer would cross pages, many on small
    /// pages; its last buffers would be none of the kernel's, and what is received into them lost.
    ///
    /// A frame may leave by a NIC, which reads it from the buffer: those that lie in two pages which are apart for a device, a
    /// few where pages are large, are not used. That is asked for no more than it has to be: one piece for devices too
    /// is hard to find in memory that has been in use for long.
    ///
    /// # Errors
    /// There is no such piece of memory.
    pub fn for_device(_: &Eal, size: u32, room: u16, node: Option<u32>) -> Result<Self, DpdkError> {
        let is_alike = |p: &Pool| p.of_device && (p.size, p.room, p.node) == (size, room, node);
        let spare = {
            let mut retired = RETIRED.lock();
            retired.iter().position(is_alike).map(|at| retired.swap_remove(at))
        };
        if let Some(pool) = spare {
            pool.put_lost_back();
            return Ok(Mempool(Arc::new(Inner(pool))));
        }
        let element = size_of::<sys::rte_mbuf>() as u32 + u32::from(room + HEADROOM);
        let private = size_of::<sys::rte_pktmbuf_pool_private>() as u32;
        let create = |name: &CString| {
            let flags = sys::RTE_MEMPOOL_F_NO_IOVA_CONTIG;
            let mut about =
                sys::rte_pktmbuf_pool_private { mbuf_data_room_size: room + HEADROOM, ..Default::default() };
            // SAFETY: as in new(); the steps are those of rte_pktmbuf_pool_create, in its order. The
            // pool is used by no other yet, and is freed if it can't be filled.
            unsafe {
                let socket = socket(node);
                // No caches: see the module.
                let pool = sys::rte_mempool_create_empty(name.as_ptr(), size, element, 0, private, socket, flags);
                if pool.is_null() {
                    return pool;
                }
                sys::rte_pktmbuf_pool_init(pool, (&raw mut about).cast());
                if populate(pool, name, socket) < size as i32 {
                    sys::rte_mempool_free(pool);
                    return std::ptr::null_mut();
                }
                sys::rte_mempool_obj_iter(pool, Some(set_iova), std::ptr::null_mut());
                sys::rte_mempool_obj_iter(pool, Some(sys::rte_pktmbuf_init), std::ptr::null_mut());
                pool
            }
        };
        let mut pool = Pool::made_by((size, room, node), create)?;
        pool.of_device = true;
        // SAFETY: it was made just now.
        pool.skipped = unsafe { skip_straddling(pool.raw.as_ptr()) };
        Ok(Mempool(Arc::new(Inner(pool))))
    }

    /// Octets of memory that one buffer of `room` octets takes, a little more than exact.
    pub fn footprint(room: u16, hugepages: bool) -> u64 {
        // Descriptor, object header, headroom and padding to cache lines.
        let object = u64::from(room) + u64::from(HEADROOM) + 320;
        // A buffer is contiguous for devices, so on small pages none crosses into the next by half.
        if hugepages { object } else { object.next_multiple_of(4096) }
    }

    /// The same, without keeping it.
    pub fn downgrade(&self) -> WeakMempool {
        WeakMempool(Arc::downgrade(&self.0))
    }

    pub(crate) fn as_ptr(&self) -> *mut sys::rte_mempool {
        self.0.0.raw.as_ptr()
    }

    /// How many buffers it has.
    pub fn size(&self) -> u32 {
        self.0.0.size
    }

    /// Octets of data in one buffer.
    pub fn room(&self) -> u16 {
        self.0.0.room
    }

    /// How many are out, those in devices' rings among them. Not exact while others use it.
    pub fn in_use(&self) -> u32 {
        self.0.0.in_use()
    }

    /// Whether it is a device's own.
    pub(crate) fn is_of_device(&self) -> bool {
        self.0.0.of_device
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

/// The `port` of a buffer of a device's own pool that is a frame's.
pub(crate) const MARK: u16 = 0;
/// RTE_MBUF_PORT_INVALID, which every allocation sets.
const NO_PORT: u16 = u16::MAX;

/// Whether a buffer's pool is a device's own: the only ones without caches.
///
/// # Safety
/// The pool is there.
pub(crate) unsafe fn is_of_device(pool: *const sys::rte_mempool) -> bool {
    // SAFETY: as the caller promises; the size is written before any buffer is handed out.
    unsafe { (*pool).cache_size == 0 }
}

/// Pools without a handle: devices' own, and those of which buffers are still out.
static RETIRED: Mutex<Vec<Pool>> = Mutex::new(Vec::new());

impl Pool {
    fn made_by(
        (size, room, node): (u32, u16, Option<u32>),
        create: impl FnOnce(&CString) -> *mut sys::rte_mempool,
    ) -> Result<Self, DpdkError> {
        let name = CString::new(crate::unique_name("dunlin-pool-")).expect("no NUL");
        match NonNull::new(create(&name)) {
            Some(raw) => Ok(Pool { raw, size, room, node, of_device: false, skipped: 0 }),
            None => {
                let why = crate::strerror(crate::errno());
                let what = format!("a pool of {size} buffers of {room} octets");
                Err(DpdkError::new(what, format!("{why}; start the dataplane with more --memory")))
            }
        }
    }

    fn in_use(&self) -> u32 {
        // SAFETY: the pool is valid as long as self is; the count may be taken at any time.
        let out = unsafe { sys::rte_mempool_in_use_count(self.raw.as_ptr()) };
        // While others use it, fewer may seem to be out than are.
        out.saturating_sub(self.skipped)
    }

    /// Puts back what its closed device lost: see the module.
    fn put_lost_back(&self) {
        unsafe extern "C" fn note(_: *mut sys::rte_mempool, to: *mut c_void, object: *mut c_void, _: u32) {
            // SAFETY: the argument is the vector below, borrowed for the call alone.
            unsafe { (*to.cast::<Vec<*mut sys::rte_mbuf>>()).push(object.cast()) };
        }
        let (mut back, mut all) = (Vec::new(), Vec::<*mut sys::rte_mbuf>::new());
        // SAFETY: the pool has no handle, so its device is closed (it holds one), and no thread allocates from it but this
        // one. What can be taken out of it is this function's; what is neither that nor marked is no frame's, because
        // frames are marked and nothing unmarks them while they live. Marks are written before a frame is handed out and
        // read after its queue came back. Each buffer is given back once.
        unsafe {
            while let Some(m) = NonNull::new(sys::dunlin_mbuf_alloc(self.raw.as_ptr())) {
                back.push(m.as_ptr());
            }
            let free: HashSet<*mut sys::rte_mbuf> = back.iter().copied().collect();
            sys::rte_mempool_obj_iter(self.raw.as_ptr(), Some(note), (&raw mut all).cast());
            let port = |m: *mut sys::rte_mbuf| (&raw const (*m).port).read_volatile();
            back.extend(all.into_iter().filter(|m| !free.contains(m) && port(*m) == NO_PORT));
            sys::rte_pktmbuf_free_bulk(back.as_mut_ptr(), back.len() as u32);
        }
    }
}
