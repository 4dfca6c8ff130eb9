//! AArch64 with the int8 matrix extension: `smmla`, 32 products an instruction, two rows times two outputs.

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

/// Rows of a tile, taken in pairs.
const MR: usize = 8;
/// Outputs of half a panel: with 8 rows 16 vectors of sums, 4 of weights, one of inputs at a time.
const NR: usize = 8;
/// Rows of a tile of int4 weights, for a quarter of a panel: 12 vectors of a group's sums, 12 of all, 2 of weights, 2 of
/// inputs.
const MR_INT4: usize = 12;
/// Outputs of a quarter of a panel.
const QUARTER: usize = 4;

/// Proof that this CPU has the extension.
#[derive(Clone, Copy, Debug)]
pub(crate) struct I8mm(());

impl I8mm {
    pub fn detect() -> Option<Self> {
        #[cfg(feature = "std")]
        let found = std::arch::is_aarch64_feature_detected!("i8mm");
        #[cfg(not(feature = "std"))]
        let found = cfg!(target_feature = "i8mm");
        found.then_some(Self(()))
    }
}

impl Kernel for I8mm {
    const NAME: &'static str = "i8mm";
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

#[target_feature(enable = "neon,i8mm")]
fn gemm(weights: Weights<'_>, rows: Rows<'_>, outputs: Range<usize>, epilogue: &mut Epilogue<'_>) {
    let x = as_i8(rows.values);
    panels::gemm::<_, MR>(weights, (x, rows.stride, rows.count), outputs, epilogue, |t, rows, sums| {
        by_rows!(rows.div_ceil(2), 1 2 3 4, P => tile::<P>(t, rows, sums));
    });
}

/// A panel times `rows` rows, which are `P` pairs; of an odd number the last row counts twice.
#[target_feature(enable = "neon,i8mm")]
#[inline(never)]
fn tile<const P: usize>(t: Tile<'_, i8>, rows: usize, sums: &mut [[i32; LANES]; MR]) {
    t.check(rows);
    assert!(rows.div_ceil(2) == P);
    for half in 0..2 {
        // SAFETY: half a panel and `rows` rows are there (checked).
        let tile = unsafe { half_tile::<P>(t, rows, half) };
        for (pair, tile) in sums.as_chunks_mut::<2>().0.iter_mut().zip(tile) {
            for (v, tile) in tile.into_iter().enumerate() {
                let [a, b, c, d] = lanes(tile);
                let at = half * NR + 2 * v;
                pair[0][at..at + 2].copy_from_slice(&[a, b]);
                pair[1][at..at + 2].copy_from_slice(&[c, d]);
            }
        }
    }
}

/// For each pair of rows and each of four pairs of outputs: the four sums.
///
/// # Safety
/// `t` has passed its check for `rows` rows, which are `P` pairs, and `half < 2`.
#[target_feature(enable = "neon,i8mm")]
#[inline]
unsafe fn half_tile<const P: usize>(t: Tile<'_, i8>, rows: usize, half: usize) -> [[int32x4_t; 4]; P] {
    let mut tile = [[zero(); 4]; P];
    let weights =
        // SAFETY: step k < steps of the panel has 64 bytes; v < 2 vectors of 16 in its half.
        |k: usize, v: usize| unsafe { vld1q_s8(t.weights.as_ptr().add(k * LANES * KT + half * NR * KT + v * 16)) };
    let row = |r: usize| t.x[r.min(rows - 1) * t.stride..].as_ptr();
    let mut x: [[*const i8; 2]; P] = [[core::ptr::null(); 2]; P];
    for (p, x) in x.iter_mut().enumerate() {
        *x = [row(2 * p), row(2 * p + 1)];
    }
    for k in (0..t.steps / 2 * 2).step_by(2) {
        let w = outputs_by_eight([weights(k, 0), weights(k, 1)], [weights(k + 1, 0), weights(k + 1, 1)]);
        for (tile, [a, b]) in tile.iter_mut().zip(x) {
            // SAFETY: either row has 8 bytes of steps k and k + 1 < steps.
            let x = unsafe { vcombine_s8(vld1_s8(a.add(k * KT)), vld1_s8(b.add(k * KT))) };
            for (sum, w) in tile.iter_mut().zip(w) {
                *sum = smmla(*sum, x, w);
            }
        }
    }
    if !t.steps.is_multiple_of(2) {
        let k = t.steps - 1;
        let none = vdupq_n_s8(0);
        let w = outputs_by_eight([weights(k, 0), weights(k, 1)], [none; 2]);
        for (tile, rows) in tile.iter_mut().zip(x) {
            // Four inputs, and whatever: its weights are zero.
            // SAFETY: either row has 4 bytes of step k < steps.
            let [a, b] = rows.map(|row| vreinterpret_s8_s32(vdup_n_s32(unsafe { four(row.add(k * KT)) })));
            for (sum, w) in tile.iter_mut().zip(w) {
                *sum = smmla(*sum, vcombine_s8(a, b), w);
            }
        }
    }
    tile
}

/// Weights of 8 outputs for 4 inputs and for the next 4, as four pairs of outputs with 8 inputs each.
#[target_feature(enable = "neon,i8mm")]
#[inline]
fn outputs_by_eight(first: [int8x16_t; 2], second: [int8x16_t; 2]) -> [int8x16_t; 4] {
    let [a0, a1] = first.map(|w| vreinterpretq_s32_s8(w));
    let [b0, b1] = second.map(|w| vreinterpretq_s32_s8(w));
    [vzip1q_s32(a0, b0), vzip2q_s32(a0, b0), vzip1q_s32(a1, b1), vzip2q_s32(a1, b1)].map(|w| vreinterpretq_s8_s32(w))
}

#[target_feature(enable = "neon,i8mm")]
fn gemm_int4(weights: Int4<'_>, rows: Rows<'_>, outputs: Range<usize>, epilogue: &mut Epilogue<'_>) {
    nibbles::gemm::<MR_INT4>(weights, rows, outputs, epilogue, |t, rows, sums| {
        by_rows!(rows.div_ceil(2), 1 2 3 4 5 6, P => (0..4).for_each(|q| tile_int4::<P>(t, rows, q, sums)));
    });
}

/// A quarter of a panel of int4 weights times `rows` rows, which are `P` pairs; of an odd number the last counts twice.
#[target_feature(enable = "neon,i8mm")]
#[inline(never)]
fn tile_int4<const P: usize>(t: nibbles::Tile<'_>, rows: usize, quarter: usize, sums: &mut [[i32; LANES]; MR_INT4]) {
    t.check(rows, GROUP);
    assert!(rows.div_ceil(2) == P && quarter < 4);
    let row = |r: usize| t.x[r.min(rows - 1) * t.stride..].as_ptr();
    let x: [[*const u8; 2]; P] = core::array::from_fn(|p| [row(2 * p), row(2 * p + 1)]);
    // Of a pair of rows: the sums of two outputs, and of two more.
    let mut all = [[zero(); 2]; P];
    for g in 0..t.groups {
        let mut group = [[zero(); 2]; P];
        for c in 0..GROUP / (2 * KT) {
            // SAFETY: checked.
            let [[first], [next]] = unsafe { unpacked::<1>(&t, g, c, quarter) };
            let (first, next) = (vreinterpretq_s32_s8(first), vreinterpretq_s32_s8(next));
            let w = [vzip1q_s32(first, next), vzip2q_s32(first, next)].map(|w| vreinterpretq_s8_s32(w));
            for (group, rows) in group.iter_mut().zip(x) {
                // SAFETY: either row has 32 bytes of group g < groups (checked).
                let [a, b] = rows.map(|row| unsafe { vld1_s8(row.add(g * GROUP + 2 * c * KT).cast()) });
                for (sum, w) in group.iter_mut().zip(w) {
                    *sum = smmla(*sum, vcombine_s8(a, b), w);
                }
            }
        }
        // SAFETY: group g < groups has 16 multipliers (checked), 4 for this quarter.
        let four = unsafe { t.multipliers.as_ptr().add(g * LANES + quarter * QUARTER).cast::<u32>().read_unaligned() };
        let four = vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(four.into()))));
        let four = vreinterpretq_s64_u32(four);
        let multipliers = [vdupq_laneq_s64::<0>(four), vdupq_laneq_s64::<1>(four)].map(|m| vreinterpretq_s32_s64(m));
        for (all, group) in all.iter_mut().zip(group) {
            for ((all, group), multipliers) in all.iter_mut().zip(group).zip(multipliers) {
                *all = vmlaq_s32(*all, group, multipliers);
            }
        }
    }
    for (pair, all) in sums.as_chunks_mut::<2>().0.iter_mut().zip(all) {
        let [[a, b, e, f], [c, d, g, h]] = all.map(lanes);
        pair[0][quarter * QUARTER..][..QUARTER].copy_from_slice(&[a, b, c, d]);
        pair[1][quarter * QUARTER..][..QUARTER].copy_from_slice(&[e, f, g, h]);
    }
}

/// `[2, 2]` sums plus `x` `[2, 8]` times the transpose of `w` `[2, 8]`. The intrinsic is unstable.
#[target_feature(enable = "neon,i8mm")]
#[inline]
fn smmla(mut sum: int32x4_t, x: int8x16_t, w: int8x16_t) -> int32x4_t {
    // SAFETY: registers only; the extension is there.
    unsafe {
        asm!(
            "smmla {s:v}.4s, {x:v}.16b, {w:v}.16b",
            s = inout(vreg) sum, x = in(vreg) x, w = in(vreg) w,
            options(pure, nomem, nostack, preserves_flags),
        )
    };
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    super::super::suite::suite!(I8mm::detect());
}
