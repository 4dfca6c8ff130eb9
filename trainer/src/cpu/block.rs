//! A transformer block, forward and backward, one image at a time: all of an image stays in cache.
//!
//! The same function as [`Block::forward`](crate::model::block::Block) in plain tensor operations.

use std::ops::Range;

use rayon::prelude::*;

use super::gemm::{gemm, Packed, Then, View};
use super::math::{self, wide};
use crate::model::layers::DropoutSource;

/// Images are divided into groups of this many, and into at most [`GROUPS`], whatever the number of threads:
/// gradients are summed within a group and then over groups, in order, so that results do not depend on it.
const GROUP: usize = 8;
const GROUPS: usize = 64;

/// Sizes of a block.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Images.
    pub batch: usize,
    /// Tokens of an image.
    pub tokens: usize,
    /// D.
    pub width: usize,
    /// H.
    pub heads: usize,
    /// F.
    pub hidden: usize,
    /// Epsilon of the norms.
    pub eps: f32,
}

/// Weights in schema order, row-major `[out, in]`.
#[derive(Clone, Copy, Debug)]
pub struct Weights<'a> {
    pub norm1: (&'a [f32], &'a [f32]),
    pub qkv: (&'a [f32], &'a [f32]),
    pub proj: (&'a [f32], &'a [f32]),
    pub norm2: (&'a [f32], &'a [f32]),
    pub fc1: (&'a [f32], &'a [f32]),
    pub fc2: (&'a [f32], &'a [f32]),
}

impl<'a> Weights<'a> {
    /// From slices in schema order.
    pub fn new(slices: [&'a [f32]; 12]) -> Self {
        let pair = |i: usize| (slices[2 * i], slices[2 * i + 1]);
        Self { norm1: pair(0), qkv: pair(1), proj: pair(2), norm2: pair(3), fc1: pair(4), fc2: pair(5) }
    }
}

/// What backward needs from forward, for one group of images.
#[derive(Debug)]
struct Saved {
    /// `[rows, 3D]`
    qkv: Vec<f32>,
    /// Attention probabilities before dropout, `[images, H, n, n]`.
    probabilities: Vec<f32>,
    /// Joined heads, `[rows, D]`.
    mixed: Vec<f32>,
    /// After the first residual, `[rows, D]`.
    middle: Vec<f32>,
    /// Before GELU, `[rows, F]`.
    hidden: Vec<f32>,
}

/// What backward needs from forward.
#[derive(Debug)]
pub struct Tape {
    shape: Shape,
    dropout: DropoutSource,
    calls: u64,
    groups: Vec<Saved>,
}

impl Shape {
    fn groups(&self) -> Vec<Range<usize>> {
        let size = self.batch.div_ceil(GROUPS).max(GROUP.min(self.batch.div_ceil(2))).max(1);
        (0..self.batch).step_by(size).map(|start| start..(start + size).min(self.batch)).collect()
    }

    fn image(&self) -> usize {
        self.tokens * self.width
    }

    fn head(&self) -> usize {
        self.width / self.heads
    }

    fn scale(&self) -> f32 {
        (self.head() as f32).powf(-0.5)
    }
}

/// The four dropouts of a block, in the order of the plain implementation.
#[derive(Clone, Copy)]
enum Site {
    Attention,
    Projection,
    Hidden,
    Output,
}

/// Masks of one block, image by image.
#[derive(Clone, Copy)]
struct Masks {
    source: DropoutSource,
    calls: u64,
}

impl Masks {
    /// The factors of `out.len()` elements of an image, or `None` where nothing is dropped.
    fn draw<'a>(&self, site: Site, image: usize, out: &'a mut [f32]) -> Option<&'a [f32]> {
        if self.source.is_off() {
            return None;
        }
        self.source.fill(self.calls + site as u64, (image * out.len()) as u64, out);
        Some(out)
    }

    fn apply(&self, site: Site, image: usize, values: &mut [f32], scratch: &mut [f32]) {
        if let Some(mask) = self.draw(site, image, &mut scratch[..values.len()]) {
            wide(
                #[inline(always)]
                || math::multiply(values, mask),
            );
        }
    }
}

