//! The loss terms of pretraining, as the official code sums them: reconstruction, uniformity, InfoNCE between echo and
//! student, and the online classifier's cross-entropy.

use burn::tensor::{activation::log_softmax, backend::Backend, Int, Tensor};

use crate::kernels::Kernels;
use crate::model::{indices, Precision};

/// Norms are kept above this when dividing by them.
const NORM_FLOOR: f32 = 1e-12;

/// Label-smoothed cross-entropy over masked tokens, in plain tensor operations: a sum divided by their number, `[1]`.
///
/// `logits` `[R, K]`, `targets` `[R]` in `0..K`, `masked` `[R, 1]` (1 where the row counts).
pub fn smoothed_cross_entropy<B: Backend>(
    logits: Tensor<B, 2>,
    targets: Tensor<B, 1, Int>,
    masked: Tensor<B, 2>,
    smoothing: f32,
) -> Tensor<B, 1> {
    let log_probabilities = log_softmax(logits, 1);
    let hit = log_probabilities.clone().gather(1, targets.unsqueeze_dim(1));
    let per_token = hit * (smoothing - 1.0) - log_probabilities.mean_dim(1) * smoothing;
    (per_token * masked.clone()).sum() / masked.sum()
}

/// Mean squared cosine over all pairs of rows, self-pairs included, `[1]`.
pub fn uniformity<B: Kernels>(features: Tensor<B, 2>) -> Tensor<B, 1> {
    let unit = normalise(features);
    B::product(unit.clone(), unit.transpose(), Precision::F32).square().mean()
}

/// Cosines of echoes (rows) and anchors (columns) over the temperature, `[B, B]`.
pub fn contrast_scores<B: Kernels>(echoes: Tensor<B, 2>, anchors: Tensor<B, 2>, temperature: f32) -> Tensor<B, 2> {
    B::product(normalise(echoes), normalise(anchors).transpose(), Precision::F32) / temperature
}

/// InfoNCE: mean over the echoes `[B, D]` of the cross-entropy against their own among the anchors `[N, D]`,
/// `[1]`. With anchors gathered from several processes, those of this one start at row `first`.
pub fn infonce<B: Kernels>(
    echoes: Tensor<B, 2>,
    anchors: Tensor<B, 2>,
    temperature: f32,
    first: usize,
) -> Tensor<B, 1> {
    let [count, _] = echoes.dims();
    let own: Vec<i32> = (first..first + count).map(|row| row as i32).collect();
    let own = indices(&own, &echoes.device());
    cross_entropy(contrast_scores(echoes, anchors, temperature), own)
}

/// Mean squared distance of the unit vectors along `echoes` and `anchors` `[B, D]`, row by row: `2 - 2 cos`, `[1]`.
pub fn squared_distance<B: Backend>(echoes: Tensor<B, 2>, anchors: Tensor<B, 2>) -> Tensor<B, 1> {
    (normalise(echoes) - normalise(anchors)).square().sum_dim(1).mean()
}

/// Mean cross-entropy of `scores` `[B, C]` against `targets` `[B]`, `[1]`.
pub fn cross_entropy<B: Backend>(scores: Tensor<B, 2>, targets: Tensor<B, 1, Int>) -> Tensor<B, 1> {
    -log_softmax(scores, 1).gather(1, targets.unsqueeze_dim(1)).mean()
}

/// Rows scaled to length one.
fn normalise<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    let norm = x.clone().square().sum_dim(1).sqrt().clamp_min(NORM_FLOOR);
    x / norm
}
