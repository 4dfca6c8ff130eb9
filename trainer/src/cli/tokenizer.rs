//! `sorcen tokenizer train | run | check`.

use std::path::{Path, PathBuf};

use anyhow::{ensure, Context as _, Result};
use clap::Subcommand;
use ndarray::Ix4;
use sorcen_export::atomic::Pending;
use sorcen_export::fingerprint;
use sorcen_export::tensors::{TensorFile, TensorWriter};

use super::images::ImageArgs;
use crate::device::Device;
use crate::picture::save_png;
use crate::tokenizer::{self, Report, Tokenizer};

/// Train a tokenizer, run it, or measure what it loses
///
/// `train` makes one of three kinds: a codebook of patches of pixels, found by k-means in seconds; a light
/// transformer (vit); the convolutional layout of the paper at any size (vqgan). `run`, `check` and `onnx`, like
/// `tokenize` and `decode`, take these, and the official VQGAN of the paper (vqgan_jax_strongaug.ckpt, or any size
/// of it), whose sizes are read from the file.
#[derive(Subcommand, Debug)]
#[allow(missing_docs)] // the verbs' own structs say it, for --help too
pub enum Args {
    Train(Box<super::tokenizer_train::Args>),
    Run(Run),
    Check(Check),
    Onnx(Onnx),
}

/// Encode and decode tensors: for testers, and for other programs
///
/// In: `image` [B,3,H,W] in 0 to 1. Out: `ids` [B,h,w] int64, `reconstruction`
/// [B,3,H,W]; the tokenizer's fingerprint in the metadata. Both files are
/// safetensors.
#[derive(clap::Args, Debug)]
#[command(rename_all = "snake_case")]
#[command(verbatim_doc_comment)]
pub struct Run {
    #[command(flatten)]
    tokenizer: TokenizerArgs,

    /// Tensors to read
    #[arg(long, value_name = "FILE")]
    input: PathBuf,

    /// Tensors to write
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

/// Measure the loss (PSNR) and the use of the codes on images, best on some not
/// trained on
///
/// The times are of all threads together (with RAYON_NUM_THREADS=1 of one).
///
/// Examples:
///   sorcen tokenizer check --images held_back --size 64 \
///       --tokenizer tokenizer.safetensors
///   sorcen tokenizer check --images held_back --size 64 \
///       --tokenizer vit --beside model.srcn
#[derive(clap::Args, Debug)]
#[command(rename_all = "snake_case")]
#[command(verbatim_doc_comment)]
pub struct Check {
    #[command(flatten)]
    images: ImageArgs,

    #[command(flatten)]
    tokenizer: TokenizerArgs,

    /// A second one of the same grid, such as the same in a pack: its numbers, and how many ids are equal
    #[arg(long, value_name = "FILE|DIR")]
    beside: Option<PathBuf>,

    /// Also write a PNG of some images, each above what the tokens keep of it
    #[arg(long, value_name = "FILE")]
    picture: Option<PathBuf>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Write a tokenizer as ONNX files: tokenizer_encoder.onnx,
/// tokenizer_decoder.onnx
///
/// Opset 17, batch size free, f32. The encoder takes `image` [B, 3, S, S]
/// (0 to 1) and gives `ids` int64 [B, S / stride, S / stride]; the decoder takes
/// `ids` and gives `image`, not clamped.
///
/// Example:
///   sorcen tokenizer onnx --tokenizer vqgan_jax_strongaug.ckpt --size 256 \
///       --out onnx
#[derive(clap::Args, Debug)]
#[command(rename_all = "snake_case")]
#[command(verbatim_doc_comment)]
pub struct Onnx {
    /// The tokenizer, as the other verbs take it
    #[arg(long, value_name = "FILE|DIR")]
    tokenizer: PathBuf,

    /// Side S of the images in pixels, a multiple of the tokenizer's stride; a vit has only one
    #[arg(long, value_name = "PIXELS")]
    size: usize,

    /// Terms to note in the files' metadata: those of the weights
    #[arg(long, value_name = "TEXT", default_value = "unspecified")]
    licence: String,

    /// Folder for the files; made if missing
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// Which tokenizer, and where it runs: shared by the verbs that use one.
#[derive(clap::Args, Clone, Debug)]
#[command(rename_all = "snake_case")]
pub struct TokenizerArgs {
    /// The tokenizer: a file or folder of `sorcen tokenizer train`, or an official VQGAN (.ckpt, .pth or
    /// .safetensors, bare, under `state_dict`, or inside a MAGE checkpoint), or a pack with a tokenizer (.srcn)
    #[arg(long, value_name = "FILE|DIR")]
    tokenizer: PathBuf,

