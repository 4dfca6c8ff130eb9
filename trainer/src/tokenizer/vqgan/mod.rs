//! The paper's tokenizer: a convolutional VQGAN, converted from JAX (file `vqgan_jax_strongaug.ckpt`).
//!
//! It differs from taming-transformers' model of that name: no attention, no `quant_conv` or `post_quant_conv`,
//! as many residual blocks in the decoder as in the encoder, average pooling on the way down, shortcuts that act
//! on the branch's output, no biases inside residual blocks, and pixels in 0 to 1 on both sides.

mod config;
mod layers;

use std::path::Path;

use burn::tensor::backend::Backend;
use burn::tensor::Tensor;
use sha2::{Digest, Sha256};

pub use config::VqganConfig;
use layers::{Decoder, Encoder};

use super::{Autoencoder, Learned};
use crate::checkpoint::{fill, TensorFile, TensorList, WeightSource};
use crate::data::DataError;
use crate::files::first_bytes;
use crate::import::PthFile;
use crate::model::weight::{weights, Weight, Weights as _};

/// Name of the codebook `[K, z]` in files.
pub(crate) const CODEBOOK: &str = "quantize.embedding.weight";

/// A VQGAN on a Burn backend.
pub type Vqgan<B> = Learned<B, Net<B>>;

/// Encoder, codebook and decoder.
#[derive(Clone, Debug)]
pub struct Net<B: Backend> {
    encoder: Encoder<B>,
    decoder: Decoder<B>,
    codebook: Weight<B>,
    config: VqganConfig,
}

weights!(Net { encoder => "encoder", decoder => "decoder", codebook => "quantize.embedding.weight" });

impl<B: Backend> Net<B> {
    /// Zeros.
    pub fn new(config: &VqganConfig, device: &B::Device) -> Self {
        Self {
            encoder: Encoder::new(config, device),
            decoder: Decoder::new(config, device),
            codebook: Weight::buffer(&[config.codes, config.z_channels], device),
            config: config.clone(),
        }
    }

    /// Kind, sizes and SHA-256 of names and weights.
    pub fn fingerprint(&self) -> String {
        let config = &self.config;
        format!("vqgan {}x{} /{} sha256:{}", config.codes, config.z_channels, config.stride(), {
            let mut hash = Sha256::new();
            self.visit("", &mut |name, weight| {
                hash.update(name);
                weight.to_vec().iter().for_each(|value| hash.update(value.to_le_bytes()));
            });
            hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect::<String>()
        })
    }

    /// Writes a safetensors file with the official names and shapes.
    ///
    /// # Errors
    /// [`DataError::Io`].
    pub fn save(&self, path: &Path) -> Result<(), DataError> {
        let mut tensors = TensorList::default();
        tensors.push_all(self, "", "");
        tensors.write(path)
    }
}

impl<B: Backend> Autoencoder<B> for Net<B> {
    fn stride(&self) -> usize {
        self.config.stride()
    }

    fn grid(&self) -> Option<usize> {
        None
    }

    /// As the official code writes pictures: 255 times the value, cut to 0 to 255, the fraction dropped.
    fn byte(&self, value: f32) -> u8 {
        (value * 255.0).clamp(0.0, 255.0) as u8
    }

    fn latent(&self, images: Tensor<B, 4>) -> Tensor<B, 4> {
        self.encoder.forward(images)
    }

    fn codebook(&self) -> &Weight<B> {
        &self.codebook
    }

    fn codebook_mut(&mut self) -> &mut Weight<B> {
        &mut self.codebook
    }

    fn decode(&self, vectors: Tensor<B, 4>) -> Tensor<B, 4> {
        self.decoder.forward(vectors)
    }
}

/// Opens a file of weights; the names of a MAGE checkpoint's start with the prefix that is returned.
pub(super) fn open_weights(path: &Path) -> Result<(Box<dyn WeightSource>, &'static str), DataError> {
    let start = first_bytes(path, 64).map_err(DataError::io(path))?;
    let source: Box<dyn WeightSource> = match PthFile::is_one(&start) {
        true => Box::new(PthFile::open(path)?),
        false => Box::new(TensorFile::open(path)?),
    };
    let prefix = match source.shape("vqgan.encoder.conv_in.weight") {
        Some(_) => "vqgan",
        None => "",
    };
    Ok((source, prefix))
}

impl<B: Backend> Vqgan<B> {
    /// Loads official weights: a PyTorch file of either format (read as data, nothing in it is executed) or
    /// safetensors; a bare state dict, one under `state_dict` or `model`, or the `vqgan.*` of a MAGE checkpoint.
    /// Sizes are read from the shapes. At most `batch` images are worked on together; with `batch` 1 each has a
    /// thread of its own.
    ///
    /// # Errors
    /// [`DataError`] names the file and the tensor that is missing, of the wrong shape, or not part of this model.
    pub fn open(path: &Path, batch: usize, device: B::Device) -> Result<Self, DataError> {
        let (source, prefix) = open_weights(path)?;
        let source = source.as_ref();
        let config = VqganConfig::of(source, prefix)?;
        let mut net = Net::new(&config, &device);
        fill(source, &mut net, prefix, &device)?;
        refuse_strangers(source, &net, prefix)?;
        let fingerprint = net.fingerprint();
        Ok(Self::new(net, fingerprint, batch, device))
    }

    /// The sizes.
    pub fn config(&self) -> &VqganConfig {
        &self.net().config
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
