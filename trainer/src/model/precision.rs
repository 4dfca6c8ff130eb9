//! What type of numbers matrix products take. Everything else, and the weights that are trained, is `f32`.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, FloatDType, Tensor};
use serde::{Deserialize, Serialize};

use super::weight::Weights;
use crate::device::Device;

/// How factors of matrix products are rounded before they are multiplied: in linears, attention and logits of encoder,
/// decoder and teacher.
///
/// Norms, softmax, GELU, residual sums, losses, averages and updates are `f32` all the same, on `f32` weights, their own
/// products included; and so are the projectors, whose BatchNorm magnifies what sets images apart, and the rounding with
/// it. So are logits: products of rounded factors, whose sums stay as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// Not at all: 24 bits of mantissa.
    #[default]
    F32,
    /// To TF32, 11 bits of mantissa, as the tensor cores of CUDA take 32-bit factors.
    Tf32,
    /// To brain floats, 16 bits with the range of 32: 8 bits of mantissa.
    Bf16,
}

impl Precision {
    /// `module` for a forward pass in this precision: the matrices of its linears are rounded, and their gradients
    /// reach the weights of `module` itself.
    pub fn view<B: Backend, M: Weights<B> + Clone>(self, module: &M) -> M {
        let mut view = module.clone();
        if self != Self::F32 {
            view.visit_mut("", &mut |name, weight| {
                let is_linear = weight.dims().len() == 2 && !name.ends_with("embeddings.weight");
                if is_linear {
                    weight.multiply_in(self);
                }
            });
        }
        view
    }

    /// The type in which factors are stored.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 | Self::Tf32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }

    /// A factor of matrix products, in that type.
    pub fn round<B: Backend, const D: usize>(self, factor: Tensor<B, D>) -> Tensor<B, D> {
        to(factor, self.dtype())
    }

    /// That a device multiplies so.
    ///
    /// # Errors
    /// What it does instead.
    pub fn expect_on(self, device: Device) -> Result<(), String> {
        let (expected, why) = match (self, device) {
            (Self::F32, _) => return Ok(()),
            #[cfg(feature = "cuda")]
            (_, Device::Cuda) => return Ok(()),
            (Self::Bf16, Device::Cpu) => return Ok(()),
            (Self::Tf32, Device::Cpu) => {
                ("f32 or bf16", "TF32 is a format of CUDA's tensor cores, which --device cpu has not")
            }
            #[cfg(feature = "wgpu")]
            (Self::Tf32, Device::Wgpu) => {
                ("f32", "TF32 is a format of CUDA's tensor cores, of which --device wgpu knows nothing")
            }
            #[cfg(feature = "wgpu")]
            (Self::Bf16, Device::Wgpu) => ("f32", "--device wgpu has no brain floats"),
        };
        let found = if self == Self::Tf32 { "tf32" } else { "bf16" };
        Err(format!("--precision: expected {expected}, found {found}: {why}"))
    }
}

/// `x` as `dtype`.
pub fn to<B: Backend, const D: usize>(x: Tensor<B, D>, dtype: DType) -> Tensor<B, D> {
    if x.dtype() == dtype {
        x
    } else {
        x.cast(FloatDType::from(dtype))
    }
}
