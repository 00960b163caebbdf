//! The engine's one module with `unsafe`: what the processor can do and Rust has no safe word for.

mod line;
#[cfg(target_arch = "x86_64")]
mod wide;

pub(crate) use line::{Bucket64, U16x8};
#[cfg(target_arch = "x86_64")]
use wide::{Lanes256, Lanes512};

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use crate::atomic::{AtomicU16, AtomicU32, AtomicU64};

/// Asks for the cache line of `item` in all levels. Has no effect that a program can see.
#[inline(always)]
#[allow(unsafe_code)]
pub(crate) fn prefetch<T>(item: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: PREFETCHT0 is part of SSE, which every x86-64 processor has; it reads nothing and
    // never faults, whatever the address, and this one comes from a live reference besides.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(item).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = item;
}

/// What consists of nothing but atomic integers, so that all bits 0 is a value of it.
///
/// # Safety
/// Just that: no reference, no `NonZero`, no enum.
#[allow(unsafe_code)]
pub(crate) unsafe trait Zeroed {}

// SAFETY: an integer.
#[allow(unsafe_code)]
unsafe impl Zeroed for AtomicU64 {}
// SAFETY: an integer.
#[allow(unsafe_code)]
unsafe impl Zeroed for AtomicU32 {}
// SAFETY: an integer.
#[allow(unsafe_code)]
unsafe impl Zeroed for AtomicU16 {}
// SAFETY: nothing but what is [`Zeroed`].
#[allow(unsafe_code)]
unsafe impl<T: Zeroed, const N: usize> Zeroed for [T; N] {}

/// One thing behind another, from the beginning of a cache line on.
#[repr(C, align(64))]
pub(crate) struct CacheAligned<A, B>(pub A, pub B);

// SAFETY: nothing but what is [`Zeroed`]; what lies between is not read.
#[allow(unsafe_code)]
unsafe impl<A: Zeroed, B: Zeroed> Zeroed for CacheAligned<A, B> {}

/// So many of them, all 0. Of what is aligned to 16 octets or less it is memory that the kernel gives when it is first
/// written to.
#[allow(unsafe_code)]
pub(crate) fn zeroed<T: Zeroed>(n: usize) -> Box<[T]> {
    let layout = std::alloc::Layout::array::<T>(n).expect("smaller than all memory");
    assert!(layout.size() > 0);
    // SAFETY: the layout is not empty. What comes back is aligned and large enough for n of T, all bits 0,
    // which T says is a value; it is from the global allocator and of the very layout that Box frees.
    unsafe {
        let memory = std::alloc::alloc_zeroed(layout);
        if memory.is_null() {
            std::alloc::handle_alloc_error(layout);
        }
        Box::from_raw(std::ptr::slice_from_raw_parts_mut(memory.cast::<T>(), n))
    }
}

/// Rules, or bounds, that are compared at once.
pub(crate) const LANES: usize = 16;

/// Comparing one word with [`LANES`] others: bit i of what comes out is lane i.
pub(crate) trait Lanes {
    /// Where `x` is at least `low` and exceeds it by at most `width`, of the lanes in `mask`.
    fn within(low: &[u32; LANES], width: &[u32; LANES], x: u32, mask: u32) -> u32;
    /// Where the value is at least `low` and exceeds it by at most `width`.
    fn inside(values: &[u32; LANES], low: u32, width: u32) -> u32;
    /// Where the bound is at most `x`.
    fn at_most(bounds: &[u32; LANES], x: u32) -> u32;
    /// Rows of octets as columns of words: what comes out first is the first four octets of each, as they lie in
    /// memory, the first one in the lowest bits.
    fn transpose(rows: &[&[u8; ROW]; LANES]) -> [[u32; LANES]; ROW / 4];
    /// Whether a word of `line` is `x & of | with`; `of` and `with` have no bits in common. Words are read as by
    /// [`Bucket64::agree`].
    fn holds(line: &Bucket64, x: &u64, of: u64, with: u64) -> bool;
    /// The first word of `line` that agrees with `x & of` in the bits of `mask`, all bits of `of` among them, or 0.
    fn pick(line: &Bucket64, x: &u64, of: u64, mask: u64) -> u64;
    /// The first two groups of six octets of `head`, as numbers in the upper 48 bits, above `low`; and what
    /// [`mixed`] makes of them.
    fn two(head: &[u8; 16], low: u16, seed: [u64; 2]) -> [[u64; 2]; 2];
}

