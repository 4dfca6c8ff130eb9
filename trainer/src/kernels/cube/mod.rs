//! Kernels on CubeCL, for CUDA and wgpu: the [`Steps`] of a block, weights' updates, the loss over codes. Each reads what
//! it needs and writes its output once, where tensor operations would go over memory many times and autodiff would keep
//! what lies between.
//!
//! Burn's own fusion of operations is off: on wgpu, with a software driver, Burn 0.21's fused products came out wrong
//! (`gelu((2 x) Wᵀ + b)` of 24 columns, by half of what it should be), silently.

mod attention;
mod dropout;
mod echo;
mod elements;
mod entropy;
mod launch;
mod norm;
mod product;
mod reduce;
#[cfg(test)]
mod tests;
mod update;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::Autodiff;
use burn::tensor::{DType, Int, Tensor, TensorData, TensorPrimitive};
use burn_cubecl::kernel::into_contiguous;

use super::graph::{primitive, record};
use super::steps::{to, Drop, Heads, Steps};
use super::{block, gather, Kernels};
use crate::model::block::Block;
use crate::model::indices;
use crate::model::layers::{Dropout, DropoutSource};
use crate::model::Precision;
use crate::optim::{Moments, Update};
use sorcen_runtime::rng::Rng;

/// [`Kernels`] and [`Steps`] of `$backend`, with and without autodiff; `$more` are items of the former.
macro_rules! kernels_on {
    ($backend:ty, { $($more:tt)* }) => {
        const _: () = {
            type Base = $backend;

            fn tensor<const D: usize>(memory: burn::tensor::ops::FloatTensor<Base>) -> Tensor<Base, D> {
                Tensor::from_primitive(TensorPrimitive::Float(memory))
            }

            fn memory<const D: usize>(tensor: Tensor<Base, D>) -> burn::tensor::ops::FloatTensor<Base> {
                into_contiguous(primitive(tensor))
            }

            impl Kernels for Base {
                fn block(block: &Block<Self>, x: Tensor<Self, 3>, dropout: &Dropout) -> Tensor<Self, 3> {
                    block::forward(block, x, dropout)
                }

                fn layer_norm_rows(
                    x: Tensor<Self, 2>,
                    weight: Tensor<Self, 2>,
                    bias: Tensor<Self, 2>,
                    eps: f32,
                ) -> Tensor<Self, 2> {
                    Self::norm(x, weight, bias, eps, DType::F32)
                }

                fn gelu_rows(x: Tensor<Self, 2>) -> Tensor<Self, 2> {
                    let [_, width] = x.dims();
                    let bias = Tensor::zeros([1, width], &x.device());
                    Self::activate(x, bias, Drop::off())
                }

                fn sample_echo(
                    logits: Tensor<Self, 2>,
                    topk: usize,
                    rng: &Rng,
                    _: &(dyn Fn(usize) -> bool + Sync),
                ) -> Tensor<Self, 1, Int> {
                    let [rows, _] = logits.dims();
                    let uniform = TensorData::new(echo::uniforms(rng, rows), [rows, 1]);
                    let uniform = memory(Tensor::<Self, 2>::from_data(uniform, &logits.device()));
                    Tensor::from_primitive(echo::sample(memory(logits), uniform, topk))
                }

                /// Drawn there: the host would draw, and upload, a billion numbers for a step of ViT-B.
                fn dropout<const D: usize>(
                    source: &DropoutSource,
                    call: u64,
                    shape: [usize; D],
                    device: &Self::Device,
                ) -> Tensor<Self, D> {
                    tensor(dropout::factors(Drop { source: *source, call }, shape, device))
                }

                fn adamw(
                    value: Tensor<Self, 2>,
                    gradient: Tensor<Self, 2>,
                    moments: &mut Moments<Self>,
                    update: &Update<Self>,
                ) -> Tensor<Self, 2> {
                    let [first, second] = [&moments.0, &moments.1].map(|moment| memory(moment.clone()));
                    let factor = memory(update.factor.clone());
                    let inputs = [memory(value), memory(gradient), first, second, factor];
                    let [value, first, second] = update::adamw(inputs, update).map(tensor);
                    *moments = (first, second);
                    value
                }

                fn blend(old: Tensor<Self, 2>, new: Tensor<Self, 2>, momentum: f64) -> Tensor<Self, 2> {
                    tensor(update::blend(memory(old), memory(new), momentum))
                }

                $($more)*
            }

            impl<C: CheckpointStrategy> Kernels for Autodiff<Base, C> {
                fn block(block: &Block<Self>, x: Tensor<Self, 3>, dropout: &Dropout) -> Tensor<Self, 3> {
                    block::forward_recorded(block, x, dropout)
                }

                fn product<const D: usize>(
                    a: Tensor<Self, D>,
                    b: Tensor<Self, D>,
                    precision: Precision,
                ) -> Tensor<Self, D> {
                    let (left, right) = (a.clone().inner(), b.clone().inner());
                    let parents = [a, b].map(primitive);
                    let [by_a, by_b] = parents.each_ref().map(|parent| !parent.node.requirement.is_none());
                    let y = Base::product(left.clone(), right.clone(), precision);
                    record(parents, y, move |dy| {
                        let dy = tensor::<D>(dy);
                        let (left, right) = (left.clone(), right.clone());
                        let types = [left.dtype(), right.dtype()];
                        let [da, db] = [
                            by_a.then(|| Base::product(dy.clone(), right.swap_dims(D - 2, D - 1), precision)),
                            by_b.then(|| Base::product(left.swap_dims(D - 2, D - 1), dy.clone(), precision)),
                        ];
                        // Nobody asks for the gradient of what has none.
                        let [da, db] = [da, db].map(|gradient| gradient.unwrap_or_else(|| dy.clone()));
                        [to(da, types[0]), to(db, types[1])].map(primitive)
                    })
                }

                fn layer_norm_rows(
                    x: Tensor<Self, 2>,
                    weight: Tensor<Self, 2>,
                    bias: Tensor<Self, 2>,
                    eps: f32,
                ) -> Tensor<Self, 2> {
                    let (rows, scale) = (x.clone().inner(), weight.clone().inner());
                    let y = Base::norm(rows.clone(), scale.clone(), bias.clone().inner(), eps, DType::F32);
                    record([x, weight, bias].map(primitive), y, move |dy| {
                        Base::norm_backward(rows.clone(), scale.clone(), tensor(dy), None, eps).map(primitive)
                    })
                }

                fn rows(table: Tensor<Self, 2>, ids: Tensor<Self, 1, Int>, groups: usize) -> Tensor<Self, 2> {
                    gather::rows(table, ids, groups)
                }

                fn gelu_rows(x: Tensor<Self, 2>) -> Tensor<Self, 2> {
                    let rows = x.clone().inner();
                    let bias = Tensor::zeros([1, rows.dims()[1]], &rows.device());
                    let y = Base::activate(rows.clone(), bias.clone(), Drop::off());
                    record([primitive(x)], y, move |dy| {
                        [primitive(Base::activate_backward(rows.clone(), bias.clone(), tensor(dy), Drop::off()))]
                    })
                }

                fn smoothed_cross_entropy(
                    logits: Tensor<Self, 2>,
                    targets: &[i32],
                    counted: &[bool],
                    smoothing: f32,
                ) -> Tensor<Self, 1> {
                    let targets: Vec<i32> =
                        targets.iter().zip(counted).map(|(&target, &counted)| if counted { target } else { -1 }).collect();
                    let count = counted.iter().filter(|&&counted| counted).count();
                    let targets: Tensor<Base, 1, Int> = indices(&targets, &logits.device());
                    let rows = memory(logits.clone().inner());
                    let [losses, gradient] = entropy::cross_entropy(rows, targets.into_primitive(), smoothing, count);
                    let (losses, gradient) = (tensor::<2>(losses), tensor::<2>(gradient));
                    record([primitive(logits)], losses.sum(), move |dy| {
                        [primitive(gradient.clone() * tensor::<1>(dy).unsqueeze())]
                    })
                }

                fn dropout<const D: usize>(
                    source: &DropoutSource,
                    call: u64,
                    shape: [usize; D],
                    device: &Self::Device,
                ) -> Tensor<Self, D> {
                    Tensor::from_inner(Base::dropout(source, call, shape, device))
                }
            }

            impl Steps for Base {
                fn norm(
                    x: Tensor<Self, 2>,
                    weight: Tensor<Self, 2>,
                    bias: Tensor<Self, 2>,
                    eps: f32,
                    dtype: DType,
                ) -> Tensor<Self, 2> {
                    tensor(norm::norm(memory(x), memory(weight), memory(bias), eps, dtype))
                }

                fn norm_backward(
                    x: Tensor<Self, 2>,
                    weight: Tensor<Self, 2>,
                    dy: Tensor<Self, 2>,
                    beside: Option<Tensor<Self, 2>>,
                    eps: f32,
                ) -> [Tensor<Self, 2>; 3] {
                    let gradients = norm::norm_backward(memory(x), memory(weight), memory(dy), beside.map(memory), eps);
                    let [dx, dweight, dbias] = gradients.map(tensor::<2>);
                    [dx, dweight.sum_dim(0), dbias.sum_dim(0)]
                }

                fn split<const PARTS: usize>(
                    rows: Tensor<Self, 2>,
                    bias: Option<Tensor<Self, 2>>,
                    heads: Heads,
                ) -> [Tensor<Self, 3>; PARTS] {
                    let (rows, bias) = (memory(rows), bias.map(memory));
                    std::array::from_fn(|part| {
                        tensor(attention::split(rows.clone(), bias.clone(), part, PARTS, heads))
                    })
                }

                fn join<const PARTS: usize>(parts: [Tensor<Self, 3>; PARTS], heads: Heads) -> Tensor<Self, 2> {
                    tensor(attention::join(parts.map(memory), heads))
                }

                fn along(a: Tensor<Self, 2>, b: Tensor<Self, 2>, heads: Heads) -> Tensor<Self, 3> {
                    tensor(attention::along(memory(a), memory(b), heads))
                }

                fn attend(scores: Tensor<Self, 3>, tokens: usize, scale: f32, drop: Drop) -> [Tensor<Self, 3>; 2] {
                    attention::attend(memory(scores), tokens, scale, drop).map(tensor)
                }

                fn attend_backward(
                    scores: Tensor<Self, 3>,
                    sums: Tensor<Self, 3>,
                    dweights: Tensor<Self, 3>,
                    along: Tensor<Self, 3>,
                    tokens: usize,
                    scale: f32,
                    drop: Drop,
                ) -> [Tensor<Self, 3>; 2] {
                    let inputs = [scores, sums, dweights, along].map(memory);
                    attention::attend_backward(inputs, tokens, scale, drop).map(tensor)
                }

                fn activate(hidden: Tensor<Self, 2>, bias: Tensor<Self, 2>, drop: Drop) -> Tensor<Self, 2> {
                    tensor(elements::activate(memory(hidden), memory(bias), drop))
                }

                fn activate_backward(
                    hidden: Tensor<Self, 2>,
                    bias: Tensor<Self, 2>,
                    dy: Tensor<Self, 2>,
                    drop: Drop,
                ) -> Tensor<Self, 2> {
                    tensor(elements::activate_backward(memory(hidden), memory(bias), memory(dy), drop))
                }

                fn add(x: Tensor<Self, 2>, y: Tensor<Self, 2>, bias: Tensor<Self, 2>, drop: Drop) -> Tensor<Self, 2> {
                    tensor(elements::add(memory(x), memory(y), memory(bias), drop))
                }

                fn add_backward(dy: Tensor<Self, 2>, drop: Drop, dtype: DType) -> Tensor<Self, 2> {
                    tensor(elements::add_backward(memory(dy), drop, dtype))
                }

                fn column_sums(x: Tensor<Self, 2>) -> Tensor<Self, 2> {
                    tensor::<2>(elements::column_sums(memory(x))).sum_dim(0)
                }
            }
        };
    };
}

#[cfg(feature = "cuda")]
kernels_on!(burn::backend::Cuda, {
    fn product<const D: usize>(a: Tensor<Self, D>, b: Tensor<Self, D>, precision: Precision) -> Tensor<Self, D> {
        let [a, b] = [a, b].map(|factor| primitive(precision.round(factor)));
        Tensor::from_primitive(TensorPrimitive::Float(product::product(a, b, precision)))
    }

    /// By NCCL, from device to device.
    fn sum_over_replicas(values: Tensor<Self, 1>, peers: &crate::replicas::Peers) -> Tensor<Self, 1> {
        use burn::tensor::backend::DeviceOps as _;
        use burn_backend::distributed::{DistributedBackend as _, ReduceOperation};
        let device = |rank| crate::replicas::device::<Self>(rank).id();
        let devices = (0..peers.size()).map(device).collect();
        let sum = Self::all_reduce(primitive(values), ReduceOperation::Sum, devices);
        Tensor::from_primitive(TensorPrimitive::Float(sum.resolve()))
    }
});
#[cfg(feature = "wgpu")]
kernels_on!(burn::backend::Wgpu, {});
