//! A block in closed form: [`Steps`] between matrix products, and a backward pass that computes again what is cheap.
//!
//! Nothing of `[B, H, N, N]` outlives a pass, and nothing of `[R, F]` but the hidden rows before GELU.

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorPrimitive};

use super::graph::{primitive, record};
use super::steps::{Drop, Heads, Steps};
use super::Kernels;
use crate::model::block::Block;
use crate::model::layers::{Dropout, DropoutSource};
use crate::model::precision::Precision;
use crate::model::weight::Weights as _;

/// A block's sizes, weights and dropout, below autodiff.
struct Layer<B: Backend> {
    heads: Heads,
    eps: f32,
    /// What products take.
    precision: Precision,
    /// In the order of the schema.
    weights: [Tensor<B, 2>; WEIGHTS],
    source: DropoutSource,
    calls: u64,
}

const WEIGHTS: usize = 12;

/// What the backward pass needs of the forward pass.
struct Tape<B: Backend> {
    /// Input rows `[R, D]`.
    x: Tensor<B, 2>,
    /// Queries, keys and values by head.
    parts: [Tensor<B, 3>; 3],
    /// Logarithms of the sums of attention's exponentials.
    sums: Tensor<B, 3>,
    /// Attention's output before its projection `[R, D]`.
    mixed: Tensor<B, 2>,
    /// Rows between attention and MLP `[R, D]`.
    middle: Tensor<B, 2>,
    /// The MLP's hidden rows before bias and GELU `[R, F]`.
    hidden: Tensor<B, 2>,
}

impl<B: Steps> Layer<B> {
    fn new(block: &Block<B>, dims: [usize; 3], dropout: &Dropout) -> Self {
        let mut weights = Vec::with_capacity(WEIGHTS);
        block.visit("", &mut |_, weight| weights.push(weight.get()));
        let Ok(weights) = weights.try_into() else { unreachable!("a block has twelve weights") };
        Self {
            heads: Heads { batch: dims[0], tokens: dims[1], count: block.heads() },
            eps: block.eps(),
            precision: block.precision(),
            weights,
            source: dropout.source(),
            calls: dropout.reserve(4),
        }
    }

    fn drop(&self, call: u64) -> Drop {
        Drop { source: self.source, call: self.calls + call }
    }

    fn weight(&self, index: usize) -> Tensor<B, 2> {
        self.weights[index].clone()
    }

    /// `a · b`, stored in the type of the factors.
    fn product<const D: usize>(&self, a: Tensor<B, D>, b: Tensor<B, D>) -> Tensor<B, D> {
        match self.precision {
            Precision::F32 | Precision::Tf32 => B::product(a, b, self.precision),
            Precision::Bf16 => a.matmul(b),
        }
    }

    /// `x Wᵀ` for the matrix at `index`.
    fn times(&self, x: Tensor<B, 2>, index: usize) -> Tensor<B, 2> {
        self.product(x, self.weight(index).transpose())
    }

    fn scale(&self, width: usize) -> f32 {
        ((width / self.heads.count) as f32).powf(-0.5)
    }

    fn forward(&self, x: Tensor<B, 2>) -> (Tensor<B, 2>, Tape<B>) {
        let [_, width] = x.dims();
        let normed = B::norm(x.clone(), self.weight(0), self.weight(1), self.eps, self.precision.dtype());
        let parts = B::split(self.times(normed, 2), Some(self.weight(3)), self.heads);
        let [q, k, v] = parts.clone();
        let scores = self.product(q, k.transpose());
        let [attention, sums] = B::attend(scores, self.heads.tokens, self.scale(width), self.drop(0));
        let mixed = B::join([self.product(attention, v)], self.heads);
        let middle = B::add(x.clone(), self.times(mixed.clone(), 4), self.weight(5), self.drop(1));
        let normed = B::norm(middle.clone(), self.weight(6), self.weight(7), self.eps, self.precision.dtype());
        let hidden = self.times(normed, 8);
        let active = B::activate(hidden.clone(), self.weight(9), self.drop(2));
        let y = B::add(middle.clone(), self.times(active, 10), self.weight(11), self.drop(3));
        (y, Tape { x, parts, sums, mixed, middle, hidden })
    }

