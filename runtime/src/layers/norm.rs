//! LayerNorm.

use crate::{kernels::scalar, pack::Vector};

/// `(x - mean) / sqrt(var + eps)` in place: a LayerNorm of weight 1 and bias 0.
pub(crate) fn standardise(x: &mut [f32], eps: f32) {
    let count = x.len().max(1) as f32;
    let mean = scalar::sum(x) / count;
    let variance = scalar::sum_of_squares_from(x, mean) / count;
    let inverse = 1.0 / libm::sqrtf(variance + eps);
    for x in x {
        *x = (*x - mean) * inverse;
    }
}

/// LayerNorm of one row in place, `weight` and `bias` `[D]`.
pub(crate) fn layer_norm(x: &mut [f32], weight: Vector<'_>, bias: Vector<'_>, eps: f32) {
    standardise(x, eps);
    for ((x, w), b) in x.iter_mut().zip(weight.iter_from(0)).zip(bias.iter_from(0)) {
        *x = *x * w + b;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_double_precision() {
        let input: [f32; 21] = core::array::from_fn(|i| ((i * 37) % 19) as f32 * 0.3 - 2.0);
        let weight: [f32; 21] = core::array::from_fn(|i| 0.5 + i as f32 * 0.1);
        let bias: [f32; 21] = core::array::from_fn(|i| i as f32 * 0.2 - 1.0);
        let mut x = input;
        layer_norm(&mut x, Vector::F32(&weight), Vector::F32(&bias), 1e-6);
        let mean = input.iter().map(|&v| f64::from(v)).sum::<f64>() / 21.0;
        let var = input.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / 21.0;
        for i in 0..21 {
            let exact =
                (f64::from(input[i]) - mean) / libm::sqrt(var + 1e-6) * f64::from(weight[i]) + f64::from(bias[i]);
            assert!((f64::from(x[i]) - exact).abs() < 1e-5, "{i}");
        }
    }
}
