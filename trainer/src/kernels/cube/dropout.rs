//! Dropout's numbers, drawn where they are used: those of [`DropoutSource::fill`], bit for bit.

use burn::tensor::{DType, Shape};
use burn_cubecl::cubecl::{self, prelude::*};
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::CubeRuntime;

use super::launch::one_each;
use crate::kernels::steps::Drop;
#[cfg(doc)]
use crate::model::layers::DropoutSource;

/// A [`Drop`] as kernels take it.
#[derive(CubeLaunch, CubeType, Clone, Copy)]
pub struct Draws {
    /// Key of the call's numbers, low half first.
    key_low: u32,
    key_high: u32,
    /// Sixteen bits below this are dropped.
    limit: u32,
    /// What the others are multiplied by.
    scale: f32,
    /// Whether there is any.
    #[cube(comptime)]
    on: bool,
}

/// `drop` for one launch.
pub fn draws<R: CubeRuntime>(drop: &Drop) -> DrawsLaunch<R> {
    let key = drop.source.state(drop.call);
    let (limit, scale) = drop.source.odds();
    DrawsLaunch::new(key as u32, (key >> 32) as u32, limit as u32, scale, !drop.source.is_off())
}

/// Two halves of a 64-bit number: not every GPU has those.
#[derive(CubeType, Clone, Copy)]
struct Halves {
    low: u32,
    high: u32,
}

#[cube]
fn plus(a: Halves, low: u32, high: u32) -> Halves {
    let sum = a.low + low;
    let carry = u32::cast_from(sum < low);
    Halves { low: sum, high: a.high + high + carry }
}

/// `a · b`, its lower 64 bits.
#[cube]
fn times(a: Halves, low: u32, high: u32) -> Halves {
    Halves { low: a.low * low, high: a.low.mul_hi(low) + a.low * high + a.high * low }
}

/// `a ^ (a >> bits)` for bits below 32.
#[cube]
fn fold(a: Halves, #[comptime] bits: u32) -> Halves {
    let rest = comptime!(32 - bits);
    Halves { low: a.low ^ ((a.low >> bits) | (a.high << rest)), high: a.high ^ (a.high >> bits) }
}

/// [`splitmix64`](sorcen_runtime::rng::splitmix64).
#[cube]
fn splitmix64(x: Halves) -> Halves {
    let x = plus(x, 0x7F4A_7C15u32, 0x9E37_79B9u32);
    let x = times(fold(x, 30u32), 0x1CE4_E5B9u32, 0xBF58_476Du32);
    let x = times(fold(x, 27u32), 0x1331_11EBu32, 0x94D0_49BBu32);
    fold(x, 31u32)
}

/// The factor of element `index`.
#[cube]
pub fn factor(draws: &Draws, index: usize) -> f32 {
    let mut factor = 1.0f32;
    if comptime!(draws.on) {
        // Sixteen bits an element, four elements a draw.
        let bits = splitmix64(plus(Halves { low: draws.key_low, high: draws.key_high }, (index / 4) as u32, 0u32));
        let word = select(index % 4 < 2, bits.low, bits.high);
        let lane = (word >> (16 * (index % 2) as u32)) & 0xFFFFu32;
        factor = select(lane < draws.limit, 0.0f32, draws.scale);
    }
    factor
}

#[cube(launch)]
fn factors_kernel(output: &mut Tensor<f32>, draws: &Draws) {
    if ABSOLUTE_POS < output.len() {
        output[ABSOLUTE_POS] = factor(draws, ABSOLUTE_POS);
    }
}

/// The factors themselves, for what has no kernel of its own.
pub fn factors<R: CubeRuntime, const D: usize>(drop: Drop, shape: [usize; D], device: &R::CubeDevice) -> CubeTensor<R> {
    let client = R::client(device);
    let output = empty_device_contiguous_dtype(client.clone(), device.clone(), Shape::new(shape), DType::F32);
    let (cubes, units) = one_each(&client, shape.iter().product());
    factors_kernel::launch::<R>(&client, cubes, units, output.clone().into_tensor_arg(), draws(&drop));
    output
}
