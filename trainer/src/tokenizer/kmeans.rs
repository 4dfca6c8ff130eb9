//! k-means of image patches.
//!
//! Deterministic for a seed, whatever the number of threads: each patch is assigned by itself, and the
//! sums behind the new means are integers, which add up to the same in any order.

use std::collections::HashMap;

use rayon::prelude::*;
use sorcen_runtime::rng::{Rng, Stream};

use super::PatchTokenizer;
use crate::train::TrainError;

/// How to train.
#[derive(Clone, Copy, Debug)]
pub struct TrainOptions {
    /// Number K of codes.
    pub codes: usize,
    /// Side P of a patch in pixels.
    pub patch: usize,
    /// Rounds of assignment and update.
    pub iterations: u64,
    /// Seed of the initial codes.
    pub seed: u64,
}

/// How far training is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TrainProgress {
    /// So many of the first codes are chosen.
    Chosen(u64),
    /// So many rounds are done; the mean squared error a channel of the codes before the last one's update.
    Round(u64, f64),
}

/// Patches that are drawn for the initial codes; more would only take longer.
const INIT_SAMPLE: usize = 30_000;

/// Patches that are assigned together.
const BLOCK: usize = 16;

/// Distinct patches, with how often each occurs: most of a picture on white is the same white patch.
struct Patches {
    /// `[count, len]`
    bytes: Vec<u8>,
    weights: Vec<u64>,
    len: usize,
}

/// Trains a codebook on images `[side, side, 3]`; calls `progress` after each code that is
/// chosen to start from, and after each round.
///
/// # Errors
/// [`TrainError::Option`] where `side` is not a multiple of the patch side, or there are
/// fewer distinct patches than codes.
pub fn train(
    images: &[Vec<u8>],
    side: usize,
    options: &TrainOptions,
    mut progress: impl FnMut(TrainProgress),
) -> Result<PatchTokenizer, TrainError> {
    let TrainOptions { patch, codes, .. } = *options;
    if patch == 0 || !side.is_multiple_of(patch) {
        let message = format!("--patch: expected a divisor of the images' side ({side}), found {patch}");
        return Err(TrainError::Option(message));
    }
    let patches = Patches::of(images, side, patch);
    let distinct = patches.weights.len();
    if codes == 0 || distinct < codes {
        let message = format!("--codes: expected 1 to {distinct}, the distinct patches of these images, found {codes}");
        return Err(TrainError::Option(message));
    }
    let mut means = initial_codes(&patches, options, |chosen| progress(TrainProgress::Chosen(chosen)));
    for round in 0..options.iterations {
        let assigned = patches.assign(&means);
        means = patches.means(&assigned, &means);
        progress(TrainProgress::Round(round + 1, patches.mean_squared_error(&assigned)));
    }
    let bytes = patches.medians(&patches.assign(&means), &means);
    PatchTokenizer::new(bytes, codes, patch).map_err(|error| TrainError::Option(error.to_string()))
}

impl Patches {
    fn of(images: &[Vec<u8>], side: usize, patch: usize) -> Self {
        let (len, stride) = (patch * patch * 3, side * 3);
        let mut index: HashMap<Vec<u8>, usize> = HashMap::new();
        let mut all = Self { bytes: Vec::new(), weights: Vec::new(), len };
        for image in images {
            for at in 0..(side / patch).pow(2) {
                let start = at / (side / patch) * patch * stride + at % (side / patch) * patch * 3;
                let rows = (0..patch).flat_map(|y| &image[start + y * stride..][..patch * 3]);
                let bytes: Vec<u8> = rows.copied().collect();
                let next = all.weights.len();
                let number = *index.entry(bytes).or_insert_with_key(|bytes| {
                    all.bytes.extend_from_slice(bytes);
                    all.weights.push(0);
                    next
                });
                all.weights[number] += 1;
            }
        }
        all
    }

    fn patch(&self, index: usize) -> &[u8] {
        &self.bytes[index * self.len..][..self.len]
    }

    /// For each patch, the nearest of `codes` `[K, len]` and the squared distance to it.
    fn assign(&self, codes: &[f32]) -> Vec<(usize, f32)> {
        let count = codes.len() / self.len;
        // |x - c|² = |x|² - 2 (x·c - |c|²/2); codes lie side by side, so that the inner loop runs over them.
        let half_norms: Vec<f32> =
            codes.chunks_exact(self.len).map(|code| code.iter().map(|v| v * v).sum::<f32>() / 2.0).collect();
        let mut columns = vec![0.0; codes.len()];
        for (k, code) in codes.chunks_exact(self.len).enumerate() {
            for (i, &value) in code.iter().enumerate() {
                columns[i * count + k] = value;
            }
        }
        let block = BLOCK * self.len;
        self.bytes
            .par_chunks(block)
            .flat_map_iter(|patches| self.nearest(patches, codes, &columns, &half_norms))
            .collect()
    }

    /// [`assign`](Self::assign) for a few patches at a time, so that `columns` is read less often.
    fn nearest(&self, patches: &[u8], codes: &[f32], columns: &[f32], half_norms: &[f32]) -> Vec<(usize, f32)> {
        let count = half_norms.len();
        let mut scores: Vec<f32> = half_norms.iter().map(|norm| -norm).collect::<Vec<_>>().repeat(BLOCK);
        for (i, column) in columns.chunks_exact(count).enumerate() {
            for (bytes, scores) in patches.chunks_exact(self.len).zip(scores.chunks_exact_mut(count)) {
                let value = f32::from(bytes[i]);
                for (score, &c) in scores.iter_mut().zip(column) {
                    *score += value * c;
                }
            }
        }
        let best = |(bytes, scores): (&[u8], &[f32])| {
            let first_of_best = |best: (usize, f32), (k, &score)| if score > best.1 { (k, score) } else { best };
            let (k, _) = scores.iter().enumerate().fold((0, scores[0]), first_of_best);
            (k, squared_distance(bytes, &codes[k * self.len..][..self.len]))
        };
        patches.chunks_exact(self.len).zip(scores.chunks_exact(count)).map(best).collect()
    }

