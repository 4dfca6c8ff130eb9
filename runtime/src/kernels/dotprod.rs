//! AArch64 with the dot product extension: `sdot`, 16 products of bytes an instruction.

use core::{
    arch::{aarch64::*, asm},
    ops::Range,
};

use super::{
    bytes::as_i8,
    neon::{self, lanes, zero},
    panels::{self, by_rows, Tile, KT},
    Epilogue, Kernel, Rows, Weights, LANES,
};
use crate::quant::Layout;

/// Rows of a tile: 16 vectors of sums, 4 of weights, 4 of inputs.
const MR: usize = 4;

/// Proof that this CPU has the extension.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DotProd(());

impl DotProd {
    pub fn detect() -> Option<Self> {
        #[cfg(feature = "std")]
        let found = std::arch::is_aarch64_feature_detected!("dotprod");
        #[cfg(not(feature = "std"))]
        let found = cfg!(target_feature = "dotprod");
        found.then_some(Self(()))
    }
}

impl Kernel for DotProd {
    const NAME: &'static str = "dotprod";
    const LAYOUT: Layout = panels::LAYOUT;

    #[inline(always)]
    fn gemm(self, weights: Weights<'_>, rows: Rows<'_>, outputs: Range<usize>, epilogue: &mut Epilogue<'_>) {
        // SAFETY: `self` proves that the CPU has the extension.
        unsafe { gemm(weights, rows, outputs, epilogue) }
    }

    #[inline(always)]
    fn mix(self, p: &[i16], pairs: usize, v: &[i16], width: usize, epilogue: &mut Epilogue<'_>) {
        neon::mix(p, pairs, v, width, epilogue);
    }
}

#[target_feature(enable = "dotprod")]
fn gemm(weights: Weights<'_>, rows: Rows<'_>, outputs: Range<usize>, epilogue: &mut Epilogue<'_>) {
    // Bytes have no alignment to miss.
    let x = as_i8(rows.values).unwrap_or(&[]);
    panels::gemm::<_, MR>(weights, (x, rows.stride, rows.count), outputs, epilogue, |t, rows, sums| {
        by_rows!(rows, 1 2 3 4, R => tile::<R>(t, sums));
    });
}

/// A panel times `R` rows.
#[target_feature(enable = "dotprod")]
#[inline(never)]
fn tile<const R: usize>(t: Tile<'_, i8>, sums: &mut [[i32; LANES]; MR]) {
    t.check(R);
    let weights =
        // SAFETY: step k < steps of the panel has 4 vectors of 16 bytes (checked).
        |k: usize| [0, 1, 2, 3].map(|v| unsafe { vld1q_s8(t.weights.as_ptr().add(k * LANES * KT + v * 16)) });
    let mut tile = [[zero(); 4]; R];
    let whole = t.steps / 4 * 4;
    for k in (0..whole).step_by(4) {
        let mut x = [vdupq_n_s8(0); R];
        for (r, x) in x.iter_mut().enumerate() {
            // SAFETY: row r < R has 16 bytes of steps k..k + 4 <= steps (checked).
            *x = unsafe { vld1q_s8(t.x.as_ptr().add(r * t.stride + k * KT)) };
        }
        step::<0, R>(&mut tile, weights(k), &x);
        step::<1, R>(&mut tile, weights(k + 1), &x);
        step::<2, R>(&mut tile, weights(k + 2), &x);
        step::<3, R>(&mut tile, weights(k + 3), &x);
    }
    for k in whole..t.steps {
        let mut x = [vdupq_n_s8(0); R];
        for (r, x) in x.iter_mut().enumerate() {
            // SAFETY: row r < R has 4 bytes of step k < steps (checked).
            *x = unsafe { vreinterpretq_s8_s32(vld1q_dup_s32(t.x.as_ptr().add(r * t.stride + k * KT).cast())) };
        }
        step::<0, R>(&mut tile, weights(k), &x);
    }
    for (sums, tile) in sums.iter_mut().zip(tile) {
        for (sums, tile) in sums.as_chunks_mut::<4>().0.iter_mut().zip(tile) {
            *sums = lanes(tile);
        }
    }
}

/// Four inputs of every row, those of lane `LANE`, times 16 outputs.
#[target_feature(enable = "dotprod")]
#[inline]
fn step<const LANE: usize, const R: usize>(
    tile: &mut [[int32x4_t; 4]; R],
    weights: [int8x16_t; 4],
    x: &[int8x16_t; R],
) {
    for (tile, x) in tile.iter_mut().zip(x) {
        for (sum, w) in tile.iter_mut().zip(weights) {
            *sum = sdot::<LANE>(*sum, w, *x);
        }
    }
}

/// Each of four sums plus four products: bytes `4 i..` of `w` times those of `x`'s lane. The intrinsic is unstable.
#[target_feature(enable = "dotprod")]
#[inline]
fn sdot<const LANE: usize>(mut sum: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: registers only; the extension is there.
    unsafe {
        asm!(
            "sdot {s:v}.4s, {w:v}.16b, {x:v}.4b[{lane}]",
            s = inout(vreg) sum, w = in(vreg) w, x = in(vreg) x, lane = const LANE,
            options(pure, nomem, nostack, preserves_flags),
        )
    };
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    super::super::suite::suite!(DotProd::detect());
}
