//! [`ModelConfig`]: every size of a Sorcen model, and what follows from them.

use crate::error::Error;

/// Epsilon of the LayerNorm inside the output head (`mlm_layer.ln`), unlike all others
/// ([`ModelConfig::layer_norm_eps`]); official quirk.
pub const HEAD_LAYER_NORM_EPS: f32 = 1e-5;

/// Epsilon of the probe's `fc_norm`, a plain standardisation of the pooled feature (official).
pub const PROBE_NORM_EPS: f32 = 1e-6;

/// Largest values a config may have; they bound every derived size far below `u32::MAX`.
mod limit {
    pub const GRID: usize = 64;
    pub const VOCAB: usize = 65_535;
    pub const DIM: usize = 8_192;
    pub const DEPTH: usize = 128;
    pub const MLP_RATIO: usize = 16;
}

/// Whether the weights of an MLP of this width, as f32, are no larger than a slice may be where so many bytes are the most.
pub(crate) const fn mlp_fits(dim: usize, mlp_ratio: usize, most: u64) -> bool {
    let dim = dim as u64;
    dim * dim * mlp_ratio as u64 * size_of::<f32>() as u64 <= most
}

/// Bytes that a slice may have on this CPU.
pub(crate) const LARGEST_SLICE: u64 = isize::MAX as u64;

/// Sizes of a model: a student encoder and a decoder over a square grid of VQ tokens.
///
/// Plain numbers, `Copy`; the same fields (and names, MAE's) are in `config.json` and in a pack.
/// Call [`validate`](Self::validate) on anything that came from outside.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct ModelConfig {
    /// Side of the token grid (16 for 256×256 images and the official VQGAN).
    pub grid: usize,
    /// Number K of VQ codes; ids `0..codebook_size` are image tokens.
    pub codebook_size: usize,
    /// Rows V of the embedding and of the output layer (official: 2025).
    pub vocab_size: usize,
    /// Id of the class token ("fake class" in the official code: 1100).
    pub class_token_id: usize,
    /// Id of the mask token (official: 2024).
    pub mask_token_id: usize,
    /// Encoder width D.
    pub embed_dim: usize,
    /// Encoder blocks L.
    pub depth: usize,
    /// Encoder heads H.
    pub num_heads: usize,
    /// Decoder width.
    pub decoder_embed_dim: usize,
    /// Decoder blocks.
    pub decoder_depth: usize,
    /// Decoder heads.
    pub decoder_num_heads: usize,
    /// Hidden width of an MLP over its width.
    pub mlp_ratio: usize,
    /// Epsilon of every LayerNorm but the head's.
    pub layer_norm_eps: f32,
}

impl ModelConfig {
    /// The official ViT-B: 16×16 tokens of 1024 codes, vocabulary 2025.
    pub const fn vit_b() -> Self {
        Self::official(768, 12, 12)
    }

    /// The official ViT-L.
    pub const fn vit_l() -> Self {
        Self::official(1024, 24, 16)
    }

    const fn official(dim: usize, depth: usize, heads: usize) -> Self {
        Self {
            grid: 16,
            codebook_size: 1024,
            vocab_size: 2025,
            class_token_id: 1100,
            mask_token_id: 2024,
            embed_dim: dim,
            depth,
            num_heads: heads,
            decoder_embed_dim: dim,
            decoder_depth: 8,
            decoder_num_heads: 16,
            mlp_ratio: 4,
            layer_norm_eps: 1e-6,
        }
    }

    /// 256 wide, 8 + 4 blocks; compact vocabulary over `grid`² tokens of `codebook_size` codes.
    pub const fn small(grid: usize, codebook_size: usize) -> Self {
        Self::compact(grid, codebook_size, 256, 8, 8, 4)
    }

    /// 128 wide, 4 + 2 blocks; compact vocabulary.
    pub const fn tiny(grid: usize, codebook_size: usize) -> Self {
        Self::compact(grid, codebook_size, 128, 4, 4, 2)
    }

    /// 64 wide, 4 + 2 blocks; compact vocabulary. For microcontrollers.
    pub const fn micro(grid: usize, codebook_size: usize) -> Self {
        Self::compact(grid, codebook_size, 64, 4, 4, 2)
    }

    /// A compact vocabulary: the codes, then the class token, then the mask token.
    const fn compact(
        grid: usize,
        codebook_size: usize,
        dim: usize,
        depth: usize,
        heads: usize,
        decoder_depth: usize,
    ) -> Self {
        Self {
            grid,
            codebook_size,
            vocab_size: codebook_size + 2,
            class_token_id: codebook_size,
            mask_token_id: codebook_size + 1,
            embed_dim: dim,
            depth,
            num_heads: heads,
            decoder_embed_dim: dim,
            decoder_depth,
            decoder_num_heads: heads,
            mlp_ratio: 4,
            layer_norm_eps: 1e-6,
        }
    }

    /// Patch tokens T of an image: `grid²`, row-major.
    pub const fn tokens(&self) -> usize {
        self.grid * self.grid
    }

    /// Ids that can occur: the codes, the class token and the mask token. The official vocabulary has more.
    pub const fn used_ids(&self) -> usize {
        self.codebook_size + 2
    }

    /// Positions of a full sequence: the class token, then the patch tokens.
    pub const fn sequence(&self) -> usize {
        self.tokens() + 1
    }

    /// Width of an encoder head.
    pub const fn head_dim(&self) -> usize {
        self.embed_dim / self.num_heads
    }

    /// Width of a decoder head.
    pub const fn decoder_head_dim(&self) -> usize {
        self.decoder_embed_dim / self.decoder_num_heads
    }

    /// Hidden width F of an encoder MLP.
    pub const fn hidden_dim(&self) -> usize {
        self.embed_dim * self.mlp_ratio
    }