    /// The mean of the patches of each code; a code without any takes a patch that is badly served.
    fn means(&self, assigned: &[(usize, f32)], codes: &[f32]) -> Vec<f32> {
        let count = codes.len() / self.len;
        let mut sums = vec![0u64; codes.len()];
        let mut members = vec![0u64; count];
        for (index, &(k, _)) in assigned.iter().enumerate() {
            members[k] += self.weights[index];
            for (sum, &value) in sums[k * self.len..].iter_mut().zip(self.patch(index)) {
                *sum += self.weights[index] * u64::from(value);
            }
        }
        let mut worst: Vec<usize> = (0..assigned.len()).collect();
        let error = |index: usize| self.weights[index] as f32 * assigned[index].1;
        if members.contains(&0) {
            worst.sort_by(|&a, &b| error(b).total_cmp(&error(a)));
        }
        let mut restarts = worst.into_iter();
        let mut next = Vec::with_capacity(codes.len());
        for (sums, &members) in sums.chunks_exact(self.len).zip(&members) {
            match (members, restarts.as_slice()) {
                (0, [index, ..]) => {
                    next.extend(self.patch(*index).iter().map(|&value| f32::from(value)));
                    restarts.next();
                }
                _ => next.extend(sums.iter().map(|&sum| (sum as f64 / members as f64) as f32)),
            }
        }
        next
    }

    /// The median of the patches of each code, channel by channel, as the pixels to show: flat patches
    /// come out flat and edges sharp, where means are clouded by every stray member.
    fn medians(&self, assigned: &[(usize, f32)], codes: &[f32]) -> Vec<u8> {
        let mut members = vec![Vec::new(); codes.len() / self.len];
        for (index, &(k, _)) in assigned.iter().enumerate() {
            members[k].push(index);
        }
        let medians = |(k, members): (usize, &Vec<usize>)| -> Vec<u8> {
            let half = members.iter().map(|&index| self.weights[index]).sum::<u64>().div_ceil(2);
            let median = |i: usize| {
                let mut weights = [0; 256];
                members.iter().for_each(|&index| weights[usize::from(self.patch(index)[i])] += self.weights[index]);
                let mut sum = 0;
                let reaches_half = |&weight: &u64| {
                    sum += weight;
                    sum >= half
                };
                weights.iter().position(reaches_half).unwrap_or(0) as u8
            };
            match members.is_empty() {
                true => codes[k * self.len..][..self.len].iter().map(|value| value.round() as u8).collect(),
                false => (0..self.len).map(median).collect(),
            }
        };
        members.par_iter().enumerate().flat_map_iter(medians).collect()
    }

    fn mean_squared_error(&self, assigned: &[(usize, f32)]) -> f64 {
        let weighted =
            assigned.iter().zip(&self.weights).map(|(&(_, error), &weight)| f64::from(error) * weight as f64);
        weighted.sum::<f64>() / (self.weights.iter().sum::<u64>() as f64 * self.len as f64)
    }
}

/// k-means++: each next code is a patch drawn in proportion to its squared distance to those before.
fn initial_codes(patches: &Patches, options: &TrainOptions, mut progress: impl FnMut(u64)) -> Vec<f32> {
    let rng = Rng::new(options.seed, Stream::Tokenizer, 0);
    let count = patches.weights.len();
    let sample: Vec<usize> = match count > INIT_SAMPLE.max(4 * options.codes) {
        false => (0..count).collect(),
        true => {
            // The first of a random order.
            let mut order: Vec<usize> = (0..count).collect();
            order.sort_by_key(|&index| rng.bits(index as u64));
            order.truncate(INIT_SAMPLE.max(4 * options.codes));
            order
        }
    };
    let draws = Rng::new(options.seed, Stream::Tokenizer, 1);
    let mut distances: Vec<f64> = vec![f64::INFINITY; sample.len()];
    let mut chosen = draws.below(0, sample.len() as u64) as usize;
    let mut codes = Vec::with_capacity(options.codes * patches.len);
    for draw in 1..=options.codes as u64 {
        let code: Vec<f32> = patches.patch(sample[chosen]).iter().map(|&value| f32::from(value)).collect();
        distances.par_iter_mut().zip(&sample).for_each(|(distance, &index)| {
            *distance = distance.min(f64::from(squared_distance(patches.patch(index), &code)));
        });
        codes.extend(code);
        progress(draw);
        let weight = |at: usize| distances[at] * patches.weights[sample[at]] as f64;
        let target = draws.uniform(draw) * (0..sample.len()).map(weight).sum::<f64>();
        let mut sum = 0.0;
        chosen = (0..sample.len())
            .find(|&at| {
                sum += weight(at);
                sum > target
            })
            .unwrap_or(0);
    }
    codes
}

/// In whole numbers as long as `code` holds any: exact below 2^24.
fn squared_distance(bytes: &[u8], code: &[f32]) -> f32 {
    bytes.iter().zip(code).map(|(&byte, &value)| (f32::from(byte) - value) * (f32::from(byte) - value)).sum()
}
