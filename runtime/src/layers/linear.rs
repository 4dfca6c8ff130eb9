//! Linear layers over a few rows at a time, for every precision.

use half::f16;

use super::ROW_BLOCK;
use crate::{
    kernels::scalar,
    pack::{Data, Matrix, Vector},
    quant::{quantise_row, Layout},
};

/// Memory for quantised activations: [`ROW_BLOCK`] rows of up to `stride` bytes.
pub(crate) struct Activations<'s> {
    pub values: &'s mut [i8],
    pub stride: usize,
}

/// Rows of floats inside a wider buffer: row `i` is `data[i * stride..][..cols]`.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub data: &'a [f32],
    pub stride: usize,
    pub cols: usize,
}

impl<'a> Rows<'a> {
    /// Rows that lie end to end.
    pub fn dense(data: &'a [f32], cols: usize) -> Self {
        Self { data, stride: cols, cols }
    }

    fn iter(self) -> impl Iterator<Item = &'a [f32]> {
        self.data.chunks(self.stride.max(1)).map(move |row| row.get(..self.cols).unwrap_or(&[]))
    }
}

/// `out[r, n] = input[r, :] · weight[n, :] + bias[n]` for `n < outputs`, at most [`ROW_BLOCK`] rows.
///
/// `out` is dense `[rows, outputs]`; `outputs` may be fewer than the matrix has (the output head
/// needs only the codes). int8: each row of `input` is quantised, the product is exact, and the
/// result is `(sum as f32) * (row scale * channel scale) + bias`.
pub(crate) fn linear(
    weight: &Matrix<'_>,
    bias: Vector<'_>,
    input: Rows<'_>,
    outputs: usize,
    out: &mut [f32],
    activations: &mut Activations<'_>,
) {
    match weight.data {
        Data::F32(weights) => {
            for (n, w) in weights.chunks_exact(weight.cols.max(1)).take(outputs).enumerate() {
                let bias = bias.get(n);
                for (x, out) in input.iter().zip(out.chunks_exact_mut(outputs)) {
                    out[n] = scalar::dot(x, w) + bias;
                }
            }
        }
        Data::F16(weights) => {
            for (n, w) in weights.chunks_exact(weight.cols.max(1)).take(outputs).enumerate() {
                let bias = bias.get(n);
                for (x, out) in input.iter().zip(out.chunks_exact_mut(outputs)) {
                    out[n] = dot_f16(x, w) + bias;
                }
            }
        }
        Data::Int8 { weights, scales, layout } => {
            let padded = layout.padded_cols(weight.cols);
            let mut row_scales = [0.0; ROW_BLOCK];
            let quantised = activations.values.chunks_exact_mut(activations.stride.max(1));
            for ((x, q), scale) in input.iter().zip(quantised).zip(&mut row_scales) {
                *scale = quantise_row(x, &mut q[..padded]);
            }
            let quantised = activations.values.chunks_exact(activations.stride.max(1));
            for ((q, row_scale), out) in quantised.zip(row_scales).zip(out.chunks_exact_mut(outputs)) {
                let q = &q[..padded];
                if layout == Layout::ROW_MAJOR {
                    let rows = weights.chunks_exact(padded.max(1));
                    for (n, ((w, scale), out)) in rows.zip(scales).zip(out.iter_mut()).enumerate() {
                        *out = scalar::dot_i8(q, w) as f32 * (row_scale * scale) + bias.get(n);
                    }
                } else {
                    blocked_row(q, row_scale, weights, scales, layout, padded, bias, out);
                }
            }
        }
    }
}

/// One row against weights in tiles: the same numbers as row-major, in another order of memory.
#[allow(clippy::too_many_arguments)] // the pieces of one `Data::Int8`, already unpacked
fn blocked_row(
    q: &[i8],
    row_scale: f32,
    weights: &[i8],
    scales: &[f32],
    layout: Layout,
    padded: usize,
    bias: Vector<'_>,
    out: &mut [f32],
) {
    let nr = usize::from(layout.nr);
    let kt = layout.tile_cols(padded).max(1);
    let bands = weights.chunks_exact((nr * padded).max(1));
    for (b, ((band, scales), out)) in bands.zip(scales.chunks(nr)).zip(out.chunks_mut(nr)).enumerate() {
        let mut sums = [0i32; Layout::MAX_NR];
        for (tile, q) in band.chunks_exact(nr * kt).zip(q.chunks_exact(kt)) {
            for (sum, w) in sums.iter_mut().zip(tile.chunks_exact(kt)) {
                *sum += scalar::dot_i8(q, w);
            }
        }
        for (j, ((out, sum), scale)) in out.iter_mut().zip(sums).zip(scales).enumerate() {
            *out = sum as f32 * (row_scale * scale) + bias.get(b * nr + j);
        }
    }
}

