//! The engine's one module with `unsafe`: what the processor can do and Rust has no safe word for.

use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64};

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
pub(crate) struct Lines<A, B>(pub A, pub B);

// SAFETY: nothing but what is [`Zeroed`]; nobody reads what lies between.
#[allow(unsafe_code)]
unsafe impl<A: Zeroed, B: Zeroed> Zeroed for Lines<A, B> {}

/// So many of them, all 0, in memory that the kernel gives when it is first written to.
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

/// Four words that are compared at once.
#[repr(align(32))]
#[derive(Default)]
pub(crate) struct Words(pub [AtomicU64; 4]);

impl Words {
    /// One bit for each word that is `wanted`, the first one lowest. Each word is read by itself,
    /// atomically (Relaxed). No branch: which word it is can't be foretold, and a processor that
    /// guesses pays for every wrong guess.
    #[inline(always)]
    pub(crate) fn equal(&self, wanted: u64) -> u32 {
        #[cfg(all(target_arch = "x86_64", target_feature = "sse4.1"))]
        return self.equal_sse(wanted);
        #[cfg(not(all(target_arch = "x86_64", target_feature = "sse4.1")))]
        (0..4).map(|i| u32::from(self.0[i].load(std::sync::atomic::Ordering::Relaxed) == wanted) << i).sum()
    }

    #[cfg(all(target_arch = "x86_64", target_feature = "sse4.1"))]
    #[inline(always)]
    #[allow(unsafe_code)]
    fn equal_sse(&self, wanted: u64) -> u32 {
        let found: u32;
        // SAFETY: reads the 32 octets of self, which are aligned to 32 and live. Others may write
        // them meanwhile, so it is assembly and no Rust load: an aligned load of 16 octets reads
        // each aligned word of 8 whole (Intel's and AMD's manuals promise it for processors with
        // AVX; those without split it into two loads of 8). Changes nothing but its registers.
        unsafe {
            std::arch::asm!(
                "movq {key}, {wanted}",
                "punpcklqdq {key}, {key}",
                "movdqa {low}, [{words}]",
                "pcmpeqq {low}, {key}",
                "pcmpeqq {key}, [{words} + 16]",
                "packssdw {low}, {key}",
                "movmskps {found:e}, {low}",
                words = in(reg) self.0.as_ptr(),
                wanted = in(reg) wanted,
                key = out(xmm_reg) _,
                low = out(xmm_reg) _,
                found = lateout(reg) found,
                options(nostack, readonly, preserves_flags),
            );
        }
        found
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
    fn turned(rows: &[&[u8; ROW]; LANES]) -> [[u32; LANES]; ROW / 4];
}

/// Octets of a row: eight words.
pub(crate) const ROW: usize = 32;

/// What is compiled once for each sort of [`Lanes`]: `run`, and all that it calls, must be
/// `#[inline(always)]`; what is called by an iterator's `fold` and the like is not.
pub(crate) trait Job {
    /// Does it.
    fn run<L: Lanes>(self);
}

/// Does a job with the widest lanes that this processor has.
#[inline(always)]
#[allow(unsafe_code)]
pub(crate) fn widest<J: Job>(job: J) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,bmi1,bmi2,popcnt,lzcnt")]
        fn run_512<J: Job>(job: J) {
            job.run::<Lanes512>();
        }
        #[target_feature(enable = "avx2,bmi1,bmi2,popcnt,lzcnt")]
        fn run_256<J: Job>(job: J) {
            job.run::<Lanes256>();
        }
        let common = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("popcnt")
            && is_x86_feature_detected!("lzcnt");
        if common
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
        {
            // SAFETY: every feature that run_512 names was just found.
            return unsafe { run_512(job) };
        }
        if common {
            // SAFETY: every feature that run_256 names was just found.
            return unsafe { run_256(job) };
        }
    }
    job.run::<LanesAnywhere>();
}

