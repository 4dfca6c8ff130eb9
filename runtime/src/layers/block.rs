//! A pre-norm transformer block: `x += Attn(LN(x))`, `x += MLP(LN(x))`.

use core::ops::Range;

use super::{
    attention::{attend, attend_float, Head},
    linear::{Input, Linear, Output},
    norm::Norm,
};
use crate::{
    kernels::{step, Activation, Kernel},
    pack::Tensors,
    schema::Part,
    scratch::{heads_together, Work},
};

/// One of the two stacks of a model.
#[derive(Clone, Copy)]
pub(crate) struct Blocks<'p> {
    pub tensors: Tensors<'p>,
    /// Number of the first block's first tensor; blocks follow each other, parts in schema order.
    pub first: usize,
    pub dim: usize,
    pub heads: usize,
    /// Width F of the MLP's hidden layer.
    pub hidden: usize,
    pub eps: f32,
}

impl Blocks<'_> {
    /// One block on `x` `[rows, D]`, in place: its first `wanted` rows; the others are read, and stay as they are.
    #[inline(always)]
    pub fn forward<K: Kernel>(&self, k: K, index: usize, x: &mut [f32], wanted: usize, work: &mut Work<'_>) {
        let block = Block::new(self, index);
        let rows = x.len() / self.dim;
        block.attention(k, x, wanted, work); // work.attended
        block.feed_forward(k, &mut x[..wanted * self.dim], rows, work);
    }
}

/// The weights of a block.
pub(crate) struct Block<'p> {
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
    pub fn new(blocks: &Blocks<'p>, index: usize) -> Self {
        let Blocks { tensors, first, dim, heads, hidden, eps, .. } = *blocks;
        let place = |part: Part| (first + index * Part::ALL.len() + part as usize, part.matrix(dim, hidden));
        let vector = |part| {
            let (index, shape) = place(part);
            tensors.vector(index, shape)
        };
        let linear = |weight, bias| {
            let (index, shape) = place(weight);
            Linear { weight: tensors.matrix(index, shape), bias: vector(bias) }
        };
        let norm = |weight, bias| Norm { weight: vector(weight), bias: vector(bias), eps };
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

    /// Self-attention of `x` `[rows, D]` into `work.attended` `[groups, rows, width]`, a few heads at a time. Only the
    /// `wanted` first rows ask and are answered.
    #[inline(always)]
    fn attention<K: Kernel>(&self, k: K, x: &[f32], wanted: usize, work: &mut Work<'_>) {
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
                    let count = if part == 0 { count.min(wanted.saturating_sub(first)) } else { count };
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
                let out = &mut out[h * head_dim..wanted * width];
                if self.qkv.is_integer() {
                    attend(k, head, 0..wanted, &mut work.head, out, width);
                } else {
                    attend_float(k, head, 0..wanted, &mut work.head, out, width);
                }
            }
        }
    }

    /// What follows the attention, for the first rows `x` of so many: `x += proj(attended)`,
    /// `x += fc2(GELU(fc1(LN(x))))`, some rows at a time.
    #[inline(always)]
    fn feed_forward<K: Kernel>(&self, k: K, x: &mut [f32], rows: usize, work: &mut Work<'_>) {
        let dim = self.dim;
        let head_dim = dim / self.heads;
        let width = head_dim * heads_together(self.heads, head_dim, work.heads_width);
        for (block, x) in x.chunks_mut(work.rows * dim).enumerate() {
            let attended = &work.attended[block * work.rows * width..rows * dim];
            let places = 0..x.len() / dim;
            put_attended(k, attended, (rows, width), places, &self.proj, work.hidden, &mut work.input);
            self.feed_forward_rows(k, x, work);
        }
    }

    /// [`feed_forward`](Self::feed_forward) of up to `work.rows` rows, whose attention is in `work.input`.
    #[inline(always)]
    fn feed_forward_rows<K: Kernel>(&self, k: K, x: &mut [f32], work: &mut Work<'_>) {
        let (dim, hidden_dim) = (self.dim, self.fc1.weight.rows);
        let count = x.len() / dim;
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

/// The parts of a block that several threads share out: rows of any number of images of `rows` rows each, then
/// queries of their heads, then rows again.
#[cfg(feature = "std")]
impl Block<'_> {
    /// Queries, keys and values of `x` `[count, D]` into `qkv` `[count, 3 D]`.
    #[inline(always)]
    pub fn project<K: Kernel>(&self, k: K, x: &[f32], qkv: &mut [f32], work: &mut Work<'_>) {
        let dim = self.dim;
        for (x, qkv) in x.chunks(work.rows * dim).zip(qkv.chunks_mut(work.rows * 3 * dim)) {
            put_normed(k, &self.norm1, x, &self.qkv, work.hidden, &mut work.input);
            let out = Output { data: qkv, stride: 3 * dim, activation: Activation::Store };
            self.qkv.apply(k, &work.input, x.len() / dim, 0..3 * dim, out); // [r, D] -> [r, 3 D]
        }
    }

    /// The queries `first..` of all images and heads, `attended` being a part of `[images, heads, rows, width]`;
    /// `qkv` `[images, rows, 3 D]`.
    #[inline(always)]
    pub fn attend<K: Kernel>(
        &self,
        k: K,
        qkv: &[f32],
        rows: usize,
        mut first: usize,
        mut attended: &mut [f32],
        work: &mut Work<'_>,
    ) {
        let (dim, width) = (self.dim, self.dim / self.heads);
        while !attended.is_empty() {
            let (image, h, query) = (first / rows / self.heads, first / rows % self.heads, first % rows);
            let count = (rows - query).min(attended.len() / width);
            let (out, rest) = attended.split_at_mut(count * width);
            let data = &qkv[image * rows * 3 * dim..][..rows * 3 * dim][h * width..];
            let head = Head { data, stride: 3 * dim, part: dim, width };
            if self.qkv.is_integer() {
                attend(k, head, query..query + count, &mut work.head, out, width);
            } else {
                attend_float(k, head, query..query + count, &mut work.head, out, width);
            }
            (first, attended) = (first + count, rest);
        }
    }

    /// What follows the attention, for the rows `first..` of all images, `x` `[count, D]`; `attended` is whole.
    #[inline(always)]
    pub fn feed_forward_of<K: Kernel>(
        &self,
        k: K,
        x: &mut [f32],
        rows: usize,
        first: usize,
        attended: &[f32],
        work: &mut Work<'_>,
    ) {
        let (dim, width) = (self.dim, self.dim / self.heads);
        for (block, x) in x.chunks_mut(work.rows * dim).enumerate() {
            let (start, count) = (first + block * work.rows, x.len() / dim);
            let mut place = 0;
            while place < count {
                let (image, row) = ((start + place) / rows, (start + place) % rows);
                let here = (rows - row).min(count - place);
                let attended = &attended[image * rows * dim..][..rows * dim][row * width..];
                let places = place..place + here;
                put_attended(k, attended, (rows, width), places, &self.proj, work.hidden, &mut work.input);
                place += here;
            }
            self.feed_forward_rows(k, x, work);
        }
    }
}

