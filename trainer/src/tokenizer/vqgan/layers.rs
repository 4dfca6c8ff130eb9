//! The two halves, top to bottom, and what they are made of. Activations are `[B, C, H, W]`.

use burn::tensor::backend::Backend;
use burn::tensor::module::{avg_pool2d, conv2d};
use burn::tensor::ops::ConvOptions;
use burn::tensor::{activation, Tensor};

use super::config::{VqganConfig, GROUPS};
use crate::model::weight::{weights, Weight};

const EPS: f32 = 1e-6;

/// A convolution that keeps the picture's size: odd kernel, stride 1.
#[derive(Clone, Debug)]
struct Conv<B: Backend> {
    weight: Weight<B>,
    bias: Option<Weight<B>>,
}

weights!(Conv { weight => "weight", bias => "bias" });

impl<B: Backend> Conv<B> {
    fn new(from: usize, to: usize, side: usize, biased: bool, device: &B::Device) -> Self {
        Self {
            weight: Weight::zeros(&[to, from, side, side], device),
            bias: biased.then(|| Weight::zeros(&[to], device)),
        }
    }

    fn forward(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        let &[to, from, side, _] = self.weight.dims() else { unreachable!("made with four sizes") };
        let weight = self.weight.get().reshape([to, from, side, side]);
        let bias = self.bias.as_ref().map(|bias| bias.get().reshape([to]));
        conv2d(x, weight, bias, ConvOptions::new([1, 1], [side / 2; 2], [1, 1], 1))
    }
}

/// GroupNorm, then swish: they always come together.
#[derive(Clone, Debug)]
struct Norm<B: Backend> {
    weight: Weight<B>,
    bias: Weight<B>,
}

weights!(Norm { weight => "weight", bias => "bias" });

impl<B: Backend> Norm<B> {
    fn new(channels: usize, device: &B::Device) -> Self {
        Self { weight: Weight::zeros(&[channels], device), bias: Weight::zeros(&[channels], device) }
    }

    fn forward(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        let [batch, channels, height, width] = x.dims();
        let x = x.reshape([batch, GROUPS, channels / GROUPS * height * width]);
        let x = x.clone() - x.mean_dim(2);
        let variance = x.clone().square().mean_dim(2);
        let x = (x / (variance + EPS).sqrt()).reshape([batch, channels, height, width]);
        let per_channel = |weight: &Weight<B>| weight.get().reshape([1, channels, 1, 1]);
        activation::silu(x * per_channel(&self.weight) + per_channel(&self.bias))
    }
}

/// `h = conv2(swish(gn(conv1(swish(gn(x))))))`; then `x + h`, or, where channels change, `shortcut(h) + h`:
/// the input is not carried over at all.
#[derive(Clone, Debug)]
struct Block<B: Backend> {
    norm1: Norm<B>,
    conv1: Conv<B>,
    norm2: Norm<B>,
    conv2: Conv<B>,
    shortcut: Option<Conv<B>>,
}

weights!(Block {
    norm1 => "norm1", conv1 => "conv1", norm2 => "norm2", conv2 => "conv2", shortcut => "nin_shortcut",
});

impl<B: Backend> Block<B> {
    fn new(from: usize, to: usize, device: &B::Device) -> Self {
        Self {
            norm1: Norm::new(from, device),
            conv1: Conv::new(from, to, 3, false, device),
            norm2: Norm::new(to, device),
            conv2: Conv::new(to, to, 3, false, device),
            shortcut: (from != to).then(|| Conv::new(to, to, 1, false, device)),
        }
    }

    /// `count` blocks, the first of which changes the channels.
    fn stack(from: usize, to: usize, count: usize, device: &B::Device) -> Vec<Self> {
        (0..count).map(|i| Self::new(if i == 0 { from } else { to }, to, device)).collect()
    }

    fn forward(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        let h = self.conv1.forward(self.norm1.forward(x.clone()));
        let h = self.conv2.forward(self.norm2.forward(h));
        match &self.shortcut {
            Some(shortcut) => shortcut.forward(h.clone()) + h,
            None => x + h,
        }
    }
}

fn through<B: Backend>(blocks: &[Block<B>], x: Tensor<B, 4>) -> Tensor<B, 4> {
    blocks.iter().fold(x, |x, block| block.forward(x))
}

/// The two blocks between the levels and the codes.
#[derive(Clone, Debug)]
struct Middle<B: Backend> {
    first: Block<B>,
    second: Block<B>,
}

weights!(Middle { first => "block_1", second => "block_2" });

