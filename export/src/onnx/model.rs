//! The model's graphs, in the order of `reference.rs`. B batch, N kept tokens, T grid tokens.

use sorcen_runtime::{
    config::{HEAD_LAYER_NORM_EPS, PROBE_NORM_EPS},
    schema::{Param, Part, Stack},
};

use super::graph::{Attr, Dim, Elem, Graph};
use crate::checkpoint::Checkpoint;

const B: Dim = Dim::Symbol("B");
const N: Dim = Dim::Symbol("N");
const N1: Dim = Dim::Symbol("N+1");

/// `token_ids`, `positions` → `latent`, `features`.
pub fn encoder(checkpoint: &Checkpoint) -> Graph {
    let c = &checkpoint.config;
    let mut g = Graph::new("sorcen_encoder", "Sorcen's encoder: kept VQ tokens and their positions to features.");
    let ids_doc = format!(
        "Kept tokens of each image: VQ codes 0..{}, or {} for a masked one. No class token.",
        c.codebook_size - 1,
        c.mask_token_id
    );
    g.input("token_ids", Elem::I64, &[B, N], &ids_doc);
    let positions_doc = format!(
        "Place of each token in the {0}x{0} grid, row-major, 0..{1}, increasing. All of 0..{1} for features.",
        c.grid,
        c.tokens() - 1
    );
    g.input("positions", Elem::I64, &[B, N], &positions_doc);
    let mut layers = Layers { g, checkpoint, tokens: N1 };
    layers.encoder();
    layers.g.output("latent");
    layers.g.output("features");
    layers.g
}

/// `latent`, `source` → `logits`.
pub fn decoder(checkpoint: &Checkpoint) -> Graph {
    let c = &checkpoint.config;
    let mut g = Graph::new("sorcen_decoder", "Sorcen's decoder: the encoder's output to logits of the VQ codes.");
    let d = c.embed_dim.into();
    g.input("latent", Elem::F32, &[B, N1, d], "Output `latent` of the encoder: class token, then kept tokens.");
    let source_doc = "Row of `latent` to put at each patch position; 0, the class token's row, where the token was \
                      dropped or masked.";
    g.input("source", Elem::I64, &[B, c.tokens().into()], source_doc);
    let mut layers = Layers { g, checkpoint, tokens: c.sequence().into() };
    layers.decoder();
    layers.g.output("logits");
    layers.g
}

/// Writes layers into a graph; values are named after the weights.
struct Layers<'a> {
    g: Graph,
    checkpoint: &'a Checkpoint,
    /// Length of the sequences being worked on, class token included.
    tokens: Dim,
}