/// Without anything special.
struct LanesAnywhere;

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
    fn turned(rows: &[&[u8; ROW]; LANES]) -> [[u32; LANES]; ROW / 4] {
        let mut columns = [[0; LANES]; ROW / 4];
        for (lane, row) in rows.iter().enumerate() {
            for (column, word) in columns.iter_mut().zip(row.as_chunks::<4>().0) {
                column[lane] = u32::from_le_bytes(*word);
            }
        }
        columns
    }
}

/// AVX-512: made only in `run_512`.
#[cfg(target_arch = "x86_64")]
struct Lanes512;

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
impl Lanes for Lanes512 {
    #[inline(always)]
    fn within(low: &[u32; LANES], width: &[u32; LANES], x: u32, mask: u32) -> u32 {
        use std::arch::x86_64::*;
        // SAFETY: `widest` uses this type only where AVX-512 was found; the loads are of 64 octets that the
        // references vouch for, of any alignment.
        unsafe {
            let (low, width) = (_mm512_loadu_si512(low.as_ptr().cast()), _mm512_loadu_si512(width.as_ptr().cast()));
            let over = _mm512_sub_epi32(_mm512_set1_epi32(x as i32), low);
            u32::from(_mm512_mask_cmple_epu32_mask(mask as u16, over, width))
        }
    }
    #[inline(always)]
    fn inside(values: &[u32; LANES], low: u32, width: u32) -> u32 {
        use std::arch::x86_64::*;
        // SAFETY: as above.
        unsafe {
            let over = _mm512_sub_epi32(_mm512_loadu_si512(values.as_ptr().cast()), _mm512_set1_epi32(low as i32));
            u32::from(_mm512_cmple_epu32_mask(over, _mm512_set1_epi32(width as i32)))
        }
    }
    #[inline(always)]
    fn at_most(bounds: &[u32; LANES], x: u32) -> u32 {
        use std::arch::x86_64::*;
        // SAFETY: as above.
        unsafe {
            let bounds = _mm512_loadu_si512(bounds.as_ptr().cast());
            u32::from(_mm512_cmple_epu32_mask(bounds, _mm512_set1_epi32(x as i32)))
        }
    }
    #[inline(always)]
    fn turned(rows: &[&[u8; ROW]; LANES]) -> [[u32; LANES]; ROW / 4] {
        use std::arch::x86_64::*;
        let (first, second) = (Self::turned_eight(rows, 0), Self::turned_eight(rows, 8));
        let mut columns = [[0; LANES]; ROW / 4];
        for i in 0..4 {
            // SAFETY: as above; each column is 64 octets.
            unsafe {
                let low = _mm512_shuffle_i32x4::<0x88>(first[i], second[i]);
                let high = _mm512_shuffle_i32x4::<0xdd>(first[i], second[i]);
                _mm512_storeu_si512(columns[i].as_mut_ptr().cast(), low);
                _mm512_storeu_si512(columns[i + 4].as_mut_ptr().cast(), high);
            }
        }
        columns
    }
}

#[cfg(target_arch = "x86_64")]
impl Lanes512 {
    /// Two rows in one register.
    #[inline(always)]
    #[allow(unsafe_code)]
    fn pair(first: &[u8; ROW], second: &[u8; ROW]) -> std::arch::x86_64::__m512i {
        use std::arch::x86_64::*;
        // SAFETY: `widest` uses this type only where AVX-512 was found; each row is 32 octets.
        unsafe {
            let (first, second) =
                (_mm256_loadu_si256(first.as_ptr().cast()), _mm256_loadu_si256(second.as_ptr().cast()));
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(first), second)
        }
    }

    /// Of eight rows from `at` on: by column, quarters of a register with a word of rows 0 to 3, the fourth one behind it
    /// of the same rows, and both of rows 4 to 7.
    #[inline(always)]
    #[allow(unsafe_code)]
    fn turned_eight(rows: &[&[u8; ROW]; LANES], at: usize) -> [std::arch::x86_64::__m512i; 4] {
        use std::arch::x86_64::*;
        let (r0, r1) = (Self::pair(rows[at], rows[at + 4]), Self::pair(rows[at + 1], rows[at + 5]));
        let (r2, r3) = (Self::pair(rows[at + 2], rows[at + 6]), Self::pair(rows[at + 3], rows[at + 7]));
        // SAFETY: as above.
        unsafe {
            let (even, odd) = (_mm512_unpacklo_epi32(r0, r1), _mm512_unpackhi_epi32(r0, r1));
            let (even2, odd2) = (_mm512_unpacklo_epi32(r2, r3), _mm512_unpackhi_epi32(r2, r3));
            [
                _mm512_unpacklo_epi64(even, even2),
                _mm512_unpackhi_epi64(even, even2),
                _mm512_unpacklo_epi64(odd, odd2),
                _mm512_unpackhi_epi64(odd, odd2),
            ]
        }
    }
}

