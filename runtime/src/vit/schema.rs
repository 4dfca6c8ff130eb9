//! Sizes and weights of a ViT tokenizer.

use core::fmt;

use crate::{
    config::{mlp_fits, LARGEST_SLICE},
    error::Error,
    schema::{Part, Shape, Stack},
};

/// Channels of a pixel.
const RGB: usize = 3;
/// Parts of a block.
const PARTS: usize = Part::ALL.len();

/// Sizes of a ViT tokenizer: images of `grid * patch` pixels a side become `grid²` codes, and back.
///
/// Plain numbers, `Copy`. Call [`validate`](Self::validate) on anything that came from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct VitConfig {
    /// Side of the token grid.
    pub grid: usize,
    /// Side P of a patch in pixels.
    pub patch: usize,
    /// Number K of codes.
    pub codes: usize,
    /// Length z of a code.
    pub code_dim: usize,
    /// Width D of both stacks.
    pub embed_dim: usize,
    /// Blocks of the encoder.
    pub depth: usize,
    /// Heads of both stacks.
    pub num_heads: usize,
    /// Blocks of the decoder.
    pub decoder_depth: usize,
    /// Hidden width of an MLP over its width.
    pub mlp_ratio: usize,
}

impl VitConfig {
    /// Epsilon of every LayerNorm.
    pub const LAYER_NORM_EPS: f32 = 1e-6;

    /// Tokens T of an image, row-major.
    pub const fn tokens(&self) -> usize {
        self.grid * self.grid
    }

    /// Side of an image in pixels.
    pub const fn side(&self) -> usize {
        self.grid * self.patch
    }

    /// Numbers of a patch: its pixels' channels, `[row, column, RGB]`.
    pub const fn patch_values(&self) -> usize {
        self.patch * self.patch * RGB
    }

    /// Width of a head.
    pub const fn head_dim(&self) -> usize {
        self.embed_dim / self.num_heads
    }

    /// Hidden width F of an MLP.
    pub const fn hidden_dim(&self) -> usize {
        self.embed_dim * self.mlp_ratio
    }

    /// Checks that every field is in range and that they fit together.
    ///
    /// # Errors
    /// [`Error::Config`] names the first field that is wrong.
    pub const fn validate(&self) -> Result<(), Error> {
        macro_rules! check {
            ($ok:expr, $field:literal, $expected:literal, $found:expr) => {
                if !$ok {
                    return Err(Error::Config { field: $field, expected: $expected, found: $found as u64 });
                }
            };
        }
        check!(self.grid >= 1 && self.grid <= 64, "grid", "1 to 64", self.grid);
        check!(self.patch >= 1 && self.patch <= 64, "patch", "1 to 64", self.patch);
        check!(self.codes >= 2 && self.codes <= 65_535, "codes", "2 to 65535", self.codes);
        check!(self.code_dim >= 1 && self.code_dim <= 1024, "code_dim", "1 to 1024", self.code_dim);
        check!(self.embed_dim >= 1 && self.embed_dim <= 8192, "embed_dim", "1 to 8192", self.embed_dim);
        check!(
            self.num_heads >= 1 && self.num_heads <= self.embed_dim && self.embed_dim.is_multiple_of(self.num_heads),
            "num_heads",
            "a divisor of embed_dim",
            self.num_heads
        );
        check!(self.depth >= 1 && self.depth <= 128, "depth", "1 to 128", self.depth);
        check!(self.decoder_depth >= 1 && self.decoder_depth <= 128, "decoder_depth", "1 to 128", self.decoder_depth);
        check!(self.mlp_ratio >= 1 && self.mlp_ratio <= 16, "mlp_ratio", "1 to 16", self.mlp_ratio);
        check!(
            mlp_fits(self.embed_dim, self.mlp_ratio, LARGEST_SLICE),
            "mlp_ratio",
            "so small that a 32-bit CPU can address the weights",
            self.mlp_ratio
        );
        Ok(())
    }
}

/// One weight of a ViT tokenizer. `Display` writes its name in files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VitParam {
    /// `patch_embed.weight` `[D, P*P*3]`
    PatchWeight,
    /// `patch_embed.bias` `[D]`
    PatchBias,
    /// `pos_embed` `[T, D]`
    Position,
    /// A weight of block `index` of a stack: `blocks.*`, `decoder_blocks.*`
    Block {
        /// Encoder or decoder.
        stack: Stack,
        /// Block number, from 0.
        index: usize,
        /// Which weight.
        part: Part,
    },
    /// `norm.weight` `[D]`
    NormWeight,
    /// `norm.bias` `[D]`
    NormBias,
    /// `to_code.weight` `[z, D]`
    ToCodeWeight,
    /// `to_code.bias` `[z]`
    ToCodeBias,
    /// `quantize.embedding.weight` `[K, z]`, singles always
    Codebook,
    /// `from_code.weight` `[D, z]`
    FromCodeWeight,
    /// `from_code.bias` `[D]`
    FromCodeBias,
    /// `decoder_pos_embed` `[T, D]`
    DecoderPosition,
    /// `decoder_norm.weight` `[D]`
    DecoderNormWeight,
    /// `decoder_norm.bias` `[D]`
    DecoderNormBias,
    /// `to_pixels.weight` `[P*P*3, D]`
    PixelsWeight,
    /// `to_pixels.bias` `[P*P*3]`
    PixelsBias,
}

