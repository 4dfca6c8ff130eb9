//! What the graphs of tokenizers that are networks share: pictures in, the nearest code, the codes' vectors.

use super::{
    graph::{Attr, Dim, Elem, Graph},
    layers::B,
};

/// What an image is.
pub const IMAGE_DOC: &str = "RGB pixels, 0 to 1.";
const IDS_DOC: &str = "Numbers of the nearest codes.";

/// A grid of tokens and the pixels of one.
#[derive(Clone, Copy)]
pub struct Size {
    /// Tokens a side.
    pub grid: usize,
    /// Pixels a token.
    pub stride: usize,
}

impl Size {
    /// `[B, 3, side, side]`
    pub fn image(self) -> [Dim; 4] {
        let side = self.grid * self.stride;
        [B, 3.into(), side.into(), side.into()]
    }

    /// `[B, channels, grid, grid]`
    pub fn tokens(self, channels: usize) -> [Dim; 4] {
        [B, channels.into(), self.grid.into(), self.grid.into()]
    }

    fn ids(self) -> [Dim; 3] {
        [B, self.grid.into(), self.grid.into()]
    }
}

/// Starts an encoder's graph with its input `image`.
pub fn encoder(name: &str, doc: &str, size: Size) -> Graph {
    let mut g = Graph::new(name, doc);
    g.input("image", Elem::F32, &size.image(), IMAGE_DOC);
    g
}

/// Ends it: `latent` `[B, z, grid, grid]` → `ids`, by `|z|² + |e|² - 2ze` in f32, the first on ties.
pub fn nearest(g: &mut Graph, latent: &str, codebook: &[f32], codes: usize, size: Size) {
    let length = codebook.len() / codes;
    let column = [B, 1.into(), size.grid.into(), size.grid.into()];
    let all = size.tokens(codes);
    let squares = g.node("Mul", "latent_squares", &[latent, latent]).floats(&size.tokens(length), "z²");
    let axes = g.ints("channel_axis", &[1], &[1], "The axis of channels.");
    let z = g.node("ReduceSum", "latent_length", &[&squares, &axes]).with(Attr::Int("keepdims", 1));
    let z = z.floats(&column, "|z|²");
    let lengths: Vec<f32> = codebook.chunks_exact(length).map(|code| code.iter().map(|x| x * x).sum()).collect();
    let e = g.floats("code_lengths", &[1, codes, 1, 1], &lengths, "|e|² of each code.");
    let sum = g.node("Add", "lengths", &[&z, &e]).floats(&all, "|z|² + |e|²");
    let kernels = g.floats("codes", &[codes, length, 1, 1], codebook, "The codebook.");
    let products = g.node("Conv", "products", &[latent, &kernels]).with(Attr::Ints("kernel_shape", &[1, 1]));
    let products = products.floats(&all, "ze");
    let two = g.floats("two", &[], &[2.0], "2");
    let twice = g.node("Mul", "twice_products", &[&products, &two]).floats(&all, "2ze");
    let nearness = g.node("Sub", "nearness", &[&twice, &sum]).floats(&all, "Largest for the nearest code.");
    let ids = g.node("ArgMax", "ids", &[&nearness]).with(Attr::Int("axis", 1)).with(Attr::Int("keepdims", 0));
    ids.ints(&size.ids(), IDS_DOC);
    g.output("ids");
}

/// Starts a decoder's graph: `ids` → the codes' vectors `[B, grid, grid, z]`, whose name is returned.
pub fn decoder(name: &str, doc: &str, codebook: &[f32], codes: usize, size: Size) -> (Graph, String) {
    let length = codebook.len() / codes;
    let mut g = Graph::new(name, doc);
    g.input("ids", Elem::I64, &size.ids(), IDS_DOC);
    let table = g.floats("codes", &[codes, length], codebook, "The codebook.");
    let [b, h, w] = size.ids();
    let vectors = g.node("Gather", "vectors", &[&table, "ids"]).with(Attr::Int("axis", 0));
    let vectors = vectors.floats(&[b, h, w, length.into()], "A code an id.");
    (g, vectors)
}
