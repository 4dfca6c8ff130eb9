//! Softmax over one row.

use crate::{
    kernels::{floats::largest, scalar},
    math,
};

/// Replaces each element by `e^(x - max)`.
#[inline(always)]
pub(crate) fn exponentials(x: &mut [f32]) {
    let max = largest(x);
    for x in x {
        *x = math::exp(*x - max);
    }
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
    fn sums_to_one_and_orders() {
        let mut x: [f32; 13] = core::array::from_fn(|i| (i as f32 - 6.0) * 2.5);
        softmax(&mut x);
        assert!((x.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        assert!(x.windows(2).all(|w| w[0] < w[1]));
        assert!((x[12] - 0.917_915).abs() < 1e-5, "{}", x[12]);
    }
}
