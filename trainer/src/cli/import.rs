//! `sorcen import`: official checkpoints.

use std::path::PathBuf;

use crate::checkpoint::TRAINING_STATE;
use crate::import::{import, ImportOptions};

/// Turn an official checkpoint (.pth, or .safetensors under the official names) into a checkpoint folder.
///
/// A .pth is read as data: no code in it is executed. Sizes are read from the shapes.
#[derive(clap::Args)]
#[command(rename_all = "snake_case")]
pub struct Args {
    /// The file.
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// Checkpoint folder to make; new or empty.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Encoder heads [default: the official 12 or 16, for widths 768 and 1024].
    #[arg(long)]
    heads: Option<usize>,
    /// Decoder heads [default: the official 16, for widths 768 and 1024].
    #[arg(long)]
    decoder_heads: Option<usize>,
    /// Import teacher, projectors and classifier too, where the file has a teacher (MAGE's have none).
    #[arg(long)]
    with_training_state: bool,
}

/// Runs the verb.
///
/// # Errors
/// A file that cannot be read, or lacks a tensor.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let Args { heads, decoder_heads, with_training_state, .. } = *args;
    let config = import(&args.from, &args.out, &ImportOptions { heads, decoder_heads, with_training_state })?;
    println!(
        "{}: {}+{} blocks, {} wide, {}×{} tokens of {} codes",
        args.out.display(),
        config.depth,
        config.decoder_depth,
        config.embed_dim,
        config.grid,
        config.grid,
        config.codebook_size
    );
    if with_training_state && !args.out.join(TRAINING_STATE).exists() {
        println!("no training_state: the file has no teacher (blocks_momentum.*), as MAGE's");
    }
    Ok(())
}
