//! Choosing a code from logits, and where the random numbers come from.

use crate::{
    layers::softmax::exponentials,
    math::fdlibm::logf,
    rng::{Rng, Stream},
};

/// The softmax of one position's logits, unnormalised: weights and their sum in index order.
pub struct Distribution<'l> {
    weights: &'l [f32],
    total: f32,
}

impl<'l> Distribution<'l> {
    /// From logits `[K]`, overwritten; `sharpness` is 1 / token temperature.
    pub fn new(logits: &'l mut [f32], sharpness: f32) -> Self {
        if sharpness != 1.0 {
            logits.iter_mut().for_each(|x| *x *= sharpness);
        }
        exponentials(logits);
        let total = logits.iter().fold(0.0, |sum, w| sum + w);
        Self { weights: logits, total }
    }

    /// Unnormalised probabilities `[K]`; the largest is 1.
    pub fn weights(&self) -> &[f32] {
        self.weights
    }

    /// The first code whose cumulative probability passes `u` in (0, 1).
    pub fn pick(&self, u: f64) -> u16 {
        let target = u as f32 * self.total;
        let mut sum = 0.0;
        for (code, weight) in self.weights.iter().enumerate() {
            sum += weight;
            if sum > target {
                return code as u16;
            }
        }
        self.best() // u so near 1 that rounding passed over the last code
    }

    /// The most likely code, the first on ties.
    pub fn best(&self) -> u16 {
        let first_max = |best: (usize, f32), (i, &w): (usize, &f32)| if w > best.1 { (i, w) } else { best };
        self.weights.iter().enumerate().fold((0, f32::NEG_INFINITY), first_max).0 as u16
    }

    /// Natural logarithm of a code's probability; negative infinity for an id that is no code.
    pub fn log_probability(&self, code: u16) -> f32 {
        self.weights.get(usize::from(code)).map_or(f32::NEG_INFINITY, |w| logf(*w) - logf(self.total))
    }
}

/// The random choices of a generation: ours, or recorded ones (a tester's replay).
pub trait Draws {
    /// The code for a position at a step (both from 0).
    fn choose(&mut self, step: usize, position: usize, distribution: &Distribution<'_>) -> u16;

    /// Standard Gumbel noise for a position's confidence at a step.
    fn gumbel(&mut self, step: usize, position: usize) -> f64;
}

/// Draws from the counter generator: a function of the seed alone.
#[derive(Clone, Copy, Debug)]
pub struct Seeded(pub u64);

impl Draws for Seeded {
    fn choose(&mut self, step: usize, position: usize, distribution: &Distribution<'_>) -> u16 {
        distribution.pick(Rng::new(self.0, Stream::Sample, step as u64).uniform(position as u64))
    }

    fn gumbel(&mut self, step: usize, position: usize) -> f64 {
        Rng::new(self.0, Stream::Confidence, step as u64).gumbel(position as u64)
    }
}

/// Always the most likely code; confidences still get the seed's noise.
#[derive(Clone, Copy, Debug)]
pub struct Greedy(pub u64);

impl Draws for Greedy {
    fn choose(&mut self, _: usize, _: usize, distribution: &Distribution<'_>) -> u16 {
        distribution.best()
    }

    fn gumbel(&mut self, step: usize, position: usize) -> f64 {
        Seeded(self.0).gumbel(step, position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picks_follow_the_probabilities() {
        let mut logits = [0.0f32, 1.0, 2.0, -3.0];
        let distribution = Distribution::new(&mut logits, 1.0);
        let mut counts = [0u32; 4];
        let rng = Rng::new(1, Stream::Sample, 0);
        for i in 0..100_000 {
            counts[usize::from(distribution.pick(rng.uniform(i)))] += 1;
        }
        for code in 0..4u16 {
            let p = libm::exp(distribution.log_probability(code).into());
            let found = f64::from(counts[usize::from(code)]) / 100_000.0;
            assert!((p - found).abs() < 0.006, "{code}: {p} {found}");
        }
        assert_eq!(distribution.best(), 2);
        assert_eq!(distribution.pick(0.999), 3);
    }
}
