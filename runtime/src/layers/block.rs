//! A pre-norm transformer block: `x += Attn(LN(x))`, `x += MLP(LN(x))`.

use super::{
    attention::{attend, attend_float, Head},
    linear::{Input, Linear, Output},
    norm::Norm,
};
use crate::{
    kernels::{step, Activation, Kernel},
    pack::Pack,
    schema::{Param, Part, Stack},
    scratch::{heads_together, Work},
};

/// One of the two stacks of a model.
#[derive(Clone, Copy)]
pub(crate) struct Blocks<'p> {
    pub pack: &'p Pack<'p>,
    pub stack: Stack,
    pub dim: usize,
    pub heads: usize,
}

impl Blocks<'_> {
    /// One block on `x` `[rows, D]`, in place.
    #[inline(always)]
    pub fn forward<K: Kernel>(&self, k: K, index: usize, x: &mut [f32], work: &mut Work<'_>) {
        let block = Block::new(self, index);
        block.attention(k, x, work); // work.attended
        block.feed_forward(k, x, work);
    }
}

/// The weights of a block.
struct Block<'p> {
    dim: usize,
    heads: usize,
    norm1: Norm<'p>,
    qkv: Linear<'p>,
    proj: Linear<'p>,
    norm2: Norm<'p>,
    fc1: Linear<'p>,
    fc2: Linear<'p>,
}

impl<'p> Block<'p> {
    fn new(blocks: &Blocks<'p>, index: usize) -> Self {
        let Blocks { pack, stack, dim, heads, .. } = *blocks;
        let param = |part| Param::Block { stack, index, part };
        let linear = |weight, bias| Linear { weight: pack.matrix(param(weight)), bias: pack.vector(param(bias)) };
        let norm = |weight, bias| Norm {
            weight: pack.vector(param(weight)),
            bias: pack.vector(param(bias)),
            eps: pack.config().layer_norm_eps,
        };
        Self {
            dim,
            heads,
            norm1: norm(Part::Norm1Weight, Part::Norm1Bias),
            qkv: linear(Part::QkvWeight, Part::QkvBias),
            proj: linear(Part::ProjWeight, Part::ProjBias),
            norm2: norm(Part::Norm2Weight, Part::Norm2Bias),
            fc1: linear(Part::Fc1Weight, Part::Fc1Bias),
            fc2: linear(Part::Fc2Weight, Part::Fc2Bias),
        }
    }

