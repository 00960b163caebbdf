//! Worker threads: pinned, known to DPDK, and able to sleep for microseconds.

use std::{cell::Cell, marker::PhantomData, ptr::NonNull};

use dpdk_sys as sys;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::{DpdkError, eal::Eal, mempool::Mempool};

/// The cores this process may run on, in rising order.
pub fn allowed_cores() -> Vec<usize> {
    let set = sched_getaffinity(Pid::from_raw(0)).unwrap_or_else(|_| CpuSet::new());
    (0..CpuSet::count()).filter(|c| set.is_set(*c).unwrap_or(false)).collect()
}

/// The calling thread as a worker: it has a place in DPDK's per-thread buffer caches for as long
/// as this lives.
pub struct WorkerThread {
    /// Where it makes copies.
    _pool: Mempool,
    not_send: PhantomData<*const ()>,
}

thread_local! {
    static POOL: Cell<Option<NonNull<sys::rte_mempool>>> = const { Cell::new(None) };
}

/// The calling worker's pool, which lives as long as the thread is one.
pub(crate) fn pool() -> Option<NonNull<sys::rte_mempool>> {
    POOL.get()
}

impl WorkerThread {
    /// Pins the calling thread to `core` and registers it with DPDK. It makes copies of frames that are in a device's own
    /// pool in `pool`.
    ///
    /// # Errors
    /// The thread may not run on that core, or DPDK has no place for it.
    pub fn start(_: &Eal, core: usize, pool: Mempool) -> Result<Self, DpdkError> {
        let what = || format!("worker on core {core}");
        let mut set = CpuSet::new();
        set.set(core).map_err(|e| DpdkError::new(what(), e.desc()))?;
        sched_setaffinity(Pid::from_raw(0), &set).map_err(|e| DpdkError::new(what(), e.desc()))?;
        // The default slack of 50 µs would be added to every short sleep.
        let _ = nix::sys::prctl::set_timerslack(1);
        // SAFETY: DPDK runs (the Eal proves it); the call may be made by any thread, and Self,
        // which can't be sent elsewhere, unregisters the same thread.
        crate::check(what(), unsafe { sys::rte_thread_register() })?;
        POOL.set(NonNull::new(pool.as_ptr()));
        Ok(WorkerThread { _pool: pool, not_send: PhantomData })
    }
}

impl Drop for WorkerThread {
    fn drop(&mut self) {
        POOL.set(None);
        // SAFETY: start() registered this very thread: Self is not Send.
        unsafe { sys::rte_thread_unregister() }
    }
}
