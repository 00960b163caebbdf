//! Words in memory that others may write, compared at once.

#![allow(unsafe_code)]

use std::sync::atomic::Ordering::Relaxed;

use super::Zeroed;
use crate::atomic::{AtomicU16, AtomicU64};

/// A cache line of words that are compared at once.
#[repr(align(64))]
#[derive(Default)]
pub(crate) struct Bucket64(pub [AtomicU64; 8]);

// SAFETY: nothing but what is [`Zeroed`].
unsafe impl Zeroed for Bucket64 {}

impl Bucket64 {
    /// One bit for each word that agrees with `wanted` in the bits of `mask`, the first one lowest. Each word is read by
    /// itself, atomically (Relaxed). No branch: which word it is can't be foretold, and a processor that
    /// guesses pays for every wrong guess.
    #[inline(always)]
    pub(crate) fn agree(&self, wanted: u64, mask: u64) -> u32 {
        #[cfg(all(target_arch = "x86_64", target_feature = "sse4.1"))]
        return self.agree_sse(wanted, mask);
        #[cfg(not(all(target_arch = "x86_64", target_feature = "sse4.1")))]
        (0..8).map(|i| u32::from((self.0[i].load(Relaxed) ^ wanted) & mask == 0) << i).sum()
    }

    /// The first word of those whose bits are in `ways` that agrees still, or 0: others may have written it since.
    #[inline(always)]
    pub(super) fn first_of(&self, mut ways: u32, wanted: u64, mask: u64) -> u64 {
        while ways != 0 {
            // Below 8, and the compiler sees it.
            let word = self.0[ways.trailing_zeros() as usize & 7].load(Relaxed);
            if (word ^ wanted) & mask == 0 {
                return word;
            }
            ways &= ways - 1;
        }
        0
    }

    #[cfg(all(target_arch = "x86_64", target_feature = "sse4.1"))]
    #[inline(always)]
    fn agree_sse(&self, wanted: u64, mask: u64) -> u32 {
        let found: u32;
        // SAFETY: reads the 64 octets of self, which are aligned to 64 and live. Others may write
        // them meanwhile, so it is assembly and no Rust load: an aligned load of 16 octets reads
        // each aligned word of 8 whole (Intel's and AMD's manuals promise it for processors with
        // AVX; those without split it into two loads of 8). Changes nothing but its registers.
        unsafe {
            std::arch::asm!(
                "movq {key}, {wanted}",
                "movq {mask}, {bits}",
                "punpcklqdq {key}, {key}",
                "punpcklqdq {mask}, {mask}",
                "movdqa {a}, [{words}]",
                "movdqa {b}, [{words} + 16]",
                "movdqa {c}, [{words} + 32]",
                "pand {a}, {mask}",
                "pand {b}, {mask}",
                "pand {c}, {mask}",
                "pand {mask}, [{words} + 48]",
                "pcmpeqq {a}, {key}",
                "pcmpeqq {b}, {key}",
                "pcmpeqq {c}, {key}",
                "pcmpeqq {mask}, {key}",
                "packssdw {a}, {b}",
                "packssdw {c}, {mask}",
                "packssdw {a}, {c}",
                "packsswb {a}, {a}",
                "pmovmskb {found:e}, {a}",
                words = in(reg) self.0.as_ptr(),
                wanted = in(reg) wanted & mask,
                bits = in(reg) mask,
                key = out(xmm_reg) _,
                mask = out(xmm_reg) _,
                a = out(xmm_reg) _,
                b = out(xmm_reg) _,
                c = out(xmm_reg) _,
                found = lateout(reg) found,
                options(nostack, readonly, preserves_flags),
            );
        }
        found & 0xff
    }
}

/// Eight quarters of words that are compared at once.
#[repr(align(16))]
pub(crate) struct U16x8(pub [AtomicU16; 8]);

// SAFETY: nothing but what is [`Zeroed`].
unsafe impl Zeroed for U16x8 {}

