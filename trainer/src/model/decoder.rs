//! Decoder and output head.

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Int, Tensor};
use sorcen_runtime::config::HEAD_LAYER_NORM_EPS;
use sorcen_runtime::ModelConfig;

use super::block::{self, Block};
use super::layers::{Dropout, LayerNorm, Linear};
use super::weight::{weights, Weight};
use crate::kernels::Kernels;

/// Fills the places of dropped and masked tokens with the class token, and predicts.
#[derive(Clone, Debug)]
pub struct Decoder<B: Backend> {
    embed: Linear<B>,
    position: Weight<B>,
    blocks: Vec<Block<B>>,
    norm: LayerNorm<B>,
    head: Head<B>,
}

weights!(Decoder {
    embed => "decoder_embed",
    position => "decoder_pos_embed_learned",
    blocks => "decoder_blocks",
    norm => "decoder_norm",
    head => "mlm_layer",
});

impl<B: Kernels> Decoder<B> {
    /// Zeros.
    pub fn new(config: &ModelConfig, device: &B::Device) -> Self {
        let (width, eps) = (config.decoder_embed_dim, config.layer_norm_eps);
        let block = |_| Block::new(width, config.decoder_num_heads, config.decoder_hidden_dim(), eps, device);
        Self {
            embed: Linear::new(config.embed_dim, width, device),
            position: Weight::zeros(&[1, config.sequence(), width], device),
            blocks: (0..config.decoder_depth).map(block).collect(),
            norm: LayerNorm::new(width, eps, device),
            head: Head::new(config, device),
        }
    }

    /// The same decoder below autodiff.
    pub fn inner(&self) -> Decoder<B::InnerBackend>
    where
        B: AutodiffBackend<InnerBackend: Kernels>,
    {
        Decoder {
            embed: self.embed.inner(),
            position: self.position.inner(),
            blocks: self.blocks.iter().map(Block::inner).collect(),
            norm: self.norm.inner(),
            head: Head { fc: self.head.fc.inner(), norm: self.head.norm.inner(), bias: self.head.bias.inner() },
        }
    }

    /// Latent `[B, N, D]` to the normed output `[B, 1+T, Dd]`.
    ///
    /// `canvas` `[B*(1+T)]` says for each position which of the `B*N` latent rows stands there:
    /// its own where the token is visible, its image's class token everywhere else.
    pub fn forward(&self, latent: Tensor<B, 3>, canvas: Tensor<B, 1, Int>, dropout: &Dropout) -> Tensor<B, 3> {
        let [batch, tokens, width] = latent.dims();
        let rows = self.embed.forward(latent.reshape([batch * tokens, width]));
        let position = self.position.get();
        let [sequence, width] = position.dims();
        let x = B::rows(rows, canvas, batch).reshape([batch, sequence, width]) + position.unsqueeze::<3>();
        let x = block::run(&self.blocks, x, dropout);
        self.norm.forward(x.reshape([batch * sequence, width])).reshape([batch, sequence, width])
    }

    /// Decoder outputs `[R, Dd]` to code logits `[R, K]`.
    ///
    /// `codes` are the first K rows of the word embedding, detached: no gradient reaches the table here.
    pub fn logits(&self, rows: Tensor<B, 2>, codes: Tensor<B, 2>) -> Tensor<B, 2> {
        self.head.forward(rows, codes.detach())
    }
}

/// `LN(GELU(W x + b)) Eᵀ + bias`, for the codes alone.
#[derive(Clone, Debug)]
struct Head<B: Backend> {
    fc: Linear<B>,
    norm: LayerNorm<B>,
    bias: Weight<B>,
}

weights!(Head { fc => "fc", norm => "ln", bias => "bias" });

impl<B: Kernels> Head<B> {
    fn new(config: &ModelConfig, device: &B::Device) -> Self {
        Self {
            fc: Linear::new(config.decoder_embed_dim, config.embed_dim, device),
            norm: LayerNorm::new(config.embed_dim, HEAD_LAYER_NORM_EPS, device),
            bias: Weight::zeros(&[1, 1, config.vocab_size], device),
        }
    }

    fn forward(&self, rows: Tensor<B, 2>, codes: Tensor<B, 2>) -> Tensor<B, 2> {
        let hidden = self.norm.forward(B::gelu_rows(self.fc.forward(rows)));
        let [count, _] = codes.dims();
        B::product(hidden, codes.transpose(), self.fc.precision()) + self.bias.get().slice([0..1, 0..count])
    }
}
