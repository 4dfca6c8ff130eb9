//! The model, top to bottom: token ids → encoder → latent → decoder → logits.
//!
//! One image at a time; a shape stands on every line that changes it. Official names:
//! `SorcenViT.forward_encoder`, `forward_decoder`, `MlmLayer`.

use crate::{
    config::{ModelConfig, HEAD_LAYER_NORM_EPS, PROBE_NORM_EPS},
    error::Error,
    head::Prediction,
    kernels::{dispatch, step, Activation, Kernel, Kernels},
    layers::{
        block::put_rows,
        embedding::embed,
        linear::{Input, Linear, Output},
        norm::{standardise, Norm},
    },
    pack::Pack,
    schema::{self, Param, Stack},
    scratch::{Buffers, Plan, Purpose, Scratch},
};

/// A model over a checked pack.
#[derive(Clone, Copy)]
pub struct Model<'p> {
    pack: Pack<'p>,
    kernels: Kernels,
}

impl<'p> Model<'p> {
    /// The model of a pack, on the fastest kernels of this CPU.
    pub fn new(pack: Pack<'p>) -> Self {
        Self::with_kernels(pack, Kernels::detect())
    }

    /// The model of a pack on chosen kernels; all give the same bits for int8.
    pub const fn with_kernels(pack: Pack<'p>, kernels: Kernels) -> Self {
        Self { pack, kernels }
    }

    /// The kernels it runs on.
    pub const fn kernels(&self) -> Kernels {
        self.kernels
    }

