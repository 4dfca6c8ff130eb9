//! What only pretraining needs: projectors with BatchNorm, and the online classifier.

use burn::tensor::{activation, backend::Backend, Tensor};

use super::init;
use super::layers::Linear;
use super::weight::{weights, Weight, Weights};

const BATCH_NORM_EPS: f32 = 1e-5;
const BATCH_NORM_MOMENTUM: f32 = 0.1;

/// Linear, BatchNorm on batch statistics, ReLU, linear: `projector`, `momentum_projector`, `predictor`.
#[derive(Clone, Debug)]
pub struct Projector<B: Backend> {
    first: Linear<B>,
    norm: BatchNorm<B>,
    last: Linear<B>,
}

weights!(Projector { first => "projector.0", norm => "projector.1", last => "projector.3" });

impl<B: Backend> Projector<B> {
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
        self.norm.update(batch);
    }
}

/// BatchNorm1d in train mode.
#[derive(Clone, Debug)]
struct BatchNorm<B: Backend> {
    weight: Weight<B>,
    bias: Weight<B>,
    running_mean: Weight<B>,
    running_var: Weight<B>,
}

weights!(BatchNorm {
    weight => "weight",
    bias => "bias",
    running_mean => "running_mean",
    running_var => "running_var",
});

/// Mean and unbiased variance of a batch, `[1, width]` each, without gradient.
#[derive(Clone, Debug)]
pub struct BatchStatistics<B: Backend> {
    mean: Tensor<B, 2>,
    variance: Tensor<B, 2>,
}

impl<B: Backend> BatchNorm<B> {
    fn new(width: usize, device: &B::Device) -> Self {
        Self {
            weight: Weight::zeros(&[width], device),
            bias: Weight::zeros(&[width], device),
            running_mean: Weight::buffer(&[width], device),
            running_var: Weight::buffer(&[width], device),
        }
    }

    fn forward(&self, x: Tensor<B, 2>) -> (Tensor<B, 2>, BatchStatistics<B>) {
        let [batch, _] = x.dims();
        let mean = x.clone().mean_dim(0);
        let centred = x - mean.clone();
        let variance = centred.clone().square().mean_dim(0);
        let statistics = BatchStatistics {
            mean: mean.detach(),
            variance: variance.clone().detach() * (batch as f32 / (batch.max(2) - 1) as f32),
        };
        let y = centred / (variance + BATCH_NORM_EPS).sqrt() * self.weight.get() + self.bias.get();
        (y, statistics)
    }

    fn update(&mut self, batch: BatchStatistics<B>) {
        let blend = |running: &Weight<B>, new| running.get() * (1.0 - BATCH_NORM_MOMENTUM) + new * BATCH_NORM_MOMENTUM;
        let (mean, variance) = (blend(&self.running_mean, batch.mean), blend(&self.running_var, batch.variance));
        self.running_mean.set(mean);
        self.running_var.set(variance);
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

impl<B: Backend> Classifier<B> {
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
