//! [`Lanes`] of AVX-512 and AVX2.

#![allow(unsafe_code)]

use super::{
    LANES, Lanes, ROW,
    line::{Bucket64, agree_256, holds_256, holds_512, pick_512},
};

/// AVX-512: made only in `run_512`.
pub(super) struct Lanes512;

impl Lanes for Lanes512 {
    #[inline(always)]
    fn within(low: &[u32; LANES], width: &[u32; LANES], x: u32, mask: u32) -> u32 {
        use std::arch::x86_64::*;
        // SAFETY: `dispatch_simd` uses this type only where AVX-512 was found; the loads are of 64 octets that the
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
    fn transpose(rows: &[&[u8; ROW]; LANES]) -> [[u32; LANES]; ROW / 4] {
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
    #[inline(always)]
    fn holds(line: &Bucket64, x: &u64, of: u64, with: u64) -> bool {
        // SAFETY: as above.
        unsafe { holds_512(line, x, of, with) }
    }
    #[inline(always)]
    fn pick(line: &Bucket64, x: &u64, of: u64, mask: u64) -> u64 {
        // SAFETY: as above.
        unsafe { pick_512(line, x, of, mask) }
    }
    #[inline(always)]
    fn two(head: &[u8; 16], low: u16, seed: [u64; 2]) -> [[u64; 2]; 2] {
        use std::arch::x86_64::*;
        // SAFETY: as above; the load is of the 16 octets of `head`, the stores of both arrays, each 16 octets.
        unsafe {
            let all = |x: u64| _mm_set1_epi64x(x as i64);
            let turned = _mm_set_epi8(6, 7, 8, 9, 10, 11, -1, -1, 0, 1, 2, 3, 4, 5, -1, -1);
            let groups = _mm_shuffle_epi8(_mm_loadu_si128(head.as_ptr().cast()), turned);
            let numbers = _mm_or_si128(groups, all(u64::from(low)));
            let product = _mm_mullo_epi64(numbers, all(seed[0]));
            let product = _mm_mullo_epi64(_mm_xor_si128(product, _mm_srli_epi64::<32>(product)), all(seed[1]));
            let mut out = [[0; 2]; 2];
            _mm_storeu_si128(out[0].as_mut_ptr().cast(), numbers);
            _mm_storeu_si128(out[1].as_mut_ptr().cast(), _mm_shuffle_epi32::<0b1011_0001>(product));
            out
        }
    }
}

impl Lanes512 {
    /// Two rows in one register.
    #[inline(always)]
    fn pair(first: &[u8; ROW], second: &[u8; ROW]) -> std::arch::x86_64::__m512i {
        use std::arch::x86_64::*;
        // SAFETY: `dispatch_simd` uses this type only where AVX-512 was found; each row is 32 octets.
        unsafe {
            let (first, second) =
                (_mm256_loadu_si256(first.as_ptr().cast()), _mm256_loadu_si256(second.as_ptr().cast()));
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(first), second)
        }
    }

    /// Of eight rows from `at` on: by column, quarters of a register with a word of rows 0 to 3, the fourth one behind it
    /// of the same rows, and both of rows 4 to 7.
    #[inline(always)]
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
pub(super) struct Lanes256;

use std::arch::x86_64::{
    __m256i, _mm256_castsi256_ps, _mm256_cmpeq_epi32, _mm256_loadu_si256, _mm256_min_epu32, _mm256_movemask_ps,
    _mm256_permute2x128_si256, _mm256_set1_epi32, _mm256_storeu_si256, _mm256_sub_epi32, _mm256_unpackhi_epi32,
    _mm256_unpackhi_epi64, _mm256_unpacklo_epi32, _mm256_unpacklo_epi64,
};

impl Lanes256 {
    /// Bit i where a word of `value` is at most that of `most`.
    #[inline(always)]
    fn at_most_each(value: __m256i, most: __m256i) -> u32 {
        // SAFETY: `dispatch_simd` uses this type only where AVX2 was found.
        unsafe {
            let smaller = _mm256_min_epu32(value, most);
            _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(smaller, value))) as u32
        }
    }

    #[inline(always)]
    fn load(words: &[u32; LANES], at: usize) -> __m256i {
        // SAFETY: as above; eight words from `at` on are there, or the slice would not be.
        unsafe { _mm256_loadu_si256(words[at..at + 8].as_ptr().cast()) }
    }

    #[inline(always)]
    fn all(x: u32) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_set1_epi32(x as i32) }
    }

    #[inline(always)]
    fn minus(a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_sub_epi32(a, b) }
    }

    /// Of four rows from `at` on, words 0 to 3 by column in the lower halves, 4 to 7 in the upper ones.
    #[inline(always)]
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
    fn transpose(rows: &[&[u8; ROW]; LANES]) -> [[u32; LANES]; ROW / 4] {
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
    #[inline(always)]
    fn holds(line: &Bucket64, x: &u64, of: u64, with: u64) -> bool {
        // SAFETY: as above.
        unsafe { holds_256(line, x, of, with) }
    }
    #[inline(always)]
    fn pick(line: &Bucket64, x: &u64, of: u64, mask: u64) -> u64 {
        // SAFETY: as above.
        let ways = unsafe { agree_256(line, x, of, mask) };
        line.first_of(ways, x & of, mask)
    }
    #[inline(always)]
    fn two(head: &[u8; 16], low: u16, seed: [u64; 2]) -> [[u64; 2]; 2] {
        super::two(head, low, seed)
    }
}
