//! LayerNorm of rows, and its gradients.

use burn::tensor::DType;
use burn_cubecl::cubecl::{self, prelude::*};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::CubeRuntime;

use super::launch::{by_row, fresh, ROW_UNITS};
use super::reduce::sum;

/// Mean and `1 / sqrt(variance + eps)` of a row that starts at `first`.
#[cube]
fn moments(x: &Tensor<f32>, first: usize, columns: usize, eps: f32, #[comptime] units: usize) -> (f32, f32) {
    let unit = UNIT_POS_X as usize;
    let mut total = 0.0f32;
    let mut column = unit;
    while column < columns {
        total += x[first + column];
        column += units;
    }
    let mean = sum(total, units) / columns as f32;
    let mut total = 0.0f32;
    let mut column = unit;
    while column < columns {
        let centred = x[first + column] - mean;
        total += centred * centred;
        column += units;
    }
    let scale = (sum(total, units) / columns as f32 + eps).sqrt().recip();
    (mean, scale)
}

#[cube(launch)]
fn norm_kernel<F: Float>(
    x: &Tensor<f32>,
    weight: &Tensor<f32>,
    bias: &Tensor<f32>,
    y: &mut Tensor<F>,
    eps: f32,
    #[comptime] units: usize,
    #[define(F)] _dtype: StorageType,
) {
    let columns = weight.len();
    let (row, unit) = (CUBE_POS, UNIT_POS_X as usize);
    let first = row * columns;
    if first >= x.len() {
        terminate!();
    }
    let (mean, scale) = moments(x, first, columns, eps, units);
    let mut column = unit;
    while column < columns {
        y[first + column] = F::cast_from((x[first + column] - mean) * scale * weight[column] + bias[column]);
        column += units;
    }
}

/// [`Steps::norm`](crate::kernels::steps::Steps::norm): one cube a row.
pub fn norm<R: CubeRuntime>(
    x: CubeTensor<R>,
    weight: CubeTensor<R>,
    bias: CubeTensor<R>,
    eps: f32,
    dtype: DType,
) -> CubeTensor<R> {
    let [rows, columns] = x.meta.shape().dims();
    let output = fresh(&x, [rows, columns], dtype);
    let client = x.client.clone();
    let (cubes, units) = by_row(&client, rows);
    let [x, weight, bias, y] = [x, weight, bias, output.clone()].map(CubeTensor::into_tensor_arg);
    norm_kernel::launch::<R>(&client, cubes, units, x, weight, bias, y, eps, ROW_UNITS, dtype.into());
    output
}

#[cube(launch)]
fn norm_backward_kernel<F: Float>(
    x: &Tensor<f32>,
    weight: &Tensor<f32>,
    dy: &Tensor<F>,
    beside: &Tensor<f32>,
    dx: &mut Tensor<f32>,
    dweight: &mut Tensor<f32>,
    dbias: &mut Tensor<f32>,
    eps: f32,
    #[comptime] units: usize,
    #[comptime] columns_a_unit: usize,
    #[comptime] added: bool,
    #[define(F)] _dtype: StorageType,
) {
    let columns = weight.len();
    let (part, unit) = (CUBE_POS, UNIT_POS_X as usize);
    let (parts, rows) = (dweight.shape(0), x.shape(0));
    if part >= parts {
        terminate!();
    }
    let mut dweights = Array::<f32>::new(columns_a_unit);
    let mut dbiases = Array::<f32>::new(columns_a_unit);
    for i in 0..columns_a_unit {
        dweights[i] = 0.0f32;
        dbiases[i] = 0.0f32;
    }
    let mut row = part;
    while row < rows {
        let first = row * columns;
        let (mean, scale) = moments(x, first, columns, eps, units);
        let mut total = 0.0f32;
        let mut along = 0.0f32;
        let mut column = unit;
        for i in 0..columns_a_unit {
            if column < columns {
                let standard = (x[first + column] - mean) * scale;
                let gradient = f32::cast_from(dy[first + column]);
                dweights[i] += gradient * standard;
                dbiases[i] += gradient;
                total += gradient * weight[column];
                along += gradient * weight[column] * standard;
            }
            column += units;
        }
        let total = sum(total, units) / columns as f32;
        let along = sum(along, units) / columns as f32;
        let mut column = unit;
        while column < columns {
            let standard = (x[first + column] - mean) * scale;
            let gradient = f32::cast_from(dy[first + column]) * weight[column];
            let mut slope = (gradient - total - standard * along) * scale;
            if comptime!(added) {
                slope += beside[first + column];
            }
            dx[first + column] = slope;
            column += units;
        }
        row += parts;
    }
    let mut column = unit;
    for i in 0..columns_a_unit {
        if column < columns {
            dweight[part * columns + column] = dweights[i];
            dbias[part * columns + column] = dbiases[i];
        }
        column += units;
    }
}

/// [`Steps::norm_backward`](crate::kernels::steps::Steps::norm_backward), where the gradients of weight and bias come in
/// parts that are yet to be added: every cube goes over some rows, every unit keeps the sums of its columns.
pub fn norm_backward<R: CubeRuntime>(
    x: CubeTensor<R>,
    weight: CubeTensor<R>,
    dy: CubeTensor<R>,
    beside: Option<CubeTensor<R>>,
    eps: f32,
) -> [CubeTensor<R>; 3] {
    const PARTS: usize = 1024; // enough to fill the largest GPUs
    let [rows, columns] = x.meta.shape().dims();
    let parts = rows.min(PARTS);
    let outputs = [
        fresh(&x, [rows, columns], DType::F32),
        fresh(&x, [parts, columns], DType::F32),
        fresh(&x, [parts, columns], DType::F32),
    ];
    let client = x.client.clone();
    let (cubes, units) = by_row(&client, parts);
    let (added, dtype) = (beside.is_some(), dy.dtype.into());
    let beside = beside.unwrap_or_else(|| x.clone()); // not read
    let [x, weight, dy, beside] = [x, weight, dy, beside].map(CubeTensor::into_tensor_arg);
    let [dx, dweight, dbias] = outputs.clone().map(CubeTensor::into_tensor_arg);
    let columns_a_unit = columns.div_ceil(ROW_UNITS);
    norm_backward_kernel::launch::<R>(
        &client,
        cubes,
        units,
        x,
        weight,
        dy,
        beside,
        dx,
        dweight,
        dbias,
        eps,
        ROW_UNITS,
        columns_a_unit,
        added,
        dtype,
    );
    outputs
}
