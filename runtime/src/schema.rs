//! The list of weights that inference needs: name, shape and order, computed from the config.
//!
//! This is the only such list. The trainer saves, the exporter lowers and the pack stores by
//! iterating [`params`]; a [`Param`] is an index into it without strings.

use core::fmt;

use crate::config::ModelConfig;

/// Which stack of transformer blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stack {
    /// `blocks.*`
    Encoder,
    /// `decoder_blocks.*`
    Decoder,
}

/// A weight inside a block, in the official order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// `norm1.weight` `[D]`
    Norm1Weight,
    /// `norm1.bias` `[D]`
    Norm1Bias,
    /// `attn.qkv.weight` `[3D, D]`: rows are (q, k, v) × heads × head width
    QkvWeight,
    /// `attn.qkv.bias` `[3D]`
    QkvBias,
    /// `attn.proj.weight` `[D, D]`
    ProjWeight,
    /// `attn.proj.bias` `[D]`
    ProjBias,
    /// `norm2.weight` `[D]`
    Norm2Weight,
    /// `norm2.bias` `[D]`
    Norm2Bias,
    /// `mlp.fc1.weight` `[F, D]`
    Fc1Weight,
    /// `mlp.fc1.bias` `[F]`
    Fc1Bias,
    /// `mlp.fc2.weight` `[D, F]`
    Fc2Weight,
    /// `mlp.fc2.bias` `[D]`
    Fc2Bias,
}

impl Part {
    /// All parts of a block in schema order.
    pub const ALL: [Part; 12] = [
        Part::Norm1Weight,
        Part::Norm1Bias,
        Part::QkvWeight,
        Part::QkvBias,
        Part::ProjWeight,
        Part::ProjBias,
        Part::Norm2Weight,
        Part::Norm2Bias,
        Part::Fc1Weight,
        Part::Fc1Bias,
        Part::Fc2Weight,
        Part::Fc2Bias,
    ];

    /// Shape in a block of width `d` and hidden width `f`.
    pub const fn shape(self, d: usize, f: usize) -> Shape {
        match self {
            Part::QkvWeight => Shape::d2(3 * d, d),
            Part::QkvBias => Shape::d1(3 * d),
            Part::ProjWeight => Shape::d2(d, d),
            Part::Fc1Weight => Shape::d2(f, d),
            Part::Fc1Bias => Shape::d1(f),
            Part::Fc2Weight => Shape::d2(d, f),
            Part::Norm1Weight
            | Part::Norm1Bias
            | Part::ProjBias
            | Part::Norm2Weight
            | Part::Norm2Bias
            | Part::Fc2Bias => Shape::d1(d),
        }
    }

    /// [`shape`](Self::shape) as a matrix.
    pub(crate) const fn matrix(self, d: usize, f: usize) -> (usize, usize) {
        self.shape(d, f).matrix()
    }

    /// Whether this is a matrix that quantisation applies to.
    pub const fn is_matrix(self) -> bool {
        matches!(self, Part::QkvWeight | Part::ProjWeight | Part::Fc1Weight | Part::Fc2Weight)
    }

    /// The name inside a block.
    pub const fn name(self) -> &'static str {
        match self {
            Part::Norm1Weight => "norm1.weight",
            Part::Norm1Bias => "norm1.bias",
            Part::QkvWeight => "attn.qkv.weight",
            Part::QkvBias => "attn.qkv.bias",
            Part::ProjWeight => "attn.proj.weight",
            Part::ProjBias => "attn.proj.bias",
            Part::Norm2Weight => "norm2.weight",
            Part::Norm2Bias => "norm2.bias",
            Part::Fc1Weight => "mlp.fc1.weight",
            Part::Fc1Bias => "mlp.fc1.bias",
            Part::Fc2Weight => "mlp.fc2.weight",
            Part::Fc2Bias => "mlp.fc2.bias",
        }
    }
}

