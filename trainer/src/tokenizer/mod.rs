//! Tokenizers: an image to a grid of codes, and back.
//!
//! [`PatchTokenizer`] is a codebook of pixel patches, found by k-means in seconds; [`Vqgan`] is the convolutional
//! one of the paper, [`Vit`] a light transformer, both trained by [`learn`]. [`open`] tells them apart by what is in
//! the file, and takes the one in a pack, too.

pub mod job;
mod kmeans;
pub mod learn;
mod learned;
mod packed;
mod patches;
mod report;
pub mod vit;
pub mod vqgan;

use std::path::{Path, PathBuf};

use ndarray::{Array3, Array4, ArrayView4};

pub use kmeans::{train, TrainOptions, TrainProgress};
pub use learned::{Autoencoder, Learned};
pub use patches::PatchTokenizer;
pub use report::{agreement, check, psnr_db, sheet, Report};
use sorcen_export::found;
use sorcen_export::onnx::{write_tokenizer, TokenizerWeights, VqganWeights};
use sorcen_export::tokenizer::{AnyTokenizer, PATCH_FORMAT, VIT_FORMAT};
pub use vit::Vit;
pub use vqgan::Vqgan;

use crate::data::DataError;
use crate::device::{with_backend, Device};
use crate::files::first_bytes;

/// Turns images into grids of codes and back. Images are bytes `[side, side, 3]`, ids row-major `[grid, grid]`
/// with `grid = side / stride`.
pub trait Tokenizer: Sync {
    /// Pixels a token is wide and high; sides of images are multiples of it.
    fn stride(&self) -> usize;

    /// Codes K: ids are `0..K`.
    fn codes(&self) -> usize;

    /// What a token dataset records of its tokenizer: kind, sizes and SHA-256 of the weights.
    fn fingerprint(&self) -> String;

    /// Encodes images. What an image becomes does not depend on those beside it.
    ///
    /// # Errors
    /// [`TokenizerError::Size`] where `side` is not a multiple of the stride.
    fn encode_all(&self, images: &[Vec<u8>], side: usize) -> Result<Vec<Vec<u16>>, TokenizerError>;

    /// Decodes grids of ids into images of side `grid * stride`.
    ///
    /// # Errors
    /// [`TokenizerError::Id`] for an id that is no code, [`TokenizerError::Tokens`] for a wrong number of them.
    fn decode_all(&self, ids: &[Vec<u16>], grid: usize) -> Result<Vec<Vec<u8>>, TokenizerError>;

    /// Decodes one grid of ids.
    ///
    /// # Errors
    /// As [`decode_all`](Self::decode_all).
    fn decode(&self, ids: &[u16], grid: usize) -> Result<Vec<u8>, TokenizerError> {
        Ok(self.decode_all(&[ids.to_vec()], grid)?.into_iter().next().unwrap_or_default())
    }

    /// Encodes images `[B, 3, H, W]` and decodes them again: ids `[B, h, w]` and pixels `[B, 3, H, W]`, both of
    /// nominal range 0 to 1.
    ///
    /// # Errors
    /// [`TokenizerError`] for another number of channels, sides that are no multiples of the stride, or values
    /// that the tokenizer cannot take.
    fn run(&self, images: ArrayView4<f32>) -> Result<(Array3<i64>, Array4<f32>), TokenizerError>;
}

