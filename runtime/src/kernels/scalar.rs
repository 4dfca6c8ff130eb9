//! Inner loops in plain Rust: the specification of every kernel.
//!
//! Float sums run over [`LANES`] independent partial sums, joined in one fixed tree, so that any
//! vector unit can compute them to the same bits. No fused multiply-add anywhere.

/// Partial sums of a float reduction.
pub(crate) const LANES: usize = 8;

/// Joins partial sums: `((0+4)+(2+6)) + ((1+5)+(3+7))`.
#[inline(always)]
fn join(s: [f32; LANES]) -> f32 {
    ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]))
}

/// `sum(term(a_i, b_i))` in the fixed lane order; element `i` belongs to lane `i % LANES`.
#[inline(always)]
fn reduce(a: &[f32], b: &[f32], term: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (a_full, b_full) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let (a_rest, b_rest) = (a_full.remainder(), b_full.remainder());
    for (a, b) in a_full.zip(b_full) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += term(*a, *b);
        }
    }
    for ((lane, a), b) in lanes.iter_mut().zip(a_rest).zip(b_rest) {
        *lane += term(*a, *b);
    }
    join(lanes)
}

/// Dot product of two slices of the same length.
#[inline]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    reduce(a, b, |a, b| a * b)
}

/// Sum of a slice.
#[inline]
pub(crate) fn sum(a: &[f32]) -> f32 {
    reduce(a, a, |a, _| a)
}

/// Sum of squared distances from `mean`.
#[inline]
pub(crate) fn sum_of_squares_from(a: &[f32], mean: f32) -> f32 {
    reduce(a, a, |a, _| (a - mean) * (a - mean))
}

/// Exact integer dot product; lengths agree and stay below 2^17, so that nothing overflows.
#[inline]
pub(crate) fn dot_i8(a: &[i8], b: &[i8]) -> i32 {
    a.iter().zip(b).map(|(&a, &b)| i32::from(a) * i32::from(b)).sum()
}

/// `y += p * v`, element by element.
#[inline]
pub(crate) fn add_scaled(y: &mut [f32], p: f32, v: &[f32]) {
    for (y, v) in y.iter_mut().zip(v) {
        *y += p * *v;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_follow_the_lanes() {
        let a: [f32; 19] = core::array::from_fn(|i| (i as f32 - 7.0) * 0.37);
        let b: [f32; 19] = core::array::from_fn(|i| (i as f32 * 1.7) - 3.0);
        let mut lanes = [0.0f32; 8];
        for i in 0..19 {
            lanes[i % 8] += a[i] * b[i];
        }
        assert_eq!(dot(&a, &b).to_bits(), join(lanes).to_bits());
        let exact: f64 = a.iter().map(|&x| f64::from(x)).sum();
        assert!((f64::from(sum(&a)) - exact).abs() < 1e-5);
        let exact: f64 = a.iter().map(|&x| (f64::from(x) - 0.5).powi(2)).sum();
        assert!((f64::from(sum_of_squares_from(&a, 0.5)) - exact).abs() < 1e-4);
    }

    #[test]
    fn integer_dot_takes_the_extremes() {
        assert_eq!(dot_i8(&[-128; 1000], &[-128; 1000]), 16_384_000);
        assert_eq!(dot_i8(&[1, -2, 3], &[4, 5, -6]), -24);
    }
}
