//! Attention around its products: rows by head and back, softmax with dropout, and its gradient.
//!
//! Tensors by head are `[G, P, C]`: G = images times heads, N tokens padded to P, C columns a head.

use burn::tensor::DType;
use burn_cubecl::cubecl::{self, prelude::*};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::CubeRuntime;

use super::dropout::{draws, factor, Draws};
use super::launch::{alike, by_row, fresh, one_each, ROW_UNITS};
use super::reduce::{largest, sum};
use crate::kernels::steps::{Drop, Heads};

#[cube(launch)]
fn split_kernel<F: Float>(
    rows: &Tensor<F>,
    bias: &Tensor<f32>,
    heads: &mut Tensor<F>,
    count: usize,
    tokens: usize,
    first: usize,
    #[comptime] biased: bool,
    #[define(F)] _dtype: StorageType,
) {
    let i = ABSOLUTE_POS;
    if i >= heads.len() {
        terminate!();
    }
    let (padded, columns) = (heads.shape(1), heads.shape(2));
    let (column, token, group) = (i % columns, (i / columns) % padded, i / (columns * padded));
    let mut value = F::cast_from(0.0f32);
    if token < tokens {
        let row = (group / count) * tokens + token;
        let column = first + (group % count) * columns + column;
        value = rows[row * rows.shape(1) + column];
        if comptime!(biased) {
            value = F::cast_from(f32::cast_from(value) + bias[column]);
        }
    }
    heads[i] = value;
}

/// Part `part` of `parts` of `rows` `[R, parts·D]`, by head, after `bias` `[1, parts·D]` has been added.
pub fn split<R: CubeRuntime>(
    rows: CubeTensor<R>,
    bias: Option<CubeTensor<R>>,
    part: usize,
    parts: usize,
    heads: Heads,
) -> CubeTensor<R> {
    let width = rows.meta.shape()[1] / parts;
    let groups = heads.batch * heads.count;
    let output = fresh(&rows, [groups, heads.padded(), width / heads.count], rows.dtype);
    let client = rows.client.clone();
    let (cubes, units) = one_each(&client, output.meta.num_elements());
    let (biased, dtype) = (bias.is_some(), rows.dtype.into());
    let bias = bias.unwrap_or_else(|| rows.clone()); // not read
    split_kernel::launch::<R>(
        &client,
        cubes,
        units,
        rows.into_tensor_arg(),
        bias.into_tensor_arg(),
        output.clone().into_tensor_arg(),
        heads.count,
        heads.tokens,
        part * width,
        biased,
        dtype,
    );
    output
}

#[cube(launch)]
fn join_kernel<F: Float>(
    heads: &Tensor<F>,
    rows: &mut Tensor<F>,
    count: usize,
    tokens: usize,
    first: usize,
    #[define(F)] _dtype: StorageType,
) {
    let (padded, columns) = (heads.shape(1), heads.shape(2));
    let width = count * columns;
    let (row, column) = (ABSOLUTE_POS / width, ABSOLUTE_POS % width);
    if row >= rows.shape(0) {
        terminate!();
    }
    let group = (row / tokens) * count + column / columns;
    rows[row * rows.shape(1) + first + column] = heads[(group * padded + row % tokens) * columns + column % columns];
}

/// The way back: parts by head to rows `[R, parts·D]`.
pub fn join<R: CubeRuntime, const PARTS: usize>(parts: [CubeTensor<R>; PARTS], heads: Heads) -> CubeTensor<R> {
    let (rows, width) = (heads.batch * heads.tokens, heads.count * parts[0].meta.shape()[2]);
    let output = fresh(&parts[0], [rows, PARTS * width], parts[0].dtype);
    for (i, part) in parts.into_iter().enumerate() {
        let client = part.client.clone();
        let (cubes, units) = one_each(&client, rows * width);
        let dtype = part.dtype.into();
        let (part, output) = (part.into_tensor_arg(), output.clone().into_tensor_arg());
        join_kernel::launch::<R>(&client, cubes, units, part, output, heads.count, heads.tokens, i * width, dtype);
    }
    output
}

#[cube(launch)]
fn along_kernel<F: Float>(
    a: &Tensor<F>,
    b: &Tensor<F>,
    sums: &mut Tensor<f32>,
    count: usize,
    tokens: usize,
    #[define(F)] _dtype: StorageType,
) {
    let i = ABSOLUTE_POS;
    if i >= sums.len() {
        terminate!();
    }
    let (padded, width) = (sums.shape(1), a.shape(1));
    let (token, group) = (i % padded, i / padded);
    let columns = width / count;
    let mut total = 0.0f32;
    if token < tokens {
        let first = ((group / count) * tokens + token) * width + (group % count) * columns;
        for column in 0..columns {
            total += f32::cast_from(a[first + column]) * f32::cast_from(b[first + column]);
        }
    }
    sums[i] = total;
}

