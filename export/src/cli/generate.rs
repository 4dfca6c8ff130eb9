//! `generate`: images from a model.

use std::path::PathBuf;

use anyhow::Context;
use ndarray::{Array2, Axis};

use super::{
    draw::{DrawArgs, Job, OutputArgs},
    number,
    source::Source,
    tokens::read_ids,
};
use crate::{
    engine::check_images,
    generate::{read_inputs, recorded_count_from, Randomness, Replay},
    tensors::TensorFile,
};

/// Generate images: from nothing, from known tokens, or with recorded randomness
///
/// Example:
///
///   sorcen generate --pack model.srcn --images 16 --out sheet.png
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    draw: DrawArgs,
    /// Number of images, 1 to 100000, where no file says.
    #[arg(long, value_name = "B", default_value_t = 1, value_parser = number::images)]
    images: usize,
    /// Known tokens to start from: `token_ids` [B, T], or `final_ids`, or `ids` [B, h, h] as `tokenizer run` writes them;
    /// the mask id where unknown.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["replay", "images"])]
    input: Option<PathBuf>,
    /// Replay `raw_sampled_ids` and `gumbel` [N, B, T]; the first row of `input_ids`, if there, is the start.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["seed", "greedy", "images"])]
    replay: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs the verb.
///
/// # Errors
/// Bad files, options, or recorded draws that do not fit.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let tokenizer = args.output.open_tokenizer()?;
    args.source.with(|opened| {
        let config = opened.engine().config();
        let nothing = |images| Array2::from_elem((images, config.tokens()), config.mask_token_id as i64);
        args.draw.check_size(args.images, config)?;
        let (mut start, mut randomness) = (nothing(args.images), args.draw.randomness());
        let mut count_from = None;
        if let Some(path) = &args.input {
            start = read_ids(path, config, &opened.codes, args.output.allow_other_tokenizer)?;
            args.draw.check_size(start.nrows(), config)?;
        }
        if let Some(path) = &args.replay {
            let file = TensorFile::open(path)?;
            let replay = Replay::read(&file, config)?;
            start = match read_inputs(&file)? {
                Some(inputs) => {
                    count_from = Some(recorded_count_from(config, inputs.view()));
                    inputs.index_axis_move(Axis(0), 0)
                }
                None => nothing(replay.gumbel.dim().1),
            };
            check_images(config, start.view(), &file.item("input_ids"))?;
            randomness = Randomness::Replay(replay);
            randomness.check(args.draw.steps, start.nrows()).with_context(|| path.display().to_string())?;
        }
        let options = args.draw.options(count_from);
        args.output.draw(&opened, tokenizer.as_ref(), &Job { originals: None, start, options, randomness })?;
        Ok(())
    })
}
