//! Inference of Sorcen models: features and masked image generation from VQ tokens,
//! with the same bits on every CPU.
//!
//! `no_std` and without allocation: the caller owns all memory ([`scratch::Scratch::bytes`] is a
//! `const fn`), a pack runs in place, and nothing panics on what is in a file.
//!
//! The same bits ask for IEEE 754 arithmetic as every thread of a Rust program has it at its start: rounding to nearest,
//! subnormal numbers kept (no FTZ, no DAZ), no fast-math. On Cortex-M that is an FPSCR as after reset; the crate's README
//! says more.
//!
//! ```no_run
//! use sorcen_runtime::{generate, sampler::Seeded, scratch::{Plan, Scratch}, Model, Pack};
//! # fn run(file: &[u8], memory: &mut [u8]) -> Result<(), sorcen_runtime::Error> {
//! let model = Model::new(Pack::new(file)?); // checks the file, once
//! let config = *model.config();
//! let mut scratch = Scratch::new(memory, &config, Plan::Generate)?;
//! let mut ids = [config.mask_token_id as u16; 64]; // an 8×8 grid, all unknown
//! let options = generate::Options::default();
//! generate::generate(&model, &mut ids, &options, &mut Seeded(7), &mut scratch, |_| {})?;
//! # Ok(()) }
//! ```
#![no_std]

#[cfg(feature = "alloc")]
extern crate alloc;
#[cfg(feature = "std")]
extern crate std;

#[cfg(feature = "bench")]
pub mod bench;
pub mod config;
pub mod error;
pub mod generate;
pub mod given;
pub mod head;
mod kernels;
mod layers;
mod math;
pub mod model;
#[cfg(feature = "alloc")]
mod owned;
pub mod pack;
pub mod quant;
pub mod rng;
pub mod sampler;
pub mod schema;
pub mod scratch;
pub mod self_test;
#[cfg(feature = "std")]
pub mod team;
pub mod tokenizer;
pub mod tokens;
pub mod vit;

/// The examples of the READMEs, as documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
#[doc = include_str!("../../README.md")]
struct Readmes;

pub use config::ModelConfig;
pub use error::Error;
#[cfg(feature = "std")]
pub use kernels::map::MappedFile;
pub use kernels::Kernels;
pub use model::Model;
#[cfg(feature = "alloc")]
pub use owned::OwnedBytes;
pub use pack::Pack;
