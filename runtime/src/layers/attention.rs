//! Multi-head self-attention over projected rows, a few queries at a time: no T×T buffer.

use core::ops::Range;

use super::{
    linear::quantise,
    softmax::{integer_weights, largest, softmax},
};
use crate::{
    kernels::{bytes::as_i8_mut, scalar, step, Activation, Epilogue, Kernel, Rows, Weights},
    quant::{self, ACTIVATION_BYTES},
};

/// Queries that attend together, at most.
pub(crate) const QUERIES: usize = 24;

/// The projections of one head: row `i`'s query starts at `data[i * stride]`, its key `part`
/// further, its value `2 * part` further, each `width` wide.
#[derive(Clone, Copy)]
pub(crate) struct Head<'a> {
    pub data: &'a [f32],
    pub stride: usize,
    pub part: usize,
    pub width: usize,
}

impl<'a> Head<'a> {
    /// The queries (0), keys (1) or values (2) of all rows.
    #[inline(always)]
    fn rows(self, which: usize) -> impl Iterator<Item = &'a [f32]> {
        self.data.chunks(self.stride).map(move |row| &row[which * self.part..][..self.width])
    }
}

/// What one head needs to work in; sizes in [`crate::scratch`].
pub(crate) struct HeadWork<'w> {
    /// Queries that attend together: there is room for so many.
    pub together: usize,
    /// Quantised keys in the kernel's layout, and their scales.
    pub keys: &'w mut [i8],
    pub key_scales: &'w mut [f32],
    /// Quantised values `[ceil(T / 2), width, 2]` and a scale each channel.
    pub values: &'w mut [i16],
    pub value_scales: &'w mut [f32],
    /// `[queries, T]`, a little more where the kernel takes whole panels of keys.
    pub scores: &'w mut [f32],
    /// `[queries, 2 * ceil(T / 2)]`
    pub weights: &'w mut [i16],
    /// Quantised queries.
    pub queries: &'w mut [u8],
    /// `[2, width]`
    pub row: &'w mut [f32],
}

step! {
    /// Attention of some queries of one head into `out` (the first of them at `out[0]`, the next at `out[out_stride]`),
    /// in floats.
    pub(crate) fn attend_float(
        k, head: Head<'_>, queries: Range<usize>, work: &mut HeadWork<'_>, out: &mut [f32], out_stride: usize,
    ) {
        let scale = 1.0 / libm::sqrtf(head.width as f32);
        let count = head.rows(0).count();
        let scores = &mut work.scores[..count];
        for (query, out) in head.rows(0).take(queries.end).skip(queries.start).zip(out.chunks_mut(out_stride)) {
            for (score, key) in scores.iter_mut().zip(head.rows(1)) {
                *score = scalar::dot(query, key) * scale;
            }
            softmax(scores);
            let out = &mut out[..head.width];
            out.fill(0.0);
            for (p, value) in scores.iter().zip(head.rows(2)) {
                scalar::add_scaled(out, *p, value);
            }
        }
    }
}

