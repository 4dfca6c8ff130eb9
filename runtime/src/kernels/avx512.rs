//! AVX-512 with VNNI: 64 products of bytes an instruction.
//!
//! `vpdpbusd` multiplies unsigned by signed bytes, so activations are stored with 128 added, and the
//! accumulators start at -128 times the sum of each channel's weights.

use core::{arch::x86_64::*, ops::Range};

use super::{x86_64::Features, Epilogue, Kernel, Rows, Step, Weights, LANES};
use crate::{math::round_to_i32, quant::Layout};

/// Rows of a tile.
const MR: usize = 6;
/// Vectors of 16 outputs of a tile: 24 accumulators, 4 weights and a broadcast fill 32 registers.
const NV: usize = 4;
/// Inputs that one instruction takes for an output.
const KT: usize = 4;

/// Proof that this CPU has AVX-512 F, BW, DQ, VL and VNNI.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512Vnni(());

impl Avx512Vnni {
    pub fn detect() -> Option<Self> {
        Features::detect().avx512_vnni.then_some(Self(()))
    }
}

impl Kernel for Avx512Vnni {
    const NAME: &'static str = "avx512vnni";
    const LAYOUT: Layout = Layout { nr: LANES as u8, kt: KT as u8 };

    fn peak(self, n: usize) -> Option<usize> {
        // SAFETY: `self` proves that the CPU has these features.
        unsafe { peak(n) };
        Some(n * 24 * LANES * KT)
    }

