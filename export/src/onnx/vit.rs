//! The graphs of a ViT tokenizer; its blocks are the model's.

use sorcen_runtime::{
    schema::{Param, Stack},
    vit::{VitConfig, VitParam},
    ModelConfig,
};

use super::{
    graph::{Attr, Dim, Graph},
    layers::{transpose, Layers, Source, B},
    network::{self, Size, IMAGE_DOC},
    Weights,
};
use crate::tokenizer::VitTokenizer;

/// A tokenizer's blocks as a model's.
struct Blocks<'a> {
    tokenizer: &'a VitTokenizer,
    config: ModelConfig,
}

impl<'a> Blocks<'a> {
    fn new(tokenizer: &'a VitTokenizer) -> Self {
        let c = tokenizer.config();
        let config = ModelConfig {
            embed_dim: c.embed_dim,
            depth: c.depth,
            num_heads: c.num_heads,
            decoder_embed_dim: c.embed_dim,
            decoder_depth: c.decoder_depth,
            decoder_num_heads: c.num_heads,
            mlp_ratio: c.mlp_ratio,
            layer_norm_eps: VitConfig::LAYER_NORM_EPS,
            ..ModelConfig::micro(c.grid, c.codes)
        };
        Self { tokenizer, config }
    }
}

impl Source for Blocks<'_> {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn tensor(&self, param: Param) -> &[f32] {
        match param {
            Param::Block { stack, index, part } => self.tokenizer.tensor(VitParam::Block { stack, index, part }),
            _ => &[], // only blocks are written from here
        }
    }
}

fn size(c: &VitConfig) -> Size {
    Size { grid: c.grid, stride: c.patch }
}

/// `image` → `ids`.
pub fn encoder(tokenizer: &VitTokenizer) -> Graph {
    let c = *tokenizer.config();
    let (width, grid, patch) = (c.embed_dim, c.grid, c.patch);
    let mut g = network::encoder("vit_tokenizer_encoder", "Pixels to codes: a ViT tokenizer's encoder.", size(&c));
    let (two, one) = (g.floats("two", &[], &[2.0], "2"), g.floats("one_f32", &[], &[1.0], "1"));
    let image = size(&c).image();
    let x = g.node("Mul", "twice", &["image", &two]).floats(&image, "Pixels, 0 to 2.");
    let x = g.node("Sub", "pixels", &[&x, &one]).floats(&image, "Pixels, -1 to 1.");

    // A patch's numbers are [row, column, RGB]; a kernel's are channels first.
    let values = tokenizer.tensor(VitParam::PatchWeight);
    let channels_first = values.chunks_exact(c.patch_values()).flat_map(|row| transpose(row, patch * patch, 3));
    let kernels: Vec<f32> = channels_first.collect();
    let kernels = g.floats("patch_embed.weight", &[width, 3, patch, patch], &kernels, "[D, RGB, row, column]");
    let bias = g.floats("patch_embed.bias", &[width], tokenizer.tensor(VitParam::PatchBias), "A number a channel.");
    let side = [patch as i64; 2];
    let x = g.node("Conv", "patch_embed", &[&x, &kernels, &bias]).with(Attr::Ints("kernel_shape", &side));
    let x = x.with(Attr::Ints("strides", &side)).floats(&size(&c).tokens(width), "A vector a patch.");
    let rows = g.ints("rows", &[3], &[0, width as i64, (grid * grid) as i64], "Shape of tokens in a row.");
    let x = g.node("Reshape", "patch_columns", &[&x, &rows]);
    let x = x.floats(&[B, width.into(), (grid * grid).into()], "Tokens in a row.");
    let x = g.node("Transpose", "patch_rows", &[&x]).with(Attr::Ints("perm", &[0, 2, 1]));
    let dims = [B, c.tokens().into(), width.into()];
    let x = x.floats(&dims, "Tokens first.");
    let blocks = Blocks::new(tokenizer);
    let mut net = Net::new(g, &blocks);
    let x = net.stack(&x, VitParam::Position, Stack::Encoder, [VitParam::NormWeight, VitParam::NormBias]);
    let latent = net.linear("to_code", &x, VitParam::ToCodeWeight, VitParam::ToCodeBias);
    let mut g = net.layers.g;
    let dims = [B, grid.into(), grid.into(), c.code_dim.into()];
    let shape = g.ints("grid", &[4], &[0, grid as i64, grid as i64, c.code_dim as i64], "Shape of a grid of tokens.");
    let latent = g.node("Reshape", "latent_grid", &[&latent, &shape]).floats(&dims, "Rows and columns.");
    let latent = g.node("Transpose", "latent", &[&latent]).with(Attr::Ints("perm", &[0, 3, 1, 2]));
    let latent = latent.floats(&size(&c).tokens(c.code_dim), "Channels first.");
    network::nearest(&mut g, &latent, tokenizer.tensor(VitParam::Codebook), c.codes, size(&c));
    g
}

