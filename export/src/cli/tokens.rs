//! `--tokens`, `--images`, `--seed`: the images that a check or a calibration runs on.

use std::path::{Path, PathBuf};

use ndarray::{s, Array2, Ix2};
use sorcen_runtime::ModelConfig;

use crate::{dataset, error::Error, tensors::TensorFile, verify::random_tokens};

/// Which images.
#[derive(clap::Args)]
pub struct TokenArgs {
    /// Images to use: a token dataset (the folder that `sorcen tokenize` writes), or a safetensors file with
    /// `token_ids` [B, T]. Random tokens if not given.
    #[arg(long, value_name = "DIR|FILE")]
    pub tokens: Option<PathBuf>,
    /// Number of images.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    pub images: u32,
    /// Seed of the random tokens.
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub seed: u64,
}

impl TokenArgs {
    /// The images, `[B, T]`.
    ///
    /// # Errors
    /// A file that cannot be read, or without `token_ids` `[B, T]`.
    pub fn read(&self, config: &ModelConfig) -> anyhow::Result<Array2<i64>> {
        match &self.tokens {
            Some(path) => Ok(read_tokens(path, config, self.images as usize)?),
            None => Ok(random_tokens(config, self.images as usize, self.seed)),
        }
    }

    /// The classes of the same images `[B]`, where they come from a token dataset.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn read_labels(&self) -> anyhow::Result<Option<Vec<u16>>> {
        match &self.tokens {
            Some(path) if path.is_dir() => Ok(Some(dataset::read_labels(path, self.images as usize)?)),
            _ => Ok(None),
        }
    }
}

/// At most `images` token maps `[B, T]` from a token dataset (evenly over all of it) or a safetensors file (the first).
pub fn read_tokens(path: &Path, config: &ModelConfig, images: usize) -> Result<Array2<i64>, Error> {
    if path.is_dir() {
        return dataset::read(path, config, images);
    }
    let tokens = TensorFile::open(path)?.ints_as::<Ix2>("token_ids")?;
    let images = tokens.nrows().min(images);
    Ok(tokens.slice_move(s![..images, ..]))
}
