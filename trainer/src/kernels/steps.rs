//! What a block does between its matrix products, in plain tensor operations. A backend may do each in one kernel.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

use burn::tensor::ops::PadMode;
use burn::tensor::{activation, DType, Tensor};

use super::Kernels;
use crate::model::layers::{standardise, Dropout, DropoutSource};
pub use crate::model::precision::to;

/// One call of dropout.
#[derive(Clone, Copy, Debug)]
pub struct Drop {
    /// Where its numbers come from.
    pub source: DropoutSource,
    /// Its number among the calls of the step.
    pub call: u64,
}

/// How rows `[R, D]` lie by head, `[G, P, D/H]`: B images of N tokens, R = B N, in H heads; G = B H, P is N padded with
/// zeros, as the products of GPUs like it.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// Images B.
    pub batch: usize,
    /// Tokens N.
    pub tokens: usize,
    /// Heads H.
    pub count: usize,
}

impl Heads {
    /// Tokens P, with the padding: rows of 16 bytes' multiples also in 16-bit types.
    pub fn padded(&self) -> usize {
        self.tokens.next_multiple_of(8)
    }
}

impl Drop {
    /// None is dropped.
    pub fn off() -> Self {
        Self { source: Dropout::off().source(), call: 0 }
    }

    fn apply<B: Kernels, const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        if self.source.is_off() {
            return x;
        }
        let factors = B::dropout(&self.source, self.call, x.dims(), &x.device());
        x * factors
    }
}

fn wide<B: Kernels, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    to(x, DType::F32)
}

/// The steps of a block. Factors of products come and go in the type of the products; all else is `f32`.
pub trait Steps: Kernels {
    /// LayerNorm of rows `[R, D]`, as `dtype`; `weight` and `bias` are `[1, D]`.
    fn norm(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        bias: Tensor<Self, 2>,
        eps: f32,
        dtype: DType,
    ) -> Tensor<Self, 2> {
        to(standardise(x, eps) * weight + bias, dtype)
    }

    /// Gradients of [`Steps::norm`] by `x` (`beside` added to it), weight and bias, from that of its output, `dy`.
    fn norm_backward(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        dy: Tensor<Self, 2>,
        beside: Option<Tensor<Self, 2>>,
        eps: f32,
    ) -> [Tensor<Self, 2>; 3] {
        let dy = wide(dy);
        let centred = x.clone() - x.mean_dim(1);
        let scale = (centred.clone().square().mean_dim(1) + eps).sqrt().recip();
        let standard = centred * scale.clone();
        let inner = dy.clone() * weight;
        let along = (inner.clone() * standard.clone()).mean_dim(1);
        let dx = (inner.clone() - inner.mean_dim(1) - standard.clone() * along) * scale;
        let dx = match beside {
            Some(beside) => dx + beside,
            None => dx,
        };
        [dx, (dy.clone() * standard).sum_dim(0), dy.sum_dim(0)]
    }

    /// `gelu(hidden + bias)`, dropped from: `[R, F]`; `bias` is `[1, F]`.
    fn activate(hidden: Tensor<Self, 2>, bias: Tensor<Self, 2>, drop: Drop) -> Tensor<Self, 2> {
        let dtype = hidden.dtype();
        to(drop.apply(activation::gelu(wide(hidden) + bias)), dtype)
    }

    /// The gradient of [`Steps::activate`] by `hidden`.
    fn activate_backward(
        hidden: Tensor<Self, 2>,
        bias: Tensor<Self, 2>,
        dy: Tensor<Self, 2>,
        drop: Drop,
    ) -> Tensor<Self, 2> {
        let dtype = hidden.dtype();
        to(drop.apply(wide(dy)) * slope(wide(hidden) + bias), dtype)
    }

    /// `x + y + bias`, where `y + bias` is dropped from.
    fn add(x: Tensor<Self, 2>, y: Tensor<Self, 2>, bias: Tensor<Self, 2>, drop: Drop) -> Tensor<Self, 2> {
        x + drop.apply(wide(y) + bias)
    }

    /// The gradient of [`Steps::add`] by `y`, as `dtype`.
    fn add_backward(dy: Tensor<Self, 2>, drop: Drop, dtype: DType) -> Tensor<Self, 2> {
        to(drop.apply(dy), dtype)
    }

    /// The sums of the columns of `x` `[R, C]`, `[1, C]`.
    fn column_sums(x: Tensor<Self, 2>) -> Tensor<Self, 2> {
        wide(x).sum_dim(0)
    }

