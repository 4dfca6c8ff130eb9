//! Echo ids drawn where the logits are: [`echo::sample`](crate::echo::sample), rounding aside.

use burn::tensor::DType;
use burn_cubecl::cubecl::{self, prelude::*};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::CubeRuntime;
use sorcen_runtime::rng::Rng;

use super::launch::{by_row, fresh, ROW_UNITS};
use super::reduce::largest;

/// Below any logit; finite, as WGSL has no word for infinity.
const NONE: f32 = -3e38;

#[cube(launch)]
fn sample_kernel(
    logits: &Tensor<f32>,
    uniform: &Tensor<f32>,
    ids: &mut Tensor<i32>,
    #[comptime] topk: usize,
    #[comptime] units: usize,
) {
    let row = CUBE_POS;
    if row >= ids.len() {
        terminate!();
    }
    let (columns, unit) = (logits.shape(1), UNIT_POS_X as usize);
    let first = row * columns;
    let mut best = f32::new(NONE);
    let mut column = unit;
    while column < columns {
        best = max(best, logits[first + column]);
        column += units;
    }
    let best = largest(best, units);

    // The candidates in their order, largest first, lower id first among equals; every unit keeps all of them.
    let mut weights = Array::<f32>::new(topk);
    let mut codes = Array::<f32>::new(topk); // exact up to 2^24
    let mut top = 0.0f32;
    let mut total = 0.0f32;
    let mut last = best;
    let mut last_code = columns as f32; // all of the best are gone
    for i in 0..topk {
        let mut value = f32::new(NONE);
        let mut code = columns as f32;
        let mut column = unit;
        while column < columns {
            let logit = logits[first + column];
            let is_left = logit < last || (logit == last && column as f32 > last_code);
            if is_left && logit > value {
                value = logit;
                code = column as f32;
            }
            column += units;
        }
        let high = largest(value, units);
        let code = -largest(select(value == high, -code, -(columns as f32)), units);
        if i == 0 {
            top = high;
        }
        let is_one = high > f32::new(NONE);
        let weight = select(is_one, (high - top).exp(), 0.0f32);
        weights[i] = weight;
        codes[i] = select(is_one, code, 0.0f32);
        total += weight;
        last = high;
        last_code = code;
    }

    let goal = total * uniform[row];
    let mut chosen = codes[0];
    let mut passed = weights[0];
    for i in 1..topk {
        if weights[i] > 0.0f32 && goal >= passed {
            chosen = codes[i];
        }
        passed += weights[i];
    }
    if unit == 0 {
        ids[row] = chosen as i32;
    }
}

/// The uniform numbers of `rows` rows, below 1.
pub fn uniforms(rng: &Rng, rows: usize) -> Vec<f32> {
    const BELOW_ONE: f32 = 1.0 - f32::EPSILON;
    (0..rows as u64).map(|row| (rng.uniform(row) as f32).min(BELOW_ONE)).collect()
}

/// One id a row of `logits` `[R, K]`, drawn by `uniform` `[R, 1]` below 1 from the `topk` largest below the maximum.
pub fn sample<R: CubeRuntime>(logits: CubeTensor<R>, uniform: CubeTensor<R>, topk: usize) -> CubeTensor<R> {
    let [rows, columns] = logits.meta.shape().dims();
    let ids = fresh(&logits, [rows], DType::I32);
    let client = logits.client.clone();
    let (cubes, units) = by_row(&client, rows);
    let [logits, uniform, to] = [logits, uniform, ids.clone()].map(CubeTensor::into_tensor_arg);
    sample_kernel::launch::<R>(&client, cubes, units, logits, uniform, to, topk.min(columns), ROW_UNITS);
    ids
}
