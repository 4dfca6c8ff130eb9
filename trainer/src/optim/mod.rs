//! Optimisers over weights by name: AdamW with a global clip for pretraining, [`Lars`] for linear probes.

mod lars;

use std::collections::BTreeMap;

use burn::tensor::backend::Backend;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::kernels::{Kernels, TrainBackend};
use crate::model::weight::Weights;
use crate::replicas::Peers;

pub use lars::{Lars, LarsOptions};

/// Constants of the update.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdamWOptions {
    /// Decay of the first moment (official 0.9).
    pub beta1: f64,
    /// Decay of the second moment (0.95).
    pub beta2: f64,
    /// Added to the root of the second moment (1e-8).
    pub eps: f64,
    /// Weight decay (0.05), for matrices and embeddings alone: [`Weight::decays`](crate::model::Weight::decays).
    pub weight_decay: f64,
    /// Largest global L2 norm of all gradients (3.0); 0 turns clipping off.
    pub grad_clip: f64,
}

impl Default for AdamWOptions {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.05, grad_clip: 3.0 }
    }
}

/// First and second moment of one weight, `[rows, columns]`.
pub type Moments<B> = (Tensor<B, 2>, Tensor<B, 2>);

/// AdamW: moments by weight name, and the number of updates made.
#[derive(Clone, Debug)]
pub struct AdamW<B: TrainBackend> {
    options: AdamWOptions,
    /// Updates made so far.
    pub updates: u64,
    /// By weight name; a weight that never had a gradient has none.
    pub moments: BTreeMap<String, Moments<B::InnerBackend>>,
}

impl<B: TrainBackend> AdamW<B> {
    /// An optimiser that has made no update.
    pub fn new(options: AdamWOptions) -> Self {
        Self { options, updates: 0, moments: BTreeMap::new() }
    }

    /// [`apply`](Self::apply) with the gradients of one backward pass, of one replica alone.
    pub fn update(
        &mut self,
        module: &mut dyn Weights<B>,
        grads: &mut B::Gradients,
        lr: f64,
    ) -> Tensor<B::InnerBackend, 1> {
        let mut gradients = Gradients::default();
        gradients.add(module, grads);
        let norm = gradients.norm();
        self.apply(module, gradients, norm.clone(), lr);
        norm
    }

    /// Clips all gradients together, by their global norm `[1]`, and moves every weight that has one.
    ///
    /// Weights without a gradient are left alone altogether: no decay either.
    pub fn apply(
        &mut self,
        module: &mut dyn Weights<B>,
        gradients: Gradients<B>,
        norm: Tensor<B::InnerBackend, 1>,
        lr: f64,
    ) {
        let factor = match self.options.grad_clip {
            clip if clip > 0.0 => ((norm + 1e-6).recip() * clip).clamp_max(1.0),
            _ => norm.ones_like(),
        };

        self.updates += 1;
        let AdamWOptions { beta1, beta2, eps, weight_decay, .. } = self.options;
        let correction = |beta: f64| 1.0 - beta.powf(self.updates as f64);
        let (correction1, correction2) = (correction(beta1), correction(beta2));
        let mut update = Update { factor, lr, decay: 0.0, beta1, beta2, eps, correction1, correction2 };
        let mut gradients = gradients.0.into_iter();
        module.visit_mut("", &mut |name, weight| {
            if let Some(gradient) = gradients.next().flatten() {
                update.decay = if weight.decays(name) { weight_decay } else { 0.0 };
                let zeros = || (gradient.zeros_like(), gradient.zeros_like());
                let moments = self.moments.entry(name.to_string()).or_insert_with(zeros);
                let value = B::InnerBackend::adamw(weight.get().inner(), gradient, moments, &update);
                weight.set(Tensor::from_inner(value));
            }
        });
    }
}

/// The gradients of a module's weights, in the order of its walk.
#[derive(Clone, Debug)]
pub struct Gradients<B: TrainBackend>(Vec<Option<Tensor<B::InnerBackend, 2>>>);

impl<B: TrainBackend> Default for Gradients<B> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<B: TrainBackend> Gradients<B> {
    /// Takes those of `module` out of what a backward pass gave, and adds them.
    pub fn add(&mut self, module: &dyn Weights<B>, grads: &mut B::Gradients) {
        let mut earlier = std::mem::take(&mut self.0).into_iter();
        module.visit("", &mut |_, weight| {
            let gradient = match (earlier.next().flatten(), weight.take_gradient(grads)) {
                (Some(sum), Some(gradient)) => Some(sum + gradient),
                (one, other) => one.or(other),
            };
            self.0.push(gradient);
        });
    }

    /// Those that there are.
    pub fn iter(&self) -> impl Iterator<Item = &Tensor<B::InnerBackend, 2>> {
        self.0.iter().flatten()
    }

    /// The L2 norm of all of them together, `[1]`.
    pub fn norm(&self) -> Tensor<B::InnerBackend, 1> {
        let squares = self.iter().map(|gradient| gradient.clone().square().sum());
        Tensor::cat(squares.collect(), 0).sum().sqrt()
    }

    /// Puts the means over all replicas in their place.
    pub fn average(&mut self, peers: &Peers) {
        let mut means = peers.mean(self.iter().cloned().collect()).into_iter();
        self.0.iter_mut().flatten().zip(&mut means).for_each(|(gradient, mean)| *gradient = mean);
    }
}

/// What one AdamW update does to a weight, gradient and moments aside.
#[derive(Clone, Debug)]
pub struct Update<B: Backend> {
    /// What clipping multiplies every gradient by, `[1]`.
    pub factor: Tensor<B, 1>,
    /// Learning rate.
    pub lr: f64,
    /// Weight decay of this weight.
    pub decay: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// `1 - beta1^t`
    pub correction1: f64,
    /// `1 - beta2^t`
    pub correction2: f64,
}

impl<B: Backend> Update<B> {
    /// The new value of a weight, in plain tensor operations; moves its moments.
    pub fn apply_plain(&self, value: Tensor<B, 2>, gradient: Tensor<B, 2>, moments: &mut Moments<B>) -> Tensor<B, 2> {
        let gradient = gradient * self.factor.clone().unsqueeze();
        let first = moments.0.clone() * self.beta1 + gradient.clone() * (1.0 - self.beta1);
        let second = moments.1.clone() * self.beta2 + gradient.square() * (1.0 - self.beta2);
        let root = second.clone().sqrt() / self.correction2.sqrt() + self.eps;
        let step = first.clone() / root * (self.lr / self.correction1);
        *moments = (first, second);
        value * (1.0 - self.lr * self.decay) - step
    }
}
