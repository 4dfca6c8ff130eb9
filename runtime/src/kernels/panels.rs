//! The walk over weights in panels of 16 outputs, `[N/16, K/4, 16, 4]`, that several instruction sets share. What
//! differs is the tile: one panel times a few rows.

use core::ops::Range;

use super::{Epilogue, Weights, LANES};
use crate::quant::Layout;

/// Inputs that lie side by side for an output.
pub(super) const KT: usize = 4;
/// The order of weights.
pub(super) const LAYOUT: Layout = Layout { nr: LANES as u8, kt: KT as u8 };

/// One panel of weights, and rows of numbers (bytes, or 16 bits) to multiply it with.
#[derive(Clone, Copy)]
pub(super) struct Tile<'a, T> {
    /// `[steps, 16, 4]`
    pub weights: &'a [i8],
    /// Row `r` starts at `r * stride`.
    pub x: &'a [T],
    pub stride: usize,
    /// A row has `4 * steps` numbers.
    pub steps: usize,
}

impl<T> Tile<'_, T> {
    /// Panics unless there are `rows` rows (at least one) and the weights; pointers may rely on it.
    #[inline(always)]
    pub fn check(&self, rows: usize) {
        assert!(self.weights.len() >= self.steps * LANES * KT);
        assert!(self.x.len() >= (rows - 1) * self.stride + self.steps * KT);
    }
}

/// [`super::Kernel::gemm`] in tiles of up to `MR` rows: `tile(panel and rows, number of rows, sums)`.
#[inline(always)]
pub(super) fn gemm<T, const MR: usize>(
    weights: Weights<'_>,
    (x, stride, count): (&[T], usize, usize),
    outputs: Range<usize>,
    epilogue: &mut Epilogue<'_>,
    tile: impl Fn(Tile<'_, T>, usize, &mut [[i32; LANES]; MR]),
) {
    let steps = weights.cols.div_ceil(KT);
    let panels = weights.values.chunks_exact((steps * LANES * KT).max(1)).enumerate();
    for (panel, weights) in panels.take(outputs.end.div_ceil(LANES)).skip(outputs.start / LANES) {
        for row in (0..count).step_by(MR) {
            let rows = MR.min(count - row);
            let mut sums = [[0; LANES]; MR];
            tile(Tile { weights, x: &x[row * stride..], stride, steps }, rows, &mut sums);
            for (r, sums) in sums.iter().enumerate().take(rows) {
                epilogue.put(row + r, panel * LANES, core::array::from_ref(sums));
            }
        }
    }
}

/// Rows of attention weights and 16 outputs of values to multiply them with.
#[derive(Clone, Copy)]
pub(super) struct Mixture<'a> {
    /// Row `r` starts at `r * stride` and has `2 * pairs` weights.
    pub p: &'a [i16],
    pub stride: usize,
    pub pairs: usize,
    /// Pair `t` has its `[16, 2]` values at `t * v_stride`.
    pub v: &'a [i16],
    pub v_stride: usize,
}

impl Mixture<'_> {
    /// Panics unless there are `rows` rows (at least one) and the values; pointers may rely on it.
    #[inline(always)]
    pub fn check(&self, rows: usize) {
        assert!(self.pairs > 0 && self.p.len() >= (rows - 1) * self.stride + 2 * self.pairs);
        assert!(self.v.len() >= (self.pairs - 1) * self.v_stride + 2 * LANES);
    }
}

/// [`super::Kernel::mix`] in tiles of up to `MR` rows: `tile(rows and values, number of rows, sums)` adds to the sums.
#[inline(always)]
pub(super) fn mix<const MR: usize>(
    p: &[i16],
    pairs: usize,
    v: &[i16],
    width: usize,
    epilogue: &mut Epilogue<'_>,
    tile: impl Fn(Mixture<'_>, usize, &mut [[i32; LANES]; MR]),
) {
    /// Pairs of tokens that are padded together where the width ends.
    const TOGETHER: usize = 16;
    let stride = 2 * pairs;
    let count = p.len() / stride.max(1);
    for start in (0..width).step_by(LANES) {
        let there = LANES.min(width - start);
        for row in (0..count).step_by(MR) {
            let rows = MR.min(count - row);
            let p = &p[row * stride..];
            let mut sums = [[0; LANES]; MR];
            if there == LANES {
                let all = Mixture { p, stride, pairs, v: &v[2 * start..], v_stride: 2 * width };
                tile(all, rows, &mut sums);
            } else {
                for first in (0..pairs).step_by(TOGETHER) {
                    let pairs = TOGETHER.min(pairs - first);
                    let mut padded = [[0; 2 * LANES]; TOGETHER];
                    for (to, from) in padded.iter_mut().zip(v.chunks_exact(2 * width).skip(first)) {
                        to[..2 * there].copy_from_slice(&from[2 * start..]);
                    }
                    let v = padded.as_flattened();
                    tile(Mixture { p: &p[2 * first..], stride, pairs, v, v_stride: 2 * LANES }, rows, &mut sums);
                }
            }
            for (r, sums) in sums.iter().enumerate().take(rows) {
                epilogue.put(row + r, start, core::array::from_ref(sums));
            }
        }
    }
}

/// `by_rows!(rows, 1 2 3 4, R => body)`: the body with `R` as a constant.
macro_rules! by_rows {
    ($rows:expr, $($n:literal)*, $r:ident => $body:expr) => {
        match $rows {
            $($n => {
                const $r: usize = $n;
                $body
            })*
            _ => unreachable!("more rows than a tile has"),
        }
    };
}
pub(super) use by_rows;