    /// Hidden width of a decoder MLP.
    pub const fn decoder_hidden_dim(&self) -> usize {
        self.decoder_embed_dim * self.mlp_ratio
    }

    /// Bits that hold one code id: 10 for 1024 codes.
    pub const fn token_bits(&self) -> u32 {
        usize::BITS - (self.codebook_size - 1).leading_zeros()
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
        check!(self.grid >= 1 && self.grid <= limit::GRID, "grid", "1 to 64", self.grid);
        check!(self.vocab_size >= 4 && self.vocab_size <= limit::VOCAB, "vocab_size", "4 to 65535", self.vocab_size);
        check!(
            self.codebook_size >= 2 && self.codebook_size <= self.vocab_size - 2,
            "codebook_size",
            "2 to vocab_size - 2",
            self.codebook_size
        );
        check!(
            self.class_token_id >= self.codebook_size && self.class_token_id < self.vocab_size,
            "class_token_id",
            "codebook_size to vocab_size - 1",
            self.class_token_id
        );
        check!(
            self.mask_token_id >= self.codebook_size
                && self.mask_token_id < self.vocab_size
                && self.mask_token_id != self.class_token_id,
            "mask_token_id",
            "codebook_size to vocab_size - 1, not the class token",
            self.mask_token_id
        );
        check!(self.embed_dim >= 1 && self.embed_dim <= limit::DIM, "embed_dim", "1 to 8192", self.embed_dim);
        check!(
            self.num_heads >= 1 && self.num_heads <= self.embed_dim && self.embed_dim.is_multiple_of(self.num_heads),
            "num_heads",
            "a divisor of embed_dim",
            self.num_heads
        );
        check!(self.depth >= 1 && self.depth <= limit::DEPTH, "depth", "1 to 128", self.depth);
        check!(
            self.decoder_embed_dim >= 1 && self.decoder_embed_dim <= limit::DIM,
            "decoder_embed_dim",
            "1 to 8192",
            self.decoder_embed_dim
        );
        check!(
            self.decoder_num_heads >= 1
                && self.decoder_num_heads <= self.decoder_embed_dim
                && self.decoder_embed_dim.is_multiple_of(self.decoder_num_heads),
            "decoder_num_heads",
            "a divisor of decoder_embed_dim",
            self.decoder_num_heads
        );
        check!(
            self.decoder_depth >= 1 && self.decoder_depth <= limit::DEPTH,
            "decoder_depth",
            "1 to 128",
            self.decoder_depth
        );
        check!(self.mlp_ratio >= 1 && self.mlp_ratio <= limit::MLP_RATIO, "mlp_ratio", "1 to 16", self.mlp_ratio);
        let widest = if self.embed_dim > self.decoder_embed_dim { self.embed_dim } else { self.decoder_embed_dim };
        check!(
            mlp_fits(widest, self.mlp_ratio, LARGEST_SLICE),
            "mlp_ratio",
            "so small that a 32-bit CPU can address the weights",
            self.mlp_ratio
        );
        check!(
            self.layer_norm_eps > 0.0 && self.layer_norm_eps < 1.0,
            "layer_norm_eps",
            "above 0, below 1 (found is shown in millionths)",
            self.layer_norm_eps * 1e6
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_valid() {
        for config in [
            ModelConfig::vit_b(),
            ModelConfig::vit_l(),
            ModelConfig::small(8, 512),
            ModelConfig::tiny(8, 512),
            ModelConfig::micro(16, 256),
        ] {
            assert_eq!(config.validate(), Ok(()), "{config:?}");
        }
        assert_eq!(ModelConfig::vit_b().token_bits(), 10);
        assert_eq!(ModelConfig::tiny(8, 512).token_bits(), 9);
    }

    /// Whatever is valid, no size of it overflows, on 32 bits either.
    #[test]
    fn the_widest_models_are_for_64_bits() {
        let widest = ModelConfig { embed_dim: 8192, num_heads: 64, mlp_ratio: 16, ..ModelConfig::vit_b() };
        for config in [widest, ModelConfig { decoder_embed_dim: 8192, mlp_ratio: 16, ..ModelConfig::vit_b() }] {
            match config.validate() {
                Ok(()) => assert_eq!(usize::BITS, 64),
                Err(Error::Config { field, found, .. }) => {
                    assert_eq!((usize::BITS, field, found), (32, "mlp_ratio", 16))
                }
                Err(error) => panic!("{error}"),
            }
        }
        const ON_32_BITS: u64 = i32::MAX as u64;
        assert!(!mlp_fits(8192, 16, ON_32_BITS) && !mlp_fits(8192, 8, ON_32_BITS) && mlp_fits(8192, 7, ON_32_BITS));
        // The other large matrix.
        assert!((limit::VOCAB * limit::DIM * 4) as u64 <= ON_32_BITS);
    }

    #[test]
    fn validate_names_the_field() {
        let field = |edit: fn(&mut ModelConfig)| {
            let mut config = ModelConfig::vit_b();
            edit(&mut config);
            match config.validate() {
                Err(Error::Config { field, .. }) => field,
                other => panic!("accepted: {other:?}"),
            }
        };
        assert_eq!(field(|c| c.grid = 0), "grid");
        assert_eq!(field(|c| c.num_heads = 7), "num_heads");
        assert_eq!(field(|c| c.codebook_size = 2024), "codebook_size");
        assert_eq!(field(|c| c.mask_token_id = 1100), "mask_token_id");
        assert_eq!(field(|c| c.class_token_id = 3), "class_token_id");
        assert_eq!(field(|c| c.decoder_num_heads = 0), "decoder_num_heads");
        assert_eq!(field(|c| c.layer_norm_eps = f32::NAN), "layer_norm_eps");
    }
}
