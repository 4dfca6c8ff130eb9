//! Inner loops in plain Rust: the specification of every kernel.

use core::ops::Range;

use super::{bytes::as_i8, Epilogue, Int4, Kernel, Rows, Weights, LANES};
use crate::quant::{int4, Layout};

/// Runs on every CPU.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(any(sorcen_dsp, sorcen_mve), allow(dead_code))] // a microcontroller has its own
pub(crate) struct Scalar;

impl Kernel for Scalar {
    const NAME: &'static str = "scalar";
}

/// [`Kernel::gemm`] for weights in any order and rows of plain int8.
#[inline(always)]
pub(crate) fn gemm(weights: Weights<'_>, rows: Rows<'_>, outputs: Range<usize>, epilogue: &mut Epilogue<'_>) {
    let (padded, nr) = (weights.layout.padded_cols(weights.cols), usize::from(weights.layout.nr));
    let x = as_i8(rows.values);
    let rows = || x.chunks(rows.stride.max(1)).take(rows.count).enumerate();
    if weights.layout == Layout::ROW_MAJOR {
        for (output, w) in weights.values.chunks_exact(padded.max(1)).enumerate().take(outputs.end).skip(outputs.start)
        {
            for (row, x) in rows() {
                epilogue.put_one(row, output, dot_i8(&x[..padded], w));
            }
        }
        return;
    }
    let kt = weights.layout.tile_cols(padded).max(1);
    let first = outputs.start / nr;
    // A band holds `nr` outputs; a tile of it `kt` columns of each.
    for (band, values) in weights.values.chunks_exact((nr * padded).max(1)).enumerate().skip(first) {
        if band * nr >= outputs.end {
            break;
        }
        for (row, x) in rows() {
            let mut sums = [0i32; Layout::MAX_NR];
            for (tile, x) in values.chunks_exact(nr * kt).zip(x.chunks_exact(kt)) {
                for (sum, w) in sums.iter_mut().zip(tile.chunks_exact(kt)) {
                    *sum += dot_i8(x, w);
                }
            }
            for (i, sum) in sums.iter().enumerate().take(nr) {
                epilogue.put_one(row, band * nr + i, *sum);
            }
        }
    }
}

/// [`Kernel::gemm_int4`] for weights in any order and rows of plain int8: a group's sum times its multiplier.
#[inline(always)]
pub(crate) fn gemm_int4(weights: Int4<'_>, rows: Rows<'_>, outputs: Range<usize>, epilogue: &mut Epilogue<'_>) {
    /// Rows that a group of weights is unpacked for.
    const TOGETHER: usize = 16;
    let x = as_i8(rows.values);
    let width = weights.groups * int4::GROUP;
    for output in outputs {
        for first in (0..rows.count).step_by(TOGETHER) {
            let count = TOGETHER.min(rows.count - first);
            let mut sums = [0i32; TOGETHER];
            for group in 0..weights.groups {
                let (w, multiplier) = weights.group(output, group);
                for (i, sum) in sums.iter_mut().enumerate().take(count) {
                    let row = &x[(first + i) * rows.stride..][..width];
                    *sum += multiplier * dot_i8(&row[group * int4::GROUP..][..int4::GROUP], &w);
                }
            }
            for (i, sum) in sums.iter().enumerate().take(count) {
                epilogue.put_one(first + i, output, *sum);
            }
        }
    }
}

/// [`Kernel::mix`].
#[inline(always)]
pub(crate) fn mix(p: &[i16], pairs: usize, v: &[i16], width: usize, epilogue: &mut Epilogue<'_>) {
    for (row, p) in p.chunks_exact((2 * pairs).max(1)).enumerate() {
        for start in (0..width).step_by(LANES) {
            let count = LANES.min(width - start);
            let mut sums = [0i32; LANES];
            for (p, v) in p.chunks_exact(2).zip(v.chunks_exact(2 * width)) {
                for (sum, v) in sums.iter_mut().zip(v[2 * start..][..2 * count].chunks_exact(2)) {
                    let pair = i32::from(p[0]) * i32::from(v[0]) + i32::from(p[1]) * i32::from(v[1]);
                    *sum = sum.wrapping_add(pair);
                }
            }
            for (i, sum) in sums.iter().enumerate().take(count) {
                epilogue.put_one(row, start + i, *sum);
            }
        }
    }
}

/// Exact integer dot product; lengths agree and stay below 2^17, so that nothing overflows.
#[inline(always)]
fn dot_i8(a: &[i8], b: &[i8]) -> i32 {
    a.iter().zip(b).map(|(&a, &b)| i32::from(a) * i32::from(b)).sum()
}

/// Joins the partial sums of lanes in a fixed tree: halves onto halves.
#[inline(always)]
fn join(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// `sum(term(a_i, b_i))` in the fixed lane order; element `i` belongs to lane `i % LANES`.
#[inline(always)]
fn reduce(a: &[f32], b: &[f32], term: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (a_full, b_full) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let (a_rest, b_rest) = (a_full.remainder(), b_full.remainder());
    for (a, b) in a_full.zip(b_full) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += term(*a, *b);
        }
    }
    for ((lane, a), b) in lanes.iter_mut().zip(a_rest).zip(b_rest) {
        *lane += term(*a, *b);
    }
    join(lanes)
}

