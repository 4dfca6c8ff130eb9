//! What is done to each element: bias, GELU, dropout, residual sums; and the sums of columns that biases need.

use std::f32::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

use burn::tensor::DType;
use burn_cubecl::cubecl::{self, prelude::*};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::CubeRuntime;

use super::dropout::{draws, factor, Draws};
use super::launch::{alike, fresh, one_each};
use crate::kernels::steps::Drop;

/// The standard normal distribution function.
#[cube]
fn cumulative(x: f32) -> f32 {
    (Erf::erf(x * FRAC_1_SQRT_2) + 1.0f32) * 0.5f32
}

#[cube(launch)]
fn activate_kernel<F: Float>(
    hidden: &Tensor<F>,
    bias: &Tensor<f32>,
    y: &mut Tensor<F>,
    draws: &Draws,
    #[define(F)] _dtype: StorageType,
) {
    let i = ABSOLUTE_POS;
    if i >= hidden.len() {
        terminate!();
    }
    let x = f32::cast_from(hidden[i]) + bias[i % bias.len()];
    y[i] = F::cast_from(x * cumulative(x) * factor(draws, i));
}

/// [`Steps::activate`](crate::kernels::steps::Steps::activate).
pub fn activate<R: CubeRuntime>(hidden: CubeTensor<R>, bias: CubeTensor<R>, drop: Drop) -> CubeTensor<R> {
    let output = alike(&hidden, hidden.dtype);
    let client = hidden.client.clone();
    let (cubes, units) = one_each(&client, hidden.meta.num_elements());
    let dtype = hidden.dtype.into();
    let [hidden, bias, y] = [hidden, bias, output.clone()].map(CubeTensor::into_tensor_arg);
    activate_kernel::launch::<R>(&client, cubes, units, hidden, bias, y, draws(&drop), dtype);
    output
}

#[cube(launch)]
fn activate_backward_kernel<F: Float>(
    hidden: &Tensor<F>,
    bias: &Tensor<f32>,
    dy: &Tensor<F>,
    dhidden: &mut Tensor<F>,
    draws: &Draws,
    #[define(F)] _dtype: StorageType,
) {
    let i = ABSOLUTE_POS;
    if i >= hidden.len() {
        terminate!();
    }
    let x = f32::cast_from(hidden[i]) + bias[i % bias.len()];
    let density = (x * x * -0.5f32).exp() * comptime!(0.5 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2);
    let slope = cumulative(x) + x * density;
    dhidden[i] = F::cast_from(f32::cast_from(dy[i]) * factor(draws, i) * slope);
}

/// [`Steps::activate_backward`](crate::kernels::steps::Steps::activate_backward).
pub fn activate_backward<R: CubeRuntime>(
    hidden: CubeTensor<R>,
    bias: CubeTensor<R>,
    dy: CubeTensor<R>,
    drop: Drop,
) -> CubeTensor<R> {
    let output = alike(&hidden, hidden.dtype);
    let client = hidden.client.clone();
    let (cubes, units) = one_each(&client, hidden.meta.num_elements());
    let dtype = hidden.dtype.into();
    let [hidden, bias, dy, dhidden] = [hidden, bias, dy, output.clone()].map(CubeTensor::into_tensor_arg);
    activate_backward_kernel::launch::<R>(&client, cubes, units, hidden, bias, dy, dhidden, draws(&drop), dtype);
    output
}

#[cube(launch)]
fn add_kernel<F: Float>(
    x: &Tensor<f32>,
    y: &Tensor<F>,
    bias: &Tensor<f32>,
    sum: &mut Tensor<f32>,
    draws: &Draws,
    #[define(F)] _dtype: StorageType,
) {
    let i = ABSOLUTE_POS;
    if i >= x.len() {
        terminate!();
    }
    sum[i] = x[i] + (f32::cast_from(y[i]) + bias[i % bias.len()]) * factor(draws, i);
}

/// [`Steps::add`](crate::kernels::steps::Steps::add).
pub fn add<R: CubeRuntime>(x: CubeTensor<R>, y: CubeTensor<R>, bias: CubeTensor<R>, drop: Drop) -> CubeTensor<R> {
    let output = alike(&x, DType::F32);
    let client = x.client.clone();
    let (cubes, units) = one_each(&client, x.meta.num_elements());
    let dtype = y.dtype.into();
    let [x, y, bias, sum] = [x, y, bias, output.clone()].map(CubeTensor::into_tensor_arg);
    add_kernel::launch::<R>(&client, cubes, units, x, y, bias, sum, draws(&drop), dtype);
    output
}

#[cube(launch)]
fn add_backward_kernel<F: Float>(
    dsum: &Tensor<f32>,
    dy: &mut Tensor<F>,
    draws: &Draws,
    #[define(F)] _dtype: StorageType,
) {
    let i = ABSOLUTE_POS;
    if i >= dsum.len() {
        terminate!();
    }
    dy[i] = F::cast_from(dsum[i] * factor(draws, i));
}

/// [`Steps::add_backward`](crate::kernels::steps::Steps::add_backward).
pub fn add_backward<R: CubeRuntime>(dsum: CubeTensor<R>, drop: Drop, dtype: DType) -> CubeTensor<R> {
    let output = alike(&dsum, dtype);
    let client = dsum.client.clone();
    let (cubes, units) = one_each(&client, dsum.meta.num_elements());
    let [dsum, dy] = [dsum, output.clone()].map(CubeTensor::into_tensor_arg);
    add_backward_kernel::launch::<R>(&client, cubes, units, dsum, dy, draws(&drop), dtype.into());
    output
}

#[cube(launch)]
fn column_sums_kernel<F: Float>(x: &Tensor<F>, sums: &mut Tensor<f32>, #[define(F)] _dtype: StorageType) {
    let (parts, columns, rows) = (sums.shape(0), sums.shape(1), x.shape(0));
    let (part, column) = (ABSOLUTE_POS / columns, ABSOLUTE_POS % columns);
    if part >= parts {
        terminate!();
    }
    let mut total = 0.0f32;
    let mut row = part;
    while row < rows {
        total += f32::cast_from(x[row * columns + column]);
        row += parts;
    }
    sums[ABSOLUTE_POS] = total;
}

/// The sums of the columns of `x` `[R, C]`, in parts `[P, C]` that are yet to be added.
pub fn column_sums<R: CubeRuntime>(x: CubeTensor<R>) -> CubeTensor<R> {
    const ROWS_A_PART: usize = 64;
    let [rows, columns] = x.meta.shape().dims();
    let output = fresh(&x, [rows.div_ceil(ROWS_A_PART), columns], DType::F32);
    let client = x.client.clone();
    let (cubes, units) = one_each(&client, output.meta.num_elements());
    let dtype = x.dtype.into();
    column_sums_kernel::launch::<R>(
        &client,
        cubes,
        units,
        x.into_tensor_arg(),
        output.clone().into_tensor_arg(),
        dtype,
    );
    output
}
