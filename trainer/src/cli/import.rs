//! `sorcen import`: official checkpoints.

use std::path::PathBuf;

use crate::import::{import, History, ImportOptions, Imported};

/// Turn an official checkpoint (.pth, or .safetensors under the official names) into a checkpoint folder.
///
/// A .pth, of PyTorch's new format or the older one, is read as data: no code in it is executed. Sizes are read from
/// the shapes. `sorcen export` is the way back.
///
/// Example: sorcen import --from sorcen_vit_b.pth --out vit_b --with_training_state
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
    /// Import teacher, projectors, classifier and optimiser too, where the file has them (MAGE's have no teacher):
    /// for `sorcen step`, and `sorcen pretrain --init OUT --start_epoch E`.
    #[arg(long)]
    with_training_state: bool,
}

/// Runs the verb.
///
/// # Errors
/// A file that cannot be read, or lacks a tensor.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let Args { heads, decoder_heads, with_training_state, .. } = *args;
    let options = ImportOptions { heads, decoder_heads, with_training_state };
    let Imported { config, training } = import(&args.from, &args.out, &options)?;
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
    match training {
        None if with_training_state => {
            println!("no training_state: the file has no teacher (blocks_momentum.*), as MAGE's")
        }
        None => {}
        Some(History { updates: 0, .. }) => println!("training_state: the file has no optimiser, which starts fresh"),
        Some(History { updates, epochs }) => println!("training_state: {updates} updates, {epochs} epochs done"),
    }
    Ok(())
}
