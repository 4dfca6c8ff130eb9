//! What type of numbers matrix products take. Everything else, and the weights that are trained, is `f32`.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, FloatDType, Tensor};
use serde::{Deserialize, Serialize};

use super::weight::Weights;

/// The type of the factors of matrix products.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// 32 bits (on CUDA's tensor cores their products are TF32).
    #[default]
    F32,
    /// Brain floats, 16 bits with the range of 32: in linears, attention and logits of encoder, decoder and teacher.
    /// Norms, softmax, GELU, residual sums, losses, averages and updates are `f32` all the same, on `f32` weights; and
    /// so are the projectors, whose BatchNorm magnifies what sets images apart, and the rounding with it.
    Bf16,
}

impl Precision {
    /// `module` for a forward pass in this precision: the matrices of its linears are rounded, and their gradients
    /// reach the weights of `module` itself.
    pub fn view<B: Backend, M: Weights<B> + Clone>(self, module: &M) -> M {
        let mut view = module.clone();
        if self == Self::Bf16 {
            view.visit_mut("", &mut |name, weight| {
                let is_linear = weight.dims().len() == 2 && !name.ends_with("embeddings.weight");
                if is_linear {
                    weight.round(FloatDType::BF16);
                }
            });
        }
        view
    }

    /// A factor of matrix products.
    pub fn round<B: Backend, const D: usize>(self, factor: Tensor<B, D>) -> Tensor<B, D> {
        match self {
            Self::F32 => factor,
            Self::Bf16 => factor.cast(FloatDType::BF16),
        }
    }
}

/// `a · b`, both rounded to `precision` first; the product comes as `f32`.
pub fn product<B: Backend, const D: usize>(a: Tensor<B, D>, b: Tensor<B, D>, precision: DType) -> Tensor<B, D> {
    let to = |x: Tensor<B, D>, dtype: DType| if x.dtype() == dtype { x } else { x.cast(FloatDType::from(dtype)) };
    to(to(a, precision).matmul(to(b, precision)), DType::F32)
}
