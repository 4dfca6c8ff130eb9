//! Operations with a gradient of our own: each is one node of autodiff's graph.

use std::fmt;
use std::sync::Arc;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorPrimitive};

/// From the output's gradient to the parents' gradients.
struct Pullback<B: Backend, const N: usize>(Arc<dyn Fn(FloatTensor<B>) -> [FloatTensor<B>; N] + Send + Sync>);

impl<B: Backend, const N: usize> Clone for Pullback<B, N> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<B: Backend, const N: usize> fmt::Debug for Pullback<B, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pullback")
    }
}

/// An operation whose gradient is a [`Pullback`].
#[derive(Debug)]
struct Fused;

impl<B: Backend, const N: usize> Backward<B, N> for Fused {
    type State = Pullback<B, N>;

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let gradients = (ops.state.0)(grads.consume::<B>(&ops.node));
        for (parent, gradient) in ops.parents.into_iter().zip(gradients) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, gradient);
            }
        }
    }
}

/// Puts `output`, computed from `parents`, into the graph.
pub fn record<B: Backend, C: CheckpointStrategy, const N: usize, const D: usize>(
    parents: [FloatTensor<Autodiff<B, C>>; N],
    output: Tensor<B, D>,
    pullback: impl Fn(FloatTensor<B>) -> [FloatTensor<B>; N] + Send + Sync + 'static,
) -> Tensor<Autodiff<B, C>, D> {
    let output = primitive(output);
    let nodes = parents.each_ref().map(|parent| parent.node.clone());
    let output = match Fused.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish(Pullback(Arc::new(pullback)), output),
        OpsKind::UnTracked(prep) => prep.finish(output),
    };
    Tensor::from_primitive(TensorPrimitive::Float(output))
}

/// A tensor as its backend has it.
pub fn primitive<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> FloatTensor<B> {
    tensor.into_primitive().tensor()
}
