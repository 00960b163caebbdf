//! The engine's one module with `unsafe`: what the processor can do and Rust has no safe word for.

use std::sync::atomic::AtomicU64;

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
}
