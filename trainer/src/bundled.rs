//! What comes with the binary: emoji as token datasets, their tokenizer, and a trained model.
//!
//! The files are in `trainer/assets/emoji/` (with their README, which says how each was made) and
//! inside the binary, so that `quickstart` and `demo` need nothing else.

use std::path::Path;

use anyhow::Context;
use include_dir::{include_dir, Dir};
use sorcen_export::atomic;

static EMOJI: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/assets/emoji");

/// Training images.
pub const TRAIN: &str = "train";
/// Held-back images for tuning.
pub const VAL: &str = "val";
/// Held-back images for the last look.
pub const TEST: &str = "test";
/// The patch codebook.
pub const TOKENIZER: &str = "tokenizer.safetensors";
/// The trained model as a checkpoint folder.
pub const CHECKPOINT: &str = "checkpoint";
/// The trained model as an int8 pack, tokenizer included.
pub const PACK: &str = "demo.srcn";

/// Writes the bundled files into a folder.
///
/// # Errors
/// Where the folder cannot be written.
pub fn unpack(dir: &Path) -> anyhow::Result<()> {
    write(&EMOJI, dir).with_context(|| format!("{}: cannot write the bundled files", dir.display()))
}

fn write(from: &Dir, to: &Path) -> Result<(), sorcen_export::Error> {
    from.files().try_for_each(|file| atomic::write_bytes(&to.join(file.path()), file.contents()))?;
    from.dirs().try_for_each(|folder| write(folder, to)) // paths are below the root's
}
