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
    bytes::as_i8, nibbles, panels::by_rows, x86_64::Features, Activation, Epilogue, Int4, Kernel, Rows, Step, Weights,
    LANES,
};
use crate::{
    math,
    pack::Vector,
    quant::{
        self,
        int4::{GROUP, PANEL_BYTES},
        Layout,
    },
};

/// Rows of a tile.
const MR: usize = 6;
/// Vectors of 16 outputs of a tile: 24 sums, 4 weights, a broadcast and the flipped bits fill 30 of 32 registers.
const NV: usize = 4;
/// Bytes of an output that one instruction multiplies.
const KT: usize = 4;
/// Bytes of a vector.
const BYTES: usize = LANES * KT;

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
        quant::store_bytes(x, inverse, bytes);
        let sum: i32 = as_i8(bytes).unwrap_or(&[]).iter().map(|q| i32::from(*q)).sum();
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
        unsafe { gemm_int4(weights, rows, outputs, epilogue) }
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
fn lanes(count: usize) -> __mmask16 {
    ((1u32 << count.min(LANES)) - 1) as __mmask16
}

/// Rows of a tile of int4 weights: 12 vectors of a group's sums and 12 of all, so that unpacking costs little.
const MR_INT4: usize = 12;

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn gemm_int4(weights: Int4<'_>, rows: Rows<'_>, outputs: Range<usize>, epilogue: &mut Epilogue<'_>) {
    nibbles::gemm::<MR_INT4>(weights, rows, outputs, epilogue, |t, rows, sums| {
        by_rows!(rows, 1 2 3 4 5 6 7 8 9 10 11 12, R => tile_int4::<R>(t, sums));
    });
}

/// A panel of int4 weights times `R` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline(never)]
fn tile_int4<const R: usize>(t: nibbles::Tile<'_>, sums: &mut [[i32; LANES]; MR_INT4]) {
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
            for r in 0..R {
                // SAFETY: row r has `V` vectors of outputs.
                gelu::<V>(unsafe { &mut *out.add(r * out_stride).cast() });
            }
        }
        (x, row_scales, out) =
            (x.wrapping_add(R * stride), row_scales.wrapping_add(R), out.wrapping_add(R * out_stride));
    }
}

/// `sum` and the two products of each lane. The compiler would make a product and an addition of the intrinsic.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
fn dpwssd(mut sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
    // SAFETY: registers only, and the CPU has the instruction.
    unsafe {
        asm!("vpdpwssd {0}, {1}, {2}", inout(zmm_reg) sum, in(zmm_reg) a, in(zmm_reg) b,
            options(pure, nomem, nostack, preserves_flags));
    }
    sum
}

/// [`math::gelu`] of some vectors, step by step for all: one alone would wait for every result.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline(never)] // in a loop the compiler would keep the constants in registers, and have too few for the rest
fn gelu<const N: usize>(x: &mut [[f32; LANES]; N]) {
    let constant = |c: f32| _mm512_set1_ps(c);
    // SAFETY: 16 numbers.
    let load = |x: &[f32; LANES]| unsafe { _mm512_loadu_ps(x.as_ptr()) };
    let (mut y, mut t, mut p) = ([constant(0.0); N], [constant(0.0); N], [constant(math::GELU[0]); N]);
    for n in 0..N {
        // The smaller magnitude, with the sign of x.
        y[n] = _mm512_range_ps::<0b0010>(load(&x[n]), constant(math::GELU_END));
        let square = _mm512_mul_ps(_mm512_mul_ps(y[n], y[n]), constant(math::GELU_SCALE));
        t[n] = _mm512_sub_ps(square, constant(1.0));
    }
    for c in &math::GELU[1..] {
        for n in 0..N {
            p[n] = _mm512_add_ps(_mm512_mul_ps(p[n], t[n]), constant(*c));
        }
    }
    for n in 0..N {
        let value = _mm512_mul_ps(load(&x[n]), _mm512_add_ps(constant(0.5), _mm512_mul_ps(y[n], p[n])));
        // SAFETY: 16 numbers.
        unsafe { _mm512_storeu_ps(x[n].as_mut_ptr(), value) };
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
