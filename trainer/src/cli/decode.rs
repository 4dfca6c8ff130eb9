//! `sorcen decode`: token ids to pictures.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{bail, ensure, Context, Result};
use ndarray::ArrayView1;
use sorcen_export::atomic::Pending;
use sorcen_export::fingerprint::{Fingerprint, Kind};
use sorcen_export::ids;
use sorcen_export::picture::png;
use sorcen_export::tensors::TensorFile;

use super::features::check_codes;
use super::tokenizer::TokenizerArgs;
use crate::data::TokenDataset;
use crate::exchange::write_images;
use crate::files::{expect_room, PartialDir};
use crate::picture::{Grid, Picture};
use crate::tokenizer::Tokenizer;

/// Turn token ids back into pictures: a sheet, one PNG each, or one array for
/// evaluators
///
/// The ids come from a token dataset, or from a safetensors file with a tensor
/// `ids` [B,h,h] or [B,T] as `tokenizer run` writes it, or `final_ids` as
/// `generate` does, or `token_ids`.
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

    /// Take a tokenizer that, by the fingerprints, is another than the one that made the ids: an error without
    #[arg(long)]
    allow_other_tokenizer: bool,

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
    let source = Source::open(args)?;
    let own = Fingerprint::new(args.tokenizer.path().display(), Some(tokenizer.fingerprint()));
    source.made_with().expect(&own, Kind::Tokenizer, args.allow_other_tokenizer)?;
    if let Source::Dataset(dataset) = &source {
        check_codes(dataset.dir(), dataset.codebook_size(), args.tokenizer.path(), tokenizer.as_ref())?;
    }
    let most = args.count.map_or(if args.out.is_some() { 64 } else { usize::MAX }, |count| count as usize);
    let numbers: Vec<usize> = (args.first..source.len()).take(most).collect();
    usage_unless!(
        !numbers.is_empty(),
        "--first: expected 0 to below {}, the images there are, found {}",
        source.len(),
        args.first
    );
    let pictures = Pictures { source, numbers, tokenizer: tokenizer.as_ref() };
    let (count, side) = (pictures.numbers.len(), pictures.side());
    if let Err(error) = tokenizer.decode_all(&[], pictures.grid()) {
        bail!(
            "{}: expected a tokenizer that paints {1}x{1} tokens: {error}",
            args.tokenizer.path().display(),
            pictures.grid()
        );
    }
    // What can be wrong with the outputs is found before the work is done.
    let bytes = (count * side * side * 3) as u64;
    let sheet = args.out.as_deref().map(Pending::create).transpose()?;
    if let Some(sheet) = &sheet {
        sheet.expect_room(bytes * u64::from(args.scale).pow(2) / PNG_AT_BEST)?;
    }
    let folder = match &args.png_dir {
        Some(dir) => Some(begin_folder(dir, bytes / PNG_AT_BEST).with_context(|| dir.display().to_string())?),
        None => None,
    };
    let npz = args.npz.as_deref().map(Pending::create).transpose()?;
    if let Some(npz) = &npz {
        npz.expect_room(bytes)?;
    }

    if let Some(file) = sheet {
        let mut all = Vec::new();
        pictures.each(|_, picture| {
            all.push(picture.to_vec());
            Ok(())
        })?;
        let layout =
            Grid { columns: usize::from(args.columns).min(all.len()), scale: args.scale.into(), ..Grid::default() };
        let path = file.target().to_owned();
        file.finish_with(&png(&layout.draw(&all, side))?)?;
        println!("{}: {count} images", path.display());
    }
    if let Some((folder, dir)) = folder.zip(args.png_dir.as_ref()) {
        pictures.write_pngs(folder).with_context(|| dir.display().to_string())?;
        println!("{}: {count} images", dir.display());
    }
    if let Some(file) = npz {
        let write = |write: &mut dyn FnMut(&[u8]) -> io::Result<()>| {
            pictures.each(|_, picture| Ok(write(picture)?)).map_err(io::Error::other)
        };
        let path = file.target().to_owned();
        file.write_with(|file| write_images(file, count, side, write))?;
        println!("{}: arr_0 uint8 [{count}, {side}, {side}, 3]", path.display());
    }
    Ok(())
}

/// How many times smaller a PNG of pictures is than its pixels at best: room for so little is there at least.
const PNG_AT_BEST: u64 = 16;

fn begin_folder(dir: &Path, bytes: u64) -> Result<PartialDir> {
    let folder = PartialDir::create(dir)?;
    expect_room(folder.path(), bytes)?;
    Ok(folder)
}

enum Source {
    Dataset(TokenDataset),
    Tensors(Vec<Vec<u16>>, Fingerprint),
}

impl Source {
    fn open(args: &Args) -> Result<Self> {
        let Some(path) = &args.input else {
            return Ok(Self::Dataset(TokenDataset::open(args.data.as_deref().unwrap_or(Path::new("")))?));
        };
        let file = TensorFile::open(path)?;
        Ok(Self::Tensors(from_tensors(&file)?, Fingerprint::of_ids(path, &file)?))
    }

    /// The tokenizer whose codes the ids are.
    fn made_with(&self) -> Fingerprint {
        match self {
            Self::Dataset(dataset) => {
                Fingerprint::new(dataset.dir().display(), dataset.tokenizer().map(str::to_string))
            }
            Self::Tensors(_, made_with) => made_with.clone(),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Dataset(dataset) => dataset.len(),
            Self::Tensors(ids, _) => ids.len(),
        }
    }

    fn ids(&self, index: usize) -> Vec<u16> {
        match self {
            Self::Dataset(dataset) => {
                let mut ids = vec![0; dataset.tokens()];
                dataset.ids(index, &mut ids);
                ids
            }
            Self::Tensors(ids, _) => ids[index].clone(),
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

    fn write_pngs(&self, folder: PartialDir) -> Result<()> {
        let side = self.side();
        self.each(|number, picture| {
            let picture = Picture { width: side, height: side, rgb: picture.to_vec() };
            Ok(std::fs::write(folder.path().join(format!("{number:08}.png")), png(&picture)?)?)
        })?;
        Ok(folder.finish()?)
    }
}

fn from_tensors(file: &TensorFile) -> Result<Vec<Vec<u16>>> {
    let (name, ids) = ids::read(file)?;
    let tokens = ids.ncols();
    ensure!(
        tokens > 0 && tokens.isqrt().pow(2) == tokens,
        "{}: expected a square grid of tokens for each image, found shape {:?}",
        file.item(name),
        ids.shape()
    );
    let image = |(index, row): (usize, ArrayView1<i64>)| -> Result<Vec<u16>> {
        let id = |&id: &i64| {
            let item = file.item(name);
            u16::try_from(id).with_context(|| format!("{item}: image {index}: expected 0 to 65535, found {id}"))
        };
        row.iter().map(id).collect()
    };
    ids.rows().into_iter().enumerate().map(image).collect()
}
