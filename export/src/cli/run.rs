//! `run`: tensors in, tensors out.

use std::path::PathBuf;

use super::source::Source;
use crate::{
    engine::{Engine, Kept},
    tensors::{TensorFile, TensorWriter},
};

/// Run encoder and decoder on tensors from a file, with any engine
///
///   in   `token_ids` [B, T] (the mask id allowed; no class token), optionally
///        `drop_mask` [B, T] (non-zero: removed before the encoder; the same
///        number in each row, not all)
///   out  `latent` [B, 1+kept, D], `logits` [B, T, K] (unless the pack is
///        encoder-only), `features` [B, D] where nothing is dropped
///
/// Example:
///
///   sorcen-export run --pack model.srcn --input ids.safetensors \
///     --output out.safetensors
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    files: Files,
}

/// Tensors in, tensors out.
#[derive(clap::Args)]
pub struct Files {
    /// Input tensors (safetensors).
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Output tensors (safetensors).
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

/// Runs the verb.
///
/// # Errors
/// Bad files, or tensors that do not fit the model.
pub fn run(args: &Args) -> anyhow::Result<()> {
    args.source.with(|opened| args.files.run(opened.engine()))
}

impl Files {
    /// Runs the input through an engine (the trainer's `sorcen run` hands Burn's in).
    ///
    /// # Errors
    /// Bad files, or tensors that do not fit the model.
    pub fn run(&self, engine: &dyn Engine) -> anyhow::Result<()> {
        let file = TensorFile::open(&self.input)?;
        let kept = Kept::read(&file, engine.config())?;
        let encoded = engine.encode(kept.ids.view(), kept.positions.view())?;
        let mut out = TensorWriter::default();
        if engine.has_decoder() {
            let logits = engine.decode(encoded.latent.view(), kept.source.view())?;
            out.floats("logits", logits.view());
        }
        if kept.is_whole() {
            out.floats("features", encoded.features.view());
        }
        out.floats("latent", encoded.latent.view());
        out.write(&self.output)?;
        println!("{}: {} images by {}", self.output.display(), kept.ids.nrows(), engine.name());
        Ok(())
    }
}