/// One weight of the model. `Display` writes its official PyTorch name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Param {
    /// `token_emb.word_embeddings.weight` `[V, D]`; also the output layer's matrix
    WordEmbedding,
    /// `token_emb.position_embeddings.weight` `[1+T, D]`
    PositionEmbedding,
    /// `token_emb.LayerNorm.weight` `[D]`
    EmbeddingNormWeight,
    /// `token_emb.LayerNorm.bias` `[D]`
    EmbeddingNormBias,
    /// A weight of block `index` of a stack
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
    /// `decoder_embed.weight` `[Dd, D]`
    DecoderEmbedWeight,
    /// `decoder_embed.bias` `[Dd]`
    DecoderEmbedBias,
    /// `decoder_pos_embed_learned` `[1, 1+T, Dd]`
    DecoderPosition,
    /// `decoder_norm.weight` `[Dd]`
    DecoderNormWeight,
    /// `decoder_norm.bias` `[Dd]`
    DecoderNormBias,
    /// `mlm_layer.fc.weight` `[D, Dd]`
    HeadFcWeight,
    /// `mlm_layer.fc.bias` `[D]`
    HeadFcBias,
    /// `mlm_layer.ln.weight` `[D]`
    HeadNormWeight,
    /// `mlm_layer.ln.bias` `[D]`
    HeadNormBias,
    /// `mlm_layer.bias` `[1, 1, V]`
    HeadBias,
}

/// Weights before the encoder's blocks, between the stacks, and after the decoder's blocks.
const FIRST: [Param; 4] =
    [Param::WordEmbedding, Param::PositionEmbedding, Param::EmbeddingNormWeight, Param::EmbeddingNormBias];
const MIDDLE: [Param; 5] =
    [Param::NormWeight, Param::NormBias, Param::DecoderEmbedWeight, Param::DecoderEmbedBias, Param::DecoderPosition];
const LAST: [Param; 7] = [
    Param::DecoderNormWeight,
    Param::DecoderNormBias,
    Param::HeadFcWeight,
    Param::HeadFcBias,
    Param::HeadNormWeight,
    Param::HeadNormBias,
    Param::HeadBias,
];
const PARTS: usize = Part::ALL.len();

/// A shape of one to three dimensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    dims: [usize; 3],
    rank: usize,
}

impl Shape {
    /// The dimensions, outermost first.
    pub fn dims(&self) -> &[usize] {
        &self.dims[..self.rank]
    }

    /// Number of elements.
    pub const fn elements(&self) -> usize {
        self.dims[0] * self.dims[1] * self.dims[2]
    }

    /// The tensor as a matrix `(rows, columns)`: the last dimension is the columns.
    pub const fn matrix(&self) -> (usize, usize) {
        let cols = self.dims[self.rank - 1];
        (self.elements() / cols, cols)
    }

    pub(crate) const fn d1(a: usize) -> Self {
        Self { dims: [a, 1, 1], rank: 1 }
    }
    pub(crate) const fn d2(a: usize, b: usize) -> Self {
        Self { dims: [a, b, 1], rank: 2 }
    }
    const fn d3(a: usize, b: usize, c: usize) -> Self {
        Self { dims: [a, b, c], rank: 3 }
    }
}

impl Param {
    /// Position of this weight in [`params`]; tensor tables are indexed by it.
    pub const fn index(self, config: &ModelConfig) -> usize {
        let middle = FIRST.len() + config.depth * PARTS;
        let decoder = middle + MIDDLE.len();
        let last = decoder + config.decoder_depth * PARTS;
        match self {
            Param::WordEmbedding => 0,
            Param::PositionEmbedding => 1,
            Param::EmbeddingNormWeight => 2,
            Param::EmbeddingNormBias => 3,
            Param::Block { stack: Stack::Encoder, index, part } => FIRST.len() + index * PARTS + part as usize,
            Param::NormWeight => middle,
            Param::NormBias => middle + 1,
            Param::DecoderEmbedWeight => middle + 2,
            Param::DecoderEmbedBias => middle + 3,
            Param::DecoderPosition => middle + 4,
            Param::Block { stack: Stack::Decoder, index, part } => decoder + index * PARTS + part as usize,
            Param::DecoderNormWeight => last,
            Param::DecoderNormBias => last + 1,
            Param::HeadFcWeight => last + 2,
            Param::HeadFcBias => last + 3,
            Param::HeadNormWeight => last + 4,
            Param::HeadNormBias => last + 5,
            Param::HeadBias => last + 6,
        }
    }