impl U16x8 {
    /// As [`Bucket64::agree`], with all bits.
    #[inline(always)]
    pub(crate) fn equal(&self, wanted: u16) -> u32 {
        #[cfg(target_arch = "x86_64")]
        return self.equal_sse(wanted);
        #[cfg(not(target_arch = "x86_64"))]
        (0..8).map(|i| u32::from(self.0[i].load(Relaxed) == wanted) << i).sum()
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn equal_sse(&self, wanted: u16) -> u32 {
        let found: u32;
        // SAFETY: reads the 16 octets of self, which are aligned to 16 and live; as in Bucket64::agree_sse, each
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

#[cfg(target_arch = "x86_64")]
pub(super) use wide::*;

/// [`Bucket64`] in the registers of AVX-512 and AVX2.
#[cfg(target_arch = "x86_64")]
mod wide {
    use std::arch::x86_64::{__m512i, _mm256_set1_epi64x, _mm512_set1_epi64};

    use super::Bucket64;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2")]
    fn all(x: u64) -> __m512i {
        _mm512_set1_epi64(x as i64)
    }

    /// See [`super::super::Lanes::holds`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2")]
    pub(in super::super) fn holds_512(line: &Bucket64, x: &u64, of: u64, with: u64) -> bool {
        let found: u32;
        // SAFETY: reads x, and as Bucket64::agree_sse the words of `line`, in one load of 64 octets: no processor with
        // AVX-512 is known that does not read each aligned word of it whole. Changes nothing but its registers.
        unsafe {
            std::arch::asm!(
                "vpbroadcastq {wanted}, qword ptr [{x}]",
                // Of a, b and c: a & b | c.
                "vpternlogq {wanted}, {of}, {with}, 0xea",
                "vpcmpeqq {equal}, {wanted}, [{words}]",
                "kmovb {found:e}, {equal}",
                words = in(reg) line.0.as_ptr(),
                x = in(reg) x,
                of = in(zmm_reg) all(of),
                with = in(zmm_reg) all(with),
                wanted = out(zmm_reg) _,
                equal = out(kreg) _,
                found = lateout(reg) found,
                options(nostack, readonly, preserves_flags),
            );
        }
        found != 0
    }

    /// See [`super::super::Lanes::pick`]: the word that is found is that of the same load, and need not be looked at again.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2")]
    pub(in super::super) fn pick_512(line: &Bucket64, x: &u64, of: u64, mask: u64) -> u64 {
        let found: u64;
        // SAFETY: as in `holds_512`.
        unsafe {
            std::arch::asm!(
                "vpbroadcastq {wanted}, qword ptr [{x}]",
                "vmovdqa64 {all}, [{words}]",
                // Of a, b and c: a & b ^ c.
                "vpternlogq {wanted}, {of}, {all}, 0x6a",
                "vptestnmq {equal}, {wanted}, {mask}",
                "vpcompressq {all}{{{equal}}}{{z}}, {all}",
                "vmovq {found}, {all:x}",
                words = in(reg) line.0.as_ptr(),
                x = in(reg) x,
                of = in(zmm_reg) all(of),
                mask = in(zmm_reg) all(mask),
                wanted = out(zmm_reg) _,
                all = out(zmm_reg) _,
                equal = out(kreg) _,
                found = lateout(reg) found,
                options(nostack, readonly, preserves_flags),
            );
        }
        found
    }

    /// Which words of `line` [`super::super::Lanes::pick`] means, as [`Bucket64::agree`] says it.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(in super::super) fn agree_256(line: &Bucket64, x: &u64, of: u64, mask: u64) -> u32 {
        let (low, high): (u32, u32);
        // SAFETY: as in `holds_512`, in two loads of 32 octets, of which the same is true.
        unsafe {
            std::arch::asm!(
                "vpbroadcastq {wanted}, qword ptr [{x}]",
                "vpand {wanted}, {wanted}, {of}",
                "vpand {a}, {mask}, [{words}]",
                "vpand {b}, {mask}, [{words} + 32]",
                "vpcmpeqq {a}, {a}, {wanted}",
                "vpcmpeqq {b}, {b}, {wanted}",
                "vmovmskpd {low:e}, {a}",
                "vmovmskpd {high:e}, {b}",
                words = in(reg) line.0.as_ptr(),
                x = in(reg) x,
                of = in(ymm_reg) _mm256_set1_epi64x(of as i64),
                mask = in(ymm_reg) _mm256_set1_epi64x(mask as i64),
                wanted = out(ymm_reg) _,
                a = out(ymm_reg) _,
                b = out(ymm_reg) _,
                low = lateout(reg) low,
                high = lateout(reg) high,
                options(nostack, readonly, preserves_flags),
            );
        }
        low | high << 4
    }

    /// See [`super::super::Lanes::holds`].
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(in super::super) fn holds_256(line: &Bucket64, x: &u64, of: u64, with: u64) -> bool {
        let found: u32;
        // SAFETY: as in `agree_256`.
        unsafe {
            std::arch::asm!(
                "vpbroadcastq {wanted}, qword ptr [{x}]",
                "vpand {wanted}, {wanted}, {of}",
                "vpor {wanted}, {wanted}, {with}",
                "vpcmpeqq {a}, {wanted}, [{words}]",
                "vpcmpeqq {wanted}, {wanted}, [{words} + 32]",
                "vpor {a}, {a}, {wanted}",
                "vmovmskpd {found:e}, {a}",
                words = in(reg) line.0.as_ptr(),
                x = in(reg) x,
                of = in(ymm_reg) _mm256_set1_epi64x(of as i64),
                with = in(ymm_reg) _mm256_set1_epi64x(with as i64),
                wanted = out(ymm_reg) _,
                a = out(ymm_reg) _,
                found = lateout(reg) found,
                options(nostack, readonly, preserves_flags),
            );
        }
        found != 0
    }
}