/// `ids` → `image`.
pub fn decoder(tokenizer: &VitTokenizer) -> Graph {
    let c = *tokenizer.config();
    let (grid, patch) = (c.grid, c.patch);
    let doc = "Codes to pixels: a ViT tokenizer's decoder.";
    let codebook = tokenizer.tensor(VitParam::Codebook);
    let (mut g, vectors) = network::decoder("vit_tokenizer_decoder", doc, codebook, c.codes, size(&c));
    let rows = g.ints("rows", &[3], &[0, c.tokens() as i64, c.code_dim as i64], "Shape of tokens in a row.");
    let dims = [B, c.tokens().into(), c.code_dim.into()];
    let x = g.node("Reshape", "code_rows", &[&vectors, &rows]).floats(&dims, "Tokens in a row.");
    let blocks = Blocks::new(tokenizer);
    let mut net = Net::new(g, &blocks);
    let x = net.linear("from_code", &x, VitParam::FromCodeWeight, VitParam::FromCodeBias);
    let norm = [VitParam::DecoderNormWeight, VitParam::DecoderNormBias];
    let x = net.stack(&x, VitParam::DecoderPosition, Stack::Decoder, norm);
    let x = net.linear("to_pixels", &x, VitParam::PixelsWeight, VitParam::PixelsBias);
    let mut g = net.layers.g;
    let shape = [0, grid, grid, patch, patch, 3].map(|n| n as i64);
    let shape = g.ints("patches", &[6], &shape, "Shape of patches of pixels.");
    let dims: [Dim; 6] = [B, grid.into(), grid.into(), patch.into(), patch.into(), 3.into()];
    let x = g.node("Reshape", "patch_pixels", &[&x, &shape]).floats(&dims, "Patches of pixels.");
    let x = g.node("Transpose", "patch_lines", &[&x]).with(Attr::Ints("perm", &[0, 5, 1, 3, 2, 4]));
    let dims: [Dim; 6] = [B, 3.into(), grid.into(), patch.into(), grid.into(), patch.into()];
    let x = x.floats(&dims, "Lines of pixels.");
    let side = c.side() as i64;
    let shape = g.ints("image_shape", &[4], &[0, 3, side, side], "Shape of an image.");
    let image = size(&c).image();
    let x = g.node("Reshape", "pixels", &[&x, &shape]).floats(&image, "Pixels, -1 to 1.");
    let half = g.floats("half", &[], &[0.5], "1/2");
    let x = g.node("Mul", "halved", &[&x, &half]).floats(&image, "Pixels, -1/2 to 1/2.");
    g.node("Add", "image", &[&x, &half]).floats(&image, IMAGE_DOC);
    g.output("image");
    g
}

struct Net<'a> {
    layers: Layers<'a>,
    tokenizer: &'a VitTokenizer,
}

impl<'a> Net<'a> {
    fn new(g: Graph, blocks: &'a Blocks<'a>) -> Self {
        let tokenizer = blocks.tokenizer;
        let tokens = tokenizer.config().tokens().into();
        Self { layers: Layers { g, checkpoint: blocks, weights: Weights::F32, tokens }, tokenizer }
    }

    fn constant(&mut self, param: VitParam) -> String {
        let shape = param.shape(self.tokenizer.config());
        self.layers.g.floats(param.to_string(), shape.dims(), self.tokenizer.tensor(param), "Of the tokenizer.")
    }

    /// A position each, blocks, a norm: `[B, T, D]`.
    fn stack(&mut self, x: &str, position: VitParam, stack: Stack, [weight, bias]: [VitParam; 2]) -> String {
        let c = *self.tokenizer.config();
        let dims = [B, c.tokens().into(), c.embed_dim.into()];
        let table = self.constant(position);
        let node = self.layers.g.node("Add", format!("{position}.added"), &[x, &table]);
        let mut x = node.floats(&dims, "What a token is and where.");
        let depth = if matches!(stack, Stack::Encoder) { c.depth } else { c.decoder_depth };
        for index in 0..depth {
            x = self.layers.block(&x, stack, index, c.embed_dim, c.num_heads);
        }
        let (gain, shift) = (self.constant(weight), self.constant(bias));
        let node = self.layers.g.node("LayerNormalization", format!("{weight}.normed"), &[&x, &gain, &shift]);
        let node = node.with(Attr::Int("axis", -1)).with(Attr::Float("epsilon", VitConfig::LAYER_NORM_EPS));
        node.floats(&dims, "Normalised.")
    }

    fn linear(&mut self, name: &str, x: &str, weight: VitParam, bias: VitParam) -> String {
        let c = *self.tokenizer.config();
        let (out, inner) = weight.shape(&c).matrix();
        let values = transpose(self.tokenizer.tensor(weight), out, inner);
        let doc = "[in, out]: transposed for MatMul.";
        let stored = self.layers.g.floats(format!("{weight}.T"), &[inner, out], &values, doc);
        let dims = [B, c.tokens().into(), out.into()];
        let x = self.layers.g.node("MatMul", format!("{name}.matmul"), &[x, &stored]).floats(&dims, "The product.");
        let bias = self.constant(bias);
        self.layers.g.node("Add", name, &[&x, &bias]).floats(&dims, "A linear layer.")
    }
}
