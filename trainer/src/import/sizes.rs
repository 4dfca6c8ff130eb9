//! The sizes of a model, from the shapes of its weights and what else a file says.

use sorcen_runtime::{schema, ModelConfig};

use super::state::few;
use super::{ImportOptions, SIZES};
use crate::checkpoint::WeightSource;
use crate::data::DataError;
use crate::difference::first_difference;

/// The official vocabulary: K codes, 1000 classes, the mask token.
const CLASSES: usize = 1000;
/// The official model's one class token, among the classes.
const CLASS_TOKEN: usize = 76;
/// The official vocabulary of 1024 codes.
const OFFICIAL_VOCABULARY: usize = 2025;

/// The sizes that the shapes show, that the file states (`stated`), or that are given; all tensors of the model are
/// there in these sizes.
///
/// # Errors
/// [`DataError`] names the tensor that is missing or of another shape, or the flag that is needed.
pub fn config(
    source: &dyn WeightSource,
    stated: Option<&ModelConfig>,
    options: &ImportOptions,
) -> Result<ModelConfig, DataError> {
    let invalid =
        |item: &str, expected: String, found: String| DataError::invalid(source.path(), item, expected, found);
    let matrix = |name: &str| match source.shape(name).as_deref() {
        Some(&[rows, columns]) if rows > 0 && columns > 0 => Ok((rows, columns)),
        Some(other) => Err(invalid(name, "a matrix".into(), format!("{other:?}"))),
        None => Err(invalid(name, "a tensor".into(), format!("{} among {}", source.absent(name), listing(source)))),
    };
    let blocks =
        |stack: &str| (0..).take_while(|i| source.shape(&format!("{stack}.{i}.norm1.weight")).is_some()).count();
    let (vocab_size, embed_dim) = matrix("token_emb.word_embeddings.weight")?;
    refuse_lease(source)?;
    let (sequence, _) = matrix("token_emb.position_embeddings.weight")?;
    let (decoder_embed_dim, _) = matrix("decoder_embed.weight")?;
    let (hidden, _) = matrix("blocks.0.mlp.fc1.weight")?;
    let grid = (sequence - 1).isqrt();
    if grid * grid + 1 != sequence {
        let item = "token_emb.position_embeddings.weight";
        return Err(invalid(item, "one row more than a square grid has places".into(), sequence.to_string()));
    }
    // What a file states, a flag may repeat, but not change.
    let one_of = |flag: &str, given: Option<usize>, stated: Option<usize>| match (given, stated) {
        (Some(given), Some(stated)) if given != stated => {
            Err(invalid(flag, format!("{stated}, as the file states"), format!("--{flag} {given}")))
        }
        (given, stated) => Ok(given.or(stated)),
    };
    let codebook_size = one_of("codebook_size", options.codebook_size, stated.map(|config| config.codebook_size))?;
    let (codebook_size, class_token_id, mask_token_id) = match stated {
        Some(stated) => (stated.codebook_size, stated.class_token_id, stated.mask_token_id),
        None => vocabulary(vocab_size, codebook_size)
            .map_err(|(expected, found)| invalid("codebook_size", expected, found))?,
    };
    let heads = one_of("heads", options.heads, stated.map(|config| config.num_heads))?;
    let decoder_heads = one_of("decoder_heads", options.decoder_heads, stated.map(|config| config.decoder_num_heads))?;
    let official = |heads: Option<usize>, of: [usize; 2], width: usize| match (heads, width) {
        (Some(heads), _) => Some(heads),
        (None, 768) => Some(of[0]),
        (None, 1024) => Some(of[1]),
        _ => None,
    };
    let heads = [official(heads, [12, 16], embed_dim), official(decoder_heads, [16, 16], decoder_embed_dim)];
    let [Some(num_heads), Some(decoder_num_heads)] = heads else {
        let flags = ["--heads", "--decoder_heads"].into_iter().zip(heads);
        let missing: Vec<&str> = flags.filter(|(_, heads)| heads.is_none()).map(|(flag, _)| flag).collect();
        let expected = format!("{}, since shapes do not show them", missing.join(" and "));
        let found = format!("widths of {embed_dim} and {decoder_embed_dim}; only 768 and 1024 are official ones");
        return Err(invalid("heads", expected, found));
    };
    let config = ModelConfig {
        grid,
        codebook_size,
        vocab_size,
        class_token_id,
        mask_token_id,
        embed_dim,
        depth: blocks("blocks"),
        num_heads,
        decoder_embed_dim,
        decoder_depth: blocks("decoder_blocks"),
        decoder_num_heads,
        mlp_ratio: hidden / embed_dim,
        layer_norm_eps: stated.map_or(1e-6, |config| config.layer_norm_eps),
    };
    if let Some((field, shown, stated)) = stated.and_then(|stated| first_difference(&config, stated)) {
        return Err(invalid(&format!("{SIZES}.{field}"), format!("{shown}, as the tensors show"), stated));
    }
    config.validate().map_err(|error| invalid("sizes", "a valid model".into(), error.to_string()))?;
    // Before anything of these sizes is made.
    for param in schema::params(&config) {
        let (name, shape) = (param.to_string(), param.shape(&config));
        match source.shape(&name) {
            None => return Err(invalid(&name, format!("a tensor {:?}", shape.dims()), source.absent(&name))),
            Some(found) if found != shape.dims() => {
                return Err(invalid(&name, format!("shape {:?}", shape.dims()), format!("{found:?}")))
            }
            Some(_) => {}
        }
    }
    Ok(config)
}

