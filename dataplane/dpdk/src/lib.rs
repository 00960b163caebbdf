//! A safe wrapper around the part of DPDK that Dunlin uses. Nearly all `unsafe` of the project
//! is here; each block says what makes it sound.
//!
//! **The rules it turns into types.**
//! * Nothing of DPDK works before [`eal::Eal::init`]: whatever makes a DPDK object takes an `&Eal`.
//! * A buffer has an owner: [`mbuf::Mbuf`] gives it back when dropped, and hands out its octets
//!   for writing only while they are not shared.
//! * A queue is polled by one thread: [`port::RxQueue`] polls by `&mut self` and can't be cloned.
//! * A device closes only when its queues have come back: they keep it alive.
//! * A guest's rings may vanish at any moment: they are touched under a
//!   [`quiescent::Guard`], and the thread that takes them away waits until no guard is left.
//!
//! **Threads.** DPDK starts its own for interrupts and vhost-user sockets; their callbacks are in
//! `vhost.rs`. Workers are the caller's threads, made so by [`thread::WorkerThread`].
//!
//! **Read next** `mbuf.rs`, then `port.rs` and `vhost.rs`.

pub mod allocations;
pub mod eal;
pub mod kernel;
pub mod mbuf;
pub mod mempool;
pub mod offload;
pub mod port;
pub mod quiescent;
pub mod sleep;
pub mod steering;
pub mod thread;
pub mod vhost;

pub use mbuf::Mbuf;

use std::ffi::CStr;

/// What DPDK refused, and why.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{what}: {why}")]
pub struct DpdkError {
    /// What was tried.
    pub what: String,
    /// DPDK's reason, in words.
    pub why: String,
}

impl DpdkError {
    fn new(what: impl Into<String>, why: impl Into<String>) -> Self {
        DpdkError { what: what.into(), why: why.into() }
    }

    /// From the return value of a DPDK call: a negative errno, or -1 with the reason elsewhere.
    fn from_code(what: impl Into<String>, code: i32) -> Self {
        let code = if code == -1 { errno() } else { code.abs() };
        DpdkError::new(what, strerror(code))
    }
}

/// `Ok` for 0 and above.
fn check(what: impl Into<String>, code: i32) -> Result<i32, DpdkError> {
    if code < 0 { Err(DpdkError::from_code(what, code)) } else { Ok(code) }
}

/// DPDK's own errno of this thread.
fn errno() -> i32 {
    // SAFETY: it reads a thread-local integer of libdpdk, which is there from loading on.
    unsafe { dpdk_sys::dunlin_errno() }
}

fn strerror(code: i32) -> String {
    // SAFETY: rte_strerror returns a NUL-terminated string, static or of this thread, for any
    // argument; it is copied before the thread can call it again.
    unsafe { CStr::from_ptr(dpdk_sys::rte_strerror(code)) }.to_string_lossy().into_owned()
}

/// The next name that no other pool or device of this process has, at most 24 octets.
fn unique_name(prefix: &str) -> String {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    format!("{prefix}{}", NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
}
