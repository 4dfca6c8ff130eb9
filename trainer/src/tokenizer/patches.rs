//! The patch tokenizer: trained by k-means, kept in one safetensors file, run by the runtime's integers.

use std::path::Path;

use ndarray::{Array3, Array4, ArrayView4, Axis};
use rayon::prelude::*;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use sorcen_runtime::tokenizer::PatchCodebook;

use super::{check_ids, grid_of, Tokenizer, TokenizerError};
use crate::data::{sha256_hex, DataError};
use crate::files::{first_bytes, write_atomically};

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
}

/// Whether a file is one of [`PatchTokenizer::save`]'s: a safetensors file that says so, whatever else is wrong.
pub(super) fn is_patches(path: &Path) -> Result<bool, DataError> {
    let start = first_bytes(path, 4096).map_err(DataError::io(path))?;
    Ok(start.windows(FORMAT.len()).any(|window| window == FORMAT.as_bytes()))
}

impl Tokenizer for PatchTokenizer {
    fn stride(&self) -> usize {
        self.patch
    }

    fn codes(&self) -> usize {
        self.codes
    }

    fn fingerprint(&self) -> String {
        format!("patch-codebook {}x{}x{} sha256:{}", self.codes, self.patch, self.patch, sha256_hex(&self.patches))
    }

    fn encode_all(&self, images: &[Vec<u8>], side: usize) -> Result<Vec<Vec<u16>>, TokenizerError> {
        let (grid, _) = grid_of(self.patch, side, side)?;
        let encode = |rgb: &Vec<u8>| {
            let mut ids = vec![0; grid * grid];
            self.codebook().encode(rgb, side, side, &mut ids)?;
            Ok(ids)
        };
        images.par_iter().map(encode).collect()
    }

    fn decode_all(&self, ids: &[Vec<u16>], grid: usize) -> Result<Vec<Vec<u8>>, TokenizerError> {
        let side = grid * self.patch;
        let decode = |ids: &Vec<u16>| {
            check_ids(ids, grid, self.codes)?;
            let mut rgb = vec![0; side * side * 3];
            self.codebook().decode(ids, side, side, &mut rgb)?;
            Ok(rgb)
        };
        ids.par_iter().map(decode).collect()
    }

    fn run(&self, images: ArrayView4<f32>) -> Result<(Array3<i64>, Array4<f32>), TokenizerError> {
        let (batch, channels, height, width) = images.dim();
        let (rows, columns) = grid_of(self.patch, height, width)?;
        if channels != 3 {
            return Err(TokenizerError::Image { expected: "[B, 3, H, W]", found: format!("{:?}", images.shape()) });
        }
        if let Some(value) = images.iter().find(|value| !(0.0..=1.0).contains(*value)) {
            return Err(TokenizerError::Image { expected: "values in 0 to 1", found: value.to_string() });
        }
        let mut all_ids = Array3::<i64>::zeros((batch, rows, columns));
        let mut reconstruction = Array4::<f32>::zeros((batch, 3, height, width));
        for index in 0..batch {
            let place = |i: usize| [index, i % 3, i / 3 / width, i / 3 % width]; // of byte i of [H, W, 3]
            let bytes = (0..height * width * 3).map(|i| (images[place(i)] * 255.0).round() as u8);
            let mut rgb: Vec<u8> = bytes.collect();
            let mut ids = vec![0; rows * columns];
            self.codebook().encode(&rgb, width, height, &mut ids)?;
            self.codebook().decode(&ids, width, height, &mut rgb)?;
            all_ids.index_axis_mut(Axis(0), index).iter_mut().zip(ids).for_each(|(to, id)| *to = id.into());
            rgb.iter().enumerate().for_each(|(i, &value)| reconstruction[place(i)] = f32::from(value) / 255.0);
        }
        Ok((all_ids, reconstruction))
    }
}
