//! The tokenizers in artefacts against the tokenizer's own file: images to ids, ids to images.

use std::path::Path;

use ndarray::{Array3, Array4, ArrayView2};
use rayon::prelude::*;
use serde::Serialize;
use sorcen_runtime::ModelConfig;

use crate::{
    error::Error,
    onnxruntime::Python,
    tokenizer::{AnyTokenizer, Painter},
    tolerance::{tokenizer_tolerance, TokenizerLink},
    tract,
};

/// Images that are compared, at most: a network's take their time.
const MOST_IMAGES: usize = 64;

/// One line of the table of tokenizers: the tokenizer of one artefact against the file's.
#[derive(Clone, Debug, Serialize)]
pub struct TokenizerComparison {
    /// What ran.
    pub engine: String,
    /// The artefact: a file or folder.
    pub path: String,
    /// Images compared.
    pub images: usize,
    /// Share of the tokens of images that get the same id.
    pub same_ids: f32,
    /// Largest difference of a pixel of images made from ids, in steps of 1/255.
    pub pixel_max: u8,
    /// Mean difference of all pixels, in steps of 1/255.
    pub pixel_mean: f32,
    /// Bound on `same_ids`.
    pub same_ids_bound: f32,
    /// Bound on `pixel_max`.
    pub pixel_max_bound: u8,
    /// Bound on `pixel_mean`.
    pub pixel_mean_bound: f32,
    /// Whether all bounds hold.
    pub passed: bool,
}

/// What the tokenizer's file makes of some images.
pub struct Expected<'t> {
    painter: Painter<'t>,
    is_network: bool,
    grid: usize,
    /// Tokens of the check, `[T]` each.
    tokens: Vec<Vec<u16>>,
    /// The pictures of these, `[side, side, 3]` each.
    pictures: Vec<Vec<u8>>,
    /// The pictures with noise, so that they are no codes.
    images: Vec<Vec<u8>>,
    /// Ids of the images, `[T]` each.
    ids: Vec<Vec<u16>>,
}

impl<'t> Expected<'t> {
    /// Of token maps `[B, T]` of a model; a masked token becomes code 0.
    ///
    /// # Errors
    /// [`Error::Value`] where the tokenizer does not fit the model.
    pub fn of(tokenizer: &'t AnyTokenizer, config: &ModelConfig, tokens: ArrayView2<i64>) -> Result<Self, Error> {
        tokenizer.check_fit(config.codebook_size, config.grid)?;
        let grid = config.grid;
        let code = |&id: &i64| if id == config.mask_token_id as i64 { 0 } else { id as u16 };
        let rows = tokens.rows().into_iter().take(MOST_IMAGES);
        let tokens: Vec<Vec<u16>> = rows.map(|row| row.iter().map(code).collect()).collect();
        let painter = Painter::of(tokenizer)?;
        let pictures = tokens.par_iter().map(|ids| painter.decode(ids, grid)).collect::<Result<Vec<_>, _>>()?;
        let noisy = |rgb: &Vec<u8>| -> Vec<u8> {
            rgb.iter().enumerate().map(|(i, x)| x.saturating_add((i * 7 % 23) as u8)).collect()
        };
        let images: Vec<Vec<u8>> = pictures.iter().map(noisy).collect();
        let ids = images.par_iter().map(|rgb| painter.encode(rgb, grid)).collect::<Result<Vec<_>, _>>()?;
        let is_network = matches!(tokenizer, AnyTokenizer::Vit(_));
        Ok(Self { painter, is_network, grid, tokens, pictures, images, ids })
    }

    /// Against a pack's.
    ///
    /// # Errors
    /// [`Error::Value`] where it has other sizes.
    pub fn in_pack(&self, painter: &Painter, engine: &str, path: &Path) -> Result<TokenizerComparison, Error> {
        let sizes = |painter: &Painter| format!("{} codes, {} pixels a token", painter.codes(), painter.stride());
        if sizes(painter) != sizes(&self.painter) {
            let item = format!("{}: tokenizer", path.display());
            return Err(Error::value(item, sizes(&self.painter), sizes(painter)));
        }
        let link = match (self.is_network, painter.is_integer()) {
            (false, _) => TokenizerLink::Patches,
            (true, false) => TokenizerLink::Vit,
            (true, true) => TokenizerLink::VitInt8,
        };
        let ids = self.images.par_iter().map(|rgb| painter.encode(rgb, self.grid)).collect::<Result<Vec<_>, _>>()?;
        let pictures =
            self.tokens.par_iter().map(|ids| painter.decode(ids, self.grid)).collect::<Result<Vec<_>, _>>()?;
        Ok(self.compare(engine, path, link, &ids, &pictures))
    }

