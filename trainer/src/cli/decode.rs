//! `sorcen decode`: token ids to pictures.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{ensure, Context, Result};
use sorcen_export::atomic;
use sorcen_export::tensors::TensorFile;

use super::tokenizer::TokenizerArgs;
use crate::data::TokenDataset;
use crate::exchange::write_images;
use crate::files::PartialDir;
use crate::picture::{save_png, Grid, Picture};
use crate::tokenizer::Tokenizer;

/// Turn token ids back into pictures: a sheet, one PNG each, or one array for
/// evaluators
///
/// The ids come from a token dataset, or from a safetensors file with a tensor
/// `ids` [B,h,w] or [B,T] (or `final_ids`, as `generate` writes it).
///
/// Example:
///   sorcen decode --data trainer/assets/emoji/val --out val.png \
///       --tokenizer trainer/assets/emoji/tokenizer.safetensors
#[derive(clap::Args, Debug)]
#[command(rename_all = "snake_case", verbatim_doc_comment)]
#[command(group(clap::ArgGroup::new("ids").required(true).args(["data", "input"])))]
#[command(group(clap::ArgGroup::new("pictures").required(true).multiple(true).args(["out", "png_dir", "npz"])))]
pub struct Args {
    /// Token dataset folder
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,

    /// Safetensors file with ids
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,

    #[command(flatten)]
    tokenizer: TokenizerArgs,

    /// First image to decode
    #[arg(long, default_value_t = 0, value_name = "N")]
    first: usize,

    /// At most this many images [default: 64 with --out, else all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    count: Option<u32>,

    /// A sheet of all pictures: the PNG file to write
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    /// Pictures a row of the sheet
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    columns: u16,

    /// Side of the square that each pixel becomes in the sheet
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=255))]
    scale: u16,

    /// One PNG each, named by the image's number: the folder to make
    #[arg(long, value_name = "DIR")]
    png_dir: Option<PathBuf>,

    /// One array `arr_0`, uint8 [N,H,W,3], as the evaluators of guided diffusion (ADM) read it: the .npz file
    /// to write
    #[arg(long, value_name = "FILE")]
    npz: Option<PathBuf>,
}

/// Images that are decoded together: what is in memory, the sheet's left out.
const CHUNK: usize = 64;

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    super::expect_extension("--out", args.out.as_deref(), "png")?;
    super::expect_extension("--npz", args.npz.as_deref(), "npz")?;
    let tokenizer = args.tokenizer.open()?;
    let source = match (&args.data, &args.input) {
        (Some(dir), _) => Source::Dataset(TokenDataset::open(dir)?),
        (None, path) => Source::Tensors(from_tensors(&TensorFile::open(path.as_deref().unwrap_or(Path::new("")))?)?),
    };
    let most = args.count.map_or(if args.out.is_some() { 64 } else { usize::MAX }, |count| count as usize);
    let numbers: Vec<usize> = (args.first..source.len()).take(most).collect();
    usage_unless!(
        !numbers.is_empty(),
        "--first: expected 0 to below {}, the images there are, found {}",
        source.len(),
        args.first
    );
    let pictures = Pictures { source, numbers, tokenizer: tokenizer.as_ref() };
    if let Some(path) = &args.out {
        let mut all = Vec::new();
        pictures.each(|_, picture| {
            all.push(picture.to_vec());
            Ok(())
        })?;
        let layout =
            Grid { columns: usize::from(args.columns).min(all.len()), scale: args.scale.into(), ..Grid::default() };
        save_png(&layout.draw(&all, pictures.side()), path)?;
        println!("{}: {} images", path.display(), all.len());
    }
    if let Some(dir) = &args.png_dir {
        pictures.write_pngs(dir).with_context(|| dir.display().to_string())?;
        println!("{}: {} images", dir.display(), pictures.numbers.len());
    }
    if let Some(path) = &args.npz {
        let (count, side) = (pictures.numbers.len(), pictures.side());
        let write = |write: &mut dyn FnMut(&[u8]) -> io::Result<()>| {
            pictures.each(|_, picture| Ok(write(picture)?)).map_err(io::Error::other)
        };
        atomic::write_with(path, |file| write_images(file, count, side, write))?;
        println!("{}: arr_0 uint8 [{count}, {side}, {side}, 3]", path.display());
    }
    Ok(())
}

enum Source {
    Dataset(TokenDataset),
    Tensors(Vec<Vec<u16>>),
}

impl Source {
    fn len(&self) -> usize {
        match self {
            Self::Dataset(dataset) => dataset.len(),
            Self::Tensors(ids) => ids.len(),
        }
    }

    fn ids(&self, index: usize) -> Vec<u16> {
        match self {
            Self::Dataset(dataset) => {
                let mut ids = vec![0; dataset.tokens()];
                dataset.ids(index, &mut ids);
                ids
            }
            Self::Tensors(ids) => ids[index].clone(),
        }
    }
}

/// The pictures to write.
struct Pictures<'a> {
    source: Source,
    /// Of the images, at least one.
    numbers: Vec<usize>,
    tokenizer: &'a dyn Tokenizer,
}

impl Pictures<'_> {
    fn grid(&self) -> usize {
        self.source.ids(self.numbers[0]).len().isqrt()
    }

    fn side(&self) -> usize {
        self.grid() * self.tokenizer.stride()
    }

    /// Calls `f` with the number and the pixels `[side, side, 3]` of each, in order.
    fn each(&self, mut f: impl FnMut(usize, &[u8]) -> Result<()>) -> Result<()> {
        for numbers in self.numbers.chunks(CHUNK) {
            let ids: Vec<_> = numbers.iter().map(|&number| self.source.ids(number)).collect();
            let place = || format!("images {} to {} with this tokenizer", numbers[0], numbers[numbers.len() - 1]);
            let pictures = self.tokenizer.decode_all(&ids, self.grid()).with_context(place)?;
            numbers.iter().zip(&pictures).try_for_each(|(&number, picture)| f(number, picture))?;
        }
        Ok(())
    }

    fn write_pngs(&self, dir: &Path) -> Result<()> {
        let (folder, side) = (PartialDir::create(dir)?, self.side());
        self.each(|number, picture| {
            let picture = Picture { width: side, height: side, rgb: picture.to_vec() };
            Ok(save_png(&picture, &folder.path().join(format!("{number:08}.png")))?)
        })?;
        Ok(folder.finish()?)
    }
}

fn from_tensors(file: &TensorFile) -> Result<Vec<Vec<u16>>> {
    let ids = match (file.has("ids"), file.ints("ids", 3)) {
        (true, Ok(ids)) => ids,
        (true, Err(_)) => file.ints("ids", 2)?,
        (false, _) => file.ints("final_ids", 2)?,
    };
    let tokens = ids.shape()[1..].iter().product::<usize>();
    ensure!(
        tokens > 0 && tokens.isqrt().pow(2) == tokens,
        "ids: expected a square grid of tokens for each image, found shape {:?}",
        ids.shape()
    );
    let flat: Vec<i64> = ids.iter().copied().collect();
    let image = |(index, row): (usize, &[i64])| -> Result<Vec<u16>> {
        let id = |&id: &i64| {
            u16::try_from(id).with_context(|| format!("ids: image {index}: expected 0 to 65535, found {id}"))
        };
        row.iter().map(id).collect()
    };
    flat.chunks_exact(tokens).enumerate().map(image).collect()
}
