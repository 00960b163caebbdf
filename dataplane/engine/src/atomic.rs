//! The atomics of the [`crate::tables`]. With the feature `shuttle`, each access is a point at which shuttle may let
//! another thread go on: `tables/interleavings.rs`. The memory is the same, so that assembly reads it too.

#[cfg(not(feature = "shuttle"))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, AtomicUsize};
#[cfg(feature = "shuttle")]
pub(crate) use stepped::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, AtomicUsize};

#[cfg(feature = "shuttle")]
mod stepped {
    use std::sync::atomic::Ordering;

    use shuttle::thread::yield_now;

    macro_rules! stepped {
        ($($name:ident: $value:ty, [$($rmw:ident)*];)*) => { $(
            #[derive(Default)]
            #[repr(transparent)]
            pub(crate) struct $name(std::sync::atomic::$name);

            #[allow(dead_code)]
            impl $name {
                pub const fn new(value: $value) -> Self {
                    Self(std::sync::atomic::$name::new(value))
                }
                pub fn load(&self, order: Ordering) -> $value {
                    yield_now();
                    self.0.load(order)
                }
                pub fn store(&self, value: $value, order: Ordering) {
                    yield_now();
                    self.0.store(value, order);
                }
                pub fn swap(&self, value: $value, order: Ordering) -> $value {
                    yield_now();
                    self.0.swap(value, order)
                }
                pub fn compare_exchange(&self, from: $value, to: $value, ok: Ordering, no: Ordering) -> Result<$value, $value> {
                    yield_now();
                    self.0.compare_exchange(from, to, ok, no)
                }
                pub fn compare_exchange_weak(&self, from: $value, to: $value, ok: Ordering, no: Ordering) -> Result<$value, $value> {
                    yield_now();
                    self.0.compare_exchange_weak(from, to, ok, no)
                }
                pub fn fetch_update(&self, ok: Ordering, no: Ordering, f: impl FnMut($value) -> Option<$value>) -> Result<$value, $value> {
                    yield_now();
                    self.0.fetch_update(ok, no, f)
                }
                $(pub fn $rmw(&self, value: $value, order: Ordering) -> $value {
                    yield_now();
                    self.0.$rmw(value, order)
                })*
            }
        )* };
    }

    stepped! {
        AtomicBool: bool, [];
        AtomicU16: u16, [];
        AtomicU32: u32, [fetch_add fetch_sub fetch_and fetch_or];
        AtomicU64: u64, [fetch_add fetch_sub];
        AtomicUsize: usize, [fetch_add];
    }
}
