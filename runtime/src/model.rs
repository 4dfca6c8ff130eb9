//! The model, top to bottom: token ids → encoder → latent → decoder → logits.
//!
//! One image at a time; a shape stands on every line that changes it. Official names:
//! `SorcenViT.forward_encoder`, `forward_decoder`, `MlmLayer`.

use crate::{
    config::{ModelConfig, HEAD_LAYER_NORM_EPS, PROBE_NORM_EPS},
    error::Error,
    layers::{
        attention::attention,
        embedding::embed,
        linear::{linear, Activations, Rows},
        norm::{layer_norm, standardise},
        ROW_BLOCK,
    },
    math::gelu,
    pack::{Pack, Vector},
    schema::{Param, Part, Stack},
    scratch::{Buffers, Plan, Scratch},
};

/// A model over a checked pack.
#[derive(Clone, Copy)]
pub struct Model<'p> {
    pack: Pack<'p>,
}

impl<'p> Model<'p> {
    /// The model of a pack.
    pub const fn new(pack: Pack<'p>) -> Self {
        Self { pack }
    }

    /// The pack.
    pub const fn pack(&self) -> &Pack<'p> {
        &self.pack
    }

    /// The sizes.
    pub const fn config(&self) -> &ModelConfig {
        self.pack.config()
    }

    /// Runs the encoder on tokens.
    ///
    /// `ids` `[N]`: codes, or the mask id (no class token: it is put in front). `positions` `[N]`:
    /// each token's place in the grid (row-major), increasing; `None` means all `T` in order.
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::TokenId`], [`Error::Position`] for bad input,
    /// [`Error::Scratch`] where `scratch` is too small for [`Plan::Features`].
    pub fn encode<'a>(
        &'a self,
        ids: &'a [u16],
        positions: Option<&'a [u16]>,
        scratch: &'a mut Scratch<'_>,
    ) -> Result<Encoded<'a>, Error> {
        self.check_tokens(ids, positions)?;
        let buffers = scratch.buffers(self.config(), Plan::Features)?;
        Ok(self.encode_into(ids, positions, buffers))
    }

    /// The linear probe's feature of an image: mean over the patch tokens of the last block,
    /// standardised. `ids` `[T]`, `out` `[D]`. (Official: `main_linprobe.py --global_pool`.)
    ///
    /// # Errors
    /// As [`encode`](Self::encode), and [`Error::Length`] for `out`.
    pub fn features(&self, ids: &[u16], scratch: &mut Scratch<'_>, out: &mut [f32]) -> Result<(), Error> {
        self.encode(ids, None, scratch)?.probe_feature(out)
    }

    /// Takes up a latent computed elsewhere, to run the decoder on it.
    ///
    /// `rows` `[1+N, D]` after the final norm, class token first; `ids` and `positions` as
    /// [`encode`](Self::encode) got them.
    ///
    /// # Errors
    /// As [`encode`](Self::encode), and [`Error::Length`] for `rows`.
    pub fn latent<'a>(
        &'a self,
        rows: &[f32],
        ids: &'a [u16],
        positions: Option<&'a [u16]>,
        scratch: &'a mut Scratch<'_>,
    ) -> Result<Latent<'a>, Error> {
        self.check_tokens(ids, positions)?;
        let needed = (1 + ids.len()) * self.config().embed_dim;
        if rows.len() != needed {
            return Err(Error::Length { item: "rows", needed, found: rows.len() });
        }
        let buffers = scratch.buffers(self.config(), Plan::Features)?;
        buffers.x[..needed].copy_from_slice(rows);
        Ok(Latent { model: self, tokens: Tokens { ids, positions }, buffers })
    }

    /// Checks what [`encode`](Self::encode) is handed.
    pub(crate) fn check_tokens(&self, ids: &[u16], positions: Option<&[u16]>) -> Result<(), Error> {
        let config = self.config();
        let tokens = config.tokens();
        match positions {
            None if ids.len() != tokens => return Err(Error::Length { item: "ids", needed: tokens, found: ids.len() }),
            Some(p) if ids.len() != p.len() => {
                return Err(Error::Length { item: "positions", needed: ids.len(), found: p.len() })
            }
            _ => {}
        }
        for (index, &id) in ids.iter().enumerate() {
            if usize::from(id) >= config.codebook_size && usize::from(id) != config.mask_token_id {
                return Err(Error::TokenId { index, limit: config.codebook_size as u32, found: id.into() });
            }
        }
        let mut next = 0;
        for (index, &position) in positions.unwrap_or(&[]).iter().enumerate() {
            let found = usize::from(position);
            if found < next || found >= tokens {
                return Err(Error::Position { index, found });
            }
            next = found + 1;
        }
        Ok(())
    }

    /// The encoder on checked input.
    pub(crate) fn encode_into<'a>(
        &'a self,
        ids: &'a [u16],
        positions: Option<&'a [u16]>,
        buffers: Buffers<'a>,
    ) -> Encoded<'a> {
        let config = self.config();
        let dim = config.embed_dim;
        let rows = 1 + ids.len(); // class token first
        let tokens = Tokens { ids, positions };
        let (class, patches) = buffers.x[..rows * dim].split_at_mut(dim); // [1+N, D]
        embed(&self.pack, config.class_token_id, 0, class);
        for ((id, position), row) in tokens.iter().zip(patches.chunks_exact_mut(dim)) {
            embed(&self.pack, id, 1 + position, row);
        }
        let mut encoded = Encoded { model: self, tokens, buffers };
        let (x, mut work) = encoded.buffers.encoder();
        for index in 0..config.depth {
            let block = Block { pack: &self.pack, stack: Stack::Encoder, index, dim, heads: config.num_heads };
            block.forward(&mut x[..rows * dim], &mut work);
        }
        encoded
    }
}

/// The tokens of one encoder run.
#[derive(Clone, Copy)]
struct Tokens<'a> {
    ids: &'a [u16],
    positions: Option<&'a [u16]>,
}

impl Tokens<'_> {
    /// (id, position) of each token.
    fn iter(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.ids.iter().enumerate().map(|(i, &id)| {
            let position = self.positions.and_then(|p| p.get(i)).map_or(i, |&p| usize::from(p));
            (usize::from(id), position)
        })
    }
}

/// What the encoder's blocks computed, not yet normalised; lives in the scratch.
pub struct Encoded<'a> {
    model: &'a Model<'a>,
    tokens: Tokens<'a>,
    buffers: Buffers<'a>,
}

impl<'a> Encoded<'a> {
    /// Output of the last block, `[1+N, D]`, class token first.
    pub fn block_output(&self) -> &[f32] {
        &self.buffers.x[..(1 + self.tokens.ids.len()) * self.model.config().embed_dim]
    }

    /// The linear probe's feature into `out` `[D]` (see [`Model::features`]).
    ///
    /// # Errors
    /// [`Error::Length`] where `out` is not `[D]`.
    pub fn probe_feature(&self, out: &mut [f32]) -> Result<(), Error> {
        mean_of_patches(self.block_output(), self.model.config().embed_dim, out)?;
        standardise(out, PROBE_NORM_EPS);
        Ok(())
    }

    /// Applies the final norm.
    pub fn into_latent(self) -> Latent<'a> {
        let config = self.model.config();
        let rows = (1 + self.tokens.ids.len()) * config.embed_dim;
        let pack = &self.model.pack;
        let (weight, bias) = (pack.vector(Param::NormWeight), pack.vector(Param::NormBias));
        for row in self.buffers.x[..rows].chunks_exact_mut(config.embed_dim) {
            layer_norm(row, weight, bias, config.layer_norm_eps);
        }
        Latent { model: self.model, tokens: self.tokens, buffers: self.buffers }
    }
}

/// The encoder's output after the final norm; lives in the scratch.
pub struct Latent<'a> {
    model: &'a Model<'a>,
    tokens: Tokens<'a>,
    buffers: Buffers<'a>,
}

impl<'a> Latent<'a> {
    /// `[1+N, D]`, class token first, tokens in order.
    pub fn rows(&self) -> &[f32] {
        &self.buffers.x[..(1 + self.tokens.ids.len()) * self.model.config().embed_dim]
    }

    /// The class token `[D]`, the probe's feature in `--cls_token` mode.
    pub fn class_token(&self) -> &[f32] {
        &self.buffers.x[..self.model.config().embed_dim]
    }

    /// What pre-training contrasts: the mean over the patch tokens, into `out` `[D]`.
    ///
    /// # Errors
    /// [`Error::Length`] where `out` is not `[D]`.
    pub fn contrastive_feature(&self, out: &mut [f32]) -> Result<(), Error> {
        mean_of_patches(self.rows(), self.model.config().embed_dim, out)
    }

    /// Runs the decoder and hands each position's code logits `[K]` to `visit(position, logits)`,
    /// in order of position. Tokens that are absent or masked are filled with the class token.
    ///
    /// # Errors
    /// [`Error::MissingSection`] where the pack has no decoder, [`Error::Scratch`] where the
    /// scratch was made for [`Plan::Features`].
    pub fn decode(mut self, visit: impl FnMut(usize, &mut [f32])) -> Result<(), Error> {
        let config = self.model.config();
        if !self.model.pack.has_decoder() {
            return Err(Error::MissingSection { section: "decoder" });
        }
        if self.buffers.canvas.len() < config.sequence() * config.decoder_embed_dim {
            let needed = Scratch::bytes(config, Plan::Generate);
            return Err(Error::Scratch { needed, found: Scratch::bytes(config, Plan::Features) });
        }
        self.decode_where(|_| true, visit);
        Ok(())
    }

    /// The decoder, with logits only at the positions that `wanted` says.
    pub(crate) fn decode_where(&mut self, wanted: impl Fn(usize) -> bool, visit: impl FnMut(usize, &mut [f32])) {
        let Self { model, tokens, buffers } = self;
        let config = model.config();
        let dim = config.decoder_embed_dim;
        fill_canvas(model, tokens, buffers); // [1+T, Dd]
        let (canvas, mut work) = buffers.decoder();
        let canvas = &mut canvas[..config.sequence() * dim];
        for index in 0..config.decoder_depth {
            let heads = config.decoder_num_heads;
            let block = Block { pack: &model.pack, stack: Stack::Decoder, index, dim, heads };
            block.forward(canvas, &mut work);
        }
        head(model, canvas, &mut work, wanted, visit);
    }
}

/// Mean over rows 1.. of `[1+N, dim]` into `out` `[dim]`; zero where there is only the class token.
fn mean_of_patches(rows: &[f32], dim: usize, out: &mut [f32]) -> Result<(), Error> {
    if out.len() != dim {
        return Err(Error::Length { item: "out", needed: dim, found: out.len() });
    }
    let patches = rows[dim..].chunks_exact(dim);
    let count = patches.len().max(1) as f32;
    out.fill(0.0);
    for row in patches {
        for (out, x) in out.iter_mut().zip(row) {
            *out += x;
        }
    }
    for out in out {
        *out /= count;
    }
    Ok(())
}

/// The decoder's input: the projected class token everywhere, the projected token where one is
/// visible, plus the learned positions.
fn fill_canvas(model: &Model<'_>, tokens: &Tokens<'_>, buffers: &mut Buffers<'_>) {
    let (config, pack) = (model.config(), &model.pack);
    let (d, dd) = (config.embed_dim, config.decoder_embed_dim);
    let (weight, bias) = (pack.matrix(Param::DecoderEmbedWeight), pack.vector(Param::DecoderEmbedBias));
    let mut activations = Activations { values: buffers.activations, stride: buffers.stride };
    let mut project = |row: &[f32], out: &mut [f32]| {
        linear(&weight, bias, Rows::dense(row, d), dd, out, &mut activations); // [D] -> [Dd]
    };
    let canvas = &mut buffers.canvas[..config.sequence() * dd];
    let (class, patches) = canvas.split_at_mut(dd);
    project(&buffers.x[..d], class);
    for row in patches.chunks_exact_mut(dd) {
        row.copy_from_slice(class);
    }
    for ((id, position), row) in tokens.iter().zip(buffers.x[d..].chunks_exact(d)) {
        if id != config.mask_token_id {
            project(row, &mut patches[position * dd..][..dd]);
        }
    }
    for (x, p) in canvas.iter_mut().zip(pack.vector(Param::DecoderPosition).iter_from(0)) {
        *x += p;
    }
}

/// The output head at wanted positions: `LN(GELU(W x + b)) · E^T + bias` over the K codes.
fn head(
    model: &Model<'_>,
    canvas: &[f32],
    work: &mut Work<'_>,
    wanted: impl Fn(usize) -> bool,
    mut visit: impl FnMut(usize, &mut [f32]),
) {
    let (config, pack) = (model.config(), &model.pack);
    let (d, dd, codes) = (config.embed_dim, config.decoder_embed_dim, config.codebook_size);
    let norm = (pack.vector(Param::DecoderNormWeight), pack.vector(Param::DecoderNormBias));
    let fc = (pack.matrix(Param::HeadFcWeight), pack.vector(Param::HeadFcBias));
    let ln = (pack.vector(Param::HeadNormWeight), pack.vector(Param::HeadNormBias));
    let out = (pack.matrix(Param::WordEmbedding), pack.vector(Param::HeadBias));
    let mut positions = (0..config.tokens()).filter(|&p| wanted(p));
    loop {
        // Gather up to ROW_BLOCK wanted rows.
        let mut block = [0; ROW_BLOCK];
        let mut count = 0;
        for (place, row) in block.iter_mut().zip(work.rows.chunks_exact_mut(dd)) {
            let Some(position) = positions.next() else { break };
            *place = position;
            row.copy_from_slice(&canvas[(1 + position) * dd..][..dd]);
            layer_norm(row, norm.0, norm.1, config.layer_norm_eps);
            count += 1;
        }
        if count == 0 {
            return;
        }
        let rows = &work.rows[..count * dd]; // [r, Dd]
        let hidden = &mut work.qkv[..count * d]; // [r, D]
        linear(&fc.0, fc.1, Rows::dense(rows, dd), d, hidden, &mut work.activations);
        for row in hidden.chunks_exact_mut(d) {
            row.iter_mut().for_each(|x| *x = gelu(*x));
            layer_norm(row, ln.0, ln.1, HEAD_LAYER_NORM_EPS);
        }
        let logits = &mut work.hidden[..count * codes]; // [r, K]
        linear(&out.0, out.1, Rows::dense(hidden, d), codes, logits, &mut work.activations);
        for (position, logits) in block.into_iter().zip(logits.chunks_exact_mut(codes)) {
            visit(position, logits);
        }
    }
}

/// Buffers that a stack of blocks works in.
struct Work<'w> {
    qkv: &'w mut [f32],
    rows: &'w mut [f32],
    hidden: &'w mut [f32],
    scores: &'w mut [f32],
    head: &'w mut [f32],
    activations: Activations<'w>,
}

impl Buffers<'_> {
    /// The encoder's rows, and the rest to work in.
    fn encoder(&mut self) -> (&mut [f32], Work<'_>) {
        self.split().0
    }

    /// The decoder's rows, and the rest to work in.
    fn decoder(&mut self) -> (&mut [f32], Work<'_>) {
        let ((_, work), canvas) = self.split();
        (canvas, work)
    }

    fn split(&mut self) -> ((&mut [f32], Work<'_>), &mut [f32]) {
        let work = Work {
            qkv: self.qkv,
            rows: self.rows,
            hidden: self.hidden,
            scores: self.scores,
            head: self.head,
            activations: Activations { values: self.activations, stride: self.stride },
        };
        ((self.x, work), self.canvas)
    }
}

/// A pre-norm transformer block: `x += Attn(LN(x))`, `x += MLP(LN(x))`.
struct Block<'a> {
    pack: &'a Pack<'a>,
    stack: Stack,
    index: usize,
    dim: usize,
    heads: usize,
}

impl Block<'_> {
    fn param(&self, part: Part) -> Param {
        Param::Block { stack: self.stack, index: self.index, part }
    }

    fn vector(&self, part: Part) -> Vector<'_> {
        self.pack.vector(self.param(part))
    }

    /// `x` `[rows, D]` in place; rows pass through the linears in blocks.
    fn forward(&self, x: &mut [f32], work: &mut Work<'_>) {
        let (dim, pack) = (self.dim, self.pack);
        let hidden_dim = dim * pack.config().mlp_ratio;
        let qkv = &mut work.qkv[..3 * x.len()]; // [rows, 3D]
        let weight = pack.matrix(self.param(Part::QkvWeight));
        for (x, qkv) in x.chunks(ROW_BLOCK * dim).zip(qkv.chunks_mut(ROW_BLOCK * 3 * dim)) {
            let normed = self.normed(x, work.rows, Part::Norm1Weight, Part::Norm1Bias); // [r, D]
            let bias = self.vector(Part::QkvBias);
            linear(&weight, bias, Rows::dense(normed, dim), 3 * dim, qkv, &mut work.activations);
        }
        attention(qkv, dim, self.heads, work.scores, work.head); // [rows, D] in the query parts
        let proj = pack.matrix(self.param(Part::ProjWeight));
        let fc1 = pack.matrix(self.param(Part::Fc1Weight));
        let fc2 = pack.matrix(self.param(Part::Fc2Weight));
        for (x, qkv) in x.chunks_mut(ROW_BLOCK * dim).zip(qkv.chunks(ROW_BLOCK * 3 * dim)) {
            let attended = Rows { data: qkv, stride: 3 * dim, cols: dim };
            let out = &mut work.rows[..x.len()]; // [r, D]
            linear(&proj, self.vector(Part::ProjBias), attended, dim, out, &mut work.activations);
            add(x, out);
            let normed = self.normed(x, work.rows, Part::Norm2Weight, Part::Norm2Bias); // [r, D]
            let hidden = &mut work.hidden[..normed.len() / dim * hidden_dim]; // [r, F]
            let bias = self.vector(Part::Fc1Bias);
            linear(&fc1, bias, Rows::dense(normed, dim), hidden_dim, hidden, &mut work.activations);
            hidden.iter_mut().for_each(|x| *x = gelu(*x));
            let out = &mut work.rows[..x.len()]; // [r, D]
            let bias = self.vector(Part::Fc2Bias);
            linear(&fc2, bias, Rows::dense(hidden, hidden_dim), dim, out, &mut work.activations);
            add(x, out);
        }
    }

    /// LayerNorm of rows into a buffer.
    fn normed<'r>(&self, x: &[f32], rows: &'r mut [f32], weight: Part, bias: Part) -> &'r [f32] {
        let rows = &mut rows[..x.len()];
        rows.copy_from_slice(x);
        let (weight, bias) = (self.vector(weight), self.vector(bias));
        for row in rows.chunks_exact_mut(self.dim) {
            layer_norm(row, weight, bias, self.pack.config().layer_norm_eps);
        }
        rows
    }
}

fn add(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}
