//! The device that a run uses: those compiled in.

use clap::builder::ValueParserFactory;
use serde::{Deserialize, Serialize};

/// Where to compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Device {
    /// Burn's flex backend.
    #[default]
    Cpu,
    /// An NVIDIA GPU.
    #[cfg(feature = "cuda")]
    Cuda,
    /// Any GPU with Vulkan, Metal or DirectX 12.
    #[cfg(feature = "wgpu")]
    Wgpu,
}

/// On the command line a device that was not compiled in is another mistake than one that does not exist.
impl ValueParserFactory for Device {
    type Parser = fn(&str) -> Result<Self, String>;

    fn value_parser() -> Self::Parser {
        |name| match name {
            "cpu" => Ok(Self::Cpu),
            #[cfg(feature = "cuda")]
            "cuda" => Ok(Self::Cuda),
            #[cfg(not(feature = "cuda"))]
            "cuda" => Err(not_compiled(name)),
            #[cfg(feature = "wgpu")]
            "wgpu" => Ok(Self::Wgpu),
            #[cfg(not(feature = "wgpu"))]
            "wgpu" => Err(not_compiled(name)),
            _ => Err("expected cpu, cuda or wgpu".into()),
        }
    }
}

#[cfg(not(all(feature = "cuda", feature = "wgpu")))]
fn not_compiled(name: &str) -> String {
    format!("this build has no {name}; cargo build --release -p sorcen-trainer --features {name} has")
}

impl Device {
    /// How many of its kind this machine has, where each replica of a run needs one of its own.
    pub fn count(self) -> Option<usize> {
        match self {
            Self::Cpu => None,
            #[cfg(feature = "cuda")]
            Self::Cuda => Some(count::<burn::backend::Cuda>()),
            #[cfg(feature = "wgpu")]
            Self::Wgpu => None, // replicas share the one that is chosen
        }
    }

    /// That this machine has `devices` of its kind.
    ///
    /// # Errors
    /// What there is.
    pub fn expect(self, devices: usize) -> Result<(), String> {
        match self.count() {
            Some(there) if devices > there => {
                Err(format!("--devices: expected at most {there}, those of this machine, found {devices}"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(feature = "cuda")]
fn count<B: burn::tensor::backend::Backend>() -> usize {
    use burn::tensor::backend::DeviceOps as _;
    B::device_count(B::Device::default().id().type_id)
}

/// Evaluates `$body` with `$backend` bound to the backend of a [`Device`], without autodiff.
macro_rules! with_backend {
    ($device:expr, $backend:ident => $body:expr) => {
        match $device {
            $crate::device::Device::Cpu => {
                type $backend = burn::backend::Flex;
                $body
            }
            #[cfg(feature = "cuda")]
            $crate::device::Device::Cuda => {
                type $backend = burn::backend::Cuda;
                $body
            }
            #[cfg(feature = "wgpu")]
            $crate::device::Device::Wgpu => {
                type $backend = burn::backend::Wgpu;
                $body
            }
        }
    };
}
pub(crate) use with_backend;
