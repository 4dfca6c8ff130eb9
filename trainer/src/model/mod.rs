//! The model in Burn, over any backend: student encoder, decoder, and the heads of pretraining.

pub mod batch_norm;
pub mod block;
pub mod decoder;
pub mod embed;
pub mod heads;
pub mod init;
pub mod layers;
pub mod precision;
pub mod weight;

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Int, Tensor, TensorData};
use sorcen_runtime::config::PROBE_NORM_EPS;
use sorcen_runtime::ModelConfig;

use crate::kernels::Kernels;
use block::Block;
use decoder::Decoder;
use embed::Embedding;
use layers::{standardise, Dropout, LayerNorm};
use weight::weights;

pub use precision::Precision;
pub use weight::Weight;

/// Student encoder and decoder: everything that inference needs, in the order of the schema.
#[derive(Clone, Debug)]
pub struct Sorcen<B: Backend> {
    /// Token embedding, shared with the teacher.
    pub embed: Embedding<B>,
    /// Encoder blocks.
    pub blocks: Vec<Block<B>>,
    /// Final norm of the encoder, shared with the teacher.
    pub norm: LayerNorm<B>,
    /// Decoder and output head.
    pub decoder: Decoder<B>,
}

weights!(Sorcen { embed => "token_emb", blocks => "blocks", norm => "norm", decoder => "" });

/// Encoder blocks of `config`, zeros: the student's, or a teacher's.
pub fn encoder_blocks<B: Kernels>(config: &ModelConfig, device: &B::Device) -> Vec<Block<B>> {
    let block = |_| Block::new(config.embed_dim, config.num_heads, config.hidden_dim(), config.layer_norm_eps, device);
    (0..config.depth).map(block).collect()
}

impl<B: Kernels> Sorcen<B> {
    /// Zeros; see [`Weights::initialise`].
    pub fn new(config: &ModelConfig, device: &B::Device) -> Self {
        Self {
            embed: Embedding::new(config, device),
            blocks: encoder_blocks(config, device),
            norm: LayerNorm::new(config.embed_dim, config.layer_norm_eps, device),
            decoder: Decoder::new(config, device),
        }
    }

    /// The same model below autodiff.
    pub fn inner(&self) -> Sorcen<B::InnerBackend>
    where
        B: AutodiffBackend<InnerBackend: Kernels>,
    {
        Sorcen {
            embed: self.embed.inner(),
            blocks: self.blocks.iter().map(Block::inner).collect(),
            norm: self.norm.inner(),
            decoder: self.decoder.inner(),
        }
    }

    /// Encodes the tokens of `layout`: the last block's output and the same after the final norm,
    /// both `[B, N, D]` with the class token first.
    pub fn encode(&self, layout: &Layout, device: &B::Device, dropout: &Dropout) -> (Tensor<B, 3>, Tensor<B, 3>) {
        let (ids, positions) = (indices(&layout.ids, device), indices(&layout.positions, device));
        let x = self.embed.forward(ids, positions, layout.batch, dropout);
        let x = block::run(&self.blocks, x, dropout);
        (x.clone(), normalise_tokens(&self.norm, x))
    }

    /// Code logits at the patch positions, `[B*T, K]`, from the normed latent `[B, N, D]`.
    pub fn decode(
        &self,
        config: &ModelConfig,
        latent: Tensor<B, 3>,
        layout: &Layout,
        device: &B::Device,
        dropout: &Dropout,
    ) -> Tensor<B, 2> {
        self.decode_canvas(config, latent, indices(&layout.canvas, device), dropout)
    }

    /// The same from the canvas alone: see [`Decoder::forward`].
    pub fn decode_canvas(
        &self,
        config: &ModelConfig,
        latent: Tensor<B, 3>,
        canvas: Tensor<B, 1, Int>,
        dropout: &Dropout,
    ) -> Tensor<B, 2> {
        let y = self.decoder.forward(latent, canvas, dropout);
        let [batch, sequence, width] = y.dims();
        let patches = y.slice([0..batch, 1..sequence, 0..width]).reshape([batch * (sequence - 1), width]);
        let codes = self.embed.word.get().slice([0..config.codebook_size, 0..config.embed_dim]);
        self.decoder.logits(patches, codes)
    }
}

/// A norm over `[B, N, D]`.
pub fn normalise_tokens<B: Kernels>(norm: &LayerNorm<B>, x: Tensor<B, 3>) -> Tensor<B, 3> {
    let [batch, tokens, width] = x.dims();
    norm.forward(x.reshape([batch * tokens, width])).reshape([batch, tokens, width])
}

/// Mean over tokens `first..` of `[B, N, D]`: `[B, D]`.
pub fn pool<B: Backend>(x: Tensor<B, 3>, first: usize) -> Tensor<B, 2> {
    let [batch, tokens, width] = x.dims();
    x.slice([0..batch, first..tokens, 0..width]).mean_dim(1).reshape([batch, width])
}

/// The linear probe's feature of the last block's output `[B, 1+T, D]` (not normed): `[B, D]`.
pub fn probe_features<B: Backend>(last: Tensor<B, 3>) -> Tensor<B, 2> {
    standardise(pool(last, 1), PROBE_NORM_EPS)
}

/// An index tensor.
pub fn indices<B: Backend>(values: &[i32], device: &B::Device) -> Tensor<B, 1, Int> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), device)
}

/// Which tokens enter the encoder and what stands where on the decoder's canvas. Host side.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    /// Images B.
    pub batch: usize,
    /// Ids of the tokens that enter, class token first in each image, `[B*N]`.
    pub ids: Vec<i32>,
    /// Their positions in the full sequence, `[B*N]`.
    pub positions: Vec<i32>,
    /// For each of the `B*(1+T)` places of the canvas, the encoder row that stands there.
    pub canvas: Vec<i32>,
}

impl Layout {
    /// From ids `[B*T]` (the mask id where a token is masked) and, per token, whether it is dropped.
    ///
    /// Every image must drop equally many; `dropped` empty means none. Masked tokens are those that
    /// carry the mask id. On the canvas the class token stands in for masked and dropped ones alike.
    pub fn new(config: &ModelConfig, ids: &[i32], dropped: &[bool]) -> Self {
        let tokens = config.tokens();
        let batch = ids.len() / tokens;
        let mut layout = Self {
            batch,
            ids: Vec::with_capacity(ids.len() + batch),
            positions: Vec::with_capacity(ids.len() + batch),
            canvas: Vec::with_capacity(ids.len() + batch),
        };
        for image in 0..batch {
            let class_row = layout.ids.len() as i32;
            layout.push(config.class_token_id as i32, 0, class_row);
            for token in 0..tokens {
                let index = image * tokens + token;
                if dropped.get(index).copied().unwrap_or(false) {
                    layout.canvas.push(class_row);
                } else {
                    let visible = ids[index] != config.mask_token_id as i32;
                    let row = if visible { layout.ids.len() as i32 } else { class_row };
                    layout.push(ids[index], token as i32 + 1, row);
                }
            }
        }
        layout
    }

    fn push(&mut self, id: i32, position: i32, row: i32) {
        self.ids.push(id);
        self.positions.push(position);
        self.canvas.push(row);
    }
}