/// `x` `[B, n, D]` to the block's output; with a tape if `keep`.
///
/// `calls` is the number of the block's first dropout call: see `DropoutSource::fill`.
pub fn forward(
    shape: Shape,
    x: &[f32],
    weights: &Weights<'_>,
    dropout: DropoutSource,
    calls: u64,
    keep: bool,
) -> (Vec<f32>, Option<Tape>) {
    let packed = [weights.qkv.0, weights.proj.0, weights.fc1.0, weights.fc2.0];
    let (d, f) = (shape.width, shape.hidden);
    let sizes = [(d, 3 * d), (d, d), (d, f), (f, d)];
    let packed: Vec<Packed> = packed
        .iter()
        .zip(sizes)
        .map(|(w, (inputs, outputs))| Packed::new(View::new(w, inputs).t(), inputs, outputs))
        .collect();
    let masks = Masks { source: dropout, calls };
    let mut y = vec![0.0; x.len()];
    let groups = shape.groups();
    let images = groups.first().map_or(1, |group| group.len());
    let saved = y
        .par_chunks_mut(images * shape.image())
        .zip(groups)
        .map(|(y, group)| {
            let x = &x[group.start * shape.image()..group.end * shape.image()];
            let mut pass = Forward::new(&shape, weights, &packed, masks, if keep { group.len() } else { 1 });
            for (i, (x, y)) in x.chunks_exact(shape.image()).zip(y.chunks_exact_mut(shape.image())).enumerate() {
                pass.image(if keep { i } else { 0 }, group.start + i, x, y);
            }
            pass.saved
        })
        .collect();
    (y, keep.then_some(Tape { shape, dropout, calls, groups: saved }))
}

struct Forward<'a> {
    shape: &'a Shape,
    weights: &'a Weights<'a>,
    packed: &'a [Packed],
    masks: Masks,
    saved: Saved,
    normed: Vec<f32>,
    active: Vec<f32>,
    scratch: Vec<f32>,
    attention: Vec<f32>,
    side: Packed,
}

impl<'a> Forward<'a> {
    fn new(shape: &'a Shape, weights: &'a Weights<'a>, packed: &'a [Packed], masks: Masks, images: usize) -> Self {
        let Shape { tokens: n, width: d, heads, hidden: f, .. } = *shape;
        let rows = images * n;
        let saved = Saved {
            qkv: vec![0.0; rows * 3 * d],
            probabilities: vec![0.0; rows * heads * n],
            mixed: vec![0.0; rows * d],
            middle: vec![0.0; rows * d],
            hidden: vec![0.0; rows * f],
        };
        Self {
            shape,
            weights,
            packed,
            masks,
            saved,
            normed: vec![0.0; n * d],
            active: vec![0.0; n * f],
            scratch: vec![0.0; (n * f).max(heads * n * n)],
            attention: vec![0.0; heads * n * n],
            side: Packed::default(),
        }
    }

