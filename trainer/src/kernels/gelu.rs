//! Exact GELU with its exact gradient, in tensor operations.
//!
//! On backends without a GELU of their own (CUDA, wgpu) Burn's is exact, but its gradient is that of the approximation
//! by tanh: 5e-4 off, which moves every gradient behind it by as much.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use burn::tensor::{activation, Tensor, TensorPrimitive};

use super::graph::{primitive, record};

/// GELU of `x`, any two dimensions.
pub fn rows<B: Backend, C: CheckpointStrategy>(x: Tensor<Autodiff<B, C>, 2>) -> Tensor<Autodiff<B, C>, 2> {
    let input = x.clone().inner();
    record([primitive(x)], activation::gelu(input.clone()), move |dy| {
        let dy = Tensor::<B, 2>::from_primitive(TensorPrimitive::Float(dy));
        [primitive(dy * slope(input.clone()))]
    })
}

/// d/dx of x Φ(x): Φ(x) + x φ(x).
pub fn slope<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    let cumulative = ((x.clone() * FRAC_1_SQRT_2).erf() + 1.0) * 0.5;
    let density = (x.clone() * x.clone() * -0.5).exp() * (0.5 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2);
    cumulative + x * density
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Kernels;
    use burn::backend::Flex;
    use burn::tensor::TensorData;

    /// Against the CPU's own, which is held against a double-precision one (`cpu::math`).
    #[test]
    fn gradient_is_the_exact_one() {
        let values: Vec<f32> = (-60..60).map(|i| i as f32 / 8.0).collect();
        let gradient = |gelu: fn(Tensor<Autodiff<Flex>, 2>) -> Tensor<Autodiff<Flex>, 2>| {
            let data = TensorData::new(values.clone(), [values.len() / 4, 4]);
            let x = Tensor::<Autodiff<Flex>, 2>::from_data(data, &Default::default()).require_grad();
            let grads = gelu(x.clone()).sum().backward();
            x.grad(&grads).unwrap().into_data().to_vec::<f32>().unwrap()
        };
        for (plain, fused) in gradient(rows).into_iter().zip(gradient(Kernels::gelu_rows)) {
            assert!((plain - fused).abs() < 1e-6, "{plain} {fused}");
        }
    }
}