impl<B: Backend> Middle<B> {
    fn new(channels: usize, device: &B::Device) -> Self {
        Self { first: Block::new(channels, channels, device), second: Block::new(channels, channels, device) }
    }

    fn forward(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        self.second.forward(self.first.forward(x))
    }
}

/// Blocks of one size of picture; in the decoder, the convolution that follows doubling it.
#[derive(Clone, Debug)]
struct Level<B: Backend> {
    blocks: Vec<Block<B>>,
    upsample: Option<Conv<B>>,
}

weights!(Level { blocks => "block", upsample => "upsample.conv" });

/// Images to what is quantised.
#[derive(Clone, Debug)]
pub struct Encoder<B: Backend> {
    conv_in: Conv<B>,
    down: Vec<Level<B>>,
    mid: Middle<B>,
    norm_out: Norm<B>,
    conv_out: Conv<B>,
}

weights!(Encoder {
    conv_in => "conv_in", down => "down", mid => "mid", norm_out => "norm_out", conv_out => "conv_out",
});

impl<B: Backend> Encoder<B> {
    /// Zeros.
    pub fn new(config: &VqganConfig, device: &B::Device) -> Self {
        let VqganConfig { stem, channels, encoder_blocks, z_channels, .. } = config;
        let before = std::iter::once(stem).chain(channels);
        let level = |(from, to): (&usize, &usize)| Level {
            blocks: Block::stack(*from, *to, *encoder_blocks, device),
            upsample: None,
        };
        let top = channels[channels.len() - 1];
        Self {
            conv_in: Conv::new(3, *stem, 3, false, device),
            down: before.zip(channels).map(level).collect(),
            mid: Middle::new(top, device),
            norm_out: Norm::new(top, device),
            conv_out: Conv::new(top, *z_channels, 1, true, device),
        }
    }

    /// `[B, 3, H, W]` to `[B, z, h, w]`.
    pub fn forward(&self, images: Tensor<B, 4>) -> Tensor<B, 4> {
        let mut x = self.conv_in.forward(images);
        for (i, level) in self.down.iter().enumerate() {
            x = through(&level.blocks, x);
            if i + 1 < self.down.len() {
                x = avg_pool2d(x, [2, 2], [2, 2], [0, 0], true, false);
            }
        }
        self.conv_out.forward(self.norm_out.forward(self.mid.forward(x)))
    }
}

/// Vectors of codes to images. Level 0 is the finest, so the last.
#[derive(Clone, Debug)]
pub struct Decoder<B: Backend> {
    conv_in: Conv<B>,
    mid: Middle<B>,
    up: Vec<Level<B>>,
    norm_out: Norm<B>,
    conv_out: Conv<B>,
}

weights!(Decoder {
    conv_in => "conv_in", mid => "mid", up => "up", norm_out => "norm_out", conv_out => "conv_out",
});

impl<B: Backend> Decoder<B> {
    /// Zeros.
    pub fn new(config: &VqganConfig, device: &B::Device) -> Self {
        let VqganConfig { channels, decoder_blocks, z_channels, .. } = config;
        let top = channels[channels.len() - 1];
        let level = |i: usize| Level {
            blocks: Block::stack(*channels.get(i + 1).unwrap_or(&top), channels[i], *decoder_blocks, device),
            upsample: (i > 0).then(|| Conv::new(channels[i], channels[i], 3, true, device)),
        };
        Self {
            conv_in: Conv::new(*z_channels, top, 3, true, device),
            mid: Middle::new(top, device),
            up: (0..channels.len()).map(level).collect(),
            norm_out: Norm::new(channels[0], device),
            conv_out: Conv::new(channels[0], 3, 3, true, device),
        }
    }

    /// `[B, z, h, w]` to `[B, 3, H, W]`.
    pub fn forward(&self, codes: Tensor<B, 4>) -> Tensor<B, 4> {
        let mut x = self.mid.forward(self.conv_in.forward(codes));
        for level in self.up.iter().rev() {
            x = through(&level.blocks, x);
            if let Some(conv) = &level.upsample {
                x = conv.forward(doubled(x));
            }
        }
        self.conv_out.forward(self.norm_out.forward(x))
    }
}

/// Each pixel becomes a square of four.
fn doubled<B: Backend>(x: Tensor<B, 4>) -> Tensor<B, 4> {
    let [batch, channels, height, width] = x.dims();
    let x = x.reshape([batch, channels, height, 1, width, 1]).expand([batch, channels, height, 2, width, 2]);
    x.reshape([batch, channels, 2 * height, 2 * width])
}