    /// Gradients by the input and the weights, from that of the output.
    fn backward(&self, tape: &Tape<B>, dy: Tensor<B, 2>) -> (Tensor<B, 2>, [Tensor<B, 2>; WEIGHTS]) {
        let Tape { x, parts, sums, mixed, middle, hidden } = tape;
        let [_, width] = x.dims();
        let bias = |gradient: &Tensor<B, 2>| B::column_sums(gradient.clone());

        let dout = B::add_backward(dy.clone(), self.drop(3), self.precision.dtype());
        let active = B::activate(hidden.clone(), self.weight(9), self.drop(2));
        let (dfc2, dfc2_bias) = (self.product(dout.clone().transpose(), active), bias(&dout));
        let dactive = self.product(dout, self.weight(10));
        let dhidden = B::activate_backward(hidden.clone(), self.weight(9), dactive, self.drop(2));
        let normed = B::norm(middle.clone(), self.weight(6), self.weight(7), self.eps, self.precision.dtype());
        let (dfc1, dfc1_bias) = (self.product(dhidden.clone().transpose(), normed), bias(&dhidden));
        let dnormed = self.product(dhidden, self.weight(8));
        let [dmiddle, dnorm2, dnorm2_bias] =
            B::norm_backward(middle.clone(), self.weight(6), dnormed, Some(dy), self.eps);

        let dout = B::add_backward(dmiddle.clone(), self.drop(1), self.precision.dtype());
        let (dproj, dproj_bias) = (self.product(dout.clone().transpose(), mixed.clone()), bias(&dout));
        let dmixed = self.product(dout, self.weight(4));
        // The sum of weights times their gradients is that of outputs times theirs.
        let along = B::along(dmixed.clone(), mixed.clone(), self.heads);
        let [dmixed] = B::split(dmixed, None, self.heads);
        let [q, k, v] = parts.clone();
        let scores = self.product(q.clone(), k.clone().transpose());
        let dweights = self.product(dmixed.clone(), v.transpose());
        let (tokens, scale) = (self.heads.tokens, self.scale(width));
        let [attention, dscores] =
            B::attend_backward(scores, sums.clone(), dweights, along, tokens, scale, self.drop(0));
        let dv = self.product(attention.transpose(), dmixed);
        let dk = self.product(dscores.clone().transpose(), q);
        let dqkv = B::join([self.product(dscores, k), dk, dv], self.heads);
        let normed = B::norm(x.clone(), self.weight(0), self.weight(1), self.eps, self.precision.dtype());
        let (dwqkv, dqkv_bias) = (self.product(dqkv.clone().transpose(), normed), bias(&dqkv));
        let dnormed = self.product(dqkv, self.weight(2));
        let [dx, dnorm1, dnorm1_bias] = B::norm_backward(x.clone(), self.weight(0), dnormed, Some(dmiddle), self.eps);
        let gradients = [
            dnorm1,
            dnorm1_bias,
            dwqkv,
            dqkv_bias,
            dproj,
            dproj_bias,
            dnorm2,
            dnorm2_bias,
            dfc1,
            dfc1_bias,
            dfc2,
            dfc2_bias,
        ];
        (dx, gradients)
    }
}

/// `[B, N, D]` to `[B, N, D]`, without a gradient.
pub fn forward<B: Steps>(block: &Block<B>, x: Tensor<B, 3>, dropout: &Dropout) -> Tensor<B, 3> {
    let dims = x.dims();
    let (y, _) = Layer::new(block, dims, dropout).forward(x.reshape([dims[0] * dims[1], dims[2]]));
    y.reshape(dims)
}

/// The same as one node of autodiff's graph.
pub fn forward_recorded<B: Steps, C: CheckpointStrategy>(
    block: &Block<Autodiff<B, C>>,
    x: Tensor<Autodiff<B, C>, 3>,
    dropout: &Dropout,
) -> Tensor<Autodiff<B, C>, 3>
where
    Autodiff<B, C>: Kernels,
{
    let dims = x.dims();
    let layer = Layer::new(&block.inner(), dims, dropout);
    let rows = x.clone().inner().reshape([dims[0] * dims[1], dims[2]]);
    let (y, tape) = layer.forward(rows);
    let mut parents = vec![primitive(x)];
    block.visit("", &mut |_, weight| parents.push(primitive(weight.get())));
    let Ok(parents) = <[_; WEIGHTS + 1]>::try_from(parents) else { unreachable!("a block has twelve weights") };
    record(parents, y.reshape(dims), move |dy| {
        let dy = Tensor::<B, 3>::from_primitive(TensorPrimitive::Float(dy));
        let (dx, gradients) = layer.backward(&tape, dy.reshape([dims[0] * dims[1], dims[2]]));
        let mut gradients = gradients.into_iter().map(primitive);
        let mut dx = Some(primitive(dx.reshape(dims)));
        std::array::from_fn(|_| dx.take().or_else(|| gradients.next()).unwrap_or_else(|| unreachable!("thirteen")))
    })
}

