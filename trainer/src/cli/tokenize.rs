//! `sorcen tokenize`: images in, a token dataset out.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use super::images::ImageArgs;
use super::tokenizer::{TokenizerArgs, GIVE_SIZE};
use crate::data::{ImageSet, StreamSpec, TokenDatasetWriter, VQGAN};

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

    #[command(flatten)]
    tokenizer: TokenizerArgs,

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
    let tokenizer = args.tokenizer.open()?;
    let side = images.side();
    let grid = side / tokenizer.stride();
    tokenizer.encode_all(&[], side).context(GIVE_SIZE)?;
    let spec = StreamSpec {
        name: VQGAN.into(),
        grid,
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