/// Rows side by side (see [`Kernel::SIDE_BY_SIDE`]).
pub(crate) const ROWS: usize = 4;

step! {
    /// The norm of every row of `x` as the input of a linear; `rows` `[ROWS, D]` are overwritten.
    pub(crate) fn put_normed(
        k, norm: &Norm<'_>, x: &[f32], linear: &Linear<'_>, rows: &mut [f32], input: &mut Input<'_>,
    ) {
        let dim = linear.weight.cols;
        let mut done = 0;
        if let (true, Some(affine)) = (K::SIDE_BY_SIDE, norm.floats()) {
            let rows = &mut rows[..ROWS * dim];
            for x in x.chunks_exact(ROWS * dim) {
                let maxima = k.normalise::<ROWS>(affine, x, rows);
                linear.put_rows(k, rows, maxima, done, input);
                done += ROWS;
            }
        }
        let row = &mut rows[..dim];
        for (i, x) in x.chunks_exact(dim).enumerate().skip(done) {
            norm.apply(x, row);
            linear.put(k, row, i, input);
        }
    }
}

step! {
    /// Every row of `x` as the input of a linear.
    pub(crate) fn put_rows(k, x: &[f32], linear: &Linear<'_>, input: &mut Input<'_>) {
        let dim = linear.weight.cols;
        let mut done = 0;
        if K::SIDE_BY_SIDE {
            for x in x.chunks_exact(ROWS * dim) {
                linear.put_rows(k, x, k.largest_magnitudes::<ROWS>(x), done, input);
                done += ROWS;
            }
        }
        for (i, x) in x.chunks_exact(dim).enumerate().skip(done) {
            linear.put(k, x, i, input);
        }
    }
}

step! {
    /// Rows of the attention's output as the input of a linear, in these places; `rows` `[ROWS, D]` are overwritten.
    ///
    /// `attended` starts at the first of them in `[groups, rows, width]`.
    fn put_attended(
        k,
        attended: &[f32],
        sizes: (usize, usize),
        places: Range<usize>,
        linear: &Linear<'_>,
        rows: &mut [f32],
        input: &mut Input<'_>,
    ) {
        let (in_group, width) = sizes;
        let dim = linear.weight.cols;
        let copy = |i: usize, row: &mut [f32]| {
            for (row, group) in row.chunks_exact_mut(width).zip(attended.chunks(in_group * width)) {
                row.copy_from_slice(&group[i * width..][..width]);
            }
        };
        let (mut done, count) = (0, places.len());
        if K::SIDE_BY_SIDE {
            let rows = &mut rows[..ROWS * dim];
            while done + ROWS <= count {
                rows.chunks_exact_mut(dim).enumerate().for_each(|(i, row)| copy(done + i, row));
                linear.put_rows(k, rows, k.largest_magnitudes::<ROWS>(rows), places.start + done, input);
                done += ROWS;
            }
        }
        let row = &mut rows[..dim];
        for i in done..count {
            copy(i, row);
            linear.put(k, row, places.start + i, input);
        }
    }
}
