//! AdamW with a global clip, over weights by name.

use std::collections::BTreeMap;

use burn::tensor::backend::AutodiffBackend;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::model::weight::Weights;

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
pub struct AdamW<B: AutodiffBackend> {
    options: AdamWOptions,
    /// Updates made so far.
    pub updates: u64,
    /// By weight name; a weight that never had a gradient has none.
    pub moments: BTreeMap<String, Moments<B::InnerBackend>>,
}

impl<B: AutodiffBackend> AdamW<B> {
    /// An optimiser that has made no update.
    pub fn new(options: AdamWOptions) -> Self {
        Self { options, updates: 0, moments: BTreeMap::new() }
    }

    /// Clips all gradients together and moves every weight that has one.
    ///
    /// Weights without a gradient are left alone altogether: no decay either.
    /// Returns the global norm before clipping, `[1]`.
    pub fn update(
        &mut self,
        module: &mut dyn Weights<B>,
        grads: &mut B::Gradients,
        lr: f64,
    ) -> Tensor<B::InnerBackend, 1> {
        let mut gradients = Vec::new();
        module.visit("", &mut |_, weight| gradients.push(weight.take_gradient(grads)));
        let squares = gradients.iter().flatten().map(|g: &Tensor<_, 2>| g.clone().square().sum());
        let norm = Tensor::cat(squares.collect(), 0).sum().sqrt();
        let factor = match self.options.grad_clip {
            clip if clip > 0.0 => ((norm.clone() + 1e-6).recip() * clip).clamp_max(1.0),
            _ => norm.ones_like(),
        };

        self.updates += 1;
        let mut gradients = gradients.into_iter();
        module.visit_mut("", &mut |name, weight| {
            if let Some(gradient) = gradients.next().flatten() {
                let decay = if weight.decays(name) { self.options.weight_decay } else { 0.0 };
                let value = self.moved(name, weight.get().inner(), gradient * factor.clone().unsqueeze(), lr, decay);
                weight.set(Tensor::from_inner(value));
            }
        });
        norm
    }

    /// The new value of one weight.
    fn moved(
        &mut self,
        name: &str,
        value: Tensor<B::InnerBackend, 2>,
        gradient: Tensor<B::InnerBackend, 2>,
        lr: f64,
        decay: f64,
    ) -> Tensor<B::InnerBackend, 2> {
        let AdamWOptions { beta1, beta2, eps, .. } = self.options;
        let (first, second) =
            self.moments.remove(name).unwrap_or_else(|| (gradient.zeros_like(), gradient.zeros_like()));
        let first = first * beta1 + gradient.clone() * (1.0 - beta1);
        let second = second * beta2 + gradient.square() * (1.0 - beta2);
        let correction = |beta: f64| 1.0 - beta.powf(self.updates as f64);
        let root = second.clone().sqrt() / correction(beta2).sqrt() + eps;
        let step = first.clone() / root * (lr / correction(beta1));
        self.moments.insert(name.to_string(), (first, second));
        value * (1.0 - lr * decay) - step
    }
}
