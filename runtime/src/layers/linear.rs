//! Linear layers over several rows at a time, for every precision.

use core::ops::Range;

use half::f16;

use crate::{
    kernels::{
        portable_gemm, portable_gemm_int4, scalar, step, Activation, Epilogue, Int4, Kernel, Rows, Weights, LANES,
    },
    math::gelu,
    pack::{Data, Matrix, Vector},
    quant::{
        self,
        int4::{self, Order},
        Layout, ACTIVATION_BYTES,
    },
};

/// Rows of input that a channel of float weights is multiplied with at a time.
const FLOAT_ROWS: usize = 16;

/// A linear layer in a pack.
#[derive(Clone, Copy)]
pub(crate) struct Linear<'a> {
    pub weight: Matrix<'a>,
    pub bias: Vector<'a>,
}

/// Where the input rows of a linear are put, in the form that its precision wants.
pub(crate) struct Input<'w> {
    /// `[rows, columns]`, for float weights.
    pub floats: &'w mut [f32],
    /// Quantised rows, `stride` bytes apart, and their scales, for int8 weights.
    pub bytes: &'w mut [u8],
    pub stride: usize,
    pub scales: &'w mut [f32],
}

/// Where the output rows of a linear go.
pub(crate) struct Output<'o> {
    pub data: &'o mut [f32],
    pub stride: usize,
    pub activation: Activation,
}

/// Quantises a row, of the largest magnitude `max`, for weights in a layout; returns its scale.
#[inline(always)]
pub(crate) fn quantise<K: Kernel>(k: K, layout: Layout, x: &[f32], max: f32, out: &mut [u8]) -> f32 {
    let (inverse, scale) = quant::scale_of(max);
    if layout == K::LAYOUT {
        k.store(x, inverse, out);
    } else {
        quant::store_bytes(x, inverse, out);
    }
    scale
}

/// [`Kernel::gemm`] for weights in any order.
#[inline(always)]
pub(crate) fn product<K: Kernel>(
    k: K,
    weights: Weights<'_>,
    rows: Rows<'_>,
    outputs: Range<usize>,
    epilogue: &mut Epilogue<'_>,
) {
    if weights.layout == K::LAYOUT {
        k.gemm(weights, rows, outputs, epilogue);
    } else {
        portable_gemm(k, weights, rows, outputs, epilogue);
    }
}

impl<'a> Linear<'a> {
    /// Bytes between quantised rows of a linear with so many inputs, whatever its layout.
    pub const fn stride(cols: usize) -> usize {
        cols.next_multiple_of(Layout::MAX_KT) * ACTIVATION_BYTES
    }

    /// Whether [`put`](Self::put) quantises.
    pub const fn is_integer(&self) -> bool {
        matches!(self.weight.data, Data::Int8 { .. } | Data::Int4 { .. })
    }

    /// Puts row `row` of the input in its place.
    #[inline(always)]
    pub fn put<K: Kernel>(&self, k: K, x: &[f32], row: usize, input: &mut Input<'_>) {
        self.put_scaled(k, x, quant::max_abs(x), row, input);
    }

    /// [`put`](Self::put) of `N` rows `x` `[N, columns]` of these largest magnitudes from `row` on.
    #[inline(always)]
    pub fn put_rows<K: Kernel, const N: usize>(
        &self,
        k: K,
        x: &[f32],
        maxima: [f32; N],
        row: usize,
        input: &mut Input<'_>,
    ) {
        for (n, (x, max)) in x.chunks_exact(self.weight.cols).zip(maxima).enumerate() {
            self.put_scaled(k, x, max, row + n, input);
        }
    }

    /// [`put`](Self::put) of a row of the largest magnitude `max`.
    #[inline(always)]
    fn put_scaled<K: Kernel>(&self, k: K, x: &[f32], max: f32, row: usize, input: &mut Input<'_>) {
        let cols = self.weight.cols;
        match self.weight.data {
            Data::Int8 { layout, .. } => {
                let bytes = &mut input.bytes[row * input.stride..][..layout.padded_cols(cols) * ACTIVATION_BYTES];
                input.scales[row] = quantise(k, layout, x, max, bytes);
            }
            Data::Int4 { order, .. } => {
                let bytes = &mut input.bytes[row * input.stride..][..int4::padded_cols(cols) * ACTIVATION_BYTES];
                let (inverse, scale) = quant::scale_of(max);
                if order == Order::beside(K::LAYOUT) {
                    k.store_int4(x, inverse, bytes);
                } else {
                    quant::store_bytes(x, inverse, &mut bytes[..int4::padded_cols(cols)]);
                }
                input.scales[row] = scale;
            }
            Data::F32(_) | Data::F16(_) => input.floats[row * cols..][..cols].copy_from_slice(x),
        }
    }

