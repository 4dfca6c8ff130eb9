//! The model's graphs, in the order of `reference.rs`. B batch, N kept tokens, T grid tokens.

use sorcen_runtime::{
    config::{HEAD_LAYER_NORM_EPS, PROBE_NORM_EPS},
    schema::{Param, Stack},
    ModelConfig,
};

use super::{
    graph::{Attr, Dim, Elem, Graph},
    layers::{transpose, Layers, B},
    Weights,
};
use crate::checkpoint::Checkpoint;

const N: Dim = Dim::Symbol("N");
const N1: Dim = Dim::Symbol("N+1");

/// `token_ids`, `positions` → `latent`, `features`.
pub fn encoder(checkpoint: &Checkpoint, weights: Weights) -> Graph {
    let c = &checkpoint.config;
    let mut g = Graph::new("sorcen_encoder", "Sorcen's encoder: kept VQ tokens and their positions to features.");
    g.input("token_ids", Elem::I64, &[B, N], &ids_doc(c, "Kept tokens of each image"));
    let positions_doc = format!(
        "Place of each token in the {0}x{0} grid, row-major, 0..{1}, increasing. All of 0..{1} for features.",
        c.grid,
        c.tokens() - 1
    );
    g.input("positions", Elem::I64, &[B, N], &positions_doc);

    let one = g.ints("one", &[], &[1], "1");
    let doc = "Positions in the full sequence, where 0 is the class token.";
    let positions = g.node("Add", "sequence_positions", &["positions", &one]).ints(&[B, N], doc);
    let zero = g.ints("class_position", &[1, 1], &[0], "Position of the class token.");
    let mut layers = Layers { g, checkpoint, weights, tokens: N1 };
    let rows = layers.with_first(&zero, &positions, "rows", [B, N1], "Rows of the position table.");
    let x = layers.encoder("token_ids", &rows, B);

    // The linear probe's feature: the last block's patch tokens, pooled without the final norm, standardised.
    let width = c.embed_dim;
    let patches = layers.patches("patch_tokens", &x, [B, N, width.into()]);
    let g = &mut layers.g;
    let pooled = g.node("ReduceMean", "pooled", &[&patches]).with(Attr::Ints("axes", &[1]));
    let pooled = pooled.with(Attr::Int("keepdims", 0)).floats(&[B, width.into()], "Mean over the patch tokens.");
    let gain = g.floats("fc_norm.weight", &[width], &vec![1.0; width], "All 1: not trained.");
    let bias = g.floats("fc_norm.bias", &[width], &vec![0.0; width], "All 0: not trained.");
    g.node("LayerNormalization", "features", &[&pooled, &gain, &bias])
        .with(Attr::Int("axis", -1))
        .with(Attr::Float("epsilon", PROBE_NORM_EPS))
        .floats(
            &[B, width.into()],
            "The linear probe's feature; meaningful where every token of the image is given, unmasked.",
        );
    g.output("latent");
    g.output("features");
    layers.g
}

/// `latent`, `source` → `logits`.
pub fn decoder(checkpoint: &Checkpoint, weights: Weights) -> Graph {
    let c = &checkpoint.config;
    let mut g = Graph::new("sorcen_decoder", "Sorcen's decoder: the encoder's output to logits of the VQ codes.");
    let dims = [B, N1, c.embed_dim.into()];
    g.input("latent", Elem::F32, &dims, "Output `latent` of the encoder: class token, then kept tokens.");
    let source_doc = "Row of `latent` to put at each patch position; 0, the class token's row, where the token was \
                      dropped or masked.";
    g.input("source", Elem::I64, &[B, c.tokens().into()], source_doc);
    let mut layers = Layers { g, checkpoint, weights, tokens: N1 };
    layers.decoder("latent", "source");
    layers.g.output("logits");
    layers.g
}

