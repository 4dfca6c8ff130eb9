//! The whole model in f32, to be read: the ground truth that every other implementation is held against.
//!
//! Plain matrices, one image at a time, straight from a checkpoint; nothing here is fast or clever.
//! Shapes: `n` rows are tokens (the class token first), `D` columns the encoder's width, `Dd` the decoder's.

use std::sync::Arc;

use ndarray::{s, Array1, Array2, Array3, ArrayView1, ArrayView2, ArrayView3, Axis};
use rayon::prelude::*;
use sorcen_runtime::{
    config::{HEAD_LAYER_NORM_EPS, PROBE_NORM_EPS},
    schema::{Param, Part, Stack},
    ModelConfig,
};

use crate::{
    checkpoint::Checkpoint,
    engine::{check_decode, check_encode, stack, Encoded, Engine},
    error::Error,
};

/// Sees the intermediate values of a forward pass: the name of the step, its output `[n, width]`.
pub type Tap<'a> = &'a mut dyn FnMut(&str, ArrayView2<f32>);

/// The float reference of one checkpoint.
pub struct Reference {
    checkpoint: Arc<Checkpoint>,
}

impl Reference {
    /// Computes with the weights of this checkpoint.
    pub fn new(checkpoint: Arc<Checkpoint>) -> Self {
        Self { checkpoint }
    }

    /// One image through the encoder. `ids` are the kept tokens (mask id allowed), `positions` their
    /// places in the grid. Returns the latent `[1+n, D]` after the final norm and the
    /// linear probe's feature `[D]`.
    ///
    /// Taps: `embedding`, `blocks.{i}`, `norm`; and for every linear its weight's name with what enters it.
    ///
    /// # Panics
    /// Where an id is not in the vocabulary or a position not in the grid; [`Engine::encode`] checks.
    pub fn encode_image(&self, ids: &[usize], positions: &[usize], tap: Tap) -> (Array2<f32>, Array1<f32>) {
        let c = &self.checkpoint.config;
        // The class token at position 0, then every kept token at the position it has in the full sequence.
        let ids = std::iter::once(c.class_token_id).chain(ids.iter().copied());
        let rows = std::iter::once(0).chain(positions.iter().map(|p| p + 1));
        let word = self.matrix(Param::WordEmbedding);
        let position = self.matrix(Param::PositionEmbedding);
        let mut x = Array2::zeros((positions.len() + 1, c.embed_dim)); // [1+n, D]
        for (mut x, (id, row)) in x.rows_mut().into_iter().zip(ids.zip(rows)) {
            x.assign(&(&word.row(id) + &position.row(row)));
        }
        let mut x = self.layer_norm(&x, Param::EmbeddingNormWeight, Param::EmbeddingNormBias, c.layer_norm_eps);
        tap("embedding", x.view());

        for index in 0..c.depth {
            self.block(&mut x, Stack::Encoder, index, c.num_heads, tap);
            tap(&format!("blocks.{index}"), x.view());
        }

        // Quirk: the probe's feature pools the last block's output WITHOUT the pre-trained norm, class
        // token left out, and standardises it with a plain LayerNorm.
        let pooled = x.slice(s![1.., ..]).mean_axis(Axis(0)).unwrap_or_else(|| Array1::zeros(c.embed_dim));
        let feature = standardise(pooled.view(), PROBE_NORM_EPS);
        let latent = self.layer_norm(&x, Param::NormWeight, Param::NormBias, c.layer_norm_eps); // [1+n, D]
        tap("norm", latent.view());
        (latent, feature)
    }

    /// One image through the decoder and the output head. `latent` `[1+n, D]`; `source[t]` is the row of
    /// it to use at patch position `t`, 0 for a dropped or masked one. Returns the code logits `[T, K]`.
    ///
    /// Taps: `decoder_input`, `decoder_blocks.{i}`, `decoder_norm`, `head`; and for every linear its weight's
    /// name with what enters it (the output layer's weight is the word table).
    ///
    /// # Panics
    /// Where `latent` has another width, or `source` another length or rows that `latent` has not;
    /// [`Engine::decode`] checks.
    pub fn decode_image(&self, latent: ArrayView2<f32>, source: &[usize], tap: Tap) -> Array2<f32> {
        let c = &self.checkpoint.config;
        // [1+n, D] → [1+n, Dd]
        let u = self.linear(&latent.to_owned(), Param::DecoderEmbedWeight, Param::DecoderEmbedBias, tap);
        // Quirk: the projected class token, not the learned `mask_token`, stands at every unseen position.
        let rows: Vec<usize> = std::iter::once(0).chain(source.iter().copied()).collect();
        let mut x = u.select(Axis(0), &rows) + self.matrix(Param::DecoderPosition); // [1+T, Dd]
        tap("decoder_input", x.view());

        for index in 0..c.decoder_depth {
            self.block(&mut x, Stack::Decoder, index, c.decoder_num_heads, tap);
            tap(&format!("decoder_blocks.{index}"), x.view());
        }
        let x = self.layer_norm(&x, Param::DecoderNormWeight, Param::DecoderNormBias, c.layer_norm_eps);
        tap("decoder_norm", x.view());

        // The head's LayerNorm has an epsilon of its own (quirk); its output layer is the word table.
        let h = self.linear(&x, Param::HeadFcWeight, Param::HeadFcBias, tap).mapv(gelu); // [1+T, D]
        let h = self.layer_norm(&h, Param::HeadNormWeight, Param::HeadNormBias, HEAD_LAYER_NORM_EPS);
        tap("head", h.view());
        tap(&Param::WordEmbedding.to_string(), h.slice(s![1.., ..]));
        let codes = c.codebook_size; // the other rows are the class token, the mask token, or never used
        let word = self.matrix(Param::WordEmbedding);
        let bias = self.vector(Param::HeadBias);
        // [T, D] · [D, K]
        h.slice(s![1.., ..]).dot(&word.slice(s![..codes, ..]).t()) + bias.slice(s![..codes])
    }

