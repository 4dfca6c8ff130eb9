//! Token embedding.

use super::norm::layer_norm;
use crate::{pack::Pack, schema::Param};

/// `LN(word[id] + position[place])` into `out` `[D]`; `place` 0 is the class token's.
pub(crate) fn embed(pack: &Pack<'_>, id: usize, place: usize, out: &mut [f32]) {
    let config = pack.config();
    pack.matrix(Param::WordEmbedding).row_into(id, out);
    let position = pack.vector(Param::PositionEmbedding);
    for (out, p) in out.iter_mut().zip(position.iter_from(place * config.embed_dim)) {
        *out += p;
    }
    let (weight, bias) = (pack.vector(Param::EmbeddingNormWeight), pack.vector(Param::EmbeddingNormBias));
    layer_norm(out, weight, bias, config.layer_norm_eps);
}
