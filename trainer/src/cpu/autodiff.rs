//! The fused operations under autodiff: each is one node of the graph.

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::{Autodiff, Flex};
use burn::tensor::ops::FloatTensor;
use burn::tensor::Tensor;
use rayon::prelude::*;

use super::math::{self, wide};
use super::{block, shape, smoothed_cross_entropy, tensor, BlockWeights, Slice, ROWS};
use crate::kernels::graph::{primitive, record};
use crate::kernels::Kernels;
use crate::model::block::Block;
use crate::model::layers::Dropout;
use crate::model::precision::Precision;
use crate::model::weight::Weights as _;

type Primitive = FloatTensor<Flex>;

fn slice(gradient: Primitive) -> Slice {
    Slice(gradient.to_contiguous())
}

impl<C: CheckpointStrategy> Kernels for Autodiff<Flex, C> {
    fn block(block: &Block<Self>, x: Tensor<Self, 3>, dropout: &Dropout) -> Tensor<Self, 3> {
        if block.precision() != Precision::F32 {
            return block.forward_plain(x, dropout);
        }
        let dims = x.dims();
        let inner = block.inner();
        let (input, weights) = (Slice::new(x.clone().inner()), BlockWeights::new(&inner));
        let calls = dropout.reserve(4);
        let (y, tape) = block::forward(shape(&inner, dims), input.get(), &weights.get(), dropout.source(), calls, true);
        let mut parents = vec![primitive(x)];
        let mut sizes = Vec::new();
        block.visit("", &mut |_, weight| {
            sizes.push(weight.get().dims());
            parents.push(primitive(weight.get()));
        });
        let Ok(parents) = <[_; 13]>::try_from(parents) else { unreachable!("a block has twelve weights") };
        record(parents, tensor(y, dims), move |dy| {
            // The tape is there: it was asked for.
            let Some(tape) = &tape else { unreachable!("a recorded block has a tape") };
            let (dx, grads) = block::backward(tape, input.get(), &weights.get(), slice(dy).get());
            let mut grads = grads.into_iter().zip(&sizes).map(|(grad, size)| primitive(tensor(grad, *size)));
            let mut dx = Some(primitive(tensor(dx, dims)));
            std::array::from_fn(|_| dx.take().or_else(|| grads.next()).unwrap_or_else(|| unreachable!("thirteen")))
        })
    }

    fn layer_norm_rows(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        bias: Tensor<Self, 2>,
        eps: f32,
    ) -> Tensor<Self, 2> {
        let [rows, width] = x.dims();
        let y = Flex::layer_norm_rows(x.clone().inner(), weight.clone().inner(), bias.clone().inner(), eps);
        let (input, scale) = (Slice::new(x.clone().inner()), Slice::new(weight.clone().inner()));
        record([primitive(x), primitive(weight), primitive(bias)], y, move |dy| {
            let dy = slice(dy);
            let mut dx = vec![0.0; rows * width];
            let size = ROWS * width;
            let partial: Vec<[Vec<f32>; 2]> = dx
                .par_chunks_mut(size)
                .zip(input.get().par_chunks(size).zip(dy.get().par_chunks(size)))
                .map(|(dx, (x, dy))| {
                    let mut grads = [vec![0.0; width], vec![0.0; width]];
                    let [dweight, dbias] = &mut grads;
                    wide(
                        #[inline(always)]
                        || math::layer_norm_backward(x, scale.get(), eps, dy, dx, dweight, dbias),
                    );
                    grads
                })
                .collect();
            let mut total = [vec![0.0; width], vec![0.0; width]];
            for grads in &partial {
                for (total, grad) in total.iter_mut().zip(grads) {
                    math::add_rows(grad, total);
                }
            }
            let [dweight, dbias] = total;
            [tensor(dx, [rows, width]), tensor(dweight, [1, width]), tensor(dbias, [1, width])].map(primitive)
        })
    }

    fn gelu_rows(x: Tensor<Self, 2>) -> Tensor<Self, 2> {
        let dims = x.dims();
        let input = Slice::new(x.clone().inner());
        record([primitive(x.clone())], Flex::gelu_rows(x.inner()), move |dy| {
            let dy = slice(dy);
            let mut dx = vec![0.0; dy.get().len()];
            let size = ROWS * dims[1];
            dx.par_chunks_mut(size).zip(input.get().par_chunks(size).zip(dy.get().par_chunks(size))).for_each(
                |(dx, (x, dy))| {
                    wide(
                        #[inline(always)]
                        || {
                            for ((dx, x), dy) in dx.iter_mut().zip(x).zip(dy) {
                                *dx = math::gelu(*x).1 * dy;
                            }
                        },
                    )
                },
            );
            [primitive(tensor(dx, dims))]
        })
    }

