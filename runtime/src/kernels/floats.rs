//! Steps over rows of floats that an instruction set may write itself: how they are defined.
//!
//! Rows are quantised as in [`crate::quant`]; every kernel gives the same bits, also for numbers that are none.

#[cfg(doc)]
use super::Kernel;
use super::{bytes::as_i8_mut, scalar, step};
use crate::{
    math,
    quant::{self, ACTIVATION_BYTES},
};

/// Rows of `width` numbers, `stride` apart.
#[derive(Clone, Copy)]
pub(crate) struct Floats<'a> {
    pub data: &'a [f32],
    pub stride: usize,
    pub width: usize,
}

impl<'a> Floats<'a> {
    /// How many.
    #[inline(always)]
    pub fn count(self) -> usize {
        self.data.len().div_ceil(self.stride)
    }

    /// Row `index`, which is there.
    #[inline(always)]
    #[allow(dead_code)] // not every instruction set asks
    pub fn row(self, index: usize) -> &'a [f32] {
        &self.data[index * self.stride..][..self.width]
    }

    #[inline(always)]
    pub fn rows(self) -> impl Iterator<Item = &'a [f32]> {
        self.data.chunks(self.stride).map(move |row| &row[..self.width])
    }
}

/// Weights, biases and epsilon of a LayerNorm.
#[derive(Clone, Copy)]
pub(crate) struct Affine<'a> {
    pub weight: &'a [f32],
    pub bias: &'a [f32],
    pub eps: f32,
}

/// What the standard deviation divides by: `1 / sqrt(variance + eps)`.
#[inline(always)]
pub(crate) fn inverse_deviation(variance: f32, eps: f32) -> f32 {
    1.0 / libm::sqrtf(variance + eps)
}

/// [`Kernel::normalise`].
#[inline(always)]
pub(crate) fn normalise<const N: usize>(affine: Affine<'_>, x: &[f32], out: &mut [f32]) -> [f32; N] {
    let dim = x.len() / N;
    let count = dim.max(1) as f32;
    let mut means = scalar::sum_rows::<N>(x);
    for mean in &mut means {
        *mean /= count;
    }
    let variances = scalar::sum_of_squares_from_rows(x, &means);
    for n in 0..N {
        let (mean, inverse) = (means[n], inverse_deviation(variances[n] / count, affine.eps));
        let (x, out) = (&x[n * dim..][..dim], &mut out[n * dim..][..dim]);
        for (((out, x), w), b) in out.iter_mut().zip(x).zip(affine.weight).zip(affine.bias) {
            *out = (*x - mean) * inverse * w + b;
        }
    }
    largest_magnitudes(out)
}

/// [`Kernel::largest_magnitudes`].
#[inline(always)]
pub(crate) fn largest_magnitudes<const N: usize>(x: &[f32]) -> [f32; N] {
    let mut maxima = [0.0; N];
    for (max, x) in maxima.iter_mut().zip(x.chunks_exact((x.len() / N).max(1))) {
        *max = quant::max_abs(x);
    }
    maxima
}

step! {
    /// [`Kernel::put_rows`].
    pub(crate) fn put_rows(k, rows: Floats<'_>, out: &mut [u8], stride: usize, scales: &mut [f32]) {
        let bytes = K::LAYOUT.padded_cols(rows.width) * ACTIVATION_BYTES;
        // All maxima first: one row after another would wait for its own.
        for (x, scale) in rows.rows().zip(&mut *scales) {
            *scale = quant::max_abs(x);
        }
        for ((x, out), scale) in rows.rows().zip(out.chunks_mut(stride)).zip(scales) {
            let inverse;
            (inverse, *scale) = quant::scale_of(*scale);
            k.store(x, inverse, &mut out[..bytes]);
        }
    }
}

