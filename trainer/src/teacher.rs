//! The teacher: an encoder that follows the student's by an exponential moving average.

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};
use serde::{Deserialize, Serialize};
use sorcen_runtime::ModelConfig;

use crate::kernels::{Kernels, TrainBackend};
use crate::model::block::{self, Block};
use crate::model::embed::Embedding;
use crate::model::layers::{Dropout, LayerNorm};
use crate::model::weight::{weights, Weight, Weights};
use crate::model::{encoder_blocks, normalise_tokens, pool, Sorcen};

/// Which parts of the teacher are its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum TeacherKind {
    /// The blocks; embedding and final norm are the student's current ones, and the momentum projector is
    /// trained as well (official code).
    #[default]
    Blocks,
    /// Embedding and final norm too, and the momentum projector only follows (the paper's words).
    Whole,
}

/// Where the teacher starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum TeacherInit {
    /// Random values of its own (official): with momentum 0.996 it comes to follow the student over a few
    /// hundred steps.
    #[default]
    Random,
    /// A copy of the student.
    Student,
}

/// Name of the teacher's blocks in files.
pub const TEACHER: &str = "blocks_momentum";

/// The teacher's own weights, on a backend without autodiff.
#[derive(Clone, Debug)]
pub struct Teacher<B: Backend> {
    /// `blocks_momentum.*`
    pub blocks: Vec<Block<B>>,
    /// Of a [`TeacherKind::Whole`].
    embed: Option<Embedding<B>>,
    norm: Option<LayerNorm<B>>,
}

weights!(Teacher { blocks => "blocks_momentum", embed => "token_emb_momentum", norm => "norm_momentum" });

impl<B: Kernels> Teacher<B> {
    /// Initial values of its own; a pure function of (config, kind, seed).
    pub fn new(config: &ModelConfig, kind: TeacherKind, seed: u64, device: &B::Device) -> Self {
        let whole = kind == TeacherKind::Whole;
        let mut teacher = Self {
            blocks: encoder_blocks(config, device),
            embed: whole.then(|| Embedding::new(config, device)),
            norm: whole.then(|| LayerNorm::new(config.embed_dim, config.layer_norm_eps, device)),
        };
        teacher.initialise("", seed, device);
        teacher
    }

    /// `teacher ← momentum · teacher + (1 - momentum) · student`.
    pub fn follow<A: TrainBackend<InnerBackend = B>>(&mut self, student: &Sorcen<A>, momentum: f64) {
        let mut values = Vec::new();
        let mut collect = |_: &str, weight: &Weight<A>| values.push(weight.get().inner());
        student.blocks.visit("", &mut collect);
        if self.embed.is_some() {
            student.embed.visit("", &mut collect);
            student.norm.visit("", &mut collect);
        }
        let mut values = values.into_iter();
        self.visit_mut("", &mut |_, weight| {
            if let Some(value) = values.next() {
                weight.set(B::blend(weight.get(), value, momentum));
            }
        });
    }

    /// Mean over the patch tokens of the teacher's normed output, `[B, D]`, without gradient.
    ///
    /// `ids` and `positions` `[B*(1+T)]` are those of whole images, class token first: the echo. Dropout is
    /// active, as in the official code.
    pub fn forward<A: TrainBackend<InnerBackend = B>>(
        &self,
        student: &Sorcen<A>,
        ids: Tensor<B, 1, Int>,
        positions: Tensor<B, 1, Int>,
        batch: usize,
        dropout: &Dropout,
    ) -> Tensor<B, 2> {
        let embed = self.embed.clone().unwrap_or_else(|| student.embed.inner());
        let norm = self.norm.clone().unwrap_or_else(|| student.norm.inner());
        let x = embed.forward(ids, positions, batch, dropout);
        let x = block::run(&self.blocks, x, dropout);
        pool(normalise_tokens(&norm, x), 1)
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
            weight.set(Tensor::from_inner(B::InnerBackend::blend(weight.get().inner(), value, momentum)));
        }
    });
}
