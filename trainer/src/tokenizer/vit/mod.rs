//! The light ViT tokenizer in Burn: patches → blocks → nearest codes → blocks → patches.
//!
//! Sizes, names and shapes are the runtime's ([`VitParam`]); the file is the exporter's, which puts it into packs.

mod start;

use std::path::Path;

use burn::tensor::backend::Backend;
use burn::tensor::Tensor;
use sorcen_export::tokenizer::VitTokenizer as VitFile;
use sorcen_runtime::vit::{VitConfig, VitParam};

use super::{Autoencoder, Learned};
use crate::data::DataError;
use crate::kernels::Kernels;
use crate::model::block::{self, Block};
use crate::model::layers::{Dropout, LayerNorm, Linear};
use crate::model::normalise_tokens;
use crate::model::weight::{weights, Weight, Weights as _};
pub use start::{check_start, start_as_patches};

/// A ViT tokenizer on a Burn backend.
pub type Vit<B> = Learned<B, Net<B>>;

/// Encoder, codebook and decoder. Activations are `[B, T, D]`.
#[derive(Clone, Debug)]
pub struct Net<B: Backend> {
    patch_embed: Linear<B>,
    position: Weight<B>,
    blocks: Vec<Block<B>>,
    norm: LayerNorm<B>,
    to_code: Linear<B>,
    codebook: Weight<B>,
    from_code: Linear<B>,
    decoder_position: Weight<B>,
    decoder_blocks: Vec<Block<B>>,
    decoder_norm: LayerNorm<B>,
    to_pixels: Linear<B>,
    config: VitConfig,
}

weights!(Net {
    patch_embed => "patch_embed",
    position => "pos_embed",
    blocks => "blocks",
    norm => "norm",
    to_code => "to_code",
    codebook => "quantize.embedding.weight",
    from_code => "from_code",
    decoder_position => "decoder_pos_embed",
    decoder_blocks => "decoder_blocks",
    decoder_norm => "decoder_norm",
    to_pixels => "to_pixels",
});

impl<B: Kernels> Net<B> {
    /// Zeros.
    pub fn new(config: &VitConfig, device: &B::Device) -> Self {
        let (width, eps) = (config.embed_dim, VitConfig::LAYER_NORM_EPS);
        let blocks = |depth| -> Vec<_> {
            (0..depth).map(|_| Block::new(width, config.num_heads, config.hidden_dim(), eps, device)).collect()
        };
        Self {
            patch_embed: Linear::new(config.patch_values(), width, device),
            position: Weight::zeros(&[config.tokens(), width], device),
            blocks: blocks(config.depth),
            norm: LayerNorm::new(width, eps, device),
            to_code: Linear::new(width, config.code_dim, device),
            codebook: Weight::buffer(&[config.codes, config.code_dim], device),
            from_code: Linear::new(config.code_dim, width, device),
            decoder_position: Weight::zeros(&[config.tokens(), width], device),
            decoder_blocks: blocks(config.decoder_depth),
            decoder_norm: LayerNorm::new(width, eps, device),
            to_pixels: Linear::new(width, config.patch_values(), device),
            config: *config,
        }
    }

    /// The network of a file.
    pub fn from_file(file: &VitFile, device: &B::Device) -> Self {
        let mut net = Self::new(file.config(), device);
        let mut params = VitParam::all(file.config());
        net.visit_mut("", &mut |_, weight| {
            if let Some(param) = params.next() {
                weight.set_from(file.tensor(param).to_vec(), device);
            }
        });
        net
    }

    /// The network as a file.
    ///
    /// # Errors
    /// [`sorcen_runtime::Error`] where a weight is not finite.
    pub fn to_file(&self) -> Result<VitFile, sorcen_runtime::Error> {
        let mut weights = Vec::new();
        self.visit("", &mut |_, weight| weights.push(weight.to_vec()));
        VitFile::new(self.config, weights)
    }

    /// One position each, then blocks, then a norm: `[B*T, D]` to `[B*T, D]`.
    fn stack(&self, x: Tensor<B, 2>, position: &Weight<B>, blocks: &[Block<B>], norm: &LayerNorm<B>) -> Tensor<B, 2> {
        let (tokens, width) = (self.config.tokens(), self.config.embed_dim);
        let batch = x.dims()[0] / tokens;
        let x = x.reshape([batch, tokens, width]) + position.get().unsqueeze::<3>();
        normalise_tokens(norm, block::run(blocks, x, &Dropout::off())).reshape([batch * tokens, width])
    }
}

impl<B: Kernels> Autoencoder<B> for Net<B> {
    fn stride(&self) -> usize {
        self.config.patch
    }

    fn grid(&self) -> Option<usize> {
        Some(self.config.grid)
    }

    fn byte(&self, value: f32) -> u8 {
        (value * 255.0).round_ties_even().clamp(0.0, 255.0) as u8
    }