step! {
    /// [`Kernel::quantise_keys`].
    pub(crate) fn quantise_keys(
        k, keys: Floats<'_>, row: &mut [f32], bytes: &mut [u8], out: &mut [i8], scales: &mut [f32],
    ) {
        let width = keys.width;
        let (mean, row) = row.split_at_mut(width);
        let row = &mut row[..width];
        mean.fill(0.0);
        for key in keys.rows() {
            mean.iter_mut().zip(key).for_each(|(mean, key)| *mean += *key);
        }
        let count = keys.count() as f32;
        mean.iter_mut().for_each(|mean| *mean /= count);
        let padded = K::LAYOUT.padded_cols(width);
        let kt = K::LAYOUT.tile_cols(padded);
        out.fill(0);
        let bytes = as_i8_mut(&mut bytes[..padded]);
        for (j, key) in keys.rows().enumerate() {
            row.iter_mut().zip(key).zip(&*mean).for_each(|((row, key), mean)| *row = *key - *mean);
            scales[j] = quant::quantise_row(row, bytes);
            for (tile, bytes) in bytes.chunks_exact(kt).enumerate() {
                let at = K::LAYOUT.index(j, tile * kt, width);
                out[at..at + kt].copy_from_slice(bytes);
            }
        }
    }
}

step! {
    /// [`Kernel::quantise_values`].
    pub(crate) fn quantise_values(k, values: Floats<'_>, row: &mut [f32], out: &mut [i16], scales: &mut [f32]) {
        let width = values.width;
        let (inverses, max) = row.split_at_mut(width);
        let max = &mut max[..width];
        max.fill(0.0);
        for value in values.rows() {
            for (max, value) in max.iter_mut().zip(value) {
                let value = value.abs();
                *max = if value > *max { value } else { *max };
            }
        }
        for ((inverse, scale), max) in inverses.iter_mut().zip(scales).zip(&*max) {
            (*inverse, *scale) = quant::scale_of(*max);
        }
        max.fill(0.0); // a value of zeros, for the last pair of an odd number
        let (mut values, zero) = (values.rows(), &*max);
        for pair in out.chunks_exact_mut(2 * width) {
            let Some(first) = values.next() else { break };
            let second = values.next().unwrap_or(zero);
            let pair = pair.as_chunks_mut::<2>().0.iter_mut();
            for (((pair, first), second), inverse) in pair.zip(first).zip(second).zip(&*inverses) {
                *pair = [quant::round(*first * *inverse).into(), quant::round(*second * *inverse).into()];
            }
        }
    }
}

step! {
    /// [`Kernel::weigh`].
    pub(crate) fn weigh(k, count: usize, scores: &[f32], weights: &mut [i16], scales: &mut [f32]) {
        let (from, to) = (scores.len() / scales.len(), weights.len() / scales.len());
        // All maxima first: one row after another would wait for its own.
        for (scores, scale) in scores.chunks_exact(from).zip(&mut *scales) {
            *scale = largest(&scores[..count]);
        }
        for ((scores, weights), scale) in scores.chunks_exact(from).zip(weights.chunks_exact_mut(to)).zip(scales) {
            *scale = 1.0 / integer_weights(&scores[..count], *scale, weights) as f32;
        }
    }
}

/// The largest element.
#[inline(always)]
pub(crate) fn largest(x: &[f32]) -> f32 {
    scalar::max(x, f32::NEG_INFINITY, |x| x)
}

/// Largest integer weight of [`integer_weights`]: 12 bits, so that the products with int8 values of
/// the longest sequence (4097 tokens) add up in 32 bits.
pub(super) const ONE: f32 = 4095.0;

/// The softmax of `2^x` in integers, not normalised: `w = round(4095 * 2^(x - max))`, `max` being the
/// [`largest`] of `x`. Returns their sum. Elements of `weights` past the row's length become 0.
#[inline(always)]
pub(crate) fn integer_weights(x: &[f32], max: f32, weights: &mut [i16]) -> i32 {
    let (head, padding) = weights.split_at_mut(x.len());
    let mut sum = 0i32;
    for (w, x) in head.iter_mut().zip(x) {
        let weight = math::round_to_i32(ONE * math::exp2(*x - max));
        *w = weight as i16;
        sum = sum.wrapping_add(weight);
    }
    padding.fill(0);
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integer_weights_are_proportional() {
        let x: [f32; 37] = core::array::from_fn(|i| ((i * 7) % 13) as f32 * 0.4 - 6.0);
        let mut weights = [9; 40];
        let sum = integer_weights(&x, largest(&x), &mut weights);
        assert_eq!(sum, weights.iter().map(|&w| i32::from(w)).sum::<i32>());
        assert_eq!(weights[37..], [0; 3]);
        for (x, w) in x.iter().zip(weights) {
            let exact = 4095.0 * libm::exp2(f64::from(*x) - (12.0 * 0.4 - 6.0));
            assert!((exact - f64::from(w)).abs() < 0.53, "{exact} {w}");
        }
    }
}