/// The inner products of rows `a` and `b` `[R, D]`, head by head: `[G, P, 1]`.
pub fn along<R: CubeRuntime>(a: CubeTensor<R>, b: CubeTensor<R>, heads: Heads) -> CubeTensor<R> {
    let output = fresh(&a, [heads.batch * heads.count, heads.padded(), 1], DType::F32);
    let client = a.client.clone();
    let (cubes, units) = one_each(&client, output.meta.num_elements());
    let dtype = a.dtype.into();
    let [a, b, sums] = [a, b, output.clone()].map(CubeTensor::into_tensor_arg);
    along_kernel::launch::<R>(&client, cubes, units, a, b, sums, heads.count, heads.tokens, dtype);
    output
}

#[cube(launch)]
fn attend_kernel<F: Float>(
    scores: &Tensor<F>,
    weights: &mut Tensor<F>,
    sums: &mut Tensor<f32>,
    tokens: usize,
    scale: f32,
    draws: &Draws,
    #[comptime] units: usize,
    #[define(F)] _dtype: StorageType,
) {
    let row = CUBE_POS;
    if row >= sums.len() {
        terminate!();
    }
    let (padded, unit) = (sums.shape(1), UNIT_POS_X as usize);
    let first = row * padded;
    // A padded row has no columns: its weights are zeros.
    let columns = select(row % padded < tokens, tokens, 0usize);
    let mut high = f32::min_value();
    let mut column = unit;
    while column < columns {
        high = max(high, f32::cast_from(scores[first + column]) * scale);
        column += units;
    }
    let high = largest(high, units);
    let mut total = 0.0f32;
    let mut column = unit;
    while column < columns {
        total += (f32::cast_from(scores[first + column]) * scale - high).exp();
        column += units;
    }
    let total = sum(total, units).ln() + high;
    if unit == 0 {
        sums[row] = select(columns > 0, total, 0.0f32);
    }
    let drawn = ((row / padded) * tokens + row % padded) * tokens; // numbers are drawn for what is no padding
    let mut column = unit;
    while column < padded {
        let mut weight = 0.0f32;
        if column < columns {
            let kept = (f32::cast_from(scores[first + column]) * scale - total).exp();
            weight = kept * factor(draws, drawn + column);
        }
        weights[first + column] = F::cast_from(weight);
        column += units;
    }
}

/// [`Steps::attend`](crate::kernels::steps::Steps::attend): one cube a row.
pub fn attend<R: CubeRuntime>(scores: CubeTensor<R>, tokens: usize, scale: f32, drop: Drop) -> [CubeTensor<R>; 2] {
    let [groups, padded, _] = scores.meta.shape().dims();
    let weights = fresh(&scores, [groups, padded, padded], scores.dtype);
    let sums = fresh(&scores, [groups, padded, 1], DType::F32);
    let client = scores.client.clone();
    let (cubes, units) = by_row(&client, groups * padded);
    let dtype = scores.dtype.into();
    let (scores, draws) = (scores.into_tensor_arg(), draws(&drop));
    let (to, logs) = (weights.clone().into_tensor_arg(), sums.clone().into_tensor_arg());
    attend_kernel::launch::<R>(&client, cubes, units, scores, to, logs, tokens, scale, draws, ROW_UNITS, dtype);
    [weights, sums]
}

#[cube(launch)]
fn attend_backward_kernel<F: Float>(
    scores: &Tensor<F>,
    sums: &Tensor<f32>,
    dweights: &Tensor<F>,
    along: &Tensor<f32>,
    weights: &mut Tensor<F>,
    dscores: &mut Tensor<F>,
    tokens: usize,
    scale: f32,
    draws: &Draws,
    #[define(F)] _dtype: StorageType,
) {
    let i = ABSOLUTE_POS;
    if i >= scores.len() {
        terminate!();
    }
    let padded = sums.shape(1);
    let (row, column) = (i / padded, i % padded);
    let mut weight = 0.0f32;
    let mut gradient = 0.0f32;
    if row % padded < tokens && column < tokens {
        let kept = (f32::cast_from(scores[i]) * scale - sums[row]).exp();
        let factor = factor(draws, ((row / padded) * tokens + row % padded) * tokens + column);
        weight = kept * factor;
        gradient = kept * (f32::cast_from(dweights[i]) * factor - along[row]) * scale;
    }
    weights[i] = F::cast_from(weight);
    dscores[i] = F::cast_from(gradient);
}

/// [`Steps::attend_backward`](crate::kernels::steps::Steps::attend_backward): one unit an element.
pub fn attend_backward<R: CubeRuntime>(
    [scores, sums, dweights, along]: [CubeTensor<R>; 4],
    tokens: usize,
    scale: f32,
    drop: Drop,
) -> [CubeTensor<R>; 2] {
    let outputs = [(); 2].map(|()| alike(&scores, scores.dtype));
    let client = scores.client.clone();
    let (cubes, units) = one_each(&client, scores.meta.num_elements());
    let dtype = scores.dtype.into();
    let [scores, sums, dweights, along] = [scores, sums, dweights, along].map(CubeTensor::into_tensor_arg);
    let [weights, dscores] = outputs.clone().map(CubeTensor::into_tensor_arg);
    let draws = draws(&drop);
    attend_backward_kernel::launch::<R>(
        &client, cubes, units, scores, sums, dweights, along, weights, dscores, tokens, scale, draws, dtype,
    );
    outputs
}