/// AVX2: made only in `run_256`.
#[cfg(target_arch = "x86_64")]
struct Lanes256;

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __m256i, _mm256_castsi256_ps, _mm256_cmpeq_epi32, _mm256_loadu_si256, _mm256_min_epu32, _mm256_movemask_ps,
    _mm256_permute2x128_si256, _mm256_set1_epi32, _mm256_storeu_si256, _mm256_sub_epi32, _mm256_unpackhi_epi32,
    _mm256_unpackhi_epi64, _mm256_unpacklo_epi32, _mm256_unpacklo_epi64,
};

#[cfg(target_arch = "x86_64")]
impl Lanes256 {
    /// Bit i where a word of `value` is at most that of `most`.
    #[inline(always)]
    #[allow(unsafe_code)]
    fn at_most_each(value: __m256i, most: __m256i) -> u32 {
        // SAFETY: `widest` uses this type only where AVX2 was found.
        unsafe {
            let smaller = _mm256_min_epu32(value, most);
            _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(smaller, value))) as u32
        }
    }

    #[inline(always)]
    #[allow(unsafe_code)]
    fn load(words: &[u32; LANES], at: usize) -> __m256i {
        // SAFETY: as above; eight words from `at` on are there, or the slice would not be.
        unsafe { _mm256_loadu_si256(words[at..at + 8].as_ptr().cast()) }
    }

    #[inline(always)]
    #[allow(unsafe_code)]
    fn all(x: u32) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_set1_epi32(x as i32) }
    }

    #[inline(always)]
    #[allow(unsafe_code)]
    fn minus(a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_sub_epi32(a, b) }
    }

    /// Of four rows from `at` on, words 0 to 3 by column in the lower halves, 4 to 7 in the upper ones.
    #[inline(always)]
    #[allow(unsafe_code)]
    fn turned_four(rows: &[&[u8; ROW]; LANES], at: usize) -> [__m256i; 4] {
        // SAFETY: as above; each row is 32 octets.
        unsafe {
            let row = |i: usize| _mm256_loadu_si256(rows[i].as_ptr().cast());
            let (r0, r1, r2, r3) = (row(at), row(at + 1), row(at + 2), row(at + 3));
            let (even, odd) = (_mm256_unpacklo_epi32(r0, r1), _mm256_unpackhi_epi32(r0, r1));
            let (even2, odd2) = (_mm256_unpacklo_epi32(r2, r3), _mm256_unpackhi_epi32(r2, r3));
            [
                _mm256_unpacklo_epi64(even, even2),
                _mm256_unpackhi_epi64(even, even2),
                _mm256_unpacklo_epi64(odd, odd2),
                _mm256_unpackhi_epi64(odd, odd2),
            ]
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl Lanes for Lanes256 {
    #[inline(always)]
    fn within(low: &[u32; LANES], width: &[u32; LANES], x: u32, mask: u32) -> u32 {
        let x = Self::all(x);
        let first = Self::at_most_each(Self::minus(x, Self::load(low, 0)), Self::load(width, 0));
        let second = Self::at_most_each(Self::minus(x, Self::load(low, 8)), Self::load(width, 8));
        (first | second << 8) & mask
    }
    #[inline(always)]
    fn inside(values: &[u32; LANES], low: u32, width: u32) -> u32 {
        let (low, width) = (Self::all(low), Self::all(width));
        let first = Self::at_most_each(Self::minus(Self::load(values, 0), low), width);
        let second = Self::at_most_each(Self::minus(Self::load(values, 8), low), width);
        first | second << 8
    }
    #[inline(always)]
    fn at_most(bounds: &[u32; LANES], x: u32) -> u32 {
        let x = Self::all(x);
        Self::at_most_each(Self::load(bounds, 0), x) | Self::at_most_each(Self::load(bounds, 8), x) << 8
    }
    #[inline(always)]
    #[allow(unsafe_code)]
    fn turned(rows: &[&[u8; ROW]; LANES]) -> [[u32; LANES]; ROW / 4] {
        let mut columns = [[0; LANES]; ROW / 4];
        for eight in 0..2 {
            let (first, second) = (Self::turned_four(rows, eight * 8), Self::turned_four(rows, eight * 8 + 4));
            for i in 0..4 {
                // SAFETY: as above; eight words from there on are in each column.
                unsafe {
                    let low = _mm256_permute2x128_si256::<0x20>(first[i], second[i]);
                    let high = _mm256_permute2x128_si256::<0x31>(first[i], second[i]);
                    _mm256_storeu_si256(columns[i][eight * 8..].as_mut_ptr().cast(), low);
                    _mm256_storeu_si256(columns[i + 4][eight * 8..].as_mut_ptr().cast(), high);
                }
            }
        }
        columns
    }
}

/// Eight quarters of words that are compared at once.
#[repr(align(16))]
pub(crate) struct Eight(pub [AtomicU16; 8]);

// SAFETY: nothing but what is [`Zeroed`].
#[allow(unsafe_code)]
unsafe impl Zeroed for Eight {}

impl Eight {
    /// As [`Words::equal`].
    #[inline(always)]
    pub(crate) fn equal(&self, wanted: u16) -> u32 {
        #[cfg(target_arch = "x86_64")]
        return self.equal_sse(wanted);
        #[cfg(not(target_arch = "x86_64"))]
        (0..8).map(|i| u32::from(self.0[i].load(std::sync::atomic::Ordering::Relaxed) == wanted) << i).sum()
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    #[allow(unsafe_code)]
    fn equal_sse(&self, wanted: u16) -> u32 {
        let found: u32;
        // SAFETY: reads the 16 octets of self, which are aligned to 16 and live; as in Words::equal_sse, each
        // aligned quarter of a word is read whole. Changes nothing but its registers.
        unsafe {
            std::arch::asm!(
                "movd {key}, {wanted:e}",
                "pshuflw {key}, {key}, 0",
                "punpcklqdq {key}, {key}",
                "pcmpeqw {key}, [{words}]",
                "packsswb {key}, {key}",
                "pmovmskb {found:e}, {key}",
                words = in(reg) self.0.as_ptr(),
                wanted = in(reg) u32::from(wanted),
                key = out(xmm_reg) _,
                found = lateout(reg) found,
                options(nostack, readonly, preserves_flags),
            );
        }
        found & 0xff
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_each_word() {
        for found in 0..16u32 {
            let word = |i: u32| AtomicU64::new(if found >> i & 1 == 1 { 0x0102_0304_0506_0708 } else { 0x0102_0304 });
            let words = Words([word(0), word(1), word(2), word(3)]);
            assert_eq!(words.equal(0x0102_0304_0506_0708), found);
        }
    }

    #[test]
    fn equal_names_each_quarter() {
        for found in 0..256u32 {
            let eight = Eight(std::array::from_fn(|i| AtomicU16::new(if found >> i & 1 == 1 { 0x8001 } else { 1 })));
            assert_eq!(eight.equal(0x8001), found);
        }
    }

    /// Every sort of lanes that this processor has finds what the plain one does.
    #[test]
    fn lanes_agree() {
        struct Check;
        impl Job for Check {
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
                    assert_eq!(L::turned(&rows), LanesAnywhere::turned(&rows));
                }
            }
        }
        widest(Check);
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            Check.run::<Lanes256>();
        }
    }
}