/// Shared with the kernels' tests.
#[cfg(test)]
pub mod tests {
    use super::*;
    use burn::backend::Flex;
    use burn::tensor::TensorData;
    use sorcen_tests::compare::largest_difference;

    use crate::model::precision::Precision;

    impl Steps for Flex {}

    /// Numbers between `-scale / 2` and `scale / 2`, other ones for every `seed`.
    pub fn numbers<B: Backend, const D: usize>(shape: [usize; D], seed: usize, scale: f32) -> Tensor<B, D> {
        let values = (0..shape.iter().product())
            .map(|i: usize| (((i + seed * 31) * 7919 % 9973) as f32 / 9973.0 - 0.5) * scale)
            .collect::<Vec<f32>>();
        Tensor::from_data(TensorData::new(values, shape), &Default::default())
    }

    /// Its numbers.
    pub fn host<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
        tensor.into_data().convert::<f32>().to_vec().unwrap()
    }

    /// The largest difference, in parts of the largest number.
    pub fn apart(ours: &[f32], plain: &[f32]) -> f64 {
        let scale = plain.iter().fold(1e-3, |scale, &x| f64::from(x).abs().max(scale));
        largest_difference(ours, plain) / scale
    }

    /// Output and gradients of a block against those of the plain block under autodiff, with and without dropout.
    pub fn is_the_plain_block<B: Steps>(precision: Precision, tolerance: f64)
    where
        Autodiff<B>: Kernels,
    {
        for (rate, tokens) in [(0.0, 7), (0.2, 9)] {
            let mut block = Block::<Autodiff<B>>::new(24, 2, 96, 1e-6, &Default::default());
            block.initialise("blocks.0", 1, &Default::default());
            let x = numbers::<Autodiff<B>, 3>([18, tokens, 24], 0, 2.0).require_grad();
            let mut leaves = Vec::new();
            block.visit("", &mut |_, weight| leaves.push(weight.get()));
            let dropout = || Dropout::new(rate, 1, 2);
            let gradients = |y: Tensor<Autodiff<B>, 3>| {
                let grads = y.square().sum().backward();
                let of_weights = leaves.iter().map(|leaf| host(leaf.grad(&grads).unwrap())).collect::<Vec<_>>();
                (host(x.grad(&grads).unwrap()), of_weights)
            };
            let view = || precision.view(&block);
            let ours = forward_recorded(&view(), x.clone(), &dropout());
            let plain = view().forward_plain(x.clone(), &dropout());
            let without = forward(&view().inner(), x.clone().inner(), &dropout());
            let (output, reference) = (host(ours.clone().inner()), host(plain.clone().inner()));
            let worst = apart(&output, &host(without));
            assert!(worst < 1e-6, "without a gradient: {worst}");
            let worst = apart(&output, &reference);
            assert!(worst < tolerance, "output: {worst}");
            let ((dx, ours), (plain_dx, plain)) = (gradients(ours), gradients(plain));
            let worst = apart(&dx, &plain_dx);
            assert!(worst < tolerance, "gradient of the input: {worst}");
            for (i, (ours, plain)) in ours.into_iter().zip(plain).enumerate() {
                let worst = apart(&ours, &plain);
                assert!(worst < tolerance, "gradient {i}: {worst}, dropout {rate}");
            }
        }
    }

    #[test]
    fn a_block_in_closed_form_is_the_plain_block() {
        is_the_plain_block::<Flex>(Precision::F32, 2e-5);
    }

    #[test]
    fn with_brain_floats_too() {
        is_the_plain_block::<Flex>(Precision::Bf16, 3e-2);
    }
}