/// Dot product with half-precision weights, in the lane order of [`scalar::dot`].
fn dot_f16(x: &[f32], w: &[u16]) -> f32 {
    const CHUNK: usize = 8 * scalar::LANES;
    let mut sum = 0.0;
    for (x, w) in x.chunks(CHUNK).zip(w.chunks(CHUNK)) {
        let mut wide = [0.0; CHUNK];
        for (wide, bits) in wide.iter_mut().zip(w) {
            *wide = f16::from_bits(*bits).to_f32();
        }
        sum += scalar::dot(x, &wide[..x.len()]);
    }
    sum
}

impl Matrix<'_> {
    /// Row `row` as floats into `out[..cols]` (an embedding look-up).
    pub(crate) fn row_into(&self, row: usize, out: &mut [f32]) {
        let range = row * self.cols..(row + 1) * self.cols;
        match self.data {
            Data::F32(weights) => {
                for (out, w) in out.iter_mut().zip(weights.get(range).unwrap_or(&[])) {
                    *out = *w;
                }
            }
            Data::F16(weights) => {
                for (out, bits) in out.iter_mut().zip(weights.get(range).unwrap_or(&[])) {
                    *out = f16::from_bits(*bits).to_f32();
                }
            }
            Data::Int8 { weights, scales, layout } => {
                let scale = scales.get(row).copied().unwrap_or(0.0);
                for (col, out) in out.iter_mut().enumerate().take(self.cols) {
                    let value = weights.get(layout.index(row, col, self.cols)).copied().unwrap_or(0);
                    *out = f32::from(value) * scale;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::quantise_matrix;
    use proptest::prelude::*;
    extern crate std;
    use std::{vec, vec::Vec};

    fn run(matrix: &Matrix<'_>, bias: &[f32], x: &[f32], rows: usize) -> Vec<f32> {
        let mut out = vec![0.0; rows * matrix.rows];
        let stride = matrix.cols.next_multiple_of(Layout::MAX_KT);
        let mut values = vec![0; ROW_BLOCK * stride];
        let mut activations = Activations { values: &mut values, stride };
        linear(matrix, Vector::F32(bias), Rows::dense(x, matrix.cols), matrix.rows, &mut out, &mut activations);
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn every_layout_gives_the_same_bits_close_to_float(
            rows in 1usize..=5, n in 1usize..30, k in 1usize..70, nr in 1u8..=8, log_kt in 0u32..=6, seed: u64,
        ) {
            let rng = crate::rng::Rng::new(seed, crate::rng::Stream::Init, 0);
            let numbers = |start: u64, count: usize| -> Vec<f32> {
                (0..count as u64).map(|i| rng.uniform(start + i) as f32 * 2.0 - 1.0).collect()
            };
            let (w, bias, x) = (numbers(0, n * k), numbers(10_000, n), numbers(20_000, rows * k));
            let float = run(&Matrix { rows: n, cols: k, data: Data::F32(&w) }, &bias, &x, rows);
            let halves: Vec<u16> = w.iter().map(|&w| f16::from_f32(w).to_bits()).collect();
            let half = run(&Matrix { rows: n, cols: k, data: Data::F16(&halves) }, &bias, &x, rows);
            let int8 = |layout: Layout| {
                let (mut q, mut scales) = (vec![0; layout.elements(n, k)], vec![0.0; n]);
                quantise_matrix(&w, (n, k), layout, &mut q, &mut scales).unwrap();
                let matrix = Matrix { rows: n, cols: k, data: Data::Int8 { weights: &q, scales: &scales, layout } };
                run(&matrix, &bias, &x, rows)
            };
            let plain = int8(Layout::ROW_MAJOR);
            prop_assert_eq!(&plain, &int8(Layout { nr, kt: 1 << log_kt }));
            for ((f, h), q) in float.iter().zip(&half).zip(&plain) {
                prop_assert!((f - h).abs() < 1e-3 * k as f32, "{f} {h}");
                prop_assert!((f - q).abs() < 1e-2 * k as f32, "{f} {q}");
            }
        }
    }
}