    /// Where a network (vit, vqgan) computes: cpu, or cuda or wgpu in a build with that feature
    #[arg(long, default_value = "cpu")]
    device: Device,
}

impl TokenizerArgs {
    /// Opens it.
    pub fn open(&self) -> Result<Box<dyn Tokenizer>> {
        Ok(tokenizer::open(&self.tokenizer, self.device)?)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.tokenizer
    }
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    match args {
        Args::Train(args) => super::tokenizer_train::run(args),
        Args::Run(args) => run_tensors(args),
        Args::Check(args) => check(args),
        Args::Onnx(args) => onnx(args),
    }
}

fn run_tensors(args: &Run) -> Result<()> {
    let tokenizer = args.tokenizer.open()?;
    let images = TensorFile::open(&args.input)?.numbers("image", 4)?.mapv(|value| value as f32);
    let images = images.into_dimensionality::<Ix4>()?;
    let file = Pending::create(&args.output)?; // before the work
    file.expect_room((images.len() * size_of::<f32>()) as u64)?; // ids are few beside it
    let (ids, reconstruction) = tokenizer.run(images.view()).with_context(|| args.input.display().to_string())?;
    let mut output = TensorWriter::default();
    output.ints("ids", ids.view());
    output.floats("reconstruction", reconstruction.view());
    output.note(fingerprint::TOKENIZER, Some(&tokenizer.fingerprint()));
    Ok(output.write_into(file)?)
}

fn check(args: &Check) -> Result<()> {
    let tokenizer = args.tokenizer.open()?;
    let images = args.images.open()?;
    let pixels = (0..images.len()).map(|index| images.rgb(index)).collect::<Result<Vec<_>, _>>()?;
    let side = images.side();
    let measure = |tokenizer: &dyn Tokenizer| tokenizer::check(tokenizer, &pixels, side).context(GIVE_SIZE);
    let report = measure(tokenizer.as_ref())?;
    let beside = match &args.beside {
        None => None,
        Some(path) => {
            let other = tokenizer::open(path, args.tokenizer.device)?;
            let (found, expected) = (other.stride(), tokenizer.stride());
            ensure!(
                found == expected,
                "--beside: expected tokens of {expected} pixels, as --tokenizer's, found {found}"
            );
            let agree = tokenizer::agreement(tokenizer.as_ref(), other.as_ref(), &pixels, side)?;
            Some((measure(other.as_ref())?, agree))
        }
    };
    if let Some(path) = &args.picture {
        save_png(&tokenizer::sheet(tokenizer.as_ref(), &pixels, side, 4)?, path)?;
    }
    match (args.json, beside) {
        (true, None) => println!("{}", serde_json::to_string(&report)?),
        (true, Some((beside, agree))) => {
            println!("{}", serde_json::json!({ "tokenizer": report, "beside": beside, "ids_agree": agree }));
        }
        (false, beside) => {
            let reports: Vec<_> = [Some(report), beside.map(|beside| beside.0)].into_iter().flatten().collect();
            let line = |name: &str, of: &dyn Fn(&Report) -> String| {
                println!(
                    "{name:<12}{}",
                    reports.iter().map(of).map(|text| format!("{text:<24}")).collect::<String>().trim_end()
                );
            };
            line("images", &|r| r.images.to_string());
            line("PSNR", &|r| format!("{:.2} dB (MSE {:.1})", r.psnr_db, r.mse));
            line("codes used", &|r| format!("{} of {}", r.codes_used, r.codes));
            line("perplexity", &|r| format!("{:.1}", r.perplexity));
            line("encode", &|r| format!("{:.3} ms an image", r.encode_ms));
            line("decode", &|r| format!("{:.3} ms an image", r.decode_ms));
            if let Some((_, agree)) = beside {
                println!("{:<12}{:.2} % of the ids", "agree", 100.0 * agree);
            }
        }
    }
    Ok(())
}

fn onnx(args: &Onnx) -> Result<()> {
    for path in tokenizer::write_onnx(&args.tokenizer, args.size, &args.out, &args.licence)? {
        println!("{}: {} bytes", path.display(), std::fs::metadata(&path)?.len());
    }
    Ok(())
}

/// What helps where images do not fit a tokenizer.
pub const GIVE_SIZE: &str = "images do not fit the tokenizer (--size brings them to a side)";
