//! `--tokens`, `--images`, `--seed`: the images that a check or a calibration runs on.

use std::path::{Path, PathBuf};

use ndarray::{s, Array2, Ix2};
use sorcen_runtime::ModelConfig;

use super::number;
use crate::{dataset, engine::check_images, error::Error, tensors::TensorFile, verify::random_tokens};

/// Which images.
#[derive(clap::Args)]
pub struct TokenArgs {
    /// Images to use: a token dataset (the folder that `sorcen tokenize` writes), or a safetensors file with
    /// `token_ids` [B, T]. Random tokens if not given.
    #[arg(long, value_name = "DIR|FILE")]
    pub tokens: Option<PathBuf>,
    /// Number of images, 1 to 100000; of a file with fewer, all [default: 8].
    #[arg(long, value_name = "N", value_parser = number::images)]
    images: Option<usize>,
    /// Seed of the random tokens [default: 0].
    #[arg(long, value_name = "S", value_parser = number::seed, conflicts_with = "tokens")]
    seed: Option<u64>,
}

impl TokenArgs {
    /// The flags, and whether they were given.
    pub fn given(&self) -> [(&'static str, bool); 3] {
        let Self { tokens, images, seed } = self;
        [("--tokens", tokens.is_some()), ("--images", images.is_some()), ("--seed", seed.is_some())]
    }

    fn images(&self) -> usize {
        self.images.unwrap_or(8)
    }

    /// The images, `[B, T]`.
    ///
    /// # Errors
    /// A file that cannot be read, or without `token_ids` `[B, T]`.
    pub fn read(&self, config: &ModelConfig) -> anyhow::Result<Array2<i64>> {
        match &self.tokens {
            Some(path) => Ok(read_tokens(path, config, self.images())?),
            None => Ok(random_tokens(config, self.images(), self.seed.unwrap_or(0))),
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

/// At most `images` token maps `[B, T]` from a token dataset (evenly over all of it) or a safetensors file (the first).
pub fn read_tokens(path: &Path, config: &ModelConfig, images: usize) -> Result<Array2<i64>, Error> {
    if path.is_dir() {
        return dataset::read(path, config, images);
    }
    let tokens = read_ids(&TensorFile::open(path)?, "token_ids", config)?;
    let images = tokens.nrows().min(images);
    Ok(tokens.slice_move(s![..images, ..]))
}

/// Whole images `[B, T]` of this model from a file's tensor: codes, or the mask id.
pub fn read_ids(file: &TensorFile, name: &str, config: &ModelConfig) -> Result<Array2<i64>, Error> {
    let ids = file.ints_as::<Ix2>(name)?;
    check_images(config, ids.view(), &file.item(name))?;
    Ok(ids)
}