    /// Against an export folder's, in tract.
    ///
    /// # Errors
    /// Where the files cannot be run, or give other shapes.
    pub fn in_tract(&self, dir: &Path) -> Result<TokenizerComparison, Error> {
        let (images, ids) = (self.image_tensor(), self.id_tensor());
        self.of_tensors("ONNX f32 in tract", dir, &tract::encode_images(dir, &images)?, &tract::decode_ids(dir, &ids)?)
    }

    /// Against an export folder's, in onnxruntime.
    ///
    /// # Errors
    /// As [`in_tract`](Self::in_tract).
    pub fn in_onnxruntime(&self, dir: &Path, python: &Python) -> Result<TokenizerComparison, Error> {
        let (images, ids) = (self.image_tensor(), self.id_tensor());
        let found = (python.encode_images(dir, &images)?, python.decode_ids(dir, &ids)?);
        self.of_tensors("ONNX f32 in onnxruntime", dir, &found.0, &found.1)
    }

    fn side(&self) -> usize {
        self.grid * self.painter.stride()
    }

    /// The noisy images `[B, 3, side, side]`, 0 to 1.
    fn image_tensor(&self) -> Array4<f32> {
        let side = self.side();
        Array4::from_shape_fn((self.images.len(), 3, side, side), |(b, channel, y, x)| {
            f32::from(self.images[b][(y * side + x) * 3 + channel]) / 255.0
        })
    }

    /// The check's tokens `[B, grid, grid]`.
    fn id_tensor(&self) -> Array3<i64> {
        Array3::from_shape_fn((self.tokens.len(), self.grid, self.grid), |(b, y, x)| {
            self.tokens[b][y * self.grid + x].into()
        })
    }

    fn of_tensors(
        &self,
        engine: &str,
        dir: &Path,
        ids: &Array3<i64>,
        images: &Array4<f32>,
    ) -> Result<TokenizerComparison, Error> {
        let (batch, side) = (self.images.len(), self.side());
        let expected = format!("ids {:?}, images {:?}", [batch, self.grid, self.grid], [batch, 3, side, side]);
        let found = format!("ids {:?}, images {:?}", ids.shape(), images.shape());
        if expected != found {
            return Err(Error::value(format!("{}: tokenizer", dir.display()), expected, found));
        }
        // What is no u16 is no id either.
        let id = |&id: &i64| u16::try_from(id).unwrap_or(u16::MAX);
        let ids: Vec<Vec<u16>> = ids.outer_iter().map(|ids| ids.iter().map(id).collect()).collect();
        let byte = |b: usize, i: usize| (images[[b, i % 3, i / 3 / side, i / 3 % side]] * 255.0).round() as u8;
        let picture = |b| (0..side * side * 3).map(|i| byte(b, i)).collect();
        let pictures: Vec<Vec<u8>> = (0..batch).map(picture).collect();
        let link = if self.is_network { TokenizerLink::Vit } else { TokenizerLink::Patches };
        Ok(self.compare(engine, dir, link, &ids, &pictures))
    }

    fn compare(
        &self,
        engine: &str,
        path: &Path,
        link: TokenizerLink,
        ids: &[Vec<u16>],
        pictures: &[Vec<u8>],
    ) -> TokenizerComparison {
        let pairs = || self.ids.iter().flatten().zip(ids.iter().flatten());
        let pixels = || self.pictures.iter().flatten().zip(pictures.iter().flatten()).map(|(a, b)| a.abs_diff(*b));
        let same_ids = pairs().filter(|(a, b)| a == b).count() as f32 / pairs().count() as f32;
        let pixel_max = pixels().max().unwrap_or(0);
        let pixel_mean = (pixels().map(f64::from).sum::<f64>() / pixels().count() as f64) as f32;
        let bounds = tokenizer_tolerance(link);
        TokenizerComparison {
            engine: engine.into(),
            path: path.display().to_string(),
            images: self.images.len(),
            same_ids,
            pixel_max,
            pixel_mean,
            same_ids_bound: bounds.same_ids,
            pixel_max_bound: bounds.pixel_max,
            pixel_mean_bound: bounds.pixel_mean,
            passed: same_ids >= bounds.same_ids && pixel_max <= bounds.pixel_max && pixel_mean <= bounds.pixel_mean,
        }
    }
}