impl Layers<'_> {
    fn encoder(&mut self) {
        let c = self.checkpoint.config;
        let d = Dim::from(c.embed_dim);

        // The class token in front: its id, and position 0 of the full sequence.
        let class = self.g.ints("class_token_id", &[1, 1], &[c.class_token_id as i64], "Id of the class token.");
        let ids = self.with_first(&class, "token_ids", "ids", [B, N1], "Ids with the class token first.");
        let one = self.g.ints("one", &[], &[1], "");
        let positions = self.g.int_node(
            "Add",
            "sequence_positions",
            &["positions", &one],
            &[],
            &[B, N],
            "Positions in the full sequence, where 0 is the class token.",
        );
        let zero = self.g.ints("class_position", &[1, 1], &[0], "Position of the class token.");
        let positions = self.with_first(&zero, &positions, "rows", [B, N1], "Rows of the position table.");

        let word = self.weight(Param::WordEmbedding);
        let word = self.g.node("Gather", "word_embedding", &[&word, &ids], &[Attr::Int("axis", 0)], &[B, N1, d], "");
        let position = self.weight(Param::PositionEmbedding);
        let axis = [Attr::Int("axis", 0)];
        let position = self.g.node("Gather", "position_embedding", &[&position, &positions], &axis, &[B, N1, d], "");
        let sum = self.g.node("Add", "embedding_sum", &[&word, &position], &[], &[B, N1, d], "");
        let (weight, bias) = (Param::EmbeddingNormWeight, Param::EmbeddingNormBias);
        let mut x = self.layer_norm("embedding", &sum, weight, bias, c.embed_dim, "Token embeddings.");

        for index in 0..c.depth {
            x = self.block(&x, Stack::Encoder, index, c.embed_dim, c.num_heads);
        }
        self.layer_norm(
            "latent",
            &x,
            Param::NormWeight,
            Param::NormBias,
            c.embed_dim,
            "Encoder's output, class token first.",
        );

        // The linear probe's feature: the last block's patch tokens, pooled without the final norm, standardised.
        let patches = self.patches("patch_tokens", &x, [B, N, d]);
        let axes = [Attr::Ints("axes", &[1]), Attr::Int("keepdims", 0)];
        let pooled = self.g.node("ReduceMean", "pooled", &[&patches], &axes, &[B, d], "Mean over the patch tokens.");
        let gain = self.g.floats("fc_norm.weight", &[c.embed_dim], &vec![1.0; c.embed_dim], "All 1: not trained.");
        let bias = self.g.floats("fc_norm.bias", &[c.embed_dim], &vec![0.0; c.embed_dim], "All 0: not trained.");
        self.g.node(
            "LayerNormalization",
            "features",
            &[&pooled, &gain, &bias],
            &[Attr::Int("axis", -1), Attr::Float("epsilon", PROBE_NORM_EPS)],
            &[B, d],
            "The linear probe's feature; meaningful where every token of the image is given, unmasked.",
        );
    }

    fn decoder(&mut self) {
        let c = self.checkpoint.config;
        let (d, dd) = (Dim::from(c.embed_dim), Dim::from(c.decoder_embed_dim));
        let (sequence, patches, codes) = (Dim::from(c.sequence()), Dim::from(c.tokens()), c.codebook_size);

        self.tokens = N1;
        let (weight, bias) = (Param::DecoderEmbedWeight, Param::DecoderEmbedBias);
        let u = self.linear("decoder_embed", "latent", weight, bias, "Projection to the decoder's width.");
        self.tokens = sequence;

        // Each position takes its row of the projection; unseen ones take the class token's.
        let zero = self.g.ints("class_row", &[1, 1], &[0], "Row of the class token.");
        let rows = self.with_first(&zero, "source", "canvas_rows", [B, sequence], "Row for each of the 1+T positions.");
        let last = self.g.ints("last_axis", &[1], &[-1], "");
        let rows = self.g.int_node("Unsqueeze", "canvas_column", &[&rows, &last], &[], &[B, sequence, 1.into()], "");
        let wide = self.g.ints("canvas_width", &[3], &[1, 1, c.decoder_embed_dim as i64], "");
        let rows = self.g.int_node("Expand", "canvas_indices", &[&rows, &wide], &[], &[B, sequence, dd], "");
        let axis = [Attr::Int("axis", 1)];
        let canvas = self.g.node("GatherElements", "canvas", &[&u, &rows], &axis, &[B, sequence, dd], "");
        let position = self.weight(Param::DecoderPosition);
        let dims = [B, sequence, dd];
        let mut x = self.g.node("Add", "decoder_input", &[&canvas, &position], &[], &dims, "Learned positions added.");

        for index in 0..c.decoder_depth {
            x = self.block(&x, Stack::Decoder, index, c.decoder_embed_dim, c.decoder_num_heads);
        }
        let (weight, bias) = (Param::DecoderNormWeight, Param::DecoderNormBias);
        let x = self.layer_norm("decoder_norm", &x, weight, bias, c.decoder_embed_dim, "Decoder's output.");

        // The output head, at the patch positions only; its output layer is the word table's code rows.
        let x = self.patches("decoder_patches", &x, [B, patches, dd]);
        self.tokens = patches;
        let h = self.linear("mlm_layer.fc", &x, Param::HeadFcWeight, Param::HeadFcBias, "");
        let h = self.gelu("mlm_layer.gelu", &h, c.embed_dim);
        let weight = self.weight(Param::HeadNormWeight);
        let bias = self.weight(Param::HeadNormBias);
        let h = self.g.node(
            "LayerNormalization",
            "mlm_layer.ln",
            &[&h, &weight, &bias],
            &[Attr::Int("axis", -1), Attr::Float("epsilon", HEAD_LAYER_NORM_EPS)],
            &[B, patches, d],
            "Its epsilon is 1e-5, unlike all others.",
        );
        let word = &self.checkpoint.tensor(Param::WordEmbedding)[..codes * c.embed_dim];
        let word = transpose(word, codes, c.embed_dim);
        let word =
            self.g.floats("code_embeddings.T", &[c.embed_dim, codes], &word, "The codes' word embeddings, transposed.");
        let bias = &self.checkpoint.tensor(Param::HeadBias)[..codes];
        let bias = self.g.floats("mlm_layer.bias", &[codes], bias, "Bias of each code.");
        let dims = [B, patches, codes.into()];
        let product = self.g.node("MatMul", "mlm_layer.decoder", &[&h, &word], &[], &dims, "");
        self.g.node("Add", "logits", &[&product, &bias], &[], &dims, "Logits of the VQ codes at each patch position.");
    }

    /// A pre-norm transformer block on `x` `[B, tokens, width]`.
    fn block(&mut self, x: &str, stack: Stack, index: usize, width: usize, heads: usize) -> String {
        let part = |part| Param::Block { stack, index, part };
        let stack = match stack {
            Stack::Encoder => "blocks",
            Stack::Decoder => "decoder_blocks",
        };
        let name = |suffix: &str| format!("{stack}.{index}.{suffix}");
        let dims = [B, self.tokens, width.into()];

        let h = self.layer_norm(&name("norm1"), x, part(Part::Norm1Weight), part(Part::Norm1Bias), width, "");
        let qkv =
            self.linear(&name("attn.qkv"), &h, part(Part::QkvWeight), part(Part::QkvBias), "Queries, keys, values.");
        let h = self.attention(&name("attn"), &qkv, width, heads);
        let h = self.linear(&name("attn.proj"), &h, part(Part::ProjWeight), part(Part::ProjBias), "");
        let x = self.g.node("Add", name("attn.residual"), &[x, &h], &[], &dims, "");

        let h = self.layer_norm(&name("norm2"), &x, part(Part::Norm2Weight), part(Part::Norm2Bias), width, "");
        let h = self.linear(&name("mlp.fc1"), &h, part(Part::Fc1Weight), part(Part::Fc1Bias), "");
        let h = self.gelu(&name("mlp.gelu"), &h, width * self.checkpoint.config.mlp_ratio);
        let h = self.linear(&name("mlp.fc2"), &h, part(Part::Fc2Weight), part(Part::Fc2Bias), "");
        self.g.node("Add", name("output"), &[&x, &h], &[], &dims, "Output of the block.")
    }

    /// Softmax attention of a fused `[B, tokens, 3·width]` → `[B, tokens, width]`.
    fn attention(&mut self, name: &str, qkv: &str, width: usize, heads: usize) -> String {
        let head = width / heads;
        let (h, hd, n) = (Dim::from(heads), Dim::from(head), self.tokens);
        let split_shape =
            self.g.ints(format!("heads_{width}"), &[4], &[0, 0, heads as i64, head as i64], "Split into heads.");
        let merge_shape = self.g.ints(format!("merged_{width}"), &[3], &[0, 0, width as i64], "Merge the heads.");
        let axis = self.g.ints("last_axis", &[1], &[-1], "");

        let mut part = |which: usize, what: &str, perm: &[i64], dims: &[Dim]| {
            let g = &mut self.g;
            let start = g.ints(format!("{}_{width}", which * width), &[1], &[(which * width) as i64], "");
            let end = g.ints(format!("{}_{width}", (which + 1) * width), &[1], &[((which + 1) * width) as i64], "");
            let slice = [qkv, &start, &end, &axis];
            let x = g.node("Slice", format!("{name}.{what}"), &slice, &[], &[B, n, width.into()], "");
            let shape = [x.as_str(), &split_shape];
            let x = g.node("Reshape", format!("{name}.{what}_split"), &shape, &[], &[B, n, h, hd], "");
            g.node("Transpose", format!("{name}.{what}_heads"), &[&x], &[Attr::Ints("perm", perm)], dims, "")
        };
        let q = part(0, "q", &[0, 2, 1, 3], &[B, h, n, hd]);
        let k = part(1, "k", &[0, 2, 3, 1], &[B, h, hd, n]);
        let v = part(2, "v", &[0, 2, 1, 3], &[B, h, n, hd]);

        let g = &mut self.g;
        let scale = g.floats(format!("scale_{head}"), &[], &[(head as f32).powf(-0.5)], "1/sqrt(head width)");
        let scores = g.node("MatMul", format!("{name}.scores"), &[&q, &k], &[], &[B, h, n, n], "");
        let scores = g.node("Mul", format!("{name}.scaled"), &[&scores, &scale], &[], &[B, h, n, n], "");
        let axis = [Attr::Int("axis", -1)];
        let p = g.node("Softmax", format!("{name}.probabilities"), &[&scores], &axis, &[B, h, n, n], "");
        let x = g.node("MatMul", format!("{name}.mixed"), &[&p, &v], &[], &[B, h, n, hd], "");
        let perm = [Attr::Ints("perm", &[0, 2, 1, 3])];
        let x = g.node("Transpose", format!("{name}.mixed_tokens"), &[&x], &perm, &[B, n, h, hd], "");
        g.node("Reshape", format!("{name}.merged"), &[&x, &merge_shape], &[], &[B, n, width.into()], "")
    }

    /// The exact GELU, `x/2 (1 + erf(x/√2))` (the operator `Gelu` needs a newer opset).
    fn gelu(&mut self, name: &str, x: &str, width: usize) -> String {
        let g = &mut self.g;
        let dims = [B, self.tokens, width.into()];
        let sqrt = g.floats("sqrt_half", &[], &[std::f32::consts::FRAC_1_SQRT_2], "");
        let one = g.floats("one_f32", &[], &[1.0], "");
        let half = g.floats("half", &[], &[0.5], "");
        let h = g.node("Mul", format!("{name}.scaled"), &[x, &sqrt], &[], &dims, "");
        let h = g.node("Erf", format!("{name}.erf"), &[&h], &[], &dims, "");
        let h = g.node("Add", format!("{name}.gate"), &[&h, &one], &[], &dims, "");
        let h = g.node("Mul", format!("{name}.gated"), &[x, &h], &[], &dims, "");
        g.node("Mul", name, &[&h, &half], &[], &dims, "Exact GELU.")
    }

    /// `x W + b` with the weight transposed for `MatMul`; the output is called `name`.
    fn linear(&mut self, name: &str, x: &str, weight: Param, bias: Param, doc: &str) -> String {
        let (out, inner) = weight.shape(&self.checkpoint.config).matrix();
        let values = transpose(self.checkpoint.tensor(weight), out, inner);
        let weight = self.g.floats(format!("{weight}.T"), &[inner, out], &values, "[in, out]: transposed for MatMul.");
        let bias = self.weight(bias);
        let dims = [B, self.tokens, out.into()];
        let product = self.g.node("MatMul", format!("{name}.matmul"), &[x, &weight], &[], &dims, "");
        self.g.node("Add", name, &[&product, &bias], &[], &dims, doc)
    }

    /// LayerNorm over the last axis of `[B, tokens, width]`; the output is called `name`.
    fn layer_norm(&mut self, name: &str, x: &str, weight: Param, bias: Param, width: usize, doc: &str) -> String {
        let attributes = [Attr::Int("axis", -1), Attr::Float("epsilon", self.checkpoint.config.layer_norm_eps)];
        let (weight, bias) = (self.weight(weight), self.weight(bias));
        let dims = [B, self.tokens, width.into()];
        self.g.node("LayerNormalization", name, &[x, &weight, &bias], &attributes, &dims, doc)
    }

    /// A weight under its official name.
    fn weight(&mut self, param: Param) -> String {
        let shape = param.shape(&self.checkpoint.config);
        self.g.floats(param.to_string(), shape.dims(), self.checkpoint.tensor(param), "")
    }

    /// Puts `first` `[1, 1]` before each row of integers `rest` `[B, n]`.
    fn with_first(&mut self, first: &str, rest: &str, name: &str, dims: [Dim; 2], doc: &str) -> String {
        let g = &mut self.g;
        let (zero, one) = (g.ints("start_0", &[1], &[0], ""), g.ints("end_1", &[1], &[1], ""));
        let shape = g.int_node("Shape", format!("{name}.shape"), &[rest], &[], &[2.into()], "");
        let batch = g.int_node("Slice", format!("{name}.batch"), &[&shape, &zero, &one], &[], &[1.into()], "");
        let axis = [Attr::Int("axis", 0)];
        let column = g.int_node("Concat", format!("{name}.column_shape"), &[&batch, &one], &axis, &[2.into()], "");
        let column = g.int_node("Expand", format!("{name}.column"), &[first, &column], &[], &[B, 1.into()], "");
        g.int_node("Concat", name, &[&column, rest], &[Attr::Int("axis", 1)], &dims, doc)
    }

    /// Drops the class token's row of `x` `[B, 1+n, width]`.
    fn patches(&mut self, name: &str, x: &str, dims: [Dim; 3]) -> String {
        let g = &mut self.g;
        let start = g.ints("end_1", &[1], &[1], "");
        let end = g.ints("to_the_end", &[1], &[i64::MAX], "");
        g.node("Slice", name, &[x, &start, &end, &start], &[], &dims, "Patch tokens: all but the class token.")
    }
}

/// A row-major `[rows, cols]` as `[cols, rows]`.
fn transpose(values: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..cols).flat_map(|c| (0..rows).map(move |r| values[r * cols + c])).collect()
}