    /// `out[r, n] = input[r, :] · weight[n, :] + bias[n]` over `count` rows, for the `outputs`.
    ///
    /// int8 and int4: the products are exact, and the result is `(sum as f32) * (row scale * channel scale) + bias`.
    #[inline(always)]
    pub fn apply<K: Kernel>(&self, k: K, input: &Input<'_>, count: usize, outputs: Range<usize>, out: Output<'_>) {
        match self.weight.data {
            Data::F32(weights) => apply_f32(k, self, weights, input, count, outputs, out),
            Data::F16(weights) => apply_f16(k, self, weights, input, count, outputs, out),
            Data::Int8 { weights, scales, layout } => {
                let weights = Weights { values: weights, layout, cols: self.weight.cols };
                let rows = Rows { values: &*input.bytes, stride: input.stride, count };
                let mut epilogue = self.epilogue(scales, &input.scales[..count], outputs.clone(), out);
                product(k, weights, rows, outputs, &mut epilogue);
            }
            Data::Int4 { weights, multipliers, scales, order } => {
                let weights = Int4 { values: weights, multipliers, order, groups: int4::groups(self.weight.cols) };
                let rows = Rows { values: &*input.bytes, stride: input.stride, count };
                let mut epilogue = self.epilogue(scales, &input.scales[..count], outputs.clone(), out);
                if order == Order::beside(K::LAYOUT) {
                    k.gemm_int4(weights, rows, outputs, &mut epilogue);
                } else {
                    portable_gemm_int4(k, weights, rows, outputs, &mut epilogue);
                }
            }
        }
    }

    /// Sums of integers back to floats.
    #[inline(always)]
    fn epilogue<'o>(
        &'o self,
        scales: &'o [f32],
        row_scales: &'o [f32],
        outputs: Range<usize>,
        out: Output<'o>,
    ) -> Epilogue<'o> {
        let Output { data: out, stride, activation } = out;
        Epilogue { scales, bias: Some(self.bias), row_scales, outputs, out, stride, activation }
    }

    /// `dots(x, w, sums)`: products of a channel with several rows of input, `x` `[rows, columns]`.
    #[inline(always)]
    fn apply_float<W>(
        &self,
        weights: &[W],
        dots: impl Fn(&[f32], &[W], &mut [f32]),
        input: &Input<'_>,
        count: usize,
        outputs: Range<usize>,
        out: Output<'_>,
    ) {
        let cols = self.weight.cols;
        let channels = weights.chunks_exact(cols).skip(outputs.start).zip(self.bias.iter_from(outputs.start));
        for (n, (w, bias)) in channels.take(outputs.len()).enumerate() {
            let blocks = input.floats[..count * cols].chunks(FLOAT_ROWS * cols);
            for (x, rows) in blocks.zip(out.data.chunks_mut(FLOAT_ROWS * out.stride)) {
                let sums = &mut [0.0; FLOAT_ROWS][..x.len() / cols];
                dots(x, w, sums);
                for (sum, row) in sums.iter().zip(rows.chunks_mut(out.stride)) {
                    let value = sum + bias;
                    match out.activation {
                        Activation::Store => row[n] = value,
                        Activation::Add => row[n] += value,
                        Activation::Gelu => row[n] = gelu(value),
                    }
                }
            }
        }
    }
}

step! {
    fn apply_f32(
        k, linear: &Linear<'_>, weights: &[f32], input: &Input<'_>, count: usize, outputs: Range<usize>, out: Output<'_>,
    ) {
        linear.apply_float(weights, dots_f32, input, count, outputs, out);
    }
}

step! {
    fn apply_f16(
        k, linear: &Linear<'_>, weights: &[u16], input: &Input<'_>, count: usize, outputs: Range<usize>, out: Output<'_>,
    ) {
        linear.apply_float(weights, dots_f16, input, count, outputs, out);
    }
}

#[inline(always)]
fn dots_f32(x: &[f32], w: &[f32], sums: &mut [f32]) {
    for (sum, x) in sums.iter_mut().zip(x.chunks_exact(w.len())) {
        *sum = scalar::dot(x, w);
    }
}

