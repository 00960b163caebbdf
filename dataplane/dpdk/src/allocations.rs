//! How often a thread allocates: a worker that forwards never does, and tests and operators see whether that is so.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

thread_local! {
    // Without a destructor: it may be used whenever the thread allocates.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// How often this thread has allocated, or changed the size of what it had.
#[inline]
pub fn of_this_thread() -> u64 {
    ALLOCATIONS.get()
}

fn count() {
    ALLOCATIONS.set(ALLOCATIONS.get().wrapping_add(1));
}

/// The system's allocator, which counts.
pub struct Counting;

// SAFETY: all that is asked for is done by the system's allocator, with the very arguments. Counting allocates nothing and does
// not unwind: the thread's variable is initialized at compile time and has no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as the caller promises; the memory is the system's.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises; the memory is the system's.
        unsafe { System.dealloc(memory, layout) }
    }
}
