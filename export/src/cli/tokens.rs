//! `--tokens`, `--images`, `--seed`: the images that a check or a calibration runs on.

use std::path::PathBuf;

use ndarray::{s, Array2, Ix2};
use sorcen_runtime::ModelConfig;

use crate::{tensors::TensorFile, verify::random_tokens};

/// Which images.
#[derive(clap::Args)]
pub struct TokenArgs {
    /// Images to use: `token_ids` [B, T] in a safetensors file. Random tokens if not given.
    #[arg(long, value_name = "FILE")]
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
        let Some(path) = &self.tokens else {
            return Ok(random_tokens(config, self.images as usize, self.seed));
        };
        let tokens = TensorFile::open(path)?.ints("token_ids", 2)?.into_dimensionality::<Ix2>()?;
        let images = tokens.nrows().min(self.images as usize);
        Ok(tokens.slice_move(s![..images, ..]))
    }
}
