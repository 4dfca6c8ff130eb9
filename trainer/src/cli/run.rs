//! `sorcen run`: tensors in, tensors out, by Burn.

use std::path::PathBuf;

use sorcen_export::cli::run::Files;
use sorcen_export::fingerprint::Fingerprint;
use sorcen_export::Engine as _;

use crate::device::{with_backend, Device};
use crate::engine::BurnEngine;
use crate::kernels::Kernels;

/// Run encoder and decoder on tensors from a file, with Burn.
///
/// In: `token_ids` [B, T] (the mask id allowed; no class token), or `final_ids` as `generate` writes it, or `ids` as
/// `tokenizer run` does ([B, h, h]); optionally `drop_mask` of that shape (non-zero: removed before the encoder; the
/// same number in each row). Out: `latent` [B, 1+kept, D], `logits` [B, T, K], and `features` [B, D] where nothing is
/// dropped. The same files as `sorcen-export run`.
///
/// Example: sorcen run --checkpoint trainer/assets/emoji/checkpoint --input ids.safetensors --output out.safetensors
#[derive(clap::Args)]
#[command(rename_all = "snake_case")]
pub struct Args {
    /// Checkpoint folder.
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,
    #[command(flatten)]
    files: Files,
    /// Where to compute: cpu, or cuda or wgpu in a build with that feature.
    #[arg(long, default_value = "cpu")]
    device: Device,
}

/// Runs the verb.
///
/// # Errors
/// Bad files, or tensors that do not fit the model.
pub fn run(args: &Args) -> anyhow::Result<()> {
    with_backend!(args.device, B => run_on::<B>(args))
}

fn run_on<B: Kernels>(args: &Args) -> anyhow::Result<()> {
    let engine = BurnEngine::<B>::open(&args.checkpoint, Default::default())?;
    let codes = Fingerprint::of_checkpoint(&args.checkpoint, engine.config())?;
    args.files.run(&engine, &codes)
}
