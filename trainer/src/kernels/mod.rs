//! The operations that a backend may do faster than by tensor operations, in plain tensor operations.

#[cfg(any(test, feature = "cube"))]
pub mod block;
#[cfg(feature = "cube")]
mod cube;
pub mod gather;
pub mod graph;
#[cfg(any(test, feature = "cube"))]
pub mod steps;

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{activation, DType, Int, Tensor, TensorData};
use sorcen_runtime::rng::Rng;

use crate::echo;
use crate::losses;
use crate::model::block::Block;
use crate::model::indices;
use crate::model::layers::{standardise, Dropout, DropoutSource};
use crate::model::precision::{to, Precision};
use crate::optim::{Moments, Update};
use crate::replicas::Peers;

/// A backend that the model runs on. Every method has a plain implementation, which says what it computes; the CPU
/// backend overrides them (module [`cpu`](crate::cpu)), and so do CUDA and wgpu (folder `cube`).
pub trait Kernels: Backend {
    /// A transformer block, `[B, N, D]` to `[B, N, D]`.
    fn block(block: &Block<Self>, x: Tensor<Self, 3>, dropout: &Dropout) -> Tensor<Self, 3> {
        block.forward_plain(x, dropout)
    }

    /// `a · b`, `[…, M, K]` and `[…, K, N]` with the same `…`, of factors rounded to `precision`. Sums and product are
    /// `f32`.
    fn product<const D: usize>(a: Tensor<Self, D>, b: Tensor<Self, D>, precision: Precision) -> Tensor<Self, D> {
        let rounded = |factor| to(precision.round(factor), DType::F32); // whose products f32 holds
        rounded(a).matmul(rounded(b))
    }

    /// LayerNorm of rows `[R, D]`; `weight` and `bias` are `[1, D]`.
    fn layer_norm_rows(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        bias: Tensor<Self, 2>,
        eps: f32,
    ) -> Tensor<Self, 2> {
        standardise(x, eps) * weight + bias
    }

    /// Rows `ids` `[G*R]` of `table` `[G*N, D]`, in G groups: the ids of group g are rows `g*N..(g+1)*N`.
    fn rows(table: Tensor<Self, 2>, ids: Tensor<Self, 1, Int>, groups: usize) -> Tensor<Self, 2> {
        let _ = groups; // plain selection needs no such knowledge
        table.select(0, ids)
    }

    /// Exact GELU.
    fn gelu_rows(x: Tensor<Self, 2>) -> Tensor<Self, 2> {
        activation::gelu(x)
    }

    /// Label-smoothed cross-entropy of `logits` `[R, K]` against `targets` `[R]`, over the rows that
    /// `counted` `[R]` marks: their mean, `[1]`.
    fn smoothed_cross_entropy(
        logits: Tensor<Self, 2>,
        targets: &[i32],
        counted: &[bool],
        smoothing: f32,
    ) -> Tensor<Self, 1> {
        let device = logits.device();
        let counted: Vec<f32> = counted.iter().map(|&c| f32::from(u8::from(c))).collect();
        let counted = Tensor::from_data(TensorData::new(counted, [targets.len(), 1]), &device);
        losses::smoothed_cross_entropy(logits, indices(targets, &device), counted, smoothing)
    }

    /// Echo ids `[R]` drawn from `logits` `[R, K]` as [`echo::sample`] says; those of rows that are not `wanted`
    /// are of no use to the caller.
    fn sample_echo(
        logits: Tensor<Self, 2>,
        topk: usize,
        rng: &Rng,
        wanted: &(dyn Fn(usize) -> bool + Sync),
    ) -> Tensor<Self, 1, Int> {
        let (device, [_, codes]) = (logits.device(), logits.dims());
        let logits = logits.into_data().convert::<f32>().into_vec().unwrap_or_else(|_| unreachable!("converted"));
        let ids: Vec<i32> = echo::sample(&logits, codes, topk, rng, wanted).into_iter().map(i32::from).collect();
        indices(&ids, &device)
    }

    /// Factors of call number `call` for a tensor of shape `shape`: 0 or `1 / (1 - rate)`.
    fn dropout<const D: usize>(
        source: &DropoutSource,
        call: u64,
        shape: [usize; D],
        device: &Self::Device,
    ) -> Tensor<Self, D> {
        let mut factors = vec![0.0; shape.iter().product()];
        source.fill(call, 0, &mut factors);
        Tensor::from_data(TensorData::new(factors, shape), device)
    }

    /// The sum of the vectors that all replicas give: [`Peers::sum`].
    fn sum_over_replicas(values: Tensor<Self, 1>, peers: &Peers) -> Tensor<Self, 1> {
        peers.sum_on_host(values)
    }

    /// One AdamW update of a weight `[rows, columns]`; returns its new value.
    fn adamw(
        value: Tensor<Self, 2>,
        gradient: Tensor<Self, 2>,
        moments: &mut Moments<Self>,
        update: &Update<Self>,
    ) -> Tensor<Self, 2> {
        update.apply_plain(value, gradient, moments)
    }

    /// `momentum · old + (1 - momentum) · new`, of two weights.
    fn blend(old: Tensor<Self, 2>, new: Tensor<Self, 2>, momentum: f64) -> Tensor<Self, 2> {
        old * momentum + new * (1.0 - momentum)
    }
}

/// A backend that trains: with gradients, on one without.
pub trait TrainBackend: AutodiffBackend<InnerBackend: Kernels> + Kernels {}

impl<B: AutodiffBackend<InnerBackend: Kernels> + Kernels> TrainBackend for B {}