/// Why a tokenizer cannot do as asked.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The sides of an image.
    #[error("image: expected sides that are multiples of the tokenizer's stride ({stride}), found {height}x{width}")]
    Size {
        /// Pixels a token.
        stride: usize,
        /// Height of the image.
        height: usize,
        /// Width of the image.
        width: usize,
    },
    /// The side of an image, for a tokenizer whose images are of one size.
    #[error("image: expected a side of {expected} pixels, the only one of this tokenizer, found {found}")]
    Side {
        /// The tokenizer's.
        expected: usize,
        /// The image's.
        found: usize,
    },
    /// Tensors of images.
    #[error("image: expected {expected}, found {found}")]
    Image {
        /// What it should be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// The number of ids of an image.
    #[error("ids: expected {expected} (a square grid), found {found}")]
    Tokens {
        /// `grid * grid`.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// An id that is no code.
    #[error("token {index}: expected an id below {codes}, found {found}")]
    Id {
        /// Where in the image's ids.
        index: usize,
        /// Codes of the tokenizer.
        codes: usize,
        /// The id.
        found: u16,
    },
    /// The runtime's tokenizer refuses.
    #[error(transparent)]
    Runtime(#[from] sorcen_runtime::Error),
}

/// Refuses images whose sides are no multiples of `stride`; returns the grid `(h, w)`.
fn grid_of(stride: usize, height: usize, width: usize) -> Result<(usize, usize), TokenizerError> {
    match height > 0 && width > 0 && height.is_multiple_of(stride) && width.is_multiple_of(stride) {
        true => Ok((height / stride, width / stride)),
        false => Err(TokenizerError::Size { stride, height, width }),
    }
}

/// Refuses ids that are not `grid * grid` codes.
fn check_ids(ids: &[u16], grid: usize, codes: usize) -> Result<(), TokenizerError> {
    if ids.len() != grid * grid {
        return Err(TokenizerError::Tokens { expected: grid * grid, found: ids.len() });
    }
    match ids.iter().position(|&id| usize::from(id) >= codes) {
        Some(index) => Err(TokenizerError::Id { index, codes, found: ids[index] }),
        None => Ok(()),
    }
}

/// Opens a tokenizer: what `sorcen tokenizer train` wrote, the one in a pack (`.srcn`), or the weights of an official VQGAN
/// (PyTorch's or safetensors), bare, under `state_dict`, or as `vqgan.*` inside a MAGE checkpoint.
/// Of a folder, its `tokenizer.safetensors` (or that of the `checkpoint` in it) or `model.safetensors` is taken, else
/// the only file of weights.
///
/// Patches and packs run on the CPU whatever `device` says.
///
/// # Errors
/// [`DataError`] names the file and what it lacks.
pub fn open(path: &Path, device: Device) -> Result<Box<dyn Tokenizer>, DataError> {
    let path = file_of(path)?;
    // A GPU is kept busy by many images at a time; on the CPU each image has a thread of its own.
    let batch = if device == Device::Cpu { 1 } else { 16 };
    Ok(match Format::of(&path)? {
        Format::Patches => Box::new(PatchTokenizer::open(&path)?),
        Format::Pack => packed::open(&path)?,
        Format::Vit => with_backend!(device, B => Box::new(Vit::<B>::open(&path, batch, Default::default())?)),
        Format::Vqgan => with_backend!(device, B => Box::new(Vqgan::<B>::open(&path, batch, Default::default())?)),
    })
}

/// What can be opened, in messages.
const TOKENIZER: &str =
    "a tokenizer's file (of `sorcen tokenizer train`, a VQGAN's, a pack), or a folder with one (tokenizer.safetensors)";

/// Kinds of files.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Patches,
    Pack,
    Vit,
    Vqgan,
}

impl Format {
    /// Ours say what they are, whatever else is wrong with them.
    fn of(path: &Path) -> Result<Self, DataError> {
        const NONE: [&str; 5] = ["nothing", "neither a file nor a folder", "an empty file", "an image", "a numpy file"];
        let found = found::at(path);
        if NONE.contains(&found.as_str()) {
            return Err(DataError::invalid(path, "tokenizer", TOKENIZER, found));
        }
        let start = first_bytes(path, 4096).map_err(DataError::io(path))?;
        let says = |format: &str| start.windows(format.len()).any(|window| window == format.as_bytes());
        Ok(match () {
            () if start.starts_with(&sorcen_runtime::pack::MAGIC) => Self::Pack,
            () if says(PATCH_FORMAT) => Self::Patches,
            () if says(VIT_FORMAT) => Self::Vit,
            () => Self::Vqgan,
        })
    }
}

/// Writes a tokenizer's two halves as ONNX files for images of `side` pixels into the folder `out`; returns their paths.
///
/// # Errors
/// [`DataError`] names the file, or that `side` does not fit.
pub fn write_onnx(path: &Path, side: usize, out: &Path, licence: &str) -> Result<Vec<PathBuf>, DataError> {
    let path = file_of(path)?;
    let format = Format::of(&path)?;
    if format == Format::Pack {
        return Err(DataError::invalid(&path, "tokenizer", "its own file, whose weights are f32", "a pack"));
    }
    let tokenizer = open(&path, Device::Cpu)?;
    let (stride, fingerprint) = (tokenizer.stride(), tokenizer.fingerprint());
    if let Err(error) = tokenizer.encode_all(&[], side) {
        return Err(DataError::invalid(&path, "size", "one that fits the tokenizer", error));
    }
    let write = |weights: &TokenizerWeights| write_tokenizer(weights, side / stride, out, &fingerprint, licence);
    if format == Format::Vqgan {
        let (file, prefix) = vqgan::open_weights(&path)?;
        let source = file.source();
        let get = |name: &str| {
            let name = crate::model::weight::join(&prefix, name);
            let shape = source.shape(&name)?;
            source.values(&name, &shape).ok().map(|values| (shape, values))
        };
        return Ok(write(&TokenizerWeights::Vqgan(&VqganWeights { get: &get }))?);
    }
    match AnyTokenizer::open(&path)? {
        AnyTokenizer::Patches(patches) => Ok(write(&TokenizerWeights::Patches(&patches))?),
        AnyTokenizer::Vit(vit) => Ok(write(&TokenizerWeights::Vit(&vit))?),
    }
}

/// A file itself; of a folder, the file in it with a known name, or the only one that holds weights.
fn file_of(path: &Path) -> Result<PathBuf, DataError> {
    if !path.is_dir() {
        return Ok(path.to_path_buf());
    }
    let known =
        ["tokenizer.safetensors", "checkpoint/tokenizer.safetensors", "model.safetensors"].map(|name| path.join(name));
    if let Some(file) = known.into_iter().find(|file| file.is_file()) {
        return Ok(file);
    }
    let weights = |file: &PathBuf| {
        let extension = file.extension().and_then(|extension| extension.to_str());
        matches!(extension, Some("safetensors" | "ckpt" | "pth" | "pt" | "bin"))
    };
    let entries = path.read_dir().map_err(DataError::io(path))?;
    let files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(weights).collect();
    match <[PathBuf; 1]>::try_from(files) {
        Ok([file]) => Ok(file),
        Err(files) => {
            let found = match files.len() {
                0 => found::at(path),
                count => format!("a folder with {count} files of weights"),
            };
            Err(DataError::invalid(path, "tokenizer", TOKENIZER, found))
        }
    }
}

#[cfg(test)]
mod tests;
