//! `sorcen tokenize`: images in, a token dataset out.

use std::path::PathBuf;

use anyhow::{bail, Context, Result};

use super::images::ImageArgs;
use crate::data::{ImageSet, StreamSpec, TokenDatasetWriter, VQGAN};
use crate::tokenizer::PatchTokenizer;

/// Turn images into a token dataset, the folder that pretraining reads
///
/// It holds one bit-packed row of token ids per image, labels, class names and checksums.
/// Training on tokens reads each image once and never again; the folder is some hundred times smaller
/// than the pixels.
///
/// Example: sorcen tokenize --images photos --size 64 --tokenizer tokenizer.safetensors --out tokens
#[derive(clap::Args, Debug)]
#[command(rename_all = "snake_case", verbatim_doc_comment)]
pub struct Args {
    #[command(flatten)]
    images: ImageArgs,

    /// The tokenizer, from `sorcen tokenizer train`
    #[arg(long, value_name = "FILE")]
    tokenizer: PathBuf,

    /// Columns of the labels to keep in the dataset's items.csv, where `knn --only` can use them
    /// (without it: all)
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    columns: Vec<String>,

    /// The dataset folder to make; it must not exist yet
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// Images that are in memory at a time.
const CHUNK: usize = 1024;

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    let images = args.images.open()?;
    let tokenizer = PatchTokenizer::load(&args.tokenizer)?;
    let (side, patch) = (images.side(), tokenizer.patch());
    if side % patch != 0 {
        bail!(
            "images: expected a side that is a multiple of the tokenizer's patch ({patch}), found {side}: give --size"
        );
    }
    let spec = StreamSpec {
        name: VQGAN.into(),
        grid: side / patch,
        codebook_size: tokenizer.codes(),
        tokenizer: Some(tokenizer.fingerprint()),
    };
    let items = images.items_csv(&args.columns)?;
    let mut writer = TokenDatasetWriter::create(&args.out, images.class_names().to_vec(), &[spec])?;
    let bar = super::progress(images.len() as u64, "images");
    for start in (0..images.len()).step_by(CHUNK) {
        let range = start..(start + CHUNK).min(images.len());
        let pixels = read(&images, range.clone())?;
        for (index, ids) in range.zip(tokenizer.encode_all(&pixels, side)?) {
            writer.push(images.label(index), &[&ids])?;
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    writer.finish((items.lines().next() != Some("")).then_some(items.as_str()))?;
    let grid = side / patch;
    println!(
        "{}: {} images of {grid}x{grid} tokens below {}, {} classes",
        args.out.display(),
        images.len(),
        tokenizer.codes(),
        images.class_names().len()
    );
    Ok(())
}

/// The pixels of some images, each `[side, side, 3]`.
pub fn read(images: &ImageSet, range: std::ops::Range<usize>) -> Result<Vec<Vec<u8>>> {
    range.map(|index| images.rgb(index).context("reading images")).collect()
}