    /// `rows` `[R, PARTS·D]` and `bias` `[1, PARTS·D]` added, in parts by head.
    fn split<const PARTS: usize>(
        rows: Tensor<Self, 2>,
        bias: Option<Tensor<Self, 2>>,
        heads: Heads,
    ) -> [Tensor<Self, 3>; PARTS] {
        let dtype = rows.dtype();
        let rows = match bias {
            Some(bias) => to(wide(rows) + bias, dtype),
            None => rows,
        };
        let Heads { batch, tokens, count } = heads;
        let columns = rows.dims()[1] / PARTS / count;
        let parts = rows.reshape([batch, tokens, PARTS, count, columns]).permute([2, 0, 3, 1, 4]);
        std::array::from_fn(|part| {
            let part = parts.clone().narrow(0, part, 1).reshape([batch * count, tokens, columns]);
            pad(part, heads.padded() - tokens, 0)
        })
    }

    /// The way back: `[R, PARTS·D]`.
    fn join<const PARTS: usize>(parts: [Tensor<Self, 3>; PARTS], heads: Heads) -> Tensor<Self, 2> {
        let Heads { batch, tokens, count } = heads;
        let rows = parts.map(|part| {
            let [groups, _, columns] = part.dims();
            let part = part.slice([0..groups, 0..tokens]).reshape([batch, count, tokens, columns]).swap_dims(1, 2);
            part.reshape([batch * tokens, count * columns])
        });
        Tensor::cat(rows.to_vec(), 1)
    }

    /// The inner products of rows `a` and `b` `[R, D]`, head by head: `[G, P, 1]`.
    fn along(a: Tensor<Self, 2>, b: Tensor<Self, 2>, heads: Heads) -> Tensor<Self, 3> {
        let [products] = Self::split(wide(a) * wide(b), None, heads);
        products.sum_dim(2)
    }

    /// Attention's weights `softmax(scale · scores)`, dropped from, over the first `tokens` of `[G, P, P]`, zeros elsewhere;
    /// and the logarithm of each row's sum of exponentials, `[G, P, 1]`.
    fn attend(scores: Tensor<Self, 3>, tokens: usize, scale: f32, drop: Drop) -> [Tensor<Self, 3>; 2] {
        let (dtype, [_, padded, _]) = (scores.dtype(), scores.dims());
        let scores = crop(wide(scores), tokens) * scale;
        let high = scores.clone().max_dim(2);
        let sums = (scores.clone() - high.clone()).exp().sum_dim(2).log() + high;
        let weights = to(drop.apply((scores - sums.clone()).exp()), dtype);
        let more = padded - tokens;
        [pad(weights, more, more), pad(sums, more, 0)]
    }

    /// The weights of [`Steps::attend`] once more, and the gradient by its scores, from that of the weights, `dweights`.
    /// `sums` is as `attend` gave it; `along` `[G, P, 1]` is each row's sum of weights times their gradients.
    fn attend_backward(
        scores: Tensor<Self, 3>,
        sums: Tensor<Self, 3>,
        dweights: Tensor<Self, 3>,
        along: Tensor<Self, 3>,
        tokens: usize,
        scale: f32,
        drop: Drop,
    ) -> [Tensor<Self, 3>; 2] {
        let (dtype, [groups, padded, _]) = (scores.dtype(), scores.dims());
        let rows = |x: Tensor<Self, 3>| x.slice([0..groups, 0..tokens]);
        let kept = (crop(wide(scores), tokens) * scale - rows(sums)).exp();
        let dkept = drop.apply(crop(wide(dweights), tokens)) - rows(along);
        let more = padded - tokens;
        [drop.apply(kept.clone()), kept * dkept * scale].map(|x| pad(to(x, dtype), more, more))
    }
}

/// `x` `[G, N, C]` with `rows` rows and `columns` columns of zeros added.
fn pad<B: Kernels>(x: Tensor<B, 3>, rows: usize, columns: usize) -> Tensor<B, 3> {
    let dtype = x.dtype();
    to(wide(x).pad((0, columns, 0, rows), PadMode::Constant(0.0)), dtype)
}

/// The first `tokens` rows and columns of `[G, P, P]`.
fn crop<B: Kernels>(x: Tensor<B, 3>, tokens: usize) -> Tensor<B, 3> {
    let [groups, _, _] = x.dims();
    x.slice([0..groups, 0..tokens, 0..tokens])
}

/// d/dx of x Φ(x): Φ(x) + x φ(x).
fn slope<B: Kernels>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    let cumulative = ((x.clone() * FRAC_1_SQRT_2).erf() + 1.0) * 0.5;
    let density = (x.clone() * x.clone() * -0.5).exp() * (0.5 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2);
    cumulative + x * density
}
