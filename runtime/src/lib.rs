//! Inference of Sorcen models: features and masked image generation from VQ tokens,
//! with the same bits on every CPU.
//!
//! `no_std`, no allocation: the caller owns all memory.
#![no_std]

pub mod config;
pub mod error;
pub mod rng;
pub mod schema;
pub mod tokens;

pub use config::ModelConfig;
pub use error::Error;