/// Half-precision weights are widened a piece at a time, once for all the rows.
#[inline(always)]
fn dots_f16(x: &[f32], w: &[u16], sums: &mut [f32]) {
    const CHUNK: usize = 8 * LANES;
    for (chunk, halves) in w.chunks(CHUNK).enumerate() {
        let mut wide = [0.0; CHUNK];
        for (wide, bits) in wide.iter_mut().zip(halves) {
            *wide = f16::from_bits(*bits).to_f32();
        }
        for (sum, x) in sums.iter_mut().zip(x.chunks_exact(w.len())) {
            *sum += scalar::dot(&x[chunk * CHUNK..][..halves.len()], &wide[..halves.len()]);
        }
    }
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
                let (first, tile_cols) = (layout.index(row, 0, self.cols), layout.tile_cols(self.cols));
                let tiles = weights.get(first..).unwrap_or(&[]).chunks((usize::from(layout.nr) * tile_cols).max(1));
                for (out, tile) in out[..self.cols].chunks_mut(tile_cols.max(1)).zip(tiles) {
                    match (<&mut [f32; 4]>::try_from(&mut *out), tile.first_chunk::<4>()) {
                        // Fours, as most kernels have them, in one step.
                        (Ok(out), Some(tile)) => *out = tile.map(|w| f32::from(w) * scale),
                        _ => out.iter_mut().zip(tile).for_each(|(out, w)| *out = f32::from(*w) * scale),
                    }
                }
            }
            Data::Int4 { weights, multipliers, scales, order } => {
                let scale = scales.get(row).copied().unwrap_or(0.0);
                let groups = int4::groups(self.cols);
                let weights = Int4 { values: weights, multipliers, order, groups };
                for (group, out) in out[..self.cols].chunks_mut(int4::GROUP).enumerate() {
                    let (w, multiplier) = weights.group(row, group);
                    for (out, w) in out.iter_mut().zip(w) {
                        *out = (i32::from(w) * multiplier) as f32 * scale;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        kernels::{dispatch, Kernels},
        quant::quantise_matrix,
    };
    use proptest::prelude::*;
    extern crate std;
    use std::{vec, vec::Vec};

    fn run_with(k: Kernels, matrix: &Matrix<'_>, bias: &[f32], x: &[f32], rows: usize) -> Vec<f32> {
        let linear = Linear { weight: *matrix, bias: Vector::F32(bias) };
        let stride = Linear::stride(matrix.cols);
        let mut input = Input {
            floats: &mut vec![0.0; rows * matrix.cols],
            bytes: &mut vec![0; rows * stride],
            stride,
            scales: &mut vec![0.0; rows],
        };
        let mut out = vec![0.0; rows * matrix.rows];
        dispatch!(k, k => {
            for (row, x) in x.chunks_exact(matrix.cols).enumerate() {
                linear.put(k, x, row, &mut input);
            }
            let out = Output { data: &mut out, stride: matrix.rows, activation: Activation::Store };
            linear.apply(k, &input, rows, 0..matrix.rows, out);
        });
        out
    }

    /// On all kernels, which have to agree where the weights are integers.
    fn run(matrix: &Matrix<'_>, bias: &[f32], x: &[f32], rows: usize) -> Vec<f32> {
        let expected = run_with(Kernels::SCALAR, matrix, bias, x, rows);
        for k in Kernels::available() {
            assert_eq!(run_with(k, matrix, bias, x, rows), expected, "{}", k.name());
        }
        expected
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn every_layout_gives_the_same_bits_close_to_float(
            rows in 1usize..=15, n in 1usize..80, k in 1usize..70, nr in 1u8..=8, log_kt in 0u32..=6, seed: u64,
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
            let (mut packed, mut scales) = (vec![0; int4::bytes(n, k)], vec![0.0; n]);
            int4::quantise_matrix(&w, (n, k), &mut packed, &mut scales).unwrap();
            let (weights, multipliers) = packed.split_at(int4::weight_bytes(n, k));
            let (scales, order) = (&scales[..], Order::Rows);
            let matrix = Matrix { rows: n, cols: k, data: Data::Int4 { weights, multipliers, scales, order } };
            let four = run(&matrix, &bias, &x, rows);
            let mut panels = vec![0; Order::Panels.bytes(n, k)];
            int4::arrange(&packed, order, (n, k), Order::Panels, &mut panels).unwrap();
            let (in_panels, their_multipliers) = panels.split_at(Order::Panels.weight_bytes(n, k));
            let data =
                Data::Int4 { weights: in_panels, multipliers: their_multipliers, scales, order: Order::Panels };
            prop_assert_eq!(&four, &run(&Matrix { data, ..matrix }, &bias, &x, rows));
            let plain = int8(Layout::ROW_MAJOR);
            prop_assert_eq!(&plain, &int8(Layout { nr, kt: 1 << log_kt }));
            prop_assert_eq!(&plain, &int8(Layout { nr: 16, kt: 4 }));
            // The integers alone, by the definition.
            let mut wide = vec![0.0; k];
            for (r, x) in x.chunks_exact(k).enumerate() {
                let mut q = vec![0; k];
                let row_scale = quant::quantise_row(x, &mut q);
                for row in 0..n {
                    Matrix { data: Data::Int4 { weights, multipliers, scales: &vec![1.0; n], order }, ..matrix }
                        .row_into(row, &mut wide);
                    let sum: i32 = q.iter().zip(&wide).map(|(q, w)| i32::from(*q) * *w as i32).sum();
                    prop_assert_eq!(four[r * n + row], sum as f32 * (row_scale * scales[row]) + bias[row]);
                }
            }
            // As near as half a step of every weight and of every activation allows.
            for (at, f) in float.iter().enumerate() {
                let (row, x, w) = (at % n, &x[at / n * k..][..k], &w[at % n * k..][..k]);
                let bound = |steps: &dyn Fn(usize) -> f32, activation: f32| {
                    let each = |(i, (x, w)): (usize, (&f32, &f32))| x.abs() * steps(i) + (w.abs() + steps(i)) * activation;
                    1.0001 * x.iter().zip(w).enumerate().map(each).sum::<f32>() + 1e-6 * (k + 1) as f32
                };
                let (channel, activation) = (0.5 * quant::max_abs(w) / 127.0, 0.5 * quant::max_abs(x) / 127.0);
                let group = |i: usize| 0.5 * scales[row] * f32::from(multipliers[order.multiplier(row, i / int4::GROUP, int4::groups(k))]);
                for (what, found, bound) in [
                    ("half", &half, bound(&|i| w[i].abs() * 2f32.powi(-11), 0.0)),
                    ("int8", &plain, bound(&|_| channel, activation)),
                    ("int4", &four, bound(&group, activation)),
                ] {
                    prop_assert!((f - found[at]).abs() <= bound, "{what}, output {at}: {f} {}, bound {bound}", found[at]);
                }
            }
        }
    }
    /// How much of the outputs is error, where errors have no preferred sign: their root mean square over the floats'.
    #[test]
    fn a_product_loses_as_little_as_its_precision_costs() {
        const SHAPE: (usize, usize) = (96, 256);
        let rng = crate::rng::Rng::new(9, crate::rng::Stream::Init, 0);
        let numbers = |start: usize, count: usize| -> Vec<f32> {
            (0..count).map(|i| rng.normal((start + i) as u64) as f32).collect()
        };
        let ((n, k), rows) = (SHAPE, 8);
        let (w, x, bias) = (numbers(0, n * k), numbers(n * k, rows * k), vec![0.0; n]);
        let (mut q, mut scales8, layout) = (vec![0; n * k], vec![0.0; n], Layout::ROW_MAJOR);
        quantise_matrix(&w, SHAPE, layout, &mut q, &mut scales8).unwrap();
        let (mut packed, mut scales) = (vec![0; int4::bytes(n, k)], vec![0.0; n]);
        int4::quantise_matrix(&w, SHAPE, &mut packed, &mut scales).unwrap();
        let (weights, multipliers) = packed.split_at(int4::weight_bytes(n, k));
        let halves: Vec<u16> = w.iter().map(|&w| f16::from_f32(w).to_bits()).collect();
        let on = |data: Data<'_>| run(&Matrix { rows: n, cols: k, data }, &bias, &x, rows);
        let float = on(Data::F32(&w));
        let squares = |numbers: &mut dyn Iterator<Item = f32>| numbers.map(|x| f64::from(x).powi(2)).sum::<f64>();
        for (what, found, least, most) in [
            ("half", on(Data::F16(&halves)), 1e-4, 4e-4),
            ("int8", on(Data::Int8 { weights: &q, scales: &scales8, layout }), 4e-3, 1.2e-2),
            ("int4", on(Data::Int4 { weights, multipliers, scales: &scales, order: Order::Rows }), 0.05, 0.12),
        ] {
            assert_eq!(found.len(), float.len());
            let errors = squares(&mut float.iter().zip(&found).map(|(f, q)| f - q));
            let lost = (errors / squares(&mut float.iter().copied())).sqrt();
            std::println!("{what}: {lost:.3e}");
            assert!((least..most).contains(&lost), "{what}: {lost:.3e} of the outputs, expected {least:e} to {most:e}");
        }
    }
}
