//! Masks and kept squares of a batch, on the host: pure functions of (seed, step).

use serde::{Deserialize, Serialize};
use sorcen_runtime::rng::{Rng, Stream};

/// How tokens are hidden from the student.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct MaskOptions {
    /// Centre of the truncated normal of mask ratios (official 0.55).
    pub mask_ratio_mu: f64,
    /// Its deviation before truncation (0.25).
    pub mask_ratio_std: f64,
    /// Smallest ratio (0.5).
    pub mask_ratio_min: f64,
    /// Largest ratio (1.0).
    pub mask_ratio_max: f64,
    /// Share of tokens removed before the encoder (0.5); they are among the masked.
    pub drop_ratio: f64,
}

impl Default for MaskOptions {
    fn default() -> Self {
        Self { mask_ratio_mu: 0.55, mask_ratio_std: 0.25, mask_ratio_min: 0.5, mask_ratio_max: 1.0, drop_ratio: 0.5 }
    }
}

/// Which tokens of a batch are hidden.
#[derive(Clone, Debug, PartialEq)]
pub struct Masks {
    /// `[B*T]`: replaced by the mask token; the loss is over these.
    pub masked: Vec<bool>,
    /// `[B*T]`: removed before the encoder; a subset of `masked`, equally many in each image.
    pub dropped: Vec<bool>,
}

impl MaskOptions {
    /// One ratio for a whole batch: a normal number, drawn again until it is in range.
    pub fn ratio(&self, rng: &Rng) -> f64 {
        // A range so far out that 10,000 draws miss it is met at its nearest end.
        (0..10_000)
            .map(|i| self.mask_ratio_mu + self.mask_ratio_std * rng.normal(i))
            .find(|r| (self.mask_ratio_min..=self.mask_ratio_max).contains(r))
            .unwrap_or(self.mask_ratio_mu.clamp(self.mask_ratio_min, self.mask_ratio_max))
    }

    /// Masks for `batch` images of `tokens` tokens at a training step.
    pub fn draw(&self, batch: usize, tokens: usize, seed: u64, step: u64) -> Masks {
        let ratio = self.ratio(&Rng::new(seed, Stream::MaskRatio, step));
        let rng = Rng::new(seed, Stream::MaskNoise, step);
        let noise: Vec<f64> = (0..(batch * tokens) as u64).map(|i| rng.uniform(i)).collect();
        self.from_noise(&noise, tokens, ratio)
    }

    /// Masks from one uniform number a token: in each image the smallest are dropped, and masked.
    pub fn from_noise(&self, noise: &[f64], tokens: usize, ratio: f64) -> Masks {
        let count = |ratio: f64| ((tokens as f64 * ratio).ceil() as usize).min(tokens);
        let drop = count(self.drop_ratio);
        let mask = count(ratio).max(drop);
        let mut masks = Masks { masked: vec![false; noise.len()], dropped: vec![false; noise.len()] };
        let mut order: Vec<usize> = Vec::with_capacity(tokens);
        for (image, noise) in noise.chunks_exact(tokens).enumerate() {
            order.clear();
            order.extend(0..tokens);
            order.sort_by(|&a, &b| noise[a].total_cmp(&noise[b]));
            for (rank, &token) in order[..mask].iter().enumerate() {
                masks.masked[image * tokens + token] = true;
                masks.dropped[image * tokens + token] = rank < drop;
            }
        }
        masks
    }
}

/// Jittered spatial masking: the square of each echo that the teacher sees.
#[derive(Clone, Debug, PartialEq)]
pub struct Crop {
    /// Side of the square, one for the batch.
    pub side: usize,
    /// Top row and left column in each image.
    pub corners: Vec<(usize, usize)>,
}

impl Crop {
    /// Side uniform on `grid/2..=grid` (official: 8..=16 on 16), corners uniform where it fits.
    pub fn draw(batch: usize, grid: usize, seed: u64, step: u64) -> Self {
        let rng = Rng::new(seed, Stream::Crop, step);
        let smallest = (grid / 2).max(1);
        let side = smallest + rng.below(0, (grid - smallest + 1) as u64) as usize;
        let place = |i: u64| rng.below(i, (grid - side + 1) as u64) as usize;
        let corners = (0..batch as u64).map(|i| (place(2 * i + 1), place(2 * i + 2))).collect();
        Self { side, corners }
    }

    /// The whole grid: no spatial masking.
    pub fn whole(batch: usize, grid: usize) -> Self {
        Self { side: grid, corners: vec![(0, 0); batch] }
    }

    /// Whether token `token` of image `image` is inside the square.
    pub fn keeps(&self, image: usize, token: usize, grid: usize) -> bool {
        let (row, column) = self.corners[image];
        (row..row + self.side).contains(&(token / grid)) && (column..column + self.side).contains(&(token % grid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_count_and_nest() {
        let options = MaskOptions::default();
        for step in 0..20 {
            let masks = options.draw(3, 64, 5, step);
            let masked = masks.masked[..64].iter().filter(|&&m| m).count();
            assert!((32..=64).contains(&masked));
            for image in 0..3 {
                let range = image * 64..(image + 1) * 64;
                assert_eq!(masks.masked[range.clone()].iter().filter(|&&m| m).count(), masked);
                assert_eq!(masks.dropped[range].iter().filter(|&&m| m).count(), 32);
            }
            assert!(masks.masked.iter().zip(&masks.dropped).all(|(&m, &d)| m || !d), "dropped is a subset of masked");
            assert_eq!(masks, options.draw(3, 64, 5, step));
        }
        assert_ne!(options.draw(3, 64, 5, 0), options.draw(3, 64, 5, 1));
    }

    #[test]
    fn ratio_has_the_official_mean() {
        let options = MaskOptions::default();
        let ratios: Vec<f64> = (0..20_000).map(|s| options.ratio(&Rng::new(1, Stream::MaskRatio, s))).collect();
        let mean = ratios.iter().sum::<f64>() / 20_000.0;
        assert!((mean - 0.6936).abs() < 3e-3, "{mean}");
        assert!(ratios.iter().all(|r| (0.5..=1.0).contains(r)));
    }

    #[test]
    fn squares_stay_inside() {
        let mut sides = [0; 17];
        for step in 0..500 {
            let crop = Crop::draw(4, 16, 2, step);
            sides[crop.side] += 1;
            for image in 0..4 {
                let kept = (0..256).filter(|&t| crop.keeps(image, t, 16)).count();
                assert_eq!(kept, crop.side * crop.side);
            }
        }
        assert!(sides[..8].iter().all(|&n| n == 0) && sides[8..].iter().all(|&n| n > 20), "{sides:?}");
    }
}
