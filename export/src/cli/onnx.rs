//! `onnx`: a checkpoint as ONNX files.

use std::{path::PathBuf, sync::Arc};

use clap::ValueEnum;

use super::{conflict, number::within, tokens::TokenArgs};
use crate::{
    calibrate::Ranges,
    checkpoint::Checkpoint,
    fingerprint::{Fingerprint, Kind},
    onnx::{self, OnnxOptions, Weights},
    tokenizer::AnyTokenizer,
};

/// Write a checkpoint as ONNX files: encoder.onnx, decoder.onnx, step.onnx
///
/// Opset 17, batch size and number of kept tokens free:
///
///   encoder  `token_ids`, `positions` int64 [B, N], no class token
///            → `latent` [B, N+1, D], `features` [B, D]
///   decoder  `latent`, `source` int64 [B, T] (the row of `latent` at each
///            place, 0 where dropped or masked) → `logits` [B, T, K]
///   step     `token_ids` [B, T], the mask id where unknown → `logits`
///
/// With --tokenizer also tokenizer_encoder.onnx (`image` [B, 3, side, side],
/// 0 to 1 → `ids` int64 [B, grid, grid]) and tokenizer_decoder.onnx, its inverse.
///
/// The model card (model_card.md, and in each file's metadata) says where the
/// weights come from: data, steps, seed and metrics too where `sorcen pretrain`
/// wrote the checkpoint.
///
/// Examples:
///
///   sorcen onnx --checkpoint run/checkpoint --out onnx
///   sorcen onnx --checkpoint run/checkpoint --out onnx8 --precision int8 \
///     --tokens data/train --images 128
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Checkpoint folder (config.json, model.safetensors).
    #[arg(long, value_name = "DIR")]
    pub checkpoint: PathBuf,
    /// Folder for the files; made if missing.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// How the matrices are stored. int8: QuantizeLinear and DequantizeLinear around each product, bytes with a
    /// scale an output channel; activations have fixed ranges, measured on --tokens. For onnxruntime, which makes
    /// integer products of it (tract does not read scales per channel).
    #[arg(long, value_enum, default_value = "f32")]
    pub precision: Precision,
    #[command(flatten)]
    calibration: TokenArgs,
    /// Share of the numbers of an activation that its range covers (int8), 0.5 to 1; below 1 rare outliers are cut
    /// off [default: 1].
    #[arg(long, value_name = "SHARE", value_parser = within(0.5..=1.0, "a number from 0.5 to 1"))]
    pub covered: Option<f64>,
    /// Also write the tokenizer's files (tokenizer.safetensors of `sorcen tokenizer train`: patches, or a ViT; a
    /// VQGAN's are written by `sorcen tokenizer onnx`).
    #[arg(long, value_name = "FILE|DIR")]
    pub tokenizer: Option<PathBuf>,
    /// Terms to note in the files' metadata: those of the weights.
    #[arg(long, value_name = "TEXT", default_value = "unspecified")]
    pub licence: String,
}

/// Precisions on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Precision {
    /// 32-bit floats.
    F32,
    /// 16-bit floats, computed in 32 bits.
    F16,
    /// 8-bit integers (QDQ).
    Int8,
}

/// Runs the verb.
///
/// # Errors
/// A bad checkpoint, tokens or tokenizer, or a folder that cannot be written.
pub fn run(args: &Args) -> anyhow::Result<()> {
    if args.precision != Precision::Int8 {
        let flags = args.calibration.given().into_iter().chain([("--covered", args.covered.is_some())]);
        let given: Vec<&str> = flags.filter(|(_, is_given)| *is_given).map(|(flag, _)| flag).collect();
        if !given.is_empty() {
            let given = given.join(", ");
            conflict(&format!("{given}: expected --precision int8 too: nothing else is measured on images"));
        }
    }
    let checkpoint = Arc::new(Checkpoint::open(&args.checkpoint)?);
    let tokenizer = args.tokenizer.as_deref().map(AnyTokenizer::open).transpose()?;
    if let (Some(path), Some(tokenizer)) = (&args.tokenizer, &tokenizer) {
        let codes = Fingerprint::of_checkpoint(&args.checkpoint, &checkpoint.config)?;
        let found = Fingerprint::of_tokenizer(path, tokenizer);
        codes.expect(&found, Kind::Tokenizer, args.calibration.allow_other_tokenizer)?;
    }
    let ranges;
    let weights = match args.precision {
        Precision::F32 => Weights::F32,
        Precision::F16 => Weights::F16,
        Precision::Int8 => {
            let tokens = args.calibration.read(&checkpoint)?;
            ranges = Ranges::measure(&checkpoint, tokens.view(), args.covered.unwrap_or(1.0))?;
            Weights::Int8(&ranges)
        }
    };
    let options = OnnxOptions { weights, licence: &args.licence, tokenizer: tokenizer.as_ref() };
    for path in onnx::write(&checkpoint, &args.out, &options)? {
        let data = onnx::data_files(&path);
        for path in std::iter::once(path).chain(data) {
            println!("{}: {} bytes", path.display(), std::fs::metadata(&path)?.len());
        }
    }
    Ok(())
}