    /// The pack.
    pub const fn pack(&self) -> &Pack<'p> {
        &self.pack
    }

    /// Whether int8 or int4 weights of the pack, of a ViT tokenizer too, are in another order than the kernels like best (see
    /// [`Kernels::layout`]); `pack::OwnedPack::arrange` (feature `alloc`) puts them right.
    pub fn is_in_another_order(&self) -> bool {
        let best = self.kernels.layout();
        schema::params(self.config()).any(|param| self.pack.matrix(param).data.is_in_another_order(best))
            || self.pack.vit().is_some_and(|vit| vit.is_in_another_order(self.kernels))
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
    /// [`Error::ScratchShape`] or [`Error::ScratchPlan`] where `scratch` was made for something else.
    pub fn encode<'a>(
        &'a self,
        ids: &'a [u16],
        positions: Option<&'a [u16]>,
        scratch: &'a mut Scratch<'_>,
    ) -> Result<Encoded<'a>, Error> {
        Ok(self.start(ids, positions, scratch)?.finish())
    }

    /// [`encode`](Self::encode), a block at a time: between [`Encoding::step`]s a control loop can do its own work.
    ///
    /// ```no_run
    /// # use sorcen_runtime::{scratch::Scratch, Error, Model};
    /// # fn read_the_motor() {}
    /// # fn run(model: &Model<'_>, ids: &[u16], scratch: &mut Scratch<'_>, feature: &mut [f32]) -> Result<(), Error> {
    /// let mut run = model.start(ids, None, scratch)?;
    /// while run.step() {
    ///     read_the_motor();
    /// }
    /// run.finish().probe_feature(feature)?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn start<'a>(
        &'a self,
        ids: &'a [u16],
        positions: Option<&'a [u16]>,
        scratch: &'a mut Scratch<'_>,
    ) -> Result<Encoding<'a>, Error> {
        self.check_tokens(ids, positions)?;
        let buffers = scratch.buffers(self.config(), Plan::Features)?;
        Ok(Encoding { encoded: Encoded { model: self, tokens: Tokens { ids, positions }, buffers }, next: 0 })
    }

    /// Runs the encoder on a whole image, `ids` `[T]`, and shows what each block makes of it: `after(i, x)`, `x`
    /// `[1+T, D]` with the class token first. For finding where two implementations part.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_blocks(
        &self,
        ids: &[u16],
        scratch: &mut Scratch<'_>,
        mut after: impl FnMut(usize, &[f32]),
    ) -> Result<(), Error> {
        let mut run = self.start(ids, None, scratch)?;
        for block in 0..self.config().depth {
            run.step();
            after(block, run.encoded.block_output());
        }
        Ok(())
    }

    /// The linear probe's feature of an image: mean over the patch tokens of the last block,
    /// standardised. `ids` `[T]`, `out` `[D]`. (Official: `main_linprobe.py --global_pool`.)
    ///
    /// # Errors
    /// As [`encode`](Self::encode), and [`Error::Length`] for `out`.
    pub fn features(&self, ids: &[u16], scratch: &mut Scratch<'_>, out: &mut [f32]) -> Result<(), Error> {
        self.encode(ids, None, scratch)?.probe_feature(out)
    }

    /// The class token's feature of an image: its row after the last block and the final norm. `ids` `[T]`, `out`
    /// `[D]`. (Official: `main_linprobe.py --cls_token`.)
    ///
    /// The bits of [`Latent::class_token`], for less work: of the last block the other tokens need only keys and values.
    ///
    /// # Errors
    /// As [`encode`](Self::encode), and [`Error::Length`] for `out`.
    pub fn class_token_feature(&self, ids: &[u16], scratch: &mut Scratch<'_>, out: &mut [f32]) -> Result<(), Error> {
        self.start(ids, None, scratch)?.class_token_feature(out)
    }

    /// The class of an image, `ids` `[T]`, by the linear head in the pack.
    ///
    /// # Errors
    /// As [`encode`](Self::encode), and [`Error::MissingSection`] where the pack has no classifier.
    pub fn classify(&self, ids: &[u16], scratch: &mut Scratch<'_>) -> Result<Prediction<'p>, Error> {
        let head = self.pack.classifier().ok_or(Error::MissingSection { section: "classifier" })?;
        head.classify(self.encode(ids, None, scratch)?.feature()?)
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

    /// Block `index` of the encoder on the rows in `buffers`; the first one embeds the tokens.
    pub(crate) fn encoder_block(&self, tokens: Tokens<'_>, index: usize, buffers: &mut Buffers<'_>) {
        self.encoder_block_of(tokens, index, 1 + tokens.ids.len(), buffers);
    }

    /// The same for the first `wanted` rows alone; the others keep the input of the block.
    fn encoder_block_of(&self, tokens: Tokens<'_>, index: usize, wanted: usize, buffers: &mut Buffers<'_>) {
        let rows = 1 + tokens.ids.len();
        if index == 0 {
            let x = &mut buffers.x[..rows * self.config().embed_dim]; // [1+N, D], class token first
            dispatch!(self.kernels, k => embed_tokens(k, &self.pack, tokens, x));
        }
        self.block(Stack::Encoder, index, rows, wanted, buffers);
    }

    /// The encoder's final norm.
    pub(crate) fn final_norm(&self, tokens: Tokens<'_>, buffers: &mut Buffers<'_>) {
        self.final_norm_of(&mut buffers.x[..(1 + tokens.ids.len()) * self.config().embed_dim]);
    }

    /// The encoder's final norm of rows `[.., D]`.
    pub(crate) fn final_norm_of(&self, x: &mut [f32]) {
        let (config, pack) = (self.config(), &self.pack);
        let (weight, bias) = (pack.vector(Param::NormWeight), pack.vector(Param::NormBias));
        let norm = Norm { weight, bias, eps: config.layer_norm_eps };
        dispatch!(self.kernels, k => norm_rows(k, &norm, x, config.embed_dim));
    }

    /// Block `index` of the decoder; the first one takes up the encoder's rows.
    pub(crate) fn decoder_block(&self, tokens: Tokens<'_>, index: usize, buffers: &mut Buffers<'_>) {
        if index == 0 {
            dispatch!(self.kernels, k => fill_canvas(k, self, tokens, buffers));
            // [1+T, Dd]
        }
        let rows = self.config().sequence();
        self.block(Stack::Decoder, index, rows, rows, buffers);
    }

    /// The output head: hands the code logits `[K]` of each `wanted` position to `visit(position, logits)`.
    pub(crate) fn logits(
        &self,
        buffers: &mut Buffers<'_>,
        wanted: impl Fn(usize) -> bool,
        visit: impl FnMut(usize, &mut [f32]),
    ) {
        dispatch!(self.kernels, k => head(k, self, buffers, wanted, visit));
    }

    /// A block of either stack on so many rows, for the first `wanted` of them: one copy of the code for both.
    #[inline(never)]
    fn block(&self, stack: Stack, index: usize, rows: usize, wanted: usize, buffers: &mut Buffers<'_>) {
        let Buffers { x, canvas, work, .. } = buffers;
        let x = match stack {
            Stack::Encoder => x,
            Stack::Decoder => canvas,
        };
        let blocks = self.pack.blocks(stack);
        let x = &mut x[..rows * blocks.dim];
        dispatch!(self.kernels, k => blocks.forward(k, index, x, wanted, work));
    }
}

/// The tokens of one encoder run.
#[derive(Clone, Copy)]
pub(crate) struct Tokens<'a> {
    pub ids: &'a [u16],
    pub positions: Option<&'a [u16]>,
}