/// Attention of some queries of one head into `out` (the first of them at `out[0]`, the next at `out[out_stride]`), in
/// exact integer products.
///
/// Queries and keys are quantised a row, values a channel; attention weights have 12 bits. The mean
/// key is taken off all keys first: that changes no softmax, and keys share large offsets.
#[inline(always)]
pub(crate) fn attend<K: Kernel>(
    k: K,
    head: Head<'_>,
    queries: Range<usize>,
    work: &mut HeadWork<'_>,
    out: &mut [f32],
    out_stride: usize,
) {
    let Head { data, stride, width, .. } = head;
    let count = data.len().div_ceil(stride);
    let pairs = count.div_ceil(2);
    quantise_keys(k, head, count, work);
    quantise_values(k, head, work);
    let padded = K::LAYOUT.padded_cols(width);
    let keys = Weights { values: &work.keys[..K::LAYOUT.elements(count, width)], layout: K::LAYOUT, cols: width };
    let values = &work.values[..pairs * 2 * width];
    let factor = core::f32::consts::LOG2_E / libm::sqrtf(width as f32);
    let query_stride = padded * ACTIVATION_BYTES;
    // Scores of whole panels: those past the last key are 0, and not read.
    let across = count.next_multiple_of(K::LAYOUT.nr.into());
    work.key_scales[count..across].fill(0.0);
    let together = work.together.min(work.scores.len() / across);
    for (block, out) in out.chunks_mut(together * out_stride).enumerate() {
        let first = queries.start + block * together;
        let rows = together.min(queries.end - first);
        let mut scales = [0.0; QUERIES];
        let queries = Head { data: &data[first * stride..], ..head };
        quantise_queries(k, queries, factor, &mut work.queries[..rows * query_stride], &mut scales[..rows]);
        let queries = Rows { values: &*work.queries, stride: query_stride, count: rows };
        let mut epilogue = Epilogue {
            scales: &work.key_scales[..across],
            bias: None,
            row_scales: &scales[..rows],
            outputs: 0..across,
            out: &mut work.scores[..rows * across],
            stride: across,
            activation: Activation::Store,
        };
        k.gemm(keys, queries, 0..across, &mut epilogue); // [r, T]
        let weights = &mut work.weights[..rows * 2 * pairs];
        weigh(k, count, &work.scores[..rows * across], weights, &mut scales[..rows]);
        let mut epilogue = Epilogue {
            scales: &work.value_scales[..width],
            bias: None,
            row_scales: &scales[..rows],
            outputs: 0..width,
            out,
            stride: out_stride,
            activation: Activation::Store,
        };
        k.mix(weights, pairs, values, width, &mut epilogue); // [r, width]
    }
}

step! {
    /// Keys less their mean, quantised a row, into the kernel's layout.
    fn quantise_keys(k, head: Head<'_>, count: usize, work: &mut HeadWork<'_>) {
        let width = head.width;
        let (mean, row) = work.row.split_at_mut(width);
        let row = &mut row[..width];
        mean.fill(0.0);
        for key in head.rows(1) {
            mean.iter_mut().zip(key).for_each(|(mean, key)| *mean += *key);
        }
        mean.iter_mut().for_each(|mean| *mean /= count as f32);
        let padded = K::LAYOUT.padded_cols(width);
        let kt = K::LAYOUT.tile_cols(padded);
        work.keys[..K::LAYOUT.elements(count, width)].fill(0);
        // Plain bytes first, in the place of the queries, which come later.
        let bytes = as_i8_mut(&mut work.queries[..padded]);
        for (j, key) in head.rows(1).enumerate() {
            row.iter_mut().zip(key).zip(&*mean).for_each(|((row, key), mean)| *row = *key - *mean);
            work.key_scales[j] = quant::quantise_row(row, bytes);
            for (tile, bytes) in bytes.chunks_exact(kt).enumerate() {
                let at = K::LAYOUT.index(j, tile * kt, width);
                work.keys[at..at + kt].copy_from_slice(bytes);
            }
        }
    }
}

step! {
    /// Values quantised a channel, in pairs of tokens.
    fn quantise_values(k, head: Head<'_>, work: &mut HeadWork<'_>) {
        let width = head.width;
        let (inverses, max) = work.row.split_at_mut(width);
        let max = &mut max[..width];
        max.fill(0.0);
        for value in head.rows(2) {
            for (max, value) in max.iter_mut().zip(value) {
                let value = value.abs();
                *max = if value > *max { value } else { *max };
            }
        }
        for ((inverse, scale), max) in inverses.iter_mut().zip(&mut *work.value_scales).zip(&*max) {
            (*inverse, *scale) = quant::scale_of(*max);
        }
        max.fill(0.0); // a value of zeros, for the last pair of an odd number
        let (mut values, zero) = (head.rows(2), &*max);
        for pair in work.values.chunks_exact_mut(2 * width) {
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
    /// Queries quantised a row, in the kernel's form; their scales take up `factor`.
    fn quantise_queries(k, queries: Head<'_>, factor: f32, out: &mut [u8], scales: &mut [f32]) {
        let stride = out.len() / scales.len();
        for (query, scale) in queries.rows(0).zip(&mut *scales) {
            *scale = quant::max_abs(query);
        }
        for ((query, q), scale) in queries.rows(0).zip(out.chunks_exact_mut(stride)).zip(scales) {
            *scale = quantise(k, K::LAYOUT, query, *scale, q) * factor;
        }
    }
}

step! {
    /// Attention weights of rows of `count` scores, and what to multiply their products with.
    fn weigh(k, count: usize, scores: &[f32], weights: &mut [i16], scales: &mut [f32]) {
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