/// Dot product of two slices of the same length.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    reduce(a, b, |a, b| a * b)
}

/// Sum of a slice.
#[inline(always)]
pub(crate) fn sum(a: &[f32]) -> f32 {
    reduce(a, a, |a, _| a)
}

/// Sum of squared distances from `mean`.
#[inline(always)]
pub(crate) fn sum_of_squares_from(a: &[f32], mean: f32) -> f32 {
    reduce(a, a, |a, _| (a - mean) * (a - mean))
}

/// [`reduce`] of each of `N` rows, `x` `[N, D]`, side by side.
#[inline(always)]
fn reduce_rows<const N: usize>(x: &[f32], term: impl Fn(usize, f32) -> f32) -> [f32; N] {
    let dim = x.len() / N;
    let mut lanes = [[0.0; LANES]; N];
    for start in (0..dim - dim % LANES).step_by(LANES) {
        for (n, lanes) in lanes.iter_mut().enumerate() {
            let x = &x[n * dim + start..][..LANES];
            for i in 0..LANES {
                lanes[i] += term(n, x[i]);
            }
        }
    }
    let mut sums = [0.0; N];
    for (n, (lanes, sum)) in lanes.iter_mut().zip(&mut sums).enumerate() {
        let rest = &x[..(n + 1) * dim][n * dim + dim - dim % LANES..];
        for (lane, x) in lanes.iter_mut().zip(rest) {
            *lane += term(n, *x);
        }
        *sum = join(*lanes);
    }
    sums
}

/// [`sum`] of each of `N` rows, `a` `[N, D]`.
#[inline(always)]
pub(crate) fn sum_rows<const N: usize>(a: &[f32]) -> [f32; N] {
    reduce_rows(a, |_, a| a)
}

/// [`sum_of_squares_from`] of each of `N` rows, `a` `[N, D]`.
#[inline(always)]
pub(crate) fn sum_of_squares_from_rows<const N: usize>(a: &[f32], means: &[f32; N]) -> [f32; N] {
    reduce_rows(a, |n, a| (a - means[n]) * (a - means[n]))
}

/// Squared distance of two vectors of one length.
#[inline(always)]
pub(crate) fn squared_distance(a: &[f32], b: &[f32]) -> f32 {
    reduce(a, b, |a, b| (a - b) * (a - b))
}

/// Largest `key(x)`, `least` for an empty slice. Any order gives the same.
#[inline(always)]
pub(crate) fn max(x: &[f32], least: f32, key: impl Fn(f32) -> f32) -> f32 {
    let larger = |m: f32, v: f32| if v > m { v } else { m };
    let Some(last) = x.last_chunk::<LANES>() else { return x.iter().fold(least, |m, x| larger(m, key(*x))) };
    // The last chunk may overlap the one before.
    let mut lanes = last.map(|x| larger(least, key(x)));
    for x in x.as_chunks::<LANES>().0 {
        for i in 0..LANES {
            lanes[i] = larger(lanes[i], key(x[i]));
        }
    }
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = larger(lanes[i], lanes[i + half]);
        }
        half /= 2;
    }
    lanes[0]
}

/// `y += p * v`, element by element.
#[inline(always)]
pub(crate) fn add_scaled(y: &mut [f32], p: f32, v: &[f32]) {
    for (y, v) in y.iter_mut().zip(v) {
        *y += p * *v;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    super::super::suite::suite!(Some(Scalar));

    #[test]
    fn sums_follow_the_lanes() {
        let a: [f32; 35] = core::array::from_fn(|i| (i as f32 - 7.0) * 0.37);
        let b: [f32; 35] = core::array::from_fn(|i| (i as f32 * 1.7) - 3.0);
        let mut lanes = [0.0f32; LANES];
        for i in 0..35 {
            lanes[i % LANES] += a[i] * b[i];
        }
        assert_eq!(dot(&a, &b).to_bits(), join(lanes).to_bits());
        let exact: f64 = a.iter().map(|&x| f64::from(x)).sum();
        assert!((f64::from(sum(&a)) - exact).abs() < 1e-4);
        let exact: f64 = a.iter().map(|&x| (f64::from(x) - 0.5).powi(2)).sum();
        assert!((f64::from(sum_of_squares_from(&a, 0.5)) - exact).abs() < 1e-3);
        assert_eq!(max(&a, f32::NEG_INFINITY, |x| x), a[34]);
        assert_eq!(max(&a[..7], 0.0, f32::abs), 7.0 * 0.37);
    }

    #[test]
    fn integer_dot_takes_the_extremes() {
        assert_eq!(dot_i8(&[-128; 1000], &[-128; 1000]), 16_384_000);
        assert_eq!(dot_i8(&[1, -2, 3], &[4, 5, -6]), -24);
    }
}
