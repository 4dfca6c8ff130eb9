//! The paper's tokenizer: a convolutional VQGAN, converted from JAX (file `vqgan_jax_strongaug.ckpt`).
//!
//! It differs from taming-transformers' model of that name: no attention, no `quant_conv` or `post_quant_conv`,
//! as many residual blocks in the decoder as in the encoder, average pooling on the way down, shortcuts that act
//! on the branch's output, no biases inside residual blocks, and pixels in 0 to 1 on both sides.

mod config;
mod layers;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use burn::tensor::backend::Backend;
use burn::tensor::Tensor;
use sha2::{Digest, Sha256};

pub use config::VqganConfig;
use layers::{Decoder, Encoder};

use super::{Autoencoder, Learned};
use crate::checkpoint::{fill, TensorList, WeightSource};
use crate::data::DataError;
use crate::import::WeightFile;
use crate::kernels::Kernels;
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

/// Opens a file of weights, and tells the part of the names that stands before those of a VQGAN, as `vqgan` in a MAGE
/// checkpoint.
pub(super) fn open_weights(path: &Path) -> Result<(WeightFile, String), DataError> {
    let file = WeightFile::open(path, None)?;
    let before = |name: &String| {
        let first = name.strip_suffix(CODEBOOK).or_else(|| name.strip_suffix("encoder.conv_in.weight"))?;
        Some(first.trim_end_matches('.').to_string())
    };
    let prefixes: BTreeSet<String> = file.source().names().iter().filter_map(before).collect();
    let prefixes: Vec<String> = prefixes.into_iter().collect();
    match &prefixes[..] {
        [] => Ok((file, String::new())),
        [first, ..] if first.is_empty() => Ok((file, String::new())),
        [only] => Ok((file, only.clone())),
        _ => Err(DataError::invalid(path, "tensors", "one VQGAN", prefixes.join(", "))),
    }
}

impl<B: Kernels> Vqgan<B> {
    /// Loads official weights: a PyTorch file of either format (read as data, nothing in it is executed) or
    /// safetensors; a bare state dict, one under `state_dict` or `model`, or the `vqgan.*` of a MAGE checkpoint.
    /// What only training needs (`loss.*`, a discriminator) is left out, with a note on standard error. Sizes are read
    /// from the shapes. At most `batch` images are worked on together; with `batch` 1 each has a
    /// thread of its own.
    ///
    /// # Errors
    /// [`DataError`] names the file and the tensor that is missing, of the wrong shape, or not part of this model.
    pub fn open(path: &Path, batch: usize, device: B::Device) -> Result<Self, DataError> {
        let (file, prefix) = open_weights(path)?;
        let source = file.source();
        let config = VqganConfig::of(source, &prefix)?;
        let mut net = Net::new(&config, &device);
        fill(source, &mut net, &prefix, &device)?;
        let left_out = strangers(source, &net, &prefix)?;
        let notes = file.notes().iter().cloned().chain(left_out);
        notes.for_each(|note| eprintln!("note: {}: {note}", path.display()));
        let fingerprint = net.fingerprint();
        Ok(Self::new(net, fingerprint, batch, device))
    }

    /// The sizes.
    pub fn config(&self) -> &VqganConfig {
        &self.net().config
    }
}

/// First parts of the names of what a VQGAN is trained with and does not run with.
const TRAINING_ONLY: [&str; 7] =
    ["loss", "discriminator", "perceptual_loss", "lpips", "logvar", "model_ema", "optimizer"];

/// Tells what only training needs, which is left out; refuses other tensors that this model does not have: with them
/// it would be another model.
fn strangers<B: Backend>(source: &dyn WeightSource, net: &Net<B>, prefix: &str) -> Result<Option<String>, DataError> {
    let mut known = BTreeSet::new();
    net.visit(prefix, &mut |name, _| {
        known.insert(name.to_string());
    });
    let mut left_out = BTreeMap::<&str, usize>::new();
    for name in source.names().into_iter().filter(|name| !known.contains(name)) {
        let Some(inside) = (match prefix {
            "" => Some(name.as_str()),
            prefix => name.strip_prefix(prefix).and_then(|name| name.strip_prefix('.')),
        }) else {
            continue;
        };
        match TRAINING_ONLY.into_iter().find(|part| inside.split('.').next() == Some(part)) {
            Some(part) => *left_out.entry(part).or_default() += 1,
            None => {
                return Err(DataError::invalid(source.path(), name, "no such tensor in this kind of VQGAN", "it"));
            }
        }
    }
    let parts = left_out.into_iter().map(|(part, count)| format!("{part} ({count})")).collect::<Vec<_>>();
    Ok((!parts.is_empty()).then(|| format!("left out: {}, which only training needs", parts.join(", "))))
}
