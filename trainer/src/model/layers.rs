//! Linear, LayerNorm and dropout.

use std::cell::Cell;

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::Tensor;
use sorcen_runtime::rng::{splitmix64, Rng, Stream};

use super::precision::Precision;
use super::weight::{weights, Weight};
use crate::cpu::wide;
use crate::kernels::Kernels;

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

    /// The same linear below autodiff.
    pub fn inner(&self) -> Linear<B::InnerBackend>
    where
        B: AutodiffBackend,
    {
        Linear { weight: self.weight.inner(), bias: self.bias.inner() }
    }

    /// `[rows, in]` to `[rows, out]`, in the precision of the weight.
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2>
    where
        B: Kernels,
    {
        B::product(x, self.weight.get().transpose(), self.precision()) + self.bias.get()
    }

    /// What its product takes.
    pub fn precision(&self) -> Precision {
        self.weight.precision()
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
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2>
    where
        B: Kernels,
    {
        B::layer_norm_rows(x, self.weight.get(), self.bias.get(), self.eps)
    }

    /// Its epsilon.
    pub fn eps(&self) -> f32 {
        self.eps
    }
}

/// `(x - mean) / sqrt(var + eps)` of every row, biased variance.
pub fn standardise<B: Backend>(x: Tensor<B, 2>, eps: f32) -> Tensor<B, 2> {
    let centred = x.clone() - x.mean_dim(1);
    let variance = centred.clone().square().mean_dim(1);
    centred / (variance + eps).sqrt()
}

/// Dropout's numbers: a pure function of (seed, step, call, element).
#[derive(Clone, Copy, Debug)]
pub struct DropoutSource {
    rate: f32,
    rng: Rng,
}

impl DropoutSource {
    /// Whether nothing is ever dropped.
    pub fn is_off(&self) -> bool {
        self.rate <= 0.0
    }

    /// Probability of being dropped.
    pub fn rate(&self) -> f32 {
        self.rate
    }

    /// [`splitmix64`] of this number plus i gives the bits of elements `4i..4i + 4` of call number `call`, 16 each.
    pub fn state(&self, call: u64) -> u64 {
        self.rng.state(call << 40)
    }

    /// Bits below the first number are dropped, other elements multiplied by the second.
    pub fn odds(&self) -> (u64, f32) {
        ((self.rate * 65_536.0) as u64, 1.0 / (1.0 - self.rate))
    }

    /// Factors of elements `start..` of the tensor that call number `call` drops from: 0 or `1 / (1 - rate)`.
    pub fn fill(&self, call: u64, start: u64, out: &mut [f32]) {
        let (limit, scale) = self.odds();
        let state = self.state(call);
        let draw = |index: u64| splitmix64(state.wrapping_add(index / 4));
        let factor = |bits: u64, lane: u64| if (bits >> (16 * lane)) & 0xFFFF < limit { 0.0 } else { scale };
        let single = |(i, out): (u64, &mut f32)| *out = factor(draw(i), i % 4);

        let head = (start.wrapping_neg() % 4).min(out.len() as u64);
        let (first, rest) = out.split_at_mut(head as usize);
        (start..).zip(first).for_each(single);
        let mut index = start + head;
        let (fours, last) = rest.as_chunks_mut::<4>();
        wide(
            #[inline(always)]
            || {
                for four in fours {
                    let bits = draw(index);
                    *four = [0, 1, 2, 3].map(|lane| factor(bits, lane));
                    index += 4;
                }
            },
        );
        (index..).zip(last).for_each(single);
    }
}

/// Dropout drawn from the counter generator. Calls are numbered in the order of the layers.
#[derive(Debug)]
pub struct Dropout {
    source: DropoutSource,
    calls: Cell<u64>,
}

impl Dropout {
    /// No dropout: inference, tests.
    pub fn off() -> Self {
        Self::new(0.0, 0, 0)
    }

    /// Dropout of probability `rate` (0 to below 1) for one training step.
    pub fn new(rate: f32, seed: u64, step: u64) -> Self {
        let source = DropoutSource { rate, rng: Rng::new(seed, Stream::Dropout, step) };
        Self { source, calls: Cell::new(0) }
    }

    /// Where the numbers come from.
    pub fn source(&self) -> DropoutSource {
        self.source
    }

    /// Takes the numbers of the next `calls` calls; returns the first of them.
    pub fn reserve(&self, calls: u64) -> u64 {
        self.calls.replace(self.calls.get() + calls)
    }

    /// Drops elements of `x`, any shape: one call.
    pub fn apply<B: Kernels, const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        let call = self.reserve(1);
        if self.source.is_off() {
            return x;
        }
        let factors = B::dropout(&self.source, call, x.dims(), &x.device());
        x * factors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropout_keeps_the_mean_and_does_not_depend_on_the_pieces() {
        let source = Dropout::new(0.1, 3, 7).source();
        let draw = |call, start, count| {
            let mut mask = vec![f32::NAN; count];
            source.fill(call, start, &mut mask);
            mask
        };
        let mask = draw(0, 0, 40_001);
        assert!((mask.iter().sum::<f32>() / 40_001.0 - 1.0).abs() < 0.01);
        for (start, count) in [(0, 7), (1, 2), (3, 10), (6, 1), (8, 8), (5, 30)] {
            assert_eq!(draw(0, start as u64, count), mask[start..start + count], "{count} from {start}");
        }
        assert_ne!(draw(1, 0, 64), mask[..64], "each call has its own numbers");
        assert!(Dropout::off().source().is_off());
    }
}
