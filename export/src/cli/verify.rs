//! `verify`: artefacts against the float reference.

use std::{path::PathBuf, sync::Arc};

use ndarray::{s, Ix2};

use crate::{
    atomic,
    checkpoint::Checkpoint,
    tensors::TensorFile,
    verify::{random_tokens, verify, VerifyInputs},
};

/// Hold artefacts against the float reference: one table, exit code 1 if any number is out of tolerance.
///
/// Each image goes through the reference and through each artefact, whole (features, latent) and with half
/// of its tokens dropped and a tenth masked (latent, logits).
#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("artefacts").args(["onnx", "pack"]).required(true).multiple(true))]
pub struct Args {
    /// The checkpoint that the artefacts were made from.
    #[arg(long, value_name = "DIR")]
    pub checkpoint: PathBuf,
    /// Folder with encoder.onnx and decoder.onnx, to be run in tract.
    #[arg(long, value_name = "DIR")]
    pub onnx: Option<PathBuf>,
    /// A pack; give it again for more.
    #[arg(long, value_name = "FILE")]
    pub pack: Vec<PathBuf>,
    /// Images to use: `token_ids` [B, T] in a safetensors file. Random tokens if not given.
    #[arg(long, value_name = "FILE")]
    pub tokens: Option<PathBuf>,
    /// Number of images.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    pub images: u32,
    /// Seed of the random tokens.
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub seed: u64,
    /// Print JSON in place of the table.
    #[arg(long)]
    pub json: bool,
    /// Also write the table (.md) or the JSON (.json) to a file.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// Runs the verb.
///
/// # Errors
/// Bad files, or numbers out of tolerance.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let checkpoint = Arc::new(Checkpoint::open(&args.checkpoint)?);
    let tokens = match &args.tokens {
        Some(path) => {
            let tokens = TensorFile::open(path)?.ints("token_ids", 2)?.into_dimensionality::<Ix2>()?;
            let images = tokens.nrows().min(args.images as usize);
            tokens.slice_move(s![..images, ..])
        }
        None => random_tokens(&checkpoint.config, args.images as usize, args.seed),
    };
    let inputs = VerifyInputs { checkpoint, onnx: args.onnx.clone(), packs: args.pack.clone(), tokens };
    let report = verify(&inputs)?;
    if let Some(path) = &args.out {
        let json = path.extension().is_some_and(|extension| extension == "json");
        let text = if json { report.to_json() } else { report.to_markdown() };
        atomic::write_bytes(path, text.as_bytes())?;
    }
    println!("{}", if args.json { report.to_json() } else { report.to_markdown() });
    let failed = report.comparisons.iter().filter(|comparison| !comparison.passed).count();
    anyhow::ensure!(failed == 0, "{failed} of {} comparisons are out of tolerance", report.comparisons.len());
    Ok(())
}
