//! `sorcen decode`: token ids to a picture.

use std::path::PathBuf;

use anyhow::{bail, Context, Result};
use sorcen_export::tensors::TensorFile;

use super::tokenizer::TokenizerArgs;
use crate::data::TokenDataset;
use crate::picture::{save_png, Grid};

/// Turn token ids back into pictures: a sheet of images as one PNG
///
/// The ids come from a token dataset, or from a safetensors file with a tensor `ids` [B,h,w] or [B,T] (or
/// `final_ids`, as `generate` writes it).
///
/// Example: sorcen decode --data trainer/assets/emoji/val --count 64 \
///              --tokenizer trainer/assets/emoji/tokenizer.safetensors --out val.png
#[derive(clap::Args, Debug)]
#[command(rename_all = "snake_case", verbatim_doc_comment)]
#[command(group(clap::ArgGroup::new("ids").required(true).args(["data", "input"])))]
pub struct Args {
    /// Token dataset folder
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,

    /// Safetensors file with ids
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,

    #[command(flatten)]
    tokenizer: TokenizerArgs,

    /// First image to show
    #[arg(long, default_value_t = 0, value_name = "N")]
    first: usize,

    /// At most this many images
    #[arg(long, default_value_t = 64, value_name = "N")]
    count: usize,

    /// Images a row of the sheet
    #[arg(long, default_value_t = 8, value_name = "N")]
    columns: usize,

    /// Side of the square that each pixel becomes
    #[arg(long, default_value_t = 2, value_name = "N")]
    scale: usize,

    /// The PNG file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    let tokenizer = args.tokenizer.open()?;
    let ids = match (&args.data, &args.input) {
        (Some(dir), _) => from_dataset(&TokenDataset::open(dir)?, args),
        (_, Some(path)) => from_tensors(&TensorFile::open(path)?, args)?,
        (None, None) => bail!("expected --data or --input"),
    };
    if ids.is_empty() {
        bail!("--first {}: expected the number of an image, found no image there", args.first);
    }
    let grid = ids[0].len().isqrt();
    let pictures = tokenizer.decode_all(&ids, grid).context("ids with this tokenizer")?;
    let layout = Grid { columns: args.columns.min(pictures.len()), scale: args.scale, ..Grid::default() };
    save_png(&layout.draw(&pictures, grid * tokenizer.stride()), &args.out)?;
    println!("{}: {} images", args.out.display(), pictures.len());
    Ok(())
}

fn from_dataset(dataset: &TokenDataset, args: &Args) -> Vec<Vec<u16>> {
    let ids = |index| {
        let mut ids = vec![0; dataset.tokens()];
        dataset.ids(index, &mut ids);
        ids
    };
    (args.first..dataset.len()).take(args.count).map(ids).collect()
}

fn from_tensors(file: &TensorFile, args: &Args) -> Result<Vec<Vec<u16>>> {
    let ids = match (file.has("ids"), file.ints("ids", 3)) {
        (true, Ok(ids)) => ids,
        (true, Err(_)) => file.ints("ids", 2)?,
        (false, _) => file.ints("final_ids", 2)?,
    };
    let tokens = ids.shape()[1..].iter().product::<usize>();
    if tokens == 0 || tokens.isqrt().pow(2) != tokens {
        bail!("ids: expected a square grid of tokens for each image, found shape {:?}", ids.shape());
    }
    let flat: Vec<i64> = ids.iter().copied().collect();
    let image = |(index, row): (usize, &[i64])| -> Result<Vec<u16>> {
        let id = |&id: &i64| {
            u16::try_from(id).with_context(|| format!("ids: image {index}: expected 0 to 65535, found {id}"))
        };
        row.iter().map(id).collect()
    };
    flat.chunks_exact(tokens).enumerate().skip(args.first).take(args.count).map(image).collect()
}
