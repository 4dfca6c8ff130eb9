//! The layers of a transformer, written into a graph; values are named after the weights.

use half::f16;
use sorcen_runtime::{
    quant::quantise_row,
    schema::{Param, Part, Stack},
    ModelConfig,
};

use super::{
    graph::{Attr, Dim, Elem, Graph},
    Weights,
};
use crate::checkpoint::Checkpoint;

/// The batch.
pub const B: Dim = Dim::Symbol("B");

/// Weights of a model by their place in the schema.
pub trait Source {
    /// The sizes.
    fn config(&self) -> &ModelConfig;

    /// A weight, row-major.
    fn tensor(&self, param: Param) -> &[f32];
}

impl Source for Checkpoint {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn tensor(&self, param: Param) -> &[f32] {
        Checkpoint::tensor(self, param)
    }
}

/// Writes layers into a graph.
pub struct Layers<'a> {
    /// The graph.
    pub g: Graph,
    /// Where the weights are.
    pub checkpoint: &'a dyn Source,
    /// How matrices are stored.
    pub weights: Weights<'a>,
    /// Length of the sequences being worked on, class token included.
    pub tokens: Dim,
}

impl Layers<'_> {
    /// A pre-norm transformer block on `x` `[B, tokens, width]`.
    pub fn block(&mut self, x: &str, stack: Stack, index: usize, width: usize, heads: usize) -> String {
        let part = |part| Param::Block { stack, index, part };
        let stack = match stack {
            Stack::Encoder => "blocks",
            Stack::Decoder => "decoder_blocks",
        };
        let name = |suffix: &str| format!("{stack}.{index}.{suffix}");
        let dims = [B, self.tokens, width.into()];
        let eps = self.checkpoint.config().layer_norm_eps;

        let norm = [part(Part::Norm1Weight), part(Part::Norm1Bias)];
        let h = self.layer_norm(&name("norm1"), x, norm, eps, width, "Normalised for the attention.");
        let doc = "Queries, keys, values.";
        let qkv = self.linear(&name("attn.qkv"), &h, part(Part::QkvWeight), part(Part::QkvBias), doc);
        let h = self.attention(&name("attn"), &qkv, width, heads);
        let doc = "Attention's output projection.";
        let h = self.linear(&name("attn.proj"), &h, part(Part::ProjWeight), part(Part::ProjBias), doc);
        let x = self.g.node("Add", name("attn.residual"), &[x, &h]).floats(&dims, "Attention added to its input.");

        let norm = [part(Part::Norm2Weight), part(Part::Norm2Bias)];
        let h = self.layer_norm(&name("norm2"), &x, norm, eps, width, "Normalised for the MLP.");
        let doc = "The MLP's hidden layer.";
        let h = self.linear(&name("mlp.fc1"), &h, part(Part::Fc1Weight), part(Part::Fc1Bias), doc);
        let h = self.gelu(&name("mlp.gelu"), &h, width * self.checkpoint.config().mlp_ratio);
        let doc = "The MLP's output.";
        let h = self.linear(&name("mlp.fc2"), &h, part(Part::Fc2Weight), part(Part::Fc2Bias), doc);
        self.g.node("Add", name("output"), &[&x, &h]).floats(&dims, "Output of the block.")
    }

    /// Softmax attention of a fused `[B, tokens, 3·width]` → `[B, tokens, width]`.
    fn attention(&mut self, name: &str, qkv: &str, width: usize, heads: usize) -> String {
        let (head, n) = (width / heads, self.tokens);
        let (h, hd) = (Dim::from(heads), Dim::from(head));
        let g = &mut self.g;
        let split = [0, 0, heads as i64, head as i64];
        let split = g.ints(format!("heads_{width}"), &[4], &split, "The shape that splits the width into heads.");
        let merged = g.ints(format!("merged_{width}"), &[3], &[0, 0, width as i64], "The shape that merges the heads.");
        let axis = g.ints("last_axis", &[1], &[-1], "The last axis.");

        let mut part = |which: usize, what: &str, perm: &[i64], dims: &[Dim]| {
            let mut edge = |column: usize| g.ints(format!("{column}_of_{width}"), &[1], &[column as i64], "A column.");
            let (start, end) = (edge(which * width), edge((which + 1) * width));
            let x = g.node("Slice", format!("{name}.{what}"), &[qkv, &start, &end, &axis]);
            let x = x.floats(&[B, n, width.into()], "One of queries (q), keys (k), values (v).");
            let x = g.node("Reshape", format!("{name}.{what}_split"), &[&x, &split]);
            let x = x.floats(&[B, n, h, hd], "Split into heads.");
            let x = g.node("Transpose", format!("{name}.{what}_heads"), &[&x]).with(Attr::Ints("perm", perm));
            x.floats(dims, "A matrix a head.")
        };
        let q = part(0, "q", &[0, 2, 1, 3], &[B, h, n, hd]);
        let k = part(1, "k", &[0, 2, 3, 1], &[B, h, hd, n]);
        let v = part(2, "v", &[0, 2, 1, 3], &[B, h, n, hd]);

        let scale = [(head as f32).powf(-0.5)];
        let scale = g.floats(format!("scale_{head}"), &[], &scale, "1/sqrt(head width)");
        let dims = [B, h, n, n];
        let scores = g.node("MatMul", format!("{name}.scores"), &[&q, &k]).floats(&dims, "Queries against keys.");
        let scores = g.node("Mul", format!("{name}.scaled"), &[&scores, &scale]).floats(&dims, "Scores, scaled.");
        let p = g.node("Softmax", format!("{name}.probabilities"), &[&scores]).with(Attr::Int("axis", -1));
        let p = p.floats(&dims, "How much each token (row) looks at each other.");
        let x = g.node("MatMul", format!("{name}.mixed"), &[&p, &v]).floats(&[B, h, n, hd], "Values, mixed.");
        let x = g.node("Transpose", format!("{name}.mixed_tokens"), &[&x]).with(Attr::Ints("perm", &[0, 2, 1, 3]));
        let x = x.floats(&[B, n, h, hd], "Tokens first again.");
        let x = g.node("Reshape", format!("{name}.merged"), &[&x, &merged]);
        x.floats(&[B, n, width.into()], "Heads side by side.")
    }

    /// The exact GELU, `x/2 (1 + erf(x/√2))` (the operator `Gelu` needs a newer opset).
    pub fn gelu(&mut self, name: &str, x: &str, width: usize) -> String {
        let g = &mut self.g;
        let dims = [B, self.tokens, width.into()];
        let sqrt = g.floats("sqrt_half", &[], &[std::f32::consts::FRAC_1_SQRT_2], "1/sqrt(2)");
        let one = g.floats("one_f32", &[], &[1.0], "1");
        let half = g.floats("half", &[], &[0.5], "1/2");
        let h = g.node("Mul", format!("{name}.scaled"), &[x, &sqrt]).floats(&dims, "x/sqrt(2)");
        let h = g.node("Erf", format!("{name}.erf"), &[&h]).floats(&dims, "erf(x/sqrt(2))");
        let h = g.node("Add", format!("{name}.gate"), &[&h, &one]).floats(&dims, "1 + erf(x/sqrt(2))");
        let h = g.node("Mul", format!("{name}.gated"), &[x, &h]).floats(&dims, "x (1 + erf(x/sqrt(2)))");
        g.node("Mul", name, &[&h, &half]).floats(&dims, "Exact GELU.")
    }

    /// `x W + b` with the weight transposed for `MatMul`; the output is called `name`.
    pub fn linear(&mut self, name: &str, x: &str, weight: Param, bias: Param, doc: &str) -> String {
        let (out, inner) = weight.shape(self.checkpoint.config()).matrix();
        let values = transpose(self.checkpoint.tensor(weight), out, inner);
        let stored = format!("{weight}.T");
        let weight_doc = "[in, out]: transposed for MatMul.";
        let product = self.product(&format!("{name}.matmul"), x, weight, &stored, (inner, out), &values, weight_doc);
        let bias = self.weight(bias);
        self.g.node("Add", name, &[&product, &bias]).floats(&[B, self.tokens, out.into()], doc)
    }

    /// `x · values`, `values` `[inner, out]` stored as `stored` in the precision asked for. `input_of` is the
    /// weight that the calibration measured the range of `x` for.
    #[allow(clippy::too_many_arguments, reason = "a matrix with its name, shape and meaning")]
    pub fn product(
        &mut self,
        name: &str,
        x: &str,
        input_of: Param,
        stored: &str,
        (inner, out): (usize, usize),
        values: &[f32],
        doc: &str,
    ) -> String {
        let shape = [inner, out];
        let (weight, x) = match self.weights {
            Weights::F32 => (self.g.floats(stored, &shape, values, doc), x.to_owned()),
            Weights::F16 => (self.halves(stored, &shape, values, doc), x.to_owned()),
            Weights::Int8(ranges) => {
                let weight = self.bytes(stored, (inner, out), values, doc);
                let range = ranges.of(input_of).unwrap_or_default(); // there: `write` checked
                let (scale, zero) = range.quantisation();
                let g = &mut self.g;
                let scale = g.floats(format!("{name}.input_scale"), &[], &[scale], "Step of the quantised input.");
                let zero = g.constant(format!("{name}.input_zero"), Elem::U8, &[], || vec![zero], "The input's zero.");
                let dims = [B, self.tokens, inner.into()];
                let q = g.node("QuantizeLinear", format!("{name}.input_q"), &[x, &scale, &zero]);
                let q = q.gives(Elem::U8, &dims, "The input in bytes, by the calibrated range.");
                let x = g.node("DequantizeLinear", format!("{name}.input_dq"), &[&q, &scale, &zero]);
                (weight, x.floats(&dims, "The input as the bytes say it is."))
            }
        };
        self.g.node("MatMul", name, &[&x, &weight]).floats(&[B, self.tokens, out.into()], "The matrix product.")
    }

    /// A matrix `[inner, out]` in bytes with a scale an output channel, as the floats they stand for.
    fn bytes(&mut self, stored: &str, (inner, out): (usize, usize), values: &[f32], doc: &str) -> String {
        let rows = transpose(values, inner, out); // a row an output channel, as the quantiser wants it
        let (mut quantised, mut scales) = (vec![0; inner * out], vec![0.0; out]);
        for ((x, q), scale) in rows.chunks_exact(inner).zip(quantised.chunks_exact_mut(inner)).zip(&mut scales) {
            *scale = quantise_row(x, q);
        }
        let columns = || (0..inner * out).map(|i| quantised[i % out * inner + i / out] as u8).collect();
        let g = &mut self.g;
        let q = g.constant(format!("{stored}.int8"), Elem::I8, &[inner, out], columns, doc);
        // A channel of zeros has no scale; any will do, but 0.
        scales.iter_mut().filter(|scale| **scale == 0.0).for_each(|scale| *scale = 1.0);
        let scale = g.floats(format!("{stored}.scale"), &[out], &scales, "Step of each output channel.");
        let zero = g.constant(format!("{stored}.zero"), Elem::I8, &[out], || vec![0; out], "All 0: symmetric.");
        let node = g.node("DequantizeLinear", stored, &[&q, &scale, &zero]).with(Attr::Int("axis", 1));
        node.floats(&[inner.into(), out.into()], doc)
    }

    /// A matrix stored as f16, widened on use.
    fn halves(&mut self, stored: &str, shape: &[usize], values: &[f32], doc: &str) -> String {
        let bytes = || values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect();
        let g = &mut self.g;
        let half = g.constant(format!("{stored}.f16"), Elem::F16, shape, bytes, doc);
        let dims: Vec<Dim> = shape.iter().map(|&size| size.into()).collect();
        g.node("Cast", stored, &[&half]).with(Attr::Int("to", Elem::F32.code().into())).floats(&dims, doc)
    }

    /// LayerNorm over the last axis of `[B, tokens, width]`; the output is called `name`.
    pub fn layer_norm(
        &mut self,
        name: &str,
        x: &str,
        [weight, bias]: [Param; 2],
        eps: f32,
        width: usize,
        doc: &str,
    ) -> String {
        let (weight, bias) = (self.weight(weight), self.weight(bias));
        let node = self.g.node("LayerNormalization", name, &[x, &weight, &bias]);
        let node = node.with(Attr::Int("axis", -1)).with(Attr::Float("epsilon", eps));
        node.floats(&[B, self.tokens, width.into()], doc)
    }

    /// A weight under its official name. In f16 files tables are halves; vectors always stay f32.
    pub fn weight(&mut self, param: Param) -> String {
        let shape = param.shape(self.checkpoint.config());
        let values = self.checkpoint.tensor(param);
        let table = shape.matrix().0 > 1;
        let doc = "Of the checkpoint.";
        match self.weights {
            Weights::F16 if table => self.halves(&param.to_string(), shape.dims(), values, doc),
            _ => self.g.floats(param.to_string(), shape.dims(), values, doc),
        }
    }

    /// Puts `first` `[1, 1]` before each row of integers `rest` `[B, n]`.
    pub fn with_first(&mut self, first: &str, rest: &str, name: &str, dims: [Dim; 2], doc: &str) -> String {
        let g = &mut self.g;
        let (zero, one) = (g.ints("start_0", &[1], &[0], "0"), g.ints("end_1", &[1], &[1], "1"));
        let shape = g.node("Shape", format!("{name}.shape"), &[rest]).ints(&[2.into()], "Shape of the rest.");
        let batch = g.node("Slice", format!("{name}.batch"), &[&shape, &zero, &one]).ints(&[1.into()], "Batch size.");
        let column = g.node("Concat", format!("{name}.column_shape"), &[&batch, &one]).with(Attr::Int("axis", 0));
        let column = column.ints(&[2.into()], "Shape of the first column.");
        let column = g.node("Expand", format!("{name}.column"), &[first, &column]);
        let column = column.ints(&[B, 1.into()], "The first column.");
        g.node("Concat", name, &[&column, rest]).with(Attr::Int("axis", 1)).ints(&dims, doc)
    }

    /// Drops the class token's row of `x` `[B, 1+n, width]`.
    pub fn patches(&mut self, name: &str, x: &str, dims: [Dim; 3]) -> String {
        let g = &mut self.g;
        let start = g.ints("end_1", &[1], &[1], "1");
        let end = g.ints("to_the_end", &[1], &[i64::MAX], "Past any end.");
        let doc = "Patch tokens: all but the class token.";
        g.node("Slice", name, &[x, &start, &end, &start]).floats(&dims, doc)
    }
}

/// A row-major `[rows, cols]` as `[cols, rows]`.
pub fn transpose(values: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..cols).flat_map(|c| (0..rows).map(move |r| values[r * cols + c])).collect()
}