    /// Image `image` of the batch, kept in place `slot` of the group.
    fn image(&mut self, slot: usize, image: usize, x: &[f32], y: &mut [f32]) {
        let Shape { tokens: n, width: d, heads, hidden: f, eps, .. } = *self.shape;
        let weights = self.weights;
        let Saved { qkv, probabilities, mixed, middle, hidden } = &mut self.saved;
        let qkv = &mut qkv[slot * n * 3 * d..][..n * 3 * d];
        let probabilities = &mut probabilities[slot * heads * n * n..][..heads * n * n];
        let mixed = &mut mixed[slot * n * d..][..n * d];
        let middle = &mut middle[slot * n * d..][..n * d];
        let hidden = &mut hidden[slot * n * f..][..n * f];

        // Attention.
        wide(
            #[inline(always)]
            || math::layer_norm(x, weights.norm1.0, weights.norm1.1, eps, &mut self.normed),
        );
        gemm(View::new(&self.normed, d), n, &self.packed[0], qkv, 3 * d, Then::Bias(weights.qkv.1));
        let (head, scale) = (self.shape.head(), self.shape.scale());
        for (h, scores) in probabilities.chunks_exact_mut(n * n).enumerate() {
            self.side.pack(View::new(&qkv[d + h * head..], 3 * d).t(), head, n);
            gemm(View::new(&qkv[h * head..], 3 * d), n, &self.side, scores, n, Then::Store);
            wide(
                #[inline(always)]
                || {
                    for row in scores.chunks_exact_mut(n) {
                        math::softmax(row, scale);
                    }
                },
            );
        }
        self.attention.copy_from_slice(probabilities);
        self.masks.apply(Site::Attention, image, &mut self.attention, &mut self.scratch);
        for (h, attention) in self.attention.chunks_exact(n * n).enumerate() {
            self.side.pack(View::new(&qkv[2 * d + h * head..], 3 * d), n, head);
            gemm(View::new(attention, n), n, &self.side, &mut mixed[h * head..], d, Then::Store);
        }
        gemm(View::new(mixed, d), n, &self.packed[1], middle, d, Then::Bias(weights.proj.1));
        self.masks.apply(Site::Projection, image, middle, &mut self.scratch);
        wide(
            #[inline(always)]
            || math::add(middle, x),
        );

        // MLP.
        wide(
            #[inline(always)]
            || math::layer_norm(middle, weights.norm2.0, weights.norm2.1, eps, &mut self.normed),
        );
        gemm(View::new(&self.normed, d), n, &self.packed[2], hidden, f, Then::Bias(weights.fc1.1));
        wide(
            #[inline(always)]
            || {
                for (a, u) in self.active.iter_mut().zip(&*hidden) {
                    *a = math::gelu(*u).0;
                }
            },
        );
        self.masks.apply(Site::Hidden, image, &mut self.active, &mut self.scratch);
        gemm(View::new(&self.active, f), n, &self.packed[3], y, d, Then::Bias(weights.fc2.1));
        self.masks.apply(Site::Output, image, y, &mut self.scratch);
        wide(
            #[inline(always)]
            || math::add(y, middle),
        );
    }
}

/// Gradients of the block's input and of its weights, in schema order.
pub fn backward(tape: &Tape, x: &[f32], weights: &Weights<'_>, dy: &[f32]) -> (Vec<f32>, [Vec<f32>; 12]) {
    let shape = tape.shape;
    let (d, f) = (shape.width, shape.hidden);
    let packed = [
        Packed::new(View::new(weights.qkv.0, d), 3 * d, d),
        Packed::new(View::new(weights.proj.0, d), d, d),
        Packed::new(View::new(weights.fc1.0, d), f, d),
        Packed::new(View::new(weights.fc2.0, f), d, f),
    ];
    let masks = Masks { source: tape.dropout, calls: tape.calls };
    let mut dx = vec![0.0; x.len()];
    let groups = shape.groups();
    let images = groups.first().map_or(1, |group| group.len());
    let partial: Vec<[Vec<f32>; 12]> = dx
        .par_chunks_mut(images * shape.image())
        .zip(groups)
        .zip(&tape.groups)
        .map(|((dx, group), saved)| {
            let mut pass = Backward::new(&shape, weights, &packed, masks, saved);
            for (i, dx) in dx.chunks_exact_mut(shape.image()).enumerate() {
                let image = group.start + i;
                let range = image * shape.image()..(image + 1) * shape.image();
                pass.image(i, image, &x[range.clone()], &dy[range], dx);
            }
            pass.grads
        })
        .collect();
    let mut partial = partial.into_iter();
    let mut total = partial.next().unwrap_or_default();
    for grads in partial {
        for (total, grad) in total.iter_mut().zip(&grads) {
            wide(
                #[inline(always)]
                || math::add(total, grad),
            );
        }
    }
    (dx, total)
}

