//! Sorcen's trainer: tokens in, checkpoints out, on any Burn backend.

pub mod bundled;
pub mod checkpoint;
pub mod cli;
pub mod clock;
pub mod config;
pub mod cpu;
pub mod data;
pub mod device;
pub mod echo;
pub mod engine;
pub mod eval;
pub mod files;
pub mod import;
pub mod kernels;
pub mod losses;
pub mod masking;
pub mod metrics;
pub mod model;
pub mod optim;
pub mod picture;
pub mod quickstart;
pub mod schedule;
pub mod step;
pub mod teacher;
pub mod tokenizer;
pub mod train;
