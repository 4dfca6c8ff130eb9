//! Lowers Sorcen checkpoints to ONNX and quantised packs, and proves that they compute the same thing.
//!
//! ```no_run
//! use std::{path::Path, sync::Arc};
//! use sorcen_export::{onnx, pack::{self, PackOptions}, verify::{self, VerifyInputs}, Checkpoint};
//! use sorcen_runtime::pack::Precision;
//!
//! # fn main() -> Result<(), sorcen_export::Error> {
//! let checkpoint = Arc::new(Checkpoint::open(Path::new("run/checkpoint"))?);
//! onnx::export(&checkpoint, Path::new("run/export"), "CC0")?;
//! pack::write(&checkpoint, Path::new("run/export/model.srcn"), &PackOptions::new(Precision::Int8))?;
//! let tokens = verify::random_tokens(&checkpoint.config, 8, 0);
//! let report = verify::verify(&VerifyInputs {
//!     onnx: vec!["run/export".into()],
//!     packs: vec!["run/export/model.srcn".into()],
//!     ..VerifyInputs::new(checkpoint, tokens)
//! })?;
//! println!("{}", report.to_markdown());
//! assert!(report.passed());
//! # Ok(())
//! # }
//! ```
//!
//! [`mod@reference`] is the ground truth: the model in f32, to be read. Everything that runs the model is an
//! [`Engine`]: the same tensors in and out. Nothing here depends on the trainer or on Burn.

pub mod atomic;
pub mod batch;
pub mod calibrate;
pub mod card;
pub mod checkpoint;
pub mod classifier;
pub mod cli;
pub mod dataset;
pub mod engine;
pub mod error;
pub mod file;
pub mod fingerprint;
pub mod fits;
pub mod found;
pub mod generate;
pub mod given;
pub mod gptq;
pub mod ids;
pub mod inspect;
pub mod onnx;
pub mod onnxruntime;
pub mod pack;
pub mod picture;
pub mod pixels;
pub mod quantize;
pub mod reference;
pub mod tensors;
pub mod tokenizer;
pub mod tolerance;
pub mod tract;
pub mod verify;

pub use checkpoint::Checkpoint;
pub use engine::Engine;
pub use error::Error;