/// `x` times both of `seed`, which are odd; the upper half of the first product, whose bits depend on more of `x`, goes into
/// its lower, and the halves of the second change places, for the lower bits to be the better ones. Can be undone, by [`unmixed`].
#[inline(always)]
pub(crate) fn mixed(x: u64, seed: [u64; 2]) -> u64 {
    let product = x.wrapping_mul(seed[0]);
    (product ^ product >> 32).wrapping_mul(seed[1]).rotate_left(32)
}

/// What [`mixed`] came from; `inverse`: what undoes the multiplication by each of its seeds.
pub(crate) fn unmixed(x: u64, inverse: [u64; 2]) -> u64 {
    let product = x.rotate_right(32).wrapping_mul(inverse[1]);
    (product ^ product >> 32).wrapping_mul(inverse[0])
}

/// [`Lanes::two`] without anything special.
#[inline(always)]
fn two(h: &[u8; 16], low: u16, seed: [u64; 2]) -> [[u64; 2]; 2] {
    let upper = |octets| u64::from_be_bytes(octets) & !0xffff | u64::from(low);
    let first = upper([h[0], h[1], h[2], h[3], h[4], h[5], h[6], h[7]]);
    let second = upper([h[6], h[7], h[8], h[9], h[10], h[11], h[12], h[13]]);
    [[first, second], [mixed(first, seed), mixed(second, seed)]]
}

/// Octets of a row: eight words.
pub(crate) const ROW: usize = 32;

/// What is compiled once for each sort of [`Lanes`]: `run`, and all that it calls, must be
/// `#[inline(always)]`; what is called by an iterator's `fold` and the like is not.
pub(crate) trait SimdKernel {
    /// Does it.
    fn run<L: Lanes>(self);
}

/// Runs a kernel with the widest lanes that this processor has.
#[inline(always)]
#[allow(unsafe_code)]
pub(crate) fn dispatch_simd<J: SimdKernel>(job: J) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,bmi1,bmi2,popcnt,lzcnt")]
        fn run_512<J: SimdKernel>(job: J) {
            job.run::<Lanes512>();
        }
        #[target_feature(enable = "avx2,bmi1,bmi2,popcnt,lzcnt")]
        fn run_256<J: SimdKernel>(job: J) {
            job.run::<Lanes256>();
        }
        // Asked for each burst: one load, where each feature is one.
        static FOUND: AtomicU8 = AtomicU8::new(0);
        let found = match FOUND.load(Relaxed) {
            0 => {
                let found = width();
                FOUND.store(found, Relaxed);
                found
            }
            found => found,
        };
        if found == 64 {
            // SAFETY: `width` found every feature that run_512 names.
            return unsafe { run_512(job) };
        }
        if found == 32 {
            // SAFETY: `width` found every feature that run_256 names.
            return unsafe { run_256(job) };
        }
    }
    job.run::<LanesAnywhere>();
}

/// Octets of the widest registers for which there are [`Lanes`].
#[cfg(target_arch = "x86_64")]
#[cold]
fn width() -> u8 {
    let common = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("popcnt")
        && is_x86_feature_detected!("lzcnt");
    let wide = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq");
    match (common, wide) {
        (true, true) => 64,
        (true, false) => 32,
        (false, _) => 16,
    }
}

/// Without anything special.
pub(crate) struct LanesAnywhere;