impl Tokens<'_> {
    /// (id, position) of each token.
    fn iter(&self) -> impl Iterator<Item = (usize, usize)> + Clone + '_ {
        self.ids.iter().enumerate().map(|(i, &id)| {
            let position = self.positions.and_then(|p| p.get(i)).map_or(i, |&p| usize::from(p));
            (usize::from(id), position)
        })
    }
}

/// An encoder run under way (see [`Model::start`]); it lives in the scratch.
pub struct Encoding<'a> {
    encoded: Encoded<'a>,
    /// The next block.
    next: usize,
}

impl<'a> Encoding<'a> {
    /// Runs one block; whether there are more.
    pub fn step(&mut self) -> bool {
        let Encoded { model, tokens, buffers } = &mut self.encoded;
        let depth = model.config().depth;
        if self.next < depth {
            model.encoder_block(*tokens, self.next, buffers);
            self.next += 1;
        }
        self.next < depth
    }

    /// Runs the blocks that are left.
    pub fn finish(mut self) -> Encoded<'a> {
        while self.step() {}
        self.encoded
    }

    /// Runs the blocks that are left, the last one for the class token alone, and puts the class token's feature into
    /// `out` `[D]` (see [`Model::class_token_feature`]).
    ///
    /// # Errors
    /// [`Error::Length`] where `out` is not `[D]`.
    pub fn class_token_feature(mut self, out: &mut [f32]) -> Result<(), Error> {
        let Encoded { model, tokens, .. } = self.encoded;
        let config = model.config();
        let (needed, found) = (config.embed_dim, out.len());
        if needed != found {
            return Err(Error::Length { item: "out", needed, found });
        }
        while self.next + 1 < config.depth {
            self.step();
        }
        let buffers = &mut self.encoded.buffers;
        if self.next < config.depth {
            model.encoder_block_of(tokens, self.next, 1, buffers);
        }
        out.copy_from_slice(&buffers.x[..needed]);
        model.final_norm_of(out);
        Ok(())
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

    /// The linear probe's feature `[D]`, in the scratch (see [`Model::features`]).
    ///
    /// # Errors
    /// None in practice: every scratch has the room.
    pub fn feature(&mut self) -> Result<&[f32], Error> {
        let dim = self.model.config().embed_dim;
        let rows = (1 + self.tokens.ids.len()) * dim;
        let out = &mut self.buffers.work.input.floats[..dim];
        mean_of_patches(&self.buffers.x[..rows], dim, out)?;
        standardise(out, PROBE_NORM_EPS);
        Ok(out)
    }

    /// Applies the final norm.
    pub fn into_latent(self) -> Latent<'a> {
        let Self { model, tokens, mut buffers } = self;
        model.final_norm(tokens, &mut buffers);
        Latent { model, tokens, buffers }
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

    /// The class token `[D]`, the probe's feature in `--cls_token` mode. Where nothing else is wanted,
    /// [`Model::class_token_feature`] computes it faster.
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
    /// [`Error::MissingSection`] where the pack has no decoder, [`Error::ScratchPlan`] where the
    /// scratch was made for [`Plan::Features`].
    pub fn decode(self, visit: impl FnMut(usize, &mut [f32])) -> Result<(), Error> {
        let config = self.model.config();
        if !self.model.pack.has_decoder() {
            return Err(Error::MissingSection { section: "decoder" });
        }
        self.buffers.purpose.check(Purpose::Model(Plan::Generate))?;
        let Self { model, tokens, mut buffers } = self;
        (0..config.decoder_depth).for_each(|index| model.decoder_block(tokens, index, &mut buffers));
        model.logits(&mut buffers, |_| true, visit);
        Ok(())
    }
}

step! {
    /// The encoder's input `[1+N, D]`, class token first.
    fn embed_tokens(k, pack: &Pack<'_>, tokens: Tokens<'_>, x: &mut [f32]) {
        let (class, patches) = x.split_at_mut(pack.config().embed_dim);
        embed(pack, pack.config().class_token_id, 0, class);
        for ((id, position), row) in tokens.iter().zip(patches.chunks_exact_mut(class.len())) {
            embed(pack, id, 1 + position, row);
        }
    }
}

step! {
    /// A norm of rows of `dim` in place.
    pub(crate) fn norm_rows(k, norm: &Norm<'_>, rows: &mut [f32], dim: usize) {
        for row in rows.chunks_exact_mut(dim) {
            norm.apply_in_place(row);
        }
    }
}

step! {
    /// One row of a linear's input.
    pub(crate) fn put_row(k, linear: &Linear<'_>, x: &[f32], row: usize, input: &mut Input<'_>) {
        linear.put(k, x, row, input);
    }
}

