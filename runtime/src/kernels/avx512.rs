//! AVX-512 with VNNI: 64 products of bytes an instruction.
//!
//! `vpdpbusd` multiplies unsigned by signed bytes. Weights get 128 added, a flipped bit, on their way from memory;
//! what that adds to the sums of a row, 128 times the sum of its bytes, is known when the row is stored, and a
//! tile starts at minus that. Sums become floats before they leave the registers.

use core::{
    arch::{asm, x86_64::*},
    ops::Range,
};

use super::{
    avx512_floats as floats, avx512_int4 as int4,
    floats::{Affine, Floats},
    nibbles,
    x86_64::Features,
    Activation, Epilogue, Int4, Kernel, Rows, Step, Weights, LANES,
};
use crate::{math, pack::Vector, quant::Layout};

/// Rows of a tile.
const MR: usize = 6;
/// Vectors of 16 outputs of a tile: 24 sums, 4 weights, a broadcast and the flipped bits fill 30 of 32 registers.
const NV: usize = 4;
/// Bytes of an output that one instruction multiplies.
pub(super) const KT: usize = 4;
/// Bytes of a vector.
pub(super) const BYTES: usize = LANES * KT;

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
    const SIDE_BY_SIDE: bool = true;

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

    /// The bytes, zero up to a multiple of [`KT`], then what the sums of the row start at, an `i32`.
    #[inline(always)]
    fn store(self, x: &[f32], inverse: f32, out: &mut [u8]) {
        let (bytes, start) = out.split_at_mut(x.len().next_multiple_of(KT));
        // SAFETY: `self` proves that the CPU has these features.
        let sum = unsafe { floats::store_bytes(x, inverse, bytes) };
        if let Some(start) = start.first_chunk_mut() {
            *start = (-128 * sum).to_le_bytes();
        }
    }

    #[inline(always)]
    fn gemm(self, weights: Weights<'_>, rows: Rows<'_>, outputs: Range<usize>, epilogue: &mut Epilogue<'_>) {
        // SAFETY: `self` proves that the CPU has these features.
        unsafe { gemm(weights, rows, outputs, epilogue) }
    }

    #[inline(always)]
    fn store_int4(self, x: &[f32], inverse: f32, out: &mut [u8]) {
        nibbles::store(x, inverse, out);
    }

    #[inline(always)]
    fn gemm_int4(self, weights: Int4<'_>, rows: Rows<'_>, outputs: Range<usize>, epilogue: &mut Epilogue<'_>) {
        // SAFETY: `self` proves that the CPU has these features.
        unsafe { int4::gemm(weights, rows, outputs, epilogue) }
    }

    #[inline(always)]
    fn mix(self, p: &[i16], pairs: usize, v: &[i16], width: usize, epilogue: &mut Epilogue<'_>) {
        // SAFETY: `self` proves that the CPU has these features.
        unsafe { mix(p, pairs, v, width, epilogue) }
    }

    #[inline(always)]
    fn normalise<const N: usize>(self, affine: Affine<'_>, x: &[f32], out: &mut [f32]) -> [f32; N] {
        if !(x.len() / N).is_multiple_of(LANES) {
            return super::floats::normalise(affine, x, out);
        }
        // SAFETY: `self` proves that the CPU has these features.
        unsafe { floats::normalise(affine, x, out) }
    }

    #[inline(always)]
    fn largest_magnitudes<const N: usize>(self, x: &[f32]) -> [f32; N] {
        if !(x.len() / N).is_multiple_of(LANES) {
            return super::floats::largest_magnitudes(x);
        }
        // SAFETY: `self` proves that the CPU has these features.
        unsafe { floats::largest_magnitudes(x) }
    }

    #[inline(always)]
    fn put_rows(self, rows: Floats<'_>, out: &mut [u8], stride: usize, scales: &mut [f32]) {
        if !rows.width.is_multiple_of(LANES) {
            return super::floats::put_rows(self, rows, out, stride, scales);
        }
        // SAFETY: `self` proves that the CPU has these features.
        unsafe { floats::put_rows(rows, out, stride, scales) }
    }

    #[inline(always)]
    fn quantise_keys(self, keys: Floats<'_>, row: &mut [f32], bytes: &mut [u8], out: &mut [i8], scales: &mut [f32]) {
        if !keys.width.is_multiple_of(LANES) {
            return super::floats::quantise_keys(self, keys, row, bytes, out, scales);
        }
        // SAFETY: `self` proves that the CPU has these features.
        unsafe { floats::quantise_keys(keys, row, out, scales) }
    }

    #[inline(always)]
    fn quantise_values(self, values: Floats<'_>, row: &mut [f32], out: &mut [i16], scales: &mut [f32]) {
        if !values.width.is_multiple_of(LANES) {
            return super::floats::quantise_values(self, values, row, out, scales);
        }
        // SAFETY: `self` proves that the CPU has these features.
        unsafe { floats::quantise_values(values, out, scales) }
    }

    #[inline(always)]
    fn weigh(self, count: usize, scores: &[f32], weights: &mut [i16], inverses: &mut [f32]) {
        // SAFETY: `self` proves that the CPU has these features.
        unsafe { floats::weigh(count, scores, weights, inverses) }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn gemm(weights: Weights<'_>, rows: Rows<'_>, outputs: Range<usize>, epilogue: &mut Epilogue<'_>) {
    let padded = weights.cols.next_multiple_of(KT);
    let panel = padded * LANES; // [padded / 4, 16, 4]
    let panels = outputs.start / LANES..outputs.end.div_ceil(LANES);
    assert!(weights.values.len() >= panels.end * panel);
    assert!(rows.count == 0 || rows.values.len() >= (rows.count - 1) * rows.stride + padded + size_of::<i32>());
    epilogue.check(rows.count);
    for first in panels.clone().step_by(NV) {
        let vectors = NV.min(panels.end - first);
        let operands = Operands {
            w: weights.values[first * panel..].as_ptr(),
            vector: panel,
            step: BYTES,
            last: !0,
            x: rows.values.as_ptr(),
            stride: rows.stride,
            steps: padded / KT,
        };
        // SAFETY: `vectors` panels lie from `w` on, `count` rows of bytes and an `i32` from `x` on, as asserted; the
        // epilogue was checked for all rows.
        unsafe { columns::<false>(operands, vectors, first * LANES, rows.count, epilogue) };
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn mix(p: &[i16], pairs: usize, v: &[i16], width: usize, epilogue: &mut Epilogue<'_>) {
    let rows = if pairs == 0 { 0 } else { p.len() / (2 * pairs) };
    assert!(v.len() >= pairs * width * 2);
    epilogue.check(rows);
    for start in (0..width).step_by(NV * LANES) {
        let vectors = NV.min((width - start).div_ceil(LANES));
        let operands = Operands {
            w: v[start * 2..].as_ptr().cast(),
            vector: BYTES,
            step: width * KT,
            last: lanes(width - start - (vectors - 1) * LANES),
            x: p.as_ptr().cast(),
            stride: pairs * KT,
            steps: pairs,
        };
        // SAFETY: `pairs` times `width` values lie from `w` less `start` on, and `last` leaves out what is past the
        // width; `rows` rows of pairs lie from `x` on; the epilogue was checked for all rows.
        unsafe { columns::<true>(operands, vectors, start, rows, epilogue) };
    }
}

/// The first lanes of a vector.
pub(super) fn lanes(count: usize) -> __mmask16 {
    ((1u32 << count.min(LANES)) - 1) as __mmask16
}

/// What a tile multiplies: in step `k`, vector `v` of weights is at `w + v * vector + k * step`, and the four bytes of
/// row `r` at `x + r * stride + 4 k`. Of the last vector only the lanes `last` are there.
#[derive(Clone, Copy)]
struct Operands {
    w: *const i8,
    vector: usize,
    step: usize,
    last: __mmask16,
    x: *const u8,
    stride: usize,
    steps: usize,
}

/// What becomes of the sums of a tile: as in [`Epilogue`], but for whole vectors.
#[derive(Clone, Copy)]
struct Target {
    scales: *const f32,
    bias: *const f32,
    row_scales: *const f32,
    out: *mut f32,
    stride: usize,
    activation: Activation,
}

/// Whole vectors of outputs, from `first` on, of all rows.
///
/// # Safety
/// What [`Operands`] says is there for all rows; with bytes, each row is followed by the `i32` that its sums start at.
/// [`Epilogue::check`] has passed for all rows.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
unsafe fn columns<const PAIRS: bool>(
    operands: Operands,
    vectors: usize,
    first: usize,
    rows: usize,
    epilogue: &mut Epilogue<'_>,
) {
    static NO_BIAS: [f32; NV * LANES] = [-0.0; NV * LANES]; // adding it changes nothing
    let Epilogue { ref outputs, stride, activation, bias, .. } = *epilogue;
    let wanted = first.max(outputs.start)..(first + vectors * LANES).min(outputs.end);
    let at = wanted.start - outputs.start;
    let floats = match bias {
        Some(Vector::F32(bias)) => Some(bias[wanted.start..].as_ptr()),
        Some(Vector::F16(_)) => None,
        None => Some(NO_BIAS.as_ptr()),
    };
    if let (Some(bias), true) = (floats, wanted.len() == vectors * LANES) {
        let scales = epilogue.scales[first..].as_ptr();
        let (row_scales, out) = (epilogue.row_scales.as_ptr(), epilogue.out[at..].as_mut_ptr());
        // SAFETY: the caller's; all of these outputs are wanted.
        unsafe {
            tiles::<PAIRS>(operands, vectors, rows, Target { scales, bias, row_scales, out, stride, activation })
        };
        return;
    }
    // Whole vectors in memory of our own.
    let (mut scales, mut biases, mut some) = ([0.0; NV * LANES], NO_BIAS, [[0.0; NV * LANES]; MR]);
    let place = wanted.start - first..wanted.end - first;
    scales[place.clone()].copy_from_slice(&epilogue.scales[wanted.clone()]);
    if let Some(bias) = bias {
        biases[place.clone()].iter_mut().zip(bias.iter_from(wanted.start)).for_each(|(to, from)| *to = from);
    }
    for row in (0..rows).step_by(MR) {
        let count = MR.min(rows - row);
        let out = epilogue.out[row * stride + at..].chunks_mut(stride);
        for (some, out) in some.iter_mut().zip(out).take(count) {
            some[place.clone()].copy_from_slice(&out[..wanted.len()]);
        }
        let target = Target {
            scales: scales.as_ptr(),
            bias: biases.as_ptr(),
            row_scales: epilogue.row_scales[row..].as_ptr(),
            out: some.as_mut_ptr().cast(),
            stride: NV * LANES,
            activation,
        };
        // SAFETY: the caller's; up to `MR` whole rows of whole vectors.
        unsafe {
            let x = operands.x.add(row * operands.stride);
            tiles::<PAIRS>(Operands { x, ..operands }, vectors, count, target);
        }
        let out = epilogue.out[row * stride + at..].chunks_mut(stride);
        for (some, out) in some.iter().zip(out).take(count) {
            out[..wanted.len()].copy_from_slice(&some[place.clone()]);
        }
    }
}

/// [`tile`], by its rows and vectors, each less one.
type Tiles = [[unsafe fn(Operands, usize, Target); NV]; MR];

macro_rules! tiles {
    ($pairs:literal, $($rows:literal),*) => {
        [$([tile::<$pairs, $rows, 1>, tile::<$pairs, $rows, 2>, tile::<$pairs, $rows, 3>, tile::<$pairs, $rows, 4>]),*]
    };
}

const TILES: Tiles = tiles!(false, 1, 2, 3, 4, 5, 6);
const TILES_OF_PAIRS: Tiles = tiles!(true, 1, 2, 3, 4, 5, 6);

/// So many vectors of so many rows.
///
/// # Safety
/// As of [`tile`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
unsafe fn tiles<const PAIRS: bool>(operands: Operands, vectors: usize, rows: usize, target: Target) {
    let tiles = if PAIRS { &TILES_OF_PAIRS } else { &TILES };
    let (groups, rest) = (rows / MR, rows % MR);
    // SAFETY: the caller's; the rest are the last rows.
    unsafe {
        tiles[MR - 1][vectors - 1](operands, groups, target);
        if rest > 0 {
            let done = groups * MR;
            let x = operands.x.add(done * operands.stride);
            let (row_scales, out) = (target.row_scales.add(done), target.out.add(done * target.stride));
            tiles[rest - 1][vectors - 1](Operands { x, ..operands }, 1, Target { row_scales, out, ..target });
        }
    }
}

/// `groups` times `R` rows and `V` vectors of outputs: the products of bytes, or of pairs of 16-bit numbers.
///
/// # Safety
/// What [`Operands`] says is there for so many rows; with bytes, each row is followed by the `i32` that its sums start
/// at. `V` whole vectors of scales, biases and outputs.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline(never)] // on its own the compiler keeps all sums in registers
unsafe fn tile<const PAIRS: bool, const R: usize, const V: usize>(operands: Operands, groups: usize, target: Target) {
    let Operands { w, vector, step, last, mut x, stride, steps } = operands;
    let Target { scales, bias, mut row_scales, mut out, stride: out_stride, activation } = target;
    let flip = _mm512_set1_epi8(-128);
    for _ in 0..groups {
        // Where the sums will go is far away: ask for it now.
        for r in 0..R {
            for v in 0..V {
                _mm_prefetch::<_MM_HINT_ET0>(out.wrapping_add(r * out_stride + v * LANES).cast());
            }
        }
        let mut sums = [[_mm512_setzero_si512(); V]; R];
        if !PAIRS {
            for (r, sums) in sums.iter_mut().enumerate() {
                // SAFETY: the `i32` after row r.
                let start = unsafe { x.add(r * stride + steps * KT).cast::<i32>().read_unaligned() };
                *sums = [_mm512_set1_epi32(start); V];
            }
        }
        for k in 0..steps {
            let mut weights = [_mm512_setzero_si512(); V];
            for (v, weights) in weights.iter_mut().enumerate() {
                // SAFETY: vector v of step k, less the lanes that are not there.
                *weights = unsafe {
                    let w = w.add(v * vector + k * step);
                    match PAIRS {
                        true => _mm512_maskz_loadu_epi32(if v + 1 == V { last } else { !0 }, w.cast()),
                        false => _mm512_xor_si512(_mm512_loadu_si512(w.cast()), flip),
                    }
                };
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                // SAFETY: four bytes of row r in step k.
                let x = _mm512_set1_epi32(unsafe { x.add(r * stride + k * KT).cast::<i32>().read_unaligned() });
                for (sum, weights) in sums.iter_mut().zip(weights) {
                    *sum = match PAIRS {
                        true => dpwssd(*sum, weights, x),
                        false => _mm512_dpbusd_epi32(*sum, weights, x),
                    };
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            // SAFETY: row r has a scale and `V` vectors of outputs, which have scales and biases.
            unsafe {
                let row_scale = _mm512_set1_ps(*row_scales.add(r));
                for (v, sum) in sums.iter().enumerate() {
                    let scale = _mm512_mul_ps(row_scale, _mm512_loadu_ps(scales.add(v * LANES)));
                    let value = _mm512_mul_ps(_mm512_cvtepi32_ps(*sum), scale);
                    let mut value = _mm512_add_ps(value, _mm512_loadu_ps(bias.add(v * LANES)));
                    let out = out.add(r * out_stride + v * LANES);
                    if activation == Activation::Add {
                        value = _mm512_add_ps(value, _mm512_loadu_ps(out));
                    }
                    _mm512_storeu_ps(out, value);
                }
            }
        }
        if activation == Activation::Gelu {
            for r in (0..R).step_by(2) {
                let row = out.wrapping_add(r * out_stride);
                // SAFETY: row r has `V` vectors of outputs, and so has the next if r + 1 < R.
                unsafe {
                    match R - r {
                        1 => gelu::<1, V>(row, out_stride),
                        _ => gelu::<2, V>(row, out_stride),
                    }
                }
            }
        }
        (x, row_scales, out) =
            (x.wrapping_add(R * stride), row_scales.wrapping_add(R), out.wrapping_add(R * out_stride));
    }
}

/// `sum` and the two products of each lane. The compiler would make a product and an addition of the intrinsic.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
pub(super) fn dpwssd(mut sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
    // SAFETY: registers only, and the CPU has the instruction.
    unsafe {
        asm!("vpdpwssd {0}, {1}, {2}", inout(zmm_reg) sum, in(zmm_reg) a, in(zmm_reg) b,
            options(pure, nomem, nostack, preserves_flags));
    }
    sum
}

/// [`math::gelu`] of some vectors of some rows, step by step for all: one alone would wait for every result.
///
/// # Safety
/// `R` rows of `V` vectors, `stride` numbers apart.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline(never)] // in a loop the compiler would keep the constants in registers, and have too few for the rest
unsafe fn gelu<const R: usize, const V: usize>(x: *mut f32, stride: usize) {
    let constant = |c: f32| _mm512_set1_ps(c);
    let at = |r: usize, v: usize| x.wrapping_add(r * stride + v * LANES);
    let (mut y, mut t) = ([[constant(0.0); V]; R], [[constant(0.0); V]; R]);
    let mut p = [[constant(math::GELU[0]); V]; R];
    for r in 0..R {
        for v in 0..V {
            // SAFETY: a vector of the caller's.
            let x = unsafe { _mm512_loadu_ps(at(r, v)) };
            // The smaller magnitude, with the sign of x.
            y[r][v] = _mm512_range_ps::<0b0010>(x, constant(math::GELU_END));
            let square = _mm512_mul_ps(_mm512_mul_ps(y[r][v], y[r][v]), constant(math::GELU_SCALE));
            t[r][v] = _mm512_sub_ps(square, constant(1.0));
        }
    }
    for c in &math::GELU[1..] {
        for r in 0..R {
            for v in 0..V {
                p[r][v] = _mm512_add_ps(_mm512_mul_ps(p[r][v], t[r][v]), constant(*c));
            }
        }
    }
    for r in 0..R {
        for v in 0..V {
            // SAFETY: a vector of the caller's.
            unsafe {
                let half = _mm512_add_ps(constant(0.5), _mm512_mul_ps(y[r][v], p[r][v]));
                _mm512_storeu_ps(at(r, v), _mm512_mul_ps(_mm512_loadu_ps(at(r, v)), half));
            }
        }
    }
}

/// 24 independent sums, nothing loaded.
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

#[cfg(test)]
mod tests {
    use super::*;

    super::super::suite::suite!(Avx512Vnni::detect());
}
