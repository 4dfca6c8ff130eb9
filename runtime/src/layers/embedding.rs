//! Token embedding.

use super::norm::Norm;
use crate::{pack::Pack, schema::Param};

/// `LN(word[id] + position[place])` into `out` `[D]`; `place` 0 is the class token's.
#[inline(always)]
pub(crate) fn embed(pack: &Pack<'_>, id: usize, place: usize, out: &mut [f32]) {
    let config = pack.config();
    pack.matrix(Param::WordEmbedding).row_into(pack.word_row(id), out);
    let position = pack.vector(Param::PositionEmbedding);
    position.onto(place * config.embed_dim, out, |out, p| *out += p);
    let norm = Norm {
        weight: pack.vector(Param::EmbeddingNormWeight),
        bias: pack.vector(Param::EmbeddingNormBias),
        eps: config.layer_norm_eps,
    };
    norm.apply_in_place(out);
}
