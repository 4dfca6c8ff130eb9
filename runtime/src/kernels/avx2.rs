//! AVX2: bytes widened to 16 bits, 16 products an instruction, exact whatever the numbers.

use core::{arch::x86_64::*, ops::Range};

use super::{
    bytes::as_i16_mut,
    nibbles,
    panels::{self, by_rows, Mixture, Tile, KT},
    x86_64::Features,
    Epilogue, Int4, Kernel, Rows, Step, Weights, LANES,
};
use crate::{
    math::round_to_i32,
    quant::{
        int4::{GROUP, PANEL_BYTES},
        Layout,
    },
};

/// Rows of a tile: 12 vectors of sums, 2 of weights, one of inputs and one of products; there are 16 registers.
const MR: usize = 6;
/// Outputs of half a panel.
const NR: usize = 8;

/// Proof that this CPU has AVX2.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2(());

impl Avx2 {
    pub fn detect() -> Option<Self> {
        Features::detect().avx2.then_some(Self(()))
    }
}

impl Kernel for Avx2 {
    const NAME: &'static str = "avx2";
    const LAYOUT: Layout = panels::LAYOUT;
    const SIDE_BY_SIDE: bool = true;

    #[inline(always)]
    fn run<S: Step<A>, A>(self, arguments: A) -> S::Output {
        #[target_feature(enable = "avx2")]
        fn compiled<S: Step<A>, A>(k: Avx2, arguments: A) -> S::Output {
            S::run(k, arguments)
        }
        // SAFETY: `self` proves that the CPU has AVX2.
        unsafe { compiled::<S, A>(self, arguments) }
    }

    /// 16 bits an activation, so that the inner loop need not widen them.
    #[inline(always)]
    fn store(self, x: &[f32], inverse: f32, out: &mut [u8]) {
        let (head, padding) = as_i16_mut(out).split_at_mut(x.len());
        for (q, x) in head.iter_mut().zip(x) {
            *q = round_to_i32(*x * inverse) as i16;
        }
        padding.fill(0);
    }

    #[inline(always)]
    fn gemm(self, weights: Weights<'_>, rows: Rows<'_>, outputs: Range<usize>, epilogue: &mut Epilogue<'_>) {
        // SAFETY: `self` proves that the CPU has AVX2.
        unsafe { gemm(weights, rows, outputs, epilogue) }
    }

    #[inline(always)]
    fn store_int4(self, x: &[f32], inverse: f32, out: &mut [u8]) {
        nibbles::store(x, inverse, out);
    }

    #[inline(always)]
    fn gemm_int4(self, weights: Int4<'_>, rows: Rows<'_>, outputs: Range<usize>, epilogue: &mut Epilogue<'_>) {
        // SAFETY: `self` proves that the CPU has AVX2.
        unsafe { gemm_int4(weights, rows, outputs, epilogue) }
    }

    #[inline(always)]
    fn mix(self, p: &[i16], pairs: usize, v: &[i16], width: usize, epilogue: &mut Epilogue<'_>) {
        // SAFETY: `self` proves that the CPU has AVX2.
        unsafe { mix(p, pairs, v, width, epilogue) }
    }
}

#[target_feature(enable = "avx2")]
fn gemm(weights: Weights<'_>, rows: Rows<'_>, outputs: Range<usize>, epilogue: &mut Epilogue<'_>) {
    let x = rows.of_16_bits();
    panels::gemm::<_, MR>(weights, (x, rows.stride / 2, rows.count), outputs, epilogue, |t, rows, sums| {
        by_rows!(rows, 1 2 3 4 5 6, R => tile::<R>(t, sums));
    });
}

/// A panel times `R` rows.
#[target_feature(enable = "avx2")]
#[inline(never)] // on its own the compiler keeps all sums in registers
fn tile<const R: usize>(t: Tile<'_, i16>, sums: &mut [[i32; LANES]; MR]) {
    t.check(R);
    for half in 0..2 {
        // Two partial sums for each of 8 outputs.
        let mut tile = [[_mm256_setzero_si256(); 2]; R];
        for k in 0..t.steps {
            let w = [0, 1].map(|v| {
                // SAFETY: step k < steps of the panel has 64 bytes (checked), of which this quarter takes 16.
                let bytes = unsafe {
                    _mm_loadu_si128(t.weights.as_ptr().add((k * LANES + half * NR + v * NR / 2) * KT).cast())
                };
                _mm256_cvtepi8_epi16(bytes) // four outputs of four inputs
            });
            for (r, sums) in tile.iter_mut().enumerate() {
                // SAFETY: row r < R has four numbers of step k < steps (checked).
                let x = unsafe { t.x.as_ptr().add(r * t.stride + k * KT).cast::<i64>().read_unaligned() };
                let x = _mm256_set1_epi64x(x);
                for (sum, w) in sums.iter_mut().zip(w) {
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(x, w));
                }
            }
        }
        for (sums, [a, b]) in sums.iter_mut().zip(tile) {
            // Partial sums added: pairs within each half, a0 a1 b0 b1 | a2 a3 b2 b3.
            let joined = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_hadd_epi32(a, b));
            sums[half * NR..][..NR].copy_from_slice(&lanes(joined));
        }
    }
}

