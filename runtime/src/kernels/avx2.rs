//! AVX2: bytes widened to 16 bits, 16 products an instruction, exact whatever the numbers.

use core::{arch::x86_64::*, ops::Range};

use super::{
    bytes::{as_i16, as_i16_mut},
    x86_64::Features,
    Epilogue, Kernel, Rows, Step, Weights, LANES,
};
use crate::{math::round_to_i32, quant::Layout};

/// Rows of a tile.
const MR: usize = 6;
/// Inputs that one instruction takes for an output.
const KT: usize = 4;
/// Outputs of a tile: two vectors, four outputs in each.
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
    const LAYOUT: Layout = Layout { nr: LANES as u8, kt: KT as u8 };

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
    fn mix(self, p: &[i16], pairs: usize, v: &[i16], width: usize, epilogue: &mut Epilogue<'_>) {
        // SAFETY: `self` proves that the CPU has AVX2.
        unsafe { mix(p, pairs, v, width, epilogue) }
    }
}

#[target_feature(enable = "avx2")]
fn gemm(weights: Weights<'_>, rows: Rows<'_>, outputs: Range<usize>, epilogue: &mut Epilogue<'_>) {
    let padded = weights.cols.next_multiple_of(KT);
    let panel = padded * LANES;
    // Scratch keeps rows of activations at even addresses.
    let Some(x) = as_i16(rows.values) else { return };
    let stride = rows.stride / 2;
    for (p, values) in weights.values.chunks_exact(panel).enumerate() {
        if (p + 1) * LANES <= outputs.start || p * LANES >= outputs.end {
            continue;
        }
        for row in (0..rows.count).step_by(MR) {
            let count = MR.min(rows.count - row);
            let x = &x[row * stride..];
            let mut sums = [[0i32; LANES]; MR];
            for half in 0..2 {
                macro_rules! tile {
                    ($($mr:literal),*) => {
                        match count {
                            $($mr => for (sums, tile) in
                                sums.iter_mut().zip(tile::<$mr>(values, half, x, stride, padded))
                            {
                                sums[half * NR..][..NR].copy_from_slice(&outputs_of(tile));
                            },)*
                            _ => {}
                        }
                    };
                }
                tile!(1, 2, 3, 4, 5, 6);
            }
            for (r, sums) in sums.iter().enumerate().take(count) {
                epilogue.put(row + r, p * LANES, &[*sums]);
            }
        }
    }
}

/// Half a panel `[padded / 4, 16, 4]` times `R` rows: two partial sums for each of 8 outputs.
#[target_feature(enable = "avx2")]
#[inline]
fn tile<const R: usize>(values: &[i8], half: usize, x: &[i16], stride: usize, padded: usize) -> [[__m256i; 2]; R] {
    assert!(values.len() >= padded * LANES && half < 2);
    assert!(x.len() >= (R - 1) * stride + padded && padded.is_multiple_of(KT));
    let mut sums = [[_mm256_setzero_si256(); 2]; R];
    for k in 0..padded / KT {
        let mut w = [_mm256_setzero_si256(); 2];
        for (v, w) in w.iter_mut().enumerate() {
            // SAFETY: 16 bytes of step k < padded / 4 of the panel, within `values` (asserted).
            let bytes =
                unsafe { _mm_loadu_si128(values.as_ptr().add(k * LANES * KT + half * NR * KT + v * 16).cast()) };
            *w = _mm256_cvtepi8_epi16(bytes); // four outputs of four inputs
        }
        for (r, sums) in sums.iter_mut().enumerate() {
            // SAFETY: r < R and k < padded / 4: four inputs of row r, within `x` (asserted).
            let x = unsafe { x.as_ptr().add(r * stride + k * KT).cast::<i64>().read_unaligned() };
            let x = _mm256_set1_epi64x(x);
            for (sum, w) in sums.iter_mut().zip(w) {
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(x, w));
            }
        }
    }
    sums
}

/// Adds the two partial sums of each output.
#[target_feature(enable = "avx2")]
#[inline]
fn outputs_of([a, b]: [__m256i; 2]) -> [i32; NR] {
    // Pairs within each half: a0 a1 b0 b1 | a2 a3 b2 b3.
    lanes(_mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_hadd_epi32(a, b)))
}

#[target_feature(enable = "avx2")]
fn mix(p: &[i16], pairs: usize, v: &[i16], width: usize, epilogue: &mut Epilogue<'_>) {
    let rows = if pairs == 0 { 0 } else { p.len() / (2 * pairs) };
    for start in (0..width).step_by(LANES) {
        for row in (0..rows).step_by(MR) {
            let count = MR.min(rows - row);
            let p = &p[row * 2 * pairs..];
            macro_rules! tile {
                ($($mr:literal),*) => {
                    match count {
                        $($mr => for (r, [a, b]) in mix_tile::<$mr>(p, pairs, v, width, start).into_iter().enumerate() {
                            let mut sums = [0; LANES];
                            sums[..NR].copy_from_slice(&lanes(a));
                            sums[NR..].copy_from_slice(&lanes(b));
                            epilogue.put(row + r, start, &[sums]);
                        },)*
                        _ => {}
                    }
                };
            }
            tile!(1, 2, 3, 4, 5, 6);
        }
    }
}

/// Outputs `start..start + 16` of `R` rows: `p` `[R, 2 pairs]` times `v` `[pairs, width, 2]`.
/// Outputs past `width` are zero.
#[target_feature(enable = "avx2")]
#[inline]
fn mix_tile<const R: usize>(p: &[i16], pairs: usize, v: &[i16], width: usize, start: usize) -> [[__m256i; 2]; R] {
    assert!(p.len() >= R * 2 * pairs && v.len() >= pairs * width * 2 && start < width);
    let there = (width - start).min(LANES);
    let mask = |first: usize| {
        let lane = |i: usize| if first + i < there { -1 } else { 0 };
        _mm256_setr_epi32(lane(0), lane(1), lane(2), lane(3), lane(4), lane(5), lane(6), lane(7))
    };
    let masks = [mask(0), mask(NR)];
    let mut sums = [[_mm256_setzero_si256(); 2]; R];
    for t in 0..pairs {
        let mut w = [_mm256_setzero_si256(); 2];
        for (i, (w, mask)) in w.iter_mut().zip(masks).enumerate() {
            let at = (t * width + (start + i * NR).min(width - 1)) * 2;
            // SAFETY: the mask leaves the lanes below `width` of row t < pairs, within `v` (asserted).
            *w = unsafe { _mm256_maskload_epi32(v.as_ptr().add(at).cast(), mask) };
        }
        for (r, sums) in sums.iter_mut().enumerate() {
            // SAFETY: r < R and t < pairs: two weights of row r, within `p` (asserted).
            let p = unsafe { p.as_ptr().add((r * pairs + t) * 2).cast::<i32>().read_unaligned() };
            let p = _mm256_set1_epi32(p);
            for (sum, w) in sums.iter_mut().zip(w) {
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(p, w));
            }
        }
    }
    sums
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