struct Backward<'a> {
    shape: &'a Shape,
    weights: &'a Weights<'a>,
    packed: &'a [Packed; 4],
    masks: Masks,
    saved: &'a Saved,
    grads: [Vec<f32>; 12],
    /// `[n, D]`
    normed: Vec<f32>,
    /// `[n, D]`
    delta: Vec<f32>,
    /// `[n, D]`
    dnormed: Vec<f32>,
    /// `[n, F]`
    active: Vec<f32>,
    /// `[n, F]`
    slope: Vec<f32>,
    /// `[n, F]`
    dhidden: Vec<f32>,
    /// `[n, 3D]`
    dqkv: Vec<f32>,
    /// `[H, n, n]`
    attention: Vec<f32>,
    /// `[n, n]`
    dscores: Vec<f32>,
    /// The largest of a dropout mask.
    scratch: Vec<f32>,
    side: Packed,
}

impl<'a> Backward<'a> {
    fn new(
        shape: &'a Shape,
        weights: &'a Weights<'a>,
        packed: &'a [Packed; 4],
        masks: Masks,
        saved: &'a Saved,
    ) -> Self {
        let Shape { tokens: n, width: d, heads, hidden: f, .. } = *shape;
        let grads = [d, d, 3 * d * d, 3 * d, d * d, d, d, d, f * d, f, d * f, d].map(|size| vec![0.0; size]);
        Self {
            shape,
            weights,
            packed,
            masks,
            saved,
            grads,
            normed: vec![0.0; n * d],
            delta: vec![0.0; n * d],
            dnormed: vec![0.0; n * d],
            active: vec![0.0; n * f],
            slope: vec![0.0; n * f],
            dhidden: vec![0.0; n * f],
            dqkv: vec![0.0; n * 3 * d],
            attention: vec![0.0; heads * n * n],
            dscores: vec![0.0; n * n],
            scratch: vec![0.0; (n * f).max(heads * n * n)],
            side: Packed::default(),
        }
    }

