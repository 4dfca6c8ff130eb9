//! The tokenizer in a pack as a [`Tokenizer`]: what a device computes, to be measured or to tokenise with.

use std::path::Path;

use ndarray::{Array3, Array4, ArrayView4, Axis};
use rayon::prelude::*;
use sorcen_export::fingerprint::Fingerprint;
use sorcen_export::pack::PackFile;
use sorcen_export::tokenizer::Painter;
use sorcen_runtime::vit::VitConfig;
use sorcen_runtime::Pack;

use super::{check_ids, PatchTokenizer, Tokenizer, TokenizerError};
use crate::data::{sha256_hex, DataError};

/// Opens the tokenizer of a pack.
///
/// # Errors
/// [`DataError`] names the file, and what is wrong in it or that it has no tokenizer.
pub fn open(path: &Path) -> Result<Box<dyn Tokenizer>, DataError> {
    let file = PackFile::open(path)?;
    let pack = file.pack(path)?;
    if let Some(vit) = pack.vit() {
        let (config, sha256) = (*vit.config(), sha256_hex(vit.bytes()));
        let VitConfig { codes, code_dim, grid, patch, .. } = config;
        let mut fingerprint = format!("packed vit {codes}x{code_dim} {grid}x{grid} /{patch} sha256:{sha256}");
        // Older packs do not say which file it was.
        if let Some(file) = Fingerprint::of_tokenizer_in(path, &pack).value() {
            fingerprint += &format!(" of {file}");
        }
        return Ok(Box::new(PackedVit { file, config, fingerprint }));
    }
    match pack.tokenizer() {
        Some(patches) => {
            let tokenizer = PatchTokenizer::new(patches.codebook().to_vec(), patches.codes(), patches.patch());
            Ok(Box::new(tokenizer.map_err(sorcen_export::Error::from)?))
        }
        None => Err(DataError::invalid(path, "tokenizer", "a pack with one (`sorcen pack --tokenizer`)", "none")),
    }
}

/// A ViT tokenizer run by the runtime, one image a thread.
struct PackedVit {
    file: PackFile,
    config: VitConfig,
    fingerprint: String,
}

impl PackedVit {
    /// Runs `f` with what encodes and paints.
    fn with<R>(&self, f: impl FnOnce(&Painter<'_>) -> Result<R, TokenizerError>) -> Result<R, TokenizerError> {
        match Painter::of_pack(&Pack::new(self.file.bytes())?) {
            Some(painter) => f(&painter),
            None => Err(sorcen_runtime::Error::Option { name: "pack", expected: "one with a tokenizer" }.into()),
        }
    }

    fn check_side(&self, height: usize, width: usize) -> Result<(), TokenizerError> {
        let expected = self.config.side();
        match [height, width].into_iter().find(|&side| side != expected) {
            Some(found) => Err(TokenizerError::Side { expected, found }),
            None => Ok(()),
        }
    }
}

impl Tokenizer for PackedVit {
    fn stride(&self) -> usize {
        self.config.patch
    }

    fn codes(&self) -> usize {
        self.config.codes
    }

    fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }

    fn encode_all(&self, images: &[Vec<u8>], side: usize) -> Result<Vec<Vec<u16>>, TokenizerError> {
        self.check_side(side, side)?;
        let grid = self.config.grid;
        self.with(|painter| images.par_iter().map(|rgb| Ok(painter.encode(rgb, grid)?)).collect())
    }

    fn decode_all(&self, ids: &[Vec<u16>], grid: usize) -> Result<Vec<Vec<u8>>, TokenizerError> {
        let side = grid * self.config.patch;
        self.check_side(side, side)?;
        ids.iter().try_for_each(|ids| check_ids(ids, grid, self.config.codes))?;
        self.with(|painter| ids.par_iter().map(|ids| Ok(painter.decode(ids, grid)?)).collect())
    }

    fn run(&self, images: ArrayView4<f32>) -> Result<(Array3<i64>, Array4<f32>), TokenizerError> {
        let (batch, channels, height, width) = images.dim();
        self.check_side(height, width)?;
        if channels != 3 {
            return Err(TokenizerError::Image { expected: "[B, 3, H, W]", found: format!("{:?}", images.shape()) });
        }
        if let Some(value) = images.iter().find(|value| !(0.0..=1.0).contains(*value)) {
            return Err(TokenizerError::Image { expected: "values in 0 to 1", found: value.to_string() });
        }
        let bytes = |image: ndarray::ArrayView3<f32>| -> Vec<u8> {
            image.permuted_axes([1, 2, 0]).iter().map(|value| (value * 255.0).round() as u8).collect()
        };
        let pixels: Vec<_> = images.axis_iter(Axis(0)).map(bytes).collect();
        let grid = self.config.grid;
        let ids = self.encode_all(&pixels, height)?;
        let decoded = self.decode_all(&ids, grid)?;
        let id = |(image, row, column): (usize, usize, usize)| -> i64 { ids[image][row * grid + column].into() };
        let value = |(image, channel, y, x): (usize, usize, usize, usize)| {
            f32::from(decoded[image][(y * width + x) * 3 + channel]) / 255.0
        };
        Ok((Array3::from_shape_fn((batch, grid, grid), id), Array4::from_shape_fn((batch, 3, height, width), value)))
    }
}
