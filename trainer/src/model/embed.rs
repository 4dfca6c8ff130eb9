//! Token embedding.

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Int, Tensor};
use sorcen_runtime::ModelConfig;

use super::layers::{Dropout, LayerNorm};
use super::weight::{weights, Weight};
use crate::kernels::Kernels;

/// `LN(word[id] + position[i])`, then dropout.
#[derive(Clone, Debug)]
pub struct Embedding<B: Backend> {
    /// `[V, D]`; the output layer reads it too.
    pub word: Weight<B>,
    position: Weight<B>,
    norm: LayerNorm<B>,
}

weights!(Embedding {
    word => "word_embeddings.weight",
    position => "position_embeddings.weight",
    norm => "LayerNorm",
});

impl<B: Kernels> Embedding<B> {
    /// Zeros.
    pub fn new(config: &ModelConfig, device: &B::Device) -> Self {
        Self {
            word: Weight::zeros(&[config.vocab_size, config.embed_dim], device),
            position: Weight::zeros(&[config.sequence(), config.embed_dim], device),
            norm: LayerNorm::new(config.embed_dim, config.layer_norm_eps, device),
        }
    }

    /// The same embedding below autodiff.
    pub fn inner(&self) -> Embedding<B::InnerBackend>
    where
        B: AutodiffBackend<InnerBackend: Kernels>,
    {
        Embedding { word: self.word.inner(), position: self.position.inner(), norm: self.norm.inner() }
    }

    /// Ids and their positions in the full sequence, `[B*N]` each, to `[B, N, D]`.
    ///
    /// Only the rows given are embedded: dropping tokens means leaving them out here.
    pub fn forward(
        &self,
        ids: Tensor<B, 1, Int>,
        positions: Tensor<B, 1, Int>,
        batch: usize,
        dropout: &Dropout,
    ) -> Tensor<B, 3> {
        let rows = B::rows(self.word.get(), ids, 1) + B::rows(self.position.get(), positions, 1);
        let [count, width] = rows.dims();
        dropout.apply(self.norm.forward(rows)).reshape([batch, count / batch, width])
    }
}
