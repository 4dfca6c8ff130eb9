//! Multi-head self-attention over projected rows, a few queries at a time: no T×T buffer.

use core::ops::Range;

use super::softmax::softmax;
use crate::{
    kernels::{floats::Floats, scalar, step, Activation, Epilogue, Kernel, Rows, Weights},
    quant::ACTIVATION_BYTES,
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
    fn part(self, which: usize) -> Floats<'a> {
        Floats { data: &self.data[which * self.part..], stride: self.stride, width: self.width }
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
        let count = head.part(0).count();
        let scores = &mut work.scores[..count];
        for (query, out) in head.part(0).rows().take(queries.end).skip(queries.start).zip(out.chunks_mut(out_stride)) {
            for (score, key) in scores.iter_mut().zip(head.part(1).rows()) {
                *score = scalar::dot(query, key) * scale;
            }
            softmax(scores);
            let out = &mut out[..head.width];
            out.fill(0.0);
            for (p, value) in scores.iter().zip(head.part(2).rows()) {
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
    let (keys, values) = (&mut work.keys[..K::LAYOUT.elements(count, width)], &mut work.values[..pairs * 2 * width]);
    // The keys' plain bytes go to the place of the queries, which come later.
    k.quantise_keys(head.part(1), work.row, work.queries, keys, work.key_scales);
    k.quantise_values(head.part(2), work.row, values, work.value_scales);
    let keys = Weights { values: keys, layout: K::LAYOUT, cols: width };
    let factor = core::f32::consts::LOG2_E / libm::sqrtf(width as f32);
    let query_stride = K::LAYOUT.padded_cols(width) * ACTIVATION_BYTES;
    // Scores of whole panels: those past the last key are 0, and not read.
    let across = count.next_multiple_of(K::LAYOUT.nr.into());
    work.key_scales[count..across].fill(0.0);
    let together = work.together.min(work.scores.len() / across);
    for (block, out) in out.chunks_mut(together * out_stride).enumerate() {
        let first = queries.start + block * together;
        let rows = together.min(queries.end - first);
        let mut scales = [0.0; QUERIES];
        let queries = Floats { data: &data[first * stride..], stride, width };
        k.put_rows(queries, &mut work.queries[..rows * query_stride], query_stride, &mut scales[..rows]);
        scales.iter_mut().for_each(|scale| *scale *= factor);
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
        k.weigh(count, &work.scores[..rows * across], weights, &mut scales[..rows]);
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