    /// Writes `dx` and adds to the weight gradients.
    fn image(&mut self, slot: usize, image: usize, x: &[f32], dy: &[f32], dx: &mut [f32]) {
        let Shape { tokens: n, width: d, heads, hidden: f, eps, .. } = *self.shape;
        let Weights { norm1, norm2, .. } = *self.weights;
        let [dnorm1w, dnorm1b, dqkvw, dqkvb, dprojw, dprojb, dnorm2w, dnorm2b, dfc1w, dfc1b, dfc2w, dfc2b] =
            &mut self.grads;
        let qkv = &self.saved.qkv[slot * n * 3 * d..][..n * 3 * d];
        let probabilities = &self.saved.probabilities[slot * heads * n * n..][..heads * n * n];
        let mixed = &self.saved.mixed[slot * n * d..][..n * d];
        let middle = &self.saved.middle[slot * n * d..][..n * d];
        let hidden = &self.saved.hidden[slot * n * f..][..n * f];

        // MLP.
        self.delta.copy_from_slice(dy);
        self.masks.apply(Site::Output, image, &mut self.delta, &mut self.scratch);
        wide(
            #[inline(always)]
            || {
                for ((a, s), u) in self.active.iter_mut().zip(&mut self.slope).zip(hidden) {
                    (*a, *s) = math::gelu(*u);
                }
            },
        );
        if let Some(mask) = self.masks.draw(Site::Hidden, image, &mut self.scratch[..n * f]) {
            wide(
                #[inline(always)]
                || {
                    math::multiply(&mut self.active, mask);
                    math::multiply(&mut self.slope, mask);
                },
            );
        }
        self.side.pack(View::new(&self.active, f), n, f);
        gemm(View::new(&self.delta, d).t(), d, &self.side, dfc2w, f, Then::Add);
        gemm(View::new(&self.delta, d), n, &self.packed[3], &mut self.dhidden, f, Then::Store);
        wide(
            #[inline(always)]
            || {
                math::add_rows(&self.delta, dfc2b);
                math::multiply(&mut self.dhidden, &self.slope);
                math::add_rows(&self.dhidden, dfc1b);
                math::layer_norm(middle, norm2.0, norm2.1, eps, &mut self.normed);
            },
        );
        self.side.pack(View::new(&self.normed, d), n, d);
        gemm(View::new(&self.dhidden, f).t(), f, &self.side, dfc1w, d, Then::Add);
        gemm(View::new(&self.dhidden, f), n, &self.packed[2], &mut self.dnormed, d, Then::Store);
        dx.copy_from_slice(dy); // from here to the end of attention `dx` is the gradient of `middle`
        wide(
            #[inline(always)]
            || math::layer_norm_backward(middle, norm2.0, eps, &self.dnormed, dx, dnorm2w, dnorm2b),
        );

        // Attention.
        self.delta.copy_from_slice(dx);
        self.masks.apply(Site::Projection, image, &mut self.delta, &mut self.scratch);
        self.side.pack(View::new(mixed, d), n, d);
        gemm(View::new(&self.delta, d).t(), d, &self.side, dprojw, d, Then::Add);
        wide(
            #[inline(always)]
            || math::add_rows(&self.delta, dprojb),
        );
        let dmixed = &mut self.dnormed;
        gemm(View::new(&self.delta, d), n, &self.packed[1], dmixed, d, Then::Store);

        let (head, scale) = (self.shape.head(), self.shape.scale());
        self.attention.copy_from_slice(probabilities);
        let mask = self.masks.draw(Site::Attention, image, &mut self.scratch[..heads * n * n]);
        if let Some(mask) = mask {
            wide(
                #[inline(always)]
                || math::multiply(&mut self.attention, mask),
            );
        }
        for h in 0..heads {
            let square = h * n * n..(h + 1) * n * n;
            let [q, k, v] = [0, d, 2 * d].map(|part| View::new(&qkv[part + h * head..], 3 * d));
            let dout = View::new(&dmixed[h * head..], d);
            self.side.pack(dout, n, head);
            let weights = View::new(&self.attention[square.clone()], n).t();
            gemm(weights, n, &self.side, &mut self.dqkv[2 * d + h * head..], 3 * d, Then::Store);
            self.side.pack(v.t(), head, n);
            gemm(dout, n, &self.side, &mut self.dscores, n, Then::Store);
            wide(
                #[inline(always)]
                || {
                    if let Some(mask) = mask {
                        math::multiply(&mut self.dscores, &mask[square.clone()]);
                    }
                    let rows = self.dscores.chunks_exact_mut(n).zip(probabilities[square.clone()].chunks_exact(n));
                    for (ds, p) in rows {
                        let mean = math::sum2(ds, p, |ds, p| ds * p);
                        for (ds, p) in ds.iter_mut().zip(p) {
                            *ds = p * (*ds - mean) * scale;
                        }
                    }
                },
            );
            self.side.pack(k, n, head);
            gemm(View::new(&self.dscores, n), n, &self.side, &mut self.dqkv[h * head..], 3 * d, Then::Store);
            self.side.pack(q, n, head);
            gemm(View::new(&self.dscores, n).t(), n, &self.side, &mut self.dqkv[d + h * head..], 3 * d, Then::Store);
        }
        wide(
            #[inline(always)]
            || {
                math::layer_norm(x, norm1.0, norm1.1, eps, &mut self.normed);
                math::add_rows(&self.dqkv, dqkvb);
            },
        );
        self.side.pack(View::new(&self.normed, d), n, d);
        gemm(View::new(&self.dqkv, 3 * d).t(), 3 * d, &self.side, dqkvw, d, Then::Add);
        gemm(View::new(&self.dqkv, 3 * d), n, &self.packed[0], &mut self.dnormed, d, Then::Store);
        wide(
            #[inline(always)]
            || math::layer_norm_backward(x, norm1.0, eps, &self.dnormed, dx, dnorm1w, dnorm1b),
        );
    }
}
