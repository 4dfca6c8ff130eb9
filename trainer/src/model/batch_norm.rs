//! The statistics of BatchNorm1d: of a batch, and running ones, as PyTorch keeps them.

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::Tensor;

use super::weight::{weights, Weight};

/// Share of a batch in the running statistics.
const MOMENTUM: f32 = 0.1;

/// Mean and unbiased variance of a batch, `[1, width]` each, without gradient.
#[derive(Clone, Debug)]
pub struct BatchStatistics<B: Backend> {
    mean: Tensor<B, 2>,
    variance: Tensor<B, 2>,
}

/// `(x - mean) / sqrt(variance + eps)` with the (biased) statistics of this batch: train mode, no affine part.
pub fn standardise_batch<B: Backend>(x: Tensor<B, 2>, eps: f32) -> (Tensor<B, 2>, BatchStatistics<B>) {
    let [batch, _] = x.dims();
    let mean = x.clone().mean_dim(0);
    let centred = x - mean.clone();
    let variance = centred.clone().square().mean_dim(0);
    let statistics = BatchStatistics {
        mean: mean.detach(),
        variance: variance.clone().detach() * (batch as f32 / (batch.max(2) - 1) as f32),
    };
    (centred / (variance + eps).sqrt(), statistics)
}

/// Mean and variance that follow those of the batches.
#[derive(Clone, Debug)]
pub struct RunningStatistics<B: Backend> {
    mean: Weight<B>,
    variance: Weight<B>,
}

weights!(RunningStatistics { mean => "running_mean", variance => "running_var" });

impl<B: Backend> RunningStatistics<B> {
    /// Zeros; see [`Weights::initialise`](super::weight::Weights::initialise).
    pub fn new(width: usize, device: &B::Device) -> Self {
        Self { mean: Weight::buffer(&[width], device), variance: Weight::buffer(&[width], device) }
    }

    /// The same below autodiff.
    pub fn inner(&self) -> RunningStatistics<B::InnerBackend>
    where
        B: AutodiffBackend,
    {
        RunningStatistics { mean: self.mean.inner(), variance: self.variance.inner() }
    }

    /// Moves towards the statistics of a batch; the unbiased variance enters.
    pub fn update(&mut self, batch: BatchStatistics<B>) {
        let blend = |running: &Weight<B>, new| running.get() * (1.0 - MOMENTUM) + new * MOMENTUM;
        let (mean, variance) = (blend(&self.mean, batch.mean), blend(&self.variance, batch.variance));
        self.mean.set(mean);
        self.variance.set(variance);
    }

    /// `(x - mean) / sqrt(variance + eps)` with the running statistics: eval mode.
    pub fn standardise(&self, x: Tensor<B, 2>, eps: f32) -> Tensor<B, 2> {
        (x - self.mean.get()) / (self.variance.get() + eps).sqrt()
    }
}
