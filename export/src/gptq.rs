//! Rounding that makes up for its own errors (GPTQ, Frantar et al. 2022, in the form of LDLQ, Chee et al. 2023).
//!
//! What counts is the error of the products, `tr(E H Eᵀ)`: `E` the errors of the weights `[out, in]`, `H` the Gram
//! matrix `[in, in]` of what enters the linear. With `H = U D Uᵀ`, `U` upper triangular with ones on the diagonal, that
//! is the sum of `D_k |e_k + Σ_{j<k} e_j U_jk|²` over columns `k`: each column is rounded where it takes back as much
//! as it can of the errors before it.

use ndarray::{s, Array2, ArrayView1, Axis};
use rayon::prelude::*;

/// What is added to the diagonal of `H`, as a share of its mean: inputs that hardly occur must not be trusted.
const DAMPING: f64 = 0.01;
/// Columns of a factorisation, and rows of a matrix, that are worked on together, while they are in the cache.
const BLOCK: usize = 32;

/// How the errors of columns weigh on later ones, for one linear.
pub struct Feedback {
    /// The order in which columns are rounded: those with the largest inputs first.
    order: Vec<usize>,
    /// `[in, in]`: row `k` holds `U_jk` for `j < k`, both counted in that order.
    weights: Array2<f32>,
}

impl Feedback {
    /// From the Gram matrix `[in, in]` of a linear's inputs; `None` where they were all zero.
    pub fn new(gram: &Array2<f32>) -> Option<Self> {
        let n = gram.nrows();
        let mean = gram.diag().iter().map(|&x| f64::from(x)).sum::<f64>() / n as f64;
        if mean <= 0.0 || !mean.is_finite() {
            return None;
        }
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|&a, &b| gram[[b, b]].total_cmp(&gram[[a, a]]));
        // Backwards, `U D Uᵀ` is an ordinary `L D Lᵀ`.
        let at = |i: usize| order[n - 1 - i];
        let mut h = Array2::from_shape_fn((n, n), |(i, j)| f64::from(gram[[at(i), at(j)]]));
        h.diag_mut().mapv_inplace(|x| x + DAMPING * mean);
        let l = cholesky(h);
        let weights = Array2::from_shape_fn((n, n), |(k, j)| {
            let (row, column) = (n - 1 - j, n - 1 - k);
            if j < k {
                (l[[row, column]] / l[[column, column]]) as f32
            } else {
                0.0
            }
        });
        Some(Self { order, weights })
    }

    /// Rounds a row-major matrix `[out, in]`: `round(row, column, x)` is the number that `x` may become.
    pub fn round(&self, values: &[f32], round: impl Fn(usize, usize, f32) -> f32 + Sync) -> Vec<f32> {
        let n = self.order.len();
        let mut rounded = vec![0.0; values.len()];
        rounded.par_chunks_mut(BLOCK * n).enumerate().for_each(|(block, rounded)| {
            let rows = rounded.len() / n;
            let mut errors = Array2::<f32>::zeros((rows, n));
            for (k, &column) in self.order.iter().enumerate() {
                let feedback = self.weights.slice(s![k, ..k]);
                for r in 0..rows {
                    let row = block * BLOCK + r;
                    let exact = values[row * n + column];
                    let x = exact + errors.slice(s![r, ..k]).dot(&feedback);
                    let found = round(row, column, x);
                    rounded[r * n + column] = found;
                    errors[[r, k]] = exact - found;
                }
            }
        });
        rounded
    }
}

/// The lower triangular `L` of `L Lᵀ = h`, for a positive definite `h`, of which the upper half is not looked at.
fn cholesky(mut h: Array2<f64>) -> Array2<f64> {
    let n = h.nrows();
    let dot = |a: ArrayView1<f64>, b: ArrayView1<f64>| a.dot(&b);
    for start in (0..n).step_by(BLOCK) {
        let end = (start + BLOCK).min(n);
        for i in start..end {
            for j in start..i {
                h[[i, j]] = (h[[i, j]] - dot(h.slice(s![i, ..j]), h.slice(s![j, ..j]))) / h[[j, j]];
            }
            let square = h[[i, i]] - dot(h.slice(s![i, ..i]), h.slice(s![i, ..i]));
            h[[i, i]] = square.max(f64::MIN_POSITIVE).sqrt(); // damping keeps it above; rounding must not bring a NaN
        }
        let (done, mut below) = h.view_mut().split_at(Axis(0), end);
        let rows: Vec<_> = below.rows_mut().into_iter().collect();
        rows.into_par_iter().for_each(|mut row| {
            for j in start..end {
                let x = row[j] - dot(row.slice(s![..j]), done.slice(s![j, ..j]));
                row[j] = x / done[[j, j]];
            }
        });
    }
    h
}

#[cfg(test)]
mod tests {
    use super::*;
    use sorcen_runtime::rng::{Rng, Stream};
    use sorcen_tests::compare::largest_difference;

    fn numbers(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
        let rng = Rng::new(seed, Stream::Init, 0);
        Array2::from_shape_fn((rows, cols), |(i, j)| rng.normal((i * cols + j) as u64) as f32)
    }

    #[test]
    fn factors_multiply_to_what_they_are_of() {
        for n in [1, 5, 32, 33, 100] {
            let x = numbers(2 * n, n, 1).mapv(f64::from);
            let h = x.t().dot(&x);
            let mut l = cholesky(h.clone());
            l.indexed_iter_mut().filter(|((i, j), _)| j > i).for_each(|(_, x)| *x = 0.0);
            let worst = largest_difference(l.dot(&l.t()), &h);
            assert!(worst < 1e-9 * n as f64, "{n}: {worst}");
        }
    }

    /// Products with inputs that go together come out closer than by rounding each weight to the nearest.
    #[test]
    fn products_are_closer() {
        let (rows, cols, samples) = (70, 48, 400);
        let x = numbers(samples, 8, 2).dot(&numbers(8, cols, 3)) + 0.3 * numbers(samples, cols, 4);
        let w = numbers(rows, cols, 5);
        let feedback = Feedback::new(&x.t().dot(&x)).unwrap();
        let step = 0.5;
        let nearest = w.mapv(|w| (w / step).round() * step);
        let ours = feedback.round(w.as_slice().unwrap(), |_, _, x| (x / step).round() * step);
        let ours = Array2::from_shape_vec((rows, cols), ours).unwrap();
        assert!(ours.iter().all(|w| (w / step).fract() == 0.0));
        let error = |found: &Array2<f32>| x.dot(&(found - &w).t()).mapv(|e| e * e).sum();
        println!("squared error of products: {:.0} nearest, {:.0} ours", error(&nearest), error(&ours));
        assert!(error(&ours) < 0.5 * error(&nearest));
        // The error is that of rows alone: a matrix of some of them gives the same.
        let some = feedback.round(&w.as_slice().unwrap()[40 * cols..], |_, _, x| (x / step).round() * step);
        assert_eq!(some, ours.as_slice().unwrap()[40 * cols..]);
        assert!(Feedback::new(&Array2::zeros((4, 4))).is_none());
    }
}
