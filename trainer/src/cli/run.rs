//! `sorcen run`: tensors in, tensors out, by Burn.

use std::path::PathBuf;

use ndarray::Ix2;
use sorcen_export::engine;
use sorcen_export::tensors::{TensorFile, TensorWriter};

use crate::device::{with_backend, Device};
use crate::engine::BurnEngine;

/// Run encoder and decoder on tensors from a file, with Burn.
///
/// In: `token_ids` [B, T] (the mask id allowed; no class token), optionally `drop_mask` [B, T] (non-zero:
/// removed before the encoder; the same number in each row). Out: `latent` [B, 1+kept, D], `logits`
/// [B, T, K], and `features` [B, D] where nothing is dropped. The same files as `sorcen-export run`.
#[derive(clap::Args)]
#[command(rename_all = "snake_case")]
pub struct Args {
    /// Checkpoint folder.
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,
    /// Input tensors (safetensors).
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Output tensors (safetensors).
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Where to compute.
    #[arg(long, value_enum, default_value = "cpu")]
    device: Device,
}

/// Runs the verb.
///
/// # Errors
/// Bad files, or tensors that do not fit the model.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let file = TensorFile::open(&args.input)?;
    let ids = file.ints("token_ids", 2)?.into_dimensionality::<Ix2>()?;
    let dropped = match file.has("drop_mask") {
        true => Some(file.numbers("drop_mask", 2)?.into_dimensionality::<Ix2>()?.mapv(|value| value != 0.0)),
        false => None,
    };
    let dropped = dropped.as_ref().map(|mask| mask.view());
    let outputs = with_backend!(args.device, B => {
        let engine = BurnEngine::<B>::open(&args.checkpoint, Default::default())?;
        engine::run(&engine, ids.view(), dropped)?
    });
    let mut out = TensorWriter::default();
    out.floats("latent", outputs.latent.view());
    out.floats("logits", outputs.logits.view());
    if let Some(features) = &outputs.features {
        out.floats("features", features.view());
    }
    out.write(&args.output)?;
    println!("{}: {} images by burn", args.output.display(), ids.nrows());
    Ok(())
}
