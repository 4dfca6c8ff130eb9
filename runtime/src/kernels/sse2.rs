//! SSE2, which every x86-64 processor has: 8 products of 16 bits an instruction.

use core::{arch::x86_64::*, ops::Range};

use super::{
    madd::{self, Vector},
    panels, Epilogue, Kernel, Rows, Weights,
};
use crate::quant::Layout;

/// x86-64 has SSE2.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sse2;

impl Kernel for Sse2 {
    const NAME: &'static str = "sse2";
    const LAYOUT: Layout = panels::LAYOUT;

    #[inline(always)]
    fn store(self, x: &[f32], inverse: f32, out: &mut [u8]) {
        madd::store(x, inverse, out);
    }

    #[inline(always)]
    fn gemm(self, weights: Weights<'_>, rows: Rows<'_>, outputs: Range<usize>, epilogue: &mut Epilogue<'_>) {
        madd::gemm::<V>(weights, rows, outputs, epilogue);
    }

    #[inline(always)]
    fn mix(self, p: &[i16], pairs: usize, v: &[i16], width: usize, epilogue: &mut Epilogue<'_>) {
        madd::mix::<V>(p, pairs, v, width, epilogue);
    }
}

/// 128 bits.
#[derive(Clone, Copy)]
struct V(__m128i);

impl Vector for V {
    #[inline(always)]
    fn zero() -> Self {
        // SAFETY: registers only.
        Self(unsafe { _mm_setzero_si128() })
    }

    #[inline(always)]
    unsafe fn widen_16_bytes(from: *const i8) -> [Self; 2] {
        // SAFETY: the caller's. A byte in the upper half of 16 bits is shifted down with its sign.
        unsafe {
            let bytes = _mm_loadu_si128(from.cast());
            [_mm_unpacklo_epi8(bytes, bytes), _mm_unpackhi_epi8(bytes, bytes)].map(|w| Self(_mm_srai_epi16::<8>(w)))
        }
    }

    #[inline(always)]
    unsafe fn load_16_bytes(from: *const i16) -> Self {
        // SAFETY: the caller's.
        Self(unsafe { _mm_loadu_si128(from.cast()) })
    }

    #[inline(always)]
    unsafe fn splat_8_bytes(from: *const i16) -> Self {
        // SAFETY: the caller's.
        Self(unsafe { _mm_set1_epi64x(from.cast::<i64>().read_unaligned()) })
    }

    #[inline(always)]
    unsafe fn splat_4_bytes(from: *const i16) -> Self {
        // SAFETY: the caller's.
        Self(unsafe { _mm_set1_epi32(from.cast::<i32>().read_unaligned()) })
    }

    #[inline(always)]
    fn multiply_add(sum: Self, a: Self, b: Self) -> Self {
        // SAFETY: registers only.
        Self(unsafe { _mm_add_epi32(sum.0, _mm_madd_epi16(a.0, b.0)) })
    }

    #[inline(always)]
    fn lanes(self) -> [i32; 4] {
        // SAFETY: both are 16 bytes, and any bits are valid numbers.
        unsafe { core::mem::transmute(self.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    super::super::suite::suite!(Some(Sse2));
}
