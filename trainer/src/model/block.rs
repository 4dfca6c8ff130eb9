//! A pre-norm transformer block.

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{activation, Tensor};

use super::layers::{Dropout, LayerNorm, Linear};
use super::precision::Precision;
use super::weight::weights;
use crate::kernels::Kernels;

/// `x ← x + Attn(LN(x))`, `x ← x + MLP(LN(x))`.
#[derive(Clone, Debug)]
pub struct Block<B: Backend> {
    norm1: LayerNorm<B>,
    qkv: Linear<B>,
    proj: Linear<B>,
    norm2: LayerNorm<B>,
    fc1: Linear<B>,
    fc2: Linear<B>,
    heads: usize,
}

weights!(Block {
    norm1 => "norm1",
    qkv => "attn.qkv",
    proj => "attn.proj",
    norm2 => "norm2",
    fc1 => "mlp.fc1",
    fc2 => "mlp.fc2",
});

impl<B: Kernels> Block<B> {
    /// A block of width D with `heads` heads and hidden width `hidden`; zeros.
    pub fn new(width: usize, heads: usize, hidden: usize, eps: f32, device: &B::Device) -> Self {
        Self {
            norm1: LayerNorm::new(width, eps, device),
            qkv: Linear::new(width, 3 * width, device),
            proj: Linear::new(width, width, device),
            norm2: LayerNorm::new(width, eps, device),
            fc1: Linear::new(width, hidden, device),
            fc2: Linear::new(hidden, width, device),
            heads,
        }
    }

    /// The same block below autodiff.
    pub fn inner(&self) -> Block<B::InnerBackend>
    where
        B: AutodiffBackend<InnerBackend: Kernels>,
    {
        Block {
            norm1: self.norm1.inner(),
            qkv: self.qkv.inner(),
            proj: self.proj.inner(),
            norm2: self.norm2.inner(),
            fc1: self.fc1.inner(),
            fc2: self.fc2.inner(),
            heads: self.heads,
        }
    }

    /// Heads H.
    pub fn heads(&self) -> usize {
        self.heads
    }

    /// Hidden width F.
    pub fn hidden(&self) -> usize {
        self.fc1.bias.dims()[0]
    }

    /// Epsilon of the norms.
    pub fn eps(&self) -> f32 {
        self.norm1.eps()
    }

    /// What its matrix products take.
    pub fn precision(&self) -> Precision {
        self.qkv.precision()
    }

    /// `[B, N, D]` to `[B, N, D]`, by the backend's best means.
    pub fn forward(&self, x: Tensor<B, 3>, dropout: &Dropout) -> Tensor<B, 3> {
        B::block(self, x, dropout)
    }

    /// The same in plain tensor operations.
    pub fn forward_plain(&self, x: Tensor<B, 3>, dropout: &Dropout) -> Tensor<B, 3> {
        let [batch, tokens, width] = x.dims();
        let x = x.reshape([batch * tokens, width]);
        let x = x.clone() + self.attention(self.norm1.forward(x), batch, dropout);
        let hidden = dropout.apply(B::gelu_rows(self.fc1.forward(self.norm2.forward(x.clone()))));
        let x = x + dropout.apply(self.fc2.forward(hidden));
        x.reshape([batch, tokens, width])
    }

    /// Multi-head attention over the rows `[B*N, D]` of `batch` images.
    fn attention(&self, x: Tensor<B, 2>, batch: usize, dropout: &Dropout) -> Tensor<B, 2> {
        let [rows, width] = x.dims();
        let (tokens, head) = (rows / batch, width / self.heads);
        let qkv = self.qkv.forward(x).reshape([batch, tokens, 3, self.heads, head]).permute([2, 0, 3, 1, 4]);
        let part = |i: usize| {
            qkv.clone()
                .slice([i..i + 1, 0..batch, 0..self.heads, 0..tokens, 0..head])
                .reshape([batch, self.heads, tokens, head])
        };
        let scores = B::product(part(0) * (head as f32).powf(-0.5), part(1).swap_dims(2, 3), self.precision());
        let mixed = B::product(dropout.apply(activation::softmax(scores, 3)), part(2), self.precision());
        let joined = mixed.swap_dims(1, 2).reshape([rows, width]);
        dropout.apply(self.proj.forward(joined))
    }
}

/// Runs a stack of blocks: `[B, N, D]` to `[B, N, D]`.
pub fn run<B: Kernels>(blocks: &[Block<B>], x: Tensor<B, 3>, dropout: &Dropout) -> Tensor<B, 3> {
    blocks.iter().fold(x, |x, block| block.forward(x, dropout))
}
