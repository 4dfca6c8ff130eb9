//! Lowers Sorcen checkpoints to ONNX and quantised packs, and proves that they compute the same thing.

pub mod atomic;
pub mod batch;
pub mod checkpoint;
pub mod cli;
pub mod engine;
pub mod error;
pub mod generate;
pub mod inspect;
pub mod onnx;
pub mod pack;
pub mod reference;
pub mod tensors;
pub mod tolerance;
pub mod tract;
pub mod verify;

pub use checkpoint::Checkpoint;
pub use engine::Engine;
pub use error::Error;