/// `token_ids` → `logits`: one step of generation, every position present, unknown ones masked.
pub fn step(checkpoint: &Checkpoint, weights: Weights) -> Graph {
    let c = &checkpoint.config;
    let (tokens, sequence) = (c.tokens(), c.sequence());
    let doc = "One generation step: a token map with unknown places to logits of the VQ codes everywhere.";
    let mut g = Graph::new("sorcen_step", doc);
    g.input("token_ids", Elem::I64, &[B, tokens.into()], &ids_doc(c, "All tokens of each image"));

    // All tokens are kept: row t + 1 of the latent stands at place t, unless it is masked.
    let rows: Vec<i64> = (0..sequence as i64).collect();
    let all = g.ints("rows", &[1, sequence], &rows, "Rows of the position table: all, in order.");
    let own = g.ints("own_rows", &[1, tokens], &rows[1..], "Each token's own row of the latent.");
    let class = g.ints("class_rows", &[1], &[0], "The class token's row of the latent.");
    let mask = g.ints("mask_token_id", &[1], &[c.mask_token_id as i64], "Id of the mask token.");
    let dims = [B, tokens.into()];
    let unknown = g.node("Equal", "unknown", &["token_ids", &mask]).gives(Elem::Bool, &dims, "Masked places.");
    let doc = "Row of the latent to put at each place: the class token's where it is unknown.";
    let source = g.node("Where", "source", &[&unknown, &class, &own]).ints(&dims, doc);

    let mut layers = Layers { g, checkpoint, weights, tokens: sequence.into() };
    layers.encoder("token_ids", &all, 1.into());
    layers.decoder("latent", &source);
    layers.g.output("logits");
    layers.g
}

fn ids_doc(c: &ModelConfig, what: &str) -> String {
    format!("{what}: VQ codes 0..{}, or {} for a masked one. No class token.", c.codebook_size - 1, c.mask_token_id)
}

