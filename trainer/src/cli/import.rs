//! `sorcen import`: official checkpoints.

use std::path::PathBuf;

use crate::import::{import, History, ImportOptions, Imported};

/// Turn an official checkpoint (PyTorch's, or safetensors under the official names) into a checkpoint folder.
///
/// A PyTorch file, of the new format or the older one, is read as data: no code in it is executed. What a file is, its
/// contents tell, not its name. A first part that all names share, such as `module.`, is taken away, and said. Sizes
/// are read from the shapes, or from what `sorcen export`, the way back, wrote into the file.
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
    /// Of several sets of weights in the file, which: an entry, as `model_ema`, or the first part of the names
    /// [default: `model` or `state_dict`, or the file itself].
    #[arg(long, value_name = "NAME")]
    key: Option<String>,
    /// Codes K, where the vocabulary may be the official K + 1001 (codes, 1000 classes, mask token) or a compact
    /// K + 2 [default: 1024 for a vocabulary of 2025; otherwise asked for where both are possible].
    #[arg(long, value_name = "K")]
    codebook_size: Option<usize>,
    /// Encoder heads [default: the file's, else the official 12 or 16, for widths 768 and 1024].
    #[arg(long)]
    heads: Option<usize>,
    /// Decoder heads [default: the file's, else the official 16, for widths 768 and 1024].
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
    let Args { codebook_size, heads, decoder_heads, with_training_state, .. } = *args;
    let options = ImportOptions { key: args.key.clone(), codebook_size, heads, decoder_heads, with_training_state };
    let Imported { config, training, notes } = import(&args.from, &args.out, &options)?;
    notes.iter().for_each(|note| eprintln!("note: {}: {note}", args.from.display()));
    println!(
        "{}: {}+{} blocks, {} wide, {}×{} tokens of {} codes (class token {}, mask token {})",
        args.out.display(),
        config.depth,
        config.decoder_depth,
        config.embed_dim,
        config.grid,
        config.grid,
        config.codebook_size,
        config.class_token_id,
        config.mask_token_id
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
