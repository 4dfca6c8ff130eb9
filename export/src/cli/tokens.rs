//! `--tokens`, `--images`, `--seed`: the images that a check or a calibration runs on.

use std::path::{Path, PathBuf};

use ndarray::{s, Array2};
use sorcen_runtime::ModelConfig;

use super::number;
use crate::{
    checkpoint::Checkpoint,
    dataset,
    engine::check_images,
    error::Error,
    fingerprint::{Fingerprint, Kind},
    ids,
    tensors::TensorFile,
    verify::random_tokens,
};

/// Which images.
#[derive(clap::Args)]
pub struct TokenArgs {
    /// Images to use: a token dataset (the folder that `sorcen tokenize` writes), or a safetensors file with
    /// `token_ids` [B, T] (or `final_ids`, as `generate` writes it, or `ids`, as `tokenizer run` does; [B, h, h] too).
    /// Random tokens if not given.
    #[arg(long, value_name = "DIR|FILE")]
    pub tokens: Option<PathBuf>,
    /// Number of images, 1 to 100000; of a file with fewer, all [default: 8].
    #[arg(long, value_name = "N", value_parser = number::images)]
    images: Option<usize>,
    /// Seed of the random tokens [default: 0].
    #[arg(long, value_name = "S", value_parser = number::seed, conflicts_with = "tokens")]
    seed: Option<u64>,
    /// Take files that say, by their fingerprints, that they were made with another tokenizer: an error without.
    #[arg(long = "allow_other_tokenizer")]
    pub allow_other_tokenizer: bool,
}

impl TokenArgs {
    /// The flags, and whether they were given.
    pub fn given(&self) -> [(&'static str, bool); 3] {
        let Self { tokens, images, seed, .. } = self;
        [("--tokens", tokens.is_some()), ("--images", images.is_some()), ("--seed", seed.is_some())]
    }

    fn images(&self) -> usize {
        self.images.unwrap_or(8)
    }

    /// The images for a checkpoint, `[B, T]`.
    ///
    /// # Errors
    /// A file that cannot be read, without ids, or of another tokenizer than the checkpoint's.
    pub fn read(&self, checkpoint: &Checkpoint) -> anyhow::Result<Array2<i64>> {
        match &self.tokens {
            Some(path) => Ok(read_tokens(path, checkpoint, self.images(), self.allow_other_tokenizer)?),
            None => Ok(random_tokens(&checkpoint.config, self.images(), self.seed.unwrap_or(0))),
        }
    }

    /// The classes of the same images `[B]`, where they come from a token dataset.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn read_labels(&self) -> anyhow::Result<Option<Vec<u16>>> {
        match &self.tokens {
            Some(path) if path.is_dir() => Ok(Some(dataset::read_labels(path, self.images())?)),
            _ => Ok(None),
        }
    }
}

/// At most `images` token maps `[B, T]` from a token dataset (evenly over all of it) or a safetensors file (the first);
/// `allow_other`: of another tokenizer than the checkpoint's, too.
pub fn read_tokens(
    path: &Path,
    checkpoint: &Checkpoint,
    images: usize,
    allow_other: bool,
) -> Result<Array2<i64>, Error> {
    let config = &checkpoint.config;
    let codes = Fingerprint::of_checkpoint(checkpoint.dir(), config)?;
    if path.is_dir() {
        codes.expect(&Fingerprint::of_dataset(path)?, Kind::Tokenizer, allow_other)?;
        return dataset::read(path, config, images);
    }
    let tokens = read_ids(path, config, &codes, allow_other)?;
    let images = tokens.nrows().min(images);
    Ok(tokens.slice_move(s![..images, ..]))
}

/// Whole images `[B, T]` from a file of ids: codes of this model, or the mask id. `codes` is what the model has learned.
pub fn read_ids(
    path: &Path,
    config: &ModelConfig,
    codes: &Fingerprint,
    allow_other: bool,
) -> Result<Array2<i64>, Error> {
    let file = TensorFile::open(path)?;
    codes.expect(&Fingerprint::of_ids(path, &file)?, Kind::Tokenizer, allow_other)?;
    let (name, ids) = ids::read(&file)?;
    check_images(config, ids.view(), &file.item(name))?;
    Ok(ids)
}
