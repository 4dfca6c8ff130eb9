//! `sorcen quickstart` and `sorcen demo`.

use std::path::PathBuf;
use std::sync::atomic::Ordering;

use super::usage::Stopped;
use crate::quickstart::{self, DemoOptions, Init};

/// The whole way on bundled data: train, export, cross-check, features, new images, report.
///
/// CPU only, nothing is downloaded. Trains for `--minutes`, writes the checkpoint, ONNX files and packs, compares
/// the float reference with each of them, measures k-NN accuracy with the int8 runtime, draws new images and
/// fills others in from a quarter of their tokens. Ends with OUT/report.md.
///
/// Ctrl-C stops after the stage at work, training after the step, with a checkpoint in OUT/training; exit code 130.
#[derive(clap::Args)]
#[command(rename_all = "snake_case")]
pub struct Args {
    /// Minutes of pretraining; the other stages take up to a minute of two cores, features most of it
    #[arg(long, default_value_t = 2.0)]
    minutes: f64,
    /// Folder for everything the run makes; files of an earlier run are replaced
    #[arg(long, default_value = "out/quickstart")]
    out: PathBuf,
    /// What training starts from
    #[arg(long, value_enum, default_value_t = Init::Bundled)]
    init: Init,
    /// Seed of training and of the pictures
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// New images to draw
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=4096))]
    samples: u32,
}

/// Runs the quickstart.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let options = quickstart::Options {
        minutes: args.minutes,
        out: args.out.clone(),
        init: args.init,
        seed: args.seed,
        samples: args.samples as usize,
    };
    let stop = super::stop_on_signal()?;
    match quickstart::run(&options, &stop) {
        Err(error) if stop.load(Ordering::Relaxed) => Err(Stopped(format!("{error:#}")).into()),
        done => done.map(|_| ()),
    }
}

/// What the bundled model does, without training: k-NN accuracy, new images, images filled in.
///
/// Runs the int8 pack that firmware embeds; the same bits come out on every machine.
#[derive(clap::Args)]
#[command(rename_all = "snake_case")]
pub struct DemoArgs {
    /// Folder for the pictures
    #[arg(long, default_value = "out/demo")]
    out: PathBuf,
    /// New images to draw
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=4096))]
    samples: u32,
    /// Seed of the first image; image i has seed SEED + i
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// Runs the demo.
pub fn run_demo(args: &DemoArgs) -> anyhow::Result<()> {
    quickstart::demo(&DemoOptions { out: args.out.clone(), samples: args.samples as usize, seed: args.seed })
}