    #[inline(always)]
    fn run<S: Step<A>, A>(self, arguments: A) -> S::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
        fn compiled<S: Step<A>, A>(k: Avx512Vnni, arguments: A) -> S::Output {
            S::run(k, arguments)
        }
        // SAFETY: `self` proves that the CPU has these features.
        unsafe { compiled::<S, A>(self, arguments) }
    }

    #[inline(always)]
    fn store(self, x: &[f32], inverse: f32, out: &mut [u8]) {
        let (head, padding) = out.split_at_mut(x.len());
        for (q, x) in head.iter_mut().zip(x) {
            *q = (round_to_i32(*x * inverse) ^ 0x80) as u8; // + 128 in eight bits
        }
        let padded = padding.len().min(KT);
        padding[..padded].fill(0); // times weights of 0
    }

    #[inline(always)]
    fn gemm(self, weights: Weights<'_>, rows: Rows<'_>, outputs: Range<usize>, epilogue: &mut Epilogue<'_>) {
        // SAFETY: `self` proves that the CPU has these features.
        unsafe { gemm(weights, rows, outputs, epilogue) }
    }

    #[inline(always)]
    fn mix(self, p: &[i16], pairs: usize, v: &[i16], width: usize, epilogue: &mut Epilogue<'_>) {
        // SAFETY: `self` proves that the CPU has these features.
        unsafe { mix(p, pairs, v, width, epilogue) }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn gemm(weights: Weights<'_>, rows: Rows<'_>, outputs: Range<usize>, epilogue: &mut Epilogue<'_>) {
    let padded = weights.cols.next_multiple_of(KT);
    let panel = padded * LANES;
    let last = outputs.end.div_ceil(LANES);
    let mut first = outputs.start / LANES;
    while first < last {
        let vectors = NV.min(last - first);
        let values = &weights.values[first * panel..(first + vectors) * panel];
        let after = &weights.values[((first + vectors) * panel).min(weights.values.len())..];
        let after = &after[..after.len().min(NV * panel)];
        let mut start = [[0i32; LANES]; NV];
        for (v, start) in start.iter_mut().enumerate().take(vectors) {
            let known = weights.sums.get((first + v) * LANES..(first + v + 1) * LANES);
            let sums = match known {
                Some(sums) => <[i32; LANES]>::try_from(sums).unwrap_or([0; LANES]),
                None => channel_sums(&values[v * panel..(v + 1) * panel]),
            };
            for i in 0..LANES {
                start[i] = -128 * sums[i];
            }
        }
        let tiles = rows.count.div_ceil(MR);
        for t in 0..tiles {
            let row = t * MR;
            let count = MR.min(rows.count - row);
            let x = &rows.values[row * rows.stride..];
            assert!(x.len() >= (count - 1) * rows.stride + padded);
            // The next weights come from far away: ask for them while these are at work.
            let share = after.len().div_ceil(tiles);
            prefetch(&after[(t * share).min(after.len())..((t + 1) * share).min(after.len())]);
            macro_rules! tile {
                ($($mr:literal $nv:literal),*) => {
                    match (count, vectors) {
                        $(($mr, $nv) => {
                            let sums = tile::<$mr, $nv>(values, x, rows.stride, padded, &start);
                            for (v, sums) in sums.iter().enumerate() {
                                epilogue.put(row, (first + v) * LANES, sums);
                            }
                        })*
                        _ => {}
                    }
                };
            }
            tile!(
                1 1, 2 1, 3 1, 4 1, 5 1, 6 1, 1 2, 2 2, 3 2, 4 2, 5 2, 6 2,
                1 3, 2 3, 3 3, 4 3, 5 3, 6 3, 1 4, 2 4, 3 4, 4 4, 5 4, 6 4
            );
        }
        first += vectors;
    }
}

/// The sums of `R` rows and `V` vectors of 16 outputs.
///
/// `values` is `[V, padded / 4, 16, 4]`; row `r` of `x` starts at `r * stride` and has `padded` bytes.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline(never)] // on its own the compiler keeps all sums in registers
fn tile<const R: usize, const V: usize>(
    values: &[i8],
    x: &[u8],
    stride: usize,
    padded: usize,
    start: &[[i32; LANES]; NV],
) -> [[[i32; LANES]; R]; V] {
    let panel = padded * LANES;
    assert!(values.len() >= V * panel && x.len() >= (R - 1) * stride + padded && padded.is_multiple_of(KT));
    let mut sums = [[_mm512_setzero_si512(); V]; R];
    for row in &mut sums {
        for (sum, start) in row.iter_mut().zip(start) {
            // SAFETY: 16 numbers of 4 bytes are read.
            *sum = unsafe { _mm512_loadu_si512(start.as_ptr().cast()) };
        }
    }
    for k in 0..padded / KT {
        let mut w = [_mm512_setzero_si512(); V];
        for (v, w) in w.iter_mut().enumerate() {
            // SAFETY: k < padded / 4, so 64 bytes from here lie in panel v, within `values` (asserted).
            *w = unsafe { _mm512_loadu_si512(values.as_ptr().add(v * panel + k * LANES * KT).cast()) };
        }
        for (r, sums) in sums.iter_mut().enumerate() {
            // SAFETY: r < R and k < padded / 4: 4 bytes of row r, within `x` (asserted).
            let x = unsafe { x.as_ptr().add(r * stride + k * KT).cast::<i32>().read_unaligned() };
            let x = _mm512_set1_epi32(x);
            for (sum, w) in sums.iter_mut().zip(w) {
                *sum = _mm512_dpbusd_epi32(*sum, x, w);
            }
        }
    }
    columns(&sums)
}

/// 24 independent accumulators, nothing loaded.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn peak(n: usize) {
    let mut sums = core::hint::black_box([_mm512_setzero_si512(); 24]);
    let (a, b) = core::hint::black_box((_mm512_set1_epi8(3), _mm512_set1_epi8(5)));
    for _ in 0..n {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, a, b);
        }
    }
    core::hint::black_box(sums);
}

