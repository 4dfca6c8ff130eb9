//! The patch tokenizer's graphs: pixels to ids and back, exact as the runtime's integers are.

use super::graph::{Attr, Dim, Elem, Graph};
use crate::tokenizer::PatchTokenizer;

const B: Dim = Dim::Symbol("B");
const IMAGE_DOC: &str = "RGB pixels, 0 to 1.";
const IDS_DOC: &str = "Codes of the patches.";

/// `image` → `ids`, for images of `grid` patches a side. The nearest code has the smallest |z - e|², so the largest z·e - |e|²/2; both terms are
/// computed from whole numbers, exact in f32 for patches up to 8x8.
pub fn encoder(tokenizer: &PatchTokenizer, grid: usize) -> Graph {
    let (codes, patch) = (tokenizer.codes(), tokenizer.patch());
    let image = [B, 3.into(), (grid * patch).into(), (grid * patch).into()];
    let mut g = Graph::new("patch_tokenizer_encoder", "Pixels to codes: the nearest patch of the codebook.");
    g.input("image", Elem::F32, &image, IMAGE_DOC);
    let full = g.floats("255", &[], &[255.0], "The largest byte.");
    let scaled = g.node("Mul", "scaled", &["image", &full]).floats(&image, "Pixels, 0 to 255.");
    let pixels = g.node("Round", "pixels", &[&scaled]).floats(&image, "Pixels as whole numbers.");

    let size = patch * patch * 3;
    let channels_first = |code: usize| {
        let of = move |channel, place| f32::from(tokenizer.patches()[code * size + place * 3 + channel]);
        (0..3).flat_map(move |channel| (0..patch * patch).map(move |place| of(channel, place)))
    };
    let kernels: Vec<f32> = (0..codes).flat_map(channels_first).collect();
    let norm = |patch: &[u8]| patch.iter().map(|&x| f32::from(x) * f32::from(x)).sum::<f32>() / 2.0;
    let norms: Vec<f32> = tokenizer.patches().chunks_exact(size).map(norm).collect();
    let kernels = g.floats("patches", &[codes, 3, patch, patch], &kernels, "The codebook's patches.");
    let norms = g.floats("half_squares", &[1, codes, 1, 1], &norms, "Half the squared length of each patch.");
    let dims = [B, codes.into(), grid.into(), grid.into()];
    let side = [patch as i64; 2];
    let products = g.node("Conv", "products", &[&pixels, &kernels]).with(Attr::Ints("kernel_shape", &side));
    let products = products.with(Attr::Ints("strides", &side)).floats(&dims, "Products of patches and codes.");
    let score = g.node("Sub", "nearness", &[&products, &norms]).floats(&dims, "Largest for the nearest code.");
    let ids = g.node("ArgMax", "ids", &[&score]).with(Attr::Int("axis", 1)).with(Attr::Int("keepdims", 0));
    ids.ints(&[B, grid.into(), grid.into()], IDS_DOC);
    g.output("ids");
    g
}

/// `ids` → `image`, for images of `grid` patches a side.
pub fn decoder(tokenizer: &PatchTokenizer, grid: usize) -> Graph {
    let (codes, patch) = (tokenizer.codes(), tokenizer.patch());
    let image = [B, 3.into(), (grid * patch).into(), (grid * patch).into()];
    let size = patch * patch * 3;
    let mut g = Graph::new("patch_tokenizer_decoder", "Codes to pixels: patches side by side.");
    g.input("ids", Elem::I64, &[B, grid.into(), grid.into()], IDS_DOC);
    let bytes = || tokenizer.patches().to_vec();
    let doc = "The codebook's patches, [row, column, RGB].";
    let table = g.constant("patches".into(), Elem::U8, &[codes, size], bytes, doc);
    let taken = g.node("Gather", "taken", &[&table, "ids"]).with(Attr::Int("axis", 0));
    let taken = taken.gives(Elem::U8, &[B, grid.into(), grid.into(), size.into()], "A patch an id.");
    let wide = g.node("Cast", "wide", &[&taken]).with(Attr::Int("to", Elem::F32.code().into()));
    let wide = wide.floats(&[B, grid.into(), grid.into(), size.into()], "As floats.");
    let first = g.node("Transpose", "depth", &[&wide]).with(Attr::Ints("perm", &[0, 3, 1, 2]));
    let first = first.floats(&[B, size.into(), grid.into(), grid.into()], "A patch's numbers as channels.");
    let pixels = g.node("DepthToSpace", "pixels", &[&first]).with(Attr::Int("blocksize", patch as i64));
    let pixels = pixels.with(Attr::Text("mode", "DCR")).floats(&image, "Pixels, 0 to 255.");
    let full = g.floats("255", &[], &[255.0], "The largest byte.");
    g.node("Div", "image", &[&pixels, &full]).floats(&image, IMAGE_DOC);
    g.output("image");
    g
}
