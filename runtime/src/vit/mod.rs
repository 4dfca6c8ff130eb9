//! The ViT tokenizer: pixels → patches → encoder → nearest codes → decoder → pixels, in int8.
//!
//! One image at a time; the blocks are the model's own. Weights lie in a section of a pack
//! ([`Pack::vit`](crate::Pack::vit)).

mod schema;
#[cfg(feature = "alloc")]
mod section;
#[cfg(test)]
mod tests;

use crate::{
    config::ModelConfig,
    error::Error,
    kernels::{dispatch, step, Activation, Kernel, Kernels},
    layers::{
        block::{put_rows, Blocks},
        linear::{Linear, Output},
        norm::Norm,
    },
    math::round_to_i32,
    model::{norm_rows, put_row},
    pack::{check_reserved, check_same, Kind, Matrix, Precision, Tensors, Vector},
    schema::{Part, Stack},
    scratch::{Buffers, Scratch},
};
#[cfg(feature = "alloc")]
use crate::{pack::arranged, quant::Layout};
pub use schema::{VitConfig, VitParam};
#[cfg(feature = "alloc")]
pub use section::section;

/// Byte positions of a section's header; the tensor table and, aligned, the numbers follow.
pub(crate) mod head {
    /// The fields of [`VitConfig`](super::VitConfig), u32 each.
    pub const FIELDS: usize = 9;
    pub const BYTES: usize = 64;
}

/// A ViT tokenizer over the checked bytes of a pack's section.
#[derive(Clone, Copy)]
pub struct Vit<'p> {
    config: VitConfig,
    tensors: Tensors<'p>,
    bytes: &'p [u8],
    kernels: Kernels,
}

impl<'p> Vit<'p> {
    /// Checks a section, on the fastest kernels of this CPU. `bytes` must be aligned to 4.
    ///
    /// # Errors
    /// [`Error::Truncated`], [`Error::Alignment`], [`Error::Config`], [`Error::Field`], and as [`Pack::new`](crate::Pack::new) for
    /// the first tensor that is wrong (numbered as in [`VitParam::all`]).
    pub fn new(bytes: &'p [u8]) -> Result<Self, Error> {
        let truncated = |needed: usize| Error::Truncated {
            item: "vit tokenizer",
            needed: needed as u64,
            found: bytes.len() as u64,
        };
        let (header, _) = bytes.split_at_checked(head::BYTES).ok_or(truncated(head::BYTES))?;
        let mut fields = [0usize; head::FIELDS];
        for (field, bytes) in fields.iter_mut().zip(header.as_chunks::<4>().0) {
            *field = u32::from_le_bytes(*bytes) as usize;
        }
        let config = config_of(fields);
        config.validate()?;
        check_reserved("reserved bytes of the vit tokenizer", &header[4 * head::FIELDS..])?;
        let weights_start = weights_start(&config);
        let (front, weights) = bytes.split_at_checked(weights_start).ok_or(truncated(weights_start))?;
        if !(bytes.as_ptr() as usize).is_multiple_of(4) {
            return Err(Error::Alignment { item: "vit tokenizer", needed: 4 });
        }
        let table = &front[head::BYTES..table_end(&config)];
        let tensors = Tensors::new(table, weights, VitParam::count(&config))?;
        for (index, param) in VitParam::all(&config).enumerate() {
            let kind = Kind { is_matrix: param.is_matrix(), is_optional: false };
            tensors.check(index, param.shape(&config).matrix(), kind)?;
        }
        let codebook = tensors.precision(VitParam::Codebook.index(&config));
        if codebook != Some(Precision::F32) {
            let found = codebook.map_or(0, |precision| precision as u64 + 1);
            return Err(Error::Field { field: "precision of the codebook", found });
        }
        Ok(Self { config, tensors, bytes, kernels: Kernels::detect() })
    }

    /// The tokenizer, if its ids are those that a model of these sizes takes.
    pub(crate) fn of_model(self, model: &ModelConfig) -> Result<Self, Error> {
        check_same("codes of the vit tokenizer", model.codebook_size, self.config.codes)?;
        check_same("grid of the vit tokenizer", model.grid, self.config.grid)?;
        Ok(self)
    }

    /// The same tokenizer on chosen kernels; all give the same bits for int8.
    pub const fn with_kernels(self, kernels: Kernels) -> Self {
        Self { kernels, ..self }
    }

    /// The sizes.
    pub const fn config(&self) -> &VitConfig {
        &self.config
    }