    fn smoothed_cross_entropy(
        logits: Tensor<Self, 2>,
        targets: &[i32],
        counted: &[bool],
        smoothing: f32,
    ) -> Tensor<Self, 1> {
        let dims = logits.dims();
        let values = Slice::new(logits.clone().inner());
        let (loss, gradient) = smoothed_cross_entropy(values.get(), dims[1], targets, counted, smoothing);
        let gradient = tensor(gradient, dims);
        record([primitive(logits)], tensor(vec![loss], [1]), move |dy| {
            let upstream = slice(dy).get()[0];
            [primitive(gradient.clone() * upstream)]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::layers::LayerNorm;
    use crate::optim::Update;

    type B = Autodiff<Flex>;

    fn numbers<const D: usize>(shape: [usize; D], scale: f32) -> Tensor<B, D> {
        let count = shape.iter().product::<usize>();
        let values = (0..count).map(|i| ((i * 7919 % 997) as f32 / 997.0 - 0.5) * scale).collect();
        Tensor::from_inner(tensor(values, shape)).require_grad()
    }

    fn close<const D: usize>(name: &str, a: Tensor<Flex, D>, b: Tensor<Flex, D>, tolerance: f32) {
        let worst = (a - b).abs().max().into_scalar();
        assert!(worst < tolerance, "{name}: {worst}");
    }

    /// Gradients of `sum(y · y)` by `leaves`.
    fn gradients<const D: usize>(y: Tensor<B, D>, leaves: &[Tensor<B, 2>]) -> Vec<Tensor<Flex, 2>> {
        let grads = y.square().sum().backward();
        leaves.iter().map(|leaf| leaf.grad(&grads).unwrap()).collect()
    }

    #[test]
    fn a_block_is_the_plain_block() {
        for (rate, tokens) in [(0.0, 7), (0.2, 9)] {
            let mut block = Block::<B>::new(24, 2, 96, 1e-6, &Default::default());
            block.initialise("blocks.0", 1, &Default::default());
            let x = numbers([18 * tokens, 24], 2.0);
            let mut leaves = vec![x.clone()];
            block.visit("", &mut |_, weight| leaves.push(weight.get()));
            let input = || x.clone().reshape([18, tokens, 24]); // once a graph: backward takes graphs apart
                                                                // The plain block takes its four dropouts in the same order.
            let fused = block.forward(input(), &Dropout::new(rate, 1, 2));
            let plain = block.forward_plain(input(), &Dropout::new(rate, 1, 2));
            close("output", fused.clone().inner(), plain.clone().inner(), 1e-5);
            close(
                "below autodiff",
                fused.clone().inner(),
                block.inner().forward(input().inner(), &Dropout::new(rate, 1, 2)),
                1e-6,
            );
            let (fused, plain) = (gradients(fused, &leaves), gradients(plain, &leaves));
            for (i, (fused, plain)) in fused.into_iter().zip(plain).enumerate() {
                let scale = plain.clone().abs().max().into_scalar().max(1e-3);
                close(&format!("gradient {i}"), fused / scale, plain / scale, 2e-5);
            }
        }
    }

    #[test]
    fn layer_norm_and_gelu_are_the_plain_ones() {
        let x = numbers([70, 12], 6.0);
        let mut norm = LayerNorm::<B>::new(12, 1e-5, &Default::default());
        norm.weight.set(numbers([1, 12], 2.0));
        norm.bias.set(numbers([1, 12], 1.0));
        let leaves = [x.clone(), norm.weight.get(), norm.bias.get()];
        let fused = norm.forward(x.clone());
        let plain = crate::model::layers::standardise(x.clone(), 1e-5) * norm.weight.get() + norm.bias.get();
        close("norm", fused.clone().inner(), plain.clone().inner(), 1e-5);
        for (fused, plain) in gradients(fused, &leaves).into_iter().zip(gradients(plain, &leaves)) {
            close("gradient of the norm", fused, plain, 2e-4);
        }
        let (fused, plain) = (B::gelu_rows(x.clone()), burn::tensor::activation::gelu(x.clone()));
        close("gelu", fused.clone().inner(), plain.clone().inner(), 1e-6);
        for (fused, plain) in gradients(fused, &leaves[..1]).into_iter().zip(gradients(plain, &leaves[..1])) {
            close("gradient of gelu", fused, plain, 1e-5);
        }
    }

    #[test]
    fn cross_entropy_is_the_plain_one() {
        let logits = numbers([130, 40], 9.0);
        let targets: Vec<i32> = (0..130).map(|i| i * 7 % 40).collect();
        let counted: Vec<bool> = (0..130).map(|i| i % 3 != 0).collect();
        let fused = B::smoothed_cross_entropy(logits.clone(), &targets, &counted, 0.1);
        let weights = counted.iter().map(|&c| f32::from(u8::from(c))).collect();
        let weights = Tensor::from_inner(tensor(weights, [130, 1]));
        let indices = crate::model::indices(&targets, &Default::default());
        let plain = crate::losses::smoothed_cross_entropy(logits.clone(), indices, weights, 0.1);
        close("loss", fused.clone().inner(), plain.clone().inner(), 1e-5);
        let leaves = [logits];
        for (fused, plain) in gradients(fused, &leaves).into_iter().zip(gradients(plain, &leaves)) {
            close("gradient", fused, plain, 1e-6);
        }
    }

    #[test]
    fn adamw_is_the_plain_one() {
        let update = Update {
            factor: tensor(vec![0.5], [1]),
            lr: 1e-2,
            decay: 0.05,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            correction1: 0.19,
            correction2: 0.0975,
        };
        let [value, gradient, first] = [1.0, 2.0, 0.3].map(|scale| numbers([5, 8], scale).inner());
        let second = first.clone().square();
        let (mut fused, mut plain) = ((first.clone(), second.clone()), (first, second));
        let a = Flex::adamw(value.clone(), gradient.clone(), &mut fused, &update);
        let b = update.apply_plain(value, gradient, &mut plain);
        close("value", a, b, 1e-6);
        close("first moment", fused.0, plain.0, 1e-6);
        close("second moment", fused.1, plain.1, 1e-6);
    }
}