    /// A pre-norm transformer block, in place on `x` `[n, width]`.
    fn block(&self, x: &mut Array2<f32>, stack: Stack, index: usize, heads: usize, tap: Tap) {
        let eps = self.checkpoint.config.layer_norm_eps;
        let part = |part| Param::Block { stack, index, part };

        let h = self.layer_norm(x, part(Part::Norm1Weight), part(Part::Norm1Bias), eps);
        let qkv = self.linear(&h, part(Part::QkvWeight), part(Part::QkvBias), tap); // [n, 3·width]
        let h = attention(&qkv, heads);
        *x += &self.linear(&h, part(Part::ProjWeight), part(Part::ProjBias), tap);

        let h = self.layer_norm(x, part(Part::Norm2Weight), part(Part::Norm2Bias), eps);
        let h = self.linear(&h, part(Part::Fc1Weight), part(Part::Fc1Bias), tap).mapv(gelu); // [n, F]
        *x += &self.linear(&h, part(Part::Fc2Weight), part(Part::Fc2Bias), tap);
    }

    /// `x Wᵀ + b`: `[n, in]` → `[n, out]`.
    fn linear(&self, x: &Array2<f32>, weight: Param, bias: Param, tap: Tap) -> Array2<f32> {
        tap(&weight.to_string(), x.view());
        x.dot(&self.matrix(weight).t()) + self.vector(bias)
    }

    /// LayerNorm of every row.
    fn layer_norm(&self, x: &Array2<f32>, weight: Param, bias: Param, eps: f32) -> Array2<f32> {
        let mut out = Array2::zeros(x.raw_dim());
        for (mut out, x) in out.rows_mut().into_iter().zip(x.rows()) {
            out.assign(&(standardise(x, eps) * self.vector(weight) + self.vector(bias)));
        }
        out
    }

    /// A weight as a matrix (leading dimensions of 1 are dropped).
    fn matrix(&self, param: Param) -> ArrayView2<'_, f32> {
        let shape = param.shape(&self.checkpoint.config).matrix();
        ArrayView2::from_shape(shape, self.checkpoint.tensor(param)).expect("the checkpoint checked its shapes")
    }

    fn vector(&self, param: Param) -> ArrayView1<'_, f32> {
        ArrayView1::from(self.checkpoint.tensor(param))
    }
}

/// Softmax attention of a fused `[n, 3·width]` whose columns are (q, k, v) × heads × head width → `[n, width]`.
fn attention(qkv: &Array2<f32>, heads: usize) -> Array2<f32> {
    let width = qkv.ncols() / 3;
    let head = width / heads;
    let mut out = Array2::zeros((qkv.nrows(), width));
    for h in 0..heads {
        let columns = |which: usize| {
            let start = which * width + h * head;
            qkv.slice(s![.., start..start + head]) // [n, head]
        };
        let mut p = columns(0).dot(&columns(1).t()) * (head as f32).powf(-0.5); // [n, n]
        for mut row in p.rows_mut() {
            let max = row.fold(f32::NEG_INFINITY, |a, &b| a.max(b));
            row.mapv_inplace(|score| (score - max).exp());
            row /= row.sum();
        }
        out.slice_mut(s![.., h * head..(h + 1) * head]).assign(&p.dot(&columns(2)));
    }
    out
}

/// `(x - mean) / sqrt(variance + eps)`, biased variance.
fn standardise(x: ArrayView1<f32>, eps: f32) -> Array1<f32> {
    let n = x.len() as f32;
    let centred = &x - x.sum() / n;
    let variance = centred.dot(&centred) / n;
    centred / (variance + eps).sqrt()
}

/// The exact GELU.
fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + libm::erff(x * std::f32::consts::FRAC_1_SQRT_2))
}

impl Engine for Reference {
    fn name(&self) -> &str {
        "reference f32"
    }

    fn config(&self) -> &ModelConfig {
        &self.checkpoint.config
    }

    fn encode(&self, ids: ArrayView2<i64>, positions: ArrayView2<i64>) -> Result<Encoded, Error> {
        let images = check_encode(self.config(), ids, positions)?;
        let encoded: Vec<_> =
            images.par_iter().map(|kept| self.encode_image(&kept.ids, &kept.positions, &mut |_, _| ())).collect();
        let (latent, features): (Vec<_>, Vec<_>) = encoded.into_iter().unzip();
        Ok(Encoded { latent: stack(&latent)?, features: stack(&features)? })
    }

    fn decode(&self, latent: ArrayView3<f32>, source: ArrayView2<i64>) -> Result<Array3<f32>, Error> {
        let sources = check_decode(self.config(), latent, source)?;
        let logits: Vec<_> = sources
            .par_iter()
            .enumerate()
            .map(|(b, source)| self.decode_image(latent.index_axis(Axis(0), b), source, &mut |_, _| ()))
            .collect();
        stack(&logits)
    }
}