    fn latent(&self, images: Tensor<B, 4>) -> Tensor<B, 4> {
        let VitConfig { grid, patch, code_dim, .. } = self.config;
        let batch = images.dims()[0];
        let patches = images.reshape([batch, 3, grid, patch, grid, patch]).permute([0, 2, 4, 3, 5, 1]);
        let patches = patches.reshape([batch * grid * grid, self.config.patch_values()]) * 2.0 - 1.0;
        let x = self.stack(self.patch_embed.forward(patches), &self.position, &self.blocks, &self.norm);
        self.to_code.forward(x).reshape([batch, grid, grid, code_dim]).permute([0, 3, 1, 2])
    }

    fn codebook(&self) -> &Weight<B> {
        &self.codebook
    }

    fn codebook_mut(&mut self) -> &mut Weight<B> {
        &mut self.codebook
    }

    fn decode(&self, vectors: Tensor<B, 4>) -> Tensor<B, 4> {
        let VitConfig { grid, patch, code_dim, .. } = self.config;
        let batch = vectors.dims()[0];
        let rows = vectors.permute([0, 2, 3, 1]).reshape([batch * grid * grid, code_dim]);
        let x = self.from_code.forward(rows);
        let x = self.stack(x, &self.decoder_position, &self.decoder_blocks, &self.decoder_norm);
        let pixels = self.to_pixels.forward(x) * 0.5 + 0.5;
        let pixels = pixels.reshape([batch, grid, grid, patch, patch, 3]).permute([0, 5, 1, 3, 2, 4]);
        pixels.reshape([batch, 3, grid * patch, grid * patch])
    }
}

impl<B: Kernels> Vit<B> {
    /// Loads a file of `sorcen tokenizer train --kind vit`. At most `batch` images are worked on together; with
    /// `batch` 1 each has a thread of its own.
    ///
    /// # Errors
    /// [`DataError`] names the file and what is wrong in it.
    pub fn open(path: &Path, batch: usize, device: B::Device) -> Result<Self, DataError> {
        let file = VitFile::open(path)?;
        Ok(Self::new(Net::from_file(&file, &device), file.fingerprint(), batch, device))
    }

    /// The sizes.
    pub fn config(&self) -> &VitConfig {
        &self.net().config
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use sorcen_runtime::scratch::Scratch;
    use sorcen_runtime::vit::Vit as Runtime;

    use super::*;
    use crate::tokenizer::Tokenizer as _;

    const CONFIG: VitConfig = VitConfig {
        grid: 4,
        patch: 4,
        codes: 50,
        code_dim: 6,
        embed_dim: 32,
        depth: 2,
        num_heads: 4,
        decoder_depth: 2,
        mlp_ratio: 4,
    };

    fn net() -> Net<Flex> {
        let device = Default::default();
        let mut net = Net::<Flex>::new(&CONFIG, &device);
        net.initialise("", 5, &device);
        let codes = crate::model::init::uniform("codes", CONFIG.codes * CONFIG.code_dim, 1.0, 1);
        net.codebook.set_from(codes, &device);
        net
    }

    #[test]
    fn weights_are_the_schema_s() {
        let mut params = VitParam::all(&CONFIG);
        net().visit("", &mut |name, weight| {
            let param = params.next().unwrap();
            assert_eq!((name, weight.dims()), (&*param.to_string(), param.shape(&CONFIG).dims()));
        });
        assert_eq!(params.next(), None);
    }

    /// The pack's f32 forward and Burn's are written apart; what they compute is the same.
    #[test]
    fn agrees_with_the_runtime() {
        let file = net().to_file().unwrap();
        let section = file.section(None).unwrap();
        let mut memory = vec![0; section.len() + 64];
        let start = memory.as_ptr().align_offset(64);
        memory[start..start + section.len()].copy_from_slice(&section);
        let runtime = Runtime::new(&memory[start..start + section.len()]).unwrap();
        let burn =
            Vit::<Flex>::new(Net::from_file(&file, &Default::default()), file.fingerprint(), 1, Default::default());

        let side = CONFIG.side();
        let images: Vec<Vec<u8>> = (0..3u32)
            .map(|n| (0..side * side * 3).map(|i| ((i as u32 * (7 + n) / 3) ^ (i as u32 / 48 * 11)) as u8).collect())
            .collect();
        let ids = burn.encode_all(&images, side).unwrap();
        let decoded = burn.decode_all(&ids, CONFIG.grid).unwrap();
        let mut working = vec![0; Scratch::vit_bytes(&CONFIG)];
        for ((image, ids), decoded) in images.iter().zip(&ids).zip(&decoded) {
            let mut scratch = Scratch::for_vit(&mut working, &CONFIG).unwrap();
            let (mut found, mut rgb) = (vec![0; ids.len()], vec![0; image.len()]);
            runtime.encode(image, &mut scratch, &mut found).unwrap();
            assert_eq!(&found, ids);
            runtime.decode(&found, &mut scratch, &mut rgb).unwrap();
            let worst = rgb.iter().zip(decoded).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            assert!(worst <= 1, "{worst}");
        }
        assert!(ids.concat().iter().collect::<std::collections::BTreeSet<_>>().len() > 5, "{ids:?}");
        assert!(burn.encode_all(&images, 2 * side).is_err(), "its positions are of one size");
    }
}
