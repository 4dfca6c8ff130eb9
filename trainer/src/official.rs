//! What checkpoints of the official code hold beside our weights, and how its optimiser numbers them.

use sorcen_runtime::ModelConfig;

use crate::model::weight::decays;

/// Parameters that the official code does not train.
const FROZEN: [&str; 2] = ["pos_embed", "decoder_pos_embed"];

/// Ends of the names of buffers, which are no parameters.
const BUFFERS: [&str; 4] = ["position_ids", "running_mean", "running_var", "num_batches_tracked"];

/// Names, or first parts of names, in the order in which the official model has them.
const ORDER: [&str; 20] = [
    "cls_token",
    "pos_embed",
    "mask_token",
    "decoder_pos_embed",
    "decoder_pos_embed_learned",
    "token_emb",
    "patch_embed",
    "blocks",
    "norm",
    "blocks_momentum",
    "decoder_embed",
    "decoder_blocks",
    "decoder_norm",
    "decoder_pred",
    "mlm_layer.bias",
    "mlm_layer",
    "projector",
    "momentum_projector",
    "predictor",
    "classifier",
];

/// What only pretraining needs, by the first parts of the names.
pub const HEADS: [&str; 4] = ["projector", "momentum_projector", "predictor", "classifier"];

/// The teacher's, the same way; the last two are of a whole one, which the official code has not.
pub const TEACHER: [&str; 3] = ["blocks_momentum", "token_emb_momentum", "norm_momentum"];

/// Pixels of a patch along each side, and of its colours: sizes of layers that nothing uses.
const PATCH: usize = 16;
const COLOURS: usize = 3;

/// Where a tensor stands among those of the official model; later ones of one place keep their order.
pub fn place(name: &str) -> usize {
    let part = name.split('.').next().unwrap_or_default();
    let at = |wanted: &str| ORDER.iter().position(|&known| known == wanted);
    at(name).or_else(|| at(part)).unwrap_or(ORDER.len())
}

/// Parameters of the official model that no loss depends on, with their shapes.
pub fn unused(config: &ModelConfig) -> [(&'static str, Vec<usize>); 8] {
    let (width, decoder_width, sequence) = (config.embed_dim, config.decoder_embed_dim, config.sequence());
    let pixels = COLOURS * PATCH * PATCH;
    [
        ("cls_token", vec![1, 1, width]),
        ("pos_embed", vec![1, sequence, width]),
        ("mask_token", vec![1, 1, decoder_width]),
        ("decoder_pos_embed", vec![1, sequence, decoder_width]),
        ("patch_embed.proj.weight", vec![width, COLOURS, PATCH, PATCH]),
        ("patch_embed.proj.bias", vec![width]),
        ("decoder_pred.weight", vec![pixels, decoder_width]),
        ("decoder_pred.bias", vec![pixels]),
    ]
}

/// Whether `name` is of what is called `part`.
pub fn is_of(name: &str, part: &str) -> bool {
    name.strip_prefix(part).is_some_and(|rest| rest.starts_with('.'))
}

/// Whether the official model has `name`, of its encoder and decoder, and uses it nowhere.
pub fn is_unused(name: &str, config: &ModelConfig) -> bool {
    name == "token_emb.position_ids" || unused(config).iter().any(|(unused, _)| *unused == name)
}

/// The names that the official optimiser's numbers stand for, by group: weights that do not decay, and the rest.
///
/// `tensors` are all of the official model, in its order. Buffers and frozen parameters have no number.
pub fn optimizer_groups<'a>(tensors: impl IntoIterator<Item = (&'a str, &'a [usize])>) -> [Vec<&'a str>; 2] {
    let mut groups = [Vec::new(), Vec::new()];
    for (name, dims) in tensors {
        if !FROZEN.contains(&name) && !BUFFERS.iter().any(|buffer| name.ends_with(buffer)) {
            groups[usize::from(decays(name, dims))].push(name);
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_that_of_an_official_file() {
        use crate::checkpoint::WeightSource as _;
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/official/T/checkpoint.pth");
        let file = crate::import::PthFile::open(path.as_ref()).unwrap();
        let places: Vec<usize> = file.in_order().iter().map(|name| place(name)).collect();
        assert!(places.is_sorted() && places[places.len() - 1] == ORDER.len() - 1, "{places:?}");
        let config = ModelConfig { embed_dim: 64, decoder_embed_dim: 48, ..ModelConfig::vit_b() };
        for (name, dims) in unused(&config) {
            assert_eq!(file.shape(name), Some(dims), "{name}");
        }
    }
}
