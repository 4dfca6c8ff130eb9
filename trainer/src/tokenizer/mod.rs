//! The patch tokenizer: trained by k-means, kept in one safetensors file, run by the runtime's integers.

mod kmeans;
mod report;

use std::path::Path;

use rayon::prelude::*;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use sorcen_runtime::tokenizer::PatchCodebook;

pub use kmeans::{train, TrainOptions};
pub use report::{check, psnr_db, Report};

use crate::data::{sha256_hex, DataError};
use crate::files::write_atomically;

const TENSOR: &str = "codebook";
const FORMAT: &str = "sorcen-patch-codebook";
const VERSION: &str = "1";

/// K square RGB patches: an image is a grid of the nearest ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatchTokenizer {
    /// `[K, P, P, 3]`
    patches: Vec<u8>,
    codes: usize,
    patch: usize,
}

impl PatchTokenizer {
    /// A tokenizer of `codes` patches of side `patch`: `patches` is `[codes, patch, patch, 3]`.
    ///
    /// # Errors
    /// As [`PatchCodebook::new`].
    pub fn new(patches: Vec<u8>, codes: usize, patch: usize) -> Result<Self, sorcen_runtime::Error> {
        PatchCodebook::new(&patches, codes, patch)?;
        Ok(Self { patches, codes, patch })
    }

    /// Reads `tokenizer.safetensors`: one `U8` tensor `codebook` `[K, P, P, 3]`.
    ///
    /// # Errors
    /// [`DataError`] names what the file lacks.
    pub fn load(path: &Path) -> Result<Self, DataError> {
        let invalid = |item, expected, found: &dyn std::fmt::Display| DataError::invalid(path, item, expected, found);
        let file = std::fs::read(path).map_err(DataError::io(path))?;
        let (_, header) = SafeTensors::read_metadata(&file)
            .map_err(|error| invalid("contents", "a whole safetensors file", &error))?;
        let field = |key: &str| header.metadata().as_ref().and_then(|map| map.get(key).cloned()).unwrap_or_default();
        if field("format") != FORMAT {
            return Err(invalid("metadata `format`", FORMAT, &field("format")));
        }
        if field("version") != VERSION {
            return Err(invalid("metadata `version`", VERSION, &field("version")));
        }
        let tensors =
            SafeTensors::deserialize(&file).map_err(|error| invalid("contents", "a whole safetensors file", &error))?;
        let codebook = tensors.tensor(TENSOR).map_err(|error| invalid(TENSOR, "a tensor of this name", &error))?;
        let found = format!("{:?} {:?}", codebook.dtype(), codebook.shape());
        match (codebook.dtype(), codebook.shape()) {
            (Dtype::U8, &[codes, patch, width, 3]) if patch == width => {
                Self::new(codebook.data().to_vec(), codes, patch)
                    .map_err(|error| invalid(TENSOR, "1 to 65535 codes, patches of side 1 to 64", &error))
            }
            _ => Err(invalid(TENSOR, "U8 [K, P, P, 3]", &found)),
        }
    }

    /// Writes `tokenizer.safetensors` (see [`load`](Self::load)).
    ///
    /// # Errors
    /// [`DataError::Io`].
    pub fn save(&self, path: &Path) -> Result<(), DataError> {
        let shape = vec![self.codes, self.patch, self.patch, 3];
        let metadata = [("format", FORMAT), ("version", VERSION)].map(|(key, value)| (key.into(), value.into()));
        let bytes = TensorView::new(Dtype::U8, shape, &self.patches)
            .and_then(|view| safetensors::serialize([(TENSOR, view)], Some(metadata.into())))
            .map_err(|error| DataError::invalid(path, TENSOR, "a tensor to write", error))?;
        write_atomically(path, &bytes).map_err(DataError::io(path))
    }

    /// The codebook as the runtime takes it.
    pub fn codebook(&self) -> PatchCodebook<'_> {
        // `new` made sure of the sizes.
        PatchCodebook::new(&self.patches, self.codes, self.patch).unwrap_or_else(|error| unreachable!("{error}"))
    }

    /// The patches, `[K, P, P, 3]`.
    pub fn patches(&self) -> &[u8] {
        &self.patches
    }

    /// Number K of codes.
    pub fn codes(&self) -> usize {
        self.codes
    }

    /// Side P of a patch in pixels.
    pub fn patch(&self) -> usize {
        self.patch
    }

    /// What a token dataset records of its tokenizer: kind, sizes and SHA-256 of the patches.
    pub fn fingerprint(&self) -> String {
        format!("patch-codebook {}x{}x{} sha256:{}", self.codes, self.patch, self.patch, sha256_hex(&self.patches))
    }

    /// Encodes images `[N, side, side, 3]` (one `Vec` each) on all cores.
    ///
    /// # Errors
    /// As [`PatchCodebook::encode`].
    pub fn encode_all(&self, images: &[Vec<u8>], side: usize) -> Result<Vec<Vec<u16>>, sorcen_runtime::Error> {
        let grid = side / self.patch;
        let encode = |rgb: &Vec<u8>| {
            let mut ids = vec![0; grid * grid];
            self.codebook().encode(rgb, side, side, &mut ids).map(|()| ids)
        };
        images.par_iter().map(encode).collect()
    }

    /// Decodes ids `[grid, grid]` into `[grid * P, grid * P, 3]`.
    ///
    /// # Errors
    /// As [`PatchCodebook::decode`].
    pub fn decode(&self, ids: &[u16], grid: usize) -> Result<Vec<u8>, sorcen_runtime::Error> {
        let side = grid * self.patch;
        let mut rgb = vec![0; side * side * 3];
        self.codebook().decode(ids, side, side, &mut rgb)?;
        Ok(rgb)
    }
}

#[cfg(test)]
mod tests;