    /// Self-attention of `x` `[rows, D]` into `work.attended` `[groups, rows, width]`, a few heads at a time.
    #[inline(always)]
    fn attention<K: Kernel>(&self, k: K, x: &[f32], work: &mut Work<'_>) {
        let dim = self.dim;
        let rows = x.len() / dim;
        let head_dim = dim / self.heads;
        let together = heads_together(self.heads, head_dim, work.heads_width);
        let width = together * head_dim;
        let mut normed = Input {
            floats: &mut *work.input.floats,
            bytes: &mut *work.normed,
            stride: work.normed_stride,
            scales: &mut *work.normed_scales,
        };
        if self.qkv.is_integer() {
            put_normed(k, &self.norm1, x, &self.qkv, work.hidden, &mut normed);
        }
        for (group, out) in work.attended[..rows * dim].chunks_mut(rows * width).enumerate() {
            let qkv = &mut work.qkv[..rows * 3 * width]; // [rows, 3, width]
            let mut project = |normed: &Input<'_>, first: usize, count: usize| {
                for part in 0..3 {
                    let start = part * dim + group * width;
                    let data = &mut qkv[first * 3 * width + part * width..];
                    let out = Output { data, stride: 3 * width, activation: Activation::Store };
                    self.qkv.apply(k, normed, count, start..start + width, out);
                }
            };
            if self.qkv.is_integer() {
                project(&normed, 0, rows);
            } else {
                for (block, x) in x.chunks(work.rows * dim).enumerate() {
                    put_normed(k, &self.norm1, x, &self.qkv, work.hidden, &mut normed);
                    project(&normed, block * work.rows, x.len() / dim);
                }
            }
            for h in 0..together {
                let head = Head { data: &qkv[h * head_dim..], stride: 3 * width, part: width, width: head_dim };
                let out = &mut out[h * head_dim..];
                if self.qkv.is_integer() {
                    attend(k, head, &mut work.head, out, width);
                } else {
                    attend_float(k, head, &mut work.head, out, width);
                }
            }
        }
    }

    /// What follows the attention: `x += proj(attended)`, `x += fc2(GELU(fc1(LN(x))))`, some rows at a time.
    #[inline(always)]
    fn feed_forward<K: Kernel>(&self, k: K, x: &mut [f32], work: &mut Work<'_>) {
        let dim = self.dim;
        let rows = x.len() / dim;
        let head_dim = dim / self.heads;
        let width = head_dim * heads_together(self.heads, head_dim, work.heads_width);
        let hidden_dim = self.fc1.weight.rows;
        for (block, x) in x.chunks_mut(work.rows * dim).enumerate() {
            let count = x.len() / dim;
            let attended = &work.attended[block * work.rows * width..rows * dim];
            put_attended(k, attended, (rows, width), count, &self.proj, work.hidden, &mut work.input);
            let out = Output { data: &mut *x, stride: dim, activation: Activation::Add };
            self.proj.apply(k, &work.input, count, 0..dim, out); // [r, D]
            put_normed(k, &self.norm2, x, &self.fc1, work.hidden, &mut work.input);
            let out = Output { data: &mut *work.hidden, stride: hidden_dim, activation: Activation::Gelu };
            self.fc1.apply(k, &work.input, count, 0..hidden_dim, out); // [r, F]
            let out = Output { data: &mut *x, stride: dim, activation: Activation::Add };
            if self.fc2.is_integer() {
                put_rows(k, &work.hidden[..count * hidden_dim], &self.fc2, &mut work.input);
                self.fc2.apply(k, &work.input, count, 0..dim, out); // [r, D]
            } else {
                let input = Input { floats: &mut *work.hidden, bytes: &mut [], stride: 0, scales: &mut [] };
                self.fc2.apply(k, &input, count, 0..dim, out); // [r, D]
            }
        }
    }
}

step! {
    /// The norm of every row of `x` as the input of a linear; `row` `[D]` is overwritten.
    pub(crate) fn put_normed(
        k, norm: &Norm<'_>, x: &[f32], linear: &Linear<'_>, row: &mut [f32], input: &mut Input<'_>,
    ) {
        let dim = linear.weight.cols;
        let row = &mut row[..dim];
        for (i, x) in x.chunks_exact(dim).enumerate() {
            norm.apply(x, row);
            linear.put(k, row, i, input);
        }
    }
}

step! {
    /// Every row of `x` as the input of a linear.
    pub(crate) fn put_rows(k, x: &[f32], linear: &Linear<'_>, input: &mut Input<'_>) {
        for (i, x) in x.chunks_exact(linear.weight.cols).enumerate() {
            linear.put(k, x, i, input);
        }
    }
}

step! {
    /// `count` rows of the attention's output as the input of a linear; `row` `[D]` is overwritten.
    ///
    /// `attended` starts at the first of them in `[groups, rows, width]`.
    fn put_attended(
        k,
        attended: &[f32],
        sizes: (usize, usize),
        count: usize,
        linear: &Linear<'_>,
        row: &mut [f32],
        input: &mut Input<'_>,
    ) {
        let (rows, width) = sizes;
        let row = &mut row[..linear.weight.cols];
        for i in 0..count {
            for (row, group) in row.chunks_exact_mut(width).zip(attended.chunks(rows * width)) {
                row.copy_from_slice(&group[i * width..][..width]);
            }
            linear.put(k, row, i, input);
        }
    }
}
