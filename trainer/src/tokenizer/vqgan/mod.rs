//! The paper's tokenizer: a convolutional VQGAN, converted from JAX (file `vqgan_jax_strongaug.ckpt`).
//!
//! It differs from taming-transformers' model of that name: no attention, no `quant_conv` or `post_quant_conv`,
//! as many residual blocks in the decoder as in the encoder, average pooling on the way down, shortcuts that act
//! on the branch's output, no biases inside residual blocks, and pixels in 0 to 1 on both sides.

mod config;
mod layers;

use std::path::Path;

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};
use ndarray::{Array3, Array4, ArrayView4};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

pub use config::VqganConfig;
use layers::{nearest_code, Decoder, Encoder};

use super::{check_ids, grid_of, Tokenizer, TokenizerError};
use crate::checkpoint::{fill, TensorFile, WeightSource};
use crate::data::DataError;
use crate::files::first_bytes;
use crate::import::PthFile;
use crate::model::weight::{weights, Weight, Weights as _};

/// Name of the codebook `[K, z]` in files.
pub(crate) const CODEBOOK: &str = "quantize.embedding.weight";

/// Encoder, codebook and decoder on a Burn backend.
#[derive(Clone, Debug)]
pub struct Vqgan<B: Backend> {
    net: Net<B>,
    config: VqganConfig,
    fingerprint: String,
    batch: usize,
    device: B::Device,
}

#[derive(Clone, Debug)]
struct Net<B: Backend> {
    encoder: Encoder<B>,
    decoder: Decoder<B>,
    codebook: Weight<B>,
}

weights!(Net { encoder => "encoder", decoder => "decoder", codebook => "quantize.embedding.weight" });

impl<B: Backend> Vqgan<B> {
    /// Loads official weights: a PyTorch file of either format (read as data, nothing in it is executed) or
    /// safetensors; a bare state dict, one under `state_dict` or `model`, or the `vqgan.*` of a MAGE checkpoint.
    /// Sizes are read from the shapes. At most `batch` images are worked on together; with `batch` 1 each has a
    /// thread of its own.
    ///
    /// # Errors
    /// [`DataError`] names the file and the tensor that is missing, of the wrong shape, or not part of this model.
    pub fn open(path: &Path, batch: usize, device: B::Device) -> Result<Self, DataError> {
        let start = first_bytes(path, 64).map_err(DataError::io(path))?;
        let source: Box<dyn WeightSource> = match PthFile::is_one(&start) {
            true => Box::new(PthFile::open(path)?),
            false => Box::new(TensorFile::open(path)?),
        };
        Self::from_source(source.as_ref(), batch, device)
    }

    fn from_source(source: &dyn WeightSource, batch: usize, device: B::Device) -> Result<Self, DataError> {
        let prefix = match source.shape("vqgan.encoder.conv_in.weight") {
            Some(_) => "vqgan",
            None => "",
        };
        let config = VqganConfig::of(source, prefix)?;
        let mut net = Net {
            encoder: Encoder::new(&config, &device),
            decoder: Decoder::new(&config, &device),
            codebook: Weight::zeros(&[config.codes, config.z_channels], &device),
        };
        fill(source, &mut net, prefix, &device)?;
        refuse_strangers(source, &net, prefix)?;
        let fingerprint = format!("vqgan {}x{} /{} sha256:{}", config.codes, config.z_channels, config.stride(), {
            let mut hash = Sha256::new();
            net.visit("", &mut |name, weight| {
                hash.update(name);
                weight.to_vec().iter().for_each(|value| hash.update(value.to_le_bytes()));
            });
            hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect::<String>()
        });
        Ok(Self { net, config, fingerprint, batch: batch.max(1), device })
    }

    /// The sizes.
    pub fn config(&self) -> &VqganConfig {
        &self.config
    }

    /// What is quantised: images `[B, 3, H, W]` in 0 to 1 to `[B, z, h, w]`.
    pub fn latent(&self, images: Tensor<B, 4>) -> Tensor<B, 4> {
        self.net.encoder.forward(images)
    }

    /// Images `[B, 3, H, W]` to ids `[B, h, w]`.
    pub fn encode(&self, images: Tensor<B, 4>) -> Tensor<B, 3, Int> {
        nearest_code(self.latent(images), self.net.codebook.get())
    }

    /// Ids `[B, h, w]` to images `[B, 3, H, W]`, nominally 0 to 1, not clamped.
    pub fn decode_ids(&self, ids: Tensor<B, 3, Int>) -> Tensor<B, 4> {
        let [batch, rows, columns] = ids.dims();
        let vectors = self.net.codebook.get().select(0, ids.reshape([batch * rows * columns]));
        let vectors = vectors.reshape([batch, rows, columns, self.config.z_channels]);
        self.net.decoder.forward(vectors.permute([0, 3, 1, 2]))
    }

