//! int4 weights on AVX-512 with VNNI.

use core::{arch::x86_64::*, ops::Range};

use super::{
    avx512::{BYTES, KT},
    nibbles,
    panels::by_rows,
    Epilogue, Int4, Rows, LANES,
};
use crate::quant::int4::{GROUP, PANEL_BYTES};

/// Rows of a tile of int4 weights: 12 vectors of a group's sums and 12 of all, so that unpacking costs little.
const MR: usize = 12;

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn gemm(weights: Int4<'_>, rows: Rows<'_>, outputs: Range<usize>, epilogue: &mut Epilogue<'_>) {
    nibbles::gemm::<MR>(weights, rows, outputs, epilogue, |t, rows, sums| {
        by_rows!(rows, 1 2 3 4 5 6 7 8 9 10 11 12, R => tile::<R>(t, sums));
    });
}

/// A panel of int4 weights times `R` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline(never)]
fn tile<const R: usize>(t: nibbles::Tile<'_>, sums: &mut [[i32; LANES]; MR]) {
    t.check(R, nibbles::WITH_START);
    let mut all = [_mm512_setzero_si512(); R];
    let (flip, low) = (_mm512_set1_epi8(8), _mm512_set1_epi8(15));
    // SAFETY: the caller's: four bytes from `at` on.
    let four = |at: usize| unsafe { _mm512_set1_epi32(t.x.as_ptr().add(at).cast::<i32>().read_unaligned()) };
    for g in 0..t.groups {
        let mut group = [_mm512_setzero_si512(); R];
        for (r, group) in group.iter_mut().enumerate() {
            *group = four(t.starts(r) + g * size_of::<i32>()); // row r < R, group g < groups (checked)
        }
        for c in 0..GROUP / (2 * KT) {
            // SAFETY: group g < groups has 256 bytes (checked), c < 4.
            let w = unsafe { _mm512_loadu_si512(t.weights.as_ptr().add(g * PANEL_BYTES + c * BYTES).cast()) };
            let halves = [w, _mm512_srli_epi16::<4>(w)].map(|w| _mm512_and_si512(_mm512_xor_si512(w, flip), low));
            for (half, w) in halves.into_iter().enumerate() {
                for (r, group) in group.iter_mut().enumerate() {
                    let x = four(r * t.stride + g * GROUP + (2 * c + half) * KT); // row r < R has 32 bytes a group
                    *group = _mm512_dpbusd_epi32(*group, w, x);
                }
            }
        }
        // SAFETY: group g < groups has 16 multipliers (checked).
        let multipliers = unsafe { _mm_loadu_si128(t.multipliers.as_ptr().add(g * LANES).cast()) };
        let multipliers = _mm512_cvtepu8_epi32(multipliers); // pairs of it and 0
        for (all, group) in all.iter_mut().zip(group) {
            *all = _mm512_dpwssd_epi32(*all, group, multipliers);
        }
    }
    for (sums, all) in sums.iter_mut().zip(all) {
        // SAFETY: 16 numbers.
        unsafe { _mm512_storeu_si512(sums.as_mut_ptr().cast(), all) };
    }
}
