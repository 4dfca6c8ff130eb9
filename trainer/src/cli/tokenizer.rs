//! `sorcen tokenizer train | run | check`.

use std::path::{Path, PathBuf};

use anyhow::{bail, Result};
use clap::Subcommand;
use indicatif::ProgressBar;
use ndarray::{Array3, Array4, Axis};
use sorcen_export::tensors::{TensorFile, TensorWriter};

use super::images::ImageArgs;
use super::tokenize::read;
use crate::picture::{interleaved, save_png, Grid};
use crate::tokenizer::{self, PatchTokenizer, TrainOptions};

/// Train a tokenizer, run it, or measure what it loses
///
/// The tokenizer is a codebook of K square patches of pixels, found by k-means: an image becomes a grid
/// of the numbers of the nearest patches, and back by copying them.
#[derive(Subcommand, Debug)]
pub enum Args {
    /// Find a codebook of patches in images, by k-means
    Train(Train),
    /// Encode and decode tensors: for testers, and for other programs
    Run(Run),
    /// Measure the loss (PSNR) and the use of the codes on images, best on some not trained on
    Check(Check),
}

/// Example: sorcen tokenizer train --images photos --size 64 --codes 512 --out tokenizer.safetensors
#[derive(clap::Args, Debug)]
#[command(rename_all = "snake_case")]
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

/// In: `image` [B,3,H,W] in 0 to 1. Out: `ids` [B,h,w] int64, `reconstruction` [B,3,H,W]. Both files are
/// safetensors.
#[derive(clap::Args, Debug)]
#[command(rename_all = "snake_case")]
pub struct Run {
    /// The tokenizer file
    #[arg(long, value_name = "FILE")]
    tokenizer: PathBuf,

    /// Tensors to read
    #[arg(long, value_name = "FILE")]
    input: PathBuf,

    /// Tensors to write
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

/// Example: sorcen tokenizer check --tokenizer tokenizer.safetensors --images held_back --size 64
#[derive(clap::Args, Debug)]
#[command(rename_all = "snake_case")]
pub struct Check {
    #[command(flatten)]
    images: ImageArgs,

    /// The tokenizer file
    #[arg(long, value_name = "FILE")]
    tokenizer: PathBuf,

    /// Also write a PNG of some images, each above what the tokens keep of it
    #[arg(long, value_name = "FILE")]
    picture: Option<PathBuf>,

    /// Print JSON
    #[arg(long)]
    json: bool,
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
    let tokenizer = PatchTokenizer::load(&args.tokenizer)?;
    let images = TensorFile::open(&args.input)?.numbers("image", 4)?;
    let &[batch, channels, height, width] = images.shape() else { bail!("image: expected 4 dimensions") };
    let (input, patch) = (args.input.display(), tokenizer.patch());
    if channels != 3 || height == 0 || width == 0 || height % patch != 0 || width % patch != 0 {
        bail!("{input}: image: expected [B, 3, H, W], H and W multiples of {patch}, found {:?}", images.shape());
    }
    if let Some(value) = images.iter().find(|value| !(0.0..=1.0).contains(*value)) {
        bail!("{input}: image: expected values in 0 to 1, found {value}");
    }
    let mut all_ids = Array3::<i64>::zeros((batch, height / patch, width / patch));
    let mut reconstruction = Array4::<f32>::zeros((batch, 3, height, width));
    for index in 0..batch {
        let place = |i: usize| [index, i % 3, i / 3 / width, i / 3 % width]; // of byte i of [H, W, 3]
        let bytes = (0..height * width * 3).map(|i| (images[place(i)] * 255.0).round() as u8);
        let mut rgb: Vec<u8> = bytes.collect();
        let mut ids = vec![0; all_ids.len() / batch];
        tokenizer.codebook().encode(&rgb, width, height, &mut ids)?;
        tokenizer.codebook().decode(&ids, width, height, &mut rgb)?;
        all_ids.index_axis_mut(Axis(0), index).iter_mut().zip(ids).for_each(|(to, id)| *to = id.into());
        rgb.iter().enumerate().for_each(|(i, &value)| reconstruction[place(i)] = f32::from(value) / 255.0);
    }
    let mut output = TensorWriter::default();
    output.ints("ids", all_ids.view());
    output.floats("reconstruction", reconstruction.view());
    Ok(output.write(&args.output)?)
}

fn check(args: &Check) -> Result<()> {
    let tokenizer = PatchTokenizer::load(&args.tokenizer)?;
    let images = args.images.open()?;
    if images.side() % tokenizer.patch() != 0 {
        bail!(
            "images: expected a side that is a multiple of the tokenizer's patch ({}), found {}: give --size",
            tokenizer.patch(),
            images.side()
        );
    }
    let pixels = read(&images, 0..images.len())?;
    let report = tokenizer::check(&tokenizer, &pixels, images.side())?;
    if let Some(path) = &args.picture {
        draw(&tokenizer, pixels, images.side(), path)?;
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

/// Up to four rows of twelve images, evenly chosen, each row above its reconstructions.
fn draw(tokenizer: &PatchTokenizer, pixels: Vec<Vec<u8>>, side: usize, path: &Path) -> Result<()> {
    let columns = 12.min(pixels.len());
    let chosen: Vec<_> = pixels.iter().step_by(pixels.len().div_ceil(4 * columns)).cloned().collect();
    let ids = tokenizer.encode_all(&chosen, side)?;
    let decode = |ids: &Vec<u16>| tokenizer.decode(ids, side / tokenizer.patch());
    let decoded: Vec<_> = ids.iter().map(decode).collect::<Result<_, _>>()?;
    let sheet = interleaved(&[&chosen, &decoded], columns);
    Ok(save_png(&Grid { columns, scale: 1, ..Grid::default() }.draw(&sheet, side), path)?)
}
