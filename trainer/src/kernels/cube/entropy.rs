//! Label-smoothed cross-entropy and its gradient in one pass over the logits.

use burn::tensor::DType;
use burn_cubecl::cubecl::{self, prelude::*};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::CubeRuntime;

use super::launch::{by_row, fresh, ROW_UNITS};
use super::reduce::{largest, sum};

#[cube(launch)]
fn cross_entropy_kernel(
    logits: &Tensor<f32>,
    targets: &Tensor<i32>,
    losses: &mut Tensor<f32>,
    gradient: &mut Tensor<f32>,
    smoothing: f32,
    share: f32,
    #[comptime] units: usize,
) {
    let row = CUBE_POS;
    if row >= losses.len() {
        terminate!();
    }
    let (columns, unit) = (logits.shape(1), UNIT_POS_X as usize);
    let first = row * columns;
    let target = targets[row];
    let counted = target >= 0;
    let mut high = f32::min_value();
    let mut all = 0.0f32;
    let mut column = unit;
    while column < columns {
        high = max(high, logits[first + column]);
        all += logits[first + column];
        column += units;
    }
    let high = largest(high, units);
    let mean = sum(all, units) / columns as f32;
    let mut total = 0.0f32;
    let mut column = unit;
    while column < columns {
        total += (logits[first + column] - high).exp();
        column += units;
    }
    let total = sum(total, units).ln() + high;
    if unit == 0 {
        let mut loss = 0.0f32;
        if counted {
            let hit = logits[first + target as usize] - total;
            loss = (hit * (smoothing - 1.0f32) - (mean - total) * smoothing) * share;
        }
        losses[row] = loss;
    }
    let even = smoothing / columns as f32;
    let mut column = unit;
    while column < columns {
        let mut slope = 0.0f32;
        if counted {
            let wanted = select(column == target as usize, even + (1.0f32 - smoothing), even);
            slope = ((logits[first + column] - total).exp() - wanted) * share;
        }
        gradient[first + column] = slope;
        column += units;
    }
}

/// For each row of `logits` `[R, K]` its part of the mean loss over `counted` rows, `[R, 1]`, and the gradient of the
/// sum of those parts, `[R, K]`. `targets` `[R]` are -1 where a row does not count.
pub fn cross_entropy<R: CubeRuntime>(
    logits: CubeTensor<R>,
    targets: CubeTensor<R>,
    smoothing: f32,
    counted: usize,
) -> [CubeTensor<R>; 2] {
    let [rows, columns] = logits.meta.shape().dims();
    let losses = fresh(&logits, [rows, 1], DType::F32);
    let gradient = fresh(&logits, [rows, columns], DType::F32);
    let client = logits.client.clone();
    let (cubes, units) = by_row(&client, rows);
    let share = (counted as f32).recip();
    let [logits, targets, to, slopes] =
        [logits, targets, losses.clone(), gradient.clone()].map(CubeTensor::into_tensor_arg);
    cross_entropy_kernel::launch::<R>(&client, cubes, units, logits, targets, to, slopes, smoothing, share, ROW_UNITS);
    [losses, gradient]
}