    /// The section's bytes.
    pub const fn bytes(&self) -> &'p [u8] {
        self.bytes
    }

    /// Whether integer weights are in another order than these kernels like best.
    pub(crate) fn is_in_another_order(&self, kernels: Kernels) -> bool {
        VitParam::all(&self.config).any(|param| self.matrix(param).data.is_in_another_order(kernels.layout()))
    }

    /// The section with its integer weights in `layout`, or in the order that goes with it.
    #[cfg(feature = "alloc")]
    pub(crate) fn arranged(&self, layout: Layout) -> Result<alloc::vec::Vec<u8>, Error> {
        section(&self.config, |param, write| {
            arranged(self.matrix(param), self.tensors.bytes_of(param.index(&self.config)), layout, write)
        })
    }

    /// Precision of a weight.
    pub fn precision(&self, param: VitParam) -> Option<Precision> {
        self.tensors.precision(param.index(&self.config))
    }

    /// Ids of an image: `rgb` `[side, side, 3]`, `ids` `[T]`, row-major. Each is the code at the smallest distance,
    /// the first on ties.
    ///
    /// # Errors
    /// [`Error::Length`], and [`Error::ScratchPlan`] or [`Error::ScratchShape`] where `scratch` was not made by
    /// [`Scratch::for_vit`] for these sizes.
    pub fn encode(&self, rgb: &[u8], scratch: &mut Scratch<'_>, ids: &mut [u16]) -> Result<(), Error> {
        self.check(rgb.len(), ids.len())?;
        let mut buffers = scratch.vit_buffers(&self.config)?;
        dispatch!(self.kernels, k => self.encode_on(k, rgb, &mut buffers, ids));
        Ok(())
    }

    /// The image of some ids: `ids` `[T]`, `rgb` `[side, side, 3]`.
    ///
    /// # Errors
    /// As [`encode`](Self::encode), and [`Error::TokenId`] for an id that is no code.
    pub fn decode(&self, ids: &[u16], scratch: &mut Scratch<'_>, rgb: &mut [u8]) -> Result<(), Error> {
        self.check(rgb.len(), ids.len())?;
        let codes = self.config.codes;
        if let Some(index) = ids.iter().position(|&id| usize::from(id) >= codes) {
            return Err(Error::TokenId { index, limit: codes as u32, found: ids[index].into() });
        }
        let mut buffers = scratch.vit_buffers(&self.config)?;
        dispatch!(self.kernels, k => self.decode_on(k, ids, &mut buffers, rgb));
        Ok(())
    }

    fn check(&self, bytes: usize, ids: usize) -> Result<(), Error> {
        let c = &self.config;
        let needed = c.tokens() * c.patch_values();
        if bytes != needed {
            return Err(Error::Length { item: "rgb", needed, found: bytes });
        }
        if ids != c.tokens() {
            return Err(Error::Length { item: "ids", needed: c.tokens(), found: ids });
        }
        Ok(())
    }

    fn encode_on<K: Kernel>(&self, k: K, rgb: &[u8], buffers: &mut Buffers<'_>, ids: &mut [u16]) {
        let c = &self.config;
        let (dim, values) = (c.embed_dim, c.patch_values());
        let Buffers { x, work, .. } = buffers;
        let x = &mut x[..c.tokens() * dim]; // [T, D]
        let embed = self.linear(VitParam::PatchWeight, VitParam::PatchBias);
        for (block, x) in x.chunks_mut(work.rows * dim).enumerate() {
            let count = x.len() / dim;
            for row in 0..count {
                let pixels = &mut work.hidden[..values];
                for (line, pixels) in pixels.chunks_exact_mut(3 * c.patch).enumerate() {
                    let bytes = &rgb[line_start(c, block * work.rows + row, line)..][..pixels.len()];
                    for (pixel, &byte) in pixels.iter_mut().zip(bytes) {
                        *pixel = f32::from(byte) / 127.5 - 1.0;
                    }
                }
                put_row(k, &embed, pixels, row, &mut work.input);
            }
            let out = Output { data: x, stride: dim, activation: Activation::Store };
            embed.apply(k, &work.input, count, 0..dim, out); // [r, P*P*3] -> [r, D]
        }
        add_positions(x, self.vector(VitParam::Position));
        let blocks = self.blocks(Stack::Encoder);
        (0..c.depth).for_each(|index| blocks.forward(k, index, x, c.tokens(), work));
        norm_rows(k, &self.norm(VitParam::NormWeight, VitParam::NormBias), x, dim);
        let to_code = self.linear(VitParam::ToCodeWeight, VitParam::ToCodeBias);
        let length = c.code_dim;
        for (x, ids) in x.chunks(work.rows * dim).zip(ids.chunks_mut(work.rows)) {
            put_rows(k, x, &to_code, &mut work.input);
            let latent = &mut work.hidden[..ids.len() * length]; // [r, z]
            let out = Output { data: &mut *latent, stride: length, activation: Activation::Store };
            to_code.apply(k, &work.input, ids.len(), 0..length, out);
            nearest_codes(k, self.codebook(), latent, length, ids);
        }
    }

    fn decode_on<K: Kernel>(&self, k: K, ids: &[u16], buffers: &mut Buffers<'_>, rgb: &mut [u8]) {
        let c = &self.config;
        let (dim, length, values) = (c.embed_dim, c.code_dim, c.patch_values());
        let Buffers { x, work, .. } = buffers;
        let x = &mut x[..c.tokens() * dim]; // [T, D]
        let from_code = self.linear(VitParam::FromCodeWeight, VitParam::FromCodeBias);
        for (x, ids) in x.chunks_mut(work.rows * dim).zip(ids.chunks(work.rows)) {
            for (row, &id) in ids.iter().enumerate() {
                let code = &self.codebook()[usize::from(id) * length..][..length];
                put_row(k, &from_code, code, row, &mut work.input);
            }
            let out = Output { data: x, stride: dim, activation: Activation::Store };
            from_code.apply(k, &work.input, ids.len(), 0..dim, out); // [r, z] -> [r, D]
        }
        add_positions(x, self.vector(VitParam::DecoderPosition));
        let blocks = self.blocks(Stack::Decoder);
        (0..c.decoder_depth).for_each(|index| blocks.forward(k, index, x, c.tokens(), work));
        norm_rows(k, &self.norm(VitParam::DecoderNormWeight, VitParam::DecoderNormBias), x, dim);
        let to_pixels = self.linear(VitParam::PixelsWeight, VitParam::PixelsBias);
        for (block, x) in x.chunks(work.rows * dim).enumerate() {
            let count = x.len() / dim;
            put_rows(k, x, &to_pixels, &mut work.input);
            let pixels = &mut work.hidden[..count * values]; // [r, P*P*3]
            let out = Output { data: &mut *pixels, stride: values, activation: Activation::Store };
            to_pixels.apply(k, &work.input, count, 0..values, out);
            for (row, pixels) in pixels.chunks_exact(values).enumerate() {
                for (line, pixels) in pixels.chunks_exact(3 * c.patch).enumerate() {
                    let bytes = &mut rgb[line_start(c, block * work.rows + row, line)..][..pixels.len()];
                    for (byte, &pixel) in bytes.iter_mut().zip(pixels) {
                        *byte = round_to_i32(((pixel + 1.0) * 127.5).clamp(0.0, 255.0)) as u8;
                    }
                }
            }
        }
    }

    /// The codes, `[K, z]`.
    fn codebook(&self) -> &'p [f32] {
        match self.vector(VitParam::Codebook) {
            Vector::F32(codes) => codes,
            Vector::F16(_) => &[], // refused by `new`
        }
    }

    fn matrix(&self, param: VitParam) -> Matrix<'p> {
        self.tensors.matrix(param.index(&self.config), param.shape(&self.config).matrix())
    }

    fn vector(&self, param: VitParam) -> Vector<'p> {
        self.tensors.vector(param.index(&self.config), param.shape(&self.config).matrix())
    }

    fn linear(&self, weight: VitParam, bias: VitParam) -> Linear<'p> {
        Linear { weight: self.matrix(weight), bias: self.vector(bias) }
    }

    fn norm(&self, weight: VitParam, bias: VitParam) -> Norm<'p> {
        Norm { weight: self.vector(weight), bias: self.vector(bias), eps: VitConfig::LAYER_NORM_EPS }
    }

    fn blocks(&self, stack: Stack) -> Blocks<'p> {
        let c = &self.config;
        Blocks {
            tensors: self.tensors,
            first: VitParam::Block { stack, index: 0, part: Part::ALL[0] }.index(c),
            dim: c.embed_dim,
            heads: c.num_heads,
            hidden: c.hidden_dim(),
            eps: VitConfig::LAYER_NORM_EPS,
        }
    }
}

