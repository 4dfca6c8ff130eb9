//! The CPU backend's fused operations: closed-form gradients over slices, cache-sized, in safe code.

mod autodiff;
mod block;
mod gemm;
mod math;

use burn::backend::flex::FlexTensor;
use burn::backend::Flex;
use burn::tensor::{Tensor, TensorData, TensorPrimitive};
use rayon::prelude::*;

use crate::kernels::Kernels;
use crate::model::block::Block;
use crate::model::layers::Dropout;
use crate::model::precision::Precision;
use crate::model::weight::Weights as _;
use crate::optim::{Moments, Update};
pub use math::wide;

/// Rows that are worked on together, whatever the number of threads.
const ROWS: usize = 64;

/// A tensor's memory; copied only where it is a view that does not lie in one piece.
struct Slice(FlexTensor);

impl Slice {
    fn new<const D: usize>(tensor: Tensor<Flex, D>) -> Self {
        Self(tensor.into_primitive().tensor().to_contiguous())
    }

    fn get(&self) -> &[f32] {
        self.0.storage()
    }
}

fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> Tensor<Flex, D> {
    Tensor::from_primitive(TensorPrimitive::Float(FlexTensor::from_data(TensorData::new(values, shape))))
}

/// The memory of a block's weights, in schema order.
struct BlockWeights(Vec<Slice>);

impl BlockWeights {
    fn new(block: &Block<Flex>) -> Self {
        let mut slices = Vec::with_capacity(12);
        block.visit("", &mut |_, weight| slices.push(Slice::new(weight.get())));
        Self(slices)
    }

    fn get(&self) -> block::Weights<'_> {
        block::Weights::new(std::array::from_fn(|i| self.0[i].get()))
    }
}

fn shape(block: &Block<Flex>, dims: [usize; 3]) -> block::Shape {
    let [batch, tokens, width] = dims;
    block::Shape { batch, tokens, width, heads: block.heads(), hidden: block.hidden(), eps: block.eps() }
}

impl Kernels for Flex {
    fn block(block: &Block<Self>, x: Tensor<Self, 3>, dropout: &Dropout) -> Tensor<Self, 3> {
        if block.precision() != Precision::F32 {
            return block.forward_plain(x, dropout);
        }
        let dims = x.dims();
        let (x, weights) = (Slice::new(x), BlockWeights::new(block));
        let calls = dropout.reserve(4);
        let (y, _) = block::forward(shape(block, dims), x.get(), &weights.get(), dropout.source(), calls, false);
        tensor(y, dims)
    }

    fn layer_norm_rows(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        bias: Tensor<Self, 2>,
        eps: f32,
    ) -> Tensor<Self, 2> {
        let [rows, width] = x.dims();
        let (x, weight, bias) = (Slice::new(x), Slice::new(weight), Slice::new(bias));
        let mut y = vec![0.0; rows * width];
        y.par_chunks_mut(ROWS * width).zip(x.get().par_chunks(ROWS * width)).for_each(|(y, x)| {
            wide(
                #[inline(always)]
                || math::layer_norm(x, weight.get(), bias.get(), eps, y),
            );
        });
        tensor(y, [rows, width])
    }

    fn gelu_rows(x: Tensor<Self, 2>) -> Tensor<Self, 2> {
        let dims = x.dims();
        let x = Slice::new(x);
        let mut y = vec![0.0; x.get().len()];
        y.par_chunks_mut(ROWS * dims[1]).zip(x.get().par_chunks(ROWS * dims[1])).for_each(|(y, x)| {
            wide(
                #[inline(always)]
                || {
                    for (y, x) in y.iter_mut().zip(x) {
                        *y = math::gelu(*x).0;
                    }
                },
            );
        });
        tensor(y, dims)
    }

    fn adamw(
        value: Tensor<Self, 2>,
        gradient: Tensor<Self, 2>,
        moments: &mut Moments<Self>,
        update: &Update<Self>,
    ) -> Tensor<Self, 2> {
        let factor = Slice::new(update.factor.clone()).get()[0];
        let gradient = Slice::new(gradient);
        let empty = || Tensor::empty([0, 0], &Default::default());
        // Taken, not cloned: memory that nothing else holds is changed in place.
        let (first, second) = std::mem::replace(moments, (empty(), empty()));
        let [mut p, mut m, mut v] = [value, first, second].map(|t| t.into_primitive().tensor().to_contiguous());
        let Update { lr, decay, beta1, beta2, eps, correction1, correction2, .. } = *update;
        let [b1, b2, c1, c2] = [beta1, beta2, 1.0 - beta1, 1.0 - beta2].map(|x| x as f32);
        let [shrink, step, root, eps] =
            [1.0 - lr * decay, lr / correction1, 1.0 / correction2.sqrt(), eps].map(|x| x as f32);
        let (ps, ms, vs) = (p.storage_mut::<f32>(), m.storage_mut::<f32>(), v.storage_mut::<f32>());
        wide(
            #[inline(always)]
            || {
                for (((p, m), v), g) in ps.iter_mut().zip(ms).zip(vs).zip(gradient.get()) {
                    let g = g * factor;
                    *m = *m * b1 + g * c1;
                    *v = *v * b2 + g * g * c2;
                    *p = *p * shrink - *m * step / (v.sqrt() * root + eps);
                }
            },
        );
        let wrap = |tensor| Tensor::from_primitive(TensorPrimitive::Float(tensor));
        *moments = (wrap(m), wrap(v));
        wrap(p)
    }
}

/// Label-smoothed cross-entropy and its gradient by the logits, `[R, K]`.
fn smoothed_cross_entropy(
    logits: &[f32],
    codes: usize,
    targets: &[i32],
    counted: &[bool],
    smoothing: f32,
) -> (f32, Vec<f32>) {
    let share = 1.0 / counted.iter().filter(|&&c| c).count().max(1) as f32;
    let mut gradient = vec![0.0; logits.len()];
    let totals: Vec<f64> = gradient
        .par_chunks_mut(ROWS * codes)
        .zip(logits.par_chunks(ROWS * codes))
        .zip(targets.par_chunks(ROWS).zip(counted.par_chunks(ROWS)))
        .map(|((gradient, logits), (targets, counted))| {
            let rows =
                gradient.chunks_exact_mut(codes).zip(logits.chunks_exact(codes)).zip(targets.iter().zip(counted));
            let mut total = 0.0;
            wide(
                #[inline(always)]
                || {
                    for ((gradient, logits), (&target, &counted)) in rows {
                        if counted {
                            total += row_cross_entropy(logits, target as usize, smoothing, share, gradient);
                        }
                    }
                },
            );
            total
        })
        .collect();
    ((totals.iter().sum::<f64>() * f64::from(share)) as f32, gradient)
}

/// One row's loss; `gradient` becomes its gradient times `share`.
#[inline(always)]
fn row_cross_entropy(logits: &[f32], target: usize, smoothing: f32, share: f32, gradient: &mut [f32]) -> f64 {
    gradient.copy_from_slice(logits);
    let log_sum = math::softmax(gradient, 1.0);
    let codes = logits.len() as f32;
    let rest = smoothing / codes;
    for p in gradient.iter_mut() {
        *p = (*p - rest) * share;
    }
    gradient[target] -= (1.0 - smoothing) * share;
    let mean = math::sum(logits, |x| x) / codes;
    f64::from(log_sum - (1.0 - smoothing) * logits[target] - smoothing * mean)
}
