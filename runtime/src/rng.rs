//! The counter-based generator behind every random choice, in training and on a device.
//!
//! A draw is a pure function of (seed, stream, step, index): `key = sm(sm(sm(seed) ^ stream) ^ step)`,
//! `z_i = sm(key + i)` with `sm` = splitmix64. Draws can be made alone, in any order, anywhere.

use crate::math::fdlibm::{cos, log};

/// What a draw is for; streams never share numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Stream {
    /// Token choice of generation, one uniform a position.
    Sample = 1,
    /// Gumbel noise on the confidences when re-masking.
    Confidence = 2,
    /// Order of the images in an epoch.
    Shuffle = 3,
    /// Mask ratio of a batch.
    MaskRatio = 4,
    /// Mask noise, one uniform a token.
    MaskNoise = 5,
    /// Echo draws, one uniform a token.
    Echo = 6,
    /// Side, row and column of the kept square (jittered spatial masking).
    Crop = 7,
    /// Dropout.
    Dropout = 8,
    /// Initial weights.
    Init = 9,
    /// Tokenizer training.
    Tokenizer = 10,
    /// Evaluation protocols (few-shot draws, reconstruction masks).
    Evaluation = 11,
}

/// One step of splitmix64 as a hash.
pub const fn splitmix64(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// The draws of one (seed, stream, step).
#[derive(Clone, Copy, Debug)]
pub struct Rng {
    key: u64,
}

impl Rng {
    /// The generator of a stream at a step.
    pub const fn new(seed: u64, stream: Stream, step: u64) -> Self {
        Self { key: splitmix64(splitmix64(splitmix64(seed) ^ stream as u64) ^ step) }
    }

    /// What is hashed for draw `i`: `bits(i)` is its [`splitmix64`], wherever that is computed.
    pub const fn state(&self, i: u64) -> u64 {
        self.key.wrapping_add(i)
    }

    /// Draw `i`: 64 uniform bits.
    pub const fn bits(&self, i: u64) -> u64 {
        splitmix64(self.state(i))
    }

    /// Draw `i`: uniform in the open interval (0, 1), 53 bits.
    pub fn uniform(&self, i: u64) -> f64 {
        ((self.bits(i) >> 11) as f64 + 0.5) * (1.0 / 9_007_199_254_740_992.0)
    }

    /// Draw `i`: a standard Gumbel number, `-ln(-ln u)`.
    pub fn gumbel(&self, i: u64) -> f64 {
        -log(-log(self.uniform(i)))
    }

    /// Draw `i`: an integer in `0..n` (`n` > 0), by multiplication; bias below `n / 2^64`.
    pub const fn below(&self, i: u64, n: u64) -> u64 {
        ((self.bits(i) as u128 * n as u128) >> 64) as u64
    }

    /// Draws `2i` and `2i + 1`: a standard normal number (Box-Muller).
    pub fn normal(&self, i: u64) -> f64 {
        let radius = libm::sqrt(-2.0 * log(self.uniform(2 * i)));
        radius * cos(core::f64::consts::TAU * self.uniform(2 * i + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        // Reference outputs of splitmix64 seeded with 0 (first two states hashed).
        assert_eq!(splitmix64(0), 0xE220_A839_7B1D_CDAF);
        assert_eq!(splitmix64(0x9E37_79B9_7F4A_7C15), 0x6E78_9E6A_A1B9_65F4);
    }

    #[test]
    fn ranges() {
        let rng = Rng::new(7, Stream::Sample, 3);
        let mean = (0..10_000).map(|i| rng.uniform(i)).sum::<f64>() / 10_000.0;
        assert!((mean - 0.5).abs() < 0.02, "{mean}");
        let normals = (0..10_000).map(|i| rng.normal(i));
        let var = normals.map(|x| x * x).sum::<f64>() / 10_000.0;
        assert!((var - 1.0).abs() < 0.06, "{var}");
        assert!((0..1_000).all(|i| rng.below(i, 7) < 7));
    }
}
