//! When a slot may be used again: see `table.rs`.

/// When what was taken out of a table may be overwritten: no worker uses it any more.
pub trait Quiescence: Send + Sync {
    /// Says that something was taken out, and with which number to ask about it: never 0.
    fn retire(&self) -> u64;
    /// Whether every worker has begun another round since; true for 0.
    fn is_past(&self, retired: u64) -> bool;
}

/// Of one thread, which knows what it holds.
pub struct OneThread;

impl Quiescence for OneThread {
    fn retire(&self) -> u64 {
        1
    }

    fn is_past(&self, _: u64) -> bool {
        true
    }
}
