//! The graphs of a VQGAN: the paper's tokenizer, or the same layout at any size.
//!
//! Residual blocks without biases; where channels change, the shortcut acts on the branch's output and the input is
//! not carried over; average pooling on the way down, doubling and a convolution on the way up; no attention.

use super::{
    graph::{Attr, Dim, Graph},
    layers::B,
    network::{self, Size, IMAGE_DOC},
};
use crate::error::Error;

/// Groups of every GroupNorm.
const GROUPS: usize = 32;
const EPS: f32 = 1e-6;

/// A weight: shape, and numbers, row-major.
pub type Weight = (Vec<usize>, Vec<f32>);

/// The weights of a VQGAN by their official names; `None` where there is none of a name.
pub struct VqganWeights<'a> {
    /// Reads one.
    pub get: &'a dyn Fn(&str) -> Option<Weight>,
}

impl VqganWeights<'_> {
    fn has(&self, name: &str) -> bool {
        (self.get)(name).is_some()
    }

    /// Number of levels: `encoder.down.N`.
    fn levels(&self) -> usize {
        (0..).take_while(|i| self.has(&format!("encoder.down.{i}.block.0.conv1.weight"))).count()
    }

    /// Codes `[K, z]`.
    pub fn codebook(&self) -> Result<(usize, Vec<f32>), Error> {
        match (self.get)("quantize.embedding.weight") {
            Some((shape, values)) if shape.len() == 2 && shape[0] > 0 => Ok((shape[0], values)),
            other => Err(Error::value("quantize.embedding.weight", "a matrix", format!("{:?}", other.map(|w| w.0)))),
        }
    }

    /// Pixels a token.
    pub fn stride(&self) -> usize {
        1 << self.levels().saturating_sub(1)
    }
}

/// `image` → `ids`, for images of `grid` tokens a side.
///
/// # Errors
/// [`Error::Value`] names a weight that is missing.
pub fn encoder(weights: &VqganWeights, grid: usize) -> Result<Graph, Error> {
    let (codes, codebook) = weights.codebook()?;
    let size = Size { grid, stride: weights.stride() };
    let g = network::encoder("vqgan_encoder", "Pixels to codes: the encoder of a VQGAN.", size);
    let mut net = Net { g, weights, side: size.grid * size.stride, channels: 3 };
    let mut x = net.conv("encoder.conv_in", "image")?;
    let levels = weights.levels();
    for level in 0..levels {
        x = net.blocks(&format!("encoder.down.{level}"), x)?;
        if level + 1 < levels {
            net.side /= 2;
            let dims = net.dims();
            let pool = net.g.node("AveragePool", format!("encoder.down.{level}.pooled"), &[&x]);
            let pool = pool.with(Attr::Ints("kernel_shape", &[2, 2])).with(Attr::Ints("strides", &[2, 2]));
            x = pool.floats(&dims, "Half the size: means of four pixels.");
        }
    }
    x = net.block("encoder.mid.block_1", x)?;
    x = net.block("encoder.mid.block_2", x)?;
    x = net.norm("encoder.norm_out", &x)?;
    let latent = net.conv("encoder.conv_out", &x)?;
    network::nearest(&mut net.g, &latent, &codebook, codes, size);
    Ok(net.g)
}

/// `ids` → `image`, for images of `grid` tokens a side.
///
/// # Errors
/// As [`encoder`].
pub fn decoder(weights: &VqganWeights, grid: usize) -> Result<Graph, Error> {
    let (codes, codebook) = weights.codebook()?;
    let size = Size { grid, stride: weights.stride() };
    let doc = "Codes to pixels: the decoder of a VQGAN.";
    let (mut g, vectors) = network::decoder("vqgan_decoder", doc, &codebook, codes, size);
    let channels = codebook.len() / codes;
    let latent = g.node("Transpose", "latent", &[&vectors]).with(Attr::Ints("perm", &[0, 3, 1, 2]));
    let latent = latent.floats(&size.tokens(channels), "Channels first.");
    let mut net = Net { g, weights, side: grid, channels };
    let mut x = net.conv("decoder.conv_in", &latent)?;
    x = net.block("decoder.mid.block_1", x)?;
    x = net.block("decoder.mid.block_2", x)?;
    for level in (0..weights.levels()).rev() {
        x = net.blocks(&format!("decoder.up.{level}"), x)?;
        if level > 0 {
            x = net.doubled(&format!("decoder.up.{level}.upsample.doubled"), &x);
            x = net.conv(&format!("decoder.up.{level}.upsample.conv"), &x)?;
        }
    }
    x = net.norm("decoder.norm_out", &x)?;
    let out = net.conv("decoder.conv_out", &x)?;
    net.g.node("Identity", "image", &[&out]).floats(&size.image(), IMAGE_DOC);
    net.g.output("image");
    Ok(net.g)
}

/// Writes layers of `[B, channels, side, side]`; values are named after the weights.
struct Net<'a> {
    g: Graph,
    weights: &'a VqganWeights<'a>,
    side: usize,
    channels: usize,
}

