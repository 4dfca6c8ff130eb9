//! Tokenizers' files, as far as packs and ONNX need them: patch codebooks, and ViT tokenizers.

mod painter;
mod patches;
mod vit;

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use safetensors::{tensor::TensorView, SafeTensors};

use crate::{error::Error, found};

pub use painter::Painter;
pub use patches::PatchTokenizer;
pub use vit::VitTokenizer;

/// What the metadata of a patch tokenizer's file says under `format`.
pub const PATCH_FORMAT: &str = patches::FORMAT;
/// What the metadata of a ViT tokenizer's file says under `format`.
pub const VIT_FORMAT: &str = vit::FORMAT;

/// A safetensors file whose bytes are a function of what is in it: safetensors writes metadata in the order of a hash
/// map, another in each process.
fn serialize(
    views: Vec<(String, TensorView<'_>)>,
    metadata: &BTreeMap<&str, &str>,
) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
    const BEFORE: usize = 8 + r#"{"__metadata__":"#.len();
    let unordered = metadata.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    let mut file = safetensors::serialize(views, Some(unordered))?;
    let ordered = serde_json::to_string(metadata)?;
    if let Some(object) = file.get_mut(BEFORE..BEFORE + ordered.len()) {
        object.copy_from_slice(ordered.as_bytes()); // the same entries, so as long
    }
    Ok(file)
}

/// A tokenizer of either kind.
pub enum AnyTokenizer {
    /// A codebook of patches.
    Patches(PatchTokenizer),
    /// A ViT tokenizer.
    Vit(VitTokenizer),
}

impl AnyTokenizer {
    /// Opens `tokenizer.safetensors`: a patch codebook unless its metadata says that it is a ViT tokenizer. Of a
    /// folder, the file of that name in it or in its `checkpoint`.
    ///
    /// # Errors
    /// Any [`Error`] naming the file and what is wrong in it.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let inside = ["tokenizer.safetensors", "checkpoint/tokenizer.safetensors"].map(|name| path.join(name));
        let file = inside.into_iter().find(|file| file.is_file()).unwrap_or_else(|| path.to_owned());
        let found = found::at(&file);
        if found != found::TOKENIZER && found != found::SAFETENSORS {
            let expected = "a tokenizer (tokenizer.safetensors of `sorcen tokenizer train`, or its folder)";
            return Err(Error::value(path.display(), expected, found));
        }
        let bytes = std::fs::read(&file).map_err(Error::io(&file, "read"))?;
        let says_vit =
            |metadata: &HashMap<String, String>| metadata.get("format").is_some_and(|format| format == VIT_FORMAT);
        let header = SafeTensors::read_metadata(&bytes).map(|(_, header)| header);
        match header.is_ok_and(|header| header.metadata().as_ref().is_some_and(says_vit)) {
            true => VitTokenizer::open(&file).map(Self::Vit),
            false => PatchTokenizer::open(&file).map(Self::Patches),
        }
    }

    /// Number K of codes.
    pub fn codes(&self) -> usize {
        match self {
            Self::Patches(patches) => patches.codes(),
            Self::Vit(vit) => vit.config().codes,
        }
    }

    /// What a token dataset records of its tokenizer: kind, sizes and SHA-256 of the weights.
    pub fn fingerprint(&self) -> String {
        match self {
            Self::Patches(patches) => patches.fingerprint(),
            Self::Vit(vit) => vit.fingerprint(),
        }
    }

    /// Refuses a model with other codes, or a grid that this tokenizer does not have.
    ///
    /// # Errors
    /// [`Error::Value`] with both numbers.
    pub fn check_fit(&self, codes: usize, grid: usize) -> Result<(), Error> {
        let own_grid = match self {
            Self::Patches(_) => None,
            Self::Vit(vit) => Some(vit.config().grid),
        };
        check_fit((self.codes(), own_grid), (codes, grid))
    }
}

/// Refuses a model with other codes than a tokenizer's, or another grid, where the tokenizer has only one.
fn check_fit(own: (usize, Option<usize>), (codes, grid): (usize, usize)) -> Result<(), Error> {
    let check = |item: &str, expected: usize, found: usize| match expected == found {
        true => Ok(()),
        false => Err(Error::value(format!("tokenizer: {item}"), format!("{expected}, the model's"), found)),
    };
    check("codes", codes, own.0)?;
    check("grid", grid, own.1.unwrap_or(grid))
}
