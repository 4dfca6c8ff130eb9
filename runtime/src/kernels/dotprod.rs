//! AArch64 with the dot product extension: `sdot`, 16 products of bytes an instruction.

use core::{
    arch::{aarch64::*, asm},
    ops::Range,
};

use super::{
    bytes::as_i8,
    neon::{self, four, lanes, unpacked, zero},
    nibbles,
    panels::{self, by_rows, Tile, KT},
    Epilogue, Int4, Kernel, Rows, Weights, LANES,
};
use crate::quant::{int4::GROUP, Layout};

/// Rows of a tile: 16 vectors of sums, 4 of weights, 4 of inputs.
const MR: usize = 4;
/// Rows of a tile of int4 weights, for half a panel: 12 vectors of a group's sums, 12 of all, 4 of weights, one of inputs.
const MR_INT4: usize = 6;
/// Outputs of half a panel.
const NR: usize = 8;

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
    fn gemm_int4(self, weights: Int4<'_>, rows: Rows<'_>, outputs: Range<usize>, epilogue: &mut Epilogue<'_>) {
        // SAFETY: `self` proves that the CPU has the extension.
        unsafe { gemm_int4(weights, rows, outputs, epilogue) }
    }

    #[inline(always)]
    fn mix(self, p: &[i16], pairs: usize, v: &[i16], width: usize, epilogue: &mut Epilogue<'_>) {
        neon::mix(p, pairs, v, width, epilogue);
    }
}

#[target_feature(enable = "dotprod")]
fn gemm(weights: Weights<'_>, rows: Rows<'_>, outputs: Range<usize>, epilogue: &mut Epilogue<'_>) {
    let x = as_i8(rows.values);
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
            *x = vreinterpretq_s8_s32(vdupq_n_s32(unsafe { four(t.x.as_ptr().add(r * t.stride + k * KT)) }));
        }
        step::<0, R>(&mut tile, weights(k), &x);
    }
    for (sums, tile) in sums.iter_mut().zip(tile) {
        for (sums, tile) in sums.as_chunks_mut::<4>().0.iter_mut().zip(tile) {
            *sums = lanes(tile);
        }
    }
}

#[target_feature(enable = "dotprod")]
fn gemm_int4(weights: Int4<'_>, rows: Rows<'_>, outputs: Range<usize>, epilogue: &mut Epilogue<'_>) {
    nibbles::gemm::<MR_INT4>(weights, rows, outputs, epilogue, |t, rows, sums| {
        by_rows!(rows, 1 2 3 4 5 6, R => {
            tile_int4::<R>(t, 0, sums);
            tile_int4::<R>(t, 1, sums);
        });
    });
}

/// Half a panel of int4 weights times `R` rows.
#[target_feature(enable = "dotprod")]
#[inline(never)]
fn tile_int4<const R: usize>(t: nibbles::Tile<'_>, half: usize, sums: &mut [[i32; LANES]; MR_INT4]) {
    t.check(R, GROUP);
    assert!(half < 2);
    let mut all = [[zero(); 2]; R];
    for g in 0..t.groups {
        let mut group = [[zero(); 2]; R];
        for c in 0..GROUP / (2 * KT) {
            // SAFETY: checked.
            let [w, next] = unsafe { unpacked::<2>(&t, g, c, 2 * half) };
            for (r, group) in group.iter_mut().enumerate() {
                // SAFETY: row r < R has 32 bytes of group g < groups (checked).
                let x = unsafe { vld1_s8(t.x.as_ptr().add(r * t.stride + g * GROUP + 2 * c * KT).cast()) };
                let x = vcombine_s8(x, vdup_n_s8(0));
                for ((sum, w), next) in group.iter_mut().zip(w).zip(next) {
                    *sum = sdot::<1>(sdot::<0>(*sum, w, x), next, x);
                }
            }
        }
        // SAFETY: group g < groups has 16 multipliers (checked), 8 for this half.
        let multipliers = vmovl_u8(unsafe { vld1_u8(t.multipliers.as_ptr().add(g * LANES + half * NR)) });
        let multipliers = [vmovl_u16(vget_low_u16(multipliers)), vmovl_high_u16(multipliers)];
        for (all, group) in all.iter_mut().zip(group) {
            for ((all, group), multiplier) in all.iter_mut().zip(group).zip(multipliers) {
                *all = vmlaq_s32(*all, group, vreinterpretq_s32_u32(multiplier));
            }
        }
    }
    for (sums, all) in sums.iter_mut().zip(all) {
        sums[half * NR..][..NR].copy_from_slice(all.map(lanes).as_flattened());
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