impl Layers<'_> {
    /// Ids `[B, tokens - 1]` and rows of the position table `[rows_batch, tokens]` → the last block's output,
    /// whose name is returned, and `latent`, both `[B, tokens, D]`.
    fn encoder(&mut self, ids: &str, rows: &str, rows_batch: Dim) -> String {
        let c = *self.checkpoint.config();
        let n = self.tokens;
        let dims = [B, n, c.embed_dim.into()];

        // The class token in front: its id, and position 0 of the full sequence.
        let class = self.g.ints("class_token_id", &[1, 1], &[c.class_token_id as i64], "Id of the class token.");
        let ids = self.with_first(&class, ids, "ids", [B, n], "Ids with the class token first.");
        let word = self.weight(Param::WordEmbedding);
        let position = self.weight(Param::PositionEmbedding);
        let row = |g: &mut Graph, name: &str, table: &str, rows: &str, dims: &[Dim], doc: &str| {
            g.node("Gather", name, &[table, rows]).with(Attr::Int("axis", 0)).floats(dims, doc)
        };
        let word = row(&mut self.g, "word_embedding", &word, &ids, &dims, "A row of the word table an id.");
        let places = [rows_batch, dims[1], dims[2]];
        let doc = "A row of the position table a token.";
        let position = row(&mut self.g, "position_embedding", &position, rows, &places, doc);
        let doc = "What a token is and where.";
        let sum = self.g.node("Add", "embedding_sum", &[&word, &position]).floats(&dims, doc);
        let norm = [Param::EmbeddingNormWeight, Param::EmbeddingNormBias];
        let mut x = self.layer_norm("embedding", &sum, norm, c.layer_norm_eps, c.embed_dim, "Token embeddings.");
        for index in 0..c.depth {
            x = self.block(&x, Stack::Encoder, index, c.embed_dim, c.num_heads);
        }
        let norm = [Param::NormWeight, Param::NormBias];
        self.layer_norm("latent", &x, norm, c.layer_norm_eps, c.embed_dim, "Encoder's output, class token first.");
        x
    }

    /// Latent `[B, tokens, D]` and source rows `[B, T]` → `logits` `[B, T, K]`.
    fn decoder(&mut self, latent: &str, source: &str) {
        let c = *self.checkpoint.config();
        let dd = Dim::from(c.decoder_embed_dim);
        let (sequence, patches, codes) = (Dim::from(c.sequence()), Dim::from(c.tokens()), c.codebook_size);

        let (weight, bias) = (Param::DecoderEmbedWeight, Param::DecoderEmbedBias);
        let u = self.linear("decoder_embed", latent, weight, bias, "Projection to the decoder's width.");
        self.tokens = sequence;

        // Each position takes its row of the projection; unseen ones take the class token's.
        let zero = self.g.ints("class_row", &[1, 1], &[0], "Row of the class token.");
        let rows = self.with_first(&zero, source, "canvas_rows", [B, sequence], "Row for each of the 1+T positions.");
        let g = &mut self.g;
        let last = g.ints("last_axis", &[1], &[-1], "The last axis.");
        let doc = "The rows as a column.";
        let rows = g.node("Unsqueeze", "canvas_column", &[&rows, &last]).ints(&[B, sequence, 1.into()], doc);
        let wide = [1, 1, c.decoder_embed_dim as i64];
        let wide = g.ints("canvas_width", &[3], &wide, "The decoder's width, for Expand.");
        let dims = [B, sequence, dd];
        let rows = g.node("Expand", "canvas_indices", &[&rows, &wide]).ints(&dims, "The row of every element.");
        let canvas = g.node("GatherElements", "canvas", &[&u, &rows]).with(Attr::Int("axis", 1));
        let canvas = canvas.floats(&dims, "Projected tokens at their places, the class token elsewhere.");
        let position = self.weight(Param::DecoderPosition);
        let doc = "Learned positions added.";
        let mut x = self.g.node("Add", "decoder_input", &[&canvas, &position]).floats(&dims, doc);

        for index in 0..c.decoder_depth {
            x = self.block(&x, Stack::Decoder, index, c.decoder_embed_dim, c.decoder_num_heads);
        }
        let norm = [Param::DecoderNormWeight, Param::DecoderNormBias];
        let doc = "Decoder's output.";
        let x = self.layer_norm("decoder_norm", &x, norm, c.layer_norm_eps, c.decoder_embed_dim, doc);

        // The output head, at the patch positions only; its output layer is the word table's code rows.
        let x = self.patches("decoder_patches", &x, [B, patches, dd]);
        self.tokens = patches;
        let doc = "The head's hidden layer, at the encoder's width.";
        let h = self.linear("mlm_layer.fc", &x, Param::HeadFcWeight, Param::HeadFcBias, doc);
        let h = self.gelu("mlm_layer.gelu", &h, c.embed_dim);
        let norm = [Param::HeadNormWeight, Param::HeadNormBias];
        let doc = "Its epsilon is 1e-5, unlike all others.";
        let h = self.layer_norm("mlm_layer.ln", &h, norm, HEAD_LAYER_NORM_EPS, c.embed_dim, doc);
        let word = &self.checkpoint.tensor(Param::WordEmbedding)[..codes * c.embed_dim];
        let word = transpose(word, codes, c.embed_dim);
        let shape = (c.embed_dim, codes);
        let doc = "The codes' word embeddings, transposed.";
        let product =
            self.product("mlm_layer.decoder", &h, Param::WordEmbedding, "code_embeddings.T", shape, &word, doc);
        let bias = &self.checkpoint.tensor(Param::HeadBias)[..codes];
        let bias = self.g.floats("mlm_layer.bias", &[codes], bias, "Bias of each code.");
        let doc = "Logits of the VQ codes at each patch position.";
        self.g.node("Add", "logits", &[&product, &bias]).floats(&[B, patches, codes.into()], doc);
    }
}
