//! AArch64 NEON, which every such CPU has: 16 products of bytes in two instructions, exact in 16 bits.
//!
//! Two products fit 16 bits: activations are -127 to 127, weights at worst -128, and 2 · 127 · 128 = 32512. Of int4
//! weights, at worst -8, the 32 products of a group do: again 32512.

use core::{arch::aarch64::*, ops::Range};

use super::{
    bytes::as_i8,
    nibbles,
    panels::{self, by_rows, Mixture, Tile, KT},
    Epilogue, Int4, Kernel, Rows, Weights, LANES,
};
use crate::quant::{
    int4::{GROUP, PANEL_BYTES},
    Layout,
};

/// Rows of a tile.
const MR: usize = 4;
/// Outputs of half a panel: 2 vectors of weights, 4 of sums a row; with int4 weights 2 more of sums.
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
    fn gemm_int4(self, weights: Int4<'_>, rows: Rows<'_>, outputs: Range<usize>, epilogue: &mut Epilogue<'_>) {
        // SAFETY: AArch64 has NEON.
        unsafe { gemm_int4(weights, rows, outputs, epilogue) }
    }

    #[inline(always)]
    fn mix(self, p: &[i16], pairs: usize, v: &[i16], width: usize, epilogue: &mut Epilogue<'_>) {
        mix(p, pairs, v, width, epilogue);
    }
}

#[target_feature(enable = "neon")]
fn gemm(weights: Weights<'_>, rows: Rows<'_>, outputs: Range<usize>, epilogue: &mut Epilogue<'_>) {
    let x = as_i8(rows.values);
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

/// Four bytes as a number. The instructions that load and repeat a number take it from anywhere, their intrinsics only
/// from a multiple of four.
///
/// # Safety
/// Four bytes from `at` on.
#[inline(always)]
pub(super) unsafe fn four<T>(at: *const T) -> i32 {
    // SAFETY: the caller's.
    unsafe { at.cast::<i32>().read_unaligned() }
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
        vreinterpretq_s8_s32(vdupq_n_s32(unsafe { four(t.x.as_ptr().add(r * t.stride + k * KT)) }))
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

#[target_feature(enable = "neon")]
fn gemm_int4(weights: Int4<'_>, rows: Rows<'_>, outputs: Range<usize>, epilogue: &mut Epilogue<'_>) {
    nibbles::gemm::<MR>(weights, rows, outputs, epilogue, |t, rows, sums| {
        by_rows!(rows, 1 2 3 4, R => {
            tile_int4::<R>(t, 0, sums);
            tile_int4::<R>(t, 1, sums);
        });
    });
}

/// Half a panel of int4 weights times `R` rows.
#[target_feature(enable = "neon")]
#[inline(never)]
fn tile_int4<const R: usize>(t: nibbles::Tile<'_>, half: usize, sums: &mut [[i32; LANES]; MR]) {
    t.check(R, GROUP);
    assert!(half < 2);
    let mut all = [[zero(); 2]; R];
    for g in 0..t.groups {
        // Of two outputs each, four partial sums an output.
        let mut group = [[vdupq_n_s16(0); 4]; R];
        for c in 0..GROUP / (2 * KT) {
            // SAFETY: checked.
            let weights = unsafe { unpacked::<2>(&t, g, c, 2 * half) };
            for (k, w) in weights.into_iter().enumerate() {
                for (r, group) in group.iter_mut().enumerate() {
                    let at = r * t.stride + g * GROUP + (2 * c + k) * KT;
                    // SAFETY: row r < R has 32 bytes of group g < groups (checked).
                    let x = vreinterpretq_s8_s32(vdupq_n_s32(unsafe { four(t.x.as_ptr().add(at)) }));
                    for ([low, high], w) in group.as_chunks_mut::<2>().0.iter_mut().zip(w) {
                        *low = vmlal_s8(*low, vget_low_s8(w), vget_low_s8(x));
                        *high = vmlal_high_s8(*high, w, x);
                    }
                }
            }
        }
        // SAFETY: group g < groups has 16 multipliers (checked), 8 for this half.
        let multipliers = unsafe { vld1_u8(t.multipliers.as_ptr().add(g * LANES + half * NR)) };
        let multipliers = vreinterpretq_s16_u16(vmovl_u8(multipliers));
        for ([low, high], [a, b, c, d]) in all.iter_mut().zip(group) {
            let group = vpaddq_s16(vpaddq_s16(a, b), vpaddq_s16(c, d));
            *low = vmlal_s16(*low, vget_low_s16(group), vget_low_s16(multipliers));
            *high = vmlal_high_s16(*high, group, multipliers);
        }
    }
    for (sums, all) in sums.iter_mut().zip(all) {
        sums[half * NR..][..NR].copy_from_slice(all.map(lanes).as_flattened());
    }
}

/// int4 weights of `N` times 4 outputs of a panel, the first being output `4 * first`, for 8 inputs of a group, the
/// first being input `8 * c`: those of 4 inputs, then those of the next 4.
///
/// # Safety
/// `t` has passed its check, `group < t.groups`, `c < 4`, `first + N <= 4`.
#[target_feature(enable = "neon")]
#[inline]
pub(super) unsafe fn unpacked<const N: usize>(
    t: &nibbles::Tile<'_>,
    group: usize,
    c: usize,
    first: usize,
) -> [[int8x16_t; N]; 2] {
    let start = group * PANEL_BYTES + (c * LANES + first * 4) * KT;
    let mut both = [[vdupq_n_s8(0); N]; 2];
    for v in 0..N {
        // SAFETY: the caller's; a group has 4 times 4 vectors of 16 bytes.
        let w = unsafe { vld1q_s8(t.weights.as_ptr().add(start + v * 16).cast()) };
        both[0][v] = vshrq_n_s8::<4>(vshlq_n_s8::<4>(w));
        both[1][v] = vshrq_n_s8::<4>(w);
    }
    both
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
            let p = unsafe { four(m.p.as_ptr().add(r * m.stride + 2 * t)) };
            let p = vreinterpret_s16_s32(vdup_n_s32(p));
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
