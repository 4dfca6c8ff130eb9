//! Floating-point operations of a training step: 2 per multiply-add, linear layers and attention products only.
//!
//! The official method's, so that speeds of different programs compare: its output layer has a logit for every
//! row of the vocabulary, of which ours computes those of the codes alone.

use sorcen_runtime::ModelConfig;

use crate::step::{HeadSizes, Method};

/// Operations of one training step, for one image.
pub fn training_step(model: &ModelConfig, heads: &HeadSizes, classes: usize, method: Method, kept: usize) -> f64 {
    let block = |tokens: usize, width: usize, hidden: usize| {
        2 * tokens * (4 * width * width + 2 * width * hidden) + 4 * tokens * tokens * width
    };
    let (all, seen) = (model.sequence(), 1 + kept);
    let (wide, narrow) = (model.embed_dim, model.decoder_embed_dim);
    let encoder = |tokens| model.depth * block(tokens, wide, model.hidden_dim());

    let decoder = model.decoder_depth * block(all, narrow, model.decoder_hidden_dim());
    let ends = 2 * seen * wide * narrow + 2 * all * narrow * wide;
    let logits = 2 * all * wide * model.vocab_size;
    let mut trained = encoder(seen) + decoder + ends + logits;
    let mut forward_only = 0;
    if method == Method::Sorcen {
        let projector = 2 * heads.projector_hidden * (wide + heads.projector_dim);
        trained += 2 * projector + 4 * heads.projector_dim * heads.predictor_hidden;
        trained += 2 * heads.classifier_hidden * (wide + classes);
        forward_only = encoder(all);
    }
    // Backward: twice the forward pass; the logits' has no part for the table, which is detached.
    (3 * trained - logits + forward_only) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_official_counts() {
        let heads = |_: &ModelConfig| HeadSizes {
            projector_hidden: 4096,
            projector_dim: 512,
            predictor_hidden: 2048,
            classifier_hidden: 512,
        };
        for (model, method, giga) in [
            (ModelConfig::vit_b(), Method::Sorcen, 208.9), // measured: 208.89
            (ModelConfig::vit_l(), Method::Sorcen, 566.7),
            (ModelConfig::vit_b(), Method::Mage, 162.7),
            (ModelConfig::vit_l(), Method::Mage, 404.9),
        ] {
            let found = training_step(&model, &heads(&model), 1000, method, 128) / 1e9;
            assert!((found - giga).abs() < 0.06, "{method:?} {}: {found}, not {giga}", model.embed_dim);
        }
    }
}