    /// Shape of this weight, linears as `[out, in]`.
    pub const fn shape(self, c: &ModelConfig) -> Shape {
        let (d, dd) = (c.embed_dim, c.decoder_embed_dim);
        match self {
            Param::WordEmbedding => Shape::d2(c.vocab_size, d),
            Param::PositionEmbedding => Shape::d2(c.sequence(), d),
            Param::Block { stack, part, .. } => {
                let d = match stack {
                    Stack::Encoder => d,
                    Stack::Decoder => dd,
                };
                part.shape(d, d * c.mlp_ratio)
            }
            Param::DecoderEmbedWeight => Shape::d2(dd, d),
            Param::DecoderEmbedBias | Param::DecoderNormWeight | Param::DecoderNormBias => Shape::d1(dd),
            Param::DecoderPosition => Shape::d3(1, c.sequence(), dd),
            Param::HeadFcWeight => Shape::d2(d, dd),
            Param::HeadBias => Shape::d3(1, 1, c.vocab_size),
            Param::EmbeddingNormWeight
            | Param::EmbeddingNormBias
            | Param::NormWeight
            | Param::NormBias
            | Param::HeadFcBias
            | Param::HeadNormWeight
            | Param::HeadNormBias => Shape::d1(d),
        }
    }

    /// Whether this is a matrix that quantisation applies to (linears and the word embedding).
    pub const fn is_matrix(self) -> bool {
        match self {
            Param::Block { part, .. } => part.is_matrix(),
            _ => matches!(self, Param::WordEmbedding | Param::DecoderEmbedWeight | Param::HeadFcWeight),
        }
    }

    /// Whether only the decoder uses this weight (an `--encoder_only` pack leaves it out).
    pub const fn is_decoder(self) -> bool {
        match self {
            Param::Block { stack, .. } => matches!(stack, Stack::Decoder),
            Param::WordEmbedding
            | Param::PositionEmbedding
            | Param::EmbeddingNormWeight
            | Param::EmbeddingNormBias
            | Param::NormWeight
            | Param::NormBias => false,
            _ => true,
        }
    }
}

impl fmt::Display for Param {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            Param::WordEmbedding => "token_emb.word_embeddings.weight",
            Param::PositionEmbedding => "token_emb.position_embeddings.weight",
            Param::EmbeddingNormWeight => "token_emb.LayerNorm.weight",
            Param::EmbeddingNormBias => "token_emb.LayerNorm.bias",
            Param::Block { stack, index, part } => {
                let stack = match stack {
                    Stack::Encoder => "blocks",
                    Stack::Decoder => "decoder_blocks",
                };
                return write!(f, "{stack}.{index}.{}", part.name());
            }
            Param::NormWeight => "norm.weight",
            Param::NormBias => "norm.bias",
            Param::DecoderEmbedWeight => "decoder_embed.weight",
            Param::DecoderEmbedBias => "decoder_embed.bias",
            Param::DecoderPosition => "decoder_pos_embed_learned",
            Param::DecoderNormWeight => "decoder_norm.weight",
            Param::DecoderNormBias => "decoder_norm.bias",
            Param::HeadFcWeight => "mlm_layer.fc.weight",
            Param::HeadFcBias => "mlm_layer.fc.bias",
            Param::HeadNormWeight => "mlm_layer.ln.weight",
            Param::HeadNormBias => "mlm_layer.ln.bias",
            Param::HeadBias => "mlm_layer.bias",
        })
    }
}

/// Number of weights of a model.
pub const fn count(config: &ModelConfig) -> usize {
    FIRST.len() + MIDDLE.len() + LAST.len() + (config.depth + config.decoder_depth) * PARTS
}

/// All weights, in schema order.
pub fn params(config: &ModelConfig) -> impl Iterator<Item = Param> + Clone {
    let blocks = |stack, depth| {
        (0..depth).flat_map(move |index| Part::ALL.into_iter().map(move |part| Param::Block { stack, index, part }))
    };
    FIRST
        .into_iter()
        .chain(blocks(Stack::Encoder, config.depth))
        .chain(MIDDLE)
        .chain(blocks(Stack::Decoder, config.decoder_depth))
        .chain(LAST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_and_index_agree() {
        let config = ModelConfig::tiny(8, 512);
        let mut n = 0;
        for (i, param) in params(&config).enumerate() {
            assert_eq!(param.index(&config), i, "{param}");
            n += 1;
        }
        assert_eq!(n, count(&config));
    }

    #[test]
    fn official_parameter_counts() {
        // What the official modules hold: student encoder and decoder of both sizes.
        let total = |c: &ModelConfig, decoder: bool| {
            params(c).filter(|p| p.is_decoder() == decoder).map(|p| p.shape(c).elements()).sum::<usize>()
        };
        let b = ModelConfig::vit_b();
        assert_eq!((total(&b, false), total(&b, true)), (86_810_112, 58_086_633));
        let l = ModelConfig::vit_l();
        assert_eq!((total(&l, false), total(&l, true)), (304_650_240, 103_138_281));
    }
}
