//! AVX-512 with VNNI: 64 products of bytes an instruction.
//!
//! `vpdpbusd` multiplies unsigned by signed bytes. Weights get 128 added, a flipped bit, on their way from memory;
//! what that adds to the sums of a row, 128 times the sum of its bytes, is known when the row is stored, and a
//! tile starts at minus that. Sums become floats before they leave the registers.

use core::{arch::x86_64::*, ops::Range};

use super::{bytes::as_i8, x86_64::Features, Activation, Epilogue, Kernel, Rows, Step, Weights, LANES};
use crate::{
    math,
    pack::Vector,
    quant::{self, Layout},
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
        for row in (0..rows.count).step_by(MR) {
            let count = MR.min(rows.count - row);
            let operands = Operands {
                w: weights.values[first * panel..].as_ptr(),
                vector: panel,
                step: BYTES,
                last: !0,
                x: rows.values[row * rows.stride..].as_ptr(),
                stride: rows.stride,
                steps: padded / KT,
            };
            // SAFETY: `vectors` panels lie from `w` on, `count` rows of bytes and an `i32` from `x` on, as asserted;
            // the epilogue was checked for all rows.
            unsafe { TILES[count - 1][vectors - 1](&operands, epilogue, row, first * LANES) };
            if epilogue.activation == Activation::Gelu {
                for row in row..row + count {
                    gelu_in_place(epilogue.outputs_of(row, first * LANES..(first + vectors) * LANES));
                }
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn mix(p: &[i16], pairs: usize, v: &[i16], width: usize, epilogue: &mut Epilogue<'_>) {
    let rows = if pairs == 0 { 0 } else { p.len() / (2 * pairs) };
    assert!(v.len() >= pairs * width * 2);
    epilogue.check(rows);
    for start in (0..width).step_by(NV * LANES) {
        let vectors = NV.min((width - start).div_ceil(LANES));
        for row in (0..rows).step_by(MR) {
            let count = MR.min(rows - row);
            let operands = Operands {
                w: v[start * 2..].as_ptr().cast(),
                vector: BYTES,
                step: width * KT,
                last: lanes(0..width - start - (vectors - 1) * LANES),
                x: p[row * 2 * pairs..].as_ptr().cast(),
                stride: pairs * KT,
                steps: pairs,
            };
            // SAFETY: `pairs` times `width` values lie from `w` less `start` on, and `last` leaves out what is past the
            // width; `count` rows of pairs lie from `x` on; the epilogue was checked for all rows.
            unsafe { TILES_OF_PAIRS[count - 1][vectors - 1](&operands, epilogue, row, start) };
        }
    }
}

/// What a tile multiplies: in step `k`, vector `v` of weights is at `w + v * vector + k * step`, and the four bytes of
/// row `r` at `x + r * stride + 4 k`. Of the last vector only the lanes `last` are there.
struct Operands {
    w: *const i8,
    vector: usize,
    step: usize,
    last: __mmask16,
    x: *const u8,
    stride: usize,
    steps: usize,
}

/// The lanes of a range.
fn lanes(range: Range<usize>) -> __mmask16 {
    let below = |end: usize| ((1u32 << end.min(LANES)) - 1) as __mmask16;
    below(range.end) & !below(range.start)
}

/// [`tile`], by its rows and vectors, each less one.
type Tiles = [[unsafe fn(&Operands, &mut Epilogue<'_>, usize, usize); NV]; MR];

macro_rules! tiles {
    ($pairs:literal, $($rows:literal),*) => {
        [$([tile::<$pairs, $rows, 1>, tile::<$pairs, $rows, 2>, tile::<$pairs, $rows, 3>, tile::<$pairs, $rows, 4>]),*]
    };
}

const TILES: Tiles = tiles!(false, 1, 2, 3, 4, 5, 6);
const TILES_OF_PAIRS: Tiles = tiles!(true, 1, 2, 3, 4, 5, 6);

/// `R` rows and `V` vectors of outputs: the products of bytes, or of pairs of 16-bit numbers, to the epilogue as rows
/// from `row` and outputs from `output` on, but not activated.
///
/// # Safety
/// What [`Operands`] says is there; with bytes, each row is followed by the `i32` that its sums start at.
/// [`Epilogue::check`] has passed for all rows.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline(never)] // on its own the compiler keeps all sums in registers
unsafe fn tile<const PAIRS: bool, const R: usize, const V: usize>(
    operands: &Operands,
    epilogue: &mut Epilogue<'_>,
    row: usize,
    output: usize,
) {
    let Operands { w, vector, step, last, x, stride, steps } = *operands;
    // Where the sums will go is far away: ask for it now.
    let out = epilogue.out.as_ptr().wrapping_add(row * epilogue.stride + output).wrapping_sub(epilogue.outputs.start);
    for r in 0..R {
        for v in 0..V {
            _mm_prefetch::<_MM_HINT_ET0>(out.wrapping_add(r * epilogue.stride + v * LANES).cast());
        }
    }
    let mut sums = [[_mm512_setzero_si512(); V]; R];
    if !PAIRS {
        for (r, sums) in sums.iter_mut().enumerate() {
            // SAFETY: the `i32` after row r.
            *sums = [_mm512_set1_epi32(unsafe { x.add(r * stride + steps * KT).cast::<i32>().read_unaligned() }); V];
        }
    }
    let flip = _mm512_set1_epi8(-128);
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
                    true => _mm512_dpwssd_epi32(*sum, weights, x),
                    false => _mm512_dpbusd_epi32(*sum, weights, x),
                };
            }
        }
    }
    let columns: [Columns; V] = core::array::from_fn(|v| {
        // SAFETY: the epilogue was checked.
        unsafe { Columns::new(epilogue, output + v * LANES) }
    });
    let (row_scales, stride) = (epilogue.row_scales[row..][..R].as_ptr(), epilogue.stride);
    let add = epilogue.activation == Activation::Add;
    for (r, sums) in sums.iter().enumerate() {
        // SAFETY: a scale of each of `R` rows.
        let row_scale = _mm512_set1_ps(unsafe { *row_scales.add(r) });
        for (sum, to) in sums.iter().zip(&columns) {
            let value = _mm512_mul_ps(_mm512_cvtepi32_ps(*sum), _mm512_mul_ps(row_scale, to.scales));
            let mut value = _mm512_add_ps(value, to.bias);
            // SAFETY: row `row + r` was checked, and the mask leaves wanted outputs.
            unsafe {
                let out = to.out.add((row + r) * stride);
                if add {
                    value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(to.mask, out));
                }
                _mm512_mask_storeu_ps(out, to.mask, value);
            }
        }
    }
}

/// What an epilogue has for 16 outputs, of which the mask leaves those that are wanted.
struct Columns {
    mask: __mmask16,
    scales: __m512,
    bias: __m512,
    /// Their place in the first row.
    out: *mut f32,
}

impl Columns {
    /// # Safety
    /// [`Epilogue::check`] has passed.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline]
    unsafe fn new(epilogue: &mut Epilogue<'_>, first: usize) -> Self {
        let wanted = &epilogue.outputs;
        let mask = lanes(wanted.start.saturating_sub(first)..wanted.end.saturating_sub(first));
        // SAFETY: there are scales, and a bias, for all that the mask leaves.
        let (scales, bias) = unsafe {
            let bias = match epilogue.bias {
                Some(Vector::F32(bias)) => _mm512_maskz_loadu_ps(mask, bias.as_ptr().wrapping_add(first)),
                Some(Vector::F16(bias)) => {
                    _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, bias.as_ptr().wrapping_add(first).cast()))
                }
                None => _mm512_set1_ps(-0.0), // adding it changes nothing
            };
            (_mm512_maskz_loadu_ps(mask, epilogue.scales.as_ptr().wrapping_add(first)), bias)
        };
        Self { mask, scales, bias, out: epilogue.out.as_mut_ptr().wrapping_add(first).wrapping_sub(wanted.start) }
    }
}

/// [`math::gelu`] of a row.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn gelu_in_place(x: &mut [f32]) {
    let (vectors, rest) = x.as_chunks_mut();
    let (whole, few) = vectors.as_chunks_mut::<NV>();
    for x in whole {
        gelu(x);
    }
    for x in few.as_chunks_mut::<1>().0 {
        gelu(x);
    }
    if rest.is_empty() {
        return;
    }
    let mut last = [[0.0; LANES]];
    last[0][..rest.len()].copy_from_slice(rest);
    gelu(&mut last);
    rest.copy_from_slice(&last[0][..rest.len()]);
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
        y[n] = _mm512_max_ps(_mm512_min_ps(load(&x[n]), constant(math::GELU_END)), constant(-math::GELU_END));
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