impl Lanes for LanesAnywhere {
    #[inline(always)]
    fn within(low: &[u32; LANES], width: &[u32; LANES], x: u32, mask: u32) -> u32 {
        (0..LANES).map(|i| u32::from(x.wrapping_sub(low[i]) <= width[i]) << i).sum::<u32>() & mask
    }
    #[inline(always)]
    fn inside(values: &[u32; LANES], low: u32, width: u32) -> u32 {
        (0..LANES).map(|i| u32::from(values[i].wrapping_sub(low) <= width) << i).sum()
    }
    #[inline(always)]
    fn at_most(bounds: &[u32; LANES], x: u32) -> u32 {
        (0..LANES).map(|i| u32::from(bounds[i] <= x) << i).sum()
    }
    #[inline(always)]
    fn transpose(rows: &[&[u8; ROW]; LANES]) -> [[u32; LANES]; ROW / 4] {
        let mut columns = [[0; LANES]; ROW / 4];
        for (lane, row) in rows.iter().enumerate() {
            for (column, word) in columns.iter_mut().zip(row.as_chunks::<4>().0) {
                column[lane] = u32::from_le_bytes(*word);
            }
        }
        columns
    }
    #[inline(always)]
    fn holds(line: &Bucket64, x: &u64, of: u64, with: u64) -> bool {
        line.agree(x & of | with, u64::MAX) != 0
    }
    #[inline(always)]
    fn pick(line: &Bucket64, x: &u64, of: u64, mask: u64) -> u64 {
        line.first_of(line.agree(x & of, mask), x & of, mask)
    }
    #[inline(always)]
    fn two(head: &[u8; 16], low: u16, seed: [u64; 2]) -> [[u64; 2]; 2] {
        two(head, low, seed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_each_quarter() {
        for found in 0..256u32 {
            let eight = U16x8(std::array::from_fn(|i| AtomicU16::new(if found >> i & 1 == 1 { 0x8001 } else { 1 })));
            assert_eq!(eight.equal(0x8001), found);
        }
    }

    /// Every sort of lanes that this processor has finds what the plain one does.
    #[test]
    fn lanes_agree() {
        struct Check;
        impl SimdKernel for Check {
            #[inline(always)]
            fn run<L: Lanes>(self) {
                let mut seed = 1u32;
                let mut next = move || {
                    seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    [0, u32::MAX, seed, seed >> 16, 1 << (seed >> 27)][seed as usize >> 8 & 3]
                };
                for _ in 0..10_000 {
                    let (low, width, x) = ([0; LANES].map(|_| next()), [0; LANES].map(|_| next()), next());
                    let mask = next() & 0xffff;
                    assert_eq!(L::within(&low, &width, x, mask), LanesAnywhere::within(&low, &width, x, mask));
                    assert_eq!(L::inside(&low, x, mask), LanesAnywhere::inside(&low, x, mask));
                    assert_eq!(L::at_most(&low, x), LanesAnywhere::at_most(&low, x));
                    let octets = [[0u8; ROW]; LANES].map(|row| row.map(|_| next() as u8));
                    let rows = octets.each_ref();
                    assert_eq!(L::transpose(&rows), LanesAnywhere::transpose(&rows));
                    let words = [0u64; 8].map(|_| u64::from(next()) << 32 | u64::from(next()));
                    let [of, with, mask] = [0; 3].map(|_| u64::from(next()) << 32 | u64::from(next()));
                    let (with, mask) = (with & !of, mask | of);
                    let (line, x) = (Bucket64(words.map(AtomicU64::new)), words[next() as usize % 8]);
                    assert_eq!(L::holds(&line, &x, of, with), words.contains(&(x & of | with)));
                    let picked = words.iter().find(|w| (*w ^ x & of) & mask == 0);
                    assert_eq!(L::pick(&line, &x, of, mask), picked.copied().unwrap_or(0));
                    let (head, seed) = ([0u8; 16].map(|_| next() as u8), [of, with]);
                    assert_eq!(L::two(&head, x as u16, seed), two(&head, x as u16, seed));
                }
            }
        }
        dispatch_simd(Check);
        Check.run::<LanesAnywhere>();
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            Check.run::<Lanes256>();
        }
    }
}
