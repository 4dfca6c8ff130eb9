//! The teacher: blocks that follow the student's by an exponential moving average.

use burn::tensor::Tensor;
use sorcen_runtime::ModelConfig;

use crate::kernels::TrainBackend;
use crate::model::block::{self, Block};
use crate::model::layers::Dropout;
use crate::model::weight::{Weight, Weights};
use crate::model::{encoder_blocks, indices, normalise_tokens, pool, Layout, Sorcen};

/// Teacher blocks, below autodiff. Embedding and final norm are the student's current ones.
///
/// They are *not* copied from the student at the start but get random values of their own
/// (official): with momentum 0.996 they come to follow it over a few hundred steps.
#[derive(Clone, Debug)]
pub struct Teacher<B: TrainBackend> {
    /// `blocks_momentum.*`
    pub blocks: Vec<Block<B::InnerBackend>>,
}

/// Name of the teacher's blocks in files.
pub const TEACHER: &str = "blocks_momentum";

impl<B: TrainBackend> Teacher<B> {
    /// Initial values of their own.
    pub fn new(config: &ModelConfig, seed: u64, device: &B::Device) -> Self {
        let mut blocks = encoder_blocks(config, device);
        blocks.initialise(TEACHER, seed, device);
        Self { blocks }
    }

    /// `teacher ← momentum · teacher + (1 - momentum) · student`.
    pub fn follow(&mut self, student: &Sorcen<B>, momentum: f64) {
        let mut values = Vec::new();
        student.blocks.visit("", &mut |_, weight| values.push(weight.get().inner()));
        let mut values = values.into_iter();
        self.blocks.visit_mut("", &mut |_, weight| {
            if let Some(value) = values.next() {
                weight.set(blend(weight.get(), value, momentum));
            }
        });
    }

    /// Mean over the patch tokens of the teacher's normed output, `[B, D]`, without gradient.
    ///
    /// `layout` holds the echo's ids; nothing is dropped. Dropout is active, as in the official code.
    pub fn forward(
        &self,
        student: &Sorcen<B>,
        layout: &Layout,
        device: &B::Device,
        dropout: &Dropout,
    ) -> Tensor<B::InnerBackend, 2> {
        let (ids, positions) = (indices(&layout.ids, device), indices(&layout.positions, device));
        let x = student.embed.inner().forward(ids, positions, layout.batch, dropout);
        let x = block::run(&self.blocks, x, dropout);
        pool(normalise_tokens(&student.norm.inner(), x), 1)
    }
}

/// The same average on two modules with gradients: `target`'s trained weights follow `source`'s.
pub fn follow<B: TrainBackend>(target: &mut dyn Weights<B>, source: &dyn Weights<B>, momentum: f64) {
    let mut values = Vec::new();
    source.visit("", &mut |_, weight: &Weight<B>| values.push(weight.get().inner()));
    let mut values = values.into_iter();
    target.visit_mut("", &mut |_, weight| {
        let value = values.next();
        if let Some(value) = value.filter(|_| weight.is_trained()) {
            weight.set(Tensor::from_inner(blend(weight.get().inner(), value, momentum)));
        }
    });
}

fn blend<B: burn::tensor::backend::Backend>(old: Tensor<B, 2>, new: Tensor<B, 2>, momentum: f64) -> Tensor<B, 2> {
    old * momentum + new * (1.0 - momentum)
}
