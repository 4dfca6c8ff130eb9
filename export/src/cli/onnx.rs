//! `onnx`: a checkpoint as ONNX files.

use std::path::PathBuf;

use crate::{checkpoint::Checkpoint, onnx};

/// Write a checkpoint as encoder.onnx and decoder.onnx.
///
/// Opset 17, batch size and number of kept tokens free. The encoder takes `token_ids` and `positions`
/// (int64 [B, N], no class token) and gives `latent` [B, N+1, D] and `features` [B, D]; the decoder takes
/// `latent` and `source` (int64 [B, T]: the row of `latent` at each place, 0 where dropped or masked) and
/// gives `logits` [B, T, K].
#[derive(clap::Args)]
pub struct Args {
    /// Checkpoint folder (config.json, model.safetensors).
    #[arg(long, value_name = "DIR")]
    pub checkpoint: PathBuf,
    /// Folder for the two files; made if missing.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Terms to note in the files' metadata: those of the weights.
    #[arg(long, value_name = "TEXT", default_value = "unspecified")]
    pub licence: String,
}

/// Runs the verb.
///
/// # Errors
/// A bad checkpoint, or a folder that cannot be written.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let checkpoint = Checkpoint::open(&args.checkpoint)?;
    for path in onnx::export(&checkpoint, &args.out, &args.licence)? {
        println!("{}: {} bytes", path.display(), std::fs::metadata(&path)?.len());
    }
    Ok(())
}
