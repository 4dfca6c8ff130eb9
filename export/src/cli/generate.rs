//! `generate`: token maps from a model.

use std::path::PathBuf;

use anyhow::Context;
use clap::ValueEnum;
use ndarray::{Array2, Axis, Ix2};
use sorcen_runtime::generate::{CountFrom, Options};

use super::source::{Opened, Source};
use crate::{
    generate::{generate, generate_pack, read_inputs, recorded_count_from, Randomness, Replay},
    tensors::{TensorFile, TensorWriter},
};

/// Generate token maps: from nothing, from known tokens, or with recorded randomness.
///
/// Out: `input_ids` [N, B, T] (ids entering each step, the mask id where unknown) and `final_ids` [B, T].
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    source: Source,
    /// Steps.
    #[arg(long, value_name = "N", default_value_t = 20)]
    steps: usize,
    /// Choice temperature: noise on the confidences, falling to 0.
    #[arg(long, value_name = "C", default_value_t = 6.0)]
    temperature: f64,
    /// Temperature of the token choice: 1 samples the model's distribution.
    #[arg(long = "token_temperature", value_name = "C", default_value_t = 1.0)]
    token_temperature: f32,
    /// What the number of tokens to mask again is counted from [default: unknown; in a replay, what the
    /// recorded `input_ids` say].
    #[arg(long = "count_from", value_enum)]
    count_from: Option<Count>,
    /// Seed; image b uses seed + b.
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Always choose the most likely code.
    #[arg(long)]
    greedy: bool,
    /// Number of images, where no file says.
    #[arg(long, value_name = "B", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    images: u32,
    /// Known tokens to start from: `token_ids` [B, T], the mask id where unknown.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["replay", "images"])]
    input: Option<PathBuf>,
    /// Replay `raw_sampled_ids` and `gumbel` [N, B, T]; the first row of `input_ids`, if there, is the start.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["seed", "greedy", "images"])]
    replay: Option<PathBuf>,
    /// Output tensors (safetensors).
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

/// [`CountFrom`] on the command line.
#[derive(Clone, Copy, ValueEnum)]
enum Count {
    /// The tokens unknown at the start.
    Unknown,
    /// All tokens, as the official loop does.
    Grid,
}

/// Runs the verb.
///
/// # Errors
/// Bad files, options, or recorded draws that do not fit.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let mut options = Options {
        steps: args.steps,
        temperature: args.temperature,
        token_temperature: args.token_temperature,
        count_from: CountFrom::Unknown,
    };
    args.source.with(|opened| {
        let config = opened.engine().config();
        let nothing = |images| Array2::from_elem((images, config.tokens()), config.mask_token_id as i64);
        let (start, randomness) = match (&args.replay, &args.input) {
            (Some(path), _) => {
                let file = TensorFile::open(path)?;
                let replay = Replay::read(&file, config).with_context(|| path.display().to_string())?;
                let start = match read_inputs(&file)? {
                    Some(inputs) => {
                        options.count_from = recorded_count_from(config, inputs.view());
                        inputs.index_axis_move(Axis(0), 0)
                    }
                    None => nothing(replay.gumbel.dim().1),
                };
                (start, Randomness::Replay(replay))
            }
            (None, Some(path)) => {
                let start = TensorFile::open(path)?.ints("token_ids", 2)?.into_dimensionality::<Ix2>()?;
                (start, args.draws())
            }
            (None, None) => (nothing(args.images as usize), args.draws()),
        };
        match args.count_from {
            Some(Count::Unknown) => options.count_from = CountFrom::Unknown,
            Some(Count::Grid) => options.count_from = CountFrom::Grid,
            None => {}
        }
        let made = match &opened {
            Opened::Pack(engine) => generate_pack(engine, start.view(), &options, &randomness)?,
            Opened::Host(engine) => generate(*engine, start.view(), &options, &randomness)?,
        };
        let mut out = TensorWriter::default();
        out.ints("input_ids", made.input_ids.view());
        out.ints("final_ids", made.final_ids.view());
        out.write(&args.output)?;
        println!("{}: {} images by {}", args.output.display(), start.nrows(), opened.engine().name());
        Ok(())
    })
}

impl Args {
    fn draws(&self) -> Randomness {
        if self.greedy {
            Randomness::Greedy(self.seed)
        } else {
            Randomness::Seeded(self.seed)
        }
    }
}
