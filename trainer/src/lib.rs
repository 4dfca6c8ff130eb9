//! Sorcen's trainer: tokens in, checkpoints out, on any Burn backend.

pub mod cli;
pub mod data;
pub mod files;
pub mod tokenizer;