/// Mean over rows 1.. of `[1+N, dim]` into `out` `[dim]`; zero where there is only the class token.
pub(crate) fn mean_of_patches(rows: &[f32], dim: usize, out: &mut [f32]) -> Result<(), Error> {
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
fn fill_canvas<K: Kernel>(k: K, model: &Model<'_>, tokens: Tokens<'_>, buffers: &mut Buffers<'_>) {
    let (config, pack) = (model.config(), &model.pack);
    let (d, dd) = (config.embed_dim, config.decoder_embed_dim);
    let linear = Linear { weight: pack.matrix(Param::DecoderEmbedWeight), bias: pack.vector(Param::DecoderEmbedBias) };
    let work = &mut buffers.work;
    let canvas = &mut buffers.canvas[..config.sequence() * dd];
    // The class token and the visible tokens, a block of rows at a time; sources are rows of x.
    let visible = || tokens.iter().enumerate().filter(|(_, (id, _))| *id != config.mask_token_id);
    let mut sources = core::iter::once((0, 0)).chain(visible().map(|(i, (_, position))| (1 + i, 1 + position)));
    let mut class_is_there = false;
    loop {
        let mut places = sources.clone();
        let mut count = 0;
        for (row, _) in sources.by_ref().take(work.rows) {
            put_row(k, &linear, &buffers.x[row * d..][..d], count, &mut work.input);
            count += 1;
        }
        if count == 0 {
            break;
        }
        let projected = &mut work.hidden[..count * dd]; // [r, Dd]
        let out = Output { data: &mut *projected, stride: dd, activation: Activation::Store };
        linear.apply(k, &work.input, count, 0..dd, out); // [r, D] -> [r, Dd]
        if !class_is_there {
            for row in canvas.chunks_exact_mut(dd) {
                row.copy_from_slice(&projected[..dd]);
            }
            class_is_there = true;
        }
        for (row, (_, place)) in projected.chunks_exact(dd).zip(&mut places) {
            canvas[place * dd..][..dd].copy_from_slice(row);
        }
    }
    pack.vector(Param::DecoderPosition).onto(0, canvas, |x, p| *x += p);
}

/// The output head at wanted positions: `LN(GELU(W x + b)) · E^T + bias` over the K codes.
fn head<K: Kernel>(
    k: K,
    model: &Model<'_>,
    buffers: &mut Buffers<'_>,
    wanted: impl Fn(usize) -> bool,
    mut visit: impl FnMut(usize, &mut [f32]),
) {
    let (config, pack) = (model.config(), &model.pack);
    let (d, dd, codes) = (config.embed_dim, config.decoder_embed_dim, config.codebook_size);
    let norm = Norm {
        weight: pack.vector(Param::DecoderNormWeight),
        bias: pack.vector(Param::DecoderNormBias),
        eps: config.layer_norm_eps,
    };
    let fc = Linear { weight: pack.matrix(Param::HeadFcWeight), bias: pack.vector(Param::HeadFcBias) };
    let hidden_norm = Norm {
        weight: pack.vector(Param::HeadNormWeight),
        bias: pack.vector(Param::HeadNormBias),
        eps: HEAD_LAYER_NORM_EPS,
    };
    let output = Linear { weight: pack.matrix(Param::WordEmbedding), bias: pack.vector(Param::HeadBias) };
    let (canvas, work) = (&*buffers.canvas, &mut buffers.work);
    let mut positions = (0..config.tokens()).filter(|&p| wanted(p));
    loop {
        let mut places = positions.clone();
        let mut count = 0;
        let row = &mut work.hidden[..dd];
        for position in positions.by_ref().take(work.rows) {
            row.copy_from_slice(&canvas[(1 + position) * dd..][..dd]);
            norm_rows(k, &norm, row, dd);
            put_row(k, &fc, row, count, &mut work.input);
            count += 1;
        }
        if count == 0 {
            return;
        }
        let hidden = &mut work.attended[..count * d]; // [r, D]
        let out = Output { data: &mut *hidden, stride: d, activation: Activation::Gelu };
        fc.apply(k, &work.input, count, 0..d, out);
        norm_rows(k, &hidden_norm, hidden, d);
        put_rows(k, hidden, &output, &mut work.input);
        let logits = &mut work.hidden[..count * codes]; // [r, K]
        let out = Output { data: &mut *logits, stride: codes, activation: Activation::Store };
        output.apply(k, &work.input, count, 0..codes, out);
        for (position, logits) in (&mut places).zip(logits.chunks_exact_mut(codes)) {
            visit(position, logits);
        }
    }
}
