//! Echoes: reconstructions sampled from the student, seen by the teacher as the positive.

use burn::tensor::backend::Backend;
use burn::tensor::{Bool, Int, Tensor, TensorData};
use rayon::prelude::*;
use sorcen_runtime::rng::Rng;
use sorcen_runtime::ModelConfig;

use crate::masking::Crop;
use crate::model::indices;

/// One id per row of `logits` `[R, K]`, where `wanted`; 0 elsewhere.
///
/// Every code equal to the maximum is excluded, the `topk` largest of the rest are kept and
/// renormalised, and one is drawn with uniform number `row` of `rng` (official `sample_echo`: 15).
pub fn sample(logits: &[f32], codes: usize, topk: usize, rng: &Rng, wanted: impl Fn(usize) -> bool + Sync) -> Vec<u16> {
    let draw = |candidates: &mut Vec<_>, (row, logits): (usize, &[f32])| {
        if !wanted(row) {
            return 0;
        }
        runners_up(logits, topk, candidates);
        choose(candidates, rng.uniform(row as u64))
    };
    logits.par_chunks_exact(codes).enumerate().map_init(|| Vec::with_capacity(topk + 1), draw).collect()
}

/// The id of one row of `logits` `[K]` that `uniform`, from 0 to below 1, leads to.
pub fn choice(logits: &[f32], topk: usize, uniform: f64) -> u16 {
    let mut candidates = Vec::new();
    runners_up(logits, topk, &mut candidates);
    choose(&candidates, uniform)
}

/// The `topk` largest of `logits` below the maximum, largest first, lower id first among equals.
///
/// All codes are the maximum of a constant row: then the first code is the only candidate.
fn runners_up(logits: &[f32], topk: usize, candidates: &mut Vec<(f32, u16)>) {
    let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    candidates.clear();
    let mut floor = f32::NEG_INFINITY;
    for (id, &logit) in logits.iter().enumerate() {
        if logit < best && (candidates.len() < topk || logit > floor) {
            let at = candidates.partition_point(|&(other, _)| other >= logit);
            candidates.insert(at, (logit, id as u16));
            candidates.truncate(topk);
            floor = candidates[candidates.len() - 1].0;
        }
    }
    if candidates.is_empty() {
        candidates.push((0.0, 0));
    }
}

/// Draws from the softmax over `candidates` by the cumulative sum in their order.
fn choose(candidates: &[(f32, u16)], uniform: f64) -> u16 {
    let weight = |&(logit, _): &(f32, u16)| f64::from(logit - candidates[0].0).exp();
    let mut left = uniform * candidates.iter().map(weight).sum::<f64>();
    for candidate in candidates {
        left -= weight(candidate);
        if left < 0.0 {
            return candidate.1;
        }
    }
    candidates[candidates.len() - 1].1
}

/// What the teacher reads, `[B*(1+T)]`: the class token, then `echo` `[B*T]` inside the kept square and the
/// mask token outside.
pub fn teacher_ids<B: Backend>(
    config: &ModelConfig,
    echo: Tensor<B, 1, Int>,
    crop: &Crop,
    device: &B::Device,
) -> Tensor<B, 1, Int> {
    let (batch, tokens) = (crop.corners.len(), config.tokens());
    let hidden: Vec<bool> = (0..batch * tokens).map(|i| !crop.keeps(i / tokens, i % tokens, config.grid)).collect();
    let hidden = Tensor::<B, 1, Bool>::from_data(TensorData::new(hidden, [batch * tokens]), device);
    let seen = echo.mask_fill(hidden, config.mask_token_id as i64).reshape([batch, tokens]);
    let class = Tensor::full([batch, 1], config.class_token_id as i64, device);
    Tensor::cat(vec![class, seen], 1).reshape([batch * (1 + tokens)])
}

/// Positions of `batch` whole images, class token first, `[B*(1+T)]`.
pub fn whole_positions<B: Backend>(config: &ModelConfig, batch: usize, device: &B::Device) -> Tensor<B, 1, Int> {
    let positions: Vec<i32> = (0..batch).flat_map(|_| 0..config.sequence() as i32).collect();
    indices(&positions, device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sorcen_runtime::rng::Stream;

    #[test]
    fn the_best_and_its_ties_are_never_drawn() {
        let logits = [1.0, 5.0, 2.0, 5.0, 3.0, -1.0];
        let mut candidates = Vec::new();
        runners_up(&logits, 3, &mut candidates);
        assert_eq!(candidates.iter().map(|c| c.1).collect::<Vec<_>>(), [4, 2, 0]);
        runners_up(&[2.0; 4], 3, &mut candidates);
        assert_eq!(candidates.len(), 1);
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let row = [0.0f32, 2.0, 1.0, 9.0];
        let rows = 20_000;
        let drawn = sample(&row.repeat(rows), 4, 2, &Rng::new(1, Stream::Echo, 0), |r| r != 7);
        let ones = drawn.iter().filter(|&&id| id == 1).count() as f64 / rows as f64;
        let expected = 1.0 / (1.0 + (-1.0f64).exp());
        assert!((ones - expected).abs() < 0.01, "{ones} against {expected}");
        assert!(drawn.iter().enumerate().all(|(r, &id)| id == 1 || id == 2 || (r == 7 && id == 0)));
    }
}
