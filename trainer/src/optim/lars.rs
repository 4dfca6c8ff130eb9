//! LARS, as MAE and MAGE probe with it (`util/lars.py` of their code).

use std::collections::BTreeMap;

use burn::tensor::backend::AutodiffBackend;
use burn::tensor::Tensor;

use crate::model::weight::Weights;

/// Constants of the update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LarsOptions {
    /// Decay of the momentum buffer (official 0.9).
    pub momentum: f64,
    /// Weight decay of tensors with more than one dimension (0).
    pub weight_decay: f64,
    /// Trust coefficient: the length of a step, as a share of the tensor's own norm, at learning rate 1 (0.001).
    pub trust: f64,
}

impl Default for LarsOptions {
    fn default() -> Self {
        Self { momentum: 0.9, weight_decay: 0.0, trust: 0.001 }
    }
}

/// LARS: the gradient of a matrix is scaled to `trust` times the matrix's norm; vectors take plain momentum steps.
#[derive(Clone, Debug)]
pub struct Lars<B: AutodiffBackend> {
    options: LarsOptions,
    /// Momentum by weight name.
    pub buffers: BTreeMap<String, Tensor<B::InnerBackend, 2>>,
}

impl<B: AutodiffBackend> Lars<B> {
    /// An optimiser that has made no update.
    pub fn new(options: LarsOptions) -> Self {
        Self { options, buffers: BTreeMap::new() }
    }

    /// Moves every weight that has a gradient; `lr` is applied after the momentum. No clipping.
    pub fn update(&mut self, module: &mut dyn Weights<B>, grads: &mut B::Gradients, lr: f64) {
        let LarsOptions { momentum, weight_decay, trust } = self.options;
        module.visit_mut("", &mut |name, weight| {
            let Some(mut step) = weight.take_gradient(grads) else { return };
            let value = weight.get().inner();
            if weight.dims().len() > 1 {
                step = step + value.clone() * weight_decay;
                step = step.clone() * trust_ratio(norm(&value), norm(&step), trust);
            }
            let buffer = match self.buffers.remove(name) {
                Some(buffer) => buffer * momentum + step,
                None => step,
            };
            self.buffers.insert(name.to_string(), buffer.clone());
            weight.set(Tensor::from_inner(value - buffer * lr));
        });
    }
}

/// `trust * |weight| / |step|`, 1 where either is 0; all `[1, 1]`.
fn trust_ratio<B: burn::tensor::backend::Backend>(
    weight: Tensor<B, 2>,
    step: Tensor<B, 2>,
    trust: f64,
) -> Tensor<B, 2> {
    let undefined = weight.clone().equal_elem(0.0).bool_or(step.clone().equal_elem(0.0));
    (weight / step * trust).mask_fill(undefined, 1.0)
}

fn norm<B: burn::tensor::backend::Backend>(x: &Tensor<B, 2>) -> Tensor<B, 2> {
    x.clone().square().sum().sqrt().unsqueeze()
}
