//! Multi-head self-attention over projected rows, one query at a time: no T×T buffer.

use super::softmax::softmax;
use crate::kernels::scalar;

/// Attends in place: `qkv` holds `sequence` rows of `[3, heads, head_dim]`; row `i`'s result
/// `[heads, head_dim]` replaces its query part. `scores` `[sequence]`, `head` `[2, head_dim]`.
pub(crate) fn attention(qkv: &mut [f32], dim: usize, heads: usize, scores: &mut [f32], head: &mut [f32]) {
    let stride = 3 * dim;
    let head_dim = dim / heads;
    let scale = 1.0 / libm::sqrtf(head_dim as f32);
    let rows = qkv.len() / stride;
    let scores = &mut scores[..rows];
    let (query, sum) = head.split_at_mut(head_dim);
    for h in 0..heads {
        let q_part = h * head_dim..(h + 1) * head_dim;
        let k_part = dim + q_part.start..dim + q_part.end;
        let v_part = 2 * dim + q_part.start..2 * dim + q_part.end;
        for i in 0..rows {
            query.copy_from_slice(&qkv[i * stride..][q_part.clone()]);
            for (score, row) in scores.iter_mut().zip(qkv.chunks_exact(stride)) {
                *score = scalar::dot(query, &row[k_part.clone()]) * scale;
            }
            softmax(scores);
            sum[..head_dim].fill(0.0);
            for (p, row) in scores.iter().zip(qkv.chunks_exact(stride)) {
                scalar::add_scaled(&mut sum[..head_dim], *p, &row[v_part.clone()]);
            }
            qkv[i * stride..][q_part.clone()].copy_from_slice(&sum[..head_dim]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;
    use std::{vec, vec::Vec};

    #[test]
    fn matches_the_definition_in_double_precision() {
        let (rows, dim, heads) = (5usize, 12usize, 3usize);
        let rng = crate::rng::Rng::new(3, crate::rng::Stream::Init, 0);
        let mut qkv: Vec<f32> = (0..rows * 3 * dim).map(|i| rng.normal(i as u64) as f32).collect();
        let input: Vec<f64> = qkv.iter().map(|&x| f64::from(x)).collect();
        attention(&mut qkv, dim, heads, &mut vec![0.0; rows], &mut vec![0.0; 2 * dim / heads]);
        let hd = dim / heads;
        for h in 0..heads {
            for i in 0..rows {
                let at = |row: usize, part: usize, d: usize| input[row * 3 * dim + part * dim + h * hd + d];
                let scores: Vec<f64> = (0..rows)
                    .map(|j| (0..hd).map(|d| at(i, 0, d) * at(j, 1, d)).sum::<f64>() / libm::sqrt(hd as f64))
                    .map(libm::exp)
                    .collect();
                let total: f64 = scores.iter().sum();
                for d in 0..hd {
                    let exact = (0..rows).map(|j| scores[j] / total * at(j, 2, d)).sum::<f64>();
                    let found = f64::from(qkv[i * 3 * dim + h * hd + d]);
                    assert!((exact - found).abs() < 1e-5, "{h} {i} {d}: {exact} {found}");
                }
            }
        }
    }
}