/// The sum of the weights of each of 16 outputs.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
fn channel_sums(panel: &[i8]) -> [i32; LANES] {
    let ones = _mm512_set1_epi8(1);
    let mut sums = [_mm512_setzero_si512(); 4];
    for (i, w) in panel.chunks_exact(LANES * KT).enumerate() {
        // SAFETY: the chunk has 64 bytes.
        let w = unsafe { _mm512_loadu_si512(w.as_ptr().cast()) };
        sums[i % 4] = _mm512_dpbusd_epi32(sums[i % 4], ones, w);
    }
    let [a, b, c, d] = sums;
    lanes(_mm512_add_epi32(_mm512_add_epi32(a, b), _mm512_add_epi32(c, d)))
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn mix(p: &[i16], pairs: usize, v: &[i16], width: usize, epilogue: &mut Epilogue<'_>) {
    let rows = if pairs == 0 { 0 } else { p.len() / (2 * pairs) };
    for start in (0..width).step_by(NV * LANES) {
        let vectors = NV.min((width - start).div_ceil(LANES));
        for row in (0..rows).step_by(MR) {
            let count = MR.min(rows - row);
            let p = &p[row * 2 * pairs..];
            macro_rules! tile {
                ($($mr:literal $nv:literal),*) => {
                    match (count, vectors) {
                        $(($mr, $nv) => {
                            let sums = mix_tile::<$mr, $nv>(p, pairs, v, width, start);
                            for (v, sums) in sums.iter().enumerate() {
                                epilogue.put(row, start + v * LANES, sums);
                            }
                        })*
                        _ => {}
                    }
                };
            }
            tile!(
                1 1, 2 1, 3 1, 4 1, 5 1, 6 1, 1 2, 2 2, 3 2, 4 2, 5 2, 6 2,
                1 3, 2 3, 3 3, 4 3, 5 3, 6 3, 1 4, 2 4, 3 4, 4 4, 5 4, 6 4
            );
        }
    }
}

/// Outputs `start..start + 16 V` of `R` rows: `p` `[R, 2 pairs]` times `v` `[pairs, width, 2]`.
/// Outputs past `width` are zero.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline(never)]
fn mix_tile<const R: usize, const V: usize>(
    p: &[i16],
    pairs: usize,
    v: &[i16],
    width: usize,
    start: usize,
) -> [[[i32; LANES]; R]; V] {
    assert!(p.len() >= R * 2 * pairs && v.len() >= pairs * width * 2 && start < width);
    let mut sums = [[_mm512_setzero_si512(); V]; R];
    // The last vector may reach past the width.
    let mut masks: [__mmask16; V] = [0; V];
    for (i, mask) in masks.iter_mut().enumerate() {
        let there = width.saturating_sub(start + i * LANES).min(LANES);
        *mask = ((1u32 << there) - 1) as __mmask16;
    }
    for t in 0..pairs {
        let mut w = [_mm512_setzero_si512(); V];
        for (i, (w, mask)) in w.iter_mut().zip(masks).enumerate() {
            // SAFETY: the mask leaves the lanes below `width` of row t < pairs, within `v` (asserted).
            *w = unsafe { _mm512_maskz_loadu_epi32(mask, v.as_ptr().add((t * width + start + i * LANES) * 2).cast()) };
        }
        for (r, sums) in sums.iter_mut().enumerate() {
            // SAFETY: r < R and t < pairs: two weights of row r, within `p` (asserted).
            let p = unsafe { p.as_ptr().add((r * pairs + t) * 2).cast::<i32>().read_unaligned() };
            let p = _mm512_set1_epi32(p);
            for (sum, w) in sums.iter_mut().zip(w) {
                *sum = _mm512_dpwssd_epi32(*sum, p, w);
            }
        }
    }
    columns(&sums)
}

/// Asks for memory that will be read soon.
#[inline(always)]
fn prefetch(bytes: &[i8]) {
    for line in bytes.chunks(64) {
        // SAFETY: prefetching reads nothing; any address is allowed.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr()) };
    }
}

/// The sums as numbers, `[V, R, 16]`.
#[inline(always)]
fn columns<const R: usize, const V: usize>(sums: &[[__m512i; V]; R]) -> [[[i32; LANES]; R]; V] {
    let mut columns = [[[0; LANES]; R]; V];
    for (r, row) in sums.iter().enumerate() {
        for (v, sum) in row.iter().enumerate() {
            columns[v][r] = lanes(*sum);
        }
    }
    columns
}

/// A vector as an array.
#[inline(always)]
fn lanes(x: __m512i) -> [i32; LANES] {
    // SAFETY: both are 64 bytes, and any bits are valid numbers.
    unsafe { core::mem::transmute(x) }
}

#[cfg(test)]
mod tests {
    use super::*;

    super::super::suite::suite!(Avx512Vnni::detect());
}
