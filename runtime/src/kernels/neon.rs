//! AArch64 NEON, which every such CPU has: 16 products of bytes in two instructions, exact in 16 bits.
//!
//! Two products fit 16 bits: activations are -127 to 127, weights at worst -128, and 2 · 127 · 128 = 32512.

use core::{arch::aarch64::*, ops::Range};

use super::{
    bytes::as_i8,
    panels::{self, by_rows, Mixture, Tile, KT},
    Epilogue, Kernel, Rows, Weights, LANES,
};
use crate::quant::Layout;

/// Rows of a tile.
const MR: usize = 4;
/// Outputs of half a panel: 2 vectors of weights, 4 of sums a row.
const NR: usize = 8;

/// AArch64 has NEON.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Neon;

impl Kernel for Neon {
    const NAME: &'static str = "neon";
    const LAYOUT: Layout = panels::LAYOUT;

    #[inline(always)]
    fn gemm(self, weights: Weights<'_>, rows: Rows<'_>, outputs: Range<usize>, epilogue: &mut Epilogue<'_>) {
        // SAFETY: AArch64 has NEON.
        unsafe { gemm(weights, rows, outputs, epilogue) }
    }

    #[inline(always)]
    fn mix(self, p: &[i16], pairs: usize, v: &[i16], width: usize, epilogue: &mut Epilogue<'_>) {
        mix(p, pairs, v, width, epilogue);
    }
}

#[target_feature(enable = "neon")]
fn gemm(weights: Weights<'_>, rows: Rows<'_>, outputs: Range<usize>, epilogue: &mut Epilogue<'_>) {
    // Bytes have no alignment to miss.
    let x = as_i8(rows.values).unwrap_or(&[]);
    panels::gemm::<_, MR>(weights, (x, rows.stride, rows.count), outputs, epilogue, |t, rows, sums| {
        by_rows!(rows, 1 2 3 4, R => tile::<R>(t, sums));
    });
}

/// A panel times `R` rows.
#[target_feature(enable = "neon")]
#[inline(never)]
fn tile<const R: usize>(t: Tile<'_, i8>, sums: &mut [[i32; LANES]; MR]) {
    t.check(R);
    for half in 0..2 {
        // SAFETY: half a panel and R rows are there (checked).
        let tile = unsafe { half_tile::<R>(t, half) };
        for (sums, tile) in sums.iter_mut().zip(tile) {
            for (sums, [a, b]) in sums[half * NR..].as_chunks_mut::<4>().0.iter_mut().zip(tile) {
                *sums = lanes(vpaddq_s32(a, b));
            }
        }
    }
}

/// For each row and each of two vectors of 4 outputs: two partial sums an output.
///
/// # Safety
/// `t` has passed its check for `R` rows, and `half < 2`.
#[target_feature(enable = "neon")]
#[inline]
unsafe fn half_tile<const R: usize>(t: Tile<'_, i8>, half: usize) -> [[[int32x4_t; 2]; 2]; R] {
    let mut sums = [[[zero(); 2]; 2]; R];
    let weights =
        // SAFETY: step k < steps of the panel has 64 bytes; v < 2 vectors of 16 in its half.
        |k: usize, v: usize| unsafe { vld1q_s8(t.weights.as_ptr().add(k * LANES * KT + half * NR * KT + v * 16)) };
    let x = |r: usize, k: usize| {
        // SAFETY: row r < R has 4 bytes of step k < steps.
        vreinterpretq_s8_s32(unsafe { vld1q_dup_s32(t.x.as_ptr().add(r * t.stride + k * KT).cast()) })
    };
    for k in (0..t.steps / 2 * 2).step_by(2) {
        let w = [[weights(k, 0), weights(k, 1)], [weights(k + 1, 0), weights(k + 1, 1)]];
        for (r, sums) in sums.iter_mut().enumerate() {
            let (x0, x1) = (x(r, k), x(r, k + 1));
            for (v, [low, high]) in sums.iter_mut().enumerate() {
                let two = vmull_s8(vget_low_s8(w[0][v]), vget_low_s8(x0));
                *low = vpadalq_s16(*low, vmlal_s8(two, vget_low_s8(w[1][v]), vget_low_s8(x1)));
                let two = vmull_high_s8(w[0][v], x0);
                *high = vpadalq_s16(*high, vmlal_high_s8(two, w[1][v], x1));
            }
        }
    }
    if !t.steps.is_multiple_of(2) {
        let k = t.steps - 1;
        for (r, sums) in sums.iter_mut().enumerate() {
            for (v, [low, high]) in sums.iter_mut().enumerate() {
                let (w, x) = (weights(k, v), x(r, k));
                *low = vpadalq_s16(*low, vmull_s8(vget_low_s8(w), vget_low_s8(x)));
                *high = vpadalq_s16(*high, vmull_high_s8(w, x));
            }
        }
    }
    sums
}

/// [`Kernel::mix`] of all AArch64 kernels.
#[inline(always)]
pub(super) fn mix(p: &[i16], pairs: usize, v: &[i16], width: usize, epilogue: &mut Epilogue<'_>) {
    panels::mix::<MR>(p, pairs, v, width, epilogue, |m, rows, sums| {
        // SAFETY: AArch64 has NEON.
        by_rows!(rows, 1 2 3 4, R => unsafe { mix_tile::<R>(m, sums) });
    });
}

/// 16 outputs of `R` rows, added to `sums`.
#[target_feature(enable = "neon")]
#[inline(never)]
fn mix_tile<const R: usize>(m: Mixture<'_>, sums: &mut [[i32; LANES]; MR]) {
    m.check(R);
    let mut tile = [[zero(); 4]; R];
    for t in 0..m.pairs {
        // SAFETY: pair t < pairs has 16 times two values (checked); `vld2q` takes the first ones and the second ones
        // of 8 outputs apart.
        let v = [0, 16].map(|at| unsafe { vld2q_s16(m.v.as_ptr().add(t * m.v_stride + at)) });
        for (r, tile) in tile.iter_mut().enumerate() {
            // SAFETY: row r < R has two weights for pair t < pairs (checked).
            let p = unsafe { vld1_dup_s32(m.p.as_ptr().add(r * m.stride + 2 * t).cast()) };
            let p = vreinterpret_s16_s32(p);
            for ([low, high], int16x8x2_t(first, second)) in tile.as_chunks_mut::<2>().0.iter_mut().zip(v) {
                *low = vmlal_lane_s16::<0>(*low, vget_low_s16(first), p);
                *low = vmlal_lane_s16::<1>(*low, vget_low_s16(second), p);
                *high = vmlal_high_lane_s16::<0>(*high, first, p);
                *high = vmlal_high_lane_s16::<1>(*high, second, p);
            }
        }
    }
    for (sums, tile) in sums.iter_mut().zip(tile) {
        for (sums, tile) in sums.as_chunks_mut::<4>().0.iter_mut().zip(tile) {
            // SAFETY: four numbers are read and written.
            unsafe { vst1q_s32(sums.as_mut_ptr(), vaddq_s32(vld1q_s32(sums.as_ptr()), tile)) };
        }
    }
}

/// Sums of nothing.
#[target_feature(enable = "neon")]
#[inline]
pub(super) fn zero() -> int32x4_t {
    vdupq_n_s32(0)
}

/// A vector as an array.
#[inline(always)]
pub(super) fn lanes(x: int32x4_t) -> [i32; 4] {
    // SAFETY: both are 16 bytes, and any bits are valid numbers.
    unsafe { core::mem::transmute(x) }
}

#[cfg(test)]
mod tests {
    use super::*;

    super::super::suite::suite!(Some(Neon));
}
