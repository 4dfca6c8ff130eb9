//! `run`: tensors in, tensors out.

use std::path::PathBuf;

use super::source::Source;
use crate::{
    atomic::Pending,
    engine::{Engine, Kept},
    fingerprint::{Fingerprint, Kind},
    tensors::{TensorFile, TensorWriter},
};

/// Run encoder and decoder on tensors from a file, with any engine
///
///   in   `token_ids` [B, T] (the mask id allowed; no class token), or
///        `final_ids` as `generate` writes it, or `ids` as `tokenizer run`
///        does ([B, h, h]); optionally `drop_mask` of that shape (non-zero:
///        removed before the encoder; the same number in each row, not all)
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
    /// Take ids that say, by a fingerprint, that they are another tokenizer's than the model's: an error without.
    #[arg(long = "allow_other_tokenizer")]
    allow_other_tokenizer: bool,
}

/// Runs the verb.
///
/// # Errors
/// Bad files, or tensors that do not fit the model.
pub fn run(args: &Args) -> anyhow::Result<()> {
    args.source.with(|opened| args.files.run(opened.engine(), &opened.codes))
}

impl Files {
    /// Runs the input through an engine (the trainer's `sorcen run` hands Burn's in), whose model has learned `codes`.
    ///
    /// # Errors
    /// Bad files, or tensors that do not fit the model.
    pub fn run(&self, engine: &dyn Engine, codes: &Fingerprint) -> anyhow::Result<()> {
        let file = TensorFile::open(&self.input)?;
        let kept = Kept::read(&file, engine.config())?;
        codes.expect(&Fingerprint::of_ids(&self.input, &file)?, Kind::Tokenizer, self.allow_other_tokenizer)?;
        let output = Pending::create(&self.output)?; // before the work
        output.expect_room(kept.output_bytes(engine.config(), engine.has_decoder()))?;
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
        out.write_into(output)?;
        println!("{}: {} images by {}", self.output.display(), kept.ids.nrows(), engine.name());
        Ok(())
    }
}
