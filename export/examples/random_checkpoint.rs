//! Writes a checkpoint of random weights, to try out a size before anything is trained:
//!
//! ```text
//! cargo run --release -p sorcen-export --example random_checkpoint -- --model vit_b --out /tmp/vit_b
//! ```
//!
//! Linears are Xavier-uniform and embeddings normal (0.02), as training starts; gains are around 1 and biases around 0
//! rather than exactly there, so that nothing that is computed with them goes unnoticed.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use rayon::prelude::*;
use sorcen_export::Checkpoint;
use sorcen_runtime::{
    rng::{Rng, Stream},
    schema::Param,
    ModelConfig,
};

/// Write a checkpoint of random weights.
#[derive(Parser)]
struct Args {
    /// Sizes of the model.
    #[arg(long, value_enum)]
    model: Model,
    /// Seed of the weights.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Folder for config.json and model.safetensors.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

#[derive(Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Model {
    VitB,
    VitL,
    Small,
    Tiny,
    Micro,
}

fn main() -> Result<(), sorcen_export::Error> {
    let args = Args::parse();
    let config = match args.model {
        Model::VitB => ModelConfig::vit_b(),
        Model::VitL => ModelConfig::vit_l(),
        Model::Small => ModelConfig::small(16, 1024),
        Model::Tiny => ModelConfig::tiny(16, 1024),
        Model::Micro => ModelConfig::micro(8, 512),
    };
    Checkpoint::write(&args.out, &config, |param| {
        let rng = Rng::new(args.seed, Stream::Init, param.index(&config) as u64);
        let shape = param.shape(&config);
        let (rows, cols) = shape.matrix();
        let (limit, name) = ((6.0 / (rows + cols) as f64).sqrt(), param.to_string());
        let embedding = matches!(param, Param::WordEmbedding | Param::PositionEmbedding | Param::DecoderPosition);
        let draw = |i: u64| match param {
            _ if embedding => 0.02 * rng.normal(i),
            _ if param.is_matrix() => limit * (2.0 * rng.uniform(i) - 1.0),
            _ if name.ends_with("weight") => 1.0 + 0.1 * rng.normal(i), // of a norm
            _ => 0.02 * rng.normal(i),
        };
        (0..shape.elements() as u64).into_par_iter().map(|i| draw(i) as f32).collect::<Vec<_>>().into()
    })?;
    println!("{}: {config:?}", args.out.display());
    Ok(())
}