#[target_feature(enable = "avx2")]
fn gemm_int4(weights: Int4<'_>, rows: Rows<'_>, outputs: Range<usize>, epilogue: &mut Epilogue<'_>) {
    nibbles::gemm::<MR>(weights, rows, outputs, epilogue, |t, rows, sums| {
        by_rows!(rows, 1 2 3 4 5 6, R => {
            tile_int4::<R>(t, 0, sums);
            tile_int4::<R>(t, 1, sums);
        });
    });
}

/// Half a panel of int4 weights times `R` rows. Two products fit 16 bits, and so do a group's: each output has two
/// partial sums of 16 products.
#[target_feature(enable = "avx2")]
#[inline(never)]
fn tile_int4<const R: usize>(t: nibbles::Tile<'_>, half: usize, sums: &mut [[i32; LANES]; MR]) {
    t.check(R, nibbles::WITH_START);
    let mut all = [_mm256_setzero_si256(); R];
    let (flip, low) = (_mm256_set1_epi8(8), _mm256_set1_epi8(15));
    // SAFETY: the caller's: four bytes from `at` on.
    let four = |at: usize| unsafe { _mm256_set1_epi32(t.x.as_ptr().add(at).cast::<i32>().read_unaligned()) };
    for g in 0..t.groups {
        let mut group = [_mm256_setzero_si256(); R];
        for (r, group) in group.iter_mut().enumerate() {
            *group = four(t.starts(r) + g * size_of::<i32>()); // row r < R, group g < groups (checked)
        }
        for c in 0..GROUP / (2 * KT) {
            let at = g * PANEL_BYTES + (c * LANES + half % 2 * NR) * KT;
            // SAFETY: group g < groups has 4 times 64 bytes (checked), half of them for this half.
            let w = unsafe { _mm256_loadu_si256(t.weights.as_ptr().add(at).cast()) };
            let halves = [w, _mm256_srli_epi16::<4>(w)].map(|w| _mm256_and_si256(_mm256_xor_si256(w, flip), low));
            for (half, w) in halves.into_iter().enumerate() {
                for (r, group) in group.iter_mut().enumerate() {
                    let x = four(r * t.stride + g * GROUP + (2 * c + half) * KT); // row r < R has 32 bytes a group
                    *group = _mm256_add_epi16(*group, _mm256_maddubs_epi16(w, x));
                }
            }
        }
        // SAFETY: group g < groups has 16 multipliers (checked), 8 for this half.
        let multipliers = unsafe { _mm_loadl_epi64(t.multipliers.as_ptr().add(g * LANES + half % 2 * NR).cast()) };
        let multipliers = _mm256_cvtepu8_epi32(multipliers);
        let multipliers = _mm256_or_si256(multipliers, _mm256_slli_epi32::<16>(multipliers)); // for both partial sums
        for (all, group) in all.iter_mut().zip(group) {
            *all = _mm256_add_epi32(*all, _mm256_madd_epi16(group, multipliers));
        }
    }
    for (sums, all) in sums.iter_mut().zip(all) {
        sums[half * NR..][..NR].copy_from_slice(&lanes(all));
    }
}

#[target_feature(enable = "avx2")]
fn mix(p: &[i16], pairs: usize, v: &[i16], width: usize, epilogue: &mut Epilogue<'_>) {
    panels::mix::<MR>(p, pairs, v, width, epilogue, |m, rows, sums| {
        by_rows!(rows, 1 2 3 4 5 6, R => mix_tile::<R>(m, sums));
    });
}

/// 16 outputs of `R` rows, added to `sums`.
#[target_feature(enable = "avx2")]
#[inline(never)]
fn mix_tile<const R: usize>(m: Mixture<'_>, sums: &mut [[i32; LANES]; MR]) {
    m.check(R);
    let mut tile = [[_mm256_setzero_si256(); 2]; R];
    for t in 0..m.pairs {
        // SAFETY: pair t < pairs has 16 times two values (checked).
        let v = [0, LANES].map(|at| unsafe { _mm256_loadu_si256(m.v.as_ptr().add(t * m.v_stride + at).cast()) });
        for (r, sums) in tile.iter_mut().enumerate() {
            // SAFETY: row r < R has two weights for pair t < pairs (checked).
            let p = unsafe { m.p.as_ptr().add(r * m.stride + 2 * t).cast::<i32>().read_unaligned() };
            let p = _mm256_set1_epi32(p);
            for (sum, v) in sums.iter_mut().zip(v) {
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(p, v));
            }
        }
    }
    for (sums, tile) in sums.iter_mut().zip(tile) {
        for (sum, lane) in sums.iter_mut().zip(tile.map(lanes).as_flattened()) {
            *sum = sum.wrapping_add(*lane);
        }
    }
}

/// A vector as an array.
#[inline(always)]
fn lanes(x: __m256i) -> [i32; NR] {
    // SAFETY: both are 32 bytes, and any bits are valid numbers.
    unsafe { core::mem::transmute(x) }
}

#[cfg(test)]
mod tests {
    use super::*;

    super::super::suite::suite!(Avx2::detect());
}
