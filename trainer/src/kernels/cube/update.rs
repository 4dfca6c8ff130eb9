//! What happens to weights: AdamW's update and the moving average.

use burn::tensor::DType;
use burn_cubecl::cubecl::{self, prelude::*};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::CubeRuntime;

use super::launch::{alike, one_each};

/// Constants of [`adamw`], as kernels take them.
#[derive(CubeLaunch, CubeType, Clone, Copy)]
struct Constants {
    beta1: f32,
    beta2: f32,
    /// `1 - beta1` and `1 - beta2`, rounded once.
    rest1: f32,
    rest2: f32,
    /// What weight decay leaves of the value.
    shrink: f32,
    /// Learning rate over `1 - beta1^t`.
    step: f32,
    /// `1 / sqrt(1 - beta2^t)`
    root: f32,
    eps: f32,
}

#[cube(launch)]
fn adamw_kernel(
    value: &Tensor<f32>,
    gradient: &Tensor<f32>,
    first: &Tensor<f32>,
    second: &Tensor<f32>,
    factor: &Tensor<f32>,
    new_value: &mut Tensor<f32>,
    new_first: &mut Tensor<f32>,
    new_second: &mut Tensor<f32>,
    c: &Constants,
) {
    let i = ABSOLUTE_POS;
    if i >= value.len() {
        terminate!();
    }
    let gradient = gradient[i] * factor[0];
    let moment1 = first[i] * c.beta1 + gradient * c.rest1;
    let moment2 = second[i] * c.beta2 + gradient * gradient * c.rest2;
    new_first[i] = moment1;
    new_second[i] = moment2;
    new_value[i] = value[i] * c.shrink - moment1 * c.step / (moment2.sqrt() * c.root + c.eps);
}

/// [`Update::apply_plain`](crate::optim::Update::apply_plain): new value and moments, from value, gradient, moments and
/// the factor of all gradients.
pub fn adamw<R: CubeRuntime, B: burn::tensor::backend::Backend>(
    inputs: [CubeTensor<R>; 5],
    update: &crate::optim::Update<B>,
) -> [CubeTensor<R>; 3] {
    let outputs = [(); 3].map(|()| alike(&inputs[0], DType::F32));
    let client = inputs[0].client.clone();
    let (cubes, units) = one_each(&client, inputs[0].meta.num_elements());
    let constants = ConstantsLaunch::new(
        update.beta1 as f32,
        update.beta2 as f32,
        (1.0 - update.beta1) as f32,
        (1.0 - update.beta2) as f32,
        (1.0 - update.lr * update.decay) as f32,
        (update.lr / update.correction1) as f32,
        update.correction2.sqrt().recip() as f32,
        update.eps as f32,
    );
    let [value, gradient, first, second, factor] = inputs.map(CubeTensor::into_tensor_arg);
    let [new_value, new_first, new_second] = outputs.clone().map(CubeTensor::into_tensor_arg);
    adamw_kernel::launch::<R>(
        &client, cubes, units, value, gradient, first, second, factor, new_value, new_first, new_second, constants,
    );
    outputs
}

#[cube(launch)]
fn blend_kernel(old: &Tensor<f32>, new: &Tensor<f32>, blend: &mut Tensor<f32>, momentum: f32, rest: f32) {
    let i = ABSOLUTE_POS;
    if i >= old.len() {
        terminate!();
    }
    blend[i] = old[i] * momentum + new[i] * rest;
}

/// `momentum · old + (1 - momentum) · new`.
pub fn blend<R: CubeRuntime>(old: CubeTensor<R>, new: CubeTensor<R>, momentum: f64) -> CubeTensor<R> {
    let output = alike(&old, DType::F32);
    let client = old.client.clone();
    let (cubes, units) = one_each(&client, old.meta.num_elements());
    let [old, new, to] = [old, new, output.clone()].map(CubeTensor::into_tensor_arg);
    blend_kernel::launch::<R>(&client, cubes, units, old, new, to, momentum as f32, (1.0 - momentum) as f32);
    output
}
