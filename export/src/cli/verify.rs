//! `verify`: artefacts against the float reference.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};

use super::tokens::TokenArgs;
use crate::{
    atomic,
    checkpoint::Checkpoint,
    onnxruntime::Python,
    tokenizer::AnyTokenizer,
    verify::{verify, Dump, VerifyInputs},
};

/// Hold artefacts against the float reference (exit code 1 if out of tolerance)
///
/// Each image goes through the reference and through each artefact, whole
/// (features, latent), with half of its tokens dropped and a tenth masked
/// (latent, logits), and masked as at the steps of generation (step). A
/// direction and a size have to agree: cosines, and the length of the difference
/// over the length of the reference, of all and of each row (`row most`).
///
/// An artefact of another checkpoint fails, whatever its numbers.
///
/// Example:
///
///   sorcen verify --checkpoint run/checkpoint --onnx onnx --pack model.srcn \
///     --tokenizer tokenizer.safetensors --tokens data/val --images 100
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
#[command(group = clap::ArgGroup::new("artefacts").args(["onnx", "pack", "burn"]).required(true).multiple(true))]
pub struct Args {
    /// The checkpoint that the artefacts were made from.
    #[arg(long, value_name = "DIR")]
    pub checkpoint: PathBuf,
    /// Folder with encoder.onnx, decoder.onnx and step.onnx, to be run in tract and, where it is installed, in
    /// onnxruntime; give it again for more.
    #[arg(long, value_name = "DIR")]
    pub onnx: Vec<PathBuf>,
    /// Python interpreter that has numpy and onnxruntime [default: python3, if it has them].
    #[arg(long, value_name = "FILE")]
    pub python: Option<PathBuf>,
    /// A pack; give it again for more.
    #[arg(long, value_name = "FILE")]
    pub pack: Vec<PathBuf>,
    /// The tokenizer that those in packs and ONNX folders have to be: ids of images and images of ids are compared
    /// (tokenizer.safetensors of `sorcen tokenizer train`: patches, or a ViT).
    #[arg(long, value_name = "FILE|DIR")]
    pub tokenizer: Option<PathBuf>,
    /// Let an artefact of another checkpoint pass, with a note, if its numbers do.
    #[arg(long = "allow_other_checkpoint")]
    pub allow_other_checkpoint: bool,
    /// What Burn computed from --tokens: the output of `sorcen run --input TOKENS --output FILE`.
    #[arg(long, value_name = "FILE", requires = "tokens")]
    pub burn: Option<PathBuf>,
    #[command(flatten)]
    tokens: TokenArgs,
    /// Also show, for packs, how far each of the encoder's blocks is from the reference's: where an error begins.
    #[arg(long, requires = "pack")]
    pub layers: bool,
    /// Print JSON in place of the table.
    #[arg(long)]
    pub json: bool,
    /// Also write the table (.md) or the JSON (.json) to a file.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// Numbers that all logits of a check may have, which there are twice: 4 GB of f32, of the reference and of an artefact
/// each.
const MAX_LOGITS: usize = 1 << 30;

/// Shows on a terminal what is going on, and for how long.
fn spinner() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed} in all)") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// Runs the verb.
///
/// # Errors
/// Bad files, numbers out of tolerance, or an artefact of another checkpoint.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let checkpoint = Arc::new(Checkpoint::open(&args.checkpoint)?);
    let tokens = args.tokens.read(&checkpoint)?;
    let config = &checkpoint.config;
    let most = MAX_LOGITS / (2 * config.tokens() * config.codebook_size);
    anyhow::ensure!(
        tokens.nrows() <= most,
        "--images: expected at most {most} of this model, found {}",
        tokens.nrows()
    );
    let mut inputs = VerifyInputs::new(checkpoint, tokens);
    inputs.labels = args.tokens.read_labels()?;
    inputs.onnx = args.onnx.clone();
    inputs.packs = args.pack.clone();
    inputs.tokenizer = args.tokenizer.as_deref().map(AnyTokenizer::open).transpose()?;
    inputs.allow_other_checkpoint = args.allow_other_checkpoint;
    inputs.layers = args.layers;
    inputs.python = match &args.python {
        Some(interpreter) => Some(Python::new(interpreter)?),
        None if args.onnx.is_empty() => None,
        None => Python::new(Path::new("python3")).ok(), // it need not be installed; the report says so
    };
    if let (Some(inputs_file), Some(outputs)) = (&args.tokens.tokens, &args.burn) {
        inputs.dump = Some(Dump { name: "Burn".into(), inputs: inputs_file.clone(), outputs: outputs.clone() });
    }
    let bar = spinner();
    let shown = bar.clone();
    inputs.progress = Box::new(move |what| shown.set_message(what.to_owned()));
    let report = verify(&inputs)?;
    bar.finish_and_clear();
    if let Some(path) = &args.out {
        let json = path.extension().is_some_and(|extension| extension == "json");
        let text = if json { report.to_json() } else { report.to_markdown() };
        atomic::write_bytes(path, text.as_bytes())?;
    }
    println!("{}", if args.json { report.to_json() } else { report.to_markdown() }.trim_end());
    let comparisons = report.comparisons.len() + report.tokenizers.len();
    let failed = match report.out_of_tolerance() {
        0 => None,
        failed => Some(format!("{failed} of {comparisons} comparisons are out of tolerance")),
    };
    let failures: Vec<String> = failed.into_iter().chain(report.failures).collect();
    anyhow::ensure!(failures.is_empty(), "{}", failures.join("; "));
    Ok(())
}