    /// Applies `f` to batches of `items`, in order.
    fn batches<T: Sync, R: Send>(
        &self,
        items: &[T],
        f: impl Fn(&[T]) -> Result<Vec<R>, TokenizerError> + Send + Sync,
    ) -> Result<Vec<R>, TokenizerError> {
        let done: Vec<Vec<R>> = match self.batch {
            1 => items.par_chunks(1).map(f).collect::<Result<_, _>>()?,
            batch => items.chunks(batch).map(f).collect::<Result<_, _>>()?,
        };
        Ok(done.into_iter().flatten().collect())
    }

    fn upload(&self, images: Vec<f32>, shape: [usize; 4]) -> Tensor<B, 4> {
        Tensor::from_data(TensorData::new(images, shape), &self.device)
    }
}

impl<B: Backend> Tokenizer for Vqgan<B> {
    fn stride(&self) -> usize {
        self.config.stride()
    }

    fn codes(&self) -> usize {
        self.config.codes
    }

    fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }

    fn encode_all(&self, images: &[Vec<u8>], side: usize) -> Result<Vec<Vec<u16>>, TokenizerError> {
        let (grid, _) = grid_of(self.stride(), side, side)?;
        self.batches(images, |images| {
            let bytes = images.iter().flatten().map(|&byte| f32::from(byte) / 255.0).collect();
            let images = self.upload(bytes, [images.len(), side, side, 3]).permute([0, 3, 1, 2]);
            let ids = host_ids(self.encode(images));
            Ok(ids.chunks(grid * grid).map(|ids| ids.iter().map(|&id| id as u16).collect()).collect())
        })
    }

    /// As the official code writes pictures: 255 times the value, cut to 0 to 255, the fraction dropped.
    fn decode_all(&self, ids: &[Vec<u16>], grid: usize) -> Result<Vec<Vec<u8>>, TokenizerError> {
        ids.iter().try_for_each(|ids| check_ids(ids, grid, self.codes()))?;
        self.batches(ids, |ids| {
            let flat: Vec<i32> = ids.iter().flatten().map(|&id| id.into()).collect();
            let flat = Tensor::from_data(TensorData::new(flat, [ids.len(), grid, grid]), &self.device);
            let pixels = host(self.decode_ids(flat).permute([0, 2, 3, 1]));
            let side = grid * self.stride();
            let bytes = |pixels: &[f32]| pixels.iter().map(|x| (x * 255.0).clamp(0.0, 255.0) as u8).collect();
            Ok(pixels.chunks(side * side * 3).map(bytes).collect())
        })
    }

    fn run(&self, images: ArrayView4<f32>) -> Result<(Array3<i64>, Array4<f32>), TokenizerError> {
        let (batch, channels, height, width) = images.dim();
        let (rows, columns) = grid_of(self.stride(), height, width)?;
        if channels != 3 {
            return Err(TokenizerError::Image { expected: "[B, 3, H, W]", found: format!("{:?}", images.shape()) });
        }
        if let Some(value) = images.iter().find(|value| !value.is_finite()) {
            return Err(TokenizerError::Image { expected: "finite values", found: value.to_string() });
        }
        let pixels = 3 * height * width;
        let flat: Vec<f32> = images.iter().copied().collect();
        let each: Vec<&[f32]> = flat.chunks(pixels).collect();
        let done = self.batches(&each, |images| {
            let ids = self.encode(self.upload(images.concat(), [images.len(), 3, height, width]));
            let decoded = host(self.decode_ids(ids.clone()));
            let ids = host_ids(ids);
            Ok(ids.chunks(rows * columns).zip(decoded.chunks(pixels)).map(|(i, d)| (i.to_vec(), d.to_vec())).collect())
        })?;
        let (ids, decoded): (Vec<_>, Vec<_>) = done.into_iter().unzip();
        let unexpected = |error: ndarray::ShapeError| TokenizerError::Image {
            expected: "as many numbers out as in",
            found: error.to_string(),
        };
        Ok((
            Array3::from_shape_vec((batch, rows, columns), ids.concat()).map_err(unexpected)?,
            Array4::from_shape_vec((batch, 3, height, width), decoded.concat()).map_err(unexpected)?,
        ))
    }
}

/// Refuses tensors that this model does not have: with them it would be another model.
fn refuse_strangers<B: Backend>(source: &dyn WeightSource, net: &Net<B>, prefix: &str) -> Result<(), DataError> {
    let mut known = std::collections::BTreeSet::new();
    net.visit(prefix, &mut |name, _| {
        known.insert(name.to_string());
    });
    let inside = |name: &String| prefix.is_empty() || name.strip_prefix(prefix).is_some_and(|n| n.starts_with('.'));
    match source.names().into_iter().filter(inside).find(|name| !known.contains(name)) {
        Some(name) => Err(DataError::invalid(source.path(), name, "no such tensor in this kind of VQGAN", "it")),
        None => Ok(()),
    }
}

fn host<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().to_vec().unwrap_or_default()
}

fn host_ids<B: Backend>(ids: Tensor<B, 3, Int>) -> Vec<i64> {
    ids.into_data().convert::<i64>().to_vec().unwrap_or_default()
}
