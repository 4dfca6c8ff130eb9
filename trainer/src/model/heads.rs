//! What only pretraining needs: projectors with BatchNorm, and the online classifier.

use burn::tensor::{activation, backend::Backend, Tensor};

use super::batch_norm::{standardise_batch, BatchStatistics, RunningStatistics};
use super::init;
use super::layers::Linear;
use super::weight::{weights, Weight, Weights};
use crate::kernels::Kernels;

const BATCH_NORM_EPS: f32 = 1e-5;

/// Linear, BatchNorm on batch statistics, ReLU, linear: `projector`, `momentum_projector`, `predictor`.
#[derive(Clone, Debug)]
pub struct Projector<B: Backend> {
    first: Linear<B>,
    norm: BatchNorm<B>,
    last: Linear<B>,
}

weights!(Projector { first => "projector.0", norm => "projector.1", last => "projector.3" });

impl<B: Kernels> Projector<B> {
    /// Zeros, `inputs → hidden → outputs`.
    pub fn new(inputs: usize, hidden: usize, outputs: usize, device: &B::Device) -> Self {
        Self {
            first: Linear::new(inputs, hidden, device),
            norm: BatchNorm::new(hidden, device),
            last: Linear::new(hidden, outputs, device),
        }
    }

    /// `[B, inputs]` to `[B, outputs]`, and the statistics of this batch.
    pub fn forward(&self, x: Tensor<B, 2>) -> (Tensor<B, 2>, BatchStatistics<B>) {
        let (x, statistics) = self.norm.forward(self.first.forward(x));
        (self.last.forward(activation::relu(x)), statistics)
    }

    /// Moves the running statistics towards those of a batch, as PyTorch does.
    pub fn update_statistics(&mut self, batch: BatchStatistics<B>) {
        self.norm.running.update(batch);
    }
}

/// BatchNorm1d in train mode.
#[derive(Clone, Debug)]
struct BatchNorm<B: Backend> {
    weight: Weight<B>,
    bias: Weight<B>,
    running: RunningStatistics<B>,
}

weights!(BatchNorm { weight => "weight", bias => "bias", running => "" });

impl<B: Backend> BatchNorm<B> {
    fn new(width: usize, device: &B::Device) -> Self {
        Self {
            weight: Weight::zeros(&[width], device),
            bias: Weight::zeros(&[width], device),
            running: RunningStatistics::new(width, device),
        }
    }

    fn forward(&self, x: Tensor<B, 2>) -> (Tensor<B, 2>, BatchStatistics<B>) {
        let (x, statistics) = standardise_batch(x, BATCH_NORM_EPS);
        (x * self.weight.get() + self.bias.get(), statistics)
    }
}

/// The online classifier: it watches training on detached features and changes nothing but itself
/// (and, through the clipped norm, the step size).
#[derive(Clone, Debug)]
pub struct Classifier<B: Backend> {
    first: Linear<B>,
    last: Linear<B>,
}

weights!(Classifier { first => "0", last => "2" });

impl<B: Kernels> Classifier<B> {
    /// Zeros, `inputs → hidden → classes`.
    pub fn new(inputs: usize, hidden: usize, classes: usize, device: &B::Device) -> Self {
        Self { first: Linear::new(inputs, hidden, device), last: Linear::new(hidden, classes, device) }
    }

    /// PyTorch's default for linears: weights and biases uniform in ±1/√inputs.
    pub fn initialise_like_pytorch(&mut self, path: &str, seed: u64, device: &B::Device) {
        let mut inputs = 1;
        self.visit_mut(path, &mut |name, weight| {
            // A linear's weight comes before its bias, and both use its number of inputs.
            if let [_, columns] = *weight.dims() {
                inputs = columns;
            }
            let count = weight.dims().iter().product();
            weight.set_from(init::uniform(name, count, 1.0 / (inputs as f64).sqrt(), seed), device);
        });
    }

    /// `[B, inputs]` (detached inside) to class logits `[B, classes]`.
    pub fn forward(&self, features: Tensor<B, 2>) -> Tensor<B, 2> {
        self.last.forward(activation::relu(self.first.forward(features.detach())))
    }
}
