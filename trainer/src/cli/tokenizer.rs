//! `sorcen tokenizer train | run | check`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Subcommand;
use indicatif::ProgressBar;
use ndarray::Ix4;
use sorcen_export::tensors::{TensorFile, TensorWriter};

use super::images::ImageArgs;
use crate::device::Device;
use crate::picture::{interleaved, save_png, Grid};
use crate::tokenizer::{self, Tokenizer, TrainOptions};

/// Train a tokenizer, run it, or measure what it loses
///
/// `train` finds a codebook of K square patches of pixels by k-means: an image becomes a grid of the numbers of
/// the nearest patches, and back by copying them. `run` and `check`, like `tokenize` and `decode`, also take the
/// official VQGAN of the paper (vqgan_jax_strongaug.ckpt, or any size of it), whose sizes are read from the file.
#[derive(Subcommand, Debug)]
#[allow(missing_docs)] // the verbs' own structs say it, for --help too
pub enum Args {
    Train(Train),
    Run(Run),
    Check(Check),
}

/// Find a codebook of patches in images, by k-means
///
/// Example: sorcen tokenizer train --images photos --size 64 --codes 512 --out tokenizer.safetensors
#[derive(clap::Args, Debug)]
#[command(rename_all = "snake_case")]
#[command(verbatim_doc_comment)]
pub struct Train {
    #[command(flatten)]
    images: ImageArgs,

    /// Number K of codes; 2^n fills n bits a token
    #[arg(long, default_value_t = 512)]
    codes: usize,

    /// Side of a patch in pixels: images of 64 pixels and patches of 8 give 8x8 tokens
    #[arg(long, default_value_t = 8)]
    patch: usize,

    /// Rounds of k-means
    #[arg(long, default_value_t = 25)]
    iterations: u64,

    /// Seed of the initial codes: the same seed and images give the same file
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// At most this many images, evenly chosen, so that they fit in memory
    #[arg(long, default_value_t = 20_000, value_name = "N")]
    max_images: usize,

    /// The tokenizer file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Encode and decode tensors: for testers, and for other programs
///
/// In: `image` [B,3,H,W] in 0 to 1. Out: `ids` [B,h,w] int64, `reconstruction` [B,3,H,W]. Both files are
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

/// Measure the loss (PSNR) and the use of the codes on images, best on some not trained on
///
/// Example: sorcen tokenizer check --tokenizer tokenizer.safetensors --images held_back --size 64
#[derive(clap::Args, Debug)]
#[command(rename_all = "snake_case")]
#[command(verbatim_doc_comment)]
pub struct Check {
    #[command(flatten)]
    images: ImageArgs,

    #[command(flatten)]
    tokenizer: TokenizerArgs,

    /// Also write a PNG of some images, each above what the tokens keep of it
    #[arg(long, value_name = "FILE")]
    picture: Option<PathBuf>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Which tokenizer, and where it runs: shared by the verbs that use one.
#[derive(clap::Args, Clone, Debug)]
#[command(rename_all = "snake_case")]
pub struct TokenizerArgs {
    /// The tokenizer: a file of `sorcen tokenizer train`, or an official VQGAN (.ckpt, .pth or .safetensors,
    /// bare, under `state_dict`, or inside a MAGE checkpoint); or a folder with tokenizer.safetensors
    #[arg(long, value_name = "FILE|DIR")]
    tokenizer: PathBuf,

    /// Where a VQGAN computes
    #[arg(long, value_enum, default_value = "cpu")]
    device: Device,
}

impl TokenizerArgs {
    /// Opens it.
    pub fn open(&self) -> Result<Box<dyn Tokenizer>> {
        Ok(tokenizer::open(&self.tokenizer, self.device)?)
    }
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    match args {
        Args::Train(args) => train(args),
        Args::Run(args) => run_tensors(args),
        Args::Check(args) => check(args),
    }
}

fn train(args: &Train) -> Result<()> {
    let images = args.images.open()?;
    let step = images.len().div_ceil(args.max_images.max(1));
    let mut pixels = Vec::new();
    for index in (0..images.len()).step_by(step) {
        pixels.push(images.rgb(index)?);
    }
    let options = TrainOptions { codes: args.codes, patch: args.patch, iterations: args.iterations, seed: args.seed };
    let bar: ProgressBar = super::progress(args.iterations, "rounds");
    let trained = tokenizer::train(&pixels, images.side(), &options, |_, error| {
        bar.set_message(format!("{:.2} dB", tokenizer::psnr_db(error)));
        bar.inc(1);
    })?;
    bar.finish_and_clear();
    trained.save(&args.out)?;
    let report = tokenizer::check(&trained, &pixels, images.side())?;
    println!(
        "{}: {}; {:.2} dB on the {} images trained on",
        args.out.display(),
        trained.fingerprint(),
        report.psnr_db,
        report.images
    );
    Ok(())
}

fn run_tensors(args: &Run) -> Result<()> {
    let tokenizer = args.tokenizer.open()?;
    let images = TensorFile::open(&args.input)?.numbers("image", 4)?.mapv(|value| value as f32);
    let images = images.into_dimensionality::<Ix4>()?;
    let (ids, reconstruction) = tokenizer.run(images.view()).with_context(|| args.input.display().to_string())?;
    let mut output = TensorWriter::default();
    output.ints("ids", ids.view());
    output.floats("reconstruction", reconstruction.view());
    Ok(output.write(&args.output)?)
}

fn check(args: &Check) -> Result<()> {
    let tokenizer = args.tokenizer.open()?;
    let images = args.images.open()?;
    let pixels = (0..images.len()).map(|index| images.rgb(index)).collect::<Result<Vec<_>, _>>()?;
    let report = tokenizer::check(tokenizer.as_ref(), &pixels, images.side()).context(GIVE_SIZE)?;
    if let Some(path) = &args.picture {
        draw(tokenizer.as_ref(), pixels, images.side(), path)?;
    }
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
        return Ok(());
    }
    println!("images      {}", report.images);
    println!("PSNR        {:.2} dB (mean squared error {:.1})", report.psnr_db, report.mse);
    println!("codes used  {} of {}", report.codes_used, tokenizer.codes());
    println!("perplexity  {:.1}", report.perplexity);
    Ok(())
}

/// What helps where images do not fit a tokenizer.
pub const GIVE_SIZE: &str = "images do not fit the tokenizer (--size brings them to a side)";

/// Up to four rows of twelve images, evenly chosen, each row above its reconstructions.
fn draw(tokenizer: &dyn Tokenizer, pixels: Vec<Vec<u8>>, side: usize, path: &Path) -> Result<()> {
    let columns = 12.min(pixels.len());
    let chosen: Vec<_> = pixels.iter().step_by(pixels.len().div_ceil(4 * columns)).cloned().collect();
    let ids = tokenizer.encode_all(&chosen, side)?;
    let decoded = tokenizer.decode_all(&ids, side / tokenizer.stride())?;
    let sheet = interleaved(&[&chosen, &decoded], columns);
    Ok(save_png(&Grid { columns, scale: 1, ..Grid::default() }.draw(&sheet, side), path)?)
}
