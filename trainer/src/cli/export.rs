//! `sorcen export`: checkpoints for the official code.

use std::path::PathBuf;

use crate::export::{export, Exported};

/// Turn a checkpoint folder into the official code's .pth.
///
/// The file has all that the official model has, under its names, in its order; what nothing there uses (cls_token,
/// mask_token, pos_embed, decoder_pos_embed, patch_embed, decoder_pred) is zeros. Where the checkpoint has a
/// training_state, teacher, heads, optimizer, epoch and scaler are in the file, so that the official pretraining goes
/// on from it; else it holds encoder and decoder, which its probing and generation load. `torch.load(FILE,
/// weights_only=True)` reads it. `sorcen import` is the way back; for it, the entry `config` has the fields of
/// config.json. (model.safetensors of a checkpoint has the official names already.)
///
/// Example: sorcen export --checkpoint run/checkpoint --out sorcen.pth
#[derive(clap::Args)]
#[command(rename_all = "snake_case")]
pub struct Args {
    /// Checkpoint folder.
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,
    /// The file to write, replaced as a whole.
    #[arg(long, value_name = "FILE.pth")]
    out: PathBuf,
}

/// Runs the verb.
///
/// # Errors
/// A damaged checkpoint, or a file that cannot be written.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let Exported { tensors, with_training_state, left_out, note } = export(&args.checkpoint, &args.out)?;
    if left_out > 0 {
        eprintln!(
            "note: left out: {left_out} tensors of the teacher's own embedding and norm, unknown to the official code"
        );
    }
    if let Some(note) = note {
        eprintln!("note: {note}");
    }
    let with = if with_training_state { "with" } else { "without" };
    println!("{}: {tensors} tensors, {with} the state of training", args.out.display());
    Ok(())
}