const FIRST: [VitParam; 3] = [VitParam::PatchWeight, VitParam::PatchBias, VitParam::Position];
const MIDDLE: [VitParam; 8] = [
    VitParam::NormWeight,
    VitParam::NormBias,
    VitParam::ToCodeWeight,
    VitParam::ToCodeBias,
    VitParam::Codebook,
    VitParam::FromCodeWeight,
    VitParam::FromCodeBias,
    VitParam::DecoderPosition,
];
const LAST: [VitParam; 4] =
    [VitParam::DecoderNormWeight, VitParam::DecoderNormBias, VitParam::PixelsWeight, VitParam::PixelsBias];

impl VitParam {
    /// Number of weights of a tokenizer.
    pub const fn count(config: &VitConfig) -> usize {
        FIRST.len() + MIDDLE.len() + LAST.len() + (config.depth + config.decoder_depth) * PARTS
    }

    /// All weights, in the order of files.
    pub fn all(config: &VitConfig) -> impl Iterator<Item = VitParam> + Clone {
        let blocks = |stack, depth| {
            (0..depth)
                .flat_map(move |index| Part::ALL.into_iter().map(move |part| VitParam::Block { stack, index, part }))
        };
        FIRST
            .into_iter()
            .chain(blocks(Stack::Encoder, config.depth))
            .chain(MIDDLE)
            .chain(blocks(Stack::Decoder, config.decoder_depth))
            .chain(LAST)
    }

    /// Position of this weight in [`all`](Self::all).
    pub const fn index(self, config: &VitConfig) -> usize {
        let middle = FIRST.len() + config.depth * PARTS;
        let decoder = middle + MIDDLE.len();
        let last = decoder + config.decoder_depth * PARTS;
        match self {
            VitParam::PatchWeight => 0,
            VitParam::PatchBias => 1,
            VitParam::Position => 2,
            VitParam::Block { stack: Stack::Encoder, index, part } => FIRST.len() + index * PARTS + part as usize,
            VitParam::NormWeight => middle,
            VitParam::NormBias => middle + 1,
            VitParam::ToCodeWeight => middle + 2,
            VitParam::ToCodeBias => middle + 3,
            VitParam::Codebook => middle + 4,
            VitParam::FromCodeWeight => middle + 5,
            VitParam::FromCodeBias => middle + 6,
            VitParam::DecoderPosition => middle + 7,
            VitParam::Block { stack: Stack::Decoder, index, part } => decoder + index * PARTS + part as usize,
            VitParam::DecoderNormWeight => last,
            VitParam::DecoderNormBias => last + 1,
            VitParam::PixelsWeight => last + 2,
            VitParam::PixelsBias => last + 3,
        }
    }

    /// Shape of this weight, linears as `[out, in]`.
    pub const fn shape(self, c: &VitConfig) -> Shape {
        let d = c.embed_dim;
        match self {
            VitParam::PatchWeight => Shape::d2(d, c.patch_values()),
            VitParam::Position | VitParam::DecoderPosition => Shape::d2(c.tokens(), d),
            VitParam::Block { part, .. } => part.shape(d, c.hidden_dim()),
            VitParam::ToCodeWeight => Shape::d2(c.code_dim, d),
            VitParam::ToCodeBias => Shape::d1(c.code_dim),
            VitParam::Codebook => Shape::d2(c.codes, c.code_dim),
            VitParam::FromCodeWeight => Shape::d2(d, c.code_dim),
            VitParam::PixelsWeight => Shape::d2(c.patch_values(), d),
            VitParam::PixelsBias => Shape::d1(c.patch_values()),
            VitParam::PatchBias
            | VitParam::NormWeight
            | VitParam::NormBias
            | VitParam::FromCodeBias
            | VitParam::DecoderNormWeight
            | VitParam::DecoderNormBias => Shape::d1(d),
        }
    }

    /// Whether this is a matrix that quantisation applies to. The two linears beside the codes are not: they are
    /// small, and an error there moves ids.
    pub const fn is_matrix(self) -> bool {
        match self {
            VitParam::Block { part, .. } => part.is_matrix(),
            _ => matches!(self, VitParam::PatchWeight | VitParam::PixelsWeight),
        }
    }
}

impl fmt::Display for VitParam {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            VitParam::PatchWeight => "patch_embed.weight",
            VitParam::PatchBias => "patch_embed.bias",
            VitParam::Position => "pos_embed",
            VitParam::Block { stack, index, part } => {
                let stack = match stack {
                    Stack::Encoder => "blocks",
                    Stack::Decoder => "decoder_blocks",
                };
                return write!(f, "{stack}.{index}.{}", part.name());
            }
            VitParam::NormWeight => "norm.weight",
            VitParam::NormBias => "norm.bias",
            VitParam::ToCodeWeight => "to_code.weight",
            VitParam::ToCodeBias => "to_code.bias",
            VitParam::Codebook => "quantize.embedding.weight",
            VitParam::FromCodeWeight => "from_code.weight",
            VitParam::FromCodeBias => "from_code.bias",
            VitParam::DecoderPosition => "decoder_pos_embed",
            VitParam::DecoderNormWeight => "decoder_norm.weight",
            VitParam::DecoderNormBias => "decoder_norm.bias",
            VitParam::PixelsWeight => "to_pixels.weight",
            VitParam::PixelsBias => "to_pixels.bias",
        })
    }
}