/// Byte where a line of pixels of a patch starts in an image.
const fn line_start(c: &VitConfig, patch: usize, line: usize) -> usize {
    let (y, x) = ((patch / c.grid) * c.patch + line, (patch % c.grid) * c.patch);
    (y * c.side() + x) * 3
}

fn add_positions(x: &mut [f32], positions: Vector<'_>) {
    for (x, position) in x.iter_mut().zip(positions.iter_from(0)) {
        *x += position;
    }
}

step! {
    /// The number of the nearest code `[K, z]` to each row of `latent` `[r, z]`.
    fn nearest_codes(k, codebook: &[f32], latent: &[f32], length: usize, ids: &mut [u16]) {
        for (z, id) in latent.chunks_exact(length).zip(ids) {
            let mut best = (f32::INFINITY, 0);
            for (number, code) in codebook.chunks_exact(length).enumerate() {
                let distance = crate::kernels::scalar::squared_distance(z, code);
                if distance < best.0 {
                    best = (distance, number);
                }
            }
            *id = best.1 as u16;
        }
    }
}

const fn config_of(fields: [usize; head::FIELDS]) -> VitConfig {
    let [grid, patch, codes, code_dim, embed_dim, depth, num_heads, decoder_depth, mlp_ratio] = fields;
    VitConfig { grid, patch, codes, code_dim, embed_dim, depth, num_heads, decoder_depth, mlp_ratio }
}

/// End of the tensor table in a section.
const fn table_end(config: &VitConfig) -> usize {
    head::BYTES + VitParam::count(config) * crate::pack::TENSOR_ENTRY
}

/// Start of the numbers in a section.
const fn weights_start(config: &VitConfig) -> usize {
    table_end(config).next_multiple_of(crate::pack::ALIGN)
}
