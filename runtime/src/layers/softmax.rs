//! Softmax over one row.

use crate::{kernels::scalar, math};

/// The largest element.
#[inline(always)]
pub(crate) fn largest(x: &[f32]) -> f32 {
    scalar::max(x, f32::NEG_INFINITY, |x| x)
}

/// Replaces each element by `e^(x - max)`.
#[inline(always)]
pub(crate) fn exponentials(x: &mut [f32]) {
    let max = largest(x);
    for x in x {
        *x = math::exp(*x - max);
    }
}

/// Largest integer weight of [`integer_weights`]: 12 bits, so that the products with int8 values of
/// the longest sequence (4097 tokens) add up in 32 bits.
const ONE: f32 = 4095.0;

/// The softmax of `2^x` in integers, not normalised: `w = round(4095 * 2^(x - max))`, `max` being the
/// [`largest`] of `x`. Returns their sum. Elements of `weights` past the row's length become 0.
#[inline(always)]
pub(crate) fn integer_weights(x: &[f32], max: f32, weights: &mut [i16]) -> i32 {
    let (head, padding) = weights.split_at_mut(x.len());
    let mut sum = 0i32;
    for (w, x) in head.iter_mut().zip(x) {
        let weight = math::round_to_i32(ONE * math::exp2(*x - max));
        *w = weight as i16;
        sum = sum.wrapping_add(weight);
    }
    padding.fill(0);
    sum
}

/// Softmax in place.
#[inline(always)]
pub(crate) fn softmax(x: &mut [f32]) {
    exponentials(x);
    let inverse = 1.0 / scalar::sum(x);
    for x in x {
        *x *= inverse;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integer_weights_are_proportional() {
        let x: [f32; 37] = core::array::from_fn(|i| ((i * 7) % 13) as f32 * 0.4 - 6.0);
        let mut weights = [9; 40];
        let sum = integer_weights(&x, largest(&x), &mut weights);
        assert_eq!(sum, weights.iter().map(|&w| i32::from(w)).sum::<i32>());
        assert_eq!(weights[37..], [0; 3]);
        for (x, w) in x.iter().zip(weights) {
            let exact = 4095.0 * libm::exp2(f64::from(*x) - (12.0 * 0.4 - 6.0));
            assert!((exact - f64::from(w)).abs() < 0.53, "{exact} {w}");
        }
    }

    #[test]
    fn sums_to_one_and_orders() {
        let mut x: [f32; 13] = core::array::from_fn(|i| (i as f32 - 6.0) * 2.5);
        softmax(&mut x);
        assert!((x.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        assert!(x.windows(2).all(|w| w[0] < w[1]));
        assert!((x[12] - 0.917_915).abs() < 1e-5, "{}", x[12]);
    }
}
