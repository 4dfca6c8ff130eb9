//! Imports official checkpoints: `.pth` or `.safetensors` under the official names.

mod optimizer;
mod pickle;
mod pth;

use std::path::Path;

use burn::backend::{Autodiff, Flex};
use sorcen_runtime::ModelConfig;

use crate::checkpoint::{self, State, TensorFile, WeightSource};
use crate::data::DataError;
use crate::files::PartialDir;
use crate::model::Sorcen;

pub use pth::{History, PthFile};

/// What is not in the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImportOptions {
    /// Encoder heads; `None`: the official ones of widths 768 and 1024.
    pub heads: Option<usize>,
    /// Decoder heads; `None`: the same.
    pub decoder_heads: Option<usize>,
    /// Teacher, pretraining heads and optimiser too, for going on with training; MAGE's files have no teacher.
    pub with_training_state: bool,
}

/// What was imported.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Imported {
    /// Sizes.
    pub config: ModelConfig,
    /// How far the training was, where its state is there.
    pub training: Option<History>,
}

/// Turns the file `from` into a checkpoint folder `out`, which must be new or empty.
///
/// With the training state come the optimiser's moments, where the file has an `optimizer` entry. The state of its
/// gradient scaler is of no use: moments are of unscaled gradients, and nothing here is scaled.
///
/// # Errors
/// [`DataError`] names the file and the first tensor that is missing or of the wrong shape, or the flag
/// that is needed.
pub fn import(from: &Path, out: &Path, options: &ImportOptions) -> Result<Imported, DataError> {
    let mut history = History::default();
    let source: Box<dyn WeightSource> = match from.extension() {
        Some(extension) if extension == "safetensors" => Box::new(TensorFile::open(from)?),
        _ => {
            let file = PthFile::open(from)?;
            if options.with_training_state {
                history = file.history()?;
            }
            Box::new(file)
        }
    };
    let config = config(source.as_ref(), options)?;
    let device = Default::default();
    let partial = PartialDir::create(out).map_err(DataError::io(out))?;
    let has_teacher = source.shape("blocks_momentum.0.norm1.weight").is_some();
    let with_training_state = options.with_training_state && has_teacher;
    if with_training_state {
        let mut run = checkpoint::empty_training::<Autodiff<Flex>>(&config, source.as_ref(), &device)?;
        checkpoint::fill(source.as_ref(), &mut run.networks, "", &device)?;
        checkpoint::fill(source.as_ref(), &mut run.teacher, "", &device)?;
        checkpoint::write_model(partial.path(), &config, &run.networks.student)?;
        checkpoint::fill_moments(source.as_ref(), &mut run)?;
        let History { updates, epochs } = history;
        checkpoint::write_training(partial.path(), &run, &State { step: 0, updates, epochs, seed: 0 })?;
    } else {
        let mut model = Sorcen::<Flex>::new(&config, &device);
        checkpoint::fill(source.as_ref(), &mut model, "", &device)?;
        checkpoint::write_model(partial.path(), &config, &model)?;
    }
    partial.finish().map_err(DataError::io(out))?;
    Ok(Imported { config, training: with_training_state.then_some(history) })
}

/// The sizes that the shapes show.
fn config(source: &dyn WeightSource, options: &ImportOptions) -> Result<ModelConfig, DataError> {
    let matrix = |name: &str| match source.shape(name).as_deref() {
        Some(&[rows, columns]) if columns > 0 => Ok((rows, columns)),
        Some(other) => Err(DataError::invalid(source.path(), name, "a matrix", format_args!("{other:?}"))),
        None => Err(DataError::invalid(source.path(), name, "a tensor", "none of this name")),
    };
    let blocks =
        |stack: &str| (0..).take_while(|i| source.shape(&format!("{stack}.{i}.norm1.weight")).is_some()).count();
    let (vocab_size, embed_dim) = matrix("token_emb.word_embeddings.weight")?;
    let (sequence, _) = matrix("token_emb.position_embeddings.weight")?;
    let (decoder_embed_dim, _) = matrix("decoder_embed.weight")?;
    let (hidden, _) = matrix("blocks.0.mlp.fc1.weight")?;
    let grid = (sequence.saturating_sub(1) as f64).sqrt() as usize;
    if grid * grid + 1 != sequence {
        let item = "token_emb.position_embeddings.weight";
        return Err(DataError::invalid(source.path(), item, "one row more than a square grid has places", sequence));
    }
    // The official vocabularies; any other is taken as compact: codes, class token, mask token.
    let (codebook_size, class_token_id, mask_token_id) = match vocab_size {
        2025 => (1024, 1100, 2024),
        17_030 => (1024, 17_028, 17_029),
        other => (other.saturating_sub(2), other.saturating_sub(2), other.saturating_sub(1)),
    };
    let heads = |flag: &str, given: Option<usize>, official: [usize; 2], width: usize| match (given, width) {
        (Some(heads), _) => Ok(heads),
        (None, 768) => Ok(official[0]),
        (None, 1024) => Ok(official[1]),
        _ => Err(DataError::invalid(
            source.path(),
            "heads",
            format_args!("--{flag}, since shapes do not show it"),
            format_args!("no such flag, and width {width} is not an official one"),
        )),
    };
    let config = ModelConfig {
        grid,
        codebook_size,
        vocab_size,
        class_token_id,
        mask_token_id,
        embed_dim,
        depth: blocks("blocks"),
        num_heads: heads("heads", options.heads, [12, 16], embed_dim)?,
        decoder_embed_dim,
        decoder_depth: blocks("decoder_blocks"),
        decoder_num_heads: heads("decoder_heads", options.decoder_heads, [16, 16], decoder_embed_dim)?,
        mlp_ratio: hidden / embed_dim,
        layer_norm_eps: 1e-6,
    };
    match config.validate() {
        Ok(()) => Ok(config),
        Err(error) => Err(DataError::invalid(source.path(), "sizes", "a valid model", error)),
    }
}