/// Codes, class token and mask token of a vocabulary; `Err`: what is expected and found.
///
/// The official code's has K + 1001 entries: the codes, 1000 classes of which it uses one, the mask token. Ours has
/// K + 2. Only the official size of 1024 codes, and those too small to be official, are told apart by the size alone.
fn vocabulary(size: usize, codebook_size: Option<usize>) -> Result<(usize, usize, usize), (String, String)> {
    let official = size.checked_sub(CLASSES + 1).filter(|&codes| codes >= 2);
    let compact = size.saturating_sub(2);
    let codes = match (codebook_size, official) {
        (Some(codes), _) => codes,
        (None, Some(codes)) if size == OFFICIAL_VOCABULARY => codes,
        (None, None) => compact,
        (None, Some(official)) => {
            let expected = format!(
                "--codebook_size {official} (the official code's vocabulary: codes, 1000 classes, mask token) or \
                 {compact} (codes, class token, mask token), since a vocabulary of {size} may be either"
            );
            return Err((expected, "neither".into()));
        }
    };
    match codes {
        _ if Some(codes) == official => Ok((codes, codes + CLASS_TOKEN, codes + CLASSES)),
        _ if codes == compact => Ok((codes, codes, codes + 1)),
        _ => {
            let official = official.map_or(String::new(), |codes| format!("{codes} or "));
            Err((format!("{official}{compact}, for a vocabulary of {size}"), codes.to_string()))
        }
    }
}

/// LEASE's model adds positions and semantic codes: its weights mean something else in this one.
fn refuse_lease(source: &dyn WeightSource) -> Result<(), DataError> {
    let lease = ["proj_to_dino.0.weight", "dec_to_dino.weight", "dino_codebook", "pos2d"];
    match lease.into_iter().find(|name| source.shape(name).is_some()) {
        Some(name) => Err(DataError::invalid(source.path(), name, "a Sorcen or MAGE model", "a LEASE model's tensor")),
        None => Ok(()),
    }
}

/// How many tensors a file has, and a few of their names and shapes.
fn listing(source: &dyn WeightSource) -> String {
    let names = source.names();
    let count = names.len();
    let tensor = |name: String| format!("{name} {:?}", source.shape(&name).unwrap_or_default());
    format!("{count} tensors: {}", few(names.into_iter().map(tensor)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The official rule: vocabulary K + 1001, class token K + 76, mask token K + 1000; K is 1024.
    #[test]
    fn vocabularies() {
        assert_eq!(vocabulary(2025, None), Ok((1024, 1100, 2024)));
        assert_eq!(vocabulary(1513, Some(512)), Ok((512, 588, 1512)));
        assert_eq!(vocabulary(1513, Some(1511)), Ok((1511, 1511, 1512)));
        assert_eq!(vocabulary(514, None), Ok((512, 512, 513)));
        assert_eq!(vocabulary(1002, None), Ok((1000, 1000, 1001)));
        assert_eq!(vocabulary(17_030, Some(16_029)), Ok((16_029, 16_105, 17_029)));
        for ambiguous in [1003, 1026, 1513, 2024, 2026, 17_030] {
            let (expected, _) = vocabulary(ambiguous, None).unwrap_err();
            let [official, compact] = [ambiguous - 1001, ambiguous - 2].map(|codes| codes.to_string());
            assert!(expected.contains(&official) && expected.contains(&compact), "{ambiguous}: {expected}");
        }
        let (expected, found) = vocabulary(1513, Some(1024)).unwrap_err();
        assert!(expected.contains("512 or 1511") && found == "1024", "{expected}");
    }
}
