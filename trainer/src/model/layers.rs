//! Linear, LayerNorm and dropout.

use std::cell::Cell;

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Tensor, TensorData};
use sorcen_runtime::rng::{Rng, Stream};

use super::weight::{weights, Weight};

/// `y = x Wᵀ + b`.
#[derive(Clone, Debug)]
pub struct Linear<B: Backend> {
    /// `[out, in]`
    pub weight: Weight<B>,
    /// `[out]`
    pub bias: Weight<B>,
}

weights!(Linear { weight => "weight", bias => "bias" });

impl<B: Backend> Linear<B> {
    /// Zeros; see [`Weights::initialise`].
    pub fn new(inputs: usize, outputs: usize, device: &B::Device) -> Self {
        Self { weight: Weight::zeros(&[outputs, inputs], device), bias: Weight::zeros(&[outputs], device) }
    }

    /// `[rows, in]` to `[rows, out]`.
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        x.matmul(self.weight.get().transpose()) + self.bias.get()
    }
}

/// Layer normalisation over the last dimension.
#[derive(Clone, Debug)]
pub struct LayerNorm<B: Backend> {
    /// `[D]`
    pub weight: Weight<B>,
    /// `[D]`
    pub bias: Weight<B>,
    eps: f32,
}

weights!(LayerNorm { weight => "weight", bias => "bias" });

impl<B: Backend> LayerNorm<B> {
    /// Zeros; see [`Weights::initialise`].
    pub fn new(width: usize, eps: f32, device: &B::Device) -> Self {
        Self { weight: Weight::zeros(&[width], device), bias: Weight::zeros(&[width], device), eps }
    }

    /// The same norm below autodiff.
    pub fn inner(&self) -> LayerNorm<B::InnerBackend>
    where
        B: AutodiffBackend,
    {
        LayerNorm { weight: self.weight.inner(), bias: self.bias.inner(), eps: self.eps }
    }

    /// `[rows, D]` to `[rows, D]`.
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        standardise(x, self.eps) * self.weight.get() + self.bias.get()
    }
}

/// `(x - mean) / sqrt(var + eps)` of every row, biased variance.
pub fn standardise<B: Backend>(x: Tensor<B, 2>, eps: f32) -> Tensor<B, 2> {
    let centred = x.clone() - x.mean_dim(1);
    let variance = centred.clone().square().mean_dim(1);
    centred / (variance + eps).sqrt()
}

/// Dropout drawn from the counter generator: the numbers are a pure function of (seed, step) and of
/// the order of the calls, which is the order of the layers.
#[derive(Debug)]
pub struct Dropout {
    rate: f32,
    rng: Rng,
    calls: Cell<u64>,
}

impl Dropout {
    /// No dropout: inference, tests.
    pub fn off() -> Self {
        Self::new(0.0, 0, 0)
    }

    /// Dropout of probability `rate` (0 to below 1) for one training step.
    pub fn new(rate: f32, seed: u64, step: u64) -> Self {
        Self { rate, rng: Rng::new(seed, Stream::Dropout, step), calls: Cell::new(0) }
    }

    /// The next call's mask of `count` factors: 0 or `1 / (1 - rate)`. `None` where nothing is dropped.
    pub fn mask(&self, count: usize) -> Option<Vec<f32>> {
        if self.rate <= 0.0 {
            return None;
        }
        let call = self.calls.get();
        self.calls.set(call + 1);
        // 16 bits a number, four numbers a draw.
        let limit = (self.rate * 65_536.0) as u64;
        let scale = 1.0 / (1.0 - self.rate);
        let mut mask = Vec::with_capacity(count + 3);
        for i in 0..count.div_ceil(4) as u64 {
            let bits = self.rng.bits((call << 40) + i);
            mask.extend([0, 16, 32, 48].map(|shift| if (bits >> shift) & 0xFFFF < limit { 0.0 } else { scale }));
        }
        mask.truncate(count);
        Some(mask)
    }

    /// Drops elements of `x`, any shape.
    pub fn apply<B: Backend, const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        let shape = x.shape();
        match self.mask(shape.num_elements()) {
            None => x,
            Some(mask) => {
                let mask = Tensor::from_data(TensorData::new(mask, shape), &x.device());
                x * mask
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropout_keeps_the_mean_and_repeats() {
        let draw = || Dropout::new(0.1, 3, 7).mask(40_001).unwrap();
        let mask = draw();
        assert_eq!(mask.len(), 40_001);
        assert!((mask.iter().sum::<f32>() / 40_001.0 - 1.0).abs() < 0.01);
        assert_eq!(mask, draw());
        let dropout = Dropout::new(0.1, 3, 7);
        assert_ne!(dropout.mask(64), dropout.mask(64), "each call has its own numbers");
        assert_eq!(Dropout::off().mask(4), None);
    }
}
