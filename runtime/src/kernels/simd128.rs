//! WebAssembly with simd128: 8 products of 16 bits an instruction.
//!
//! Relaxed SIMD's dot product of bytes is left alone: what it gives is the engine's choice unless one side is 0 to
//! 127. Our activations are -127 to 127, so that it would have to run twice, for what is positive and what is
//! negative, and on processors without a dot product that costs more instructions than this (6 against 4 on x86-64).

use core::{arch::wasm32::*, ops::Range};

use super::{
    madd::{self, Vector},
    panels, Epilogue, Kernel, Rows, Weights,
};
use crate::quant::Layout;

/// The program is compiled for simd128; an engine without it refuses the whole module.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Simd128;

impl Kernel for Simd128 {
    const NAME: &'static str = "simd128";
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
struct V(v128);

impl Vector for V {
    #[inline(always)]
    fn zero() -> Self {
        Self(i32x4_splat(0))
    }

    #[inline(always)]
    unsafe fn widen_16_bytes(from: *const i8) -> [Self; 2] {
        // SAFETY: the caller's.
        let bytes = unsafe { v128_load(from.cast()) };
        [Self(i16x8_extend_low_i8x16(bytes)), Self(i16x8_extend_high_i8x16(bytes))]
    }

    #[inline(always)]
    unsafe fn load_16_bytes(from: *const i16) -> Self {
        // SAFETY: the caller's.
        Self(unsafe { v128_load(from.cast()) })
    }

    #[inline(always)]
    unsafe fn splat_8_bytes(from: *const i16) -> Self {
        // SAFETY: the caller's.
        Self(unsafe { v128_load64_splat(from.cast()) })
    }

    #[inline(always)]
    unsafe fn splat_4_bytes(from: *const i16) -> Self {
        // SAFETY: the caller's.
        Self(unsafe { v128_load32_splat(from.cast()) })
    }

    #[inline(always)]
    fn multiply_add(sum: Self, a: Self, b: Self) -> Self {
        Self(i32x4_add(sum.0, i32x4_dot_i16x8(a.0, b.0)))
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

    super::super::suite::suite!(Some(Simd128));
}
