//! LayerNorm.

use crate::{
    kernels::{
        floats::{inverse_deviation, Affine},
        scalar,
    },
    pack::Vector,
};

/// `(x - mean) / sqrt(var + eps)` in place: a LayerNorm of weight 1 and bias 0.
#[inline(always)]
pub(crate) fn standardise(x: &mut [f32], eps: f32) {
    let (mean, inverse) = moments(x, eps);
    for x in x {
        *x = (*x - mean) * inverse;
    }
}

/// `mean` and `1 / sqrt(var + eps)`.
#[inline(always)]
fn moments(x: &[f32], eps: f32) -> (f32, f32) {
    let count = x.len().max(1) as f32;
    let mean = scalar::sum(x) / count;
    let variance = scalar::sum_of_squares_from(x, mean) / count;
    (mean, inverse_deviation(variance, eps))
}

/// A LayerNorm: weight and bias `[D]`.
#[derive(Clone, Copy)]
pub(crate) struct Norm<'a> {
    pub weight: Vector<'a>,
    pub bias: Vector<'a>,
    pub eps: f32,
}

impl Norm<'_> {
    /// Of one row `x` `[D]` into `out` `[D]`.
    #[inline(always)]
    pub fn apply(&self, x: &[f32], out: &mut [f32]) {
        self.affine(x, moments(x, self.eps), out);
    }

    /// The parameters, where they are whole floats.
    pub fn floats(&self) -> Option<Affine<'_>> {
        match (self.weight, self.bias) {
            (Vector::F32(weight), Vector::F32(bias)) => Some(Affine { weight, bias, eps: self.eps }),
            _ => None,
        }
    }

    #[inline(always)]
    fn affine(&self, x: &[f32], (mean, inverse): (f32, f32), out: &mut [f32]) {
        if let (Vector::F32(weight), Vector::F32(bias)) = (self.weight, self.bias) {
            for (((out, x), w), b) in out.iter_mut().zip(x).zip(weight).zip(bias) {
                *out = (*x - mean) * inverse * w + b;
            }
        } else {
            let affine = self.weight.iter_from(0).zip(self.bias.iter_from(0));
            for ((out, x), (w, b)) in out.iter_mut().zip(x).zip(affine) {
                *out = (*x - mean) * inverse * w + b;
            }
        }
    }

    /// Of one row in place.
    #[inline(always)]
    pub fn apply_in_place(&self, x: &mut [f32]) {
        standardise(x, self.eps);
        self.weight.onto(0, x, |x, w| *x *= w);
        self.bias.onto(0, x, |x, b| *x += b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::floats;

    #[test]
    fn matches_double_precision() {
        let input: [f32; 21] = core::array::from_fn(|i| ((i * 37) % 19) as f32 * 0.3 - 2.0);
        let weight: [f32; 21] = core::array::from_fn(|i| 0.5 + i as f32 * 0.1);
        let bias: [f32; 21] = core::array::from_fn(|i| i as f32 * 0.2 - 1.0);
        let mut x = input;
        let norm = Norm { weight: Vector::F32(&weight), bias: Vector::F32(&bias), eps: 1e-6 };
        norm.apply(&input, &mut x);
        let mut y = input;
        norm.apply_in_place(&mut y);
        assert_eq!(x, y);
        let two: [[f32; 21]; 2] = [input.map(|v| 1.0 - v * v), input];
        let mut z = [[0.0; 21]; 2];
        let maxima = floats::normalise::<2>(norm.floats().unwrap(), two.as_flattened(), z.as_flattened_mut());
        assert_eq!(z[1], x);
        assert_eq!(maxima[1], x.iter().fold(0.0, |max, x| x.abs().max(max)));
        let mean = input.iter().map(|&v| f64::from(v)).sum::<f64>() / 21.0;
        let var = input.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / 21.0;
        for i in 0..21 {
            let exact =
                (f64::from(input[i]) - mean) / libm::sqrt(var + 1e-6) * f64::from(weight[i]) + f64::from(bias[i]);
            assert!((f64::from(x[i]) - exact).abs() < 1e-5, "{i}");
        }
    }
}