impl Net<'_> {
    fn dims(&self) -> [Dim; 4] {
        [B, self.channels.into(), self.side.into(), self.side.into()]
    }

    fn weight(&self, name: &str) -> Result<Weight, Error> {
        (self.weights.get)(name).ok_or_else(|| Error::value(name, "a tensor of this name", "none"))
    }

    /// Residual blocks `PATH.block.N`.
    fn blocks(&mut self, path: &str, mut x: String) -> Result<String, Error> {
        for n in (0..).take_while(|n| self.weights.has(&format!("{path}.block.{n}.conv1.weight"))).collect::<Vec<_>>() {
            x = self.block(&format!("{path}.block.{n}"), x)?;
        }
        Ok(x)
    }

    fn block(&mut self, path: &str, x: String) -> Result<String, Error> {
        let mut h = self.norm(&format!("{path}.norm1"), &x)?;
        h = self.conv(&format!("{path}.conv1"), &h)?;
        h = self.norm(&format!("{path}.norm2"), &h)?;
        h = self.conv(&format!("{path}.conv2"), &h)?;
        let carried = match self.weights.has(&format!("{path}.nin_shortcut.weight")) {
            true => self.conv(&format!("{path}.nin_shortcut"), &h)?,
            false => x,
        };
        let dims = self.dims();
        Ok(self.g.node("Add", format!("{path}.output"), &[&carried, &h]).floats(&dims, "Output of the block."))
    }

    /// A convolution that keeps the picture's size.
    fn conv(&mut self, path: &str, x: &str) -> Result<String, Error> {
        let (shape, values) = self.weight(&format!("{path}.weight"))?;
        let &[to, from, side, _] = &shape[..] else {
            return Err(Error::value(format!("{path}.weight"), "four sizes", format!("{shape:?}")));
        };
        if from != self.channels {
            return Err(Error::value(format!("{path}.weight"), format!("{} inputs", self.channels), from));
        }
        let kernel = self.g.floats(format!("{path}.weight"), &shape, &values, "[out, in, height, width]");
        let mut inputs = vec![x.to_string(), kernel];
        if let Some((shape, values)) = (self.weights.get)(&format!("{path}.bias")) {
            inputs.push(self.g.floats(format!("{path}.bias"), &shape, &values, "A number an output channel."));
        }
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        self.channels = to;
        let (pads, kernel_shape) = ([side as i64 / 2; 4], [side as i64; 2]);
        let dims = self.dims();
        let conv = self.g.node("Conv", path, &inputs).with(Attr::Ints("kernel_shape", &kernel_shape));
        Ok(conv.with(Attr::Ints("pads", &pads)).floats(&dims, "Convolved."))
    }

    /// GroupNorm, then swish; opset 17 has no operator for the first.
    fn norm(&mut self, path: &str, x: &str) -> Result<String, Error> {
        let (channels, side, dims) = (self.channels, self.side, self.dims());
        let (weight, bias) = (self.weight(&format!("{path}.weight"))?.1, self.weight(&format!("{path}.bias"))?.1);
        let g = &mut self.g;
        let numbers = channels / GROUPS * side * side;
        let grouped: [Dim; 3] = [B, GROUPS.into(), numbers.into()];
        let one: [Dim; 3] = [B, GROUPS.into(), 1.into()];
        let shape = [0, GROUPS as i64, numbers as i64];
        let to = g.ints(format!("groups_of_{numbers}"), &[3], &shape, "Shape of channels in groups.");
        let shape = [0, channels as i64, side as i64, side as i64];
        let back = g.ints(format!("{channels}_of_{side}"), &[4], &shape, "Shape of channels of pixels.");
        let eps = g.floats("norm_epsilon", &[], &[EPS], "Keeps a division from 0.");
        let mean_of = |g: &mut Graph, name: String, x: &str, doc: &str| {
            let mean = g.node("ReduceMean", name, &[x]).with(Attr::Ints("axes", &[2])).with(Attr::Int("keepdims", 1));
            mean.floats(&one, doc)
        };
        let x = g.node("Reshape", format!("{path}.groups"), &[x, &to]).floats(&grouped, "Channels in groups.");
        let mean = mean_of(g, format!("{path}.mean"), &x, "Mean of each group.");
        let x = g.node("Sub", format!("{path}.centred"), &[&x, &mean]).floats(&grouped, "Less their mean.");
        let squares = g.node("Mul", format!("{path}.squares"), &[&x, &x]).floats(&grouped, "Squares.");
        let variance = mean_of(g, format!("{path}.variance"), &squares, "Variance of each group.");
        let variance = g.node("Add", format!("{path}.safe"), &[&variance, &eps]).floats(&one, "Above 0.");
        let deviation = g.node("Sqrt", format!("{path}.deviation"), &[&variance]).floats(&one, "Deviation.");
        let x = g.node("Div", format!("{path}.standard"), &[&x, &deviation]).floats(&grouped, "Of deviation 1.");
        let x = g.node("Reshape", format!("{path}.channels"), &[&x, &back]).floats(&dims, "Channels of pixels.");
        let weight = g.floats(format!("{path}.weight"), &[1, channels, 1, 1], &weight, "A factor a channel.");
        let bias = g.floats(format!("{path}.bias"), &[1, channels, 1, 1], &bias, "A shift a channel.");
        let x = g.node("Mul", format!("{path}.scaled"), &[&x, &weight]).floats(&dims, "Scaled.");
        let x = g.node("Add", path, &[&x, &bias]).floats(&dims, "GroupNorm's output.");
        let gate = g.node("Sigmoid", format!("{path}.gate"), &[&x]).floats(&dims, "sigmoid(x)");
        Ok(g.node("Mul", format!("{path}.swish"), &[&x, &gate]).floats(&dims, "x sigmoid(x)"))
    }

    /// Each pixel becomes a square of four.
    fn doubled(&mut self, name: &str, x: &str) -> String {
        let four = [B, (4 * self.channels).into(), self.side.into(), self.side.into()];
        let copies = self.g.node("Concat", format!("{name}.copies"), &[x; 4]).with(Attr::Int("axis", 1));
        let copies = copies.floats(&four, "Four copies of each channel.");
        self.side *= 2;
        let dims = self.dims();
        let node = self.g.node("DepthToSpace", name, &[&copies]).with(Attr::Int("blocksize", 2));
        node.with(Attr::Text("mode", "DCR")).floats(&dims, "Twice the size: copies side by side.")
    }
}
